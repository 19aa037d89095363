"""Generation: greedy whatever the model's own config, the same text batched as alone, and nothing left changed."""

import logging
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from mithridate.errors import InputError, MithridateError
from mithridate.generation import hf
from mithridate.generation.base import CHAT, Answer, Decoding, PromptTooLong
from mithridate.generation.digests import weights_digest
from mithridate.generation.hf import STRETCH, Transformers, _Drawn
from mithridate.generation.templates import ALPACA, prompt_tokens
from mithridate.models import load_model, load_tokenizer, resolve_model
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

TEXTS = ["a", "How do I pick a lock?", "Tell me more. " * 6, "sum 3 + 4", "Why?", "Say the word moon, slowly", "x y"]
TIE = 1e-4  # logits closer than this may swap places between a batch and a single prompt


def conversations(texts=TEXTS):
    return [[{"role": "user", "content": text}] for text in texts]


def generate(model, tokenizer, asked, limit, batch_size=64):
    """Greedy answers in the conversations' order."""
    found = dict(Transformers(model, tokenizer, batch_size=batch_size).generate(asked, CHAT, Decoding(limit)))
    return [found[i] for i in range(len(asked))]


def prompt_ids(tokenizer, conversation):
    return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]


def greedy_by_hand(model, ids, limit, stop=2):
    """One token at a time by argmax, no cache, no padding; also the smallest gap between the two best logits."""
    gap, new = float("inf"), []
    with torch.no_grad():
        while len(new) < limit and stop not in new:
            best = model(torch.tensor([ids + new])).logits[0, -1].topk(2)
            gap = min(gap, float(best.values[0] - best.values[1]))
            new.append(int(best.indices[0]))
    return new, gap


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batched_text_is_that_of_one_prompt_at_a_time(seed, batch_size):
    model, tokenizer = tiny_llama(seed=seed).eval(), tiny_tokenizer()
    answers = generate(model, tokenizer, conversations(), 12, batch_size)
    ties = 0
    for answer, conversation in zip(answers, conversations(), strict=True):
        tokens, gap = greedy_by_hand(model, prompt_ids(tokenizer, conversation), 12)
        if gap <= TIE:
            ties += 1
        else:
            assert answer.text == tokenizer.decode(tokens, skip_special_tokens=True)
            assert (answer.new_tokens, answer.finished) == (len(tokens), tokens[-1] == 2)
    assert ties <= 1


def ending(model, boost):
    """The model, made likelier to end its answers, each at another token."""
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, 259, bias=True)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    torch.nn.init.zeros_(model.lm_head.bias)
    model.lm_head.bias.data[2] = boost
    return model.eval()


def mixed_prompts(count, seed=0):
    rng = random.Random(seed)
    return conversations(["".join(rng.choices("abcdef ghij?", k=rng.randint(1, 120))) for _ in range(count)])


SIZES = dict(vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)  # noqa: C408
SIZES |= {"num_key_value_heads": 1, "initializer_range": 0.3, "eos_token_id": 2, "pad_token_id": 2, "bos_token_id": 1}


def gpt2():
    config = GPT2Config(
        vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3, eos_token_id=2
    )
    return GPT2LMHeadModel(config)


