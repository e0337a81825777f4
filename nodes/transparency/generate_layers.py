"""Make the layers of a scene together: its background, several layers with alpha, and the blend of all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_patcher
import comfy.samplers
import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ...layered_core.canvas.masks import mask_pyramid
from ...layered_core.document import MAX_SIDE, LayerDocument
from ...layered_core.editing.selection import select_layers
from ...layered_core.errors import LayeredError, check_number, check_whole, invalid
from ...layered_core.joint.editing import BLEND, LayersPlan, plan_layers, with_frames
from ...layered_core.joint.scenes import empty_remark, with_layers
from ...layered_core.transparency.transparent_decode import AUGMENTATIONS, check_augmentations
from ...layered_core.transparency.transparent_networks import CELL, TransparentDecoder, TransparentEncoder
from ..attention.embeddings import check_words, tell_dynamic
from ..layers.socket import LAYERS, read_stack, write_stack
from .layer_diffuse_apply import layers_at_once
from .layer_model import STORYBOOK, layer_model_choices, read_joint_file, read_layer_model
from .together_run import Sampler, SelfMask, held_latents, model_at_once, sample_frames
from .transparent_decode import decode_pictures

NAME = "Generate Layers Together"

_MOST_SCENES = 64


class GenerateLayers(io.ComfyNode):
    """Make background, layers and blend of a scene in one run, or some of them anew among the others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        files, decoders, encoders = (layer_model_choices(task) for task in ("joint", "decoder", "encoder"))
        return io.Schema(
            node_id="LD_GenerateLayers",
            display_name=NAME,
            category="layered diffusion/transparency",
            description=(
                "Make a background and one to four layers with alpha in one run. They attend to each other, so "
                "that they belong together, and each has its own words. With a stack, layers can be held while "
                "others are made anew to fit them."
            ),
            search_aliases=["layerdiff", "joint layers", "several layers", "multi layer", "edit layer",
            "decompose", "layerdiffuse", "transparent"],
            inputs=[
                io.Model.Input("model", tooltip="SD1.5 or the storybook model: the family that the file was made "
                    "for. It is not changed."),
                io.Clip.Input("clip", tooltip="Encodes the words."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the whole picture. Empty: the stack's own prompt, or the layers' words "
                        "joined.",
                ),
                io.String.Input(
                    "layer_prompts", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for each new layer alone, a line each, from the back to the front; with a "
                        "stack they come in front of its layers. Empty and no stack: one layer with the words of "
                        "the whole picture.",
                ),
                io.String.Input(
                    "background", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the background alone. Empty: its own in the stack, or those of the whole "
                        "picture.",
                ),
                io.String.Input("negative", multiline=True, default="", dynamic_prompts=True,
                    tooltip="What must not be there, in all pictures. Neutral: empty."),
                io.Int.Input("width", default=512, min=64, max=MAX_SIDE, step=8, tooltip="Width of the canvas, "
                    "pixels, if no stack is connected. Neutral: any."),
                io.Int.Input("height", default=512, min=64, max=MAX_SIDE, step=8, tooltip="Height of the canvas, "
                    "pixels, if no stack is connected. Neutral: any."),
                io.Int.Input("batch_size", default=1, min=1, max=_MOST_SCENES, tooltip="Scenes that are made in "
                    "the run, 1 to 64; each comes out as a stack of its own. Neutral: 1."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="Seed of the noise. Neutral: any."),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Sampling steps. Neutral: any."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free "
                    "guidance. With the storybook's file, 2 suits. Neutral: 1, none. "
                    "The default is 7, as most models need guidance to follow words."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="As in KSampler."),
                io.Combo.Input(
                    "file", options=files, default=files[0],
                    tooltip="The file that makes the layers at once. Files that were trained for fewer layers "
                        "are run all the same, and the node says so.",
                ),
                io.Combo.Input("decoder", options=decoders, default=decoders[0], tooltip="The file that decodes "
                    "transparency, as in Transparent Decode, of the same model family."),
                io.Float.Input("enhancer", default=1.0, min=0.0, max=1.0, step=0.05, tooltip="How far the words "
                    "of the whole picture complete those of a layer, 0 to 1: 'a ball' gets its colour. It acts "
                    "if the file has a prompt enhancer. Neutral: 0. "
                    "The default is 1, what the file was trained for."),
                io.Float.Input("self_mask", default=0.0, min=0.0, max=2.0, step=0.05, tooltip="Self-mask guidance, "
                    "0 to 2: leads each layer to more detail inside its own outline. It takes up to twice the time. "
                    "Neutral: 0."),
                io.Combo.Input(
                    "augmentations", options=[str(n) for n in AUGMENTATIONS], default="8", advanced=True,
                    tooltip="Passes of the decoder, as in Transparent Decode. Neutral: 1. "
                        "The default is 8, as LayerDiffuse was published.",
                ),
                LAYERS.Input("layers", optional=True, tooltip="A stack whose visible layers are the scene: the "
                    "one at the back is the background if it covers the canvas, a hidden one called blend is the "
                    "blend. Layers without a picture are made inside their box or mask. Not connected: a new stack."),
                io.String.Input("keep", default="", optional=True, tooltip="Layers of the stack that are held, to "
                    "the bit: names, numbers, ranges and patterns as in Select Layers. The others are made anew "
                    "to fit them. Neutral: empty."),
                io.Combo.Input(
                    "encoder", options=encoders, default=encoders[0], optional=True, advanced=True,
                    tooltip="The file that encodes transparency, as in Transparent Encode, for layers that are "
                        "held. Neutral: any, if none is held.",
                ),
            ],
            outputs=[
                LAYERS.Output(display_name="layers", is_output_list=True, tooltip="The background, the layers "
                    "with alpha and the hidden blend; one stack for each scene."),
                io.Image.Output(display_name="blend", is_output_list=True, tooltip="The model's own picture of "
                    "all layers, with the shadows that one throws on the other; one for each scene."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE, prompt: str,
        layer_prompts: str, background: str, negative: str, width: int, height: int, batch_size: int, seed: int,
        steps: int, cfg: float, sampler_name: str, scheduler: str, file: str, decoder: str, enhancer: float,
        self_mask: float, augmentations: str = "8", layers: Mapping[str, Any] | None = None, keep: str = "",
        encoder: str = STORYBOOK,
    ) -> io.NodeOutput:  # fmt: skip
        """Check everything, sample all pictures together, and decode them into stacks."""
        check_number("enhancer", enhancer, 0, 1)
        check_number("self_mask", self_mask, 0, 2)
        check_whole("batch_size", batch_size, 1, _MOST_SCENES)
        passes = check_augmentations(int(augmentations))
        document, held = _document(layers, width, height, prompt, layer_prompts, background, keep)
        tell_dynamic(NAME, document, prompt, negative)
        plan = _plan(document, held)
        texts = [*dict.fromkeys((*plan.words, negative))]
        for text in texts:
            check_words(clip, text, "")
        units = layers_at_once(
            model, read_joint_file(file, plan.scene.layers), plan.scene, file, NAME, enhancer
        )
        reader = TransparentDecoder.from_weights(read_layer_model(decoder, "decoder"), decoder)
        size = document.height // CELL, document.width // CELL
        change = mask_pyramid(plan.change[:, None], [size])[0][:, 0]
        fixed = [frame for frame, cells in enumerate(change) if bool((cells < 1).any())]
        start = torch.zeros(plan.scene.frames, 4, *size)
        if fixed:
            # The network is gone when the run begins: ComfyUI takes one without a manager for a leak.
            weights = read_layer_model(encoder, "encoder")
            start[fixed] = held_latents(
                vae, TransparentEncoder.from_weights(weights, encoder), encoder, plan, fixed
            )
        encoded = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts}
        own = [None if text == plan.words[-1] else encoded[text][0][0] for text in plan.words]
        guide = SelfMask(self_mask, plan.scene, vae, reader) if self_mask > 0 else None
        changed = model_at_once(model, units, own, guide, held=bool(fixed))
        samples = sample_frames(
            changed, plan.scene.frames, (encoded[plan.words[-1]], encoded[negative]),
            start.repeat(batch_size, 1, 1, 1), change.repeat(batch_size, 1, 1) if fixed else None,
            Sampler(seed, steps, cfg, sampler_name, scheduler),
        )  # fmt: skip
        pictures = vae.decode(samples)[..., :3]
        documents = _documents(plan, samples, pictures, reader, passes)
        blends = [it.layer(BLEND).image[None, ..., :3] for it in documents]
        return io.NodeOutput([write_stack(it) for it in documents], blends)


