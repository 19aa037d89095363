"""RepNoise through the real trainer against its closed form in float64, row by row and token by token; its traps."""

import math

import pytest
import torch
import transformers
from datasets import concatenate_datasets

from mithridate.defenses import repnoise as module
from mithridate.defenses.repnoise import RepNoise
from mithridate.errors import InputError, UnsupportedSetup
from tests.conformance.methods import paired_with
from tests.defenses.helpers import batch_of, clone, error, model, rows, same, trainer_for, update, weights
from tests.defenses.reference import trainable
from tests.families.models import SMALL

USER = rows("user")
HARMFUL = paired_with(USER)
ALPHA, BETA, LR, STEPS, LAYERS = 0.5, 0.7, 0.05, 2, 2


def repnoise(**fields):
    return Fixed(**({"harmful_dataset": HARMFUL, "alpha": ALPHA, "beta": BETA} | fields))


def noise(step, layer, number, shape):
    generator = torch.Generator().manual_seed(1000 * step + 100 * layer + number)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Fixed(RepNoise):
    """With noise that the test knows."""

    def _noise(self, t, layer, number, shape):
        return noise(t.state.global_step, layer, number, shape)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return batch_of(USER, folder), batch_of(HARMFUL, folder)


def each(batch):
    """(ids, first answer token) of each row."""
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        yield ids[:length].tolist(), int((labels[:length] == -100).sum())


def parts(net):
    base = net.get_base_model() if hasattr(net, "get_base_model") else net
    return base.model.layers, base.model.norm, base.lm_head


def naive(net, safe, harmful, step, *, alpha=ALPHA, beta=BETA, zeroed=False, terms=None):
    """The loss of one step over all pairs. `zeroed`: as the code, which scores the first token against nothing."""
    layers, norm, head = parts(net)
    pairs = list(zip(each(safe), each(harmful), strict=True))
    stay, count, read = 0, 0, {}
    outputs, noises, width = [[] for _ in layers], [[] for _ in layers], 300
    for number, ((a, start), (b, start_b)) in enumerate(pairs):
        assert a[:start] == b[:start_b]
        seen = []
        handles = [layer.mlp.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o[0])) for layer in layers]
        ran = net(input_ids=torch.tensor([b]), output_hidden_states=True)
        for handle in handles:
            handle.remove()
        logits = net(input_ids=torch.tensor([a])).logits[0]
        differs = {"safe": [], "harm": []}
        for name, own, other in (("safe", a, b), ("harm", b, a)):
            for i in range(start, len(own)):
                if i >= len(other) or own[i] != other[i]:
                    differs[name].append(i)
        for i in differs["safe"]:
            first = zeroed and i - 1 not in differs["safe"]
            stay = stay + (math.log(logits.shape[-1]) if first else -logits[i - 1].log_softmax(-1)[a[i]])
            count += 1
        for j, h in enumerate([None, *ran.hidden_states]):
            found = ran.logits[0] if h is None else head(norm(h[0]))
            for i in differs["harm"]:
                first = zeroed and i - 1 not in differs["harm"]
                value = math.log(found.shape[-1]) if first else -found[i - 1].log_softmax(-1)[b[i]]
                read.setdefault(j, []).append(value)
        for layer in range(len(layers)):
            h, z = torch.zeros(width, 16, dtype=torch.float64), torch.zeros(width, 16, dtype=torch.float64)
            drawn = noise(step, layer, number, (len(differs["harm"]), 16))
            h = h.index_copy(0, torch.tensor(differs["harm"]), seen[layer][differs["harm"]])
            z[differs["harm"]] = drawn
            outputs[layer].append(h.flatten())
            noises[layer].append(z.flatten())
    away = sum(naive_mmd(x, z) for x, z in zip(outputs, noises, strict=True)) / len(layers)
    rising = sum(sum(values) / len(values) for values in read.values()) / (len(read) - 1)
    if terms is not None:
        terms.update(away=float(away.detach()), rising=float(rising.detach()))
    return stay / count + beta * away - alpha * torch.log(1 + rising)


def naive_mmd(x, y):
    samples = [*x, *y]
    n, b = len(samples), len(x)
    distances = {(i, j): ((samples[i] - samples[j]) ** 2).sum() for i in range(n) for j in range(n)}
    scale = sum(d.detach() for d in distances.values()) / (n * n - n) / 4

    def k(i, j):
        return sum(torch.exp(-distances[i, j] / (scale * 2**m)) for m in range(5))

    return sum(k(i, j) + k(b + i, b + j) - k(i, b + j) - k(b + i, j) for i in range(b) for j in range(b)) / b**2


