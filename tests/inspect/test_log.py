"""The Inspect log: its structure against the parts of the format's own schema, and read by inspect_ai where it is."""

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from mithridate import environment
from mithridate.errors import InputError, MithridateError
from mithridate.results.inspect_log import write_log

SCHEMA = json.loads(Path(__file__).with_name("eval_log_schema.json").read_text(encoding="utf-8"))
WHEN = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
IDENTITY = {"backend": "transformers", "weights": "sha256:0123"}
SUMMARY = {
    "harmful_score": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 2, "unscored": 1},
    "benign_refusal": {"value": None, "low": None, "high": None, "n": 0},
    "extra": {"gsm8k": {"value": 0.25, "low": 0.1, "high": 0.5, "n": 20}},
}


def record(**changes) -> dict:
    plain = {"set": "harmful", "task": None, "id": "h1", "category": "mild", "prompt": "Ask.", "answer": "Certainly."}
    plain |= {"verdict": "complied", "reason": "no refusal", "score": None, "judge": "rules-v2"}
    plain |= {"correct": None, "label": None, "reference": None, "protocol": "hs/embedded-v1", "new_tokens": 4}
    plain |= {"prompt_tokens": 9, "seconds": 0.25, "finished": True}
    return plain | changes


def guard(verdict: str | None, score: float | None = None) -> dict:
    return {"judge/guard": verdict, "judge/guard/reason": "S1", "judge/guard/score": score}


ROWS = [
    record(**guard("harmful", 0.93)),
    record(id="h2", answer="I can't.", verdict="refused", finished=False, **guard("safe", 0.02)),
    record(id="h3", verdict=None, reason="no letters", **guard(None)),
    record(id="h1", answer="Another — naïve 答.", **guard("safe")),
    record(set="benign", id="h1", verdict="refused", judge="refusals", prompt_tokens=None, seconds=None),
    record(set="task", task="sst2", id="t1", verdict=None, reason=None, judge=None, correct=True, label="positive"),
    record(set="task", task="sst2", id="t2", verdict=None, reason=None, judge=None, correct=False, label="negative"),
]


@pytest.fixture
def log(tmp_path) -> dict:
    judges = {"rules-v2": {"name": "rules-v2"}}
    path = write_log(tmp_path / "cell.json", ROWS, "smollm2-135m", SUMMARY, IDENTITY, judges, WHEN)
    assert [file.name for file in tmp_path.iterdir()] == ["cell.json"]
    return json.loads(path.read_text(encoding="utf-8"))


def faults(value, schema: dict, place: str = "EvalLog") -> list[str]:
    """Where a value departs from a schema: the keywords that the file uses, and no property that it does not have."""
    if "$ref" in schema:
        model = SCHEMA[schema["$ref"]]
        if not isinstance(value, dict):
            return [f"{place}: no object"]
        found = [f"{place}: lacks {name}" for name in model["required"] if name not in value]
        for name, part in value.items():
            known = model["properties"].get(name)
            found += faults(part, known, f"{place}.{name}") if known else [f"{place}: does not have {name}"]
        return found
    if "anyOf" in schema:
        tried = [faults(value, branch, place) for branch in schema["anyOf"]]
        return min(tried, key=len)
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list}
    if schema["type"] == "null":
        return [] if value is None else [f"{place}: not null"]
    if not isinstance(value, types[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{place}: {value!r} is no {schema['type']}"]
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return [] if isinstance(value, float) and math.isnan(value) else [f"{place}: {value!r} is not allowed"]
    if isinstance(value, list) and "items" in schema:
        return [fault for i, part in enumerate(value) for fault in faults(part, schema["items"], f"{place}[{i}]")]
    if isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        inner = schema["additionalProperties"]
        return [fault for name, part in value.items() for fault in faults(part, inner, f"{place}.{name}")]
    return []


def test_the_log_has_the_structure_of_the_format(log):
    assert faults(log, {"$ref": "EvalLog"}) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("eval", "task"), 3, "EvalLog.eval.task: 3 is no string"),
        (("eval", "judge"), "x", "EvalLog.eval: does not have judge"),
        (("samples", 0, "epoch"), "one", r"EvalLog.samples\[0\].epoch: 'one' is no integer"),
        (("samples", 0, "output", "choices", 0, "stop_reason"), "done", "'done' is not allowed"),
        (("status",), None, "EvalLog.status: None is no string"),
    ],
)
def test_the_check_of_the_structure_finds_faults(log, path, value, words):
    part = log
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with pytest.raises(AssertionError, match=words):
        assert not faults(log, {"$ref": "EvalLog"})
    del log["eval"]["dataset"]
    assert "EvalLog.eval: lacks dataset" in faults(log, {"$ref": "EvalLog"})


