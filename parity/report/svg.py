"""Plots of a report as SVG."""

import math
from html import escape

from mt3_common.io.plural import plural
from parity.compare.results import Row
from parity.report.table import number

# Space for letters of 26 units, as the page has them on a phone (report/html.py): a line's height, the label's column.
LETTERS, LABELS = 30, 190
# Lines of the plots: a colour for each precision, dashes for local errors.
LINES = (
    ("float64", "free", "#3e63dd", ""),
    ("float64", "local", "#3e63dd", "2 3"),
    ("float32", "free", "#d6409f", ""),
    ("float32", "local", "#d6409f", "2 3"),
    ("bfloat16", "free", "#ad5700", ""),
    ("bfloat16", "local", "#ad5700", "2 3"),
    ("tf32", "free", "#30a46c", ""),
    ("tf32", "local", "#30a46c", "2 3"),
)


def heat_strip(taps: list[Row]) -> str:
    """Draw a coloured cell per tap and kind of error, with titles."""
    names = list(dict.fromkeys(row.name for row in taps))
    place = {name: index for index, name in enumerate(names)}
    lines = [line for line in LINES if any(row.precision == line[0] for row in taps)]
    width, left, high = 1000, LABELS, LETTERS
    cell = (width - left) / len(names)
    parts = [f"<svg viewBox='0 0 {width} {high * len(lines) + LETTERS}' role='img' aria-label='error of every tap'>"]
    for line, (precision, kind, _, _) in enumerate(lines):
        parts.append(f"<text x='0' y='{line * high + 22}'>{precision} {kind}</text>")
        for row in taps:
            measure = getattr(row, kind)
            if row.precision != precision or measure is None:
                continue
            figure = "not judged" if measure.ratio is None else f"{number(measure.ratio)} x budget"
            title = f"{row.name} {precision} {kind}: {figure}"
            parts.append(
                f"<rect x='{left + place[row.name] * cell:.2f}' y='{line * high}' width='{cell + 0.1:.2f}' "
                f"height='{high - 2}' fill='{colour(measure.ratio)}'><title>{escape(title)}</title></rect>"
            )
    y = high * len(lines) + 22
    for mark, at in _stacks(names):
        parts.append(f"<text x='{left + at * cell:.1f}' y='{y}'>{escape(mark)}</text>")
    return "".join(parts) + "</svg>"


def _stacks(names: list[str]) -> list[tuple[str, int]]:
    stacks = []
    for stack in ("encoder", "decoder"):
        first = next((index for index, name in enumerate(names) if name.startswith(stack)), None)
        if first is not None:
            stacks.append((stack, first))
    return stacks or [(names[0], 0)]


def colour(ratio: float | None) -> str:
    """Return the colour of an error in budgets: white to blue below 1, red above, black if it is not finite."""
    if ratio is None:
        return "#b0b4ba"
    if not math.isfinite(ratio):
        return "#000000"
    if ratio > 1.0:
        return f"hsl(358 75% {max(30, 60 - 4 * math.log10(ratio)):.0f}%)"
    return f"hsl(226 70% {93 - 35 * ratio:.0f}%)"


def growth(taps: list[Row]) -> str:
    """Plot the relative error against execution order, one line per precision and kind, logarithmic."""
    names = list(dict.fromkeys(row.name for row in taps))
    place = {name: index for index, name in enumerate(names)}
    series = []
    for precision, kind, ink, dash in LINES:
        points = [
            (place[row.name], math.log10(measure.relative))
            for row in taps
            if row.precision == precision
            and (measure := getattr(row, kind)) is not None
            and 0.0 < measure.relative < math.inf
        ]
        if points:
            series.append((f"{precision} {kind}", points, ink, dash))
    if not series:
        return "<p>No error at all: every tap is equal to the bit.</p>"
    low = math.floor(min(y for _, points, _, _ in series for _, y in points))
    high = max(low + 1, math.ceil(max(y for _, points, _, _ in series for _, y in points)))
    width, height, left = 1000, 280, 80

    def at(x: float, y: float) -> str:
        down = LETTERS - 8 + (high - y) / (high - low) * (height - 2 * LETTERS)
        return f"{left + x / max(1, len(names) - 1) * (width - left - 8):.1f},{down:.1f}"

    parts = [f"<svg viewBox='0 0 {width} {height + LETTERS}' role='img' aria-label='error against execution order'>"]
    for y in range(low, high + 1, max(1, (high - low) // 6)):
        x1, y1 = at(0, y).split(",")
        parts.append(f"<line class='axis' x1='{x1}' y1='{y1}' x2='{width - 8}' y2='{y1}'/>")
        parts.append(f"<text x='0' y='{float(y1) + 4:.1f}'>1e{y}</text>")
    legend = []
    for label, points, ink, dash in series:
        path = " ".join(at(x, y) for x, y in points)
        stroke = f"stroke='{ink}' stroke-width='1.6' fill='none' stroke-dasharray='{dash}'"
        parts.append(f"<polyline points='{path}' {stroke}><title>{label}</title></polyline>")
        line = f"<svg viewBox='0 0 26 8' aria-hidden='true'><line x1='0' x2='26' y1='4' y2='4' {stroke}/></svg>"
        legend.append(f"<span>{line} {label}</span>")
    for mark, x in _stacks(names):
        parts.append(f"<text x='{at(x, low).split(',')[0]}' y='{height + 18}'>{escape(mark)} begins</text>")
    return "".join(parts) + f"</svg><p class='legend'>{''.join(legend)}</p>"


def histogram(counts: list[int], edges: list[float]) -> str:
    """Draw the counts per decade of error; the first bar counts equal values."""
    width, height = 1000, 180
    bar = width / len(counts)
    top = max(1, max(counts))
    parts = [f"<svg viewBox='0 0 {width} {height + LETTERS}' role='img' aria-label='histogram of the worst tap'>"]
    for index, count in enumerate(counts):
        label = "equal" if index == 0 else f"<1e{edges[index]:.0f}"
        # A phone has room for the first and the last label.
        thin = "" if index in (0, len(counts) - 1) else " class='thin'"
        # Logarithmic, so that a single value is visible.
        tall = (height - 24) * math.log1p(count) / math.log1p(top)
        parts.append(
            f"<rect x='{index * bar + 4:.1f}' y='{height - tall:.1f}' width='{bar - 8:.1f}' height='{tall:.1f}' "
            f"fill='#3e63dd'><title>{plural(count, 'value')} {label}</title></rect>"
            f"<text class='thin' x='{index * bar + 6:.1f}' y='{height - tall - 4:.1f}'>{count}</text>"
            f"<text{thin} x='{index * bar + 6:.1f}' y='{height + 24}'>{label.replace('<', '&lt;')}</text>"
        )
    return "".join(parts) + "</svg>"
