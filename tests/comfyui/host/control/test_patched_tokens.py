"""What Masked Model Patch does to each token of a transformer: in the mask, outside it, in padding, references,
frames and layers."""

import pytest
import torch
from patch_scene import (
    anima,
    diffsynth,
    layers_of,
    left_half,
    lens,
    lllite,
    lumina2,
    mage_flow,
    mask_of,
    qwen,
    uni3c,
    wan,
    written,
    z_image,
)


class Look:
    """A patch that keeps a copy of the image tokens of the first call."""

    def __init__(self):
        self.tokens = None

    def __call__(self, arguments):
        if self.tokens is None:
            self.tokens = arguments["img"].clone()
        return arguments


def looked_at(scene, control, weigh=None, places=("double_block", "noise_refiner"), **values):
    """Return the image tokens before and after the first call of a control, weighed by ``weigh``; ``values``:
    of the node and, as ``positive``, of the sampler."""
    positive = values.pop("positive", None)
    before, after = Look(), Look()
    base = scene.model.clone()
    for place in places:
        base.set_model_patch(before, place)
    model = control(scene, base)
    if weigh is not None:
        model = weigh(model, base, **values)
    for place in places:
        model.set_model_patch(after, place)
    scene.sampled(model, steps=1, positive=positive, negative=positive)
    return before.tokens, after.tokens


