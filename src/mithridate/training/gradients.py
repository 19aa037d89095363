"""Numerics over lists of tensors: norms, exact perturbation, gradients taken from `.grad`, repeated random draws.

A tensor may be sharded over processes (a DTensor, as FSDP2 makes of parameters). What is done entry by entry is done
on this process's shard, in place; what is a sum over entries is summed over the processes that hold the shards. So the
functions that return a norm or a cosine are to be called by all processes.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def sharded(t: Any) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; there are none where nothing has imported these, which takes most of a second."""
    return isinstance(t, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


@torch.no_grad()
def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What of each tensor lies on this process: its shard, or the tensor itself. Shares memory with it."""
    return [t.to_local() if sharded(t) else t.detach() for t in tensors]


def gathered(tensor: Tensor) -> Tensor:
    """The tensor itself; a sharded one gathered, which all processes have to ask for."""
    return tensor.full_tensor() if sharded(tensor) else tensor


_BLOCK_BYTES = {"cpu": 4 << 20}  # what stays in a CPU's cache between two operations
_LARGE_BLOCK_BYTES = 256 << 20  # elsewhere: few launches, and temporaries that are small beside the weights


def blocks(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Slices that cover a list of tensors, of a few megabytes each on a CPU (one tensor at least).

    Several operations on a block before the next one begins find its entries in the cache, and their temporaries are
    of a block's size instead of a copy of all tensors.
    """
    start = size = 0
    for i, t in enumerate(tensors):
        limit, bytes_ = _BLOCK_BYTES.get(t.device.type, _LARGE_BLOCK_BYTES), t.numel() * t.element_size()
        if i > start and size + bytes_ > limit:
            yield slice(start, i)
            start, size = i, 0
        size += bytes_
    if start < len(tensors):
        yield slice(start, len(tensors))


def global_norm(tensors: Sequence[Tensor | None]) -> Tensor:
    """The 2-norm of all tensors taken as one vector: a 0-dim tensor, float32 or wider, on the first one's device.

    None entries (parameters without a gradient) count as zero.
    """
    by_mesh: dict[Any, list[Tensor]] = defaultdict(list)  # sharded and whole tensors cannot share one call
    for t in tensors:
        if t is not None:
            by_mesh[t.device_mesh if sharded(t) else None].append(t.detach())
    if not by_mesh:
        return torch.zeros(())
    norms: list[Tensor] = []
    for group in by_mesh.values():
        dtype = torch.promote_types(group[0].dtype, torch.float32)  # squares of fp16 numbers overflow in fp16
        each = torch._foreach_norm(group, 2, dtype=dtype)
        norm = torch.linalg.vector_norm(torch.stack([n.to(each[0].device) for n in each]))
        norms.append(gathered(norm))
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


def _over_shards(part: Tensor, of: Tensor) -> Tensor:
    """The sum over the processes that a tensor is sharded over of what each has from its own shard; of a whole tensor
    the same."""
    if not sharded(of):
        return part
    from torch.distributed.tensor import DTensor, Partial, Replicate

    kinds = [Partial() if place.is_shard() else Replicate() for place in of.placements]
    return DTensor.from_local(part, of.device_mesh, kinds, run_check=False).full_tensor()


def dot(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> Tensor:
    """The inner product of two lists of tensors, each taken as one vector: 0-dim, float64, on the first one's device.

    None entries count as zero. Of sharded tensors, both lists must be sharded alike.
    """
    pairs = [(a.detach(), b.detach()) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    sums: list[Tensor] = []
    for a, b in pairs:
        part = (local([a])[0].double() * local([b])[0].double()).sum()
        sums.append(_over_shards(part, a))
    return torch.stack([s.to(sums[0].device) for s in sums]).sum() if sums else torch.zeros((), dtype=torch.float64)


def take_grads(params: Sequence[Tensor], scale: float = 1.0) -> list[Tensor | None]:
    """Removes every `.grad` and returns the gradients divided by `scale` (None where there was none)."""
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    present = local([g for g in grads if g is not None])
    if scale != 1.0 and present:
        torch._foreach_div_(present, scale)
    return grads


@contextlib.contextmanager
def perturbed(params: Sequence[Tensor], direction: Sequence[Tensor | None], step: float) -> Iterator[list[Tensor]]:
    """Inside, each parameter is p + step * d; on leaving, each is what it was, bit for bit.

    Restored by copy, because adding the step back does not undo its rounding. Yields the unperturbed values (shards).
    """
    moved = [(p, d) for p, d in zip(params, direction, strict=True) if d is not None]
    tensors, directions = local([p for p, _ in moved]), local([d for _, d in moved])
    before: list[Tensor] = []
    try:
        with torch.no_grad():
            for part in blocks(tensors):
                before += [p.clone() for p in tensors[part]]
                torch._foreach_add_(tensors[part], directions[part], alpha=step)
        yield before
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors[: len(before)], before)


@contextlib.contextmanager
def restored(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Inside, parameters may be edited at will; on leaving, each is what it was, bit for bit. Yields those values
    (shards), of which it keeps one copy."""
    tensors = local(params)
    before = [t.clone() for t in tensors]
    try:
        yield before
    finally:
        with torch.no_grad():
            torch._foreach_copy_(tensors, before)


@torch.no_grad()
def effective_step(
    before: Sequence[Tensor], after: Sequence[Tensor], direction: Sequence[Tensor], dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """What is left of a step once weights are rounded to `dtype`: its cosine to a direction, and its length.

    Autocast rounds weights so before products; None is no rounding. Every weight counts, also the few (norms) that
    autocast leaves in float32.

    Args:
        before: the weights before the step; of sharded ones, this process's shards.
        after, direction: the weights after it, and the direction that was meant, of any length; both may be sharded.

    Returns:
        Two 0-dim float64 tensors.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=before[0].device)
    for old, new, d in zip(before, local(after), local(direction), strict=True):
        step = new - old if dtype is None else new.to(dtype).to(new.dtype) - old.to(dtype).to(old.dtype)
        sums += torch.stack([(step * d).sum(), step.square().sum(), d.square().sum()])
    dot, length, wanted = _over_shards(sums, after[0])
    return dot / (length * wanted).sqrt().clamp(min=1e-300), length.sqrt()


@contextlib.contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """Random draws inside leave no trace outside: whatever runs next draws the same numbers (dropout masks) again."""
    devices = [] if device.type == "cpu" else [torch.get_device_module(device.type).current_device()]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield
