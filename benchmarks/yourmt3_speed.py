"""Speed of the YourMT3+ networks from file to notes, beside the published code: prints the tables of docs/speed.md.

benchmarks/yourmt3_speed.sh [--audio FILE --seconds 33 --ends fitted,random --dtypes float32 --only torch_mt3,jax_mt3]
benchmarks/yourmt3_speed.sh --parts

All get the same random weights of yptf-moe-multi and the same recording; each is a process of its own and has one
turn in each round. Of random weights as they are no channel ends before its 256th id. With --ends fitted the row of
EOS in the head is a solution of equations that let the channels end as those of a trained network do: ten of the
thirteen, whose instruments do not play, after two ids, three after about 120, 60 and 30. --parts measures the parts of
the networks one by one instead: seconds per segment, and milliseconds per token of one row.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mt3_common.io.cores import num_cores

ROOT = Path(__file__).parents[1]
NAME = "yptf-moe-multi"
PUBLISHED = "published"
# ids of the channels that play, and of one that does not, where the ends are fitted
PLAYING, SILENT = (120, 60, 30), 2
# by which the logit of EOS should be above all others, or below
MARGIN = 3.0
# segments of --parts, and ids of each of their channels
SEGMENTS, TOKENS = 8, 128


def write_weights(path: Path, ends: str, audio: Path) -> str:
    """Write random weights as PyTorch writes them, which all contenders read; return how many ids the channels have."""
    import torch

    from mt3_common.checkpoint.yourmt3_released import RELEASED
    from torch_mt3.yourmt3.model import YourMT3

    torch.manual_seed(0)
    network = YourMT3(RELEASED[NAME].settings.network).eval()
    lengths = "256"
    if ends == "fitted":
        # latents of random networks are so much alike that channels hardly differ
        network.encoder.latent_array.latents.data.mul_(30)
        lengths = fit_ends(network, audio)
    torch.save(network.state_dict(), path)
    return lengths


def fit_ends(network: Any, audio: Path) -> str:
    """Set the row of EOS by least squares, so that channels end after as many ids as PLAYING and SILENT say."""
    import torch
    from einops import rearrange

    from torch_mt3.yourmt3 import kernels

    config, head = network.config, network.lm_head.lm_head.weight.data
    kernels.pack(network)
    frames = torch.from_numpy(recorded_frames(audio))
    encoded = kernels.encode(network, frames)
    without = np.arange(config.vocab_size) > 1
    states, ends = [], []
    playing = range(len(PLAYING))
    for channels, length in [*(([c], PLAYING[c]) for c in playing), (range(len(playing), config.num_channels), SILENT)]:
        part = encoded[:, list(channels)]
        ids = kernels.greedy_search(kernels.CachedDecoder(network, without), part, length)
        given = np.concatenate([np.zeros_like(ids[..., :1]), ids[..., :-1]], axis=-1)
        with torch.inference_mode():
            hidden = network.decode(part, torch.from_numpy(given).long())[:, :, 1:] * config.t5_decoder.d_model**-0.5
        states.append(rearrange(hidden, "b c n d -> (b c n) d").double())
        ends.append(np.tile(np.arange(1, length) == length - 1, hidden.shape[0] * hidden.shape[1]))
    state, end = torch.cat(states), torch.from_numpy(np.concatenate(ends))
    best = (state @ head.double().T)[:, without].amax(dim=1)
    target = best + torch.where(end, MARGIN, -MARGIN)
    # ends are rare, and must not be missed
    weight = torch.where(end, 10.0, 1.0).double()
    rows = state * weight[:, None]
    square = rows.T @ rows
    square += 1e-6 * square.diagonal().mean() * torch.eye(len(square))
    head[1] = torch.linalg.solve(square, rows.T @ (target * weight)).float()
    kernels.pack(network)
    ids = kernels.greedy_search(kernels.CachedDecoder(network), encoded, 256)
    lengths = sorted((ids != 0).sum(axis=-1).flatten().tolist())
    return f"{np.mean(lengths):.1f} on average, {np.median(lengths):g} in the median, {lengths[-1]} at most"


def recorded_frames(audio: Path) -> np.ndarray:
    """Return the frames of the segments of a recording, (b, t, f) float32."""
    from mt3_common.audio.files import read_audio
    from mt3_common.audio.yourmt3_frames import FrontEnd
    from mt3_common.checkpoint.yourmt3_released import RELEASED

    front_end = FrontEnd(RELEASED[NAME].settings.front_end)
    return np.stack([segment.frames for segment in front_end.segments(read_audio(audio, 16000))]).astype(np.float32)


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


def published_parts(weights: str, frames: np.ndarray, clock: Callable[[], float]) -> dict[str, float]:
    """Return seconds of the parts of the published code for SEGMENTS segments."""
    import torch

    network = importlib.import_module("yourmt3").YMT3(weights, "YPTF+MoE+Multi").model
    decode = importlib.import_module("yourmt3.model.ymt3").task_cond_dec_generate
    with torch.inference_mode():
        start = clock()
        tokens = network.pre_encoder(torch.from_numpy(frames))
        convolved = clock()
        encoded = network.pre_decoder(network.encoder(inputs_embeds=tokens)["last_hidden_state"])
        begin = clock()
        decode(
            decoder=network.decoder,
            decoder_type=network.decoder_type,
            embed_tokens=network.embed_tokens,
            lm_head=network.lm_head,
            encoder_hidden_states=encoded,
            shift_right_fn=network.shift_right_fn,
            max_length=TOKENS,
        )
    return {"pre-encoder": convolved - start, "encoder": begin - convolved, "decoding": clock() - begin}


def torch_parts(weights: str, frames: np.ndarray, clock: Callable[[], float]) -> dict[str, float]:
    """Return seconds of the parts of the PyTorch twin for SEGMENTS segments."""
    import torch

    from mt3_common.checkpoint.yourmt3_released import RELEASED
    from torch_mt3.yourmt3 import kernels
    from torch_mt3.yourmt3.model import YourMT3

    network: Any = YourMT3(RELEASED[NAME].settings.network).eval()
    network.load_state_dict(torch.load(weights))
    kernels.pack(network)
    times = {"pre-encoder": 0.0, "encoder": 0.0, "decoding": 0.0}
    encoded = []
    with torch.inference_mode():
        for part in torch.split(torch.from_numpy(frames), kernels.ENCODED_TOGETHER):
            start = clock()
            tokens = network.pre_encoder[0](part)
            convolved = clock()
            encoded.append(network.pre_decoder[0](network.encoder(tokens)))
            times["pre-encoder"] += convolved - start
            times["encoder"] += clock() - convolved
        begin = clock()
        kernels.greedy_search(kernels.CachedDecoder(network), torch.concatenate(encoded), TOKENS)
        times["decoding"] = clock() - begin
    return times


def jax_parts(weights: str, frames: np.ndarray, clock: Callable[[], float]) -> dict[str, float]:
    """Return seconds of the parts of the JAX twin for SEGMENTS segments, compiled before."""
    import jax
    import jax.numpy as jnp
    import torch

    from jax_mt3.yourmt3 import kernels
    from jax_mt3.yourmt3.checkpoint import to_variables
    from jax_mt3.yourmt3.model import YourMT3
    from mt3_common.checkpoint.yourmt3_released import RELEASED

    config = RELEASED[NAME].settings.network
    network: Any = YourMT3(config)
    arrays = {name: tensor.numpy() for name, tensor in torch.load(weights).items()}
    variables = jax.device_put(to_variables(arrays, config))

    def compiled(method: Callable) -> Callable:
        with kernels.group_experts(), kernels.fold_blocks():
            function = jax.jit(lambda variables, x: network.apply(variables, x, method=method))
            return lambda x: jax.block_until_ready(function(variables, x))

    methods = {
        "pre-encoder": compiled(lambda network, x: network.pre_encoder[0](x)),
        "encoder": compiled(lambda network, x: network.pre_decoder[0](network.encoder(x))),
    }
    decoder = kernels.CachedDecoder(network, variables)
    times = {}
    for _ in range(2):
        times = dict.fromkeys([*methods, "decoding"], 0.0)
        encoded = []
        with kernels.group_experts(), kernels.fold_blocks():
            for begin in range(0, len(frames), kernels.ENCODED_TOGETHER):
                x = frames[begin : begin + kernels.ENCODED_TOGETHER]
                for name, function in methods.items():
                    start = clock()
                    x = function(x)
                    times[name] += clock() - start
                encoded.append(x)
        start = clock()
        kernels.greedy_search(decoder, jnp.concatenate(encoded), TOKENS)
        times["decoding"] = clock() - start
    return times


PARTS = {PUBLISHED: published_parts, "torch_mt3": torch_parts, "jax_mt3": jax_parts}


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
    """Measure all contenders and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = SEGMENTS * 32767 / 16000 if arguments.parts else arguments.seconds
        write_recording(folder / "a.wav", arguments.audio, seconds)
        unit = "processor seconds, one thread" if arguments.threads == 1 else "seconds"
        print(f"{processor()}, of which {num_cores()} used; {seconds:.1f} s of audio; {unit}", flush=True)
        if arguments.parts:
            compare_parts(arguments, folder)
            return
        for ends in arguments.ends.split(","):
            weights = folder / f"{ends}.pt"
            print(f"\nends {ends}, ids of a channel: {write_weights(weights, ends, folder / 'a.wav')}\n")
            compare_runs(arguments, folder, weights)


