"""Data sets in the layouts that they are published in, made small here; excerpts and mixtures of them."""

import csv
import json
import os

import mido
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli.dataset import main
from mt3_common.config import Config, SpectrogramConfig
from mt3_common.data import corpora as datasets
from mt3_common.data import shards as dataset
from mt3_common.data.corpora import DatasetError, Recording
from mt3_common.data.segments import cutter_of
from mt3_common.data.synthesis import in_order
from mt3_common.formats import midi
from mt3_common.notes.note import Note
from mt3_common.training.logs import segment_notes, yourmt3_segment_notes

NOTES = [Note(0.5, 1.0, 60, 100), Note(1.0, 1.5, 64, 80), Note(2.0, 2.5, 67, 90)]


def write_audio(path, seconds=4.0, rate=16000, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.1, 0.1, int(seconds * rate)), rate)


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_pedalled(path):
    """A MIDI file with two notes, the first held by the pedal until the pedal goes up at 2 s."""
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500000)])
    events = [
        *(
            (480, mido.Message("note_on", note=60, velocity=70)),
            (720, mido.Message("control_change", control=64, value=127)),
        ),
        *((960, mido.Message("note_off", note=60)), (1920, mido.Message("control_change", control=64, value=0))),
        *((1920, mido.Message("note_on", note=62, velocity=70)), (2400, mido.Message("note_off", note=62))),
    ]
    now = 0
    for tick, message in events:
        track.append(message.copy(time=tick - now))
        now = tick
    path.parent.mkdir(parents=True, exist_ok=True)
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(track)
    file.save(path)


def maestro(folder):
    rows = []
    for split, year in (("train", 2004), ("train", 2006), ("validation", 2008), ("test", 2009)):
        name = f"{year}/MIDI-Unprocessed_{split}_{year}"
        write_audio(folder / f"{name}.wav")
        write_pedalled(folder / f"{name}.midi")
        rows.append(
            {"canonical_composer": "A", "canonical_title": "B, with a comma", "split": split, "year": year}
            | {"midi_filename": f"{name}.midi", "audio_filename": f"{name}.wav", "duration": 4.0}
        )
    write_table(folder / "maestro-v3.0.0.csv", rows)


def slakh(folder):
    for split, track in (("train", "Track00001"), ("validation", "Track01501"), ("test", "Track01876")):
        path = folder / split / track
        write_audio(path / "mix.flac")
        midi_folder = path / "MIDI"
        midi_folder.mkdir()
        # programs in the files are not those of the metadata
        midi.write_midi([note._replace(program=5) for note in NOTES], midi_folder / "S00.mid")
        midi.write_midi([Note(0.25, 0.3, 38, 100)], midi_folder / "S01.mid")
        midi.write_midi(NOTES, midi_folder / "S02.mid")
        stem = (
            "    audio_rendered: {}\n    inst_class: {}\n    is_drum: {}\n    midi_saved: true\n    program_num: {}\n"
        )
        lines = "UUID: 1a81ae\naudio_dir: stems\nstems:\n"
        lines += "  S00:\n" + stem.format("true", "Bass", "false", 33)
        lines += "  S01:\n" + stem.format("true", "Drums", "true", 128)
        lines += "  S02:\n" + stem.format("false", "Piano", "false", 0)
        (path / "metadata.yaml").write_text(lines)
    write_audio(folder / "omitted" / "Track00049" / "mix.flac")
    (folder / "omitted" / "Track00049" / "metadata.yaml").write_text("stems: {}\n")


def musicnet(folder):
    metadata = []
    for part, number, composition in (("train", 1727, "Quintet"), ("train", 1728, "Quintet"), ("test", 2303, "Sonata")):
        write_audio(folder / f"{part}_data" / f"{number}.wav", rate=44100)
        row = {"start_time": 22050, "end_time": 44100, "instrument": 43, "note": 48}
        row |= {"start_beat": 0.0, "end_beat": 1.0, "note_value": "Quarter"}
        later = row | {"start_time": 44100, "end_time": 88200, "instrument": 1, "note": 60}
        write_table(folder / f"{part}_labels" / f"{number}.csv", [later, row])
        metadata.append({"id": number, "composer": "Schubert", "composition": composition, "movement": "1"})
    write_table(folder / "musicnet_metadata.csv", metadata)


