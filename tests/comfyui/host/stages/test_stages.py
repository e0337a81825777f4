"""Stages in the real host: the one node, the graph that does the same, and what stays when one stage is
redone."""

import copy
from dataclasses import replace

import comfy.model_patcher
import pytest
import torch
from graph import layer_diffuse, load, node, regenerate, transparent_decode
from sampling import LOADER
from stage_scene import add, stages

import nodes as comfy_nodes


def test_stages_become_layers_with_words_boxes_and_alpha(read):
    document = read(stages())
    assert [(x.name, x.prompt) for x in document] == [
        ("sky", "at night"),
        ("tree", "a green tree"),
        ("house", "a white house"),
    ]
    assert bool((document.layer("sky").image[..., 3] == 1).all())
    tree = document.layer("tree")
    assert (tree.x, tree.y, tree.width, tree.height) == (4, 20, 56, 70)
    assert 0 < float(tree.image[..., 3].mean()) < 1


def test_the_first_stage_is_the_picture_of_its_words_to_the_bit(host, pack):
    seed = pack("layered_core.painting.stages").stage_seed(5, "sky")
    plain = {
        **LOADER,
        "p": node("CLIPTextEncode", text="at night", clip=["loader", 1]),
        "n": node("CLIPTextEncode", text="", clip=["loader", 1]),
        "e": node("EmptyLatentImage", width=128, height=96, batch_size=1),
        "k": node("KSampler", model=["loader", 0], positive=["p", 0], negative=["n", 0],
        latent_image=["e", 0], seed=seed, steps=3, cfg=3.0,
                  sampler_name="euler", scheduler="normal", denoise=1.0),
        "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
    }  # fmt: skip
    assert torch.equal(host.value(stages(), "sky", 2)[..., :3], host.value(plain, "d"))


def test_outside_its_place_a_stage_leaves_every_pixel_of_the_composite(host):
    before, after, mask = (
        host.value(stages(), "sky", 1),
        host.value(stages(), "tree", 1),
        host.value(stages(), "tree", 3)[0],
    )
    assert torch.equal(after[:, mask == 0], before[:, mask == 0])
    assert not torch.equal(after, before)
    outside = torch.ones(96, 128, dtype=torch.bool)
    outside[20:90, 4:60] = False
    assert bool((mask[outside] == 0).all())


def test_another_prompt_for_one_stage_leaves_the_earlier_ones_and_the_seeds_of_the_later(host, read):
    first, second = read(stages()), read(stages("a red mushroom"))
    assert torch.equal(first.layer("sky").image, second.layer("sky").image)
    assert not torch.equal(first.layer("tree").image, second.layer("tree").image)
    host.fresh()
    assert torch.equal(read(stages()).layer("house").image, first.layer("house").image)


def test_a_name_that_is_there_is_made_anew_in_its_place_and_the_later_ones_are_laid_on_again(read):
    prompt = stages(again=add("a red mushroom", name="tree", layers=["house", 0]))
    before, after = read(prompt), read(prompt, "again")
    assert [x.name for x in after] == ["sky", "tree", "house"]
    for name in ("sky", "house"):
        assert torch.equal(after.layer(name).image, before.layer(name).image)
    assert after.layer("tree").prompt == "a red mushroom"
    same = read(stages(again=add("", name="tree", layers=["house", 0])), "again")
    assert torch.equal(same.layer("tree").image, before.layer("tree").image)


def test_the_backmost_layer_is_made_anew_in_its_place_too(host, read):
    """It is made from words alone, and its place is the opaque part of the old picture."""
    prompt = stages(
        smaller=add(
            "at night", name="sky", x=10, y=20, width=48, height=40, alpha="difference", layers=["sky", 0]
        ),
        again=add("", name="sky", layers=["smaller", 0]),
    )
    whole = read(prompt, "sky").layers[0].image
    for name in ("smaller", "again"):
        layer = read(prompt, name).layer("sky")
        assert (layer.x, layer.y, layer.width, layer.height) == (10, 20, 48, 40)
        assert torch.equal(layer.image, whole[20:60, 10:58])


def test_without_a_place_it_finds_one(host, read):
    prompt = {
        **LOADER,
        "i": load("back.png", name="back"),
        "it": add("a red heart", steps=8, layers=["i", 0]),
    }
    mask = host.value(prompt, "it", 3)[0]
    assert 0.01 < float((mask > 0).float().mean()) < 0.8
    assert read(prompt, "it").layers[1].name == "a red heart"


