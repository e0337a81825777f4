"""Make pictures for the bench with ComfyUI's own nodes and with the pack's. ``comfyui.py`` starts this script
under ComfyUI's python; it is never imported.

It reads one job from each line of standard input,
``{method, parameters, scenes: [...], seeds, steps, guidance, sampler, tensors, out}``, and answers each with
a line ``{seconds}`` or ``{error}`` once the pictures are in ``out``. Tensors are passed in safetensors files.
The process reaches the project only as data or through the pack: the repository must not be on its path.
"""

from __future__ import annotations

from answers import ANSWERS  # isort: skip  # first: reserves standard output for answers
import boot  # isort: skip  # second: it makes ComfyUI importable

import functools
import inspect
import json
import sys
import time
import traceback

import torch
from safetensors.torch import load_file, save_file

import nodes

METHODS = {}
"""Every method by the name that suites use. A method takes a :class:`Scene` and its parameters and returns an
IMAGE of one picture."""


def method(function):
    """Register a method under its function's name."""
    METHODS[function.__name__] = function
    return function


def call(class_type, **inputs):
    """Run one node and return its outputs. Widgets of a V3 node that are not given get their defaults."""
    kind = nodes.NODE_CLASS_MAPPINGS[class_type]
    if hasattr(kind, "define_schema"):
        widgets = [i for i in kind.define_schema().inputs if not i.optional and hasattr(i, "default")]
        return kind.execute(**({i.id: i.default for i in widgets} | inputs)).args
    return getattr(kind(), kind.FUNCTION)(**inputs)


@functools.cache
def control_net():
    """Load the storybook's ControlNet, once."""
    return call("LD_LoadDemoControlNet")[0]


class Scene:
    """One scene with its words, masks and pictures, and the demo model."""

    def __init__(self, models, entry, tensors, number, job):
        self.model, self.clip, self.vae = models
        self.words, self.background, self.objects, self.changed = (
            entry[k] for k in ("words", "background", "objects", "changed")
        )
        self.masks = tensors[f"{number}.masks"]
        self.start = tensors[f"{number}.start"]
        self.edges = tensors[f"{number}.edges"]
        self.mask = tensors.get(f"{number}.mask")
        self.before = tensors.get(f"{number}.before")
        self.seed = job["seeds"][number]
        self.steps, self.guidance, self.sampler = job["steps"], job["guidance"], job["sampler"]

    def encode(self, words):
        """Encode words to a conditioning."""
        return call("CLIPTextEncode", text=words, clip=self.clip)[0]

    def latent(self, picture=None):
        """Encode a picture ``[3, H, W]`` to a latent; None gives an empty latent."""
        if picture is None:
            return {"samples": torch.zeros(1, 4, 16, 16)}
        return call("VAEEncode", pixels=image(picture), vae=self.vae)[0]

    def sample(self, positive, latent=None, strength=1.0, model=None, negative=None):
        """Sample over the model's own evenly spaced timesteps and return the picture; a ``strength`` below 1
        leaves out the first steps."""
        sampled = nodes.common_ksampler(
            model or self.model, self.seed, self.steps, self.guidance, self.sampler, "simple", positive,
            negative or self.encode(""),
            latent or self.latent(), start_step=self.steps - round(self.steps * strength),
            force_full_denoise=True,
        )[0]  # fmt: skip
        return call("VAEDecode", samples=sampled, vae=self.vae)[0]

    def layers(self, picture, noises=(1.0, 1.0)):
        """Return LAYERS cut out of a picture: the landscape, and on it the visible part of each object.
        ``noises`` are the noise of the landscape and of the objects."""
        masks = [torch.ones_like(self.masks[0]), *self.masks]
        stack = None
        for number, (words, mask) in enumerate(zip([self.background, *self.objects], masks, strict=True)):
            stack = call(
                "LD_LayerFromImage", name=str(number), image=image(picture), mask=1 - mask[None],
                prompt=words, noise=noises[min(number, 1)],
                layers=stack,
            )[0]  # fmt: skip
        return stack


def image(picture):
    """Convert a picture ``[3, H, W]`` to an IMAGE."""
    return picture.permute(1, 2, 0)[None]


@method
def plain_prompt(scene):
    """Generate from the caption alone."""
    return scene.sample(scene.encode(scene.words))


