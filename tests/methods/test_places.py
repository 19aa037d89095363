"""Each place of the contract and each verb of the trainer against its closed form, in float64 where TRL allows it.

The defenses here are the test's own, as a plug-in's would be. They do what published rules do: a KL term to the start
model, token weights, a projection of the gradient, an average of the weights.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import SFTConfig

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.methods import Defense
from mithridate.training.gradients import dot, global_norm, restored
from mithridate.training.trainer import DefenseTrainer
from tests.defenses import reference
from tests.defenses.helpers import batch_of, error, model, rows, same, trainer_for, update, weights
from tests.methods.own import KLToStart, Project
from tests.tiny import tiny_llama, tiny_tokenizer

USER, SAFE = rows("user"), rows("safe")
SPLITS = [(8, 1), (4, 2), (2, 4)]  # rows of a micro-batch, micro-batches of a step


def args_of(split) -> dict[str, int]:
    return {"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}


def fresh_adapter(dtype=torch.float64):
    """A LoRA adapter as PEFT makes it: B is zero, so the model computes what the base does."""
    torch.manual_seed(1)
    return get_peft_model(model("full", dtype), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))


# -- rows ------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class FirstHalf(Defense):
    """Trains on the first half of the rows, in an order of its own, and remembers the seed."""

    seen: list[int] = field(default_factory=list)

    def rows(self, dataset, seed):
        self.seen.append(seed)
        return dataset.select(range(len(dataset) // 2))


@pytest.mark.parametrize("positional", [False, True])
def test_rows_are_changed_before_the_trainer_tokenises_them(positional, tmp_path):
    plain, net, defense = model(), model(), FirstHalf()
    trainer_for(plain, tmp_path, data=USER.select(range(4)), seed=7).train()
    if positional:
        t = trainer_for(tiny_llama(), tmp_path, data=USER, seed=7)  # for its arguments
        t = DefenseTrainer(net, t.args, None, USER, processing_class=tiny_tokenizer(), defense=defense)
    else:
        t = trainer_for(net, tmp_path, data=USER, defense=defense, seed=7)
    t.train()
    assert len(t.train_dataset) == 4 and defense.seen == [7] and same(weights(plain), weights(net))


def test_rows_may_come_back_tokenised(tmp_path):
    tokenised = trainer_for(tiny_llama(), tmp_path, data=USER).train_dataset

    class Tokenised(Defense):
        def rows(self, dataset, seed):
            return tokenised

    assert error(update(model(), tmp_path, defense=Tokenised()), update(model(), tmp_path)) == 0


def test_rows_of_a_stream_cannot_be_changed(tmp_path):
    with pytest.raises(UnsupportedSetup, match="FirstHalf: changes the training set, which is a Iterable"):
        trainer_for(model(), tmp_path, data=USER.to_iterable_dataset(), defense=FirstHalf())


# -- batches, window, on_step_begin, on_step_end ---------------------------------------------------------------------


@dataclass(kw_only=True)
class Watching(Defense):
    def __post_init__(self):
        self.begun, self.ended, self.windows, self.complete = [], [], [], []

    def on_step_begin(self, t):
        self.begun.append(t.state.global_step)
        self.windows.append(len(t.window))

    def on_gradients(self, t):
        self.complete.append((t.state.global_step, len(t.window)))

    def on_step_end(self, t):
        self.ended.append((t.state.global_step, len(t.window)))


def test_every_place_comes_once_an_optimizer_step(tmp_path):
    watching = Watching()
    trainer_for(tiny_llama(), tmp_path, data=rows("user", 7), defense=watching, max_steps=4, **args_of((2, 2))).train()
    assert watching.begun == [0, 1, 2, 3] and watching.windows == [2, 2, 2, 2]
    assert watching.complete == [(0, 2), (1, 2), (2, 2), (3, 2)]
    assert watching.ended == [(1, 2), (2, 2), (3, 2), (4, 2)]


@pytest.mark.parametrize("n", [5, 3])
def test_a_stream_that_ends_within_a_step_does_not_begin_it_twice(n, tmp_path):
    """5 rows in batches of 2, 2 micro-batches a step: each pass ends in a window that is no step of its own."""
    watching = Watching()
    data = rows("user", n).to_iterable_dataset()
    trainer_for(tiny_llama(), tmp_path, data=data, defense=watching, max_steps=4, **args_of((2, 2))).train()
    assert watching.begun == [0, 1, 2, 3] and [step for step, _ in watching.complete] == [0, 1, 2, 3]


def test_a_step_whose_epoch_was_stopped_is_begun_once(tmp_path):
    from transformers import TrainerCallback

    class StopOnce(TrainerCallback):
        done = False

        def on_substep_end(self, args, state, control, **kwargs):
            control.should_epoch_stop, self.done = not self.done and state.global_step == 1, True

    watching = Watching()
    stop = [StopOnce()]
    trainer_for(
        tiny_llama(), tmp_path, data=USER, defense=watching, max_steps=4, callbacks=stop, **args_of((2, 2))
    ).train()
    assert watching.begun == [0, 1, 2, 3]


def test_choosing_another_number_of_batches_is_an_error(tmp_path):
    class Greedy(Defense):
        def batches(self, t, batches):
            return [*batches, *batches]

    with pytest.raises(MithridateError, match=r"Greedy.batches: was given 1 micro-batches and returned 2"):
        trainer_for(tiny_llama(), tmp_path, defense=Greedy()).train()


def test_weights_edited_after_the_step_are_what_goes_on(tmp_path):
    """An average of the weights after each step: w <- (w_before + w_after) / 2 halves the step."""

    class Average(Defense):
        def on_step_begin(self, t):
            self.before = [p.detach().clone() for p in t.params]

        def on_step_end(self, t):
            with torch.no_grad():
                for p, b in zip(t.params, self.before, strict=True):
                    p.copy_((p + b) / 2)

    half = update(model(), tmp_path, exact=True, learning_rate=0.5)
    assert error(update(model(), tmp_path, exact=True, defense=Average()), half) < 1e-14


# -- training_step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0, 2])
def test_a_training_step_ends_in_the_trainer_s_own_once(times, tmp_path):
    class Wrong(Defense):
        def training_step(self, t, step, model, inputs, num_items_in_batch):
            for _ in range(times):
                step(model, inputs, num_items_in_batch)
            return torch.zeros(())

    with pytest.raises(MithridateError, match=f"Wrong: training_step ran the Trainer's own step {times} times"):
        trainer_for(tiny_llama(), tmp_path, defense=Wrong()).train()


def test_the_first_of_a_list_acts_first(tmp_path):
    order: list[str] = []

    def noting(name):
        def training_step(self, t, step, model, inputs, n):
            order.append(f"{name} in")
            loss = step(model, inputs, n)
            order.append(f"{name} out")
            return loss

        def on_gradients(self, t):
            order.append(f"{name} gradients")

        def loss(self, t, loss, *rest):
            order.append(f"{name} loss")
            return loss

        return type(name, (Defense,), {"training_step": training_step, "on_gradients": on_gradients, "loss": loss})()

    trainer_for(tiny_llama(), tmp_path, defense=[noting("A"), noting("B")]).train()
    assert order == ["A in", "B in", "A loss", "B loss", "B out", "A out", "A gradients", "B gradients"]


# -- loss ------------------------------------------------------------------------------------------------------------


def descend(net, gradients, lr):
    with torch.no_grad():
        for p, g in zip(reference.trainable(net), gradients, strict=True):
            p.sub_(lr * g)


def moved_from(start, net):
    return [a.detach() - b.detach() for a, b in zip(reference.trainable(start), reference.trainable(net), strict=True)]


def naive_kl(net, start, batch, lam):
    labels = batch["labels"][:, 1:]
    logits = [
        m(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][labels != -100]
        for m in (start, net)
    ]
    p, q = (torch.log_softmax(x.double(), -1) for x in (logits[0].detach(), logits[1]))
    value = reference.loss(net, batch) + lam * (p.exp() * (p - q)).sum() / reference.tokens(batch)
    return list(torch.autograd.grad(value, reference.trainable(net)))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_kl_term_to_the_start_model_is_its_closed_form_over_three_steps(kind, split, tmp_path):
    """The first step has no KL gradient; the second and third do, towards weights that are no longer there."""
    net, naive = model(kind), model(kind)
    start, batch = copy.deepcopy(naive), batch_of(USER, tmp_path)
    for _ in range(3):
        descend(naive, naive_kl(naive, start, batch, 0.7), 0.1)
    got = update(net, tmp_path, defense=KLToStart(), exact=True, max_steps=3, learning_rate=0.1, **args_of(split))
    want = moved_from(start, naive)
    plain = update(model(kind), tmp_path, exact=True, max_steps=3, learning_rate=0.1)
    assert error(got, want) < 1e-10 < 1e-3 < error(plain, want)


def test_the_fused_head_s_log_probabilities_and_logits_are_the_model_s_own(tmp_path):
    """Through TRL's fused head (float32): the same term from logits as from a plain forward pass."""
    net = model("lora", torch.float32)
    start, batch = copy.deepcopy(net), batch_of(USER, tmp_path)
    step = trainer_for(net, tmp_path, defense=KLToStart(), max_steps=2, learning_rate=0.1)
    step.train()
    naive = copy.deepcopy(start)
    for _ in range(2):
        descend(naive, naive_kl(naive, start, batch, 0.7), 0.1)
    moved = moved_from(start, net)
    want = moved_from(start, naive)
    assert error(moved, want) < 1e-4


