"""What answers for a model of the pipeline: transformers, vLLM, or a server that runs it already."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from mithridate.files import digest

if TYPE_CHECKING:
    from mithridate.generation.base import Generator
    from mithridate.pipeline.stages import Chain


class Generators:
    """Opens generators for the models of a run.

    vLLM's engine is kept for as long as the models asked for are adapters over the same weights, so that a sweep of
    adapters is answered by one engine; weights into which something was merged are exported for it.
    """

    def __init__(self) -> None:
        self._engine: tuple[str, Any] | None = None

    def open(self, chain: Chain, upto: str, step: int | None = None) -> Generator:
        """What answers as the model of `chain` after stage `upto` (at attack step `step`); the caller closes it."""
        [(name, fields)] = chain.experiment.evaluate.generator.items()
        if name == "openai":
            from mithridate.generation.openai import OpenAIServer

            return OpenAIServer(**fields)
        if name == "vllm":
            return self._vllm(chain, chain.layers(upto, step), fields.get("options", {}))
        from mithridate.generation.hf import Transformers

        return Transformers(chain.load(upto, step), chain.tokenizer, chain.digest(upto, step), **fields)

    def close(self) -> None:
        """Stops the engine."""
        if self._engine is not None:
            self._engine[1].close()
        self._engine = None

    def _vllm(self, chain: Chain, layers: list[Any], options: dict[str, Any]) -> Generator:
        from mithridate.generation.vllm import VLLM, Engine
        from mithridate.pipeline.export import export

        on_top = layers[-1] if layers and layers[-1].kind == "adapter" and not layers[-1].merge else None
        # Of adapters that are not merged, a later one takes the place of an earlier one.
        below = [layer for layer in layers[:-1] if layer.kind != "adapter" or layer.merge] if on_top else layers
        rank = chain.largest_rank()
        shop, key = chain.shop, digest([chain.content(below), options, rank])
        if self._engine is None or self._engine[0] != key:
            self.close()
            weights, exported = shop.base.path, None
            if below:
                weights = exported = shop.store.root / "work" / f"vllm-{key[:12]}"
                shutil.rmtree(exported, ignore_errors=True)  # left by a kill
                export(shop.base, below, shop.torch_dtype, shop.tokenizer, exported)
            try:
                engine = Engine(str(weights), dtype=shop.dtype, max_lora_rank=rank, **options)
            finally:
                if exported:  # the engine has read it
                    shutil.rmtree(exported)
            self._engine = key, engine
        return VLLM(self._engine[1], adapter=on_top.path if on_top else None)
