"""A real ComfyUI without a server, with this repository's pack. It runs under the host's own python, see
../test_host.py."""

import gc
import json
import os
import random
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from boot import BASE, LOOP, PACK, load_extras, load_pack, pack_module  # isort: skip  # first: it makes ComfyUI importable

import comfy.model_management
import comfyui_version
import execution
import folder_paths
import pytest
import torch
from decompose_scene import LayeredModel
from diffusers import ControlNetModel
from graph import node

import nodes


class NoServer:
    """The part of a server that the executor uses."""

    client_id = last_node_id = last_prompt_id = None
    sockets_metadata: dict = {}

    def __init__(self):
        self.events = []

    def send_sync(self, event, data, sid=None):
        self.events.append((event, data))

    def queue_updated(self):
        pass


class Host:
    """A ComfyUI in this process."""

    def __init__(self):
        self.input = BASE / "input"
        self.output = BASE / "output"
        self.fresh()

    def fresh(self):
        """Take an executor with empty caches, and unload all models.

        The executor before goes in one piece, with a MODEL and its clones. ComfyUI could not tell any more
        whose weights are loaded, and would collect garbage at every load.
        """
        comfy.model_management.unload_all_models()
        self.server = NoServer()
        self.executor = execution.PromptExecutor(
            self.server,
            cache_type=execution.CacheType.CLASSIC,
            cache_args={"ram": 0, "ram_inactive": 0, "lru": 0},
        )

    def validate(self, prompt):
        """Check a prompt as the server's /prompt does; return (valid, error, outputs, node errors)."""
        for item in prompt.values():
            item.pop(
                "is_changed", None
            )  # the executor writes it into the prompt, and trusts it when it reads the prompt again
        return LOOP.run_until_complete(execution.validate_prompt("id", prompt, None))

    def run(self, prompt):
        """Run an API prompt and return ``{node id: ui output}``."""
        valid, error, outputs, node_errors = self.validate(prompt)
        assert valid, (error, node_errors)
        LOOP.run_until_complete(self.executor.execute_async(prompt, f"id{random.random()}", {}, outputs))
        assert self.executor.success, self.executor.status_messages
        return self.executor.history_result["outputs"]

    def error_of(self, prompt):
        """Run a prompt that must fail and return the text of the error that the user gets."""
        valid, error, outputs, node_errors = self.validate(prompt)
        if not valid:
            return str(error) + str(node_errors)
        LOOP.run_until_complete(self.executor.execute_async(prompt, f"id{random.random()}", {}, outputs))
        assert not self.executor.success, "the prompt ran through"
        event, details = self.executor.status_messages[-1]
        return details["exception_message"] if event == "execution_error" else event

    def value(self, prompt, node, slot=0):
        """Run ``prompt`` and return the output of ``node`` at ``slot``; other nodes without a following node
        are left out."""
        caught = []
        Catch.caught = caught
        prompt = {
            **prompt,
            "catch": {"class_type": "TestCatch", "inputs": {"value": [node, slot]}, "_meta": {}},
        }
        valid, error, _, node_errors = self.validate(prompt)
        assert valid, (error, node_errors)
        LOOP.run_until_complete(self.executor.execute_async(prompt, f"id{random.random()}", {}, ["catch"]))
        assert self.executor.success, self.executor.status_messages
        return caught[-1]


class Catch:
    """A node that keeps its inputs."""

    caught: list = []
    RETURN_TYPES = ()
    FUNCTION = "catch"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": ("*",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):  # noqa: N802
        return True

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return random.random()

    def catch(self, value):
        Catch.caught.append(value)
        return ()