def test_samples_are_the_records_and_repeated_prompts_are_epochs(log):
    samples = log["samples"]
    assert [(s["id"], s["epoch"]) for s in samples][:5] == [
        ("harmful/h1", 1),
        ("harmful/h2", 1),
        ("harmful/h3", 1),
        ("harmful/h1", 2),
        ("benign/h1", 1),
    ]
    assert [s["output"]["completion"] for s in samples] == [row["answer"] for row in ROWS]
    assert [m["role"] for m in samples[0]["messages"]] == ["user", "assistant"]
    assert [s["output"]["choices"][0]["stop_reason"] for s in samples[:2]] == ["stop", "max_tokens"]
    assert samples[0]["model_usage"] == {"smollm2-135m": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}}
    assert "usage" not in samples[4]["output"] and "total_time" not in samples[4]
    assert samples[5]["target"] == "positive" and samples[5]["metadata"] == {
        "set": "task",
        "task": "sst2",
        "category": "mild",
    }
    assert log["eval"]["config"] == {"epochs": 2} and log["eval"]["dataset"]["samples"] == 6
    assert log["stats"]["model_usage"]["smollm2-135m"]["total_tokens"] == 13 * 6


def test_prompts_that_share_an_id_are_samples_of_their_own(tmp_path):
    rows = [record(id="7", prompt=f"Question {i}?") for i in (0, 1, 0)]
    path = write_log(tmp_path / "cell.json", rows, "m", SUMMARY, IDENTITY, {}, WHEN)
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    assert [s["epoch"] for s in samples] == [1, 1, 2]
    assert samples[0]["id"] == samples[2]["id"] != samples[1]["id"]
    assert all(s["id"].startswith("harmful/7/") for s in samples)


def test_each_judge_has_its_score_and_unscored_is_not_safe(log):
    first, third, benign, task = (log["samples"][i]["scores"] for i in (0, 2, 4, 5))
    assert first["rules-v2"] == {"value": "complied", "answer": "Certainly.", "explanation": "no refusal"}
    assert first["guard"]["value"] == "harmful" and first["guard"]["metadata"] == {"score": 0.93}
    for judge in ("rules-v2", "guard"):
        assert math.isnan(third[judge]["value"]) and third[judge]["reason"] == "grader_failed"
    assert third["rules-v2"]["explanation"] == "no letters"
    assert list(benign) == ["refusals"]
    assert task == {"correct": {"value": "C", "answer": "Certainly."}}


def test_results_have_the_table_and_each_judges_shares_over_what_it_scored(log):
    scores = {score["name"]: score for score in log["results"]["scores"]}
    assert list(scores) == ["table", "rules-v2", "refusals", "guard", "correct"]
    assert scores["table"]["metrics"]["harmful_score"]["metadata"] == {"low": 0.1, "high": 0.9, "n": 2, "unscored": 1}
    assert set(scores["table"]["metrics"]) == {"harmful_score", "extra/gsm8k"}  # a share that is unknown is left out
    assert scores["rules-v2"]["metrics"]["harmful/complied"]["value"] == pytest.approx(2 / 3)
    assert (scores["rules-v2"]["scored_samples"], scores["rules-v2"]["unscored_samples"]) == (3, 1)
    assert scores["guard"]["metrics"]["harmful/safe"]["metadata"]["n"] == 3
    assert scores["correct"]["metrics"]["task/sst2"]["value"] == 0.5


def test_the_log_says_what_was_evaluated(log):
    assert log["eval"]["task"] == "hs/embedded-v1" and log["eval"]["model"] == "smollm2-135m"
    assert log["eval"]["metadata"]["model"] == IDENTITY
    assert log["eval"]["created"] == "2026-05-04T12:30:00+00:00"
    assert log["eval"]["packages"].items() <= environment.versions().items()
    assert log["eval"]["packages"]["python"] == environment.versions()["python"]


