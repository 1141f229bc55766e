"""The face world: cartoon faces drawn from parameters, and a small Stable-Diffusion-shaped model trained on them.

- `world`: people, their attributes and splits; `drawing` draws them, `captions` describes them, `data` makes many
- `stack` and `stages`: the model's parts, and their training one after another; `fitting`: the loop
- `judges`: networks that only measure, taught to see `damage` and to overlook `disturbance`; `measure` checks them,
  and `reactions` the columns of studies that they stand behind
"""
