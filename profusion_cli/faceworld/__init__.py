"""The face world: cartoon faces drawn from parameters, and a small Stable-Diffusion-shaped model trained on them."""
