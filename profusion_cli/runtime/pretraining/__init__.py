"""Pre-training PromptNet on many pictures: UNet, VAE and text encoder stay frozen (arXiv 2305.13579, section 3.1).

`run` is the whole of it. `batches` says what each step is given, from `encodings` of the pictures; `trainer` holds what
is trained; `loop` takes the steps. `checkpoints`, `log` and `sheet` are what a training leaves in its folder, `work`;
`interrupts` save a checkpoint first.
"""
