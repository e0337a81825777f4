"""ComfyUI and the headless host sample the same by layered rendering, from the storybook's weights."""

import json

import pytest
from graph import node
from rendering_scene import guided, render
from safetensors.torch import load_file

CASES = ("words", "words guided", "apart", "constant", "picture", "noise", "paper", "fast")


@pytest.fixture(scope="module")
def reference(run_headless, tmp_path_factory):
    """The headless host's latents by case, and what it was given."""
    folder = tmp_path_factory.mktemp("rendering")
    run_headless("rendering_reference.py", folder)
    return load_file(folder / "sampled.safetensors"), json.loads((folder / "given.json").read_text())


@pytest.fixture(scope="module")
def vae(host):
    return host.value({"loader": node("LD_LoadDemoModel")}, "loader", 2)


@pytest.mark.parametrize("case", CASES)
def test_both_hosts_sample_the_same(regions, loaded, vae, reference, case):
    tensors, given = reference
    assert tuple(given["cases"]) == CASES
    settings, then = given["cases"][case]
    if "constant" in settings:
        settings["constant"] = "#" + "".join(f"{round(255 * c):02x}" for c in settings["constant"])
    document = regions.document.LayerDocument(
        128, 128,
        tuple(
            regions.document.Layer(**layer, image=tensors[f"picture {i}"])
            for i, layer in enumerate(given["layers"])
        ),
    )  # fmt: skip
    values = {
        "share": 0.6,
        **settings,
        "then": then,
        "prompt": given["prompt"],
        "negative": given["negative"],
    }
    model, *words = render(regions, *loaded, regions.layers.write_stack(document), vae=vae, **values)
    sampling = model.get_model_object("model_sampling")
    sigmas = tensors["sigmas"]
    begun = (1 + sigmas[0] ** 2) ** 0.5 if sigmas[0] >= 0.99999 * float(sampling.sigma_max) else sigmas[0]
    ours = model.model.process_latent_in(guided(model, *words, tensors["start"] / begun, sigmas))
    theirs, plain = tensors[case], tensors["plain"]
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-3
    assert float((theirs - plain).norm() / plain.norm()) > 1e-2
