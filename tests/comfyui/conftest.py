"""Leave out the suites under host/: test_host.py runs them under ComfyUI's own python, and this python cannot
import them. In a run of more than these suites they start first, run beside the other tests, and are asked
last."""

from benchmarks.hosts.find import find_host

collect_ignore = ["host"]


def _is_of_host(item):
    return item.path.name == "test_host.py"


def pytest_collection_modifyitems(items):
    items.sort(key=_is_of_host)


def pytest_collection_finish(session):
    of_host = [item for item in session.items if _is_of_host(item)]
    beside = 0 < len(of_host) < len(session.items) and not session.config.option.collectonly
    if beside and not isinstance(find_host(), str):
        of_host[0].module.begun(session.config.option.markexpr)
