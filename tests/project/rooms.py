"""The order of the project's rooms, and functions that find the imports which break it."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ROOMS = (
    "layered_core.errors",
    "layered_core.progress",
    "layered_core.document",
    "layered_core.canvas",
    "layered_core.formats",
    "layered_core.files",
    "layered_core.noise",
    "layered_core.editing",
    "layered_core.control",
    "layered_core.attention",
    "layered_core.learning",
    "layered_core.painting",
    "layered_core.rendering",
    "layered_core.transparency",
    "layered_core.joint",
    "layered_core.metrics",
    "demo.world",
    "nodes.layers",
    "nodes.measure",
    "nodes.demo",
    "nodes.noise",
    "nodes.control",
    "nodes.attention",
    "nodes.transparency",
    "nodes.rendering",
    "nodes.stages",
    "nodes",
    "layered_diffusers.models",
    "layered_diffusers.sampling",
    "layered_diffusers.methods",
    "layered_diffusers.generator",
    "layered_diffusers.learning",
    "layered_diffusers.transformer",
    "layered_diffusers.transparent",
    "layered_diffusers.together",
    "layered_diffusers.transplant",
    "layered_diffusers.editing",
    "layered_diffusers.stages",
    "layered_diffusers.pipeline",
    "layered_diffusers.dataset",
    "layered_diffusers",
    "demo",
    "benchmarks.hosts",
    "benchmarks",
    "layered_cli",
)
"""The rooms from the lowest to the highest: a room may import itself and rooms before it in this list. A file
belongs to the room with the longest name that fits."""

OPEN = {"layered_core"}
"""Modules that any room may import: the core's own holds the version and imports nothing."""

PARTS = tuple(sorted({room.split(".")[0] for room in ROOMS}))


def files(root=ROOT):
    """Return {module: path} of every file of ours, in all sub-folders."""
    found = {}
    for part in PARTS:
        for path in sorted((root / part).rglob("*.py")):
            names = path.relative_to(root).with_suffix("").parts
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def room_of(module):
    """Return the room of a module, or None if it is in no room."""
    fitting = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default=None)


@functools.cache
def statements(text):
    """Return the import statements of a file's text: at the top and inside functions."""
    return [x for x in ast.walk(ast.parse(text)) if isinstance(x, (ast.Import, ast.ImportFrom))]


def imports(module, path, known):
    """Return the modules of ours that a file imports: at the top, inside functions, and for types only."""
    found = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for item in statements(path.read_text(encoding="utf-8")):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names if alias.name in known and alias.name != "nodes"}
        else:
            # ComfyUI imports the pack's folder as the package above "nodes", so ...layered_core is ours too.
            above = package.split(".")[: len(package.split(".")) - item.level + 1] if item.level else []
            base = ".".join([*above, *([item.module] if item.module else [])])
            if not item.level and base.split(".")[0] == "nodes":
                continue  # ComfyUI's own module
            for alias in item.names:
                inner = f"{base}.{alias.name}"
                found |= {inner} if inner in known else {base} if base in known else set()
    return found - OPEN - {module}


def graph(root=ROOT):
    """Return {module: modules of ours that it imports}."""
    known = files(root)
    return {module: imports(module, path, known) for module, path in known.items()}


def backward(arrows):
    """Return a line for every import of a higher room."""
    order = {room: index for index, room in enumerate(ROOMS)}
    wrong = []
    for module, targets in sorted(arrows.items()):
        for target in sorted(targets):
            here, there = room_of(module), room_of(target)
            if here is None or there is None:
                wrong.append(
                    f"{module} imports {target}: one of them is in no room of tests/project/rooms.py"
                )
            elif order[there] > order[here]:
                wrong.append(f"{module} (room {here}) imports {target} (room {there}, which is above it)")
    return wrong


def circles(arrows):
    """Return the groups of modules that import each other in a circle (Tarjan's strongly connected
    components)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(arrows[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(arrows):
        if module not in index:
            visit(module)
    return found


COMFYUI = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server")
DIFFUSERS = ("diffusers", "transformers")
FOREIGN = {
    "layered_core": (*COMFYUI, *DIFFUSERS, "layered_core"),
    "layered_diffusers": COMFYUI,
    "nodes": (*DIFFUSERS, *PARTS),
    "demo/world": (*COMFYUI, *DIFFUSERS),
    "layered_cli": COMFYUI,
}
"""Modules that a room must not import by their full names. The core and the nodes import the project
relatively, because ComfyUI loads the pack under a name that it chooses and has a module of its own called
nodes."""


def foreign(root=ROOT):
    """Return a line for every import in :data:`FOREIGN`."""
    wrong = []
    for part, names in FOREIGN.items():
        for path in sorted((root / part).rglob("*.py")):
            for item in statements(path.read_text(encoding="utf-8")):
                found = []
                if isinstance(item, ast.Import):
                    found = [alias.name for alias in item.names]
                elif not item.level:
                    found = [item.module]
                wrong += [
                    f"{path.relative_to(root).as_posix()} imports {x}"
                    for x in found
                    if x.split(".")[0] in names
                ]
    return wrong
