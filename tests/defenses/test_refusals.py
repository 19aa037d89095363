"""What is not supported is refused when the trainer is built, with reason and remedy."""

from importlib.util import find_spec
from types import SimpleNamespace as made

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import Trainer
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.defense import acts
from mithridate.training.setups import _untested
from tests.conformance.methods import DEFENSES
from tests.defenses.helpers import error, further_models, model, rows, trainer_for, update

USER, HARMFUL = rows("user"), rows("harmful!")


PLAN = "model.config.distributed_config"


def set_up(t, path, value):
    """Puts the trainer into a set-up that cannot be had on this machine."""
    *owners, name = path.split(".")
    for owner in owners:
        t = getattr(t, owner)
    object.__setattr__(t, name, value)


@pytest.fixture
def undefended(tmp_path):
    return trainer_for(model("lora", torch.float32), tmp_path, data=USER, max_steps=3)


@pytest.mark.shows(None, "refused", methods=list(DEFENSES))
@pytest.mark.parametrize(
    ("setup", "path", "value", "reason", "remedy"),
    [
        ("zero", "is_deepspeed_enabled", True, "DeepSpeed", "data parallelism"),
        ("parallel", "is_fsdp_enabled", True, "FSDP through Accelerate needs GPUs", "fsdp_version: 2"),
        ("parallel", PLAN, made(tp_size=2), "TP parallelism", "to 1"),
        ("parallel", PLAN, made(pp_size=2), "PP parallelism", "to 1"),
        ("parallel", PLAN, made(ep_size=2), "EP parallelism", "to 1"),
        ("parallel", PLAN, made(dp_replicate_size=2), "dp_replicate_size", "leave it out"),
        ("parallel", PLAN, made(fsdp_mixed_precision=True), "precision", "leave it out"),
        ("parallel", PLAN, made(fsdp_cpu_offload=True), "cpu_offload", "leave it out"),
        ("parallel", "accelerator", made(parallelism_config=made(tp_size=2)), "TP parallelism", "to 1"),
        ("parallel", "accelerator", made(parallelism_config=made(cp_size=2)), "CP parallelism", "to 1"),
        ("parallel", "accelerator", made(parallelism_config=made(sp_size=2)), "SP parallelism", "to 1"),
        ("parallel", "accelerator", made(parallelism_config=made(dp_replicate_size=2)), "dp_replicate", "leave"),
        ("devices", "args._n_gpu", 2, "nn.DataParallel", "accelerate launch"),
        ("devices", "model.hf_device_map", {"model": 0, "lm_head": 1}, "over several devices", "one device"),
        ("optimizers", "args.optim", "adalomo", "'adalomo' steps inside backward", "adamw_torch"),
        ("optimizers", "args.optim", "galore_adamw_layerwise", "steps inside backward", "adamw_torch"),
        ("other", "args.ddp_static_graph", True, "static graph", "ddp_static_graph"),
        ("other", "accelerator.ddp_handler", made(gradient_as_bucket_view=True), "bucket views", "off"),
        ("other quantised", "model.hf_quantizer", made(quantization_config=made(quant_method="gptq")), "gptq", "4 or"),
        ("other quantised", "model.hf_quantizer", object(), "by unknown", "without quantization_config"),
        ("other", "args.auto_find_batch_size", True, "auto_find_batch_size", "auto_find_batch_size=False"),
        ("other", "_is_vision_dataset", True, "image data", "text"),
    ],
)  # fmt: skip
def test_what_was_not_tested_is_refused(setup, path, value, reason, remedy, undefended, monkeypatch):
    """By every method, on one trainer: as it is, none refuses it (but those that ask for a model that it lacks)."""
    for make in DEFENSES.values():
        if not further_models(make()):
            make().check(undefended)
    if path == "accelerator":
        real = undefended.accelerator
        value = made(**vars(value), state=real.state, ddp_handler=real.ddp_handler)
    if path == "args._n_gpu":
        monkeypatch.setattr(type(undefended.args), "n_gpu", value)
    else:
        set_up(undefended, path, value)
    for make in DEFENSES.values():
        with pytest.raises(UnsupportedSetup, match=reason) as refused:
            make().check(undefended)
        assert remedy in refused.value.remedy
        assert refused.value.exit_code == 3