def guitarset(folder):
    for name in ("00_BN1-129-Eb_comp", "00_Rock2-85-F_solo", "05_SS3-98-C_comp"):
        write_audio(folder / "audio_mono-mic" / f"{name}_mic.wav", rate=44100)
        string = {"namespace": "note_midi", "annotation_metadata": {"data_source": "0"}}
        string["data"] = [{"time": 0.5, "duration": 0.25, "value": 51.08, "confidence": None}]
        other = string | {"data": [{"time": 0.25, "duration": 1.0, "value": 57.9, "confidence": None}]}
        contour = {"namespace": "pitch_contour", "data": {"time": [0.0], "duration": [0.0], "value": [{}]}}
        (folder / "annotation").mkdir(exist_ok=True)
        content = {"annotations": [contour, string, other], "file_metadata": {}, "sandbox": {}}
        (folder / "annotation" / f"{name}.jams").write_text(json.dumps(content))


def urmp(folder):
    for piece in ("01_Jupiter_vn_vc", "03_Dance_fl_cl"):
        number, title, *instruments = piece.split("_")
        write_audio(folder / piece / f"AuMix_{piece}.wav", rate=48000)
        for part, instrument in enumerate(instruments, 1):
            lines = "0.500\t\t440.003\t\t0.400\n1.000\t\t466.2\t\t0.5\n"
            (folder / piece / f"Notes_{part}_{instrument}_{number}_{title}.txt").write_text(lines)


LAYOUTS = {"maestro": maestro, "slakh": slakh, "musicnet": musicnet, "guitarset": guitarset, "urmp": urmp}


@pytest.fixture(params=LAYOUTS)
def published(request, tmp_path):
    folder = tmp_path / request.param
    folder.mkdir()
    LAYOUTS[request.param](folder)
    return folder


SPLITS = {
    "maestro": ["train", "train", "validation", "test"],
    "slakh": ["test", "train", "validation"],
    "musicnet": ["test", "train", "train"],
    "guitarset": ["train", "train", "validation"],
    "urmp": ["validation", "train"],
}
EXPECTED = {
    "maestro": [(0.5, 2.0, 60, 70, 0, False), (2.0, 2.5, 62, 70, 0, False)],
    "slakh": [(0.25, 0.3, 38, 100, 0, True), *((n.onset, n.offset, n.pitch, n.velocity, 33, False) for n in NOTES)],
    "musicnet": [(0.5, 1.0, 48, 100, 42, False), (1.0, 2.0, 60, 100, 0, False)],
    "guitarset": [(0.25, 1.25, 58, 100, 24, False), (0.5, 0.75, 51, 100, 24, False)],
    "urmp": [
        *((0.5, 0.9, 69, 100, 40, False), (0.5, 0.9, 69, 100, 42, False)),
        *((1.0, 1.5, 70, 100, 40, False), (1.0, 1.5, 70, 100, 42, False)),
    ],
}


def test_a_published_layout_is_recognised_and_read(published):
    result = datasets.recordings(published)
    layout = published.name
    assert {recording.layout for recording in result} == {recording.group for recording in result} == {layout}
    splits = [recording.split for recording in result]
    # movements of one piece are in one split, whichever a hash gives them
    assert splits == SPLITS[layout] or (layout == "musicnet" and splits == ["test", "validation", "validation"])
    notes = datasets.read_notes(result[0] if layout != "guitarset" else result[1])
    assert len(notes) == len(EXPECTED[layout])
    for note, expected in zip(notes, EXPECTED[layout], strict=True):
        assert note[:2] == pytest.approx(expected[:2], abs=1e-3)
        assert note[2:] == expected[2:]
    for split in set(splits):
        assert [r.split for r in datasets.recordings(published, split)] == [s for s in splits if s == split]


