"""The face world: cartoon faces drawn from parameters, and a small Stable-Diffusion-shaped model trained on them.

- `world`: people, their attributes and splits; `drawing` draws them, `captions` describes them, `data` makes many
- `stack` and `stages`: the model's parts, and their training one after another; `fitting`: the loop;
  `growing`: weights of an edition of half the side to begin from
- `judges`: networks that only measure; `measure` checks them
"""
