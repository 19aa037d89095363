"""What holds for every attack: one suite over all of them by name, each from its own example."""

import copy
import dataclasses
import pickle
import re

import pytest

from mithridate.errors import InputError
from mithridate.methods import Phase, by_name
from mithridate.methods.examples import records_of
from tests.conformance.methods import every, example

attacks = pytest.mark.parametrize("name", every("attacks"))


def roles_of(attack, count=64):
    found = {name: records_of(role, count) for name, role in attack.data_roles().items()}
    if attack.needs_pairs and "harmful" in found:
        pairs = zip(found["alignment"], found["harmful"], strict=True)
        found["harmful"] = [{**harmful, "prompt": own["prompt"]} for own, harmful in pairs]
    return found


def made(name, seed=0, **settings):
    attack = example("attacks", name, **settings)
    if attack.needs_model:
        pytest.skip("its rows need the model: whole runs in tests/pipeline show them")
    return attack.rows(roles_of(attack), seed)


@attacks
def test_it_says_what_it_is(name):
    cls, attack = by_name("attacks")[name], example("attacks", name)
    assert dataclasses.is_dataclass(cls) and name == cls.__name__.lower()
    assert cls.stage == "attack" and cls.paper and re.fullmatch(r"exact|own|port of .+", cls.provenance)
    assert cls.provenance == "own" or re.match(r"@\w+\{\w+,\s", cls.citation)
    assert cls.strength is None or cls.strength in attack.settings()
    assert 0 < attack.share() <= 1
    phases = attack.phases()
    assert phases and all(isinstance(phase, Phase) and phase.order in ("shuffled", "given") for phase in phases)
    for twin in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack)), dataclasses.replace(attack)):
        assert twin == attack


@attacks
def test_its_rows_repeat_with_the_seed_and_change_with_another(name):
    one, again, other = made(name), made(name), made(name, seed=1)
    assert one == again and one != other


@attacks
def test_its_rows_can_be_trained_on_and_say_which_of_them_attack(name):
    rows, attack = made(name), example("attacks", name)
    assert rows and all(("messages" in row) or (row.get("prompt") and row.get("response")) for row in rows)
    assert sum(bool(row.get("poisoned")) for row in rows) == round(attack.share() * len(rows))
    named = {phase.rows for phase in attack.phases()} - {None}
    assert named <= {row.get("phase") for row in rows}


@attacks
def test_off_attacks_with_no_row(name):
    off = by_name("attacks")[name].off
    if off is not None:
        attack = example("attacks", name, **off)
        assert attack.share() == 0 and not any(row["poisoned"] for row in attack.rows(roles_of(attack), 0))


@attacks
def test_too_few_rows_are_refused_with_what_is_missing(name):
    attack = example("attacks", name)
    with pytest.raises(InputError, match="rows"):
        attack.rows({role: rows[:0] for role, rows in roles_of(attack).items()}, 0)
