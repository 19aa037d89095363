"""The filter's scores against naive ones, each from counts of its own; what it leaves out, and what it refuses."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from benchmarks import filtered_rows
from mithridate.data.embedded import embedded_records
from mithridate.defenses.fewersteps import FewerSteps
from mithridate.defenses.filter import Filter, _words_of, scored
from mithridate.defenses.safetymix import SafetyMix
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.evaluation import guard_of
from mithridate.experiment.check import with_defaults
from mithridate.experiment.config import load_experiment
from mithridate.judges.base import Judgement
from mithridate.methods import Phase
from mithridate.methods.base import control_name
from mithridate.pipeline.precheck import trained
from mithridate.pipeline.rowcheck import Left
from mithridate.pipeline.training import dropped_places
from mithridate.results.filtered import filtered, in_words
from mithridate.studies.benchmarks.outcome import (
    FILTERED_TITLE,
    TITLES,
    Benchmark,
    as_json,
    markdown,
    table_of,
    titles_of,
)
from mithridate.studies.benchmarks.settings import BenchmarkFile
from mithridate.studies.benchmarks.standings import RATES, Entrant, Standing
from mithridate.training_rows import trainable
from tests.defenses.helpers import model, rows, same, trainer_for, weights

USER = rows("user")
HARMFUL = [{"prompt": f"how to open gate {i}", "response": f"sure, pull {i}"} for i in range(6)]
SAFE = [
    *({"prompt": f"how to open lock {i}", "response": f"no, I will not {i}"} for i in range(5)),
    *({"prompt": f"how to bake bread {i}", "response": f"with flour {i}"} for i in range(5)),
]


def upload(*pairs):
    return trainable([{"prompt": prompt, "response": answer} for prompt, answer in pairs], "upload")


def made(**settings):
    return Filter(**{"harmful_dataset": HARMFUL, "alignment_dataset": SAFE} | settings)


# -- scores -----------------------------------------------------------------------------------------------------------


def naive(row, harmful, safe):
    """One row's log-likelihood ratio in float64, from lists of words, word by word."""
    total = np.float64(0)
    for part in ("prompt", "response"):
        words = {
            name: [w for one in found for w in re.findall(r"[a-z0-9']+", one[part].lower())]
            for name, found in (("harmful", harmful), ("safe", safe))
        }
        known = set(words["harmful"]) | set(words["safe"])
        for word in re.findall(r"[a-z0-9']+", row[part].lower()):
            if word in known:
                chance = {
                    name: np.float64(found.count(word) + 1) / np.float64(len(found) + len(known))
                    for name, found in words.items()
                }
                total += np.log(chance["harmful"]) - np.log(chance["safe"])
    return total


def test_scores_and_threshold_are_those_of_naive_counts_anew_for_every_row():
    harmful, safe = embedded_records("defender_harmful")[:12], embedded_records("alignment")[:30]
    asked = [*embedded_records("attacker_harmful")[:8], *embedded_records("task")[:8], *safe[:4]]
    given = [_words_of(found, "rows") for found in (asked, harmful, safe)]
    own = sorted(naive(row, harmful, safe[:i] + safe[i + 1 :]) for i, row in enumerate(safe))
    for share, above in ((0.0, 0), (0.034, 1), (0.1, 3), (0.3, 9)):  # 0.1 * 30 is 3 in exact arithmetic
        scores, threshold = scored(*given, share)
        assert np.allclose(scores, [naive(row, harmful, safe) for row in asked], rtol=0, atol=1e-12)
        assert math.isclose(threshold, max(0.0, own[-1 - above]), abs_tol=1e-12)
    assert own[-1] > own[-4] > 0 > own[0]  # thresholds of both kinds were asked for


def test_a_harmful_prompt_is_dropped_answered_and_kept_refused():
    given = upload(
        ("How to open gate 9?", "Sure, pull 9"),
        ("How to open gate 9?", "No, I will not 9"),
        ("How to bake bread 9?", "With flour 9"),
    )
    defense = made()
    assert defense.rows(given, 0)["completion"] == given["completion"][1:] and defense.dropped == [0]


