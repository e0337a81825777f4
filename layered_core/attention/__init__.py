"""Regional prompts: a layer's words act where the layer is visible. And masks read from a model's attention.

* ``words``: tokens of prompts, and where a layer's words stand in the main prompt.
* ``regional_plan``: settings, and the plan of which words act where.
* ``regional_attention``: apply a plan at every cross-attention of a run.
* ``cross_attention``: the published ways to change attention scores, one function each.
* ``tiles``: cut the picture into tiles, so that each query attends to its own region's prompt only.
* ``families``: the families of transformers, how they read text.
* ``spans``: where texts and picture stand in a transformer's sequence of tokens.
* ``joint_attention``: each text acts on its own pixels in a joint attention, in three ways.
* ``joint_regions``: apply a plan at every joint attention of a run.
* ``log_sum_exp``: attention in parts that are merged exactly.
* ``layer_loras``: LoRAs that act in one layer: how much each counts where in a network.
* ``lora_sum``: the masked sum of LoRAs in one module.
* ``attention_maps``: record what words attend to; heat maps and masks from the record.

>>> from layered_core.attention.regional_plan import Settings, plan_regions
>>> from layered_core.attention.words import Token
>>> from layered_core.document import Layer, LayerDocument
>>> def tokenise(text):  # stands for the host's tokenizer
...     return [Token(word, place) for place, word in enumerate(text.split(), 1)]
>>> ball = Layer("ball", width=32, height=32, prompt="red ball")
>>> plan = plan_regions(LayerDocument(64, 64, (ball,)), Settings(), "a red ball on grass", "", tokenise)
>>> region = plan.cond[0]
>>> region.text, region.words, tuple(region.mask.shape)
('red ball', (2, 3), (64, 64))
"""