@dataclass(kw_only=True)
class TokenWeights(Defense):
    """Constrained SFT's form: each token's loss times a constant weight that compares it with the start model."""

    needs: ClassVar[tuple[str, ...]] = ("reference",)

    def loss(self, t, loss, model, inputs, outputs, num_items_in_batch):
        weight = 2 * (1 - torch.sigmoid(outputs.log_probs - outputs.reference.log_probs)).detach()
        return -(weight * outputs.log_probs).sum() / num_items_in_batch


def test_token_weights_against_the_start_model_begin_as_plain_training(tmp_path):
    """At the start the weight of each token is 1."""
    net, plain = model("full", torch.float32), model("full", torch.float32)
    assert error(update(net, tmp_path, defense=TokenWeights()), update(plain, tmp_path)) < 1e-6


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_term_over_hidden_states_is_its_closed_form(split, checkpointing, tmp_path):
    class Small(Defense):
        needs = ("hidden_states",)

        def loss(self, t, loss, model, inputs, outputs, num_items_in_batch):
            states = outputs.hidden_states[1][:, 1:][outputs.label_mask]
            return loss + 0.1 * states.square().sum() / num_items_in_batch

    net, batch = model(), batch_of(USER, tmp_path)
    out = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    mask = batch["labels"][:, 1:] != -100
    value = reference.loss(net, batch) + 0.1 * out.hidden_states[1][:, 1:][mask].square().sum() / mask.sum()
    want = list(torch.autograd.grad(value, reference.trainable(net), allow_unused=True))
    got = update(
        model(), tmp_path, exact=True, defense=Small(), gradient_checkpointing=checkpointing, **args_of(split)
    )
    assert error(got, want) < 1e-12