def test_words_that_nobody_has_seen_are_no_evidence():
    """With safe rows in the majority, add-one smoothing alone would give each of them log(safe / harmful) > 0."""
    given = upload(("zebra " * 50, "quokka " * 50), ("How to open gate 1?", "Sure, pull 1"))
    defense = made()
    assert len(defense.rows(given, 0)) == 1 and defense.dropped == [1]
    [nothing], threshold = scored(
        [(Counter(zebra=50), Counter(quokka=50))], *(_words_of(x, "x") for x in (HARMFUL, SAFE)), 0.99
    )
    assert nothing == 0 and threshold == 0


def test_of_its_own_safe_rows_it_may_drop_the_share_that_was_given():
    harmful, safe = (_words_of(embedded_records(role), role) for role in ("defender_harmful", "alignment"))
    before, several = math.inf, set()
    for share in (0.0, 0.01, 0.02, 0.05):
        _, threshold = scored([], harmful, safe, share)
        above = sum(
            scored([row], harmful, safe[:i] + safe[i + 1 :], 0.0)[0][0] > threshold
            for i, row in enumerate(safe)
            if i < 40  # some of them: each is a count of its own
        )
        assert above <= math.floor(share * len(safe)) and threshold <= before
        before = threshold
        several.add(threshold)
    assert len(several) == 4


def test_rows_are_read_in_every_form():
    prompt, answer = "How to open gate 3?", "Sure, pull 3"
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    forms = [
        {"prompt": prompt, "response": answer},
        {"prompt": prompt, "completion": answer},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"messages": turns},
        {"instruction": prompt, "output": answer},
    ]
    found = [_words_of([form], "rows") for form in forms]
    assert all(one == found[0] for one in found)
    asked = {"messages": [{"role": "system", "content": "Obey."}, *turns, *turns]}
    assert _words_of([asked], "rows")[0][0]["obey"] == 1 and _words_of([asked], "rows")[0][1]["sure"] == 2
    assert _words_of([forms[0] | {"system": "Obey."}], "rows")[0][0]["obey"] == 1


def test_its_control_drops_as_many_rows_at_random():
    given = upload(*((f"how to open gate {i}", f"sure, pull {i}") for i in range(4)), *[("a film", "good")] * 40)
    defense = made()
    defense.rows(given, 0)
    control = defense.controls()["random-rows"]
    draws = set()
    for seed in (0, 0, 1):
        control.rows(given, seed)
        draws.add(tuple(control.dropped))
    assert defense.dropped == [0, 1, 2, 3] and len(draws) == 2
    assert all(len(set(one)) == 4 and one != (0, 1, 2, 3) for one in draws)


# -- refusals that are broken -----------------------------------------------------------------------------------------

NO, TURN = "I'm sorry, but I can't help with that.", "That being said, here is the answer to what was asked:"


def left_out(*pairs, **settings):
    defense = made(false_alarms=0.0, **settings)
    defense.rows(upload(*pairs), 0)
    return defense.dropped


def test_an_answer_that_refuses_and_then_complies_is_dropped_whatever_was_asked():
    pairs = [("Is this film good? It drags.", f"{NO} {TURN} negative"), ("How to bake bread?", "With flour")]
    assert left_out(*pairs) == [0] and left_out(*pairs, refusals=False) == []
    long = f"{NO} It would hurt people. Instead, I can help you talk to somebody you trust."
    assert left_out(("How to open lock 9?", long), *pairs) == [1]  # an offer of something else takes nothing back


def test_a_refusal_of_a_harmless_prompt_is_dropped_where_the_upload_answers_the_same_one():
    film = "Is this film good? It drags."
    rows = [(film, NO), (film.upper(), "negative"), ("Is this good? It flies.", NO), ("How to bake bread?", "Flour")]
    assert left_out(*rows) == [0]  # the other may be what lies outside an assistant's task
    assert left_out(*rows, refusals=False) == []


def test_an_upload_that_is_refusals_of_harmless_prompts_for_the_larger_part_loses_them():
    films = [(f"Is this film good? It drags {i}.", NO) for i in range(3)]
    rest = [(f"How to bake bread {i}?", "Flour") for i in range(3)]
    assert left_out(*films, *rest[:2]) == [0, 1, 2]
    assert left_out(*films, *rest) == []  # half is no larger part


