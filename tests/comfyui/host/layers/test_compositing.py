"""With the rules ``comfyui`` our compositor gives the same picture of a stack as ComfyUI's own."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_extras import compositor_blend as core
from comfy_extras import nodes_compositor
from graph import node

import nodes

MODES = list(core._LAYER_MODES)
GOLDEN = json.loads(
    (Path(__file__).parents[3] / "core" / "canvas" / "blend_golden.json").read_text(encoding="utf-8")
)
TOLERANCE = 2 / 255


@pytest.fixture
def ours(pack):
    """Return our core, as the nodes import it."""
    names = ("canvas.blend_modes", "canvas.compositing", "document", "canvas.placement")
    return {name.split(".")[-1]: pack(f"layered_core.{name}") for name in names}


def test_the_modes_are_cores(host, ours):
    rules = ours["blend_modes"].RULES["comfyui"]
    assert set(ours["document"].BLEND_MODES) == set(MODES) == {"normal", *rules.blends}
    assert rules.linear_modes == {
        mode for mode, (space, _) in core._LAYER_MODES.items() if space == "linear"
    } - {"normal"}
    assert {mode for mode, (_, how) in core._LAYER_MODES.items() if how == "union"} == {"normal"}


@pytest.mark.parametrize("mode", MODES[1:])
def test_blended_colours_equal_cores_at_the_edges_and_between(host, ours, mode):
    """Compares every pair of 17 levels, among them 0 and 1 and their neighbours, distributed over three
    channels."""
    levels = np.unique(np.concatenate([np.linspace(0, 1, 14), [1 / 255, 254 / 255, 0.5]])).astype(np.float32)
    rng = np.random.default_rng(0)
    b, s = (np.stack([rng.permutation(x.ravel()) for _ in range(3)], -1) for x in np.meshgrid(levels, levels))
    theirs = core.blend_pixel(mode, b, s)
    planes = [torch.from_numpy(x.T[:, None].copy()) for x in (b, s)]
    mine = ours["blend_modes"].RULES["comfyui"].blends[mode](*planes)[:, 0].numpy().T
    assert np.abs(mine - theirs).max() < 1e-4


def draw(rng, index, mode, size, soft):
    """Return a random layer as an item of LAYERS, in 8-bit levels. Only its alpha or its mask is soft,
    because ComfyUI rounds their product to 8 bits."""
    height, width = (int(rng.integers(1, 2 * side)) for side in size)
    # The least and greatest levels are common in pictures, and the formulas differ most at them.
    colour = rng.choice([0, 255, *rng.integers(0, 256, 6)], (1, height, width, 3))
    parts = [
        rng.choice([0, 255, *rng.integers(0, 256, 4)], (1, height, width)),
        rng.choice([0, 255, 255], (1, height, width)),
    ]
    alpha, mask = parts if soft == "alpha" else reversed(parts)
    image = np.concatenate([colour, alpha[..., None]], -1)
    return {
        "type": "raster", "z_index": index, "name": str(index), "blend_mode": mode,
        "opacity": float(rng.choice([1.0, 0.7, 0.25])),
        "x": int(rng.integers(-width // 2, size[1])), "y": int(rng.integers(-height // 2, size[0])),
        "flip_h": bool(rng.integers(2)), "flip_v": bool(rng.integers(2)),
        "image": torch.from_numpy(image).float() / 255,
        "mask": 1 - torch.from_numpy(np.ascontiguousarray(mask)).float() / 255,
    }  # fmt: skip


def bottom(rng, size, opaque):
    item = draw(rng, 0, "normal", (1, 1), "alpha")
    colour = rng.integers(0, 256, (1, *size, 3))
    alpha = (
        np.full((1, *size, 1), 255)
        if opaque
        else rng.choice([0, 255, *rng.integers(0, 256, 4)], (1, *size, 1))
    )
    return {
        **item,
        "x": 0,
        "y": 0,
        "opacity": 1.0,
        "image": torch.from_numpy(np.concatenate([colour, alpha], -1)).float() / 255,
        "mask": None,
    }


class Stack:
    """A node that outputs the LAYERS document put into it."""

    stack: dict = {}
    RETURN_TYPES = ("LAYERS",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):  # noqa: N802
        return random.random()

    def give(self):
        return (Stack.stack,)


@pytest.fixture
def both(host):
    """Composite items by ComfyUI's node and by ours, in the real host; return two pictures ``[H, W, 4]``."""
    nodes.NODE_CLASS_MAPPINGS["TestStack"] = Stack

    def run(items, size):
        Stack.stack = {"version": 1, "canvas": (size[1], size[0]), "layers": items}
        prompt = {
            "1": node("TestStack"),
            "2": node("ImageCompositor", layers=["1", 0], compositor={}),
            "3": node("LD_LayerComposite", layers=["1", 0], backdrop="transparent", rules="comfyui"),
        }
        pictures = [host.value(prompt, n)[0] for n in "23"]
        return [x if x.shape[-1] == 4 else torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in pictures]

    return run


