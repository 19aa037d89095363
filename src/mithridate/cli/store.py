"""`mithridate store`: what is there, what it cost, whether it is whole, what nothing refers to any more."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mithridate.cli.shared import new_table, print_table, say
from mithridate.errors import MithridateError

app = typer.Typer(help="List, check and clean up the store of finished stages.")


@app.command("ls")
def store_ls() -> None:
    """List the finished stages: settings, size, wall time, and which no run refers to."""
    from mithridate.pipeline.inventory import in_units, inventory
    from mithridate.store import Store

    found = inventory(opened := Store())
    table = new_table("artefact", "settings", "size", "time", "finished (UTC)")
    for one in found:
        made = f"{one.manifest['seconds']:.0f} s"
        finished = one.manifest["finished"][:16].replace("T", " ")
        table.add_row(one.name if one.used else f"{one.name} *", one.what, in_units(one.bytes), made, finished)
    print_table(table)
    if not all(one.used for one in found):
        say("* no run refers to it: `mithridate store gc`")
    seconds = sum(one.manifest["seconds"] for one in found)
    say(f"{len(found)} artefacts, {in_units(sum(one.bytes for one in found))}, {seconds:.0f} s, in {opened.root}")


@app.command("show")
def store_show(
    name: Annotated[str, typer.Argument(help="First characters of its name or key.", show_default=False)],
) -> None:
    """Print the manifest of an artefact: configuration, parents, data, versions, hardware, time and files."""
    from mithridate.pipeline.inventory import find
    from mithridate.store import Store

    typer.echo(json.dumps(find(Store(), name).manifest, indent=1))


@app.command("verify")
def store_verify() -> None:
    """Check every artefact against its digests; damaged ones are moved aside (exit code 1), to be computed again."""
    from mithridate.pipeline.inventory import verify
    from mithridate.store import Store

    checked = verify(Store())
    bad = [name for name, whole in checked if not whole]
    typer.echo(f"{len(checked) - len(bad)} of {len(checked)} artefacts are whole")
    if bad:
        raise MithridateError(f"damaged, and moved aside: {', '.join(bad)}. The next run computes them again.")


@app.command("gc")
def store_gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without this they are only listed.")] = False,
    gone: Annotated[bool, typer.Option("--gone", help="Also those of runs whose folders are not there.")] = False,
) -> None:
    """List (or remove) artefacts that no run refers to."""
    from mithridate.pipeline.inventory import collect, in_units, of_gone_runs
    from mithridate.store import Store

    store = Store()
    unused = collect(store, delete, gone)
    for one in unused:
        say(f"{one.name}  {in_units(one.bytes)}  {one.what}")
    done = "removed" if delete else "to be removed with --delete"
    say(f"{len(unused)} artefacts, {in_units(sum(one.bytes for one in unused))}, {done}")
    for run, mine in {} if gone else of_gone_runs(store).items():
        say(
            f"{run} is not there, and {len(mine)} artefacts ({in_units(sum(one.bytes for one in mine))}) are kept for "
            "it. If it was deleted, give --gone. If it was moved, run its experiment again with --out at its new "
            "place, which notes them anew and computes none"
        )
