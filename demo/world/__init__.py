"""The storybook world: its vocabulary, drawings and scenes, and the networks that judge pictures of it.

>>> import torch
>>> from demo.world.judge import Judge
>>> from demo.world.scenes import random_scene
>>> scene = random_scene(7, count=2)
>>> picture = torch.from_numpy(scene.picture().copy()).permute(2, 0, 1)[None] / 255
>>> verdict = Judge.load().look(picture)[0]
>>> verdict.shows([item.thing for item in scene.objects])
True
"""
