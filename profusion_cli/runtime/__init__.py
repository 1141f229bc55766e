"""Everything that touches tensors: the method, the models that it runs on, and training.

- the method: `fusion`, `schedule`, `loss` (equations), `promptnet`, `denoiser` and `model` (predictions), `sampling`
- the base model: `backbone`, made of `parts`, found by `hub`, or built by `random_base`; `text`; `pipelines`, `inpaint`
- training: `fitting` (any loop), `training` (one subject), `baselines`, `subjects`, and the folder `pretraining`
- between disk and memory: `weights`, `views`, `official`
- the machine: `device`
"""
