"""A checkpoint as a file that any ONNX runtime runs, with all that its user needs to know in the file's metadata."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx

from mt3_common.checkpoint.digest import checkpoint_digest
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.user_config import StatedConfig, overrides_of_mt3, read_config
from mt3_common.checkpoint.yourmt3 import is_yourmt3, mt3_preset, naming, read_yourmt3
from mt3_common.config import Config
from mt3_common.io import atomic
from mt3_common.notes.yourmt3_tasks import find_task
from mt3_common.yourmt3_config import FAMILY, YourMT3Settings
from onnx_mt3 import graph
from onnx_mt3.builder import DTYPES, TYPES
from onnx_mt3.yourmt3 import graph as yourmt3_graph

# what protobuf can write as one file (bytes)
LARGEST = 2**31 - 1
# arrays of YourMT3+ that are written in the computed dtype: positions, slopes of ALiBi, statistics of batch norms
UNTRAINED = (
    ".additive_pe.weight",
    ".slopes",
    ".freqs",
    ".inv_freq",
    ".running_mean",
    ".running_var",
    ".num_batches_tracked",
)
GRAPHS = {"search": graph.search_graph, "teacher": graph.teacher_graph}


class Network(NamedTuple):
    """A network to be written.

    Attributes:
        family: 'mt3' or 'yourmt3'.
        arrays: by name.
        config: of the network, and of what stands around it.
        notice: what the user may want to know, '' for nothing.
        model: from the dtypes of weights and arithmetic to the graph.
    """

    family: str
    arrays: Mapping[str, np.ndarray]
    config: Config | YourMT3Settings
    notice: str
    model: Callable[..., onnx.ModelProto]


class Exportable(NamedTuple):
    """A network as an ONNX model, ready to be written.

    Attributes:
        model: with all that its user needs to know in the metadata.
        size: of the file (bytes).
        rounded: the arrays whose values the stored dtype does not have exactly.
        config: of the network.
        notice: of the checkpoint, '' for none.
    """

    model: onnx.ModelProto
    size: int
    rounded: list[str]
    config: Config | YourMT3Settings
    notice: str

    def write(self, output: str | os.PathLike) -> None:
        """Write the file; it appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        atomic.write(output, self.model.SerializeToString())


def prepare(
    checkpoint: NamedCheckpoint,
    kind: str = "search",
    stored: str = "bfloat16",
    computed: str = "float32",
    preset: str | None = None,
    positions: str | None = None,
    config: StatedConfig | None = None,
    weights: str | None = None,
    scan_axis: int | None = None,
) -> Exportable:
    """Return a checkpoint's network as an ONNX model.

    Args:
        checkpoint: of the network.
        kind: 'search' (segments to token ids) or 'teacher' (a full pass); see search_graph and teacher_graph of
            graph.py and of yourmt3/graph.py.
        stored: dtype of the weights in the file, one of builder.STORED.
        computed: dtype of the arithmetic, one of builder.COMPUTED.
        preset: 'mt3', 'ismir2021' or a released YourMT3+, where the checkpoint does not tell.
        positions: the sinusoids of MT3, 'mt3' or 'port'; None to believe the checkpoint.
        config: settings where the checkpoint has none, or other ones, as infer.load takes them.
        weights, scan_axis: see read_checkpoint; of MT3 only.

    Raises:
        ValueError: the checkpoint or a setting is not usable, or the file would be too large.
        OSError: the checkpoint cannot be read.
    """
    if is_yourmt3(checkpoint.path):
        for option, value in (("--positions", positions), ("--weights", weights), ("--scan-axis", scan_axis)):
            if value is not None:
                raise ValueError(f"{option} is for MT3's networks, and {checkpoint.name} is a YourMT3+: leave it out")
        network = _read_yourmt3(checkpoint, kind, preset, config)
    else:
        source = read_checkpoint(checkpoint.path, weights=weights, scan_axis=scan_axis)
        overrides = overrides_of_mt3(config, positions, checkpoint.name) or {}
        settings = source.config(mt3_preset(checkpoint.name, preset), overrides)
        model = functools.partial(GRAPHS[kind], source.arrays, settings)
        network = Network("mt3", source.arrays, settings, checkpoint.notice, model)
    with naming(checkpoint.path):
        model = network.model(stored=stored, computed=computed)
    metadata = {
        "family": network.family,
        "config": json.dumps(network.config.to_dict(), sort_keys=True),
        "checkpoint": checkpoint.name,
        "sha256": checkpoint_digest(checkpoint.path),
    }
    onnx.helper.set_model_props(model, metadata)
    size = model.ByteSize()
    if size > LARGEST:
        raise ValueError(f"the file would have {size / 1e9:.1f} GB, and an ONNX file has 2.1 at most: store bfloat16")
    rounded = rounded_weights(model, network.arrays, stored, computed)
    return Exportable(model, size, rounded, network.config, network.notice)


def _read_yourmt3(checkpoint: NamedCheckpoint, kind: str, preset: str | None, config: StatedConfig | None) -> Network:
    """Return the network of a YourMT3+ checkpoint; its search is given the default prefix of its task."""
    source = read_yourmt3(checkpoint.path, preset or None, None if config is None else read_config(config))
    given = source.arrays, source.settings.network
    model = functools.partial(yourmt3_graph.teacher_graph, *given)
    if kind == "search":
        prefix = find_task(source.settings.task).prefix()
        model = functools.partial(yourmt3_graph.search_graph, *given, prefix=prefix)
    return Network(FAMILY, source.arrays, source.settings, source.notice, model)


def rounded_weights(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], stored: str, computed: str) -> list[str]:
    """Return the names of the weights that a model has with other values than the checkpoint.

    Batch norms, and the convolutions that they are folded into, are written in the computed dtype.
    """
    own = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TYPES[computed]}
    exact = own if stored != computed else set()
    return sorted(
        name
        for name, array in arrays.items()
        if not name.endswith(UNTRAINED)
        and not {name, f"{name}.folded", f"{name.rpartition('.')[0]}.summand"} & exact
        and _is_rounded(array, stored)
    )


def _is_rounded(array: np.ndarray, stored: str) -> bool:
    """Return whether a dtype does not have all of an array's values."""
    return not np.array_equal(array.astype(DTYPES[stored]).astype(np.float64), array.astype(np.float64))
