"""Any document goes through LAYERS, core's own nodes and files whole."""

from dataclasses import replace

import pytest
import torch
from comfy_extras.nodes_compositor import AddLayer
from graph import node

COUNT = 24


@pytest.fixture(scope="module")
def documents(pack, run_headless, host, tmp_path_factory):
    """Documents that hypothesis made, of one to four layers, with their files in ComfyUI's input folder."""
    folder = tmp_path_factory.mktemp("any")
    run_headless("../core/any_documents.py", folder, COUNT)
    made = sorted(folder.iterdir())
    assert len(made) == COUNT
    limits = pack("layered_core.formats.limits").Limits(max_pixels=2**28)
    for path in made:
        (host.input / f"any_{path.name}").write_bytes(path.read_bytes())
    return {
        f"any_{path.name}": pack("layered_core.files").read_layers(path, limits).document for path in made
    }


@pytest.fixture
def same(pack):
    """Return ``same(a, b)``. Masks of pictures may differ in the last bit, because the socket holds them inverted."""
    identical = pack("layered_core.document").identical

    def check(a, b):
        for x, y in zip(a, b, strict=True):
            if x.image is not None and x.mask is not None:
                assert torch.allclose(x.mask, y.mask, atol=1e-7)
        return identical(a, replace(b, layers=[replace(y, mask=x.mask) for x, y in zip(a, b, strict=True)]))

    return check


def test_it_comes_through_the_socket_whole(documents, pack, same):
    door = pack("nodes.layers.socket")
    for name, document in documents.items():
        assert same(document, door.read_stack(door.write_stack(document))), name


def test_it_comes_through_cores_add_layer_whole(documents, pack, same):
    door = pack("nodes.layers.socket")
    for name, document in documents.items():
        more = AddLayer.execute(
            image=torch.zeros(1, 4, 4, 3), layers=door.write_stack(document), name="on top", z_index=1
        ).args[0]
        back = door.read_stack(more)
        assert len(back) == len(document) + 1
        assert same(document, replace(back, layers=back.layers[:-1])), name


def test_it_is_loaded_composited_and_saved_by_the_nodes_and_loaded_again_whole(documents, host, pack, same):
    door, composite = pack("nodes.layers.socket"), pack("layered_core.canvas.compositing").composite
    for name, document in list(documents.items())[:8]:
        host.fresh()
        prompt = {
            "load": node("LD_LoadLayers", file=name, memory_limit=16),
            "look": node("LD_LayerComposite", layers=["load", 0], backdrop="transparent", rules="comfyui"),
            "save": node("LD_SaveLayers", layers=["load", 0], filename_prefix="any", format="ora", bits="32"),
        }
        assert same(document, door.read_stack(host.value(prompt, "load"))), name
        file = host.value(prompt, "save")
        seen = host.value(prompt, "look")[0]
        assert torch.allclose(seen, composite(document, rules="comfyui")[..., : seen.shape[-1]], atol=1e-5), (
            name
        )
        again = {"again": node("LD_LoadLayers", file=f"{file} [output]", memory_limit=16)}
        assert same(document, door.read_stack(host.value(again, "again"))), name