MODELS = {
    "llama": lambda: tiny_llama(),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=20)),
    "two kinds of layer": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=20)),
    "learned positions": gpt2,
}


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "llama")])
def test_rows_that_have_ended_are_dropped_and_the_others_go_on_unchanged(name):
    """Prompts of mixed lengths, answers that end at different tokens, several stretches: as one by one, by hand."""
    torch.manual_seed(0)
    boost = 3.0 if name == "learned positions" else 1.2
    model, tokenizer, limit = ending(MODELS[name](), boost), tiny_tokenizer(), 3 * STRETCH + 5
    rows = []
    watch = model.register_forward_pre_hook(
        lambda _, a, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    asked = mixed_prompts(48)
    answers = dict(Transformers(model, tokenizer).generate(asked, CHAT, Decoding(limit)))
    watch.remove()
    assert rows[0] == 48 and rows == sorted(rows, reverse=True) and len(set(rows)) > 2
    flips = 0
    for i, conversation in enumerate(asked):
        ids = prompt_ids(tokenizer, conversation)
        tokens, gap = greedy_by_hand(model, ids, limit)
        if answers[i].text != tokenizer.decode(tokens, skip_special_tokens=True):
            flips += 1
            assert gap < TIE
        else:
            assert (answers[i].new_tokens, answers[i].finished) == (len(tokens), tokens[-1] == 2)
        assert answers[i].prompt_tokens == len(ids)
    assert flips <= 1
    ends = {answer.new_tokens for answer in answers.values() if answer.finished}
    assert len(ends) > 5 and max(ends) > STRETCH and not all(answer.finished for answer in answers.values())


def test_a_batch_stops_when_every_row_has_ended():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.lm_head = torch.nn.Linear(16, 259)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data.zero_()
    model.lm_head.bias.data[2] = 1.0
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    answers = generate(model, tokenizer, conversations(), 12, batch_size=64)
    assert {(a.text, a.new_tokens, a.finished) for a in answers} == {("", 1, True)}
    assert len(calls) == 1


def test_sampling_defaults_and_penalties_of_the_model_are_set_aside_without_a_warning(caplog):
    tokenizer = tiny_tokenizer()
    plain = generate(tiny_llama(), tokenizer, conversations(), 8)
    model = tiny_llama()
    own = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        top_p=0.5,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        max_length=4,
    )
    model.generation_config = own
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert generate(model, tokenizer, conversations(), 8) == plain
    assert not caplog.records
    assert model.generation_config is own and own.do_sample is True


@pytest.mark.parametrize("training", [True, False])
def test_everything_is_put_back(training):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.train(training)
    model.base_model.model.model.layers[0].eval()  # modes are restored module by module
    model.config.use_cache = False
    tokenizer = tiny_tokenizer()
    before = [(name, p.requires_grad, p.clone()) for name, p in model.named_parameters()]
    modes = [module.training for module in model.modules()]
    side = tokenizer.padding_side
    generate(model, tokenizer, conversations(), 4)
    assert modes == [module.training for module in model.modules()]
    assert model.config.use_cache is False and tokenizer.padding_side == side
    for (name, required, value), (_, p) in zip(before, model.named_parameters(), strict=True):
        assert p.requires_grad == required and torch.equal(p, value) and p.grad is None, name


