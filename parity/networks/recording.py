"""Runs of a network: what goes into and comes out of every module, in the order of execution.

A module's call is two events, 'in' and 'out'; whatever nests in it lies between them. A call's arrays are flattened in
the order in which tuples, lists and dicts hold them, so that sides may differ in how they pack and name them.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass
class Event:
    """The arrays that entered or left a module.

    Attributes:
        name: the module, in the spelling of names.py; '#2' behind it for its second call.
        part: 'in' or 'out'.
        arrays: flattened; bfloat16 is kept as float32.
        constants: numbers, flags and None among the arguments, by name or position.
        executions: one list of arrays per execution, where a transformation such as scan ran the call several times.
        later: whether the arrays are known only once the transformation has run, if it does.
    """

    name: str
    part: str
    arrays: list[np.ndarray] = dataclasses.field(default_factory=list)
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    executions: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    later: bool = False


@dataclasses.dataclass
class Run:
    """One run of a network in one precision.

    Attributes:
        precision: 'float64', 'float32' or 'bfloat16'.
        outputs: the network's outputs, flattened.
        events: of all modules.
        local: module -> its outputs on the inputs that were fed, where there were any.
        inside: module -> the events inside of it while it was fed.
        failures: module -> why it could not be fed.
        shorter: dtype -> modules that computed in it although the pass asks for a longer one.
        scanned: module -> the number of times that a transformation executed its body.
    """

    precision: str
    outputs: list[np.ndarray] = dataclasses.field(default_factory=list)
    events: list[Event] = dataclasses.field(default_factory=list)
    local: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    inside: dict[str, list[Event]] = dataclasses.field(default_factory=dict)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    shorter: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    scanned: dict[str, int] = dataclasses.field(default_factory=dict)

    def find(self, name: str, part: str) -> Event | None:
        """Return an event by its module and part, or None."""
        return next((event for event in self.events if event.name == name and event.part == part), None)


Leaf = Callable[[Any], bool]


def transform(value: Any, is_array: Leaf, change: Callable[[Any], Any]) -> Any:
    """Return nested containers with every array changed; what is no container and no array stays."""
    if is_array(value):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(transform(entry, is_array, change) for entry in value))
    if isinstance(value, (tuple, list)):
        return type(value)(transform(entry, is_array, change) for entry in value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {key: transform(entry, is_array, change) for key, entry in value.items()}
    return value


def flatten(value: Any, is_array: Leaf) -> list[Any]:
    """Return the arrays of nested containers, mappings of any class included."""
    if is_array(value):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for entry in value.values() for leaf in flatten(entry, is_array)]
    if isinstance(value, (tuple, list)):
        return [leaf for entry in value for leaf in flatten(entry, is_array)]
    return []


def constants(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers, flags and strings among arguments, by position or name."""
    named = [*((str(number), value) for number, value in enumerate(args)), *kwargs.items()]
    return {name: value for name, value in named if isinstance(value, (bool, int, float, str))}


