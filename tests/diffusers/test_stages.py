"""Documents built layer by layer on the shipped model."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument, Lora, Recipe
from layered_core.errors import LayeredError
from layered_core.formats.pictures import from_image, to_image
from layered_core.painting.stages import into_place, stage_region, stage_seed
from layered_diffusers.pipeline import LayeredDiffusionPipeline

STEPS = 3


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def scene():
    return LayerDocument(
        128, 96,
        (
            Layer("sky", width=128, height=96, prompt="at night"),
            Layer("tree", x=4, y=20, width=56, height=70, prompt="a green tree"),
            Layer("house", x=64, y=30, width=60, height=60, prompt="a white house"),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(pipeline):
    return pipeline.generate_layers(scene(), seed=5, steps=STEPS)


def pixels(document, name):
    return document.layer(name).image


def test_every_layer_gets_a_picture_in_its_own_box_and_keeps_its_words(made):
    for before, after in zip(scene(), made, strict=True):
        assert after.image.shape == (before.height, before.width, 4)
        assert (after.x, after.y, after.width, after.height, after.prompt) == (
            before.x,
            before.y,
            before.width,
            before.height,
            before.prompt,
        )
    assert bool((pixels(made, "sky")[..., 3] == 1).all())
    assert 0 < float(pixels(made, "tree")[..., 3].mean()) < 1


def test_outside_its_box_a_stage_leaves_every_pixel(made):
    names = [x.name for x in made]
    for name in ("tree", "house"):
        index = names.index(name)
        before, after = (composite(replace(made, layers=made.layers[:n])) for n in (index, index + 1))
        layer = made.layer(name)
        box = torch.zeros(96, 128, dtype=torch.bool)
        box[int(layer.y) : int(layer.y) + layer.height, int(layer.x) : int(layer.x) + layer.width] = True
        assert torch.equal(before[~box], after[~box])
        assert not torch.equal(before[box], after[box])


def test_one_seed_makes_the_same_bits_and_another_does_not(pipeline, made):
    again = pipeline.generate_layers(scene(), seed=5, steps=STEPS)
    assert all(torch.equal(a.image, b.image) for a, b in zip(made, again, strict=True))
    other = pipeline.generate_layers(scene(), seed=6, steps=STEPS)
    assert not torch.equal(pixels(made, "sky"), pixels(other, "sky"))


def test_replacing_a_stage_leaves_the_others_to_the_bit(pipeline, made):
    other = pipeline.replace_layer(made, "tree", prompt="a red mushroom", seed=5, steps=STEPS)
    assert torch.equal(pixels(other, "sky"), pixels(made, "sky"))
    assert torch.equal(pixels(other, "house"), pixels(made, "house"))
    assert not torch.equal(pixels(other, "tree"), pixels(made, "tree"))
    assert other.layer("tree").prompt == "a red mushroom"


def test_replacing_a_stage_by_itself_gives_it_back_even_with_the_later_ones_run_again(pipeline, made):
    """The noise of a layer depends on the base seed and the layer's name alone."""
    for later in (False, True):
        again = pipeline.replace_layer(made, "tree", seed=5, steps=STEPS, later=later)
        assert all(torch.equal(a.image, b.image) for a, b in zip(made, again, strict=True)), later


def test_later_stages_see_the_new_one(pipeline, made):
    other = pipeline.replace_layer(made, "sky", prompt="a meadow with hills", seed=5, steps=STEPS, later=True)
    assert not torch.equal(pixels(other, "house"), pixels(made, "house"))


def test_a_new_stage_does_not_change_the_noise_of_the_others(pipeline, made):
    star = Layer("star", x=60, y=0, width=40, height=32, prompt="a yellow star")
    longer = pipeline.generate_layers(replace(scene(), layers=(*scene().layers, star)), seed=5, steps=STEPS)
    assert all(torch.equal(a.image, longer.layer(a.name).image) for a in made)


def test_a_recipes_own_seed_wins(pipeline, made):
    for seed, same in ((stage_seed(5, "tree"), True), (77, False)):
        tree = replace(scene().layer("tree"), recipe=Recipe(seed=seed))
        document = replace(scene(), layers=(made.layer("sky"), tree))
        other = pipeline.generate_layers(document, seed=6, steps=STEPS)
        assert torch.equal(pixels(other, "tree"), pixels(made, "tree")) == same


