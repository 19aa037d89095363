"""Several answers to a prompt: what is drawn, what the records and the table say, and what is refused."""

import json

import pytest

from mithridate import run
from mithridate.errors import InputError
from mithridate.evaluation import Sampling, evaluate, summarise
from mithridate.experiment.config import load_experiment
from mithridate.pipeline.experiments import stages_of
from mithridate.statistics import paired_by_prompt, proportion, proportion_by_prompt
from tests.gate.runs import HARMFUL, LISA, answered, shares, write_run
from tests.gate.runs import experiment as cell_of
from tests.pipeline.small import experiment, write_inputs
from tests.tiny import tiny_llama, tiny_tokenizer

SAMPLED = {"samples": 3, "temperature": 0.9}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / "store"))


# -- shares ------------------------------------------------------------------------------------------------------


def rows(*verdicts):
    """One prompt a text; r refused, c complied, ? unscored."""
    words = {"r": "refused", "c": "complied", "?": None}
    return [
        {"set": "harmful", "prompt": f"p{i}", "sample": k, "verdict": words[sign], "judge": "rules", "correct": None}
        | {"protocol": "hs/embedded-v1"}
        for i, text in enumerate(verdicts)
        for k, sign in enumerate(text)
    ]


def test_mean_any_and_worst_of_k():
    found = summarise(rows("rrr", "rcr", "ccc", "r?r", "c?r"))["harmful_score"]
    answers = {"p0": [0, 0, 0], "p1": [0, 1, 0], "p2": [1, 1, 1], "p3": [0, 0], "p4": [1, 0]}
    wide = proportion_by_prompt(answers)
    assert found["value"] == 5 / 13 and (found["n"], found["unscored"], found["samples"]) == (13, 2, 3)
    assert (found["low"], found["high"]) == (wide["low"], wide["high"])
    assert found["any_of_k"] == proportion(3, 4) | {"unscored": 1}  # p3 may have complied in its second answer
    assert found["worst_of_k"] == proportion(4, 5)


def test_the_interval_is_of_prompts_not_of_answers():
    """Ten answers that are always alike tell no more than one."""
    alike, alone = summarise(rows(*["c" * 10] * 10, *["r" * 10] * 10)), summarise(rows(*"c" * 10, *"r" * 10))
    assert alike["harmful_score"]["low"] < alone["harmful_score"]["low"] + 0.02
    assert "samples" not in alone["harmful_score"] and "any_of_k" not in alone["harmful_score"]


# -- a run -------------------------------------------------------------------------------------------------------


def test_a_sampled_run(inputs, tmp_path):
    made = experiment(inputs, finetune__defense={"lisa": {"align_steps": 1, "finetune_steps": 2}}, evaluate=SAMPLED)
    finished = run(made, out=tmp_path / "out", progress=False)
    records = finished.records()
    for (_, kind), part in records.groupby(["cell", "set"]):
        k = 1 if kind == "task" else 3
        assert len(part) == 8 * k and set(part["sample"]) == set(range(k))
        assert part.groupby("prompt")["sample"].nunique().eq(k).all()
    several = records[records["set"] == "harmful"].groupby(["cell", "prompt"])["answer"].nunique()
    assert (several > 1).mean() > 0.5  # drawn, not repeated
    for cell in finished.results["cells"]:
        for rate in (cell["rates"][name] for name in ("harmful_score", "refused", "benign_refusal")):
            assert rate["n"] == 24 and rate["samples"] == 3
            assert rate["value"] <= rate["any_of_k"]["value"] <= rate["worst_of_k"]["value"]
        assert cell["rates"]["accuracy"]["n"] == 8 and "samples" not in cell["rates"]["accuracy"]
    pair = next(cell["paired"] for cell in finished.results["cells"] if cell["paired"])
    assert pair["n"] == 8 and {"difference", "low", "high", "p_value", "p_holm", "discordant"} <= set(pair)
    deviations = finished.results["deviations"]
    assert "samples: 3 in place of 1" in deviations and "temperature: 0.9 in place of 0.0" in deviations
    assert "number of prompts: 8 in place of 112" in deviations
    assert finished.report.exists()


def test_a_sampled_run_is_compared_over_all_samples_of_each_prompt(tmp_path):
    """Not over the last ones, and not as if answers were prompts: whole prompts are swapped."""

    def sampled(*counts):
        """As many prompts complied with as `counts` says, sample by sample."""
        made = [(k, answered(shares(count, HARMFUL), ["complied"])) for k, count in enumerate(counts)]
        return [row | {"sample": k} for k, rows in made for row in rows if not (k and row["set"] == "task")]

    plain, defended = sampled(80, 60, 70), sampled(40, 10, 5)
    models = [(cell_of(), "finetune", plain), (cell_of(defense=LISA), "finetune", defended)]
    folder = write_run(tmp_path, models)
    pair = json.loads((folder / "results.json").read_text())["cells"][1]["paired"]
    outcomes = []
    for rows in (defended, plain):
        asked = {row["prompt"]: [] for row in rows if row["set"] == "harmful"}
        for row in rows:
            if row["set"] == "harmful":
                asked[row["prompt"]].append(row["verdict"] == "complied")
        outcomes.append(asked)
    reference = paired_by_prompt(*outcomes)
    for name in ("difference", "low", "high", "p_value", "n"):
        assert pair[name] == pytest.approx(reference[name])
    assert pair["difference"] == pytest.approx((55 - 210) / 336) and pair["n"] == 112


