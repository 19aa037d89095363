"""What any repair changed: entries, whole tensors, LoRA's factors; saved, applied to a fresh copy, undone, refused."""

import copy
import json
import math
import shutil
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from mithridate import Antidote, InputError
from mithridate.methods import Repair
from mithridate.repairs.delta import FILE, Delta
from tests.repairs.test_antidote import same, state, with_lora
from tests.tiny import tiny_llama

IDS = torch.arange(3, 40)[None]
Q = "model.layers.0.self_attn.q_proj"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def setup_of(model):
    """All of a PEFT model beside its tensors that a repair may touch."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")}
    return {
        "layers": {
            n: (dict(m.r), dict(m.lora_alpha), dict(m.scaling), list(m.merged_adapters)) for n, m in layers.items()
        },
        "config": {n: c.to_dict() for n, c in getattr(model, "peft_config", {}).items()},
        "trained": {n: p.requires_grad for n, p in model.named_parameters()},
    }


@dataclass(kw_only=True)
class Average(Repair):
    """Dense: every weight half way back to the aligned model's."""

    def apply(self, model, aligned=None):
        delta = Delta("average", self.settings())
        names = dict(aligned.named_parameters())
        for name, value in merged_state(model).items():
            if not torch.equal(value, names[name]):
                delta.replace(name, (value + names[name]) / 2)
        return delta.apply(model)


@dataclass(kw_only=True)
class Truncate(Repair):
    """Factors: B A kept to its first singular directions, so that the rank changes."""

    rank: int = 2

    def apply(self, model):
        delta = Delta("truncate", self.settings())
        for name, layer in model.get_base_model().named_modules():
            if hasattr(layer, "lora_A"):
                b, a = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
                u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
                rank = min(self.rank, len(s))
                delta.replace_factors(name, v[:rank], u[:, :rank] * s[:rank])
        return delta.apply(model)


def merged_state(model):
    """The weights of the plain model with its adapter merged, by PEFT's own arithmetic."""
    plain = copy.deepcopy(model)
    return dict((plain.merge_and_unload() if isinstance(plain, PeftModel) else plain).named_parameters())


def repaired(kind, model, aligned):
    if kind == "dense":
        return Average().apply(model, aligned=aligned)
    if kind == "factors":
        return Truncate().apply(model)
    return Antidote(targets=kind, score="magnitude").apply(model, aligned=aligned)


KINDS = ["dense", "factors", "adapters", "update", "merged"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_delta_makes_the_same_model_of_a_fresh_copy_and_takes_it_back(kind, dtype, tmp_path):
    aligned = tiny_llama(dtype)
    model = with_lora(copy.deepcopy(aligned))
    if kind == "factors":
        model.float()  # the SVD is not there in bfloat16
    fresh = copy.deepcopy(model)
    before, around, was = state(model), setup_of(model), logits(model)
    delta = repaired(kind, model, aligned)
    after, repaired_logits = state(model), logits(model)
    assert not same(model, before) and not torch.equal(repaired_logits, was)
    assert delta.merged == (kind in ("dense", "update", "merged"))
    assert delta.only_factors == (kind in ("factors", "adapters"))
    delta.save(tmp_path)
    loaded = Delta.load(tmp_path)
    assert (loaded.digest, loaded.counts(), loaded.settings, loaded.notes) == (
        *(delta.digest, delta.counts(), delta.settings, delta.notes),
    )
    loaded.apply(fresh)  # and needs no aligned model for it
    assert same(fresh, after) and torch.equal(logits(fresh), repaired_logits)
    for one, repair in ((model, delta), (fresh, loaded)):
        repair.undo(one)
        assert same(one, before) and setup_of(one) == around and torch.equal(logits(one), was)
    delta.apply(model)  # again
    assert same(model, after)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_alone_undoes_where_it_was_asked_to_keep_the_values(kind, tmp_path):
    aligned = tiny_llama()
    model = with_lora(copy.deepcopy(aligned))
    before, around = state(model), setup_of(model)
    delta = repaired(kind, model, aligned)
    delta.save(tmp_path / "bare")
    delta.save(tmp_path / "whole", undo=True)
    assert (tmp_path / "bare" / FILE).stat().st_size < (tmp_path / "whole" / FILE).stat().st_size
    after = state(model)
    with pytest.raises(InputError, match=r"save\(folder, undo=True\)"):
        Delta.load(tmp_path / "bare").undo(model)
    assert same(model, after)
    if delta.merged:  # as it is when it is loaded again: the adapter stays merged
        model = model.merge_and_unload()
        expected = dict(with_lora(copy.deepcopy(aligned)).merge_and_unload().named_parameters())
        Delta.load(tmp_path / "whole").undo(model)
        for name, tensor in model.named_parameters():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    else:
        Delta.load(tmp_path / "whole").undo(model)
        assert same(model, before) and setup_of(model) == around


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_factors_of_another_rank_are_saved_and_loaded_by_peft(rank, use_rslora, tmp_path):
    model = with_lora(tiny_llama(), use_rslora=use_rslora, rank_pattern={"k_proj": 3}, alpha_pattern={"v_proj": 4})
    was = logits(model)
    delta = Truncate(rank=rank).apply(model)
    scaling = {n: m.scaling["default"] for n, m in model.named_modules() if hasattr(m, "lora_A")}
    with torch.no_grad():
        name = f"base_model.model.{Q}"
        layer = model.get_submodule(name)
        assert layer.lora_A["default"].weight.shape == (min(rank, 8), 16) and layer.lora_A["default"].out_features
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert {n: m.scaling["default"] for n, m in loaded.named_modules() if hasattr(m, "lora_A")} == scaling
    if rank == 8:  # of the five directions that there are, all
        assert float((logits(model) - was).abs().max()) < 1e-4
    delta.undo(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path)), was)


