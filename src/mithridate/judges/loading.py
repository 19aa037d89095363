"""Judges' models from folders or the Hub, checked as `mithridate.models` checks: safetensors only, no code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mithridate.errors import InputError, first_line
from mithridate.models import ModelFiles, resolve_model
from mithridate.models.embedded import EMBEDDED


def load_classifier(files: ModelFiles, dtype: str) -> Any:
    """The sequence classifier in evaluation mode, on the GPU where there is one, every weight from the files.

    Raises:
        InputError: the architecture has no sequence classifier, or the weights do not fit it or lack its head.
        MithridateError: the GPU's memory does not hold it.
    """
    from transformers import AutoModelForSequenceClassification

    from mithridate.models.memory import to_gpu

    options: Any = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    options |= {"dtype": dtype, "output_loading_info": True}
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(files.path, **options)
    except Exception as error:  # a config or weights that do not fit raise ValueError, RuntimeError, KeyError, ...
        raise InputError(f"{files.path}: cannot be loaded as a classifier ({first_line(error)}).") from error
    model, info = cast("tuple[Any, Any]", loaded)
    # transformers fills weights that a checkpoint lacks, say the head of a language model, with random numbers.
    if missing := sorted(info["missing_keys"]):
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{files.path}: {len(missing)} weights are missing ({some}), so it is no whole sequence classifier. Give "
            "one that was saved with its head."
        )
    return to_gpu(model, f"judge {files.name}").eval()


def load_tokenizer(name: str) -> Any:
    """A tokenizer as it is saved, with or without a chat template: of a model's folder, or of a Hub id.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if name in EMBEDDED:
        folder = resolve_model(name).path
    place = str(folder) if folder.is_dir() else name
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=folder.is_dir(), trust_remote_code=False)
    except Exception as error:  # malformed files raise whatever their parser raises
        raise InputError(
            f"{name}: its tokenizer cannot be read ({first_line(error)}). Give a folder with "
            "tokenizer.json, or the Hub id of a model that you have access to."
        ) from error
