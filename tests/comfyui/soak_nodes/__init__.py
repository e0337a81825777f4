"""Nodes and addresses for ``soak.py`` alone, in a ComfyUI server: models that stay the same objects from prompt to
prompt, a model that breaks while it samples, and counts of what is alive."""

import ctypes
import faulthandler
import gc
import hashlib
import signal
import sys
import threading
from collections import Counter

import torch
from aiohttp import web
from comfy import model_management
from comfy_execution import progress
from server import PromptServer

import nodes

faulthandler.register(signal.SIGUSR1)  # soak.py asks where the server is when a prompt does not end

KEPT = {}
"""What each of the pack's loaders gave: {(class, network): outputs}."""


def _kept(loader, **inputs):
    """Return what one of the pack's loaders gives, which is loaded once."""
    key = (loader, *inputs.values())
    if key not in KEPT:
        KEPT[key] = nodes.NODE_CLASS_MAPPINGS[loader].execute(**inputs).args
    return KEPT[key]


class KeptModels:
    """Load Demo Model, but with the same MODEL, CLIP and VAE for all prompts. Another ``number`` makes ComfyUI run
    all that depends on them anew."""

    INPUT_TYPES = staticmethod(
        lambda: {
            "required": {"number": ("INT", {"max": 2**31})},
            "optional": {"network": (["UNet", "transformer"],)},
        }
    )
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "LATENT")
    FUNCTION = "give"
    CATEGORY = "soak"

    def give(self, number, network="UNet"):
        return _kept("LD_LoadDemoModel", network=network)


class KeptControlNet:
    """Load Demo ControlNet, in the same way."""

    INPUT_TYPES = staticmethod(lambda: {"required": {"number": ("INT", {"max": 2**31})}})
    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "give"
    CATEGORY = "soak"

    def give(self, number):
        return _kept("LD_LoadDemoControlNet")


class BreakInSampling:
    """A clone of a MODEL that raises an error at its second step."""

    INPUT_TYPES = staticmethod(lambda: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "soak"

    def patch(self, model):
        calls = []

        def raise_at_second(args):
            calls.append(args["sigma"])
            if len(calls) > 1:
                raise RuntimeError("broken on purpose")
            return args["denoised"]

        model = model.clone()
        model.set_model_sampler_post_cfg_function(raise_at_second)
        return (model,)


NODE_CLASS_MAPPINGS = {
    "SoakModels": KeptModels,
    "SoakControlNet": KeptControlNet,
    "SoakBreak": BreakInSampling,
}


def _patchers():
    """Return {name: ModelPatcher} of the kept models, which are loaded if they are not yet."""
    found = {}
    for network in ("UNet", "transformer"):
        model, clip, vae, _ = _kept("LD_LoadDemoModel", network=network)
        found |= {
            f"{network} model": model,
            f"{network} clip": clip.patcher,
            f"{network} vae": vae.patcher,
        }
    (control,) = _kept("LD_LoadDemoControlNet")
    return {**found, "control net": control.control_model_wrapped}


def _checksum(network):
    """Return the SHA-256 of a network's weights: names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        weight = weight.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _MallInfo(ctypes.Structure):
    """What glibc tells of its heap: ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _give_back():
    """Give free memory back to the system, and return how many bytes are in use, without those of small Python
    objects."""
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc_trim(0)
    libc.mallinfo2.restype = _MallInfo
    told = libc.mallinfo2()
    return told.uordblks + told.hblkhd


def _outline(value):
    """Return what a patcher's settings hold, as text that is the same for the same settings."""
    if isinstance(value, dict):
        inner = ", ".join(f"{k}: {_outline(v)}" for k, v in sorted(value.items(), key=lambda x: str(x[0])))
        return f"{{{inner}}}"
    if isinstance(value, list | tuple | set):
        return f"[{', '.join(map(_outline, value))}]"
    return getattr(value, "__qualname__", None) or repr(value)


SETTINGS = (
    "patches",
    "object_patches",
    "weight_wrapper_patches",
    "model_options",
    "hook_patches",
    "attachments",
    "additional_models",
    "callbacks",
    "wrappers",
    "injections",
    "patches_uuid",
    "backup",
    "object_patches_backup",
)


@PromptServer.instance.routes.get("/soak/models")
async def models(request):
    """Answer with the checksum and the settings of each kept model. They must not be on their device, where LoRAs
    of the last prompt may be added to their weights: free the memory before."""
    return web.json_response(
        {
            name: {
                "weights": _checksum(patcher.model),
                **{setting: _outline(getattr(patcher, setting)) for setting in SETTINGS},
            }
            for name, patcher in _patchers().items()
        }
    )


@PromptServer.instance.routes.get("/soak/alive")
async def alive(request):
    """Answer with counts of what is alive after a search for garbage, and give free memory back to the system.
    ``executor`` counts the threads in which asyncio reads files: as many as were busy at once, at most cores + 4."""
    gc.collect()
    in_use = _give_back()
    everything = gc.get_objects()
    tensors = [x for x in everything if type(x) in (torch.Tensor, torch.nn.Parameter)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return web.json_response(
        {
            "in_use": in_use / 2**20,
            "small_blocks": sys.getallocatedblocks(),
            "executor": sum(x.name.startswith("asyncio_") for x in threading.enumerate()),
            "tensors": len(tensors),
            "tensor_bytes": sum(storages.values()),
            "objects": len(everything),
            "loaded": len(model_management.current_loaded_models),
            "shapes": Counter(f"{x.dtype} {tuple(x.shape)}" for x in tensors).most_common(),
            "types": Counter(f"{type(x).__module__}.{type(x).__qualname__}" for x in everything).most_common(
                400
            ),
        }
    )


@PromptServer.instance.routes.get("/soak/progress")
async def running(request):
    """Answer with [node, steps done, steps in all] of the nodes that run."""
    state = progress.get_progress_state()
    return web.json_response(
        [
            [node, entry["value"], entry["max"]]
            for node, entry in list(state.nodes.items())
            if entry["state"] == progress.NodeState.Running
        ]
    )


LEFT = []


@PromptServer.instance.routes.get("/soak/spoil")
async def spoil(request):
    """Change one weight of a kept model and hold 100 MB, to try whether that is found."""
    (weight, *_) = _patchers()["UNet model"].model.parameters()
    weight.data.view(-1)[0] += 1
    LEFT.append(torch.ones(25 * 2**20))
    return web.json_response({})