def reason_of(error: Exception, length: int = 300) -> str:
    """Return an error's type and message in one line of at most `length` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def number_call(name: str, counts: dict[Hashable, int], key: Hashable = None) -> str:
    """Count one more call of a module; return 'name' for its first, 'name#2' for its second.

    Args:
        name: the module's.
        counts: calls so far; gets one more.
        key: what is counted; the name by default.
    """
    key = name if key is None else key
    counts[key] = count = counts.get(key, 0) + 1
    return name if count == 1 else f"{name}#{count}"


class Watch:
    """A recorder of calls: every adapter passes each call of a module through `call`.

    Args:
        is_array: whether a value is one of the framework's arrays.
        to_numpy: turns one into NumPy's.
        from_numpy: (array, like) -> the framework's array with the dtype of `like`.
        feed: module -> arrays to run it on besides its own, flattened.
        trace: (event, value) -> value, for arrays whose numbers are known only later; it fills event.executions.
        is_later: whether an array is one of those.
    """

    def __init__(
        self,
        is_array: Leaf,
        to_numpy: Callable[[Any], np.ndarray],
        from_numpy: Callable[[np.ndarray, Any], Any],
        feed: Mapping[str, list[np.ndarray]] | None = None,
        trace: Callable[[Event, list[Any]], list[Any]] | None = None,
        is_later: Leaf = lambda value: False,
    ):
        self.is_array, self.to_numpy, self.from_numpy = is_array, to_numpy, from_numpy
        self.feed = feed or {}
        self.trace, self.is_later = trace, is_later
        self.events: list[Event] = []
        self.local: dict[str, list[np.ndarray]] = {}
        self.inside: dict[str, list[Event]] = {}
        self.failures: dict[str, str] = {}
        self.counts: dict[Hashable, int] = {}
        self.stack: list[str] = []
        self.copies: dict[int, tuple[Any, np.ndarray]] = {}

    def numpy(self, array: Any) -> np.ndarray:
        """Convert an array to NumPy, once for every array."""
        if id(array) not in self.copies:
            self.copies[id(array)] = (array, self.to_numpy(array))
        return self.copies[id(array)][1]

    def call(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run a module, record what enters and leaves it, and run it again on what is fed."""
        tap = number_call(name, self.counts)
        args, kwargs = self._record(Event(tap, "in", constants=constants(args, kwargs)), (args, kwargs))
        self.stack.append(tap)
        try:
            output = function(*args, **kwargs)
        finally:
            self.stack.pop()
        output = self._record(Event(tap, "out"), output)
        if tap in self.feed:
            self._run_fed(tap, function, args, kwargs)
        return output

    def mark(self, name: str, value: Any) -> Any:
        """Record a value that a function names itself."""
        return self._record(Event(number_call(name, self.counts), "out"), value)

    def _record(self, event: Event, value: Any) -> Any:
        self.events.append(event)
        arrays = flatten(value, self.is_array)
        if any(self.is_later(array) for array in arrays):
            event.later = True
            changed = iter(self.trace(event, arrays) if self.trace else arrays)
            return transform(value, self.is_array, lambda array: next(changed))
        event.arrays = [self.numpy(array) for array in arrays]
        return value

    def _run_fed(self, tap: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        arrays, given = flatten((args, kwargs), self.is_array), self.feed[tap]
        if any(self.is_later(array) for array in arrays):
            self.failures[tap] = "it runs inside a transformation"
            return
        shapes = [[tuple(array.shape) for array in side] for side in (arrays, given)]
        if shapes[0] != shapes[1]:
            self.failures[tap] = f"it takes arrays of {shapes[0]}, the reference's module {shapes[1]}"
            return
        fed = iter([self.from_numpy(array, like) for array, like in zip(given, arrays)])
        args, kwargs = transform((args, kwargs), self.is_array, lambda array: next(fed))
        outer = (self.events, self.feed, self.counts)
        self.events, self.feed, self.counts = [], {}, {}
        try:
            output = function(*args, **kwargs)
            self.local[tap] = [self.numpy(array) for array in flatten(output, self.is_array)]
            self.inside[tap] = self.events
        except Exception as error:  # whatever a stranger's module raises is the reason
            self.failures[tap] = reason_of(error, 160)
        finally:
            self.events, self.feed, self.counts = outer


def _numbered(events: list[Event]) -> list[Event]:
    """Number the calls of every module anew: a transformation may trace a module more often than it runs it."""
    counts: dict[Hashable, int] = {}
    for event in events:
        name = event.name.partition("#")[0]
        event.name = number_call(name, counts, (name, event.part))
    return events


def unrolled(events: list[Event]) -> tuple[list[Event], dict[str, int]]:
    """Return events with those that a transformation executed several times as one event per execution.

    Their names get the execution's number behind the module that the transformation repeats, the longest name that
    all of them begin with: 'layers.attention', executed 3 times, is 'layers.0.attention' to 'layers.2.attention'.

    Returns:
        (events, repeated module -> number of executions).
    """
    events = _numbered([event for event in events if event.executions or not event.later])
    result: list[Event] = []
    scanned: dict[str, int] = {}
    number = 0
    while number < len(events):
        count = len(events[number].executions)
        if count < 2:
            event = events[number]
            if count:
                event.arrays = event.executions[0]
            result.append(event)
            number += 1
            continue
        end = number
        while end < len(events) and len(events[end].executions) == count:
            end += 1
        group = events[number:end]
        parts = [event.name.split(".") for event in group]
        depth = 0
        while all(len(path) > depth for path in parts) and len({path[depth] for path in parts}) == 1:
            depth += 1
        prefix = ".".join(parts[0][:depth])
        scanned[prefix] = count
        for execution in range(count):
            for event in group:
                name = ".".join(
                    part for part in (prefix, str(execution), event.name[len(prefix) :].lstrip(".")) if part
                )
                result.append(Event(name, event.part, event.executions[execution], event.constants))
        number = end
    return result, scanned
