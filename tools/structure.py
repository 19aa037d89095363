"""Figures of the package's structure, to compare two versions: `python tools/structure.py [SRC/mithridate]`.

A room is a package or module directly below `mithridate`; an arrow is a pair of rooms of which one imports the other
(imports for type checkers only are left out); a circle is a set of rooms that reach each other. Start-up times are the
best of three.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

COMMANDS = (["--help"], ["methods"], ["run", "--help"])


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(module, "top" or "inner") of each import of the package's own modules; none for type checkers only."""

    def walk(node: ast.AST, place: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "mithridate":
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield (full if full in known else str(child.module)), place
            elif isinstance(child, ast.Import):
                yield from ((a.name, place) for a in child.names if a.name.split(".")[0] == "mithridate")
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, "inner" if inside else place)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "top")


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def circles(arrows: set[tuple[str, str]]) -> list[set[str]]:
    """Sets of two or more rooms that reach each other."""
    rooms = {r for arrow in arrows for r in arrow}
    reach = {r: {b for a, b in arrows if a == r} for r in rooms}
    for middle in rooms:
        for start in rooms:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    found = {frozenset({a, *(b for b in reach[a] if a in reach[b])}) for a in rooms if a in reach[a]}
    return [set(circle) for circle in found if len(circle) > 1]


def seconds(root: Path, arguments: list[str]) -> float:
    """Start-up of the command: the best of three."""
    variables = os.environ | {"PYTHONPATH": str(root.parent)}
    command = [sys.executable, "-m", "mithridate", *arguments]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, env=variables, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "src/mithridate").resolve()
    known = modules(root)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in known.items()}
    found = {name: list(imports(path, known)) for name, path in known.items()}
    arrows = {(room(a), room(b)) for a, bs in found.items() for b, _ in bs if room(a) != room(b)}
    arrows = {(a, b) for a, b in arrows if "mithridate" not in (a, b)}  # the package's own lazy names
    print(f"lines of Python: {sum(lines.values())} in {len(lines)} files")
    long = sorted(((n, name) for name, n in lines.items() if n > 400), reverse=True)
    print(f"files over 400 lines: {len(long)}: " + ", ".join(f"{name.partition('.')[2]} {n}" for n, name in long))
    print(f"rooms: {len({room(name) for name in known} - {'mithridate'})}")
    print(f"arrows between rooms: {len(arrows)}")
    tied = circles(arrows)
    print(f"circles of rooms: {len(tied)}: " + "; ".join(" ".join(sorted(circle)) for circle in tied))
    print(f"pairs that import each other: {sum((b, a) in arrows for a, b in arrows) // 2}")
    print(f"imports inside functions: {sum(place == 'inner' for bs in found.values() for _, place in bs)}")
    for arguments in COMMANDS:
        print(f"mithridate {' '.join(arguments)}: {seconds(root, arguments):.2f} s")


if __name__ == "__main__":
    main()
