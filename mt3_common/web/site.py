"""The page as a folder of files: the network runs in the browser, and any web server can serve it."""

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import soxr

from mt3_common.audio.spectrogram import bins_of, mel_matrix
from mt3_common.audio.tensorflow_rounding import hann_window
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import LOWEST_PITCH, PITCH_ROWS, Config, SpectrogramConfig
from mt3_common.formats.plot import BRIGHTEST, DARKEST
from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from mt3_common.notes.note import CLASS_SIZE, DRUM_CLASSES
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription import activations
from mt3_common.transcription.continuity import HOLD_BIAS
from mt3_common.transcription.family import MT3Family
from mt3_common.transcription.reader import UNTOLD
from mt3_common.web.facts import model_facts
from mt3_common.web.runtime import LICENSES, MPG123, SCRIPT, WASM
from mt3_common.web.strips import COLUMNS, PITCHES

PAGE, LOCAL = Path(__file__).parent / "page", Path(__file__).parent / "local"
# of mpg123
LGPL = Path(__file__).parent / "licenses" / "LGPL-2.1.txt"
# file that marks a folder as a site, which may be written again
FACTS = "site.json"
FORMAT = "mt3-twins site"
# Hz; rates with a table of their own. Others are resampled with the table of 44,100 Hz, 73 dB near soxr.
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000, 176400, 192000)
# s; half the length of soxr's filter at 16 kHz, beyond which it is below 1e-7 of its peak
REACH = 6.45e-3
MEGABYTES, MINUTES = 500, 30
# of the page, which needs no WebAssembly: its worker does
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
WORKER_POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'"
# for hosts that read such a file; others need none
HEADERS = f"""\
/*
  X-Content-Type-Options: nosniff
  Referrer-Policy: no-referrer
/index.html
  Content-Security-Policy: {POLICY}; frame-ancestors 'none'
/local/worker.js
  Content-Security-Policy: {WORKER_POLICY}
"""


def write_site(
    folder: Path, config: Config, checkpoint: NamedCheckpoint, model: bytes, runtime: dict[str, bytes]
) -> dict[str, int]:
    """Write the site and return the sizes of its files (bytes).

    Args:
        folder: absent, empty, or a site that is replaced.
        config: of the network.
        checkpoint: of the network, for names.
        model: ONNX file of the search.
        runtime: files that runtime.runtime_files returns.

    Raises:
        ValueError: the folder holds something else, or the front end is not MT3's.
        OSError: a file cannot be written.
    """
    check_folder(folder)
    files = site_files(config, checkpoint, model, runtime)
    make_folder(folder / LOCAL.name)
    # the mark first: what was interrupted can be written again
    for name in [FACTS, *(name for name in files if name != FACTS)]:
        atomic.write(folder / name, files[name])
    return {name: len(content) for name, content in files.items()}


def visit_size(sizes: dict[str, int]) -> int:
    """Return the bytes that every visitor fetches, of the sizes that write_site returns.

    One file of a filter comes with the first recording of its rate, and the decoder with the first MP3.
    """
    others = ("LICENSES.txt", LGPL.name, "_headers", f"{LOCAL.name}/mpg123.js")
    return sum(size for name, size in sizes.items() if name not in others and "resample-" not in name)