def _document(
    layers: Mapping[str, Any] | None, width: int, height: int, prompt: str, layer_prompts: str, background: str,
    keep: str,
) -> tuple[LayerDocument, set[str]]:  # fmt: skip
    """Return the document with all its words, before anything is made, and the names of the layers that are held."""
    if layers is None and keep.strip():
        raise LayeredError(f"keep: {keep!r} names layers, but no stack is connected. Connect layers")
    document = LayerDocument(width, height) if layers is None else read_stack(layers)
    for side, pixels in (("width", document.width), ("height", document.height)):
        if pixels % CELL:
            raise invalid(
                f"canvas: {side}", pixels, f"a multiple of {CELL} pixels", "Give the stack another canvas"
            )
    held = {x.name for x in select_layers(document, keep)[0]} if keep.strip() else set()
    for name in sorted(held):
        if document.layer(name).image is None:
            raise LayeredError(f"keep: layer {name!r} has no picture that could be held. Take it out of keep")
    if prompt.strip():
        document = replace(document, prompt=prompt)
    words = [line.strip() for line in layer_prompts.splitlines() if line.strip()]
    return with_layers(document, words, background.strip(), held), held


def _plan(document: LayerDocument, held: set[str]) -> LayersPlan:
    """Return what is sampled and what is held."""
    free = {x.name: 1.0 for x in document if x.visible and x.name not in held}
    plan = plan_layers(document, free, hold_blend=BLEND in held)
    if plan is None:
        raise LayeredError(
            f"keep: all layers are held ({', '.join(map(repr, sorted(held)))}), and nothing is left to make. Take "
            f"one out of keep, or write words for a new layer"
        )
    return plan


