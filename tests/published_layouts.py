"""Tiny data sets in their published layouts, for tests of their installation: a function for each, given a folder."""

import csv
import json
import tarfile

import mido
import numpy as np
import soundfile

RATE = 16000


def audio(path, seconds=0.5, seed=0, peak=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-peak, peak, int(seconds * RATE)), RATE)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def song(path, *tracks, pedal=False):
    """Write a MIDI file: for each (name, channel, program, pitches) a track of eighths from 0 s, at 120 a minute.

    With the pedal, the first track's notes are held until its last one ends.
    """
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500000)]))
    for name, channel, program, pitches in tracks:
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
        track.append(mido.Message("program_change", channel=channel, program=program))
        if pedal:
            track.append(mido.Message("control_change", channel=channel, control=64, value=127))
        for pitch in pitches:
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=64))
            track.append(mido.Message("note_off", channel=channel, note=pitch, time=240))
        if pedal:
            track.append(mido.Message("control_change", channel=channel, control=64, value=0))
        file.tracks.append(track)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)


def maestro(folder):
    folder /= "maestro_yourmt3_16k"
    columns = {"split": {}, "midi_filename": {}, "audio_filename": {}, "canonical_composer": {}}
    for number, split in enumerate(("train", "validation", "test")):
        name = f"2004/piece_{number}"
        # The table says .midi; one file is called .mid, as some copies have it.
        song(folder / f"{name}.{'mid' if number else 'midi'}", ("", 0, 5, [60, 62]), pedal=True)
        audio(folder / f"{name}.wav")
        for key, value in zip(columns, (split, f"{name}.midi", f"{name}.wav", "Bach")):
            columns[key][str(number)] = value
    text(folder / "maestro-v3.0.0.json", json.dumps(columns))


def slakh(folder, suffix="wav", top="slakh2100_yourmt3_16k"):
    folder /= top
    stems = {
        "S00": (33, False, "scarbee_rickenbacker_bass.nkm", True),
        "S01": (36, False, "scarbee_jay_bass_slap_both.nkm", True),
        "S02": (0, True, "studio_kit.nkm", True),
        "S03": (40, False, "violin.nkm", True),
        # not rendered, and so nowhere
        "S04": (73, False, "flute.nkm", False),
    }
    for split in ("train", "validation", "test", "omitted"):
        track = folder / split / f"Track0000{len(split)}"
        audio(track / f"mix.{suffix}")
        lines = ["stems:"]
        for name, (program, is_drum, plugin, rendered) in stems.items():
            lines += [f"  {name}:", f"    program_num: {program}", f"    is_drum: {str(is_drum).lower()}"]
            lines += [
                f"    plugin_name: {plugin}",
                f"    audio_rendered: {str(rendered).lower()}",
                "    midi_saved: true",
            ]
            song(track / "MIDI" / f"{name}.mid", ("", 9 if is_drum else 0, 0 if is_drum else program, [40]))
            if rendered:
                audio(track / "stems" / f"{name}.{suffix}")
        text(track / "metadata.yaml", "\n".join(lines) + "\n")


def slakh_redux(folder):
    slakh(folder, "flac", "slakh2100_flac_redux")


