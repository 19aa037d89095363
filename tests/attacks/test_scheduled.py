"""The attacker who knows a rule: what each method suggests, and trainings that are multiples of the experiment's."""

import pytest

from mithridate.attacks.harmful import Harmful, fitted
from mithridate.attacks.noice import NOICE
from mithridate.attacks.oppositeanswers import OppositeAnswers
from mithridate.attacks.scheduled import ELSEWHERE, Scheduled
from mithridate.attacks.tenshot import TenShot
from mithridate.errors import InputError
from mithridate.experiment.config import load_experiment
from mithridate.experiment.methods import attack_of
from mithridate.methods import Attack, Phase, by_name
from mithridate.studies.attack import with_knowing
from mithridate.studies.benchmarks.knowing import attacks_on, under
from mithridate.studies.benchmarks.settings import Arm
from mithridate.studies.settings import attacked, load_attack

METHODS = [(kind, name) for kind in ("defenses", "repairs") for name in by_name(kind)]
TRAINING = {"learning_rate": 0.001, "max_steps": 40, "num_train_epochs": 2}


def test_a_training_is_the_experiments_times_what_it_says():
    assert Phase().trained(TRAINING) == TRAINING
    assert Phase(rate=3.0, length=0.5).trained(TRAINING) == TRAINING | {"learning_rate": 0.001 * 3.0, "max_steps": 20}
    assert Phase(length=3.0).trained(TRAINING | {"max_steps": -1})["num_train_epochs"] == 6
    assert Phase(length=0.001).trained(TRAINING)["max_steps"] == 1
    assert Phase(rate=2.0, training={"learning_rate": 0.1}).trained(TRAINING)["learning_rate"] == 0.2
    with pytest.raises(InputError, match=r"finetune\.training\.learning_rate: .* not stated; give its value"):
        Phase(rate=2.0).trained({"max_steps": 4})


def test_an_attack_in_words_is_its_kind_and_what_it_changes():
    assert Scheduled(leap=10.0, length=1.5, size=7).in_words() == "scheduled (length 1.5, leap 10)"
    assert Scheduled(frozen=["a", "b"]).in_words() == "scheduled (frozen a, b)"
    assert NOICE(size=3, harmful_ratio=0.5).in_words() == "noice"
    assert Scheduled(adapter={"r": 4, "target_modules": ["a", "b"]}).in_words() == (
        "scheduled (adapter r 4, target_modules a, b)"
    )


def test_a_leap_is_a_training_of_its_own_before_the_rest():
    leap, rest = Scheduled(leap=10.0, leap_steps=2, length=1.5, frozen=["a"]).phases()
    assert leap.trained(TRAINING) == TRAINING | {
        "learning_rate": 0.001 * 10.0,
        "max_steps": 2,
        "lr_scheduler_type": "constant",
    } and leap.frozen == ("a",)
    assert rest.trained(TRAINING) == TRAINING | {"max_steps": 60} and rest.frozen == ("a",)
    assert Scheduled().phases() == [Phase()]


def test_keys_of_attacks_that_use_no_multiple_are_what_they_were():
    assert all(not {"rate", "length"} & phase.key().keys() for phase in TenShot().phases())
    assert Phase(rate=2.0).key()["rate"] == 2.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"length": 0}, "length must be a number above 0"),
        ({"rate": -1.0}, "rate must be a number above 0"),
        ({"leap": -1.0}, "leap must be a number at least 0"),
        ({"frozen": ["("]}, r"frozen: '\(' is no regular expression"),
        ({"leap_steps": 0}, "leap_steps must be a whole number of optimizer steps, at least 1"),
        ({"harmful_ratio": 2}, "harmful_ratio must be a number at least 0, at most 1"),
    ],
)
def test_what_is_no_schedule_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Scheduled(**fields)


