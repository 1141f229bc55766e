"""A subject as other tools take it.

- `stock`: what of this package runs inside diffusers; `merging` makes one file of it, for those who have it not
- `folder`: a pipeline folder of diffusers'
- `files`: a subject as one file of tensors
- `kohya`: names of changes of the UNet that diffusers, ComfyUI and A1111 read
- `embedding`: S* as one word that does not change
"""
