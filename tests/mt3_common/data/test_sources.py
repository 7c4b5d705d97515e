"""Sources of training data: packages made here in the shape of Debian's, and POP909's folders."""

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_memory import memory_below

from mt3_common.cli.sources import main
from mt3_common.data import sources
from mt3_common.data.songs import split_of
from mt3_common.formats.midi import read_midi

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb here")


def wad(entries):
    body, directory = b"", b""
    for name, content in entries:
        directory += struct.pack("<II8s", 12 + len(body), len(content), name.encode())
        body += content
    return b"IWAD" + struct.pack("<II", len(entries), 12 + len(body)) + body + directory


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", min_size=1, max_size=8),
            st.binary(max_size=40),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_the_songs_of_a_wad_are_found(tmp_path_factory, entries):
    entries = [(name, b"MThd" + content if song else b"\0" + content) for name, content, song in entries]
    path = tmp_path_factory.mktemp("wad") / "a.wad"
    path.write_bytes(wad(entries))
    assert list(sources.wad_songs(path)) == [(name, content) for name, content in entries if content[:4] == b"MThd"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"RIFF", "is no WAD"), (b"IWAD" + struct.pack("<II", 9, 12), "ends before its directory")]
)
def test_what_is_no_wad_is_said(content, message, tmp_path):
    (tmp_path / "a.wad").write_bytes(content)
    with pytest.raises(sources.SourceError, match=message):
        list(sources.wad_songs(tmp_path / "a.wad"))


def build(folder, name, files):
    """A Debian package of these files in a folder."""
    root = folder / f"{name}-root"
    files = {f"usr/share/doc/{name}/copyright": b"License: of a test\n", **files}
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        (root / path).chmod(0o755)
    (root / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: test\n"
    (root / "DEBIAN" / "control").write_text(control)
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", root, folder / f"{name}_1.0_all.deb"], check=True)
    shutil.rmtree(root)


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    doom = "usr/share/games/doom"
    song = b"MThd one"
    build(folder, "freedm", {f"{doom}/freedm.wad": wad([("D_DM01", song), ("MAP01", b"no song")])})
    again = wad([("D_E1M1", song), ("D_E1M2", b"MThd two")])
    build(folder, "freedoom", {f"{doom}/freedoom1.wad": again, f"{doom}/freedoom2.wad": again})
    build(folder, "openttd-openmsx", {"usr/share/games/openttd/baseset/openmsx/a.mid": b"MThd a"})
    build(folder, "timgm6mb-soundfont", {"usr/share/sounds/sf2/TimGM6mb.sf2": b"font"})
    return folder


@needs_dpkg
def test_packages_become_folders_with_a_manifest(packages, tmp_path, capsys):
    pop = tmp_path / "POP909-Dataset-master" / "POP909"
    for number in ("001", "002"):
        (pop / number / "versions").mkdir(parents=True)
        (pop / number / f"{number}.mid").write_bytes(number.encode())
        (pop / number / "versions" / f"{number}-v1.mid").write_bytes(b"another version")
    out = tmp_path / "out"
    names = ["freedm", "freedoom", "openttd-openmsx", "timgm6mb-soundfont"]
    arguments = [str(out), "--packages", str(packages), "--pop909", str(pop.parent), "--only", *names]
    assert main(arguments) == 0
    result = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    one, two = (hashlib.md5(content).hexdigest()[:4] for content in (b"MThd one", b"MThd two"))
    for name, content in {
        f"midi/freedoom/D_DM01_{one}.mid": b"MThd one",
        f"midi/freedoom/D_E1M2_{two}.mid": b"MThd two",
        "midi/openmsx/a.mid": b"MThd a",
        "midi/pop909/002.mid": b"002",
        "soundfonts/TimGM6mb.sf2": b"font",
        "licences/freedm.txt": b"License: of a test\n",
    }.items():
        assert result[name] == content
    assert len([name for name in result if name.startswith("midi/")]) == 5
    contents = json.loads(result["sources.json"])
    assert contents["timgm6mb-soundfont"]["files"] == {"soundfonts/TimGM6mb.sf2": hashlib.sha256(b"font").hexdigest()}
    assert contents["openttd-openmsx"]["licence"] == "GPL-2"
    printed = capsys.readouterr()
    assert "freedm_1.0_all.deb is not the freedm 0.12.1-2 of the manifest" in printed.err
    assert "pop909: 2 files in midi/pop909, MIT" in printed.out


@needs_dpkg
def test_what_cannot_be_had_is_said(packages, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([out, "--packages", str(packages), "--only", "csound-soundfont"]) == 1
    assert "holds no csound-soundfont_*.deb" in capsys.readouterr().err
    build(packages, "csound-soundfont", {"usr/share/other": b""})
    assert main([out, "--packages", str(packages), "--only", "csound-soundfont"]) == 1
    assert "csound-soundfont has no usr/share/sounds/sf2/sf_GMbank.sf2" in capsys.readouterr().err
    (packages / "freedm_1.0_all.deb").write_bytes(b"no package")
    assert main([out, "--packages", str(packages), "--only", "freedm"]) == 1
    assert "cannot be unpacked" in capsys.readouterr().err
    with pytest.raises(sources.SourceError, match="no song of POP909"):
        sources.take_pop909(packages, tmp_path)


def test_without_apt_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(tmp_path / "out"), "--only", "freedm"]) == 1
    assert "give their folder: --packages DIR" in capsys.readouterr().err


