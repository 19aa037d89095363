"""The update rules as the papers write them: plain autograd in float64, without a Trainer, hooks or accumulation.

Every function takes a model, and batches as dicts of `input_ids`, `attention_mask` and `labels` (int64, [B, T]), and
returns the direction that is subtracted from the weights: one float64 tensor per trainable parameter.
"""

import copy

import torch
import torch.nn.functional as F


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def tokens(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


def loss(model, batch):
    """Mean cross-entropy over the tokens that are trained on; with experts, plus their load-balancing loss."""
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    labels = batch["labels"][:, 1:].flatten()
    value = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels, ignore_index=-100)
    if getattr(outputs, "aux_loss", None) is not None:
        value = value + model.config.router_aux_loss_coef * outputs.aux_loss
    return value


def gradient(model, batch):
    return list(torch.autograd.grad(loss(model, batch), trainable(model)))


def norm(tensors):
    return torch.sqrt(sum((t.double() ** 2).sum() for t in tensors))


def booster(model, batch, harmful, alpha, lam):
    """grad f(w) + lam * (grad h(w) - grad h(w - alpha * grad h(w) / |grad h(w)|))"""
    f = gradient(model, batch)
    return [a + b for a, b in zip(f, booster_regulariser(model, harmful, alpha, lam), strict=True)]


def booster_regulariser(model, harmful, alpha, lam):
    h = gradient(model, harmful)
    attacked = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(trainable(attacked), h, strict=True):
            p.sub_(alpha * g / norm(h))
    return [lam * (a - b) for a, b in zip(h, gradient(attacked, harmful), strict=True)]


def attention(model):
    """The attention modules, by what they are called."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [m for n, m in base.named_modules() if n.rpartition(".")[2] in ("self_attn", "attention", "attn")]


def vaccine_shifts(model, batch, rho):
    """eps_l = rho * g_l / |(g_1, ..., g_L)|, g_l the gradient of the loss by the output of layer l's attention."""
    model = copy.deepcopy(model)
    outputs = []
    for module in attention(model):
        original = module.forward

        def recording(*args, _original=original, **kwargs):
            result = _original(*args, **kwargs)
            outputs.append(result[0])
            return result

        module.forward = recording
    g = torch.autograd.grad(loss(model, batch), outputs)
    return [rho * x / norm(g) for x in g]


def shifted_gradient(model, batch, shifts):
    model = copy.deepcopy(model)
    for module, shift in zip(attention(model), shifts, strict=True):
        original = module.forward

        def adding(*args, _original=original, _shift=shift, **kwargs):
            first, *rest = _original(*args, **kwargs)
            return first + _shift, *rest

        module.forward = adding
    return gradient(model, batch)


def vaccine(model, micro_batches, rho):
    """The mean over all tokens of the step; each micro-batch is shifted by its own worst direction of length rho."""
    total = sum(tokens(b) for b in micro_batches)
    parts = [shifted_gradient(model, b, vaccine_shifts(model, b, rho)) for b in micro_batches]
    return [
        sum(tokens(b) / total * g for b, g in zip(micro_batches, gs, strict=True)) for gs in zip(*parts, strict=True)
    ]


def lisa(model, alignment, user, *, steps, align_steps, finetune_steps, rho, proximal_start, lr):
    """`steps` steps of gradient descent by the two-state rule, in place; returns the anchors used, one list a step."""
    initial = [p.detach().clone() for p in trainable(model)]
    last = {"alignment": initial, "user": initial}  # each state's last iterate
    state, left, used = "alignment", align_steps, []
    for step in range(steps):
        anchor = last["user" if state == "alignment" else "alignment"]
        used.append(anchor)
        g = gradient(model, alignment if state == "alignment" else user)
        with torch.no_grad():
            for p, d, a in zip(trainable(model), g, anchor, strict=True):
                term = rho * (p - a) if step >= proximal_start * steps else 0.0
                p.sub_(lr * (d + term))
        left -= 1
        if left == 0:
            last[state] = [p.detach().clone() for p in trainable(model)]
            state = "user" if state == "alignment" else "alignment"
            left = align_steps if state == "alignment" else finetune_steps
    return used
