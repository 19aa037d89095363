"""`mithridate run --dry-run`: the graph of stages, what the store has of it, and what the rest would take.

It takes the code path of a run as far as the stages' keys, its checks before any compute included. Nothing is trained,
generated or judged; neither the store nor the run's folder is written to; no model is fetched or converted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mithridate.experiment.config import load_cells
from mithridate.models import ModelFiles, local_model, require_on_hub
from mithridate.pipeline.context import Allowed
from mithridate.pipeline.executors.base import Executor
from mithridate.pipeline.experiments import located, place_of, stages_of, with_undefended
from mithridate.pipeline.forecast import Forecast, Guess
from mithridate.pipeline.graph import Graph, Node
from mithridate.pipeline.preflight import preflight
from mithridate.problems import Findings
from mithridate.progress import quiet_libraries
from mithridate.results.ownership import require_own

STATES = ("in the store", "begun", "damaged", "to run")


@dataclass(frozen=True)
class GraphLine:
    """One stage of the graph, as it is shown.

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
    after: list[GraphLine] = field(default_factory=list)


@dataclass(frozen=True)
class Preview:
    """The graph of a run.

    Attributes:
        roots: the stages that start from the model as it came.
        summary: how much there is to do, what it takes and where that is known from, in lines.
    """

    roots: list[GraphLine]
    summary: list[str]

    def nodes(self) -> Iterator[tuple[int, GraphLine]]:
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
    loaded, experiments = load_cells(experiment, list(overrides))
    base, where, name = place_of(experiment)
    notes, findings, allowed = [], Findings(), Allowed(tuple(report_to), trust_remote_code)

    def find(name: str) -> ModelFiles:
        files = local_model(name, allowed.remote_code)
        if files is None:
            require_on_hub(name)
            notes.append(f"{name} is not on this machine yet: whether the store has stages of it is unknown")
        return files or ModelFiles(name, Path(), "not here yet")

    chains = stages_of(with_undefended(experiments), base, where, False, find, allowed, findings)
    if not replace:
        with findings.noting():
            require_own(Path(out) if out else Path("runs") / name, located(loaded, base))
    graph = Graph(chains, None, findings)
    with quiet_libraries():
        preflight(graph, executor, findings)
    findings.settle(where)
    forecast = Forecast(graph.store, base)
    lines, roots = _lines(graph, forecast)
    states = Counter(line.state for line in lines)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    many = "1 cell stands" if len(graph.models) == 1 else f"{len(graph.models)} cells stand"
    summary = [f"{many} on {len(lines)} stages: {counts}"]
    summary += forecast.in_words([line.guess for line in lines if line.guess])
    return Preview(roots, summary + notes)


def _lines(graph: Graph, forecast: Forecast) -> tuple[list[GraphLine], list[GraphLine]]:
    """All stages, each once; and those that start from the model as it came."""
    served = Counter(node.key for model in graph.models for node in model.nodes)
    lines: dict[str, GraphLine] = {}
    roots: list[GraphLine] = []
    for node in graph.wanted:
        state = _state(node)
        lines[node.key] = line = GraphLine(
            label=_label(node),
            folder=node.folder.name,
            state=state,
            cells=served[node.key],
            guess=None if state == STATES[0] else forecast.of(node.chain, node.stage),
        )
        before = graph.before(node)
        (lines[before[-1].key].after if before else roots).append(line)
    return list(lines.values()), roots


def _state(node: Node) -> str:
    store = node.chain.context.store
    if store.whole(node.stage.name, node.key):
        return "in the store"
    if node.folder.is_dir():
        return "damaged"
    return "begun" if (store.root / "work" / node.folder.name).is_dir() else "to run"


def _label(node: Node) -> str:
    seed = node.stage.config.get("seed")
    return node.label + ("" if seed is None else f" seed {seed}")
