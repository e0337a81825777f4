"""Both sets of rules compared with independent values: golden ones, psd-tools' functions and psd-tools'
compositor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.composite import composite as psd_composite
from psd_tools.composite.blend import BLEND_FUNC
from psd_tools.constants import BlendMode

from layered_core.canvas.blend_modes import RULES, find_rules
from layered_core.canvas.colour import by_table, linear_to_srgb, srgb_to_linear
from layered_core.canvas.compositing import composite
from layered_core.document import BLEND_MODES, Layer, LayerDocument
from layered_core.errors import LayeredError

GOLDEN = json.loads((Path(__file__).parent / "blend_golden.json").read_text(encoding="utf-8"))
TOLERANCE = 2 / 255
PSD_MODES = {
    mode: getattr(BlendMode, mode.replace("-", "_").upper())
    for mode in BLEND_MODES
    if not mode.startswith("grain")
}
"""psd-tools' name of every mode; Photoshop has no grain modes."""


def document(mode):
    """Return a document of the golden pixels in a row: a backdrop, and on it a layer with alpha, mask and
    opacity."""
    back, front = (torch.tensor(GOLDEN[k], dtype=torch.float32)[None] / 255 for k in ("backdrop", "layer"))
    mask = torch.tensor(GOLDEN["mask"], dtype=torch.float32)[None] / 255
    layer = Layer("front", front, mask, opacity=GOLDEN["opacity"] / 255, blend_mode=mode)
    return LayerDocument(back.shape[1], 1, (Layer("back", back), layer))


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
@pytest.mark.parametrize("mode", BLEND_MODES)
def test_golden_values(mode, rules):
    if mode not in GOLDEN[rules]:
        assert rules == "photoshop"
        assert mode not in PSD_MODES
        return
    wanted = torch.tensor(GOLDEN[rules][mode])
    assert float((composite(document(mode), rules)[0] - wanted).abs().max()) <= 2e-4


def levels(seed):
    """Return every pair of 18 levels, among them 0 and 1 and their neighbours, distributed over three
    channels: backdrop and source ``[3, 18, 18]``."""
    steps = np.unique(np.concatenate([np.linspace(0, 1, 14), [1 / 255, 254 / 255, 0.5, 0.25]])).astype(
        np.float32
    )
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    dealt = np.stack([rng.permutation(pairs) for _ in range(3)])
    return (
        torch.from_numpy(np.ascontiguousarray(dealt[..., i])).reshape(3, len(steps), len(steps))
        for i in (0, 1)
    )


@pytest.mark.parametrize("mode", list(PSD_MODES)[1:])
def test_photoshop_blends_equal_psd_tools(mode):
    b, s = levels(0)
    theirs = BLEND_FUNC[PSD_MODES[mode]](*(x.permute(1, 2, 0).numpy().copy() for x in (b, s)))
    mine = RULES["photoshop"].blends[mode](b, s).clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(mine - theirs).max() < 1e-3


@pytest.mark.parametrize("mode", PSD_MODES)
def test_photoshop_documents_equal_psd_tools_compositor(mode):
    """Compares random documents with alpha, masks, opacity, offsets on and off the canvas and hidden layers,
    over opaque and over soft backdrops."""
    rng = np.random.default_rng(list(PSD_MODES).index(mode))
    width, height = 20, 16
    for _ in range(6):
        psd, layers = PSDImage.new("RGBA", (width, height)), []
        for index, blend in enumerate(["normal", mode, "normal" if rng.random() < 0.3 else mode]):
            size = (height, width) if index == 0 else tuple(rng.integers(3, 20, 2))
            x, y = (0, 0) if index == 0 else (int(v) for v in rng.integers(-8, 14, 2))
            pixels = rng.choice([0, 255, *rng.integers(0, 256, 9)], (*size, 4)).astype(np.uint8)
            if index == 0 and rng.random() < 0.5:
                pixels[..., 3] = 255
            mask = (
                rng.choice([0, 255, *rng.integers(0, 256, 3)], size).astype(np.uint8)
                if rng.random() < 0.5
                else None
            )
            opacity, visible = int(rng.choice([255, 190, 60])), index == 0 or rng.random() < 0.85
            image = Image.fromarray(pixels)
            theirs = psd.create_pixel_layer(
                image, name=str(index), top=y, left=x, opacity=opacity, blend_mode=PSD_MODES[blend]
            )
            theirs.visible = visible
            if mask is not None:
                theirs.create_mask(Image.fromarray(mask))
            own = {
                "mask": None if mask is None else torch.from_numpy(mask).float() / 255,
                "x": x,
                "y": y,
                "blend_mode": blend,
                "visible": bool(visible),
            }
            layers.append(
                Layer(str(index), torch.from_numpy(pixels).float() / 255, opacity=opacity / 255, **own)
            )
        colour, _, alpha = psd_composite(psd)
        mine = composite(LayerDocument(width, height, tuple(layers)), "photoshop").numpy()
        assert np.abs(mine[..., 3:] - alpha).max() < 1e-5
        # Colours are compared in proportion to alpha.
        assert (np.abs(mine[..., :3] - colour) * alpha).max() <= TOLERANCE


