"""Speed of transcription, compared with the machine's limits and other programs: prints the tables of docs/speed.md.

make bench [ARGS='--parts decode,end --rounds 3 --cores 1 --checkpoint FOLDER --quick']

Every contender is a process of its own. In each round every one gets one turn, so that other load affects all of them
alike. Figures are medians over the rounds.
"""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mt3_common.checkpoint.write import write_safetensors  # noqa: E402
from mt3_common.config import PRESETS, Config, NetworkConfig  # noqa: E402
from mt3_common.evaluation.metrics import program_score  # noqa: E402
from mt3_common.notes.vocabulary import EOS_ID  # noqa: E402
from mt3_common.training.initial import initial_arrays  # noqa: E402

PARTS = ("decode", "network", "search", "end", "spectrogram", "agreement", "start")
TWINS = ("torch_mt3", "jax_mt3")
EXAMPLE = ROOT / "audio" / "example.flac"
DTYPES = ("float32", "bfloat16", "int8")
# requirements of mt3-infer that this project's environment lacks; its metadata lists torchvision and torchaudio too,
# which its model does not need
MT3_INFER = (
    ("mt3-infer==0.2.0", "transformers==4.57.1"),
    ("huggingface_hub>=0.34,<1.0", "tokenizers>=0.22,<=0.23", "regex", "tqdm"),
)
TOY = NetworkConfig(emb_dim=64, num_heads=2, head_dim=32, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=64)
# T5X's cache has room for every target of MT3
PLAIN_POSITIONS = 1024
PLAIN_ROWS = 8
# tokens per second of audio at full size
TOKENS_PER_SECOND = 100
# models of the end-to-end measurement
SIZES = {"default": "the checkpoint", "full": f"MT3's size, {TOKENS_PER_SECOND} tokens per second of audio"}


def full_size(quick: bool) -> tuple[Config, dict[str, np.ndarray]]:
    """MT3's config and random weights that never end a segment: its EOS logit is 0, below the largest of the others."""
    config = PRESETS["mt3"]
    if quick:
        config = Config(network=TOY)
    arrays = initial_arrays(config.network)
    arrays["decoder/logits_dense/kernel"][:, EOS_ID] = 0.0
    return config, arrays


def frames_of(config: Config, count: int) -> list[np.ndarray]:
    """Random frames of so many segments, of the size of log-mel values."""
    rng = np.random.default_rng(1)
    shape = (config.heard_frames, config.network.input_depth)
    return [rng.normal(-4.0, 3.0, shape).astype(np.float32) for _ in range(count)]


def work(network: NetworkConfig, rows: int, frames: int, steps: int, width: int = 4) -> tuple[float, float]:
    """(floating-point operations, bytes) that one decoding step needs at least, on average over the steps of a segment.

    Each row is one hypothesis; every weight, and every key and value that a row may see, is read once.

    Args:
        network: its sizes.
        rows: segments side by side.
        frames: that each segment has.
        steps: tokens that each segment gets.
        width: bytes of a number.
    """
    joined = network.num_heads * network.head_dim
    layer = network.emb_dim * (6 * joined + 3 * network.mlp_dim)
    weights = network.num_decoder_layers * layer + network.emb_dim * network.vocab_size
    # keys and values that a row sees in all layers, its own new one included
    seen = network.num_decoder_layers * 2 * joined * (frames + (steps + 1) / 2)
    return 2.0 * rows * (weights + seen), width * (weights + rows * seen)


