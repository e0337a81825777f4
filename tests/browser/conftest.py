"""One ComfyUI server for all tests in a browser, and a page for each file of them."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui")]
import page as pages  # noqa: E402
from comfy_server import Server  # noqa: E402
from host_env import find_host  # noqa: E402

del sys.path[:2]


@pytest.fixture(scope="session")
def server(skip_suite, tmp_path_factory):
    host = find_host()
    missing = host if isinstance(host, str) else pages.find_browser()[1]
    if missing:
        skip_suite("ComfyUI in a browser", missing)
    server = Server(*host, tmp_path_factory.mktemp("comfyui") / "base")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(server):
    # Not longer: an open page keeps a core busy where there is no graphics card.
    with pages.browser() as new:
        yield new(server)


@pytest.fixture(autouse=True)
def no_complaint_of_ours(page):
    """Whatever a test does, the console must hold no error that names us."""
    page.complaints.clear()
    yield
    assert page.complaints == []
