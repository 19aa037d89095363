"""Commands that compute: run and its stages, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mithridate.cli.shared import (
    Accelerate,
    Dtype,
    Experiment,
    Out,
    Overrides,
    RemoteCode,
    Replace,
    overrides_of,
    print_table,
    say,
)
from mithridate.errors import InputError
from mithridate.experiment.uploads import name_of, of_upload

app = typer.Typer()

_ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="local|ray|slurm|none",
        help="Run several cells at a time: in processes here, on a Ray or on a Slurm cluster.",
        show_default="local with several GPUs or --workers, else none",
    ),
]
_Workers = Annotated[int | None, typer.Option("--workers", help="Number of cells at a time.", show_default=False)]
_ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-option", metavar="KEY=VALUE", help="A setting of the executor, as in slurm_partition=gpu."
    ),
]


_ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to", metavar="NAME", help="Report training metrics to a service (wandb, mlflow, ...); repeatable."
    ),
]


@app.command()
def run(
    file: Experiment,
    override: Overrides = None,
    out: Out = None,
    dtype: Dtype = None,
    accelerate: Accelerate = None,
    executor: _ExecutorName = None,
    workers: _Workers = None,
    executor_option: _ExecutorOptions = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the stages, which are in the store, and the time for the rest; run nothing."
        ),
    ] = False,
    replace: Replace = False,
    report_to: _ReportTo = None,
    trust_remote_code: RemoteCode = False,
    upload: Annotated[
        Path | None,
        typer.Option("--upload", metavar="FILE", help="Fine-tune on these rows, with none added; to runs/NAME-FILE."),
    ] = None,
) -> None:
    """Run an experiment file: all stages and all cells of its sweep, then the table and the report page."""
    options, asked = _options(executor_option), _asked(replace, report_to, trust_remote_code)
    if upload:
        override = [*of_upload(upload, file), *(override or [])]
        out = out or Path("runs") / f"{file.stem}-{name_of(upload)}"
    if not dry_run:
        return _run(file, override, out, dtype, accelerate, None, asked, (executor, workers, options))
    from mithridate.experiment.config import load_experiment
    from mithridate.pipeline.executors import executor_of
    from mithridate.pipeline.preview import preview

    overrides = overrides_of(override, dtype, accelerate)
    chosen = executor_of(executor, workers, options, load_experiment(file, overrides))
    for line in preview(file, overrides, chosen, out=out, **asked).lines():
        say(line)


def _stage(name: str, text: str) -> None:
    """A verb that runs an experiment as far as one of its stages."""

    def verb(
        file: Experiment,
        override: Overrides = None,
        out: Out = None,
        dtype: Dtype = None,
        accelerate: Accelerate = None,
        replace: Replace = False,
        report_to: _ReportTo = None,
        trust_remote_code: RemoteCode = False,
    ) -> None:
        _run(file, override, out, dtype, accelerate, name, _asked(replace, report_to, trust_remote_code))

    app.command(name, help=text)(verb)


_stage("align", "Run an experiment's alignment only.")
_stage("finetune", "Run an experiment up to the user's fine-tuning (the attack).")
_stage("repair", "Run an experiment up to the repair.")
_stage("evaluate", "Run an experiment and score its own models, without the undefended run that `run` adds.")


def _run(
    file: Path,
    overrides: list[str] | None,
    out: Path | None,
    dtype: str | None,
    accelerate: str | None,
    until: str | None,
    asked: dict[str, Any],
    executor: tuple[str | None, int | None, dict[str, Any]] = ("none", None, {}),
) -> None:
    from mithridate.experiment.config import load_experiment
    from mithridate.pipeline.executors import executor_of

    overrides = overrides_of(overrides, dtype, accelerate)
    loaded = load_experiment(file, overrides)  # what is wrong with the file is said before torch is loaded
    chosen = executor_of(*executor, loaded)
    from mithridate.pipeline import runner

    _finish(runner.run(file, overrides, out=out, until=until, executor=chosen, **asked))


def _asked(replace: bool, report_to: list[str] | None, trust_remote_code: bool) -> dict[str, Any]:
    """Those of a run's arguments that were given."""
    given = {"replace": replace, "report_to": tuple(report_to or ()), "trust_remote_code": trust_remote_code}
    return {name: value for name, value in given.items() if value}


def _options(given: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE, the value in YAML."""
    from mithridate.experiment.yaml12 import parse_yaml

    found: dict[str, Any] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--executor-option {text}: expected KEY=VALUE")
        found[key.strip()] = parse_yaml(value, f"--executor-option {text}", lines=False)
    return found


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run.", show_default="runs/demo")] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Also controls, runs without harmful rows, more ratios and seeds; estimates first."
        ),
    ] = False,
    replace: Replace = False,
) -> None:
    """Show on a small language model what the attack does and what each defense does about it."""
    from mithridate.studies.demo import run_demo

    _finish(run_demo(out=out, full=full, replace=replace, show=_print_table))


def _print_table(finished: Any) -> None:
    from mithridate.report.build import terminal_table

    print_table(terminal_table(finished.results))


def _finish(finished: Any) -> None:
    """Prints the table of a run, where it has scored anything, and where to look further."""
    from mithridate.results.folder import PAGE_CELLS

    if (finished.folder / "results.json").exists() and 0 < len(finished.results["cells"]) <= PAGE_CELLS:
        _print_table(finished)
    if finished.report.exists():
        typer.echo(f"report: {finished.report}")
    typer.echo(f"run:    {finished.folder}")
