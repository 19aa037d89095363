"""The records of one evaluated model as an Inspect log, for its viewer and for what else reads such logs.

Written in the JSON form of the format (version 2) that `inspect_ai.log.read_eval_log` and `inspect view` read; checked
with inspect_ai 0.3.285. What is where:

- a sample is a record: id "SET/ID", one epoch for each answer to the same prompt, input and output, token counts, and
  a score by each judge that was given the answer: its verdict, with its reason as the explanation. A task's answers
  have the score `correct`, "C" or "I". Unscored verdicts are NaN, as the format has it, with the reason
  "grader_failed";
- `eval.task` is the protocol; the digests of the model and the judges' identities are in `eval.metadata`;
- `results.scores`: for each judge its verdicts' shares, by set ("harmful/complied"), over what it scored, and how many
  it did not score; the shares of the results table under `table`. Each metric has its 95 % interval and n as metadata.

inspect_ai itself is not needed, and its requirements do not fit ours.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from mithridate import environment
from mithridate.errors import InputError, MithridateError
from mithridate.evaluation import surrounded
from mithridate.evaluation.agreement import judges_in, verdicts
from mithridate.files import replace_file
from mithridate.methods.base import TestTime
from mithridate.statistics import proportion

VERSION = 2
_CORRECT, _TABLE = "correct", "table"
_KEPT = ("set", "task", "category", "reference", "at_test")  # columns that the format has no place for


def write_log(
    path: str | Path,
    rows: Sequence[Mapping[str, Any]],
    model: str,
    summary: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    judges: Mapping[str, Mapping[str, Any]] | None = None,
    created: datetime | None = None,
) -> Path:
    """Writes the log, aside first and then under its name.

    Args:
        path: a folder, where the log is named as Inspect names its own (`inspect view` lists no others), or a file
            that ends in ".json"; one that exists is replaced, and a folder that it lacks is made.
        rows: the records (`evaluation.Row`) of one model under one protocol.
        model: its name.
        summary: what `evaluation.summarise` says of the rows; None leaves it out.
        identity: what decides the model's answers (digests of weights and adapter): `Generator.identity()`.
        judges: `Judge.identity()` by the judge's name.
        created: when the evaluation was done, with time zone; None is now.

    Returns the path of the file.

    Raises:
        InputError: another ending, no rows, or rows of several cells or protocols.
        MithridateError: the file cannot be written.
    """
    path = Path(path)
    if not path.is_dir() and path.suffix != ".json":
        raise InputError(f"{path}: an Inspect log in JSON ends in .json; give such a name, or a folder.")
    rows = [dict(row) for row in rows]
    log = _log(rows, model, summary or {}, identity or {}, judges or {}, created or datetime.now(UTC))
    if path.is_dir():
        spec = log["eval"]
        name = "_".join((spec["created"], spec["task"], spec["task_id"]))
        path /= f"{re.sub('[^A-Za-z0-9_+.]+', '-', name)}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(log, ensure_ascii=False, default=str))
    except OSError as error:
        raise MithridateError(f"{path}: cannot be written: {error.strerror or error}.") from error
    return path


def _log(
    rows: list[dict[str, Any]],
    model: str,
    summary: Mapping[str, Any],
    identity: Mapping[str, Any],
    judges: Mapping[str, Mapping[str, Any]],
    created: datetime,
) -> dict[str, Any]:
    if not rows:
        raise InputError("There are no records to write as a log.")
    for what, found in (
        ("cells", {(row.get("cell"), row.get("step")) for row in rows}),
        ("protocols", {row["protocol"] for row in rows}),
    ):
        if len(found) > 1:
            raise InputError(
                f"A log is of one model under one protocol, and these records are of {len(found)} {what}."
            )
    if created.tzinfo is None:
        raise InputError(f"The time {created.isoformat()} has no time zone.")
    protocol, time = rows[0]["protocol"], created.astimezone(UTC).isoformat(timespec="seconds")
    names = judges_in(rows)
    given = {name: verdicts(rows, name) for name in names}
    samples = _samples(rows, model, given)
    digest = sha256(json.dumps([model, time, samples], default=str).encode()).hexdigest()
    usage = _total(samples, model)
    return {
        "version": VERSION,
        "status": "success",
        "eval": {
            "eval_id": digest[:22],
            "run_id": digest[22:44],
            "task_id": digest[44:],
            "created": time,
            "task": protocol,
            "dataset": {
                "name": protocol,
                "samples": len({sample["id"] for sample in samples}),
                "sample_ids": list(dict.fromkeys(sample["id"] for sample in samples)),
            },
            "model": model,
            "config": {"epochs": max(sample["epoch"] for sample in samples)},
            "packages": {name: v for name, v in environment.versions().items() if v and name != "commit"},
            "metadata": {"model": identity, "judges": judges, "commit": environment.commit()},
        },
        "plan": {},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": _scores(rows, given, summary),
        },
        "stats": {"started_at": time, "completed_at": time, "model_usage": usage},
        "samples": samples,
    }


def _samples(
    rows: list[dict[str, Any]], model: str, given: Mapping[str, list[tuple[str | None, str] | None]]
) -> list[dict[str, Any]]:
    samples, epochs, asked_as = [], Counter[str](), dict[str, set[str]]()
    for row in rows:
        asked_as.setdefault(f"{row['set']}/{row['id']}", set()).add(row["prompt"])
    for i, row in enumerate(rows):
        name = f"{row['set']}/{row['id']}"
        if len(asked_as[name]) > 1:  # a user's own ids may repeat, and a sample is one prompt
            name += f"/{sha256(row['prompt'].encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        epochs[name] += 1
        answer = {"role": "assistant", "content": row["answer"], "source": "generate", "model": model}
        around = [TestTime(**one) for one in json.loads(row.get("at_test") or "[]")]  # a trigger, a persona
        asked = surrounded([{"role": "user", "content": row["prompt"]}], around)
        question = [turn | {"source": "input"} for turn in asked]
        finished = row.get("finished")
        stop = "unknown" if finished is None else "stop" if finished else "max_tokens"
        output: dict[str, Any] = {"model": model, "choices": [{"message": answer, "stop_reason": stop}]}
        output["completion"] = row["answer"]
        sample: dict[str, Any] = {
            "id": name,
            "epoch": epochs[name],
            "input": row["prompt"],
            "target": row.get("label") or "",
            "messages": [*question, answer],
            "output": output,
            "scores": {},
            "metadata": {key: row[key] for key in _KEPT if row.get(key) is not None},
        }
        if row.get("seconds") is not None:
            output["time"] = sample["total_time"] = row["seconds"]
        if row.get("prompt_tokens") is not None and row.get("new_tokens") is not None:
            tokens = {"input_tokens": int(row["prompt_tokens"]), "output_tokens": int(row["new_tokens"])}
            output["usage"] = tokens | {"total_tokens": sum(tokens.values())}
            sample["model_usage"] = {model: output["usage"]}
        if row.get("correct") is not None:
            sample["scores"][_CORRECT] = {"value": "C" if row["correct"] else "I", "answer": row["answer"]}
        for judge, column in given.items():
            if (found := column[i]) is not None:
                score = row.get("score" if row.get("judge") == judge else f"judge/{judge}/score")
                sample["scores"][judge] = _score(*found, row["answer"], score)
        samples.append(sample)
    return samples


def _score(verdict: str | None, reason: str, answer: str, score: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"value": verdict, "answer": answer, "explanation": reason}
    if verdict is None:
        found |= {"value": math.nan, "reason": "grader_failed"}
    return found | ({"metadata": {"score": score}} if score is not None else {})


def _scores(
    rows: list[dict[str, Any]],
    given: Mapping[str, list[tuple[str | None, str] | None]],
    summary: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The table's shares, each judge's verdicts by set, and the tasks' accuracy; every one over scored answers."""
    shares: dict[str, Mapping[str, Any]] = {}
    for key, value in summary.items():
        shares |= {key: value} if "n" in value else {f"{key}/{name}": part for name, part in value.items()}
    found = [_eval_score(_TABLE, shares)] if shares else []
    for judge, column in given.items():
        scored = [(row["set"], v[0]) for row, v in zip(rows, column, strict=True) if v and v[0] is not None]
        sets = Counter(name for name, _ in scored)
        parts = {f"{name}/{v}": proportion(k, sets[name]) for (name, v), k in sorted(Counter(scored).items())}
        unscored = sum(v is not None for v in column) - len(scored)
        found.append(_eval_score(judge, parts) | {"scored_samples": len(scored), "unscored_samples": unscored})
    answered = [(f"{row['set']}/{row.get('task') or 'accuracy'}", row["correct"]) for row in rows]
    answered = [(name, bool(correct)) for name, correct in answered if correct is not None]
    if answered:
        right, n = Counter(name for name, correct in answered if correct), Counter(name for name, _ in answered)
        score = _eval_score(_CORRECT, {name: proportion(right[name], n[name]) for name in n})
        found.append(score | {"scored_samples": len(answered), "unscored_samples": 0})
    return found


def _eval_score(name: str, shares: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    metrics = {
        key: {"name": key, "value": share["value"], "metadata": {k: v for k, v in share.items() if k != "value"}}
        for key, share in shares.items()
        if share["value"] is not None
    }
    return {"name": name, "scorer": name, "metrics": metrics}


def _total(samples: list[dict[str, Any]], model: str) -> dict[str, dict[str, int]]:
    known = [sample["model_usage"][model] for sample in samples if "model_usage" in sample]
    return {model: {key: sum(usage[key] for usage in known) for key in known[0]}} if known else {}
