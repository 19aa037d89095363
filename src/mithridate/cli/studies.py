"""Commands that run many experiments to answer one question: reproduce, attack, benchmark."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mithridate.cli.shared import Overrides, Replace, new_table, print_table, say
from mithridate.errors import InputError

app = typer.Typer()


@app.command()
def attack(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT|RUN", help="An experiment file, or the folder of a run.", show_default=False
        ),
    ],
    file: Annotated[Path, typer.Option("--file", help="The attacker's settings (YAML); see docs/attacks.md.")],
    override: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/attack-NAME")] = None,
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="ID", help="RUN only: id of the model to attack.")
    ] = None,
    replace: Replace = False,
) -> None:
    """Search for the attack that breaks a defended model, and say what it costs in steps and rows."""
    from rich.markup import escape

    from mithridate.studies.settings import load_attack

    load_attack(file)  # what is wrong with the file is said before torch is loaded
    from mithridate.studies.attack import attack as run_attack
    from mithridate.studies.curve import TERMINAL

    study = run_attack(target, file, override or (), out, cell, **({"replace": True} if replace else {}))
    table = new_table(*TERMINAL)
    for point in study.points:
        table.add_row(*map(escape, point.terminal()))
    if study.points:
        print_table(table)
    for words in study.words:
        say(words)
    typer.echo(f"written: {study.folder / 'attack.md'}")


@app.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="PRESET", help="Name of a preset; without one, all are listed.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Model to use instead of the preset's.")] = None,
    scale: Annotated[
        float, typer.Option("--scale", help="Share of the training rows and test prompts to use; epochs stay.")
    ] = 1.0,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="ROLE=SOURCE", help="A file, a Hub id, or {source: ..., take: ...}."),
    ] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="Rehearse on the embedded data.")] = False,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; repeatable.")] = None,
    override: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/PRESET")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run and its deviations; run nothing.")
    ] = False,
    replace: Replace = False,
) -> None:
    """Run a paper's experiment, or all methods under one protocol, and compare with the paper's numbers."""
    from rich.markup import escape

    from mithridate.studies.presets import NAMES, preset
    from mithridate.studies.presets.scaled import Asked, label, plan

    if name is None:
        table = new_table("preset", "experiment", "paper", "arms")
        for known in map(preset, NAMES):
            table.add_row(known.name, known.title, known.paper or "", ", ".join(known.variants))
        print_table(table)
        return
    asked = Asked(
        model=model,
        scale=scale,
        data=_sources(data or []),
        overrides=override or (),
        embedded=embedded,
        arms=arm or (),
    )
    made = plan(preset(name), asked)  # what is wrong with the request is said before torch is loaded
    from mithridate.studies.presets import reproduce as running

    if dry_run:
        from mithridate.studies.presets.tuning import budget, tries

        made = running.prepare(name, asked)
        table, seeds = new_table("case", "seeds", "topology", "rows of the attack"), defaultdict(list)
        for case in made.cases:
            one = case.experiment
            size = str(one.finetune.harmful.size) if one.finetune else ""
            seeds[label(case.arm, case.at), one.topology, size].append(str(one.seed))
        for (case, topology, size), some in seeds.items():
            table.add_row(case, ", ".join(some), topology, size)
        print_table(table)
        for text in (*budget(tries(made)), *made.deviations):
            say(f"- {text}")
        return
    for text in made.deviations:
        say(f"- {text}")
    found = running.reproduce(name, asked, out, **({"replace": True} if replace else {}))
    table = new_table(*running.TITLES)
    for line in found.lines:
        table.add_row(*(escape(cell) for cell in line.cells()))
    print_table(table)
    typer.echo("Deviations from the preset (marks: docs/presets.md):")
    for text in found.deviations:
        say(f"- {text}")
    typer.echo(f"written: {found.folder / 'reproduce.md'}")


@app.command()
def benchmark(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The benchmark file (YAML); see docs/benchmark.md.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/NAME")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Number of worker processes; default 1.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run, its time and disk; run nothing.")
    ] = False,
    replace: Replace = False,
) -> None:
    """Compare methods at equal tuning budgets: tries on validation parts, then one run on the test parts."""
    from rich.markup import escape

    from mithridate.studies.benchmarks.settings import load_benchmark

    _, experiment, _ = load_benchmark(file)  # what is wrong with the file is said before torch is loaded
    from mithridate.pipeline.executors import executor_of
    from mithridate.studies.benchmarks import run as running
    from mithridate.studies.benchmarks.outcome import table_of, titles_of

    if dry_run:
        for line in running.planned(file, out, replace):
            say(line)
        return
    executor = executor_of("local" if workers else "none", workers, {}, experiment)
    found = running.benchmark(file, out, executor, **({"replace": True} if replace else {}))
    table = new_table(*titles_of(found))
    for row in table_of(found):
        table.add_row(*(escape(cell) for cell in row))
    print_table(table, keys=2)
    typer.echo(f"written: {found.folder / 'benchmark.md'}")


def _sources(given: list[str]) -> dict[str, Any]:
    """ROLE=SOURCE, the source in YAML."""
    from mithridate.experiment.yaml12 import parse_yaml

    found: dict[str, Any] = {}
    for text in given:
        role, equals, value = text.partition("=")
        source = parse_yaml(value, f"--data {text}", lines=False) if equals else None
        if not isinstance(source, str | dict) or not source or role in found:
            raise InputError(f"--data {text}: expected ROLE=FILE or ROLE={{source: ..., take: ...}}, each role once")
        found[role] = source
    return found
