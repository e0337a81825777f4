"""Boxes that are drawn by mouse in ComfyUI's own editor become layers of words."""

import json

from box_editor import draw, open_editor


def test_drawn_boxes_become_layers_with_the_words_that_were_typed(page, server):
    open_editor(page)
    draw(page, 8, 8, 504, 216, "a starry sky")
    draw(page, 32, 256, 224, 480, "a red house")
    draw(page, 288, 256, 480, 352, "neon", text="OPEN")
    draw(page, 288, 384, 480, 480)
    prompt = page.prompt()
    elements = {"without_words": "leave out", "background": "element", "colours": 0, "layers": ["2", 0]}
    prompt["4"] = {"class_type": "LD_LayoutFromLayers", "inputs": elements, "_meta": {}}
    for node, source in (("5", ["4", 2]), ("6", ["2", 1])):
        prompt[node] = {"class_type": "PreviewAny", "inputs": {"source": source}, "_meta": {}}
    outputs = server.run(prompt)["outputs"]
    drawn = json.loads(outputs["5"]["text"][0])
    assert [(e["desc"], e.get("text")) for e in drawn] == [
        ("a starry sky", None),
        ("a red house", None),
        ("neon", "OPEN"),
    ]
    wanted = ([0, 0, 422, 1000], [500, 63, 938, 438], [500, 563, 688, 938])
    assert all(abs(a - b) <= 20 for e, box in zip(drawn, wanted) for a, b in zip(e["bbox"], box)), drawn
    assert "Without words: elements 4." in outputs["6"]["text"][0]
