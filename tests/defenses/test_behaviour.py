"""What must not change, what must not leak, what a defense of one's own may do."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer
from trl import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.defenses.base import Defense
from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.training.mixin import DefenseMixin
from mithridate.training.trainer import DefenseTrainer
from tests.conformance.methods import DEFENSES
from tests.defenses.helpers import DEFAULTS, USUAL, error, model, rows, same, trainer_for, update, weights
from tests.tiny import tiny_tokenizer

USER, HARMFUL = rows("user"), rows("harmful!")


def usual_run(folder, defense=None, **kwargs):
    """With dropout in a LoRA adapter."""
    net = model("lora", torch.float32, dropout=0.3)
    t = trainer_for(net, folder, defense=defense, data=USER, **(USUAL | kwargs))
    t.train()
    return weights(net), t


def clocked(history):
    """The log without what depends on the clock."""
    return [{k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in history]


# -- without a defense, and with one that does nothing ---------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_a_defense_it_is_sfttrainer_bit_for_bit(checkpointing, tmp_path):
    plain, a = usual_run(tmp_path / "a", cls=SFTTrainer, gradient_checkpointing=checkpointing)
    ours, b = usual_run(tmp_path / "b", defense=None, gradient_checkpointing=checkpointing)
    assert same(plain, ours)
    assert clocked(a.state.log_history) == clocked(b.state.log_history)


@pytest.mark.parametrize(
    "defense", [Vaccine(rho=0.0), Booster(harmful_dataset=HARMFUL, lam=1e-99)], ids=["rho=0", "lam is nearly 0"]
)
def test_a_defense_of_no_strength_is_plain_training_with_the_same_dropout(defense, tmp_path):
    """So its extra passes leave no trace: not in the random numbers, the gradients, the metrics, the token count."""
    plain, a = usual_run(tmp_path / "a")
    idle, b = usual_run(tmp_path / "b", defense=defense)
    assert same(plain, idle)
    logged = [{k: v for k, v in e.items() if "/" not in k} for e in clocked(b.state.log_history)]
    assert logged == clocked(a.state.log_history)
    assert all(e["num_tokens"] > 0 for e in logged[:-1])


def test_boosters_logged_loss_is_the_alignment_loss(tmp_path):
    _, plain = usual_run(tmp_path / "a", max_steps=1)
    _, booster = usual_run(tmp_path / "b", defense=DEFENSES["booster"](), max_steps=1)
    first, same_first = booster.state.log_history[0], plain.state.log_history[0]
    for key in ("loss", "num_tokens", "entropy", "mean_token_accuracy"):
        assert first[key] == same_first[key]


@pytest.mark.parametrize("name", DEFENSES)
def test_learning_rate_zero_leaves_every_weight(name, tmp_path):
    net = model("full", torch.float32)
    before = weights(net)
    args = USUAL | {"learning_rate": 0.0, "weight_decay": 0.1}
    trainer_for(net, tmp_path, defense=DEFENSES[name](), data=USER, **args).train()
    assert same(before, weights(net)) == ("lr 0" not in DEFENSES[name]().differences)


@pytest.mark.shows("padding", "exact")
@pytest.mark.parametrize("name", DEFENSES)
def test_padding_changes_nothing(name, tmp_path):
    args = {"data": USER, "exact": True, "learning_rate": 0.1, "max_steps": 3}
    tight = update(model(), tmp_path, defense=DEFENSES[name](), **args)
    wide = update(model(), tmp_path, defense=DEFENSES[name](), pad_to_multiple_of=96, **args)
    assert error(wide, tight) < 1e-10


# -- dropout, passes, hooks ------------------------------------------------------------------------------------------


@pytest.mark.shows("dropout", "difference", note="the passes that are compared draw the same masks")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["vaccine", "booster"])
def test_compared_passes_draw_the_same_dropout_masks(name, checkpointing, tmp_path):
    net = model("lora", torch.float32, dropout=0.5)
    site = next(m for m in net.modules() if isinstance(m, nn.Dropout))
    masks = []
    site.register_forward_hook(lambda m, args, out: masks.append((out == 0).detach().clone()))
    trainer_for(
        net, tmp_path, defense=DEFENSES[name](), data=USER, max_steps=2, gradient_checkpointing=checkpointing
    ).train()
    runs = 2 if checkpointing else 1  # forward, and again in backward
    passes = {"vaccine": [0, 0], "booster": [0, 0, 1]}[name]  # which of them are on the same batch
    step = masks[: len(passes) * runs]
    assert len(masks) == 2 * len(step)
    compared = [m for m, batch in zip(step[::runs], passes, strict=True) if batch == 0]
    compared += [m for m, batch in zip(step[runs - 1 :: runs], passes, strict=True) if batch == 0]
    assert all(torch.equal(compared[0], m) for m in compared)
    assert compared[0].any() and not compared[0].all()
    later = masks[len(step)]
    assert later.shape != compared[0].shape or not torch.equal(later, compared[0])  # but others at the next step


def test_the_probe_touches_no_parameter_gradient(tmp_path):
    """Only activation gradients are taken: no `.grad`, and no weight's gradient computed on the way."""
    net = model()
    computed, seen = [], []
    for p in net.parameters():
        p.register_hook(lambda g: computed.append(1))

    class Watched(Vaccine):
        def training_step(self, t, step, model, inputs, num_items_in_batch):
            def watching(*args):
                seen.append((len(computed), [p.grad for p in t.params]))
                return step(*args)

            return super().training_step(t, watching, model, inputs, num_items_in_batch)

    trainer_for(net, tmp_path, defense=Watched(rho=1.5), data=USER, gradient_checkpointing=True).train()
    (count, grads), parameters = seen[0], len(list(net.parameters()))
    assert count == 0 and all(g is None for g in grads)
    assert len(computed) == parameters


