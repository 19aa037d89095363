"""For repairs that compare the model with an earlier one: what both must be, and which weights differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mithridate.errors import InputError, UnsupportedSetup
from mithridate.repairs.linears import Weight, adapted, check_adapters, other_matrices, weights


def check_before(model: Any, before: Any, who: str, kind: str) -> None:
    """Refuses what cannot be compared.

    Args:
        before: the earlier model; None: it is missing.
        who: the repair, for errors.
        kind: of the earlier model, which is also the argument that it is given as: "aligned" or "base".

    Raises:
        UnsupportedSetup: with the reason and a remedy.
    """
    own = {id(parameter) for parameter in model.parameters()}
    if before is None or any(id(parameter) in own for parameter in before.parameters()):
        raise UnsupportedSetup(
            f"{who}: needs the {kind} model beside the one at hand, as an object of its own.",
            f"pass {kind}=..., that model loaded anew, to apply().",
        )
    for one, of in ((model, ""), (before, f"of the {kind} model: ")):
        refuse_places(one, who)
        try:
            check_adapters(one)
        except UnsupportedSetup as error:
            raise UnsupportedSetup(f"{who}: {of}{error.reason}", error.remedy) from error
        coarse = any(not weight.tensor.is_floating_point() for weight in weights(one).values())
        if coarse or getattr(one, "is_quantized", False):
            raise UnsupportedSetup(
                f"{who}: {of}weights that are quantised cannot be edited.",
                "make plain models of both, model = mithridate.models.quantisation.dequantised(model).",
            )


def refuse_other_matrices(model: Any, who: str) -> None:
    """Refuses a model whose weights may all have been trained, where some matrices are no linear layer's.

    Raises:
        UnsupportedSetup: GPT-2 (Conv1D), or experts that are held in one tensor, without an adapter.
    """
    left_out = [] if adapted(model) else other_matrices(model)
    if left_out:
        raise UnsupportedSetup(
            f"{who}: works on linear layers, and this model has {len(left_out)} weight matrices elsewhere "
            f"({left_out[0]}, for one), which would be left whole.",
            "fine-tune with a LoRA adapter on linear layers (attention, say): that holds all of the change.",
        )


def refuse_places(model: Any, who: str) -> None:
    """Raises UnsupportedSetup where weights lie on a device, or in shards, with which no repair was tested."""
    kinds = {p.device.type for p in model.parameters()} - {"cpu", "cuda"}
    if kinds or any(hasattr(p, "placements") for p in model.parameters()):
        raise UnsupportedSetup(
            f"{who}: weights that are {f'on {kinds.pop()}' if kinds else 'sharded'} are not tested.",
            "load the model on cpu or cuda, whole (device_map may place its layers).",
        )


def changed(model: Any, before: Any, who: str, kind: str = "aligned") -> dict[str, tuple[Weight, Weight]]:
    """The weights that differ from those of the earlier model, by name: as they are now, and as they were. A weight
    that is tied in both is there once, under its first name.

    Raises:
        InputError: the models have not the same weights.
    """
    now, then, seen, found = weights(model), weights(before), set(), {}
    for name in [*now, *(name for name in then if name not in now)]:
        new, old = now.get(name), then.get(name)
        if new is None or old is None or new.tensor.shape != old.tensor.shape:
            layer, _, own = name.rpartition(".")
            raise InputError(
                f"{who}: model and {kind} model have no layer {layer} with a {own} of the same shape. Pass "
                "the model that the fine-tune started from."
            )
        both = (id(new.tensor), id(old.tensor))  # one may be tied and the other not
        if both in seen:
            continue
        seen.add(both)
        if bool(difference(new, old).any()):
            found[name] = (new, old)
    return found


@torch.no_grad()
def difference(new: Weight, old: Weight) -> Tensor:
    """What a weight has changed by, float32 or wider, where the model at hand has it."""
    return new.effective() - old.effective().to(new.tensor.device)
