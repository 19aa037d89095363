"""The graph of a run's stages, built once and walked by all: pre-flight, preview, run, workers.

A node is a stage that the store keeps; an edge leads from a stage to those that start from it. Several experiments
share nodes: the same alignment under two attacks is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mithridate.pipeline.stages import ExperimentStages, Stage
from mithridate.problems import Findings
from mithridate.store import Store

MODEL_STAGES = ("align", "finetune", "repair")  # with which a run can end; nothing is scored then


@dataclass(frozen=True, eq=False)
class Node:
    """A stage, and the first of the experiments that have it."""

    chain: ExperimentStages
    stage: Stage

    @property
    def key(self) -> str:
        return self.stage.key

    @cached_property
    def folder(self) -> Path:
        """Where the store keeps its artefact, once it is made."""
        return self.chain.context.store.folder(self.stage.name, self.key)

    @property
    def made(self) -> bool:
        """Whether the store has its artefact."""
        return self.chain.context.store.find(self.stage.name, self.key) is not None

    @property
    def label(self) -> str:
        """What it does, in words."""
        return self.chain.label(self.stage)


@dataclass(frozen=True)
class ScoredModel:
    """A row of the table: the model of an experiment after stage `upto`, and its evaluations.

    Attributes:
        evaluation: the node that holds its answers.
        points: those on the way there, by optimizer step of the attack.
        final: whether an experiment ends in this model.
    """

    chain: ExperimentStages
    upto: str
    evaluation: Node
    points: dict[int, Node]
    final: bool
    nodes: list[Node]  # all that it stands on, in order


@dataclass(frozen=True, eq=False)
class Batch:
    """What one worker makes in a row: all that an experiment needs, and no experiment before it makes. Answers of a
    model from which the experiment trains on are a batch of their own where that costs nothing, so that a worker that
    is idle can fetch them while the next model is trained.

    Attributes:
        upto: the stage after which its last model is scored.
        own: the nodes that it makes, models first, for other batches may wait for them.
        waits: those that others make, and that it starts from.
        keys: of all nodes to walk through, in order; those of `waits` are in the store by then.
    """

    chain: ExperimentStages
    upto: str
    own: list[Node]
    waits: list[Node]
    keys: list[str]


class Graph:
    """The stages of all experiments of a run.

    Attributes:
        chains: the stages by experiment.
        nodes: by key, each after those that it starts from.
        wanted: those that the run is to make, in the order in which it needs them.
        models: the models that it scores; one that two experiments share is scored once.
    """

    def __init__(self, chains: Sequence[ExperimentStages], until: str | None = None, findings: Findings | None = None):
        """
        Args:
            until: the last stage of a run that scores nothing, one of MODEL_STAGES.
            findings: takes up what keeps models from being scored, where it is given.

        Raises:
            InputError: there is nothing to ask the models.
        """
        self.chains, self.scored = list(chains), until not in MODEL_STAGES
        self.nodes: dict[str, Node] = {}
        for chain in self.chains:
            for stage in chain.stages():
                self._node(chain, stage)
        self.models: list[ScoredModel] = []
        if until is not None and not self.scored:
            needed = [(chain, [self.nodes[stage.key] for stage in chain.upto(until)]) for chain in self.chains]
        else:
            found = Findings() if findings is None else findings
            with found.noting():
                self.models = self._scored_models()
            if findings is None:
                found.settle()
            needed = [(model.chain, model.nodes) for model in self.models]
        self._needed: dict[ExperimentStages, dict[str, Node]] = {}
        for chain, nodes in needed:
            self._needed.setdefault(chain, {}).update((node.key, node) for node in nodes)
        self.wanted = list({node.key: node for nodes in self._needed.values() for node in nodes.values()}.values())

    def _node(self, chain: ExperimentStages, stage: Stage) -> Node:
        return self.nodes.setdefault(stage.key, Node(chain, stage))

    def _scored_models(self) -> list[ScoredModel]:
        models, seen = [], set()
        scored = [[chain.evaluation(upto) for upto in chain.positions()] for chain in self.chains]
        final = {evaluations[-1].key for evaluations in scored}
        for chain, evaluations in zip(self.chains, scored):
            for upto, evaluation in zip(chain.positions(), evaluations):
                if evaluation.key in seen:
                    continue
                seen.add(evaluation.key)
                steps = chain.experiment.evaluate.resistance if upto == "finetune" else []
                points = {step: self._node(chain, chain.evaluation("finetune", step)) for step in steps}
                node = self._node(chain, evaluation)
                before = [self.nodes[stage.key] for stage in chain.upto(upto)]
                nodes = [*before, node, *points.values()]
                models.append(ScoredModel(chain, upto, node, points, evaluation.key in final, nodes))
        return models

    @property
    def store(self) -> Store:
        """Of all nodes."""
        return self.chains[0].context.store

    def before(self, node: Node) -> list[Node]:
        """The nodes that one starts from."""
        return [self.nodes[key] for key in node.stage.parents.values() if key in self.nodes]

    def batches(self) -> list[Batch]:
        """The wanted nodes that the store has not, by the experiment that makes them, in order."""
        missing = {node.key for node in self.wanted if not node.made}
        batches, given = [], set[str]()
        for chain, nodes in self._needed.items():
            own = {key for key in nodes if key in missing and key not in given}
            if not own:
                continue
            given |= own
            models = [node for node in nodes.values() if node.stage.name != "evaluate"]
            answers = [node for key, node in nodes.items() if key in own and node.stage.name == "evaluate"]
            *earlier, last = chain.positions()
            apart = [node for node in answers if node.stage.config["upto"] in earlier]
            if apart and not chain.loads_anew:
                apart = []
            made = [node for node in [*models, *answers] if node.key in own and node not in apart]
            if made:
                waits = [node for node in models if node.key in missing - own]
                keys = [node.key for node in [*models, *answers] if node not in apart]
                batches.append(Batch(chain, last, made, waits, keys))
            for upto in dict.fromkeys(node.stage.config["upto"] for node in apart):
                asked = [node for node in apart if node.stage.config["upto"] == upto]
                before = [self.nodes[stage.key] for stage in chain.upto(upto)]
                waits = [node for node in before if node.key in missing]
                batches.append(Batch(chain, upto, asked, waits, [node.key for node in [*before, *asked]]))
        return batches
