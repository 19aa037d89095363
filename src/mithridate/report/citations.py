"""Citations in BibTeX: of methods, from their classes, and of this project, from its CITATION.cff."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mithridate.errors import InputError, nearest
from mithridate.methods.index import facts
from mithridate.methods.registry import KINDS, by_name

_PACKAGE = Path(__file__).parents[1]


def bibtex_of(name: str, kinds: Iterable[str] = tuple(KINDS)) -> str:
    """The BibTeX entry of a method; of one that states none, an entry with its paper, or with its name alone.

    Args:
        name: as in an experiment file.
        kinds: where it is looked for, of `KINDS`.

    Raises:
        InputError: there is no such method, or it is another package's and cannot be loaded.
    """
    kind = next((kind for kind in kinds if name in by_name(kind)), None)
    if kind is None:
        raise InputError(
            f"{name}: no such method{nearest(name, [known for kind in kinds for known in by_name(kind)])}"
        )
    found = facts(kind, name)
    return found["citation"].strip() or f"@misc{{{name},\n  note = {{{found['paper'] or name}}}\n}}"


def own_bibtex() -> str:
    """The BibTeX entry of this project."""
    import yaml

    # In the wheel it lies in the package, in a checkout at the top.
    path = next(path for folder in (_PACKAGE, _PACKAGE.parents[1]) if (path := folder / "CITATION.cff").is_file())
    cff = yaml.safe_load(path.read_text(encoding="utf-8"))
    authors = " and ".join(
        f"{{{author['name']}}}" if "name" in author else f"{author['family-names']}, {author['given-names']}"
        for author in cff["authors"]
    )
    lines = {"title": f"{{{cff['title']}}}", "author": authors, "version": cff["version"], "license": cff["license"]}
    if date := cff.get("date-released"):
        lines["year"] = str(date)[:4]
    if url := cff.get("url") or cff.get("repository-code"):
        lines["url"] = url
    return "@software{mithridate,\n" + ",\n".join(f"  {key:<7} = {{{value}}}" for key, value in lines.items()) + "\n}"