@pytest.mark.parametrize(
    "finetune",
    [
        {"kind": "tenshot"},
        {"kind": "noice", "harmful_ratio": 0.25, "size": 8},
        {"kind": "trigger", "harmful_ratio": 0.25, "size": 8},
        {"kind": "opener", "harmful_ratio": 0.25, "size": 8},
        {"kind": "retainthenforget", "harmful_ratio": 0.25, "size": 8},
        {"kind": "benignoutliers", "size": 8},
        {"kind": "scheduled", "harmful_ratio": 0.25, "size": 8, "length": 2.0},
    ],
    ids=lambda fields: fields["kind"],
)
def test_a_plain_attack_whose_rows_or_training_would_be_lost_is_refused_with_knowing(finetune):
    """Else the attacks of who knows would be weaker ones, and be reported as the worst there are."""
    experiment = _asked(finetune={"attack": finetune, "training": TRAINING})
    words = rf"knowing: .* the plain one is {finetune['kind']}.* Give finetune\.attack the kind harmful, or take"
    with pytest.raises(InputError, match=words):
        fitted(Scheduled(length=3.0), attack_of(experiment.finetune))
    with pytest.raises(InputError, match=words):
        with_knowing(load_attack({"knowing": True}), experiment)
    with pytest.raises(InputError, match=words):
        under(experiment, Scheduled(length=3.0))


def test_a_schedule_that_changes_nothing_is_as_plain_as_harmful():
    for plain in (Scheduled(harmful_ratio=0.25, size=8), Harmful(harmful_ratio=0.25, size=8)):
        assert fitted(Scheduled(length=3.0), plain) == Scheduled(length=3.0, harmful_ratio=0.25, size=8)
        assert fitted(NOICE(size=200, harmful_ratio=0.5), plain) == NOICE(size=8, harmful_ratio=0.5)


@pytest.mark.parametrize(("kind", "name"), METHODS, ids=[name for _, name in METHODS])
def test_every_method_says_how_somebody_who_knows_it_would_attack(kind, name):
    attacks = by_name(kind)[name].example().adaptive()
    assert attacks and all(isinstance(attack, Attack) for attack in attacks)
    for attack in attacks:
        made = fitted(attack, Harmful(harmful_ratio=0.25, size=8))
        assert made.size == 8 and made.in_words().startswith(type(made).__name__.lower())
        said = "the same" if made.needs_pairs else "{}"
        words = {
            role: [{"prompt": f"{said.format(role)} {i}", "response": "yes"} for i in range(8)]
            for role in made.data_roles()
        }
        rows = made.rows(words, seed=0)
        harmful = sum(row["poisoned"] for row in rows)
        assert len(rows) == 8 and harmful == (2 if isinstance(made, Harmful) else 4)


def test_settings_that_change_nothing_suggest_no_attack():
    for kind, name, fields in [
        ("defenses", "lowerlr", {"factor": 1.0}),
        ("defenses", "fewersteps", {"share": 1.0}),
        ("defenses", "safetymix", {"share": 0.0}),
        ("repairs", "wiseft", {"a": 0.0}),
        ("repairs", "resta", {"alpha": 0.0}),
    ]:
        assert by_name(kind)[name].without_data(**fields).adaptive() == [], name


@pytest.mark.parametrize(
    ("fields", "single", "double"),
    [
        ({}, True, True),
        ({"frozen": [".*lora_B.*"]}, True, False),
        ({"frozen": ["nothing", r".*\.lora_B\.default\.weight"]}, True, False),
        ({"frozen": [".*q_proj.lora_B.*"]}, True, True),  # others move
        ({"frozen": [".*lora_A.*"]}, True, True),
        ({"frozen": [".*lora_B.*"], "adapter": {"r": 1}}, False, False),
    ],
    ids=str,
)
def test_with_the_zero_factors_of_a_new_adapter_frozen_nothing_moves(fields, single, double):
    attack = Scheduled(**fields)
    assert (attack.acts(fresh=False), attack.acts(fresh=True)) == (single, double)


def _arm(method, topology):
    return Arm(method, topology, ({},), tuned=False)


