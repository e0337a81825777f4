"""The pack's nodes. They import the core relatively, because ComfyUI loads the pack under a name of its own.

A node runs without a graph, too, e.g. in a test, once ComfyUI has loaded the pack:

    >>> from nodes import NODE_CLASS_MAPPINGS  # ComfyUI's own module
    >>> StageSeed = NODE_CLASS_MAPPINGS["LD_StageSeed"]
    >>> StageSeed.execute(seed=7, name="ball").result
    (6914558363081540836,)
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..layered_core.errors import LayeredError
from .attention.attention_preview import AttentionPreview, LayerMaskFromAttention
from .attention.regional_prompt_attention import RegionalPromptAttention
from .control.control_hint import LayerControlHint
from .control.masked_control_apply import MaskedControlNetApply
from .control.masked_model_patch import MaskedModelPatch
from .demo.demo_control import LoadDemoControlNet
from .demo.demo_model import LoadDemoModel
from .demo.storybook_masks import StorybookMasks
from .demo.storybook_picture import StorybookPicture
from .layers.arrange_layers import ArrangeLayers
from .layers.edit_layer import EditLayer
from .layers.layer_board import LayerBoard
from .layers.layer_composite import LayerComposite
from .layers.layer_preview import LayerPreview
from .layers.layers_from_boxes import LayersFromBoxes
from .layers.layers_from_layout import LayersFromLayout
from .layers.layers_from_masks import LayersFromMasks
from .layers.layers_from_pictures import LayersFromPictures
from .layers.layout_from_layers import LayoutFromLayers
from .layers.load_layer import LayerFromImage, LoadLayer
from .layers.load_layers import LoadLayers
from .layers.long_work import cancellable
from .layers.save_layers import SaveLayers
from .layers.select_layers import SelectLayers
from .layers.split_layer import JoinLayer, SplitLayer
from .learning.learn_words import LearnWords
from .learning.save_layer_lora import SaveLayerLora
from .learning.training_data import LayerTrainingData
from .measure.layout_metrics import LayoutMetrics
from .noise.per_layer_sdedit import PerLayerSDEdit
from .noise.regenerate_layers import PasteBack, RegenerateLayers
from .rendering.layered_rendering import LayeredRendering
from .rendering.vision_guidance_preview import VisionGuidancePreview
from .stages.add_layer_by_prompt import AddLayerByPrompt
from .stages.decompose_picture import DecomposePicture
from .stages.fill_behind_layers import FillBehindLayers
from .stages.stage_layer import FindPlace, StageLayer, StageSeed
from .transparency.generate_layers import GenerateLayers
from .transparency.layer_diffuse_apply import LayerDiffuseApply
from .transparency.split_frames import SplitFrames
from .transparency.transparent_decode import TransparentDecode
from .transparency.transparent_encode import TransparentEncode

# In front of an error's text, ComfyUI shows its class with the class's module, unless it is one of Python's own.
LayeredError.__module__ = "builtins"

NODES: list[type[io.ComfyNode]] = [
    LoadLayer,
    LayerFromImage,
    LayerComposite,
    LayerPreview,
    LoadDemoModel,
    LoadDemoControlNet,
    StorybookPicture,
    StorybookMasks,
    ArrangeLayers,
    LayerBoard,
    EditLayer,
    SelectLayers,
    SplitLayer,
    JoinLayer,
    MaskedControlNetApply,
    MaskedModelPatch,
    LayerControlHint,
    LoadLayers,
    SaveLayers,
    LayoutFromLayers,
    LayersFromBoxes,
    LayersFromLayout,
    LayersFromMasks,
    LayersFromPictures,
    LayoutMetrics,
    PerLayerSDEdit,
    RegenerateLayers,
    PasteBack,
    AddLayerByPrompt,
    FillBehindLayers,
    DecomposePicture,
    StageLayer,
    StageSeed,
    FindPlace,
    RegionalPromptAttention,
    AttentionPreview,
    LayerMaskFromAttention,
    LayeredRendering,
    VisionGuidancePreview,
    LayerDiffuseApply,
    SplitFrames,
    TransparentDecode,
    TransparentEncode,
    GenerateLayers,
    LearnWords,
    LayerTrainingData,
    SaveLayerLora,
]


class LayeredDiffusionExtension(ComfyExtension):
    """The pack as ComfyUI sees it: an extension with the nodes of :data:`NODES`."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes of the pack."""
        return [cancellable(node) for node in NODES]
