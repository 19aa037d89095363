"""The tables of a run, one source for the page, Markdown, CSV and LaTeX.

An entry holds a text for people (rates in percent) and, for CSV, the plain numbers behind it (rates as fractions).
"""

from dataclasses import dataclass
from typing import Any

from mithridate.report.groups import TRAINING, ArmCost
from mithridate.report.load import LoadedRun
from mithridate.report.words import TOPOLOGIES, Label, attack_settings, flatten
from mithridate.results.decisions import shown
from mithridate.results.filtered import filtered, in_words
from mithridate.results.relations import Cell, arm, defended, known, related, undefended
from mithridate.statistics.text import between, interval, p_value, percent, points


@dataclass(frozen=True)
class Entry:
    """A text, a smaller one under it, and the numbers behind them, one for each of the column's `fields`."""

    text: str
    note: str = ""
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column. Where it has no `fields`, CSV takes its texts under its title."""

    title: str
    fields: tuple[str, ...] = ()


@dataclass
class Table:
    """A table; `name` is that of its files."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Entry]]


NOTHING = Entry("–")

_RATES = (
    ("harmful_score", "Harmful score"),
    ("benign_refusal", "Benign refusal"),
    ("incoherent", "Incoherent"),
    ("benign_other", "Benign, neither"),
    ("benign_incoherent", "Benign, broken"),
    ("accuracy", "Task accuracy"),
)
_STAGE_ORDER = (*TRAINING, "evaluate")
_DIFFERENCE = ("difference", "low", "high", "p_value", "p_holm", "detectable")


# --- entries ----------------------------------------------------------------------------------------------------


def rate_column(title: str, name: str) -> Column:
    return Column(title, (name, *(f"{name}_{part}" for part in ("low", "high", "n", "unscored", "seeds"))))


def rate_entry(rate: dict[str, Any] | None) -> Entry:
    """A rate in percent with its interval and n; "–" where it was not measured."""
    rate = known(rate)
    if not rate:
        return NOTHING
    unscored = f", {rate['unscored']} unscored" if rate.get("unscored") else ""
    values = tuple(rate.get(key) for key in ("value", "low", "high", "n", "unscored", "seeds"))
    clustered = rate.get("prompts") not in (None, rate["n"])
    counted = f"{rate['n']} answers to {rate['prompts']} prompts" if clustered else f"n {rate['n']}"
    if rate.get("samples") and not rate.get("seeds"):
        counted = f"{rate['n']} answers"
    return Entry(percent(rate["value"]), f"{interval(rate)}, {counted}{unscored}", values)


SAMPLES = Column("k", ("samples",))


def samples_entry(rate: dict[str, Any] | None) -> Entry:
    samples = (known(rate) or {}).get("samples")
    return Entry(str(samples), values=(samples,)) if samples else NOTHING


def again_columns(title: str, name: str) -> list[Column]:
    return [rate_column(f"{title}, {words} of k", f"{name}_{words}_of_k") for words in ("any", "worst")]


def again_entries(rate: dict[str, Any] | None) -> list[Entry]:
    """The share of prompts with one or more answers that count, and of those if every unscored one counted."""
    return [rate_entry((known(rate) or {}).get(f"{words}_of_k")) for words in ("any", "worst")]


def name_column() -> Column:
    return Column("Run", ("run", "topology", "harmful_ratio", "seed"))


def name_entry(cell: Cell, names: dict[str, Label], topology: bool = True) -> Entry:
    """What a run is called. Where the table is about one topology it need not be said."""
    label = names[cell["id"]]
    note = ", ".join(filter(None, [label.topology if topology else "", label.rows, label.seed]))
    return Entry(label.arm, note, (label.arm, cell["topology"], cell["harmful_ratio"], cell["seed"]))


def _difference_column() -> Column:
    return Column(
        "Difference to undefended", tuple(f"difference_{n}" if n != "difference" else n for n in _DIFFERENCE)
    )


def _difference_entry(paired: dict[str, Any] | None) -> Entry:
    """A difference of harmful scores in points, with its interval and p-values."""
    if not paired or paired.get("difference") is None:
        return NOTHING
    notes = [paired.get("note") or between(paired)]  # a note says why the interval is none
    if paired.get("spread"):
        notes.append("undecided (spread)")
    notes.append(p_value(paired.get("p_value")))
    if paired.get("p_holm") is not None:
        notes.append(f"Holm {p_value(paired['p_holm'])}")
    values = tuple(paired.get(name) for name in _DIFFERENCE)
    return Entry(points(paired["difference"]), ", ".join(filter(None, notes)), values)


