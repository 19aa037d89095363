"""Lisa's states over a run, and resuming one in the middle."""

import json
import shutil

import pytest
import torch
from transformers import TrainerCallback

from mithridate.defenses.lisa import Lisa
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.steps import steps_of
from tests.defenses.helpers import model, rows, same, trainer_for, weights

USER, SAFE = rows("user", 12), rows("safe", 7)
RUN = {
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 9,
}


def lisa(**kwargs):
    return Lisa(alignment_dataset=SAFE, **({"align_steps": 2, "finetune_steps": 3} | kwargs))


def words(t, batch):
    return [t.processing_class.decode(ids) for ids in batch["input_ids"]]


def test_alignment_steps_replace_user_steps_and_count_optimizer_steps(tmp_path):
    """Two states by turns, the alignment state first; each alignment row once before any twice; user rows go on."""
    seen: list[tuple[int, list[str]]] = []

    class Watched(Lisa):
        def training_step(self, t, step, model, inputs, num_items_in_batch):
            seen.append((t.state.global_step, words(t, inputs)))
            return step(model, inputs, num_items_in_batch)

    t = trainer_for(
        model("lora", torch.float32),
        tmp_path,
        defense=Watched(alignment_dataset=SAFE, align_steps=2, finetune_steps=3),
        data=USER,
        **RUN,
    )
    t.train()
    assert t.state.global_step == 9
    assert [step for step, _ in seen] == [s for s in range(9) for _ in range(2)]
    assert [all("safe" in w for w in texts) for step, texts in seen] == [s % 5 < 2 for s in range(9) for _ in range(2)]
    assert not any("safe" in w for step, texts in seen if step % 5 >= 2 for w in texts)
    safe = [w for step, texts in seen if step % 5 < 2 for w in texts]
    assert len(safe) == 16 and len(set(safe[:7])) == len(set(safe[7:14])) == 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("whole")
    net = model("lora", torch.float32, dropout=0.3)
    t = trainer_for(net, folder, defense=lisa(), data=USER, save_strategy="steps", save_steps=1, **RUN)
    t.train()
    return folder, weights(net), t.state.log_history


@pytest.mark.shows("resume", "exact", methods=["lisa"], note="bit for bit")
@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 8, 9])
def test_a_run_resumed_in_any_phase_equals_the_uninterrupted_one_bit_for_bit(step, whole, tmp_path):
    folder, final, history = whole
    checkpoint = tmp_path / f"checkpoint-{step}"
    shutil.copytree(folder / checkpoint.name, checkpoint)
    net = model("lora", torch.float32, dropout=0.3)
    t = trainer_for(net, tmp_path, defense=lisa(), data=USER, **RUN)
    t.train(resume_from_checkpoint=str(checkpoint))
    assert same(final, weights(net))
    drift = [[e["lisa/drift"] for e in h if "lisa/drift" in e] for h in (history, t.state.log_history)]
    assert drift[0] == drift[1] and len(drift[0]) == 9


def test_the_anchor_is_needed_to_resume(whole, tmp_path):
    """The comparison above could not tell a lost anchor if it did not matter."""
    folder, final, _ = whole
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(folder / "checkpoint-4", checkpoint)
    net = model("lora", torch.float32, dropout=0.3)

    class Forgetful(Lisa):
        def load_state_dict(self, t, state):
            pass

    Forgetful.__name__ = "Lisa"
    t = trainer_for(
        net, tmp_path, defense=Forgetful(alignment_dataset=SAFE, align_steps=2, finetune_steps=3), data=USER, **RUN
    )
    t.train(resume_from_checkpoint=str(checkpoint))
    assert not same(final, weights(net))


