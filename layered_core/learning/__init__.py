"""Words learnt from layers: what a layer shows and words cannot say becomes a word of prompts.

* ``lesson``: which layers are learnt from, their pictures and masks, and what each step shows.
* ``wording``: the texts of the training.
* ``objective``: the model's error inside a layer's mask.
* ``learner``: trains the words of all layers at once, and keeps each at its best.
* ``word_values``: what is added to the keys and values of a learnt word and of its noun.
* ``word_files``: the files of a learnt word, for both hosts.
* ``training``: runs the lesson with the model of any host.
* ``placings``: pictures of a layer in many places, and the error inside it, for training a LoRA.
* ``plot``: how the training went.

A host encodes the texts and runs its model.
"""