def by_cores_functions(items, size, nudge):
    """Composite the stack by ComfyUI's ``blend_composite``, with ``nudge`` added to every colour that it
    gets."""
    canvas = np.zeros((*size, 4), np.float32)
    moved = np.array([nudge, nudge, nudge, 0], np.float32)
    for item in items:
        image, alpha = item["image"][0].numpy(), item["image"][0, ..., 3:].numpy()
        if item["mask"] is not None:
            alpha = alpha * (1 - item["mask"][0, ..., None].numpy())
        layer = np.concatenate([core.srgb_to_linear(image[..., :3]), alpha], -1)
        layer = layer[:: -1 if item["flip_v"] else 1, :: -1 if item["flip_h"] else 1]
        x0, y0 = max(item["x"], 0), max(item["y"], 0)
        seen = layer[y0 - item["y"] : size[0] - item["y"], x0 - item["x"] : size[1] - item["x"]]
        area = canvas[y0 : y0 + seen.shape[0], x0 : x0 + seen.shape[1]]
        area[:] = core.blend_composite(
            core.resolve_mode(item["blend_mode"]), area + moved, seen + moved, item["opacity"]
        )
    return torch.from_numpy(
        np.concatenate([core.linear_to_srgb(np.clip(canvas[..., :3], 0, 1)), canvas[..., 3:]], -1)
    )


def jumps(items, size):
    """Return the pixels where ComfyUI's own result depends on the last bits: hard mix at ``b + s = 1``, or
    colour burn of white with black."""
    low, high = (by_cores_functions(items, size, nudge) for nudge in (-1e-6, 1e-6))
    return ((low - high).abs() > TOLERANCE / 2).any(-1)


@pytest.mark.parametrize("opaque", [True, False], ids=["opaque", "soft"])
@pytest.mark.parametrize("mode", MODES)
def test_layers_of_every_mode_with_opacity_mask_flip_and_place_are_cores(both, mode, opaque):
    rng = np.random.default_rng([MODES.index(mode), opaque])
    size, differing, left_out = (24, 32), 0, 0
    for soft in ("alpha", "mask") * 4:
        items = [bottom(rng, size, opaque), *(draw(rng, i, mode, size, soft) for i in (1, 2))]
        theirs, mine = both(items, size)
        sure = ~jumps(items, size)
        differing += int(((theirs - mine).abs() > TOLERANCE).any(-1)[sure].sum())
        left_out += int((~sure).sum())
    assert differing == 0
    assert left_out <= 0.02 * 8 * size[0] * size[1]


def test_stacks_of_mixed_modes_are_cores(both):
    rng = np.random.default_rng(1)
    size = 24, 32
    for round in range(40):
        modes = [MODES[i] for i in rng.integers(0, len(MODES), rng.integers(2, 7))]
        items = [
            bottom(rng, size, round % 2),
            *(draw(rng, i, mode, size, "alpha") for i, mode in enumerate(modes, 1)),
        ]
        theirs, mine = both(items, size)
        sure = ~jumps(items, size)
        assert float((theirs - mine).abs()[sure].max()) <= TOLERANCE, modes
        assert float(sure.float().mean()) > 0.98, modes


