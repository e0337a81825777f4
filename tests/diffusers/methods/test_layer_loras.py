"""LoRAs of layers on diffusers UNets: exact where a layer covers everything, and nowhere but in their layers."""

import copy
import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from demo.world.places import LORAS
from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument, Lora, Recipe
from layered_core.errors import LayeredError
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.methods.regional_attention import RegionalPrompts
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method

RANK = 2
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
CHANGED = (
    f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn1.to_out.0", f"{ATTENTION}.attn2.to_k", f"{ATTENTION}.attn2.to_v",
    f"{ATTENTION}.ff.net.2", "down_blocks.0.attentions.0.proj_in", "up_blocks.1.resnets.0.conv1",
    "down_blocks.1.downsamplers.0.conv", "mid_block.resnets.0.time_emb_proj", "up_blocks.2.resnets.1.conv_shortcut",
)  # fmt: skip
"""Layers of every kind: projections of the picture and of words, convolutions of all sizes and strides, and one
without a place."""
SPOKEN = ("encoder.layers.1.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
"""Layers of the text encoder."""


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def matrices(part, names, seed=0):
    """Return random low-rank pairs that change a picture visibly, by the layers' names: (down, up)."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        weight = part.get_submodule(name).weight
        down = torch.randn(RANK, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator)
        scale = 0.5 * weight.std() / RANK**0.5
        found[name] = (down * scale.item() ** 0.5, up * scale.item() ** 0.5)
    return found


def kohya(pairs, alpha=1.0, prefix="lora_unet"):
    """Return pairs by the names of kohya's scripts."""
    tensors = {}
    for name, (down, up) in pairs.items():
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(alpha),
        }
    return tensors


def peft(pairs, prefix="unet."):
    """Return pairs by the names of peft, which has no alphas beside them."""
    return {
        f"{prefix}{name}.lora_{side}.weight": x.contiguous()
        for name, pair in pairs.items()
        for side, x in zip("AB", pair, strict=True)
    }


def halves(*loras, right=(), prompt="a red ball", **more):
    """Return a ball on the left with LoRAs, and a star on the right with others."""
    layers = (
        Layer("ball", width=64, height=128, prompt=prompt, recipe=Recipe(loras=loras)),
        Layer("star", x=64, width=64, height=128, prompt="a blue star", recipe=Recipe(loras=tuple(right))),
    )
    return LayerDocument(128, 128, layers, prompt="a red ball and a blue star in a meadow", **more)


def whole(*loras, prompt="a red ball in a meadow"):
    layer = Layer("all", width=128, height=128, prompt=prompt, recipe=Recipe(loras=loras))
    return LayerDocument(128, 128, (layer,), prompt=prompt)


