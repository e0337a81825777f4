"""One ComfyUI server for all tests in a browser, and a page for each file of them."""

import page as pages
import pytest
from comfy_server import NotStartedError, Server

from benchmarks.hosts.find import find_host


@pytest.fixture(scope="session")
def server(skip_suite, could_not_start, tmp_path_factory):
    host = find_host()
    missing = host if isinstance(host, str) else pages.find_browser()[1]
    if missing:
        skip_suite("ComfyUI in a browser", missing)
    try:
        server = Server(*host, tmp_path_factory.mktemp("comfyui") / "base")
    except NotStartedError as error:
        could_not_start("ComfyUI's server", str(error))
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
