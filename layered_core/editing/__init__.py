"""Edits of a document's layers.

* ``selection``: choose layers by name or number.
* ``arrangement``: placement, order and look of layers as a user changed them by hand, kept as JSON.
* ``layer_picture``: take a layer's picture out, put another one in, make a thumbnail.
* ``stack_preview``: draw the composite with every layer's outline and name.
* ``side_by_side``: draw pictures in a row, each under its caption.

>>> from layered_core.document import Layer, LayerDocument
>>> from layered_core.editing.selection import select_layers
>>> layers = [Layer(name, width=8, height=8) for name in ("sky", "cloud 1", "cloud 2")]
>>> clouds, rest = select_layers(LayerDocument(8, 8, tuple(layers)), "cloud*")
>>> [layer.name for layer in clouds], [layer.name for layer in rest]
(['cloud 1', 'cloud 2'], ['sky'])
"""
