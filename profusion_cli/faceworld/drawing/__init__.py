"""Drawing a face of the face world with Pillow, bit by bit the same from the same seeds.

The whole picture (`face`) and what changes from one to the next (`pose`); a `canvas` with the `places` behind a
`person`, who is drawn from back to front: `hair`, `clothes` and `features`; and light and style (`finish`).
"""
