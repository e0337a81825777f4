"""Words learnt from layers: what a layer shows and words cannot say becomes a word of prompts.

* ``word_values``: what is added to the keys and values of a learnt word and of its noun.
* ``word_files``: the files of a learnt word, for both hosts.
"""
