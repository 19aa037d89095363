"""Where Vaccine perturbs, and by how much."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mithridate.defenses.vaccine import Vaccine
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.activations import ActivationShifts, find_sites
from tests.defenses.helpers import model, rows, trainer_for

USER = rows("user")


def test_sites_are_found_under_an_adapter():
    assert list(find_sites(model("lora"))) == list(find_sites(model("full")))


@pytest.mark.parametrize("sites", [["self_attn"], r"model\.layers\.\d+\.self_attn", ["mlp"]])
def test_sites_by_name(sites):
    found = find_sites(model(), sites)
    ending = "mlp" if sites == ["mlp"] else "self_attn"
    assert list(found) == [f"model.layers.{i}.{ending}" for i in range(2)]


@pytest.mark.parametrize(
    ("sites", "count"),
    [(["self_attn", "mlp"], "4 in 2 layers"), (["layers.0.self_attn"], "1 in 1 layers"), ("nothing", "0 in 0 layers"),
     (["layers.0.self_attn", "layers.0.mlp"], "2 in 1 layers")],
)  # fmt: skip
def test_anything_but_one_site_a_layer_is_refused(sites, count, tmp_path):
    with pytest.raises(UnsupportedSetup, match=f"exactly one site in each of the 2 layers.*{count}") as refused:
        trainer_for(model(), tmp_path, defense=Vaccine(sites=sites), data=USER)
    assert "sites=['NAME']" in refused.value.remedy and "self_attn, mlp" in refused.value.remedy


def test_a_model_that_declares_no_attention_is_refused(monkeypatch):
    net = model()
    monkeypatch.setattr(type(net), "_can_record_outputs", {})
    with pytest.raises(UnsupportedSetup, match="LlamaForCausalLM does not declare its attention modules"):
        find_sites(net)


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rho=st.floats(1e-3, 1e3), kind=st.sampled_from(["full", "lora"]), rows_in_batch=st.integers(1, 8))
def test_the_joint_norm_over_all_layers_is_rho(rho, kind, rows_in_batch, tmp_path):
    shifts = []
    with pytest.MonkeyPatch.context() as patch:
        real = ActivationShifts.shift
        patch.setattr(ActivationShifts, "shift", lambda self, t: shifts.append(t) or real(self, t))
        args = {"per_device_train_batch_size": rows_in_batch, "learning_rate": 0.0}
        trainer_for(model(kind), tmp_path, defense=Vaccine(rho=rho), data=USER, **args).train()
    (step,) = shifts
    assert len(step) == 2 and all(s.shape[0] == rows_in_batch and s.shape[2] == 16 for s in step)
    assert all(float(s.norm()) > 0 for s in step)
    assert float(sum((s.double() ** 2).sum() for s in step)) ** 0.5 == pytest.approx(rho, rel=1e-12)


def test_padding_is_not_perturbed(tmp_path):
    """Gradients at pads are zero, so they take no share of rho."""
    shifts = []
    with pytest.MonkeyPatch.context() as patch:
        real = ActivationShifts.shift
        patch.setattr(ActivationShifts, "shift", lambda self, t: shifts.append(t) or real(self, t))
        t = trainer_for(model(), tmp_path, defense=Vaccine(), data=USER, pad_to_multiple_of=64)
        batches = []
        collate = t.data_collator
        t.data_collator = lambda examples: batches.append(collate(examples)) or batches[-1]
        t.train()
    real_tokens = batches[0]["attention_mask"].bool()
    assert not real_tokens.all()
    assert all((s[~real_tokens] == 0).all() and (s[real_tokens] != 0).any() for s in shifts[0])


def test_a_site_that_does_not_run_is_an_error(tmp_path):
    from mithridate.errors import MithridateError

    net = model()
    net.model.layers[1].unused = torch.nn.Linear(16, 16, dtype=torch.float64)
    sites = ["layers.0.self_attn", "layers.1.unused"]
    with pytest.raises(MithridateError, match=r"did not run model\.layers\.1\.unused"):
        trainer_for(net, tmp_path, defense=Vaccine(sites=sites), data=USER).train()


@pytest.mark.parametrize("rho", [-1, float("inf"), float("nan"), "2"])
def test_rho_out_of_range_is_refused(rho):
    with pytest.raises(InputError, match="rho must be a number at least 0"):
        Vaccine(rho=rho)
