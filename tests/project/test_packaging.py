"""The files that the registry and pip read agree with each other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_requirements_are_the_projects_dependencies_and_no_framework():
    text = (ROOT / "pyproject.toml").read_text()
    declared = re.findall(r'"([^"]+)"', re.search(r"^dependencies = \[(.*?)\]", text, re.M | re.S).group(1))
    required = [
        x for x in (ROOT / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")
    ]
    assert required == declared
    assert not {re.split(r"[<>=]", x)[0] for x in declared} & {
        "torch",
        "torchvision",
        "numpy",
        "pillow",
        "opencv-python",
        "diffusers",
    }


def test_the_version_is_said_once_more_in_the_core():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert f'__version__ = "{version}"' in (ROOT / "layered_core" / "__init__.py").read_text()
