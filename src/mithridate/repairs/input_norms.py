"""What a model's linear layers see on conversations: norms and products of their inputs, in one batched pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.progress import Progress
from mithridate.repairs.linears import plain
from mithridate.repairs.rows import as_rows, token_ids
from mithridate.training.quantised import as_stored

__all__ = ["as_rows", "input_norms", "input_products", "token_ids"]


def require_positions(model: Any, rows: list[list[int]]) -> None:
    """Checks that no row is longer than a table of positions; rotary ones go on for ever.

    Raises:
        InputError: naming the row.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings()]
    if most is None or not any(0 <= table.num_embeddings - most <= 2 for table in tables):  # OPT's has two more
        return
    for number, row in enumerate(rows, start=1):
        if len(row) > most:
            raise InputError(
                f"calibration row {number}: has {len(row)} tokens, and the model has learned {most} positions. "
                "Shorten it, or leave it out."
            )


def input_norms(
    model: Any, modules: Mapping[str, nn.Module], rows: list[list[int]], batch_size: int
) -> dict[str, Tensor]:
    """sqrt(mean over rows of ||x_j||_2^2 over the row's tokens) for each input feature j of each module: [in], fp64,
    on the CPU. See `_summed`."""
    sums = _summed(model, modules, rows, batch_size, lambda tokens: tokens.double().square_().sum(dim=0))
    return {name: (total / len(rows)).sqrt().cpu() for name, total in sums.items()}


def input_products(
    model: Any, modules: Mapping[str, nn.Module], rows: list[list[int]], batch_size: int
) -> dict[str, Tensor]:
    """Mean over rows of X^T X for each module, X [tokens, in] a row's inputs: [in, in], fp32 (fp64 where the model
    computes in it), where the module is. See `_summed`."""

    def product(tokens: Tensor) -> Tensor:
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return wide.T @ wide

    return {n: total / len(rows) for n, total in _summed(model, modules, rows, batch_size, product).items()}


@torch.inference_mode()
def _summed(
    model: Any,
    modules: Mapping[str, nn.Module],
    rows: list[list[int]],
    batch_size: int,
    of: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The sum over batches of `of(tokens)`, a sum over tokens [tokens, in], for each module.

    Pad tokens are left out, dropout is off, so that the batch size has no influence. The LM head is run only
    where one of the modules lies in it.

    Args:
        model: a causal language model, plain or PEFT; its modules' training modes are put back.
        modules: modules of the decoder whose first argument is [rows, tokens, features]; or of its LM
            head.
        rows: token ids, one list a row.

    Raises:
        InputError: a row is longer than the model's learned positions.
        UnsupportedSetup: a module is not run, or sees something else than one vector a token.
        MithridateError: a module's inputs are not finite.
    """
    as_stored(model)
    sums: dict[str, Tensor] = {}
    keep = places = torch.empty(0)  # of the batch at hand: which places hold tokens, [rows, width]; their numbers
    latest: dict[int, tuple[Tensor, Tensor]] = {}  # the last input of so many features, and `of` it

    def hook(name: str):
        def add(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = seen = args[0]
            known = latest.get(x.shape[-1])
            if known is not None and known[0] is x:  # q, k and v of a layer see the same one; so do gate and up
                sums[name] = sums.get(name, 0) + known[1]
                return
            if x.dim() == 2 and len(x) == keep.numel():  # OPT's feed-forward layers see the tokens of all rows in one
                x = x.view(*keep.shape, -1)
            if x.shape[:-1] != keep.shape:
                raise UnsupportedSetup(
                    f"{name} sees inputs of shape {tuple(x.shape)}, not one vector for each token of "
                    f"{tuple(keep.shape)} (a mixture of experts, for one).",
                    "prune an adapter on attention layers instead (targets='adapters').",
                )
            tokens = x.flatten(0, 1).index_select(0, places.to(x.device))
            summed = of(tokens)
            latest[x.shape[-1]] = (seen, summed)
            sums[name] = sums.get(name, 0) + summed

        return add

    decoder: Any = plain(model).base_model
    head = model.get_output_embeddings()
    heads = set() if head is None else {id(module) for module in head.modules()}  # under PEFT, with what wraps it
    device = model.get_input_embeddings().weight.device
    require_positions(model, rows)
    ordered = sorted(rows, key=len, reverse=True)  # the longest first: if memory does not suffice, it shows at once
    training = [(module, module.training) for module in model.modules()]
    counted = Progress(len(ordered), "calibrating", "rows")
    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        model.eval()
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            lengths = torch.tensor([len(row) for row in batch], device=device)
            # Right padding under causal attention: what stands in the pad places reaches no other token. So no mask is
            # needed, and with one a pad beyond a sliding window would attend to nothing, and its NaN reach the others.
            ids = torch.tensor([row + [0] * (len(batch[0]) - len(row)) for row in batch], device=device)
            keep = torch.arange(len(batch[0]), device=device) < lengths[:, None]
            places = keep.flatten().nonzero().flatten()
            latest.clear()
            output = decoder(input_ids=ids, use_cache=False)
            if head is not None and any(id(module) in heads for module in modules.values()):
                head(output[0])
            for name in modules:
                if name not in sums:  # in the first batch, then
                    raise UnsupportedSetup(
                        f"{name} takes no part in the model's forward pass over text, so it has no inputs "
                        "to be scored by.",
                        "leave it out of the adapter's target_modules.",
                    )
            counted.advance(len(batch))
    finally:
        counted.close()
        for handle in hooks:
            handle.remove()
        for module, mode in training:
            module.training = mode
    for name in modules:
        if not bool(torch.isfinite(sums[name]).all()):
            raise MithridateError(f"{name}: its inputs on the calibration set are not finite; the model is broken.")
    return sums
