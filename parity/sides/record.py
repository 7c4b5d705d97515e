"""Recording of a side into a trace."""

import dataclasses
import importlib
from typing import Any, cast

import numpy as np

from parity.sides.side import ModuleSide, Side, YourMT3Side
from parity.trace import trace

FRAMEWORKS = ("jax", "torch")


def load_side(framework: str, path: str, device: str = "cpu", **options: Any) -> Side:
    """Load a checkpoint of MT3 into a framework's side; imports that framework only.

    Raises:
        ValueError: the framework is unknown or not installed, the device is not there, or the checkpoint is bad.
    """
    return _module(framework, f"{framework}_side").Side.load(path, device=device, **options)


def load_yourmt3_side(framework: str, path: str, device: str = "cpu", preset: str | None = None) -> YourMT3Side:
    """Load a checkpoint of YourMT3+ into a framework's side; imports that framework only.

    Raises:
        ValueError: as load_side.
    """
    return _module(framework, f"yourmt3_{framework}").Side.load(path, device, preset)


def _module(framework: str, name: str) -> Any:
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework {framework!r}: know {' and '.join(FRAMEWORKS)}")
    try:
        return importlib.import_module(f"parity.sides.{name}")
    except ImportError as error:
        raise ValueError(
            f'{framework} is not installed here ({error}); pip install "mt3-twins[{framework}]", '
            "or record this side elsewhere with python -m parity record"
        ) from error


def record(
    side: ModuleSide,
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
    reference: trace.Trace | None = None,
) -> trace.Trace:
    """Record all passes of a side: as the reference, or as the candidate that is fed a reference's trace."""
    passes = {
        precision: side.run(
            inputs,
            precision,
            feed=None if reference is None else reference.passes.get(precision),
            exact=reference is None and precision != "float64",
        )
        for precision in precisions
    }
    return trace.Trace(
        framework=side.framework,
        environment=side.environment(),
        config=config_of(side),
        weights=trace.fingerprint(side.arrays()),
        inputs=dict(inputs),
        passes=passes,
    )


def config_of(side: Any) -> Any:
    """Return a side's config as a trace has it: a dict of plain values."""
    is_dataclass = dataclasses.is_dataclass(side.config) and not isinstance(side.config, type)
    return dataclasses.asdict(cast(Any, side.config)) if is_dataclass else side.config