DECISION = Column("Decision", ("decision",))


def decision_entry(cell: Cell) -> Entry:
    word = (cell.get("decision") or {}).get("word")
    return Entry(word, values=(word,)) if word else NOTHING


FILTERED = Column("Rows left out", ("filtered_harmful", "of_harmful", "filtered_benign", "of_benign"))


def filtered_entry(cell: Cell) -> Entry:
    """Of a cell whose defense chooses among the rows that were handed in, those that it left out."""
    found = filtered([cell])
    return Entry(in_words(found), values=tuple(found.values())) if found else NOTHING


# --- scores -----------------------------------------------------------------------------------------------------


def runs_table(run: LoadedRun) -> Table:
    """Every cell with all its rates and its paired test."""
    again, filters = max(run.samples, default=1) > 1, filtered(run.cells) is not None
    rows = [
        [
            name_entry(cell, run.names),
            *(rate_entry(cell["rates"][key]) for key, _ in _RATES),
            *([samples_entry(score), *again_entries(score)] if again else ()),
            *([filtered_entry(cell)] if filters else ()),
            _difference_entry(cell.get("paired")),
            decision_entry(cell),
        ]
        for cell in run.cells
        for score in [cell["rates"]["harmful_score"]]
    ]
    columns = [
        name_column(),
        *(rate_column(title, key) for key, title in _RATES),
        *([SAMPLES, *again_columns("Harmful score", "harmful_score")] if again else ()),
        *([FILTERED] if filters else ()),
        _difference_column(),
        DECISION,
    ]
    caption = "All runs. In brackets 95% intervals; differences in points of harmful score"
    missed = [
        pair["detectable"]
        for one in run.cells
        if (pair := one.get("paired")) and pair.get("detectable") and defended(one) and not shown(pair)
    ]
    if missed:
        caption += (
            f"; where none is shown for a defense, less than {points(max(missed)).lstrip('+')} points could have been "
            "missed"
        )
    return Table("runs", caption, columns, rows)


def seeds_table(run: LoadedRun) -> Table | None:
    """Several seeds of the same run together; None where there are none."""
    rows = []
    for point in run.points:
        if point["across"] is None:
            continue
        share = point["across"]["rates"]["harmful_score"]
        deviations = [share[name] for name in ("seed_sd", "seed_sd_net", "prompt_sd")]
        rows.append(
            [
                name_entry(point, run.point_names),
                Entry(str(share["seeds"]), values=(share["seeds"],)),
                *(rate_entry(point["rates"][key]) for key, _ in _RATES),
                _difference_entry(point["paired"]),
                decision_entry(point),
                *(Entry(f"{value * 100:.1f}", values=(value,)) for value in deviations),
            ]
        )
    if not rows:
        return None
    caption = (
        "Seeds together. Intervals are for other seeds and prompts; standard deviations in points: of the seeds' "
        "harmful scores, of what differs between trained models alone, and between prompts"
    )
    columns = [
        name_column(),
        Column("Seeds", ("seeds",)),
        *(rate_column(title, key) for key, title in _RATES),
        _difference_column(),
        DECISION,
        Column("SD over seeds", ("seed_sd",)),
        Column("SD over seeds, net", ("seed_sd_net",)),
        Column("Prompts'", ("prompt_sd",)),
    ]
    return Table("seeds", caption, columns, rows)


# --- costs ------------------------------------------------------------------------------------------------------


def _ratio(value: float | None, plain: float | None) -> str:
    return f"× {value / plain:.2g}" if value and plain else ""


def stage_names(names: Any) -> list[str]:
    """Names of stages, each once, in the order in which they run."""
    order = {name: i for i, name in enumerate(_STAGE_ORDER)}
    return sorted(dict.fromkeys(names), key=lambda name: order.get(name, len(order)))


