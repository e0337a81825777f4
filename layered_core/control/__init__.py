"""ControlNet per layer.

* ``hints``: draw the hint pictures from layers.
* ``control_map``: where and how strongly a net's residuals act.

>>> import torch
>>> from layered_core.control.control_map import ControlMap
>>> from layered_core.control.hints import document_hint
>>> from layered_core.document import Control, Layer, LayerDocument, Recipe
>>> recipe = Recipe(control=Control("canny", strength=0.5))
>>> ball = Layer("ball", torch.ones(16, 16, 4), x=8, y=8, recipe=recipe)
>>> document = LayerDocument(32, 32, (ball,))
>>> tuple(document_hint(document).shape)
(3, 32, 32)
>>> weights = ControlMap.of(document).at([True])
>>> float(weights[16, 16]), float(weights[0, 0])
(0.5, 0.0)
"""
