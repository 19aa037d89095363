"""The model after a stage: the layers that the stages left over the base model, put together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from mithridate.files import digest
from mithridate.pipeline.stages import ExperimentStages, Stage
from mithridate.store import MANIFEST


def layers_after(chain: ExperimentStages, upto: str, step: int | None = None) -> list[Any]:
    """The layers over the base model after stage `upto`, where `base` is none and `align` holds what hardened the
    aligned model; at attack step `step` of the fine-tune, if given."""
    from mithridate.models.layers import Layer
    from mithridate.pipeline.training import phase_layers

    layers = aligned_layers(chain, chain.start) if upto != "base" else []
    if chain.finetune and upto in ("finetune", "repair"):
        layers = phase_layers(layers, chain.adapter("finetune"), chain.folder(chain.finetune), step)
    if chain.repair and upto == "repair":
        layers = [*layers, Layer("delta", chain.folder(chain.repair) / "model")]
    return layers


def aligned_layers(chain: ExperimentStages, stage: Stage | None) -> list[Any]:
    """The layers of the aligned model: after stage `align`, or after `harden`."""
    from mithridate.models.layers import Layer
    from mithridate.pipeline.training import phase_layers

    layers = []
    if chain.align:
        [layer] = phase_layers([], chain.adapter("align"), chain.folder(chain.align), None)
        layers.append(replace(layer, merge=chain.experiment.topology == "double"))
    if stage and stage is chain.harden:
        layers.append(Layer("delta", chain.folder(stage) / "model"))
    return layers


def input_layers(chain: ExperimentStages, name: str, kind: str) -> list[Any]:
    """The layers of a model that stage `name` works with: of a kind that `Method.models` names, or "repaired", the
    one that a repair changes."""
    from mithridate.pipeline.training import phase_layers

    if kind == "base" or (kind == "start" and chain.starts_at_base(name)):
        return []
    if kind == "repaired" and name == "repair":
        return layers_after(chain, "finetune")
    aligned = aligned_layers(chain, chain.align if name == "harden" else chain.start)
    if kind != "unaligned":
        return aligned
    [stage] = [stage for stage in chain.aside[name] if stage.name == "unaligned"]
    return phase_layers(aligned, chain.adapter("unaligned"), chain.folder(stage), None)


def content_digest(chain: ExperimentStages, upto: str, step: int | None = None) -> str:
    """Of the content of the model after stage `upto`."""
    return digest(content(chain, layers_after(chain, upto, step)))


def weights_digest(chain: ExperimentStages, upto: str) -> str | None:
    """Digest of the weights of the model after stage `upto` (of the base model's files where that is "base"):
    two trainings that end alike have it in common, however PEFT orders the names in its config. None where a
    server answers, whose weights nobody here knows."""
    if "openai" in chain.experiment.evaluate.generator:
        return None
    return (
        chain.context.base.digest
        if upto == "base"
        else digest(content(chain, layers_after(chain, upto), ".safetensors"))
    )


def content(chain: ExperimentStages, layers: list[Any], ending: str = "") -> list[Any]:
    """Digests of the base's files and of those of every layer (that end so), and how they are put together."""
    parts: list[Any] = [chain.context.base.digest, chain.context.dtype]
    for layer in layers:
        root = next(folder for folder in layer.path.parents if (folder / MANIFEST).exists())
        files = json.loads((root / MANIFEST).read_text())["files"]
        inside = f"{layer.path.relative_to(root).as_posix()}/"
        names = [name for name in files if name.startswith(inside) and name.endswith(ending)]
        digests = {name: files[name]["sha256"] for name in names}
        parts.append([layer.kind, layer.merge, digests])
    return parts


def load(chain: ExperimentStages, upto: str, step: int | None = None) -> Any:
    """The model after stage `upto` (at attack step `step`), on the GPU if there is one."""
    return load_layers(chain, layers_after(chain, upto, step))


def load_layers(chain: ExperimentStages, layers: list[Any], dtype: str | None = None) -> Any:
    """A model in the run's dtype, or in `dtype`, on the GPU if there is one."""
    import torch

    from mithridate.models.layers import assemble
    from mithridate.models.memory import to_gpu
    from mithridate.training.quantised import quantiser

    model: Any = assemble(chain.context.base, layers, getattr(torch, dtype) if dtype else chain.context.torch_dtype)
    if quantiser(model) is not None:  # where it was quantised
        return model
    return to_gpu(model, chain.experiment.model)
