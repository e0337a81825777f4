"""Where layers lie on the canvas, and what is visible of them.

* ``placement``: scale, flip, rotate and move a layer's pixels onto the canvas.
* ``masks``: alpha and visible mask of every layer, also at the resolutions of a network.
* ``soft_masks``: grow, feather and blur masks; mix two pictures by a mask.
* ``blend_modes``: the formulas of the blend modes, and the rules of compositing.
* ``compositing``: flatten a document to one picture.
* ``backdrop``: the picture that the other layers lie on.
* ``colour``: sRGB and linear light.

>>> import torch
>>> from layered_core.canvas.compositing import composite, over_colour
>>> from layered_core.canvas.masks import layer_alphas, visible_masks
>>> from layered_core.document import Layer, LayerDocument
>>> red, blue = torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 0, 1.0, 1])
>>> back = Layer("back", red.expand(8, 8, 4))
>>> front = Layer("front", blue.expand(4, 4, 4), opacity=0.5)
>>> document = LayerDocument(16, 8, (back, front))
>>> composite(document)[0, 0]
tensor([0.5000, 0.0000, 0.5000, 1.0000])
>>> tuple(over_colour(composite(document), (1.0, 1.0, 1.0)).shape)
(8, 16, 3)
>>> masks, background = visible_masks(layer_alphas(document))
>>> masks[:, 0, 0], float(background[0, 12])
(tensor([0.5000, 0.5000]), 1.0)
"""