@method
def global_sdedit(scene, strength):
    """Add noise to the collage's composite up to ``strength`` and redraw it."""
    return scene.sample(scene.encode(scene.words), scene.latent(scene.start), strength)


@method
def set_mask_combine(scene, strength=1.0, base="caption"):
    """ConditioningSetMask for each object, joined by ConditioningCombine with the ``caption``, or the
    ``background``'s words, everywhere."""
    positive = scene.encode(scene.words if base == "caption" else scene.background)
    for words, mask in zip(scene.objects, scene.masks, strict=True):
        region = call(
            "ConditioningSetMask",
            conditioning=scene.encode(words),
            mask=mask[None],
            set_cond_area="default",
            strength=strength,
        )[0]
        positive = call("ConditioningCombine", conditioning_1=positive, conditioning_2=region)[0]
    return scene.sample(positive)


@method
def plain_inpainting(scene):
    """VAEEncodeForInpaint: the picture with a grey hole, in which the latents may change."""
    latent = call(
        "VAEEncodeForInpaint",
        pixels=image(scene.before),
        vae=scene.vae,
        mask=scene.mask[None],
        grow_mask_by=6,
    )[0]
    return scene.sample(scene.encode(scene.objects[scene.changed]), latent)


@method
def latent_noise_mask(scene, strength=1.0):
    """SetLatentNoiseMask around the object that is to change, with that object's words."""
    latent = call("SetLatentNoiseMask", samples=scene.latent(scene.before), mask=scene.mask[None])[0]
    return scene.sample(scene.encode(scene.objects[scene.changed]), latent, strength)


@method
def differential_diffusion(scene, outside=0.0, inside=1.0):
    """DifferentialDiffusion with a change map of ``inside`` in the mask of the object that is to change and
    ``outside`` elsewhere."""
    model = call("DifferentialDiffusion", model=scene.model)[0]
    change = outside + (inside - outside) * scene.mask
    latent = call("SetLatentNoiseMask", samples=scene.latent(scene.before), mask=change[None])[0]
    return scene.sample(scene.encode(scene.objects[scene.changed]), latent, model=model)


@method
def differential_collage(scene, objects=0.5, background=0.3):
    """DifferentialDiffusion on the whole collage at denoise 1; ``objects`` and ``background`` say how far
    each may change, 0 to 1."""
    inside = scene.masks.sum(0).clamp(0, 1)
    change = background + (objects - background) * inside
    model = call("DifferentialDiffusion", model=scene.model)[0]
    latent = call("SetLatentNoiseMask", samples=scene.latent(scene.start), mask=change[None])[0]
    return scene.sample(scene.encode(scene.words), latent, model=model)


# --- the pack's own nodes ---


@method
def regional_prompts(scene, mode="regions", guidance=1.0, growth=0.0):
    """Regional Prompt Attention with each object's words where it is visible, as in ``set_mask_combine``;
    ``guidance`` and ``growth`` are the node's."""
    model, positive, negative = call(
        "LD_RegionalPromptAttention", model=scene.model, clip=scene.clip, layers=scene.layers(scene.start),
        prompt=scene.words, mode=mode,
        guidance=guidance, growth=growth,
    )  # fmt: skip
    return scene.sample(positive, model=model, negative=negative)


@method
def per_layer_sdedit(scene, objects=0.5, background=0.3):
    """Per-Layer SDEdit and Paste Back on the collage; ``objects`` and ``background`` say how far each may
    change, 0 to 1, as in ``differential_collage``."""
    layers = scene.layers(scene.start, (background, objects))
    model, latent, _, paste = call("LD_PerLayerSDEdit", model=scene.model, vae=scene.vae, layers=layers)
    sampled = scene.sample(scene.encode(scene.words), latent, model=model)
    return call("LD_PasteBack", image=sampled, paste=paste)[0]


@method
def regenerate_layers(scene, feather=8, size=0, blend="gradient"):
    """Regenerate Layers and Paste Back around the object that is to change; ``feather``, ``size`` and
    ``blend`` are the nodes'."""
    model, latent, paste, *_ = call(
        "LD_RegenerateLayers", model=scene.model, vae=scene.vae, image=image(scene.before),
        mask=scene.mask[None], grow=0, feather=feather,
        border="inside", size=size,
    )  # fmt: skip
    sampled = scene.sample(scene.encode(scene.objects[scene.changed]), latent, model=model)
    return call("LD_PasteBack", image=sampled, paste=paste, blend=blend)[0]


