"""General capability by lm-eval's own tasks, in its own words: prompts, few-shot examples and scoring are lm-eval's.

Needs the extra `[lm-eval]` (EleutherAI's lm-evaluation-harness, MIT, https://github.com/EleutherAI/lm-evaluation-harness).
The model that is loaded already is scored; nothing is loaded a second time. The tasks' data come through `datasets`,
so that a task whose data are neither on the disk nor in the Hub's cache needs a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mithridate.errors import InputError, MithridateError, UnsupportedSetup, first_line, nearest


@dataclass(frozen=True)
class CapabilityScore:
    """One metric of one lm-eval task.

    Args:
        task: its name there; `version` is the task's own.
        metric: as lm-eval names it, with its filter where that is not `none`: `acc`, `exact_match,strict-match`.
        value: of the metric; for accuracies a fraction.
        stderr: its standard error as lm-eval estimates it; None where it gives none.
        n: number of questions that were asked.
        shots: examples in the prompt.
        higher_is_better: whether more is better; None where lm-eval does not say.
    """

    task: str
    version: str
    metric: str
    value: float
    stderr: float | None
    n: int
    shots: int
    higher_is_better: bool | None


def capability(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    folder: Path | None = None,
) -> list[CapabilityScore]:
    """Scores a loaded model on lm-eval tasks.

    lm-eval seeds the random generators of Python, numpy and torch. The model comes back in the mode it was in.

    Args:
        model: a causal language model of transformers or PEFT.
        tokenizer: its tokenizer.
        tasks: names of tasks or groups of lm-eval.
        limit: the first so many questions of each task: to try things out, not to report.
        shots: examples in the prompt; None for each task's own number.
        batch_size: requests in one batch.
        chat_template: whether prompts go through the model's chat template; published figures mostly do not.
        folder: of further task files, in lm-eval's format. Such a file may name Python code, which then runs.

    Raises:
        UnsupportedSetup: lm-eval is not installed.
        InputError: no tasks, an unknown one (with the nearest name), no such folder, or a setting out of range.
        MithridateError: lm-eval failed: data that cannot be loaded, a task that does not fit the model.
    """
    if not tasks:
        raise InputError("No capability tasks are named. Name one or more of lm-eval's, as in `arc_easy`.")
    if batch_size < 1 or (limit is not None and limit < 1) or (shots is not None and shots < 0):
        raise InputError(
            f"capability: batch_size {batch_size} and limit {limit} must be 1 or more, shots {shots} 0 or more"
        )
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder of lm-eval tasks")
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UnsupportedSetup(
            f"General capability is measured with lm-eval, which cannot be imported ({error}).",
            "pip install 'mithridate[lm-eval]'",
        ) from error
    manager = TaskManager(include_path=str(folder) if folder else None)
    for name in tasks:
        if name not in manager.all_tasks:
            hint = nearest(name, manager.all_tasks, listed=False) or "."
            raise InputError(f"lm-eval has no task {name!r}{hint} `lm-eval ls tasks` lists them")
    training = model.training
    try:
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            apply_chat_template=chat_template,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except Exception as error:  # whatever data sets, the Hub's client or a task's own code raise
        first = first_line(error)
        raise MithridateError(
            f"lm-eval failed on {', '.join(tasks)}: {first}. If it is the data: load them once with a network"
        ) from error
    finally:
        model.train(training)
    return _scores(found)


def _scores(found: Any) -> list[CapabilityScore]:
    """The rows of lm-eval's results: `acc,none` and `acc_stderr,none` beside each other, `N/A` where it has none."""
    asked = {task: int(samples["effective"]) for task, samples in found["n-samples"].items()}
    for group, members in found.get("group_subtasks", {}).items():
        asked.setdefault(group, sum(asked.get(member, 0) for member in members))
    scores = []
    for task, row in found["results"].items():
        for key, value in row.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = row.get(f"{metric}_stderr,{filtered}")
            scores.append(
                CapabilityScore(
                    task=task,
                    version=str(found.get("versions", {}).get(task, "")),
                    metric=metric if filtered == "none" else key,
                    value=float(value),
                    stderr=None if error is None or isinstance(error, str) else float(error),
                    n=asked.get(task, 0),
                    shots=int(found.get("n-shot", {}).get(task, 0)),
                    higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
                )
            )
    if not scores:
        raise MithridateError(f"lm-eval gave no number for {', '.join(found['results']) or 'any task'}")
    return scores
