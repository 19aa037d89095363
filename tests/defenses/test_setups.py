"""Cells of the support matrix that the other files leave open, and runs interrupted in the middle of a step."""

import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mithridate.defenses.booster import Booster
from mithridate.training.gradients import effective_step
from tests.conformance.methods import DEFENSES
from tests.defenses.helpers import error, model, rows, same, trainer_for, update, weights

USER, HARMFUL, SAFE = rows("user"), rows("harmful!"), rows("careful", 7)
SEVERAL = {"max_steps": 3, "learning_rate": 0.1, "data": USER, "exact": True}


@pytest.mark.shows("checkpointing", "exact", methods=["lisa"])
def test_checkpointing_changes_nothing_for_lisa(tmp_path):
    kept = update(model(), tmp_path, defense=DEFENSES["lisa"](), **SEVERAL)
    recomputed = update(model(), tmp_path, defense=DEFENSES["lisa"](), gradient_checkpointing=True, **SEVERAL)
    assert error(recomputed, kept) < 1e-12


class Attentions(TorchDispatchMode):
    """Counts how often attention is computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


# In which share of two layers attention is computed again.
KINDS = {
    "every layer": ({}, 1.0),
    "every other layer": ({"every_n_layers": 2}, 0.5),
    "selective": ({"selective": True}, 0.0),
}


def checkpointed(how, kind, folder, defense=None):
    kwargs = {"activation_checkpointing": True, "activation_checkpointing_kwargs": dict(KINDS[how][0])} if how else {}
    return update(model(kind), folder, defense=defense, **SEVERAL, **kwargs)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", ["sft", "vaccine", "booster", "lisa"])
def test_checkpointing_by_its_newer_name_changes_nothing(name, kind, tmp_path):
    """Of every layer, of some, and of all but attention (TRL's `selective`, which adapters do not pass on)."""

    def made():
        return None if name == "sft" else DEFENSES[name]()

    kept = checkpointed(None, kind, tmp_path, made())
    for how in KINDS:
        if (how, kind) != ("selective", "lora"):
            assert error(checkpointed(how, kind, tmp_path, made()), kept) < 1e-12


def test_what_is_checkpointed_is_computed_again(tmp_path):
    counts = {}
    for how in (None, *KINDS):
        with Attentions() as attentions:
            checkpointed(how, "full", tmp_path)
        counts[how] = attentions.count
    most = counts["every layer"] - counts[None]
    assert most > 0
    assert {how: (counts[how] - counts[None]) / most for how in KINDS} == {
        how: share for how, (_, share) in KINDS.items()
    }


@pytest.mark.shows("reentrant", "exact")
@pytest.mark.parametrize("name", ["booster", "lisa"])
def test_reentrant_checkpointing_changes_nothing(name, tmp_path):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    kept = update(model(), tmp_path, defense=DEFENSES[name](), **SEVERAL)
    recomputed = update(model(), tmp_path, defense=DEFENSES[name](), **SEVERAL, **reentrant)
    assert error(recomputed, kept) < 1e-12


@pytest.mark.shows("bf16 storage", "difference", note="as exact as plain training of such weights is")
@pytest.mark.parametrize("name", ["vaccine", "lisa"])
def test_trained_weights_in_bfloat16(name, tmp_path):
    """As near the float32 run as plain training in the same storage is to its own."""

    def rounding(make):
        args = {"data": USER, "max_steps": 3, "learning_rate": 0.1}
        full, stored = (
            update(model("full", d), tmp_path, defense=make(), **args) for d in (torch.float32, torch.bfloat16)
        )
        return error(stored, full)

    assert 1e-5 < rounding(DEFENSES[name]) < 2 * rounding(lambda: None)


# -- interruptions ---------------------------------------------------------------------------------------------------

RUN = {
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "data": USER,
}


class Killed(Exception):
    pass


def run(name, folder, *, checkpoint=None, dies_at=None):
    """The trained weights; or Killed, at the forward pass number `dies_at`."""
    net = model("lora", torch.float32, dropout=0.3)
    passes = []

    def count(*_):
        passes.append(1)
        if len(passes) == dies_at:
            raise Killed

    net.register_forward_pre_hook(count)
    trainer_for(net, folder, defense=DEFENSES[name](), **RUN).train(resume_from_checkpoint=checkpoint)
    return weights(net), len(passes)


# Of a step. The conformance suite interrupts every defense between steps.
PASSES = {"vaccine": 4, "booster": 6, "lisa": 2}


@pytest.mark.shows("resume", "exact", note="bit for bit")
@pytest.mark.parametrize("name", PASSES)
def test_a_run_killed_anywhere_in_a_step_goes_on_from_its_checkpoint_bit_for_bit(name, tmp_path):
    """In Booster's first, second and later harmful passes, in Vaccine's probe, in any micro-batch, in either state of
    Lisa: what the step at hand did is lost, and the continued run is the undisturbed one."""
    whole, passes = run(name, tmp_path / "whole")
    a_step = passes // 6
    assert a_step == PASSES[name]
    for dies_at in [2 * a_step + 1 + i for i in range(a_step)] + [5 * a_step]:
        folder = tmp_path / f"killed-{dies_at}"
        with pytest.raises(Killed):
            run(name, folder, dies_at=dies_at)
        last = max(folder.glob("checkpoint-*"), key=lambda f: int(f.name.rpartition("-")[2]))
        assert last.name == ("checkpoint-2" if dies_at <= 4 * a_step else "checkpoint-4")
        assert same(whole, run(name, folder, checkpoint=str(last))[0])
        shutil.rmtree(folder)


# -- how much of Booster's step survives rounding -------------------------------------------------------------------


def emulated(w, d, alpha):
    """The step that bfloat16 products see, entry by entry in float64: its cosine to -d, its length over alpha."""
    stored = (w - alpha * d).to(torch.float32)
    seen = stored.to(torch.bfloat16).double() - w.to(torch.bfloat16).double()
    wanted = -d.double()
    return float((seen @ wanted) / (seen.norm() * wanted.norm())), float(seen.norm() / alpha)


@pytest.mark.parametrize(
    ("entries", "alpha", "low", "high"),
    [(1_000_000, 0.003, 0.1, 0.4), (1_000_000, 0.1, 0.85, 0.95), (1_000, 0.5, 0.99, 1.0)],
)
def test_the_effective_step_is_the_emulated_one(entries, alpha, low, high):
    """Weights of size 0.02, a gradient spread evenly: the more weights, the less of a step of length alpha is left."""
    generator = torch.Generator().manual_seed(0)
    w, d = (torch.randn(entries, generator=generator) for _ in range(2))
    w, d = 0.02 * w, d / d.norm()
    before, after = [w[: entries // 2].clone(), w[entries // 2 :].clone()], []
    direction = [d[: entries // 2], d[entries // 2 :]]
    after = [b - alpha * x for b, x in zip(before, direction, strict=True)]
    cosine, length = effective_step(before, after, direction, torch.bfloat16)
    expected = emulated(w, d, alpha)
    assert -float(cosine) == pytest.approx(expected[0], rel=1e-4)
    assert float(length) / alpha == pytest.approx(expected[1], rel=1e-4)
    assert low < expected[0] <= high
    cosine, length = effective_step(before, after, direction, None)
    assert -float(cosine) == pytest.approx(1, abs=1e-4) and float(length) == pytest.approx(alpha, rel=1e-3)


def test_the_warning_names_cosine_length_and_remedy(tmp_path, caplog):
    net = model("lora", torch.bfloat16)
    t = trainer_for(net, tmp_path, defense=Booster(harmful_dataset=HARMFUL, alpha=1e-3), data=USER, bf16=True)
    t.train()
    log = t.state.log_history[0]
    (warned,) = [r.message for r in caplog.records if "survives the rounding" in r.message]
    assert log["booster/perturbation_fidelity"] < 0.9 and log["booster/perturbation_length"] > 1.05
    for word in (
        f"{log['booster/perturbation_fidelity']:.2f} (cosine)",
        f"{log['booster/perturbation_length']:.2f} times",
        "bf16=False",
    ):
        assert word in warned
