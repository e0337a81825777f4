"""A PSD with too many parts is refused before psd-tools reads them one by one."""

import struct
from io import BytesIO

import pytest
from psd_tools.psd import PSD

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.psd_parts import MAX_PARTS, _parts, check_parts


def sized(data, long=False):
    return struct.pack(">Q" if long else ">I", len(data)) + data


def block(key=b"zZ9q", data=bytes(4), long=False):
    return b"8BIM" + key + sized(data, long)


def of_16_bits(records, long):
    return block(b"Lr16", records + bytes(-len(records) % 4), long)


def resource(number=20000):
    return struct.pack(">4sH2xI4x", b"8BIM", number, 4)


def layers(count, blocks=b"", psb=False):
    """Return layer records with one empty channel each."""
    channels = struct.pack(">Hh", 1, 0) + (struct.pack(">Q", 2) if psb else struct.pack(">I", 2))
    extra = bytes(8) + b"\1a\0\0" + blocks
    record = bytes(16) + channels + b"8BIMnorm" + b"\xff\0\0\0" + sized(extra)
    return struct.pack(">h", count) + record * count + bytes(2) * count


def file(resources=b"", records=b"", blocks=b"", mask=b"", psb=False):
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 2 if psb else 1, 3, 8, 8, 8, 3)
    section = sized(records, psb) + sized(mask) + blocks
    return header + sized(b"") + sized(resources) + sized(section, psb) + bytes(2 + 3 * 64)


MANY = {
    "image resources": lambda n, psb: file(resources=resource() * n, psb=psb),
    "blocks of the file": lambda n, psb: file(blocks=block() * n, psb=psb),
    "blocks of a layer": lambda n, psb: file(records=layers(1, block() * (n - 2), psb), psb=psb),
    "layers": lambda n, psb: file(records=layers(n // 2, psb=psb), psb=psb),
    "layers of 16 bits": lambda n, psb: file(blocks=of_16_bits(layers(n // 2, psb=psb), psb), psb=psb),
}


@pytest.mark.parametrize("psb", [False, True], ids=["psd", "psb"])
@pytest.mark.parametrize("many", MANY.values(), ids=MANY)
def test_a_psd_of_too_many_parts_is_refused_before_it_is_read(tmp_path, many, psb, monkeypatch):
    monkeypatch.setattr(PSD, "read", lambda *_: pytest.fail("psd-tools reads it"))
    path = tmp_path / ("a.psb" if psb else "a.psd")
    path.write_bytes(many(MAX_PARTS + 2, psb))
    with pytest.raises(LayeredError) as caught:
        read_layers(path)
    assert str(caught.value) == (
        f"{path.name}: number of layers, channels, blocks and resources is 'over 50,000'; allowed: at most 50,000. "
        f"Merge layers, or save the file anew"
    )


@pytest.mark.parametrize("psb", [False, True], ids=["psd", "psb"])
def test_the_parts_of_a_file_are_those_that_psd_tools_finds(psb):
    whole = file(
        resource(1000) + resource(1001),
        layers(3, block(b"zZ9q") + block(b"zZ8q", bytes(7)), psb),
        of_16_bits(layers(2, block(), psb), psb) + block(b"zZ9q") + block(b"lnkE", b"", long=psb),
        mask=bytes(14),
        psb=psb,
    )
    psd = PSD.read(BytesIO(whole))
    section = psd.layer_and_mask_information
    deep = next(b.data for b in section.tagged_blocks.values() if hasattr(b.data, "layer_records"))
    records = [*section.layer_info.layer_records, *deep.layer_records]
    found = len(psd.image_resources) + len(section.tagged_blocks)
    found += sum(1 + len(r.channel_info) + len(r.tagged_blocks) for r in records)
    assert found == 2 + 3 + 3 * 4 + 2 * 3
    assert len(list(_parts(BytesIO(whole)))) == found


def test_a_psd_of_no_more_parts_than_allowed_is_read_from_its_beginning():
    data = BytesIO(file(blocks=block() * MAX_PARTS))
    data.seek(26)
    check_parts(data)
    assert data.tell() == 0


@pytest.mark.parametrize("length", [5, 27, 45, 60, 80, 100])
def test_a_file_that_ends_early_is_left_to_the_reader(length):
    check_parts(BytesIO(file(resource(), layers(2))[:length]))


def test_a_file_that_states_lengths_beyond_its_end_is_left_to_the_reader():
    whole = file(records=layers(1, psb=True), psb=True)
    for at in range(26, 100):
        check_parts(BytesIO(whole[:at] + b"\xff" * 100))


def test_zeros_after_the_blocks_are_no_parts():
    check_parts(BytesIO(file(blocks=block() + bytes(12 * (MAX_PARTS + 1)))))
