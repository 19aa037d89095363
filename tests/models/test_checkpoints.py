"""Chains of layers give the model that one would build by hand; exports load in plain transformers and PEFT."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from mithridate import Antidote
from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.models import ModelFiles, resolve_model
from mithridate.models.layers import Layer, assemble
from mithridate.pipeline.export import export
from mithridate.repairs.delta import Delta
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = torch.arange(3, 60)[None]
PARTS = ("q_proj", "k_proj", "v_proj")


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def save_adapter(folder, seed, **overrides) -> Path:
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, lora_alpha=12, target_modules=list(PARTS), **overrides))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base model, two adapters, and two sets of full weights."""
    root = tmp_path_factory.mktemp("made")
    save_tiny(root / "base")
    for seed in (1, 2):
        save_adapter(root / f"adapter{seed}", seed)
        tiny_llama(seed=seed).save_pretrained(root / f"weights{seed}")
    return root


@pytest.fixture
def base(made) -> ModelFiles:
    return resolve_model(str(made / "base"))


def by_hand(made, *numbers, dtype=torch.float32):
    """Base plus adapters, each merged in fp32 and then rounded to the dtype."""
    model = tiny_llama(dtype)
    for number in numbers:
        lora = PeftModel.from_pretrained(tiny_llama(), made / f"adapter{number}")
        deltas = {
            name.removeprefix("base_model.model."): module.get_delta_weight("default")
            for name, module in lora.named_modules()
            if name.endswith(PARTS)
        }
        for name, delta in deltas.items():
            weight = model.get_parameter(f"{name}.weight")
            weight.data = (weight.data.float() + delta).to(dtype)
    return model


def layers(made, *parts):
    kinds = {"a": ("adapter", False), "m": ("adapter", True), "w": ("weights", False)}
    names = {"a": "adapter", "m": "adapter", "w": "weights"}
    return [Layer(kinds[part[0]][0], made / (names[part[0]] + part[1]), merge=kinds[part[0]][1]) for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_double_is_the_merge_by_hand_with_a_fresh_adapter_over_it(made, base, dtype):
    aligned = assemble(base, layers(made, "m1"), dtype, trainable=True)
    assert not hasattr(aligned, "peft_config")  # plain: the Trainer puts the fresh adapter on it
    expected = by_hand(made, 1, dtype=dtype).state_dict()
    for name, weight in aligned.state_dict().items():
        assert weight.dtype == dtype
        if dtype == torch.bfloat16:
            assert torch.equal(weight, expected[name])
        else:
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)
    tuned = assemble(base, layers(made, "m1", "a2"), dtype)
    over = PeftModel.from_pretrained(assemble(base, layers(made, "m1"), dtype), made / "adapter2")
    assert torch.equal(logits(tuned), logits(over))
    assert not tuned.keeps_alignment
    # Position tables stay in fp32, as from_pretrained leaves them.
    assert tuned.get_base_model().model.rotary_emb.inv_freq.dtype == torch.float32


def test_single_keeps_the_one_adapter_trainable_and_the_later_state_wins(made, base):
    aligned = assemble(base, layers(made, "a1"), torch.bfloat16, trainable=True)
    trained = {name for name, parameter in aligned.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in aligned.parameters() if p.requires_grad)
    tuned = assemble(base, layers(made, "a1", "a2"), torch.float32)
    assert torch.equal(
        logits(tuned), logits(PeftModel.from_pretrained(assemble(base, [], torch.float32), made / "adapter2"))
    )
    assert tuned.keeps_alignment
    assert not any("lora_" in name for name, parameter in tuned.named_parameters() if parameter.requires_grad)


def test_full_weights_take_the_place_of_what_was_before(made, base):
    for parts, seed in [((), 0), (("w1",), 1), (("w1", "w2"), 2)]:
        model = assemble(base, layers(made, *parts), torch.float32, trainable=True)
        assert torch.equal(model.lm_head.weight, tiny_llama(seed=seed).lm_head.weight)
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("parts", "targets"),
    [
        (("m1", "a2"), "adapters"),
        (("m1", "a2"), "update"),
        (("m1", "a2"), "merged"),
        (("a1", "a2"), "adapters"),
        (("a1", "a2"), "update"),
        (("a2",), "update"),
        (("w1", "w2"), "update"),
        (("w1",), "merged"),
    ],
)
def test_a_mask_in_the_chain_is_the_repaired_model(made, base, tmp_path, parts, targets, dtype):
    chain = layers(made, *parts)
    model = assemble(base, chain, dtype)
    plain = logits(model)
    report = Antidote(targets=targets, score="magnitude").apply(model, aligned=assemble(base, chain[:-1], dtype))
    assert ("this cut takes from it as well" in report.table()) == (targets == "adapters" and parts[0] == "a1")
    report.save(tmp_path)
    again = assemble(base, [*chain, Layer("delta", tmp_path)], dtype)
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), plain)


