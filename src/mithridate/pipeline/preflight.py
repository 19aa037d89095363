"""What is cheap to find before a run: every set-up is tried out, every row counted, before anything is computed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mithridate.errors import InputError
from mithridate.experiment.methods import defenses_of
from mithridate.files import digest
from mithridate.methods.defense import acts
from mithridate.pipeline import fits, precheck, setupcheck
from mithridate.pipeline.executors.base import Executor
from mithridate.pipeline.graph import Graph, Node
from mithridate.pipeline.jobs import rows_to_try
from mithridate.pipeline.stages import ExperimentStages, Stage
from mithridate.problems import Findings
from mithridate.results.folder import PAGE_CELLS


def preflight(graph: Graph, executor: Executor | None, findings: Findings, page: bool = True) -> None:
    """Finds what would stop a run later on: tries out the set-up of every training and repair that is not in the
    store, over one random layer of the model; counts what tokenising leaves of the rows; and looks whether the test
    prompts fit the model.

    So what a defense, a repair, the adapter or SFTConfig refuses is refused now, not after the stages before it have
    been computed: an adapter that does not fit, training arguments that SFTConfig or TRL refuses, too few rows for the
    attack, rows of which nothing would be trained, a resistance step that the attack does not reach, prompts that do
    not fit, an extra that is not installed.

    Args:
        findings: takes up the problems.
        page: whether the run ends in a report page.

    Raises:
        InputError: the model's template refuses the system turn: then every row would say the same.
    """
    with findings.noting():
        if executor:
            executor.check(graph.chains)
    with findings.noting():
        precheck.services(graph.chains[0].context.report_to)
    for chain in graph.chains:
        precheck.system_turn(chain)
        with findings.noting():
            precheck.between(chain)
        with findings.noting():
            setupcheck.require_followed(chain)
    here = not (executor and executor.elsewhere)  # whether this machine is the one that will train
    for node in graph.nodes.values():
        if node.stage.name not in ("attack-rows", "evaluate"):  # of attack-rows, only its own model can tell
            _check_stage(node, here, findings)
    tested = graph.chains if graph.scored else []
    for chain in tested:
        with findings.noting():
            precheck.around_tests(chain)
        with findings.noting():
            precheck.tests(chain)
    for text in precheck.extras(tested, page and 0 < len(graph.models) <= PAGE_CELLS):
        with findings.noting():
            raise InputError(text)


def _check_stage(node: Node, here: bool, findings: Findings) -> None:
    chain, stage, context = node.chain, node.stage, node.chain.context
    # The seed only chooses among the rows, which a check that is tied to it counts.
    config = {name: value for name, value in stage.config.items() if name != "seed"}
    seed = chain.experiment.seed if stage.name == "finetune" else None
    changed = chain.free_adapter(stage.name, "repaired")
    asked = digest([stage.name, config, changed, stage.data, context.base.digest, seed])
    if asked in context.checked or context.store.whole(stage.name, stage.key):
        return
    context.checked.add(asked)
    if stage.name in ("harden", "repair"):
        with findings.noting():
            setupcheck.try_repair(chain, stage.name)
        return
    with findings.noting():
        if chain.launch and here:
            chain.launch.check()
    with findings.noting():
        _check_training(chain, stage, config, findings, here)


def _check_training(
    chain: ExperimentStages, stage: Stage, config: dict[str, Any], findings: Findings, here: bool
) -> None:
    rows = rows_to_try(chain, stage.name)
    parts = precheck.parts(chain, stage.name, rows)
    steps = precheck.steps(chain, stage.name, parts)
    if not chain.context.here:
        return
    # Nor does the learning rate change what is refused, nor the share of harmful rows where no defense chooses rows.
    config["training"] = {name: v for name, v in config["training"].items() if name != "learning_rate"}
    if not any(acts(one, "rows") for part in parts for one in defenses_of(part.job.defense)):
        config["attack"] = config.get("attack", {}).get("kind")
    setup = digest(["set-up", stage.name, config | {"rows": len(rows)}, stage.data, chain.context.base.digest])
    if setup not in chain.context.checked:
        chain.context.checked.add(setup)
        for part in parts if here else ():
            with findings.noting():
                fits.require(chain, part)
        with tempfile.TemporaryDirectory() as folder:
            setupcheck.try_out(chain, stage.name, parts, Path(folder))
    if stage.name != "finetune" or not chain.attack.needs_model:  # whose rows are counted once they are there
        precheck.rows(chain, stage.name, parts, steps, findings)