def _documents(
    plan: LayersPlan, samples: Tensor, pictures: Tensor, reader: TransparentDecoder, passes: int
) -> list[LayerDocument]:
    """Return the plan's document with what was made, one for each scene.

    Args:
        plan: what was sampled.
        samples: latents ``[R, C, h, w]``.
        pictures: decoded, ``[R, H, W, 3]``.
        reader, passes: decode transparency.
    """
    frames, count = plan.scene.frames, plan.scene.layers
    free = plan.change.flatten(1).amax(1) > 0
    rows = [row for row in range(len(samples)) if row % frames < count and free[row % frames]]
    shown: dict[int, Tensor] = {}
    if rows:
        pixels = pictures[rows].movedim(-1, 1)
        shown = dict(
            zip(rows, decode_pictures(reader, pixels, samples[rows], passes).movedim(-1, 1), strict=True)
        )
    for row in range(len(samples)):
        if row % frames >= count and free[row % frames]:
            opaque = functional.pad(pictures[row], (0, 1), value=1.0)
            shown[row] = opaque.movedim(-1, 0)
    documents = [
        with_frames(plan, {r - first: shown[r].float().cpu() for r in shown if first <= r < first + frames})
        for first in range(0, len(samples), frames)
    ]
    for document in documents:
        if remark := empty_remark(document, [plan.names[i] or "" for i in range(count) if free[i]]):
            logging.warning("%s: %s", NAME, remark)
    return documents
