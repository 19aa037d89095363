"""Finding a model's attention modules, and adding tensors to their outputs."""

from __future__ import annotations

import re
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
        UnsupportedSetup: the model declares no attention modules, or not exactly one site a layer was found.
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
    # Two sites of one layer share everything up to the layer's number: "model.layers.3".
    in_layers = {m.group() for n in found if (m := re.match(r"\D*\d+(?=\.|$)", n))}
    if len(found) != layers or len(in_layers) != layers:
        raise UnsupportedSetup(
            f"Vaccine needs exactly one site in each of the {layers} layers of {name}; sites={sites!r} gives "
            f"{len(found)} in {len(in_layers)} layers{_examples(found)}.",
            _remedy(base),
        )
    return found


def _remedy(base: nn.Module) -> str:
    """Names what stands once in every layer of this model."""
    layers: dict[str, set[str]] = {}
    for name, _ in base.named_modules():
        if m := re.fullmatch(r"\D*\d+\.([^.]+)", name):
            layers.setdefault(m.group(1), set()).add(name)
    most = max(map(len, layers.values()), default=0)
    names = ", ".join(name for name, places in layers.items() if len(places) == most)
    return f"name one module a layer, as Vaccine(sites=['NAME']) with one of: {names or 'none found'}."


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


class ActivationShifts:
    """Adds a tensor to each site's output (the first entry, where it is a tuple).

    Used as a context manager around forward *and* backward: with activation checkpointing the layers run again in
    backward, and must then be shifted by the very same tensors.
    """

    def __init__(self, sites: dict[str, nn.Module]):
        self._sites = sites
        self._shifts: dict[str, Tensor] = {}
        self._probing = False
        self._handles: list[Any] = []

    def __enter__(self) -> ActivationShifts:
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._sites.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def gradients(self, loss: Any) -> list[Tensor]:
        """d loss() / d (output of each site), in the order of the sites; each of its output's shape and dtype.

        Args:
            loss: a function that runs the forward pass and returns the scalar loss. Its gradient is taken with
                respect to zeros added to the outputs, so no parameter's gradient is computed or touched.
        """
        self._shifts, self._probing = {}, True
        try:
            value = loss()
            silent = [name for name in self._sites if name not in self._shifts]
            if silent:
                raise MithridateError(f"The forward pass did not run {silent[0]}: Vaccine cannot perturb it.")
            return list(torch.autograd.grad(value, [self._shifts[name] for name in self._sites]))
        finally:
            self._shifts, self._probing = {}, False

    def shift(self, tensors: list[Tensor]) -> None:
        """From now on, `tensors` (constants, one a site) are added to the outputs."""
        self._shifts = dict(zip(self._sites, tensors, strict=True))

    def _hook(self, name: str):
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            if self._probing and name not in self._shifts:  # a recomputation finds the leaf of the forward pass
                # zeros that take no memory: autograd asks for the leaf's shape only
                self._shifts[name] = first.detach().new_zeros(()).expand(first.shape).requires_grad_()
            if name not in self._shifts:
                return output
            shifted = first + self._shifts[name]
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        return add