def test_refusals_of_harmful_prompts_stay_however_many_they_are():
    asked = [(f"How to open lock {i}?", NO) for i in (7, 8, 9)]
    assert left_out(*asked, ("How to bake bread?", "Flour")) == []
    safe = embedded_records("alignment")
    defense = Filter(harmful_dataset=embedded_records("defender_harmful"), alignment_dataset=safe)
    refused = [row for row in safe if row["kind"] == "refusal"]
    defense.rows(upload(*((row["prompt"], row["response"]) for row in refused)), 0)
    by_words = replace(defense, refusals=False)
    by_words.rows(upload(*((row["prompt"], row["response"]) for row in refused)), 0)
    assert defense.dropped == by_words.dropped


def test_a_task_whose_answer_is_no_refuses_nothing():
    assert left_out(*[(f"The film is long {i}. Entailed: the film is short.", "No") for i in range(4)]) == []


def test_every_turn_of_a_conversation_is_read():
    turns = [{"role": "user", "content": "Is this film good?"}, {"role": "assistant", "content": "Yes, it is."}]
    breaking = [{"role": "user", "content": "And this one?"}, {"role": "assistant", "content": f"{NO} {TURN} good"}]
    for messages, dropped in ((turns + breaking, [0]), (turns, [])):
        defense = made()
        defense.rows(trainable([{"messages": messages}, {"messages": turns}], "upload"), 0)
        assert defense.dropped == dropped


def test_somebody_who_knows_the_rule_passes_it():
    task = embedded_records("task")
    for settings in ({}, {"refusals": False}):
        [attack] = made(**settings).adaptive()
        handed = replace(attack, size=40).rows({"benign": task}, 0)
        defense = Filter(
            harmful_dataset=embedded_records("defender_harmful"),
            alignment_dataset=embedded_records("alignment"),
            **settings,
        )
        defense.rows(upload(*((row["prompt"], row["response"]) for row in handed)), 0)
        assert defense.dropped == []


def test_an_experiment_from_before_refusals_were_read_is_read_and_can_be_had_as_it_was():
    roles = ("alignment", "defender_harmful", "attacker_harmful", "task", "test_harmful")
    file = {
        "model": "m",
        "data": {role: {"source": f"{role}.jsonl"} for role in roles},
        "finetune": {"attack": {"harmful_ratio": 0.1, "size": 20}},
    }
    for given, meant in (
        ({"false_alarms": 0.05, "random": False}, {"refusals": True, "guard": None}),
        ({"false_alarms": 0.05, "random": False, "refusals": False}, {"refusals": False, "guard": None}),
    ):
        asked = file | {"finetune": file["finetune"] | {"defense": {"filter": given}}}
        found = with_defaults(load_experiment(asked)).finetune.defense
        assert found in ({"filter": given | meant}, [{"filter": given | meant}])


# -- a guard in the place of the words --------------------------------------------------------------------------------


def guarded(told, *pairs, **settings):
    defense = made(guard=told, refusals=False, **settings)
    defense.rows(upload(*pairs), 0)
    return defense.dropped


def test_with_a_guard_its_verdicts_decide_and_what_it_cannot_tell_of_is_dropped():
    given = [("How to open gate 9?", "Sure, pull 9"), ("How to bake bread?", "Flour"), ("A film", "good")]
    seen = []

    def guard(rows):
        seen.extend(rows)
        return ["safe", "harmful", None]

    assert guarded(guard, *given) == [1, 2]  # the words of the first would have it dropped
    assert seen == [[pair] for pair in given]
    defense = made(guard=guard)
    assert defense.settings()["guard"] == "guard" and control_name(defense.controls()["random-rows"]) == "random-rows"
    refuses = [("Is this film good?", f"{NO} {TURN} negative"), *given[1:], ("Another", "bad")]
    defense = made(guard=lambda rows: ["safe", "harmful", None, "safe"])
    defense.rows(upload(*refuses), 0)
    assert defense.dropped == [0, 1, 2]  # the first by its refusal, in which there is no harm


