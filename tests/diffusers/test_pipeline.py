"""The pipeline on the shipped model: real weights, few steps."""

import numpy as np
import pytest
import torch
from PIL import Image

from demo.world.scenes import random_scene
from layered_core.canvas.compositing import flat
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_diffusers.models.loading import SAMPLERS
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def picture(seed=0, size=128):
    return Image.fromarray(random_scene(seed, count=1, size=size).picture())


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_picture(pipeline):
    a, b, c = (np.asarray(pipeline.generate_layer("a red ball", seed=s, steps=3)) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_a_picture_does_not_depend_on_its_batch(pipeline, sampler):
    if sampler is not None:
        pipeline = LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler=sampler)
    alone = pipeline.generate(["a red ball"], seeds=[7], steps=3)[0]
    for prompts, seeds in (
        (["a blue star", "a red ball"], [3, 7]),
        (["a red ball", "a red ball", "a house"], [7, 8, 9]),
    ):
        among = pipeline.generate(prompts, seeds=seeds, steps=3)[seeds.index(7)]
        torch.testing.assert_close(alone, among, atol=5e-4, rtol=0)


def test_an_unknown_sampler_is_named_with_those_there_are():
    with pytest.raises(
        LayeredError, match="sampler is 'euler_a'; allowed: ddim, euler, euler_ancestral, dpmpp_2m"
    ):
        LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler="euler_a")


def test_words_and_negative_words_change_the_picture(pipeline):
    red, blue = pipeline.generate(["a red ball", "a blue ball"], seeds=[1, 1], steps=3)
    assert float((red - blue).abs().mean()) > 0.005
    without = pipeline.generate(["a red ball"], negative="a red ball", seeds=[1], steps=3)[0]
    assert float((red - without).abs().mean()) > 0.005


def test_guidance_one_is_the_conditional_prediction_alone(pipeline):
    a = pipeline.generate(["a red ball"], negative="a blue star", guidance=1, steps=2)
    b = pipeline.generate(["a red ball"], negative="at night", guidance=1, steps=2)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(128, 128), (160, 96), (101, 67), (8, 8)])
def test_any_size_comes_out_as_asked(pipeline, size):
    assert pipeline.generate_layer("a meadow with hills", width=size[0], height=size[1], steps=1).size == size


def test_strength_zero_is_the_picture_through_the_vae(pipeline):
    start = torch.from_numpy(np.asarray(picture(), np.float32) / 255).permute(2, 0, 1)[None]
    out = pipeline.generate(["a red ball"], start=start, strength=0, steps=4)
    assert torch.equal(out, pipeline.decode(pipeline.encode(start)))
    assert float(-10 * torch.log10((out - start).square().mean())) > 28


def test_more_strength_departs_further_from_the_picture(pipeline):
    start = torch.from_numpy(np.asarray(picture(), np.float32) / 255).permute(2, 0, 1)[None]
    errors = [
        float((pipeline.generate(["at night"], start=start, strength=s, steps=10) - start).square().mean())
        for s in (0.1, 0.5, 1.0)
    ]
    assert errors == sorted(errors)
    assert errors[2] > 4 * errors[0]


def test_full_strength_forgets_the_picture_to_the_bit(pipeline):
    start = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        pipeline.generate(["at night"], start=start, strength=1, steps=2),
        pipeline.generate(["at night"], steps=2),
    )


def test_a_documents_start_is_the_cores_own_as_in_comfyui(pipeline):
    pixels = torch.rand(20, 30, 4, generator=torch.Generator().manual_seed(2))
    layers = (Layer("a", pixels, x=4, y=3), Layer("b", pixels, x=9, blend_mode="multiply", opacity=0.6))
    document = LayerDocument(40, 24, layers)
    assert torch.equal(pipeline.flat(document)[0], flat(document))


def test_add_layer_leaves_every_pixel_outside_its_mask_alone(pipeline):
    before = picture(3)
    mask = Image.new("L", (128, 128))
    mask.paste(255, (30, 40, 90, 100))
    after = np.asarray(pipeline.add_layer(before, "a red ball", mask, steps=4))
    outside = np.asarray(mask) == 0
    assert np.array_equal(after[outside], np.asarray(before)[outside])
    assert np.abs(after[~outside].astype(int) - np.asarray(before)[~outside]).mean() > 3


