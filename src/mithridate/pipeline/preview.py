"""`mithridate run --dry-run`: the graph of stages, what the store has of it, and what the rest would take.

It takes the code path of a run as far as the stages' keys, its checks before any compute included. Nothing is trained,
generated or judged; neither the store nor the run's folder is written to; no model is fetched or converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.experiment.config import load_cells

if TYPE_CHECKING:
    from mithridate.pipeline.executors.base import Executor
    from mithridate.pipeline.forecast import Forecast, Guess
    from mithridate.pipeline.stages import Chain, Stage

STATES = ("in the store", "begun", "damaged", "to run")


@dataclass(frozen=True)
class Node:
    """One stage of the graph.

    Attributes:
        label: what it does, in words.
        folder: the name of its artefact in the store.
        state: one of `STATES`. A begun stage resumes; a damaged one is made again.
        cells: how many cells of the table stand on it.
        guess: what it would take, where it is not in the store.
        after: the stages that start from it.
    """

    label: str
    folder: str
    state: str
    cells: int
    guess: Guess | None
    after: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Preview:
    """The graph of a run.

    Attributes:
        roots: the stages that start from the model as it came.
        summary: how much there is to do, what it takes and where that is known from, in lines.
    """

    roots: list[Node]
    summary: list[str]

    def nodes(self) -> Iterator[tuple[int, Node]]:
        """All stages with their depth, each once, those before it first."""
        waiting = [(0, node) for node in reversed(self.roots)]
        while waiting:
            depth, node = waiting.pop()
            yield depth, node
            waiting += [(depth + 1, child) for child in reversed(node.after)]

    def lines(self) -> Iterator[str]:
        """The graph as text, one line per stage, and a summary."""
        for depth, node in self.nodes():
            many = f"  ({node.cells} cells)" if node.cells > 1 else ""
            guess = f", {node.guess}" if node.guess else ""
            yield f"{'  ' * depth}{node.label}  {node.folder}  {node.state}{guess}{many}"
        yield from self.summary


def preview(
    experiment: str | Path | dict[str, Any],
    overrides: Sequence[str] = (),
    executor: Executor | None = None,
    out: str | Path | None = None,
    replace: bool = False,
    report_to: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Preview:
    """What `run` with the same arguments would do. The executor is asked whether it can, and not started.

    Raises:
        InputError: as `run` before it computes anything, with every problem that was found. Of a model that is not
            here yet, what needs its tokenizer or its configuration cannot be told.
    """
    from mithridate.models import ModelFiles, local_model, require_on_hub
    from mithridate.pipeline.forecast import Forecast
    from mithridate.pipeline.runner import (
        Allowed,
        chains_of,
        located,
        look_ahead,
        place_of,
        plans_of,
        quiet_libraries,
        with_undefended,
    )
    from mithridate.problems import Findings
    from mithridate.results.ownership import require_own

    loaded, experiments = load_cells(experiment, list(overrides))
    base, where, name = place_of(experiment)
    notes, findings, allowed = [], Findings(), Allowed(tuple(report_to), trust_remote_code)

    def find(name: str) -> ModelFiles:
        files = local_model(name, allowed.remote_code)
        if files is None:
            require_on_hub(name)
            notes.append(f"{name} is not on this machine yet: whether the store has stages of it is unknown")
        return files or ModelFiles(name, Path(), "not here yet")

    chains = chains_of(with_undefended(experiments), base, where, False, find, allowed, findings)
    if not replace:
        with findings.noting():
            require_own(Path(out) if out else Path("runs") / name, located(loaded, base))
    with quiet_libraries():
        look_ahead(chains, executor, None, findings)
    findings.settle(where)
    cells = [(plan.chain, plan.stages()) for plan in plans_of(chains)]
    forecast = Forecast(chains[0].shop.store, base)
    nodes, roots = _graph(cells, forecast)
    states = Counter(node.state for node in nodes)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    summary = [f"{len(cells)} cells stand on {len(nodes)} stages: {counts}"]
    summary += forecast.in_words([node.guess for node in nodes if node.guess])
    return Preview(roots, summary + notes)


def _graph(cells: list[tuple[Chain, list[Stage]]], forecast: Forecast) -> tuple[list[Node], list[Node]]:
    """All stages, each once; and those that start from the model as it came."""
    served = Counter(stage.key for _, stages in cells for stage in stages)
    nodes: dict[str, Node] = {}
    roots: list[Node] = []
    for chain, stages in cells:
        for stage in stages:
            if stage.key in nodes:
                continue
            state = _state(chain, stage)
            nodes[stage.key] = node = Node(
                label=_label(chain, stage),
                folder=chain.shop.store.folder(stage.name, stage.key).name,
                state=state,
                cells=served[stage.key],
                guess=None if state == STATES[0] else forecast.of(chain, stage),
            )
            before = [nodes[key] for key in stage.parents.values() if key in nodes]
            (before[-1].after if before else roots).append(node)
    return list(nodes.values()), roots


def _state(chain: Chain, stage: Stage) -> str:
    store = chain.shop.store
    folder = store.folder(stage.name, stage.key)
    if store.whole(stage.name, stage.key):
        return "in the store"
    if folder.is_dir():
        return "damaged"
    return "begun" if (store.root / "work" / folder.name).is_dir() else "to run"


def _label(chain: Chain, stage: Stage) -> str:
    seed = stage.config.get("seed")
    return chain.label(stage) + ("" if seed is None else f" seed {seed}")
