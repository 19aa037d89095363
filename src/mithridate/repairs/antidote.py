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
- the mask keeps what it removed, so that it can be undone bit for bit.

The paper differs from its code, which is followed here: it averages norms (the code: squares, then takes the root),
and takes the top share of all weights at once (the code: of each row; `scope="global"` is the paper's wording).

Variants, which are other methods and have their own names: `targets="update"` takes entries of the fine-tune's change
W - W_aligned back (scored by |W - W_aligned| * s); `targets="merged"` zeroes entries of the weights themselves.
`score="magnitude"` leaves s out; `score="random"` is the control.

Cost: one forward pass over the calibration set, without the LM head; no gradients. Memory: the model, one batch's
activations, 8 bytes an input feature; scores of one weight at a time (`scope="global"`: of all, 8 bytes an entry).

Set-ups: one device or `device_map`; LoRA over linear layers on any base for "adapters"; LoRA or a plain model, not
quantised, for "update" and "merged". Refused: DoRA and other variants; for the latter two quantised weights, and plain
models with weight matrices outside linear layers (fused experts, convolutions).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from mithridate.errors import InputError, MithridateError, UnsupportedSetup
from mithridate.methods.base import Cost, Method
from mithridate.methods.repair import Repair

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.repairs.masks import Mask

Targets = Literal["adapters", "update", "merged"]
Scope = Literal["row", "tensor", "global"]
Score = Literal["wanda", "magnitude", "random"]


@dataclass
class RepairReport:
    """What a repair did.

    Attributes:
        mask: the entries that it removed.
        notes: what a reader of the numbers should know.
    """

    mask: Mask
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> tuple[int, int]:
        """Removed entries and all entries of the weights that it acted on."""
        counts = self.mask.counts().values()
        return sum(removed for removed, _ in counts), sum(entries for _, entries in counts)

    def table(self) -> str:
        """Shape, removed entries and their share for each weight and in all, as text; the notes below."""
        counts = self.mask.counts()
        rows = [(n, "x".join(map(str, self.mask.shapes[n])), *counts[n]) for n in counts] + [("all", "", *self.total)]
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'weight':<{width}}  {'shape':>12}  {'removed':>12}  {'share':>7}"]
        lines += [f"{n:<{width}}  {shape:>12}  {k:>12,}  {k / of if of else 0:>7.2%}" for n, shape, k, of in rows]
        return "\n".join([*lines, *self.notes])

    def save(self, folder: str | Path) -> None:
        """Writes `mask.safetensors` (see `Mask.save`) and `report.json` into a folder."""
        self.mask.save(folder)
        removed, entries = self.total
        facts = {
            "settings": self.mask.settings,
            "mask": self.mask.digest,
            "removed": removed,
            "entries": entries,
            "weights": {name: list(count) for name, count in self.mask.counts().items()},
            "notes": self.notes,
        }
        (Path(folder) / "report.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def undo(self, model: Any) -> None:
        """Puts the removed values back, bit for bit."""
        self.mask.undo(model)


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
                f"Antidote: ratio must be a number in [0, 1], a share of the entries, not {self.ratio!r}."
            )
        for name, choices in (("targets", get_args(Targets)), ("scope", get_args(Scope)), ("score", get_args(Score))):
            value = getattr(self, name)
            if value not in choices:
                near = get_close_matches(str(value), choices, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise InputError(f"Antidote: {name} must be one of {', '.join(choices)}, not {value!r}.{hint}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"Antidote: seed must be a whole number, at least 0, not {self.seed!r}.")

    def cost(self) -> Cost:
        scoring, own = self.score == "wanda" and self.ratio > 0, self.targets == "adapters"
        return Cost(
            passes=0,
            once_forwards=float(scoring),
            changes="adapter" if own else "linear",
            kept=1 / 8 + 4 * self.ratio,
            working=8
            if own
            else 16,  # scores in float64; of whole weights, float32 beside them, merged and as changed
            per_input=8 * scoring,
        )

    def controls(self) -> dict[str, Method]:
        return {"random-mask": replace(self, score="random")}

    def data_roles(self) -> dict[str, str]:
        return dict(self.roles) if self.score == "wanda" and self.ratio > 0 else {}

    def model_inputs(self) -> dict[str, str]:
        return dict(self.models) if self.targets == "update" else {}

    def check(self, model: Any, calibration: Any = None, tokenizer: Any = None, aligned: Any = None) -> None:
        """Refuses what cannot be done, before any compute is spent.

        Raises:
            UnsupportedSetup: with the reason and a remedy.
        """
        from mithridate.repairs.linears import adapted, base_linear, check_plain_lora, other_matrices
        from mithridate.repairs.masks import layers

        kinds = {p.device.type for p in model.parameters()} - {"cpu", "cuda"}
        if kinds or any(hasattr(p, "placements") for p in model.parameters()):
            raise UnsupportedSetup(
                f"Antidote: weights that are {f'on {kinds.pop()}' if kinds else 'sharded'} are not tested.",
                "load the model on cpu or cuda, whole (device_map may place its layers).",
            )
        found = adapted(model)
        if self.targets == "adapters" and not found:
            raise UnsupportedSetup(
                "Antidote: targets='adapters' prunes the fine-tuning adapter, and this model has no LoRA adapter.",
                "set targets='update' with the aligned model, or targets='merged'.",
            )
        check_plain_lora(model, found)
        merged = [name for name, layer in found.items() if layer.merged]
        if self.targets == "adapters" and merged:
            raise UnsupportedSetup(
                f"Antidote: the adapter is merged at the moment ({merged[0]}), so its factors see no input.",
                "call model.unmerge_adapter() first.",
            )
        if self.targets != "adapters":
            weights = {name: base_linear(layer).weight for name, layer in layers(model).items()}
            coarse = [name for name, weight in weights.items() if not weight.is_floating_point()]
            if getattr(model, "is_quantized", False) or coarse:
                raise UnsupportedSetup(
                    f"Antidote: targets={self.targets!r} edits weights, and this model's are quantised.",
                    "load the model in float32 or bfloat16, or set targets='adapters'.",
                )
            left_out = [] if found else other_matrices(model)
            if left_out:
                raise UnsupportedSetup(
                    f"Antidote: targets={self.targets!r} cuts linear layers, and this model has {len(left_out)} "
                    f"weight matrices elsewhere ({left_out[0]}, for one), which would be left whole.",
                    "fine-tune with a LoRA adapter on linear layers (attention, say): that holds all of the change.",
                )
        if self.targets == "update" and (aligned is None or aligned is model):
            raise UnsupportedSetup(
                "Antidote: targets='update' takes back part of what the fine-tune changed, and needs the model before "
                "it, as an object of its own.",
                "pass aligned=..., the aligned model, to apply().",
            )
        if self.score == "wanda" and self.ratio > 0:
            if calibration is not None and not hasattr(calibration, "__len__"):
                raise UnsupportedSetup(
                    f"Antidote: the calibration set is a {type(calibration).__name__}, which can be read only once.",
                    "pass a list or a datasets.Dataset: calibration=list(rows).",
                )
            if calibration is None or len(calibration) == 0:
                raise UnsupportedSetup(
                    "Antidote: score='wanda' weighs weights by their inputs on harmful examples, and there are none.",
                    "pass calibration=..., harmful prompts with their answers (a few hundred are enough to start).",
                )
            if "input_ids" not in next(iter(calibration)) and (tokenizer is None or not tokenizer.chat_template):
                raise UnsupportedSetup(
                    "Antidote: the calibration set has to be put into the model's chat template, and there is none.",
                    "pass tokenizer=..., with a chat template.",
                )

    def apply(
        self,
        model: Any,
        calibration: Any = None,
        tokenizer: Any = None,
        batch_size: int = 8,
        aligned: Any = None,
    ) -> RepairReport:
        """Repairs the model in place. Training modes, hooks and `requires_grad` are as before when this returns.

        With "update" and "merged", an adapter is merged into the weights beneath (fp32 arithmetic, one rounding): save
        the model with `merge_and_unload()`.

        Args:
            model: fine-tuned: a PEFT model, or a plain one.
            calibration: harmful prompts *with* answers: records, or a data set in one of TRL's formats.
            tokenizer: with a chat template; not needed where the calibration rows hold `input_ids`.
            batch_size: rows of one forward pass; has no influence on the result.
            aligned: the model before the fine-tune; needed for "update".

        Raises:
            UnsupportedSetup: see `check`.
            InputError: a calibration row has no answer or is too long for the model, batch_size is no whole number
                from 1 up, or the aligned model is of another kind.
            MithridateError: activations are not finite.
        """
        from mithridate.repairs.masks import Mask

        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"Antidote: batch_size must be a whole number of rows, at least 1, not {batch_size!r}.")
        self.check(model, calibration, tokenizer, aligned)
        weights = self._weights(model, aligned)
        norms: dict[str, Tensor] = {}
        if self.score == "wanda" and self.ratio > 0:
            from mithridate.repairs.input_norms import input_norms, token_ids

            rows = token_ids(calibration, tokenizer)
            norms = input_norms(model, {name: module for name, (module, _) in weights.items()}, rows, batch_size)
        mask = Mask(settings=self.settings())
        self._mark(mask, weights, norms)
        mask.apply(model, aligned)
        return RepairReport(mask, self._notes(model))

    def _weights(self, model: Any, aligned: Any) -> dict[str, tuple[nn.Module, Any]]:
        """For each weight to prune: the module whose inputs count, and a function for the tensor to score."""
        from mithridate.repairs.linears import active, adapted, effective_weight
        from mithridate.repairs.masks import layers

        if self.targets == "adapters":
            return {
                f"{name}.{factor}": (
                    module := getattr(layer, factor)[active(layer)],
                    lambda m=module: m.weight.detach(),
                )
                for name, layer in adapted(model).items()
                for factor in ("lora_A", "lora_B")
            }
        found = layers(model)
        if self.targets == "merged":
            return {f"{n}.weight": (layer, lambda m=layer: effective_weight(m)) for n, layer in found.items()}
        before = layers(aligned)
        changed = {}
        for name, layer in found.items():
            old = before.get(name)
            if old is None or effective_weight(old).shape != effective_weight(layer).shape:
                raise InputError(
                    f"Antidote: the aligned model has no layer {name} of the same shape. Pass the model that the "
                    "fine-tune started from."
                )

            def update(layer: Any = layer, old: Any = old) -> Tensor:
                return effective_weight(layer) - effective_weight(old).to(effective_weight(layer).device)

            # Layers that the fine-tune left alone have nothing to take back.
            if bool(update().any()):
                changed[f"{name}.weight"] = (layer, update)
        if not changed:
            raise InputError(
                "Antidote: the model's weights equal the aligned model's, so there is no update to prune."
            )
        return changed

    def _mark(self, mask: Mask, weights: dict[str, tuple[nn.Module, Any]], norms: dict[str, Tensor]) -> None:
        import torch

        from mithridate.repairs.masks import highest

        with torch.no_grad():
            scores = ((name, self._score(name, tensor(), norms)) for name, (_, tensor) in weights.items())
            if self.scope != "global":
                for name, score in scores:
                    rows = score if self.scope == "row" else score.reshape(1, -1)
                    mask.mark(name, highest(rows, self.ratio).reshape(score.shape))
                return
            every = dict(scores)
            flat = torch.cat([score.flatten().cpu() for score in every.values()])
            marked = highest(flat[None], self.ratio)[0].split([score.numel() for score in every.values()])
            for (name, score), part in zip(every.items(), marked):
                mask.mark(name, part.reshape(score.shape))

    def _score(self, name: str, tensor: Tensor, norms: dict[str, Tensor]) -> Tensor:
        """[out, in], fp64."""
        import torch

        if self.score == "random":
            # By name, so that a layer's draw does not depend on which others there are.
            seed = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
            return torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        score = tensor.double().abs()
        if not bool(torch.isfinite(score).all()):
            raise MithridateError(f"{name}: the weights are not finite, so there is no ranking them.")
        return score * norms[name].to(score.device) if norms else score

    def _notes(self, model: Any) -> list[str]:
        from mithridate.repairs.linears import adapted

        notes = []
        if self.targets == "adapters" and getattr(model, "keeps_alignment", False):
            notes.append("The adapter holds the alignment too (topology single), so this cut takes from it as well.")
        elif self.targets == "adapters":
            notes.append(
                "Cuts the whole adapter: if alignment trained the same one (topology single), from the alignment too."
            )
        elif adapted(model):
            notes.append("The adapter was merged into the weights: save the model with merge_and_unload().")
        return notes
