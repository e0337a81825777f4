"""ComfyUI and the headless host make the same layers at once, from the storybook's weights and the same noise."""

import json
import os
import subprocess
from pathlib import Path

import comfy.sample
import comfy.samplers
import pytest
from graph import generate_layers
from safetensors.torch import load_file
from sampling import LOADER

PACK = Path(__file__).resolve().parents[4]
REFERENCE = Path(__file__).resolve().parents[2] / "joint_layers_reference.py"
CASES = ("plain", "guided", "edited")
INPUTS = {"enhance": "enhancer", "self_mask": "self_mask"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The headless host's layers by case, and what it was given."""
    folder = tmp_path_factory.mktemp("joint")
    environment = {**os.environ, "PYTHONPATH": str(PACK)}
    subprocess.run(
        [os.environ["LAYERED_PYTHON"], str(REFERENCE), str(folder)], check=True, cwd=PACK, env=environment
    )
    return load_file(folder / "made.safetensors"), json.loads((folder / "given.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_both_hosts_make_the_same_document(host, pack, monkeypatch, reference, case):
    tensors, given = reference
    assert tuple(given["cases"]) == CASES
    options, held = given["cases"][case]
    theirs = {name.split("/")[1]: x for name, x in tensors.items() if name.startswith(f"{case}/")}
    noise, sigmas = theirs.pop("noise"), theirs.pop("sigmas")
    monkeypatch.setattr(comfy.sample, "prepare_noise", lambda *_: noise)
    monkeypatch.setattr(comfy.samplers, "calculate_sigmas", lambda *_: sigmas)
    how = given["how"]
    inputs = {
        "steps": how["steps"], "cfg": how["guidance"], "negative": how["negative"],
        **{INPUTS[k]: v for k, v in options.items()},
    }  # fmt: skip
    words = {"layer_prompts": "\n".join(given["layers"]), "background": given["background"]}
    node = pack("nodes.transparency.generate_layers").GenerateLayers
    if held:
        document = pack("layered_core.document")
        layers = [
            document.Layer(name, tensors[f"plain/{name}"], prompt=text, visible=name != "blend")
            for name, text in (
                ("background", given["background"]), *zip(given["layers"], given["layers"], strict=True),
                ("blend", given["prompt"]),
            )
        ]  # fmt: skip
        stack = pack("nodes.layers.socket").write_stack(document.LayerDocument(128, 128, tuple(layers)))
        words = {"layer_prompts": "", "layers": stack, "keep": ", ".join(held)}
    values = generate_layers(given["prompt"], **{**inputs, **words})["inputs"]
    values |= {name: host.value(LOADER, "loader", slot) for slot, name in enumerate(("model", "clip", "vae"))}
    (stack,), _ = node.execute(**values).result
    ours = {item["name"]: item["image"][0] for item in stack["layers"]}
    assert list(ours) == ["background", *given["layers"], "blend"]
    for name, picture in ours.items():
        other = theirs[name]
        if name in held:
            assert picture.equal(other), name
            continue
        seen, theirs_seen = (x[..., :3] * x[..., 3:] for x in (picture, other))
        assert float((seen - theirs_seen).norm() / theirs_seen.norm()) < 5e-3, name
        assert float((picture[..., 3] - other[..., 3]).abs().mean()) < 2e-3, name
    if case != "plain":
        plain = [tensors[f"plain/{name}"] for name in ours if name not in held]
        changed = [theirs[name] for name in ours if name not in held]
        assert all(float((a - b).abs().mean()) > 1e-3 for a, b in zip(plain[1:], changed[1:], strict=True))