def sampled(pipeline, document, folder=None, steps=3, methods=(), settings=None, seeds=(0,)):
    documents = document if isinstance(document, list) else [document]
    method = RegionalPrompts(pipeline.model, documents, settings, adapters=folder)
    prompts = method.prompts * (len(seeds) // len(method.prompts))
    return pipeline.generate(prompts, seeds=list(seeds), steps=steps, methods=[method, *methods])


def merged(pipeline, pairs, scale):
    """Return a pipeline whose UNet's own weights have the LoRA added."""
    other = copy.copy(pipeline)
    other.model = copy.copy(pipeline.model)
    unet = copy.deepcopy(pipeline.model.unet)
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            weight = unet.get_submodule(name).weight
            weight += scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    other.model.register_modules(unet=unet)
    return other


@pytest.fixture
def folder(pipeline, tmp_path):
    pairs = matrices(pipeline.model.unet, CHANGED)
    save_file(kohya(pairs), tmp_path / "look.safetensors")
    save_file(kohya(matrices(pipeline.model.unet, CHANGED, seed=1)), tmp_path / "other.safetensors")
    return tmp_path


def test_a_layer_that_covers_all_gets_its_lora_as_if_the_weights_had_it(pipeline, folder):
    pairs = matrices(pipeline.model.unet, CHANGED)
    ours = sampled(pipeline, whole(Lora("look", 0.8)), folder)
    right = sampled(merged(pipeline, pairs, 0.8 / RANK), whole())
    assert (ours - sampled(pipeline, whole())).abs().max() > 0.05
    torch.testing.assert_close(ours, right, atol=1e-4, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("form", ["kohya", "peft", "diffusers"])
def test_a_layer_that_covers_all_gets_its_lora_as_diffusers_loads_it(pipeline, tmp_path, form):
    pairs = matrices(pipeline.model.unet, CHANGED)
    if form == "diffusers":  # with alphas, in the file's metadata
        wrote = {"unet.r": RANK, "unet.lora_alpha": 1, "unet.target_modules": [*CHANGED]}
        save_file(peft(pairs), tmp_path / "look.safetensors", {"lora_adapter_metadata": json.dumps(wrote)})
    else:
        save_file({"kohya": kohya, "peft": peft}[form](pairs), tmp_path / "look.safetensors")
    ours = sampled(pipeline, whole(Lora("look", 0.5)), tmp_path)
    pipeline.model.load_lora_weights(tmp_path, weight_name="look.safetensors", adapter_name="look")
    pipeline.model.set_adapters(["look"], [0.5])
    try:
        theirs = sampled(pipeline, whole())
    finally:
        pipeline.model.unload_lora_weights()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_layer_that_nobody_sees_and_strength_zero_change_no_bit(pipeline, folder):
    plain = sampled(pipeline, halves())
    assert torch.equal(sampled(pipeline, halves(Lora("look", 0.0)), folder), plain)
    hidden = Layer("hidden", width=128, height=128, visible=False, recipe=Recipe(loras=(Lora("look"),)))
    covered = Layer("under", width=64, height=128, recipe=Recipe(loras=(Lora("look"),)))
    document = halves()
    for more in ((*document.layers, hidden), (covered, *document.layers)):
        assert torch.equal(sampled(pipeline, replace(document, layers=more), folder), plain)
    neutral = Settings(strength=0)
    assert torch.equal(
        sampled(pipeline, halves(Lora("look")), folder, settings=neutral),
        sampled(pipeline, halves(), settings=neutral),
    )


def test_outside_its_layer_a_changed_module_gives_the_same_bits(pipeline, tmp_path):
    """The first module that is changed: all others get what it has changed, through attention and norms."""
    name = "down_blocks.0.attentions.0.proj_in"
    save_file(kohya(matrices(pipeline.model.unet, [name])), tmp_path / "look.safetensors")
    given = []
    for document in (halves(), halves(Lora("look"))):
        method = RegionalPrompts(pipeline.model, [document], adapters=tmp_path)

        class Watch(Method):
            def before_step(self, run, index):
                module = run.unet.get_submodule(name)
                own = module.forward
                module.forward = lambda x: given.append(own(x)) or given[-1]

        forward = dict(vars(pipeline.model.unet.get_submodule(name)))
        try:
            pipeline.generate(method.prompts, seeds=[0], steps=1, methods=[method, Watch()])
        finally:
            vars(pipeline.model.unet.get_submodule(name)).pop("forward", None)
            assert "forward" not in forward
    plain, changed = given
    assert torch.equal(changed[..., 8:], plain[..., 8:])
    assert bool((changed[..., :8] != plain[..., :8]).all())


def test_two_loras_of_a_layer_add_up_and_one_lora_twice_counts_twice(pipeline, folder):
    unet = pipeline.model.unet
    both = sampled(pipeline, whole(Lora("look"), Lora("other", -0.5)), folder)
    first = merged(pipeline, matrices(unet, CHANGED), 1 / RANK)
    right = sampled(merged(first, matrices(unet, CHANGED, seed=1), -0.5 / RANK), whole())
    torch.testing.assert_close(both, right, atol=1e-4, rtol=0)
    twice = sampled(pipeline, halves(Lora("look", 0.5), Lora("look", 0.5)), folder)
    torch.testing.assert_close(twice, sampled(pipeline, halves(Lora("look", 1.0)), folder), atol=1e-4, rtol=0)


def test_one_lora_on_two_layers_that_fill_the_canvas_is_read_once(pipeline, folder, monkeypatch):
    from layered_diffusers.methods import layer_loras

    read = []
    own = layer_loras.read_lora
    monkeypatch.setattr(layer_loras, "read_lora", lambda *given: read.append(given[1].name) or own(*given))
    sampled(pipeline, halves(Lora("look"), right=[Lora("look", 0.5)]), folder, steps=1)
    assert read == ["look.safetensors"]


def test_twenty_loras_of_a_layer_add_up(pipeline, folder):
    many = sampled(pipeline, halves(*[Lora("look", 0.05)] * 20), folder)
    torch.testing.assert_close(many, sampled(pipeline, halves(Lora("look")), folder), atol=1e-4, rtol=0)


def test_the_model_is_as_before_also_after_an_error_in_step_three(pipeline, folder):
    class Broken(Method):
        def after_step(self, run, index):
            if index == 2:
                raise RuntimeError("broken on purpose")

    forwards = {name for name, m in pipeline.model.unet.named_modules() if "forward" in vars(m)}
    weights = {name: p.clone() for name, p in pipeline.model.unet.state_dict().items()}
    before = sampled(pipeline, halves())
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sampled(pipeline, halves(Lora("look")), folder, steps=4, methods=[Broken()])
    assert {name for name, m in pipeline.model.unet.named_modules() if "forward" in vars(m)} == forwards
    assert all(torch.equal(p, weights[name]) for name, p in pipeline.model.unet.state_dict().items())
    assert torch.equal(sampled(pipeline, halves()), before)


def test_pictures_of_a_batch_have_loras_of_their_own(pipeline, folder):
    documents = [halves(Lora("look")), halves(right=[Lora("other")])]
    together = sampled(pipeline, documents, folder, seeds=(3, 4))
    for i, document in enumerate(documents):
        alone = sampled(pipeline, document, folder, seeds=(3 + i,))
        torch.testing.assert_close(alone[0], together[i], atol=2e-4, rtol=0)


def test_the_text_encoders_half_changes_the_layers_own_words_alone(pipeline, tmp_path):
    encoder = pipeline.model.text_encoder
    inner = getattr(encoder, "text_model", encoder)
    pairs = matrices(inner, SPOKEN)
    save_file(kohya(pairs, prefix="lora_te_text_model"), tmp_path / "spoken.safetensors")
    method = RegionalPrompts(pipeline.model, [halves(Lora("spoken"), prompt="a ball")], adapters=tmp_path)
    from layered_diffusers.models.text import encode

    (plain,), _ = encode(pipeline.model, ["a ball"])
    with method.loras.encoding(0, "ball"):
        (spoken,), _ = encode(pipeline.model, ["a ball"])
    with method.loras.encoding(0, "star"):
        (other,), _ = encode(pipeline.model, ["a ball"])
    assert torch.equal(other, plain)
    assert torch.equal(encode(pipeline.model, ["a ball"])[0][0], plain)
    other_encoder = copy.deepcopy(inner)
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            other_encoder.get_submodule(name).weight += (up @ down) / RANK
    ids = torch.tensor([pipeline.model.tokenizer("a ball", padding="max_length").input_ids])
    torch.testing.assert_close(spoken, other_encoder(ids)[0][0], atol=1e-4, rtol=0)
    changed = sampled(pipeline, halves(Lora("spoken")), tmp_path)
    assert (changed - sampled(pipeline, halves())).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (
            {"lora_unet_down_blocks_9_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 4),
             "lora_unet_down_blocks_9_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 2)},
            r"layer 'ball': LoRA 'bad.safetensors' does not fit StableDiffusion: none of its 1 layers is in the model",
        ),
        (
            {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 320, 1, 1),
             "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": torch.zeros(320, 2, 1, 1)},
            r"layer 'ball': LoRA 'bad.safetensors' does not fit StableDiffusion: its layer .* takes 320 numbers",
        ),
        ({"weight": torch.zeros(2)}, r"layer 'ball': file 'bad.safetensors' is no LoRA"),
        ({"lora_unet_mid_block.hada_w1_a": torch.zeros(2, 2)}, r"layer 'ball': LoRA 'bad.* is of the kind LoHa"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named_before_anything_is_sampled(pipeline, tmp_path, tensors, text):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(LayeredError, match=text):
        RegionalPrompts(pipeline.model, [halves(Lora("bad"))], adapters=tmp_path)


def test_a_missing_file_and_a_missing_folder_are_named_with_the_layer(pipeline, tmp_path):
    with pytest.raises(LayeredError, match=r"layer 'ball': LoRA or embedding is 'gone'; allowed"):
        RegionalPrompts(pipeline.model, [halves(Lora("gone"))], adapters=tmp_path)
    with pytest.raises(
        LayeredError, match=r"layer 'ball': LoRA or embedding 'gone' was not found, because no folder"
    ):
        RegionalPrompts(pipeline.model, [halves(Lora("gone"))])
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(LayeredError, match=r"layer 'ball': LoRA 'broken.safetensors' cannot be read"):
        RegionalPrompts(pipeline.model, [halves(Lora("broken"))], adapters=tmp_path)


def test_render_lets_loras_act_in_their_layers(pipeline, folder):
    plain = pipeline.render(halves(), steps=3)
    with pytest.raises(LayeredError, match="no folder of LoRAs"):
        pipeline.render(halves(Lora("look")), steps=3)
    assert pipeline.render(halves(Lora("look")), steps=3, adapters=folder) != plain
    assert pipeline.render(halves(Lora("look", 0.0)), steps=3, adapters=folder) == plain


def rendered(pipeline, document, folder=None, then=False, **settings):
    """Sample by layered rendering."""
    following = RegionalPrompts(pipeline.model, [document], adapters=folder) if then else None
    settings = {"share": 1.0, "strength": 0.0, **settings}
    method = pipeline.layered_rendering([document], Rendering(**settings), then=following, adapters=folder)
    return pipeline.generate(method.prompts, seeds=[0], steps=3, methods=[method])


def test_in_layered_rendering_a_layers_loras_act_on_all_of_its_own_pass(pipeline, folder):
    def document(*loras):
        recipe = Recipe(loras=loras)
        back = Layer("back", width=128, height=128, prompt="a meadow", recipe=recipe)
        ball = Layer("ball", width=64, height=128, prompt="a red ball", recipe=recipe)
        return LayerDocument(128, 128, (back, ball), prompt="a red ball in a meadow")

    right = rendered(merged(pipeline, matrices(pipeline.model.unet, CHANGED), 0.8 / RANK), document())
    torch.testing.assert_close(
        rendered(pipeline, document(Lora("look", 0.8)), folder), right, atol=1e-4, rtol=0
    )
    assert not torch.equal(right, rendered(pipeline, document()))


@pytest.mark.parametrize("then", [False, True])
def test_after_the_share_of_layered_rendering_loras_act_by_place_once(pipeline, folder, then):
    late = rendered(pipeline, halves(Lora("look")), folder, then, share=0.0)
    whole_run = rendered(pipeline, halves(Lora("look")), folder, then, share=0.5)
    assert not torch.equal(late, whole_run)
    assert torch.equal(late, rendered(pipeline, halves(), None, then, share=0.0)) is not then
    assert not [n for n, m in pipeline.model.unet.named_modules() if "forward" in vars(m)]


def test_the_shipped_lora_paints_its_own_layer_pink_and_not_its_neighbour(pipeline):
    def pink(picture):
        red, green, blue = picture[0]
        return ((red > 0.6) & (red - green > 0.15) & (blue - green > 0.08) & (red - blue > 0.04)).float()

    settings = Settings(guidance=6.0, growth=0.03)
    plain, painted = (
        pink(sampled(pipeline, halves(*loras), LORAS, steps=8, settings=settings))
        for loras in ((), (Lora("pink"),))
    )
    assert float(plain.mean()) < 0.005
    assert float(painted[:, :64].mean()) > 0.03
    assert float(painted[:, 64:].mean()) < 0.1 * float(painted[:, :64].mean())
