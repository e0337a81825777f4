"""Write the layers that the headless host makes at once with the storybook: ``python joint_layers_reference.py
FOLDER``. This script runs in the repository's environment."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.world.places import MODEL
from layered_diffusers.editing import sample_layers
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method

PROMPT, LAYERS, BACKGROUND = "a red ball and a blue star by the sea", ["a ball", "a star"], "by the sea"
# The timesteps of 10 steps are whole numbers, to which ComfyUI rounds.
HOW = {"steps": 10, "guidance": 2.0, "augmentations": 1, "negative": "dark"}
SEED = 1
"""With it, both layers show something: of an almost empty one a relative error means nothing."""
CASES = {
    "plain": ({}, ()),
    "guided": ({"self_mask": 1.0, "enhance": 0.0}, ()),
    "edited": ({}, ("background", "a ball")),
}
"""By name: options, and the layers of the plain scene that are held."""


class Look(Method):
    """Keeps what a run begins with."""

    def start(self, run, stack):
        """Take the noise and the sigmas."""
        self.noise, self.sigmas = run.noise, run.scheduler.sigmas


@torch.no_grad()
def main(folder):
    pipeline = LayeredDiffusionPipeline.from_pretrained(MODEL, sampler="euler")
    tensors, plain = {}, None
    for case, (options, held) in CASES.items():
        look = Look()
        how = {**HOW, **options, "seed": SEED, "methods": [look]}
        if held:
            free = {x.name: 1.0 for x in plain if x.visible and x.name not in held}
            scene = sample_layers(pipeline, plain, free, **how)
        else:
            scene = pipeline.generate_scene(PROMPT, LAYERS, background=BACKGROUND, **how)
        plain = plain or scene
        tensors |= {f"{case}/{layer.name}": layer.image for layer in scene}
        tensors |= {f"{case}/noise": look.noise, f"{case}/sigmas": look.sigmas}
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, folder / "made.safetensors")
    words = {"prompt": PROMPT, "layers": LAYERS, "background": BACKGROUND}
    (folder / "given.json").write_text(json.dumps({"cases": CASES, "how": HOW, **words}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