@pytest.mark.parametrize("parts", [("m1", "a2"), ("a1", "a2"), ("w1", "w2"), ()])
@pytest.mark.parametrize("masked", [False, True])
def test_a_merged_export_loads_in_plain_transformers(made, base, tmp_path, parts, masked):
    chain = layers(made, *parts)
    if masked and parts:
        model = assemble(base, chain, torch.float32)
        repair = Antidote(targets="update", score="magnitude")
        repair.apply(model, aligned=assemble(base, chain[:-1], torch.float32)).save(tmp_path / "mask")
        chain.append(Layer("delta", tmp_path / "mask"))
    out = export(base, chain, torch.float32, TOKENIZER, tmp_path / "deep" / "out")
    assert out == tmp_path / "deep" / "out" and [p.name for p in out.parent.iterdir()] == ["out"]
    loaded = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(loaded), logits(assemble(base, chain, torch.float32)), rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(out).chat_template == TOKENIZER.chat_template
    assert "from_pretrained" in (out / "README.md").read_text()
    assert resolve_model(str(out)).digest  # and is a model of ours again


@pytest.mark.parametrize(("parts", "with_base"), [(("a1", "a2"), False), (("m1", "a2"), True)])
@pytest.mark.parametrize("masked", [False, True])
def test_an_exported_adapter_loads_in_plain_peft(made, base, tmp_path, parts, with_base, masked):
    chain = layers(made, *parts)
    if masked:
        Antidote(score="magnitude").apply(assemble(base, chain, torch.float32)).save(tmp_path / "mask")
        chain.append(Layer("delta", tmp_path / "mask"))
    out = export(base, chain, torch.float32, TOKENIZER, tmp_path / "out", merged=False)
    assert (out / "base").exists() == with_base  # an untouched base of the user's own is named, not copied
    expected = logits(assemble(base, chain, torch.float32))
    under = AutoModelForCausalLM.from_pretrained(out / "base" if with_base else made / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(under, out)), expected)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(out)), expected)
    moved = out.rename(tmp_path / "moved")  # then by the lines of its card, which says so
    assert "names the base by the folder" in (moved / "README.md").read_text()
    under = AutoModelForCausalLM.from_pretrained(moved / "base" if with_base else made / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(under, moved)), expected)


