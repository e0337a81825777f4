"""``layered app``: what is said on the command line reaches the page, and its server answers the page alone."""

import http.client
import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from layered_cli import app
from layered_cli.command import main, parser
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import write_layers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gradio(skip_suite):
    if importlib.util.find_spec("gradio") is None:
        skip_suite("the page of layered app", "gradio is not installed: pip install -e '.[app]'")


@pytest.fixture(scope="module")
def pipeline(gradio):
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def page(pipeline):
    page = app.open_page(pipeline, steps=2)
    yield page
    page.close(verbose=False)


def asked(page, path, headers=None, method="GET", body=None):
    """Return the status of the answer to a request, and its first bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    said = {"Host": f"127.0.0.1:{page.server_port}", "Content-Length": len(body or b""), **(headers or {})}
    for name, value in said.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read(4000)
    connection.close()
    return answer.status, content


class ShownError(Exception):
    """Raised in place of showing a page for ever."""


def test_options_reach_the_page(gradio, monkeypatch, tmp_path):
    path = write_layers(LayerDocument(4, 4, (Layer("sky", torch.ones(4, 4, 4)),)), tmp_path / "a.ora")
    given = {}

    def open_page(pipeline, document, **how):
        given.update(how, pipeline=pipeline, names=[x.name for x in document])
        raise ShownError

    monkeypatch.setattr(app, "pipeline_of", lambda options: options.model)
    monkeypatch.setattr(app, "open_page", open_page)
    words = "--model M --host 0.0.0.0 --port 8123 --memory-limit 2 --negative dark --seed 7 --steps 11 --guidance 4.5"
    more = "--alpha transparent --file f --decoder d --groups merged --browser"
    with pytest.raises(ShownError):
        main(["app", str(path), *words.split(), *more.split()])
    assert given == {
        "pipeline": "M", "names": ["sky"], "host": "0.0.0.0", "port": 8123, "memory_limit": 2, "negative": "dark",
        "seed": 7, "steps": 11, "guidance": 4.5, "alpha": "transparent", "file": Path("f"), "decoder": Path("d"),
        "groups": "merged", "browser": True,
    }  # fmt: skip


def test_only_this_machine_reaches_the_page_unless_it_is_said(page):
    assert parser().parse_args(["app"]).host == "127.0.0.1"
    assert page.local_url.startswith("http://127.0.0.1:")
    assert page.server.config.host == "127.0.0.1"
    assert page.share_url is None
    assert page.analytics_enabled is False


def test_without_gradio_the_command_says_what_to_install():
    code = "import sys; sys.modules['gradio'] = None; from layered_cli.command import main; sys.exit(main(['app']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        2, "layered: the page needs the package gradio: pip install 'layered-diffusion[app]'\n"
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_serves_the_page_until_it_is_stopped(gradio):
    code = "from layered_cli.command import main; import sys; sys.exit(main(['app', '--device', 'cpu']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as command:
        line = command.stdout.readline()
        assert line.startswith("the page is at http://127.0.0.1:")
        address = line.split()[4].rstrip(";")
        with urllib.request.urlopen(address) as answer:
            assert b"Layered Diffusion" in answer.read()
        command.send_signal(2)
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 1
    assert errors.splitlines()[-1:] == ["layered: stopped"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={ROOT / 'README.md'}",
        "/gradio_api/file=README.md",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=https://example.hf.space/",
        "/gradio_api/info",
        "/monitoring",
        "/gradio_api/runs",
        "/docs",
    ],
)
def test_the_server_gives_no_file_of_the_machine_and_fetches_nothing(page, path):
    assert asked(page, path)[0] in (403, 404)
    assert asked(page, "/")[0] == 200


def test_another_site_cannot_use_the_page(page):
    own = f"http://127.0.0.1:{page.server_port}"
    assert asked(page, "/config", {"Origin": own})[0] == 200
    for headers in ({"Origin": "https://example.org"}, {"Host": "example.org"}, {"Origin": "null"}):
        assert asked(page, "/config", headers)[0] == 403
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "x"}).encode()
    posted = {"Content-Type": "application/json", "Origin": "https://example.org"}
    assert asked(page, "/gradio_api/queue/join", posted, "POST", body)[0] == 403


def test_a_page_for_the_network_is_reached_by_any_name_but_not_from_other_sites():
    from layered_cli.page.guard import Guard

    guard = Guard(None, "0.0.0.0")
    scope = {"path": "/", "headers": [(b"host", b"studio.local:7860")]}
    assert guard._may(scope)
    assert not guard._may({**scope, "headers": [*scope["headers"], (b"origin", b"https://example.org")]})


def test_an_upload_is_no_larger_than_the_limits_of_files_allow(page):
    from layered_core.formats.limits import Limits

    assert page.max_file_size == Limits().max_file_bytes


def test_uploaded_files_are_deleted_once_they_are_read(tmp_path):
    from layered_cli.page.files import read_pictures, read_uploaded
    from layered_core.formats.limits import Limits
    from layered_core.formats.pictures import write_picture

    write_picture(torch.ones(4, 4, 4), tmp_path / "a.png")
    broken = tmp_path / "b.psd"
    broken.write_bytes(b"8BPS")
    ((name, pixels),) = read_pictures([str(tmp_path / "a.png")], Limits())
    assert (name, tuple(pixels.shape)) == ("a", (4, 4, 4))
    with pytest.raises(LayeredError, match=r"b\.psd") as error:
        read_uploaded([str(broken)], Limits(), "auto")
    assert str(tmp_path) not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_need_too_much_memory_together_are_refused(tmp_path):
    from layered_cli.page.files import read_pictures
    from layered_cli.page.settings import Settings
    from layered_core.formats.pictures import write_picture

    for name in "ab":
        write_picture(torch.ones(300, 300, 4), tmp_path / f"{name}.png")
    with pytest.raises(LayeredError, match="--memory-limit"):
        read_pictures([str(x) for x in sorted(tmp_path.iterdir())], Settings(memory_limit=0.002).limits)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("steps", 0, "steps is 0; allowed: a whole number 1..1000"),
        ("alpha", "x", "alpha is 'x'; allowed: auto, difference, mask, transparent"),
        ("memory_limit", 0, "memory_limit is 0; allowed"),
        ("port", 70000, "port is 70000; allowed: a whole number 1..65535"),
        ("file", Path("nowhere"), "belong together"),
    ],
)
def test_a_bad_option_is_named_before_anything_is_served(pipeline, option, value, told):
    with pytest.raises(LayeredError) as error:
        app.open_page(pipeline, **{option: value})
    assert told in str(error.value)


def test_a_taken_port_is_named(pipeline, page):
    with pytest.raises(LayeredError, match="the page cannot be served at 127.0.0.1:"):
        app.open_page(pipeline, port=page.server_port)


def test_a_model_without_files_for_transparency_paints_into_the_picture(gradio):
    from layered_cli.page.launch import _words
    from layered_cli.page.settings import Settings
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    transformer = LayeredDiffusionPipeline.from_pretrained("demo-transformer", device="cpu")
    words = _words(transformer, Settings())
    assert (words.alpha, words.has_transparency) == ("difference", False)
    with pytest.raises(LayeredError):
        _words(transformer, Settings(alpha="transparent"))
