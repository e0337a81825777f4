"""Train the judge on drawn scenes, whose labels per pixel and background are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.train.loop import Trainer, device, half_precision, start_from
from demo.world.judge import WEIGHTS, Judge, Verdict
from demo.world.scenes import HELD_OUT, Scene, place_object, random_scene
from demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return at half size ``[64, 64]`` the class per pixel, int64 (0 no object, else 1 + 6 * colour + kind),
    and where two objects meet, bool."""
    colours, kinds = list(COLOURS), list(KINDS)
    table = np.array(
        [0, *(1 + len(kinds) * colours.index(o.colour) + kinds.index(o.kind) for o in scene.objects)]
    )
    owner = scene.object_map()[1::2, 1::2].astype(np.int64)
    apart = np.pad(np.where(owner > 0, owner, 99), 1, constant_values=99)
    around = np.stack([np.pad(owner, 1)[i : i + 64, j : j + 64] for i in range(3) for j in range(3)])
    least = np.stack([apart[i : i + 64, j : j + 64] for i in range(3) for j in range(3)]).min(0)
    return table[owner], (owner > 0) & (around.max(0) > least)


def likes(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with all its objects of one colour and kind and moved together. Objects of one class
    that touch are rare in random scenes, and hard to learn."""
    first, size = scene.objects[0].thing, scene.size
    middle = np.array([[o.x + o.image.shape[1] / 2, o.y + o.image.shape[0] / 2] for o in scene.objects])
    target, objects = middle.mean(0), []
    for item, centre in zip(scene.objects, middle, strict=True):
        width, height = item.image.shape[1] / 1.44, item.image.shape[0] / 1.44
        centre = target + (centre - target) * rng.uniform(0.5, 1.0)
        x, y = (
            float(np.clip(c - s / 2, 2, size - 2 - s)) for c, s in zip(centre, (width, height), strict=True)
        )
        thing = first._replace(material=item.material)
        objects.append(
            place_object(
                thing, (x, y, width, height), angle=float(rng.uniform(-10, 10)), flip=bool(rng.random() < 0.5)
            )
        )
    return Scene(scene.seed, scene.background, scene.background_image, tuple(objects))


def drawn(rng: np.random.Generator) -> Scene:
    """Draw a scene to train on; a third of those with several objects are changed by :func:`likes`."""
    scene = random_scene(int(rng.integers(HELD_OUT)))
    return likes(scene, rng) if len(scene.objects) > 1 and rng.random() < 0.33 else scene


def augmented(rng: np.random.Generator, pictures: Tensor) -> Tensor:
    """Blur pictures and change their noise and colours, so that the judge still works where generated
    pictures are a little soft or off in colour."""
    if rng.random() < 0.6:
        side = int(rng.integers(40, 128))
        pictures = nn.functional.interpolate(
            nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True),
            (128, 128),
            mode="bilinear",
        )
    pictures = pictures + torch.randn_like(pictures) * rng.uniform(0, 0.04)
    gain, shift = torch.empty(2, len(pictures), 3, 1, 1, device=pictures.device)
    return (pictures * gain.uniform_(0.92, 1.08) + shift.uniform_(-0.04, 0.04)).clamp(0, 1)


def exact(judge: Judge, scenes: int, seed: int = HELD_OUT) -> float:
    """Return the share of held-out drawn scenes in which the judge finds exactly the objects and the
    background."""
    right = 0
    for start in range(0, scenes, 32):
        batch = [random_scene(seed + i) for i in range(start, min(start + 32, scenes))]
        pictures = torch.from_numpy(np.stack([s.picture() for s in batch])).permute(0, 3, 1, 2).float() / 255
        verdicts: list[Verdict] = judge.look(pictures)
        right += sum(
            v.shows([o.thing for o in s.objects]) and v.background == s.background
            for s, v in zip(batch, verdicts, strict=True)
        )
    return right / scenes


def train(rank: int, processes: int, options: Any) -> None:
    """Train the judge in one process."""
    torch.manual_seed(options.seed)
    model = Judge()
    start_from(model, WEIGHTS, options.fresh)
    model.to(device())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    trainer = Trainer(
        model,
        Path(options.folder) / "judge",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 3e-3,
        average=0.99,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    places = list(BACKGROUNDS)
    weights = torch.ones(1 + len(COLOURS) * len(KINDS), device=device())
    weights[0] = 0.4
    going = True
    while going:
        scenes = [drawn(rng) for _ in range(16 * options.scale)]
        pictures = (
            torch.from_numpy(np.stack([s.picture() for s in scenes])).to(device()).permute(0, 3, 1, 2).float()
            / 255
        )
        truth, border = (
            torch.from_numpy(np.stack(t)).to(device()) for t in zip(*map(labels, scenes), strict=True)
        )
        where = torch.tensor([places.index(s.background) for s in scenes], device=device())
        with half_precision():
            logits, place, meeting = model(
                augmented(rng, pictures).contiguous(memory_format=torch.channels_last)
            )
        # Most pixels are background; without the lower weight small objects are learnt last.
        loss = nn.functional.cross_entropy(
            logits.float(), truth, weights
        ) + 0.3 * nn.functional.cross_entropy(place.float(), where)
        inside = truth > 0
        loss = loss + 0.5 * nn.functional.binary_cross_entropy_with_logits(
            meeting.float()[inside], border.float()[inside]
        )
        going = trainer.update(loss, len(scenes), pixels=(logits.argmax(1) == truth).float().mean())
        if trainer.due(1.5) or not going:
            if rank == 0:
                judged = Judge()
                judged.load_state_dict({k: v.cpu() for k, v in trainer.averaged().items()})
                trainer.record(exact=exact(judged.eval(), 200))
                folder = Path(options.folder) / "export" / "judge"
                folder.mkdir(parents=True, exist_ok=True)
                save_file(
                    {k: v.half() if v.is_floating_point() else v for k, v in judged.state_dict().items()},
                    folder / "judge.safetensors",
                )
            trainer.save()
