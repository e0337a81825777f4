"""A short soak finds no fault, and a soak finds what is left behind."""

import random
import sys

import pytest
from comfy_server import NotStartedError
from soak import Soak, started, table

from benchmarks.hosts.find import find_host

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

SHORT = ["05_regional_prompts", "10_control_per_layer", "25_learn_a_layer", "29_layers_together"]


@pytest.fixture
def server(skip_suite, could_not_start, tmp_path):
    host = find_host()
    if isinstance(host, str):
        skip_suite("ComfyUI under load", host)
    try:
        server = started(host, tmp_path, "lru")
    except NotStartedError as error:
        could_not_start("ComfyUI's server", str(error))
    yield server
    server.stop()


class Spoiled(Soak):
    """A soak on whose server something is left behind after memory was measured first."""

    def measure(self, name):
        measured = super().measure(name)
        if not self.spoiled:
            self.spoiled = True
            for folder in ("input", "temp", "system"):
                (self.server.base / folder / "left.png").touch()
            self.server.get("/soak/spoil")
        return measured

    spoiled = False


def test_a_short_soak_finds_no_fault_and_what_is_left_behind_is_found(server):
    pictures = {}
    figures = Soak(server, pictures, random.Random(0), lambda line: None).run(SHORT, 24)
    assert figures["faults"] == []
    assert figures["prompts"] >= 24
    assert all(figures[kind] for kind in ("interrupted", "broken", "failing", "refused", "deleted"))
    assert figures["compared"] > 20
    assert figures["models"] == 7
    assert "| faults | 0 |" in table({"lru": figures})

    first = next(iter(pictures.values()))
    first[next(node for node, shown in first.items() if shown)] = ["0" * 64]
    faults = Spoiled(server, pictures, random.Random(0), lambda line: None).run(SHORT[:1], 24)["faults"]
    for told in (
        "shows other pixels than at its first time",
        "in_use, caches emptied, was",
        "tensors (",
        "UNet model: weights was",
        "input: 1 files were left, such as 'left.png'",
        "temp: 1 files were left",
        "system: 1 files were left",
    ):
        assert any(told in fault for fault in faults), (told, faults)
