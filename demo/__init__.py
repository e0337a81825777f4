"""The storybook: a procedural world of pictures and the tiny diffusion model that was trained on it."""