def compare_runs(arguments: argparse.Namespace, folder: Path, weights: Path) -> None:
    """Print a table of the whole way from file to notes."""
    contenders = arguments.only.split(",")
    print(f"| | each time | x real time | x {contenders[0]} | notes as {contenders[0]} |\n|---|---|---|---|---|")
    slowest = None
    for contender in contenders:
        for dtype in ["float32"] if contender == PUBLISHED else arguments.dtypes.split(","):
            output = folder / f"{contender}-{dtype}.mid"
            options = ["--weights", weights, "--audio", folder / "a.wav", "--output", output, "--dtypes", dtype]
            measured = measure(contender, [*options, "--times", arguments.times], arguments)
            seconds = measured["cpu_seconds" if arguments.threads == 1 else "seconds"]
            slowest = slowest or seconds[-1]
            notes = same_messages(folder / f"{contenders[0]}-float32.mid", output)
            shown = ", ".join(f"{value:.1f}" for value in seconds)
            speeds = f"{arguments.seconds / seconds[-1]:.2f} | {slowest / seconds[-1]:.2f}"
            print(f"| {contender} {dtype} | {shown} | {speeds} | {notes} |", flush=True)


def compare_parts(arguments: argparse.Namespace, folder: Path) -> None:
    """Print a table of the parts, medians over the rounds: per segment, and per token of one row."""
    weights, contenders = folder / "random.pt", arguments.only.split(",")
    write_weights(weights, "random", folder / "a.wav")
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(arguments.times):
        options = ["--parts", "--weights", weights, "--audio", folder / "a.wav"]
        rounds.append({contender: measure(contender, options, arguments) for contender in contenders})
    others = [f"{contender} | x {contenders[0]}" for contender in contenders[1:]]
    print(f"\n| | {' | '.join([contenders[0], *others])} |\n|---{'|---' * (2 * len(contenders) - 1)}|")
    from mt3_common.checkpoint.yourmt3_released import RELEASED

    rows = SEGMENTS * RELEASED[NAME].settings.network.num_channels
    shares = {"pre-encoder": 1 / SEGMENTS, "encoder": 1 / SEGMENTS, "decoding": 1000 / (rows * TOKENS)}
    labels = {"encoder": "encoder, pre-decoder", "decoding": "decoding, one token of one row (ms)"}
    for part, share in shares.items():
        medians = [share * np.median([measured[contender][part] for measured in rounds]) for contender in contenders]
        cells = [f"{value:.2f} | {medians[0] / value:.1f}" for value in medians[1:]]
        print(f"| {labels.get(part, part)} | {' | '.join([f'{medians[0]:.2f}', *cells])} |")


