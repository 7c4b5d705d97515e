"""Installation of data sets from a local server, from tiny archives in the published layouts."""

import dataclasses
import hashlib
import io
import json
import shutil
import stat
import sys
import tarfile

import mido
import numpy as np
import pytest
import soundfile
from file_server import Bucket
from published_layouts import LAYOUTS, archive

from mt3_common.cli import install as command
from mt3_common.cli import mt3
from mt3_common.config import Config
from mt3_common.data import catalogue, corpora
from mt3_common.data import install as installation
from mt3_common.data.published import bands
from mt3_common.data.published.index import DatasetError, Piece, read_index, write_dataset
from mt3_common.data.shards import Stream
from mt3_common.io import transfer
from mt3_common.notes.note import Note

TOKEN = "eyJ0b2tlbiI6MX0"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The archives of all tiny data sets, by name."""
    return {name: archive(name, tmp_path_factory.mktemp(name)) for name in LAYOUTS}


@pytest.fixture
def server(archives, monkeypatch, tmp_path):
    """A server with the archives, and a catalogue whose addresses and digests are theirs."""
    made = Bucket({f"{name}.tar.gz": content for name, content in archives.items()})
    table = json.loads(catalogue.CATALOGUE.read_text())
    for name, content in archives.items():
        assert len(table[name]["files"]) == 1, name
        url = f"{made.url}/media/{name}.tar.gz?download=1"
        table[name]["files"] = [{"url": url, "md5": hashlib.md5(content).hexdigest()}]
        table[name]["gigabytes"] = 0.001
        if table[name].get("restricted"):
            made.tokens[f"{name}.tar.gz"] = TOKEN
    (tmp_path / "catalogue.json").write_text(json.dumps(table))
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.json")
    monkeypatch.setattr(installation.platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    monkeypatch.setenv("MT3_ZENODO_TOKEN", TOKEN)
    monkeypatch.setenv("MT3_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)
    yield made
    made.close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def installed(name, home, variant="", split=None):
    """Install a set and return name -> (split, notes, recording) of a variant."""
    assert mt3.main(["data", "install", name, "--quiet"]) == 0
    recordings = corpora.recordings(home / name / variant, split)
    return {recording.name: (recording.split, corpora.read_notes(recording), recording) for recording in recordings}


def plain(notes):
    return [(round(note.onset, 3), round(note.offset, 3), note.pitch, note.program, note.is_drum) for note in notes]


def test_maestro_has_its_pedal_and_its_splits(server, home):
    pieces = installed("maestro", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {
        **{"2004/piece_0": "train", "2004/piece_1": "validation", "2004/piece_2": "test"}
    }
    for _, notes, recording in pieces.values():
        # both last until the pedal goes up, program 5 is a piano all the same, and velocities are the source's
        assert plain(notes) == [(0, 0.5, 60, 0, False), (0.25, 0.5, 62, 0, False)]
        assert {note.velocity for note in notes} == {64}
        assert corpora.has_velocities(recording.notes[0])
        assert recording.group == recording.kind == "maestro"


@pytest.mark.parametrize("name", ["slakh", "slakh-redux"])
def test_slakh_has_its_basses_an_octave_down(server, home, name):
    pieces = installed(name, home)
    assert sorted(split for split, _, _ in pieces.values()) == ["test", "train", "validation"]
    _, notes, recording = pieces["train/Track00005"]
    assert sorted((note.program, note.pitch, note.is_drum) for note in notes) == [
        *((0, 40, True), (33, 28, False), (36, 40, False), (40, 40, False))
    ]
    stems = [(stem.audio.stem, stem.program, stem.is_drum) for stem in recording.stems]
    assert stems == [("S00", 33, False), ("S01", 36, False), ("S02", 0, True), ("S03", 40, False)]
    assert all(stem.audio.is_file() for stem in recording.stems)


def test_musicnet_has_the_labels_that_were_aligned(server, home):
    pieces = installed("musicnet", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {
        **{"1727": "train", "1729": "train", "1733": "validation", "1759": "test", "1819": "test"}
    }
    assert plain(pieces["1727"][1]) == [(0, 0.25, 50, 42, False)]
    first = installed("musicnet", home, "thickstun")
    assert first["2194"][0] == "train"
    # instruments are counted from 1: 41 is a violin
    assert plain(first["2194"][1]) == [(0, 0.5, 60, 40, False), (0.5, 1.0, 61, 0, False)]
    assert {name: split for name, (split, _, _) in installed("musicnet", home, "mt3").items()}["1729"] == "test"
    assert list(installed("musicnet", home, "test3")) == ["1819"]
    synthetic = installed("musicnet", home, "synth")
    assert sorted(synthetic) == ["1727", "1729", "1733", "2194"]
    assert plain(synthetic["2194"][1]) == [(0, 0.25, 70, 40, False)]
    assert synthetic["2194"][2].audio.parent.name == "train_synth"


def test_instruments_of_musicnet_counted_from_0_are_told_apart(tmp_path):
    head = "start_time,end_time,instrument,note\n"
    for first, instruments in ((1, (41, 1, 74)), (0, (41, 0, 73)), (1, (41, 42))):
        (tmp_path / "a.csv").write_text(head + "".join(f"0,1,{number},60\n" for number in instruments))
        assert corpora.first_instrument([tmp_path / "a.csv"]) == first


def test_maps_keeps_songs_of_the_test_out_of_training(server, home):
    pieces = installed("maps", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {
        **{"MAPS_MUS-alb_se3_AkPnBcht": "train", "MAPS_MUS-chpn-p14_ENSTDkAm": "test"}
    }
    assert plain(pieces["MAPS_MUS-alb_se3_AkPnBcht"][1]) == [(0, 0.5, 60, 0, False), (0.25, 0.5, 62, 0, False)]
    assert [split for split, _, _ in installed("maps", home, "all").values()] == ["train"] * 3


def test_guitarset_has_two_microphones(server, home):
    pieces = installed("guitarset", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {
        **{"00_BN1-129-Eb_comp_mic": "train", "00_BN1-129-Eb_comp_mix": "train"},
        **{"05_Rock3-148-C_solo_mic": "validation", "05_Rock3-148-C_solo_mix": "validation"},
    }
    assert {tuple(plain(notes)) for _, notes, _ in pieces.values()} == {((0.25, 0.75, 52, 24, False),)}


def test_enst_drums_with_and_without_music(server, home):
    pieces = installed("enst-drums", home)
    assert {name for name, (split, _, _) in pieces.items() if split == "test"} == {"drummer_3/115_minus-one_rock"}
    assert len(pieces) == 5
    _, notes, _recording = pieces["drummer_1/001_hits_snare"]
    assert [(round(note.onset, 2), note.pitch, note.is_drum) for note in notes] == [
        *((0.1, 36, True), (0.2, 38, True), (0.3, 51, True))
    ]
    assert list(installed("enst-drums", home, "dtd")) == ["drummer_3/001_hits_snare"]
    mixed = installed("enst-drums", home, "dtm", "test")["drummer_3/115_minus-one_rock"][2]
    assert [(stem.program, stem.is_drum) for stem in mixed.stems] == [(0, True), (None, False)]
    mix, (drums, music) = soundfile.read(mixed.audio)[0], (soundfile.read(stem.audio)[0] for stem in mixed.stems)
    expected = 0.4 * music / np.abs(music).max()
    expected[: len(drums)] += 0.6 * drums / np.abs(drums).max()
    np.testing.assert_allclose(mix, expected / np.abs(expected).max(), atol=1e-4)


def test_e_gmd_is_all_drums(server, home):
    pieces = installed("e-gmd", home)
    assert sorted(split for split, _, _ in pieces.values()) == ["test", "test", "train", "validation"]
    assert {(note.pitch, note.is_drum) for _, notes, _ in pieces.values() for note in notes} == {(36, True), (38, True)}
    assert list(installed("e-gmd", home, "reduced")) == ["drummer1/session1/3_funk_5"]


def test_singing_as_voice_and_as_song(server, home):
    pieces = installed("mir-st500", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {"2": "train", "400": "train", "401": "test"}
    assert plain(pieces["2"][1]) == [(0.5, 1.0, 60, 100, False), (1.0, 1.25, 62, 100, False)]
    assert pieces["2"][2].audio.name == "vocals.wav"
    mixed = installed("mir-st500", home, "mix")["401"][2]
    assert mixed.audio.name == "converted_Mixture.wav"
    assert [(stem.audio.name, stem.program) for stem in mixed.stems] == [
        ("vocals.wav", 100),
        ("accompaniment.wav", None),
    ]


def test_cmedia_has_ends_that_were_lost(server, home):
    [(split, notes, _)] = installed("cmedia", home).values()
    assert split == "train"
    assert [(note.onset, note.offset) for note in notes] == [(0.5, 0.7), (0.7, 1.0), (1.5, 1.505), (3.5, 4.0)]


def test_a_song_of_rwc_pop_that_is_repaired_is_named(tmp_path, caplog):
    hit = mido.Message("note_on", channel=9, note=36, velocity=90, time=10)
    song = mido.MidiFile(tracks=[mido.MidiTrack(), mido.MidiTrack([mido.MetaMessage("track_name", name="DRUMS"), hit])])
    song.save(tmp_path / "song.mid")
    assert len(bands.rwc_notes(tmp_path / "song.mid", json.loads(bands.TRACKS.read_text()))) == 1
    assert caplog.messages == [f"{tmp_path / 'song.mid'}: drum hits without an end, read as 10 ms: 1"]


def test_rwc_pop_has_programs_by_the_names_of_tracks(server, home):
    pieces = installed("rwc-pop", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {"001": "test", "071": "test"}
    _, notes, recording = pieces["001"]
    # the bass's own program was 99; program 9 of a track whose name says nothing is a bell
    assert {(note.program, note.pitch, note.is_drum) for note in notes} == {
        *((100, 72, False), (0, 36, True), (33, 40, False), (8, 84, False), (101, 67, False))
    }
    assert recording.audio.parent.name == "RWC-MDB-P-2001-M01"
    assert [(name, plain(notes)) for name, (_, notes, _) in installed("rwc-pop", home, "bass").items()] == [
        ("001", [(0, 0.25, 28, 33, False)])
    ]


def test_urmp_has_its_trombone(server, home):
    pieces = installed("urmp", home)
    assert {name: split for name, (split, _, _) in pieces.items()} == {
        **{"01_Jupiter_vn_vc": "validation", "15_Surprise_tpt_tpt_tbn": "train"}
    }
    _, notes, recording = pieces["15_Surprise_tpt_tpt_tbn"]
    assert plain(notes) == [(0.1, 0.3, 70, 56, False), (0.1, 0.3, 71, 56, False), (0.1, 0.3, 72, 57, False)]
    assert [stem.program for stem in recording.stems] == [56, 56, 57]


def test_bass_notes_are_measured(server, home):
    pieces = installed("idmt-smt-bass", home)
    assert {split: plain(notes) for split, notes, _ in pieces.values()} == {
        **{"train": [(0.496, 0.992, 28, 33, False)], "validation": [(0.496, 0.992, 55, 37, False)]}
    }


def test_every_set_feeds_training(server, home):
    config = dataclasses.replace(Config(), input_frames=16)
    assert mt3.main(["data", "install", *LAYOUTS, "--quiet"]) == 0
    for name in LAYOUTS:
        split = "test" if name == "rwc-pop" else "train"
        excerpts = corpora.Excerpts([corpora.recordings(home / name, split)], 4.0)
        batch = Stream(excerpts, config).batch_at(0, 8)
        assert batch.rolls.any(), name
        example = excerpts.example(0)
        assert example.kind == name
        has_drums = name in ("slakh", "slakh-redux", "enst-drums", "e-gmd", "rwc-pop")
        assert any(note.is_drum for note in example.notes) == has_drums, name


def test_what_is_installed_stays(server, home, capsys):
    installed("urmp", home)
    assert len(server.requests) == 2, "one for the size, one for the content"
    capsys.readouterr()
    assert mt3.main(["data", "install", "urmp"]) == 0
    output = capsys.readouterr()
    assert "urmp: was installed before, 2 recordings (train 1, validation 1)" in output.out
    assert f"--recordings {home / 'urmp'}" in output.out
    # the tiny set lacks most of what was published, which is said and no error
    assert "note: urmp has 1 recording of the train split; 35 were published" in output.err
    assert len(server.requests) == 2
    assert not (home / ".downloads").exists()


def test_an_interrupted_download_goes_on(server, home, archives):
    server.faults["urmp.tar.gz"] += ["", "drop"]
    installed("urmp", home)
    half = len(archives["urmp"]) // 2
    assert server.requests[2:] == [("urmp.tar.gz", f"bytes={half}-")]


def test_a_download_of_an_earlier_run_goes_on(server, home, archives, capsys):
    server.faults["urmp.tar.gz"] += ["", "drop", *[503] * 20]
    assert mt3.main(["data", "install", "urmp", "--quiet"]) == 1
    assert "what has arrived is kept" in capsys.readouterr().err
    assert not (home / "urmp").exists()
    server.faults["urmp.tar.gz"].clear()
    server.requests.clear()
    installed("urmp", home)
    assert server.requests[-1] == ("urmp.tar.gz", f"bytes={len(archives['urmp']) // 2}-")


def test_another_file_is_refused(server, home, capsys, archives):
    server.objects["urmp.tar.gz"] = archives["maps"]
    assert mt3.main(["data", "install", "urmp", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "has the md5" in error
    assert "instead of" in error
    assert not (home / "urmp").exists()


def test_no_room(server, home, capsys, monkeypatch):
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    assert mt3.main(["data", "install", "urmp", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "urmp needs 0.0 GB" in error
    assert "choose another folder with --home" in error
    assert len(server.requests) == 1, "the size alone was asked for"


def test_a_hostile_archive_leaves_nothing(server, home, capsys, tmp_path):
    with tarfile.open(tmp_path / "evil.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("../../escaped")
        tar.addfile(info)
    content = (tmp_path / "evil.tgz").read_bytes()
    server.objects["urmp.tar.gz"] = content
    table = json.loads(catalogue.CATALOGUE.read_text())
    table["urmp"]["files"][0]["md5"] = hashlib.md5(content).hexdigest()
    catalogue.CATALOGUE.write_text(json.dumps(table))
    assert mt3.main(["data", "install", "urmp", "--quiet"]) == 1
    assert "leads elsewhere" in capsys.readouterr().err
    assert sorted(path.name for path in home.iterdir()) == [".downloads", ".urmp.lock"]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("name", ["maestro", "musicnet", "mir-st500", "urmp", "idmt-smt-bass", "e-gmd", "slakh"])
def test_a_part_of_a_set_is_one_sentence(server, home, capsys, name, tmp_path):
    (tmp_path / "x" / "other").mkdir(parents=True)
    (tmp_path / "x" / "other" / "README").write_text("no music")
    with tarfile.open(tmp_path / "part.tgz", "w:gz") as tar:
        tar.add(tmp_path / "x", ".")
    table = json.loads(catalogue.CATALOGUE.read_text())
    del table[name]["files"][0]["md5"]
    catalogue.CATALOGUE.write_text(json.dumps(table))
    server.objects[f"{name}.tar.gz"] = (tmp_path / "part.tgz").read_bytes()
    assert mt3.main(["data", "install", name, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "this is another data set, or a part of it" in error
    assert not (home / name).exists()


def test_no_download(server, home, capsys, archives):
    assert mt3.main(["data", "install", "urmp", "--no-download", "--quiet"]) == 1
    assert "--no-download forbids to fetch it: bring http" in capsys.readouterr().err
    place = home / ".downloads" / "urmp"
    place.mkdir(parents=True)
    (place / "urmp.tar.gz").write_bytes(archives["maps"])
    assert mt3.main(["data", "install", "urmp", "--no-download", "--quiet"]) == 1
    assert "it is another file" in capsys.readouterr().err
    (place / "urmp.tar.gz").write_bytes(archives["urmp"])
    assert mt3.main(["data", "install", "urmp", "--no-download", "--keep-archives", "--quiet"]) == 0
    assert len(corpora.recordings(home / "urmp")) == 2
    assert not server.requests
    assert (place / "urmp.tar.gz").exists()


def test_what_a_killed_process_left_is_in_nobodys_way(server, home):
    (home / ".urmp.partial" / "urmp_yourmt3_16k").mkdir(parents=True)
    (home / ".urmp.partial" / "urmp_yourmt3_16k" / "half").write_bytes(b"x")
    (home / "urmp").mkdir()
    installed("urmp", home)
    assert not (home / ".urmp.partial").exists()
    assert not list(home.rglob("half"))


def test_a_part_of_a_set_that_was_unpacked_is_one_sentence(server, home, capsys):
    (home / "urmp" / "other").mkdir(parents=True)
    assert mt3.main(["data", "install", "urmp", "--quiet"]) == 1
    assert "a part of it; move" in capsys.readouterr().err
    assert (home / "urmp" / "other").exists()


def test_an_unpacked_set_is_prepared_where_it_is(server, home, capsys):
    LAYOUTS["urmp"](home / "urmp")
    assert mt3.main(["data", "install", "urmp", "--no-download", "--quiet"]) == 0
    table = home / "urmp" / "notes" / "01_Jupiter_vn_vc.tsv"
    before = table.read_text()
    table.write_text("damaged")
    assert mt3.main(["data", "install", "urmp", "--again", "--quiet"]) == 0
    assert table.read_text() == before
    assert not server.requests


def test_restricted_sets_ask_for_a_token_and_keep_it_private(server, home, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("MT3_ZENODO_TOKEN")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert mt3.main(["data", "install", "cmedia", "--quiet"]) == 1
    assert "cmedia is restricted: ask for a token at https://zenodo.org/records/10016397" in capsys.readouterr().err
    answers = iter(["https://zenodo.org/records/10016397?token=wrong-one&x=1", TOKEN])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(command.getpass, "getpass", lambda prompt: next(answers))
    assert mt3.main(["data", "install", "cmedia", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "the token was refused" in error
    assert "--new-token" in error
    stored = installation.token_file()
    assert stored.read_text() == "wrong-one\n"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    stored.chmod(0o644)
    assert mt3.main(["data", "install", "cmedia", "--quiet"]) == 1, "the stored one is taken"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert mt3.main(["data", "install", "cmedia", "--new-token", "--quiet"]) == 0
    output = capsys.readouterr()
    assert TOKEN not in output.out + output.err + "".join(path.read_text() for path in home.rglob("*.json"))
    assert installation.read_token() == TOKEN
    with pytest.raises(installation.InstallError, match="this is no token"):
        installation.store_token("no token at all")


def test_a_token_that_is_needed_elsewhere_is_in_no_message(server, home, capsys):
    server.objects["other"] = b"x"
    server.faults["cmedia.tar.gz"] += ["redirect"]
    assert mt3.main(["data", "install", "cmedia", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "not encrypted" in error
    assert TOKEN not in error


def test_the_list(server, home, capsys, monkeypatch):
    installed("urmp", home)
    capsys.readouterr()
    assert mt3.main(["data", "install", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[1:3] == ["urmp", "installed"] for line in lines)
    assert any("cmedia*" in line for line in lines)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert mt3.main(["data", "install"]) == 2
    assert "name the sets to install" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    number = list(catalogue.packages()).index("maps") + 1
    for answer, status in ((f"{number}, urmp", 0), ("", 0), ("99", 2), ("mapps", 2)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert mt3.main(["data", "install"]) == status
    assert "did you mean maps?" in capsys.readouterr().err
    assert (home / "maps" / "recordings.json").exists()


def test_an_interruption_ends_all_and_leaves_what_arrived(server, home, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(installation, "write_dataset", interrupt)
    assert mt3.main(["data", "install", "urmp", "maps", "--quiet"]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert sorted(path.name for path in home.iterdir()) == [".downloads", ".urmp.lock"]


def test_one_failure_does_not_stop_the_others(server, home, capsys):
    server.objects.pop("urmp.tar.gz")
    assert mt3.main(["data", "install", "urmp", "maps", "--quiet"]) == 1
    assert (home / "maps" / "installed.json").exists()
    assert "HTTP 404" in capsys.readouterr().err


def test_the_catalogue_has_a_digest_for_every_file():
    table = catalogue.packages()
    assert [name for name in table if table[name].kind == "recordings"] == list(LAYOUTS)
    for package in table.values():
        assert package.files or package.debian, package.name
        for source in package.files:
            assert source.url.startswith("https://")
            [(kind, digest)] = source.digests.items()
            assert len(digest) == {"md5": 32, "sha256": 64, "sha512": 128}[kind]
            int(digest, 16)
        assert not package.restricted or "?" in package.files[0].url, "a token is appended with &"


def test_names_of_a_table_cannot_lead_outside(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "a.wav").write_bytes(b"")
    for name, audio in (("x", folder / ".." / "a.wav"), ("../../x", folder / "a.wav")):
        piece = Piece("x", "train", audio, name, [Note(0, 1, 60, 100)])
        with pytest.raises(DatasetError, match="would lie outside"):
            write_dataset(folder, "x", [piece], False)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(version=2),
        lambda index: index["recordings"][0].pop("audio"),
        lambda index: index["recordings"][0].update(split="training"),
        lambda index: index.update(recordings=[1]),
    ],
)
def test_a_damaged_index_is_one_sentence(server, home, change):
    installed("urmp", home)
    path = home / "urmp" / "recordings.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(DatasetError, match=r"recordings\.json is no index of recordings"):
        read_index(home / "urmp")
    with pytest.raises(DatasetError, match=r"recordings\.json is no index of recordings"):
        corpora.recordings(home / "urmp")
