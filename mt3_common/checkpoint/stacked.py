"""Arrays that hold all layers of a stack, as T5X's scan_layers and Flax's nn.scan make them, taken apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mt3_common.checkpoint.names import CheckpointError, layer_shapes
from mt3_common.checkpoint.naming import STACKED

# positions of the layers' axis that are tried: T5X's default, Flax's, and the last one
AXES = (1, 0, -1)


class Layer(NamedTuple):
    """A layer's part of an array.

    Attributes:
        name: of the array in the file.
        axis, number: where the layer lies in it; axis None for an array of its own.
    """

    name: str
    axis: int | None = None
    number: int = 0


def take_apart(names: Mapping[str, str], shapes: Mapping[str, Sequence[int]], axis: int | None) -> dict[str, Layer]:
    """Return MT3's name -> what of the file it is.

    Args:
        names: name in the file -> MT3's, with STACKED for the number of a layer where an array has all.
        shapes: name in the file -> shape.
        axis: position of the layers' axis; None to find it.

    Raises:
        CheckpointError: a name is there twice; the axis cannot be told, or is none.
    """
    layers: dict[str, Layer] = {}
    stacks: dict[str, dict[str, tuple[str, Sequence[int]]]] = {}
    for name, own in names.items():
        stack, _, part = own.partition(f"/{STACKED}/")
        if part:
            if part in stacks.setdefault(stack, {}):
                raise CheckpointError(f"array {own} is there twice: {stacks[stack][part][0]} and {name}")
            stacks[stack][part] = (name, shapes[name])
        elif own in layers:
            raise CheckpointError(f"array {own} is there twice: {layers[own].name} and {name}")
        else:
            layers[own] = Layer(name)
    if not stacks:
        return layers
    widths = {shapes[layer.name][-1] for own, layer in layers.items() if own.endswith("_norm/scale")}
    width = widths.pop() if len(widths) == 1 else None
    for stack, parts in stacks.items():
        for part, position, count in _positions(
            stack, {part: shape for part, (_, shape) in parts.items()}, width, axis
        ):
            for index in range(count):
                own = f"{stack}/layers_{index}/{part}"
                if own in layers:
                    raise CheckpointError(f"array {own} is there twice: {layers[own].name} and {parts[part][0]}")
                layers[own] = Layer(parts[part][0], position, index)
    return layers


def axes_of(layers: Mapping[str, Layer]) -> list[int]:
    """Return the axes along which layers were taken apart."""
    return sorted({layer.axis for layer in layers.values() if layer.axis is not None})


def _positions(
    stack: str, shapes: Mapping[str, Sequence[int]], width: int | None, axis: int | None
) -> list[tuple[str, int, int]]:
    """Return (part, position of the layers' axis, number of layers) for the parts of a stack."""
    fits = {}
    for candidate in AXES if axis is None else (axis,):
        positions = {part: candidate if candidate >= 0 else len(shape) + candidate for part, shape in shapes.items()}
        count = _number_of_layers(stack, shapes, positions, width)
        if count is not None:
            fits.setdefault(tuple(positions.items()), (candidate, count))
    if not fits and axis is None:
        fits = _mixed(stack, shapes, width)
    if not fits:
        part, shape = min(shapes.items())
        raise CheckpointError(
            f"{stack} has arrays of all layers at once ({part} of shape {tuple(shape)}), but "
            + ("no axis" if axis is None else f"axis {axis}")
            + " of theirs can be that of the layers"
        )
    if len(fits) > 1:
        candidates = ", ".join(str(candidate) for candidate, _ in fits.values())
        raise CheckpointError(
            f"{stack} has arrays of all layers at once, and which axis is that of the layers cannot be told (one of "
            f"{candidates}: the number of layers equals a width): name it with "
            "mt3-parity convert CHECKPOINT OUT.safetensors --scan-axis N"
        )
    [(positions, (_, count))] = fits.items()
    return [(part, position, count) for part, position in positions]


def _number_of_layers(
    stack: str, shapes: Mapping[str, Sequence[int]], positions: Mapping[str, int], width: int | None
) -> int | None:
    """Return the number of layers if the positions leave every part a shape that MT3's can have, else None."""
    sizes: dict[str, int] = {} if width is None else {"emb_dim": width}
    for part, shape in shapes.items():
        position = positions[part]
        if not 0 <= position < len(shape):
            return None
        rest = joined_heads(part, [*shape[:position], *shape[position + 1 :]])
        symbols = ("layers", *layer_shapes(stack).get(part, ()))
        if len(rest) + 1 != len(symbols):
            return None
        for symbol, size in zip(symbols, (shape[position], *rest), strict=True):
            if sizes.setdefault(symbol, size) != size:
                return None
    return sizes.get("layers")


def _mixed(stack: str, shapes: Mapping[str, Sequence[int]], width: int | None) -> dict[Any, tuple[str, int]]:
    """Return what fits where arrays have the layers' axis at different positions."""
    fits = {}
    smallest = min((set(shape) for shape in shapes.values()), key=len, default=set())
    for count in sorted(smallest):
        options = {part: [axis for axis, size in enumerate(shape) if size == count] for part, shape in shapes.items()}
        if all(len(positions) == 1 for positions in options.values()):
            positions = {part: axes[0] for part, axes in options.items()}
            if _number_of_layers(stack, shapes, positions, width) == count:
                fits[tuple(positions.items())] = ("different ones", count)
    return fits


def joined_heads(part: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an attention kernel with its axes of heads and of their width made one, as MT3 stores it.

    Source: t5x/examples/scalable_t5/layers.py, DenseGeneral; (emb_dim, heads, width), of `out` (heads, width, emb_dim).
    """
    if len(shape) != 3 or "attention/" not in part or not part.endswith("/kernel"):
        return tuple(shape)
    first, second, third = shape
    return (first * second, third) if part.endswith("/out/kernel") else (first, second * third)
