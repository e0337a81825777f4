"""Layered pictures for diffusion models: documents, masks, compositing, control, file formats.

Everything here is pure torch; nothing imports ComfyUI or diffusers. A document is made, flattened to one
picture and written to a file like this::

    >>> import torch
    >>> from layered_core.canvas.compositing import composite
    >>> from layered_core.document import Layer, LayerDocument
    >>> from layered_core.files import write_layers
    >>> sky = Layer("sky", prompt="a blue sky", width=64, height=48)  # a box without a picture yet
    >>> red = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(32, 32, 4)
    >>> ball = Layer("ball", red, prompt="a red ball", x=16, y=8)
    >>> document = LayerDocument(64, 48, (sky, ball), background=(1.0, 1.0, 1.0))
    >>> composite(document).shape
    torch.Size([48, 64, 4])
    >>> write_layers(document, "ball.psd").name
    'ball.psd'

Modules and rooms (each room's own docstring lists its files):

* ``document``: the data model: documents, layers, recipes.
* ``files``: reading and writing layered files of any format.
* ``errors``: the error type that users see, and checks of plain numbers.
* ``canvas``: placement, masks, blend modes and compositing.
* ``noise``: change maps, sampling windows, guidance by region.
* ``attention``: regional prompts, and masks read from attention.
* ``learning``: words learnt from layers.
* ``control``: ControlNet hints and weights for each layer.
* ``painting``: repainting a part of a picture; building a picture in stages.
* ``transparency``: LayerDiffuse.
* ``joint``: several layers and their background made at once.
* ``editing``: selecting, arranging and previewing the layers of a document.
* ``formats``: PSD, OpenRaster and JSON files; lists of elements with boxes and words.
* ``metrics``: figures of pictures and layouts.

Letters used for shapes throughout: B batch, L layers, H W pixels, h w latent cells, C channels, N tokens, T
steps.
"""

__version__ = "0.2.0"
