"""A repair within a budget: the strongest setting whose loss of accuracy stays within it, on validation prompts.

The strengths are tried from the strongest down, each on a model of its own, until one fits: until the upper end of
the 95 % interval of the loss (accuracy of the unrepaired model minus that of the repaired one, on the same prompts) is
at most the budget. Where none does, nothing is changed. The choice is made on the validation part; what a table says
of the repaired model is measured on the test part, which had no say in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.experiment.config import Budget
from mithridate.experiment.methods import around_prompts
from mithridate.methods import Repair
from mithridate.pipeline.generators import open_generator
from mithridate.pipeline.stages import VALIDATION, ExperimentStages
from mithridate.protocols import protocol
from mithridate.results.decisions import bound
from mithridate.results.parts import write
from mithridate.statistics.comparisons import paired_by_prompt
from mithridate.store import MANIFEST

if TYPE_CHECKING:
    from mithridate.generation.base import Generator
    from mithridate.repairs.delta import Delta

logger = logging.getLogger(__name__)

FILE = "budget.json"  # in the repair's artefact: the budget, every try, and the strength that was taken
ANSWERS = "tries"  # beside it: the answers of the unrepaired model and of every try


def repair_within(
    chain: ExperimentStages,
    budget: Budget,
    name: str,
    repair: Repair,
    repaired: Callable[[Repair], tuple[Any, Delta]],
    work: Path,
) -> dict[str, Any]:
    """Leaves in `work` what the strongest fitting repair changes (`model`; nothing, where none fits), and the tries.

    Args:
        name: of the repair.
        repaired: makes a model, repairs it, and returns it with its changes.

    Returns:
        What `stage.json` is to say of it: where none fits, in words.
    """
    from mithridate.generation.hf import Transformers
    from mithridate.repairs.delta import Delta

    strength = repair.strength
    assert strength
    before = _answered(chain, open_generator(chain, "finetune"), "finetune", work / ANSWERS / "unrepaired.parquet")
    fields = chain.experiment.evaluate.generator["transformers"]
    tries: list[dict[str, Any]] = []
    taken: float | None = None
    for number, value in enumerate(budget.strengths, 1):
        model, delta = repaired(replace(repair, **{strength: value}))
        generator = Transformers(model, chain.tokenizer, **fields)
        after = _answered(chain, generator, "repair", work / ANSWERS / f"{number}.parquet")
        compared = paired_by_prompt(before, after)
        loss = {key: compared[key] for key in ("difference", "low", "high", "n")}
        fits = bound(loss, budget.accuracy) == "below"
        tries.append({strength: value, "accuracy": _share(after), "loss": loss, "fits": fits})
        logger.info("%s: %s %g: %s", name, strength, value, _in_words(loss, budget, fits))
        if fits:
            taken = value
            delta.save(work / "model")
            break
        del model, delta, generator
    made = {"strength": strength, "budget": {"accuracy": budget.accuracy}, "unrepaired": _share(before)}
    (work / FILE).write_text(json.dumps({**made, "tries": tries, "taken": taken}, indent=1), encoding="utf-8")
    if taken is not None:
        return {}
    said = [_unfit(chain, name, budget, tries, before)]
    Delta(name, repair.settings() | {strength: None}, said, merged=False).save(work / "model")
    return {"said": said}


def within(folder: Path) -> dict[str, Any] | None:
    """What became of the budget of a finished repair; None where it had none."""
    return json.loads((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).exists() else None


def unrepaired(folder: Path) -> str | None:
    """In words, that a budget has left a model as it was; None where the repair of `folder` has changed it."""
    found = within(folder)
    if found is None or found["taken"] is not None:
        return None
    return "\n".join(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["said"])


Outcomes = dict[str, list[bool]]  # by prompt


def _answered(chain: ExperimentStages, generator: Generator, upto: str, out: Path) -> Outcomes:
    """Whether the answers to the task's validation prompts are right; the answers are written to `out`."""
    from mithridate.evaluation import answers, outcomes

    settings, roles = chain.experiment.evaluate, chain.context.roles
    records = {f"task:{roles.task_name}": roles.parts()[VALIDATION][: settings.limit]}
    cache, around = chain.context.store.root / "answers", around_prompts(chain.experiment, upto)
    try:
        rows = answers(generator, records, protocol(settings.protocol), cache, chain.context.progress, around=around)
    finally:
        generator.close()
    out.parent.mkdir(exist_ok=True)
    write(out, rows)
    return {prompt: [bool(one) for one in said] for prompt, said in outcomes(rows)["accuracy"].items()}


def _share(outcomes: Outcomes) -> float:
    return sum(map(any, outcomes.values())) / len(outcomes)


def _in_words(loss: dict[str, Any], budget: Budget, fits: bool) -> str:
    return (
        f"loses {loss['difference']:.3f} of accuracy on {loss['n']} validation prompts, at most {loss['high']:.3f} of "
        f"{budget.accuracy:g}: {'taken' if fits else 'too much'}"
    )


def _unfit(chain: ExperimentStages, name: str, budget: Budget, tries: list[dict[str, Any]], before: Outcomes) -> str:
    """That no strength fits, and whether any could have."""
    same, least = paired_by_prompt(before, before), min(tries, key=lambda one: one["loss"]["high"])
    text = (
        f"{name}, seed {chain.experiment.seed}: none of {len(tries)} strengths stays within the budget of "
        f"{budget.accuracy:g} of accuracy (the nearest may lose {least['loss']['high']:.3f}), so the model is "
        "left unrepaired"
    )
    if same["high"] > budget.accuracy:
        text += (
            f". {same['n']} validation prompts cannot show less than {same['high']:.3f} even where every "
            "answer stays the same: give more of them, or a larger budget"
        )
    return text
