"""Train the network that makes several layers at once: ``python -m demo.train joint_layers``.

:mod:`layered_core.joint` on the frozen UNet, from the joint generator of one layer. That one knows how a layer, a
background and a blend look, but puts all layers of a scene into one place; so most scenes here have two or three.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.train.diffusion import Noised, Objective, frozen_text_encoder, frozen_vae, prepare
from demo.train.layered_scenes import Batch, LayeredScenes, draw_layers
from demo.train.loop import Trainer, device, half_precision, start_from
from demo.train.transparent import frozen_autoencoder
from demo.train.unet import attention_loss
from demo.train.words import WIDTH, word_ids
from demo.world.judge import Judge
from demo.world.places import MODEL
from demo.world.scenes import HELD_OUT, caption
from demo.world.vocabulary import BACKGROUNDS
from layered_core.attention.cross_attention import plain, scores, weigh
from layered_core.joint.enhancer import PromptEnhancer
from layered_core.joint.frames import SceneFrames
from layered_core.joint.network import JointNetwork, LayersAtOnce
from layered_core.transparency.layer_diffuse_frames import AttentionSharing, Base
from layered_diffusers.methods.layer_diffuse import attentions
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.together import SceneWords, generate_scenes

SHARES = {1: 0.05, 2: 0.62, 3: 0.33}
"""How often a step has scenes of each number of layers."""

ROWS = 16
"""Most frames in a step."""

TRAINED_LAYERS = max(SHARES)

CONSISTENT_BELOW = 300
"""Timestep below which the layers' composite must agree with the blend."""

PURE = 0.95
"""Least share of one layer in a cell that counts in that agreement: borders are mixed by the VAE, not by alpha."""


def new_network(joint: Path) -> JointNetwork:
    """Return the network of the joint generator in the file ``joint``, with an enhancer that changes nothing."""
    weights = {k: v.float() for k, v in load_file(joint).items()}
    network = JointNetwork.from_sharing(AttentionSharing.from_weights(weights, joint.name))
    units = network.units
    return JointNetwork(units, PromptEnhancer(WIDTH), TRAINED_LAYERS).requires_grad_(True)


class RecordingProcessor:
    """An attention processor that calls a unit in place of diffusers' attention, and records the blend's attention to
    its words, mean over heads, ``[B, N, 77]``."""

    def __init__(self, index: int, run: JointRun) -> None:
        self.index, self.run = index, run

    def __call__(
        self, attention: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Attend as diffusers' ``AttnProcessor`` does on three-dimensional input, but through the unit."""
        calls = 0
        crossed = encoder_hidden_states is not None

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            # The roles come in turn: layers, background, blend; the last call is the attention across frames.
            if not crossed or calls != 3 or q.shape[1] < 64:
                return plain(attention.heads)(q, k, v, None)
            found = scores(q, k, attention.heads)
            self.run.maps.append(found.softmax(-1).mean(1))
            return weigh(found, v, attention.heads)

        base = Base(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0], attend)
        return self.run.units[self.index](hidden, self.run.texts if crossed else None, base)