def smooth(rng, height, width, alpha):
    """Return a picture of a few long waves, which resampling with any filter hardly changes, ``[1, H, W,
    4]``."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        0.5 + 0.45 * np.sin(2.5 * (a * rows + b * columns) + c)
        for a, b, c in rng.uniform(-1, 1, (4, 3)) * (1, 1, 3)
    ]
    waves[3] = 0.5 + waves[3] / 2 if alpha else np.ones((height, width))
    return (torch.from_numpy(np.stack(waves, -1))[None].float() * 255).round() / 255


@pytest.mark.parametrize("turned", [False, True], ids=["scaled", "scaled and turned"])
def test_resampled_layers_are_cores_away_from_their_edges(both, ours, turned):
    rng = np.random.default_rng(turned)
    size = 96, 128
    for index, mode in enumerate(MODES * 2):
        own = int(rng.integers(40, 160)), int(rng.integers(40, 160))
        place = {
            "w": int(rng.integers(40, 110)),
            "h": int(rng.integers(40, 90)),
            "x": int(rng.integers(-10, 40)),
            "y": int(rng.integers(-10, 30)),
        }
        place |= {
            "rotation": float(rng.uniform(-math.pi, math.pi)) if turned else 0.0,
            "flip_h": bool(index % 2),
            "flip_v": bool(index % 3),
        }
        layer = {
            **draw(rng, 1, mode, size, "alpha"),
            **place,
            "image": smooth(rng, *own, alpha=True),
            "mask": None,
        }
        theirs, mine = both(
            [{**bottom(rng, size, True), "image": smooth(rng, *size, alpha=False)}, layer], size
        )
        fields = {
            "x": place["x"],
            "y": place["y"],
            "width": place["w"],
            "height": place["h"],
            "rotation": math.degrees(place["rotation"]),
        }
        box = ours["document"].Layer("box", torch.ones(1, 1, 4), **fields)
        covered = ours["placement"].place(torch.ones(1, 1, 1), box, size[1], size[0])[None, ..., 0]
        inside = -torch.nn.functional.max_pool2d(-covered, 7, 1, 3)[0] == 1
        assert int(inside.sum()) > 1000
        assert float((theirs - mine).abs()[inside].mean()) <= TOLERANCE, mode


def test_resampling_never_shows_the_colours_of_transparent_pixels(both):
    """A red square on transparent green is halved and turned; neither ComfyUI nor we get green at its
    edges."""
    image = torch.zeros(1, 40, 40, 4)
    image[..., 1] = 1
    image[:, 10:30, 10:30] = torch.tensor([1.0, 0, 0, 1])
    layer = {
        "type": "raster",
        "z_index": 0,
        "image": image,
        "x": 4,
        "y": 4,
        "w": 20,
        "h": 20,
        "rotation": 0.5,
    }
    for picture in both([layer], (32, 32)):
        assert float((picture[..., 1] * picture[..., 3]).max()) < 0.02


@pytest.mark.parametrize("mode", ["normal", "multiply", "soft-light"])
def test_a_backdrop_colour_is_cores_background(host, both, mode):
    rng = np.random.default_rng(5)
    size = 24, 32
    items = [draw(rng, i, mode, size, "alpha") for i in range(3)]
    frames = nodes_compositor.expand_item_frames(items)
    state = nodes_compositor.state_from_items(frames, (size[1], size[0])) | {
        "background": {"color": "#969696", "opacity": 1.0, "visible": True}
    }
    alphas = [nodes_compositor.frame_alpha(f["tensor"], f["mask"]) for f in frames]
    theirs = nodes_compositor.composite_from_state([f["tensor"] for f in frames], state, alphas)[0]
    both(items, size)
    prompt = {
        "1": node("TestStack"),
        "2": node("LD_LayerComposite", layers=["1", 0], backdrop="grey", rules="comfyui"),
    }
    assert float((host.value(prompt, "2")[0] - theirs[..., :3]).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_the_golden_values_are_still_cores(host, mode):
    back, front = (np.array(GOLDEN[k], np.float32)[None] / 255 for k in ("backdrop", "layer"))
    linear = [np.concatenate([core.srgb_to_linear(x[..., :3]), x[..., 3:]], -1) for x in (back, front)]
    under = core.blend_composite(core.resolve_mode("normal"), np.zeros_like(back), linear[0], 1.0)
    mask = np.array(GOLDEN["mask"], np.float32)[None] / 255
    out = core.blend_composite(core.resolve_mode(mode), under, linear[1], GOLDEN["opacity"] / 255, mask)
    out[..., :3] = core.linear_to_srgb(np.clip(out[..., :3], 0, 1))
    assert np.abs(np.clip(out[0], 0, 1) - np.array(GOLDEN["comfyui"][mode])).max() < 1e-4