def test_instruments_of_urmp_are_those_of_the_folder(tmp_path):
    """As published, a file of piece 15 calls a trombone a trumpet."""
    urmp(tmp_path)
    piece = tmp_path / "01_Jupiter_vn_vc"
    (piece / "Notes_2_vc_01_Jupiter.txt").rename(piece / "Notes_2_tpt_01_Jupiter.txt")
    notes = datasets.read_notes(datasets.recordings(tmp_path)[0])
    assert {note.program for note in notes} == {40, 42}
    piece.rename(tmp_path / "01_Jupiter")
    with pytest.raises(DatasetError, match="not named as URMP has it, after all instruments, such as 01_Jupiter_vn_vc"):
        datasets.read_notes(datasets.recordings(tmp_path)[0])


def test_a_missing_file_is_said(published):
    recording = datasets.recordings(published)[0]
    recording.audio.unlink()
    if published.name == "urmp":
        # the mix is what a piece is found by
        assert recording.name not in [other.name for other in datasets.recordings(published)]
        return
    with pytest.raises(DatasetError, match=rf"{recording.audio.name} is missing"):
        datasets.recordings(published)


def test_pairs_are_any_folder(tmp_path):
    write_audio(tmp_path / "songs" / "maps__one.flac")
    midi.write_midi(NOTES, tmp_path / "songs" / "maps__one.mid")
    write_audio(tmp_path / "two.wav")
    (tmp_path / "two.tsv").write_text("onset\toffset\tpitch\tprogram\tis_drum\n0.5\t1\t36\t0\ttrue\n")
    write_audio(tmp_path / "alone.wav")
    # the same files as infer finds: other formats too, nothing hidden
    for name in ("three.au", ".three.wav", ".hidden/three.wav"):
        write_audio(tmp_path / name)
        midi.write_midi(NOTES, (tmp_path / name).with_suffix(".mid"))
    first, third, second = datasets.recordings(tmp_path)
    assert third.audio.name == "three.au"
    assert (first.name, first.group, second.group) == ("songs/maps__one", "maps", tmp_path.name)
    assert datasets.read_notes(second) == [Note(0.5, 1.0, 36, 100, 0, True)]
    assert [note.pitch for note in datasets.read_notes(first)] == [60, 64, 67]
    assert datasets.recordings(tmp_path, first.split)
    with pytest.raises(DatasetError, match="none is of the nothing split"):
        datasets.recordings(tmp_path, "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no data set is recognised"):
        datasets.recordings(tmp_path / "empty")


# each line has the one before it nine times; fewer than would fill the memory
MERGED = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join(9 * [f'*a{n - 1}'])}]}}\n" for n in range(1, 4))
MERGED += "stems: {}"
JAMS = '{{"annotations": [{{"namespace": "note_midi", "data": [{{"time": {}, "duration": 1, "value": {}}}]}}]}}'


