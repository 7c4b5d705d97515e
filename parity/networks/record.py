"""A recorder in three lines: what a model of any maker computes, as a trace for `mt3-parity compare` and `diagnose`."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from parity.networks.names import NameMap, plain, slashed
from parity.networks.network import Network, NetworkError, adapt, as_numpy
from parity.networks.recording import Event, Run
from parity.networks.taps import feeds, pair_taps
from parity.trace import file
from parity.trace.trace import Call, Pass, Trace, fingerprint, machine, same_bits

PRECISIONS = ("float64", "float32")


def record(
    network: Any,
    on: Trace | str | os.PathLike | None = None,
    names: Mapping[str, str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
) -> "Recorder":
    """Return a recorder of a model's next call.

        with parity.record(model, on="reference.safetensors") as trace:
            model(frames, tokens, targets)
        trace.save("mine.safetensors")

    Args:
        network: whatever compare_modules takes. A PyTorch module is called as always; any other one through the
            recorder: `trace(frames, tokens, targets)`.
        on: the reference's trace, or its file: every module also runs on the reference's inputs, and modules and arrays
            get the reference's names. `compare` needs it, `diagnose` does not.
        names: reference name -> the model's name, where they differ, as in compare_modules.
        precisions: 'float64' and 'float32'.

    Raises:
        NetworkError: the network is of no known kind.
    """
    return Recorder(adapt(network), file.load(on) if isinstance(on, (str, os.PathLike)) else on, names, precisions)


class Recorder:
    """A context in which a model is called once; afterwards it has the trace.

    Attributes:
        trace: after the context.
        inputs: the reference's inputs, where there is a reference.
    """

    def __init__(
        self, network: Network, reference: Trace | None, names: Mapping[str, str] | None, precisions: Sequence[str]
    ):
        self.network, self.reference, self.names = network, reference, NameMap(names)
        self.precisions = tuple(precisions)
        self.inputs = {} if reference is None else dict(reference.inputs)
        self.trace: Trace | None = None
        self._given: dict[str, Any] | None = None
        self._handle: Any = None

    def __enter__(self) -> "Recorder":
        """Watch a PyTorch module's next call."""
        module = getattr(self.network, "module", None)
        if self.network.framework == "torch" and module is not None:
            self._handle = module.register_forward_pre_hook(self._hook, with_kwargs=True)
        return self

    def _hook(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._given is None:
            self._given = _named(module.forward, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of a network that is no PyTorch module; it runs when the context ends."""
        self._given = {**{f"input {number}": value for number, value in enumerate(args)}, **kwargs}

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Run the network in every precision on what it was given."""
        if self._handle is not None:
            self._handle.remove()
        if kind is not None:
            return
        if self._given is None:
            raise NetworkError(f"{self.network.title} was not called inside of `with parity.record(…)`")
        self.trace = self._record({name: as_numpy(value) for name, value in self._given.items()})

    def save(self, path: str | os.PathLike) -> None:
        """Write the trace.

        Raises:
            NetworkError: there is none yet.
        """
        if self.trace is None:
            raise NetworkError("there is no trace before the end of `with parity.record(…)`")
        file.save(Path(path), self.trace)

    def _record(self, given: dict[str, Any]) -> Trace:
        known = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
        inputs, absent = self._inputs_named(known)
        runs = {precision: self.network.run(given, precision) for precision in self.precisions}
        again = {precision: self.network.run(given, precision).outputs for precision in self.precisions}
        reference_names = self._reference_names()
        first = runs[self.precisions[0]]
        back = names_back(reference_names, [event.name for event in first.events], self.names)
        passes = {}
        for precision, run in runs.items():
            local = self._local(given, precision, run)
            passes[precision] = _pass(self.network, run, again[precision], local, back)
        weights = self.network.weights()
        arrays = [] if self.reference is None else [plain(name) for name in self.reference.weights]
        own = names_back(arrays, [weight.name for weight in weights], self.names)
        return Trace(
            framework=self.network.framework,
            environment=self.network.environment() | machine() | ({"inputs not taken": absent} if absent else {}),
            config={} if self.reference is None else self.reference.config,
            weights=fingerprint({slashed(own.get(w.name, w.name)): w.array for w in weights if w.learned}),
            inputs=inputs,
            passes=passes,
        )

    def _reference_names(self) -> list[str]:
        if self.reference is None:
            return []
        return [plain(name) for run in self.reference.passes.values() for name in run.outputs]

    def _inputs_named(self, given: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return the inputs under the reference's names, found by their values, and those that are not taken.

        Raises:
            NetworkError: an array is none of the reference's inputs.
        """
        if self.reference is None:
            return given, []
        named, left = {}, dict(self.reference.inputs)
        for name, array in given.items():
            match = next((n for n, a in left.items() if a.shape == array.shape and np.array_equal(a, array)), None)
            if match is None:
                shapes = ", ".join(f"{n} {a.shape}" for n, a in self.reference.inputs.items())
                raise NetworkError(
                    f"{self.network.title} was called with {name} {array.shape}, "
                    f"which is none of the reference's inputs ({shapes})"
                )
            named[match] = left.pop(match)
        return dict(self.reference.inputs), list(left)

    def _local(self, given: dict[str, Any], precision: str, run: Run) -> dict[str, list[np.ndarray]]:
        """Run every module on the inputs of the reference's module."""
        if self.reference is None or precision not in self.reference.passes:
            return {}
        other = run_of(self.reference.passes[precision])
        arrays, _ = feeds(pair_taps(other, run, self.names, {}), other, run)
        return self.network.run(given, precision, arrays).local if arrays else {}


def _named(function: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name; those of a function without a readable signature by number."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return {**{f"input {number}": value for number, value in enumerate(args)}, **kwargs}
    result: dict[str, Any] = {}
    for name, value in bound.items():
        if isinstance(value, dict):
            result |= value
        elif isinstance(value, tuple):
            result |= {f"{name} {number}": entry for number, entry in enumerate(value)}
        else:
            result[name] = value
    return result


def run_of(recorded: Pass) -> Run:
    """Return a trace's pass as a run: events of its calls and outputs, in the order of its taps."""
    events = []
    for tap, output in recorded.outputs.items():
        call = recorded.calls.get(tap)
        if call is not None:
            values = [*call.args, *call.kwargs.values()]
            events.append(Event(plain(tap), "in", [value for value in values if isinstance(value, np.ndarray)]))
        events.append(Event(plain(tap), "out", [output]))
    return Run(recorded.precision, [recorded.logits], events)


def names_back(reference: Sequence[str], candidate: Sequence[str], names: NameMap) -> dict[str, str]:
    """Return candidate name -> reference name for all names that a map leads to."""
    own = set(candidate)
    return {names.candidate(name): name for name in reversed(reference) if names.candidate(name) in own}


def rename(
    trace: Trace, names: Mapping[str, str], reference_names: Sequence[str], input_names: Sequence[str] = ()
) -> Trace:
    """Return a trace with its taps and weights under the reference's names, for `--names` of compare and diagnose.

    Args:
        trace: with the candidate's names.
        names: reference name -> candidate name.
        reference_names: taps and weights that the reference has.
        input_names: inputs that it takes.
    """
    table = NameMap(names)
    known = [plain(name) for name in reference_names]
    taps = {plain(tap): tap for run in trace.passes.values() for tap in run.outputs}
    back = names_back(known, [*taps, *(plain(name) for name in trace.weights)], table)

    inputs = {plain(name): name for name in input_names}
    own = {table.candidate(name): inputs[name] for name in inputs}

    def renamed(entries: Mapping[str, Any]) -> dict[str, Any]:
        return {slashed(back.get(plain(name), plain(name))): value for name, value in entries.items()}

    passes = {}
    for precision, run in trace.passes.items():
        mode = run.mode | {"other dtypes": renamed(run.mode.get("other dtypes", {}))}
        passes[precision] = Pass(
            run.precision,
            mode,
            renamed(run.outputs),
            run.logits,
            run.capture_is_neutral,
            renamed(run.calls),
            renamed(run.local),
            renamed(run.exact),
        )
    return Trace(
        trace.framework,
        trace.environment,
        trace.config,
        renamed(trace.weights),
        {own.get(plain(name), name): array for name, array in trace.inputs.items()},
        passes,
        trace.created,
    )


def _pass(
    network: Network, run: Run, again: list[np.ndarray], local: dict[str, list[np.ndarray]], back: Mapping[str, str]
) -> Pass:
    if not run.outputs:
        raise NetworkError(f"{network.title} returned no array")

    def name(tap: str) -> str:
        return slashed(back.get(tap, tap))

    outputs = {name(e.name): e.arrays[0] for e in run.events if e.part == "out" and e.arrays}
    calls = {name(e.name): Call(tuple(e.arrays), {}) for e in run.events if e.part == "in"}
    dtypes = {tap: array.dtype.name for tap, array in outputs.items() if array.dtype.name != run.precision}
    mode = {"product_bits": network.product_bits(run.precision), "other dtypes": dtypes}
    neutral = len(again) == len(run.outputs) and all(same_bits(a, b) for a, b in zip(again, run.outputs))
    return Pass(
        precision=run.precision,
        mode=mode,
        outputs=outputs,
        logits=run.outputs[0],
        capture_is_neutral=neutral,
        calls=calls,
        local={name(tap): arrays[0] for tap, arrays in local.items() if arrays},
    )