def test_hooks_are_gone_after_training_and_after_an_error(tmp_path):
    def hooks(net):
        return sum(len(m._forward_hooks) for m in net.modules())

    net = model()
    t = trainer_for(net, tmp_path, defense=Vaccine(), data=USER)
    before = hooks(net)
    t.train()
    assert hooks(net) == before

    class Broken(Defense):
        def training_step(self, *args):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        trainer_for(net, tmp_path, defense=[Broken(), Vaccine()], data=USER).train()
    assert hooks(net) == before


# -- diagnostics -----------------------------------------------------------------------------------------------------


def test_diagnostics_are_logged_as_means_since_the_last_log(tmp_path):
    defense = Lisa(alignment_dataset=HARMFUL, align_steps=1, finetune_steps=2, rho=0.1)
    _, t = usual_run(tmp_path, defense=defense, max_steps=6, logging_steps=3)
    training = [e for e in t.state.log_history if "loss" in e]
    assert [e["lisa/phase"] for e in training] == [pytest.approx(2 / 3)] * 2
    assert all(e["lisa/drift"] > 0 for e in training)

    _, t = usual_run(tmp_path, defense=[DEFENSES["booster"](), DEFENSES["vaccine"]()], logging_steps=2)
    for entry in (e for e in t.state.log_history if "loss" in e):
        assert entry["vaccine/gradient_norm"] > 0
        assert entry["booster/harmful_loss_drop"] > 0
        assert entry["booster/perturbation_fidelity"] == pytest.approx(1, abs=1e-6)


def test_an_evaluation_between_two_logs_takes_nothing_from_the_diagnostics(tmp_path):
    net = model("full", torch.float32)
    t = trainer_for(
        net,
        tmp_path,
        defense=Vaccine(rho=0.1),
        data=USER,
        max_steps=4,
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        **{"learning_rate": 0.0},
        cls=_with_evaluation(HARMFUL),
    )
    t.train()
    (training,) = [e for e in t.state.log_history if "loss" in e]
    assert training["vaccine/gradient_norm"] > 0
    assert len([e for e in t.state.log_history if "eval_loss" in e]) == 4
    assert all("vaccine/gradient_norm" not in e for e in t.state.log_history if "eval_loss" in e)


def _with_evaluation(data):
    from mithridate.training.trainer import DefenseTrainer

    class Evaluating(DefenseTrainer):
        def __init__(self, **kwargs):
            super().__init__(eval_dataset=data, **kwargs)

    return Evaluating


