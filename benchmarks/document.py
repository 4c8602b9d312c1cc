"""The figures in the documents, from the reports in ``docs/benchmarks``: none of them is written by hand.

A document has blocks, which `rewrite` fills; a test compares them with the reports:

    <!-- figures: latency -->
    ...
    <!-- end -->

A block's name is a report's, ``machine``, ``done``, or ``readme``. Of a report it is its picture, and what its
module's ``markdown`` makes of it, or the lines that `LINES` has: what a figure is called, where in the report it is,
its unit, and what is aimed at.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.common import Report

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "docs" / "benchmarks"
REASONS: Final = ("missed", "faults", "failures")  # where a report says why an aim was
TIMES: Final = "suite.json"  # how long each took; no report
BLOCK: Final = re.compile(r"(?<=<!-- figures: )(\S+)( -->\n).*?(?=<!-- end -->)", flags=re.DOTALL)

Reports = Mapping[str, Report]
Line = tuple[str, str, str, str]  # what, where, unit, aim; what the report has of the aim stands in braces
PLACE: Final = re.compile(r"\{(.+?)\}")
AIM: Final = re.compile(r"(<= |>= |)([\d.]+)")  # at most, unless it says so

OF_FINALS: Final = (
    "end of speech to final, half of them",
    "speculation.end_of_speech_to_final_ms.p50",
    "ms",
    "<= {limits_ms.final}",
)
OF_PARTIALS: Final = (
    "onset of speech to first partial, half of them",
    "speculation.onset_to_first_partial_ms.p50",
    "ms",
    "<= {limits_ms.first_partial}",
)
LINES: Final[Mapping[str, Sequence[Line]]] = {
    "latency": (
        OF_FINALS,
        ("... the slowest", "speculation.end_of_speech_to_final_ms.max", "ms", ""),
        ("... of so many utterances", "speculation.end_of_speech_to_final_ms.n", "n", ""),
        ("... without speculation, half of them", "partials.end_of_speech_to_final_ms.p50", "ms", ""),
        ("a decode", "speculation.decode_ms.p50", "ms", ""),
        ("of that time the worker waited for its core", "speculation.worker_waited_for_core", "%", ""),
        OF_PARTIALS,
        ("`stable` text that changed", "speculation.stable_changed", "n", "0"),
        ("words shown that did not stay", "speculation.changed.all", "%", ""),
        ("... of a client that leaves the last word away", "speculation.changed.without_the_last_word", "%", ""),
        ("... that shows `stable` alone", "speculation.changed.stable", "%", ""),
        ("at twice the capacity: utterances", "loaded.0.utterances", "n", ""),
        ("... accepted at once", "loaded.0.end_of_speech_to_final_ms.n", "n", ""),
        ("... end of speech to final, half of those", "loaded.0.end_of_speech_to_final_ms.p50", "ms", ""),
    ),
    "latency_base": (
        OF_FINALS,
        ("... without speculation, half of them", "partials.end_of_speech_to_final_ms.p50", "ms", ""),
        ("a decode", "speculation.decode_ms.p50", "ms", ""),
        OF_PARTIALS,
    ),
    "load": (
        ("accepted, and there when it was promised, at all loads", "within_estimate", "%", ">= 90"),
        ("... at three times the capacity", "promises.-1.within_estimate", "%", ""),
        ("accepted, and expired, with 1.5 s of patience, at all loads", "expired", "%", "<= 2"),
        ("... at three times the capacity", "deadlines.-1.expired", "%", ""),
        ("came to a final at twice the capacity, with partials", "drafts.on.finals_share", "%", ""),
        ("... without", "drafts.off.finals_share", "%", ""),
    ),
    "overhead": (
        ("commit to final, less the decode, half of them", "tiny.en.overhead_ms.p50", "ms", "<= 5"),
        ("... 95 of 100", "tiny.en.overhead_ms.p95", "ms", ""),
        ("... of a worker that answers at once, half of them", "scripted.overhead_ms.p50", "ms", ""),
    ),
    "baseline_ratio": (
        ("a decode under five times the capacity, to one alone; a core of its own", "pinned.ratio", "x", "<= 1.05"),
        ("... all on all cores, as a user starts it", "free.ratio", "x", ""),
    ),
    "busy": (
        ("a `busy`, 50 sessions, in the server, half of them", "levels.0.in_server_ms.p50", "ms", ""),
        ("... 99 of 100", "levels.0.in_server_ms.p99", "ms", "<= 5"),
        ("... at the clients, 99 of 100", "levels.0.by_client_ms.p99", "ms", "<= 50"),
        ("200 sessions, in the server, half of them", "levels.-1.in_server_ms.p50", "ms", ""),
        ("... 99 of 100", "levels.-1.in_server_ms.p99", "ms", "<= 5"),
        ("... at the clients, 99 of 100", "levels.-1.by_client_ms.p99", "ms", "<= 50"),
        ("of that time the server waited for its core", "levels.-1.server_waited_for_core", "%", ""),
    ),
    "ingest": (("sessions in real time that one core carries", "carried", "n", ">= 150"),),
    "contention": (
        ("a decode beside a busy core, to one alone", "passive_slowdown", "x", ""),
        ("... with OpenMP's default", "default_slowdown", "x", ""),
    ),
    "recovery": (
        ("a dead worker is seen, 95 of 100", "seen_ms.p95", "ms", "<= 50"),
        ("ready again, less load and self-test, 95 of 100", "ready_less_load_ms.p95", "ms", "<= 500"),
        ("the worker gone after the server's SIGKILL, 95 of 100", "gone_ms.p95", "ms", "<= 100"),
        ("a `busy` while hung workers are killed, 99 of 100", "busy_ms.p99", "ms", "<= 50"),
    ),
    "memory": (
        ("the server with 100 idle sessions", "idle.rss_mb.0", "MB", "<= 130"),
        ("an idle session", "idle.held_kib", "KiB", "<= 20"),
        ("... with TLS", "idle, TLS.held_kib", "KiB", ""),
        ("a session that speaks", "speaking.most_kib", "KiB", ""),
        ("a session with 30 s heard and not committed", "heard.held_kib", "KiB", ""),
    ),
    "uploads": (
        ("refusals of files at the clients, 99 of 100", "early_ms.p99", "ms", "<= 50"),
        ("most decodes at once", "max_concurrent_decodes", "n", "1"),
    ),
    "jobs": (
        ("kills of the server", "kills_done", "n", ""),
        ("jobs that were acknowledged", "jobs", "n", ""),
        ("... and succeeded", "succeeded", "n", ""),
    ),
    "fuzz": (
        ("utterances of neighbours", "neighbours.commits", "n", ""),
        ("... and their finals", "neighbours.finals", "n", ""),
    ),
    "chaos": (
        ("utterances whose outcomes were checked", "utterances", "n", ""),
        ("outcomes that were lost", "lost_outcomes", "n", "0"),
        ("audio that was lost", "lost_ms", "ms", "0"),
        ("times that the server ended by itself", "parent_crashes", "n", "0"),
        ("restarts of the worker", "worker_restarts", "n", ""),
        ("growth of the server's memory after two minutes, MB a minute", "rss_slope_mb_per_min", "", "<= 1"),
        ("most decodes at once", "max_concurrent_decodes", "n", "1"),
    ),
    "seams": (
        ("word errors with cuts", "word_error_rate", "%", ""),
        ("... without", "word_error_rate_uncut", "%", ""),
        ("a word's beginning moved by, 95 of 100", "shift_s.p95", "s", "<= 1"),
    ),
    "long_file": (
        ("audio", "audio_s", "s", ""),
        ("done after", "took_s", "s", ""),
        ("word errors", "word_error_rate", "%", "<= 5"),
        ("the client grew by", "growth_mb.client", "MB", "<= 8"),
        ("the server grew by", "growth_mb.server", "MB", "<= 8"),
        ("the recognizer grew by", "growth_mb.worker", "MB", "<= 8"),
    ),
    "proxied": (
        ("a session that is silent for a minute ends with", "seen.a session silent for 60 s ends with", "", ""),
        ("audio lost of one that speaks", "seen.finals and lost ms of one that speaks.1", "ms", "0"),
    ),
    "window": (
        ("a decode with the shortened window, to one with the full", "tiny.en.second look.time", "x", ""),
        ("word errors with the shortened window, suspect results decoded again", "tiny.en.second look.rate", "%", ""),
        ("... with the full one", "tiny.en.full.rate", "%", ""),
    ),
    "fairness": (
        ("the nine's finals beside a greedy session, to those without it", "beside_the_hog.kept", "%", ">= 90"),
        ("their median wait beside it", "beside_the_hog.nine.median_wait_ms", "ms", ""),
        ("... without the rule", "rule_off.nine.median_wait_ms", "ms", ""),
    ),
    "microphone": (
        ("words wrong, by the browser's sound as our client asks for it", "as the client asks.errors", "n", ""),
        ("... with noise suppression", "noise suppression.errors", "n", ""),
        ("... of", "no processing.words", "n", ""),
    ),
    "blast": (
        ("utterances of the first speaker beside three that flood", "speakers.0.utterances", "n", ""),
        ("... and his finals", "speakers.0.final", "n", ""),
        ("a ping of his, half of them", "speakers.0.ping_ms.p50", "ms", ""),
    ),
    "accuracy": (
        ("word errors, streamed", "streamed_rate", "%", ""),
        ("... the whole file at once", "whole_rate", "%", ""),
    ),
}

# What is aimed at, by the report and the place that show it.
DONE: Final[Sequence[tuple[str, str, str, str, str]]] = (
    ("Ten minutes of faults: the server ends by itself", "chaos", "parent_crashes", "n", "0"),
    ("... outcomes lost", "chaos", "lost_outcomes", "n", "0"),
    ("... audio lost", "chaos", "lost_ms", "ms", "0"),
    ("Ten minutes at five times the capacity: the server ends by itself", "soak", "parent_crashes", "n", "0"),
    ("... outcomes lost", "soak", "lost_outcomes", "n", "0"),
    ("... most decodes at once", "soak", "max_concurrent_decodes", "n", "1"),
    ("... growth of its memory after two minutes, MB a minute", "soak", "rss_slope_mb_per_min", "", "<= 1"),
    (
        "Ten times the capacity: the share of the model's time for texts within 8 s",
        "lock_baseline",
        "loads.-1.goodput",
        "",
        ">= 0.97",
    ),
    (
        "End of speech to text with nobody else there, half of them",
        "latency",
        "speculation.end_of_speech_to_final_ms.p50",
        "ms",
        "<= {limits_ms.final}",
    ),
    ("Sessions in real time that one core carries", "ingest", "carried", "n", ">= 150"),
    ("The server with 100 idle sessions", "memory", "idle.rss_mb.0", "MB", "<= 130"),
    ("... an idle session", "memory", "idle.held_kib", "KiB", "<= 20"),
    (
        "A decode under five times the capacity, to one alone; the worker on a core of its own",
        "baseline_ratio",
        "pinned.ratio",
        "x",
        "<= 1.05",
    ),
    ("... all on all cores, as a user starts it", "baseline_ratio", "free.ratio", "x", ""),
    ("A refusal with 200 sessions, 99 of 100, in the server", "busy", "levels.-1.in_server_ms.p99", "ms", "<= 5"),
    ("... at the clients", "busy", "levels.-1.by_client_ms.p99", "ms", "<= 50"),
    ("A refusal while hung workers are killed, 99 of 100, at the clients", "recovery", "busy_ms.p99", "ms", "<= 50"),
    ("A dead worker is seen, 95 of 100", "recovery", "seen_ms.p95", "ms", "<= 50"),
)


def _goodput(reports: Reports) -> str:
    loads = reports["lock_baseline"]["loads"]
    most = max(each["load"] for each in loads)
    found = {each["server"]: each["goodput"] for each in loads if each["load"] == most}
    return f"{found['asr_ws']:.2f}; {found['lock']:.2f}"


def _talkers(reports: Reports) -> str:
    found = [each for each in reports["capacity"]["points"] if each["model"] != "sleeps"]
    return "; ".join(f"{each['measured']} ({each['model']})" for each in found)


def _ratios(reports: Reports) -> str:
    return "; ".join(shown(reports["baseline_ratio"][kind]["ratio"], "x") for kind in ("free", "pinned"))


def _refusals(reports: Reports) -> str:
    levels = reports["busy"]["levels"]
    return "; ".join(shown(level["in_server_ms"]["p99"], "ms") for level in (levels[0], levels[-1]))


def _figure(name: str, where: str, unit: str) -> Callable[[Reports], str]:
    return lambda reports: shown(at(reports[name], where), unit)


# In the README, in both languages.
README: Final[Sequence[tuple[str, str, Callable[[Reports], str]]]] = (
    (
        "end of speech to text, half of them, 600 ms of silence included: tiny.en, nobody else there",
        "从说完到出文字，中位数，含判定说完的 600 毫秒静音：tiny.en，没有别人",
        _figure("latency", "speculation.end_of_speech_to_final_ms.p50", "ms"),
    ),
    (
        "people who speak without a pause, 95 of 100 utterances waiting 8 s at most",
        "同时不停说话的人数，95% 的语句最多等 8 秒",
        _talkers,
    ),
    (
        "at ten times the capacity, the share of the model's time for texts within 8 s, base: this server; a lock",
        "负载十倍于能力时，模型用于 8 秒内送达文字的时间占比，base：本服务器；一把锁",
        _goodput,
    ),
    (
        "a decode at five times the capacity, to one alone; with the recognizer on a core of its own",
        "五倍负载下的解码时间，与单独解码之比；识别进程独占一核时",
        _ratios,
    ),
    (
        "a refusal, 99 of 100, in the server, with 50 sessions; with 200 (the aim is 5 ms)",
        "一次拒绝在服务器内的用时（第 99 百分位）：50 个会话；200 个（目标 5 毫秒）",
        _refusals,
    ),
    (
        "outcomes lost in ten minutes of crashes, hangs and leaks of the recognizer",
        "识别进程崩溃、挂起、泄漏十分钟，丢失的结果",
        _figure("chaos", "lost_outcomes", "n"),
    ),
)
SOAK_AS_CHAOS: Final = {"soak": "chaos"}


def at(report: Report, where: str) -> Any:
    """What stands at ``a.b.0``; a name may have dots in it. Raises: KeyError, IndexError: nothing does."""
    found: Any = report
    parts = where.split(".")
    while parts:
        if isinstance(found, list):
            found = found[int(parts.pop(0))]
            continue
        name = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in found), parts[0])
        found, parts = found[name], parts[name.count(".") + 1 :]
    return found


def shown(value: Any, unit: str) -> str:
    """As people read it."""
    match value, unit:
        case None, _:
            return "-"
        case str(), _:
            return value
        case _, "n":
            return f"{value:,}".replace(",", " ")
        case _, "x":
            return f"{value:.2f} x"
        case _, "%":
            return f"{value:.1%}".replace("%", " %")
        case _, "":
            return f"{value:.2f}"
    return f"{value:.0f} {unit}" if abs(value) >= 20 or value == 0 else f"{value:.1f} {unit}"


def judged(value: Any, unit: str, aim: str) -> str:
    """As people read it, in bold where it misses its aim."""
    text, limit = shown(value, unit), AIM.fullmatch(aim)
    if value is None or limit is None:
        return text
    over = (value * 100 if unit == "%" else value) - float(limit[2])
    return text if (over >= 0 if limit[1] == ">= " else over <= 0) else f"**{text}**"


def lines_of(report: Report, lines: Sequence[Line]) -> list[str]:
    """A table of them."""
    return ["| | | aim |", "|---|---|---|", *(_row(report, *line) for line in lines)]


def _row(report: Report, what: str, where: str, unit: str, aim: str) -> str:
    aim = PLACE.sub(lambda place: f"{at(report, place[1]):.0f}", aim)
    return f"| {what} | {judged(at(report, where), unit, aim)} | {aim} |"


def _of_report(name: str, report: Report, commands: Mapping[str, str], folder: Path) -> list[str]:
    module = import_module(f"benchmarks.{report['benchmark']}")
    table: Callable[[Report], list[str]] | None = getattr(module, "markdown", None)
    picture = []
    if (draw := getattr(module, "draw", None)) is not None:
        file = Path(os.path.relpath(FOLDER / f"{name}.png", folder)).as_posix()
        picture = [f"![{(draw.__doc__ or name).splitlines()[0].rstrip('.')}]({file})", ""]
    lines = table(report) if table is not None else lines_of(report, LINES[SOAK_AS_CHAOS.get(name, name)])
    verdict = {True: ": every aim was kept", False: ": **an aim was missed**"}.get(report["passed"], "")
    reasons = [each for key in REASONS if isinstance(found := report.get(key), list) for each in found]
    verdict += ": " * bool(reasons) + "; ".join(reasons)
    return [*picture, *lines, "", f"`{commands.get(name, f'python -m benchmarks.{name}')}`{verdict}."]


def _machine(reports: Reports) -> list[str]:
    machines = {json.dumps(each["machine"]): each["machine"] for each in reports.values()}
    return [
        f"{each['cpu']}, {each['cores']} cores; {each['os']}; Python {each['python']}, "
        + ", ".join(f"{name} {each[name]}" for name in ("faster-whisper", "ctranslate2", "websockets"))
        + "."
        for each in machines.values()
    ]


def _done(reports: Reports, commands: Mapping[str, str]) -> list[str]:
    rows = [f"{_row(reports[name], what, *how)} `{commands[name]}` |" for what, name, *how in DONE]
    return ["| | last figure | aim | command |", "|---|---|---|---|", *rows]


def _readme(reports: Reports, *, chinese: bool) -> list[str]:
    rows = [(chinese_what if chinese else what, value(reports)) for what, chinese_what, value in README]
    return ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]


def block(name: str, reports: Reports, commands: Mapping[str, str], folder: Path) -> list[str]:
    """Its lines, for a document in this folder. Raises: click.ClickException: it is unknown, or has no report."""
    try:
        match name:
            case "machine":
                return _machine(reports)
            case "done":
                return _done(reports, commands)
            case "readme" | "readme.zh":
                return _readme(reports, chinese=name.endswith("zh"))
        return _of_report(name, reports[name], commands, folder)
    except (LookupError, TypeError, ValueError) as error:
        raise click.ClickException(f"figures of {name} are not there: {error!r}") from error


def read_reports(folder: Path = FOLDER) -> dict[str, Report]:
    """By the name of the file. Raises: click.ClickException: one of them is no report."""
    reports: dict[str, Report] = {}
    for file in sorted(folder.glob("*.json")):
        if file.name != TIMES and file.suffixes == [".json"]:  # not one that is being made
            try:
                reports[file.stem] = {"benchmark": None, **json.loads(file.read_text("utf-8"))}
                import_module(f"benchmarks.{reports[file.stem]['benchmark']}")
            except (OSError, ValueError, TypeError, ImportError, RecursionError) as error:
                raise click.ClickException(f"{file} is no report: {error}") from error
    return reports


def filled(text: str, reports: Reports, commands: Mapping[str, str], folder: Path) -> str:
    """A document of this folder with its blocks as the reports have them."""
    return BLOCK.sub(
        lambda found: "\n".join(
            [f"{found[1]}{found[2].rstrip()}", "", *block(found[1], reports, commands, folder), "", ""]
        ),
        text,
    )


def documents() -> list[Path]:
    """Those with blocks."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(file for file in found if BLOCK.search(file.read_text("utf-8")))


def rewrite(commands: Mapping[str, str]) -> list[Path]:
    """Fill them all. Returns: those that changed."""
    reports, changed = read_reports(), []
    for file in documents():
        text = file.read_text("utf-8")
        if (new := filled(text, reports, commands, file.parent)) != text:
            file.write_text(new, "utf-8")
            changed.append(file)
    return changed
