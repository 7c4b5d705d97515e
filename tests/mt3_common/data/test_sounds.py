"""Soundfonts from sets of recorded notes as they are published, from a local server and from a package."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
from file_server import Bucket

from mt3_common.cli import mt3
from mt3_common.data import catalogue, sounds, sources
from mt3_common.data.catalogue import Source
from mt3_common.data.sample_fonts import NotesError, RecordedNote, as_drum_kit, compasses, write_font
from mt3_common.data.soundfont import RENDER_RATE, Fonts
from mt3_common.notes.note import Note

RATE = 44100


def tone(path, pitch, seconds=1.0, lead=0.1, level=0.3):
    """Write a decaying tone that begins after some silence."""
    times = np.arange(round(seconds * RATE)) / RATE
    samples = level * np.exp(-times) * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * times)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.concatenate([np.zeros(round(lead * RATE)), samples]), RATE)


@pytest.mark.parametrize(
    ("name", "pitch"), [("A4", 69), ("C4", 60), ("As3", 58), ("D#3v10", 51), ("Bb2", 46), ("C-1", 0), ("C8v16", 108)]
)
def test_names_of_notes(name, pitch):
    assert sounds.pitch_of(name) == pitch


def test_notes_begin_at_once_and_are_level(tmp_path):
    tone(tmp_path / "A4.wav", 69, seconds=6.0, lead=0.2, level=0.01)
    note = sounds.recorded_note(tmp_path / "A4.wav", 69, 0.5)
    assert len(note.samples) == 4 * sounds.RATE
    assert np.abs(note.samples[: round(0.01 * sounds.RATE)]).max() > 0.05
    level = np.sqrt(np.mean(note.samples[: round(0.6 * sounds.RATE)] ** 2))
    assert level == pytest.approx(10 ** (sounds.LEVEL / 20), rel=0.01)
    assert np.abs(note.samples[-10:]).max() < 1e-3


@pytest.mark.parametrize(("name", "pitch"), [("A4", 69.3), ("A4", 67.9), ("E2", 40.1), ("C6", 83.75)])
def test_notes_are_tuned_by_their_sound(tmp_path, name, pitch):
    tone(tmp_path / f"{name}.wav", pitch)
    note = sounds.recorded_note(tmp_path / f"{name}.wav", sounds.pitch_of(name), 0.5)
    assert note.pitch == pytest.approx(pitch, abs=0.05)
    assert note.key == sounds.pitch_of(name)


def test_noise_and_short_notes_have_the_pitch_of_their_name(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, RATE)
    for length in (RATE, RATE // 50):
        soundfile.write(tmp_path / "A4.wav", samples[:length], RATE)
        assert sounds.recorded_note(tmp_path / "A4.wav", 69, 0.5).pitch == 69.0


def test_a_font_becomes_a_drum_kit_without_some_keys(tmp_path):
    notes = [RecordedNote(np.full(2400, 0.1, np.float32), key, key, 0.5, None) for key in (36, 48)]
    write_font(tmp_path / "kit.sf2", "kit", None, notes)
    content = (tmp_path / "kit.sf2").read_bytes()
    write_font(tmp_path / "piano.sf2", "kit", 0, notes)
    as_drum_kit(tmp_path / "piano.sf2", ())
    assert set(compasses(tmp_path / "piano.sf2")) == {(128, 0)}
    as_drum_kit(tmp_path / "kit.sf2", [48])
    assert len((tmp_path / "kit.sf2").read_bytes()) == len(content)
    [compass] = compasses(tmp_path / "kit.sf2").values()
    assert np.flatnonzero(compass.longest).tolist() == [36, 127]
    (tmp_path / "kit.sf2").write_bytes(content[:200])
    with pytest.raises(NotesError):
        as_drum_kit(tmp_path / "kit.sf2", [])


def test_layers_become_one_font_that_sounds_in_tune(tmp_path):
    folders = []
    for number, layer in enumerate((0.25, 0.75)):
        source = Source("https://x/y.tgz", {}, "piano", 0, layer)
        for name, pitch in (("A4", 69), ("C5", 72)):
            tone(tmp_path / str(number) / "package" / "audio" / f"{name}v{number}.wav", pitch)
        folders.append((source, tmp_path / str(number)))
    (tmp_path / "0" / "package" / "README.md").write_text("no sound")
    [font] = sounds.build_fonts(folders, tmp_path)
    assert font.name == "piano.sf2"
    pytest.importorskip("tinysoundfont")
    fonts = Fonts([font])
    assert fonts.programs(0) == {0}
    for pitch in (69, 70, 72):
        samples = fonts.play([Note(0.0, 0.8, pitch, 100)], 0, 0, False, 0.0, 1.0)[: RENDER_RATE // 2]
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
        hertz = np.argmax(spectrum) * RENDER_RATE / (1 << 18)
        assert abs(69 + 12 * np.log2(hertz / 440) - pitch) < 0.05


def test_what_has_no_notes(tmp_path):
    with pytest.raises(NotesError, match=r"no notes that are named by their pitch"):
        sounds.build_fonts([(Source("https://x/y.tgz", {}), tmp_path)], tmp_path)
    soundfile.write(tmp_path / "A4.wav", np.zeros(1000), RATE)
    with pytest.raises(NotesError, match=r"A4\.wav is silent"):
        sounds.build_fonts([(Source("https://x/y.tgz", {}), tmp_path)], tmp_path)
    (tmp_path / "A4.wav").write_bytes(b"no audio")
    with pytest.raises(NotesError, match=r"A4\.wav cannot be read"):
        sounds.build_fonts([(Source("https://x/y.tgz", {}), tmp_path)], tmp_path)
    (tmp_path / "drumkit.xml").write_text("<a>")
    with pytest.raises(NotesError, match=r"drumkit\.xml is no drum kit"):
        sounds.build_kit(tmp_path, tmp_path)


def kit(folder):
    tone(folder / "Kick-Soft.wav", 40, 0.2, level=0.1)
    tone(folder / "Kick-Hard.wav", 40, 0.2)
    layers = "".join(
        f"<layer><filename>../../Kick-{name}.wav</filename><min>{low}</min><max>{low + 0.5}</max></layer>"
        for name, low in (("Soft", 0.0), ("Hard", 0.5))
    )
    instrument = f"<instrument><midiOutNote>36</midiOutNote>{layers}</instrument>"
    (folder / "drumkit.xml").write_text(
        f'<drumkit_info xmlns="http://www.hydrogen-music.org/drumkit"><instrumentList>{instrument}</instrumentList>'
        "</drumkit_info>"
    )


def test_a_drum_kit_of_hydrogen(tmp_path):
    kit(tmp_path)
    font = sounds.build_kit(tmp_path, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    [compass] = compasses(sounds.build_kit(tmp_path, other, {"36": 35})).values()
    assert np.flatnonzero(compass.longest).tolist() == [35]
    with pytest.raises(NotesError, match="no instruments with samples"):
        sounds.build_kit(tmp_path, other, {"36": None})
    pytest.importorskip("tinysoundfont")
    fonts = Fonts([font])
    assert fonts.kits(0) == (0,)
    loud, soft = (
        np.abs(fonts.play([Note(0.1, 0.2, 36, velocity)], 0, 0, True, 0.0, 1.0)).max() for velocity in (120, 20)
    )
    assert loud > 3 * soft > 0


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with a package of recorded notes, and a catalogue of it and of a package of Debian."""
    tone(tmp_path / "notes" / "package" / "A4.wav", 69)
    with tarfile.open(tmp_path / "notes.tgz", "w:gz") as tar:
        tar.add(tmp_path / "notes", ".")
    made = Bucket({"notes.tgz": (tmp_path / "notes.tgz").read_bytes()})
    entry = {"title": "notes", "kind": "sounds", "gigabytes": 0.001, "licence": "CC0", "page": "https://x"}
    table = {
        "violins": entry | {"files": [{"url": f"{made.url}/media/notes.tgz", "instrument": "violin", "program": 40}]},
        "kits": entry | {"files": [], "debian": {"package": "some-kit", "kits": ["usr/share/kits/Kit"]}},
        "fonts": entry | {"files": [], "debian": {"package": "some-kit", "files": ["usr/share/*.sf2"]}},
    }
    (tmp_path / "catalogue.json").write_text(json.dumps(table))
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.json")
    monkeypatch.setenv("MT3_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    yield made
    made.close()


def test_recorded_notes_are_installed_as_fonts(server, tmp_path, capsys):
    assert mt3.main(["data", "install", "violins", "--quiet"]) == 0
    output = capsys.readouterr().out
    assert "violins: installed, 1 soundfont; CC0" in output
    assert f"--fonts {tmp_path / 'home' / 'violins'}/*.sf2" in output
    assert (tmp_path / "home" / "violins" / "violin.sf2").read_bytes()[8:12] == b"sfbk"


def test_kits_come_out_of_packages(server, tmp_path, capsys, monkeypatch):
    root = tmp_path / "root"
    kit(tmp_path / "root" / "usr" / "share" / "kits" / "Kit")
    (root / "usr" / "share" / "doc" / "some-kit").mkdir(parents=True)
    (root / "usr" / "share" / "doc" / "some-kit" / "copyright").write_text("GPL")

    def download(package, folder):
        (folder / f"{package}_1.0_all.deb").write_bytes(b"a package")
        return folder / f"{package}_1.0_all.deb"

    monkeypatch.setattr(sources, "download", download)
    monkeypatch.setattr(sources, "unpack", lambda deb, folder: shutil.copytree(root, folder))
    assert mt3.main(["data", "install", "kits", "--no-download", "--quiet"]) == 1
    assert "has no some-kit_*.deb and --no-download" in capsys.readouterr().err
    assert mt3.main(["data", "install", "kits", "fonts", "--quiet"]) == 1
    output = capsys.readouterr()
    assert "kits: installed, 1 soundfont" in output.out
    assert "some-kit_1.0_all.deb has no usr/share/*.sf2" in output.err
    home = tmp_path / "home"
    assert sorted(path.name for path in (home / "kits").iterdir()) == ["Kit.sf2", "copyright", "installed.json"]
    assert not (home / "fonts").exists()
