"""Pages of the site that are made of files outside ``docs``: help pages, workflows, docstrings, the README.

Nothing of them is copied into the repository: mkdocs calls :func:`on_files` when it builds the site.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

PAGES = {"README.md": "first_steps.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the repository's top folder, and what they are called on the site."""

CATEGORIES = (
    "layers",
    "attention",
    "noise",
    "stages",
    "control",
    "transparency",
    "training",
    "models",
    "demo",
    "measure",
)
"""Categories of nodes, in the order of the list of nodes."""


def on_config(config: Any) -> Any:
    """Put the files of a folder in the place of ``folder/*`` in the list of pages."""
    config.nav = [_listed(entry) for entry in config.nav]
    return config


def _listed(entry: Any) -> Any:
    if isinstance(entry, str):
        return entry
    ((title, target),) = entry.items()
    if isinstance(target, list):
        return {title: [_listed(item) for item in target]}
    match target:
        case "decisions/*":
            return {title: ["decisions/index.md", *(f"decisions/{x.name}" for x in decisions())]}
        case "api/*":
            return {title: ["api/index.md", *({room: f"api/{room}.md"} for room in rooms())]}
        case "nodes/*":
            kinds = [{kind: [f"nodes/{x}.md" for x in names]} for kind, names in nodes_by_category().items()]
            return {title: ["nodes/index.md", *kinds]}
    return entry


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Give pages that stand alone the width of the list of pages, and the gallery all of it."""
    if page.parent is None:
        gallery = page.file.src_uri == "workflows/README.md"
        page.meta["hide"] = ["navigation", "toc"] if gallery else ["navigation"]
    return markdown


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie elsewhere."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        _add(
            files,
            config,
            target,
            content=text.replace("# Layered Diffusion\n", "# First steps\n", 1),
            source=source,
        )
    _add(files, config, "decisions/index.md", content=_decision_list(), source="docs/decisions/README.md")
    _add_nodes(files, config)
    _add_workflows(files, config)
    for room, modules in rooms().items():
        _add(files, config, f"api/{room}.md", content=_room_page(room, modules))
    _add(files, config, "api/index.md", content=_core_page())
    return files


def _add(
    files: Files,
    config: Any,
    target: str,
    content: str | None = None,
    path: Path | None = None,
    source: str = "",
) -> None:
    """Add a file: either ``content``, whose links start from ``source`` in the repository, or the file ``path``."""
    file = File.generated(config, target, content=content, abs_src_path=path and str(path))
    config.extra.setdefault("sources", {})[target] = source
    if target in files.src_uris:
        files.remove(files.src_uris[target])
    files.append(file)


# Decisions


def decisions() -> list[Path]:
    """Return the pages of decisions, in order."""
    return sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def title_of(path: Path) -> str:
    """Return the title of a page, the first line without its mark."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _decision_list() -> str:
    lines = [f"* [{title_of(path).replace('. ', '&#46; ', 1)}]({path.name})" for path in decisions()]
    return "\n".join(["# Decisions", "", "Why things are as they are, a page each.", "", *lines, ""])


# Nodes


def labels(language: str) -> dict[str, Any]:
    """Return the labels of all nodes in a language."""
    path = ROOT / "locales" / language / "nodeDefs.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def nodes_by_category() -> dict[str, list[str]]:
    """Return the nodes' ids by category, read from the sources: only ComfyUI can import them."""
    found: dict[str, list[str]] = {kind: [] for kind in CATEGORIES}
    constants: dict[str, str] = {}
    schemas: list[tuple[str, ast.expr, Path]] = []
    for path in sorted((ROOT / "nodes").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for item in ast.walk(tree):
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant):
                for name in item.targets:
                    if isinstance(name, ast.Name) and name.id == "CATEGORY":
                        constants[str(path.parent)] = item.value.value
            if isinstance(item, ast.Call) and getattr(item.func, "attr", "") == "Schema":
                values = {keyword.arg: keyword.value for keyword in item.keywords}
                name = values["node_id"]
                assert isinstance(name, ast.Constant)
                schemas.append((str(name.value), values["category"], path))
    for node, category, path in schemas:
        whole = category.value if isinstance(category, ast.Constant) else constants[str(path.parent)]
        found[str(whole).rpartition("/")[2]].append(node)
    return {
        kind: sorted(names, key=lambda name: labels("en")[name]["display_name"])
        for kind, names in found.items()
    }