@pytest.mark.shows(
    "bf16",
    "difference",
    methods=["booster"],
    note="what rounding leaves of the probe is logged, with a warning below 0.9",
)
@pytest.mark.parametrize("bf16", [False, True])
def test_boosters_fidelity_is_measured_in_the_dtype_that_computes(bf16, tmp_path, caplog):
    """Over a bfloat16 base with a float32 adapter, all of the step survives, unless autocast rounds."""
    net = model("lora", torch.bfloat16)
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    defense = Booster(harmful_dataset=HARMFUL, alpha=1e-4 if bf16 else 0.1)  # so small that bfloat16 loses it
    t = trainer_for(net, tmp_path, defense=defense, data=USER, bf16=bf16, max_steps=2, learning_rate=1e-3)
    t.train()
    fidelity = t.state.log_history[0]["booster/perturbation_fidelity"]
    warned = [r.message for r in caplog.records if "survives the rounding" in r.message]
    if bf16:
        assert fidelity < 0.9 and len(warned) == 1 and "bf16=False" in warned[0]
    else:
        assert fidelity == pytest.approx(1, abs=1e-6) and not warned


@pytest.mark.shows("bf16", "difference", note="as exact as bfloat16 products are")
@pytest.mark.parametrize("name", DEFENSES)
def test_bf16_mixed_precision_over_float32_weights(name, tmp_path):
    """TRL's default: near the float32 run, as far as bfloat16 goes."""
    args = {"data": USER, "max_steps": 3, "learning_rate": 0.03}
    # Booster at the paper's alpha: a step three times as long ends where the tiny model rounds more
    # and EWC's term has squares of gradients, whose rounding is twice theirs
    milder = {"booster": lambda: Booster(harmful_dataset=HARMFUL), "ewc": lambda: replace(DEFENSES["ewc"](), lam=0.05)}
    defense = milder.get(name, DEFENSES[name])
    full = update(model("full", torch.float32), tmp_path, defense=defense(), **args)
    rounded = update(model("full", torch.float32), tmp_path, defense=defense(), bf16=True, **args)
    assert 1e-5 < error(rounded, full) < 0.1


@pytest.mark.shows("bf16 base", "difference", note="as exact as bfloat16 products are")
@pytest.mark.parametrize("name", DEFENSES)
def test_bfloat16_base_with_a_float32_adapter_trains(name, tmp_path):
    """The project's set-up on CPU."""
    net = model("lora", torch.bfloat16)
    before = weights(net)
    t = trainer_for(net, tmp_path, defense=DEFENSES[name](), data=USER, **(USUAL | {"max_steps": 8}))
    t.train()
    losses = [e["loss"] for e in t.state.log_history if "loss" in e]
    assert losses[-1] < losses[0] and all(math.isfinite(x) for x in losses)
    assert not same(before, weights(net))


# -- what is not finite ----------------------------------------------------------------------------------------------


class Poison(Defense):
    """Makes one weight not-a-number before a step, as an exploding update would."""

    def __init__(self, at):
        self.at = at

    def settings(self):
        return {}

    def on_step_begin(self, t):
        if t.state.global_step == self.at:
            t.params[0].data.view(-1)[:] = float("nan")


@pytest.mark.parametrize("logging", [1, 100])
def test_a_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_last_good_checkpoint(logging, tmp_path):
    net = model("full", torch.float32)
    args = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "logging_steps": logging}
    with pytest.raises(MithridateError, match="not finite at step 5"):
        trainer_for(net, tmp_path, defense=Poison(4), data=USER, learning_rate=0.01, **args).train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_naming_the_step_waits_for_no_device(tmp_path, monkeypatch):
    """On a GPU, reading a number out of a tensor waits for all that was queued. The step is kept in a tensor, and read
    where the Trainer logs or saves: between, a trainer with no defense reads as many numbers as SFTTrainer."""
    read = 0

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal read
            read += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
            return func(*args, **(kwargs or {}))

    counts = []
    for cls in (SFTTrainer, DefenseTrainer):
        real, taken = cls.training_step, []

        def step(self, *args, real=real, taken=taken, **kwargs):
            nonlocal read
            read = 0
            with Reads():
                loss = real(self, *args, **kwargs)
            taken.append(read)
            return loss

        monkeypatch.setattr(cls, "training_step", step)
        args = {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "logging_steps": 100,
        }
        trainer_for(model("full", torch.float32), tmp_path / cls.__name__, data=USER, cls=cls, **args).train()
        monkeypatch.undo()
        counts.append(taken)
    assert counts[0] == counts[1] and len(counts[0]) == 8