def random_controlnet(shape):
    """Return diffusers' ControlNet for a UNet of that config, with random weights that change the result."""
    torch.manual_seed(0)
    model = ControlNetModel(
        in_channels=shape["in_channels"], down_block_types=tuple(shape["down_block_types"]),
        layers_per_block=shape["layers_per_block"],
        block_out_channels=tuple(shape["block_out_channels"]), cross_attention_dim=shape["cross_attention_dim"],
        attention_head_dim=shape["attention_head_dim"],
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(parameter, std=0.03)
    return model


class ControlNet:
    """A node that outputs a ControlNet of the storybook model's shape with random weights."""

    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def load(self):
        demo, control = pack_module("nodes.demo.demo_model"), pack_module("nodes.demo.demo_control")
        shape = json.loads((demo.MODEL / "unet" / "config.json").read_text())
        folder = BASE / "random_net"
        random_controlnet(shape).save_pretrained(folder / "controlnet")
        return (control.load_control(str(folder)),)


class PatchedModel:
    """A node that puts a patch of transformer blocks on a MODEL, as a control's node does."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    def apply(self, model):
        clone = model.clone()
        clone.set_model_double_block_patch(lambda arguments: {**arguments, "img": arguments["img"] * 2})
        return (clone,)


@pytest.fixture(scope="session")
def host(record_testsuite_property):
    gc.disable()
    load_extras()
    assert load_pack(), "ComfyUI could not load the pack: see the log above"
    # Without this line test_host.py reports that the whole run did not start.
    installed = [f"{name} {metadata.version(name)}" for name in ("torchvision", "transformers", "diffusers")]
    record_testsuite_property(
        "started",
        ", ".join([f"ComfyUI {comfyui_version.__version__}", f"torch {torch.__version__}", *installed]),
    )
    nodes.NODE_CLASS_MAPPINGS["TestCatch"] = Catch
    nodes.NODE_CLASS_MAPPINGS["TestControlNet"] = ControlNet
    nodes.NODE_CLASS_MAPPINGS["TestPatchedModel"] = PatchedModel
    nodes.NODE_CLASS_MAPPINGS["TestLayeredModel"] = LayeredModel
    folder_paths.set_input_directory(str(BASE / "input"))
    # The search for garbage leaves out what was loaded: half a second each time.
    gc.freeze()
    gc.enable()
    yield Host()
    shutil.rmtree(BASE, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_lost_models():
    """Forget loaded models whose MODEL is gone, while their weights are kept for other tests: ComfyUI would collect
    garbage at every load."""
    yield
    loaded = comfy.model_management.current_loaded_models
    loaded[:] = [model for model in loaded if model.real_model is None or not model.is_dead()]


@pytest.fixture(scope="session")
def pack(host):
    """Return a module of the pack by its path, e.g. ``pack("nodes.layers.socket")``, with the same objects
    that the nodes use."""
    return pack_module


@pytest.fixture(scope="session")
def run_headless():
    """Return ``run_headless(script, *arguments)``, which runs a script of tests/comfyui in the repository's own
    environment, all in one process."""
    scripts = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        [os.environ["LAYERED_PYTHON"], str(scripts / "headless.py")],
        cwd=PACK, env={**os.environ, "PYTHONPATH": str(PACK)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(script, *arguments):
        process.stdin.write(json.dumps([str(scripts / script), *map(str, arguments)]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the interpreter of {script} ended: see above"
        problem = json.loads(answer)
        assert problem is None, problem

    yield run
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def regions(pack):
    """Return the modules of regional attention."""

    class Regions:
        document = pack("layered_core.document")
        regional = pack("layered_core.attention.regional_attention")
        attention = pack("layered_core.attention.cross_attention")
        guidance = pack("layered_core.noise.guidance")
        layers = pack("nodes.layers.socket")
        patch = pack("nodes.attention.attention_patch")
        joint_regions = pack("layered_core.attention.joint_regions")
        prompts = pack("nodes.attention.prompt_tokens")
        node = pack("nodes.attention.regional_prompt_attention").RegionalPromptAttention
        error = pack("layered_core.errors").LayeredError

    return Regions


@pytest.fixture(scope="module")
def loaded(host):
    """The storybook's MODEL and CLIP."""
    host.fresh()
    loader = {"loader": node("LD_LoadDemoModel")}
    return host.value(loader, "loader", 0), host.value(loader, "loader", 1)


@pytest.fixture
def apply(pack):
    """Run Masked ControlNet Apply with its widgets at their defaults; return positive and negative."""

    def run(net, positive, negative, **values):
        values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "balanced", **values}
        return (
            pack("nodes.control.masked_control_apply")
            .MaskedControlNetApply.execute(positive, negative, net, **values)
            .result
        )

    return run


@pytest.fixture
def weigh(pack):
    """Run Masked Model Patch with its widgets at their defaults; return the model."""

    def run(model, base, **values):
        values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **values}
        node = pack("nodes.control.masked_model_patch").MaskedModelPatch
        return node.execute(model, base, **values).result[0]

    return run
