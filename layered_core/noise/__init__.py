"""How far each pixel may change, and when and how strongly a method acts during sampling.

* ``change_map``: change maps, the noise levels at which pixels become free, the change map of a document.
* ``window``: the range of sigmas in which a method acts.
* ``guidance``: classifier-free guidance, and a guidance scale by region.

>>> from layered_core.document import Layer, LayerDocument
>>> from layered_core.noise.change_map import noise_map
>>> document = LayerDocument(4, 2, (Layer("sky", width=2, height=2),))
>>> noise_map(document, background=0.5)  # a layer without a picture is free to change
tensor([[1.0000, 1.0000, 0.5000, 0.5000],
        [1.0000, 1.0000, 0.5000, 0.5000]])
"""
