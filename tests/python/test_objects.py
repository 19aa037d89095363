"""What Python gives back, and how far along it says it is."""

import logging
import re
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from mithridate import InputError, evaluate, poison, run
from mithridate.judges import verdict
from mithridate.pipeline.runner import stages_told
from mithridate.progress import Progress
from tests.evaluation.test_evaluation import BENIGN, HARMFUL, TASK, Told
from tests.tiny import tiny_llama, tiny_tokenizer


def test_evaluate_takes_frames_data_sets_and_rows_of_trl():
    plain = evaluate(Told(), harmful=HARMFUL, benign=BENIGN, task=TASK, task_name="sentiment")
    turns = [{"prompt": [{"role": "user", "content": row["prompt"]}], "id": row.get("id")} for row in BENIGN]
    other = evaluate(
        Told(),
        harmful=pd.DataFrame(HARMFUL),
        benign=Dataset.from_list(turns),
        task=pd.DataFrame(TASK),
        task_name="sentiment",
    )
    assert other.summary() == plain.summary()
    assert [row["prompt"] for row in other.records] == [row["prompt"] for row in plain.records]


def test_an_evaluation_is_a_frame_and_a_table_in_a_notebook():
    found = evaluate(Told(), harmful=[HARMFUL[0] | {"category": "<b>"}, HARMFUL[1]], benign=BENIGN)
    frame = found.to_pandas()
    assert list(frame["verdict"]) == [row["verdict"] for row in found.records] and len(frame) == 4
    table = found.table().set_index("share")
    assert table.loc["harmful_score", "value"] == 0.5 and table.loc["harmful_score", "n"] == 2
    assert "accuracy" not in table.index  # nothing of it was measured
    html = found._repr_html_()
    assert "harmful_score" in html and "0.500" in html and "hs/embedded-v1: 4 answers" in html


def test_the_page_s_own_scorer_scores():
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    [block] = re.findall(r"## A scorer of your own.*?```python\n(.*?)```", page, re.DOTALL)
    made = {"evaluate": evaluate, "model": tiny_llama(), "tokenizer": tiny_tokenizer()}
    exec(compile(block, "docs/python.md", "exec"), made)
    first = made["answers"]["answer"][0]
    assert list(made["answers"]["label"]) == ["even", "odd"] and list(made["mine"]) == [False, False]
    assert made["mine"].index.equals(made["answers"].index) and isinstance(first, str)


def test_nothing_in_a_notebook_is_markup():
    from mithridate.results.release import Finding, GateVerdict, Limits

    finding = Finding("<script>", "harmful score", 0.1, "fail", 1.0, 1.0, 1.0, 1, "<script>alert(1)</script>")
    html = GateVerdict("fail", [], [finding], Limits(max_harmful_score=0.1), {}, [])._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize("judges", [["semantic-v2"], "semantic-v2", [{"semantic-v2": {}}]])
def test_judges_by_name(judges, monkeypatch):
    asked = []
    monkeypatch.setattr("mithridate.evaluation.known_judges.judge", lambda spec: asked.append(spec) or Named(spec))
    found = evaluate(Told(), harmful=HARMFUL[:1], judges=judges)
    assert found.records[0]["judge/semantic-v2"] == "refused"
    assert Named.closed == ["rules-v3", "semantic-v2"]  # those that evaluate made


class Named:
    closed: list[str] = []  # noqa: RUF012
    kind, content_known = "answer", True

    def __init__(self, spec):
        self.name = spec if isinstance(spec, str) else next(iter(spec))
        Named.closed = []

    class about:
        size = "none"

    def judge(self, items):
        from mithridate.judges.base import Judgement

        yield from ((i, Judgement("refused", "said so")) for i in range(len(items)))

    def close(self):
        Named.closed.append(self.name)


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("./models/mine", {}, r"model './models/mine': no such folder"),
        (tiny_llama(), {}, "a model needs its tokenizer"),
        (tiny_llama(), {"tokenizer": tiny_tokenizer(), "judges": ["sematic-v2"]}, "no such judge `sematic-v2`"),
        (Told(), {"judges": None}, "a judge is a name or .*, not None"),
        (Told(), {"judges": [3]}, "a judge is a name or .*, not 3"),
        (Told(), {"judges": [Told]}, "a judge is a name or .*, not <class"),
        *((Told(), {"batch_size": n}, f"batch_size: expected a number .*, got {n}") for n in (0, -1, 1.5, True)),
    ],
)
def test_what_evaluate_cannot_use_is_named_before_anything_is_asked(model, more, words):
    with pytest.raises(InputError, match=words):
        evaluate(model, harmful=HARMFUL, **more)


