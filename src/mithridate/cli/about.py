"""Commands that show facts: methods, cite, schema, doctor, estimate, plan."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mithridate.cli.shared import Accelerate, Overrides, new_table, overrides_of, print_table, say
from mithridate.environment import commit, gpu_problem, hardware, has_driver, version, versions
from mithridate.errors import InputError, nearest

FAILED = 1

app = typer.Typer()


_FLAGS = {  # of `estimate`, those that are for a model alone
    **{name: f"--{name}" for name in ("method", "batch", "length", "steps", "full", "dtype", "bits", "processes")},
    "checkpointing": "--checkpointing",
}


@app.command()
def estimate(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT|MODEL",
            help="An experiment file; or a model (1b, 3b, 8b, 70b, a folder, a Hub id).",
            show_default=False,
        ),
    ],
    override: Overrides = None,
    accelerate: Accelerate = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Estimate for CPUs.")] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-second", help="Measured speed of plain training over all processes; adds the hours."
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", help="Price of one GPU's hour; adds what each training costs. With the speed."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="MODEL only: a method's name, or {name: {field: value}}; default: all."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="MODEL only: rows per micro-batch.")] = 8,
    length: Annotated[int, typer.Option("--length", help="MODEL only: tokens per row.")] = 512,
    steps: Annotated[int, typer.Option("--steps", help="MODEL only: optimizer steps.")] = 1000,
    full: Annotated[bool, typer.Option("--full", help="MODEL only: train all weights, not an adapter.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="MODEL only: bfloat16 or float32.")] = "bfloat16",
    bits: Annotated[
        int | None,
        typer.Option("--bits", help="MODEL only: load the base under the adapter in 4 or 8 bit (bitsandbytes)."),
    ] = None,
    processes: Annotated[int, typer.Option("--processes", help="MODEL only: number of processes.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="MODEL only: activation checkpointing.")
    ] = True,
) -> None:
    """Estimate the memory, FLOPs and disk of an experiment or a model, without loading weights."""
    from mithridate.estimate import METHODS, NEEDING, REPAIRS, RepairNeeds
    from mithridate.experiment.config import load_experiment, methods_of
    from mithridate.pipeline import planning

    if speed is not None and not speed > 0:
        raise InputError(f"--tokens-per-second: expected a number above 0, got {speed}")
    if price is not None and (speed is None or not price >= 0):
        raise InputError("--price: expected a number from 0 on, together with --tokens-per-second")
    left_out: list[str] = []
    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in context.params}
    given = {name for name, source in sources.items() if source == "COMMANDLINE"}
    if what.endswith((".yaml", ".yml")):
        if unread := [_FLAGS[name] for name in _FLAGS if name in given]:
            raise InputError(
                f"{', '.join(unread)}: for a model; {what} says itself what is trained. Change it with -o, as in "
                "-o align.training.per_device_train_batch_size=4 or -o processes=8"
            )
        file = Path(what)
        experiment = load_experiment(file, overrides_of(override, None, accelerate))
        lines = planning.of_experiment(experiment, file.resolve().parent, gpu=not cpu)
    else:
        if dtype not in ("bfloat16", "float32"):
            raise InputError(f"--dtype: expected bfloat16 or float32, got {dtype}")
        if bits not in (None, 4, 8):
            raise InputError(f"--bits: expected 4 or 8, got {bits}")
        if override:
            raise InputError("-o is for experiment files; a model takes --batch, --length, --steps, ...")
        if accelerate not in (None, "ddp", "fsdp2"):
            raise InputError(f"--accelerate: expected ddp or fsdp2 for a model, got {accelerate}")
        if accelerate and "processes" not in given:
            raise InputError(f"--accelerate {accelerate}: give the number of processes as well: --processes N")
        for name, value in (("batch", batch), ("length", length), ("steps", steps), ("processes", processes)):
            if value < 1:
                raise InputError(f"--{name}: expected at least 1, got {value}")
        setup = planning.Setup(
            batch=batch,
            length=length,
            steps=steps,
            full=full,
            dtype=dtype,  # pyright: ignore[reportArgumentType]
            quantization={f"load_in_{bits}bit": True} if bits else {},
            checkpointing=checkpointing,
            processes=processes,
            sharded=accelerate == "fsdp2",
            gpu=not cpu,
        )
        lines = planning.of_model(what, setup, methods_of(method, "--method") if method else METHODS)
        for name in () if method else REPAIRS:
            try:
                lines += planning.of_model(what, setup, [name])
            except InputError as error:  # which this set-up has nothing for
                left_out.append(f"{name} is left out: {error}")
        for name, fields in () if method else NEEDING.items():
            values = ", ".join(f"{field}: VALUE" for field in fields)
            left_out.append(f"{name} is left out, for it needs values: --method '{{{name}: {{{values}}}}}'")
    table = new_table(*planning.TITLES, *(["hours"] if speed else []), *([] if price is None else ["cost"]))
    for line in lines:
        took = 0.0 if speed is None or isinstance(line.needs, RepairNeeds) else planning.hours(line, speed)
        costs = took * line.setup.processes * (price or 0)
        more = [f"{took:.3g}" if took else ""] if speed else []
        table.add_row(*line.cells(), *more, *([] if price is None else [f"{costs:.2f}" if took else ""]))
    say(planning.described(lines))
    print_table(table, keys=2)
    for note in left_out:
        say(note)


@app.command()
def plan(
    share: Annotated[float, typer.Option("--share", help="Expected rate, a fraction.")],
    limit: Annotated[float, typer.Option("--limit", help="Limit to compare it with, a fraction.")],
    seed_sd: Annotated[
        float | None,
        typer.Option(
            "--seed-sd",
            help="Expected standard deviation between seeds.",
            show_default="as in the embedded experiment",
        ),
    ] = None,
) -> None:
    """Compute how many prompts and seeds are needed to decide whether a rate is below a limit."""
    from mithridate.statistics.needed import SEEDS, prompts_needed, prompts_per_seed, usual_sd

    for name, value in (("--share", share), ("--limit", limit), ("--seed-sd", seed_sd)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name}: expected a fraction from 0 to 1, got {value:g}")
    seed_sd = usual_sd(share) if seed_sd is None else seed_sd
    say(f"expected rate {share:g}, limit {limit:g}, standard deviation between seeds {seed_sd:.3f}")
    table = new_table("evidence", "prompts needed")
    for what, needed in (
        ("one model, for other prompts (80 % power)", prompts_needed(share, limit)),
        *((f"{seeds} seeds, for other seeds", prompts_per_seed(share, limit, seed_sd, seeds)) for seeds in SEEDS),
    ):
        table.add_row(what, "no number is enough" if needed is None else str(needed))
    print_table(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from mithridate.experiment.schema import as_text

    typer.echo(as_text())


@app.command()
def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Show all facts of these only.")
    ] = None,
) -> None:
    """List the defenses, repairs and attacks, and the protocols, judges and prompt sets that measure them."""
    from mithridate.methods.index import facts, index

    if names:
        for name in names:
            found = [facts(kind, name) for kind, known in _kinds().items() if name in known]
            if not found:
                raise InputError(f"{name}: no such method{nearest(name, [n for k in _kinds().values() for n in k])}")
            for one in found:
                _print_facts(one)
        return
    table = new_table("method", "stage", "strength", "off", "costs", "rule", "paper")
    for one in index():
        off = ", ".join(f"{field}={value}" for field, value in (one["off"] or {}).items())
        table.add_row(
            one["name"], one["stage"], one["strength"] or "", off, one["cost"], one["provenance"], one["paper"]
        )
    print_table(table)
    _measures()
    _others()


def _kinds() -> dict[str, Any]:
    from mithridate.methods.registry import KINDS, by_name

    return {kind: by_name(kind) for kind in KINDS}


def _print_facts(facts: dict[str, Any]) -> None:
    table = new_table(facts["name"], "")
    shown = {name: value for name, value in facts.items() if name not in ("name", "fields", "required", "colour")}
    for field, schema in facts["fields"].items():
        shown[f"field {field}"] = "required" if field in facts["required"] else str(schema.get("default", ""))
    for name, value in shown.items():
        if isinstance(value, dict):
            value = ", ".join(f"{left}: {right}" for left, right in value.items())
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value or ""))
    print_table(table)


def _measures() -> None:
    from mithridate import judges
    from mithridate.data.tasks import PROMPT_SETS
    from mithridate.protocols import PROTOCOLS

    table = new_table("protocol", "harmful prompts", "template", "new tokens", "judge")
    for known in map(PROTOCOLS.__getitem__, PROTOCOLS.own):
        rows = f"{known.rows.count} of {known.rows.source}"
        table.add_row(known.name, rows, known.template, str(known.decoding.max_new_tokens), known.judge.name)
    print_table(table)
    table = new_table("judge", "classifies", "model", "licence", "tested with")
    for row in judges.table():
        table.add_row(row["name"], row["kind"], row["model"], row["licence"], row["exercised"])
    print_table(table)
    table = new_table("prompt set", "measures", "size", "licence", "source")
    for known in PROMPT_SETS.values():
        table.add_row(known.name, known.measures, known.size, known.licence, known.source)
    print_table(table)


def _plugins() -> list[tuple[Any, str]]:
    """What other packages add: the registry and the name of each."""
    from mithridate import judges
    from mithridate.data.tasks import TASKS
    from mithridate.protocols import PROTOCOLS

    registries = (*_kinds().values(), judges.REGISTRY, TASKS, PROTOCOLS)
    return [(registry, name) for registry in registries for name in registry.plugins()]


def _others() -> None:
    """What other packages add, by name alone: they are imported when an experiment names them."""
    if not (found := _plugins()):
        return
    table = new_table("from other packages", "kind", "package", "where")
    for registry, name in found:
        for entry in registry.plugins()[name]:
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
            table.add_row(name, entry.group.rpartition(".")[2], package, entry.value)
    print_table(table)


@app.command()
def cite(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD]...", help="Defenses, repairs or attacks; mithridate itself if not given."),
    ] = None,
) -> None:
    """Print the BibTeX entries of methods, or of mithridate itself."""
    from mithridate.report.citations import bibtex_of, own_bibtex

    typer.echo("\n\n".join(bibtex_of(name) for name in dict.fromkeys(names)) if names else own_bibtex())


@app.command()
def doctor(
    load: Annotated[
        bool, typer.Option("--load", help="Also import PyTorch and every method, which takes some seconds more.")
    ] = False,
) -> None:
    """Show installed versions and hardware (exit code 1 if a version does not fit, or a method cannot be loaded).

    Methods are loaded with --load, and where NVIDIA's driver is: then it also says what the GPUs can train.
    """
    from mithridate.models.embedded import EMBEDDED
    from mithridate.models.folder import cache_folder
    from mithridate.store import default_root

    table, ok = new_table("component", "found", "note"), True

    def row(what: str, found: str, problem: str | None = None, note: str = "") -> None:
        nonlocal ok
        ok &= problem is None
        table.add_row(what, found, f"[red]{problem}[/red]" if problem else note)

    row("mithridate", version("mithridate") or "?", note=commit() or "")
    row("python", str(versions()["python"]))
    for name, needed, extra in _requirements():
        found = version(name)
        if found is None and extra:
            row(name, "not installed", note=f"needed for the extra [{extra}]".replace("[", r"\["))
        else:
            row(name, found or "not installed", None if found and needed.contains(found) else f"needs {needed}")

    machine = hardware()
    row("cpu", machine["cpu"], note=f"{machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB of memory")
    load = load or has_driver()  # what PyTorch makes of a card is worth the seconds
    if load:
        _gpu_rows(row)
    else:
        row("gpu", "none")
    store = default_root()
    there = next(folder for folder in (store, *store.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    row(
        "store",
        str(store),
        None if writable else "cannot be written: set MITHRIDATE_STORE",
        f"{free / 1e9:.0f} GB free",
    )
    for name, model in EMBEDDED.items():
        cached = any((cache_folder() / "models").glob(f"{name}-*"))
        installed = version(model.requirement.split("==")[0])
        row(name, "in the cache" if cached else "installed" if installed else "not here", note=model.requirement)
    if load:
        _load(row)
    else:
        for registry, name in _plugins():
            row(name, "declared", note=registry.group)
    print_table(table)
    if not load:
        say("Whether PyTorch and every method can be loaded: mithridate doctor --load")
    if not ok:
        raise typer.Exit(FAILED)


def _gpu_rows(row: Callable[..., None]) -> None:
    """Rows for the cards as PyTorch sees them, for what their memory holds, and for the number type."""
    import torch

    from mithridate.pipeline import fits
    from mithridate.pipeline.context import resolve_dtype

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    names = hardware()["gpus"]
    if not names:
        row("gpu", "none", gpu_problem(), built)
    for i, name in enumerate(names):
        row("gpu", name, note=f"{fits.card_memory(i) / 2**30:.0f} GiB of memory, {built}")
    if memory := fits.smallest_card():  # seconds, on a machine that has one
        row("trains", fits.in_words(memory), note=fits.ASSUMED)
    fast = resolve_dtype("auto") == "bfloat16"
    row("bfloat16", "in hardware" if fast else "slow here", note="" if fast else "dtype: auto computes in float32")


def _load(row: Callable[..., None]) -> None:
    """A row for every method and every plug-in, which are imported."""
    from mithridate.methods.index import index

    try:
        import mithridate.training.trainer  # noqa: F401 (whether it can be)

        problem = None
    except Exception as error:  # whatever a library of another version does
        problem = f"{type(error).__name__}: {error}"
    for one in index():
        row(one["name"], "fails" if problem else "works", problem, note=one["stage"])
    for registry, name in _plugins():
        try:
            registry[name]
            row(name, "works", note=registry.group)
        except InputError as error:
            row(name, "fails", str(error))


def _requirements() -> list[tuple[str, Any, str]]:
    """Of each package that this one asks for: its name, the versions that will do, and the extra (or "")."""
    from importlib import metadata

    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires("mithridate") or []:
        requirement = Requirement(text)
        extra = str(requirement.marker).partition('extra == "')[2].rstrip('"') if requirement.marker else ""
        if extra not in ("test", "lint", "docs"):
            found.append((requirement.name, requirement.specifier, extra))
    return found
