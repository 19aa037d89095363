"""lm-eval on a model that is loaded already: the real library where it is installed, its results' form everywhere."""

import json
import sys
import types

import pytest

from mithridate.data.tasks.capability import CapabilityScore, capability
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from tests.tiny import tiny_llama, tiny_tokenizer

RESULTS = {
    "results": {
        "tiny_choice": {
            "alias": "tiny_choice",
            "acc,none": 0.75,
            "acc_stderr,none": 0.25,
            "exact_match,strict": 0.5,
            "exact_match_stderr,strict": "N/A",
        }
    },
    "versions": {"tiny_choice": 2.0},
    "n-shot": {"tiny_choice": 5},
    "n-samples": {"tiny_choice": {"original": 40, "effective": 4}},
    "higher_is_better": {"tiny_choice": {"acc": True}},
}


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for lm-eval that notes how it was called, and answers with RESULTS or raises `calls["error"]`."""
    calls = {}

    def simple_evaluate(**arguments):
        calls.update(arguments)
        calls["was_training"] = arguments["model"].model.training
        arguments["model"].model.eval()
        if "error" in calls:
            raise calls["error"]
        return calls.get("results", RESULTS)

    class HFLM:
        def __init__(self, pretrained, tokenizer, batch_size):
            self.model, self.tokenizer, self.batch_size = pretrained, tokenizer, batch_size

    class TaskManager:
        def __init__(self, include_path):
            calls["include_path"], self.all_tasks = include_path, ["tiny_choice", "arc_easy"]

    names = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.tasks": {"TaskManager": TaskManager},
    }
    for name, contents in names.items():
        made = types.ModuleType(name)
        made.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, made)
    return calls


def test_scores_are_read_from_lm_evals_results(fake, tmp_path):
    model, tokenizer = tiny_llama().train(), tiny_tokenizer()
    scores = capability(model, tokenizer, ["tiny_choice"], limit=4, shots=5, batch_size=3, folder=tmp_path)
    assert scores == [
        CapabilityScore("tiny_choice", "2.0", "acc", 0.75, 0.25, 4, 5, True),
        CapabilityScore("tiny_choice", "2.0", "exact_match,strict", 0.5, None, 4, 5, None),
    ]
    assert (fake["model"].model, fake["model"].tokenizer, fake["model"].batch_size) == (model, tokenizer, 3)
    assert (fake["tasks"], fake["num_fewshot"], fake["limit"]) == (["tiny_choice"], 5, 4)
    assert (fake["apply_chat_template"], fake["include_path"]) == (False, str(tmp_path))
    assert model.training


def test_lm_evals_own_errors_are_one_clear_one_and_the_model_is_as_before(fake):
    fake["error"] = ConnectionError("Couldn't reach the Hub\nat line 3")
    model = tiny_llama().train()
    with pytest.raises(MithridateError, match=r"lm-eval failed on arc_easy: Couldn't reach the Hub\. If") as caught:
        capability(model, tiny_tokenizer(), ["arc_easy"])
    assert not isinstance(caught.value, InputError)
    assert model.training


def test_results_without_a_number_are_an_error(fake):
    fake["results"] = {"results": {"arc_easy": {"alias": "arc_easy"}}, "n-samples": {}}
    with pytest.raises(MithridateError, match="no number for arc_easy"):
        capability(tiny_llama(), tiny_tokenizer(), ["arc_easy"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "No capability tasks"),
        ({"tasks": ["arc_eazy"]}, "no task 'arc_eazy'; did you mean `arc_easy`"),
        ({"tasks": ["arc_easy"], "limit": 0}, "limit 0 must be 1 or more"),
        ({"tasks": ["arc_easy"], "batch_size": 0}, "batch_size 0"),
        ({"tasks": ["arc_easy"], "shots": -1}, "shots -1"),
    ],
)
def test_bad_input_is_refused(fake, arguments, message):
    with pytest.raises(InputError, match=message):
        capability(tiny_llama(), tiny_tokenizer(), **arguments)
    assert "model" not in fake


def test_a_folder_that_is_not_there_is_refused(fake, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        capability(tiny_llama(), tiny_tokenizer(), ["arc_easy"], folder=tmp_path / "nowhere")


def test_without_lm_eval_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UnsupportedSetup, match=r"pip install 'mithridate\[lm-eval\]'"):
        capability(tiny_llama(), tiny_tokenizer(), ["arc_easy"])


def write_tasks(folder) -> None:
    """A choice task, a generation task and a group of two, over a local JSON file."""
    rows = [{"question": f"thing {i}", "choices": ["no", "yes"], "answer": i % 2} for i in range(6)]
    data = folder / "rows.json"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
"""
    for name in ("tiny_choice", "tiny_other"):
        (folder / f"{name}.yaml").write_text(
            f"""task: {name}
output_type: multiple_choice
doc_to_choice: choices
metadata: {{version: 3.0}}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
{common}"""
        )
    (folder / "tiny_words.yaml").write_text(
        f"""task: tiny_words
output_type: generate_until
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 4}}
metadata: {{version: 1.0}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
{common}"""
    )
    (folder / "tiny_pair.yaml").write_text(
        """group: tiny_pair
task: [tiny_choice, tiny_other]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata: {version: 1.0}
"""
    )


def test_the_real_lm_eval_scores_a_tiny_model_offline(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
    write_tasks(tmp_path)
    model, tokenizer = tiny_llama().train(), tiny_tokenizer()
    scores = capability(model, tokenizer, ["tiny_pair", "tiny_words"], limit=4, folder=tmp_path, batch_size=2)
    by_task = {score.task: score for score in scores}
    assert set(by_task) == {"tiny_pair", "tiny_choice", "tiny_other", "tiny_words"}
    choice = by_task["tiny_choice"]
    assert (choice.metric, choice.version, choice.n, choice.shots, choice.higher_is_better) == (
        "acc",
        "3.0",
        4,
        0,
        True,
    )
    assert by_task["tiny_pair"].n == 8
    assert by_task["tiny_words"].metric == "exact_match"
    assert choice.value == _by_hand(model, tokenizer) and choice.stderr is not None
    assert model.training
    with pytest.raises(InputError, match="did you mean `tiny_choice`"):
        capability(model, tokenizer, ["tiny_choise"], folder=tmp_path)
    (tmp_path / "tiny_words.yaml").write_text(
        (tmp_path / "tiny_words.yaml").read_text().replace("rows.json", "gone.json")
    )
    with pytest.raises(MithridateError, match="lm-eval failed on tiny_words"):
        capability(model, tokenizer, ["tiny_words"], folder=tmp_path)


def _by_hand(model, tokenizer) -> float:
    """Share of the four questions whose right choice is the likelier continuation."""
    import torch

    right = 0
    for i in range(4):
        scores = []
        for choice in ("no", "yes"):
            ids = torch.tensor([tokenizer(f"thing {i} {choice}", add_special_tokens=False)["input_ids"]])
            context = len(tokenizer(f"thing {i}", add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                logs = model.eval()(ids).logits.log_softmax(-1)[0]
            scores.append(float(sum(logs[t - 1, ids[0, t]] for t in range(context, ids.shape[1]))))
        right += scores[i % 2] > scores[1 - i % 2]
    model.train()
    return right / 4
