"""Each line of docs/threats.md names tests that there are, and what the page says of the code as a whole is so."""

import ast
import functools
import re

import pytest
import rooms

PAGE = rooms.ROOT / "docs" / "threats.md"
LINES = re.findall(r"^\* (.+(?:\n  .+)*)", PAGE.read_text(encoding="utf-8"), re.M)
SHIPPED = {module: path for module, path in rooms.files().items() if not module.startswith("demo.train")}
PACK = {
    module: path
    for module, path in SHIPPED.items()
    if module.split(".")[0] in ("layered_core", "nodes", "demo")
}
CONNECTS = {
    "socket",
    "urllib.request",
    "http.client",
    "http.server",
    "requests",
    "httpx",
    "aiohttp",
    "ftplib",
}
UNPICKLES = {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Return the names that a file imports, as ``module`` and ``module.name``."""
    found = set()
    for item in ast.walk(tree(path)):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and not item.level:
            found |= {f"{item.module}.{alias.name}" for alias in item.names} | {item.module}
    return found


def calls(path):
    """Return what a file calls, as it is written: ``torch.load``."""
    return {ast.unparse(item.func) for item in ast.walk(tree(path)) if isinstance(item, ast.Call)}


def test_the_page_has_lines():
    assert len(LINES) > 20


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("**")[1][:50])
def test_each_line_names_tests_that_there_are(line):
    links = re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", line)
    assert links, "this line names no test"
    for name, file in links:
        defined = {x.name for x in ast.walk(tree(rooms.ROOT / file)) if isinstance(x, ast.FunctionDef)}
        assert name in defined, f"{file} has no {name}"


def test_no_module_opens_a_connection():
    assert {module: found for module, path in SHIPPED.items() if (found := imported(path) & CONNECTS)} == {}


def test_a_model_named_by_its_repository_is_looked_for_on_the_disk_only():
    asked = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in item.keywords}
        for path in SHIPPED.values()
        for item in ast.walk(tree(path))
        if isinstance(item, ast.Call)
        and ast.unparse(item.func).endswith(("snapshot_download", "hf_hub_download"))
    ]
    assert asked
    assert all(given.get("local_files_only") == "True" for given in asked)


def test_no_module_unpickles_or_runs_text():
    wrong = {}
    for module, path in SHIPPED.items():
        names = {name for name in imported(path) if name in UNPICKLES or name.split(".")[0] in UNPICKLES}
        # An error's class is no loader.
        names -= {"pickle", "pickle.UnpicklingError"} if "pickle.UnpicklingError" in names else set()
        names |= calls(path) & {"torch.load", "eval", "exec", "compile", "os.system", "numpy.load", "np.load"}
        if names:
            wrong[module] = names
    assert wrong == {}


def test_the_pack_adds_no_route_and_starts_no_program():
    """Of ComfyUI's server it uses the texts on nodes alone."""
    for path in PACK.values():
        assert not imported(path) & {"subprocess", "multiprocessing", "os.system"}, path
        used = re.findall(r"PromptServer\.instance\.?(\w*)", path.read_text(encoding="utf-8"))
        assert set(used) <= {"send_progress_text"}, path


def test_the_page_never_makes_html_of_text():
    makes = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|new Function|\beval\(|srcdoc")
    found = [
        (path.name, makes.findall(path.read_text("utf-8")))
        for part in ("web", "layered_cli")
        for path in (rooms.ROOT / part).rglob("*.js")
    ]
    assert found
    assert [x for x in found if x[1]] == []