def wanted(net, batches, steps=1, lr=1.0, **rule):
    net = clone(net)
    before = [p.detach().clone() for p in trainable(net)]
    for step in range(steps):
        gradient = torch.autograd.grad(naive(net, *batches, step, **rule), trainable(net))
        with torch.no_grad():
            for p, g in zip(trainable(net), gradient, strict=True):
                p.sub_(lr * g)
    return [b - p.detach() for b, p in zip(before, trainable(net), strict=True)]


@pytest.mark.shows("full", "exact", methods=["repnoise"])
@pytest.mark.shows("lora", "exact", methods=["repnoise"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_steps_are_the_closed_form(kind, batches, tmp_path):
    net = model(kind)
    args = {"data": USER, "max_steps": STEPS, "learning_rate": LR, "exact": True}
    got = update(clone(net), tmp_path, defense=repnoise(), **args)
    assert error(got, wanted(net, batches, STEPS, LR)) < 1e-10


def test_it_is_none_of_the_rules_that_it_could_be_taken_for(batches, tmp_path):
    net, found = model("lora"), {}
    t = trainer_for(clone(net), tmp_path, defense=repnoise(), data=USER, exact=True)
    before = weights(t.model)
    t.train()
    got = [b - a for b, a in zip(before.values(), weights(t.model).values(), strict=True)]
    assert error(got, wanted(net, batches, terms=found)) < 1e-11
    logged = t.state.log_history[0]
    assert logged["repnoise/noise_distance"] == pytest.approx(found["away"], rel=1e-6)
    assert logged["repnoise/harmful_loss"] == pytest.approx(found["rising"], rel=1e-6)
    for other in ({"zeroed": True}, {"beta": 0.0}, {"alpha": 0.0}):
        assert error(wanted(net, batches, **other), got) > 1e-3, other
    control = repnoise().controls()["adversarial-loss"]
    assert control.settings() == repnoise(beta=0.0).settings()


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("Granite", "logits_scaling", 8.0),
        ("Cohere", "logit_scale", 0.25),
        ("Gemma2", "final_logit_softcapping", 0.5),
    ],
)
def test_inner_states_are_read_as_the_model_reads_its_last(kind, field, value, tmp_path, monkeypatch):
    """Scaled and capped, as the logits of the model itself are."""
    cross_entropy = module._cross_entropy

    def read(setting):
        seen = []
        monkeypatch.setattr(module, "_cross_entropy", lambda x, y: seen.append(x.detach()) or cross_entropy(x, y))
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**SMALL | {field: setting})
        net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        trainer_for(net, tmp_path, defense=repnoise(), data=USER).train()
        return seen

    plain, got = read(None if kind == "Gemma2" else 1.0), read(value)
    change = {"logits_scaling": lambda x: x / value, "logit_scale": lambda x: x * value}
    change |= {"final_logit_softcapping": lambda x: value * torch.tanh(x / value)}
    assert len(plain) == len(got) > 2
    for before, after in zip(plain, got, strict=True):
        torch.testing.assert_close(after, change[field](before), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(after, before, rtol=0.1)


def test_the_order_of_rows_changes_nothing(tmp_path):
    """Noise belongs to a harmful row and a step, not to a place in a batch."""
    shuffled = USER.select([3, 1, 7, 0, 2, 6, 5, 4])
    made = [
        update(model(), tmp_path, defense=RepNoise(harmful_dataset=HARMFUL, beta=1.0), data=data, exact=True)
        for data in (USER, shuffled)
    ]
    assert error(*made) < 1e-12


def test_noise_is_standard_normal_and_new_in_each_row_layer_and_step(tmp_path):
    t = trainer_for(model(), tmp_path, data=USER)
    defense, drawn = RepNoise(harmful_dataset=HARMFUL), []
    for step in range(2):
        t.state.global_step = step
        drawn += [defense._noise(t, layer, number, (50, 16)).flatten() for layer in range(2) for number in range(2)]
    assert torch.equal(drawn[-1], defense._noise(t, 1, 1, (50, 16)).flatten())
    apart = torch.corrcoef(torch.stack(drawn)) - torch.eye(8)
    assert apart.abs().max() < 4 / 800**0.5 and abs(float(torch.stack(drawn).std()) - 1) < 0.03


def test_rows_without_a_partner_are_trained_on_whole(batches, tmp_path):
    """A helpful answer beside the pairs: all its tokens are in the mean; nothing is paired with it."""
    both = concatenate_datasets([USER, rows("friendly")])
    got = update(
        model(), tmp_path, defense=repnoise(alpha=0.0, beta=0.0), data=both, per_device_train_batch_size=16, exact=True
    )
    net = model()
    friendly = batch_of(rows("friendly"), tmp_path)
    total, count = 0, 0
    for (a, start), (b, _) in zip(each(batches[0]), each(batches[1]), strict=True):
        said = net(input_ids=torch.tensor([a])).logits[0].log_softmax(-1)
        at = [i for i in range(start, len(a)) if i >= len(b) or a[i] != b[i]]
        total, count = total - sum(said[i - 1, a[i]] for i in at), count + len(at)
    for a, start in each(friendly):
        said = net(input_ids=torch.tensor([a])).logits[0].log_softmax(-1)
        total = total - sum(said[i - 1, a[i]] for i in range(start, len(a)))
        count += len(a) - start
    assert error(got, torch.autograd.grad(total / count, trainable(net))) < 1e-12


def test_no_hook_is_left(tmp_path):
    """There every module gets one more in each step."""
    net = model()
    net(input_ids=torch.ones(1, 2, dtype=torch.long), output_hidden_states=True)  # transformers' own hooks stay
    hooks = [len(m._forward_hooks) for m in net.modules()]
    trainer_for(net, tmp_path, defense=repnoise(), data=USER, max_steps=3).train()
    assert [len(m._forward_hooks) for m in net.modules()] == hooks


def test_a_micro_batch_without_a_pair_takes_its_passes_and_counts_for_nothing(tmp_path):
    """So that ranks stay together: the step is that of the micro-batch with pairs."""
    one = repnoise(harmful_dataset=HARMFUL.select([0]))
    args = {"data": USER.select([0, 1]), "max_steps": 1, "exact": True}
    got = update(model(), tmp_path, defense=one, **args, per_device_train_batch_size=2)
    split = update(
        model(), tmp_path, defense=one, **args, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    assert error(split, got) < 1e-12


def test_rows_that_are_not_paired_are_refused_before_a_step(tmp_path):
    def refused(harmful, data=USER, kind=InputError, **args):
        with pytest.raises(kind) as error:
            trainer_for(model(), tmp_path, defense=RepNoise(harmful_dataset=harmful), data=data, **args)
        return str(error.value)

    other = concatenate_datasets([HARMFUL.select([0, 1]), rows("harmful!", 3)])
    said = refused(other)
    assert "RepNoise: 3 of 5 rows of harmful_dataset have no row of the training set with the same prompt" in said
    assert "the first is row 3" in said and "paired: true" in said
    assert "row 2 of harmful_dataset has the answer" in refused(
        concatenate_datasets([HARMFUL.select([0]), USER.select([1])])
    )
    assert "has no prompt" in refused([{"text": "only text"}])
    refused([], kind=UnsupportedSetup)
    said = refused(HARMFUL, USER.to_iterable_dataset(), UnsupportedSetup, max_steps=1)
    assert "without streaming" in said


@pytest.mark.shows("fsdp2", "refused", methods=["repnoise"])
@pytest.mark.shows("fsdp accelerate", "refused", methods=["repnoise"])
@pytest.mark.shows("compile", "refused", methods=["repnoise"])
def test_what_it_cannot_do_is_refused_before_a_step(tmp_path, monkeypatch):
    with pytest.raises(UnsupportedSetup, match=r"RepNoise: .* not tested under torch\.compile"):
        trainer_for(
            model(), tmp_path, defense=repnoise(), data=USER, torch_compile=True, torch_compile_backend="eager"
        )
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(UnsupportedSetup, match="re-entrant checkpointing"):
        trainer_for(model(), tmp_path, defense=repnoise(), data=USER, **reentrant)
    with pytest.raises(UnsupportedSetup, match="exactly one site in each of the 2 layers"):
        trainer_for(model(), tmp_path, defense=repnoise(sites=["mlp", "self_attn"]), data=USER)
    net = model()
    net.model.last = net.model.norm
    del net.model.norm
    with pytest.raises(UnsupportedSetup, match="no norm after its last layer"):
        trainer_for(net, tmp_path, defense=repnoise(), data=USER)
    t = trainer_for(model(), tmp_path, data=USER)
    monkeypatch.setattr(type(t), "_sharded", True)
    with pytest.raises(UnsupportedSetup, match=r"RepNoise: .* not tested on sharded weights"):
        repnoise().check(t)
    for fields in ({"alpha": -1}, {"beta": float("inf")}, {"sites": []}):
        with pytest.raises(InputError, match=f"{next(iter(fields))} must be"):
            repnoise(**fields)


def test_a_learning_rate_of_zero_moves_nothing(tmp_path):
    net = model("lora", torch.float32)
    before = weights(net)
    trainer_for(net, tmp_path, defense=repnoise(), data=USER, learning_rate=0.0).train()
    assert same(before, weights(net))
