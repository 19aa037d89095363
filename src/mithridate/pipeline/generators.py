"""What answers for a model of the pipeline: transformers, vLLM, or a server that runs it already."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mithridate.experiment.config import FULL
from mithridate.files import digest
from mithridate.generation.openai import OpenAIServer
from mithridate.generation.vllm import VLLM, Engine
from mithridate.models.quantisation import PRECISIONS
from mithridate.pipeline.assembly import content, content_digest, layers_after, load
from mithridate.pipeline.stages import ExperimentStages

if TYPE_CHECKING:
    from mithridate.generation.base import Generator


def open_generator(chain: ExperimentStages, upto: str, step: int | None = None) -> Generator:
    """What answers as the model of `chain` after stage `upto` (at attack step `step`); the caller closes it."""
    [(name, fields)] = chain.experiment.evaluate.generator.items()
    if name == "openai":
        return OpenAIServer(**fields)
    if name == "vllm":
        return _vllm(chain, layers_after(chain, upto, step), fields.get("options", {}))
    from mithridate.generation.hf import Transformers

    known = content_digest(chain, upto, step)
    if chain.precision == FULL:
        return Transformers(load(chain, upto, step), chain.tokenizer, known, **fields)
    fields_of = PRECISIONS[chain.precision]
    made = _quantised(chain, layers_after(chain, upto, step), fields_of)
    return Transformers(made, chain.tokenizer, digest([known, fields_of]), **fields)


def _quantised(chain: ExperimentStages, layers: list[Any], quantization: dict[str, Any]) -> Any:
    """The model of these layers, merged and written as an export is, and quantised as it is loaded."""
    from mithridate.models import load_model
    from mithridate.pipeline.export import export

    context = chain.context
    work = context.store.root / "work"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quantised-", dir=work) as folder:
        weights = export(context.base, layers, context.torch_dtype, chain.tokenizer, Path(folder) / "model")
        files = replace(context.base, path=weights, quantization=quantization)
        return load_model(files, context.torch_dtype).eval()


def _vllm(chain: ExperimentStages, layers: list[Any], options: dict[str, Any]) -> Generator:
    """The context's engine serves as long as the models asked for are adapters over the same weights, so that a sweep
    of adapters is answered by one engine; weights into which something was merged are exported for it."""
    from mithridate.pipeline.export import export

    on_top = layers[-1] if layers and layers[-1].kind == "adapter" and not layers[-1].merge else None
    # Of adapters that are not merged, a later one takes the place of an earlier one.
    below = [layer for layer in layers[:-1] if layer.kind != "adapter" or layer.merge] if on_top else layers
    rank = chain.largest_rank()
    context, key = chain.context, digest([content(chain, below), options, rank])
    kept = context.engine
    if kept.key != key:
        kept.close()
        weights, exported = context.base.path, None
        if below:
            weights = exported = context.store.root / "work" / f"vllm-{key[:12]}"
            shutil.rmtree(exported, ignore_errors=True)  # left by a kill
            export(context.base, below, context.torch_dtype, context.tokenizer, exported)
        try:
            kept.engine = Engine(str(weights), dtype=context.dtype, max_lora_rank=rank, **options)
            kept.key = key
        finally:
            if exported:  # the engine has read it
                shutil.rmtree(exported)
    assert kept.engine is not None
    return VLLM(kept.engine, adapter=on_top.path if on_top else None)
