"""Figures: how similar a picture is to another one, and how well it keeps to the layout that was asked for.

* ``picture_metrics``: differences, seams, edges, alpha, distributions, agreement with words.
* ``layout_metrics``: overlap of masks and boxes, average precision, accuracy and leakage of regions.
* ``decomposition_metrics``: how alike two stacks of layers are, matched in order.
* ``layout_report``: a document's layout compared with detected objects, as a table and a drawing.

>>> import torch
>>> from layered_core.document import Layer, LayerDocument
>>> from layered_core.metrics.layout_report import compare_layout
>>> document = LayerDocument(16, 16, (Layer("ball", width=8, height=8),))
>>> found = torch.zeros(1, 16, 16)  # stands for the mask of a detected object
>>> found[0, :8, :4] = 1
>>> layer = compare_layout(document, found, ["a ball"]).layers[0]
>>> layer.name, layer.found, layer.iou
('ball', 'a ball', 0.5)
"""
