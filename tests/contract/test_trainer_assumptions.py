"""What the defenses rely on in transformers, TRL, PEFT and torch, read from their sources: each fact by itself.

A failure here after an upgrade says which assumption broke, before a wrong number does.
"""

import inspect

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.utils.output_capturing import OutputRecorder
from trl import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from tests.defenses.helpers import error, exact_loss, model, rows, trainer_for, weights
from tests.tiny import tiny_llama

USER = rows("user")


def parameters(function):
    return [p for p in inspect.signature(function).parameters if p != "self"]


def test_the_overridden_and_called_methods_have_these_arguments():
    assert parameters(Trainer.training_step) == ["model", "inputs", "num_items_in_batch"]
    assert parameters(Trainer.get_batch_samples) == ["epoch_iterator", "num_batches", "device"]
    assert parameters(Trainer._get_num_items_in_batch) == ["batch_samples", "device"]
    assert parameters(Trainer._save_checkpoint) == ["model", "trial"]
    assert parameters(Trainer._load_optimizer_and_scheduler) == ["checkpoint"]
    assert parameters(Trainer._get_output_dir) == ["trial"]
    assert parameters(Trainer._remove_unused_columns) == ["dataset", "description"]
    assert parameters(Trainer.log) == ["logs", "start_time"]
    assert parameters(SFTTrainer.compute_loss) == ["model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters(SFTTrainer._prepare_dataset) == [
        "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name",
    ]  # fmt: skip


def test_the_order_of_events_in_a_step(tmp_path):
    """Window, then on_step_begin with no gradient, then the micro-batches on top, clipping, the optimizer's step."""
    events = []

    class Watched(SFTTrainer):
        def get_batch_samples(self, *args):
            events.append(f"window at {self.state.global_step}")
            return super().get_batch_samples(*args)

        def training_step(self, *args, **kwargs):
            events.append("micro-batch" if self.model_wrapped is args[0] else "another model")
            return super().training_step(*args, **kwargs)

        def _clip_grad_norm(self, *args):
            events.append("clip")
            return super()._clip_grad_norm(*args)

    class Events(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            events.append("begin")

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            events.append(f"step of {t.current_gradient_accumulation_steps} micro-batches")
            assert all(p.grad is None for p in model.parameters())

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            events.append("optimizer")

    t = trainer_for(
        model(),
        tmp_path,
        data=rows("user", 6),
        cls=Watched,
        callbacks=[Events()],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        max_grad_norm=1.0,
    )
    t.train()
    assert events == [
        "begin",
        "window at 0", "step of 2 micro-batches", "micro-batch", "micro-batch", "clip", "optimizer",
        "window at 1", "step of 1 micro-batches", "micro-batch", "clip", "optimizer",
    ]  # fmt: skip


def test_a_training_step_leaves_its_batch_as_it_was(tmp_path):
    """So that a harmful window can be used twice."""
    t = trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer)
    t.create_optimizer()
    batch = t.data_collator([t.train_dataset[i] for i in range(8)])
    copy = {k: v.clone() for k, v in batch.items()}
    t.current_gradient_accumulation_steps = 1
    t.training_step(t.model, batch, t._get_num_items_in_batch([batch], t.args.device))
    assert batch.keys() == copy.keys() and all(torch.equal(batch[k], copy[k]) for k in copy)


def test_the_loss_is_scaled_by_the_tokens_of_the_window(tmp_path):
    """Shifted labels, counted over all micro-batches; training_step adds no further division."""
    t = trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer)
    halves = [t.data_collator([t.train_dataset[i] for i in part]) for part in (range(4), range(4, 8))]
    count = t._get_num_items_in_batch(halves, t.args.device)
    assert int(count) == sum(int((b["labels"][:, 1:] != -100).sum()) for b in halves)
    t.create_optimizer()
    t.current_gradient_accumulation_steps = 7  # not used
    whole = t.data_collator([t.train_dataset[i] for i in range(8)])
    parts = sum(float(t.training_step(t.model, b, count)) for b in halves)
    accumulated = [p.grad.clone() for p in t.model.parameters()]
    t.model.zero_grad()
    assert parts == pytest.approx(float(t.training_step(t.model, whole, count)), rel=1e-6)
    assert error(accumulated, [p.grad for p in t.model.parameters()]) < 1e-6


def test_trls_fused_head_computes_the_loss_in_float32(tmp_path):
    """Why float64 weights give 1e-7 and not 1e-16 on the users' path, and why the tests have an exact one too."""
    t = trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer)
    batch = t.data_collator([t.train_dataset[i] for i in range(8)])
    fused = t.compute_loss(t.model, dict(batch))
    assert t.model.dtype == torch.float64 and fused.dtype == torch.float32
    logits = t.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    exact = exact_loss(logits, batch["labels"], (batch["labels"][:, 1:] != -100).sum())
    assert exact.dtype == torch.float64
    assert float(fused.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)


def test_compute_loss_adds_to_metrics_and_token_count(tmp_path):
    t = trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer)
    batch = t.data_collator([t.train_dataset[i] for i in range(8)])
    t.model.train()
    t.compute_loss(t.model, dict(batch))
    assert set(t._metrics) == {"train", "eval"} and len(t._metrics["train"]["entropy"]) == 1
    assert t._total_train_tokens == int(batch["attention_mask"].sum())


