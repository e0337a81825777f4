"""Layered rendering: each layer is led to its place while the picture is still forming.

* ``rendering_plan``: settings, and the plan of which words and colours lead which part of the picture.
* ``vision_guidance``: the vectors that are planted in the layers' places, and how the layers' predictions are
  fused.

>>> import torch
>>> from layered_core.rendering.vision_guidance import fuse, unit_vectors, vision_guidance
>>> masks = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # background, then one layer; [rows, h, w]
>>> colours = unit_vectors(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
>>> planted = vision_guidance(colours, masks, torch.tensor([0.0, 0.2]))
>>> planted[1].shape, fuse(planted, masks, torch.tensor([0, 0])).shape
(torch.Size([2, 1, 2]), torch.Size([1, 2, 1, 2]))
"""
