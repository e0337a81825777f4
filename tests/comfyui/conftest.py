"""Leave out the suites under host/: test_host.py runs them under ComfyUI's own python, and this python cannot
import them. In a run of more than these suites they start at once and run beside the other tests."""

from benchmarks.hosts.find import find_host

collect_ignore = ["host"]


def pytest_collection_finish(session):
    of_host = [item for item in session.items if item.path.name == "test_host.py"]
    if 0 < len(of_host) < len(session.items) and not session.config.option.collectonly:
        if not isinstance(find_host(), str):
            of_host[0].module.begun()