def test_training_logs_have_a_loss_and_the_last_a_train_loss(tmp_path):
    logged = []

    class Watched(SFTTrainer):
        def log(self, logs, *args):
            logged.append(set(logs))
            super().log(logs, *args)

    t = trainer_for(model(), tmp_path, data=USER, cls=Watched, max_steps=2, logging_steps=1)
    t.train()
    t.evaluate(USER)
    assert ["loss" in keys for keys in logged] == [True, True, False, False]
    assert ["train_loss" in keys for keys in logged] == [False, False, True, False]


def test_a_resumed_run_loads_the_optimizer_before_it_begins(tmp_path):
    """That call is where a checkpoint's folder is learnt; trainer_state.json is its last file."""
    trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer, max_steps=2, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    order = sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns)
    assert order[-1].name == "trainer_state.json"
    events = []

    class Watched(SFTTrainer):
        def _load_optimizer_and_scheduler(self, checkpoint):
            events.append(checkpoint)
            super()._load_optimizer_and_scheduler(checkpoint)

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            events.append(state.global_step)

    t = trainer_for(model(), tmp_path, data=USER, cls=Watched, callbacks=[Begin()], max_steps=2)
    t.train(resume_from_checkpoint=str(folder))
    assert events == [str(folder), 1]


def test_a_run_resumed_at_its_end_asks_for_a_pass_before_it_looks(tmp_path):
    """There the mixin ends it: by itself the Trainer takes a further step."""
    args = {"max_steps": 3, "per_device_train_batch_size": 2}
    trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer, save_strategy="steps", save_steps=3, **args).train()
    asked = []

    class Watched(SFTTrainer):
        def _run_epoch(self, *args, **kwargs):
            asked.append((self.state.global_step, self.state.max_steps))
            super()._run_epoch(*args, **kwargs)

    t = trainer_for(model(), tmp_path, data=USER, cls=Watched, **args)
    t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert asked == [(3, 3)] and t.state.global_step == 4


def test_no_loss_is_scaled_without_fp16(tmp_path):
    t = trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer)
    assert t.accelerator.scaler is None and t.accelerator.mixed_precision == "no"
    assert t.accelerator.gradient_accumulation_steps == 1


def test_trls_defaults_are_bf16_and_checkpointing(tmp_path):
    """Hence Booster measures what rounding leaves, and Vaccine shifts recomputed layers."""
    args = SFTConfig(str(tmp_path), use_cpu=True, report_to="none")
    assert args.bf16 is True and args.gradient_checkpointing is True


def test_models_declare_their_attention_and_its_output_is_a_tuple():
    net = tiny_llama()
    declared = net.can_record_outputs["attentions"]
    assert declared is type(net.model.layers[0].self_attn) or isinstance(declared, OutputRecorder)
    outputs = []
    net.model.layers[0].self_attn.register_forward_hook(lambda m, args, out: outputs.append(out))
    net(torch.ones(1, 3, dtype=torch.long))
    assert isinstance(outputs[0], tuple) and outputs[0][0].shape == (1, 3, 16)


def test_checkpointed_layers_run_their_inner_hooks_again_in_backward(tmp_path):
    """And autograd.grad by a tensor added inside works through it, with no gradient left on a parameter."""
    t = trainer_for(model(), tmp_path, data=USER, cls=SFTTrainer, gradient_checkpointing=True)
    t.model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = {"layer": 0, "attention": 0}
    leaf = []

    def add(m, args, out):
        calls["attention"] += 1
        if not leaf:
            leaf.append(torch.zeros_like(out[0], requires_grad=True))
        return (out[0] + leaf[0], *out[1:])

    layer = t.model.model.layers[0]
    layer.register_forward_hook(lambda *_: calls.update(layer=calls["layer"] + 1))
    layer.self_attn.register_forward_hook(add)
    t.model.train()
    batch = t.data_collator([t.train_dataset[i] for i in range(8)])
    loss = t.compute_loss(t.model, dict(batch))
    assert calls == {"layer": 1, "attention": 1}
    (g,) = torch.autograd.grad(loss, leaf)
    assert calls == {"layer": 1, "attention": 2}
    assert float(g.norm()) > 0 and all(p.grad is None for p in t.model.parameters())


def test_peft_keeps_adapters_in_float32_over_a_bfloat16_base(tmp_path):
    """And computes them in float32 without autocast, so a small step of theirs is not rounded away."""
    net = model("lora", torch.bfloat16)
    trainable = {p.dtype for p in net.parameters() if p.requires_grad}
    assert trainable == {torch.float32} and net.get_base_model().lm_head.weight.dtype == torch.bfloat16
    lora_a = next(m for n, m in net.named_modules() if n.endswith("lora_A.default"))
    seen = []
    lora_a.register_forward_hook(lambda m, args, out: seen.append((args[0].dtype, out.dtype)))
    net(torch.ones(1, 3, dtype=torch.long))
    assert seen == [(torch.float32, torch.float32)]


def test_zero_grad_forgets_gradients(tmp_path):
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    net.zero_grad()
    assert net.weight.grad is None


def test_the_schedule_of_a_trainer_leaves_the_weights_alone_before_the_first_step(tmp_path):
    """What is captured in on_train_begin are the initial weights."""
    net = model()
    before, seen = weights(net), []

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append(weights(model))
            assert state.max_steps == 1

    trainer_for(net, tmp_path, data=USER, cls=SFTTrainer, callbacks=[Begin()]).train()
    assert all(torch.equal(seen[0][k], before[k]) for k in before)
