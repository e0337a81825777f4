"""No room imports a higher one, no files import each other in a circle, and these tests find a wrong import
anywhere."""

import shutil

import pytest
import rooms


@pytest.fixture(scope="module")
def arrows():
    return rooms.graph()


def test_every_file_is_in_a_room(arrows):
    assert [
        module for module in arrows if rooms.room_of(module) is None and module not in ("layered_core",)
    ] == []


def test_no_room_imports_one_above_it(arrows):
    assert rooms.backward(arrows) == []


def test_no_files_import_each_other_in_a_circle(arrows):
    assert rooms.circles(arrows) == []


def test_the_core_has_at_most_16_doors_and_nodes_at_most_10():
    for part, most in (("layered_core", 16), ("nodes", 10)):
        doors = [
            x.name
            for x in (rooms.ROOT / part).iterdir()
            if (x.is_dir() or x.suffix == ".py") and not x.name.startswith("_")
        ]
        assert len(doors) <= most, sorted(doors)


def test_no_file_of_ours_is_longer_than_500_lines():
    ours = [
        *rooms.files().values(),
        *(rooms.ROOT / "tests").rglob("*.py"),
        *(rooms.ROOT / "web").rglob("*.js"),
        *(rooms.ROOT / "layered_cli").rglob("*.js"),
    ]
    long = {
        str(p.relative_to(rooms.ROOT)): n
        for p in ours
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}


@pytest.fixture
def planted(tmp_path):
    """Return ``planted(file, line)``, which adds a line to ``file`` in a copy of the project and returns the
    faults found."""

    def plant(file, line):
        for part in rooms.PARTS:
            shutil.copytree(
                rooms.ROOT / part,
                tmp_path / part,
                ignore=lambda folder, names: [n for n in names if not n.endswith(".py") and "." in n],
            )
        path = tmp_path / file
        path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
        arrows = rooms.graph(tmp_path)
        return rooms.backward(arrows), rooms.circles(arrows), rooms.foreign(tmp_path)

    return plant


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("layered_core/canvas/masks.py", "from ..attention.words import Match", "layered_core.canvas.masks"),
        (
            "layered_core/noise/window.py",
            "def late():\n    from ..painting.stages import with_stage",
            "layered_core.noise.window",
        ),
        ("nodes/layers/socket.py", "from ..stages.stage_layer import StageLayer", "nodes.layers.socket"),
        (
            "layered_diffusers/models/vae.py",
            "from layered_diffusers import pipeline",
            "layered_diffusers.models.vae",
        ),
        ("demo/world/scenes.py", "from benchmarks.bench import scenes", "demo.world.scenes"),
        (
            "layered_core/formats/limits.py",
            "import layered_diffusers.sampling",
            "layered_core.formats.limits",
        ),
    ],
)
def test_a_planted_import_of_a_higher_room_is_found_in_a_sub_folder_too(planted, file, line, told):
    wrong, _, _ = planted(file, line)
    assert [x.split()[0] for x in wrong] == [told]


def test_a_planted_circle_is_found(planted):
    _, circles, _ = planted("layered_core/formats/pictures.py", "from .openraster import read_openraster")
    assert len(circles) == 1
    assert {"layered_core.formats.openraster", "layered_core.formats.pictures"} <= set(circles[0])


def test_no_room_imports_a_framework_that_it_must_not_know():
    assert rooms.foreign(rooms.ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("layered_core/formats/psd_read.py", "import diffusers"),
        ("layered_core/attention/tiles.py", "def late():\n    from comfy import samplers"),
        ("layered_diffusers/methods/layer_diffuse.py", "import folder_paths"),
        ("nodes/noise/change_map_patch.py", "from layered_core.noise.change_map import noise_map"),
        ("layered_core/control/hints.py", "from layered_core.errors import invalid"),
    ],
)
def test_a_planted_import_of_a_foreign_framework_is_found(planted, file, line):
    _, _, wrong = planted(file, line)
    assert [x.split()[0] for x in wrong] == [file]
