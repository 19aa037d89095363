"""The tensors of another model, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Source = Mapping[str, Tensor] | nn.Module | Callable[[], Any]


class Weights(Mapping[str, Tensor]):
    """A model's tensors by name, each on the CPU when it is read.

    Args:
        source: a mapping, a model, or a function without arguments that returns one; called once, at the first read.
    """

    def __init__(self, source: Source):
        self._source = source
        self._tensors: Mapping[str, Tensor] | None = None

    def _opened(self) -> Mapping[str, Tensor]:
        if self._tensors is None:
            found: Any = self._source
            if callable(found) and not isinstance(found, nn.Module):
                found = found()
            self._tensors = found.state_dict() if isinstance(found, nn.Module) else found
        assert self._tensors is not None
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._opened()[name].detach().cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened())

    def __len__(self) -> int:
        return len(self._opened())
