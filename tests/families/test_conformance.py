"""Every family by the same suite: where Vaccine acts, and each rule against the naive one that knows no Trainer.

The tolerance is on the update, |got - expected| / |expected|: TRL's fused head computes the loss in float32.
"""

import copy

import pytest
import torch
import transformers

from mithridate.defenses.booster import Booster
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import UnsupportedSetup
from mithridate.repairs.antidote import Antidote
from mithridate.training.activations import ActivationShifts, find_sites
from tests.defenses import reference
from tests.defenses.helpers import batch_of, error, rows, same, trainer_for, update, weights
from tests.families.models import FAMILIES, SMALL, attention, build, with_lora
from tests.repairs import naive
from tests.repairs.test_antidote import CALIBRATION, ROWS, TOKENIZER

# TRL's fused head computes the loss in float32: 1.9e-6 was measured (Gemma 2 with LoRA, the CPU of a GPU machine).
ROUNDING = 4e-6
USER, HARMFUL, SAFE = rows("user"), rows("harmful!"), rows("careful")
FUSED = ("GPT2",)  # its attention has no nn.Linear to put a plain adapter on
SPARSE = ("Mixtral", "Qwen3Moe")


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return {name: batch_of(data, folder) for name, data in [("user", USER), ("harm", HARMFUL), ("safe", SAFE)]}


def net(family, kind):
    return build(family) if kind == "full" else with_lora(build(family))


ADAPTABLE = [family for family in FAMILIES if family not in FUSED]
each = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize(("family", "kind"), [(f, "full") for f in FAMILIES] + [(f, "lora") for f in ADAPTABLE])


@each
def test_one_site_a_layer_is_found_and_it_is_the_attention(family):
    model = build(family)
    assert find_sites(model) == dict(attention(model))
    assert len(find_sites(model)) == model.config.num_hidden_layers == 2


@pytest.mark.slow
@pytest.mark.shows("families", "exact", methods=["vaccine"])
@kinds
def test_vaccine_is_the_naive_rule_with_joint_norm_rho(family, kind, batches, tmp_path, monkeypatch):
    model = net(family, kind)
    want = reference.vaccine(copy.deepcopy(model), [batches["user"]], 1.5)
    assert error(want, reference.gradient(copy.deepcopy(model), batches["user"])) > 1e-3  # it is another rule
    shifts, real = [], ActivationShifts.shift
    monkeypatch.setattr(ActivationShifts, "shift", lambda self, t: shifts.append(t) or real(self, t))
    got = update(model, tmp_path, defense=Vaccine(rho=1.5), data=USER)
    assert error(got, want) < ROUNDING
    assert len(shifts[0]) == 2
    assert float(sum((s.double() ** 2).sum() for s in shifts[0])) ** 0.5 == pytest.approx(1.5, rel=1e-6)


@pytest.mark.slow
@pytest.mark.shows("families", "exact", methods=["booster"])
@kinds
def test_booster_is_the_naive_rule_and_puts_the_weights_back(family, kind, batches, tmp_path):
    model = net(family, kind)
    want = reference.booster(copy.deepcopy(model), batches["user"], batches["harm"], 0.1, 2.0)
    before, defense = weights(model), Booster(harmful_dataset=HARMFUL, alpha=0.1, lam=2.0)
    trainer_for(model, tmp_path, defense=defense, data=USER, learning_rate=0.0).train()
    assert same(before, weights(model))
    got = update(model, tmp_path, defense=defense, data=USER)
    assert error(got, want) < ROUNDING


@pytest.mark.slow
@pytest.mark.shows("families", "exact", methods=["lisa"])
@kinds
def test_lisa_is_the_naive_rule(family, kind, batches, tmp_path):
    rule = {"align_steps": 1, "finetune_steps": 1, "rho": 0.5, "proximal_start": 0.0}
    model = net(family, kind)
    want, before = copy.deepcopy(model), weights(model)
    reference.lisa(want, batches["safe"], batches["user"], steps=3, lr=0.01, **rule)
    args = {"max_steps": 3, "learning_rate": 0.01}
    got = update(model, tmp_path, defense=Lisa(alignment_dataset=SAFE, **rule), data=USER, **args)
    assert (
        error(got, [b - p.detach() for b, p in zip(before.values(), reference.trainable(want), strict=True)])
        < ROUNDING
    )