@method
def per_layer_redo(scene):
    """Per-Layer SDEdit and Paste Back: the picture is a layer of noise 0, and on it a layer with a mask and
    no picture may change freely."""
    layers = call("LD_LayerFromImage", image=image(scene.before), noise=0.0)[0]
    layers = call(
        "LD_LayerFromImage",
        mask=1 - scene.mask[None],
        width=scene.mask.shape[1],
        height=scene.mask.shape[0],
        layers=layers,
    )[0]
    model, latent, _, paste = call(
        "LD_PerLayerSDEdit", model=scene.model, vae=scene.vae, layers=layers, background=0.0
    )
    sampled = scene.sample(scene.encode(scene.objects[scene.changed]), latent, model=model)
    return call("LD_PasteBack", image=sampled, paste=paste)[0]


# --- a ControlNet ---


@method
def control(scene, strength=1.0, where="everywhere"):
    """ControlNetApplyAdvanced with the edges of the scene drawn as one.

    ``where``: ``everywhere``; or in the first object alone, either by the ``hint`` (edges elsewhere are
    erased) or by the ``conditioning`` (ConditioningSetMask puts the words with control there and those
    without control elsewhere, and ConditioningCombine joins both).
    """
    plain, first = (scene.encode(scene.words), scene.encode("")), scene.masks[:1]
    hint = scene.edges * first[0] if where == "hint" else scene.edges
    controlled = call(
        "ControlNetApplyAdvanced", positive=plain[0], negative=plain[1], control_net=control_net(),
        image=image(hint.expand(3, -1, -1)),
        strength=strength, start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    if where == "conditioning":
        parts = [
            [_within(words, mask) for words, mask in ((a, first), (b, 1 - first))]
            for a, b in zip(controlled, plain, strict=True)
        ]
        controlled = [call("ConditioningCombine", conditioning_1=a, conditioning_2=b)[0] for a, b in parts]
    return scene.sample(controlled[0], negative=controlled[1])


@method
def masked_control(scene, strength=1.0, where="everywhere"):
    """Masked ControlNet Apply with the same edges, ``everywhere`` or in the ``first`` object alone."""
    positive, negative = call(
        "LD_MaskedControlNetApply", positive=scene.encode(scene.words), negative=scene.encode(""),
        control_net=control_net(),
        image=image(scene.edges.expand(3, -1, -1)), mask=scene.masks[:1] if where == "first" else None,
        strength=strength,
    )  # fmt: skip
    return scene.sample(positive, negative=negative)


def _within(conditioning, mask):
    return call(
        "ConditioningSetMask", conditioning=conditioning, mask=mask, set_cond_area="default", strength=1.0
    )[0]


@torch.inference_mode()
def answer(models, job):
    """Make the pictures of a job and return the seconds that a picture took."""
    tensors = load_file(job["tensors"])
    began = time.perf_counter()
    pictures = []
    for number, entry in enumerate(job["scenes"]):
        made = METHODS[job["method"]](Scene(models, entry, tensors, number, job), **job["parameters"])
        pictures.append(made[..., :3].permute(0, 3, 1, 2))
    seconds = (time.perf_counter() - began) / len(pictures)
    save_file({"pictures": torch.cat(pictures).float().cpu().clamp(0, 1).contiguous().clone()}, job["out"])
    return {"seconds": seconds}


def check(job):
    """Return a text about a job's unknown method or parameter, or None if both are known."""
    if job["method"] not in METHODS:
        return f"method is {job['method']!r}; allowed: {', '.join(METHODS)}"
    taken = list(inspect.signature(METHODS[job["method"]]).parameters)[1:]
    unknown = [p for p in job["parameters"] if p not in taken]
    return (
        f"parameter of {job['method']} is {unknown[0]!r}; allowed: {', '.join(taken) or 'none'}"
        if unknown
        else None
    )


def main():
    """Start ComfyUI, then answer jobs until the input ends."""
    torch.set_num_threads(1)
    boot.load_extras()
    if not boot.load_pack():
        raise SystemExit("ComfyUI could not load the pack. The log above says why")
    models = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            problem = check(job)
            if problem is None and "out" in job:
                models = models or call("LD_LoadDemoModel")[:3]
            reply = {"error": problem} if problem else answer(models, job) if "out" in job else {}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{job['method']}: {type(error).__name__}: {error}"}
        ANSWERS.write(json.dumps(reply) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