def check_folder(folder: str | os.PathLike) -> None:
    """Refuse a folder with other files than a site's.

    Raises:
        ValueError: the folder is a file, or holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FACTS).is_file():
        raise ValueError(f"{folder} holds other files: name a new or an empty folder")


def site_files(
    config: Config, checkpoint: NamedCheckpoint, model: bytes, runtime: dict[str, bytes]
) -> dict[str, bytes]:
    """Return the files of a site by their paths in it."""
    filters, front = front_end(config.spectrogram)
    rates = [rate for rate in RATES if rate != config.spectrogram.sample_rate]
    files = {file.name: file.read_bytes() for file in sorted(PAGE.iterdir()) if file.name != "server.js"}
    files["index.html"] = with_policy(files["index.html"].decode()).encode()
    files["source.js"] = (
        b'// The source of this page: the network in the browser.\n\nexport * from "./local/source.js";\n'
    )
    files |= {f"{LOCAL.name}/{file.name}": file.read_bytes() for file in sorted(LOCAL.glob("*.js"))}
    files[FACTS] = json.dumps(facts(config, checkpoint, filters, rates)).encode()
    local = {
        "front.bin": front,
        "model.onnx.gz": gzip.compress(model, 9, mtime=0),
        "onnxruntime.wasm.gz": gzip.compress(runtime[WASM], 9, mtime=0),
        # servers do not all know the ending .mjs
        "onnxruntime.js": runtime[SCRIPT].partition(b"//# sourceMappingURL")[0],
        "mpg123.js": runtime[MPG123].partition(b"//# sourceMappingURL")[0],
    }
    local |= {f"resample-{rate}.bin": filter_table(rate, config.spectrogram.sample_rate) for rate in rates}
    files |= {f"{LOCAL.name}/{name}": content for name, content in local.items()}
    texts = {"LICENSES.txt": LICENSES.encode(), LGPL.name: LGPL.read_bytes(), "_headers": HEADERS.encode()}
    return files | texts


def with_policy(page: str) -> str:
    """Return the page with its policy, which `mt3 serve` sends as a header."""
    mark = '<meta charset="utf-8">'
    if page.count(mark) != 1:
        raise ValueError("the page must have one line for its charset")
    return page.replace(mark, f'{mark}\n    <meta http-equiv="Content-Security-Policy" content="{POLICY}">')


def facts(
    config: Config, checkpoint: NamedCheckpoint, filters: list[tuple[int, int]], rates: list[int]
) -> dict[str, Any]:
    """Return what the scripts need to know of the model, for JSON."""
    spectrogram, vocabulary = config.spectrogram, Vocabulary(config.vocabulary)
    abilities = {"files": ["mid", "json", "csv"], "beats": False, "finds_meter": False}
    limits = {"megabytes": MEGABYTES, "minutes": MINUTES}
    return {
        "format": FORMAT,
        "version": 1,
        "about": model_facts(MT3Family(config), checkpoint) | abilities | limits,
        "sizes": {
            "sampleRate": spectrogram.sample_rate,
            "hop": spectrogram.hop_width,
            "fft": spectrogram.fft_size,
            "bins": spectrogram.num_mel_bins,
            "frames": config.input_frames,
            # before a segment and after it, which the network is given, too
            "contextFrames": config.network.context_frames,
            "maxTokens": config.max_target_length,
            "vocabSize": config.network.vocab_size,
            "ranges": vocabulary.ranges,
            "steps": config.vocabulary.steps_per_second,
            "velocityBins": config.vocabulary.num_velocity_bins,
            "usePrograms": config.vocabulary.use_programs,
            "programsTogether": CLASS_SIZE if config.vocabulary.program_granularity == "midi_class" else 1,
            "drumClasses": DRUM_CLASSES if config.vocabulary.drum_granularity == "class" else [],
            "useTies": config.vocabulary.use_ties,
        },
        "filters": filters,
        "strip": {
            "bins": bins_of(PITCHES, config.spectrogram).tolist(),
            "columns": COLUMNS,
            "darkest": DARKEST,
            "brightest": BRIGHTEST,
        },
        "rates": rates,
        "holdBias": HOLD_BIAS,
        # null where onsets and offsets are not corrected
        "activations": {
            "rows": PITCH_ROWS,
            "lowestPitch": LOWEST_PITCH,
            "leastOnset": activations.LEAST_ONSET,
            "clearOnset": activations.CLEAR_ONSET,
            "leastSounding": activations.LEAST_SOUNDING,
            "reach": activations.REACH,
            "leastTie": activations.LEAST_TIE,
            "sameOnset": activations.SAME_ONSET,
            "secondsOfOctave": activations.SECONDS_OF_OCTAVE,
            "octave": activations.OCTAVE,
        }
        if activations.has_activations(config)
        else None,
        # of all notes, where the model says none
        "velocity": None if MT3Family(config).tells_velocities else UNTOLD,
        "programNames": [pretty_midi.program_to_instrument_name(program) for program in range(128)],
    }


def front_end(config: SpectrogramConfig) -> tuple[list[tuple[int, int]], bytes]:
    """Return the mel filters as (first FFT bin, number of bins), and float32 bytes: the window, then their weights.

    Raises:
        ValueError: the FFT's size is no power of 2, which the page's transform needs.
    """
    if config.fft_size & (config.fft_size - 1):
        raise ValueError(f"the page transforms powers of 2, not windows of {config.fft_size} samples")
    matrix = mel_matrix(config, graph=True)
    filters, weights = [], [hann_window(config.fft_size).astype("<f4")]
    for column in matrix.T:
        bins = np.flatnonzero(column)
        first, count = (int(bins[0]), int(bins[-1] - bins[0] + 1)) if len(bins) else (0, 0)
        filters.append((first, count))
        weights.append(column[first : first + count].astype("<f4"))
    return filters, b"".join(part.tobytes() for part in weights)


def filter_table(rate: int, out_rate: int) -> bytes:
    """Return soxr's filter from one rate to another (Hz), measured by impulses.

    Returns:
        Little-endian: int32 phases, hop and half, then phases * (2 half + 1) float32 taps. Output number n is the sum
        over j of taps[phase, j] * samples[base - half + j], with n * hop = base * phases + phase.
    """
    divisor = math.gcd(rate, out_rate)
    phases, hop = out_rate // divisor, rate // divisor
    half = math.ceil(REACH * rate / min(1.0, rate / out_rate))
    taps = np.zeros((phases, 2 * half + 1), np.float32)
    # beyond the filter's reach on both sides, and as many positions as there are in a period of the phases
    margin = (2 * half // hop + 2) * hop
    for position in range(margin, margin + hop):
        impulse = np.zeros(2 * margin + hop, np.float32)
        impulse[position] = 1.0
        response = soxr.resample(impulse, rate, out_rate, quality="HQ")
        base, phase = np.divmod(np.arange(len(response), dtype=np.int64) * hop, phases)
        column = position - base + half
        inside = (column >= 0) & (column <= 2 * half)
        taps[phase[inside], column[inside]] = response[inside]
    return np.array([phases, hop, half], "<i4").tobytes() + taps.astype("<f4").tobytes()