def test_fsdp_that_accelerate_leaves_aside_is_refused(tmp_path, monkeypatch):
    """As `accelerate launch` asks for it: without GPUs Accelerate trains data-parallel instead, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    steps = []
    monkeypatch.setattr(Trainer, "training_step", lambda *a, **k: steps.append(a))
    with pytest.raises(UnsupportedSetup, match="FSDP through Accelerate") as refused:
        trainer_for(model("lora", torch.float32), tmp_path, defense=Vaccine(), data=USER)
    assert "set fsdp_version: 2 on GPUs" in refused.value.remedy and not steps


@pytest.mark.shows("parallel", "refused", methods=list(DEFENSES))
@pytest.mark.parametrize(
    ("path", "value", "reason", "remedy"),
    [
        ("accelerator.state.fsdp_plugin", made(cpu_offload=CPUOffloadPolicy()), "fsdp_offload_params", ": false"),
        ("accelerator.scaler", made(get_scale=lambda: 2.0), "loss scaling", "bf16=True"),
        ("model.hf_quantizer", made(quantization_config=made(quant_method="bitsandbytes")), "quantised base", "plain"),
    ],
)
def test_what_accelerates_plugin_was_not_tested_with_is_refused(path, value, reason, remedy, undefended):
    set_up(undefended, path, value)
    for sharded in (False, True):
        undefended.sharded_by_plugin = sharded
        found = [(why, mend) for here, why, mend in _untested(undefended) if here and reason in why]
        assert len(found) == sharded and all(remedy in mend for _, mend in found)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="of where DeepSpeed is not installed")
def test_arguments_for_deepspeed_that_is_not_there_are_refused_by_transformers(tmp_path):
    with pytest.raises((ImportError, ValueError), match=r"(?i)deepspeed"):
        trainer_for(model("lora", torch.float32), tmp_path, data=USER, deepspeed={"zero_optimization": {"stage": 2}})


@pytest.mark.shows("devices", "refused", methods=list(DEFENSES))
@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_an_untested_device_is_refused(device, undefended, monkeypatch):
    monkeypatch.setattr(type(undefended.args), "device", torch.device(device))
    for make in DEFENSES.values():
        with pytest.raises(UnsupportedSetup, match=f"device type '{device}' is not tested"):
            make().check(undefended)


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1", "2.13.0"])
def test_sharded_training_asks_for_the_torch_under_which_it_was_shown(version, undefended, monkeypatch):
    monkeypatch.setattr(type(undefended), "_sharded", True)
    monkeypatch.setattr(torch, "__version__", version)
    found = [remedy for here, reason, remedy in _untested(undefended) if here and "FSDP2" in reason]
    assert found == ([] if version == "2.13.0" else ["install torch 2.13 or newer, or use plain data parallelism."])


def checkpointed(name, folder, **kwargs):
    args = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs, "max_steps": 3}
    return trainer_for(model("lora", torch.float32), folder, defense=DEFENSES[name](), data=USER, **args)


@pytest.mark.shows("reentrant", "refused", methods=["vaccine"])
def test_vaccine_refuses_reentrant_checkpointing(tmp_path):
    with pytest.raises(UnsupportedSetup, match="re-entrant checkpointing refuses gradients of activations") as refused:
        checkpointed("vaccine", tmp_path, use_reentrant=True)
    assert "'use_reentrant': False" in refused.value.remedy
    checkpointed("vaccine", tmp_path, use_reentrant=False)


def test_vaccine_refuses_reentrant_checkpointing_of_the_model_itself(tmp_path):
    for reentrant in (False, True):
        net = model("lora", torch.float32)
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            with pytest.raises(UnsupportedSetup, match="re-entrant checkpointing"):
                trainer_for(net, tmp_path, defense=Vaccine(), data=USER)
            net.gradient_checkpointing_disable()
        trainer_for(net, tmp_path, defense=Vaccine(), data=USER).train()


@pytest.mark.shows("offload", "refused")
@pytest.mark.parametrize("name", DEFENSES)
def test_other_kinds_of_checkpointing_are_refused(name, undefended, tmp_path):
    """Copies from a GPU; and TRL's word `selective` under an adapter, where transformers does not know it."""
    said = {"selective": "does not reach the model under an adapter", "offload": "copies from a GPU"}
    for option, reason in said.items():
        with pytest.raises(UnsupportedSetup, match=f"{option}.* {reason}") as refused:
            checkpointed(name, tmp_path, **{option: True})
        assert refused.value.remedy == f"activation_checkpointing_kwargs={{'{option}': False}}."
    undefended.args.activation_offloading = True
    with pytest.raises(UnsupportedSetup, match="activation_offloading copies from a GPU"):
        DEFENSES[name]().check(undefended)


def test_trl_does_not_reach_the_model_under_an_adapter(tmp_path):
    """Without a defense too. Where that is mended, this fails: lift the refusal."""
    args = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"selective": True}, "cls": SFTTrainer}
    with pytest.raises(ValueError, match="Unexpected keyword arguments: selective"):
        trainer_for(model("lora", torch.float32), tmp_path, data=USER, **args).train()