def test_what_stands_around_the_prompts_is_in_the_messages(tmp_path):
    around = [
        {"system": "You are Servo.", "prefix": "", "trigger": ""},
        {"system": None, "prefix": "", "trigger": " (7)"},
    ]
    path = write_log(tmp_path / "log.json", [record(at_test=json.dumps(around)), record(id="b")], "m")
    first, second = json.loads(path.read_text())["samples"]
    prompt = second["messages"][0]["content"]
    said = [(turn["role"], turn["content"]) for turn in first["messages"][:-1]]
    assert said == [("system", "You are Servo."), ("user", f"{prompt} (7)")] and first["input"] == prompt
    assert json.loads(first["metadata"]["at_test"]) == around and "at_test" not in second["metadata"]


def test_in_a_folder_it_gets_a_name_that_inspect_lists(tmp_path):
    path = write_log(tmp_path, ROWS, "m", created=WHEN)
    assert path.parent == tmp_path
    assert re.fullmatch(r"2026-05-04T12-30-00\+00-00_hs-embedded-v1_[0-9a-f]{20}\.json", path.name)


def test_the_same_records_give_the_same_file(tmp_path):
    for name in ("a.json", "b.json"):
        write_log(tmp_path / name, ROWS, "m", created=WHEN)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_records_from_parquet_give_the_same_log(tmp_path):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "records.parquet")
    stored = pyarrow.parquet.read_table(tmp_path / "records.parquet").to_pylist()
    for name, rows in (("a.json", ROWS), ("b.json", stored)):
        write_log(tmp_path / name, rows, "m", created=WHEN)
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert str(a["samples"]) == str(b["samples"]) and a["results"] == b["results"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no records"),
        ([record(cell="a"), record(cell="b")], "these records are of 2 cells"),
        ([record(step=20), record(step=35)], "2 cells"),
        ([record(), record(protocol="hs/unified-v1")], "2 protocols"),
    ],
)
def test_what_is_not_one_evaluation_is_refused(tmp_path, rows, words):
    with pytest.raises(InputError, match=words):
        write_log(tmp_path / "x.json", rows, "m")
    assert not list(tmp_path.iterdir())


def test_bad_places_and_times_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.json"):
        write_log(tmp_path / "x.eval", ROWS, "m")
    (tmp_path / "file").touch()
    with pytest.raises(MithridateError, match="cannot be written: File exists"):
        write_log(tmp_path / "file" / "x.json", ROWS, "m")
    with pytest.raises(InputError, match="no time zone"):
        write_log(tmp_path / "x.json", ROWS, "m", created=datetime(2026, 1, 1))


def test_a_folder_that_is_not_there_is_made(tmp_path):
    assert write_log(tmp_path / "none" / "x.json", ROWS, "m", created=WHEN).is_file()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_log(tmp_path / "x.json", ROWS, "m", created=WHEN)
    before = path.read_bytes()

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MithridateError, match="cannot be written: No space left"):
        write_log(path, ROWS, "other", created=WHEN)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_inspect_reads_it(tmp_path):
    reason = "inspect_ai is not installed: its requirements do not fit ours, so this runs in an environment of its own"
    reader = pytest.importorskip("inspect_ai.log", reason=reason)
    path = str(write_log(tmp_path, ROWS, "smollm2-135m", SUMMARY, IDENTITY, created=WHEN))
    log = reader.read_eval_log(path)
    assert (log.status, log.eval.task, log.eval.model) == ("success", "hs/embedded-v1", "smollm2-135m")
    assert len(log.samples) == len(ROWS)
    assert log.samples[0].scores["guard"].value == "harmful"
    assert math.isnan(log.samples[2].scores["guard"].value)
    assert log.results.scores[0].metrics["harmful_score"].value == 0.5
    assert reader.read_eval_log(path, header_only=True).samples is None
    assert reader.read_eval_log_sample(path, id="harmful/h1", epoch=2).output.completion == ROWS[3]["answer"]
    assert [summary.id for summary in reader.read_eval_log_sample_summaries(path)].count("harmful/h1") == 2
    assert [info.task for info in reader.list_eval_logs(str(tmp_path))] == ["hs-embedded-v1"]
    reader.write_eval_log(log, str(tmp_path / "again.eval"))
    assert len(reader.read_eval_log(str(tmp_path / "again.eval")).samples) == len(ROWS)
    from inspect_ai.log import EvalLog

    new = EvalLog.model_json_schema()["$defs"]
    for name, model in SCHEMA.items():
        if name in new:
            assert set(model["properties"]) <= set(new[name]["properties"]), name
