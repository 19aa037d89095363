"""RepNoise: harmful representations are pushed to noise, and the harmful loss up, from pairs of answers.

Representation noising effectively prevents harmful fine-tuning on LLMs. Domenic Rosati, Jan Wehner, Kai Williams,
Lukasz Bartoszcze, David Atanasov, Robie Gonzales, Subhabrata Majumdar, Carsten Maple, Hassan Sajjad, Frank Rudzicz.
NeurIPS 2024. https://arxiv.org/abs/2405.14577

Each harmful row has the prompt of an alignment row. With m the positions of an answer at which the two rows of a pair
differ, MLP_l the output of layer l's MLP, h_0 (embeddings) to h_L the hidden states as transformers returns them, Z
standard normal, all over one micro-batch:

    CE_m(safe) + beta * 1/L sum_l MMD( m * MLP_l(harmful), m * Z_l )
               - alpha * log( 1 + [ CE_m(harmful) + sum_{j=0..L} CE_m(head(norm(h_j))) ] / (L + 1) )

    MMD(x, y) = mean over pairs of samples of  k(x, x') + k(y, y') - k(x, y') - k(y, x')        rows are the samples
    k(x, y)   = sum_{i=0..4} exp( - ||x - y||^2 / (s * 2^i) )      s = sum of all ||x - y||^2 / (n^2 - n) / 4,  n = 2B

This is the rule of the authors' own code (github.com/domenicrosati/representation-noising, read), which their paper's
tables may not have been made with: it says that more is to come. Kept as there, though one may wonder: the sum has
L + 2 terms and is divided by L + 1, and the last norm is applied to h_L again. What git-disl's repositories (Booster,
T-Vaccine, CTRAP) call RepNoise is another method: rows are not paired, but cut to one length.

Differs from the authors' code in:
- the first token in which the answers differ is scored like the others; there, logits are zeroed where m is 0, so that
  the token after the shared prefix is scored against a uniform distribution and never trained on;
- m are tokens of the row itself that its loss is on; there, padding too where the other row is longer (harmful padding
  is made noise, and padding is trained on), and a label with the number 0 is never counted, whatever token it is;
- its hooks are on the MLPs alone, and removed (there: on every module, anew in each step, and never removed);
- MLPs, the last norm and the head are found in any architecture that has one of each (there: Llama's names);
- squared distances are computed by one product;
- Z is a function of the run's seed, step, layer and harmful row, so that the order of rows changes nothing;
- an alignment row without a harmful partner, as a helpful answer, is trained on whole. With pairs alone it is theirs.

The harmful terms belong to a micro-batch, each weighted by its tokens: more or smaller micro-batches are another step.
The authors say that alpha, beta, learning rate and number of rows must be searched for each model.

Controls: `adversarial-loss` (beta = 0, the authors' baseline of that name) and `no-harmful-terms` (both 0). There are
no settings that are plain training (`off`): of pairs, only the tokens in which they differ are trained on.

Cost: 2 forward and 2 backward passes per step, and the head once more over m for each layer and the embeddings, with
its graph: L + 2 times [N, V] for N tokens in m is what takes memory. Supported: LoRA and
full weights, any batch layout, activation checkpointing, mixed precision, data parallelism. Refused: harmful rows
without an alignment row of the same prompt, or with the same answer; a streamed training set; re-entrant
checkpointing; sharded weights; torch.compile; prompt learning; models without one MLP a layer or without a last
norm, and such that are not causal.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from mithridate.attacks.scheduled import Scheduled
from mithridate.defenses.vaccine import refuse_unshiftable, require_sites
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_rows
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.gradients import fork_rng
from mithridate.training.outputs import scaled_and_capped
from mithridate.training.setups import compiled, refuse_other_than_causal, refuse_virtual_tokens
from mithridate.training.side_data import documents, rows_of_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.rows import Rows
    from mithridate.training.mixin import DefenseMixin

KERNELS = 5
NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")  # what the last norm is called


@dataclass(kw_only=True)
class RepNoise(Defense):
    """Pushes harmful representations to noise and the harmful loss up, from pairs; see this module's docstring.

    Args:
        harmful_dataset: harmful answers to prompts of the training set, in any form of `mithridate.rows`.
        alpha: weight of the logarithm of the harmful loss, which is to rise.
        beta: weight of the distance to noise.
        sites: the MLPs, one a layer, by PEFT's `target_modules` conventions.
    """

    paper: ClassVar[str] = "RepNoise (Rosati and others; NeurIPS 2024), https://arxiv.org/abs/2405.14577"
    citation: ClassVar[str] = """@inproceedings{repnoise,
  title     = {Representation noising effectively prevents harmful fine-tuning on {LLMs}},
  author    = {Rosati, Domenic and Wehner, Jan and Williams, Kai and Bartoszcze, Lukasz and Atanasov, David and
               Gonzales, Robie and Majumdar, Subhabrata and Maple, Carsten and Sajjad, Hassan and Rudzicz, Frank},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2405.14577}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "alignment"
    strength: ClassVar[str | None] = "beta"
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful"}
    paired: ClassVar[Sequence[str]] = ("harmful_dataset",)
    differences: ClassVar[dict[str, str]] = {
        "accumulation": "distances to noise and the logarithm are of each micro-batch",
        "processes": "distances to noise and the logarithm are of each process's micro-batch",
    }

    harmful_dataset: Rows
    alpha: float = 1.0
    beta: float = 0.001
    sites: str | list[str] = r".*\.mlp"
    _rows: list[dict[str, Any]] = field(init=False, repr=False, compare=False, default_factory=list)
    _partners: dict[tuple[int, ...], list[int]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _pending: list[dict[str, Any]] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        require_number(self, "alpha", 0)
        require_number(self, "beta", 0)
        require_sites(self)

    @property
    def _acting(self) -> bool:
        return bool(self.alpha or self.beta)

    def adaptive(self) -> list[Attack]:
        """What was made noise is learnt anew: at a higher learning rate, or in more steps."""
        return [Scheduled(rate=3.0), Scheduled(length=3.0)]

    def controls(self) -> dict[str, RepNoise]:
        return {"no-harmful-terms": replace(self, alpha=0.0, beta=0.0), "adversarial-loss": replace(self, beta=0.0)}

    def cost(self) -> Cost:
        return Cost(passes=2, logits=2.5, layer_logits=1, layer_states=3.5) if self._acting else Cost()

    @classmethod
    def example(cls) -> RepNoise:
        return cls(harmful_dataset=rows_of("defender_harmful"), alpha=0.5, beta=0.5)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        for refused, what, remedy in (
            (t._sharded, "on sharded weights", "use plain data parallelism."),
            (compiled(t), "under torch.compile", "set torch_compile=False."),
        ):
            if refused:
                raise UnsupportedSetup(f"RepNoise: losses at inner layers are not tested {what}.", remedy)
        require_rows(self, "harmful_dataset")
        refuse_other_than_causal(t, "RepNoise")
        refuse_unshiftable(t, self)
        refuse_virtual_tokens(t, "RepNoise: looks at states at labelled tokens")
        _last_norm(t.model)
        if not (hasattr(t.train_dataset, "__len__") and "input_ids" in getattr(t.train_dataset, "column_names", ())):
            raise UnsupportedSetup(
                "RepNoise: pairs are looked up in the training set beforehand, and it is no data set of tokens.",
                "train with SFTTrainer, on rows that are loaded whole, without streaming.",
            )
        self._refuse_unpaired(t)

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._rows, self._partners = self._pairs(t)
        self._pending = []

    def batches(self, t: DefenseMixin, batches: list[Any]) -> list[Any]:
        return [self._halved(t, batch) for batch in batches]

    def on_step_begin(self, t: DefenseMixin) -> None:
        harmful, self._pending = self._pending, []
        if not self._acting:
            return
        with fork_rng(t.args.device):
            _, gradient = t.gradient(harmful, lambda model, inputs, n: self._harmful_terms(t, model, inputs, n))
        t.seed(gradient, copy=False)

    def on_train_end(self, t: DefenseMixin) -> None:
        self._rows, self._partners, self._pending = [], {}, []

    # -- pairs --------------------------------------------------------------------------------------------------------

    def _pairs(self, t: DefenseMixin) -> tuple[list[dict[str, Any]], dict[tuple[int, ...], list[int]]]:
        """The harmful rows (input_ids, labels), and which of them have a prompt."""
        rows = documents(t.side_data(self.harmful_dataset, "harmful_dataset").dataset)
        partners = defaultdict(list)
        for number, row in enumerate(rows):
            partners[_prompt(row)].append(number)
        return rows, dict(partners)

    def _refuse_unpaired(self, t: DefenseMixin) -> None:
        """Raises InputError for a harmful row without an alignment row of its prompt, or with the same answer."""
        rows, partners = self._pairs(t)
        safe = defaultdict(list)
        for row in documents(t.train_dataset):
            safe[_prompt(row)].append(row)
        if () in partners:
            raise InputError(
                f"RepNoise: row {partners[()][0] + 1} of harmful_dataset has no prompt, so that it has no pair. Give "
                "prompt and completion, with the loss on the completion alone."
            )
        alone = [number for prompt, numbers in partners.items() if prompt not in safe for number in numbers]
        if alone:
            raise InputError(
                f"RepNoise: {len(alone)} of {len(rows)} rows of harmful_dataset have no row of the training set with "
                f"the same prompt (the first is row {min(alone) + 1}), and it trains on pairs. Give harmful answers "
                "to the training set's own prompts; in an experiment, data.defender_harmful with paired: true."
            )
        for prompt, numbers in partners.items():
            for number in numbers:
                if any(
                    not (any(_differing(rows[number], s)) and any(_differing(s, rows[number]))) for s in safe[prompt]
                ):
                    raise InputError(
                        f"RepNoise: row {number + 1} of harmful_dataset has the answer of its row of the training "
                        "set, so that nothing tells harmful from safe. Give another answer, or leave the row out."
                    )

    def _halved(self, t: DefenseMixin, batch: Any) -> Any:
        """A micro-batch with its labels on what differs from its partners, which wait for `on_step_begin`."""
        safe, harmful = [], []
        for row in rows_of_batch(batch):
            numbers = self._partners.get(_prompt(row))
            if numbers:
                number = numbers[t.state.global_step % len(numbers)]
                partner = self._rows[number]
                harmful.append((number, partner, _differing(partner, row)))
                row = row | {"labels": _kept(row, _differing(row, partner))}
            safe.append(row)
        counted = bool(harmful)
        if not harmful:  # every rank takes as many passes: this one counts for nothing
            partner = self._rows[0]
            harmful.append((0, partner, [label != -100 for label in partner["labels"]]))
        self._pending.append(_padded(harmful, counted))
        return t.data_collator(safe)

    # -- terms --------------------------------------------------------------------------------------------------------

    def _harmful_terms(self, t: DefenseMixin, model: nn.Module, inputs: Any, n: Tensor | int | None) -> Tensor:
        """beta times the distance to noise minus alpha times the logarithm, of one micro-batch."""
        mask, numbers = inputs["mask"].bool(), inputs["numbers"].tolist()
        marked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        marked["labels"] = inputs["input_ids"].masked_fill(~mask, -100)
        with self._outputs_of_sites(t) as seen:
            outputs = t.outputs(model, marked, ("logits", "hidden_states"))
        states = outputs.hidden_states
        if states is None:
            raise UnsupportedSetup("RepNoise: this model returns no hidden states.", "use another defense.")
        assert outputs.logits is not None
        distance = torch.stack(
            [_mmd(*self._samples(t, layer, h, mask, numbers)) for layer, h in enumerate(seen)]
        ).mean()
        base = t.model.get_base_model() if hasattr(t.model, "get_base_model") else t.model
        head, norm = base.get_output_embeddings(), _last_norm(t.model)
        losses = [_cross_entropy(outputs.logits, outputs.labels)]
        for h in states:  # read as the model reads its last state
            logits = scaled_and_capped(head(norm(h[:, :-1][mask[:, 1:]])), base)
            losses.append(_cross_entropy(logits, outputs.labels))
        harmful = torch.stack(losses).sum() / (len(losses) - 1)
        t.record("repnoise/noise_distance", distance)
        t.record("repnoise/harmful_loss", harmful)
        own = (inputs["labels"][:, 1:] != -100).sum()
        weight = (own > 0) if n is None else own / torch.as_tensor(n, device=own.device).clamp(min=1)
        return weight * (self.beta * distance - self.alpha * torch.log(1 + harmful))

    def _samples(
        self, t: DefenseMixin, layer: int, h: Tensor, mask: Tensor, numbers: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Outputs and noise [B, T * d] of one layer, zero outside the mask."""
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        noise = torch.zeros_like(h)
        for i, number in enumerate(numbers):
            noise[i, mask[i]] = self._noise(t, layer, number, (int(mask[i].sum()), h.shape[-1])).to(noise)
        return (h * mask[..., None]).flatten(1), noise.flatten(1)

    def _noise(self, t: DefenseMixin, layer: int, number: int, shape: tuple[int, int]) -> Tensor:
        """Z of one layer for one harmful row."""
        seed = t.rng(f"repnoise/noise {layer} {number}").initial_seed()
        return torch.randn(shape, generator=torch.Generator(t.args.device).manual_seed(seed), device=t.args.device)

    @contextlib.contextmanager
    def _outputs_of_sites(self, t: DefenseMixin) -> Iterator[list[Tensor]]:
        """Inside, the list fills with the sites' outputs in the order of the layers, each once."""
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [site.register_forward_hook(hook) for site in t.sites(self.sites).sites.values()]
        try:
            yield seen
        finally:  # before backward, which runs checkpointed layers again
            for handle in handles:
                handle.remove()


def _prompt(row: dict[str, Any]) -> tuple[int, ...]:
    """The tokens before the first that is trained on."""
    first = next((i for i, label in enumerate(row["labels"]) if label != -100), len(row["labels"]))
    return tuple(row["input_ids"][:first])


def _differing(row: dict[str, Any], other: dict[str, Any]) -> list[bool]:
    """At which of its labelled tokens a row differs from another, or goes on where that has ended."""
    ids, end = other["input_ids"], len(other["input_ids"])
    own = zip(row["input_ids"], row["labels"], strict=True)
    return [label != -100 and (i >= end or ids[i] != token) for i, (token, label) in enumerate(own)]


def _kept(row: dict[str, Any], mask: list[bool]) -> list[int]:
    return [label if keep else -100 for label, keep in zip(row["labels"], mask, strict=True)]


def _padded(rows: list[tuple[int, dict[str, Any], list[bool]]], counted: bool) -> dict[str, Any]:
    """Harmful rows as a padded batch, whatever the layout of the trainer's: samples are to be told from each other."""
    width = max(len(row["input_ids"]) for _, row, _ in rows)

    def filled(values: list[Any], pad: int) -> list[int]:
        return [*map(int, values), *[pad] * (width - len(values))]

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], 0) for _, row, _ in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for _, row, _ in rows]),
        "mask": torch.tensor([filled(mask, 0) for _, _, mask in rows]),
        "labels": torch.tensor(
            [filled(_kept(row, mask if counted else [False] * len(mask)), -100) for _, row, mask in rows]
        ),
        "numbers": torch.tensor([number for number, _, _ in rows]),
    }


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    """The biased estimate of the maximum mean discrepancy of two sets of B samples, [B, D] each."""
    both, count = torch.cat([x, y]), 2 * len(x)
    products = both @ both.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None] - 2 * products).clamp(min=0)
    scale = distances.detach().sum() / (count**2 - count) / 2 ** (KERNELS // 2)
    kernel = torch.stack([torch.exp(-distances / (scale * 2**i)) for i in range(KERNELS)]).sum(0)
    b = len(x)
    return (kernel[:b, :b] + kernel[b:, b:] - kernel[:b, b:] - kernel[b:, :b]).mean()


def _last_norm(model: Any) -> Any:
    """The norm after the last layer.

    Raises:
        UnsupportedSetup: it is not found under the usual names.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(base.base_model, "decoder", base.base_model)
    for name in NORMS:
        if getattr(body, name, None) is not None:
            return getattr(body, name)
    raise UnsupportedSetup(
        f"RepNoise: {type(base).__name__} has no norm after its last layer under a usual name ({', '.join(NORMS)}).",
        "use a model of the Llama, Qwen, Mistral, Gemma, Phi, GPT-NeoX, GPT-2 or OPT families.",
    )