def test_the_manifest_says_all_of_every_source():
    manifest = json.loads(sources.MANIFEST.read_text())
    for name, metadata in manifest["packages"].items():
        assert len(metadata["sha256"]) == 64, name
        assert metadata["licence"], name
        assert metadata["copyright"], name
        assert ("files" in metadata) != ("wads" in metadata), name
    reserved = manifest["packages"]["csound-soundfont"]
    assert "ublic domain" in reserved["licence"]
    assert list(reserved["test_only"]) == ["sf_GMbank.sf2"]
    for metadata in (*manifest["players"].values(), manifest["music21"], manifest["scores"], manifest["pop909"]):
        assert metadata["folder"].startswith("midi/")
        assert metadata["licence"]
        assert metadata["copyright"]


# stands for MMA: plays a chart if MMA_HOME has its grooves, and fails at one of them
MMA = """#!/usr/bin/env python3
import os, pathlib, sys
home = pathlib.Path(os.environ["MMA_HOME"])
if sys.argv[2] == "-G":
    (home / "database").write_text("made")
    sys.exit(0)
_, flag, path, chart = sys.argv[1:]
text = pathlib.Path(chart).read_text()
assert (home / "database").exists() and flag == "-f"
if "Groove Broken" in text:
    sys.exit(1)
pathlib.Path(path).write_bytes(b"MThd" + text.encode())
"""
ABC2MIDI = """#!/usr/bin/env python3
import pathlib, sys
path = pathlib.Path(sys.argv[1])
for line in path.read_text().splitlines():
    if line.startswith("X:"):
        path.with_name(path.stem + line[2:].strip() + ".mid").write_bytes(b"MThd")
"""


def programs(folder):
    library = "usr/share/mma/lib/stdlib"
    grooves = {f"{library}/swing.mma": b"Begin\n DefGroove Swing x\nDefGroove SwingSus y\n", f"{library}/none.mma": b""}
    grooves |= {f"{library}/broken.mma": b"DefGroove Broken\n", f"{library}/metronome.mma": b"DefGroove Metronome\n"}
    for name, path, text, files in (("mma", "mma", MMA, grooves), ("abcmidi", "abc2midi", ABC2MIDI, {})):
        build(folder, name, {f"usr/bin/{path}": text.replace("/usr/bin/env python3", sys.executable).encode(), **files})