def test_an_image_alone_becomes_the_backmost_layer_and_sizes_that_fit_no_cell_stay(host, read):
    prompt = {
        **LOADER,
        "l": node("LoadImage", image="odd.png"),
        "it": add("a red ball", x=10, y=10, width=50, height=50, image=["l", 0]),
    }
    document = read(prompt, "it")
    assert (document.width, document.height) == (101, 67)
    assert [x.name for x in document] == ["background", "a red ball"]
    picture, mask = host.value(prompt, "it", 1), host.value(prompt, "it", 3)[0]
    assert picture.shape == (1, 67, 101, 3)
    eight = lambda image: (image * 255).round()  # noqa: E731  # compositing in linear light and back rounds
    assert torch.equal(eight(picture[:, mask == 0]), eight(host.value(prompt, "l")[:, mask == 0]))


def test_a_mask_says_where(host):
    prompt = {
        **LOADER, "l": node("LoadImage", image="back.png"),
        "m": node("SolidMask", value=1.0, width=40, height=40),
        "z": node("SolidMask", value=0.0, width=128, height=96),
        "mask": node("MaskComposite", destination=["z", 0], source=["m", 0], x=50, y=30, operation="add"),
        "it": add("a red ball", image=["l", 0], mask=["mask", 0]),
    }  # fmt: skip
    outside = torch.ones(96, 128, dtype=torch.bool)
    outside[30:70, 50:90] = False
    assert bool((host.value(prompt, "it", 3)[0][outside] == 0).all())


def test_the_layer_alone_over_the_picture_before_gives_the_picture_after(host):
    """Composited in linear light, as ComfyUI's compositor does."""
    prompt = stages()
    layer, before, after = (
        host.value(prompt, "tree", 2)[0],
        host.value(prompt, "sky", 1)[0],
        host.value(prompt, "tree", 1)[0],
    )
    alpha = layer[..., 3:]
    linear = lambda c: torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)  # noqa: E731
    mixed = linear(layer[..., :3]) * alpha + linear(before) * (1 - alpha)
    assert float((mixed - linear(after)).abs().max()) < 0.01


def test_a_lora_of_one_stage_acts_on_its_layer_alone(host, read):
    from pathlib import Path

    import folder_paths
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(0)
    width = host.value(LOADER, "loader").model.model_config.unet_config["context_dim"]
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    weights = {
        "lora_up.weight": torch.randn(64, 4, generator=random),
        "lora_down.weight": torch.randn(4, width, generator=random),
    }
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{name}.{k}": v for k, v in weights.items()} | {f"{name}.alpha": torch.tensor(4.0)},
        folder / "wild.safetensors",
    )
    prompt = stages(
        lora=node(
            "LoraLoader",
            model=["loader", 0],
            clip=["loader", 1],
            lora_name="wild.safetensors",
            strength_model=1.0,
            strength_clip=1.0,
        )
    )
    plain = read(prompt)
    prompt["house"]["inputs"] |= {"model": ["lora", 0], "clip": ["lora", 1]}
    with_lora = read(prompt)
    for layer in ("sky", "tree"):
        assert torch.equal(with_lora.layer(layer).image, plain.layer(layer).image)
    assert not torch.equal(with_lora.layer("house").image, plain.layer("house").image)


def test_a_layer_that_is_made_anew_keeps_its_recipes_loras_embedding_and_seed(host, pack, read):
    from pathlib import Path

    import folder_paths
    from safetensors.torch import save_file

    document_of, node_of = (
        pack("layered_core.document"),
        pack("nodes.stages.add_layer_by_prompt").AddLayerByPrompt,
    )
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, folder / "of_the_recipe.safetensors")
    folder_paths.cache_helper.clear()
    recipe = document_of.Recipe(loras=(document_of.Lora("of_the_recipe", 0.7),), embedding="mood", seed=11)
    document = document_of.LayerDocument(
        64, 64, (document_of.Layer("tree", prompt="a green tree", width=64, height=64, recipe=recipe),)
    )
    values = {
        "model": None, "clip": None, "vae": None, "prompt": "", "negative": "", "name": "tree", "x": 0,
        "y": 0, "width": 0, "height": 0, "seed": 3,
        "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "alpha": "difference",
        "denoise": 1.0, "feather": 0, "size": 0,
        "context": 0.5, "blend": "gradient",
    }  # fmt: skip
    graph = node_of.execute(**values, layers=pack("nodes.layers.socket").write_stack(document)).expand
    of = {
        kind: [(number, n["inputs"]) for number, n in graph.items() if n["class_type"] == kind]
        for kind in {n["class_type"] for n in graph.values()}
    }
    ((lora, inputs),) = of["LoraLoader"]
    assert (inputs["lora_name"], inputs["strength_model"], inputs["strength_clip"]) == (
        "of_the_recipe.safetensors",
        0.7,
        0.7,
    )
    assert [n["text"] for _, n in of["CLIPTextEncode"]] == ["embedding:mood a green tree", ""]
    assert all(n["clip"] == [lora, 1] for _, n in of["CLIPTextEncode"])
    assert of["LD_RegenerateLayers"][0][1]["model"] == [lora, 0]
    assert of["KSampler"][0][1]["seed"] == 11
    assert of["LD_StageLayer"][0][1]["prompt"] == "a green tree"

    on_a_meadow = replace(
        document, layers=(document_of.Layer("meadow", torch.ones(64, 64, 4)), *document.layers)
    )
    transparent = {
        "alpha": "transparent",
        "file": "of_transparency.safetensors",
        "layers": pack("nodes.layers.socket").write_stack(on_a_meadow),
    }
    graph = node_of.execute(**{**values, **transparent}).expand
    assert [
        n["inputs"]["mode.file"] for n in graph.values() if n["class_type"] == "LD_LayerDiffuseApply"
    ] == ["of_transparency.safetensors"]

    missing = document_of.Recipe(loras=(document_of.Lora("nowhere"),))
    document = document.with_layer(replace(document.layers[0], recipe=missing))
    with pytest.raises(
        pack("layered_core.errors").LayeredError,
        match=r"layer 'tree': LoRA is 'nowhere'; allowed: .*of_the_recipe.safetensors",
    ):
        node_of.execute(**values, layers=pack("nodes.layers.socket").write_stack(document))