def test_add_layer_takes_any_picture_size_and_soft_masks(pipeline):
    before = picture(3).resize((101, 67))
    mask = torch.zeros(67, 101)
    mask[20:50, 30:80] = 0.5
    after = pipeline.add_layer(before, "a red ball", mask, steps=2)
    assert after.size == (101, 67)
    assert np.array_equal(np.asarray(after)[mask == 0], np.asarray(before)[mask == 0])


def test_add_layer_without_mask_redraws_from_the_picture(pipeline):
    assert pipeline.add_layer(picture(3), "a red ball", steps=2).size == (128, 128)


def test_a_mask_of_another_size_is_refused(pipeline):
    with pytest.raises(LayeredError, match="mask size is '64x64'; allowed: the picture's, 128x128"):
        pipeline.add_layer(picture(), "a red ball", Image.new("L", (64, 64)))


@pytest.mark.parametrize("value", [float("nan"), 255.0, -0.5])
def test_mask_values_that_are_not_zero_to_one_are_refused(pipeline, value):
    with pytest.raises(LayeredError, match="mask values is .*; allowed: 0..1"):
        pipeline.add_layer(picture(), "a red ball", torch.full((128, 128), value))


def test_rendering_follows_the_document(pipeline):
    scene = random_scene(11, count=2)
    near = np.asarray(pipeline.render(scene.document(), strength=0.2, steps=10), int)
    assert near.shape == (128, 128, 3)
    assert np.abs(near - scene.picture()).mean() < 12


def test_a_document_of_boxes_and_words_renders(pipeline):
    document = LayerDocument(96, 64, (Layer("ball", x=10, y=10, width=30, height=30, prompt="a red ball"),))
    assert pipeline.render(document, strength=1, steps=1).size == (96, 64)


def test_progress_is_told_step_by_step_and_may_stop_the_run(pipeline):
    told = []
    pipeline.generate(["a red ball"], steps=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(["a red ball"], steps=3, progress=stop)


def test_a_method_is_undone_even_when_sampling_fails(pipeline):
    undone = []

    class Broken(Method):
        def start(self, run, stack):
            stack.callback(undone.append, True)

        def after_step(self, run, index):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        pipeline.generate(["a red ball"], steps=2, methods=[Broken()])
    assert undone == [True]


def test_an_idle_method_changes_no_bit(pipeline):
    assert torch.equal(
        pipeline.generate(["a red ball"], steps=2),
        pipeline.generate(["a red ball"], steps=2, methods=[Method()]),
    )


def test_sampling_leaves_the_model_as_it_was(pipeline):
    before = {k: v.clone() for k, v in pipeline.model.unet.state_dict().items()}
    steps = pipeline.model.scheduler.timesteps.clone()
    pipeline.generate(["a red ball"], steps=2)
    assert all(torch.equal(v, before[k]) for k, v in pipeline.model.unet.state_dict().items())
    assert torch.equal(pipeline.model.scheduler.timesteps, steps)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps is 0; allowed: a whole number 1..1000"),
        ({"steps": 2.5}, "steps is 2.5; allowed: a whole number"),
        ({"guidance": -1}, "guidance is -1; allowed: a number 0..50"),
        ({"strength": 1.5}, "strength is 1.5; allowed: a number 0..1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"seeds": [1, 2]}, "one for each prompt, that is 1"),
        ({"width": 0}, "width is 0"),
        ({"height": 100_000}, "height is 100000"),
    ],
)
def test_bad_options_are_named_before_sampling(pipeline, options, says):
    with pytest.raises(LayeredError) as caught:
        pipeline.generate(["a red ball"], **options)
    assert says in str(caught.value)


def test_no_prompt_is_refused(pipeline):
    with pytest.raises(LayeredError, match="at least one"):
        pipeline.generate([])


@pytest.mark.parametrize("prompt", ["", "word " * 2000, "((unbalanced [", "日本語 🎈"])
def test_odd_prompts_are_read_whole_75_tokens_at_a_time(pipeline, prompt):
    class Look(Method):
        def start(self, run, stack):
            seen.append(run.context)

    seen, tokenizer = [], pipeline.model.tokenizer
    made = pipeline.generate([prompt], steps=1, methods=[Look()])
    ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    chunks = [ids[i : i + 75] for i in range(0, len(ids), 75)] or [[]]
    with torch.no_grad():
        wanted = [
            pipeline.model.text_encoder(
                torch.tensor([[tokenizer.bos_token_id, *x, *[tokenizer.eos_token_id] * (76 - len(x))]])
            )[0][0]
            for x in chunks
        ]
    torch.testing.assert_close(seen[0][1], torch.cat(wanted))
    assert 0 <= float(made.min()) < float(made.max()) <= 1