def test_the_loss_place_is_the_training_pass_only(tmp_path):
    asked = []

    class Asked(Defense):
        def on_step_begin(self, t):
            t.gradient(t.window)

        def training_step(self, t, step, model, inputs, num_items_in_batch):
            t.probe(model, inputs, num_items_in_batch)
            return step(model, inputs, num_items_in_batch)

        def loss(self, t, loss, *rest):
            asked.append(t.state.global_step)
            return loss

    t = trainer_for(tiny_llama(), tmp_path, defense=Asked(), max_steps=2, eval_strategy="no")
    t.eval_dataset = t.train_dataset
    t.train()
    t.evaluate()
    assert asked == [0, 1]


def test_a_term_of_zero_is_plain_training_bit_for_bit(tmp_path):
    class Nothing(Defense):
        needs = ("logits", "hidden_states", "reference")

        def loss(self, t, loss, *rest):
            return loss

    nets = [model("lora", torch.float32, dropout=0.1) for _ in range(2)]
    for net, defense in zip(nets, (None, Nothing()), strict=True):
        trainer_for(net, tmp_path, defense=defense, max_steps=3, **args_of((4, 2))).train()
    assert same(weights(nets[0]), weights(nets[1]))


def test_unknown_needs_are_refused(tmp_path):
    class Asks(Defense):
        needs = ("attentions",)

    with pytest.raises(
        InputError, match="Asks: needs names 'attentions'; there are: logits, hidden_states, reference"
    ):
        trainer_for(tiny_llama(), tmp_path, defense=Asks())