@pytest.mark.process
@needs_dpkg
@pytest.mark.process
def test_bands_and_tunes_are_played(packages, tmp_path, capsys):
    programs(packages)
    tunes = tmp_path / "tunes"
    (tunes / "deep").mkdir(parents=True)
    (tunes / "reels.abc").write_text("X:1\nT:One\nX:2\nT:Two\n")
    (tunes / "deep" / "a jig.abc").write_text("X:7\nT:Three\n")
    out = tmp_path / "out"
    arguments = [str(out), "--packages", str(packages), "--only", "freedm", "--mma", "2", "--abc", str(tunes)]
    assert main(arguments) == 0
    result = sorted(path.relative_to(out / "midi").as_posix() for path in (out / "midi").rglob("*") if path.is_file())
    assert result[:3] == ["abc/a_jig_0_7.mid", "abc/reels_1_1.mid", "abc/reels_1_2.mid"]
    assert result[-2:] == ["mma/stdlib_swing_0000.mid", "mma/stdlib_swing_0001.mid"]
    assert len(result) == 6
    assert split_of(result[-2]) == split_of(result[-1])
    contents = json.loads((out / "sources.json").read_text())
    assert contents["mma"]["licence"].startswith("GPL-2")
    assert len(contents["mma"]["files"]) == 2
    assert len(contents["abcmidi"]["files"]) == 3
    assert "mma: 2 files in midi/mma" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([*arguments[:-1], str(tmp_path / "empty")]) == 1
    assert "holds no tunes" in capsys.readouterr().err


def test_charts_are_whole_songs_and_the_same_again():
    chart = sources.chord_chart(["Swing", "SwingSus"], "a 0")
    assert chart == sources.chord_chart(["Swing", "SwingSus"], "a 0")
    assert chart != sources.chord_chart(["Swing", "SwingSus"], "a 1")
    lines = chart.splitlines()
    assert 70 <= int(re.fullmatch(r"Tempo (\d+)", lines[0])[1]) <= 180
    assert sum(line in ("Groove Swing", "Groove SwingSus") for line in lines) == 8
    bars = [re.fullmatch(r"(\d+) [A-G]b?(M7|m|m7|m7b5|7)?", line) for line in lines if line[0].isdigit()]
    assert [int(bar[1]) for bar in bars] == list(range(1, 65))


@pytest.mark.slow
def test_works_of_music21s_corpus_become_songs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("music21")
    out = tmp_path / "out"
    contents = sources.take_music21(["joplin", "corelli"], out)
    assert sorted(contents) == sorted(out.iterdir())
    assert {path.name[:-9] for path in contents} == {"joplin_maple_leaf_rag", "corelli_opus3no1"}
    for path in contents:
        assert len(read_midi(path)) > 50
    assert all(contents.values())
    with pytest.raises(sources.SourceError, match=r"corpus has no nobody; it has bach"):
        sources.take_music21(["nobody"], out)
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(sources.SourceError, match=r'pip install "mt3-twins\[musicxml\]"'):
        sources.take_music21(["joplin"], out)


def test_songs_of_one_folder_have_names_of_their_own(tmp_path):
    taken = set()
    for number in range(3000):
        taken.add(sources._free_name(tmp_path, "songs", f"songs/{number}.krn", taken))
    assert len(taken) == 3000
    assert {path.name[:6] for path in taken} == {"songs_"}
    assert len({split_of(path.name) for path in taken}) == 1


SCALE = "**kern\n*M4/4\n4c\n4d\n4e\n4f\n*-\n!!!YEC: Public Domain\n"