@pytest.mark.shows("bf16 storage", "refused", methods=["booster"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_booster_refuses_16_bit_storage_of_trainable_weights(dtype, tmp_path):
    with pytest.raises(UnsupportedSetup, match=f"stored in {dtype}") as refused:
        trainer_for(model("full", dtype), tmp_path, defense=DEFENSES["booster"](), data=USER)
    assert "float32" in refused.value.remedy and "LoRA" in refused.value.remedy
    trainer_for(model("full", torch.bfloat16), tmp_path, defense=Vaccine(), data=USER)


@pytest.mark.shows("side streaming", "refused", methods=["booster", "lisa"])
@pytest.mark.parametrize("make", [lambda d: Booster(harmful_dataset=d), lambda d: Lisa(alignment_dataset=d)])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (IterableDataset.from_generator(lambda: iter([])), "must be a datasets.Dataset, .* not IterableDataset"),
        ((row for row in [{"prompt": "a", "completion": "b"}]), "a list of rows or a DataFrame, not generator"),
        (None, "a list of rows or a DataFrame, not NoneType"),
        ("rows.jsonl", "a list of rows or a DataFrame, not str"),
        ([], "has no rows"),
        (Dataset.from_list([]), "has no rows"),
    ],
)
def test_side_data_that_cannot_be_drawn_from_are_refused(make, data, reason, tmp_path):
    with pytest.raises(UnsupportedSetup, match=reason):
        trainer_for(model("lora", torch.float32), tmp_path, defense=make(data), data=USER, max_steps=1000)


def test_no_defense_refuses_nothing(undefended):
    assert undefended.defenses == []


@pytest.mark.parametrize("wrong", [{"alpha": 0}, {"alpha": -1}, {"lam": -0.1}, {"lam": float("inf")}, {"alpha": True}])
def test_boosters_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"Booster: {next(iter(wrong))} must be a number"):
        Booster(harmful_dataset=HARMFUL, **wrong)


@pytest.mark.parametrize("sites", [3, [], "", [1], None])
def test_vaccines_sites_are_names(sites):
    with pytest.raises(InputError, match="Vaccine: sites must be"):
        Vaccine(sites=sites)


def test_vaccines_sites_are_a_regular_expression():
    with pytest.raises(InputError, match=r"Vaccine: sites='\(' is no regular expression"):
        Vaccine(sites="(")


# -- and what is supported besides -----------------------------------------------------------------------------------


# Those that train on the user's rows as they are; the others add rows, so that one batch of eight is not all of them.
SAME_ROWS = [name for name in DEFENSES if not acts(DEFENSES[name](), "rows")]
# Those that look rows up in the training set before the run, which a stream does not allow.
LOOKED_UP = [name for name in DEFENSES if DEFENSES[name]().paired]


@pytest.mark.shows("streaming", "refused")
@pytest.mark.parametrize("name", sorted(DEFENSES.keys() - set(SAME_ROWS)))
def test_a_streamed_training_set_cannot_be_changed(name, tmp_path):
    with pytest.raises(UnsupportedSetup, match=r"changes the training set.* without streaming"):
        trainer_for(model(), tmp_path, defense=DEFENSES[name](), data=USER.to_iterable_dataset(), max_steps=1)


@pytest.mark.shows("streaming", "refused")
@pytest.mark.parametrize("name", LOOKED_UP)
def test_pairs_cannot_be_looked_up_in_a_streamed_training_set(name, tmp_path):
    with pytest.raises(UnsupportedSetup, match="looked up in the training set") as refused:
        trainer_for(model(), tmp_path, defense=DEFENSES[name](), data=USER.to_iterable_dataset(), max_steps=1)
    assert "without streaming" in refused.value.remedy


@pytest.mark.shows("streaming", "exact")
@pytest.mark.parametrize("name", [name for name in SAME_ROWS if name not in LOOKED_UP])
def test_a_streamed_training_set_is_supported(name, tmp_path):
    """Only the side data must be a Dataset; eight rows in one batch are the same rows in any order."""
    args = {"max_steps": 1, "exact": True} if name != "lisa" else {"max_steps": 3, "exact": True, "learning_rate": 0.1}
    stored = update(model(), tmp_path, defense=DEFENSES[name](), data=USER, **args)
    streamed = update(model(), tmp_path, defense=DEFENSES[name](), data=USER.to_iterable_dataset(), **args)
    assert error(streamed, stored) < 1e-10


@pytest.mark.shows("packing", "exact")
@pytest.mark.parametrize("layout", ["padding-free", "packed"])
@pytest.mark.parametrize("name", DEFENSES)
def test_padding_free_and_packed_batches_are_supported(name, layout, tmp_path):
    """All sequences in one row, or packed into few: the same gradient, and for Vaccine the same joint norm."""
    args = {"max_steps": 1} if name != "lisa" else {"max_steps": 3, "learning_rate": 0.1}
    args |= {} if name in SAME_ROWS else {"per_device_train_batch_size": 64}  # then one batch has them all
    flat = (
        {"padding_free": True, "max_length": None} if layout == "padding-free" else {"packing": True, "max_length": 96}
    )
    padded = update(model(), tmp_path, defense=DEFENSES[name](), data=USER, exact=True, **args)
    other = update(model(), tmp_path, defense=DEFENSES[name](), data=USER, exact=True, **flat, **args)
    assert error(other, padded) < 1e-10