def test_weights_that_are_not_finite_are_not_saved_although_the_loss_was(tmp_path):
    class Explode(Defense):
        def on_step_begin(self, t):
            if t.state.global_step == 1:
                t.seed([torch.full_like(p, float("inf")) for p in t.params])

    args = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(MithridateError, match="weights are not finite at step 2"):
        trainer_for(model("full", torch.float32), tmp_path, defense=Explode(), data=USER, **args).train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    with pytest.raises(MithridateError, match="weights are not finite at step 2"):  # nor left at the end of training
        trainer_for(model("full", torch.float32), tmp_path / "b", defense=Explode(), data=USER, max_steps=2).train()


def test_without_a_defense_a_loss_that_is_not_finite_stops_too(tmp_path):
    net = model("full", torch.float32)
    net.lm_head.weight.data[0] = float("nan")
    with pytest.raises(MithridateError, match="training loss is not finite at step 1"):
        trainer_for(net, tmp_path, data=USER).train()


def test_a_harmful_gradient_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path, monkeypatch):
    net = model("full", torch.float32)
    before = weights(net)
    t = trainer_for(net, tmp_path, defense=DEFENSES["booster"](), data=USER)
    real = t.gradient
    monkeypatch.setattr(t, "gradient", lambda b: (real(b)[0], [g * float("inf") for g in real(b)[1]]))
    with pytest.raises(MithridateError, match="harmful loss is not finite at step 1"):
        t.train()
    assert same(before, weights(net))


def test_a_probe_that_is_not_finite_leaves_the_step_unshifted(tmp_path, monkeypatch):
    t = trainer_for(model(), tmp_path, defense=Vaccine(rho=1.5), data=USER)
    real = t.probe
    monkeypatch.setattr(t, "probe", lambda *args: real(*args) * float("inf"))
    before = weights(t.model)
    t.train()
    plain = update(model(), tmp_path, data=USER)
    got = [b - a for b, a in zip(before.values(), weights(t.model).values(), strict=True)]
    assert error(got, plain) == 0


# -- loss scaling ----------------------------------------------------------------------------------------------------


@pytest.mark.shows("fp16", "difference", note="loss scaling changes nothing (on CPU); float16 products need a GPU")
@pytest.mark.parametrize("name", DEFENSES)
def test_loss_scaling_changes_nothing(name, tmp_path):
    """fp16 mixed precision scales losses; powers of two are exact, so the scaled run equals the unscaled one."""
    args = {"max_steps": 3, "learning_rate": 0.1}
    plain, scaled = model("full", torch.float32), model("full", torch.float32)
    trainer_for(plain, tmp_path, defense=DEFENSES[name](), data=USER, **args).train()
    t = trainer_for(scaled, tmp_path, defense=DEFENSES[name](), data=USER, **args)
    t.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # what Accelerate sets up on a GPU
    t.train()
    assert t.loss_scale == 1024.0
    assert error(weights(scaled).values(), weights(plain).values()) < 1e-6


def test_an_overflow_in_the_harmful_pass_is_left_to_the_scaler(tmp_path):
    """Scaled so high that gradients overflow, the step is skipped and the scale lowered; no weight changes."""
    net = model("full", torch.float32)
    before = weights(net)
    t = trainer_for(net, tmp_path, defense=DEFENSES["booster"](), data=USER)
    t.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    t.train()
    assert same(before, weights(net))
    assert t.loss_scale == 2.0**126


# -- one's own, and other trainers -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class StayClose(Defense):
    """A defense in a dozen lines: pulls the weights back to where they started."""

    rho: float = 1e-3

    def on_train_begin(self, t):
        self.start = [p.detach().clone() for p in t.params]

    def on_step_begin(self, t):
        t.seed([self.rho * (p.detach() - w) for p, w in zip(t.params, self.start, strict=True)])


