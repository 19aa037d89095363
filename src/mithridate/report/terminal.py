"""The table of a run for the terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from mithridate.protocols import label as protocol_label
from mithridate.report.words import TOPOLOGIES, as_they_are, at_test, labels, rows_in_words, rows_of, story_order
from mithridate.results.relations import attacked, known, measured, undefended
from mithridate.results.schema import checked
from mithridate.statistics.text import interval, p_value, percent, points


def _score(rate: dict[str, Any]) -> list[str]:
    """A line of its own for the answers and, where prompts have several, for prompts with one that counts."""
    named = {
        "": rate,
        f"any of {rate.get('samples')} ": known(rate.get("any_of_k")),
        "worst ": known(rate.get("worst_of_k")),
    }
    return [f"{name}{percent(one['value'])} {interval(one):>9}" for name, one in named.items() if one]


def _share(cell: dict[str, Any], around: str) -> str:
    """Of its rows those that attack, with what stands round the prompts of its test."""
    if cell["harmful_ratio"] is not None:
        return f"{percent(cell['harmful_ratio'])}{around}"
    return "–" if cell["finetuning"] == "none" else "unknown"


def _trained(cell: dict[str, Any]) -> str:
    """What alignment and fine-tuning train, in words."""
    return TOPOLOGIES.get(cell["topology"]) or str(cell["topology"])


def terminal_table(results: dict[str, Any]) -> RichTable:
    """The results as a table of at most 80 columns where names allow it, in the order of the page.

    Args:
        results: what results.json holds.

    Raises:
        InputError: `results` has not that shape.
    """
    cells = sorted(checked(results, "results")["cells"], key=story_order)
    names = labels(cells)
    protocol = protocol_label(results["protocol"], results.get("deviations") or [])
    one = len({cell["topology"] for cell in cells}) == 1
    trained = _trained(cells[0]) if one and not as_they_are(cells) else ""
    title = Text(", ".join(filter(None, [results["model"], protocol, trained])))
    table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    if any((measured(cell, "harmful_score") or {}).get("samples") for cell in cells):
        words = "any of k: prompts with one or more of k answers that count; worst: the same if unscored ones counted"
        table.caption, table.caption_justify = Text(words), "left"
    table.add_column("run", max_width=31, overflow="fold")
    table.add_column("harmful\nrows", justify="right", min_width=7)
    table.add_column("harmful score\n[95% interval]", justify="right", no_wrap=True)
    table.add_column("inco-\nherent", justify="right", no_wrap=True)
    table.add_column("benign\nrefused", justify="right", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    corrected = any((cell.get("paired") or {}).get("p_holm") is not None for cell in cells)
    p = "p by Holm" if corrected else "p alone"
    table.add_column(f"against\nundefended\n{p}", justify="right", no_wrap=True)
    topology, rows, heading = None, None, ""
    kinds = len({kind for share, kind in map(rows_of, cells) if share}) > 1
    for cell in cells:
        if topology not in (None, cell["topology"]):
            table.add_section()
        if not one and topology != cell["topology"]:
            table.add_row(Text(_trained(cell), style="bold"))
        topology = cell["topology"]
        if kinds and rows != rows_of(cell):
            heading = rows_in_words(cell)
            table.add_section()
            if heading:
                table.add_row(Text(heading, style="bold"))
        rows = rows_of(cell)
        score, paired = measured(cell, "harmful_score"), cell.get("paired") or {}
        against = ""
        if paired.get("difference") is not None:
            word = (cell.get("decision") or {}).get("word")
            lines = [points(paired["difference"]), p_value(paired.get("p_holm", paired.get("p_value"))), word]
            against = "\n".join(filter(None, lines)).replace(" (", "\n(")
        style = "red" if undefended(cell) and attacked(cell) else "dim" if cell["control"] else None
        label, around = names[cell["id"]], at_test(cell) if rows_in_words(cell) != heading else ""
        beside = [measured(cell, name) for name in ("incoherent", "benign_refusal", "accuracy")]
        entries = [
            ", ".join(filter(None, [label.arm, label.seed])),
            _share(cell, around),
            "\n".join(_score(score)) if score else "–",
            *(percent(rate["value"]) if rate else "–" for rate in beside),
            against,
        ]
        # Text, not str: rich would read square brackets in a name as markup.
        table.add_row(*(Text(entry) for entry in entries), style=style)
    return table
