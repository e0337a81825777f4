"""The benchmark of files of other programs counts what is refused, the same, different and silent."""

import zipfile

import torch

from benchmarks.foreign_files import measure
from layered_core.document import Layer, LayerDocument
from layered_core.files import write_layers


def test_files_are_counted(tmp_path):
    ramp = torch.linspace(0, 1, 8)[None, :, None].expand(8, 8, 4).contiguous()
    document = LayerDocument(8, 8, (Layer("a", ramp),))
    (tmp_path / "deep").mkdir()
    write_layers(document, tmp_path / "deep/same.psd")
    (tmp_path / "broken.PSD").write_bytes(b"8BPS")
    write_layers(document, tmp_path / "whole.ora")
    with (
        zipfile.ZipFile(tmp_path / "whole.ora") as whole,
        zipfile.ZipFile(tmp_path / "deep/other.ora", "w") as other,
    ):
        for name in whole.namelist():
            hidden = name == "stack.xml"
            data = whole.read(name)
            other.writestr(
                name, data.replace(b'visibility="visible"', b'visibility="hidden"') if hidden else data
            )
    figures = measure([tmp_path])
    assert (figures["files"], figures["compared"], figures["same"]) == (4, 3, 2)
    assert list(figures["refused"]) == [str(tmp_path / "broken.PSD")]
    assert list(figures["different"]) == figures["silent"] == [str(tmp_path / "deep/other.ora")]
