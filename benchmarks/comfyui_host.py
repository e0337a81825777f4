"""Makes pictures with ComfyUI's own nodes for the bench: started by ``comfyui.py`` under ComfyUI's python, never imported.

Reads a job a line on standard input, ``{method, parameters, scenes: [...], seeds, steps, guidance, tensors, out}``, and answers each with a
line ``{seconds}`` or ``{error}`` once the pictures are in ``out``. Tensors travel in safetensors files. Everything of the project's
reaches this process as data or through the pack: the repository must not be on its path.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
import traceback
from pathlib import Path

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what ComfyUI prints must not look like an answer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "comfyui" / "host"))
import boot  # noqa: E402

sys.path.remove(str(Path(__file__).resolve().parent.parent / "tests" / "comfyui" / "host"))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import nodes  # noqa: E402

METHODS = {}
"""Every method by the name that suites use: from a :class:`Scene` and its parameters to latents."""


def method(function):
    """Register a method under its function's name."""
    METHODS[function.__name__] = function
    return function


def call(class_type, **inputs):
    """Run one node; returns its outputs."""
    kind = nodes.NODE_CLASS_MAPPINGS[class_type]
    if hasattr(kind, "define_schema"):
        return kind.execute(**inputs).args
    return getattr(kind(), kind.FUNCTION)(**inputs)


class Scene:
    """One scene with its own words, masks and pictures, on the demo model."""

    def __init__(self, models, entry, tensors, number, steps, guidance, seed):
        self.model, self.clip, self.vae = models
        self.words, self.background, self.objects, self.changed = (entry[k] for k in ("words", "background", "objects", "changed"))
        self.masks = tensors[f"{number}.masks"]
        self.start = tensors[f"{number}.start"]
        self.mask = tensors.get(f"{number}.mask")
        self.before = tensors.get(f"{number}.before")
        self.steps, self.guidance, self.seed = steps, guidance, seed

    def encode(self, words):
        """Words to a conditioning."""
        return call("CLIPTextEncode", text=words, clip=self.clip)[0]

    def latent(self, picture=None):
        """A picture ``[3, H, W]`` as a latent, or an empty one."""
        if picture is None:
            return {"samples": torch.zeros(1, 4, 16, 16)}
        return call("VAEEncode", pixels=picture.permute(1, 2, 0)[None], vae=self.vae)[0]

    def sample(self, positive, latent=None, strength=1.0, model=None):
        """Euler over the model's own evenly spaced timesteps, as the headless DDIM; ``strength`` starts later."""
        return nodes.common_ksampler(
            model or self.model, self.seed, self.steps, self.guidance, "euler", "simple", positive, self.encode(""), latent or self.latent(),
            start_step=self.steps - round(self.steps * strength), force_full_denoise=True,
        )[0]["samples"]  # fmt: skip


@method
def plain_prompt(scene):
    """The caption alone."""
    return scene.sample(scene.encode(scene.words))


@method
def global_sdedit(scene, strength):
    """The collage's composite, noised and redrawn."""
    return scene.sample(scene.encode(scene.words), scene.latent(scene.start), strength)


@method
def set_mask_combine(scene, strength=1.0, base="caption"):
    """ConditioningSetMask an object, joined by ConditioningCombine with the ``caption`` or the ``background``'s words everywhere."""
    positive = scene.encode(scene.words if base == "caption" else scene.background)
    for words, mask in zip(scene.objects, scene.masks, strict=True):
        region = call("ConditioningSetMask", conditioning=scene.encode(words), mask=mask[None], set_cond_area="default", strength=strength)[0]
        positive = call("ConditioningCombine", conditioning_1=positive, conditioning_2=region)[0]
    return scene.sample(positive)


@method
def latent_noise_mask(scene, strength=1.0):
    """SetLatentNoiseMask around the object that is to change, with its bare words."""
    latent = call("SetLatentNoiseMask", samples=scene.latent(scene.before), mask=scene.mask[None])[0]
    return scene.sample(scene.encode(scene.objects[scene.changed]), latent, strength)


@method
def differential_diffusion(scene, outside=0.0, inside=1.0):
    """DifferentialDiffusion with a change map: ``inside`` the mask of the object that is to change, ``outside`` elsewhere."""
    model = call("DifferentialDiffusion", model=scene.model)[0]
    change = outside + (inside - outside) * scene.mask
    latent = call("SetLatentNoiseMask", samples=scene.latent(scene.before), mask=change[None])[0]
    return scene.sample(scene.encode(scene.objects[scene.changed]), latent, model=model)


@method
def differential_collage(scene, objects=0.5, background=0.3):
    """DifferentialDiffusion on the whole collage: how far objects and background may change, 0 to 1."""
    inside = scene.masks.sum(0).clamp(0, 1)
    change = background + (objects - background) * inside
    model = call("DifferentialDiffusion", model=scene.model)[0]
    latent = call("SetLatentNoiseMask", samples=scene.latent(scene.start), mask=change[None])[0]
    return scene.sample(scene.encode(scene.words), latent, max(objects, background), model)


@torch.inference_mode()
def answer(models, job):
    """Make the pictures of a job."""
    tensors = load_file(job["tensors"])
    began = time.perf_counter()
    pictures = []
    for number, (entry, seed) in enumerate(zip(job["scenes"], job["seeds"], strict=True)):
        scene = Scene(models, entry, tensors, number, job["steps"], job["guidance"], seed)
        latents = METHODS[job["method"]](scene, **job["parameters"])
        pictures.append(call("VAEDecode", samples={"samples": latents}, vae=scene.vae)[0].permute(0, 3, 1, 2))
    seconds = (time.perf_counter() - began) / len(pictures)
    save_file({"pictures": torch.cat(pictures).float().cpu().clamp(0, 1).contiguous().clone()}, job["out"])
    return {"seconds": seconds}


def check(job):
    """What is wrong with a job's method or parameters, or None."""
    if job["method"] not in METHODS:
        return f"method {job['method']!r}; allowed: {', '.join(METHODS)}"
    taken = list(inspect.signature(METHODS[job["method"]]).parameters)[1:]
    unknown = [p for p in job["parameters"] if p not in taken]
    return f"parameter {unknown[0]!r} of {job['method']}; allowed: {', '.join(taken) or 'none'}" if unknown else None


def main():
    """Boot, then answer until the input ends."""
    torch.set_num_threads(1)
    boot.load_extras()
    if not boot.load_pack():
        raise SystemExit("ComfyUI could not load the pack: see the log above")
    models = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            problem = check(job)
            if problem is None and "out" in job:
                models = models or call("LD_LoadDemoModel")
            said = {"error": problem} if problem else answer(models, job) if "out" in job else {}
        except Exception as error:
            traceback.print_exc()
            said = {"error": f"{job['method']}: {type(error).__name__}: {error}"}
        ANSWERS.write(json.dumps(said) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