class Turns:
    """A contender in a process of its own, which prepares at its start and measures once per request."""

    def __init__(self, name: str, settings: dict[str, Any]):
        self.name = name
        environment = dict(os.environ)
        if settings["cores"]:
            environment |= {"OMP_NUM_THREADS": str(settings["cores"])}
        if name == "mt3_infer":
            environment["PYTHONPATH"] = settings["mt3_infer"]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--turns", name, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.turns: list[dict[str, float]] = []
        self._answer()

    def _answer(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def turn(self) -> None:
        """Measure once more."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.turns.append(self._answer())

    def end(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()

    def median(self, key: str) -> float:
        """Return the median of a figure over all turns."""
        return statistics.median(turn[key] for turn in self.turns)


def take_turns(names: list[str], settings: dict[str, Any], rounds: int) -> dict[str, Turns]:
    """Run the rounds; return the contenders by name."""
    contenders: dict[str, Turns] = {}
    try:
        for name in names:
            contenders[name] = Turns(name, settings)
        for _ in range(rounds):
            for contender in contenders.values():
                contender.turn()
    finally:
        for contender in contenders.values():
            contender.end()
    return contenders


def answer(name: str, settings: dict[str, Any]) -> None:
    """Run a contender's process: prepare, then write a line of JSON to stdout for every line of stdin."""
    if settings["cores"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-settings["cores"] :])
    # Output of libraries goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, *details = name.split(":")
    measure = CONTENDERS[kind](settings, *details)
    print(json.dumps({}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


def timed(run: Callable[[], Any], times: int = 1) -> float:
    """Return the median time of a call (s)."""
    times_taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        times_taken.append(time.perf_counter() - began)
    return statistics.median(times_taken)


def machine(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Measure matrix products (operations/s), copying and reading (bytes/s, copying each way) through PyTorch."""
    import torch

    def rate(factor: torch.Tensor) -> float:
        return 2.0 * factor.shape[0] ** 3 / timed(lambda: factor @ factor, 5)

    # small ones first: on a processor that lacks the type's instructions, large ones would take hours
    sizes = {"float32": 256 if settings["quick"] else 2048}
    small = [torch.randn(256, 256).to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    sizes["bfloat16"] = 256 if rate(small[1]) < rate(small[0]) / 20 else sizes["float32"]
    factors = {dtype: torch.randn(size, size).to(getattr(torch, dtype)) for dtype, size in sizes.items()}
    source = torch.randn(10**6 if settings["quick"] else 10**8)
    target = torch.empty_like(source)

    def measure() -> dict[str, float]:
        rates = {dtype: rate(factor) for dtype, factor in factors.items()}
        rates["copy"] = source.numel() * 4 / timed(lambda: target.copy_(source), 5)
        rates["read"] = source.numel() * 4 / timed(source.sum, 5)
        return rates

    measure()
    return measure


def prepared(twin: str, config: Config, arrays: dict[str, np.ndarray], dtype: str):
    """(the twin's decode.py, its weights arranged for decoding)."""
    int8, dtype = dtype == "int8", "float32" if dtype == "int8" else dtype
    decode = importlib.import_module(f"{twin}.decode")
    weights = importlib.import_module(f"{twin}.checkpoint")
    if twin == "jax_mt3":
        importlib.import_module("jax_mt3.infer").keep_compiled()
        return decode, decode.pack(weights.cast(weights.to_params(arrays), dtype), config.network, int8)
    model = importlib.import_module("torch_mt3.model").Transformer(config.network)
    model.load_state_dict(weights.to_state_dict(arrays))
    return decode, decode.pack(weights.cast(model, dtype).eval(), int8)


def twin(settings: dict[str, Any], package: str, dtype: str, search: str) -> Callable[[], dict[str, float]]:
    """Measure a twin: the given steps of the given rows, and the time to start them (s)."""
    from mt3_common.transcription.batching import SearchSettings

    if package == "onnx_mt3":
        return graph_of_onnx(settings, dtype)
    config, arrays = full_size(settings["quick"])
    decode, weights = prepared(package, config, arrays, dtype)
    rows, steps = settings["rows"], settings["steps"]
    how = SearchSettings(search, max_steps=steps)
    segments = frames_of(config, rows)

    def measure() -> dict[str, float]:
        batch = decode.make_batch(weights, how, rows, config.input_frames)
        began, cpu_began = time.perf_counter(), time.process_time()
        batch.prefill(list(range(rows)), segments, [how.uniforms(0)] * rows)
        for half in getattr(batch, "halves", [batch]):
            # JAX computes on until it is asked for something
            float(half.cache.cross_values[-1][0, 0, 0, 0])
        inserted, cpu_inserted = time.perf_counter(), time.process_time()
        while not batch.advance().all():
            pass
        ended, cpu_ended = time.perf_counter(), time.process_time()
        lengths = {np.count_nonzero(ids) for ids in batch.collect(list(range(rows)))}
        if lengths != {steps}:
            raise RuntimeError(f"segments of {lengths} tokens where all must have {steps}")
        figures = {"tokens": rows * steps / (ended - inserted), "segments": rows / (inserted - began)}
        return figures | {"encoder": (cpu_inserted - cpu_began) / rows, "step": (cpu_ended - cpu_inserted) / steps}

    if package == "jax_mt3":
        # compiles
        measure()
    return measure


def graph_of_onnx(settings: dict[str, Any], dtype: str) -> Callable[[], dict[str, float]]:
    """Measure onnx_mt3's graph as `twin` does; a run that may take no step is the time of the encoder."""
    from onnx_mt3 import decode, graph

    config, arrays = full_size(settings["quick"])
    rows, steps = settings["rows"], settings["steps"]
    config = dataclasses.replace(config, max_target_length=max(steps, config.max_target_length))
    model, weights = graph.search_parts(arrays, config, dtype)
    session = decode.session(model.SerializeToString(), settings["cores"], dtype, weights)
    vocab_size = config.network.vocab_size
    inputs = {
        "frames": np.stack(frames_of(config, rows)).astype(dtype),
        "allowed": np.zeros((1, vocab_size), dtype),
        "prompt": np.zeros((rows, 0), np.int64),
        "bias": np.zeros((rows, vocab_size), dtype),
    }

    def run(most: int) -> tuple[float, float, Any]:
        began, cpu_began = time.perf_counter(), time.process_time()
        (ids,) = session.run(["ids"], inputs | {"max_steps": np.array(most, np.int64)})
        return time.perf_counter() - began, time.process_time() - cpu_began, ids

    def measure() -> dict[str, float]:
        encoding, cpu_encoding, _ = run(0)
        whole, cpu_whole, ids = run(steps)
        # whole blocks of steps
        taken = ids.shape[1]
        if ids.shape[0] != rows or taken < steps or (ids == EOS_ID).any():
            raise RuntimeError(f"{ids.shape[0]} segments of {taken} tokens where {rows} must have {steps}")
        figures = {"tokens": rows * taken / (whole - encoding), "segments": rows / encoding}
        return figures | {"encoder": cpu_encoding / rows, "step": (cpu_whole - cpu_encoding) / taken}

    run(0)
    return measure


def plain(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Measure a plain cached loop in JAX as in T5X: a cache of 1024 positions, 8 rows, unfused products.

    It is one function, as the program that it compiles closes over all of its sizes.
    """
    import jax
    import jax.numpy as jnp

    from jax_mt3 import checkpoint as weights
    from jax_mt3.model import sinusoids

    config, arrays = full_size(settings["quick"])
    network = config.network
    params = weights.to_params(arrays)["decoder"]
    steps, heads, width = min(settings["steps"], 128), network.num_heads, network.head_dim
    table = jnp.asarray(sinusoids(PLAIN_POSITIONS, network.emb_dim))

    def norm(x, scale):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def split(x):
        return x.reshape(*x.shape[:2], heads, width)

    def attend(query, keys, values, mask):
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, keys)
        logits = jnp.where(mask, logits, -1e10)
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, -1), values)
        return attended.reshape(*attended.shape[:2], heads * width)

    @jax.jit
    def decode(params, encoded):
        layers = [params[f"layers_{i}"] for i in range(network.num_decoder_layers)]
        crossed = []
        for layer in layers:
            block = layer["encoder_decoder_attention"]
            crossed.append([split(encoded @ block[name]["kernel"]) for name in ("key", "value")])
        empty = jnp.zeros((PLAIN_ROWS, PLAIN_POSITIONS, heads, width))

        def step(state):
            position, token, caches = state
            x = params["token_embedder"]["embedding"][token][:, None] + table[position]
            seen = jnp.arange(PLAIN_POSITIONS) <= position
            new_caches = []
            for layer, cache, (cross_keys, cross_values) in zip(layers, caches, crossed, strict=True):
                block = layer["self_attention"]
                y = norm(x, layer["pre_self_attention_layer_norm"]["scale"])
                query, key, value = (split(y @ block[name]["kernel"]) for name in ("query", "key", "value"))
                keys = jax.lax.dynamic_update_slice_in_dim(cache[0], key, position, 1)
                values = jax.lax.dynamic_update_slice_in_dim(cache[1], value, position, 1)
                new_caches.append((keys, values))
                x += attend(query, keys, values, seen) @ block["out"]["kernel"]
                block = layer["encoder_decoder_attention"]
                y = norm(x, layer["pre_cross_attention_layer_norm"]["scale"])
                query = split(y @ block["query"]["kernel"])
                x += attend(query, cross_keys, cross_values, True) @ block["out"]["kernel"]
                y, block = norm(x, layer["pre_mlp_layer_norm"]["scale"]), layer["mlp"]
                gate = jax.nn.gelu(y @ block["wi_0"]["kernel"], approximate=True)
                x += (gate * (y @ block["wi_1"]["kernel"])) @ block["wo"]["kernel"]
            logits = norm(x, params["decoder_norm"]["scale"]) @ params["logits_dense"]["kernel"]
            return position + 1, logits[:, 0].argmax(-1), new_caches

        start = (0, jnp.zeros(PLAIN_ROWS, jnp.int32), [(empty, empty)] * len(layers))
        return jax.lax.while_loop(lambda state: state[0] < steps, step, start)[1]

    encoded = jnp.asarray(np.random.default_rng(2).normal(size=(PLAIN_ROWS, config.input_frames, network.emb_dim)))

    def measure() -> dict[str, float]:
        return {"tokens": PLAIN_ROWS * steps / timed(lambda: decode(params, encoded).block_until_ready())}

    measure()
    return measure


def mt3_infer(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Measure mt3-infer's network in its adapter's loop: one segment at a time, without a cache."""
    import torch
    from mt3_infer.models.mt3_pytorch.t5 import T5Config, T5ForConditionalGeneration

    config, _ = full_size(settings["quick"])
    network, steps = config.network, settings["steps"]
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=network.vocab_size,
            d_model=network.input_depth if settings["quick"] else network.emb_dim,
            d_kv=network.head_dim,
            d_ff=network.mlp_dim,
            num_layers=network.num_encoder_layers,
            num_decoder_layers=network.num_decoder_layers,
            num_heads=network.num_heads,
            feed_forward_proj="gated-gelu",
            is_gated_act=True,
            tie_word_embeddings=False,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=EOS_ID,
            use_cache=False,
        )
    ).eval()
    with torch.no_grad():
        model.lm_head.weight[EOS_ID] = -1e4
    frames = torch.from_numpy(frames_of(config, 1)[0])[None]

    def measure() -> dict[str, float]:
        with torch.no_grad():
            began = time.perf_counter()
            ids = model.generate(inputs=frames, max_length=steps + 1)
            elapsed = time.perf_counter() - began
        return {"tokens": (ids.shape[1] - 1) / elapsed}

    return measure


def environment_of_mt3_infer(folder: Path) -> str | None:
    """A folder to put before the others, with mt3-infer and what it needs beside this environment; None: no way."""
    if not (folder / "tqdm").exists():
        for packages in MT3_INFER:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            if subprocess.run([*install, *packages], check=False).returncode:
                return None
    return str(folder)


def recording(settings: dict[str, Any], folder: Path) -> Path:
    """Write a stereo FLAC file at 44.1 kHz that repeats the bundled example, or the first file of --audio."""
    import soundfile
    import soxr

    samples, rate = soundfile.read((settings["audio"] or [EXAMPLE])[0], dtype="float32", always_2d=True)
    samples = soxr.resample(samples, rate, 44100)[:, [0, -1]]
    length = round(settings["seconds"] * 44100)
    path = folder / "song.flac"
    soundfile.write(path, np.tile(samples, (-(-length // len(samples)), 1))[:length], 44100)
    return path


def most_memory() -> float:
    """Return the most memory that this process has had (MB)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, units of 1,024 elsewhere
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6


def end_to_end(settings: dict[str, Any], package: str, dtype: str, size: str) -> Callable[[], dict[str, float]]:
    """Measure the way from a recording to a MIDI file; size 'full': random weights and fixed lengths."""
    infer = importlib.import_module(f"{package}.infer")
    folder = tempfile.TemporaryDirectory(prefix="mt3-bench-")
    path = recording(settings, Path(folder.name))
    source = settings["checkpoint"]
    if size == "full":
        config, arrays = full_size(settings["quick"])
        seconds = config.input_frames / config.spectrogram.frames_per_second
        config = dataclasses.replace(config, max_target_length=round(seconds * TOKENS_PER_SECOND))
        source = os.path.join(folder.name, "full.safetensors")
        write_safetensors(source, arrays, config)
        # they would be in memory beside the transcriber's
        del arrays
    transcriber = infer.load(source, device=settings["device"], dtype=dtype, batch_size=settings["rows"])

    def measure() -> dict[str, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        transcription = transcriber.transcribe(path)
        transcription.write(path.with_suffix(".mid"))
        elapsed, cpu_elapsed = time.perf_counter() - began, time.process_time() - cpu_began
        figures = {"speed": transcription.duration / elapsed, "notes": len(transcription.notes)}
        # of one core, whatever else runs; and the most memory that the process has had
        figures |= {"cpu_speed": transcription.duration / cpu_elapsed, "megabytes": most_memory()}
        return transcription.seconds | figures

    # The first run is as slow as that of the command; JAX may compile.
    first = measure()

    def measure_again() -> dict[str, float]:
        return measure() | {"first": first["speed"], "first_megabytes": first["megabytes"]}

    # keeps the folder alive
    measure_again.folder = folder
    return measure_again


def spectrogram(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Measure the way from audio to segments on one core."""
    from mt3_common.audio.segments import segments

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    samples = np.random.default_rng(3).normal(0, 0.1, round(settings["seconds"] * 16000)).astype(np.float32)
    config = PRESETS["mt3"]

    def measure() -> dict[str, float]:
        return {"speed": len(samples) / 16000 / timed(lambda: list(segments(samples, config)))}

    measure()
    return measure


CONTENDERS = {
    "machine": machine,
    "twin": twin,
    "plain": plain,
    "mt3_infer": mt3_infer,
    "end": end_to_end,
    "spectrogram": spectrogram,
}


def show(table: Table) -> None:
    """Print a table, also without a terminal."""
    Console(width=150).print(table)


def decode_part(settings: dict[str, Any]) -> None:
    """The machine's rates, the floor, and tokens per second of everybody."""
    twins = [f"twin:{twin}:{dtype}:greedy" for dtype in settings["dtypes"] for twin in settings["twins"]]
    names = ["machine", *twins, *(["plain"] if "jax_mt3" in settings["twins"] else [])]
    if not settings["without_mt3_infer"]:
        settings["mt3_infer"] = environment_of_mt3_infer(Path(settings["folder"]) / "mt3-infer")
        names += ["mt3_infer"] if settings["mt3_infer"] else []
    contenders = take_turns(names, settings, settings["rounds"])
    rates = {key: contenders["machine"].median(key) for key in ("float32", "bfloat16", "copy", "read")}
    table = Table("what the machine does", "")
    table.add_row("matrix products, float32", f"{rates['float32'] / 1e9:.0f} GFLOP/s")
    table.add_row("matrix products, bfloat16", f"{rates['bfloat16'] / 1e9:.3g} GFLOP/s")
    table.add_row("copying, each way", f"{rates['copy'] / 1e9:.1f} GB/s")
    table.add_row("reading", f"{rates['read'] / 1e9:.1f} GB/s")
    show(table)
    config, _ = full_size(settings["quick"])
    rows, steps = settings["rows"], settings["steps"]
    # by what the memory is taken to do: keys and values are only read, which some machines do faster than copying
    floors: dict[tuple[str, str], float] = {}
    table = Table(
        f"floor of a step, {rows} rows, {steps} steps", "operations", "bytes", "read", "copied", "at most, tokens/s"
    )
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        operations, size = work(config.network, rows, config.input_frames, steps, width)
        computing = operations / rates[dtype]
        for memory in ("read", "copy"):
            floors[dtype, memory] = rows / max(computing, size / rates[memory])
        table.add_row(
            dtype,
            f"{operations / 1e9:.2f} G: {computing * 1e3:.1f} ms",
            f"{size / 1e6:.0f} MB",
            f"{size / rates['read'] * 1e3:.1f} ms",
            f"{size / rates['copy'] * 1e3:.1f} ms",
            f"{floors[dtype, 'read']:.0f}; {floors[dtype, 'copy']:.0f}",
        )
    show(table)
    table = Table(
        "decoding", "tokens/s", "of the floor: reading; copying", "x plain", "x mt3-infer", "x float32", "begun/s"
    )
    for name in names[1:]:
        kind, *details = name.split(":")
        tokens = contenders[name].median("tokens")
        cells = [f"{tokens:.0f}", "", "", "", "", ""]
        if details:
            package, dtype, _ = details
            if (dtype, "read") in floors:
                cells[1] = "; ".join(f"{tokens / floors[dtype, memory]:.2f}" for memory in ("read", "copy"))
            cells[4] = f"{tokens / contenders[f'twin:{package}:float32:greedy'].median('tokens'):.2f}"
            cells[5] = f"{contenders[name].median('segments'):.1f}"
        for column, baseline in ((2, "plain"), (3, "mt3_infer")):
            if details and baseline in contenders:
                cells[column] = f"{tokens / contenders[baseline].median('tokens'):.1f}"
        titles = {
            "plain": f"plain JAX loop, {PLAIN_POSITIONS} positions, {PLAIN_ROWS} rows",
            "mt3_infer": "mt3-infer 0.2.0, 1 row",
        }
        table.add_row(titles.get(kind) or " ".join(details[:2]), *cells)
    show(table)


def network_part(settings: dict[str, Any]) -> None:
    """The network alone at MT3's size, by the time of the cores, which other programs change less than the clock."""
    contenders = take_turns([f"twin:{twin}:float32:greedy" for twin in settings["twins"]], settings, settings["rounds"])
    title = f"the network alone, {settings['rows']} segments of {settings['steps']} tokens, time of the cores"
    table = Table(title, *(name.split(":")[1] for name in contenders))
    rows: dict[str, list[str]] = {"encoder, ms a segment": [], "step of all rows, ms": [], "all, ms a segment": []}
    for contender in contenders.values():
        encoder, step = (1e3 * contender.median(key) for key in ("encoder", "step"))
        for row, value in zip(
            rows.values(), (encoder, step, encoder + step * settings["steps"] / settings["rows"]), strict=True
        ):
            row.append(f"{value:.1f}")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    show(table)


def search_part(settings: dict[str, Any]) -> None:
    """Compare the two searches."""
    names = [f"twin:{twin}:float32:{search}" for twin in settings["twins"] for search in ("greedy", "t5x")]
    contenders = take_turns(names, settings, settings["rounds"])
    table = Table("search", "greedy, tokens/s", "t5x, tokens/s")
    for twin in settings["twins"]:
        speeds = [contenders[f"twin:{twin}:float32:{search}"].median("tokens") for search in ("greedy", "t5x")]
        table.add_row(twin, *(f"{speed:.0f}" for speed in speeds))
    show(table)


def end_part(settings: dict[str, Any]) -> None:
    """Compare the twins from the audio file to the MIDI file."""
    names = [
        f"end:{twin}:{dtype}:{size}" for size in SIZES for dtype in settings["dtypes"] for twin in settings["twins"]
    ]
    contenders = take_turns(names, settings, settings["rounds"])
    table = Table(
        f"from FLAC to MIDI, {settings['seconds']:g} s",
        "",
        "x real time",
        "its first time",
        "x of a core's time",
        "MB at most: first; all",
        "notes",
        "network",
        "spectrogram, beside",
    )
    for name in names:
        _, package, dtype, size = name.split(":")
        contender = contenders[name]
        table.add_row(
            SIZES[size],
            f"{package} {dtype}",
            f"{contender.median('speed'):.1f}",
            f"{contender.median('first'):.1f}",
            f"{contender.median('cpu_speed'):.1f}",
            f"{contender.median('first_megabytes'):.0f}; {contender.median('megabytes'):.0f}",
            f"{contender.median('notes'):.0f}",
            f"{contender.median('network'):.1f} s",
            f"{contender.median('audio') + contender.median('spectrogram'):.1f} s",
        )
    show(table)


def spectrogram_part(settings: dict[str, Any]) -> None:
    """Measure log-mel frames on one core."""
    contenders = take_turns(["spectrogram"], settings, settings["rounds"])
    table = Table("spectrogram, one core", f"{contenders['spectrogram'].median('speed'):.0f} x real time")
    show(table)


def agreement_part(settings: dict[str, Any]) -> None:
    """Compare tokens and notes in fewer bits with those of the same twin in float32."""
    table = Table(
        "agreement with float32", "tokens before the first other one", "segments, whole", "notes", "F1, 50 ms"
    )
    with tempfile.TemporaryDirectory() as name:
        paths = settings["audio"] or [recording(settings, Path(name))]
        for package in settings["twins"]:
            infer = importlib.import_module(f"{package}.infer")

            def transcribe(dtype, infer=infer):
                """Return for each path the ids of every segment, and the notes."""
                transcriber = infer.load(
                    settings["checkpoint"],
                    device=settings["device"],
                    dtype=dtype,
                    batch_size=settings["rows"],
                    instrument_prior=False,
                    activations=False,
                )
                generate, results = transcriber.generate, []
                for path in paths:
                    ids: list[np.ndarray] = []

                    def record_ids(segments, ids=ids):
                        for row in generate(segments):
                            ids.append(row)
                            yield row

                    transcriber.generate = record_ids
                    results.append((ids, transcriber.transcribe(path).notes))
                return results

            exact = transcribe("float32")
            for dtype in settings["dtypes"]:
                if dtype == "float32":
                    continue
                same = length = whole = count = matched = notes = 0
                for (ids, estimates), (exact_ids, references) in zip(transcribe(dtype), exact, strict=True):
                    for row, exact_row in zip(ids, exact_ids, strict=True):
                        longer, common = max(len(row), len(exact_row)), common_prefix(row, exact_row)
                        same += common
                        length += longer
                        whole += common == longer
                        count += 1
                    matched += round(program_score(references, estimates, offsets=False).recall * len(references))
                    notes += len(estimates) + len(references)
                table.add_row(
                    f"{package} {dtype}",
                    f"{same / length:.2%}",
                    f"{whole} of {count}",
                    f"{sum(len(references) for _, references in exact)}",
                    f"{2 * matched / max(notes, 1):.2%}",
                )
    show(table)


def common_prefix(ids: np.ndarray, other_ids: np.ndarray) -> int:
    """Count the tokens before the first that differs."""
    shorter = min(len(ids), len(other_ids))
    differing = np.flatnonzero(ids[:shorter] != other_ids[:shorter])
    return int(differing[0]) if len(differing) else shorter


def start_part(settings: dict[str, Any]) -> None:
    """The commands' time for one second of audio beside that of the framework's import."""
    with tempfile.TemporaryDirectory() as name:
        path = recording(settings | {"seconds": 1.0}, Path(name))
        options = ["--checkpoint", settings["checkpoint"]] if settings["checkpoint"] else []
        commands = {}
        for package, modules in (("torch_mt3", "torch"), ("jax_mt3", "jax, flax.linen")):
            if package in settings["twins"]:
                commands[package, "alone"] = ["-c", f"import {modules}"]
                commands[package, "command"] = ["-m", f"{package}.infer", str(path), "--force", "--quiet", *options]
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        times: dict[tuple[str, str], list[float]] = {key: [] for key in commands}
        # the first round fills the caches
        for number in range(settings["rounds"] + 1):
            for key, command in commands.items():
                took = timed(
                    lambda command=command: subprocess.run([sys.executable, *command], check=True, env=environment)
                )
                if number:
                    times[key].append(took)
    table = Table("start, 1 s of audio", "import of the framework", "command", "beyond the import")
    for package in settings["twins"]:
        alone, command = (statistics.median(times[package, kind]) for kind in ("alone", "command"))
        table.add_row(package, f"{alone:.1f} s", f"{command:.1f} s", f"{command - alone:.1f} s")
    show(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--twins", default=",".join(TWINS), help="of torch_mt3, jax_mt3, onnx_mt3; default: the twins")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--cores", type=int, default=0, help="run on so many; default: all")
    parser.add_argument("--checkpoint", help="for end, agreement and start; default: the bundled one")
    parser.add_argument("--audio", nargs="+", metavar="FILE", help="for agreement; for end the first of them, repeated")
    parser.add_argument("--seconds", type=float, default=180.0, help="of audio")
    parser.add_argument("--device", default="cpu", help="for end and agreement: cpu, gpu, tpu, cuda:1 ...")
    parser.add_argument("--folder", default=str(ROOT / "build" / "bench"), help="for mt3-infer")
    parser.add_argument("--without-mt3-infer", action="store_true")
    parser.add_argument("--quick", action="store_true", help="toy sizes, one round: does it run?")
    parser.add_argument("--turns", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns:
        return answer(arguments.turns[0], json.loads(arguments.turns[1]))
    settings = vars(arguments)
    for name in ("parts", "twins", "dtypes"):
        settings[name] = settings[name].split(",")
    if "onnx_mt3" in settings["twins"] and "search" in settings["parts"]:
        parser.error("onnx_mt3 searches greedily alone: leave the part search out of --parts")
    if arguments.quick:
        settings |= {"rounds": 1, "rows": 4, "steps": 16, "seconds": 5.0}
    cores = settings["cores"] or len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {cores} cores; end and agreement on {settings['device']}")
    for part in settings["parts"]:
        run = {
            "decode": decode_part,
            "network": network_part,
            "search": search_part,
            "end": end_part,
            "spectrogram": spectrogram_part,
            "agreement": agreement_part,
            "start": start_part,
        }
        run[part](settings)


if __name__ == "__main__":
    main()
