"""What the command says of a result: readable tables as lines, and one JSON object. No printing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vega_diffusion.evaluation.compare import Comparison, Difference
from vega_diffusion.evaluation.results import EvaluationResult
from vega_diffusion.specs.evaluation import OVERALL_KINDS, ROW_KINDS


def result_table(result: EvaluationResult) -> list[str]:
    """Return the lines of a result's table: kinds, overall, rows, then seen against unseen."""
    identity, held_out = result.identity, result.held_out
    title = f"{identity.model} ({identity.model_digest[:10]}) on {identity.suite}-{identity.split}"
    lines = [title + (f": PARTIAL, at most {identity.limit} of each kind" if result.partial else "")]
    lines += ["", _line("", "score", "95 % interval", "ceiling", "chance", "seen", "unseen")]
    names: list[str] = [*OVERALL_KINDS, "overall", *ROW_KINDS]
    scores = _flat(result.overall, result.kinds, result.rows)
    ceiling = _flat(result.ceiling.overall, result.ceiling.kinds, result.ceiling.rows)
    chance = _flat(result.chance.overall, result.chance.kinds, result.chance.rows)
    seen = _flat(held_out.seen.overall, held_out.seen.kinds, held_out.seen.rows)
    unseen = _flat(held_out.unseen.overall, held_out.unseen.kinds, held_out.unseen.rows)
    for name in names:
        if name in scores:
            low, high = result.intervals[name]
            cells = [_percent(table.get(name)) for table in (ceiling, chance, seen, unseen)]
            lines.append(_line(name, _percent(scores[name]), f"{_percent(low)} to {_percent(high)}", *cells))
            if name in ("overall", OVERALL_KINDS[-1]):
                lines.append("")
    if held_out.difference is not None and held_out.interval is not None:
        low, high = held_out.interval
        points = f"{_points(held_out.difference)} points ({_points(low)} to {_points(high)})"
        lines.append(f"unseen less seen combinations, over the kinds that have both: {points}")
    lines.append(f"{result.num_images} pictures of {result.num_prompts} prompts in {result.seconds:.0f} s")
    return lines


def result_report(result: EvaluationResult, folder: str, ledger: str | None) -> dict[str, Any]:
    """Return what `--json` prints: the result without the single prompts, and where everything lies."""
    data = result.model_dump(mode="json", exclude={"prompts", "identity", "held_out"})
    held_out = result.held_out.model_dump(mode="json")
    return data | result.identity.model_dump(mode="json") | held_out | {"folder": folder, "ledger": ledger}


def ledger_table(line: Mapping[str, Any]) -> str:
    """Return one line of the test ledger as a Markdown table: kinds, overall, rows."""
    scores, ceiling, chance = (
        _flat(part["overall"], part["kinds"], part["rows"]) for part in (line, line["ceiling"], line["chance"])
    )
    title = f"**{line['model']}** ({line['model_digest'][:10]}) on {line['suite']}, {line['num_images']} pictures:"
    table = [
        title,
        "",
        "| % of pictures that pass | score | 95 % interval | ceiling | chance |",
        "|---|---|---|---|---|",
    ]
    for name in (*OVERALL_KINDS, "overall", *ROW_KINDS):
        if name in scores:
            low, high = line["intervals"][name]
            cells = [f"{_percent(low)} to {_percent(high)}", _percent(ceiling.get(name)), _percent(chance.get(name))]
            shown = f"**{name}**" if name == "overall" else name.replace("_", " ")
            table.append(f"| {shown} | {_percent(scores[name])} | {' | '.join(cells)} |")
    return "\n".join(table) + "\n"


def comparison_table(comparison: Comparison) -> list[str]:
    """Return the lines of a comparison: kinds, overall, rows, and what differs in the settings."""
    lines = [f"A: {comparison.a}", f"B: {comparison.b}", ""]
    lines.append(_line("", "A", "B", "B less A", f"{'95 % interval':>18}  "))
    rows: dict[str, Difference] = {str(kind): found for kind, found in comparison.kinds.items()}
    if comparison.overall is not None:
        rows["overall"] = comparison.overall
    rows |= {str(kind): found for kind, found in comparison.rows.items()}
    for name, found in rows.items():
        low, high = found.interval
        interval = f"{f'{_points(low)} to {_points(high)}':>18}{' *' if found.is_clear else '  '}"
        lines.append(_line(name, _percent(found.a), _percent(found.b), _points(found.difference), interval))
        if name in ("overall", OVERALL_KINDS[-1]):
            lines.append("")
    lines += [f"{key}: {first} (A), {second} (B)" for key, (first, second) in comparison.settings.items()]
    partial = " (PARTIAL: only some prompts)" if comparison.partial else ""
    lines.append(f"points, paired over {comparison.num_prompts} prompts{partial}; * the interval leaves out 0")
    return lines


def _flat(overall: float | None, *tables: dict[Any, float]) -> dict[str, float]:
    found = {str(name): value for table in tables for name, value in table.items()}
    return found if overall is None else found | {"overall": overall}


def _line(name: str, first: str, second: str, *rest: str) -> str:
    wide = f"{name.replace('_', ' '):<20}{first:>8}{second:>19}"
    return (wide + "".join(f"{cell:>9}" for cell in rest)).rstrip()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
