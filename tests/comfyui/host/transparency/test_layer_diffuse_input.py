"""LayerDiffuse Apply and Split Frames: the files that they offer, and the errors before sampling."""

import pytest
import tiny
import torch
from graph import layer_diffuse, node
from layer_diffuse_scene import picture, sample

import nodes as comfy_nodes


def prompt_of(pack_file="storybook (shipped)", **inputs):
    return {"loader": node("LD_LoadDemoModel"), "it": layer_diffuse(pack_file, **inputs)}


def test_the_storybooks_own_file_is_offered_and_changes_what_the_demo_model_paints(host, words):
    model = host.value(prompt_of(), "loader", 0)
    patched = host.value(prompt_of(), "it", 0)
    before, changed = sample(model, words, batch=1, side=128), sample(patched, words, batch=1, side=128)
    assert (changed - before).abs().mean() > 0.01
    assert torch.equal(sample(model, words, batch=1, side=128), before)


def test_a_mode_offers_its_published_files_and_the_users_own_whether_they_are_there_or_not(host, node_module):
    tiny.write(tiny.FOLDER, "my own", {"a": torch.zeros(1)})
    choices = {
        o.key: o.inputs[0].options
        for o in comfy_nodes.NODE_CLASS_MAPPINGS["LD_LayerDiffuseApply"].GET_SCHEMA().inputs[1].options
    }
    assert "layer_sd15_joint.safetensors" in choices["foreground, background and blend"]
    assert "layer_xl_fg2ble.safetensors" not in choices["background to blend"]
    assert all("my own.safetensors" in c for c in choices.values())
    assert choices["transparent layer"][0] == "storybook (shipped)"


def test_a_missing_file_is_an_error_with_its_name_source_size_and_folder(host):
    said = host.error_of(
        {**prompt_of("ld_diffusers_sdxl_conv.safetensors"), "end": node("TestCatch", value=["it", 0])}
    )
    for part in (
        "ld_diffusers_sdxl_conv.safetensors",
        "lllyasviel/LayerDiffuse_Diffusers",
        "3.62 GB",
        "layer_model",
    ):
        assert part in said