# -- on_gradients, gradients, set_gradients, gradient(loss=) ---------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_projected_gradient_is_its_closed_form(kind, split, tmp_path):
    net, other = model(kind), rows("resu")
    user = reference.gradient(net, batch_of(USER, tmp_path))
    safe = [-g for g in reference.gradient(net, batch_of(other, tmp_path))]  # descend what the others ascend

    class Against(Project):
        def on_gradients(self, t):
            g = t.gradients()
            _, away = t.gradient(self.side.take(0, len(t.window)))
            away = [-x for x in away]
            along = dot(g, away) / global_norm(away).double() ** 2
            assert along < 0
            t.set_gradients([a - along.to(a.dtype) * b for a, b in zip(g, away, strict=True)])

    along = sum((a * b).sum() for a, b in zip(user, safe, strict=True)) / reference.norm(safe) ** 2
    want = [a - along * b for a, b in zip(user, safe, strict=True)]
    got = update(model(kind), tmp_path, exact=True, defense=Against(alignment_dataset=other), **args_of(split))
    assert error(got, want) < 1e-12


def test_a_parameter_without_a_gradient_is_not_stepped(tmp_path):
    class OnlyFirst(Defense):
        def on_gradients(self, t):
            first, *rest = t.gradients()
            t.set_gradients([first, *([None] * len(rest))])

    net = model("lora", torch.float32)
    before = weights(net)
    trainer_for(net, tmp_path, defense=OnlyFirst(), optim="adamw_torch", weight_decay=0.5, max_steps=2).train()
    moved = [name for name, p in weights(net).items() if not torch.equal(p, before[name])]
    assert moved == [next(iter(before))]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradients_are_in_true_units_and_clipped_afterwards(scale, tmp_path):
    """Under loss scaling too: what is set is what is stepped; clipping comes after it."""

    class Ones(Defense):
        def on_gradients(self, t):
            self.norm = float(global_norm(t.gradients()))
            t.set_gradients([torch.ones_like(p) for p in t.params])

    defense, plain = Ones(), model("full", torch.float32)
    clip = 0.5 if scale == 1 else 0.0  # Accelerate clips in true units where it has set the scaler up itself
    t = trainer_for(model("full", torch.float32), tmp_path, defense=defense, learning_rate=0.1, max_grad_norm=clip)
    if scale != 1:
        t.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = weights(t.model)
    t.train()
    moved = torch.cat([(before[n] - p).flatten() for n, p in weights(t.model).items()])
    size = 0.05 / len(moved) ** 0.5 if clip else 0.1
    assert torch.allclose(moved, torch.full_like(moved, size), rtol=1e-3)
    want = reference.norm(reference.gradient(plain, batch_of(USER, tmp_path)))
    assert abs(defense.norm / float(want) - 1) < 1e-4


def test_an_overflown_step_is_the_scaler_s(tmp_path):
    """A scaled gradient that is not finite is not shown: the scaler skips that step and lowers its scale."""
    seen = []

    class Seen(Defense):
        def on_gradients(self, t):
            seen.append(t.loss_scale)

    t = trainer_for(model("full", torch.float32), tmp_path, defense=Seen(), max_steps=3, learning_rate=0.01)
    t.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    t.train()
    assert len(seen) < 3 and all(scale < 2.0**127 for scale in seen)


