"""Paint what layers hide: the background behind them, and the hidden parts of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.canvas.compositing import flat
from ...layered_core.document import MAX_SIDE, Layer, LayerDocument
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.painting.holes import fill_hole, hole_of, smooth_fill
from ...layered_core.painting.pasting import BLENDS
from ...layered_core.painting.stages import StagePlan, stage_seed
from ..layers.pictures import one_picture, opaque
from ..layers.remarks import tell
from ..layers.socket import LAYERS, clamped, read_stack, write_stack
from .stage_graph import Sampler, StageGraph
from .stage_inputs import CATEGORY, MAX_SEED

TITLE = "Fill Behind Layers"


class FillBehindLayers(io.ComfyNode):
    """Fill the holes of layers: by sampling, as a graph of ordinary nodes, or with a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_FillBehindLayers",
            display_name=TITLE,
            category=CATEGORY,
            description=(
                "Paint what lies behind layers, so that they can be moved: the background where layers "
                "cover it, and, when asked, the hidden parts of covered layers, back to front. What is "
                "seen stays as it is, to the bit."
            ),
            search_aliases=["inpaint background", "remove object", "lama", "amodal", "complete", "fill holes",
            "decompose", "clean plate"],
            inputs=[
                LAYERS.Input("layers", tooltip="The stack, for example from Layers from Masks."),
                io.String.Input(
                    "prompt", default="", multiline=True, dynamic_prompts=True,
                    tooltip="What lies behind, for example a meadow. Hidden parts are painted with their "
                        "layer's own words. Empty: the words of the layer that is filled.",
                ),
                io.String.Input("negative", default="", multiline=True, dynamic_prompts=True,
                tooltip="What must not be there. Neutral: empty."),
                io.Boolean.Input(
                    "hidden_parts", default=False,
                    tooltip="Also paint the hidden parts of covered layers, back to front: what the model "
                        "paints there unlike what was behind becomes part of the layer. Neutral: off.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                    tooltip="Base seed: each layer derives its own from it and from its name. Neutral: any.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps for each "
                    "layer that is filled. Neutral: any."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free "
                    "guidance. Neutral: 1, none. The default is 7, as most models need guidance to follow "
                    "words."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS,
                tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                tooltip="As in KSampler."),
                io.Float.Input(
                    "denoise", default=1.0, min=0.01, max=1.0, step=0.01, advanced=True,
                    tooltip="How far the hole may depart from the colours around it, spread smoothly into "
                        "it. Neutral: 1, made anew.",
                ),
                io.Int.Input(
                    "size", default=0, min=0, max=MAX_SIDE, step=8, advanced=True,
                    tooltip="Side at which the hole is sampled, pixels: it is cut out and scaled up. "
                        "Neutral: 0, the whole picture is sampled.",
                ),
                io.Float.Input(
                    "context", default=0.5, min=0.0, max=16.0, step=0.1, advanced=True,
                    tooltip="With a size: how much of the surroundings is cut out too, as a share of the "
                        "hole's longer side. Neutral: any, without a size.",
                ),
                io.Combo.Input("blend", options=list(BLENDS), default=BLENDS[0], advanced=True,
                tooltip="As in Paste Back. Neutral: feather. "
                    "The default is gradient, which hides the seam best."),
                io.Model.Input("model", optional=True, tooltip="The model that paints. Not needed with a "
                    "background and without hidden parts."),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the words."),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE."),
                io.Image.Input(
                    "background", optional=True,
                    tooltip="A picture of what lies behind, as large as the canvas, for example from LaMa: "
                        "it is taken instead of sampling. Neutral: not connected.",
                ),
                io.ControlNet.Input(
                    "control_net", optional=True,
                    tooltip="A ControlNet for inpainting, which sees the picture around the hole.",
                ),
                io.String.Input(
                    "layer", default="", optional=True, advanced=True,
                    tooltip="The layer to fill first, as Layer Preview shows its name. Neutral: empty, the "
                        "backmost one.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", tooltip="The stack, filled. Layer Composite with rules "
                    "photoshop shows the same picture as before, to the bit."),
                io.String.Output(display_name="report", tooltip="What was filled, and what was left as it "
                    "is."),
            ],
            hidden=[io.Hidden.unique_id],
            enable_expand=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, layers: Mapping[str, Any], prompt: str, negative: str, hidden_parts: bool, seed: int, steps: int,
        cfg: float, sampler_name: str, scheduler: str, denoise: float, size: int, context: float, blend: str,
        model: Any = None, clip: Any = None, vae: Any = None, background: Tensor | None = None,
        control_net: Any = None, layer: str = "",
    ) -> io.NodeOutput:  # fmt: skip
        """Fill one layer with the picture that is given, and hand the next one over as a graph."""
        document = read_stack(layers)
        if not len(document):
            raise invalid(
                "layers: number of layers", 0, "at least one", "Take a picture apart with Layers from Masks"
            )
        first = document.layer(layer.strip()) if layer.strip() else document.layers[0]
        told: list[str] = []
        names = [x.name for x in document]
        left = names[names.index(first.name) :] if hidden_parts else [first.name]
        if background is not None:
            fix = "Take one out with Get Image from Batch: one picture is put behind the layers"
            picture = clamped(opaque(one_picture(background, "background", fix)[None])[0])
            filled = fill_hole(document, first.name, picture)
            told.append(_remark(document, filled, first.name))
            document, left = filled, left[1:]
        job = next((x for x in (_job(document, name, prompt, first.name, told) for name in left) if x), None)
        if job is None:
            return io.NodeOutput(write_stack(document), tell(cls, TITLE, told))
        if model is None or clip is None or vae is None:
            lacking = [k for k, v in (("model", model), ("clip", clip), ("vae", vae)) if v is None]
            raise LayeredError(
                f"layer {job.layer.name!r}: {' and '.join(lacking)} not connected; allowed: model, clip "
                f"and vae, or a background without hidden parts. Connect them, or a picture of what lies "
                f"behind"
            )
        own = job.layer.recipe.seed
        plan = StagePlan(
            replace(
                job.layer, image=None, mask=None, prompt=job.words, negative=negative or job.layer.negative
            ),
            stage_seed(seed, job.layer.name) if own is None else own,
            job.behind,
            job.hole,
        )
        stage = StageGraph(
            model, clip, vae, plan, Sampler(steps, cfg, sampler_name, scheduler), context, blend
        )
        painted, _ = stage.paint(job.hole[None], steps, denoise, control_net, size=size)
        last = stage.graph.node(
            "LD_FillBehindLayers", layers=write_stack(document), prompt="", negative=negative,
            hidden_parts=hidden_parts, seed=seed, steps=steps, cfg=cfg, sampler_name=sampler_name,
            scheduler=scheduler, denoise=denoise, size=size, context=context, blend=blend, model=model, clip=clip,
            vae=vae, background=painted, layer=job.layer.name,
            **({} if control_net is None else {"control_net": control_net}),
        )  # fmt: skip
        tell(cls, TITLE, told)
        return io.NodeOutput(last.out(0), last.out(1), expand=stage.graph.finalize())


