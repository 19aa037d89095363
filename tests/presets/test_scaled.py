"""A preset as experiments: what scaling changes and what it never does, own data, overrides, what is left out."""

import pytest

from mithridate.errors import InputError
from mithridate.methods.steps import optimizer_steps
from mithridate.studies.presets import preset
from mithridate.studies.presets.scaled import Asked, plan


def of(name, **asked):
    return plan(preset(name), Asked(**asked))


def test_unscaled_it_is_the_preset_itself():
    made = of("booster-2025")
    assert [case.arm for case in made.cases] == [
        arm for arm in ("sft", "lisa", "vaccine", "booster") for _ in range(5)
    ]
    case = made.cases[-1]
    assert case.at == {"finetune.attack.harmful_ratio": 0.2}
    assert case.experiment.topology == "single" and case.experiment.align.defense == {
        "booster": {"lam": 5.0, "alpha": 0.1}
    }
    assert (case.experiment.finetune.attack.size, case.experiment.evaluate.limit) == (1000, None)
    assert made.deviations == []


def test_scaling_takes_rows_and_prompts_and_never_a_methods_values():
    whole, made = of("antidote-2025"), of("antidote-2025", scale=0.1)
    before, after = (one.cases[-1].experiment for one in (whole, made))
    assert [s.take for s in after.data["alignment"] + after.data["calibration_harmful"]] == [500, 200]
    assert (after.finetune.attack.size, after.evaluate.limit) == (500, 100)
    assert after.repair == before.repair and after.align.training == before.align.training
    assert after.finetune.training == before.finetune.training and after.adapter == before.adapter
    [said, *_] = made.deviations
    for words in ("500 rows of alignment in place of 5000", "at most 100 prompts", "align 2000 in place of 20000"):
        assert words in said


def test_steps_of_a_training():
    assert optimizer_steps({"num_train_epochs": 20, "per_device_train_batch_size": 10}, 1000) == 2000
    assert (
        optimizer_steps({"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 9)
        == 4
    )
    assert optimizer_steps({"max_steps": 7, "num_train_epochs": 2}, 9) == 7


def test_what_is_too_small_is_left_out_and_said():
    made = of("vaccine-2024", scale=0.05)
    assert 0.01 not in {case.at["finetune.attack.harmful_ratio"] for case in made.cases}
    assert [text for text in made.deviations if text.startswith("left out: vaccine at harmful_ratio 0.01: of 50 rows")]
    made = of("booster-2025", scale=0.05)
    assert {case.arm for case in made.cases} == {"sft", "vaccine", "booster"}
    with pytest.raises(InputError, match=r"nothing of it can be run.*too few for lisa, which needs 1000"):
        of("lisa-2024", scale=0.01)


def test_own_data():
    made = of("booster-2025", scale=0.1, data={"alignment": "mine.jsonl", "attacker_harmful": {"source": "bad.csv"}})
    data = made.cases[0].experiment.data
    [mine], [bad] = data["alignment"], data["attacker_harmful"]
    assert (mine.source, mine.take, mine.share) == ("mine.jsonl", 500, None)
    assert (bad.source, bad.take, bad.share) == ("bad.csv", None, None)
    assert "data.alignment: mine.jsonl in place of PKU-Alignment/BeaverTails" in made.deviations
    with pytest.raises(InputError, match="did you mean `alignment`"):
        of("booster-2025", data={"aligment": "mine.jsonl"})


def test_overrides_fix_a_swept_field_and_reach_the_arms_that_have_the_method():
    made = of(
        "booster-2025",
        overrides=["finetune.attack.harmful_ratio=0.1", "align.defense.booster.lam=20.0", "seed=7"],
    )
    assert len(made.cases) == 4 and {case.experiment.seed for case in made.cases} == {7}
    lams = [case.experiment.align.defense.get("booster", {}).get("lam") for case in made.cases]
    assert lams == [None, None, None, 20.0]
    assert "override: align.defense.booster.lam=20.0" in made.deviations
    made = of("booster-2025", overrides=["sweep.seed=[0, 1]"], arms=["sft"])
    assert [case.experiment.seed for case in made.cases] == [0, 1] * 5
    for override, words in (
        ("repair.antidote.ratio=0.1", "no arm of booster-2025 has repair.antidote"),
        ("seed", "expected path.to.field=value"),
        ("sweep.seed=0", "expected a list"),
    ):
        with pytest.raises(InputError, match=words):
            of("booster-2025", overrides=[override])


def test_the_rehearsal_takes_no_more_rows_than_there_are():
    made = of("booster-2025", embedded=True, model="smollm2-135m")
    experiment = made.cases[-1].experiment
    assert {s.source for sources in experiment.data.values() for s in sources} == {"embedded"}
    assert experiment.data["defender_harmful"][0].paired
    assert experiment.evaluate.protocol == "hs/embedded-v1"
    assert experiment.finetune.attack.size == 256  # all benign rows, at ratio 0
    assert any("rehearsal" in text for text in made.deviations)
    assert made.deviations[0] == "model: smollm2-135m in place of meta-llama/Llama-2-7b-hf"


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan")])
def test_a_bad_scale(scale):
    with pytest.raises(InputError, match="--scale"):
        of("booster-2025", scale=scale)
