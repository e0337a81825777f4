"""The pack's nodes. They reach the core by relative import only: ComfyUI loads the pack under a name of its own."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .arrange_layers import ArrangeLayers
from .attention_preview import AttentionPreview, LayerMaskFromAttention
from .control_hint import LayerControlHint
from .demo_control import LoadDemoControlNet
from .demo_model import LoadDemoModel
from .edit_layer import EditLayer
from .layer_composite import LayerComposite
from .layer_diffuse import LayerDiffuseApply
from .layer_preview import LayerPreview
from .layout_metrics import LayoutMetrics
from .load_layer import LayerFromImage, LoadLayer
from .load_layers import LoadLayers
from .masked_control import MaskedControlNetApply
from .per_layer_sdedit import PerLayerSDEdit
from .regenerate_layers import PasteBack, RegenerateLayers
from .regional_prompt_attention import RegionalPromptAttention
from .save_layers import SaveLayers
from .select_layers import SelectLayers
from .split_frames import SplitFrames
from .split_layer import JoinLayer, SplitLayer
from .stages import AddLayerByPrompt, FindPlace, StageLayer, StageSeed
from .storybook_picture import StorybookPicture
from .transparent_decode import TransparentDecode
from .transparent_encode import TransparentEncode

NODES: list[type[io.ComfyNode]] = [
    LoadLayer,
    LayerFromImage,
    LayerComposite,
    LayerPreview,
    LoadDemoModel,
    LoadDemoControlNet,
    StorybookPicture,
    ArrangeLayers,
    EditLayer,
    SelectLayers,
    SplitLayer,
    JoinLayer,
    MaskedControlNetApply,
    LayerControlHint,
    LoadLayers,
    SaveLayers,
    LayoutMetrics,
    PerLayerSDEdit,
    RegenerateLayers,
    PasteBack,
    AddLayerByPrompt,
    StageLayer,
    StageSeed,
    FindPlace,
    RegionalPromptAttention,
    AttentionPreview,
    LayerMaskFromAttention,
    LayerDiffuseApply,
    SplitFrames,
    TransparentDecode,
    TransparentEncode,
]


class LayeredDiffusionExtension(ComfyExtension):
    """See :data:`NODES`."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """As ComfyUI asks."""
        return list(NODES)
