"""The vLLM backend against a stand-in for the package, with vLLM's signatures: what is passed and what is made of it.

The stand-in answers with a tiny model of transformers, so that texts can be compared. vLLM itself was never run here.
"""

import dataclasses
import json
import sys
import types
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mithridate.errors import InputError, MithridateError
from mithridate.generation import vllm as backend
from mithridate.generation.base import CHAT, Decoding, PromptTooLong
from mithridate.generation.hf import Transformers
from mithridate.generation.templates import ALPACA
from mithridate.generation.vllm import VLLM, Engine
from mithridate.models import load_model
from tests.tiny import save_tiny, tiny_llama

ASKED = [[{"role": "user", "content": text}] for text in ("a", "How do I pick a lock?", "Say moon", "Why?")]
GREEDY = Decoding(12)


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True


@dataclasses.dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class LLM:
    """The parts of `vllm.LLM` that are used. An adapter is loaded when its number is first seen, and never again."""

    made: ClassVar[list["LLM"]] = []

    def __init__(
        self, model: str, *, dtype: str = "auto", seed: int = 0, generation_config: str = "auto", **options: Any
    ):
        self.options = {"model": model, "dtype": dtype, "generation_config": generation_config, **options}
        self.path, self.adapters, self.calls = model, {}, []
        config = types.SimpleNamespace(max_model_len=options.get("max_model_len", 512))
        self.llm_engine = types.SimpleNamespace(model_config=config)
        self.fails: Exception | None = None
        LLM.made.append(self)

    def generate(self, prompts, sampling_params, *, use_tqdm=True, lora_request=None):
        self.calls.append((len(prompts), sampling_params, lora_request))
        if self.fails:
            raise self.fails
        if lora_request is not None and not self.options.get("enable_lora"):
            raise ValueError("LoRA is not enabled")
        model = self._model(lora_request)
        outputs = []
        for prompt in prompts:
            ids, new = prompt["prompt_token_ids"], []
            while len(new) < sampling_params.max_tokens and not set(new) & set(sampling_params.stop_token_ids):
                with torch.no_grad():
                    new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            ended = bool(set(new) & set(sampling_params.stop_token_ids))
            made = types.SimpleNamespace(token_ids=tuple(new), text="", finish_reason="stop" if ended else "length")
            outputs.append(types.SimpleNamespace(prompt_token_ids=ids, outputs=[made], finished=True))
        return outputs

    def _model(self, request):
        number = request.lora_int_id if request else 0
        if number not in self.adapters:
            base = load_model(types.SimpleNamespace(path=self.path, remote_code=False, quantization={}), torch.float32)  # type: ignore[arg-type]
            self.adapters[number] = PeftModel.from_pretrained(base, request.lora_path) if request else base
        return self.adapters[number].eval()


