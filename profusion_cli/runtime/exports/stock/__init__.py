"""What runs inside diffusers: each module becomes one file of an exported folder, with all that it takes from here.

- `pipeline`: Fusion Sampling of one subject
- `promptnet`: the part of it that is the subject's own
"""
