"""Stages as nodes of a graph: a sky, a tree, and the nodes that a test adds."""

from graph import add_layer
from sampling import LOADER


def add(prompt="a red ball", **inputs):
    return add_layer(prompt, **inputs)


def stages(tree="a green tree", **others):
    return {
        **LOADER,
        "sky": add("at night", name="sky", width=128, height=96),
        "tree": add(tree, name="tree", x=4, y=20, width=56, height=70, layers=["sky", 0]),
        "house": add("a white house", name="house", x=64, y=30, width=60, height=60, layers=["tree", 0]),
        **others,
    }
