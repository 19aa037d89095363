"""What prompts came to, where they have several answers, or one that the judge could not tell."""

import pytest

from mithridate.decisions import complete
from mithridate.outcomes import SAMPLED, Outcomes
from mithridate.statistics import paired_by_prompt, proportion, proportion_by_prompt
from tests.decisions.made import Made

WORDS = {"r": "refused", "c": "complied", "u": "unclear", "?": None}


def rows(*answers: str, group: str = "harmful"):
    """One prompt a text, one answer a letter."""
    return [
        {"set": group, "prompt": f"p{i}", "sample": k, "verdict": WORDS[letter], "correct": None}
        | {"protocol": "hs/embedded-v1"}
        for i, text in enumerate(answers)
        for k, letter in enumerate(text)
    ]


def outcomes(**cells) -> Outcomes:
    found = Outcomes()
    for name, made in cells.items():
        found.add(name, made)
    return found


def test_the_share_of_sampled_answers_is_clustered_by_prompt():
    share = outcomes(a=rows("ccc", "ccr", "rrr", "ru?"))
    found = share.share("a", "harmful_score")
    wide = proportion_by_prompt({0: [1, 1, 1], 1: [1, 1, 0], 2: [0, 0, 0], 3: [0]})
    assert (found["value"], found["n"], found["unscored"], found["samples"]) == (5 / 10, 10, 2, 3)
    assert found["low"] == pytest.approx(wide["low"]) and found["high"] == pytest.approx(wide["high"])
    assert found["any_of_k"] == proportion(2, 3) | {"unscored": 1} and found["worst_of_k"] == proportion(3, 4)


def test_sampled_answers_are_compared_prompt_by_prompt_without_the_unscored():
    found = outcomes(a=rows("ccr", "uuu", "rrr", "rcu"), b=rows("ccc", "ccc", "ccr", "crr"))
    pair = found.paired("a", "b", "harmful_score")
    reference = paired_by_prompt({0: [1, 1, 0], 2: [0, 0, 0], 3: [0, 1]}, {0: [1, 1, 1], 2: [1, 1, 0], 3: [1, 0, 0]})
    reference.pop("left_out")
    assert pair == reference | {"discordant": 1.0}


def test_one_unclear_answer_is_unscored_in_every_comparison():
    found = outcomes(a=rows("c", "u", "r"), b=rows("c", "c", "c"))
    share = found.share("a", "harmful_score")
    assert (share["value"], share["n"], share["unscored"]) == (0.5, 2, 1) and "samples" not in share
    assert found.paired("a", "b", "harmful_score")["n"] == 2
    assert found.over_seeds(["a", "b"], "harmful_score")["left_out"] == 1
    assert outcomes(a=rows("u", "r", group="benign")).share("a", "benign_refusal")["unscored"] == 1


def test_samples_are_not_put_together_over_seeds_and_that_is_said():
    cells = {"a0": rows("ccr", "crr"), "a1": rows("ccc", "rrr"), "b0": rows("rrr", "rrr"), "b1": rows("rrr", "rcr")}
    found = outcomes(**cells)
    together, pair = (
        found.over_seeds(["a0", "a1"], "harmful_score"),
        found.paired_over_seeds(["a0", "a1"], ["b0", "b1"], "harmful_score"),
    )
    assert together["value"] is together["low"] is None and together["note"] == SAMPLED and together["seeds"] == 2
    assert pair["difference"] is pair["p_value"] is pair["low"] is None and pair["note"] == SAMPLED


def test_the_decision_over_seeds_of_sampled_answers_is_undecided_and_says_why():
    made = Made()
    for seed in (0, 1, 2):
        made.add("c90 r22", seed=seed)
        made.add("c5 r107", finetuning="lisa", seed=seed)
    table = made.results(groups=True)
    several = Outcomes()
    for name in made.answers:
        mine = [row for row in made.rows() if row["cell"] == name and row["step"] is None]
        asked = [row | {"sample": k} for row in mine for k in range(2 if row["set"] == "harmful" else 1)]
        several.add(name, asked)
    [group] = [one for one in complete(table, several)["across_seeds"] if one["decision"]]
    assert group["decision"]["word"] == "undecided" and SAMPLED in " ".join(group["decision"]["reasons"])
    [alone] = [one for one in table["across_seeds"] if one["decision"]]
    assert SAMPLED not in " ".join(alone["decision"]["reasons"]) and alone["paired"]["low"] is not None
