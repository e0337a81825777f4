"""Storybook: a procedural world and the tiny diffusion model that was trained on it."""
