"""Sets in COCO's format that are drawn from the storybook, for tests."""

import json

import numpy as np
from pycocotools import mask as coco_masks

from layered_core.metrics.layout_metrics import mask_boxes

SIDE = 128
"""Side of the storybook's pictures in pixels."""


def runs(mask, compressed):
    """Return a mask as a run-length code, by COCO's own code."""
    if compressed:
        code = coco_masks.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}
    pixels = mask.numpy().T.ravel() > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], pixels]).astype(int)))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, pixels.size]).tolist()}


def polygons(mask):
    """Return a mask as polygons: a rectangle for every run of pixels of a row."""
    found = []
    for y, row in enumerate(mask.numpy() > 0):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int)))
        for left, right in zip(edges[::2].tolist(), edges[1::2].tolist()):
            found.append([left, y, right, y, right, y + 1, left, y + 1])
    return found


def write_set(folder, cases, outlines="runs"):
    """Write the storybook's scenes as COCO's caption and instance files."""
    names = sorted({f"{t.colour} {t.kind}" for c in cases for t in c.things})
    draw = {
        "runs": lambda m: runs(m, False),
        "compressed": lambda m: runs(m, True),
        "polygons": polygons,
    }[outlines]
    images, captions, instances = [], [], []
    for number, case in enumerate(cases):
        images.append({"id": number, "width": SIDE, "height": SIDE, "file_name": f"{number}.jpg"})
        captions.append({"id": number, "image_id": number, "caption": case.words})
        for thing, mask, box in zip(case.things, case.masks, mask_boxes(case.masks).tolist(), strict=True):
            left, top, right, bottom = box
            instances.append(
                {
                    "id": len(instances), "image_id": number, "iscrowd": 0,
                    "category_id": names.index(f"{thing.colour} {thing.kind}"),
                    "bbox": [left, top, right - left, bottom - top], "segmentation": draw(mask),
                }
            )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "captions_val2017.json", {"images": images, "annotations": captions})
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    write(
        folder / "instances_val2017.json",
        {"images": images, "annotations": instances, "categories": categories},
    )
    return folder


def write(path, table):
    path.write_text(json.dumps(table))


def change(path, edit):
    """Change a JSON file in place."""
    table = json.loads(path.read_text())
    edit(table)
    write(path, table)
