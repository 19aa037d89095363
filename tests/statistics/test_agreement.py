"""Judges compared: kappa and its coverage, what is counted, what is refused."""

import json

import numpy as np
import pytest

from mithridate.errors import InputError
from mithridate.evaluation.agreement import (
    answer_to,
    compare,
    compare_all,
    judges_in,
    kappa,
    kind_of,
    shared_question,
    verdicts,
)
from mithridate.statistics import proportion
from tests.statistics.simulate import covered, error

KINDS = {"rules": "answer", "guard": "harm", "refusals": "refusal", "loops": "coherence"}


def row(number: int, verdict: str | None, reason: str | None = "because", **further) -> dict:
    """A record judged by "rules", and by the judges in `further`: None is unscored, a judge left out not asked."""
    found = {
        "set": "harmful",
        "id": f"p{number}",
        "prompt": f"prompt {number}",
        "answer": f"answer {number}",
    }
    found |= {"judge": "rules", "verdict": verdict, "reason": reason}
    for name, value in further.items():
        found |= {f"judge/{name}": value, f"judge/{name}/reason": "flagged", f"judge/{name}/score": 0.5}
    return found


def test_cohens_kappa_by_hand():
    """20 and 15 of 50 agreed on: 70 % agreement where 50 % is chance."""
    assert kappa([[20, 5], [10, 15]], proportion(35, 50))["value"] == pytest.approx(0.4)


def test_kappa_of_three_categories_by_hand():
    """Agreement 0.44 + 0.20 + 0.06 against 0.6 * 0.5 + 0.3 * 0.3 + 0.1 * 0.2 by chance."""
    table = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    found = kappa(table, proportion(140, 200))
    assert found["value"] == pytest.approx((0.70 - 0.41) / (1 - 0.41))


def test_complete_agreement_still_leaves_doubt():
    found = kappa([[40, 0], [0, 10]], proportion(50, 50))
    assert found["value"] == found["high"] == 1 and 0.7 < found["low"] < 0.9


@pytest.mark.parametrize(
    ("table", "note"), [([[0, 0], [0, 0]], "no answer"), ([[50, 0], [0, 0]], "the same verdict to every answer")]
)
def test_kappa_is_unknown_where_it_is_undefined(table, note):
    found = kappa(table, proportion(sum(map(sum, table)), sum(map(sum, table))))
    assert found["value"] is found["low"] is None and note in found["note"]


@pytest.mark.parametrize("n", [50, 112, 300])
@pytest.mark.parametrize(
    ("first", "second", "true"), [(0.5, 0.5, 0.6), (0.3, 0.4, 0.3), (0.1, 0.1, 0.9), (0.1, 0.1, 0), (0.05, 0.1, 0.6)]
)
def test_the_interval_of_kappa_covers_at_least_at_its_rate(n, first, second, true):
    """At about its rate where yes and no are both common; above it (too wide) where yes is rare and kappa small."""
    chance = first * second + (1 - first) * (1 - second)
    both = (true * (1 - chance) + chance - 1 + first + second) / 2
    cells = np.array([1 - first - second + both, second - both, first - both, both])
    rng, draws = np.random.default_rng(0), 2000
    tables = rng.multinomial(n, cells, draws)
    tables = tables[(tables[:, 0] < n) & (tables[:, 3] < n)]  # those of which kappa is defined

    def interval(neither: int, only_b: int, only_a: int, both: int) -> dict:
        return kappa([[neither, only_b], [only_a, both]], proportion(neither + both, n))

    rate = covered(tables, interval, true)
    assert rate >= 0.94 - error(0.94, draws)
    if first > 0.2:
        assert rate <= 0.98


# -- questions


@pytest.mark.parametrize(
    ("question", "kind", "verdict", "expected"),
    [
        ("harmful", "answer", "complied", True),
        ("harmful", "answer", "incoherent", False),
        ("harmful", "harm", "harmful", True),
        ("harmful", "harm", "safe", False),
        ("refused", "refusal", "not_refused", False),
        ("refused", "answer", "refused", True),
        ("incoherent", "coherence", "incoherent", True),
        ("harmful", "harm", None, None),
    ],
)
def test_a_verdict_answers_the_question(question, kind, verdict, expected):
    assert answer_to(question, kind, verdict) is expected


@pytest.mark.parametrize(
    ("question", "kind", "verdict", "words"),
    [
        ("harmful", "refusal", "refused", "does not say whether an answer is harmful .it says: refused"),
        ("refused", "harm", "safe", "it says: harmful"),
        ("harmful", "quality", "won", "it says: none"),
        ("harmful", "harm", "refused", "'refused' is no verdict of a judge of kind 'harm'"),
        ("polite", "harm", "safe", "Unknown question 'polite'"),
    ],
)
def test_a_question_that_a_judge_does_not_answer_is_refused(question, kind, verdict, words):
    with pytest.raises(InputError, match=words):
        answer_to(question, kind, verdict)