def test_a_layers_own_negative_words_come_before_those_for_all(pipeline, monkeypatch):
    asked, generate = [], pipeline.generate

    def note(prompts, **how):
        asked.append((*prompts, how["negative"]))
        return generate(prompts, **how)

    monkeypatch.setattr(pipeline, "generate", note)
    sky, tree, _ = scene()
    document = replace(scene(), layers=(replace(sky, negative="rust"), tree))
    pipeline.generate_layers(document, negative="dark", steps=1)
    assert asked == [("at night", "rust"), ("a green tree", "dark")]


@pytest.mark.parametrize("background", [(1.0, 0.5, 0.0), None])
def test_a_stage_is_painted_onto_the_background_or_grey_and_what_lies_on_it(
    pipeline, monkeypatch, background
):
    seen = []
    monkeypatch.setattr(
        pipeline, "repaint", lambda plan, prompt, **how: seen.append(plan.picture) or plan.picture
    )
    half = torch.ones(32, 16, 4)
    tree = Layer("tree", x=8, y=8, width=8, height=8, prompt="a green tree")
    pipeline.generate_layers(LayerDocument(32, 32, (Layer("wall", half), tree), background))
    wanted = torch.tensor(background or (150 / 255,) * 3)[:, None, None].expand(3, 32, 16)
    torch.testing.assert_close(seen[0][..., 16:], wanted)
    assert bool((seen[0][..., :16] == 1).all())


def test_the_mask_as_alpha_gives_back_the_painted_picture(pipeline):
    two = LayerDocument(128, 96, scene().layers[:2])
    matted, masked = (
        pipeline.generate_layers(two, seed=5, steps=STEPS, alpha=a) for a in ("difference", "mask")
    )
    assert float(pixels(masked, "tree")[..., 3].mean()) > float(pixels(matted, "tree")[..., 3].mean())
    assert float((composite(masked) - composite(matted)).abs().max()) < 0.1


@pytest.fixture(scope="module")
def transparent(pipeline):
    return pipeline.generate_layers(scene(), seed=5, steps=STEPS, alpha="transparent")


def test_a_transparent_stage_is_painted_alone_and_brought_to_its_place(pipeline, made, transparent):
    assert torch.equal(pixels(transparent, "sky"), pixels(made, "sky")), "what lies at the back is opaque"
    tree = transparent.layer("tree")
    alone = pipeline.generate_transparent(["a green tree"], seeds=[stage_seed(5, "tree")], steps=STEPS)[
        0
    ].permute(1, 2, 0)
    assert torch.equal(
        tree.image, into_place(alone, stage_region(scene().layer("tree"), 128, 96))[20:90, 4:60]
    )
    before, after = (composite(replace(transparent, layers=transparent.layers[:n])) for n in (1, 2))
    box = torch.zeros(96, 128, dtype=torch.bool)
    box[20:90, 4:60] = True
    assert torch.equal(before[~box], after[~box])
    assert not torch.equal(before[box], after[box])


def test_a_transparent_stage_does_not_see_what_lies_behind_it(pipeline, transparent):
    other = pipeline.replace_layer(
        transparent, "sky", prompt="a meadow with hills", later=True, seed=5, steps=STEPS, alpha="transparent"
    )
    assert not torch.equal(pixels(other, "sky"), pixels(transparent, "sky"))
    assert torch.equal(pixels(other, "house"), pixels(transparent, "house"))


def test_something_transparent_can_be_added_to_a_picture(pipeline, made):
    before, mask = to_image(composite(made)[..., :3]), torch.zeros(96, 128)
    mask[10:60, 20:70] = 1
    after = pipeline.add_layer(before, "a red ball", mask, seed=4, steps=12, transparent=True)
    layer = pipeline.generate_transparent(["a red ball"], seeds=[4], steps=12)[0].permute(1, 2, 0)
    placed, old, new = into_place(layer, mask), from_image(before), from_image(after)
    assert torch.equal(old[mask == 0], new[mask == 0])
    wanted = placed[..., :3] * placed[..., 3:] + old[..., :3] * (1 - placed[..., 3:])
    torch.testing.assert_close(new[..., :3], wanted, atol=0.003, rtol=0)
    assert float((placed[..., 3] > 0.5).float().sum() / mask.sum()) > 0.4


