"""Everything that touches tensors: the method, the models that it runs on, and training.

- the method: `fusion`, `schedule`, `noise`, `loss` (equations), `promptnet` and its `architecture`, `denoiser`
  and `model` (predictions), `drawing` (of one prompt), `sampling`
- the base model: `backbone`, made of `parts`, built by `random_base`, found (`hub`, `finding`) or converted
  (`single_file`), and told of by `descriptions`; `text`; `pixels`, as they are encoded; `pipelines`, `inpaint`
- from the Hub: `downloads` of files, and `needs` of a whole configuration
- training: `fitting` (any loop), `optimizers`, `draws` (its random numbers), `training` (one subject), `adapters`,
  `baselines`, `subjects`, `previewing`, and the folder `pretraining`
- memory before anything is loaded: `counting` (tensors without memory), `estimates` (what a job will need), `choosing`
  (what fits)
- for other tools: the folder `exports`
- between disk and memory: `weights`, `changes` and their `compression`, `views`, `official`
- the machine: `device`, its `memory`, and the `processes` that work on one command; a base model that is kept for
  several pieces of work: `keeping`
"""
