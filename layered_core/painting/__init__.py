"""Change a part of a picture and keep the rest exactly.

* ``cropping``: cut out a region at a size that suits the model, and put it back.
* ``pasting``: mix a changed part into a picture without a seam.
* ``repaint``: plan the repainting of a region or of a whole document.
* ``mattes``: alpha and colours of what was painted into a picture.
* ``stages``: build a picture layer by layer.
* ``layers_from_masks``: take a picture apart, with ``edges``, which mattes, and ``exact_mixing``, which keeps every
  pixel.
* ``holes``: what layers in front hide of a layer, and what fills it.

>>> import torch
>>> from layered_core.painting.repaint import plan_repaint
>>> picture, region = torch.zeros(3, 32, 32), torch.zeros(32, 32)
>>> region[12:20, 12:20] = 1
>>> repaint = plan_repaint(picture, region, soften=2)
>>> sampled = torch.ones_like(repaint.cut())  # stands for what a model samples from the cut
>>> result = repaint.paste(sampled)
>>> torch.equal(result[:, :8], picture[:, :8]), bool((result[:, 16, 16] == 1).all())
(True, True)
"""
