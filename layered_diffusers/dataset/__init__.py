"""Any picture to layers, and a folder of pictures to a data set of layered ones.

>>> from layered_diffusers.dataset.filtering import Thresholds
>>> from layered_diffusers.dataset.providers import STORYBOOK, Setting, load_parts
>>> from layered_diffusers.dataset.taking_apart import take_apart
>>> from layered_diffusers.pipeline import LayeredDiffusionPipeline
>>> parts = load_parts(STORYBOOK, Setting(LayeredDiffusionPipeline.from_pretrained))
>>> apart = take_apart(pixels, parts, Thresholds(layers=2))  # pixels [H, W, 3 or 4] in 0..1
>>> [layer.name for layer in apart.document]
['background', 'red ball', 'blue star']
"""