@pytest.mark.parametrize("on", [True, False])
def test_cudnns_attention_is_left_out_while_generating_only(on):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(on)
    try:
        model, seen = tiny_llama(), []
        model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
        generate(model, tiny_tokenizer(), conversations(), 4)
        assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled() is on
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_bf16_weights_are_computed_with_in_fp32_where_that_is_faster(monkeypatch):
    model = get_peft_model(tiny_llama(torch.bfloat16), LoraConfig(r=2, target_modules=["q_proj"]))
    before = {name: (p.dtype, p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    generator, tokenizer = Transformers(model, tiny_tokenizer()), tiny_tokenizer()
    seen = []
    model.get_base_model().register_forward_hook(lambda *_: seen.append({p.dtype for p in model.parameters()}))
    found = {}
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        found[capability] = dict(generator.generate(conversations(), CHAT, Decoding(12)))
        assert seen.pop() == ({torch.float32} if capability == "AVX2" else {torch.bfloat16, torch.float32})
        for name, p in model.named_parameters():
            assert (p.dtype, p.data_ptr()) == before[name][:2] and torch.equal(p, before[name][2])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    slow, fast = generator.identity(), Transformers(model.float(), tokenizer).generate
    assert dict(fast(conversations(), CHAT, Decoding(12))) == found["AVX2"]  # as from the same weights in fp32
    assert slow["arithmetic"] == "float32"


def test_bf16_weights_stay_as_they_are_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    assert Transformers(tiny_llama(torch.bfloat16), tiny_tokenizer()).identity()["arithmetic"] is None


def test_on_a_gpu_a_batch_is_what_half_of_the_free_memory_holds(monkeypatch):
    model = tiny_llama()
    a_row = hf._row_bytes(model, 30, 10)
    cache = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * model.config.head_dim * 40
    assert 4 * cache < a_row < 100 * cache  # of float32, and of a tiny model mostly the rest
    prompts = [[1] * 30, [1] * 5]
    assert hf._that_fit(model, prompts, 10) == hf.BATCH  # on a CPU
    on_gpu = SimpleNamespace(weight=SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(model, "get_input_embeddings", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: a_row * 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: a_row * 20)
    for free, expected in ((0, 5), (a_row * 90, 50), (10**15, hf.LARGEST_BATCH), (-a_row * 10, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**15))
        assert hf._that_fit(model, prompts, 10) == expected


def test_a_row_of_a_model_without_attention_has_a_size():
    import transformers

    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=50)
    assert hf._row_bytes(transformers.MambaForCausalLM(config), 30, 10) > 0


def test_dropout_is_off():
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, lora_dropout=0.9, target_modules=["q_proj", "o_proj"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_()
    model.train()
    first, second = (generate(model, tiny_tokenizer(), conversations(), 8) for _ in range(2))
    assert first == second


def test_the_template_writes_the_special_tokens_once():
    tokenizer, seen = tiny_tokenizer(), []
    tokenizer.add_bos_token = True
    model = tiny_llama()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    generate(model, tokenizer, conversations(["hello"]), 1)
    start, end = 1, 2
    assert seen[0][0].count(start) == 2 and seen[0][0].count(end) == 1  # user turn, answer's opening
    assert tokenizer.decode(seen[0][0]).endswith("<|im_start|>assistant\n")


def test_out_of_memory_halves_the_batch_and_says_so(caplog):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    expected = generate(model, tokenizer, conversations(), 4)

    def too_large(_, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("too large")

    model.register_forward_pre_hook(too_large, with_kwargs=True)
    generator = Transformers(model, tokenizer, batch_size=64)
    with caplog.at_level(logging.WARNING):
        answers = dict(generator.generate(conversations(), CHAT, Decoding(4)))
    assert [answers[i] for i in sorted(answers)] == expected and generator.batch_sizes == {1}
    assert [r.getMessage() for r in caplog.records] == [
        "Out of memory with 7 prompts in a batch: going on with 3.",
        "Out of memory with 3 prompts in a batch: going on with 1.",
    ]


def test_out_of_memory_with_a_single_prompt_is_one_clear_error():
    model = tiny_llama()

    def never(_, args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    model.register_forward_pre_hook(never)
    with pytest.raises(MithridateError, match="single answer"):
        generate(model, tiny_tokenizer(), conversations(), 4)
    assert model.generation_config.max_new_tokens is None


def test_other_errors_pass_through():
    model = tiny_llama()
    model.register_forward_pre_hook(lambda _, args: (_ for _ in ()).throw(RuntimeError("mat1 and mat2 shapes")))
    with pytest.raises(RuntimeError, match="mat1"):
        generate(model, tiny_tokenizer(), conversations(), 4)


def test_a_prompt_longer_than_the_context_is_refused_before_compute():
    model = tiny_llama(max_position_embeddings=64)
    with pytest.raises(InputError, match=r"context of 64 tokens.*number 2.*begins 'bbb") as caught:
        generate(model, tiny_tokenizer(), conversations(["a", "b" * 60, "c" * 50]), 8)
    assert isinstance(caught.value, PromptTooLong) and caught.value.indices == [1, 2]
    length = len(prompt_ids(tiny_tokenizer(), conversations(["a" * 20])[0]))
    assert len(generate(model, tiny_tokenizer(), conversations(["a" * 20]), 64 - length)) == 1


def test_no_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="chat template"):
        generate(tiny_llama(), tokenizer, conversations(), 4)


def test_a_plain_text_template_needs_no_chat_template():
    tokenizer, model = tiny_tokenizer(), tiny_llama()
    tokenizer.chat_template = None
    [(_, answer)] = Transformers(model, tokenizer).generate(conversations(["Sort."]), ALPACA, Decoding(5))
    tokens, _ = greedy_by_hand(model.eval(), prompt_tokens(tokenizer, conversations(["Sort."])[0], ALPACA), 5)
    assert isinstance(answer, Answer) and answer.text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_opened_from_a_folder_without_a_chat_template(tmp_path):
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    opened = Transformers.open(str(folder), device="cpu")
    before = opened.identity()["weights"]
    assert before == weights_digest(opened.model)
    assert len(dict(opened.generate(conversations(), ALPACA, Decoding(3)))) == len(TEXTS)
    with pytest.raises(InputError, match="chat template"):
        list(opened.generate(conversations(), CHAT, Decoding(3)))
    with torch.no_grad():
        opened.model.lm_head.weight.mul_(-1)
    assert opened.identity()["weights"] != before  # trained in memory


def test_sampling_is_repeatable_and_its_seed_counts():
    generator = Transformers(tiny_llama(), tiny_tokenizer(), batch_size=3)

    def sample(seed, temperature=1.5, **more):
        decoding = Decoding(STRETCH + 8, temperature, seed=seed, **more)
        return {i: a.text for i, a in generator.generate(conversations(["moon"] * 7), CHAT, decoding)}

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = sample(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert sample(0) == first != sample(1)
    assert len(set(first.values())) == 7  # also across batches
    assert len(set(sample(0, top_p=1e-6).values())) == 1 == len(set(sample(0, temperature=1e-6).values()))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_what_is_sampled_does_not_depend_on_the_batch(top_p):
    asked, decoding = mixed_prompts(9), Decoding(STRETCH + 8, 1.2, top_p=top_p, seed=3)
    found = [
        {
            i: a.text
            for i, a in Transformers(tiny_llama(), tiny_tokenizer(), batch_size=n).generate(asked, CHAT, decoding)
        }
        for n in (1, 4, 64)
    ]
    assert found[0] == found[1] == found[2] and len(set(found[0].values())) == 9


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(top_p):
    """Against a reference in fp64: tempered softmax, cut to the likeliest tokens that have `top_p` together."""
    torch.manual_seed(0)
    logits, temperature, n = torch.randn(1, 12) * 2, 0.7, 40_000
    reference = (logits[0].double() / temperature).softmax(-1)
    order = reference.argsort(descending=True)
    before = reference[order].cumsum(0) - reference[order]
    reference[order[before >= top_p]] = 0
    reference /= reference.sum()
    numbers = torch.rand(n, 1, generator=torch.Generator().manual_seed(1))
    drawn = _Drawn(Decoding(1, temperature, top_p=top_p), numbers)(
        torch.zeros(n, 1), logits.expand(n, 12).contiguous()
    )
    assert torch.equal(drawn.isfinite().sum(-1), torch.ones(n, dtype=torch.long))
    shares = drawn.argmax(-1).bincount(minlength=12).double() / n
    assert (shares - reference).abs().max() < 5 * 0.5 / n**0.5 and shares[reference == 0].sum() == 0


def test_a_number_at_either_end_draws_a_token_that_can_be():
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]] * 2)
    ends = torch.tensor([[0.0], [1.0]])  # 1 itself: where fp32 has rounded a number up
    drawn = _Drawn(Decoding(1, 1.0), ends)(torch.zeros(2, 1), logits)
    assert drawn.argmax(-1).tolist() == [1, 2]


def test_timings_add_up_and_answers_come_batch_by_batch():
    generator, calls = Transformers(tiny_llama(), tiny_tokenizer(), batch_size=3), []
    generator.model.register_forward_hook(lambda *_: calls.append(1))
    seen = []
    for i, answer in generator.generate(conversations(), CHAT, Decoding(4)):
        seen.append((i, len(calls)))
        assert answer.seconds > 0
    assert sorted(i for i, _ in seen) == list(range(7))
    assert [steps for _, steps in seen][:4] == [seen[0][1]] * 3 + [seen[3][1]] and seen[3][1] > seen[0][1]


def test_no_conversations():
    assert generate(tiny_llama(), tiny_tokenizer(), [], 4) == []


@pytest.mark.slow
def test_the_embedded_model_batched_is_one_prompt_at_a_time(users_cache):
    """fp32: 16 prompts of mixed lengths; a text may differ only where the two best logits were within 1e-4."""
    files = resolve_model("smollm2-135m")
    model, tokenizer = load_model(files, torch.float32), load_tokenizer(files)
    rng = random.Random(0)
    words = ["the", "moon", "river", "paper", "green", "quickly", "seven", "under", "rain", "sings", "why", "name"]
    asked = conversations([" ".join(rng.choices(words, k=rng.randint(1, 70))) for _ in range(16)])
    batched = dict(Transformers(model, tokenizer).generate(asked, CHAT, Decoding(24)))
    single = dict(Transformers(model, tokenizer, batch_size=1).generate(asked, CHAT, Decoding(24)))
    flips = [i for i in batched if batched[i].text != single[i].text]
    for i in flips:
        ids = prompt_tokens(tokenizer, asked[i], CHAT)
        assert greedy_by_hand(model, ids, single[i].new_tokens)[1] < TIE
    assert len(flips) <= 1
    assert len({answer.new_tokens for answer in batched.values()}) > 1  # some end, and are dropped