def test_a_scaling_of_its_own_is_kept_by_peft(tmp_path):
    model = with_lora(tiny_llama(), target_modules=["q_proj"])
    delta, a, b = Delta("mine"), torch.randn(3, 16), torch.randn(16, 3)
    delta.replace_factors(Q, a, b, scaling=0.7)
    delta.apply(model)
    expected = tiny_llama().get_parameter(f"{Q}.weight") + 0.7 * (b @ a)
    torch.testing.assert_close(merged_state(model)[f"{Q}.weight"], expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path)), logits(model))


# -- what is refused, with nothing changed ---------------------------------------------------------------------------


def trained_on(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or not isinstance(model, PeftModel):
                parameter.add_(1e-4 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_undo_refuses_every_model_but_the_one_that_it_left(kind, tmp_path):
    aligned = tiny_llama()
    model = with_lora(copy.deepcopy(aligned))
    before = state(model)
    unrepaired, foreign = copy.deepcopy(model), with_lora(tiny_llama(seed=3), seed=4)
    delta = repaired(kind, model, aligned)
    delta.save(tmp_path, undo=True)
    unloaded = copy.deepcopy(model).merge_and_unload()
    unmerged, merged, other = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    unmerged.unmerge_adapter()
    merged.merge_adapter()
    other.set_adapter("default")
    other.disable_adapter_layers()
    cases = {
        "never repaired": unrepaired,
        "foreign": foreign,
        "plain and foreign": tiny_llama(seed=3),
        "trained on": trained_on(copy.deepcopy(model)),
        "merged and unloaded": unloaded,
        "switched off": other,
        "another dtype": copy.deepcopy(model).to(torch.bfloat16),
    }
    cases |= {"unmerged since": unmerged} if delta.merged else {"merged since": merged}
    for case, one in cases.items():
        held = state(one)
        with pytest.raises(InputError) as refused:
            delta.undo(one)
        assert same(one, held), case
        assert "odel" in str(refused.value)  # says which model it wants
        if case in ("never repaired", "foreign") or (case == "trained on" and not delta.merged):
            with pytest.raises(InputError):
                Delta.load(tmp_path).undo(one)
            assert same(one, held), case
    delta.undo(model)
    assert same(model, before)
    with pytest.raises(InputError, match="undone already"):
        delta.undo(model)
    if not delta.merged:
        with pytest.raises(InputError, match="undone already"):
            Delta.load(tmp_path).undo(model)
    assert same(model, before)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_refuses_every_model_but_the_one_that_it_was_made_on(kind, tmp_path):
    aligned = tiny_llama()
    model = with_lora(copy.deepcopy(aligned))
    fresh = copy.deepcopy(model)
    repaired(kind, model, aligned).save(tmp_path)
    shallow = with_lora(tiny_llama(num_hidden_layers=1))
    cases = {
        "repaired already": model,
        "other factors": with_lora(tiny_llama(), seed=2),
        "another base": with_lora(tiny_llama(seed=2)),
        "trained on": trained_on(copy.deepcopy(fresh)),
        "too few layers": shallow,
        "wider": with_lora(tiny_llama(hidden_size=32)),
        "no adapter": tiny_llama(),
    }
    for case, one in cases.items():
        held = state(one)
        delta = Delta.load(tmp_path)
        with pytest.raises(InputError):
            delta.apply(one)
        assert same(one, held), case
        with pytest.raises(InputError, match="not applied yet"):
            delta.undo(one)
    Delta.load(tmp_path).apply(fresh)
    assert same(fresh, state(model))


def test_roundings_of_another_merge_are_no_other_model(tmp_path):
    """In bfloat16, as on another device: a few entries in a thousand are rounded the other way."""
    model = with_lora(tiny_llama(torch.bfloat16)).merge_and_unload()
    fresh = copy.deepcopy(model)
    Antidote(targets="merged", score="magnitude").apply(model).save(tmp_path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fresh.parameters():
            flip = torch.rand(parameter.shape, generator=generator) < 0.003
            parameter.copy_(torch.where(flip, parameter * (1 + 2**-8), parameter))
    Delta.load(tmp_path).apply(fresh)


def test_two_repairs_are_undone_in_reverse_only():
    model = with_lora(tiny_llama())
    before = state(model)
    first = Antidote(score="magnitude").apply(model)
    between = state(model)
    second = Antidote(score="random", ratio=0.5).apply(model)
    with pytest.raises(InputError, match="what came after it first"):
        first.undo(model)
    second.undo(model)
    assert same(model, between)
    first.undo(model)
    assert same(model, before)


def test_what_goes_wrong_half_way_is_put_back(monkeypatch):
    from mithridate.repairs import delta as module

    aligned = tiny_llama()
    model = with_lora(copy.deepcopy(aligned))
    before, around, change, calls = state(model), setup_of(model), module.make, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("full")
        return change(*args)

    monkeypatch.setattr(module, "make", failing)
    with pytest.raises(torch.OutOfMemoryError):
        Antidote(targets="merged", score="magnitude").apply(model)
    assert same(model, before) and setup_of(model) == around


def test_tied_names_and_shapes_that_do_not_fit_are_named():
    model = tiny_llama(tie_word_embeddings=True)
    before = state(model)
    both = Delta()
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        both.mark(name, torch.ones(259, 16, dtype=torch.bool))
    with pytest.raises(InputError, match=r"lm_head.weight and model.embed_tokens.weight are one tensor"):
        both.apply(model)
    one, shape = Delta(), Delta()
    shape.replace("model.norm.weight", torch.ones(3))
    with pytest.raises(InputError, match=r"model\.norm\.weight: the repair is for shape \(3,\)"):
        shape.apply(model)
    with pytest.raises(InputError, match="no product"):
        one.replace_factors(Q, torch.ones(3, 16), torch.ones(16, 4))
    with pytest.raises(InputError, match=r"\(2,\) values for 1 marked"):
        one.mark("model.norm.weight", torch.arange(16) == 3, torch.ones(2))
    assert same(model, before)


def test_a_dense_change_of_one_tied_weight_is_a_change_of_both():
    model = tiny_llama(tie_word_embeddings=True)
    before, delta = state(model), Delta()
    delta.replace("lm_head.weight", torch.ones(259, 16))
    delta.apply(model)
    assert bool((model.model.embed_tokens.weight == 1).all())
    delta.undo(model)
    assert same(model, before)


# -- on disk ---------------------------------------------------------------------------------------------------------


def test_masks_of_zeros_cost_a_bit_an_entry_and_no_values(tmp_path):
    model = tiny_llama()
    delta = Antidote(targets="merged", score="magnitude", ratio=0.5).apply(model)
    delta.save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    kept = {name.split(":", 1)[1] for name in header if name != "__metadata__"}
    assert kept == {"mask", "before:weight", "before:marked"}
    masks = [entry["data_offsets"] for name, entry in header.items() if name.endswith(":mask")]
    assert sum(end - start for start, end in masks) == sum(math.ceil(n / 8) for _, n in delta.counts().values())


def test_damage_anywhere_is_one_clear_error(tmp_path):
    aligned = tiny_llama()
    Antidote(targets="update", score="magnitude").apply(with_lora(aligned), aligned=tiny_llama()).save(
        tmp_path, undo=True
    )
    whole = (tmp_path / FILE).read_bytes()
    start = int.from_bytes(whole[:8], "little")
    for at in [*range(8, 8 + start, 997), *range(8 + start, len(whole), 1009), len(whole) - 1]:
        broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(InputError, match=r"delta\.safetensors: (damaged|of another version)"):
            Delta.load(tmp_path)
    for length in (0, 7, 100, 8 + start, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            Delta.load(tmp_path)


def test_a_folder_of_an_earlier_release_is_named_for_what_it_is(tmp_path):
    (tmp_path / "mask.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="of an earlier release"):
        Delta.load(tmp_path)


def test_nothing_half_written_is_left_where_it_cannot_be_saved(tmp_path, monkeypatch):
    delta = Antidote(score="magnitude").apply(with_lora(tiny_llama()))
    delta.save(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mithridate.repairs.delta.save_file", full)
    with pytest.raises(Exception, match="No space left on device") as error:
        delta.save(tmp_path)
    assert type(error.value).__name__ == "MithridateError"
    assert (tmp_path / FILE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "report.json"]
    with pytest.raises(InputError, match="only after apply"):
        Delta().save(tmp_path, undo=True)


def test_old_names_lead_here_and_old_attributes_are_there(tmp_path):
    from mithridate.masks import Mask
    from mithridate.repairs.antidote import RepairReport

    report = Antidote(score="magnitude").apply(with_lora(tiny_llama()))
    assert Mask is RepairReport is Delta and report.mask is report
    report.save(tmp_path, undo=True)
    mask = Mask.load(tmp_path)
    assert torch.equal(mask[f"{Q}.lora_A"], report.mask[f"{Q}.lora_A"])
    assert mask.digest == report.digest and mask.counts() == report.counts()
    shutil.rmtree(tmp_path)


# -- bit-identity, whatever is changed -------------------------------------------------------------------------------

MODELS = {True: with_lora(tiny_llama()), False: tiny_llama()}


@settings(max_examples=60)
@given(st.data())
def test_apply_then_undo_is_bit_identical_whatever_was_changed(data):
    lora = data.draw(st.booleans())
    model = copy.deepcopy(MODELS[lora])
    before, around = state(model), setup_of(model)
    names = [n for n, _ in tiny_llama().named_parameters()]
    adapted = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkv"]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    delta = Delta(merged=data.draw(st.booleans()))
    for name in data.draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
        shape = tiny_llama().get_parameter(name).shape
        if data.draw(st.booleans()):
            delta.replace(name, torch.randn(shape, generator=generator))
        else:
            mask = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.1, 1.0]))
            values = torch.randn(int(mask.sum()), generator=generator) if data.draw(st.booleans()) else None
            delta.mark(name, mask, values)
    merging = {n.removesuffix(".weight") for n in delta.changes} if delta.merged else set()
    for layer in data.draw(st.lists(st.sampled_from(adapted), unique=True, max_size=2)) if lora else []:
        if layer in merging:
            continue
        out, rank = model.get_base_model().get_submodule(layer).out_features, data.draw(st.integers(1, 9))
        a, b = torch.randn(rank, 16, generator=generator), torch.randn(out, rank, generator=generator)
        delta.replace_factors(layer, a, b, data.draw(st.sampled_from([None, 0.3, 2.0])))
    delta.apply(model)
    after, later = state(model), setup_of(model)
    delta.undo(model)
    assert same(model, before) and setup_of(model) == around
    delta.apply(model)
    assert same(model, after) and setup_of(model) == later


def test_models_that_transformers_gave_an_adapter_are_repaired_too():
    model = tiny_llama()
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    wrapped = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    before = state(model)
    delta = Antidote(score="magnitude").apply(model)
    assert delta.shapes.keys() == Antidote(score="magnitude").apply(wrapped).shapes.keys()
    delta.undo(model)
    assert same(model, before)


def test_of_a_delta_from_before_it_is_known_what_it_lies_on(tmp_path, monkeypatch):
    """Older files do not say whether the model was a dequantised one; whatever changed weights was made on one."""
    real = json.loads

    def without(text, *args, **kwargs):
        found = real(text, *args, **kwargs)
        return {k: v for k, v in found.items() if k != "dequantised"} if isinstance(found, dict) else found

    monkeypatch.setattr(json, "loads", without)  # as it was written, and its checksum over that
    for kind in ("dense", "factors"):
        aligned = tiny_llama()
        repaired(kind, with_lora(copy.deepcopy(aligned)), aligned).save(tmp_path / kind)
        assert Delta.load(tmp_path / kind).dequantised == (kind == "dense")


def test_rounded_to_a_narrower_dtype_it_fits_the_model_there_and_factors_are_left(tmp_path):
    wide, narrow = tiny_llama(torch.float32), tiny_llama(torch.bfloat16)
    name, value = "model.norm.weight", torch.linspace(0, 1, 16)
    delta = Delta("mine")
    delta.replace(name, value)
    delta.apply(wide)
    delta.save(tmp_path)
    with pytest.raises(InputError, match=r"made in torch\.float32 and the model is in torch\.bfloat16"):
        Delta.load(tmp_path).apply(narrow)
    Delta.load(tmp_path).rounded(torch.bfloat16).apply(narrow)
    assert torch.equal(dict(narrow.named_parameters())[name], value.bfloat16())
    kept = Delta("mine")
    kept.replace("model.layers.0.self_attn.q_proj.lora_B", value)
    kept.replace(name, value.bfloat16())
    kept.rounded(torch.bfloat16).rounded(torch.float32)
    assert [change.value.dtype for change in kept.changes.values()] == [torch.float32, torch.bfloat16]