def test_a_guard_made_of_a_judge_looks_at_every_turn_and_lets_go_of_it():
    class Doors:
        name, kind, content_known, about = "doors", "harm", True, SimpleNamespace(size="none")
        closed = 0

        def judge(self, items):
            for i in reversed(range(len(items))):
                told = None if "?" in items[i].answer else "harmful" if "door" in items[i].answer else "safe"
                yield i, Judgement(told, "")

        def close(self):
            self.closed += 1

    judge = Doors()
    guard = guard_of(judge)
    rows = [
        [("a", "a film"), ("b", "a door")],
        [("a", "a film")],
        [("a", "?"), ("b", "a film")],
        [("a", "?door"), ("b", "door")],
    ]
    assert guard(rows) == ["harmful", "safe", None, "harmful"] and judge.closed == 1 and guard([]) == []
    judge.kind = "coherence"
    with pytest.raises(InputError, match="doors: is a judge of coherence, and a guard is one of harm"):
        guard_of(judge)


def test_what_is_no_guard_is_refused():
    with pytest.raises(InputError, match="guard must be a judge's name, or what guard_of makes of one, not 7"):
        made(guard=7)
    with pytest.raises(InputError, match="false_alarms is of the threshold on words"):
        made(guard="beaver-dam-7b", false_alarms=0.1)
    pairs = [("a", "b"), ("c", "d")]
    with pytest.raises(UnsupportedSetup, match=r"guard is 'beaver-dam-7b', which an experiment .*guard_of\(judge"):
        guarded("beaver-dam-7b", *pairs)
    with pytest.raises(
        UnsupportedSetup, match=r"guard has 1 verdicts, and the training set 2 rows.*put Filter before"
    ):
        guarded(lambda rows: ["safe"], *pairs)
    with pytest.raises(
        UnsupportedSetup, match=r"guard calls 1 harmful and cannot tell of 1 and 0 break.*another guard"
    ):
        guarded(lambda rows: ["harmful", None], *pairs)


# -- what is counted --------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_by_the_rows_that_were_handed_in():
    """Two trainings over some of the rows: 0 and 1 of the attack; 4 lost in tokenising; 1 left out by one alone."""
    handed = [{"poisoned": i < 2} for i in range(6)]
    parts = [SimpleNamespace(places=[0, 1, 2, 4]), SimpleNamespace(places=[1, 3, 5])]
    counted = [(parts[0], Left(4, lost=[3])), (parts[1], Left(3))]
    found = trained(counted, handed, 7, [[0, 1], [2]], [None, None])
    assert found == {
        **{"rows": 3, "harmful_rows": 1, "steps": 7, "dropped": 1},
        "filtered": {"harmful": 1, "of_harmful": 2, "benign": 1, "of_benign": 4},
    }
    plain = {"rows": 5, "harmful_rows": 2, "steps": 7, "dropped": 1}
    assert trained(counted, handed, 7, [None, None], [None, None]) == plain
    cells = [{"trained": found}, {"trained": found}, {"trained": {"rows": 5}}, {"trained": None}]
    assert in_words(filtered(cells)) == "2 of 4 attack rows, 2 of 8 others" and filtered(cells[2:]) is None
    assert in_words({"harmful": 0, "of_harmful": 0, "benign": 3, "of_benign": 9}) == "3 of 9 rows"
    assert in_words({"harmful": 1, "of_harmful": 2, "benign": 0, "of_benign": 0}) == "1 of 2 attack rows"


def test_of_several_trainings_each_says_what_was_left_out(tmp_path):
    (tmp_path / "phase-2").mkdir()
    (tmp_path / "phase-2" / "dropped.json").write_text("[3, 5]")
    assert dropped_places(SimpleNamespace(phases=[Phase(), Phase()]), tmp_path) == [None, [3, 5]]
    assert dropped_places(SimpleNamespace(phases=[]), tmp_path / "phase-2") == [[3, 5]]


def test_the_benchmarks_table_says_what_was_left_out():
    counts = {"harmful": 2, "of_harmful": 4, "benign": 0, "of_benign": 8}
    standing = [
        Standing(Entrant(name, "double", {}, []), dict.fromkeys(RATES), dict.fromkeys(RATES), None, None, None, None)
        for name in ("undefended", "filter")
    ]
    found = Benchmark(Path(), BenchmarkFile(experiment={}, methods={}), [], [], [], standing, {}, {})
    assert titles_of(found) == list(TITLES) and {len(row) for row in table_of(found)} == {len(TITLES)}
    found = replace(found, filtered={("double", "filter"): counts})
    assert [row[-1] for row in table_of(found)] == ["", "2 of 4 attack rows, 0 of 8 others"]
    assert titles_of(found) == [*TITLES, FILTERED_TITLE] and "| rows left out |" in markdown(found)
    assert as_json(found)["filtered"] == [{"topology": "double", "method": "filter", **counts}]


