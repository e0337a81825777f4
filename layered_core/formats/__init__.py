"""File formats of layers: PSD, OpenRaster, and JSON documents with PNG files. Callers use
:mod:`layered_core.files`.

* ``psd_read``, ``psd_write``: Photoshop files; ``psd_records``, ``psd_text``, ``psd_masks``, ``psd_blending``,
  ``psd_names`` and ``psd_errors`` are parts of them.
* ``psd_sections``, ``psd_parts``, ``psd_sizes``: what is read of a PSD; ``psd_pixels``, ``psd_colours``: its
  channels; ``psd_fills``, ``psd_paths``: fill layers and vector masks, which are drawn.
* ``openraster``: OpenRaster files; ``openraster_archive``: their entries.
* ``merged_picture``: what was read, compared with the picture that the file's own program stored.
* ``file_groups``: groups of files become plain layers; ``file_nodes``, ``group_canvas`` and ``special_blending`` are
  parts of it.
* ``document_json``: JSON documents; ``plain_values`` converts recipes to and from plain values.
* ``file_layers``: the layers of a file, as PSD and OpenRaster know them.
* ``to_file``, ``from_file``: a document to these layers and back.
* ``pictures``: single pictures; ``picture_colours``, ``colour_spaces``, ``icc_profiles``: their colours to sRGB;
  ``pixel_numbers``: stored numbers to values 0..1; ``part_files``: temporary files.
* ``layout``: lists of elements with boxes and words, as models trained on boxes take and language models write them.
* ``limits``: how much memory a file may take; ``untrusted``: XML and JSON from untrusted files.

>>> import torch
>>> from pathlib import Path
>>> from layered_core.document import Layer, LayerDocument, identical
>>> from layered_core.formats.psd_read import read_psd
>>> from layered_core.formats.psd_write import write_psd
>>> document = LayerDocument(8, 8, (Layer("ball", torch.ones(4, 4, 4), prompt="a red ball"),))
>>> write_psd(document, "ball.psd")
>>> identical(read_psd("ball.psd").document, document)
True
"""