def test_a_checkpoint_is_resumed_only_by_the_same_defense(whole, tmp_path):
    folder, _, _ = whole
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(folder / "checkpoint-4", checkpoint)
    written = json.loads((checkpoint / "defense.json").read_text())["defenses"]
    assert written == [
        {
            "defense": "Lisa",
            "settings": {"align_steps": 2, "finetune_steps": 3, "rho": 1.0, "proximal_start": 0.1},
        }
    ]

    def resume(defense):
        t = trainer_for(model("lora", torch.float32), tmp_path, defense=defense, data=USER, **RUN)
        t.train(resume_from_checkpoint=str(checkpoint))

    for other in (None, lisa(rho=0.5), lisa(align_steps=1)):
        with pytest.raises(InputError, match="Resume with the same defense"):
            resume(other)
    (checkpoint / "defense.safetensors").write_bytes((checkpoint / "defense.safetensors").read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        resume(lisa())
    (checkpoint / "defense.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        resume(lisa())


@pytest.mark.parametrize("freeze", [False, True])
def test_weights_that_are_unfrozen_or_frozen_in_the_middle_are_refused(freeze, tmp_path):
    class Change(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            model.model.layers[0].mlp.up_proj.requires_grad_(not freeze)

    net = model("full", torch.float32)
    net.model.layers[0].mlp.up_proj.requires_grad_(freeze)
    t = trainer_for(net, tmp_path, defense=lisa(proximal_start=0), data=USER, callbacks=[Change()], **RUN)
    with pytest.raises(UnsupportedSetup, match=r"began with \d+ trained tensors and has \d+ now"):
        t.train()


def test_a_step_is_in_the_start_by_exact_arithmetic(tmp_path):
    """0.1 * 30 is more than 3 in floating point; the proximal term starts at step 3 all the same."""
    pulled = []

    class Watched(Lisa):
        def on_gradients(self, t):
            before = [p.grad.clone() for p in t.params]
            super().on_gradients(t)
            pulled.append(any(not torch.equal(b, p.grad) for b, p in zip(before, t.params, strict=True)))

    defense = Watched(alignment_dataset=SAFE, align_steps=1, finetune_steps=5)
    args = RUN | {"max_steps": 30}
    trainer_for(model("lora", torch.float32), tmp_path, defense=defense, data=USER, **args).train()
    # a state begins at its anchor, where there is nothing to pull
    assert pulled == [step >= 3 and step % 6 not in (0, 1) for step in range(30)]


@pytest.mark.parametrize(
    ("steps", "cycle", "fits"),
    [(50, (100, 900), (5, 45)), (9, (5, 5), None), (7, (900, 100), (6, 1)), (3, (1, 900), (1, 2))],
)
def test_a_run_shorter_than_a_cycle_is_refused_with_values_that_fit(steps, cycle, fits, tmp_path):
    def build(align, finetune):
        return trainer_for(
            model("lora", torch.float32),
            tmp_path,
            defense=lisa(align_steps=align, finetune_steps=finetune),
            data=USER,
            max_steps=steps,
        )

    with pytest.raises(UnsupportedSetup) as refused:
        build(*cycle)
    assert f"= {sum(cycle)} steps, but the run has only {steps}" in refused.value.reason
    if fits:
        assert f"align_steps={fits[0]}, finetune_steps={fits[1]}" in refused.value.remedy
        build(*fits)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs"), [(2, 2, 3.0), (5, 1, 2.0), (5, 2, 1.0), (8, 1, 2.5), (5, 4, 1)]
)
def test_the_length_of_a_run_in_epochs_is_known_before_it_starts(batch, accumulation, epochs, drop_last, tmp_path):
    args = {
        "max_steps": -1,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "dataloader_drop_last": drop_last,
        "learning_rate": 0.0,
    }
    t = trainer_for(model("lora", torch.float32), tmp_path, data=USER, **args)
    planned = steps_of(t.args, len(t.train_dataset))
    t.train()
    assert planned == t.state.max_steps == t.state.global_step


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"align_steps": 0}, "align_steps must be a number at least 1, not 0"),
        ({"finetune_steps": 2.5}, "finetune_steps must be a whole number of steps, not 2.5"),
        ({"rho": -1}, "rho must be a number at least 0, not -1"),
        ({"rho": float("nan")}, "rho must be a number at least 0, not nan"),
        ({"proximal_start": 1.5}, "proximal_start must be a number at least 0, at most 1, not 1.5"),
    ],
)
def test_values_out_of_range_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        lisa(**wrong)