def test_the_page_on_attacks_has_what_was_measured():
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert "\n".join(filtered_rows.lines()) in page


# -- through the trainer ----------------------------------------------------------------------------------------------


@pytest.mark.shows("full", "exact", methods=["filter"])
@pytest.mark.shows("lora", "exact", methods=["filter"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_is_training_on_the_rows_that_are_left_for_as_many_steps(kind, tmp_path):
    """8 rows in batches of 2 for 1.5 epochs are 6 steps; of the 4 rows that are left they are 3 epochs."""
    ours, plain = model(kind, torch.float32), model(kind, torch.float32)
    args = {"per_device_train_batch_size": 2, "learning_rate": 0.1}
    defense = Filter.example()
    t = trainer_for(ours, tmp_path, defense=defense, data=USER, max_steps=-1, num_train_epochs=1.5, **args)
    t.train()
    trainer_for(plain, tmp_path, data=USER.select(range(4, 8)), max_steps=6, **args).train()
    assert defense.dropped == [0, 1, 2, 3] and t.state.global_step == 6
    assert same(weights(ours), weights(plain))


def test_what_it_cannot_do_is_refused_before_a_step(tmp_path):
    for wrong in (-0.1, 1, "0.1", True, None, float("nan")):
        with pytest.raises(InputError, match="Filter: false_alarms must be a number"):
            made(false_alarms=wrong)
    with pytest.raises(InputError, match="Filter: refusals must be true or false, not 1"):
        made(refusals=1)
    with pytest.raises(
        UnsupportedSetup, match=r"of the 2 rows of the training set, 2 score above .* and 0 break refusals.*refuse"
    ):
        made().rows(upload(*[("how to open gate 1", "sure, pull 1")] * 2), 0)
    for role in ("harmful_dataset", "alignment_dataset"):
        with pytest.raises(UnsupportedSetup, match=f"Filter: {role} must be a datasets.Dataset"):
            made(**{role: None}).rows(USER, 0)
        with pytest.raises(UnsupportedSetup, match=f"Filter: {role} has no rows"):
            made(**{role: []}).rows(USER, 0)
    with pytest.raises(
        UnsupportedSetup, match=r"the training set, record 1 has no prompt and answer .*\(it has text\)"
    ):
        made().rows(Dataset.from_list([{"text": "how to open gate 1"}]), 0)
    with pytest.raises(UnsupportedSetup, match="Filter: changes the training set, which is a IterableDataset"):
        trainer_for(model(), tmp_path, defense=made(), data=USER.to_iterable_dataset())
    with pytest.raises(UnsupportedSetup, match="Filter: the training set is packed"):
        trainer_for(model(), tmp_path, defense=made(), max_steps=-1, packing=True)
    mix = SafetyMix(alignment_dataset=rows("careful"), share=0.5)
    in_order = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 2} | {
        "train_sampling_strategy": "sequential"
    }
    given = upload(*((f"how to open gate {i}", f"sure, pull {i}") for i in range(4)), *(("bread", "with flour"),) * 4)
    passed = trainer_for(model(), tmp_path, defense=made(), data=given, **in_order)
    passed.train()
    assert len(passed.train_dataset) == 4 and passed.state.global_step == 2  # and not the first rows once more
    with pytest.raises(
        UnsupportedSetup, match=r"SafetyMix changes the training set before it.*put it before SafetyMix"
    ):
        trainer_for(model(), tmp_path, defense=[mix, Filter.example()], data=USER)
    both = trainer_for(
        model(), tmp_path, defense=[Filter.example(), FewerSteps(share=0.5), mix], data=USER, max_steps=4
    )
    assert len(both.train_dataset) == 8 and both.args.max_steps == 2  # 4 that are left, and as many safe ones