class JointRun:
    """The network on a UNet, for scenes of one number of layers at a time."""

    def __init__(self, network: JointNetwork, unet: UNet2DConditionModel) -> None:
        self.network, self.unet = network, unet
        self.maps: list[Tensor] = []
        self.texts: Sequence[Tensor] = []
        self.units = LayersAtOnce(network, SceneFrames(1)).units
        for index, attention in enumerate(attentions(unet).values()):
            attention.set_processor(RecordingProcessor(index, self))

    def predict(self, scene: SceneFrames, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Predict v of noisy frames ``[B F, 4, h, w]``; :attr:`maps` then has the blends' attention."""
        at_once = LayersAtOnce(self.network, scene)
        self.units, self.maps = at_once.units, []
        self.texts = at_once.texts([context[f :: scene.frames] for f in range(scene.frames)])
        v: Tensor = self.unet(noisy, t, context).sample
        return v


def inconsistency(objective: Objective, v: Tensor, noised: Noised, batch: Batch) -> Tensor:
    """Return the mean square by which the layers' composite departs from the blend, in the predicted clean latents
    and beyond what it does in the drawn ones, where cells show one layer alone and little noise is left."""
    frames = batch.shares.shape[1] + 1
    alpha = objective.alphas[noised.t].view(-1, 1, 1, 1)
    clean = alpha.sqrt() * noised.noisy - (1 - alpha).sqrt() * v.float()
    error = (clean - batch.latents).unflatten(0, (-1, frames))
    apart = (batch.shares[:, :, None] * error[:, :-1]).sum(1) - error[:, -1]
    low = (noised.t[::frames] < CONSISTENT_BELOW).float()[:, None, None]
    counted = low * (batch.shares.amax(1) > PURE)
    return (apart.square().mean(1) * counted).sum() / counted.sum().clamp_min(1)


@torch.no_grad()
def judge(
    pipeline: LayeredDiffusionPipeline, file: Path, layers: int = 2, count: int = 16
) -> dict[str, float]:
    """Make held-out scenes with the weights of ``file``, and return the shares in which: each layer shows its thing
    alone (``layer_right``), the composite shows everything and nothing else (``all_right``), the blend does
    (``blend_right``), the background shows its landscape alone (``background_right``)."""
    rng = np.random.default_rng(HELD_OUT)
    drawn = [draw_layers(rng, layers) for _ in range(count)]
    scenes = []
    for scene in drawn:
        words, place = [t.words for t in scene.things], BACKGROUNDS[scene.place][0]
        scenes.append(SceneWords(caption(words, place), tuple(words), place))
    made = generate_scenes(
        pipeline, scenes, file=file, decoder=MODEL / "transparent" / "decoder.safetensors", guidance=2.0, steps=12,
        augmentations=1, seeds=range(count),
    )  # fmt: skip
    looker = Judge.load()
    found: dict[str, list[float]] = {
        k: [] for k in ("layer_right", "all_right", "blend_right", "background_right")
    }
    for scene, sprites, background, blend in zip(
        drawn, made.layers, made.background, made.blend, strict=True
    ):
        canvas = background
        for sprite in sprites:
            canvas = sprite[:3] * sprite[3:] + canvas * (1 - sprite[3:])
        backdrop = torch.from_numpy(scene.background.copy()).permute(2, 0, 1) / 255
        alone = [s[:3] * s[3:] + backdrop * (1 - s[3:]) for s in sprites]
        whole, both, behind, *each = looker.look(torch.stack([canvas, blend, background, *alone]))
        found["layer_right"] += [float(x.shows([t])) for x, t in zip(each, scene.things, strict=True)]
        found["all_right"].append(float(whole.shows(scene.things) and whole.background == scene.place))
        found["blend_right"].append(float(both.shows(scene.things) and both.background == scene.place))
        found["background_right"].append(float(behind.background == scene.place and not behind.objects))
    return {f"{k}_{layers}": round(float(np.mean(v)), 3) for k, v in found.items()}


def train(rank: int, processes: int, options: Any) -> None:
    """Train the network in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae, text, autoencoder = frozen_vae(export), frozen_text_encoder(export), frozen_autoencoder(export)
    unet = UNet2DConditionModel.from_pretrained(export / "unet").float().requires_grad_(False)
    folder = export / "transparent"
    network = new_network(folder / "joint.safetensors")
    start_from(network, MODEL / "transparent" / "joint_layers.safetensors", options.fresh)
    run = JointRun(network, unet)
    prepare(unet)
    network.to(device())
    trainer = Trainer(
        network,
        Path(options.folder) / "joint_layers",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1.5e-3,
        average=0.995,
        warmup=50,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    stores = {k: LayeredScenes(vae, autoencoder, rng, k) for k in SHARES}
    for k, store in stores.items():
        store.add(8 if k == 2 else 4)
    pipeline, objective, going = None, Objective(), True
    while going:
        layers = int(rng.choice(list(SHARES), p=list(SHARES.values())))
        scene, store = SceneFrames(layers), stores[layers]
        count = options.scale * (ROWS // scene.frames)
        # Drawing and encoding a scene takes a third of a step's time.
        if store.filled < 16 or rng.random() < 0.4:
            store.add(max(count // 8, 1))
        batch = store.batch(count, ids)
        noised = objective.noised(batch.latents, scene.frames)
        with half_precision():
            v = run.predict(scene, noised.noisy, noised.t, text(batch.tokens)[0])
        apart = objective.errors(v, noised).unflatten(0, (count, scene.frames)).mean(0)
        consistent = inconsistency(objective, v, noised, batch)
        attention = attention_loss(run.maps, batch.masks, batch.nouns, noised.clear[:: scene.frames])
        going = trainer.update(
            apart.mean() + 0.1 * consistent + 0.3 * attention, count, layers=apart[:layers].detach().mean(),
            background=apart[-2].detach(), blend=apart[-1].detach(), apart=consistent.detach(),
            attention=attention.detach(),
        )  # fmt: skip
        if trainer.due(30.0) or not going:
            trainer.save()
            if rank == 0:
                file = folder / "joint_layers.safetensors"
                state = {k: w.detach().cpu() for k, w in trainer.averaged().items()}
                half = {k: w.half() if w.is_floating_point() else w for k, w in state.items()}
                save_file({k: w.contiguous() for k, w in half.items()}, file)
                pipeline = pipeline or LayeredDiffusionPipeline.from_pretrained(
                    sampler="euler_ancestral", device="cpu"
                )
                trainer.record(**judge(pipeline, file))
