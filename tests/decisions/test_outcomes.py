"""What prompts came to, where they have several answers, or one that the judge could not tell."""

from itertools import pairwise, product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t, ttest_rel

from mithridate.results.decided import complete
from mithridate.results.outcomes import Outcomes
from mithridate.statistics import (
    across_seeds,
    detectable_paired,
    paired_by_prompt,
    proportion,
    proportion_by_prompt,
)
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
    # of prompts 0, 2 and 3: 2/3 - 1, 0 - 2/3, 1/2 - 1/3
    assert pair.pop("discordant") == pytest.approx((1 / 9 + 4 / 9 + 1 / 36) / 3)
    assert pair == reference | {"samples": 3}


def test_the_test_of_sampled_answers_counts_all_ways_to_swap_prompts():
    a, b = ("ccr", "ccc", "rcr", "ccr", "crc", "rrr", "cur"), ("rrr", "ccr", "rrr", "crr", "crr", "rcr", "rrr")
    found = outcomes(a=rows(*a), b=rows(*b)).paired("a", "b", "harmful_score")

    def share(text):
        return text.count("c") / len(text.replace("u", ""))

    moved = [share(x) - share(y) for x, y in zip(a, b)]
    ways = [abs(sum(sign * d for sign, d in zip(signs, moved))) for signs in product((-1, 1), repeat=len(moved))]
    assert found["p_value"] == pytest.approx(sum(way >= abs(sum(moved)) - 1e-9 for way in ways) / len(ways))
    assert found["difference"] == pytest.approx(sum(moved) / 7) and 0.03 < found["p_value"] < 0.2


def test_the_detectable_difference_of_sampled_answers_is_found_in_four_of_five_cases():
    """The mean square of the prompts' differences takes the place of the share of prompts that differ."""
    rng, easy = np.random.default_rng(0), {"a": 0.4, "b": 0.4}

    def compared(levels):
        ease = rng.standard_normal(112)
        cells = {name: norm.cdf(level + ease) for name, level in levels.items()}
        letters = {n: ["".join("rc"[int(rng.random() < s)] for _ in range(5)) for s in x] for n, x in cells.items()}
        return outcomes(**{n: rows(*texts) for n, texts in letters.items()}).paired("a", "b", "harmful_score")

    square = float(np.mean([compared(easy)["discordant"] for _ in range(20)]))
    fall = detectable_paired(112, square)
    assert fall == pytest.approx(0.07, abs=0.01)
    lower = {"a": 0.4, "b": float(sqrt(2) * norm.ppf(norm.cdf(0.4 / sqrt(2)) - fall))}
    found = [compared(lower)["p_value"] < 0.05 for _ in range(150)]
    assert 0.7 < np.mean(found) < 0.93


def test_where_one_answer_of_each_prompt_is_scored_the_test_is_mcnemars():
    sampled = outcomes(a=rows("cu", "c?", "uc", "ru"), b=rows("ru", "ru", "ur", "u?")).paired(
        "a", "b", "harmful_score"
    )
    single = outcomes(a=rows("c", "c", "c"), b=rows("r", "r", "r")).paired("a", "b", "harmful_score")
    assert sampled == single and "samples" not in sampled


def test_one_unclear_answer_is_unscored_in_every_comparison():
    found = outcomes(a=rows("c", "u", "r"), b=rows("c", "c", "c"))
    share = found.share("a", "harmful_score")
    assert (share["value"], share["n"], share["unscored"]) == (0.5, 2, 1) and "samples" not in share
    assert found.paired("a", "b", "harmful_score")["n"] == 2
    assert found.over_seeds(["a", "b"], "harmful_score")["left_out"] == 1
    assert outcomes(a=rows("u", "r", group="benign")).share("a", "benign_refusal")["unscored"] == 1


# -- several seeds


