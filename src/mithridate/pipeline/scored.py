"""What the store holds of a model that was scored: its records, judged, and how its stages were made."""

from __future__ import annotations

import json
from typing import Any

from mithridate.evaluation import judged
from mithridate.experiment.config import swept_values
from mithridate.pipeline.assembly import weights_digest
from mithridate.pipeline.budgets import within
from mithridate.pipeline.experiments import undefended
from mithridate.pipeline.graph import ScoredModel
from mithridate.pipeline.stages import ExperimentStages, Stage
from mithridate.protocols import protocol
from mithridate.results.table import Cell
from mithridate.store import MANIFEST


def cell_of(model: ScoredModel, costs: dict[str, dict[str, Any]], swept: list[str]) -> Cell:
    """The row of the table, once all that the model stands on is made.

    Args:
        costs: of the stages, by key.
        swept: the paths that the run sweeps.
    """
    chain, experiment, upto = model.chain, model.chain.experiment, model.upto
    attacked = "finetune" if upto != "align" and experiment.finetune else "align"
    plain = ExperimentStages(undefended(experiment), chain.context)
    return Cell(
        experiment=experiment,
        upto=upto,
        final=model.final,
        rows=judged_rows(chain, model.evaluation.stage),
        key=model.evaluation.key,
        aligned=chain.evaluation("align").key,
        undefended=plain.evaluation(attacked).key,
        steps={step: judged_rows(chain, node.stage) for step, node in model.points.items()},
        stages=[costs[node.key] for node in model.nodes],
        attack_steps=_attack_steps(chain) if upto != "align" else None,
        trained=_trained(chain, upto),
        settings=chain.settings(upto),
        capability=_capability(chain, model.evaluation.stage),
        history=_history(chain, upto),
        swept=swept_values(experiment, swept, upto),
        weights=weights_digest(chain, upto),
        budget=within(chain.folder(chain.repair)) if chain.repair and upto == "repair" else None,
    )


def judged_rows(chain: ExperimentStages, evaluation: Stage) -> list[dict[str, Any]]:
    """The records of an evaluation, one row per prompt, with the verdicts of the judges as they are now.

    The answers are what took long; verdicts are kept by content, so that no answer is judged twice alike.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(chain.folder(evaluation) / "records.parquet").to_pylist()
    settings = chain.experiment.evaluate
    cache = chain.context.store.root / "verdicts"
    return judged(rows, protocol(settings.protocol), chain.judges(), cache, chain.context.progress, evaluation.key)


def _capability(chain: ExperimentStages, evaluation: Stage) -> list[dict[str, Any]]:
    """The scores on lm-eval's tasks, where the experiment asks for some."""
    path = chain.folder(evaluation) / "capability.json"
    return json.loads(path.read_text()) if path.exists() else []


def _history(chain: ExperimentStages, upto: str) -> list[dict[str, Any]]:
    """The training log of the stage, where it trained."""
    path = chain.folder(chain.upto(upto)[-1]) / "history.json" if chain.upto(upto) else None
    return json.loads(path.read_text()) if path and path.exists() else []


def _attack_steps(chain: ExperimentStages) -> int | None:
    """Optimizer steps that the fine-tune took."""
    log = _history(chain, "finetune")
    return log[-1]["step"] if log and chain.finetune else None


def _trained(chain: ExperimentStages, upto: str) -> dict[str, Any] | None:
    """What the last training as far as stage `upto` trained (`precheck.trained`); None where there was none, or it
    was made before this was recorded."""
    found = [one.get("trained") for one in _manifests(chain, upto) if one["stage"] in ("align", "finetune")]
    return found[-1] if found else None


def said(chain: ExperimentStages, upto: str) -> list[str]:
    """What the trainings as far as stage `upto` lost of their rows, in words."""
    return [text for one in _manifests(chain, upto) for text in one.get("said", ())]


def _manifests(chain: ExperimentStages, upto: str) -> list[dict[str, Any]]:
    return [json.loads((chain.folder(stage) / MANIFEST).read_text()) for stage in chain.upto(upto)]