def test_the_same_seed_draws_the_same_answers_in_any_batches(inputs, tmp_path, monkeypatch):
    made = experiment(inputs, align=None, finetune=None)

    def answers(store, batch_size, seed=0):
        monkeypatch.setenv("MITHRIDATE_STORE", str(tmp_path / store))
        asked = made | {
            "seed": seed,
            "evaluate": {**SAMPLED, "generator": {"transformers": {"batch_size": batch_size}}},
        }
        return run(asked, out=tmp_path / f"{store}-out", progress=False).records()["answer"].tolist()

    first = answers("one", 2)
    assert answers("two", 64) == first and answers("three", 64, seed=1) != first


def test_seeds_of_a_sampled_run_are_together_as_their_records_say(inputs, tmp_path):
    made = experiment(inputs, align=None, finetune=None, evaluate=SAMPLED, sweep={"seed": [0, 1, 2]})
    finished = run(made, out=tmp_path / "out", progress=False)
    [group] = finished.results["across_seeds"]
    asked = finished.records().query("set == 'harmful'")
    counts = asked.assign(
        hit=asked["verdict"].eq("complied"), open=asked["verdict"].isna() | asked["verdict"].eq("unclear")
    )
    shares = counts[~counts["open"]].groupby(["cell", "prompt"])["hit"].mean().unstack("cell").dropna()
    score = group["rates"]["harmful_score"]
    assert score["value"] == pytest.approx(shares.to_numpy().mean()) and score["low"] is not None
    assert (score["seeds"], score["samples"], score["prompts"]) == (3, 3, len(shares))
    worst = (counts["hit"] | counts["open"]).groupby([counts["cell"], counts["prompt"]]).any()
    assert score["worst_of_k"]["value"] == pytest.approx(worst.mean())
    assert group["rates"]["accuracy"]["seeds"] == 3 and "samples" not in group["rates"]["accuracy"]
    assert "Several samples per prompt" in finished.report.read_text()


def test_keys_of_greedy_evaluations_are_those_that_they_were(inputs, tmp_path):
    """Nothing of samples, or of a seed, is in the configuration of a stage that has none."""

    def stage(**evaluate):
        made = load_experiment(experiment(inputs, align=None, finetune=None, evaluate=evaluate))
        [chain] = stages_of([made], tmp_path, "experiment", progress=False)
        return chain.evaluation("align")

    greedy = {"protocol", "generator", "limit", "sets", "upto", "step", "topology", "dtype"}
    assert set(stage().config) == greedy
    sampled = stage(**SAMPLED)
    assert sampled.config["sampling"] == {"samples": 3, "temperature": 0.9, "seed": 0}
    assert len({stage().key, sampled.key, stage(**{**SAMPLED, "samples": 4}).key}) == 3


# -- from Python -------------------------------------------------------------------------------------------------


def test_evaluate_takes_a_sampling():
    asked = [{"prompt": f"How is box {i} opened?"} for i in range(4)]
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    found = evaluate(model, tokenizer, harmful=asked, sampling=Sampling(5, 1.0))
    assert [row["sample"] for row in found.records] == [0, 1, 2, 3, 4] * 4
    assert found.summary()["harmful_score"]["samples"] == 5
    again = evaluate(model, tokenizer, harmful=asked, sampling=Sampling(5, 1.0), batch_size=3)
    assert [row["answer"] for row in again.records] == [row["answer"] for row in found.records]


@pytest.mark.parametrize("given", [(0, 1.0), (True, 1.0), (2, 0.0), (2, -1.0), (2, float("nan"))])
def test_a_sampling_that_means_nothing(given):
    with pytest.raises(InputError, match=r"expected"):
        Sampling(*given)


# -- refused before anything is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        ({"temperature": 0.7}, "evaluate.temperature: needs evaluate.samples"),
        ({"samples": 5}, "evaluate.samples: needs evaluate.temperature"),
        ({"samples": 5, "temperature": 0}, "evaluate.temperature: at 0 all samples are the greedy answer"),
        ({"samples": 1, "temperature": 0}, "evaluate.temperature: at 0 all samples are the greedy answer"),
        ({"samples": 0, "temperature": 0.7}, "evaluate.samples: expected 1 to 1000 answers to a prompt, got 0"),
        ({"samples": 5, "temperature": -0.1}, "evaluate.temperature: expected above 0, up to 2, got -0.1"),
        ({"samples": 5, "temperature": 7}, "evaluate.temperature: expected above 0, up to 2, got 7"),
        ({"samples": 2.5, "temperature": 1}, "evaluate.samples: "),
        ({"samples": 5, "temprature": 1}, "did you mean `temperature`"),
    ],
)
def test_refused(inputs, evaluate, words):
    with pytest.raises(InputError) as error:
        load_experiment(experiment(inputs, evaluate=evaluate))
    assert words in str(error.value)


def test_one_sample_at_a_temperature_is_one_drawn_answer(inputs):
    made = load_experiment(experiment(inputs, evaluate={"samples": 1, "temperature": 0.7}))
    assert made.evaluate.sampling(3) == Sampling(1, 0.7, 3)
    assert load_experiment(json.loads(json.dumps(experiment(inputs)))).evaluate.sampling(3) is None
