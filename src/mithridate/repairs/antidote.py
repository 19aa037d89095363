"""Antidote: find the weights that matter most for harmful output in a fine-tuned model, and remove them.

Tiansheng Huang, Gautam Bhattacharya, Pratik Joshi, Joshua Kimball, Ling Liu: "Antidote: Post-fine-tuning Safety
Alignment for Large Language Models against Harmful Fine-tuning", ICML 2025, https://arxiv.org/abs/2408.09600.

For a linear layer with weight W [out, in] and inputs X_i [tokens, in] on harmful sample i of N (prompt and answer):

    s_j  = sqrt( mean over i of ||X_ij||_2^2 )        j: input feature; the norm runs over the sample's tokens
    h_kj = |W_kj| * s_j
    m    = the ceil(ratio * n) entries with the highest h in each row of n
    W    <- (1 - m) * W

The reference prunes both factors of the fine-tuning LoRA adapter (`targets="adapters"`): A by the inputs of the layer,
B by what A makes of them. All scores are those of the unpruned model.

Differs from the official code in:
- one ordinary batched pass over the model, instead of each layer twice at batch size 1: nothing is pruned until all
  scores are known, so the result is the same. Pad tokens are skipped; there they would count.
- exactly ceil(ratio * n) entries of a row, ties to the lower column; there int(n * (1 - ratio)) entries stay.
- what is removed is remembered, so that it can be undone bit for bit.

The paper differs from its code, which is followed here: it averages norms (the code: squares, then takes the root),
and takes the top share of all weights at once (the code: of each row; `scope="global"` is the paper's wording).

Variants, which are other methods and have their own names: `targets="update"` takes entries of the fine-tune's change
W - W_aligned back (scored by |W - W_aligned| * s), in every weight that changed: in embeddings, norms and biases,
which have no input features, by |W - W_aligned| alone. `targets="merged"` zeroes entries of linear layers' weights.
`score="magnitude"` leaves s out; `score="random"` is the control. With `ratio` 0 nothing changes, bit for bit.

Cost: one forward pass over the calibration set, without the LM head; no gradients. Memory: the model, one batch's
activations, 8 bytes an input feature; scores of one weight at a time (`scope="global"`: of all, 8 bytes an entry).

Set-ups: one device or `device_map`. "adapters": plain LoRA over linear layers of any base, where the factors hold all
that the fine-tune changed. "update": LoRA, whole modules and biases trained beside it, or all weights; "merged": LoRA,
or all weights; for both not quantised (`mithridate.models.quantisation` makes a plain model). Refused, before the
calibration pass: soft prompts, DoRA and other variants and kinds of adapters, adapters over embeddings or tied
weights; for "adapters" initialisations that take from the base weights (PiSSA and the like); plain models with weight
matrices outside linear layers (fused experts, convolutions).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mithridate.attacks.scheduled import ELSEWHERE, Scheduled
from mithridate.errors import InputError, MithridateError, UnsupportedSetup, nearest
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, Method
from mithridate.methods.repair import Repair
from mithridate.repairs.before import changed, difference, refuse_other_matrices, refuse_places
from mithridate.repairs.delta import Delta
from mithridate.repairs.input_norms import as_rows, input_norms, require_positions, token_ids
from mithridate.repairs.linears import (
    adapted,
    beside_factors,
    check_adapters,
    factors,
    layers,
    weights,
)
from mithridate.repairs.masks import highest

Targets = Literal["adapters", "update", "merged"]
Scope = Literal["row", "tensor", "global"]
Score = Literal["wanda", "magnitude", "random"]

RepairReport = Delta  # what `apply` returned before every repair returned a Delta; the name stays importable


# LoRA's initialisations that leave the weights beneath as they were. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# put a part of them into the factors.
_LEAVES_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class _Scored:
    """A tensor to prune.

    Attributes:
        module: whose inputs weigh its entries; None where it has no input features (embeddings, norms, biases).
        tensor: what is scored; fp32 or wider.
        new: what its entries become, of its shape; None: zero.
    """

    module: nn.Module | None
    tensor: Callable[[], Tensor]
    new: Callable[[], Tensor] | None = None


@dataclass(kw_only=True)
class Antidote(Repair):
    """Removes the weights that matter most for harmful output (see the module's text).

    Args:
        ratio: share of the entries to remove, in [0, 1].
        targets: "adapters" (the reference), "update" or "merged".
        scope: the entries compete within their "row" (the reference), their "tensor", or all together ("global").
        score: "wanda" (the reference), "magnitude", or "random", the control.
        seed: of the random control.
    """

    paper: ClassVar[str] = (
        "Antidote (Huang, Bhattacharya, Joshi, Kimball, Liu; ICML 2025), https://arxiv.org/abs/2408.09600"
    )
    citation: ClassVar[str] = """@inproceedings{antidote,
  title     = {Antidote: Post-fine-tuning Safety Alignment for Large Language Models against Harmful Fine-tuning},
  author    = {Huang, Tiansheng and Bhattacharya, Gautam and Joshi, Pratik and Kimball, Joshua and Liu, Ling},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  url       = {https://arxiv.org/abs/2408.09600}
}"""
    provenance: ClassVar[str] = "exact"
    roles: ClassVar[dict[str, str]] = {"calibration": "calibration_harmful"}
    models: ClassVar[dict[str, str]] = {"aligned": "aligned"}
    strength: ClassVar[str | None] = "ratio"
    colour: ClassVar[str] = "#CC79A7"
    off: ClassVar[dict[str, Any] | None] = {"ratio": 0.0}

    ratio: float = 0.2
    targets: Targets = "adapters"
    scope: Scope = "row"
    score: Score = "wanda"
    seed: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if not number or not 0 <= self.ratio <= 1:
            raise InputError(
                f"{self._who}: ratio must be a number in [0, 1], a share of the entries, not {self.ratio!r}."
            )
        for name, choices in (("targets", get_args(Targets)), ("scope", get_args(Scope)), ("score", get_args(Score))):
            value = getattr(self, name)
            if value not in choices:
                hint = nearest(value, choices, listed=False) or "."
                raise InputError(f"{self._who}: {name} must be one of {', '.join(choices)}, not {value!r}{hint}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"{self._who}: seed must be a whole number, at least 0, not {self.seed!r}.")

    @property
    def _who(self) -> str:
        return type(self).__name__

    def cost(self) -> Cost:
        scoring, own = self.score == "wanda" and self.ratio > 0, self.targets == "adapters"
        return Cost(
            passes=0,
            once_forwards=float(scoring),
            changes="adapter" if own else "linear",
            kept=1 / 8 + (4 * self.ratio if self.targets == "update" else 0),
            working=8 if own else 16,  # float64 scores; of merged weights, float32 ones before and after beside them
            per_input=8.0 * scoring,
        )

    def adaptive(self) -> list[Attack]:
        """A share of the entries is taken, whatever they hold: more steps, so that the rest holds enough; or an
        adapter on every linear layer, over whose entries the update is spread, so that few of them matter much."""
        return [Scheduled(length=3.0), Scheduled(adapter=dict(ELSEWHERE))]

    def controls(self) -> dict[str, Method]:
        return {"random-mask": replace(self, score="random")}

    def data_roles(self) -> dict[str, str]:
        return dict(self.roles) if self.score == "wanda" and self.ratio > 0 else {}

    def model_inputs(self) -> dict[str, str]:
        return dict(self.models) if self.targets == "update" else {}

    def check_run(self, *, topology: str, finetuned: bool, adapter: bool) -> None:
        if self.targets == "update" and not finetuned:
            raise InputError(
                "targets: `update` takes back part of what the fine-tune changed, and `finetune` is none. "
                "Set `finetune`, or targets: merged"
            )
        if self.targets == "update" and topology == "full" and self.scope == "global" and self.data_roles():
            raise InputError(
                "scope: `global` compares scores across weights, and embeddings and norms, which topology: full "
                "trains too, have no input features to be scored by. Set scope: row (the reference) or tensor, or "
                "score: magnitude"
            )
        if self.targets == "adapters" and topology == "double" and not finetuned:
            raise InputError(
                "targets: `adapters` prunes the fine-tuning adapter, and `finetune` is none (the alignment adapter is "
                "merged under topology: double). Set `finetune`, or targets: merged"
            )
        if self.targets == "adapters" and not adapter:
            trained = "topology: full" if topology == "full" else "adapter: full (of finetune or its attack)"
            raise InputError(
                f"targets: `adapters` prunes the fine-tuning adapter, and {trained} trains none. "
                "Set targets: update or merged"
            )

    def run_notes(self, *, topology: str, aligned: bool, finetuned: bool) -> list[str]:
        if self.targets == "adapters" and topology == "single" and aligned and finetuned:
            return ["prunes the adapter, which holds the alignment too (topology single): it takes from it as well"]
        return []

    def check(self, model: Any, calibration: Any = None, tokenizer: Any = None, aligned: Any = None) -> None:
        """Refuses what cannot be done, before any compute is spent.

        Raises:
            UnsupportedSetup: with the reason and a remedy.
            InputError: a calibration row that cannot be used, by its number and field.
        """
        for one in [model] if aligned is None else [model, aligned]:
            refuse_places(one, self._who)
        check_adapters(model)
        if self.targets == "adapters":
            self._check_factors(model)
        else:
            self._check_quantised(model)
            refuse_other_matrices(model, self._who)
        if self.targets == "update":
            self._check_aligned(model, aligned)
        elif beside := beside_factors(model):
            raise UnsupportedSetup(
                f"{self._who}: targets={self.targets!r} acts on the adapter's layers, and the fine-tune trained "
                f"{len(beside)} other weights too ({beside[0]}, for one), which would stay as they are.",
                "set targets='update' with the aligned model, which takes back from all that was trained; or "
                "fine-tune without modules_to_save, bias and other trained weights.",
            )
        if self.score == "wanda" and self.ratio > 0:
            self._check_calibration(model, calibration, tokenizer)

    def _check_factors(self, model: Any) -> None:
        found = adapted(model)
        if not found:
            raise UnsupportedSetup(
                f"{self._who}: targets='adapters' prunes the fine-tuning adapter, and this model has no LoRA adapter.",
                "set targets='update' with the aligned model, or targets='merged'.",
            )
        merged = [name for name, layer in found.items() if layer.merged]
        if merged:
            raise UnsupportedSetup(
                f"{self._who}: the adapter is merged at the moment ({merged[0]}), so its factors see no input.",
                "call model.unmerge_adapter() first.",
            )
        for config in model.peft_config.values():
            start = getattr(config, "init_lora_weights", True)
            if start not in _LEAVES_BASE:
                raise UnsupportedSetup(
                    f"{self._who}: the adapter began with init_lora_weights={start!r}, which takes a part of the base "
                    "weights into the factors: to cut these is to cut the base model.",
                    "set targets='update' with the aligned model, or targets='merged'.",
                )

    def _check_quantised(self, model: Any) -> None:
        coarse = [name for name, weight in weights(model).items() if not weight.tensor.is_floating_point()]
        if getattr(model, "is_quantized", False) or coarse:
            raise UnsupportedSetup(
                f"{self._who}: targets={self.targets!r} edits weights, and this model's are quantised.",
                "make plain models of both, model = mithridate.models.quantisation.dequantised(model); or set "
                "targets='adapters'.",
            )

    def _check_aligned(self, model: Any, aligned: Any) -> None:
        own = {id(parameter) for parameter in model.parameters()}
        if aligned is None or any(id(parameter) in own for parameter in aligned.parameters()):
            raise UnsupportedSetup(
                f"{self._who}: targets='update' takes back part of what the fine-tune changed, and needs the model "
                "before it, as an object of its own.",
                "pass aligned=..., the aligned model loaded anew, to apply().",
            )
        try:
            check_adapters(aligned)
            self._check_quantised(aligned)
        except UnsupportedSetup as error:
            raise UnsupportedSetup(f"Of the aligned model: {error.reason}", error.remedy) from error

    def _check_calibration(self, model: Any, calibration: Any, tokenizer: Any) -> None:
        if calibration is None or (hasattr(calibration, "__len__") and len(calibration) == 0):
            raise UnsupportedSetup(
                f"{self._who}: score='wanda' weighs weights by their inputs on harmful examples, and there are none.",
                "pass calibration=..., harmful prompts with their answers (a few hundred are enough to start).",
            )
        if hasattr(calibration, "__len__"):  # what can be read only once is left to apply()
            require_positions(model, token_ids(calibration, tokenizer))

    def apply(
        self,
        model: Any,
        calibration: Any = None,
        tokenizer: Any = None,
        batch_size: int = 8,
        aligned: Any = None,
    ) -> Delta:
        """Repairs the model in place. Training modes, hooks and `requires_grad` are as before when this returns.

        With "update" and "merged", an adapter is merged into the weights beneath (fp32 arithmetic, one rounding): save
        the model with `merge_and_unload()`.

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            calibration: harmful prompts *with* answers: records, or rows in any of TRL's formats (see `token_ids`).
            tokenizer: with a chat template; not needed where the calibration rows hold `input_ids`.
            batch_size: rows of one forward pass; has no influence on the result.
            aligned: the model before the fine-tune; needed for "update".

        Raises:
            UnsupportedSetup: see `check`.
            InputError: a calibration row has no answer or is too long for the model, batch_size is no whole number
                from 1 up, or the aligned model is of another kind.
            MithridateError: activations are not finite.
        """
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(
                f"{self._who}: batch_size must be a whole number of rows, at least 1, not {batch_size!r}."
            )
        rows = None if calibration is None or not self.data_roles() else as_rows(calibration)
        self.check(model, rows, tokenizer, aligned)
        with torch.no_grad():
            scored = self._scored(model, aligned)
        norms: dict[str, Tensor] = {}
        if rows is not None:
            seen = {name: one.module for name, one in scored.items() if one.module is not None}
            norms = input_norms(model, seen, token_ids(rows, tokenizer), batch_size)
        delta = Delta(self._who.lower(), self.settings(), merged=self.targets != "adapters")
        self._mark(delta, scored, norms)
        delta.apply(model)
        delta.notes += self._notes(model, delta)
        return delta

    def _scored(self, model: Any, aligned: Any) -> dict[str, _Scored]:
        """The tensors to prune, by name."""
        if self.targets == "adapters":
            return {n: _Scored(m, lambda m=m: m.weight.detach()) for n, m in factors(model).items()}
        found = weights(model)
        if self.targets == "merged":
            names = {f"{name}.weight": layer for name, layer in layers(model).items()}
            return {n: _Scored(layer, found[n].effective) for n, layer in names.items()}
        return self._changed(model, aligned)

    def _changed(self, model: Any, aligned: Any) -> dict[str, _Scored]:
        """Every weight that the fine-tune changed, whatever it is: so all of it can be taken back."""
        found = {}
        for name, (new, old) in changed(model, aligned, self._who).items():
            linear = isinstance(new.module, nn.Linear) and name.endswith(".weight")
            if not linear and not isinstance(new.module, nn.Embedding) and new.tensor.dim() > 1:
                raise UnsupportedSetup(
                    f"{self._who}: the fine-tune changed {name}, a matrix that is no linear layer's and no "
                    "embedding's, so its rows are not known to be outputs.",
                    "fine-tune with LoRA on linear layers (attention, say), without this in modules_to_save.",
                )

            def earlier(new: Any = new, old: Any = old) -> Tensor:
                return old.effective().to(new.tensor.device)

            found[name] = _Scored((new.lora or new.module) if linear else None, partial(difference, new, old), earlier)
        if not found:
            raise InputError(
                f"{self._who}: the model's weights equal the aligned model's, so there is no update to prune."
            )
        blind = [name for name, one in found.items() if one.module is None]
        if blind and self.scope == "global" and self.data_roles():
            raise UnsupportedSetup(
                f"{self._who}: scope='global' compares scores across weights, and {blind[0]} has no input features, "
                "so that its scores are on another scale.",
                "set scope='row' (the reference) or 'tensor', or score='magnitude'.",
            )
        return found

    @torch.no_grad()
    def _mark(self, delta: Delta, scored: dict[str, _Scored], norms: dict[str, Tensor]) -> None:
        def mark(name: str, marked: Tensor) -> None:
            new = scored[name].new
            delta.mark(name, marked, None if new is None else new()[marked])

        scores = ((name, self._score(name, one.tensor(), norms)) for name, one in scored.items())
        if self.scope != "global":
            for name, score in scores:
                rows = score if self.scope == "row" and score.dim() == 2 else score.reshape(1, -1)
                mark(name, highest(rows, self.ratio).reshape(score.shape))
            return
        every = dict(scores)
        flat = torch.cat([score.flatten().cpu() for score in every.values()])
        marked = highest(flat[None], self.ratio)[0].split([score.numel() for score in every.values()])
        for (name, score), part in zip(every.items(), marked):
            mark(name, part.reshape(score.shape).to(score.device))

    def _score(self, name: str, tensor: Tensor, norms: dict[str, Tensor]) -> Tensor:
        """Of the tensor's shape, fp64."""
        if self.score == "random":
            # By name, so that a layer's draw does not depend on which others there are.
            seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
            return torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        score = tensor.double().abs()
        if not bool(torch.isfinite(score).all()):
            raise MithridateError(f"{name}: the weights are not finite, so they cannot be ranked.")
        return score * norms[name].to(score.device) if name in norms else score

    def _notes(self, model: Any, delta: Delta) -> list[str]:
        notes = []
        if self.targets == "adapters" and getattr(model, "keeps_alignment", False):
            notes.append("The adapter holds the alignment too (topology single), so this cut takes from it as well.")
        elif self.targets == "adapters":
            notes.append(
                "Cuts the whole adapter: if alignment trained the same one (topology single), from the alignment too."
            )
        elif delta.merged:
            notes.append("The adapter was merged into the weights: save the model with merge_and_unload().")
        return notes