@pytest.mark.parametrize("rules", RULES)
def test_blends_are_the_same_for_batches_and_in_double_and_change_neither_input(rules):
    b, s = (torch.rand(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    kept = b.clone(), s.clone()
    for mode, blend in RULES[rules].blends.items():
        out = blend(b, s)
        assert out.shape == b.shape
        assert torch.equal(out[1, 3], blend(b[1, 3], s[1, 3])), mode
        double = blend(b.double(), s.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(out, double.float(), atol=1e-3, rtol=1e-3)
        assert torch.equal(b, kept[0]), mode
        assert torch.equal(s, kept[1]), mode


@pytest.mark.parametrize("rules", RULES)
def test_every_mode_has_its_blend_and_none_gives_other_than_numbers(rules):
    b, s = levels(1)
    assert {"normal", *RULES[rules].blends} == set(BLEND_MODES)
    for mode, blend in RULES[rules].blends.items():
        # With the rules comfyui the result of earlier layers may lie outside 0..1.
        for backdrop in (b, 3 * b - 1) if not RULES[rules].bounded else (b,):
            assert bool(blend(backdrop, s).isfinite().all()), mode


def test_grain_modes_add_and_take_away_what_differs_from_grey():
    b, s = torch.full((3, 1, 1), 0.6), torch.full((3, 1, 1), 0.7)
    for rules in RULES.values():
        assert float(rules.blends["grain-merge"](b, s)[0]) == pytest.approx(0.8)
        assert float(rules.blends["grain-extract"](b, s)[0]) == pytest.approx(0.4)


def test_srgb_curves_are_the_standards_and_undo_each_other():
    c = torch.linspace(-0.5, 2, 100_001, dtype=torch.float64)
    linear = torch.where(c <= 0.04045, c / 12.92, ((c.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    torch.testing.assert_close(srgb_to_linear(c), linear, atol=1e-7, rtol=0)
    torch.testing.assert_close(linear_to_srgb(linear), c, atol=1e-6, rtol=0)
    assert torch.equal(srgb_to_linear(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))
    assert torch.equal(linear_to_srgb(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))
    eight = torch.arange(256) / 255
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(eight)), eight, atol=3e-6, rtol=0)


@pytest.mark.parametrize("curve", [srgb_to_linear, linear_to_srgb])
def test_curves_by_table_are_exact_for_8_and_16_bits_and_near_between(curve):
    sixteen = torch.arange(65_536) / 65_535
    assert torch.equal(by_table(curve, sixteen), curve(sixteen))
    assert torch.equal(by_table(curve, sixteen[::257]), curve(sixteen[::257]))
    between = torch.rand(3, 100, 100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(by_table(curve, between), curve(between), atol=1e-4, rtol=0)
    cut = between[:, 3:50, 7:80]
    assert torch.equal(by_table(curve, cut), by_table(curve, cut.contiguous()))
    for odd in (between - 0.5, 2 * between, between.double()):
        assert torch.equal(by_table(curve, odd), curve(odd))


def test_unknown_rules_are_named_with_those_there_are():
    with pytest.raises(LayeredError, match="rules is 'krita'; allowed: comfyui, photoshop"):
        find_rules("krita")