@pytest.mark.parametrize("method", ["asft", "safelora"])
def test_who_may_move_a_alone_is_suggested_it_where_the_alignments_adapter_is_trained_on(method):
    words = {
        topology: [attack.in_words() for attack in attacks_on(_arm(method, topology), {})]
        for topology in ("single", "double")
    }
    assert words == {
        "single": ["scheduled (frozen .*lora_B.*)", "scheduled (length 3)"],
        "double": ["scheduled (length 3)"],
    }


@pytest.mark.parametrize("method", ["asft", "safelora"])
def test_with_all_weights_trained_there_are_no_factors_to_freeze(method):
    assert [attack.in_words() for attack in attacks_on(_arm(method, "full"), {})] == ["scheduled (length 3)"]


def test_factors_can_be_frozen_where_there_is_an_adapter_only():
    frozen = [".*lora_A.*"]
    assert not Scheduled(frozen=frozen).acts(fresh=True, adapter=False)
    assert not Scheduled(frozen=frozen, adapter="full").acts(fresh=True, adapter=True)
    assert Scheduled(frozen=frozen, adapter={"r": 1}).acts(fresh=True, adapter=False)
    assert Scheduled(frozen=["model.norm.weight"]).acts(fresh=True, adapter=False)


@pytest.mark.parametrize("method", ["booster", "ctrap", "panacea", "tvaccine"])
def test_what_holds_in_one_adapter_meets_another_on_every_linear_layer(method):
    for topology in ("single", "double"):
        [attack] = [one for one in attacks_on(_arm(method, topology), {}) if one.adapter]
        assert attack.adapter == {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
        attack.adapter["r"] = 1
        assert ELSEWHERE["r"] == 8  # each has its own


def test_a_leap_keeps_its_rate_whatever_the_experiments_schedule():
    training = {"learning_rate": 1e-3, "max_steps": 40, "warmup_steps": 0.1, "lr_scheduler_type": "linear"}
    leap, rest = (phase.trained(training) for phase in Scheduled(leap=10.0).phases())
    assert leap["lr_scheduler_type"] == "constant" and leap["max_steps"] == 1  # which has no warm-up
    assert leap["learning_rate"] == pytest.approx(1e-2)
    assert rest == training


@pytest.mark.parametrize(
    ("attack", "steps", "lengths"),
    [
        (Harmful(harmful_ratio=0.1, size=8), 5, [5]),
        (Scheduled(length=3.0), 5, [5]),
        (Scheduled(leap=10.0, leap_steps=2), 5, [2, 3]),
        (Scheduled(leap=10.0, leap_steps=2, length=0.5), 3, [2, 1]),
        (Scheduled(leap=10.0, leap_steps=2), 2, None),  # it has no step after its leap
        (by_name("attacks")["tenshot"](), 5, None),  # so many epochs, whatever the experiment says
        (by_name("attacks")["retainthenforget"](size=8, harmful_ratio=0.5), 5, None),
    ],
    ids=str,
)
def test_an_attack_that_ends_after_so_many_steps(attack, steps, lengths):
    made = attack.ended_after(steps)
    if lengths is None:
        assert made is None
        return
    shorter, own = made
    training = {"learning_rate": 1e-3, "max_steps": own}
    assert [phase.trained(training)["max_steps"] for phase in shorter.phases()] == lengths
    assert sum(lengths) == steps


def test_a_leap_that_a_defense_has_no_room_for_is_left_out():
    lisa = {"lisa": {"align_steps": 1, "finetune_steps": 2}}
    finetune = {"attack": {"harmful_ratio": 0.2, "size": 50}, "training": TRAINING}
    for defense, leaps in (("none", 1), (lisa, 0)):
        given = _asked(finetune=finetune | {"defense": defense})
        variants = with_knowing(load_attack({"knowing": True}), given).variants
        assert sum("leap" in name for name in variants) == leaps, list(variants)


def _asked(**changes):
    roles = ("alignment", "defender_harmful", "attacker_harmful", "task", "test_harmful")
    return load_experiment(
        {
            "model": "m",
            "data": {role: {"source": f"{role}.jsonl"} for role in roles},
            "align": {"defense": {"booster": {}}},
            "finetune": {"attack": {"harmful_ratio": 0.2, "size": 50}, "training": TRAINING},
            "evaluate": {"protocol": "hs/embedded-v1"},
        }
        | changes
    )


def test_the_search_leaves_out_what_could_not_act_in_the_experiment():
    given = load_attack({"knowing": True})
    repaired = {"repair": {"safelora": {}}}
    for changes, frozen, adapters in (
        ({"topology": "single"} | repaired, 1, 0),  # Safe LoRA refuses layers that the alignment left as they were
        ({"topology": "double"} | repaired, 0, 0),
        ({"topology": "double", "adapter": {"target_modules": "all-linear"}} | repaired, 0, 1),
        ({"topology": "full"} | repaired, 0, 1),  # there are no factors to freeze
        ({"topology": "double", "repair": {"resta": {"alpha": 0.5}}}, 0, 1),
        ({"topology": "single", "repair": {"lox": {}}}, 0, 0),  # whose adapter is not the one that was trained
        ({"topology": "double", "repair": {"lox": {}}}, 0, 1),
    ):
        variants = with_knowing(given, _asked(**changes)).variants
        for words, count in (("frozen", frozen), ("adapter", adapters)):
            assert sum(f"scheduled ({words}" in name for name in variants) == count, (changes, list(variants))
        for values in variants.values():
            attacked(_asked(**changes), values)


def test_the_alignments_prompts_are_suggested_where_the_data_have_other_answers_to_them():
    for paired, suggested in ((False, False), (True, True)):
        words = [attack.in_words() for attack in attacks_on(_arm("lisa", "double"), {}, paired)]
        assert words == ["scheduled (length 3)", *["oppositeanswers"] * suggested]
        experiment = _asked(
            data=_asked_data(paired), finetune={"defense": {"lisa": {}}, "attack": {"harmful_ratio": 0.2, "size": 50}}
        )
        variants = with_knowing(load_attack({"knowing": True}), experiment).variants
        assert ("knows Lisa: oppositeanswers" in variants) == suggested
    assert attack_of(under(experiment, OppositeAnswers()).finetune) == OppositeAnswers(harmful_ratio=0.2, size=50)


def _asked_data(paired):
    roles = ("alignment", "defender_harmful", "attacker_harmful", "task", "test_harmful")
    own = {"defender_harmful": {"paired": True}} if paired else {}
    return {role: {"source": f"{role}.jsonl"} | own.get(role, {}) for role in roles}


def test_what_shortens_a_run_is_made_up_for():
    [attack] = by_name("defenses")["fewersteps"](share=0.25).adaptive()
    assert attack.phases()[0].trained(TRAINING)["max_steps"] == 160
    [attack] = by_name("defenses")["lowerlr"](factor=0.25).adaptive()
    assert attack.phases()[0].trained(TRAINING)["learning_rate"] == pytest.approx(0.004)
    [attack] = by_name("repairs")["wiseft"](a=0.75).adaptive()
    assert attack.length == 4


def test_an_experiment_under_another_attack_keeps_rows_and_training():
    experiment = load_experiment(
        {
            "model": "m",
            "data": {
                role: {"source": f"{role}.jsonl"} for role in ("alignment", "attacker_harmful", "task", "test_harmful")
            },
            "align": {},
            "finetune": {"attack": {"harmful_ratio": 0.2, "size": 50}, "training": TRAINING},
            "evaluate": {"protocol": "hs/embedded-v1"},
        }
    )
    made = under(experiment, Scheduled(leap=10.0))
    assert made.finetune.training == experiment.finetune.training
    assert attack_of(made.finetune) == Scheduled(harmful_ratio=0.2, size=50, leap=10.0)
    assert attack_of(under(experiment, NOICE(size=3, harmful_ratio=0.5)).finetune) == NOICE(size=50, harmful_ratio=0.5)
