"""Damaged soundfonts are refused before a library that follows their indices without a look loads them."""

import functools
import io
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile

from mt3_common.data.sample_fonts import RecordedNote, write_font
from mt3_common.data.soundfont import Fonts
from mt3_common.formats import sf2, sonify
from mt3_common.notes.note import Note

NOTES = [Note(0.0, 0.1, 60, 100, 40, False), Note(0.0, 0.1, 36, 100, 0, True)]


@functools.cache
def whole(folder: Path) -> bytes:
    """Return a soundfont of two notes."""
    samples = (0.3 * np.sin(np.arange(2000) / 10)).astype(np.float32)
    notes = [RecordedNote(samples, key, key, velocity, (100, 1900)) for key, velocity in ((60, 0.5), (64, 1.0))]
    write_font(folder / "whole.sf2", "x", 40, notes)
    return (folder / "whole.sf2").read_bytes()


@pytest.fixture(scope="session")
def content(tmp_path_factory):
    """Soundfont of two notes."""
    return whole(tmp_path_factory.mktemp("sf2"))


def changed(content: bytes, tag: bytes, **columns: tuple[int, int]) -> bytes:
    """Return a soundfont with values in a table: column=(row, value)."""
    first = content.index(tag) + 8
    size = int.from_bytes(content[first - 4 : first], "little")
    table = np.frombuffer(content[first : first + size], sf2.RECORDS[tag]).copy()
    for column, (row, value) in columns.items():
        table[column][row] = value
    return content[:first] + table.tobytes() + content[first + size :]


def compressed(content: bytes) -> bytes:
    """Return a soundfont with its samples as Vorbis files, as .sf3 has them; the loops count from their starts."""
    first = content.index(b"smpl") + 8
    samples = np.frombuffer(content[first : first + int.from_bytes(content[first - 4 : first], "little")], "<i2")
    table = content.index(b"shdr") + 8
    size = int.from_bytes(content[table - 4 : table], "little")
    headers = np.frombuffer(content[table : table + size], sf2.SAMPLE_HEADER).copy()
    packed = b""
    for row in range(len(headers) - 1):
        start, end = int(headers["start"][row]), int(headers["end"][row])
        stream = io.BytesIO()
        soundfile.write(stream, samples[start:end], 24000, format="OGG", subtype="VORBIS", compression_level=0.0)
        headers["start"][row], headers["end"][row] = len(packed), len(packed) + stream.tell()
        headers["loop_start"][row] -= start
        headers["loop_end"][row] -= start
        headers["type"][row] |= sf2.VORBIS
        packed += stream.getvalue()
    packed += b"\0" * (len(packed) % 2)
    tables = content[table - 8 : table] + headers.tobytes() + content[table + size :]
    behind = content[first + len(samples) * 2 : table - 8]
    return content[: first - 4] + len(packed).to_bytes(4, "little") + packed + behind + tables


def fitting(content: bytes) -> bytes:
    """Return a soundfont whose list of samples has the size of what is in it."""
    chunk, tables = content.index(b"smpl"), content.index(b"pdta") - 8
    head = content[: chunk - 8] + (tables - chunk + 4).to_bytes(4, "little")
    return head + content[chunk - 4 :]


def test_samples_of_every_kind_are_read_alike(tmp_path, content):
    plain, sf3, sfo, again = (tmp_path / name for name in ("plain.sf2", "x.sf3", "x.sfo", "again.sf2"))
    plain.write_bytes(content)
    sf3.write_bytes(fitting(compressed(content)))
    samples, headers = sf2.read_samples(plain)
    tables = sf2.read_tables(plain).tables
    sf2.write(sfo, b"x", tables, samples, quality=1.0)
    assert sfo.stat().st_size < plain.stat().st_size
    sf2.write(again, b"x", tables, samples)
    assert again.read_bytes() == content
    for path in (sf3, sfo):
        decoded, table = sf2.read_samples(path)
        for column in ("start", "end", "loop_start", "loop_end", "rate", "pitch", "type"):
            np.testing.assert_array_equal(table[column], headers[column])
        for row in headers[:-1]:
            part = slice(int(row["start"]), int(row["end"]))
            error = decoded[part].astype(float) - samples[part]
            assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(samples[part].astype(float) ** 2))


def test_loops_outside_of_the_numbers_of_the_table_are_cut_to_them(tmp_path, content):
    """A sample without a loop may state any numbers; one that is not compressed may stand among compressed ones."""
    path = tmp_path / "x.sf3"
    content = fitting(compressed(content))
    content = changed(content, b"shdr", type=(0, 1), start=(0, 100), end=(0, 200), loop_start=(0, 0))
    path.write_bytes(changed(content, b"shdr", loop_end=(1, 2**32 - 1)))
    samples, headers = sf2.read_samples(path)
    assert headers["start"][:2].tolist() == [0, 100 + sf2.GUARD]
    assert len(samples) == headers["end"][1] + sf2.GUARD
    assert headers["loop_start"][0] == 0
    assert headers["loop_end"][1] == 2**32 - 1


def test_compressed_samples_of_two_channels_are_refused(tmp_path, content):
    path, stream = tmp_path / "x.sfo", io.BytesIO()
    soundfile.write(stream, np.zeros((4000, 2)), 24000, format="OGG", subtype="VORBIS")
    packed = sf2.chunk_list(b"sdta", {b"smpo": stream.getvalue()})
    path.write_bytes(content[:12] + packed + content[content.index(b"pdta") - 8 :])
    for read in (sf2.read_samples, sf2.check):
        with pytest.raises(sf2.SoundfontError, match="a compressed sample has 2 channels instead of one"):
            read(path)