@pytest.mark.shows("families", "exact", methods=["antidote"])
@pytest.mark.parametrize("family", ADAPTABLE)
def test_antidotes_mask_of_an_adapter_is_the_naive_one(family):
    model = net(family, "lora")
    modules = {
        n.removeprefix("base_model.model.").removesuffix(".default"): m
        for n, m in model.named_modules()
        if n.endswith(("lora_A.default", "lora_B.default"))
    }
    norms = naive.feature_norms(model, modules, ROWS)
    matrices = {name: module.weight.detach().numpy().copy() for name, module in modules.items()}
    expected = naive.masks(matrices, norms, "0.2", "row")
    report = Antidote(ratio=0.2).apply(model, CALIBRATION, TOKENIZER, batch_size=3)
    assert report.mask.shapes.keys() == modules.keys() and len(modules) >= 8
    assert all((report.mask[name].numpy() == expected[name]).all() for name in modules)


@pytest.mark.shows("experts", "refused", methods=["antidote"])
@pytest.mark.parametrize("family", [*FUSED, *SPARSE])
def test_antidote_refuses_to_leave_fused_weights_whole(family):
    with pytest.raises(UnsupportedSetup, match=r"weight matrices elsewhere \(.*(experts|gate|c_attn)") as refused:
        Antidote(targets="merged").apply(build(family), CALIBRATION, TOKENIZER)
    assert "LoRA" in refused.value.remedy


@pytest.mark.shows("families", "exact", methods=["antidote"])
@pytest.mark.parametrize("family", [family for family in ADAPTABLE if family not in SPARSE])
def test_antidotes_mask_of_all_weights_is_the_naive_one(family):
    model = build(family)
    head = model.get_output_embeddings()
    linears = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    flat = {n: m for n, m in linears.items() if family == "OPT" and ".fc" in n}
    norms = naive.feature_norms(model, {n: m for n, m in linears.items() if n not in flat}, ROWS)
    norms |= naive.feature_norms(model, flat, ROWS, flat=True)
    matrices = {name: m.weight.detach().numpy().copy() for name, m in linears.items()}
    expected = naive.masks(matrices, norms, "0.2", "row")
    report = Antidote(ratio=0.2, targets="merged").apply(model, CALIBRATION, TOKENIZER, batch_size=3)
    assert report.mask.shapes.keys() == linears.keys() and len(linears) >= 8
    assert all((report.mask[name].numpy() == expected[name]).all() for name in linears)


NOTE = "the experts' load-balancing loss is per micro-batch, as in plain training; without it exact"


@pytest.mark.shows("expert accumulation", "difference", note=NOTE)
@pytest.mark.parametrize("name", ["booster", "lisa"])
@pytest.mark.parametrize("family", SPARSE)
def test_accumulation_with_experts_is_exact_but_for_their_load_balancing_loss(family, name, tmp_path):
    make = {
        "booster": lambda: Booster(harmful_dataset=HARMFUL, alpha=0.1, lam=2.0),
        "lisa": lambda: Lisa(alignment_dataset=SAFE, align_steps=1, finetune_steps=1, rho=0.5),
    }[name]

    def difference(coefficient):
        args = {"data": USER, "max_steps": 2, "learning_rate": 0.01, "router_aux_loss_coef": coefficient}
        split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        whole = update(build(family), tmp_path, defense=make(), **args)
        return error(update(build(family), tmp_path, defense=make(), **args, **split), whole)

    assert difference(0.0) < 1e-6 < difference(0.02)


# -- families without attention in each layer -------------------------------------------------------------------------


def mamba():
    torch.manual_seed(0)
    sizes = {"vocab_size": 259, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "pad_token_id": 2}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).double()


@pytest.mark.shows("no attention", "refused", methods=["vaccine"], note="unless `sites` names one module a layer")
def test_a_family_without_attention_is_refused_by_name_and_trains_with_named_sites(tmp_path):
    with pytest.raises(UnsupportedSetup, match="MambaForCausalLM does not declare its attention") as refused:
        trainer_for(mamba(), tmp_path, defense=Vaccine(), data=USER)
    assert "sites=['NAME']" in refused.value.remedy and "mixer" in refused.value.remedy
    plain = update(mamba(), tmp_path, data=USER)
    assert error(update(mamba(), tmp_path, defense=Vaccine(sites=["mixer"], rho=1.5), data=USER), plain) > 1e-3


@pytest.mark.shows("no attention", "refused", methods=["vaccine"], note="unless `sites` names one module a layer")
def test_a_family_with_attention_in_some_layers_only_is_refused_by_name():
    sizes = {k: v for k, v in SMALL.items() if k != "initializer_range"}
    config = transformers.Qwen3NextConfig(
        **(sizes | {"num_hidden_layers": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"]})
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        UnsupportedSetup, match=r"each of the 4 layers of Qwen3NextForCausalLM.*gives 1 in 1"
    ) as refused:
        find_sites(model)
    assert "mlp" in refused.value.remedy