@pytest.mark.parametrize("split", SPLITS)
def test_the_gradient_of_another_loss_is_its_closed_form(split, tmp_path):
    """An entropy over labelled tokens, divided by their number in the step: accumulation changes nothing."""
    got: list[Any] = []

    def entropy(net, inputs, n):
        labels = inputs["labels"][:, 1:]
        logits = net(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        log_p = torch.log_softmax(logits[labels != -100], -1)
        return -(log_p.exp() * log_p).sum() / n

    class Entropy(Defense):
        def on_step_begin(self, t):
            got.extend(t.gradient(t.window, loss=entropy))

    net, batch = model(), batch_of(USER, tmp_path)
    value = entropy(net, batch, reference.tokens(batch))
    want = torch.autograd.grad(value, reference.trainable(net))
    plain = update(model(), tmp_path, exact=True, **args_of(split))
    assert error(update(model(), tmp_path, exact=True, defense=Entropy(), **args_of(split)), plain) == 0
    assert error(got[1], want) < 1e-12 and abs(float(got[0]) - float(value)) < 1e-12


# -- reference, weights, rng, side data, restored, dot ---------------------------------------------------------------


def test_the_reference_is_the_model_at_the_start_and_leaves_no_trace(tmp_path):
    seen = []

    class Looks(Defense):
        needs = ("reference",)

        def on_step_begin(self, t):
            held = [p.data_ptr() for p in t.params]
            with t.reference() as net:
                assert not net.training and not torch.is_grad_enabled()
                seen.append(net(input_ids=torch.arange(3, 20)[None]).logits.clone())
            assert [p.data_ptr() for p in t.params] == held

    for kind in ("full", "lora"):
        seen.clear()
        net, plain = model(kind, torch.float32, dropout=0.1), model(kind, torch.float32, dropout=0.1)
        start = copy.deepcopy(net).eval()(input_ids=torch.arange(3, 20)[None]).logits
        trainer_for(net, tmp_path, defense=Looks(), max_steps=3).train()
        trainer_for(plain, tmp_path, max_steps=3).train()
        assert len(seen) == 3 and all(torch.equal(s, start) for s in seen) and same(weights(net), weights(plain))


def test_the_reference_in_a_loss_is_refused_with_the_way_to_it(tmp_path):
    class Late(Defense):
        needs = ("reference",)

        def loss(self, t, loss, *rest):
            with t.reference():
                return loss

    with pytest.raises(MithridateError, match=r"t.reference\(\) in a defense's loss.*outputs.reference"):
        trainer_for(tiny_llama(), tmp_path, defense=Late()).train()


def test_an_undeclared_reference_is_an_error(tmp_path):
    class Undeclared(Defense):
        def on_step_begin(self, t):
            with t.reference():
                pass

    with pytest.raises(InputError, match="no defense of this run declares needs"):
        trainer_for(tiny_llama(), tmp_path, defense=Undeclared()).train()


SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch", "learning_rate": 0.01}


def test_a_resumed_run_compares_with_the_weights_that_the_whole_run_began_with(tmp_path):
    whole = model("lora", torch.float32, dropout=0.1)
    trainer_for(whole, tmp_path, defense=KLToStart(), **SAVED).train()
    rest = model("lora", torch.float32, dropout=0.1)
    t = trainer_for(rest, tmp_path, defense=KLToStart(), **SAVED)
    t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(whole), weights(rest))
    with pytest.raises(InputError, match="written by a run from other weights"):
        t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # this model is the trained one now