def methods_cost_table(found: list[ArmCost]) -> Table:
    """Time and memory of each method, in ratios to plain fine-tuning."""
    names = stage_names(name for cost in found for name in cost.seconds)
    rows = []
    for cost in found:
        plain, topology = cost.plain, cost.cell["topology"]
        row = [
            Entry(
                arm(cost.cell),
                f"{TOPOLOGIES.get(topology) or topology}, {cost.runs} run{'s' * (cost.runs > 1)}",
                (arm(cost.cell), topology),
            )
        ]
        for name in names:
            seconds = cost.seconds.get(name)
            if seconds is None:
                row.append(NOTHING)
                continue
            row.append(Entry(f"{seconds:.0f} s", _ratio(seconds, plain and plain.seconds.get(name)), (seconds,)))
        row.append(
            Entry(f"{cost.total:.0f} s", _ratio(cost.total, plain and plain.total), (cost.total, cost.time_ratio))
        )
        if cost.peak:
            text = f"{cost.peak / 1e9:.1f} GB"
            row.append(Entry(text, _ratio(cost.peak, plain and plain.peak), (cost.peak, cost.memory_ratio)))
        else:
            row.append(NOTHING)
        rows.append(row)
    columns = [
        Column("Method", ("method", "topology")),
        *(Column(name.capitalize(), (f"{name}_seconds",)) for name in names),
        Column("Training and repair", ("training_seconds", "training_ratio")),
        Column("Peak memory in training", ("peak_memory_bytes", "peak_memory_ratio")),
    ]
    caption = "Time of each stage and peak memory, medians over the runs; × is the ratio to plain fine-tuning"
    return Table("costs", caption, columns, rows)


def runs_cost_table(run: LoadedRun) -> Table:
    """Seconds of each stage of every cell, with the ratio to the same stage of the undefended run."""
    found = [{stage["name"]: stage for stage in cell.get("stages") or []} for cell in run.cells]
    of_cell = {cell["id"]: stages for cell, stages in zip(run.cells, found)}
    names = stage_names(name for stages in found for name in stages)
    rows = []
    for cell in run.cells:
        stages = of_cell[cell["id"]]
        reference = related(run.cells, cell, "reference")
        if reference is None and not undefended(cell):
            like = (cell["topology"], cell["seed"])
            reference = next((o for o in run.cells if undefended(o) and (o["topology"], o["seed"]) == like), None)
        plain = of_cell[reference["id"]] if reference else {}
        row = [name_entry(cell, run.names)]
        for name in names:
            stage = stages.get(name)
            if not stage or stage.get("seconds") is None:
                row.append(NOTHING)
                continue
            ratio = _ratio(stage["seconds"], plain.get(name, {}).get("seconds"))
            note = ", ".join(filter(None, [ratio, "from the store" if stage.get("cached") else ""]))
            row.append(Entry(f"{stage['seconds']:.0f} s", note, (stage["seconds"], stage.get("cached"))))
        peak, plain_peak = (
            max((stage.get("peak_memory_bytes") or 0 for stage in some.values()), default=0)
            for some in (stages, plain)
        )
        row.append(Entry(f"{peak / 1e9:.1f} GB", _ratio(peak, plain_peak), (peak,)) if peak else NOTHING)
        rows.append(row)
    columns = [
        name_column(),
        *(Column(name.capitalize(), (f"{name}_seconds", f"{name}_from_the_store")) for name in names),
        Column("Peak memory", ("peak_memory_bytes",)),
    ]
    caption = "Time of each stage and peak memory; × is the ratio to the undefended run of the same topology and seed"
    return Table("costs-of-runs", caption, columns, rows)


# --- settings ---------------------------------------------------------------------------------------------------


def settings_table(run: LoadedRun) -> Table:
    rows = []
    for cell in run.cells:
        settings, attack = (
            ", ".join(f"{key} {value}" for key, value in flatten(parts).items())
            for parts in (cell.get("settings") or {}, {**attack_settings(cell), **(cell.get("swept") or {})})
        )
        if budget := cell.get("budget"):
            settings += f"; {budget['strength']} taken: {'none' if budget['taken'] is None else budget['taken']}"
        rows.append([name_entry(cell, run.names), Entry(settings or "–"), Entry(attack or "–"), Entry(cell["id"])])
    columns = [name_column(), Column("Defense"), Column("Attack and swept fields"), Column("Cell in results.json")]
    return Table("settings", "Settings of each run", columns, rows)


def tuning_table(tuning: list[dict[str, Any]]) -> Table:
    flat = [flatten(row) for row in tuning]
    header = list(dict.fromkeys(key for row in flat for key in row))

    def entry(value: Any) -> Entry:
        if value is None:
            return NOTHING
        return Entry(f"{value:.3g}" if isinstance(value, float) else str(value), values=(value,))

    rows = [[entry(row.get(key)) for key in header] for row in flat]
    columns = [Column(key, (key,)) for key in header]
    return Table("tries", "All tuning tries, with their scores on the validation parts", columns, rows)
