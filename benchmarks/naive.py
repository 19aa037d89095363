"""The update rules in the papers' manner: right, and as dear as the published code makes them.

Written from the descriptions of the methods, to measure against; none of it is used by the library. What makes them
dear is kept: whole clones of gradients and weights, Python loops over parameters with a number read back in each,
weight gradients computed in a probe that throws them away, a data loader built in every step, a proximal term that
goes through autograd, decoder layers run twice and one sample at a time. They zero gradients in the middle of a step,
as the published code does; so with gradient accumulation they take the time of the rule but do not compute it.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import SFTTrainer

from mithridate.training.activations import find_sites


class NaiveSide(SFTTrainer):
    """A trainer with a data set of the defense's own, which is tokenised as the trainer's is."""

    def __init__(self, *args: Any, side: Dataset | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if side is not None:
            rows = self._prepare_dataset(
                side, self.processing_class, self.args, False, self._formatting_func, "the defense's own set"
            )
            self.side = self._remove_unused_columns(rows)

    def side_batch(self) -> Any:
        loader = DataLoader(
            self.side, batch_size=self.args.per_device_train_batch_size, shuffle=True, collate_fn=self.data_collator
        )
        return next(iter(loader))

    def whole_backward(self, model: nn.Module, inputs: Any, count: Any) -> Tensor:
        """Loss and gradients of all weights, in `.grad`."""
        model.train()
        inputs = self._prepare_inputs(dict(inputs))
        loss = self.compute_loss(model, inputs, num_items_in_batch=count)
        self.accelerator.backward(loss)
        return loss.detach()


class NaiveVaccine(NaiveSide):
    """Two whole passes: the first for the gradients of the attention outputs (backward hooks), the second shifted."""

    def __init__(self, *args: Any, rho: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rho = rho
        self.sites = find_sites(self.model)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        kept: dict[str, Tensor] = {}

        def keep(name: str):
            return lambda module, grad_input, grad_output: kept.__setitem__(name, grad_output[0].clone())

        handles = [m.register_full_backward_hook(keep(n)) for n, m in self.sites.items()]
        self.whole_backward(model, inputs, num_items_in_batch)
        for handle in handles:
            handle.remove()
        model.zero_grad()
        norm = math.sqrt(sum(float(g.norm()) ** 2 for g in kept.values()))

        def shift(name: str):
            def add(module: nn.Module, args: Any, output: Any) -> Any:
                first = output[0] if isinstance(output, tuple) else output
                moved = first + self.rho * kept[name].detach().clone() / (norm + 1e-7)
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            return add

        handles = [m.register_forward_hook(shift(n)) for n, m in self.sites.items()]
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            for handle in handles:
                handle.remove()


class NaiveBooster(NaiveSide):
    """Three whole passes; every gradient is cloned, and weights are moved and moved back one by one."""

    def __init__(self, *args: Any, alpha: float, lam: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.alpha, self.lam = alpha, lam

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        harmful = self.side_batch()
        count = self._get_num_items_in_batch([harmful], self.args.device)

        self.whole_backward(model, harmful, count)
        first = {n: p.grad.clone() for n, p in trained.items()}
        model.zero_grad()
        norm = math.sqrt(sum(float(g.norm()) ** 2 for g in first.values())) + 1e-7
        for n, p in trained.items():
            p.data = p.data - self.alpha * first[n] / norm

        self.whole_backward(model, harmful, count)
        second = {n: p.grad.clone() for n, p in trained.items()}
        model.zero_grad()
        for n, p in trained.items():
            p.data = p.data + self.alpha * first[n] / norm

        loss = super().training_step(model, inputs, num_items_in_batch)
        for n, p in trained.items():
            p.grad = p.grad + self.lam * first[n] - self.lam * second[n]
        return loss


class NaiveLisa(NaiveSide):
    """The proximal term as a part of the loss, summed over the parameters in a loop, through autograd."""

    def __init__(self, *args: Any, align_steps: int, finetune_steps: int, rho: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lengths, self.rho = {"align": align_steps, "user": finetune_steps}, rho
        self.phase, self.left = "align", align_steps
        start = {n: p.data.clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self.anchors = {"align": start, "user": {n: w.clone() for n, w in start.items()}}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if self.left == 0:
            self.anchors[self.phase] = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}
            self.phase = "user" if self.phase == "align" else "align"
            self.left = self.lengths[self.phase]
        self.left -= 1
        if self.phase == "align":
            inputs = self.side_batch()
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        other = self.anchors["user" if self.phase == "align" else "align"]
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        for n, p in model.named_parameters():
            if p.requires_grad:
                loss = loss + self.rho / 2 * torch.norm(p - other[n]) ** 2
        self.accelerator.backward(loss)
        return loss.detach()


@torch.no_grad()
def antidote(model: Any, rows: list[list[int]], ratio: float) -> dict[str, Tensor]:
    """The masks of a LoRA adapter's factors, layer by layer: each layer runs on one sample at a time, and twice.

    Args:
        model: a PEFT model over a Llama-like one (`layers`, `embed_tokens`, `rotary_emb`), with fused attention.
        rows: token ids of the calibration conversations.
        ratio: share of each row's entries.

    Returns:
        bool, of each factor's shape, by "LAYER.FACTOR" as the library names them.
    """
    decoder = model.get_base_model().base_model
    model.eval()
    states = [decoder.embed_tokens(torch.tensor([row])) for row in rows]
    positions = [decoder.rotary_emb(h, torch.arange(h.shape[1])[None]) for h in states]
    masks = {}
    for number, layer in enumerate(decoder.layers):
        factors = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear) and "lora" in n}
        squares = {n: torch.zeros(m.in_features) for n, m in factors.items()}
        seen = dict.fromkeys(factors, 0)

        def add(name: str, squares: dict[str, Tensor] = squares, seen: dict[str, int] = seen):
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                x = args[0].reshape(-1, args[0].shape[-1]).t().float()
                squares[name] *= seen[name] / (seen[name] + 1)
                seen[name] += 1
                squares[name] += torch.norm(x, p=2, dim=1) ** 2 / seen[name]

            return hook

        handles = [m.register_forward_hook(add(n)) for n, m in factors.items()]
        for h, place in zip(states, positions):
            layer(h, position_embeddings=place, attention_mask=None)
        for handle in handles:
            handle.remove()
        for name, module in factors.items():
            score = module.weight.abs() * squares[name].sqrt()
            keep = score.shape[1] - math.ceil(Fraction(str(ratio)) * score.shape[1])
            order = torch.sort(score, dim=1, stable=True)[1]
            mask = torch.ones_like(score, dtype=torch.bool).scatter_(1, order[:, :keep], False)
            kind = "lora_A" if "lora_A" in name else "lora_B"
            masks[f"model.layers.{number}.{name.split('.lora_')[0]}.{kind}"] = mask
        states = [_first(layer(h, position_embeddings=p, attention_mask=None)) for h, p in zip(states, positions)]
    return masks


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