def test_wrong_files_of_transparent_stages_are_told_before_anything_is_sampled(pipeline, made, monkeypatch):
    monkeypatch.setattr(LayeredDiffusionPipeline, "sample_latents", None)
    with pytest.raises(LayeredError, match="The file and the decoder belong together"):
        pipeline.generate_layers(scene(), alpha="transparent", file="a.safetensors")
    with pytest.raises(LayeredError, match="208 MB"):
        pipeline.add_layer(
            to_image(composite(made)),
            "a red ball",
            transparent=True,
            file="no.safetensors",
            decoder="vae_transparent_decoder.safetensors",
        )


def test_a_layer_of_the_whole_canvas_finds_its_own_place(pipeline, made):
    heart = Layer("heart", width=128, height=96, prompt="a red heart")
    told = []
    out = pipeline.generate_layers(
        replace(made, layers=(*made.layers, heart)), seed=1, steps=8, progress=lambda done,
        total: told.append((done, total))
    )  # fmt: skip
    alpha = pixels(out, "heart")[..., 3]
    assert 0.01 < float((alpha > 0.5).float().mean()) < 0.6
    assert told == [(i + 1, 11) for i in range(11)]  # 3 of the 4 steps of a draft, then 8


def test_hidden_layers_and_pictures_that_are_there_stay(pipeline, made):
    hidden = Layer("later", width=16, height=16, prompt="a red ball", visible=False)
    document = replace(made, layers=(*made.layers, hidden))
    out = pipeline.generate_layers(document, steps=1)
    assert out.layer("later").image is None
    assert all(a is b for a, b in zip(out, document, strict=True))


def test_replacing_leaves_hidden_layers_their_pictures(pipeline, made):
    hidden = Layer("other house", torch.rand(16, 16, 4), prompt="a white house", visible=False)
    document = replace(made, layers=(*made.layers, hidden))
    out = pipeline.replace_layer(document, "house", later=True, seed=6, steps=1)
    assert not torch.equal(pixels(out, "house"), pixels(made, "house"))
    assert out.layer("other house") is hidden
    with pytest.raises(LayeredError, match="layer 'other house': visible is False; allowed: True"):
        pipeline.replace_layer(document, "other house", seed=6, steps=1)


@pytest.mark.parametrize(
    ("layer", "options", "says"),
    [
        (
            Layer("ball", width=16, height=16),
            {},
            "layer 'ball': prompt is ''; allowed: words that say what the layer shows",
        ),
        (
            Layer("ball", x=500, width=16, height=16, prompt="a red ball"),
            {},
            "layer 'ball': place is 'x 500, y 0'",
        ),
        (Layer("ball", width=16, height=16, prompt="a red ball"), {"steps": 0}, "layer 'ball': steps is 0"),
        (
            Layer("ball", width=16, height=16, prompt="a red ball"),
            {"feather": -1},
            "layer 'ball': feather is -1",
        ),
        (
            Layer("ball", width=16, height=16, prompt="a red ball"),
            {"context": -1.0},
            "layer 'ball': context is -1.0",
        ),
        (Layer("ball", width=16, height=16, prompt="a red ball"), {"blend": "glue"}, "blend is 'glue'"),
        (Layer("ball", width=16, height=16, prompt="a red ball"), {"alpha": "magic"}, "alpha is 'magic'"),
        (
            Layer("ball", width=16, height=16, prompt="a red ball", recipe=Recipe(embedding="krk")),
            {},
            "layer 'ball': LoRA or embedding 'krk' was not found, because no folder of LoRAs and embeddings is given",
        ),
    ],
)
def test_bad_input_names_the_layer(pipeline, made, layer, options, says):
    with pytest.raises(LayeredError) as caught:
        pipeline.generate_layers(replace(made, layers=(*made.layers, layer)), **{"steps": 1, **options})
    assert says in str(caught.value)


