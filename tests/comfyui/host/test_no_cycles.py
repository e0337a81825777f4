"""A MODEL of ours goes as soon as nothing needs it, without a search for garbage. While a patcher waits in a cycle for
that search, ComfyUI holds its weights as loaded; when it ends together with the one it was cloned from, ComfyUI speaks
of a memory leak."""

import gc
import weakref

import pytest
import tiny
from PIL import Image
from sampling import LOADER, models, sample
from test_no_leaks import EXAMPLES

import nodes as comfy_nodes

GIVE_MODELS = (
    "LD_LayerDiffuseApply",
    "LD_LayerTrainingData",
    "LD_LayeredRendering",
    "LD_LoadDemoModel",
    "LD_MaskedModelPatch",
    "LD_PerLayerSDEdit",
    "LD_RegenerateLayers",
    "LD_RegionalPromptAttention",
)


def models_of(node_id):
    """Return the slots at which a node gives a MODEL."""
    outputs = comfy_nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA().outputs
    return [slot for slot, output in enumerate(outputs) if output.get_io_type() == "MODEL"]


@pytest.fixture
def no_search():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_every_node_that_gives_a_model_is_looked_at(host):
    assert [node_id for node_id in sorted(EXAMPLES) if models_of(node_id)] == list(GIVE_MODELS)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("node_id", GIVE_MODELS)
def test_a_model_goes_with_the_last_that_needs_it(host, no_search, node_id, sampled):
    Image.new("RGBA", (16, 16), (255, 0, 0, 255)).save(host.input / "red.png")
    host.fresh()
    model, positive, negative = models(host)
    tiny.write(tiny.FOLDER, "random_lora", tiny.forge_lora(tiny.shapes_of(model)))
    prompt = {**LOADER, **EXAMPLES[node_id]}
    given = host.value(prompt, "it" if "it" in prompt else "loader", models_of(node_id)[0])
    if sampled:
        sample(given, positive, negative)
    seen = weakref.ref(given)
    # The executor, its caches and the last that was caught may hold each other, but nothing of ours.
    host.value(prompt, "loader", 2)
    host.fresh()
    del model, positive, negative
    gc.collect()
    assert seen() is given
    del given
    assert seen() is None


def test_a_model_in_a_cycle_is_found(host, no_search):
    model, _, _ = models(host)
    held = model.clone()
    held.model_options["held"] = [held]
    seen = weakref.ref(held)
    del held
    assert seen() is not None
    gc.collect()
    assert seen() is None