def test_samples_that_are_no_vorbis_are_refused(tmp_path, content):
    path = tmp_path / "x.sfo"
    path.write_bytes(content.replace(b"smpl", b"smpo"))
    for read in (sf2.read_samples, sf2.check):
        with pytest.raises(sf2.SoundfontError, match="its compressed samples cannot be decoded"):
            read(path)


@pytest.fixture(scope="module")
def one_stream(tmp_path_factory, content) -> Path:
    """The same soundfont with one Vorbis stream of all samples."""
    folder = tmp_path_factory.mktemp("one stream")
    (folder / "x.sf2").write_bytes(content)
    samples, _ = sf2.read_samples(folder / "x.sf2")
    sf2.write(folder / "x.sfo", b"x", sf2.read_tables(folder / "x.sf2").tables, samples, quality=1.0)
    return folder / "x.sfo"


@pytest.mark.process
def test_a_font_of_one_stream_is_played(one_stream):
    pytest.importorskip("tinysoundfont")
    blocks = list(sonify.find_player(one_stream).play(NOTES, 16000, 4000))
    assert np.abs(np.concatenate(blocks)).max() > 0
    assert Fonts([one_stream]).programs(0) == {40}


def test_one_stream_has_as_many_samples_as_it_is_decoded_to(tmp_path, one_stream):
    last = len(sf2.read_samples(one_stream)[0])
    # bytes say nothing
    assert sf2.read_tables(one_stream).num_bytes < 2 * last
    path = tmp_path / "x.sfo"
    path.write_bytes(changed(one_stream.read_bytes(), b"shdr", end=(0, last)))
    sf2.check(path, with_trial=False)
    for change in ({"end": (0, last + 1)}, {"end": (0, 2 * last), "type": (0, sf2.VORBIS | 1)}):
        path.write_bytes(changed(one_stream.read_bytes(), b"shdr", **change))
        with pytest.raises(sf2.SoundfontError, match="a sample ends behind all samples"):
            sf2.check(path, with_trial=False)


@pytest.mark.parametrize(
    ("tag", "columns", "reason"),
    [
        (b"phdr", {"bag": (1, 9)}, "phdr points outside of pbag"),
        (b"phdr", {"bag": (0, 1)}, None),
        (b"pbag", {"generator": (0, 7)}, "pbag points outside of pgen"),
        (b"pgen", {"low": (0, 1)}, "a preset has an instrument that is not there"),
        (b"inst", {"bag": (1, 60000)}, "inst points outside of ibag"),
        (b"ibag", {"generator": (1, 60000)}, "ibag points outside of igen"),
        (b"igen", {"low": (0, 200)}, "igen has a range of keys or velocities above 127"),
        (b"igen", {"low": (4, 99)}, "an instrument has a sample that is not there"),
        (b"shdr", {"end": (0, 2**31)}, "a sample ends behind all samples"),
    ],
)
def test_indices_that_lead_elsewhere_are_refused(tmp_path, content, tag, columns, reason):
    pytest.importorskip("tinysoundfont")
    path = tmp_path / "x.sf2"
    path.write_bytes(changed(content, tag, **columns))
    if reason is None:
        sf2.check(path)
        return
    with pytest.raises(ValueError, match=rf"x\.sf2 cannot be loaded as a soundfont: {reason}"):
        sonify.find_player(path)


@pytest.mark.process
def test_compressed_samples_are_tried_in_a_process_of_their_own(tmp_path, content):
    pytest.importorskip("tinysoundfont")
    path = tmp_path / "x.sf2"
    first = content.index(b"smpl") + 8
    compressed = changed(content, b"shdr", type=(0, sf2.VORBIS | 1))
    path.write_bytes(compressed[:first] + b"OggS" + compressed[first + 4 :])
    with pytest.raises(ValueError, match=r"x\.sf2 cannot be loaded as a soundfont: its compressed samples cannot be"):
        sonify.find_player(path)


def test_a_font_that_loads_only_into_memory_without_end(tmp_path, content):
    pytest.importorskip("tinysoundfont")
    (tmp_path / "x.sf2").write_bytes(content)
    tables = sf2.read_tables(tmp_path / "x.sf2").tables
    generators = np.repeat(tables[b"pgen"][:1], 60000)
    bags = tables[b"pbag"].copy()
    bags["generator"][1] = len(generators)
    instrument = np.repeat(tables[b"igen"][-2:-1], 60000)
    zones = tables[b"ibag"].copy()
    zones["generator"] = np.linspace(0, len(instrument), len(zones))
    tables |= {b"pgen": generators, b"pbag": bags, b"igen": instrument, b"ibag": zones}
    assert "regions" in sf2._fault(sf2.Soundfont(tables, 10**6, False))


def test_real_fonts_and_names_of_other_alphabets_are_loaded(tmp_path, content):
    pytest.importorskip("tinysoundfont")
    sf2.check(Path(pretty_midi.__file__).parent / "TimGM6mb.sf2")
    path = tmp_path / "x.sf2"
    path.write_bytes(content.replace(b"x\0\0\0", b"\xf6\0\0\0"))
    blocks = list(sonify.find_player(path).play(NOTES, 16000, 4000))
    assert np.abs(np.concatenate(blocks)).max() > 0


@pytest.mark.parametrize("length", [0, 11, 40, 4000, -3000, -20])
def test_pieces_of_fonts_are_refused(tmp_path, content, length):
    pytest.importorskip("tinysoundfont")
    (tmp_path / "x.sf2").write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"x\.sf2 cannot be loaded as a soundfont: it is (none|cut off)"):
        sonify.find_player(tmp_path / "x.sf2")