@pytest.mark.parametrize("control", [diffsynth, written])
@pytest.mark.parametrize("cells", [(8, 12), (7, 11), (15, 6)])
def test_tokens_in_the_mask_change_as_plainly_and_others_keep_their_bits(host, weigh, control, cells):
    scene = qwen((1, 16, 1, *cells))
    mask = mask_of(scene, 0.0)
    mask[:, :32, 16:48] = 1  # rows 0 and 1, columns 1 and 2 of the tokens
    plain_before, plain = looked_at(scene, control)
    before, after = looked_at(scene, control, weigh, mask=mask)
    assert torch.equal(before, plain_before)
    assert not torch.equal(plain, before)
    inside = torch.zeros(-(-cells[0] // 2), -(-cells[1] // 2), dtype=torch.bool)
    inside[:2, 1:3] = True
    inside = inside.flatten()
    assert torch.equal(after[:, inside], plain[:, inside])
    assert torch.equal(after[:, ~inside], before[:, ~inside])


@pytest.mark.parametrize("make", [z_image, lumina2])
def test_z_images_padding_has_the_mean_of_the_mask(host, weigh, make):
    scene = make((1, 16, 7, 11))  # 24 tokens, which Z-Image pads to 32
    plain_before, plain = looked_at(scene, written)
    before, after = looked_at(scene, written, weigh, mask=torch.ones(1, 56, 88) * 0.25)
    mask = torch.zeros(1, 56, 88)
    mask[:, :16] = 1
    _, halved = looked_at(scene, written, weigh, mask=mask)
    assert before.shape[1] == (32 if make is z_image else 24)
    torch.testing.assert_close(after, before + 0.25 * (plain - before))
    assert torch.equal(halved[:, :6], plain[:, :6])
    assert torch.equal(halved[:, 6:24], before[:, 6:24])
    torch.testing.assert_close(halved[:, 24:], before[:, 24:] + 0.25 * (plain - plain_before)[:, 24:])


def test_a_videos_frames_have_the_mask_each(host, weigh):
    scene = wan()
    mask = left_half(scene)
    _, plain = looked_at(scene, uni3c)
    before, after = looked_at(scene, uni3c, weigh, mask=mask)
    frames = [x.unflatten(1, (3, 4, 6)) for x in (before, after, plain)]
    assert torch.equal(frames[1][..., :3, :], frames[2][..., :3, :])
    assert torch.equal(frames[1][..., 3:, :], frames[0][..., 3:, :])
    assert not torch.equal(frames[1][:, 2], frames[0][:, 2])


def test_the_pictures_of_a_layered_latent_have_the_mask_each(host, weigh):
    scene = qwen((1, 16, 4, 8, 12))
    _, plain = looked_at(scene, written)
    before, after = looked_at(scene, written, weigh, mask=left_half(scene))
    slots = [x.unflatten(1, (4, 4, 6)) for x in (before, after, plain)]
    assert torch.equal(slots[1][..., :3, :], slots[2][..., :3, :])
    assert torch.equal(slots[1][..., 3:, :], slots[0][..., 3:, :])


def test_qwens_reference_pictures_have_the_mean_of_the_mask(host, weigh):
    scene = qwen()
    # Four times the picture's tokens: the references' must not be taken for the picture's.
    references = [torch.randn(1, 16, 1, 16, 12), torch.randn(1, 16, 1, 8, 12)]
    positive = [[words, {**options, "reference_latents": references}] for words, options in scene.positive]
    own = 4 * 6
    mask = left_half(scene)
    for control, changed in ((diffsynth, False), (written, True)):
        _, plain = looked_at(scene, control, positive=positive)
        before, after = looked_at(scene, control, weigh, mask=mask, positive=positive)
        assert before.shape[1] == 4 * own
        rows = [x[:, :own].unflatten(1, (4, 6)) for x in (before, after, plain)]
        assert torch.equal(rows[1][..., :3, :], rows[2][..., :3, :])
        assert torch.equal(rows[1][..., 3:, :], rows[0][..., 3:, :])
        assert torch.equal(before[:, own:], plain[:, own:]) != changed
        wanted = before[:, own:] + 0.5 * (plain - before)[:, own:]
        torch.testing.assert_close(after[:, own:], wanted)


@pytest.mark.parametrize("make", [lens, mage_flow])
def test_a_token_may_stand_for_one_cell(host, weigh, make):
    scene = make()
    _, plain = looked_at(scene, written)
    before, after = looked_at(scene, written, weigh, mask=left_half(scene))
    rows = [x.unflatten(1, (8, 12)) for x in (before, after, plain)]
    assert torch.equal(rows[1][..., :6, :], rows[2][..., :6, :])
    assert torch.equal(rows[1][..., 6:, :], rows[0][..., 6:, :])


def test_z_images_reference_pictures_stand_before_the_picture(host, weigh):
    scene = z_image()
    # With its padding, as many tokens as the latent has cells.
    references = [torch.randn(1, 16, 8, 12), torch.randn(1, 16, 6, 6)]
    positive = [[words, {**options, "reference_latents": references}] for words, options in scene.positive]
    _, plain = looked_at(scene, written, positive=positive)
    before, after = looked_at(scene, written, weigh, mask=left_half(scene), positive=positive)
    assert before.shape[1] == 3 * 32
    rows = [x[:, 64:88].unflatten(1, (4, 6)) for x in (before, after, plain)]
    assert torch.equal(rows[1][..., :3, :], rows[2][..., :3, :])
    assert torch.equal(rows[1][..., 3:, :], rows[0][..., 3:, :])
    torch.testing.assert_close(after[:, :64], before[:, :64] + 0.5 * (plain - before)[:, :64])


@pytest.mark.parametrize("cells", [(8, 12), (7, 11)])
def test_anima_lllite_changes_queries_keys_and_features_inside_the_mask_alone(host, weigh, cells):
    scene = anima((1, 16, 1, *cells))
    mask = mask_of(scene, 0.0)
    mask[..., :48] = 1
    caught = {}

    def attention(name):
        def look(q, k, v, pe=None, attn_mask=None, extra_options=None):
            if extra_options["block_index"] == 0:
                caught.setdefault(name, (q.clone(), k.clone(), v.clone()))
            return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}

        return look

    def features(name):
        def look(arguments):
            caught.setdefault(name, (arguments["x"].flatten(1, 3).clone(),))
            return arguments

        return look

    def run(apply):
        caught.clear()
        base = scene.model.clone()
        for place in ("attn1_patch", "attn2_patch", "mlp_patch"):
            base.set_model_patch((features if place == "mlp_patch" else attention)(f"{place} before"), place)
        model = apply(base)
        for place in ("attn1_patch", "attn2_patch", "mlp_patch"):
            model.set_model_patch((features if place == "mlp_patch" else attention)(f"{place} after"), place)
        scene.sampled(model, steps=1)
        return dict(caught)

    plain = run(lambda base: lllite(scene, base))
    masked = run(lambda base: weigh(lllite(scene, base), base, mask=mask))
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[:, :3] = True
    inside = inside.flatten()
    for place, indices in {"attn1_patch": (0, 1, 2), "attn2_patch": (0,), "mlp_patch": (0,)}.items():
        for i in indices:
            before, after = masked[f"{place} before"][i], masked[f"{place} after"][i]
            assert torch.equal(after[:, ~inside], before[:, ~inside]), place
            assert not torch.equal(after[:, inside], before[:, inside]), place
            if place == "attn1_patch":  # later inputs already differ
                assert torch.equal(after[:, inside], plain[f"{place} after"][i][:, inside])
    assert torch.equal(masked["attn2_patch after"][1], masked["attn2_patch before"][1]), "words were changed"


def test_every_layer_has_its_own_strength(host, pack, weigh):
    scene = qwen()
    layers = layers_of(pack, scene, ("canny", 0.5), ("none",), ("canny", 1.5))
    _, plain = looked_at(scene, diffsynth)
    before, after = looked_at(scene, diffsynth, weigh, layers=layers, strength=0.5)
    change = (after - before).unflatten(1, (4, 6))
    whole = (plain - before).unflatten(1, (4, 6))
    for columns, share in ((slice(0, 2), 0.25), (slice(2, 4), 0), (slice(4, 6), 0.75)):
        torch.testing.assert_close(change[:, :, columns], share * whole[:, :, columns], atol=1e-5, rtol=1e-4)
