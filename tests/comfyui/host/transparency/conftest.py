"""Tiny models of every family, and LayerDiffuse Apply on them."""

import pytest
import tiny
import torch
from boot import BASE, pack_module
from graph import node
from layer_diffuse_scene import PICTURES


@pytest.fixture(scope="module")
def node_module(host):
    return pack_module("nodes.transparency.layer_diffuse_apply")


@pytest.fixture(scope="module")
def models(host):
    return {family: tiny.build(family, BASE / f"tiny_{family}") for family in ("sd15", "sdxl")}


@pytest.fixture(scope="module")
def vae(host):
    return host.value({"loader": node("LD_LoadDemoModel")}, "loader", 2)


@pytest.fixture(scope="module")
def words(host):
    loader = {"loader": node("LD_LoadDemoModel")}

    def encode(text):
        ((context, _),) = host.value(
            {**loader, "w": node("CLIPTextEncode", text=text, clip=["loader", 1])}, "w"
        )
        return [
            [
                context,
                {"pooled_output": torch.randn(1, 1280, generator=torch.Generator().manual_seed(len(text)))},
            ]
        ]

    return encode


@pytest.fixture
def applied(node_module, models, vae, words):
    """Return a function that gives the node's MODEL for a case."""

    def apply(case, *, model=None, pictures=PICTURES, weight=1.0, start=0.0, end=1.0, own=True, file=None):
        mode, family, name, contents = case
        model = model or models[family]
        if file is None:
            file = tiny.write(tiny.FOLDER, name, contents(tiny.shapes_of(models[family])))
        m = node_module.mode_of(mode)
        given = {"mode": mode, "file": file, **{p: pictures[p] for p in m.takes if p in pictures}}
        if m.takes:
            given["vae"] = vae
        if own and len(m.kinds) > 1:
            given |= {f"{f}_words": words(f"a {f}") for f in m.kinds[:-1]}
        return node_module.LayerDiffuseApply.execute(model, given, weight, start, end).args[0]

    return apply