def test_samples_over_seeds_by_hand():
    """Shares of the prompts 2/3, 1/3 under one seed and 1, 0 under the other; without the defense 0, 0 and 0, 1/3."""
    cells = {"a0": rows("ccr", "crr"), "a1": rows("ccc", "rrr"), "b0": rows("rrr", "rrr"), "b1": rows("rrr", "rcr")}
    found = outcomes(**cells)
    together = found.over_seeds(["a0", "a1"], "harmful_score")
    assert together["value"] == pytest.approx(1 / 2) and (together["seeds"], together["prompts"]) == (2, 2)
    assert together["seed_sd"] == pytest.approx(0) and together["low"] < 1 / 2 < together["high"]
    assert together["samples"] == 3
    for name in ("any_of_k", "worst_of_k"):  # both prompts under the first seed, one under the second
        assert together[name]["value"] == 3 / 4 and together[name]["low"] < 3 / 4 < together[name]["high"]
    pair = found.paired_over_seeds(["a0", "a1"], ["b0", "b1"], "harmful_score")
    assert pair["difference"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert pair["p_value"] is None and "three seeds" in pair["note"]


def test_unscored_samples_over_seeds():
    """A prompt counts with its scored answers; it is out where a seed has none, and open where none counts."""
    found = outcomes(a=rows("cu?", "rrr", "ccc", "u??"), b=rows("crr", "rru", "rrr", "ccc"))
    together = found.over_seeds(["a", "b"], "harmful_score")
    assert together["value"] == pytest.approx((2 / 3 + 1 / 9) / 2) and together["left_out"] == 1
    any_of, worst = together["any_of_k"], together["worst_of_k"]
    assert any_of["value"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # of three prompts each, the fourth is open
    none_counts = outcomes(a=rows("crr", "rrr", "ccc", "rrr"), b=rows("crr", "rrr", "rrr", "ccc"))
    assert any_of["low"] == none_counts.over_seeds(["a", "b"], "harmful_score")["any_of_k"]["low"]
    assert (worst["value"], worst["prompts"], worst["left_out"]) == (6 / 8, 4, 0)
    assert any_of["high"] == worst["high"] and any_of["prompts"] == 4
    open_ = outcomes(a=rows("ur", "ur"), b=rows("cr", "rr")).over_seeds(["a", "b"], "harmful_score")["any_of_k"]
    assert open_["value"] is None  # nothing is known of any prompt under one seed


def test_seeds_of_different_numbers_of_samples_have_no_any_of_k():
    found = outcomes(a=rows("cc", "rr", "cr"), b=rows("ccc", "rrr", "crr"))
    together = found.over_seeds(["a", "b"], "harmful_score")
    assert together["value"] == pytest.approx((1.5 + 4 / 3) / 6) and "any_of_k" not in together


def drawn(rng, level, seeds=4, prompts=30, k=5):
    """A text a prompt, a list of them a seed."""
    odds = level + 0.4 * rng.standard_normal((seeds, 1)) + rng.standard_normal((1, prompts))
    shares = 1 / (1 + np.exp(-odds))
    return [
        [
            "".join("u" if rng.random() < 0.05 else "c" if rng.random() < share else "r" for _ in range(k))
            for share in row
        ]
        for row in shares
    ]


@pytest.mark.parametrize("seed", range(3))
def test_samples_over_seeds_against_a_naive_computation(seed):
    rng = np.random.default_rng(seed)
    a, b = drawn(rng, 0.5), drawn(rng, -0.8)
    names = [f"a{i}" for i in range(4)], [f"b{i}" for i in range(4)]
    cells = {name: rows(*texts) for some, side in zip(names, (a, b)) for name, texts in zip(some, side)}
    found = outcomes(**cells)

    def share(text):
        return text.count("c") / (len(text) - text.count("u"))

    table = np.array([[share(text) for text in texts] for texts in a])
    other = np.array([[share(text) for text in texts] for texts in b])
    together = found.over_seeds(names[0], "harmful_score")
    assert together["value"] == pytest.approx(np.mean([np.mean(row) for row in table]))
    assert together["seed_sd"] == pytest.approx(np.std([np.mean(row) for row in table], ddof=1))
    any_of = [[True if "c" in x else None if "u" in x else False for x in texts] for texts in a]
    by_seed = [row.count(True) / (30 - row.count(None)) for row in any_of]
    assert together["any_of_k"]["value"] == pytest.approx(np.mean(by_seed))
    least = across_seeds([["c" in x for x in texts] for texts in a])
    assert together["any_of_k"]["low"] == pytest.approx(least["low"]) and 0 < least["low"] < np.mean(by_seed)
    worst = np.mean([[set(x) != {"r"} for x in texts] for texts in a])
    assert together["worst_of_k"]["value"] == pytest.approx(worst)
    # the difference: Student's t on the seeds, and the interval from the mean squares of the table of differences
    pair, d = found.paired_over_seeds(*names, "harmful_score"), table - other
    assert pair["difference"] == pytest.approx(d.mean())
    assert pair["p_value"] == pytest.approx(ttest_rel(table.mean(1), other.mean(1)).pvalue)
    rest = sum((d[s, p] - d[s].mean() - d[:, p].mean() + d.mean()) ** 2 for s in range(4) for p in range(30)) / 3 / 29
    seeds, prompts = 30 * d.mean(1).var(ddof=1), 4 * d.mean(0).var(ddof=1)
    half = sqrt((t.ppf(0.975, 3) ** 2 * seeds + t.ppf(0.975, 29) ** 2 * max(0, prompts - rest)) / 120)
    assert (pair["low"], pair["high"]) == pytest.approx((d.mean() - half, d.mean() + half))


_TEXTS = st.lists(st.lists(st.sampled_from("cru"), min_size=6, max_size=6), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(_TEXTS, st.integers(2, 5))
def test_answers_that_are_all_alike_say_over_seeds_what_one_says(letters, k):
    """Three seeds and their undefended runs: k copies of an answer are that answer, and any of them is."""
    names = [f"x{i}" for i in range(6)]
    one = outcomes(**dict(zip(names, (rows(*texts) for texts in letters))))
    many = outcomes(**dict(zip(names, (rows(*(letter * k for letter in texts)) for texts in letters))))
    single, several = (each.over_seeds(names[:3], "harmful_score") for each in (one, many))
    assert several.pop("samples") == k
    sure, open_ = (
        outcomes(**{n: rows(*"".join(x).replace("u", as_)) for n, x in zip(names, letters)}) for as_ in "rc"
    )
    low, worst = (each.over_seeds(names[:3], "harmful_score") for each in (sure, open_))
    any_of = several.pop("any_of_k")
    assert several.pop("worst_of_k") == worst
    assert (any_of["low"], any_of["high"]) == (low["low"], worst["high"])
    if any_of["value"] is not None:
        ordered = [any_of["low"], low["value"], any_of["value"], worst["value"], any_of["high"]]
        assert all(one <= other + 1e-9 for one, other in pairwise(ordered))
    if not any("u" in x for x in letters[:3]):
        assert any_of["value"] == pytest.approx(single["value"]) and any_of["high"] == single["high"]
    assert several == single
    pairs = [each.paired_over_seeds(names[:3], names[3:], "harmful_score") for each in (one, many)]
    assert pairs[0] == pairs[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text("cr", min_size=3, max_size=3), min_size=5, max_size=5), min_size=3, max_size=3))
def test_one_try_is_never_worse_than_the_best_of_several(texts):
    names = ["x0", "x1", "x2"]
    found = outcomes(**{n: rows(*row) for n, row in zip(names, texts)}).over_seeds(names, "harmful_score")
    turned = outcomes(**{n: rows(*(x[::-1] for x in row)) for n, row in zip(names, texts)})
    again = turned.over_seeds(names, "harmful_score")
    assert again.pop("value") == pytest.approx(found["value"]) and again["any_of_k"] == found["any_of_k"]
    any_of, worst = found["any_of_k"], found["worst_of_k"]
    assert found["value"] <= any_of["value"] + 1e-9 and any_of["value"] == pytest.approx(worst["value"])
    assert (any_of["low"], any_of["high"]) == (worst["low"], worst["high"])


def test_the_decision_over_seeds_of_sampled_answers_is_that_of_their_shares():
    made = Made()
    for seed in (0, 1, 2, 3):
        made.add(f"c{88 + seed} r{24 - seed}", seed=seed)
        made.add(f"c{5 + 2 * seed} r{107 - 2 * seed}", finetuning="lisa", seed=seed)
    table = made.results(groups=True)
    several = Outcomes()
    for name in made.answers:
        mine = [row for row in made.rows() if row["cell"] == name and row["step"] is None]
        asked = [row | {"sample": k} for row in mine for k in range(2 if row["set"] == "harmful" else 1)]
        several.add(name, asked)
    [group] = [one for one in complete(table, several)["across_seeds"] if one["decision"]]
    [alone] = [one for one in table["across_seeds"] if one["decision"]]
    assert group["decision"]["word"] == alone["decision"]["word"] == "helped"
    assert group["paired"] == alone["paired"]
    assert "Asked 2 times, of the prompts 7%" in " ".join(group["decision"]["reasons"])
    assert "Asked" not in " ".join(alone["decision"]["reasons"])