class _Job(NamedTuple):
    """One layer that is to be painted where others hide it."""

    layer: Layer
    hole: Tensor
    words: str
    behind: LayerDocument


def _job(document: LayerDocument, name: str, prompt: str, first: str, told: list[str]) -> _Job | None:
    """Return what is to be painted of a layer, or None if nothing of it is hidden, or nobody said what it
    shows."""
    layer, index = document.layer(name), [x.name for x in document].index(name)
    if layer.image is None and name != first:
        return None
    hole = hole_of(document, name)
    if not bool(hole.any()):
        if name == first:
            told.append(f"Nothing of layer {name!r} is hidden.")
        return None
    words = (prompt if name == first else "") or layer.prompt
    if index and not words.strip():
        told.append(f"Layer {name!r} has no words, so its hidden part is not painted.")
        return None
    picture = flat(replace(document, layers=document.layers[: index + 1]))
    if index == 0:
        picture = smooth_fill(picture, hole)
    opaque = torch.cat([picture, torch.ones_like(picture[:1])]).movedim(0, -1)
    behind = LayerDocument(document.width, document.height, (Layer("behind", opaque),))
    return _Job(layer, hole.float(), words, behind)


def _remark(before: LayerDocument, after: LayerDocument, name: str) -> str:
    if after is before:
        return f"Nothing of layer {name!r} is hidden, or nothing of it was painted there."
    return f"Layer {name!r} was filled where others hide it."
