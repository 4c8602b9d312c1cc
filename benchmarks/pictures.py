"""What several benchmarks draw: spreads of times, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, Mapping[str, Any] | None, float | None]  # what, a `Spread.figures`, and what is aimed at

MARKS = (
    ("p50", "o", "C0", 6, "half of them"),
    ("p95", "|", "C0", 12, "95 of 100"),
    ("p99", "|", "0.4", 8, "99 of 100"),
)


def spreads(figure: Figure, title: str, rows: Sequence[Row], *, log: bool = False, aim_is_of: str = "p99") -> None:
    """A dot at the median, a line to p99 with a mark at p95, and what is aimed at as a red one. None: not measured."""
    from matplotlib.ticker import NullFormatter

    rows = [row for row in rows if row[1]][::-1]
    axes = figure.add_subplot(title=title, xlabel="ms", xscale="log" if log else "linear")
    for n, (_, spread, aim) in enumerate(rows):
        assert spread is not None
        axes.plot([spread["p50"], spread["p99"]], [n, n], color="0.6", zorder=1)
        for name, marker, color, size, label in MARKS:
            axes.plot(spread[name], n, marker, color=color, markersize=size, label=None if n else label)
        half = spread["p50"]
        above: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{half:.0f}" if half >= 20 else f"{half:.2g}", (half, n), **above)
        if aim is not None:
            axes.plot(aim, n, "|", color="C3", markersize=22)
    if any(aim is not None for _, _, aim in rows):
        axes.plot([], [], "|", color="C3", markersize=14, label=f"aim of {aim_is_of}")
    if log:
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [f"{what} (n = {spread['n']})" for what, spread, _ in rows if spread])
    if not log:
        axes.set_xlim(left=0)
    axes.margins(y=0.15)
    axes.legend(loc="best", fontsize=8)
