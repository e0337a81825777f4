"""Bad input to the layer nodes gives an error that names the node's input and says what was got, what is
allowed and how to fix it; no partial file is left."""

import inspect

import numpy as np
import pytest
import torch
from graph import DEFAULTS, from_image, load, node
from PIL import Image


@pytest.fixture(autouse=True)
def picture(host):
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")


def test_defaults_of_these_tests_are_those_of_the_nodes():
    import nodes

    for node_id in ("LD_LoadLayer", "LD_LayerFromImage"):
        assert {
            i.id: i.default
            for i in nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA().inputs
            if i.id in DEFAULTS
        } == DEFAULTS


def told(message, *parts):
    for part in parts:
        assert part in message, f"{part!r} is not in {message}"


def test_no_node_checks_more_inputs_together_than_one_before_running(host):
    """ComfyUI repeats what a node's check says at every input that the check takes."""
    import nodes

    several = {}
    for node_id, kind in nodes.NODE_CLASS_MAPPINGS.items():
        if node_id.startswith("LD_") and "validate_inputs" in vars(kind):
            taken = inspect.getfullargspec(kind.validate_inputs)
            if len(taken.args) != 2 or taken.varkw:
                several[node_id] = taken.args
    assert several == {}


@pytest.mark.parametrize(
    ("first", "wrong"),
    [
        (load("gone.png"), ["image"]),
        (load("gone.png", opacity=2.0), ["image", "opacity"]),
        (load("red.png", opacity=2.0), ["opacity"]),
        (from_image(width=8, height=8, opacity=-0.5), ["opacity"]),
        (node("LD_LoadLayers", file="gone.psd", memory_limit=4), ["file"]),
    ],
)
def test_an_error_is_told_once_at_the_input_that_is_wrong(host, first, wrong):
    _, _, _, errors = host.validate({"1": first, "2": node("LD_LayerPreview", layers=["1", 0], size=64)})
    assert sorted(e["extra_info"]["input_name"] for e in errors["1"]["errors"]) == wrong


