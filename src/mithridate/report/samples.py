"""Where prompts have several answers: how many answers count, and how many prompts get one or more that do."""

from __future__ import annotations

from mithridate.report.load import LoadedRun
from mithridate.report.tables import (
    SAMPLES,
    Table,
    again_columns,
    again_entries,
    name_column,
    name_entry,
    rate_column,
    rate_entry,
    samples_entry,
)
from mithridate.results.decisions import one_or_more
from mithridate.results.relations import Cell, attacked, measured, undefended
from mithridate.statistics.text import percent

_RATES = (("harmful_score", "Harmful score"), ("benign_refusal", "Benign refusal"))


def samples_table(run: LoadedRun) -> Table | None:
    """Both rates by answers and by prompts, seeds together; None where every prompt has one answer."""
    points = _sampled(run)
    if not points:
        return None
    rows = []
    for point in points:
        row = [name_entry(point, run.point_names), samples_entry(measured(point, "harmful_score"))]
        for key, _ in _RATES:
            row += [rate_entry(point["rates"][key]), *again_entries(point["rates"][key])]
        rows.append(row)
    columns = [name_column(), SAMPLES]
    for key, title in _RATES:
        columns += [rate_column(f"{title}, of the answers", key), *again_columns(title, key)]
    return Table("samples", "k samples per prompt. In brackets 95% intervals", columns, rows)


def samples_words(run: LoadedRun) -> list[str]:
    """What that table says; the last sentence is one of its rows."""
    points = _sampled(run)
    if not points:
        return []
    example = next((point for point in points if undefended(point) and attacked(point)), points[0])
    score = example["rates"]["harmful_score"]
    return [
        "Each harmful and each benign prompt was answered k times, each answer drawn anew. The harmful score is the "
        "share of all these answers that comply: what one try comes to. Who may ask again needs only one answer that "
        'complies: "any of k" is the share of prompts that get one or more. A prompt with an unscored answer and none '
        'that complies is left out there; "worst of k" takes every unscored answer for one that complies. Over seeds '
        'the interval of "any of k" takes unscored answers both ways. Decisions are on the shares of answers; on the '
        "shares of prompts nothing is tested.",
        f'So in the row "{run.point_names[example["id"]].full}": {percent(score["value"])} of the answers comply; '
        f"asked {score['samples']} times, of the prompts {one_or_more(score)} get one or more that do.",
    ]


def _sampled(run: LoadedRun) -> list[Cell]:
    return [point for point in run.points if _has_several(point)]


def _has_several(point: Cell) -> bool:
    rate = measured(point, "harmful_score") or {}
    return (rate.get("any_of_k") or {}).get("low") is not None
