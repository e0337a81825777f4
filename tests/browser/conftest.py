"""One ComfyUI server for all browser tests, and a page for each test file."""

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
    # The page is closed after each file, because without a graphics card an open page keeps a core busy.
    with pages.browser() as new:
        yield new(server)


@pytest.fixture(autouse=True)
def no_complaint_of_ours(page):
    """Fail a test after which the browser's console has an error that names us."""
    page.complaints.clear()
    yield
    assert page.complaints == []
