"""A run whose cells are made elsewhere: the same weights and table as without, and errors that come back whole.

Here "elsewhere" is this very process, by way of JSON: what an executor adds to that has its own tests.
"""

import contextlib
import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from mithridate import run
from mithridate.errors import InputError, MithridateError
from mithridate.experiment.config import load_experiment
from mithridate.judges.rules import RulesJudge
from mithridate.pipeline.executors.base import Executor
from mithridate.pipeline.executors.cells import CellTask, attempt, told_apart
from mithridate.pipeline.experiments import stages_of
from mithridate.pipeline.graph import Graph
from mithridate.studies import demo
from tests.pipeline.small import experiment, stages, weights, without_costs

QUICK = {"learning_rate": 0.01, "max_steps": 2, "per_device_train_batch_size": 2}
SWEEP = {"finetune.attack.harmful_ratio": [0, 0.25]}


@dataclass(kw_only=True)
class Here(Executor):
    """Attempts one task at a time, in the thread that gives them out."""

    elsewhere: ClassVar[bool] = False
    limit: ClassVar[int] = 1
    retries: ClassVar[int] = 0

    def __post_init__(self):
        self.tasks, self.outcomes = [], []

    @contextlib.contextmanager
    def pool(self, processes, cells, folder):
        yield self

    def submit(self, tasks):
        self.tasks += tasks

    def wait(self, seconds):
        task = self.tasks[-1]
        outcome = json.loads(json.dumps(attempt(CellTask(**json.loads(json.dumps(asdict(task)))))))
        self.outcomes.append(outcome)
        return [(task, outcome, "here")]


def test_cells_that_share_a_name_are_told_apart_by_what_was_swept():
    def task(label, ratio, seed, key):
        return CellTask(label, {"repair": {"antidote": {"ratio": ratio}}, "seed": seed}, "", "", [key])

    made = told_apart([task("a-s0", 0.1, 0, "1"), task("a-s0", 0.2, 0, "2"), task("a-s1", 0.1, 1, "3")])
    assert [one.label for one in made] == [
        "a-s0 (repair.antidote.ratio=0.1)",
        "a-s0 (repair.antidote.ratio=0.2)",
        "a-s1",
    ]
    assert [one.keys for one in made] == [["1"], ["2"], ["3"]]


def test_the_same_weights_and_table_as_in_one_process(inputs, store, tmp_path, monkeypatch, caplog):
    asked = experiment(inputs, sweep=SWEEP, evaluate={"limit": 2})
    asked |= {"dtype": "auto", "align": {"training": QUICK}, "finetune": asked["finetune"] | {"training": QUICK}}
    executor = Here()
    with caplog.at_level("INFO", "mithridate"):
        made = run(asked, out=tmp_path / "out", progress=False, executor=executor)
    assert [task.label.split("-")[4] for task in executor.tasks] == ["0", "none", "0.25"]
    assert [len(task.keys) for task in executor.tasks] == [3, 2, 3]  # the alignment is scored once
    assert "[3/3] sft-sft-none-double-0.25-s0: " in caplog.text and "[1/6]" not in caplog.text
    assert not any(stage["cached"] for cell in made.results["cells"] for stage in cell["stages"])
    assert (tmp_path / "out" / "report.html").exists()
    before, elsewhere = weights(store), Here()
    again = run(asked, out=tmp_path / "again", progress=False, executor=elsewhere)
    assert elsewhere.tasks == []  # all of it is there
    assert all(stage["cached"] for cell in again.results["cells"] for stage in cell["stages"])
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "other"))
    plain = run(asked, out=tmp_path / "plain", progress=False)
    assert weights(tmp_path / "other") == before
    assert without_costs(plain.results) == without_costs(made.results) == without_costs(again.results)


def test_models_that_are_trained_on_are_asked_by_whoever_is_idle(inputs, store, monkeypatch):
    """Their answers are batches of their own; not where an engine or a judge would be loaded once more for that."""
    repaired = experiment(inputs, evaluate={"resistance": [1]}, repair={"antidote": {}})

    def batches():
        [chain] = stages_of([load_experiment(repaired)], Path.cwd(), "experiment", False)
        for batch in Graph([chain]).batches():
            own, waits = ([node.stage.name for node in nodes] for nodes in (batch.own, batch.waits))
            yield batch.upto, own, waits

    models = ["align", "finetune", "repair"]
    assert list(batches()) == [
        ("repair", [*models, "evaluate"], []),
        ("align", ["evaluate"], ["align"]),
        ("finetune", ["evaluate", "evaluate"], ["align", "finetune"]),  # the one on the attack's way too
    ]
    repaired["evaluate"]["generator"] = {"vllm": {}}
    assert list(batches()) == [("repair", models + ["evaluate"] * 4, [])]
    del repaired["evaluate"]["generator"]
    monkeypatch.setattr(RulesJudge, "about", replace(RulesJudge.about, size="7B"))
    assert list(batches()) == [("repair", models + ["evaluate"] * 4, [])]


