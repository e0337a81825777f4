"""Layered pictures for diffusion models: documents, masks, compositing. Pure torch; knows no framework.

Letters used for shapes throughout: B batch, L layers, H W pixels, h w latent cells, C channels, N tokens, T
steps.
"""

__version__ = "0.1.0"
