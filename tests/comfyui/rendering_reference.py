"""Write what the headless host samples with the storybook by layered rendering:
``python rendering_reference.py FOLDER``. This script runs in the repository's environment."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.world.places import MODEL
from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.pipeline import LayeredDiffusionPipeline

PROMPT, NEGATIVE = "a red ball and a blue star in a meadow", "dark"
STEPS = 4
CASES = {
    "words": ({}, "regions"),
    "words guided": ({}, "regions guided"),
    "apart": ({"strength": 0.0, "share": 1.0}, "prompt"),
    "constant": ({"colour": "constant", "constant": (1.0, 0.4, 0.0)}, "prompt"),
    "picture": ({"colour": "picture"}, "prompt"),
    "noise": ({"colour": "noise"}, "prompt"),
    "paper": ({"form": "paper"}, "prompt"),
    "fast": ({"preset": "fast"}, "regions"),
}
"""By name: settings, and what follows."""
THEN = {"regions": Settings(), "regions guided": Settings(guidance=6.0, growth=0.03)}


def stack():
    """A landscape, and two things on it, one before the other; all of them with pictures."""
    random = torch.Generator().manual_seed(0)

    def layer(name, words, x, y, side, **more):
        colour = torch.rand(3, generator=random)
        image = torch.cat([colour.expand(side, side, 3), torch.ones(side, side, 1)], -1)
        return Layer(name, x=x, y=y, width=side, height=side, prompt=words, image=image, **more)

    return LayerDocument(
        128, 128,
        (
            layer("back", "a meadow", 0, 0, 128),
            layer("ball", "a red ball", 6, 40, 70, negative="a white house"),
            layer("star", "a blue star", 60, 58, 61),
        ),
    )  # fmt: skip


@torch.no_grad()
def main(folder):
    pipeline = LayeredDiffusionPipeline.from_pretrained(MODEL, sampler="euler")
    tensors, document = {}, stack()
    for name, (settings, then) in CASES.items():
        how = {"prompts": [PROMPT], "negative": NEGATIVE}
        later = pipeline.regional_prompts([document], THEN[then], **how) if then in THEN else None
        method = pipeline.layered_rendering(
            [document], Rendering(**{"share": 0.6, **settings}), then=later, **how
        )
        tensors[name] = pipeline.sample_latents(
            method.prompts, seeds=[3], steps=STEPS, guidance=3.0, negative=NEGATIVE, methods=[method]
        )[0]  # fmt: skip
    tensors["plain"] = pipeline.sample_latents(
        [PROMPT], seeds=[3], steps=STEPS, guidance=3.0, negative=NEGATIVE
    )[0]
    scheduler = type(pipeline.model.scheduler).from_config(pipeline.model.scheduler.config)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    tensors["start"], tensors["sigmas"] = noise * scheduler.init_noise_sigma, scheduler.sigmas
    tensors |= {f"picture {i}": layer.image for i, layer in enumerate(document)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sampled.safetensors")
    layers = [
        {k: getattr(layer, k) for k in ("name", "x", "y", "width", "height", "prompt", "negative")}
        for layer in document
    ]
    (folder / "given.json").write_text(
        json.dumps({"prompt": PROMPT, "negative": NEGATIVE, "cases": CASES, "layers": layers})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