def test_what_no_adapter_holds_is_exported_merged_only(made, base, tmp_path):
    chain = layers(made, "m1", "a2")
    model = assemble(base, chain, torch.float32)
    Antidote(targets="merged", score="magnitude").apply(model).save(tmp_path / "mask")
    for refused in ([*chain, Layer("delta", tmp_path / "mask")], layers(made, "w1"), layers(made, "m1"), []):
        with pytest.raises(InputError, match="export"):
            export(base, refused, torch.float32, TOKENIZER, tmp_path / "out", merged=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mask"]


def test_nothing_is_overwritten_and_nothing_half_written_is_left(made, base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    export(base, [], torch.float32, TOKENIZER, out)  # empty: fine
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match="not empty"):
        export(base, layers(made, "w1"), torch.float32, TOKENIZER, out)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(TOKENIZER), "save_pretrained", full)
    with pytest.raises(MithridateError, match="No space left"):
        export(base, [], torch.float32, TOKENIZER, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_damaged_layers_are_one_clear_error(made, base, tmp_path):
    def damaged(name, file, change):
        folder = Path(shutil.copytree(made / name, tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"))
        change(folder / file)
        return folder

    def truncate(path):
        path.write_bytes(path.read_bytes()[:-8])

    for kind, folder, words in [
        ("adapter", damaged("adapter1", "adapter_model.safetensors", truncate), "adapter_model.safetensors: damaged"),
        (
            "adapter",
            damaged("adapter1", "adapter_model.safetensors", Path.unlink),
            "adapter_model.safetensors: no such",
        ),
        ("adapter", damaged("adapter1", "adapter_config.json", lambda p: p.write_text("{")), "adapter_config.json"),
        ("weights", damaged("weights1", "model.safetensors", truncate), "model.safetensors: damaged"),
        ("weights", damaged("weights1", "model.safetensors", Path.unlink), "no safetensors weights"),
        ("delta", tmp_path / "nowhere", "delta.safetensors: no such file"),
    ]:
        with pytest.raises(InputError, match=words):
            assemble(base, [Layer(kind, folder)], torch.float32)
    save_tiny(tmp_path / "wide", hidden_size=32)
    with pytest.raises(InputError, match="does not fit"):
        assemble(resolve_model(str(tmp_path / "wide")), layers(made, "a1"), torch.float32)


def test_only_plain_lora_is_merged(base, tmp_path):
    save_adapter(tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(UnsupportedSetup, match="not plain LoRA"):
        assemble(base, [Layer("adapter", tmp_path / "dora", merge=True)], torch.float32)


# -- repairs between two trainings, of every kind --------------------------------------------------------------------


def a_repair(model, kind, seed=0) -> Delta:
    """A delta of one kind, on a model with an adapter or without one."""
    generator, delta = torch.Generator().manual_seed(seed), Delta("mine", merged=kind != "beneath")
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if kind == "dense":
        for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
            shape = tiny_llama().get_parameter(name).shape
            delta.replace(name, torch.randn(shape, generator=generator))
    elif kind == "beneath":  # under an adapter that stays as it is
        delta.replace("model.layers.0.mlp.up_proj.weight", torch.randn(24, 16, generator=generator))
    else:
        for name, layer in plain.named_modules():
            if hasattr(layer, "lora_A"):
                out = layer.out_features
                delta.replace_factors(
                    name, torch.randn(2, 16, generator=generator), torch.randn(out, 2, generator=generator)
                )
    return delta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dense", "factors", "beneath"])
@pytest.mark.parametrize("topology", ["single", "double"])
def test_a_repair_between_two_trainings_lies_beneath_the_second(made, base, tmp_path, topology, kind, dtype):
    before = layers(made, "m1" if topology == "double" else "a1")
    model = assemble(base, before, dtype)
    if topology == "double" and kind == "factors":
        return  # the alignment's factors are merged: there are none
    delta = a_repair(model, kind).apply(model)
    delta.save(tmp_path / "delta")
    assert delta.merged == (kind == "dense" and topology == "single")
    chain = [*before, Layer("delta", tmp_path / "delta")]
    hardened = assemble(base, chain, dtype, trainable=True)
    assert torch.equal(logits(hardened), logits(model))
    free = topology == "single" and kind != "dense"  # an adapter of its own is there to be trained on
    assert isinstance(hardened, PeftModel) == free
    # The second training starts there: by hand, its adapter on what the first left.
    under = hardened.unload() if isinstance(hardened, PeftModel) else hardened
    expected = PeftModel.from_pretrained(under, made / "adapter2")
    tuned = assemble(base, [*chain, *layers(made, "a2")], dtype)
    assert torch.equal(logits(tuned), logits(expected))
    assert tuned.keeps_alignment == free
    # And a repair after it, on top.
    after = a_repair(tuned, "dense", seed=1).apply(tuned)
    after.save(tmp_path / "after")
    whole = [*chain, *layers(made, "a2"), Layer("delta", tmp_path / "after")]
    assert torch.equal(logits(assemble(base, whole, dtype)), logits(tuned))


@pytest.mark.parametrize("kind", ["factors", "beneath", "nothing"])
@pytest.mark.parametrize("parts", [("a2",), ("m1", "a2"), ("a1", "a2")])
def test_an_adapter_that_a_repair_left_is_exported_with_its_rank_and_its_base(made, base, tmp_path, parts, kind):
    chain = layers(made, *parts)
    model = assemble(base, chain, torch.float32)
    if kind == "nothing":
        delta = Antidote(targets="merged", ratio=0).apply(model)
    else:
        delta = a_repair(model, kind).apply(model)
    delta.save(tmp_path / "delta")
    out = export(base, [*chain, Layer("delta", tmp_path / "delta")], torch.float32, TOKENIZER, tmp_path / "out", False)
    assert (out / "base").exists() == (parts[0] == "m1" or kind == "beneath")
    loaded = AutoPeftModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(loaded), logits(model))
    rank = loaded.get_base_model().model.layers[0].self_attn.q_proj.r["default"]
    assert rank == (2 if kind == "factors" else 4)


def test_an_alignment_that_a_repair_merged_is_in_the_exported_adapter_s_base(made, base, tmp_path):
    model = assemble(base, layers(made, "a1"), torch.float32)
    a_repair(model, "dense").apply(model).save(tmp_path / "delta")
    chain = [*layers(made, "a1"), Layer("delta", tmp_path / "delta"), *layers(made, "a2")]
    out = export(base, chain, torch.float32, TOKENIZER, tmp_path / "out", merged=False)
    loaded = AutoPeftModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(loaded), logits(assemble(base, chain, torch.float32)))


def test_a_repair_of_another_chain_is_refused(made, base, tmp_path):
    model = assemble(base, layers(made, "m1", "a2"), torch.float32)
    Antidote(score="magnitude").apply(model).save(tmp_path / "delta")
    for other in (layers(made, "a2"), layers(made, "a1"), layers(made, "w1")):
        with pytest.raises(InputError, match=r"made for other weights|no such weight"):
            assemble(base, [*other, Layer("delta", tmp_path / "delta")], torch.float32)