def test_a_defense_of_ones_own(tmp_path):
    def distance(defense):
        moved = update(model(), tmp_path, defense=defense, data=USER, max_steps=6, learning_rate=0.1)
        return float(sum((m**2).sum() for m in moved)) ** 0.5

    free = distance(None)
    assert distance(StayClose(rho=2.0)) < 0.7 * free
    assert distance([StayClose(rho=2.0), DEFENSES["booster"]()]) != distance(DEFENSES["booster"]())


def test_the_mixin_runs_over_a_plain_trainer(tmp_path):
    """Tokenised rows, the model's own loss; Booster and Vaccine equal their DefenseTrainer selves."""
    from transformers import TrainingArguments

    class PlainTrainer(DefenseMixin, Trainer):
        pass

    prepared = trainer_for(model(), tmp_path, data=USER)
    tokenised = {n: prepared._prepare_side_dataset(d, n) for n, d in [("user", USER), ("harm", HARMFUL)]}
    net, defense = model(), [Booster(harmful_dataset=tokenised["harm"]), Vaccine(rho=1.5)]
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=1,
        per_device_train_batch_size=8,
    )
    before = weights(net)
    PlainTrainer(
        model=net,
        args=args,
        train_dataset=tokenised["user"],
        data_collator=prepared.data_collator,
        processing_class=tiny_tokenizer(),
        defense=defense,
    ).train()
    got = [b - a for b, a in zip(before.values(), weights(net).values(), strict=True)]
    ours = update(model(), tmp_path, defense=[Booster(harmful_dataset=HARMFUL), Vaccine(rho=1.5)], data=USER)
    assert error(got, ours) < 1e-6


@pytest.mark.parametrize("cls", [Vaccine, Booster, Lisa])
def test_each_method_says_where_it_comes_from_and_what_it_needs(cls):
    import sys

    text = sys.modules[cls.__module__].__doc__
    for part in ("arxiv.org/abs/", "Differs from the official code in:", "Cost:", "Supported:"):
        assert part in text
    assert "arxiv.org" in cls.paper and cls.stage in ("alignment", "fine-tuning")
    assert set(cls.roles.values()) <= {"defender_harmful", "alignment"}


# -- composition -----------------------------------------------------------------------------------------------------


def test_two_that_exclude_each_other_are_refused(tmp_path):
    class Swap(Defense):
        def batches(self, t, batches):
            return list(batches)

    for pair, words in [
        ([Vaccine(), Vaccine(rho=1.0)], "Vaccine is given twice"),
        ([DEFENSES["lisa"](), Swap()], "Lisa and Swap both choose the batches"),
    ]:
        with pytest.raises(UnsupportedSetup, match=words):
            trainer_for(model(), tmp_path, defense=pair, data=USER, max_steps=3)


@pytest.mark.parametrize("wrong", ["booster", Booster, 3, [Vaccine(), "lisa"], {"vaccine": {}}])
def test_what_is_no_defense_is_refused(wrong, tmp_path):
    with pytest.raises(InputError, match="defense must be"):
        trainer_for(model(), tmp_path, defense=wrong, data=USER)


@pytest.mark.shows("together", "exact", methods=["booster", "lisa"])
def test_seeding_defenses_add_up(tmp_path):
    lisa = {"alignment_dataset": HARMFUL, "align_steps": 1, "finetune_steps": 1, "rho": 0.5, "proximal_start": 0.0}
    args = {"data": USER, "max_steps": 2, "learning_rate": 0.1, "exact": True}

    def second_step(*defenses):
        visited = []

        class Record(Defense):
            def on_step_begin(self, t):
                visited.append([p.detach().clone() for p in t.params])

        net = model()
        trainer_for(net, tmp_path, defense=[*defenses, Record()], **args).train()
        return visited[0], visited[1], [p.detach() for p in net.parameters()]

    together = second_step(Booster(harmful_dataset=HARMFUL, alpha=0.1), Lisa(**lisa), StayClose(rho=0.25))
    reversed_order = second_step(StayClose(rho=0.25), Lisa(**lisa), Booster(harmful_dataset=HARMFUL, alpha=0.1))
    assert error(together[2], reversed_order[2]) < 1e-12
    without = second_step(Booster(harmful_dataset=HARMFUL, alpha=0.1), Lisa(**(lisa | {"rho": 0.0})))
    # the second step is in the user state: anchor = weights after the first, so only StayClose pulls
    pull = [0.25 * (a - b) for a, b in zip(together[1], together[0], strict=True)]
    moved = [(b - a) / 0.1 for a, b in zip(together[2], without[2], strict=True)]
    assert error(moved, pull) < 1e-6