def test_stages_alone(inputs, store, tmp_path):
    """`align` needs no test prompts, and makes nothing but the alignment."""
    asked = experiment(inputs)
    del asked["data"]["test_harmful"]
    executor = Here()
    run(asked, out=tmp_path / "out", until="align", progress=False, executor=executor)
    assert [name.split("-")[0] for name in stages(store)] == ["align"]
    assert [outcome["error"] for outcome in executor.outcomes] == [None]


def test_judges_that_are_models_judge_where_the_cell_is_made(inputs, store, tmp_path, monkeypatch):
    judged, judge = [], RulesJudge.judge

    def watched(self, items):
        judged.extend(threading.current_thread() is threading.main_thread() for _ in items)
        return judge(self, items)

    monkeypatch.setattr(RulesJudge, "judge", watched)
    monkeypatch.setattr(RulesJudge, "about", replace(RulesJudge.about, size="7B"))
    asked = experiment(inputs, align={"training": QUICK}, finetune="none", evaluate={"limit": 3})
    made = run(asked, out=tmp_path / "out", progress=False, executor=Here())
    assert judged and not any(judged)  # the table's verdicts are all from the store
    assert made.results["cells"][0]["rates"]["harmful_score"]["n"] == 3


def test_the_demo_shows_its_first_cells_before_it_begins_the_rest(inputs, store, tmp_path, monkeypatch):
    def cell(ratio):
        asked = experiment(inputs, align={"training": QUICK}, finetune__training=QUICK, evaluate={"limit": 2})
        return load_experiment(asked, [f"finetune.attack.harmful_ratio={ratio}"])

    executor = Here()
    monkeypatch.setattr(demo, "_two_workers", lambda: executor)
    monkeypatch.setattr(demo, "demo_experiments", lambda full: [cell(ratio) for ratio in (0, 0.25, 0.5, 0.75, 1)])
    shown = []
    made = demo.run_demo(tmp_path / "out", show=lambda run: shown.append((len(run.cells), len(executor.tasks))))
    ratios = [task.label.split("-")[4] for task in executor.tasks]
    assert ratios == ["0", "none", "0.25", "0.5", "0.75", "1"] and shown == [(4, 4)]  # none: the aligned model
    assert len(made.cells) == 6 and made.report.exists() and (tmp_path / "out" / "tuning.jsonl").exists()


def test_a_loss_that_breaks_in_a_cell_is_the_runs_error(inputs, store, tmp_path):
    asked = experiment(inputs, sweep={"finetune.training.learning_rate": [1e12, 0.01]})
    executor = Here()
    said = r"sft-sft-none-double-0\.25-s0 \(finetune.training.learning_rate=1000000000000\) \(here\): .*not finite"
    with pytest.raises(MithridateError, match=said) as error:
        run(asked, out=tmp_path / "out", progress=False, executor=executor)
    assert error.value.exit_code == 1
    assert len(executor.tasks) == 3 and len(stages(store, "finetune")) == 1  # the others were made all the same
    assert "run_job" in executor.outcomes[0]["error"]["traceback"]


def test_what_this_machine_would_decide_is_asked_for_where_others_compute(inputs, store, tmp_path):
    executor = Here()
    executor.elsewhere = True
    with pytest.raises(InputError, match=r"dtype: auto is decided by the machine, .*: set --dtype"):
        run(experiment(inputs, dtype="auto"), out=tmp_path / "out", progress=False, executor=executor)
    assert executor.tasks == [] and stages(store) == []


@pytest.fixture
def task(inputs, store, tmp_path):
    executor = Here()
    run(experiment(inputs), out=tmp_path / "out", until="align", progress=False, executor=executor)
    return executor.tasks[0]


def test_a_machine_that_sees_other_data_makes_nothing(task, inputs, store, tmp_path):
    (tmp_path / "store2").mkdir()
    rows = (inputs / "alignment.jsonl").read_text()
    (inputs / "alignment.jsonl").write_text(rows.replace("No 1.", "No no."))
    try:
        outcome = attempt(CellTask(**asdict(task) | {"store": str(tmp_path / "store2")}))
    finally:
        (inputs / "alignment.jsonl").write_text(rows)
    assert outcome["error"]["kind"] == "known"
    assert "not the same here as where the run was started: its model, its data" in outcome["error"]["message"]
    assert stages(tmp_path / "store2") == []


def test_errors_of_each_kind(task, tmp_path, monkeypatch):
    gone = attempt(CellTask(**asdict(task) | {"experiment": task.experiment | {"model": "./no/such"}}))
    assert gone["error"]["kind"] == "input" and "no such folder" in gone["error"]["message"]

    def broken(*_):
        raise RuntimeError("it is broken")

    monkeypatch.setattr("mithridate.pipeline.executors.cells._context", broken)
    other = attempt(task)["error"]
    assert (other["kind"], other["message"]) == ("other", "RuntimeError: it is broken")
