"""Several layers, their background and their blend, made at once: each layer has its words and its alpha.

A generalisation of LayerDiffuse's attention sharing from one foreground to several, after LayerDiff (arXiv 2403.11929):
layers made together through attention across layers, each with its own words, which a prompt enhancer completes from
the words of the scene. LayerDiff published neither code nor equations; every detail here is this project's own.

* ``frames``: which pictures of a scene are rows of the batch, in which order, and which of them are absent.
* ``enhancer``: completes a layer's words from the scene's.
* ``network``: the units that replace the attentions of a UNet, and the way a host runs them.
* ``joint_files``: the file format, and the checks that a host makes before it samples.
* ``self_mask``: self-mask guidance, more form inside each layer's own mask.
* ``transplant``: layers made alone, and held in the picture of all while it forms; needs no network.
* ``editing``: some layers of a document made anew among the others, which are held; a picture taken apart.

>>> from layered_core.joint.frames import SceneFrames
>>> scene = SceneFrames(layers=2)
>>> scene.names
('layer 1', 'layer 2', 'background', 'blend')
>>> scene.roles
(0, 0, 1, 2)
"""
