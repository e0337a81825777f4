"""Decoding at any size: passes over turned copies and their inverses, padding, tiles, latents, memory, bad
input."""

import pytest
import torch

from layered_core.errors import LayeredError, check_memory
from layered_core.progress import reporting
from layered_core.transparency.transparent_decode import (
    PASSES,
    _combined,
    _fade,
    _one_pass,
    _starts,
    bytes_needed,
    decode,
    pictures_at_once,
)
from layered_core.transparency.transparent_networks import TransparentDecoder
from tests.core.transparency.test_transparent_networks import random_decoder


class Echo(TransparentDecoder):
    """A decoder that returns the pixels and the latent's first channel in the file's order, so that only the
    effect of turning and turning back is left."""

    def __init__(self):
        super().__init__((8, 8, 8, 8, 8, 8, 8))
        self.seen = []

    def forward(self, pixels, latent, attend=None):
        self.seen.append((tuple(pixels.shape[2:]), tuple(latent.shape[2:])))
        return torch.cat([latent[:, :1].repeat_interleave(8, 2).repeat_interleave(8, 3), pixels], 1)


def asymmetric(height=64, width=128, batch=1):
    """Return a picture and a latent in which no two places are equal, the latent in 0..1."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator), torch.rand(
        batch, 4, height // 8, width // 8, generator=generator
    )


@pytest.mark.parametrize(("mirrored", "turns"), PASSES)
def test_every_pass_is_laid_back_exactly(mirrored, turns):
    echo, (pixels, latent) = Echo(), asymmetric()
    result = _one_pass(echo, pixels, latent, mirrored, turns, None)
    assert torch.equal(result[:, :3], pixels)
    assert torch.equal(result[:, 3], latent[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert echo.seen == [((128, 64), (16, 8)) if turns % 2 else ((64, 128), (8, 16))]


def test_the_passes_are_the_eight_symmetries_of_the_square():
    mark = torch.arange(9.0).view(1, 1, 3, 3)
    laid = {tuple((mark.flip(3) if m else mark).rot90(k, (2, 3)).flatten().tolist()) for m, k in PASSES}
    assert len(laid) == 8
    assert PASSES[0] == (False, 0)


@pytest.mark.parametrize("augmentations", [1, 2, 4, 8])
@pytest.mark.parametrize("combine", ["median", "mean"])
def test_passes_are_combined_element_by_element(augmentations, combine):
    decoder, (pixels, latent) = random_decoder(), asymmetric()
    with torch.no_grad():
        stack = torch.stack([_one_pass(decoder, pixels, latent, *p, attend) for p in PASSES[:augmentations]])
        expected = stack.median(0).values if combine == "median" else stack.mean(0)
        result = decode(decoder, pixels, latent, augmentations=augmentations, combine=combine)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def attend(q, k, v, heads):
    from layered_core.transparency.transparent_networks import attend_with_torch

    return attend_with_torch(q, k, v, heads)


def test_the_median_of_an_even_number_is_the_lower_middle_value():
    for count in (1, 2, 4, 8):
        passes = list(torch.rand(count, 3, 7, 5))
        assert torch.equal(_combined(passes, "median"), torch.stack(passes).median(0).values)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (8, 8), (72, 200), (136, 64), (312, 24)])
def test_any_size_comes_back_in_that_size(height, width):
    echo, (pixels, latent) = Echo(), asymmetric(height, width, 2)
    result = decode(echo, pixels, latent, augmentations=8)
    assert torch.equal(result[:, :3], pixels)
    assert torch.equal(result[:, 3], latent[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert all(
        side % 64 == 0 and side == 8 * cells for a, b in echo.seen for side, cells in zip(a, b, strict=True)
    )


def test_sides_that_are_no_multiple_of_64_are_continued_by_their_mirror_image():
    class Peek(Echo):
        def forward(self, pixels, latent, attend=None):
            self.pixels, self.latent = pixels, latent
            return super().forward(pixels, latent)

    peek, (pixels, latent) = Peek(), asymmetric(40, 72)
    decode(peek, pixels, latent, augmentations=1)
    assert torch.equal(peek.pixels[:, :, 40:64, :72], pixels[:, :, 16:40].flip(2))
    assert torch.equal(peek.pixels[:, :, :40, 72:128], pixels[:, :, :, 16:72].flip(3))
    assert torch.equal(peek.latent[:, :, 5:8, :9], latent[:, :, 2:5].flip(2))


@pytest.mark.parametrize(
    ("side", "tile", "overlap"),
    [(520, 128, 64), (1000, 256, 0), (2056, 2048, 256), (130, 128, 32), (64, 128, 0)],
)
def test_tiles_cover_every_pixel_and_their_shares_sum_to_1(side, tile, overlap):
    starts = _starts(side, tile, overlap)
    shares, cover = torch.zeros(side), torch.zeros(side)
    for start in starts:
        assert start % 8 == 0
        shares[start : start + tile] += _fade(starts, start, side, tile)
        cover[start : start + tile] += 1
    assert (cover > 0).all()
    torch.testing.assert_close(shares, torch.ones(side))
    assert all(b - a <= tile - overlap + 8 for a, b in zip(starts, starts[1:], strict=False))


def test_tiles_leave_no_seam():
    decoder = random_decoder((16, 16, 16, 16, 32, 32, 32))
    ys, xs = torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 512), indexing="ij")
    pixels = torch.stack([ys, xs, (ys + xs) / 2])[None]
    latent = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 8).expand(-1, 4, -1, -1)
    with torch.no_grad():
        whole = decode(decoder, pixels, latent, augmentations=1)
        tiled = decode(decoder, pixels, latent, augmentations=1, tile=256, overlap=128)
        hard = decode(decoder, pixels, latent, augmentations=1, tile=256, overlap=0)

    def step(picture, x):
        """Return the mean absolute difference of the columns x - 1 and x."""
        return float((picture[..., x] - picture[..., x - 1]).abs().mean())

    assert tiled.shape == whole.shape
    assert step(hard, 256) > 3 * step(whole, 256), "a seam would be seen here"
    for start in _starts(512, 256, 128)[1:]:
        for x in (start, start + 128, start + 1):
            if 0 < x < 512:
                assert step(tiled, x) < 1.5 * max(
                    step(whole, x - 2), step(whole, x + 2 if x < 509 else x), step(whole, x)
                ), x


def test_a_missing_latent_counts_as_zeros_and_one_latent_serves_a_batch():
    decoder, (pixels, latent) = random_decoder(), asymmetric(batch=3)
    with torch.no_grad():
        assert torch.equal(
            decode(decoder, pixels, None, augmentations=1),
            decode(decoder, pixels, torch.zeros_like(latent), augmentations=1),
        )
        one = decode(decoder, pixels, latent[:1], augmentations=1)
        assert torch.equal(one, decode(decoder, pixels, latent[:1].expand(3, -1, -1, -1), augmentations=1))
        assert not torch.equal(one, decode(decoder, pixels, latent, augmentations=1))


def test_batches_give_the_same_as_one_picture_at_a_time():
    decoder, (pixels, latent) = random_decoder(), asymmetric(batch=3)
    with torch.no_grad():
        alone = torch.cat(
            [decode(decoder, pixels[i : i + 1], latent[i : i + 1], augmentations=2) for i in range(3)]
        )
        for batch in (1, 2, 3):
            torch.testing.assert_close(
                decode(decoder, pixels, latent, augmentations=2, batch=batch), alone, atol=1e-5, rtol=0
            )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_half_precision_is_near_single(dtype, tolerance):
    decoder, (pixels, latent) = random_decoder((16, 16, 16, 16, 32, 32, 32)), asymmetric()
    with torch.no_grad():
        single = decode(decoder, pixels, latent, augmentations=2)
        half = decode(decoder.to(dtype), pixels, latent, augmentations=2)
    assert half.dtype == torch.float32
    assert (half - single).abs().max() < tolerance


def test_progress_counts_every_pass_and_may_stop_the_decode():
    echo, (pixels, latent), seen = Echo(), asymmetric(64, 320, 3), []
    with reporting(lambda *x: seen.append(x)):
        decode(echo, pixels, latent, augmentations=4, tile=128, overlap=0, batch=2)
    assert seen == [(i + 1, 24) for i in range(24)]

    def stop(done, total):
        raise KeyboardInterrupt

    echo.seen.clear()
    with pytest.raises(KeyboardInterrupt), reporting(stop):
        decode(echo, pixels, latent)
    assert len(echo.seen) == 1


def test_pixels_outside_0_to_1_are_clipped_first():
    decoder, (pixels, latent) = random_decoder(), asymmetric()
    with torch.no_grad():
        wild = decode(decoder, pixels * 4 - 1, latent, augmentations=1)
        assert torch.equal(wild, decode(decoder, (pixels * 4 - 1).clamp(0, 1), latent, augmentations=1))
    assert 0 <= wild.min() <= wild.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentations": 0}, "augmentations is 0; allowed: 1, 2, 4 or 8"),
        ({"augmentations": 65}, "augmentations is 65; allowed: 1, 2, 4 or 8"),
        ({"combine": "max"}, "combine is 'max'; allowed: median or mean"),
        ({"tile": 100}, "tile size is 100; allowed: a multiple of 64"),
        ({"overlap": 2000}, r"tile overlap is 2000; allowed: 0\.\.1024"),
        (
            {"latent": torch.zeros(1, 4, 4, 4)},
            "128x64 pixels beside a latent of 4x4; allowed: 32x32 pixels.*leave the latent away",
        ),
        (
            {"latent": torch.zeros(1, 16, 8, 16)},
            r"latent's shape is \[1, 16, 8, 16\]; allowed: \[batch, 4, height, width\]",
        ),
        ({"latent": torch.zeros(2, 4, 8, 16)}, "latent's batch is 2; allowed: 1 or 3"),
    ],
)
def test_bad_input_is_named_before_the_network_runs(options, message):
    echo, (pixels, latent) = Echo(), asymmetric(batch=3)
    with pytest.raises(LayeredError, match=message):
        decode(echo, pixels, options.pop("latent", latent), **options)
    assert not echo.seen


def test_memory_is_counted_from_the_tile_and_an_error_says_how_much_is_needed():
    decoder = TransparentDecoder((8, 8, 8, 8, 8, 8, 8))
    small, _ = bytes_needed(decoder, 512, 512, tile=2048, augmentations=8)
    large, result = bytes_needed(decoder, 16384, 16384, tile=2048, augmentations=8)
    assert 15.9 * small < large < 16 * small
    assert result == 16384**2 * 16
    check_memory("decode", 2**30, 2**30, "memory", "")
    with pytest.raises(
        LayeredError, match=r"needs 4\.0 GiB of memory, and 1\.0 GiB are free\. Take smaller tiles"
    ):
        check_memory("decode", 2**32, 2**30, "memory", "Take smaller tiles")


def peak_bytes(work) -> int:
    """Return the greatest number of bytes that torch has allocated at once while ``work`` runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    "widths", [(16, 24, 32, 48, 64, 64, 64), (16, 16, 32, 64, 128, 128, 128), (8, 8, 8, 8, 16, 16, 16)]
)
@pytest.mark.parametrize(
    ("side", "augmentations", "dtype"),
    [
        (256, 1, torch.float32),
        (320, 2, torch.float32),
        pytest.param(
            256, 1, torch.bfloat16,
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                reason="this processor computes bfloat16 convolutions in float32, with more memory",
            ),
        ),
    ],
)  # fmt: skip
def test_a_decode_takes_the_memory_that_was_counted_and_little_less(widths, side, augmentations, dtype):
    decoder, (pixels, latent) = random_decoder(widths).to(dtype), asymmetric(side, side)
    needed, result = bytes_needed(decoder, side, side, tile=2048, augmentations=augmentations)
    taken = peak_bytes(lambda: decode(decoder, pixels, latent, augmentations=augmentations))
    assert 0.55 * needed < taken - result < 1.03 * needed


@pytest.mark.parametrize("pictures_that_fit", [1, 2, 3])
def test_the_batch_that_is_chosen_for_a_budget_keeps_to_it_and_one_more_would_not_be_far_off(
    pictures_that_fit,
):
    decoder, (pixels, latent) = random_decoder((16, 24, 32, 48, 64, 64, 64)), asymmetric(128, 192, batch=4)
    needed, result = bytes_needed(decoder, 128, 192, tile=2048, augmentations=1)
    budget = int((pictures_that_fit + 0.2) * needed / 0.8)
    batch = pictures_at_once(needed, budget, 4)
    assert batch == pictures_that_fit
    taken = peak_bytes(lambda: decode(decoder, pixels, latent, augmentations=1, batch=batch)) - 4 * result
    assert 0.4 * budget < taken < budget


def test_no_budget_is_too_small_for_one_picture_and_none_asks_for_more_than_there_are():
    assert pictures_at_once(100, 10, 5) == 1
    assert pictures_at_once(100, 10**6, 5) == 5