@pytest.mark.parametrize(
    ("layout", "file", "content", "message"),
    [
        ("maestro", "maestro-v3.0.0.csv", "split,title\n", "no column 'midi_filename'"),
        ("maestro", "maestro-v3.0.0.csv", "split,midi_filename,audio_filename\ntrain,a.mi", "is not as maestro has it"),
        ("musicnet", "musicnet_metadata.csv", "composer,composition\nBach,Suite\n", "is not as musicnet has it"),
        ("guitarset", "annotation/mine.jams", "{}", "is not as guitarset has it"),
        ("slakh", "test/Track01876/metadata.yaml", "stems: [", "is not as slakh has it"),
        ("slakh", "test/Track01876/metadata.yaml", "stems: 5", "is not as slakh has it"),
        ("musicnet", "test_labels/2303.csv", "start_time,note\n1,2\n", "no column 'end_time'"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", "{", "is no JSON"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", '{"annotations": [{}]}', "is not as guitarset has it"),
        ("slakh", "test/Track01876/metadata.yaml", 2000 * "[", "is not as slakh has it"),
        ("slakh", "test/Track01876/metadata.yaml", MERGED, r"metadata\.yaml is not as slakh has it.*it has an alias"),
        ("slakh", "test/Track01876/metadata.yaml", "a: &a [1]\nstems: *a", "it has an alias"),
        ("slakh", "test/Track01876/metadata.yaml", 2**20 * " " + "stems: {}", "it has more than 1048576 bytes"),
        (
            "musicnet",
            "test_labels/2303.csv",
            "start_time,end_time,instrument,note\n1,2,x,60\n",
            "is not as musicnet has it",
        ),
        ("musicnet", "test_labels/2303.csv", "start_time,end_time,instrument,note\n1,2,1,600\n", "pitch and program"),
        ("musicnet", "test_labels/2303.csv", "start_time,end_time,instrument,note\n9,2,1,60\n", "end no earlier"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", 900 * "[" + 900 * "]", "is no JSON.*nested too deeply"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", JAMS.format("1e308", "60"), "no later than"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", JAMS.format("NaN", "60"), "must begin at 0 s or later"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", JAMS.format("1", "1e9"), "pitch and program"),
        ("guitarset", "annotation/00_BN1-129-Eb_comp.jams", JAMS.format("1", 400 * "9"), "pitch and program"),
        ("urmp", "01_Jupiter_vn_vc/Notes_1_vn_01_Jupiter.txt", "0.1 440 1e12\n", "no later than"),
        ("urmp", "01_Jupiter_vn_vc/Notes_1_vn_01_Jupiter.txt", "0.1 -5 0.2\n", "line 1: not onset, Hz, duration"),
        ("urmp", "01_Jupiter_vn_vc/Notes_3_vn_01_Jupiter.txt", "0.1 440 0.2\n", "not named as URMP has it"),
    ],
)
def test_a_file_that_is_not_as_its_layout_says_is_said(layout, file, content, message, tmp_path):
    LAYOUTS[layout](tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(DatasetError, match=message) as error:
        [datasets.read_notes(recording) for recording in datasets.recordings(tmp_path)]
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_drum_hits_without_length_in_tables_are_taught(tmp_path):
    write_audio(tmp_path / "song.wav")
    (tmp_path / "song.tsv").write_text("".join(f"{time}\t{time}\t36\t0\t1\n" for time in (0.5, 1.0, 1.5)))
    [recording] = datasets.recordings(tmp_path)
    assert [note.offset - note.onset for note in datasets.read_notes(recording)] == pytest.approx([0.01] * 3)
    example = datasets.Excerpts([[recording]], seconds=4).example(0)
    assert [note.onset for note in example.notes] == [0.5, 1.0, 1.5]


def test_all_of_a_recording_is_cut_whose_header_states_no_length(tmp_path, monkeypatch):
    write_audio(tmp_path / "song.wav", seconds=30)
    recording = Recording("song", "pairs", "train", tmp_path / "song.wav", (tmp_path / "song.tsv",))
    (tmp_path / "song.tsv").write_text("".join(f"{time}\t{time + 0.9}\t{40 + time}\t0\t0\n" for time in range(30)))
    monkeypatch.setattr(datasets, "audio_duration", lambda path: None)
    datasets.duration_of.cache_clear()
    assert datasets.duration_of(tmp_path / "song.wav") == 30
    excerpts = datasets.Excerpts([[recording]], seconds=4)
    pitches = {note.pitch for number in range(12) for note in excerpts.example(number).notes}
    datasets.duration_of.cache_clear()
    assert min(pitches) < 48
    assert max(pitches) > 60


@pytest.mark.parametrize("first", [0, 1])
def test_musicnet_as_published_counts_instruments_from_0_or_1(first, tmp_path):
    write_audio(tmp_path / "train_data" / "1727.wav", rate=44100)
    head = "start_time,end_time,instrument,note\n"
    (tmp_path / "train_labels").mkdir()
    (tmp_path / "train_labels" / "1727.csv").write_text(f"{head}0,44100,{first},60\n0,44100,{40 + first},72\n")
    [recording] = datasets.recordings(tmp_path)
    assert sorted(note.program for note in datasets.read_notes(recording)) == [0, 40]


def test_mixing_is_mt3s():
    # the sizes' 0.3rd powers, as seqio's temperature 10/3 gives them
    rates = datasets.mixing_rates([1000, 10])
    assert rates == pytest.approx([1000**0.3 / (1000**0.3 + 10**0.3), 10**0.3 / (1000**0.3 + 10**0.3)])
    assert datasets.mixing_rates([30, 10], 1.0) == pytest.approx([0.75, 0.25])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.floats(1, 20))
def test_mixing_rates_add_up_and_keep_the_order(sizes, temperature):
    rates = datasets.mixing_rates(sizes, temperature)
    assert rates.sum() == pytest.approx(1)
    assert (np.diff(rates[np.argsort(sizes)]) >= -1e-12).all()


def test_excerpts_hold_the_notes_of_their_stretch(tmp_path):
    samples = np.zeros(160000, np.float32)
    notes = []
    for number in range(19):
        # a click where each note begins
        samples[8000 * number + 4000] = 0.9
        notes.append(Note(number / 2 + 0.25, number / 2 + 0.6, 40 + number, 100, 43))
    soundfile.write(tmp_path / "clicks.wav", samples, 16000, subtype="FLOAT")
    midi.write_midi(notes, tmp_path / "clicks.mid")
    excerpts = datasets.Excerpts([datasets.recordings(tmp_path)], seconds=2.0, seed=3, midi_class=True)
    starts = set()
    for index in range(6):
        example = excerpts.example(index)
        assert len(example.audio) == 32000
        clicks = np.flatnonzero(example.audio > 0.5) / 16000
        begun = [note.onset for note in example.notes if note.onset > 0]
        assert begun == pytest.approx(clicks, abs=1e-3)
        assert {note.program for note in example.notes} == {40}
        assert max(note.offset for note in example.notes) <= 2.0
        starts.add(round(clicks[0], 4))
        again = excerpts.example(index)
        np.testing.assert_array_equal(example.audio, again.audio)
        assert example.notes == again.notes
    assert len(starts) > 3


@pytest.mark.parametrize("settings", [Config(), RELEASED["yptf-single"].settings])
@pytest.mark.parametrize("seconds", [1.0, 4.0, 20.48])
def test_what_sounds_where_an_excerpt_begins_is_tied_and_struck_by_none(tmp_path, settings, seconds):
    """A note that is held for a minute, and hits that ring: short excerpts are cut from their beginning."""
    soundfile.write(tmp_path / "song.wav", np.zeros(60 * 16000, np.float32), 16000)
    rows = ["0\t60\t57\t0\t0", *(f"{0.5 * number}\t{0.5 * number + 0.4}\t36\t0\t1" for number in range(120))]
    (tmp_path / "song.tsv").write_text("\n".join(rows) + "\n")
    excerpts = datasets.Excerpts([datasets.recordings(tmp_path)], seconds)
    cutter = cutter_of(settings)
    for index in range(20):
        example = excerpts.example(index)
        assert sum(note.onset < 0 for note in example.notes) == 1
        for _, ids, sounding in cutter.cut(example.audio, example.notes, np.random.default_rng(index)):
            if isinstance(settings, Config):
                notes = segment_notes(ids, settings)
            else:
                notes = yourmt3_segment_notes(ids, settings)
            pitched = [note for note in notes if not note.is_drum]
            assert [(note.pitch, note.onset) for note in pitched] == [(57, 0.0)]
            assert not sounding[:, 128:256].any()
            assert sounding[0, 57]
            hits = [note.onset for note in notes if note.is_drum]
            assert np.diff(hits) == pytest.approx(0.5, abs=0.011)
            assert sounding[:, 256:384].sum() == pytest.approx(len(hits), abs=1)


def test_singers_of_tables_are_labelled_as_general_midi_names_them(tmp_path):
    """Tables call them 100 and 101, as YourMT3+'s vocabulary does; in MIDI files those are synthetic effects."""
    for name in ("table", "midi"):
        write_audio(tmp_path / name / "song.wav", seconds=1.2)
    singers = [Note(0.1, 0.9, 60, 100, 100), Note(0.1, 0.9, 64, 100, 101), Note(0.1, 0.9, 67, 100, 0)]
    midi.write_midi(singers, tmp_path / "midi" / "song.mid")
    lines = [f"{note.onset}\t{note.offset}\t{note.pitch}\t{note.program}\t0" for note in singers]
    (tmp_path / "table" / "song.tsv").write_text("\n".join(["onset\toffset\tpitch\tprogram\tis_drum", *lines]))

    def programs(name, **settings):
        excerpts = datasets.Excerpts([datasets.recordings(tmp_path / name)], seconds=1.0, **settings)
        return [note.program for note in sorted(excerpts.example(0).notes, key=lambda note: note.pitch)]

    assert programs("table") == [53, 52, 0]
    assert programs("table", midi_class=True) == [48, 48, 0]
    assert programs("table", general_midi=False) == programs("midi") == [100, 101, 0]

    # Slakh has songs in General MIDI, of which the table is made
    [recording] = datasets.recordings(tmp_path / "table")
    slakh = recording._replace(layout="installed", dataset="slakh")
    assert [note.program for note in datasets.read_notes(slakh, general_midi=True)] == [100, 101, 0]
    assert datasets.program_of(slakh, 100, general_midi=True) == 100
    assert datasets.program_of(recording, 100, general_midi=True) == 53
    # pairs are MIDI files
    out = tmp_path / "out"
    recipe = '{"seconds": 1.0, "midi_class": false}'
    arguments = [str(out), "--recordings", str(tmp_path / "table"), "--pairs", "--examples", "1", "--recipe", recipe]
    assert main(arguments) == 0
    [path] = out.glob("*.mid")
    assert {note.program for note in midi.read_midi(path)} == {53, 52, 0}


def test_data_sets_are_drawn_by_their_rates(tmp_path):
    result = []
    for name, count in (("large", 12), ("small", 2)):
        for number in range(count):
            write_audio(tmp_path / name / f"{number}.wav", seconds=1.2)
            midi.write_midi(NOTES, tmp_path / name / f"{number}.mid")
        result.append([r._replace(layout="pairs") for r in datasets.recordings(tmp_path / name)])
    excerpts = datasets.Excerpts(result, seconds=1.0)
    drawn = np.random.default_rng(0).choice(2, 400, p=excerpts.rates)
    assert excerpts.rates[1] == pytest.approx(2**0.3 / (2**0.3 + 12**0.3))
    assert abs(drawn.mean() - excerpts.rates[1]) < 0.06


CONFIG = Config(spectrogram=SpectrogramConfig(hop_width=320), input_frames=64, max_target_length=64)


def test_the_command_makes_shards_of_published_data(published, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(json.dumps({"model": CONFIG.to_dict()}))
    arguments = [str(tmp_path / "out"), "--config", str(tmp_path / "plan.json"), "--shards", "1", "--examples", "3"]
    arguments += ["--recipe", '{"seconds": 3.0, "midi_class": false}']
    split = [] if published.name != "musicnet" else ["--split", "test"]
    assert main([*arguments, *split, "--recordings", str(published)]) == 0
    shards = dataset.Shards(sorted((tmp_path / "out").glob("*.npz")), CONFIG)
    batch = shards.batch(range(len(shards)))
    assert batch.targets.shape[1] <= 64
    assert batch.rolls[..., :384].any()
    assert json.loads((tmp_path / "out" / "sources.json").read_text())["recordings"] == [published.name]
    assert main(arguments) == 2
    assert "give either --fonts, with --midi unless music is to be made up, or --recordings" in capsys.readouterr().err


@pytest.mark.process
def test_a_worker_that_dies_is_said_and_does_not_hang():
    result = in_order(abs, range(5), 2)
    assert list(result) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="a worker process died"):
        list(in_order(os._exit, range(1, 5), 1))


def test_recordings_say_their_group():
    recording = Recording("x/maps__a", "pairs", "train", datasets.Path("x/maps__a.wav"), ())
    assert recording.group == "maps"
    assert recording._replace(layout="slakh").group == "slakh"
