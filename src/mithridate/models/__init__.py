"""Where a model comes from: the Hub, a folder, or the embedded one; checked before anything is computed.

Only safetensors weights are read (a pickle can run code when it is loaded), and no code that comes with a model is
run. Nothing here imports torch until a model is loaded.
"""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mithridate.errors import InputError, MithridateError, first_line, nearest
from mithridate.models.embedded import EMBEDDED, conversion, embedded_folder
from mithridate.models.folder import INDEX, SIDE_FILES, check_folder, digest_of, stored_quantisation

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
        path = embedded_folder(name)
    elif Path(name).expanduser().is_dir():
        path = Path(name).expanduser().absolute()
    elif Path(name).expanduser().exists():
        raise InputError(f"model {name!r}: is a file. Give the folder that holds it, config and tokenizer included.")
    else:
        path = _from_hub(name, remote_code=remote_code)
    return _files(name, path, remote_code)


def _files(name: str, path: Path, remote_code: bool) -> ModelFiles:
    code = sorted(path.glob("*.py")) if remote_code else []
    return ModelFiles(name, path, digest_of(path, [*check_folder(path), *code]), bool(code))


def local_model(name: str, remote_code: bool = False) -> ModelFiles | None:
    """As `resolve_model`, but of what is on this machine alone: nothing is fetched or converted. None: not here yet.

    Raises:
        InputError: no such model, or its files are incomplete, damaged or of a kind that is not read.
    """
    if name in EMBEDDED:
        return resolve_model(name) if conversion(name).is_dir() else None
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


def held_quantisation(files: ModelFiles) -> dict[str, Any]:
    """How a model's weights are quantised in memory: as they are loaded, or as they are stored; empty: not at all."""
    here = not files.quantization and (files.path / "config.json").is_file()
    return stored_quantisation(files.path) if here else files.quantization


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
                allow_patterns=["*.safetensors", INDEX, "README.md", *SIDE_FILES, *(["*.py"] * remote_code)],
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