def musicnet(folder):
    folder /= "musicnet_yourmt3_16k"
    # 2194 is one of the seven without labels of MusicNet-EM
    for number, part in (
        (1727, "train"),
        (1733, "train"),
        (2194, "train"),
        (1729, "train"),
        (1819, "test"),
        (1759, "test"),
    ):
        rows = [
            {
                **{"start_time": 44100 * start // 2, "end_time": 44100 * (start + 1) // 2, "instrument": 41},
                **{"note": 60 + start, "start_beat": 0, "end_beat": 1, "note_value": "Quarter"},
            }
            for start in range(2)
        ]
        rows[1]["instrument"] = 1
        table(folder / f"{part}_labels" / f"{number}.csv", rows)
        audio(folder / f"{part}_data" / f"{number}.wav")
        audio(folder / f"{part}_synth" / f"{number}.wav")
        song(folder / f"{part}_labels_midi" / f"{number}_quartet.mid", ("", 0, 40, [70]))
        if number != 2194:
            song(folder / f"{part}_em" / f"{number}.mid", ("", 0, 42, [50]))
    song(folder / "test_labels_midi" / "1819.mid", ("", 0, 0, [1]))


def maps(folder):
    folder /= "maps_yourmt3_16k"
    for place in (
        *("train/AkPnBcht/MUS/MAPS_MUS-alb_se3_AkPnBcht", "train/AkPnBcht/MUS/MAPS_MUS-chpn-p14_AkPnBcht"),
        "test/ENSTDkAm/MUS/MAPS_MUS-chpn-p14_ENSTDkAm",
    ):
        song(folder / f"{place}.mid", ("", 0, 0, [60, 62]), pedal=True)
        audio(folder / f"{place}.wav")


def guitarset(folder):
    folder /= "guitarset_yourmt3_16k"
    for name in ("00_BN1-129-Eb_comp", "05_Rock3-148-C_solo"):
        data = [{"time": 0.25, "duration": 0.5, "value": 51.97, "confidence": None}]
        jams = {"annotations": [{"namespace": "pitch_contour", "data": []}, {"namespace": "note_midi", "data": data}]}
        text(folder / "annotation" / f"{name}.jams", json.dumps(jams))
        audio(folder / "audio_mono-mic" / f"{name}_mic.wav")
        audio(folder / "audio_mono-pickup_mix" / f"{name}_mix.wav")


def enst_drums(folder):
    folder /= "enstdrums_yourmt3_16k"
    for drummer in (1, 2, 3):
        for name in ("001_hits_snare", "115_minus-one_rock"):
            home = folder / f"drummer_{drummer}"
            text(home / "annotation" / f"{name}.txt", "0.100000 bd\n0.200000 sd-\n0.300000 rc2 \n\n")
            audio(home / "audio" / "wet_mix" / f"{name}.wav", peak=0.5)
            if "minus-one" in name:
                audio(home / "audio" / "accompaniment" / f"{name}.wav", seconds=0.75, seed=1)


def e_gmd(folder):
    folder /= "egmd_yourmt3_16k"
    rows = []
    for split, name in (("train", "1_funk_1"), ("validation", "2_funk_1"), ("test", "3_funk_5"), ("test", "4_funk_1")):
        base = f"drummer1/session1/{name}"
        rows.append(
            {"drummer": "drummer1", "split": split, "midi_filename": f"{base}.midi", "audio_filename": f"{base}.wav"}
        )
        song(folder / f"{base}.midi", ("", 0, 0, [36, 38]))
        audio(folder / f"{base}.wav")
    table(folder / "e-gmd-v1.0.0.csv", rows)


def _songs(folder, numbers):
    for number in numbers:
        for name in ("converted_Mixture", "vocals", "accompaniment"):
            audio(folder / number / f"{name}.wav", seconds=1.5)


def mir_st500(folder):
    folder /= "mir_st500_yourmt3_16k"
    _songs(folder / "train", ["2", "400"])
    _songs(folder / "test", ["401"])
    notes = {number: [[0.5, 1.0, 60], [1.0, 1.25, 62]] for number in ("2", "400", "401")}
    text(folder / "MIR-ST500_20210206" / "MIR-ST500_corrected.json", json.dumps(notes))


def cmedia(folder):
    folder /= "cmedia_yourmt3_16k"
    _songs(folder / "train", ["1"])
    # a note whose end was lost, 0.2 s before the next; one that is short, 2 s before the next
    notes = {"1": [[0.5, 0.505, 60], [0.7, 1.0, 62], [1.5, 1.505, 64], [3.5, 4.0, 65]]}
    text(folder / "Cmedia-train" / "Cmedia_train_gt.json", json.dumps(notes))


def rwc_pop(folder):
    folder /= "rwc_pop_yourmt3_16k"
    text(folder / "wav_to_midi_filename_mapping.csv", "RWC-MDB-P-2001-M,Audio Track,MIDI\n01,01,001\n05,01,071\n")
    for disc, number in (("01", "001"), ("05", "071")):
        audio(folder / f"RWC-MDB-P-2001-M{disc}" / "01 Audio Track.wav")
        tracks = [
            *(("MELODY", 0, 53, [72]), ("Drums", 9, 0, [36]), ("E.BASS", 1, 99, [40]), ("PERCUSSION", 2, 0, [60])),
            *(("KIRA KIRA", 3, 9, [84]), ("CHORUS", 4, 0, [67])),
        ]
        song(folder / "MIDI" / f"{number}.mid", *tracks)
    song(folder / "MIDI-Bass-Octave-fixed-v2" / "001_bass.mid", ("BASS", 0, 33, [28]))


def urmp(folder):
    folder /= "urmp_yourmt3_16k"
    for piece, names in (("01_Jupiter_vn_vc", "vn vc"), ("15_Surprise_tpt_tpt_tbn", "tpt tpt tpt")):
        number, title, *_ = piece.split("_")
        audio(folder / piece / f"AuMix_{piece}.wav")
        text(folder / piece / f"._AuMix_{piece}.wav", "what macOS leaves")
        for part, instrument in enumerate(names.split(), 1):
            end = f"{part}_{instrument}_{number}_{title}"
            text(folder / piece / f"Notes_{end}.txt", f"0.100\t{440 * 2 ** (part / 12) * 1.01:.3f}\t0.200\n")
            audio(folder / piece / f"AuSep_{end}.wav")
    text(folder / "Supplementary_Files_x" / "README.txt", "")


def idmt_smt_bass(folder):
    folder /= "idmt_smt_bass_yourmt3_16k"
    splits = {"train": ["PS/FS/BS_1_EQ_1_FS_NO_1_0.wav"], "validation": ["PS/ST/BS_1_EQ_1_ST_NO_4_12.wav"]}
    for name in (*splits["train"], *splits["validation"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.zeros(2 * RATE)
        samples[RATE // 2 : RATE] = 0.5 * np.sin(np.arange(RATE // 2))
        soundfile.write(path, samples, RATE)
    text(folder / "stratified_split_crepe_smt.json", json.dumps(splits))


LAYOUTS = {
    **{"maestro": maestro, "slakh": slakh, "slakh-redux": slakh_redux, "musicnet": musicnet, "maps": maps},
    **{"guitarset": guitarset, "enst-drums": enst_drums, "e-gmd": e_gmd, "mir-st500": mir_st500, "cmedia": cmedia},
    **{"rwc-pop": rwc_pop, "urmp": urmp, "idmt-smt-bass": idmt_smt_bass},
}


def archive(name, folder):
    """Return the archive of a tiny data set, as bytes."""
    LAYOUTS[name](folder / "published")
    path = folder / "archive.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(folder / "published", ".")
    return path.read_bytes()
