"""Finding a module in each of a model's layers, and adding tensors to its outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder

from mithridate.errors import MithridateError, UnsupportedSetup


def find_sites(model: Any, sites: str | list[str] = "attention") -> dict[str, nn.Module]:
    """The modules whose outputs are perturbed, by name, in model order: exactly one in each layer.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        sites: "attention": the self-attention modules, as the model itself declares them (`can_record_outputs`); else
            PEFT's `target_modules` conventions: a list of names or name endings, or one regular expression.

    Raises:
        UnsupportedSetup: the model declares no attention modules, or not exactly one site per layer was found.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    if sites == "attention":
        declared = getattr(base, "can_record_outputs", {}).get("attentions")
        if declared is None:
            raise UnsupportedSetup(
                f"{name} does not declare its attention modules (can_record_outputs['attentions']).",
                _remedy(base),
            )
        recorders = declared if isinstance(declared, list) else [declared]
        found = {n: m for n, m in base.named_modules() if any(_is_declared(n, m, r) for r in recorders)}
    elif isinstance(sites, str):
        found = {n: m for n, m in base.named_modules() if re.fullmatch(sites, n)}
    else:
        found = {n: m for n, m in base.named_modules() if any(n == s or n.endswith("." + s) for s in sites)}

    layers = base.config.get_text_config().num_hidden_layers
    in_layers = _layers_of(found)
    if len(found) != layers or len(in_layers) != layers:
        raise UnsupportedSetup(
            f"exactly one site in each of the {layers} layers of {name} is needed; sites={sites!r} gives {len(found)} "
            f"in {len(in_layers)} layers{_examples(found)}.",
            _remedy(base),
        )
    return found


def layer_of(name: str) -> str | None:
    """The layer that a module lies in: all of its name up to the first number, as "model.layers.3"."""
    found = re.match(r"\D*\d+(?=\.|$)", name)
    return found.group() if found else None


def _layers_of(names: Iterable[str]) -> set[str]:
    """The layers that modules lie in."""
    return {layer for name in names if (layer := layer_of(name))}


def _remedy(base: Any) -> str:
    """Names what `sites` takes for this model: what stands once in every layer, and in no other module's."""
    layers, named = base.config.get_text_config().num_hidden_layers, [n for n, _ in base.named_modules()]
    able = []
    for name in dict.fromkeys(m[1] for n in named if (m := re.fullmatch(r"\D*\d+\.([^.]+)", n))):
        found = [n for n in named if n == name or n.endswith("." + name)]
        if len(found) == len(_layers_of(found)) == layers:
            able.append(name)
    return f"name one module a layer, as sites=['NAME'] with one of: {', '.join(able) or 'none found'}."


def _is_declared(name: str, module: nn.Module, recorder: Any) -> bool:
    """Whether transformers' output capturing would record `module` under `recorder` (a class, a name, a recorder)."""
    if isinstance(recorder, str):
        return name.endswith(recorder)
    if not isinstance(recorder, OutputRecorder):
        return isinstance(module, recorder)
    if recorder.target_class is not None:
        hit = isinstance(module, recorder.target_class)
    else:
        hit = recorder.class_name is not None and name.endswith(recorder.class_name)
    return hit and (recorder.layer_name is None or f".{recorder.layer_name.strip('.')}." in f".{name}.")


def _examples(found: dict[str, nn.Module]) -> str:
    return f" ({', '.join(list(found)[:3])}, ...)" if found else ""


def adapters_off(model: Any) -> Callable[[], bool]:
    """A function that says whether a model's adapters are switched off at the moment (False where it has none)."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapters = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    return lambda: bool(adapters) and all(m.disable_adapters for m in adapters)


class ActivationShifts:
    """Adds a tensor to each site's output (the first entry, where it is a tuple).

    Used as a context manager around forward *and* backward: with activation checkpointing the layers run again in
    backward, and must then be shifted by the very same tensors. Only the training's own passes are shifted: one
    without gradients, in evaluation mode, or of the model without its adapters is another model's, or only looked at.

    torch.compile takes the hooks that a module has when it is traced, and no later ones. So for a compiled model they
    stand from the beginning (`standing`), and are not compiled: a graph ends at each site, and the next one begins.

    Args:
        sites: modules by name.
        foreign: says during a pass whether it is another model's.
        standing: whether the hooks are there at once, until `remove`.

    Attributes:
        selected: the names of those that are asked about and shifted; all at first.
    """

    def __init__(
        self, sites: dict[str, nn.Module], foreign: Callable[[], bool] = lambda: False, standing: bool = False
    ):
        self.sites = sites
        self._foreign = foreign
        self._shifts: dict[str, Tensor] = {}
        self.selected = list(sites)
        self._probing = self._inside = False
        self._handles: list[Any] = []
        self._standing = standing
        if standing:
            torch.compiler.reset()  # what was traced without the hooks
            self._register(torch.compiler.disable)

    def _register(self, made: Callable[[Any], Any]) -> None:
        self._handles = [m.register_forward_hook(made(self._hook(name))) for name, m in self.sites.items()]

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> ActivationShifts:
        self._inside = True
        if not self._standing:
            self._register(lambda hook: hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._inside, self._shifts = False, {}
        if not self._standing:
            self.remove()

    def gradients(self, loss: Any) -> list[Tensor]:
        """d loss() / d (output of each site), in the order of `selected`; each of its output's shape and dtype.

        Args:
            loss: a function that runs the forward pass and returns the scalar loss. Its gradient is taken with
                respect to zeros added to the outputs, so no parameter's gradient is computed or touched.
        """
        self._shifts, self._probing = {}, True
        try:
            value = loss()
            silent = [name for name in self.selected if name not in self._shifts]
            if silent:
                raise MithridateError(f"The forward pass did not run {silent[0]}, so its output cannot be shifted.")
            return list(torch.autograd.grad(value, [self._shifts[name] for name in self.selected]))
        finally:
            self._shifts, self._probing = {}, False

    def shift(self, tensors: list[Tensor]) -> None:
        """From now on, `tensors` (constants, one for each of `selected`) are added to the outputs."""
        self._shifts = dict(zip(self.selected, tensors, strict=True))

    def _hook(self, name: str):
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if not (self._inside and torch.is_grad_enabled() and module.training) or self._foreign():
                return output
            first = output[0] if isinstance(output, tuple) else output
            if self._probing and name not in self._shifts:  # a recomputation finds the leaf of the forward pass
                # zeros that take no memory: autograd asks for the leaf's shape only
                self._shifts[name] = first.detach().new_zeros(()).expand(first.shape).requires_grad_()
            if name not in self._shifts:
                return output
            shifted = first + self._shifts[name]
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        return add