def test_replacing_a_layer_that_is_not_there_says_which_are(pipeline, made):
    with pytest.raises(LayeredError, match="layer name is 'dog'; allowed: 'sky', 'tree', 'house'"):
        pipeline.replace_layer(made, "dog")


# --- adapters ---


def weights(pipeline):
    model = pipeline.model
    return {k: v.clone() for part in (model.unet, model.text_encoder) for k, v in part.state_dict().items()}


@pytest.mark.parametrize("vectors", [1, 3])
def test_an_embedding_acts_on_its_layer_alone_and_is_gone_afterwards(pipeline, made, tmp_path, vectors):
    width = pipeline.model.text_encoder.config.hidden_size
    save_file(
        {"emb_params": torch.randn(vectors, width, generator=torch.Generator().manual_seed(0))},
        tmp_path / "krk.safetensors",
    )
    before, vocabulary = weights(pipeline), dict(pipeline.model.tokenizer.get_added_vocab())
    layers = [replace(x, recipe=Recipe(embedding="krk")) if x.name == "tree" else x for x in scene()]
    out = pipeline.generate_layers(
        replace(scene(), layers=tuple(layers)), seed=5, steps=STEPS, adapters=tmp_path
    )
    assert torch.equal(pixels(out, "sky"), pixels(made, "sky"))
    assert not torch.equal(pixels(out, "tree"), pixels(made, "tree"))
    assert pipeline.model.tokenizer.get_added_vocab() == vocabulary
    after = weights(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_a_missing_adapter_is_told_with_those_that_are_there(pipeline, tmp_path):
    save_file({"emb_params": torch.zeros(1, 8)}, tmp_path / "other.safetensors")
    layer = Layer("ball", width=16, height=16, prompt="a red ball", recipe=Recipe(embedding="krk"))
    with pytest.raises(LayeredError, match="LoRA or embedding is 'krk'; allowed: .*other.safetensors"):
        pipeline.generate_layers(LayerDocument(16, 16, (layer,)), adapters=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_a_lora_acts_on_its_layer_alone_and_is_gone_afterwards(pipeline, made, transparent, tmp_path):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    random = torch.Generator().manual_seed(0)
    shape = pipeline.model.unet.get_submodule(name.removeprefix("unet.")).weight.shape
    up, down = torch.randn(shape[0], 4, generator=random), torch.randn(4, shape[1], generator=random)
    save_file({f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, tmp_path / "wild.safetensors")
    before = weights(pipeline)

    def tree(strength, **options):
        recipe = Recipe(loras=(Lora("wild.safetensors", strength),))
        layers = [replace(x, recipe=recipe) if x.name == "tree" else x for x in scene()]
        return pipeline.generate_layers(
            replace(scene(), layers=tuple(layers)), seed=5, steps=STEPS, adapters=tmp_path, **options
        )

    out = tree(1.0)
    assert torch.equal(pixels(out, "sky"), pixels(made, "sky"))
    assert not torch.equal(pixels(out, "tree"), pixels(made, "tree"))
    torch.testing.assert_close(pixels(tree(0.0), "tree"), pixels(made, "tree"), atol=1e-3, rtol=0)
    assert not torch.allclose(
        pixels(tree(1.0, alpha="transparent"), "tree"), pixels(transparent, "tree"), atol=0.01
    )
    torch.testing.assert_close(
        pixels(tree(0.0, alpha="transparent"), "tree"), pixels(transparent, "tree"), atol=1e-3, rtol=0
    )
    after = weights(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="peft is installed")
def test_without_peft_a_lora_says_what_to_install(pipeline, tmp_path):
    layer = Layer(
        "ball", width=16, height=16, prompt="a red ball", recipe=Recipe(loras=(Lora("a.safetensors"),))
    )
    with pytest.raises(
        LayeredError,
        match=r"layer 'ball': LoRAs need the package peft: pip install 'layered-diffusion\[lora\]'",
    ):
        pipeline.generate_layers(LayerDocument(16, 16, (layer,)), adapters=tmp_path)
