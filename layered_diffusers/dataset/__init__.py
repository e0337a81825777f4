"""Any picture to layers, and a folder of pictures to a data set of layered ones.

>>> import torch
>>> from demo.world.scenes import random_scene
>>> from layered_diffusers.dataset.filtering import Thresholds
>>> from layered_diffusers.dataset.providers import STORYBOOK, Setting, load_parts
>>> from layered_diffusers.dataset.taking_apart import take_apart
>>> from layered_diffusers.pipeline import LayeredDiffusionPipeline
>>> pixels = torch.tensor(random_scene(1, count=2, materials=("solid",)).picture()) / 255  # [H, W, 3]
>>> parts = load_parts(STORYBOOK, Setting(LayeredDiffusionPipeline.from_pretrained, sampling={"steps": 2}))
>>> [layer.name for layer in take_apart(pixels, parts, Thresholds(layers=2)).document]
['background', 'white tree', 'red star']
"""
