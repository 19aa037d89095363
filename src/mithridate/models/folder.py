"""A model's folder: which files in it make the model, whether they are whole, and their digest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mithridate.errors import InputError, first_line
from mithridate.files import file_digest, json_digest, replace_file
from mithridate.models.quantisation import require_bitsandbytes

logger = logging.getLogger(__name__)

# Files beside the weights that decide what a model says.
SIDE_FILES = (
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
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def cache_folder() -> Path:
    """`MITHRIDATE_CACHE`, or `mithridate` in the user's cache folder."""
    if given := os.environ.get("MITHRIDATE_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mithridate"


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
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError(f"{folder / INDEX}: lists no shards (weight_map). Fetch or save the model again.")
        names = sorted(set(shards.values()))
        for name in names:
            if not (folder / name).exists():
                raise InputError(
                    f"{folder / name}: this shard of the weights is missing ({INDEX} lists {len(names)}). "
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
    raise InputError(f"{folder}: no weights (model.safetensors, or {INDEX} with shards). Fetch or save them again.")


def digest_of(folder: Path, weights: list[Path]) -> str:
    """SHA-256 over the names and contents of the files that make a model.

    The digests of single files are kept in the cache under their sizes and times, so that gigabytes are read once.
    """
    files = sorted({*weights, *(path for name in (*SIDE_FILES, INDEX) if (path := folder / name).exists())})
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
