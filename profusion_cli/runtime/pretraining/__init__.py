"""Pre-training PromptNet on many pictures: UNet, VAE and text encoder stay frozen (arXiv 2305.13579, section 3.1).

`run` is the whole of it. `sources` are what it learns from: files, of which `encodings` are kept by `caching`, or a
`stream` out of tar shards; `batches` says what each step is given of them. `trainer` holds what is trained; `loop`
takes the steps. `checkpoints`, `log` and `sheet` are what a training leaves in its folder, `work`; `interrupts` save a
checkpoint first.
"""