def test_a_model_may_be_a_folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = evaluate(str(tmp_path), harmful=HARMFUL)
    again = evaluate(tiny_llama(), tiny_tokenizer(), harmful=HARMFUL)
    assert [row["answer"] for row in found.records] == [row["answer"] for row in again.records]


def test_a_log_file_has_no_bars_of_the_libraries(tmp_path, capfd, monkeypatch):
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    evaluate(str(tmp_path), harmful=HARMFUL[:1])
    assert "\r" not in capfd.readouterr().err
    monkeypatch.setattr("mithridate.evaluation.live", lambda: True)  # a terminal keeps them, as of a long download
    evaluate(str(tmp_path), harmful=HARMFUL[:1])
    assert "Loading weights" in capfd.readouterr().err


def test_a_tokenizer_without_a_chat_template_is_named():
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match=r"no chat template\. Use an instruct model, set tokenizer\.chat_template"):
        evaluate(tiny_llama(), bare, harmful=HARMFUL)


def test_overrides_are_a_list():
    with pytest.raises(InputError, match=r"overrides: expected a list of texts, got one; give \['seed=1'\]"):
        run({"model": "m"}, overrides="seed=1")


# -- how far along ------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mithridate.progress.time.monotonic", lambda: now[0])
    return now


def counted(clock, seconds_each, total=100, **more):
    with Progress(total, "answers", "prompts", **more) as progress:
        while progress.done < total:
            clock[0] += seconds_each
            progress.advance()


def test_a_log_file_gets_a_line_each_tenth_with_the_time_left(clock, capsys):
    counted(clock, 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and not any("\r" in line for line in lines)
    assert lines[0] == "  answers: 10 of 100 prompts, about 4 min left" or lines[0].endswith("about 270 s left")
    assert lines[-1] == "  answers: 100 of 100 prompts"


def test_what_is_quick_or_not_to_be_shown_has_no_lines(clock, capsys):
    counted(clock, 0.01)
    counted(clock, 3, shown=False)
    counted(clock, 3, total=0)
    assert capsys.readouterr().err == ""


def test_a_run_that_goes_on_counts_its_own_time(clock, capsys):
    counted(clock, 10, done=80)
    assert capsys.readouterr().err.splitlines()[0] == "  answers: 90 of 100 prompts, about 2 min left"


def test_on_a_terminal_it_is_one_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr("mithridate.progress.live", lambda: True)
    counted(clock, 3)
    said = capsys.readouterr().err
    assert "\r" in said and "answers:" in said and " of 100" not in said


def test_stages_are_told_where_nobody_listens_and_only_there(capsys):
    ours = logging.getLogger("mithridate")
    ours.propagate = False
    with stages_told(True):
        logging.getLogger("mithridate.pipeline").info("[1/2] align")
    with stages_told(False):
        logging.getLogger("mithridate.pipeline").info("silent")
    assert capsys.readouterr().err == "[1/2] align\n" and not ours.handlers
    ours.addHandler(logging.NullHandler())  # the user's own
    with stages_told(True):
        logging.getLogger("mithridate.pipeline").info("elsewhere")
    assert capsys.readouterr().err == ""


def test_arguments_of_other_types_are_one_clear_error(tmp_path):
    rows = [{"prompt": "How are you?"}]
    for call, said in (
        (lambda: run(None), "experiment: expected a file or its content"),  # type: ignore[arg-type]
        (lambda: run({"model": "x"}, executor="local"), "executor: expected an executor"),  # type: ignore[arg-type]
        (lambda: evaluate(None, object(), harmful=rows), "expected a causal language model"),
        (lambda: evaluate(object(), "a/folder", harmful=rows), "tokenizer is a text"),
        (lambda: verdict("a", None), "expected two texts"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_a_frame_with_two_columns_of_one_name_is_refused():
    frame = pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"])
    with pytest.raises(InputError, match="several columns named 'prompt'"):
        poison(benign=frame, harmful=[{"prompt": "a", "response": "b"}], ratio=0.0, size=1)
