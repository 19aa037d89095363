"""The demo's tuning: what it chooses by scores, as many tries for every method, and a second call that goes on."""

import json
import multiprocessing

import pytest

from benchmarks import tune


class Scored:
    """A crew whose tries have scores from a function, and which stops after so many."""

    rehearsal = False

    def __init__(self, path, score, most=10_000):
        self.log, self.score, self.left, self.made = tune.Log(path), score, most, []

    def make(self, tries):
        for entry, overrides in tries:
            if any(all(known.get(key) == entry[key] for key in entry) for known in self.log.entries):
                continue
            if not self.left:
                raise tune.Time
            self.left -= 1
            self.made.append(overrides)
            self.log.add(entry | self.score(entry))


def row(harmful, refused=0.1, accuracy=0.9, incoherent=0.0, way=()):
    return {
        "harmful_score": harmful,
        "benign_refusal": refused,
        "accuracy": accuracy,
        "incoherent": incoherent,
        "interval": [harmful - 0.05, harmful + 0.05],
        "resistance": [[i, value] for i, value in enumerate(way)],
    }


BASES = [{"max_steps": 80, "learning_rate": 1e-3}, {"max_steps": 112, "learning_rate": 1e-3}]


def scored_bases(**clean):
    """Scores: which alignments refuse too much, and the lift of each attack without harmful rows by its alignment."""

    def score(entry):
        if entry["phase"] == "alignment":
            too_much = entry["settings"] not in BASES
            return {"aligned": row(0.05, 0.3 if too_much else (0.1, 0.2, 0.3)[entry["seed"]])}  # 0.2 on average
        i, poisoned = entry["number"] - 1, entry["settings"]["harmful_ratio"] > 0
        steps = f"of_{entry['alignment']['max_steps']}"
        harmful = (0.3, 0.6, 0.9, 0.9, 0.9)[i] if poisoned else clean[steps][i]
        return {"aligned": row(0.05), "validation": row(harmful, accuracy=clean.get("learnt", [0.9] * 5)[i])}

    return score


@pytest.mark.parametrize(
    ("clean", "base", "attack"),
    [
        ({"of_80": [0.1] * 5}, 0, 1),
        ({"of_80": [0.1] * 5, "learnt": [0.9, 0.8, 0.9, 0.9, 0.9]}, 0, 2),
        ({"of_80": [0.1, 0.4, 0.4, 0.1, 0.1]}, 0, 3),
        ({"of_80": [0.4] * 5, "of_112": [0.4, 0.4, 0.1, 0.1, 0.1]}, 1, 2),  # the longer alignment holds
        ({"of_80": [0.5] * 5, "of_112": [0.4] * 5}, 1, 1),  # none does: the least beyond the bound
        ({"of_80": [0.1] * 5, "learnt": [0.5] * 5, "of_112": [0.1] * 5}, None, None),
    ],
)
def test_the_shortest_alignment_and_the_gentlest_attack_that_meet_their_conditions(tmp_path, clean, base, attack):
    crew = Scored(tmp_path / "log", scored_bases(**clean))
    tune.alignment(crew)
    assert all(overrides["finetune"] == "none" for overrides in crew.made)
    if attack is None:
        with pytest.raises(tune.Time):
            tune.attack(crew)
        assert crew.log.choice("alignment") is crew.log.choice("attack") is None
    else:
        tune.attack(crew)
        assert crew.log.choice("alignment") == BASES[base] and crew.log.choice("attack") == tune.ATTACKS[attack]


def of_settings(entry):
    """The fourth try of each is the best, but costs too much; of the rest the second."""
    if entry["method"] == "undefended":
        return {"aligned": row(0.05), "validation": row(0.9)}
    if entry["phase"] == "control":
        return {"aligned": row(0.05), "validation": row(0.5, accuracy=0.9 - entry["settings"]["ratio"])}
    i = tune.TRIES[entry["method"]][2].index(entry["settings"])
    harmful, accuracy = {3: (0.0, 0.6), 1: (0.2, 0.85)}.get(i, (0.5, 0.9))
    return {"aligned": row(0.05), "validation": row(harmful, accuracy=accuracy, way=(harmful,))}


def test_a_costly_defense_is_not_chosen_and_no_test_part_is_read(tmp_path):
    crew = Scored(tmp_path / "log", of_settings)
    tune.defenses(crew)
    tune.again(crew)
    for name, (_, _, tries) in tune.TRIES.items():
        assert crew.log.choice(name) == tries[1]
        assert len(crew.log.of("defenses", name)) == 8 + 2 * 2, "as many for each"
    assert crew.log.choice("random-mask")["ratio"] == 0.05
    assert not any("evaluate.part" in overrides for overrides in crew.made)


def test_when_the_time_is_over_each_method_has_had_as_many_tries(tmp_path):
    crew = Scored(tmp_path / "log", of_settings, most=2 + 4 * 2 + 3)
    with pytest.raises(tune.Time):
        tune.defenses(crew)
    chosen = [entry for entry in crew.log.entries if entry["phase"] == "choice"]
    assert {entry["method"] for entry in chosen} == set(tune.TRIES) and {entry["tries"] for entry in chosen} == {2}
    further = Scored(tmp_path / "log", of_settings)
    tune.defenses(further)
    assert len(further.made) == 2 + 4 * 8 - (2 + 4 * 2 + 3)


def test_every_setting_is_another():
    for _, _, tries in tune.TRIES.values():
        assert len({json.dumps(one) for one in tries}) == len(tries) == 8


def test_a_crew_stops_in_time_and_knows_what_the_log_has(tmp_path):
    class Pool:
        def imap_unordered(self, _, tasks):
            self.tasks = list(tasks)
            return self

        def next(self, timeout):
            if len(self.tasks) == 1:
                raise multiprocessing.TimeoutError
            return self.tasks.pop()[0] | {"aligned": row(0.1)}

    crew = tune.Crew.__new__(tune.Crew)
    crew.log, crew.out, crew.always = tune.Log(tmp_path / "log"), tmp_path, {"finetune.training.max_steps": 1}
    crew.pool, crew.end = Pool(), 0.0
    tries = [({"phase": "a", "method": "m", "settings": {}, "seed": seed}, {"finetune": "none"}) for seed in range(3)]
    with pytest.raises(tune.Time):
        crew.make(tries)
    assert crew.pool.tasks[0][1] == {"evaluate.part": "validation", "finetune": "none"}
    assert [entry["seed"] for entry in tune.Log(tmp_path / "log").entries] == [2, 1]
    with pytest.raises(tune.Time):
        crew.make(tries)
    assert len(crew.pool.tasks) == 1 and crew.pool.tasks[0][0]["seed"] == 0
