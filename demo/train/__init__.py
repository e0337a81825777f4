"""Training of the shipped storybook weights: ``python -m demo.train vae|judge|text|unet``."""
