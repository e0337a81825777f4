"""Run the notebook from top to bottom and store what it prints and shows in it: ``make notebook``."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "layered_diffusion.ipynb"


def read():
    """The notebook in the repository."""
    return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook, folder):
    """Run the notebook's cells in ``folder``, with the packages of this checkout, in place of what is stored in it.

    Raises nbclient's CellExecutionError if a cell raises.
    """
    with tempfile.TemporaryDirectory() as settings:
        own = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": settings}
        client = NotebookClient(
            notebook,
            timeout=600,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(env={**os.environ, **own})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # Pillow gives each picture in both formats.
            output.get("data", {}).pop("image/jpeg", None)
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = run(read(), folder)
    made.metadata.language_info = {"name": "python"}
    nbformat.validate(made)
    nbformat.write(made, NOTEBOOK)