def test_progress_of_the_sampler_is_told_and_an_interrupt_stops_the_stage(host):
    import comfy.model_management

    host.fresh()
    host.run({**stages(), "end": node("PreviewImage", images=["tree", 1])})
    told = [data for event, data in host.server.events if event in ("progress", "progress_state")]
    assert told

    host.fresh()
    events = []

    def interrupt(event, data, sid=None):
        events.append(event)
        if events.count("progress_state") > 2:
            comfy.model_management.interrupt_current_processing()

    host.server.send_sync = interrupt
    assert "interrupt" in host.error_of({**stages(), "end": node("PreviewImage", images=["house", 1])})
    host.fresh()
    comfy.model_management.interrupt_current_processing(False)


def test_a_transparent_stage_is_painted_alone_and_brought_to_its_place(host, pack, read):
    prompt = stages()
    prompt["tree"]["inputs"]["alpha"] = "transparent"
    before, after, mask = (
        host.value(prompt, "sky", 1),
        host.value(prompt, "tree", 1),
        host.value(prompt, "tree", 3)[0],
    )
    assert torch.equal(after[:, mask == 0], before[:, mask == 0])
    assert not torch.equal(after, before)
    assert bool((mask[20:90, 4:60] == 1).all())
    assert float(mask.sum()) == 56 * 70
    seed = pack("layered_core.painting.stages").stage_seed(5, "tree")
    alone = {
        **LOADER, "a": layer_diffuse("storybook (shipped)"),
        "p": node("CLIPTextEncode", text="a green tree", clip=["loader", 1]),
        "n": node("CLIPTextEncode", text="", clip=["loader", 1]),
        "e": node("EmptyLatentImage", width=112, height=112, batch_size=1),
        "k": node("KSampler", model=["a", 0], positive=["p", 0], negative=["n", 0], latent_image=["e", 0],
        seed=seed, steps=3, cfg=3.0,
                  sampler_name="euler", scheduler="normal", denoise=1.0),
        "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
        "t": transparent_decode(["d", 0], latent=["k", 0]),
    }  # fmt: skip
    wanted = pack("layered_core.painting.stages").into_place(host.value(alone, "t")[0], mask)
    assert torch.equal(host.value(prompt, "tree", 2)[0], wanted)
    assert torch.equal(read(prompt, "tree").layer("tree").image, wanted[20:90, 4:60])


def test_a_transparent_stage_finds_a_place_is_sampled_at_a_size_and_lies_opaque_at_the_back(host, read):
    prompt = {
        **LOADER,
        "i": load("back.png", name="back"),
        "it": add("a red heart", steps=8, alpha="transparent", size=128, layers=["i", 0]),
    }
    mask, layer = host.value(prompt, "it", 3)[0], host.value(prompt, "it", 2)[0]
    assert 0.01 < float((mask > 0).float().mean()) < 0.8
    assert 0.2 < float((layer[..., 3] > 0.5).float().sum() / mask.sum()) < 1
    assert bool((layer[mask == 0] == 0).all())
    back = {**LOADER, "it": add("at night", name="sky", width=128, height=96, alpha="transparent")}
    assert torch.equal(host.value(back, "it", 2), host.value(stages(), "sky", 2))


