"""Several layers, their background and their blend, made at once on a diffusers model."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from layered_core.errors import check_number
from layered_core.joint.frames import SceneFrames
from layered_core.joint.joint_files import fitting_joint, untrained
from layered_core.joint.network import LayersAtOnce
from layered_core.noise.window import Window, sigma_at
from layered_core.transparency.layer_diffuse_files import read_layer_model_file
from layered_diffusers.methods.layer_diffuse import SharedAttentions, attentions
from layered_diffusers.models.loading import StableDiffusion, require_unet
from layered_diffusers.sampling import Method, Run


class JointLayers(Method):
    """Let the rows of each scene attend to each other: ``[layer 1 .. layer K, background, blend]``, each row with its
    own prompt. See :mod:`layered_core.joint`."""

    joins_rows = True

    def __init__(
        self,
        model: StableDiffusion,
        file: str | Path,
        scene: SceneFrames,
        *,
        enhance: float = 1.0,
        weight: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        """Read the file and check that it fits the model.

        Args:
            model: the pipeline that samples.
            file: a joint network, or LayerDiffuse's file for foreground, background and blend; safetensors.
            scene: the frames of the scenes in the batch.
            enhance: how far the layers' words are completed from the scene's, 0..1. Neutral: 0.
            weight: how far the file changes the model, 0..2. Neutral: 0.
            start, end: shares of the sampling between which the change acts, 0..1.

        Raises:
            LayeredError: the file is missing, broken or for another model; a number is out of range.
        """
        require_unet(model, "Making layers together")
        check_number("enhance", enhance, 0, 1)
        check_number("weight", weight, 0, 2)
        check_number("start", start, 0, 1)
        check_number("end", end, start, 1)
        modules = [(a.to_q.in_features, a.to_k.in_features) for a in attentions(model.unet).values()]
        name = Path(file).name
        network = fitting_joint(read_layer_model_file(file), modules, name, type(model).__name__)
        if told := untrained(network, scene, name):
            logging.getLogger(__name__).warning(told)
        self.weight, self.begin, self.end = weight, start, end
        at_once = LayersAtOnce(network.to(model.unet.device, model.unet.dtype), scene, enhance)
        self.acting = SharedAttentions(model.unet, at_once, [None] * scene.frames, [], weight)

    def start(self, run: Run, stack: ExitStack) -> None:
        """Check the batch, which is known only now."""
        self.acting.check(len(run.latents))
        self._window = Window.of_shares(run.scheduler.alphas_cumprod, self.begin, self.end)
        stack.callback(self.acting.switch, False)

    def before_step(self, run: Run, index: int) -> None:
        """Switch the change on inside its window and off outside."""
        sigma = sigma_at(run.scheduler.alphas_cumprod, float(run.timesteps[index]))
        self.acting.switch(self._window.acts(sigma) and self.weight > 0)
