"""Load Layers and Save Layers: a saved stack is loaded again unchanged; allowed folders; texts for the
user."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.cli_args import args
from graph import from_image, load, node
from PIL import Image
from psd_tools import PSDImage

PACK = Path(__file__).resolve().parents[4]
ENDS = {"psd": ".psd", "psb": ".psb", "ora": ".ora", "png folder": "/document.json"}


@pytest.fixture(autouse=True)
def picture(host):
    Image.effect_noise((16, 12), 90).convert("RGBA").save(host.input / "noise.png")
    shutil.rmtree(host.output, ignore_errors=True)
    host.output.mkdir()
    host.fresh()


def stack():
    """Return three layers: a plain one, a turned one and a place to be generated."""
    return {
        "a": load("noise.png", prompt="grain", name="Körner", canvas_width=40, canvas_height=30, noise=0.25),
        "b": load(
            "noise.png",
            name="turned",
            rotation=30,
            x=5,
            width=20,
            blend_mode="screen",
            opacity=0.3,
            layers=["a", 0],
        ),
        "c": from_image(name="later", prompt="a ball", width=9, height=8, x=3, layers=["b", 0]),
    }


def save(format="psd", prefix="layers", bits="8", layers="c"):
    return node("LD_SaveLayers", layers=[layers, 0], filename_prefix=prefix, format=format, bits=bits)


def load_layers(file, memory_limit=4, **inputs):
    return node("LD_LoadLayers", file=file, memory_limit=memory_limit, **inputs)


@pytest.mark.parametrize("format", ENDS)
def test_a_saved_stack_is_loaded_again_whole(host, pack, format):
    door, identical = pack("nodes.layers.socket"), pack("layered_core.document").identical
    before = host.value(stack(), "c")
    name = host.value({**stack(), "it": save(format)}, "it")
    assert name == f"layers_00001_{ENDS[format]}"
    assert (host.output / name).is_file()
    prompt = {"it": load_layers(f"{name} [output]")}
    layers, width, height, report = (host.value(prompt, "it", slot) for slot in range(4))
    assert identical(door.read_stack(layers), door.read_stack(before))
    assert (width, height, report) == (40, 30, "")


def test_the_counter_goes_on_and_the_prefix_may_name_folders(host):
    names = []
    for _ in range(2):
        host.fresh()
        names.append(host.value({**stack(), "it": save("ora", "art/%width%x%height%")}, "it"))
    assert names == ["art/40x30_00001_.ora", "art/40x30_00002_.ora"]
    assert (
        host.value({**stack(), "it": save("png folder", "art/v1.5")}, "it") == "art/v1.5_00001_/document.json"
    )
    assert sorted(p.name for p in (host.output / "art").iterdir()) == [
        "40x30_00001_.ora",
        "40x30_00002_.ora",
        "v1.5_00001_",
    ]


def test_the_node_shows_the_composite_and_names_the_file(host):
    (shown,) = [out for out in host.run({**stack(), "it": save()}).values() if "layered_files" in out]
    assert shown["layered_files"] == [{"filename": "layers_00001_.psd", "subfolder": "", "type": "output"}]
    (image,) = shown["images"]
    assert Image.open(
        Path(folder_paths.get_temp_directory()) / image["subfolder"] / image["filename"]
    ).size == (40, 30)


def test_the_workflow_is_in_the_file_unless_that_is_switched_off(host, pack, monkeypatch):
    read = pack("layered_core.files").read_layers
    prompt = {**stack(), "it": save("ora")}
    name = host.value(prompt, "it")
    kept = read(host.output / name).workflow
    assert kept["prompt"]["it"]["class_type"] == "LD_SaveLayers"
    monkeypatch.setattr(args, "disable_metadata", True)
    host.fresh()
    assert read(host.output / host.value(prompt, "it")).workflow == {}


def test_a_prefix_that_leads_out_of_the_output_folder_is_refused(host):
    assert "outside the output folder" in host.error_of({**stack(), "it": save(prefix="../../stolen")})
    assert not (host.output.parent / "stolen_00001_.psd").exists()


def test_an_empty_stack_cannot_be_saved(pack):
    errors = pack("layered_core.errors")
    with pytest.raises(errors.LayeredError, match="number of layers is 0; allowed: at least one"):
        pack("nodes.layers.save_layers").SaveLayers.execute({"version": 1, "layers": []}, "x", "psd", "8")


def test_the_example_opens_and_has_a_layer_of_every_look(host, pack):
    document = pack("nodes.layers.socket").read_stack(
        host.value({"it": load_layers("storybook.psd [example]")}, "it")
    )
    assert [layer.name for layer in document] == ["meadow", "shadow", "house", "tree", "ball"]
    assert document.layer("house").prompt == "a red house"
    assert document.layer("shadow").blend_mode == "multiply"
    assert not document.layer("ball").visible


def test_files_of_the_input_folder_and_of_its_document_folders_are_offered(host, pack):
    for name in ("b.ora", "a.PSD", "note.txt", "picture.png"):
        (host.input / name).write_bytes(b"x")
    (host.input / "scene").mkdir(exist_ok=True)
    (host.input / "scene" / "document.json").write_text("{}")
    offered = pack("nodes.layers.load_layers").LoadLayers.GET_SCHEMA().inputs[0].options
    assert [n for n in offered if n in ("a.PSD", "b.ora", "scene/document.json")] == [
        "a.PSD",
        "b.ora",
        "scene/document.json",
    ]
    assert "note.txt" not in offered
    assert "picture.png" not in offered
    assert offered[-1] == "storybook.psd [example]"
    for name in ("b.ora", "a.PSD", "note.txt", "picture.png"):
        (host.input / name).unlink()


@pytest.mark.parametrize(
    "name",
    ["../a.psd", "/etc/passwd", "/a.psd", "sub/../../a.psd", "../a.psd [output]", "a.psd\0.ora", "..", "", 5,
    "../files/storybook.psd [example]",
     "x.psd [example]", " [example]", "/etc/passwd [example]"],
)  # fmt: skip
def test_a_file_outside_the_input_folder_is_refused_before_running(host, name):
    shutil.copy(PACK / "demo/files/storybook.psd", host.input.parent / "a.psd")
    valid, _, _, errors = host.validate(
        {"1": load_layers(name), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert not valid
    assert "file is" in str(errors)


def test_a_link_out_of_the_input_folder_is_refused(host):
    shutil.copy(PACK / "demo/files/storybook.psd", host.input.parent / "a.psd")
    (host.input / "link.psd").unlink(missing_ok=True)
    (host.input / "link.psd").symlink_to(host.input.parent / "a.psd")
    error = host.error_of(
        {"1": load_layers("link.psd"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert "leads out of the folder" in error
    (host.input / "link.psd").unlink()


def test_a_missing_file_and_a_file_of_another_kind_are_named_before_running(host):
    for name, says in (("gone.psd", "upload it"), ("noise.png", "Save the picture as one of these")):
        valid, _, _, errors = host.validate(
            {"1": load_layers(name), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
        )
        assert not valid
        assert name in str(errors)
        assert says in str(errors)


def test_a_broken_file_is_named_in_the_node(host):
    whole = (PACK / "demo/files/storybook.psd").read_bytes()
    (host.input / "cut.psd").write_bytes(whole[:9000])
    error = host.error_of(
        {"1": load_layers("cut.psd"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert "cut.psd" in error
    (host.input / "cut.psd").unlink()


def test_a_file_that_takes_more_memory_than_allowed_is_refused(host, pack):
    document = pack("layered_core.document")
    big = document.LayerDocument(
        9000, 9000, (document.Layer("a", torch.zeros(1, 1, 4), width=9000, height=9000),)
    )
    pack("layered_core.files").write_layers(big, host.input / "big.ora")
    error = host.error_of(
        {"1": load_layers("big.ora", 1), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert "Raise the memory limit, memory_limit, to 2 GiB or more" in error
    (host.input / "big.ora").unlink()


def test_a_canvas_larger_than_usual_opens_with_more_memory(host):
    with zipfile.ZipFile(host.input / "wide.ora", "w") as file:
        file.writestr("mimetype", "image/openraster")
        file.writestr(
            "stack.xml", '<image w="16384" h="8193"><stack><layer name="a" src="a.png"/></stack></image>'
        )
        file.write(host.input / "noise.png", "a.png")
    seen = {"2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    assert "Raise the memory limit" in host.error_of({"1": load_layers("wide.ora"), **seen})
    assert host.value({"1": load_layers("wide.ora", 5)}, "1", 1) == 16384
    (host.input / "wide.ora").unlink()


def test_a_changed_file_or_a_changed_picture_beside_a_document_is_loaded_anew(host, pack):
    node_class = pack("nodes.layers.load_layers").LoadLayers
    folder = host.input / "scene"
    shutil.rmtree(folder, ignore_errors=True)
    document = pack("layered_core.document")
    pack("layered_core.files").write_folder(
        document.LayerDocument(4, 4, (document.Layer("a", torch.zeros(4, 4, 4)),)), folder
    )
    seen = [node_class.fingerprint_inputs(file="scene/document.json")]
    seen.append(node_class.fingerprint_inputs(file="scene/document.json"))
    Image.new("RGBA", (4, 4), "red").save(folder / "01_a.png")
    seen.append(node_class.fingerprint_inputs(file="scene/document.json"))
    text = json.loads((folder / "document.json").read_text())
    (folder / "document.json").write_text(json.dumps({**text, "prompt": "x"}))
    seen.append(node_class.fingerprint_inputs(file="scene/document.json"))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    shutil.rmtree(folder)


def test_what_becomes_of_groups_can_be_chosen_and_is_reported(host, pack):
    psd = PSDImage.new("RGBA", (9, 9))
    pair = [
        psd.create_pixel_layer(Image.new("RGBA", (4, 4), colour), name=colour) for colour in ("red", "lime")
    ]
    psd.create_group(pair, name="group", opacity=128)
    psd.save(host.input / "theirs.psd")
    read = pack("nodes.layers.socket").read_stack
    merged = "group 'group' is merged into one layer: its opacity acts on its layers together"
    apart = "group 'group' is taken apart, which changes the picture: its opacity acts on its layers together"
    cases = {"auto": (["group"], merged), "merged": (["group"], ""), "apart": (["red", "lime"], apart)}
    for groups, (names, told) in cases.items():
        prompt = {"it": load_layers("theirs.psd", groups=groups)}
        assert [layer.name for layer in read(host.value(prompt, "it"))] == names
        assert host.value(prompt, "it", 3).endswith(told)
    assert host.value({"it": load_layers("theirs.psd")}, "it", 3).endswith(merged)
    (host.input / "theirs.psd").unlink()


def test_a_blend_mode_that_the_format_lacks_is_told_when_saving(host, caplog):
    prompt = {"a": load("noise.png", name="rim", blend_mode="grain-extract"), "it": save("psd", layers="a")}
    host.value(prompt, "it")
    assert "layer 'rim': other programs show its blend mode grain-extract as subtract" in caplog.text


def test_a_picture_that_the_layers_do_not_give_is_reported_and_can_be_a_hidden_layer(host, pack):
    name = host.value({**stack(), "it": save("ora")}, "it")
    with zipfile.ZipFile(host.output / name) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    blob = io.BytesIO()
    Image.effect_noise((40, 30), 90).convert("RGB").save(blob, "PNG")
    entries["mergedimage.png"] = blob.getvalue()
    with zipfile.ZipFile(host.input / "other.ora", "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    prompt = {"it": load_layers("other.ora", merged_picture=True)}
    assert host.value(prompt, "it", 3).startswith("the layers do not give the file's own picture")
    document = pack("nodes.layers.socket").read_stack(host.value(prompt, "it"))
    assert [(layer.name, layer.visible) for layer in document][-2:] == [
        ("later", True),
        ("merged picture", False),
    ]


def test_core_composites_what_was_loaded(host):
    prompt = {
        "1": load_layers("storybook.psd [example]"),
        "2": node("ImageCompositor", layers=["1", 0], compositor={}),
    }
    image = host.value(prompt, "2")
    assert image.shape == (1, 128, 128, 3)
    assert float(image.std()) > 0.1


def test_a_link_to_itself_in_the_input_folder_leaves_load_layers_usable(host, pack):
    loops = [host.input / "loop.psd", host.input / "folder.loop"]
    try:
        for loop in loops:
            loop.symlink_to(loop)
        files = pack("nodes.layers.load_layers").LoadLayers.define_schema().inputs[0].options
        assert not [f for f in files if "loop" in f]
        valid, _, _, errors = host.validate({"1": load_layers("loop.psd"), "2": save(layers="1")})
        assert not valid
        assert "loop.psd" in str(errors)
    finally:
        for loop in loops:
            loop.unlink()


@pytest.mark.parametrize("name", ["n" * 300 + ".psd", "a\0b.psd", "\ud800.psd"])
def test_a_file_that_cannot_exist_is_named_before_running(host, name):
    valid, _, _, errors = host.validate({"1": load_layers(name), "2": save(layers="1")})
    assert not valid
    assert "input folder" in str(errors)


@pytest.mark.parametrize("prefix", ["n" * 300, "a\0b", "\ud800", "n" * 300 + "/a"])
@pytest.mark.parametrize("format", ["psd", "png folder"])
def test_a_prefix_that_no_file_can_have_is_named(host, prefix, format):
    error = host.error_of({**stack(), "it": save(format, prefix)})
    assert "filename_prefix is" in error
    assert "the beginning of a file's name" in error
    assert [f for f in host.output.rglob("*") if f.is_file()] == []