def test_a_file_of_another_base_model_or_mode_and_a_cut_or_pickled_one_are_refused(host, applied, models):
    for case in tiny.CASES:
        other = models["sd15" if case[1] == "sdxl" else "sdxl"]
        name = {"sdxl": "SDXL", "sd15": "SD1.5"}[case[1]]
        with pytest.raises(ValueError, match=rf"{case[2]}.*for {name}.*does not fit the model"):
            applied(case, model=other)
    by_name = {c[2]: c for c in tiny.CASES}
    single, joint = by_name["layer_xl_fg2ble"], by_name["layer_sd15_joint"]
    with pytest.raises(ValueError, match="pictures that it takes is 2; allowed: 1"):
        applied(single, file="layer_xl_fgble2bg.safetensors")
    with pytest.raises(ValueError, match="makes 2 pictures from one, but the mode .* makes 3 pictures"):
        applied(joint, file="layer_sd15_fg2bg.safetensors")
    cut = tiny.FOLDER / "layer_xl_bg2ble.safetensors"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="cut short"):
        applied(by_name["layer_xl_bg2ble"], file=cut.name)
    cut.write_bytes(whole)
    torch.save({"a": torch.zeros(1)}, tiny.FOLDER / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.pth.*save_file"):
        applied(single, file="mine.pth")


def test_a_batch_of_half_scenes_and_a_picture_of_another_size_are_refused_before_sampling(applied, words):
    by_name = {c[2]: c for c in tiny.CASES}
    with pytest.raises(ValueError, match=r"batch size is 4; allowed: a multiple of 3"):
        sample(applied(by_name["layer_sd15_joint"]), words, batch=4)
    for name in ("layer_xl_fg2ble", "layer_sd15_fg2bg"):
        with pytest.raises(ValueError, match=r"foreground: size of the picture is '64x64'; allowed: 128x128"):
            sample(applied(by_name[name]), words, batch=2, side=128)
    with pytest.raises(ValueError, match="nothing is connected"):
        applied(by_name["layer_xl_fg2ble"], pictures={})
    # In a second pass at a higher resolution the pictures of the first pass are still connected.
    for case in [c for c in tiny.CASES if " to " in c[0]]:
        with pytest.raises(
            ValueError,
            match=r"size of the picture is '64x64'; allowed: 96x96.*second pass at a higher resolution",
        ):
            sample(applied(case), words, side=96)
    with pytest.raises(ValueError, match=r"batch size is 5; allowed: a multiple of 2"):
        sample(applied(by_name["layer_sd15_bg2fg"]), words, batch=5)
    with pytest.raises(ValueError, match="number is 4; allowed: 1, or 6"):
        sample(applied(by_name["layer_xl_fg2ble"], pictures={"foreground": picture(1, 4, batch=4)}), words)


def test_two_of_the_node_after_each_other_and_a_node_that_replaces_attentions_are_refused(
    applied, models, words
):
    by_name = {c[2]: c for c in tiny.CASES}
    with pytest.raises(ValueError, match="comes from LayerDiffuse Apply already"):
        applied(by_name["layer_xl_fg2ble"], model=applied(by_name["layer_xl_transparent_attn"]))
    patched = applied(by_name["layer_sd15_joint"])
    patched.set_model_attn2_replace(lambda q, k, v, extra: q, "middle", 0)
    with pytest.raises(ValueError, match="another node replaces its attentions"):
        sample(patched, words)


def test_a_part_of_the_picture_and_attentions_that_see_something_else_are_refused(applied, words):
    by_name = {c[2]: c for c in tiny.CASES}

    def corner(text):
        return [
            [context, {**options, "area": (4, 4, 0, 0), "strength": 1.0}] for context, options in words(text)
        ]

    with pytest.raises(ValueError, match="Sample the whole picture at once"):
        sample(applied(by_name["layer_xl_fg2ble"]), corner)
    tiles = comfy_nodes.NODE_CLASS_MAPPINGS["HyperTile"]
    joint = applied(by_name["layer_sd15_joint"])
    with pytest.raises(ValueError, match="another node changes what its attentions see"):
        sample(tiles.execute(joint, 64, 2, 0, True)[0], words, side=256, batch=3)
    for patch in (lambda n, k, v, extra: (n, k, v * 0), lambda n, k, v, extra: (n, k * 0, v)):
        other = joint.clone()
        other.set_model_attn2_patch(patch)
        with pytest.raises(ValueError, match="another node changes what its attentions see"):
            sample(other, words)


def test_split_frames_parts_pictures_and_latents_and_leaves_the_rest_empty(host):
    images = torch.arange(6.0)[:, None, None, None].expand(6, 2, 2, 3)
    split = comfy_nodes.NODE_CLASS_MAPPINGS["LD_SplitFrames"]
    latent = {
        "samples": torch.arange(6.0)[:, None, None, None].expand(6, 4, 2, 2),
        "noise_mask": torch.ones(1, 2, 2),
        "batch_index": [0, 1, 2, 3, 4, 5],
    }
    out = split.execute(3, images, latent).args
    assert [o[:, 0, 0, 0].tolist() for o in out[:3]] == [[0, 3], [1, 4], [2, 5]]
    assert [o["samples"][:, 0, 0, 0].tolist() for o in out[3:]] == [[0, 3], [1, 4], [2, 5]]
    assert out[4]["batch_index"] == [1, 4]
    assert out[4]["noise_mask"].shape == (1, 2, 2)
    two = split.execute(2, images).args
    assert [o[:, 0, 0, 0].tolist() for o in two[:2]] == [[0, 2, 4], [1, 3, 5]]
    assert all(type(o).__name__ == "ExecutionBlocker" for o in two[2:])
    with pytest.raises(ValueError, match="image: batch size is 4; allowed: a multiple of 3.*Set frames to"):
        split.execute(3, images[:4])
    with pytest.raises(ValueError, match="nothing is connected"):
        split.execute(3)
