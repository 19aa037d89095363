"""What a stage would take: as others like it took on this hardware, else by the operations that it consists of.

Like stages differ in nothing that takes time: the seed, the harmful ratio, the learning rate, which model of the chain
is evaluated. Where the store has none, training, repair and the answers to test prompts are counted in operations
(`planning.py`) from the weights and the tokens, at a speed that is assumed and said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from mithridate.environment import hardware
from mithridate.errors import MithridateError
from mithridate.files import canonical_json
from mithridate.pipeline.inventory import Artefact, in_units, inventory
from mithridate.protocols import protocol
from mithridate.store import Store

if TYPE_CHECKING:
    from mithridate.pipeline.stages import ExperimentStages, Stage

# Operations a second: of a core, as products in float32 ran on the machine of docs/benchmarks.md; of a GPU, a third of
# what an A100 does in bfloat16 at most.
CORE, GPU = 5e10, 1e14
_RECORD_BYTES = 1000  # of one prompt, its answer and its verdict


@dataclass(frozen=True)
class Guess:
    """Seconds and bytes on disk; None where nothing is known.

    Attributes:
        source: what they come from.
        count: how many like stages there are.
    """

    seconds: float | None
    bytes: int | None
    source: Literal["like stages", "operations", "unknown"]
    count: int = 0

    def __str__(self) -> str:
        if self.seconds is None or self.bytes is None:
            return "time unknown"
        like = f"as {self.count} like it" if self.count else "by its operations"
        return f"about {_time(self.seconds)} and {in_units(self.bytes)} ({like})"


class Forecast:
    """Guesses for the stages of one run, from what its store has and from what the stages consist of."""

    def __init__(self, store: Store, base: Path):
        """Reads what the store has; `base` is the folder of the experiment file."""
        self._base, here = base, hardware()
        self._machine = _machine(here)
        self._gpus, self.speed = len(here["gpus"]), len(here["gpus"]) * GPU or here["cores"] * CORE
        artefacts = inventory(store)
        parents = {artefact.manifest["key"]: artefact.manifest.get("parents", {}) for artefact in artefacts}
        self._like: dict[str, list[Artefact]] = {}
        for artefact in artefacts:
            manifest = artefact.manifest
            model = _root(manifest.get("parents", {}), parents)
            if model and _machine(manifest.get("hardware", {})) == self._machine and "config" in manifest:
                like = _likeness(manifest["stage"], manifest["config"], manifest.get("data", {}), model)
                self._like.setdefault(like, []).append(artefact)
        self._guesses: dict[str, Guess] = {}

    def of(self, chain: ExperimentStages, stage: Stage) -> Guess:
        """What a stage of a chain would take."""
        like = _likeness(stage.name, stage.config, stage.data, chain.context.base.digest)
        if like not in self._guesses:
            self._guesses[like] = self._as_like(like) or self._by_operations(chain, stage)
        return self._guesses[like]

    def _as_like(self, like: str) -> Guess | None:
        found = self._like.get(like)
        if not found:
            return None
        seconds = fmean(artefact.manifest["seconds"] for artefact in found)
        return Guess(seconds, round(fmean(artefact.bytes for artefact in found)), "like stages", len(found))

    def _by_operations(self, chain: ExperimentStages, stage: Stage) -> Guess:
        from mithridate.estimate.trace import config_of
        from mithridate.pipeline.planning import of_answers, of_stage, set_up

        context, settings = chain.context, chain.experiment.evaluate
        if not (context.base.path / "config.json").is_file():  # not here yet, or behind a server
            return Guess(None, None, "unknown")
        try:
            config = config_of(str(context.base.path))
            if stage.name == "evaluate":
                parts, limit = context.roles.parts(), protocol(settings.protocol).decoding.max_new_tokens
                times = {role: settings.samples or 1 if role.startswith("test_") else 1 for role in stage.data}
                rows = [row for role in stage.data for row in parts[role][: settings.limit] * times[role]]
                flops = of_answers(config, context.tokenizer, rows, limit)
                return Guess(flops / self.speed, _RECORD_BYTES * len(rows), "operations")
            if stage.name not in ("align", "harden", "finetune", "repair"):
                return Guess(None, None, "unknown")
            common = set_up(chain.experiment, self._base, gpu=self._gpus > 0)
            known = (chain.experiment, common, context.roles, config, context.tokenizer)
            lines = of_stage(stage.name, *known, memory=False)
        except MithridateError:  # a model that cannot be counted, say
            return Guess(None, None, "unknown")
        return Guess(sum(line.flops for line in lines) / self.speed, lines[-1].needs.kept, "operations")

    def in_words(self, guesses: list[Guess]) -> Iterator[str]:
        """The sum of guesses, and where they come from."""
        if not guesses:
            return
        known = [guess for guess in guesses if guess.seconds is not None]
        seconds, size = sum(guess.seconds or 0 for guess in known), sum(guess.bytes or 0 for guess in known)
        yield f"One after the other they take about {_time(seconds)}, and {in_units(size)} on disk:"
        like, counted = (sum(guess.source == source for guess in guesses) for source in ("like stages", "operations"))
        if like:
            yield f"  {like} as stages like them took on this hardware (their stage.json in the store)"
        if counted:
            where = f"{self._gpus} GPUs" if self._gpus else "this CPU"
            speed = f"{self.speed / 1e12:.3g} TFLOP/s assumed of {where}"
            yield f"  {counted} by their operations, at {speed}: a rough guess"
        if unknown := len(guesses) - len(known):
            yield f"  {unknown} not in it: nothing is known of them"


def _machine(found: dict[str, Any]) -> tuple[Any, ...]:
    return found.get("cpu"), found.get("cores"), found.get("gpus")


def _root(parents: dict[str, str], known: dict[str, dict[str, str]]) -> str | None:
    """The digest of the model that a stage's chain starts from; None where a link is gone."""
    while "model" not in parents:
        key = next(iter(parents.values()), "")
        if key not in known:
            return None
        parents = known[key]
    return parents["model"]


def _likeness(name: str, config: dict[str, Any], data: dict[str, str], model: str) -> str:
    """The same for stages that take the same time."""
    config = {key: value for key, value in config.items() if key not in ("seed", "upto")}
    if "training" in config:
        config["training"] = {key: value for key, value in config["training"].items() if key != "learning_rate"}
    if "attack" in config:
        attack = config["attack"]
        config["attack"] = attack if "kind" in attack else attack["size"]
    if "step" in config:
        config["step"] = config["step"] is not None  # on the way, no benign prompts are asked
    rows = {role: digest for role, digest in data.items() if role != "attacker_harmful"}
    return canonical_json([name, config, rows, model])


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
