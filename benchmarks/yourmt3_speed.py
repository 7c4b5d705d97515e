"""Speed of the YourMT3+ networks from file to notes, beside the published code: prints the table of docs/speed.md.

benchmarks/yourmt3_speed.sh [--audio FILE --seconds 33 --eos 1,4 --dtypes float32 --only torch_mt3,jax_mt3]

All get the same random weights of yptf-moe-multi and the same recording; each is a process of its own and has one
turn. --eos scales the row of EOS in the head: with 1, hardly any channel ends before its 256th id; with more, most
end early, as those of instruments that do not play do in a trained network.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
NAME = "yptf-moe-multi"
PUBLISHED = "published"
HEAD = "lm_head.lm_head.weight"


def write_weights(path: Path, eos: float) -> None:
    """Write random weights as PyTorch writes them, which all contenders read."""
    import torch

    from mt3_common.checkpoint.yourmt3_released import RELEASED
    from torch_mt3.yourmt3.model import YourMT3

    torch.manual_seed(0)
    state = YourMT3(RELEASED[NAME].settings.network).state_dict()
    state[HEAD][1] *= eos
    torch.save(state, path)


def write_recording(path: Path, source: Path, seconds: float) -> None:
    """Write the first seconds of a recording at 16 kHz, repeated if it is shorter."""
    from mt3_common.audio.files import read_audio

    samples = np.resize(read_audio(source, 16000), round(16000 * seconds))
    soundfile.write(path, samples, 16000, subtype="FLOAT")


def run_published(weights: str, audio: str, output: str, batch_size: int) -> dict[str, Any]:
    """Transcribe with the published code; return seconds of loading and of transcribing."""
    import torch
    import torchaudio

    def load_audio(name: str) -> tuple[Any, int]:
        samples, rate = soundfile.read(name, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T.copy()), rate

    # torchaudio's own needs FFmpeg
    torchaudio.load = load_audio
    start = time.perf_counter()
    model = importlib.import_module("yourmt3").YMT3(weights, "YPTF+MoE+Multi")
    loaded = time.perf_counter()
    begin = time.process_time()
    model.predict(audio, batch_size, output_path=output)
    spent = time.process_time() - begin
    return {"loading": loaded - start, "seconds": [time.perf_counter() - loaded], "cpu_seconds": [spent]}


def run_twin(twin: str, weights: str, audio: str, output: str, dtype: str, times: int) -> dict[str, Any]:
    """Transcribe with a twin; return seconds of loading and of transcribing, each time."""
    infer = importlib.import_module(f"{twin}.infer")
    start = time.perf_counter()
    transcriber = infer.load(weights, model=NAME, device="cpu", dtype=dtype)
    loading, seconds, cpu_seconds = time.perf_counter() - start, [], []
    for _ in range(times):
        start, begin = time.perf_counter(), time.process_time()
        transcriber.transcribe(audio, published=True).write(output)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - begin)
    return {"loading": loading, "seconds": seconds, "cpu_seconds": cpu_seconds}


def in_process(python: str, arguments: list[str], threads: int | None) -> dict[str, Any]:
    """Return what a process of this file measures."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TRANSFORMERS_VERBOSITY="error")
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    result = subprocess.run(
        [python, __file__, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def same_messages(first: Path, second: Path) -> str:
    """Return the share of MIDI notes of the first file that the second has, and the number of them."""
    from mt3_common.formats.midi import read_midi

    a, b = ({(n.pitch, n.program, n.is_drum, round(n.onset, 3)) for n in read_midi(path)} for path in (first, second))
    return f"{len(a & b)} of {len(a | b)}"


def processor() -> str:
    """Return the name of the processor and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name, family, model = (facts.get(key, "") for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model}), {os.cpu_count()} cores"


def compare(arguments: argparse.Namespace) -> None:
    """Measure all contenders and print the table."""
    contenders = arguments.only.split(",")
    print(f"{processor()}; {arguments.seconds:g} s of audio", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recording(folder / "a.wav", arguments.audio, arguments.seconds)
        for eos in map(float, arguments.eos.split(",")):
            weights = folder / f"{eos:g}.pt"
            write_weights(weights, eos)
            slowest = None
            for contender in contenders:
                for dtype in ["float32"] if contender == PUBLISHED else arguments.dtypes.split(","):
                    output = folder / f"{contender}-{dtype}.mid"
                    python = arguments.published_python if contender == PUBLISHED else sys.executable
                    options = ["--role", contender, "--weights", weights, "--audio", folder / "a.wav"]
                    options += ["--output", output, "--dtypes", dtype, "--times", arguments.times]
                    measured = in_process(python, list(map(str, options)), arguments.threads)
                    seconds = measured["cpu_seconds" if arguments.threads == 1 else "seconds"]
                    slowest = slowest or seconds[-1]
                    notes = same_messages(folder / f"{contenders[0]}-float32.mid", output)
                    shown = ", ".join(f"{value:.1f}" for value in seconds)
                    print(
                        f"eos {eos:g} | {contender} {dtype} | {shown} s | {arguments.seconds / seconds[-1]:.2f} x real "
                        f"time | {slowest / seconds[-1]:.2f} x {contenders[0]} | notes the same: {notes}",
                        flush=True,
                    )


def main() -> None:
    """Parse the arguments; measure as a contender, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--audio", type=Path, default=ROOT / "audio" / "example.flac", help="default: %(default)s")
    add("--seconds", type=float, default=32.7, help="of it; default: 16 segments")
    add("--eos", default="1,4", help="factors of the row of EOS; default: %(default)s")
    add("--dtypes", default="float32", help="of the twins; default: %(default)s")
    add("--times", type=int, default=2, help="transcriptions in the process of a twin; the last counts")
    add("--threads", type=int, help="of PyTorch; 1 prints processor time, which other processes do not stretch")
    add("--only", default=f"{PUBLISHED},torch_mt3,jax_mt3", help="contenders; the first is what all are compared with")
    add("--published-python", default=str(ROOT / ".venv-yourmt3" / "bin" / "python"), help=argparse.SUPPRESS)
    add("--role", help=argparse.SUPPRESS)
    add("--weights", help=argparse.SUPPRESS)
    add("--output", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is None:
        compare(arguments)
        return
    given = arguments.weights, str(arguments.audio), arguments.output
    if arguments.role == PUBLISHED:
        measured = run_published(*given, 8)
    else:
        measured = run_twin(arguments.role, *given, arguments.dtypes, arguments.times)
    print(json.dumps(measured))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
