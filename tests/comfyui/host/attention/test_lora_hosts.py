"""ComfyUI and the headless host sample the same with LoRAs of layers, from the storybook's weights and LoRA files."""

import json

import pytest
from lora_scene import write_file
from regional_scene import apply
from rendering_scene import guided
from safetensors.torch import load_file

CASES = ("shipped", "one on two", "everything", "all kinds", "two on one")


@pytest.fixture(scope="module")
def reference(run_headless, tmp_path_factory):
    """The headless host's latents by case, and what it was given."""
    folder = tmp_path_factory.mktemp("loras")
    run_headless("lora_reference.py", folder)
    for file in (folder / "loras").iterdir():
        write_file(file.stem, load_file(file))
    return load_file(folder / "sampled.safetensors"), json.loads((folder / "given.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_both_hosts_sample_the_same(regions, loaded, reference, case):
    tensors, given = reference
    assert tuple(given["cases"]) == CASES
    document = regions.document
    layers = tuple(
        document.Layer(
            **layer,
            recipe=document.Recipe(
                loras=tuple(document.Lora(*lora) for lora in given["cases"][case].get(layer["name"], ()))
            ),
        )
        for layer in given["layers"]
    )
    stack = regions.layers.write_stack(document.LayerDocument(128, 128, layers))
    given_words = {"prompt": given["prompt"], "negative": given["negative"]}
    model, *words = apply(regions, *loaded, stack, growth=0.1, **given_words)[:3]
    sampling = model.get_model_object("model_sampling")
    sigmas = tensors["sigmas"]
    begun = (1 + sigmas[0] ** 2) ** 0.5 if sigmas[0] >= 0.99999 * float(sampling.sigma_max) else sigmas[0]
    ours = model.model.process_latent_in(guided(model, *words, tensors["start"] / begun, sigmas))
    theirs, without = tensors[case], tensors["none"]
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-3
    assert float((theirs - without).norm() / without.norm()) > 1e-2
