"""Sampling in numpy: prompts, guidance, noise, schedulers and the denoising loop."""
