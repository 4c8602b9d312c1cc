"""The report for people: lines of Markdown, and a picture. Both are made from it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Report = Mapping[str, Any]
NONE: Final = "-"
LATE_MS: Final = 100
QUIET_CORES: Final = 0.2  # by other programs: the system itself takes some
COLOURS: Final = {"ours": "#1f6feb", "theirs": "#8b949e"}


def _ms(value: Mapping[str, float] | None) -> str:
    return NONE if value is None else f"{value['p50']:.0f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _versions(peer: Report) -> str:
    return "".join(f" {version}" for version in list(peer["versions"].values())[:1])


def _refusal(scene: Report) -> str:
    if (refusal := scene["refusal"]) is None:
        return "nothing"
    return f"“{refusal['words']}”, {refusal['ms'] / 1000:.2f} s after {refusal['after']}"


def _crash(crash: Report) -> str:
    if crash["back_s"] is not None:
        return f"{crash['saw']}; back after {crash['back_s']:.1f} s"
    return f"{crash['saw']}; {'never back' if crash['alive'] else 'gone'}"


Column = tuple[str, Callable[[Report], str]]
SPEED: Final[tuple[Column, ...]] = (
    ("final, ms", lambda peer: _ms(peer["one"]["final_ms"])),
    ("of clips", lambda peer: f"{(peer['one']['final_ms'] or {'n': 0})['n']}/{peer['one']['clips']}"),
    ("last change, ms", lambda peer: _ms(peer["one"]["last_change_ms"])),
    ("first text, ms", lambda peer: _ms(peer["one"]["first_ms"])),
    ("word errors, %", lambda peer: _share(peer["one"]["word_errors"])),
    ("flicker, %", lambda peer: _share(peer["one"]["flicker"])),
    ("MB idle, after", lambda peer: f"{peer['rss_mb']['idle']}, {peer['rss_mb']['after']}"),
    ("installed, MB", lambda peer: f"{peer['environment_mb']}"),
)
LOAD: Final[tuple[Column, ...]] = (
    ("two: served", lambda peer: f"{peer['two']['served']} of {peer['two']['clients']}"),
    ("theirs final, ms", lambda peer: _ms(peer["two"]["final_ms"])),
    ("many: served", lambda peer: f"{peer['many']['served']} of {peer['many']['clients']}"),
    ("theirs final, ms", lambda peer: _ms(peer["many"]["final_ms"])),
    ("their texts", lambda peer: ", ".join(f"{n} {what}" for what, n in peer["many"]["texts"].items())),
    ("says under load", lambda peer: _refusal(peer["many"])),
    ("SIGSEGV in mid-decode", lambda peer: _crash(peer["crash"])),
)


def markdown(report: Report) -> list[str]:
    """Two tables of Markdown, for speed and for load and failure, and notes after them."""
    ran = {name: peer for name, peer in report["peers"].items() if "cannot" not in peer}
    notes = [f"- Rounds: {report['settings']['rounds']} (`--rounds`)."] if ran else []
    notes += [f"- {name}{_versions(peer)}: {peer['differs']}." for name, peer in ran.items()]
    if (
        late := max((peer[scene]["late_ms"] for peer in ran.values() for scene in ("two", "many")), default=0)
    ) > LATE_MS:
        notes.append(f"- A frame was sent up to {late} ms late: a client had no core, or its server did not read.")
    notes += [
        f"- {name} cannot run here: {peer['cannot']}" for name, peer in report["peers"].items() if "cannot" in peer
    ]
    lines = [*_markdown(SPEED, ran), "", *_markdown(LOAD, ran)] if ran else []
    if (noise := max((peer["others_cores"] for peer in ran.values()), default=0.0)) > QUIET_CORES:
        notes.append(f"- The machine was not quiet: other programs had up to {noise:.1f} of its cores.")
    return [*lines, "", *notes] if notes else lines


def _markdown(columns: Sequence[Column], peers: Mapping[str, Report]) -> list[str]:
    rows = [
        ["server", *(title for title, _ in columns)],
        *([name, *(cell(peer) for _, cell in columns)] for name, peer in peers.items()),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]


def draw(figure: Figure, report: Report) -> None:
    """Bars: how soon text is final, how many of the clients were served, word errors."""
    peers = {name: peer for name, peer in reversed(report["peers"].items()) if "cannot" not in peer}
    names = list(peers)
    n_clients = report["settings"]["clients"]
    panels: tuple[tuple[str, Callable[[Report], float | None], Callable[[float], str]], ...] = (
        (
            "End of speech to final text, s",
            lambda peer: peer["one"]["final_ms"] and peer["one"]["final_ms"]["p50"] / 1000,
            lambda value: f"{value:.2f}",
        ),
        (f"Final in 15 s, of {n_clients} at once", lambda peer: peer["many"]["served"], lambda value: f"{value:.0f}"),
        ("Word errors, %", lambda peer: 100 * peer["one"]["word_errors"], lambda value: f"{value:.1f}"),
    )
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, value_of, text_of) in zip(all_axes, panels, strict=True):
        values = [value_of(peers[name]) for name in names]
        colours = [COLOURS["ours" if name.startswith("asr-ws") else "theirs"] for name in names]
        bars = axes.barh(names, [value or 0 for value in values], color=colours)
        axes.bar_label(bars, [" never" if value is None else f" {text_of(value)}" for value in values])
        axes.set_title(title, fontsize="medium", loc="left")
        axes.margins(x=0.25)
        axes.xaxis.set_visible(False)
        axes.tick_params(left=False)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
