"""QLoRA: a base in 4 or 8 bit under a float32 adapter, on a CPU.

In 4 bit the layers compute with the dequantised weights, in float32 here (bitsandbytes has no float64): a step is held
to the papers' rules in float64 on those, to 4 times what float32 costs plain training (5e-7 for one step). In 8 bit
they round their inputs to 8 bits: a step is held to the same rules, taken by plain autograd through the same model.
There, float32's rounding decides now and then which of two neighbouring 8-bit numbers an input becomes, a hundredth of
it; hence 1e-3 (4e-7 measured).
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.defenses.booster import Booster
from mithridate.defenses.kl import KL
from mithridate.defenses.ldifs import LDIFS
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.sbr import SBR
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import UnsupportedSetup
from mithridate.methods import by_name
from mithridate.training.mixin import DefenseMixin
from tests.conformance.methods import example
from tests.defenses import reference
from tests.defenses.helpers import batch_of, error, rows, same, trainer_for, weights
from tests.tiny import save_tiny

pytest.importorskip("bitsandbytes")

USER, HARMFUL, SAFE = rows("user"), rows("harmful!"), rows("careful")
FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
BITS = {4: FOUR, 8: {"load_in_8bit": True}}
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
OTHERS = sorted(set(by_name("defenses")) - {"vaccine", "booster", "lisa", "asft"})
LISA = {"align_steps": 1, "finetune_steps": 2, "rho": 0.5, "proximal_start": 0.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    pytest.mark.skipif(
        torch.cuda.is_available(),
        reason="the references are on the CPU, bitsandbytes puts the model on the GPU; benchmarks/gpu.py checks there",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(
        tmp_path_factory.mktemp("model") / "tiny", hidden_size=64, intermediate_size=128, initializer_range=0.1
    )


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    at = tmp_path_factory.mktemp("batches")
    return {name: batch_of(data, at) for name, data in [("user", USER), ("harm", HARMFUL), ("safe", SAFE)]}


def base(folder, bits):
    config = BitsAndBytesConfig(**BITS[bits])
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def filled(net):
    """Both factors non-zero; a third of their values are no bfloat16 numbers."""
    torch.manual_seed(1)
    for name, p in net.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape) * 0.2
    return net


def quantised(folder, bits):
    return filled(get_peft_model(base(folder, bits), LORA))


def plainly(folder, bits):
    """What the rules are applied to: 4 bit dequantised, in float64; the 8-bit model itself."""
    if bits == 8:
        return quantised(folder, bits).train()  # bitsandbytes computes a little differently in evaluation mode
    return filled(get_peft_model(base(folder, 4).dequantize(), LORA)).double()


def defended(name):
    return {
        "sft": None,
        "four steps": None,
        "vaccine": Vaccine(rho=1.5),
        "booster": Booster(harmful_dataset=HARMFUL, alpha=0.3, lam=2.0),
        "lisa": Lisa(alignment_dataset=SAFE, **LISA),
    }[name]


def wanted(name, net, batches):
    user, harm, safe = batches["user"], batches["harm"], batches["safe"]
    if name in ("lisa", "four steps"):
        before, settings = weights(net), LISA if name == "lisa" else LISA | {"rho": 0.0}
        reference.lisa(net, safe if name == "lisa" else user, user, steps=4, lr=0.1, **settings)
        return [before[n] - after for n, after in weights(net).items()]
    if name == "sft":
        return reference.gradient(net, user)
    return reference.vaccine(net, [user], 1.5) if name == "vaccine" else reference.booster(net, user, harm, 0.3, 2.0)


def update(net, tmp_path, name, **args):
    before = weights(net)
    more = {"max_steps": 4, "learning_rate": 0.1} if name in ("lisa", "four steps") else {}
    trainer_for(net, tmp_path, defense=defended(name), data=USER, **(more | args)).train()
    after = weights(net)
    assert {n: w.dtype for n, w in before.items()} == {n: w.dtype for n, w in after.items()}
    return [before[n] - after[n] for n in before]


def trained(net, tmp_path, defense, **args):
    before = weights(net)
    trainer_for(net, tmp_path, defense=defense, **args).train()
    return [before[n] - after for n, after in weights(net).items()]


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        pytest.param(bits, name, marks=pytest.mark.shows(f"quantised{' 8' * (bits == 8)}", "exact", methods=[name]))
        if name != "sft"
        else (bits, name)
        for bits in BITS
        for name in ("sft", "vaccine", "booster", "lisa")
    ],
)
def test_a_step_over_a_quantised_base_is_the_rule(name, bits, folder, batches, tmp_path):
    """In the arithmetic that users have."""
    plain = plainly(folder, bits)
    assert [n for n, p in plain.named_parameters() if p.requires_grad] == list(weights(quantised(folder, bits)))
    like = wanted("four steps" if name == "lisa" else "sft", copy.deepcopy(plain), batches)
    costs = error(update(quantised(folder, bits), tmp_path, "four steps" if name == "lisa" else "sft"), like)
    off = error(update(quantised(folder, bits), tmp_path, name), wanted(name, plain, batches))
    assert off <= max(4 * costs, 1e-3 if bits == 8 else 0)
    assert costs < 3e-6


def dequantised(folder):
    return filled(get_peft_model(base(folder, 4).dequantize(), LORA))


@pytest.mark.shows("quantised", "exact")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "ewc" else [pytest.mark.slow]) for name in OTHERS]
)
def test_a_run_over_4_bits_is_the_run_over_what_they_stand_for(name, folder, tmp_path):
    """Of every other defense; closed forms hold what that run does. Both in float32, by other kernels."""
    args = {"data": USER, "max_steps": 3, "learning_rate": 0.1}
    settings = {"share": 0.5} if name == "fewersteps" else {}  # 2 of 3
    got = trained(quantised(folder, 4), tmp_path, example("defenses", name, **settings), **args)
    wanted = trained(dequantised(folder), tmp_path, example("defenses", name, **settings), **args)
    assert error(got, wanted) < 1e-4
    plain = trained(dequantised(folder), tmp_path, None, **args)
    assert (error(plain, wanted) > 1e-3) != ("training" in by_name("defenses")[name].differences)


@pytest.mark.shows("quantised", "refused", methods=["asft"])
def test_a_rule_on_the_base_s_own_weights_is_refused_over_a_quantised_base(folder, tmp_path):
    with pytest.raises(UnsupportedSetup, match=r"^AsFT: compares products .* and these are quantised") as refused:
        trained(quantised(folder, 4), tmp_path, example("defenses", "asft"), data=USER)
    assert "without quantization_config" in refused.value.remedy


@pytest.mark.parametrize("name", ["vaccine", "booster", "lisa"])
def test_checkpointing_changes_nothing_over_a_quantised_base(name, folder, tmp_path):
    kept = update(quantised(folder, 4), tmp_path, name)
    again = update(quantised(folder, 4), tmp_path, name, gradient_checkpointing=True)
    assert error(again, kept) < 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_that_is_given_keeps_its_values(bits, folder, tmp_path):
    net = quantised(folder, bits)
    before = weights(net)
    trainer = trainer_for(net, tmp_path, defense=Vaccine(), data=USER)
    assert same(weights(trainer.model), before)
    rounded = {n: w.to(torch.bfloat16).float() for n, w in before.items()}
    assert not same(rounded, before)  # which is what TRL makes of them
    trainer_for(net, tmp_path, data=USER, cls=SFTTrainer)
    assert {w.dtype for w in weights(net).values()} == {torch.bfloat16}


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_that_the_trainer_makes_has_the_values_it_was_made_with(bits, folder, tmp_path):
    net = base(folder, bits)
    torch.manual_seed(42)  # as the trainer does
    made = weights(get_peft_model(base(folder, bits), copy.deepcopy(LORA)))
    trainer = quick(net, tmp_path)
    found = weights(trainer.model)
    assert same(found, made) and not same({n: w.bfloat16().float() for n, w in made.items()}, made)


def quick(net, folder):
    from trl import SFTConfig

    from mithridate.training.trainer import DefenseTrainer
    from tests.defenses.helpers import DEFAULTS
    from tests.tiny import tiny_tokenizer

    return DefenseTrainer(
        model=net,
        args=SFTConfig(str(folder), **DEFAULTS),
        train_dataset=USER,
        processing_class=tiny_tokenizer(),
        peft_config=copy.deepcopy(LORA),
        defense=Booster(harmful_dataset=HARMFUL),
    )


def test_building_a_trainer_leaves_no_trace_in_trl(folder, tmp_path):
    from trl.trainer import sft_trainer

    before = sft_trainer.get_peft_model
    quick(base(folder, 4), tmp_path)
    assert sft_trainer.get_peft_model is before
    with pytest.raises(Exception):  # noqa: B017 (whatever an unusable model raises)
        trainer_for(None, tmp_path, data=USER)
    assert sft_trainer.get_peft_model is before


def test_a_plain_trainer_over_a_quantised_base(folder, tmp_path):
    """The mixin over transformers' own Trainer, which makes no adapters."""

    class Mine(DefenseMixin, Trainer):
        pass

    from transformers import TrainingArguments

    net = quantised(folder, 4)
    before = weights(net)
    tokens = torch.arange(10).tolist()
    from datasets import Dataset

    data = Dataset.from_list([{"input_ids": tokens, "labels": tokens}] * 4)
    args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", save_strategy="no")
    Mine(model=net, args=args, train_dataset=data, defense=Vaccine()).train()
    assert not same(weights(net), before)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("defense", "name"),
    [
        (KL(lam=1.0), "kl/divergence"),
        (LDIFS(rho=1.0), "ldifs/distance"),
        (SBR(anchor_dataset=USER, lam=1.0, anchors=2), "sbr/distance"),
    ],
    ids=["kl", "ldifs", "sbr"],
)
def test_the_start_model_is_at_no_distance_from_itself(bits, defense, name, folder, tmp_path):
    trainer = trainer_for(quantised(folder, bits), tmp_path, defense=defense, data=USER, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0][name] == pytest.approx(0.0, abs=1e-9)


def test_resuming_over_a_quantised_base(folder, tmp_path):
    args = {"max_steps": 4, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
    whole = quantised(folder, 4)
    trainer_for(whole, tmp_path / "a", defense=defended("lisa"), data=USER, **args).train()
    resumed = quantised(folder, 4)
    trainer = trainer_for(resumed, tmp_path / "b", defense=defended("lisa"), data=USER, **args)
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_head_is_refused(bits, folder, tmp_path):
    """A list of modules of one's own takes the place of the default one, which spares the head."""
    config = BitsAndBytesConfig(**BITS[bits] | {"llm_int8_skip_modules": ["q_proj"]})
    net = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    net = get_peft_model(net, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UnsupportedSetup, match="the LM head is quantised") as refused:
        trainer_for(net, tmp_path)
    assert "lm_head" in refused.value.remedy
