"""The pack's nodes. They reach the core by relative import only: ComfyUI loads the pack under a name of its own."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .demo_model import LoadDemoModel
from .layer_composite import LayerComposite
from .layer_preview import LayerPreview
from .load_layer import LayerFromImage, LoadLayer
from .storybook_picture import StorybookPicture

NODES: list[type[io.ComfyNode]] = [LoadLayer, LayerFromImage, LayerComposite, LayerPreview, LoadDemoModel, StorybookPicture]


class LayeredDiffusionExtension(ComfyExtension):
    """See :data:`NODES`."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """As ComfyUI asks."""
        return list(NODES)