def _add_nodes(files: Files, config: Any) -> None:
    """Add the nodes' help pages, in English and Chinese, their pictures and a list."""
    docs = ROOT / "web" / "docs"
    for path in sorted(docs.rglob("*")):
        name = path.relative_to(docs).as_posix()
        node = path.parent.name
        if path.suffix == ".jpg":
            _add(files, config, f"nodes/{name}", path=path)
        elif path.name == "en.md":
            text = path.read_text(encoding="utf-8")
            other = f"[中文]({node}/zh.md)"
            _add(
                files, config, f"nodes/{node}.md", content=_with_line(text, other), source="web/docs/page.md"
            )
        elif path.name == "zh.md":
            text = path.read_text(encoding="utf-8")
            other = f"[English]({node}/en.md)"
            _add(files, config, f"zh/{node}.md", content=_with_line(text, other), source="web/docs/page.md")
    lines = [
        "# Nodes",
        "",
        "Every node of the pack: what it is for, its inputs and outputs. ComfyUI shows the same pages.",
    ]
    for kind, names in nodes_by_category().items():
        lines += ["", f"## {kind}", "", "| node | |", "|---|---|"]
        for name in names:
            entry = labels("en")[name]
            text = entry["description"].replace("|", "\\|").replace("\n", " ")
            lines.append(f"| [{entry['display_name']}]({name}/en.md) | {text} |")
    _add(files, config, "nodes/index.md", content="\n".join([*lines, ""]), source="web/docs/page.md")


def _with_line(page: str, line: str) -> str:
    """Return a page with a line under its title."""
    title, _, rest = page.partition("\n")
    return f"{title}\n\n{line}{{ .language }}\n{rest}"


# Workflows


def workflows() -> list[tuple[str, str, str]]:
    """Return (name, title, what it shows) of every workflow, from the table in ``workflows/README.md``."""
    text = (ROOT / "workflows" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \[(\w+)\]\(\w+\.json\) \| (.+?) \| (.+?) \|$", text, re.M)


def _add_workflows(files: Files, config: Any) -> None:
    """Add the gallery of workflows, with their pictures and files."""
    folder = ROOT / "workflows"
    for path in sorted([*folder.glob("*.jp*"), *folder.glob("*.json"), *folder.glob("api/*.json")]):
        _add(files, config, f"workflows/{path.relative_to(folder).as_posix()}", path=path)
    text = (folder / "README.md").read_text(encoding="utf-8")
    cards = "\n".join(_card(*workflow) for workflow in workflows())
    table = re.compile(r"^\|.*\n(\|.*\n)+", re.M)
    page = table.sub(lambda _: f'<div class="gallery">\n{cards}\n</div>\n', text, count=1)
    page = page.replace("# Templates", "# Workflows", 1)
    _add(files, config, "workflows/README.md", content=page, source="workflows/README.md")


def _card(name: str, title: str, text: str) -> str:
    """Return one workflow as HTML: its picture and title lead to the JSON file, which the browser saves."""
    text = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)
    return (
        f'<figure class="card" id="{name}"><a href="{name}.json" download title="Save {name}.json">'
        f'<img src="{name}.jpg" alt="{title}" loading="lazy"></a>'
        f"<figcaption><strong>{title}</strong><span>{text}</span>"
        f'<span class="files"><a href="{name}.json" download>{name}.json</a> '
        f'<a href="api/{name}.json" download>for /prompt</a></span></figcaption></figure>'
    )


# The core


def rooms() -> dict[str, list[str]]:
    """Return the modules of each room of the core; its single modules are rooms of their own."""
    core = ROOT / "layered_core"
    found: dict[str, list[str]] = {}
    for path in sorted(core.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("_"):
            found[path.stem] = [f"layered_core.{path.stem}"]
        elif (path / "__init__.py").is_file():
            parts = [x.relative_to(ROOT).with_suffix("").parts for x in sorted(path.rglob("*.py"))]
            modules = [".".join(x[:-1] if x[-1] == "__init__" else x) for x in parts]
            found[path.name] = [x for x in modules if x != f"layered_core.{path.name}"]
    first = ["document", "files", "canvas"]
    return {name: found[name] for name in [*first, *(name for name in found if name not in first)]}


def _room_page(room: str, modules: list[str]) -> str:
    """Return a page that mkdocstrings fills with a room's docstrings."""
    if modules == [f"layered_core.{room}"]:
        return f"# {room} {{ #layered_core.{room} }}\n\n::: layered_core.{room}\n"
    lines = [
        f"# {room} {{ #layered_core.{room} }}",
        "",
        f"::: layered_core.{room}",
        "    options:",
        "      members: false",
        "",
    ]
    for module in modules:
        name = module.removeprefix(f"layered_core.{room}.")
        lines += [f"## {name} {{ #{module} }}", "", f"::: {module}", ""]
    return "\n".join(lines)


def _core_page() -> str:
    """Return the page of the core as a whole."""
    lines = [
        "# The core in Python",
        "",
        "::: layered_core",
        "    options:",
        "      members: false",
        "",
        "## Pages",
        "",
    ]
    lines += [f"* [{room}]({room}.md)" for room in rooms()]
    return "\n".join([*lines, ""])
