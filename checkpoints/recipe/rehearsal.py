"""A rehearsal of gpu.sh on the CPU: a toy of what default.sh makes, and all three steps with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from checkpoints.recipe.session import SETTINGS
from checkpoints.recipe.travel import ROOT, TravelError
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.data.sample_fonts import RATE, RecordedNote, write_font
from mt3_common.data.songs import random_notes, split_of
from mt3_common.formats.midi import write_midi
from mt3_common.training.config import TrainingConfig
from mt3_common.training.family import training_family
from mt3_common.training.initial import initial_arrays
from mt3_common.training.labels import initial_heads

CONFIG = Config(
    network=NetworkConfig(
        **{"emb_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 40, "num_encoder_layers": 1},
        **{"num_decoder_layers": 2, "dropout_rate": 0.0, "pre_encoder_layers": 1, "pre_encoder_dim": 4},
        **{"context_frames": 5, "encoder_top_db": 50.0},
    ),
    spectrogram=SpectrogramConfig(hop_width=512),
    input_frames=40,
    max_target_length=128,
)
TRAINING = TrainingConfig(batch_size=4, pitch=0.05, contents=0.0125, alignment=0.3, ema=0.9)
# of the toy: songs of each split, segments of validation, steps of a stretch
SONGS = {"train": 3, "validation": 1}
SEGMENTS, MOST_STEPS = 8, 8
# The steps end it, after a minute; the limit is for what hangs, and a busy machine must stay far below.
LIMIT_MINUTES = 20


def rehearse(folder: Path) -> int:
    """Make a toy in a folder, take all steps with it, and transcribe the example; return the exit status.

    Raises:
        TravelError: the folder is there and no rehearsal's.
    """
    work, packed, out, checkpoint = (folder / name for name in ("work", "pack", "out", "checkpoint"))
    if folder.exists() and any(folder.iterdir()) and not work.exists():
        raise TravelError(f"{folder} is there and not of a rehearsal; name another folder")
    for path in (work, packed, out, checkpoint):
        shutil.rmtree(path, ignore_errors=True)
    make_toy(work)
    script = ["bash", ROOT / "checkpoints" / "recipe" / "gpu.sh"]
    train = ["train", packed, out, "--minutes", LIMIT_MINUTES, "--device", "cpu", "--ways", 4, "--renderers", 1]
    notes = folder / "example.mid"
    infer = [sys.executable, "-m", os.environ.get("TRAINER", "torch_mt3") + ".infer"]
    for command in (
        [*script, "pack", work, packed, "--segments", SEGMENTS, "--limit", 1000],
        [*script, *train, "--examples", 1, "--most-steps", MOST_STEPS],
        [*script, "unpack", out, checkpoint],
        [*infer, ROOT / "audio" / "example.flac", "-o", notes, "--checkpoint", checkpoint],
    ):
        if status := _call(command):
            return status
    print(f"{notes}: transcribed with the result")
    return 0


def _call(command: list) -> int:
    """Run a command in the project's folder with this Python; return its exit status."""
    paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": paths}
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=False).returncode


def make_toy(work: Path) -> None:
    """Write what default.sh makes, in small: songs, soundfonts, validation shards, a run that has begun.

    Raises:
        TravelError: the validation shards could not be made.
    """
    rng = np.random.default_rng(0)
    midi, banks, fonts = work / "sources" / "midi" / "toy", work / "sources" / "soundfonts", work / "fonts"
    for path in (midi, banks, fonts / "train", fonts / "heldout"):
        path.mkdir(parents=True)
    for split, count in SONGS.items():
        names = (f"toy/{number}.mid" for number in range(1000))
        for name in [name for name in names if split_of(name) == split][:count]:
            write_midi(random_notes(30.0, rng), midi.parent / name)
    time = np.arange(RATE) / RATE
    for number, path in enumerate(
        (banks / "bank.sf2", fonts / "train" / "violin.sf2", fonts / "heldout" / "piano.sf2")
    ):
        notes = []
        for key in range(24, 108, 6):
            phase = 2 * np.pi * 440 * 2 ** ((key - 69) / 12) * time
            samples = (0.2 * np.sin(phase + np.sin((2 + number) * phase)) * np.exp(-2 * time)).astype(np.float32)
            notes.append(RecordedNote(samples, key, key, 0.5, None))
        write_font(path, path.stem, 40 * (number % 2), notes)
    settings = {"model": CONFIG.to_dict(), "training": TRAINING.__dict__}
    (work / SETTINGS).write_text(json.dumps(settings))
    command = [sys.executable, "-m", "mt3_common.cli.dataset", work / "shards" / "validation-notes", "--midi", midi]
    command += ["--fonts", fonts / "heldout" / "piano.sf2", "--config", work / SETTINGS, "--split", "validation"]
    if _call([*command, "--shards", 1, "--examples", 1, "--recipe", '{"settle": 0.02, "piano": 1}']):
        raise TravelError("the toy's validation shards could not be made")
    arrays = initial_arrays(CONFIG.network, 0)
    slots = {f"average/{name}": array for name, array in arrays.items()} | initial_heads(CONFIG, TRAINING)
    (work / "run").mkdir()
    training_family(CONFIG).write(work / "run" / "last", arrays, 3, slots)
    (work / "run" / "run.json").write_text(json.dumps(settings))