def test_a_missing_file_is_named_before_running(host):
    valid, _, _, errors = host.validate(
        {"1": load("gone.png"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert not valid
    told(str(errors), "gone.png", "input folder", "upload it")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "sub/../../secret.png",
        "../secret.png [output]",
        "red.png\0.txt",
        "..",
        "",
        5,
    ],
)
def test_a_file_outside_the_input_folder_is_refused_before_running(host, name):
    Image.new("RGB", (4, 4)).save(host.input.parent / "secret.png")
    valid, _, _, errors = host.validate(
        {"1": load(name), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert not valid
    told(str(errors), "input folder")


def test_a_link_out_of_the_input_folder_is_refused(host):
    Image.new("RGB", (4, 4)).save(host.input.parent / "secret.png")
    (host.input / "link.png").unlink(missing_ok=True)
    (host.input / "link.png").symlink_to(host.input.parent / "secret.png")
    told(
        host.error_of({"1": load("link.png"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}),
        "link.png",
        "leads out of the folder",
    )


def test_a_truncated_picture_is_named(host):
    whole = (host.input / "red.png").read_bytes()
    (host.input / "cut.png").write_bytes(whole[: len(whole) // 2])
    told(
        host.error_of({"1": load("cut.png"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}),
        "cut.png",
        "cannot be read",
        "Save it again",
    )


def test_a_picture_too_large_is_refused_without_decoding_it(host):
    Image.fromarray(np.zeros((1, 20_000), np.uint8)).save(host.input / "wide.png")
    told(
        host.error_of({"1": load("wide.png"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}),
        "wide.png",
        "20000x1",
        "at most 16384",
    )


def test_a_file_that_is_no_picture_is_named(host):
    (host.input / "text.png").write_text("not a picture")
    told(
        host.error_of({"1": load("text.png"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}),
        "text.png",
        "cannot be read",
    )


def test_an_error_is_shown_with_a_plain_name_instead_of_a_path_of_modules(host):
    error = host.error_of(
        {"1": load("red.png", x=-900, name="far"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    told(error, "layer 'far'", "at least one pixel on the canvas")
    _, details = host.executor.status_messages[-1]
    assert details["exception_type"] == "LayeredError"
    assert details["exception_message"].startswith("layer 'far': place is 'x -900, y 0, ")


def test_a_negative_width_is_refused_before_running(host):
    valid, _, _, errors = host.validate(
        {"1": load("red.png", width=-5), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert not valid
    told(str(errors), "-5", "min of 0", "width")


@pytest.mark.parametrize("opacity", [-0.1, 1.5, float("inf")])
@pytest.mark.parametrize(
    "build", [lambda **k: load("red.png", **k), lambda **k: from_image(width=8, height=8, **k)]
)
def test_an_opacity_out_of_range_is_refused_before_running(host, opacity, build):
    valid, _, _, errors = host.validate(
        {"1": build(opacity=opacity), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert not valid
    told(str(errors), str(opacity), "min of 0.0" if opacity < 0 else "max of 1.0", "opacity")


@pytest.mark.parametrize("field", ["opacity", "rotation", "noise", "inside", "outside", "control_strength"])
def test_a_number_that_is_none_is_refused(host, field):
    error = host.error_of(
        {
            "1": load("red.png", name="ball", **{field: float("nan")}),
            "2": node("LD_LayerPreview", layers=["1", 0], size=64),
        }
    )
    told(error, "layer 'ball'", field.replace("_", "."), "nan")


def test_a_layer_wholly_off_the_canvas_is_refused(host):
    off = load("red.png", name="ball", x=200, canvas_width=100, canvas_height=100)
    error = host.error_of({"1": off, "2": node("LD_LayerPreview", layers=["1", 0], size=64)})
    told(error, "layer 'ball'", "x 200", "canvas of 100x100", "Move it")


def test_a_layer_partly_off_the_canvas_is_cut(host):
    prompt = {
        "1": load("red.png", x=-8, canvas_width=16, canvas_height=16),
        "2": node("LD_LayerComposite", layers=["1", 0], backdrop="transparent"),
    }
    alpha = host.value(prompt, "2", 1)[0]
    assert bool((alpha[:, :8] == 1).all())
    assert bool((alpha[:, 8:] == 0).all())


def test_the_51st_layer_is_refused(host):
    prompt = {
        "batch": node("EmptyImage", width=4, height=4, batch_size=50, color=255),
        "50": from_image(image=["batch", 0]),
    }
    prompt["51"] = load("red.png", layers=["50", 0])
    prompt["end"] = node("LD_LayerPreview", layers=["51", 0], size=64)
    told(host.error_of(prompt), "number of layers is 51", "at most 50", "Composite some of them first")


def test_51_layers_of_core_are_refused(host):
    prompt = {
        "batch": node("EmptyImage", width=4, height=4, batch_size=51, color=255),
        "51": node("AddLayer", image=["batch", 0]),
    }
    prompt["end"] = node("LD_LayerComposite", layers=["51", 0], backdrop="transparent")
    told(host.error_of(prompt), "number of layers is 51", "at most 50")


def test_an_unknown_blend_mode_is_refused_before_running(host):
    valid, _, _, errors = host.validate(
        {"1": load("red.png", blend_mode="mulitply"), "2": node("LD_LayerPreview", layers=["1", 0], size=64)}
    )
    assert not valid
    told(str(errors), "blend_mode", "mulitply")


def test_a_blend_mode_unknown_at_the_socket_is_named(pack):
    door, errors = pack("nodes.layers.socket"), pack("layered_core.errors")
    item = {
        "image": torch.zeros(1, 4, 4, 3),
        "type": "raster",
        "z_index": 0,
        "name": "ball",
        "blend_mode": "mulitply",
    }
    with pytest.raises(
        errors.LayeredError, match="layer 'ball': blend_mode is 'mulitply'; allowed: normal, multiply"
    ):
        door.read_stack({"version": 1, "layers": [item]})


def test_a_stack_of_another_version_is_refused(pack):
    door, errors = pack("nodes.layers.socket"), pack("layered_core.errors")
    with pytest.raises(errors.LayeredError, match="layers: version is 2; allowed: 1.*update this pack"):
        door.read_stack({"version": 2, "layers": []})


def test_a_recipe_of_another_version_is_refused(pack):
    door, errors = pack("nodes.layers.socket"), pack("layered_core.errors")
    item = {
        "image": torch.zeros(1, 4, 4, 3),
        "type": "raster",
        "z_index": 0,
        "name": "ball",
        door.KEY: {"version": 9},
    }
    with pytest.raises(
        errors.LayeredError, match=r"layer 'ball': layered_diffusion: version is 9; allowed: 1"
    ):
        door.read_stack({"version": 1, "layers": [item]})


@pytest.mark.parametrize(
    "recipe", [{"noisy": 1}, {"control": {"hints": 1}}, {"loras": [{"strength": 1.0}]}, 5]
)
def test_a_broken_recipe_is_named(pack, recipe):
    door, errors = pack("nodes.layers.socket"), pack("layered_core.errors")
    item = {
        "image": torch.zeros(1, 4, 4, 3),
        "type": "raster",
        "z_index": 0,
        "name": "ball",
        door.KEY: {"version": 1, "recipe": recipe},
    }
    with pytest.raises(errors.LayeredError, match="layer 'ball': "):
        door.read_stack({"version": 1, "layers": [item]})


@pytest.mark.parametrize("stack", [None, [], "layers", 5])
def test_what_is_no_stack_is_refused(pack, stack):
    door, errors = pack("nodes.layers.socket"), pack("layered_core.errors")
    with pytest.raises(errors.LayeredError, match="allowed: a LAYERS document"):
        door.read_stack(stack)


def test_pixels_that_are_no_numbers_are_refused(pack):
    door, errors = pack("nodes.layers.socket"), pack("layered_core.errors")
    item = {"image": torch.full((1, 4, 4, 3), float("nan")), "type": "raster", "z_index": 0, "name": "ball"}
    with pytest.raises(errors.LayeredError, match="layer 'ball': image's values is"):
        door.read_stack({"version": 1, "layers": [item]})


def test_an_empty_stack_cannot_be_composited(pack):
    errors = pack("layered_core.errors")
    with pytest.raises(errors.LayeredError, match="number of layers is 0; allowed: at least one"):
        pack("nodes.layers.layer_composite").LayerComposite.execute(
            {"version": 1, "layers": []}, "transparent"
        )


def test_masks_that_do_not_match_the_pictures_are_refused(host):
    prompt = {
        "1": node("EmptyImage", width=4, height=4, batch_size=3, color=255),
        "2": node("SolidMask", value=0.0, width=4, height=4),
        "3": node("RepeatImageBatch", image=["5", 0], amount=2),
        "4": node("ImageToMask", image=["3", 0], channel="red"),
        "5": node("MaskToImage", mask=["2", 0]),
        "6": from_image(image=["1", 0], mask=["4", 0], name="ball"),
        "7": node("LD_LayerPreview", layers=["6", 0], size=64),
    }
    told(host.error_of(prompt), "layer 'ball'", "number of masks is 2", "1 or 3")
