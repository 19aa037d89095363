"""T-Vaccine: Vaccine in a few layers at a time, drawn by how much harmful data pull at them.

Targeted Vaccine: Safety Alignment for Large Language Models against Harmful Fine-Tuning via Layer-wise Perturbation.
Guozhi Liu, Weiwei Lin, Tiansheng Huang, Ruichao Mo, Qi Mu, Li Shen. 2024. https://arxiv.org/abs/2410.09760

With e_l the output of layer l's attention, h the loss on a harmful row, L that on a micro-batch of alignment data:

    every score_every steps   p_l = || dh / de_l || / sum_k || dh / de_k ||         one harmful row
    every draw_every steps    S  <- `layers` layers, drawn without replacement with probabilities p
    every step                eps_l = rho * g_l / || (g_k, k in S) ||     with  g_l = dL / de_l,  l in S
                              w    <- w - lr * dL(w; e + eps, in S) / dw            what is not in S is frozen

This is the rule of the authors' code (github.com/Lslland/T-Vaccine). Of the paper, its abstract, its figure of the
method and a summary by others were read, not its text. Its p_l and eps_l are these; by the summary it draws layers in
every step (draw_every=1; the code: in every 20th), and takes p from a batch of harmful rows (the code, and this: from
one row). Steps are counted from the start of the run. What is frozen is not stepped at all: no weight decay, no
momentum, no share in the norm that is clipped.

- `frozen="attention"` (the code): of the layers outside S, the weights of the attention. What else they train, as the
  authors' adapters of the MLPs, is trained in every layer.
- `frozen="layers"` (the paper's abstract and figure: the other layers are kept frozen): all that is trained in them.

The two are the same where the adapter is on attention alone. With all weights trained, embeddings, the last norm and
the head lie in no layer and are always trained; the authors train adapters.

Differs from the authors' code in:
- p comes from one row there too, of a pool of 200, which their README and script name as if all were used; here the
  pool is harmful_dataset, whose rows are drawn each once before any is drawn again, whatever the accumulation;
- layers are drawn by a function of the run's seed and the step, the same on all ranks and in a resumed run (there: by
  numpy's global generator);
- p, where the harmful gradient is zero or not finite in all but a few layers, stays what it was (even at first; there:
  an error);
- what Vaccine differs in (see there): any architecture, accumulation, dropout, recomputed layers, no 1e-7.

No claim on memory is made. The authors' point, 7B in 24 GB, comes from model files of theirs that checkpoint the
layers outside S, and needs an "activate_layers" in each batch, so that their trainer fails on transformers' own
models. Here, gradient_checkpointing=True does that for all layers.

`score="uniform"` is the control: layers drawn with equal probabilities, without harmful data. There are no settings
that are plain training (`off`): with rho = 0 layers are frozen all the same. With `layers` as many as the model has it
is Vaccine.

Cost: 2 forward and 2 backward passes (the first without weight gradients); one more on a single row every score_every
steps; one tensor of the size of each selected attention output. Supported: as Vaccine, adapters and all
weights. Refused: as Vaccine; more `layers` than the model has.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch

from mithridate.attacks.scheduled import ELSEWHERE, Scheduled
from mithridate.defenses.vaccine import refuse_unshiftable, require_sites, shift_to_the_worst
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.methods.attack import Attack
from mithridate.methods.base import Cost, require_number, require_rows, require_whole
from mithridate.methods.defense import Defense
from mithridate.methods.examples import rows_of
from mithridate.training.activations import layer_of
from mithridate.training.gradients import fork_rng
from mithridate.training.side_data import require_token_labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mithridate.rows import Rows
    from mithridate.training.activations import ActivationShifts
    from mithridate.training.mixin import DefenseMixin
    from mithridate.training.side_data import SideData

Score = Literal["harmful", "uniform"]
Frozen = Literal["attention", "layers"]


@dataclass(kw_only=True)
class TVaccine(Defense):
    """Trains a few layers at a time under the worst shift of their attention outputs; see this module's docstring.

    Args:
        harmful_dataset: harmful prompts with harmful answers, in any form of `mithridate.rows`; None is possible with
            score="uniform".
        rho: joint 2-norm of the shifts of the selected layers in one micro-batch; 0 shifts nothing.
        layers: how many are selected at a time.
        score_every: optimizer steps between two measurements of the probabilities.
        draw_every: optimizer steps between two selections.
        sites: as of Vaccine: one module a layer, whose output is shifted.
        frozen: what is not trained of a layer that is not selected: its "attention" (of `sites`), or "layers", all of
            it.
        score: "harmful", by the norm of the harmful gradient, or "uniform", the control.
    """

    paper: ClassVar[str] = "T-Vaccine (Liu, Lin, Huang, Mo, Mu, Shen; 2024), https://arxiv.org/abs/2410.09760"
    citation: ClassVar[str] = """@article{tvaccine,
  title   = {Targeted Vaccine: Safety Alignment for Large Language Models against Harmful Fine-Tuning via Layer-wise
             Perturbation},
  author  = {Liu, Guozhi and Lin, Weiwei and Huang, Tiansheng and Mo, Ruichao and Mu, Qi and Shen, Li},
  journal = {arXiv preprint arXiv:2410.09760},
  year    = {2024},
  url     = {https://arxiv.org/abs/2410.09760}
}"""
    provenance: ClassVar[str] = "exact"
    stage: ClassVar[str] = "alignment"
    strength: ClassVar[str | None] = "rho"
    roles: ClassVar[dict[str, str]] = {"harmful_dataset": "defender_harmful"}
    differences: ClassVar[dict[str, str]] = {
        "accumulation": "rho is the norm in each micro-batch, so smaller ones are shifted further for each row",
        "processes": "rho is the norm in each process's micro-batch",
    }

    harmful_dataset: Rows | None
    rho: float = 3.0
    layers: int = 8
    score_every: int = 200
    draw_every: int = 20
    sites: str | list[str] = "attention"
    frozen: Frozen = "attention"
    score: Score = "harmful"
    _sites: ActivationShifts | None = field(init=False, repr=False, compare=False, default=None)
    _harmful: SideData | None = field(init=False, repr=False, compare=False, default=None)
    _probabilities: Tensor | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        require_number(self, "rho", 0)
        require_whole(self, "layers", 1, "number of layers")
        for name in ("score_every", "draw_every"):
            require_whole(self, name, 1, "number of steps")
        for name, choices in (("frozen", get_args(Frozen)), ("score", get_args(Score))):
            if getattr(self, name) not in choices:
                raise InputError(f"TVaccine: {name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        require_sites(self)

    def data_roles(self) -> dict[str, str]:
        return dict(self.roles) if self.score == "harmful" else {}

    def adaptive(self) -> list[Attack]:
        """It holds for shifts up to rho, of what the drawn layers' `sites` put out: a first step beyond them, an
        adapter on the other linear layers too (the MLPs, which it shifts only if told to), or more steps."""
        return [Scheduled(leap=10.0), Scheduled(adapter=dict(ELSEWHERE)), Scheduled(length=3.0)]

    def controls(self) -> dict[str, TVaccine]:
        return {"uniform-layers": replace(self, score="uniform")}

    def cost(self) -> Cost:
        return Cost(passes=2, activations=1) if self.rho else Cost()

    @classmethod
    def example(cls) -> TVaccine:
        return cls(harmful_dataset=rows_of("defender_harmful"), rho=1.5, layers=1, score_every=2, draw_every=1)

    def check(self, t: DefenseMixin) -> None:
        super().check(t)
        # a set-up is tried on the first layers of a model (`mithridate.models.shortened`), which say what they lack
        there = len(refuse_unshiftable(t, self).sites) + getattr(t.model.config, "layers_left_out", 0)
        if self.layers > there:
            raise UnsupportedSetup(
                f"TVaccine: layers={self.layers}, and the model has {there}.",
                f"set layers={max(1, there // 4)} (a quarter, as 8 of the authors' 32), at most {there}.",
            )
        if self.score == "harmful":
            require_rows(self, "harmful_dataset")
            require_token_labels(self._pool(t), "TVaccine")

    def on_train_begin(self, t: DefenseMixin) -> None:
        self._sites = t.sites(self.sites)
        self._harmful = self._pool(t) if self.score == "harmful" else None
        self._probabilities = torch.ones(len(self._sites.sites), dtype=torch.float64) / len(self._sites.sites)

    def on_step_begin(self, t: DefenseMixin) -> None:
        assert self._sites is not None and self._probabilities is not None
        step, names = t.state.global_step, list(self._sites.sites)
        if self._harmful is not None and step % self.score_every == 0:
            self._measure(t, self._sites, self._harmful.take(0, 1, first=step // self.score_every)[0])
        if step % self.draw_every == 0:
            draw = torch.multinomial(self._probabilities, self.layers, generator=t.rng("tvaccine/layers"))
            self._sites.selected = [names[i] for i in sorted(draw.tolist())]

    def training_step(
        self,
        t: DefenseMixin,
        step: Callable[[nn.Module, Any, Any], Tensor],
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None,
    ) -> Tensor:
        if self.rho == 0:
            return step(model, inputs, num_items_in_batch)
        assert self._sites is not None
        with self._sites as sites:
            shift_to_the_worst(t, sites, self.rho, "tvaccine", model, inputs, num_items_in_batch)
            return step(model, inputs, num_items_in_batch)

    def on_gradients(self, t: DefenseMixin) -> None:
        assert self._sites is not None
        base = t.model.get_base_model() if hasattr(t.model, "get_base_model") else t.model
        for name, site in self._sites.sites.items():
            if name not in self._sites.selected:
                left = site if self.frozen == "attention" else base.get_submodule(layer_of(name))
                for p in left.parameters():
                    p.grad = None

    def on_train_end(self, t: DefenseMixin) -> None:
        self._sites = self._harmful = self._probabilities = None

    def state_dict(self, t: DefenseMixin) -> dict[str, Tensor]:
        if self._sites is None or self._probabilities is None:
            return {}
        names = list(self._sites.sites)
        selected = torch.tensor([names.index(name) for name in self._sites.selected])
        return {"probabilities": self._probabilities, "selected": selected}

    def load_state_dict(self, t: DefenseMixin, state: dict[str, Tensor]) -> None:
        assert self._sites is not None
        names = list(self._sites.sites)
        self._probabilities = state["probabilities"].cpu()
        self._sites.selected = [names[i] for i in state["selected"].tolist()]

    def _pool(self, t: DefenseMixin) -> SideData:
        # the same row on all ranks, which must select the same layers
        return t.side_data(self.harmful_dataset, "harmful_dataset", batch_size=1, replicated=True)

    def _measure(self, t: DefenseMixin, sites: ActivationShifts, row: Any) -> None:
        """Takes the probabilities from the norms of the harmful gradient at all sites."""
        selected, sites.selected = sites.selected, list(sites.sites)
        tokens = (row["labels"][:, 1:] != -100).sum()  # of the scale of the loss nothing depends
        with sites, fork_rng(t.args.device):
            gradients = sites.gradients(lambda: t.probe(t.model_wrapped, row, tokens))
        sites.selected = selected
        norms = torch.stack([torch.linalg.vector_norm(g.double()) for g in gradients])
        norms = t.accelerator.reduce(norms, "mean").cpu()  # to the last bit the same everywhere
        if bool(norms.isfinite().all()) and int((norms > 0).sum()) >= self.layers:
            self._probabilities = norms / norms.sum()
