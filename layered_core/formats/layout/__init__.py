"""Lists of elements with boxes and words, as models trained on boxes take and language models write them.

* ``elements``: a document to elements; ``palette``: the dominant colours of a picture.
* ``reading``: elements to a document; ``finding``: where the list is; ``boxes``: how four numbers are a box;
  ``loose_json``: JSON as language models write it.

>>> from layered_core.formats.layout.elements import layout_of, plain_elements
>>> from layered_core.formats.layout.reading import read_layout
>>> text = 'Here it is: [{"bbox": [500, 250, 1000, 750], "desc": "a red ball",}]'
>>> document = read_layout(text, width=64, height=48).document
>>> [(layer.prompt, layer.x, layer.y, layer.width, layer.height) for layer in document]
[('a red ball', 16, 24, 32, 24)]
>>> plain_elements(layout_of(document))
[{'type': 'obj', 'bbox': [500, 250, 1000, 750], 'desc': 'a red ball'}]
"""