def test_kinds_share_a_question_or_none():
    assert shared_question("answer", "harm") == "harmful"
    assert shared_question("answer", "answer") == "harmful"
    assert shared_question("refusal", "answer") == "refused"
    assert shared_question("harm", "refusal") is None


# -- records


ROWS = [
    row(1, "complied", guard="harmful", refusals="not_refused"),
    row(2, "complied", guard="safe", refusals="not_refused"),
    row(3, "refused", guard="safe", refusals="refused"),
    row(4, "incoherent", guard="harmful", refusals="not_refused"),
    row(5, None, "nothing to read", guard="safe"),
    row(6, "refused", guard=None),
    row(7, "refused"),
    {"set": "task", "id": "t1", "prompt": "sum", "answer": "4", "judge": None, "verdict": None, "reason": None},
]


def test_the_judges_of_records_are_found():
    assert judges_in(ROWS) == ["rules", "guard", "refusals"]
    assert verdicts(ROWS, "guard")[5:] == [(None, "flagged"), None, None]


@pytest.mark.parametrize(
    ("judge", "said", "kind"),
    [
        ("rules-v2", ["refused"], "answer"),
        ("llama-guard-3", [None], "harm"),
        ("wildguard", ["safe"], "harm"),
        ("wildguard-refusal", ["refused"], "refusal"),  # a well-aligned model's
        ("qwen3guard-refusal", [None], "refusal"),
        ("classifier", ["refused"], "refusal"),
        ("classifier", ["incoherent"], "coherence"),
        ("classifier", [None], None),
        ("not-installed", ["refused", "complied"], "answer"),
        ("not-installed", ["refused"], "refusal"),
        ("coherence", ["harmful"], None),
    ],
)
def test_the_kind_of_a_judge(judge, said, kind):
    rows = [{f"judge/{judge}": verdict, f"judge/{judge}/reason": "why"} for verdict in said]
    assert kind_of(judge, rows) == kind


def test_two_judges_are_compared_and_nothing_is_dropped_silently():
    found = compare(ROWS, "rules", "guard", KINDS)
    assert found.question == "harmful" and found.n == 4
    assert found.table == [[1, 1], [1, 1]]
    assert found.unscored == {"rules": 1, "guard": 1}
    assert found.not_given == {"rules": 0, "guard": 1}
    assert found.agreement["value"] == 0.5 and found.kappa["value"] == 0
    assert sum(map(sum, found.table)) + sum(found.unscored.values()) + sum(found.not_given.values()) == 7
    assert found.differ == [
        {
            "id": f"p{number}",
            "prompt": f"prompt {number}",
            "answer": f"answer {number}",
            "rules": {"verdict": rules, "reason": "because"},
            "guard": {"verdict": guard, "reason": "flagged"},
        }
        for number, rules, guard in ((2, "complied", "safe"), (4, "incoherent", "harmful"))
    ]
    assert json.loads(json.dumps(found.as_dict()))["judges"] == ["rules", "guard"]


def test_every_pair_that_shares_a_question_is_compared():
    found = compare_all(ROWS, KINDS)
    assert [(each.judges, each.question) for each in found] == [
        (("rules", "guard"), "harmful"),
        (("rules", "refusals"), "refused"),
    ]


def test_a_pair_is_compared_on_another_question_when_asked():
    assert compare(ROWS, "rules", "refusals", KINDS, "refused").table == [[3, 0], [0, 1]]


def test_repeated_answers_widen_the_interval():
    """The same 20 prompts, once and with every answer five times: five times the answers, the same doubt."""
    once = [row(i, "complied", guard="harmful" if i % 4 else "safe") for i in range(20)]
    once += [row(i, "refused", guard="safe") for i in range(20, 40)]
    five = compare(once * 5, "rules", "guard", KINDS)
    single = compare(once, "rules", "guard", KINDS)
    assert five.n == 5 * single.n and five.kappa["value"] == single.kappa["value"]
    assert five.kappa["high"] - five.kappa["low"] >= single.kappa["high"] - single.kappa["low"]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("guard", "refusals", "answer no common question"),
        ("rules", "unknown", "kind of the judge 'unknown'"),
        ("rules", "loops", "no verdicts of the judge 'loops'; they have: rules, guard, refusals"),
    ],
)
def test_judges_that_cannot_be_compared_are_refused(first, second, words):
    with pytest.raises(InputError, match=words):
        compare(ROWS, first, second, KINDS)


def test_judges_without_an_answer_in_common_are_refused():
    with pytest.raises(InputError, match="no answer in common"):
        compare([row(1, "complied"), row(2, None, None, guard="safe")], "rules", "guard", KINDS)