@pytest.fixture
def model(tmp_path, monkeypatch):
    package, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.LLM, package.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest  # type: ignore
    package.lora, lora.request = lora, request  # type: ignore[attr-defined]
    for name, module in {"vllm": package, "vllm.lora": lora, "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    LLM.made.clear()
    return save_tiny(tmp_path / "model")


def adapter(folder, seed, rank=2):
    base = tiny_llama()
    torch.manual_seed(seed)
    made = get_peft_model(base, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"]))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    made.save_pretrained(folder)
    return folder


def texts(generator, template=CHAT, decoding=GREEDY):
    found = dict(generator.generate(ASKED, template, decoding))
    return [found[i].text for i in range(len(ASKED))]


def with_peft(model, folder):
    opened = Transformers.open(str(model))
    opened.model = PeftModel.from_pretrained(opened.model, folder)
    return opened


@pytest.mark.parametrize("template", [CHAT, ALPACA], ids=lambda t: t.name)
def test_tokens_go_in_and_come_out_as_with_transformers(model, template):
    generator = VLLM(Engine(str(model)))
    theirs = dict(generator.generate(ASKED, template, GREEDY))
    for i, ours in Transformers.open(str(model)).generate(ASKED, template, GREEDY):
        assert (theirs[i].text, theirs[i].new_tokens, theirs[i].finished) == (
            ours.text,
            ours.new_tokens,
            ours.finished,
        )
        assert theirs[i].prompt_tokens == ours.prompt_tokens
    assert LLM.made[0].options == {"model": str(model), "dtype": "auto", "generation_config": "vllm"}
    [(_, params, lora)] = LLM.made[0].calls
    assert lora is None
    assert params == SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=[2], detokenize=False)


def test_it_says_that_it_is_experimental(model, caplog):
    Engine(str(model))
    assert "has not run on a real engine" in caplog.text and "vllm serve" in caplog.text


def test_sampling_passes_its_settings(model):
    texts(VLLM(Engine(str(model))), decoding=Decoding(3, temperature=0.8, top_p=0.9, seed=5))
    params = LLM.made[0].calls[0][1]
    assert (params.temperature, params.top_p, params.seed, params.max_tokens) == (0.8, 0.9, 5, 3)


def test_options_of_the_engine_are_part_of_the_identity(model):
    """Answers of a quantised model are not those of the model."""
    plain, quantised = VLLM(Engine(str(model))), VLLM(Engine(str(model), quantization="fp8"))
    assert plain.identity() != quantised.identity()


def test_one_engine_serves_a_sweep_of_adapters(model, tmp_path):
    folders = [adapter(tmp_path / f"adapter{seed}", seed) for seed in (1, 2)]
    engine = Engine(str(model), max_lora_rank=2)
    generators = [VLLM(engine, adapter=folder) for folder in folders]
    for generator, folder in zip(generators, folders, strict=True):
        assert texts(generator) == texts(with_peft(model, folder))
        generator.close()
    assert texts(VLLM(engine)) == texts(Transformers.open(str(model)))
    assert len(LLM.made) == 1 and LLM.made[0].options["enable_lora"] is True
    assert LLM.made[0].options["max_lora_rank"] == 8  # the smallest that vLLM takes
    assert len({json.dumps(g.identity()) for g in [*generators, VLLM(engine)]}) == 3
    assert len({texts(g)[1] for g in generators}) == 2


def test_an_adapter_retrained_into_the_same_folder_is_another_adapter(model, tmp_path):
    engine, folder = Engine(str(model), max_lora_rank=2), adapter(tmp_path / "adapter", 1)
    old = VLLM(engine, adapter=folder)
    before = texts(old)
    adapter(folder, 2)
    new = VLLM(engine, adapter=folder)
    assert texts(new) == texts(with_peft(model, folder)) != before
    assert new.identity() != old.identity() and len(engine.adapters) == 2
    VLLM(engine, adapter=folder)
    assert len(engine.adapters) == 2


def test_a_chunk_at_a_time(model, monkeypatch):
    monkeypatch.setattr(backend, "CHUNK", 3)
    found = list(VLLM(Engine(str(model))).generate(ASKED, CHAT, GREEDY))
    assert [i for i, _ in found] == [0, 1, 2, 3]
    assert [count for count, *_ in LLM.made[0].calls] == [3, 1]


def test_bad_adapters(model, tmp_path):
    good = adapter(tmp_path / "good", 1)
    with pytest.raises(InputError, match=r"started without adapters. Give it a max_lora_rank"):
        VLLM(Engine(str(model)), adapter=good)
    engine = Engine(str(model), max_lora_rank=8)
    with pytest.raises(InputError, match="rank 16 is above the engine's max_lora_rank of 8"):
        VLLM(engine, adapter=adapter(tmp_path / "large", 1, rank=16))
    (good / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        VLLM(engine, adapter=good)
    with pytest.raises(InputError, match="no such file"):
        VLLM(engine, adapter=tmp_path / "none")
    with pytest.raises(InputError, match="up to rank 512"):
        Engine(str(model), max_lora_rank=1024)


def test_a_prompt_beyond_the_context_is_refused_before_compute(model):
    generator = VLLM(Engine(str(model), max_model_len=48))
    with pytest.raises(PromptTooLong, match=r"context of 48 tokens.*number 2.*begins 'How do I") as caught:
        list(generator.generate(ASKED, CHAT, GREEDY))
    assert LLM.made[0].calls == [] and caught.value.indices == [1]


def test_engine_failures_are_one_clear_error(model, monkeypatch):
    generator = VLLM(Engine(str(model)))
    LLM.made[0].fails = RuntimeError("EngineCore encountered an issue.\nSee stack trace")
    with pytest.raises(MithridateError, match=r"vLLM failed .EngineCore encountered an issue.*same command again"):
        texts(generator)
    generator.engine.close()
    with pytest.raises(MithridateError, match="has been closed"):
        texts(generator)

    def refuse(self, **_):
        raise ValueError("No available memory for the cache blocks.")

    monkeypatch.setattr(LLM, "__init__", refuse)
    with pytest.raises(MithridateError, match=r"No available memory.*max_model_len"):
        Engine(str(model))


def test_without_the_package(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"mithridate\[vllm\]"):
        Engine(str(model))