def test_booster_of_strength_zero_takes_no_harmful_pass(tmp_path, monkeypatch):
    """0 times a gradient that is not finite would be no number."""
    monkeypatch.setattr(DefenseMixin, "gradient", lambda *_: pytest.fail("a harmful pass"))
    plain, _ = usual_run(tmp_path / "a")
    idle, _ = usual_run(tmp_path / "b", defense=Booster(harmful_dataset=HARMFUL, lam=0))
    assert same(plain, idle)


# -- formats of the side data ----------------------------------------------------------------------------------------


def test_side_data_in_another_format_are_trained_on_their_answers_alone(tmp_path):
    """Tokenised training rows do not make prompts of the harmful rows count."""
    reference = trainer_for(model(), tmp_path, data=USER)
    tokenised = reference.train_dataset.select_columns(["input_ids", "labels"])
    one = update(model(), tmp_path, defense=DEFENSES["booster"](), data=USER)
    other = update(model(), tmp_path, defense=DEFENSES["booster"](), data=tokenised)
    assert error(other, one) < 1e-9


def test_tokenised_side_data_are_trained_on_what_their_mask_says(tmp_path):
    """Their own prompts do not count, whatever the training set's format."""
    reference = trainer_for(model(), tmp_path, data=HARMFUL).train_dataset

    def masked(row):
        return {"input_ids": row["input_ids"], "completion_mask": [int(label != -100) for label in row["labels"]]}

    tokenised = reference.map(masked, remove_columns=reference.column_names)
    batch = trainer_for(model(), tmp_path, data=USER).side_data(tokenised, "tokenised").take(0, 1)[0]
    assert torch.equal(
        batch["labels"], trainer_for(model(), tmp_path, data=USER).side_data(HARMFUL, "").take(0, 1)[0]["labels"]
    )


@pytest.mark.parametrize("name", ["booster", "lisa"])
def test_side_data_go_to_the_users_own_collator_as_they_are(name, tmp_path):
    """Rows that only it understands, with TRL's preparation switched off."""
    tokenizer, seen = tiny_tokenizer(), set()

    def collate(given):
        seen.update(row["q"] for row in given)
        batch = tokenizer([row["q"] + row["a"] for row in given], padding=True, return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].clone()}

    def own(word):
        return Dataset.from_list([{"q": f"{word} {i}?", "a": "!"} for i in range(8)])

    defense = (
        Booster(harmful_dataset=own("side"))
        if name == "booster"
        else Lisa(alignment_dataset=own("side"), align_steps=1, finetune_steps=1)
    )
    args = SFTConfig(
        str(tmp_path),
        **DEFAULTS | {"max_steps": 2, "remove_unused_columns": False, "learning_rate": 0.1},
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    DefenseTrainer(
        model=model(),
        args=args,
        train_dataset=own("user"),
        processing_class=tokenizer,
        data_collator=collate,
        defense=defense,
    ).train()
    assert {text.split()[0] for text in seen} == {"side", "user"}


def test_side_data_are_truncated_like_the_training_set(tmp_path):
    long = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a" * 300}]}]
        * 3
    )
    t = trainer_for(model(), tmp_path, data=USER, max_length=64)
    assert t.side_data(long, "long").take(0, 1)[0]["input_ids"].shape == (8, 64)
    prompts = long.map(lambda r: {"prompt": [{"role": "user", "content": "q" * 300}]})
    with pytest.raises(InputError, match="No row of long has an answer left within max_length=64"):
        t.side_data(prompts, "long")


def test_settings_leave_the_data_out_and_are_plain_json():
    settings = Booster(harmful_dataset=HARMFUL).settings()
    assert json.loads(json.dumps(settings)) == {"alpha": 0.1, "lam": 5.0, "every": 1}
    assert Vaccine().settings() == {"rho": 2.0, "sites": "attention", "every": 1}