def test_the_state_of_a_failed_start_does_not_reach_the_next(tmp_path):
    loaded = []

    class Stateful(Defense):
        def state_dict(self, t):
            return {"x": torch.ones(1)}

        def load_state_dict(self, t, state):
            loaded.append(t.state.global_step)

    trainer_for(tiny_llama(), tmp_path, defense=Stateful(), **SAVED).train()
    from transformers import TrainerCallback

    class Fails(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            raise RuntimeError("no")

    t = trainer_for(tiny_llama(), tmp_path, defense=Stateful(), **SAVED)
    fails = Fails()
    t.callback_handler.callbacks.insert(0, fails)
    with pytest.raises(RuntimeError):
        t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    t.remove_callback(fails)
    t.train()
    assert loaded == []


def test_a_declared_model_s_tensors_are_read_when_asked_for(tmp_path):
    read, found = [], {}

    class Compares(Defense):
        models = {"before": "base", "first": "start"}  # noqa: RUF012

        def on_step_end(self, t):
            found["base"] = t.weights("before")["w"]
            found["start"] = t.weights("first")["model.layers.0.self_attn.q_proj.weight"]

    def base():
        read.append(1)
        return {"w": torch.ones(2)}

    net = tiny_llama()
    q = net.model.layers[0].self_attn.q_proj.weight.detach().clone()
    t = DefenseTrainer(
        model=net, args=trainer_for(tiny_llama(), tmp_path, max_steps=2).args, train_dataset=USER,
        processing_class=tiny_tokenizer(), defense=Compares(), models={"base": base},
    )  # fmt: skip
    assert read == []
    t.train()
    assert torch.equal(found["base"], torch.ones(2)) and torch.equal(found["start"], q)
    assert not torch.equal(net.model.layers[0].self_attn.q_proj.weight, q)
    with pytest.raises(InputError, match="declared by no defense"):
        t.weights("other")


def test_a_model_that_is_not_given_is_refused_when_the_trainer_is_built(tmp_path):
    class Compares(Defense):
        models = {"before": "base"}  # noqa: RUF012

    with pytest.raises(UnsupportedSetup, match="Compares: needs the base model"):
        trainer_for(tiny_llama(), tmp_path, defense=Compares(), models={})


def test_draws_are_a_function_of_seed_name_and_step(tmp_path):
    def run(seed, steps):
        drawn = []

        class Draws(Defense):
            def on_step_begin(self, t):
                drawn.append([float(torch.rand((), generator=t.rng(name))) for name in ("a", "b", "a")])

        trainer_for(tiny_llama(), tmp_path, defense=Draws(), seed=seed, max_steps=steps).train()
        return drawn

    one, again, other = run(0, 3), run(0, 2), run(1, 2)
    assert one[:2] == again and all(a == c != b for a, b, c in one) and len({x[0] for x in [*one, *other]}) == 5


def test_side_data_of_another_size_and_replicated(tmp_path):
    t = trainer_for(tiny_llama(), tmp_path, defense=Project(alignment_dataset=SAFE), **args_of((4, 2)))
    one = t.side_data(SAFE, "alignment_dataset", batch_size=1)
    assert [len(b["input_ids"]) for b in one.take(0, 3)] == [1, 1, 1]
    t.accelerator.state._shared_state["num_processes"], t.accelerator.state._shared_state["process_index"] = 2, 1
    try:
        shared, own = t.side_data(SAFE, "x", replicated=True), t.side_data(SAFE, "x")
        assert (shared._rank, shared._world_size, own._rank, own._world_size) == (0, 1, 1, 2)
    finally:
        t.accelerator.state._shared_state["num_processes"], t.accelerator.state._shared_state["process_index"] = 1, 0


def test_restored_and_dot():
    a, b = torch.randn(3, 2), torch.randn(4)
    kept = [a.clone(), b.clone()]
    with restored([a, b]) as before:
        a.add_(1)
        b.mul_(0)
        assert torch.equal(before[0], kept[0])
    assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])
    assert float(dot([a, b, None], [a, b, a])) == pytest.approx(float((a**2).sum() + (b**2).sum()), rel=1e-6)
    assert float(dot([None], [None])) == 0


# -- optimizers with an evaluation mode ------------------------------------------------------------------------------


class TwoFaced(torch.optim.SGD):
    """Keeps other weights for evaluation, as schedule-free optimizers do: train() and eval() move between the two."""

    evaluating = False

    def _shift(self, by):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(by)

    def eval(self):
        if not self.evaluating:
            self._shift(0.5)
        self.evaluating = True

    def train(self):
        if self.evaluating:
            self._shift(-0.5)
        self.evaluating = False


@pytest.mark.parametrize("name", ["vaccine", "booster", "lisa"])
def test_an_evaluation_does_not_change_what_a_defense_trains(name, tmp_path):
    from mithridate import Booster, Lisa, Vaccine

    made = {
        "vaccine": lambda: Vaccine(rho=1.0),
        "booster": lambda: Booster(harmful_dataset=rows("bad")),
        "lisa": lambda: Lisa(alignment_dataset=SAFE, align_steps=1, finetune_steps=1, proximal_start=0.0),
    }[name]
    ends = []
    for evaluations in ("no", "steps"):
        net = model("full", torch.float64)
        optimizer = TwoFaced(net.parameters(), lr=0.05)
        args = SFTConfig(
            str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=4,
            save_strategy="no", eval_strategy=evaluations, eval_steps=1, gradient_checkpointing=False,
            per_device_train_batch_size=4,
            lr_scheduler_type="constant",
        )  # fmt: skip
        t = DefenseTrainer(
            model=net, args=args, train_dataset=USER, eval_dataset=SAFE.select([0]), processing_class=tiny_tokenizer(),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)), defense=made(),
        )  # fmt: skip
        t.train()
        optimizer.train()
        ends.append([p.detach().clone() for p in net.parameters()])
    start = [p.detach() for p in model("full", torch.float64).parameters()]
    moved = [a - s for a, s in zip(ends[0], start, strict=True)]
    off = [b - s for b, s in zip(ends[1], start, strict=True)]
    assert error(off, moved) < 1e-12