def test_an_inpainting_controlnet_sees_the_picture_with_a_hole(host, read):
    prompt = stages(net=node("TestControlNet"))
    before, plain = host.value(prompt, "sky", 1), host.value(prompt, "tree", 1)
    prompt["tree"]["inputs"]["control_net"] = prompt["sky"]["inputs"]["control_net"] = ["net", 0]
    seen = []
    hook = host.value(prompt, "net").control_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hint"]), with_kwargs=True
    )
    after, mask = host.value(prompt, "tree", 1), host.value(prompt, "tree", 3)[0]
    hook.remove()
    assert torch.equal(host.value(prompt, "sky", 1), before), "there is nothing round the backmost layer"
    assert len(seen) == 3
    wanted = before[0].permute(2, 0, 1).masked_fill(mask > 0.5, -1.0)
    for hint in seen[0]:
        torch.testing.assert_close(hint.float().cpu(), wanted, atol=1e-3, rtol=0)
    assert torch.equal(after[:, mask == 0], before[:, mask == 0])
    assert float((after - plain).abs().max()) > 0.05


class InpaintModel:
    """A node that gives a model five more input channels with weights of zero, as inpainting checkpoints
    have."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    def make(self, model):
        made = copy.deepcopy(model.model, {id(model.model.model_config): model.model.model_config})
        first = made.diffusion_model.input_blocks[0][0]
        first.weight = torch.nn.Parameter(
            torch.cat([first.weight, torch.zeros_like(first.weight).repeat(1, 2, 1, 1)[:, :5]], 1)
        )
        made.set_inpaint()
        return (comfy.model_patcher.ModelPatcher(made, model.load_device, model.offload_device),)


@pytest.mark.parametrize("size", [0, 96])
def test_an_inpainting_checkpoint_sees_the_picture_with_a_hole(host, monkeypatch, size):
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, "TestInpaintModel", InpaintModel)
    prompt = stages(inpaint=node("TestInpaintModel", model=["loader", 0]))
    prompt["tree"]["inputs"] |= {"model": ["inpaint", 0], "size": size}
    model = host.value(prompt, "inpaint")
    seen = []
    hook = model.model.diffusion_model.input_blocks[0][0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0][:1, 4:])
    )
    after, before, mask = (
        host.value(prompt, "tree", 1),
        host.value(prompt, "sky", 1),
        host.value(prompt, "tree", 3)[0],
    )
    hook.remove()
    assert len(seen) == 3
    assert torch.equal(after[:, mask == 0], before[:, mask == 0])
    region, masked = seen[0][:, :1], seen[0][:, 1:]
    assert 0 < float(region.mean()) < 1
    cut = regenerate(
        "sky", "", mask=["m", 0], image=["sky", 1], grow=0, feather=8, size=size, border="inside"
    )
    solid, none = (
        node("SolidMask", value=v, width=w, height=h) for v, w, h in ((1.0, 56, 70), (0.0, 128, 96))
    )
    place = node("MaskComposite", destination=["z", 0], source=["s", 0], x=4, y=20, operation="add")
    there = {**prompt, "s": solid, "z": none, "m": place, "cut": cut}
    picture, hole = host.value(there, "cut", 3), host.value(there, "cut", 4).round()[..., None]
    holed = host.value(prompt, "loader", 2).encode(picture * (1 - hole) + 0.5 * hole)
    torch.testing.assert_close(masked.cpu(), model.model.process_latent_in(holed), atol=1e-3, rtol=1e-3)


def test_a_net_that_takes_the_mask_as_a_channel_goes_through_its_own_node(pack):
    class Net:
        concat_mask = True

    values = {
        "model": None, "clip": None, "vae": None, "prompt": "a red ball", "negative": "", "name": "", "x": 0,
        "y": 0, "width": 16, "height": 16,
        "seed": 3, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple",
        "alpha": "difference", "denoise": 1.0, "feather": 0,
        "size": 0, "context": 0.5, "blend": "gradient",
    }  # fmt: skip
    graph = (
        pack("nodes.stages.add_layer_by_prompt")
        .AddLayerByPrompt.execute(**values, image=torch.zeros(1, 64, 64, 3), control_net=Net())
        .expand
    )
    ((number, applied),) = [
        (n, x["inputs"]) for n, x in graph.items() if x["class_type"] == "ControlNetInpaintingAliMamaApply"
    ]
    ((cut, _),) = [(n, x) for n, x in graph.items() if x["class_type"] == "LD_RegenerateLayers"]
    assert (applied["image"], applied["mask"]) == ([cut, 3], [cut, 4])
    ((_, sampler),) = [(n, x["inputs"]) for n, x in graph.items() if x["class_type"] == "KSampler"]
    assert (sampler["positive"], sampler["negative"]) == ([number, 0], [number, 1])


def test_a_seed_of_a_stage_is_the_one_of_the_headless_pipeline(host, pack):
    assert host.value({"s": node("LD_StageSeed", seed=7, name=" tree ")}, "s") == pack(
        "layered_core.painting.stages"
    ).stage_seed(7, "tree")


# --- bad input ---