def measure(contender: str, options: list[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a contender's process measures."""
    python = arguments.published_python if contender == PUBLISHED else sys.executable
    threads = [] if arguments.threads is None else ["--threads", arguments.threads]
    return in_process(python, list(map(str, ["--role", contender, *options, *threads])), arguments.threads)


def main() -> None:
    """Parse the arguments; measure as a contender, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--audio", type=Path, default=ROOT / "audio" / "example.flac", help="default: %(default)s")
    add("--seconds", type=float, default=32.7, help="of it; default: 16 segments")
    add("--ends", default="fitted,random", help="of the channels, fitted and random; default: %(default)s")
    add("--parts", action="store_true", help="measure pre-encoder, encoder and decoding one by one")
    add("--dtypes", default="float32", help="of the twins; default: %(default)s")
    add(
        "--times",
        type=int,
        default=2,
        help="transcriptions in the process of a twin, the last counts; rounds of --parts",
    )
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
    if arguments.parts:
        clock = time.process_time if arguments.threads == 1 else time.perf_counter
        measured = PARTS[arguments.role](arguments.weights, recorded_frames(arguments.audio), clock)
    elif arguments.role == PUBLISHED:
        measured = run_published(arguments.weights, str(arguments.audio), arguments.output, 8)
    else:
        given = arguments.weights, str(arguments.audio), arguments.output
        measured = run_twin(arguments.role, *given, arguments.dtypes, arguments.times)
    print(json.dumps(measured))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