@needs_dpkg
def test_a_folder_of_scores_becomes_songs_whose_movements_share_a_split(packages, tmp_path, capsys):
    pytest.importorskip("music21")
    folder = tmp_path / "scores"
    for name in ("Schubert/Winterreise/1.krn", "Schubert/Winterreise/2.krn", "tune.krn", "broken.mxl", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("no score" if name.startswith("broken") else SCALE)
    contents = sources.take_scores(folder, tmp_path / "midi")
    assert sorted(contents) == sorted((tmp_path / "midi").iterdir())
    assert sorted(path.name[:-9] for path in contents) == ["Schubert_Winterreise", "Schubert_Winterreise", "tune"]
    assert len({split_of(path.name) for path in contents if "Schubert" in path.name}) == 1
    for path in contents:
        assert [note.pitch for note in read_midi(path)] == [60, 62, 64, 65]
    assert set(contents.values()) == {"Public Domain; !!!YEC: Public Domain"}
    assert "note: broken.mxl is left out: " in capsys.readouterr().err
    arguments = [str(tmp_path / "out"), "--packages", str(packages), "--only", "freedm", "--scores", str(folder)]
    assert main(arguments) == 0
    assert "scores: 3 files in midi/scores, each work's own, see rights" in capsys.readouterr().out
    stated = json.loads((tmp_path / "out" / "sources.json").read_text())["scores"]
    assert sorted(stated["rights"]) == sorted(stated["files"])
    (folder / "three.KRN").write_text("".join(f"!!!!SEGMENT: {part}\n{SCALE}" for part in "abc"))
    more = sources.take_scores(folder, tmp_path / "more")
    assert sorted(more) == sorted((tmp_path / "more").iterdir())
    assert sum(path.name.startswith("three_") for path in more) == 3
    with pytest.raises(sources.SourceError, match="there is no folder none"):
        sources.take_scores(Path("none"), tmp_path / "more")
    (folder / "three.KRN").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(sources.SourceError, match=r"empty has no scores \(\.krn, \.musicxml, \.mxl, \.xml\)"):
        sources.take_scores(tmp_path / "empty", tmp_path / "midi")
    (folder / "tune.krn").unlink()
    (folder / "Schubert").rename(tmp_path / "away")
    with pytest.raises(sources.SourceError, match="music21 plays none of the 1 score in"):
        sources.take_scores(folder, tmp_path / "midi")


def compressed_score(path, behind=b""):
    """An .mxl of one note whose archive states 10,000 bytes, whatever is behind it."""
    note = "<note><pitch><step>C</step><octave>4</octave></pitch><duration>4</duration></note>"
    measure = f'<measure number="1"><attributes><divisions>1</divisions></attributes>{note}</measure>'
    parts = '<part-list><score-part id="P1"><part-name>x</part-name></score-part></part-list>'
    score = f'<score-partwise version="3.1">{parts}<part id="P1">{measure}</part></score-partwise>'.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("s.xml", score.ljust(10_000) + behind)
        entry = archive.getinfo("s.xml")
        entry.file_size, entry.CRC = 10_000, zlib.crc32(score.ljust(10_000))


def test_a_compressed_score_is_unpacked_as_far_as_scores_go(tmp_path, capsys, monkeypatch):
    music21 = pytest.importorskip("music21")
    monkeypatch.setattr(sources, "LARGEST_SCORE", 2**16)
    folder = tmp_path / "scores"
    folder.mkdir()
    compressed_score(folder / "good.mxl")
    # a size that is stated, one that is not, and a score that is not compressed
    with zipfile.ZipFile(folder / "large.mxl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s.xml", bytes(2**17))
    (folder / "long.musicxml").write_bytes(bytes(2**17))
    compressed_score(folder / "lying.mxl", bytes(2**26))
    with zipfile.ZipFile(folder / "none.mxl", "w") as archive:
        archive.writestr("s.txt", "no score")
    with memory_below(2e7):
        contents = sources.take_scores(folder, tmp_path / "midi")
    assert sorted(path.name.rpartition("_")[0] for path in contents) == ["good", "lying"]
    assert [note.pitch for note in read_midi(next(iter(contents)))] == [60]
    assert sorted(contents) == sorted((tmp_path / "midi").iterdir())
    notes = capsys.readouterr().err.splitlines()[1:]
    assert notes == [
        "note: large.mxl is left out: ValueError: it has more than 65536 bytes",
        "note: long.musicxml is left out: ValueError: it has more than 65536 bytes",
        "note: none.mxl is left out: ValueError: its archive holds no score",
    ]

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(music21.converter, "parse", full)
    with pytest.raises(sources.SourceError, match="music21 plays none"):
        sources.take_scores(folder, tmp_path / "more")
    assert "note: good.mxl is left out: MemoryError\n" in capsys.readouterr().err


def test_rights_are_told_as_the_source_tells_them(tmp_path):
    class Score:
        metadata = None

    (tmp_path / "a.krn").write_text(
        "!!!OTL: A\n!!!YEC: Copyright 2000\n!!!EED: An Editor\n**kern\n!!!YEC: Copyright 2000\n"
    )
    assert sources._rights(tmp_path / "a.krn", Score()) == "!!!YEC: Copyright 2000; !!!EED: An Editor"
    assert sources._rights(tmp_path / "a.mxl", Score()) == "not said in the file"
