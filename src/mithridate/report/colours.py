"""The colours of methods and verdicts, the same in all figures of a page."""

from mithridate.results.relations import Cell, defenses_of, method_facts

# Okabe and Ito's colours, which colour-blind readers can tell apart, on white as on near-black. A method has its own
# (`Method.colour`); combinations and methods without one take the rest in order of appearance. Where these run out,
# they begin anew: marker, dash and label tell runs apart as well.
UNDEFENDED = "#808080"
FREE_COLOURS = ("#56B4E9", "#D55E00", "#B89A00", "#8A5A44")
# Tol's muted colours, so that a verdict is never taken for a defense.
# Of rules (five verdicts) and of judges of harm (two), and what no judge could score.
VERDICT_COLOURS = {
    "refused": "#44AA99",
    "safe": "#44AA99",
    "other": "#DDCC77",
    "incoherent": "#88CCEE",
    "complied": "#AA4466",
    "harmful": "#AA4466",
    "unclear": "#DDDDDD",
    "unscored": "#BBBBBB",
}
# From light to dark, the same in light and dark pages: what is dark is bad. Tol's "YlOrBr", for colour-blind readers.
HEAT = ("#FFFBD5", "#FEE391", "#FEC44F", "#FB9A29", "#CC4C02", "#662506")


def paint(cells: list[Cell]) -> None:
    """Gives each cell of a page its `colour`; to be called once for a page, with its cells in order."""
    chosen: dict[tuple[str, ...], str] = {}
    for cell in cells:
        names = tuple(name for name, _ in defenses_of(cell))
        if names and names not in chosen:
            taken = sum(hue in FREE_COLOURS for hue in chosen.values())
            chosen[names] = _own_colour(names) or FREE_COLOURS[taken % len(FREE_COLOURS)]
        cell["colour"] = chosen[names] if names else UNDEFENDED


def _own_colour(names: tuple[str, ...]) -> str | None:
    found = method_facts(names[0].lower()) if len(names) == 1 else None
    return found["colour"] if found else None


def colour(cell: Cell) -> str:
    """The colour that `paint` gave it, or that of a page with this cell alone."""
    if "colour" not in cell:
        paint([alone := dict(cell)])
        return alone["colour"]
    return cell["colour"]
