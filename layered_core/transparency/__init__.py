"""LayerDiffuse (Zhang and Agrawala 2024, arXiv 2402.17113): transparent pictures from latent diffusion
models.

* ``transparent_networks``: the encoder and decoder networks of latent transparency.
* ``transparent_encode``: RGBA pictures to latents.
* ``transparent_decode``: latents and decoded pictures to RGBA, at any size.
* ``layer_diffuse_files``: the published files: names, sizes, tasks, safe reading.
* ``layer_diffuse_weights``: files that change a UNet's weights.
* ``layer_diffuse_frames``: files with which several pictures of a scene attend to each other (SD1.5).

>>> import torch
>>> from layered_core.transparency.transparent_decode import decode
>>> from layered_core.transparency.transparent_networks import TransparentDecoder
>>> decoder = TransparentDecoder(widths=(8,) * 7)  # small and untrained; see from_weights for published ones
>>> pixels, latent = torch.rand(1, 3, 64, 64), torch.zeros(1, 4, 8, 8)
>>> tuple(decode(decoder, pixels, latent, augmentations=1).shape)
(1, 4, 64, 64)
"""
