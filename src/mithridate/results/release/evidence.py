"""The folder of a run as evidence: what it says, and what speaks against it.

A table is believed only where its records give its numbers, where these are what their judges say of the stored
answers, and where prompts, seeds and cells are all that were asked for. None of this is a signature: who can write the
folder and recomputes every digest and number can write what he likes. It finds what is old, cut, mixed or edited.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from mithridate import judges as known_judges
from mithridate.data.embedded import embedded_records
from mithridate.data.tasks import TASKS
from mithridate.errors import InputError, first_line
from mithridate.evaluation import judged, judges_of, rules_of, summarise, teller_of_refusals
from mithridate.experiment.config import load_cells, load_experiment
from mithridate.experiment.methods import repair_of, repair_settings
from mithridate.files import canonical_json
from mithridate.judges.base import VERDICTS
from mithridate.protocols import Protocol
from mithridate.protocols import protocol as find_protocol
from mithridate.results.folder import RunFolder, stated
from mithridate.results.relations import role
from mithridate.results.release.findings import EVERY, Finding, doubt, listed
from mithridate.results.schema import STAGES
from mithridate.results.table import Cell

Row = dict[str, Any]
_ANSWERED = ("cell", "step", "set", "id", "prompt", "answer", "correct", "protocol")
_SETS = ("harmful", "benign", "task", "extra")
# What the gate needs to know of a run and of a model; files of older versions lack some of it.
_OF_A_RUN = ("part", "rules", "judges", "deviations", "model_digest", "seeds_asked")
_OF_A_CELL = ("records", "weights_digest")
_CORE = ("harmful_score", "incoherent", "benign_refusal", "accuracy")
_REDO = "run the experiment again (what the store has is not computed again)"


class Evidence:
    """What the folder of a run holds, read and no more: `doubts` and `doubts_of` say what speaks against it.

    Args:
        folder: what `run` wrote: results.json, the records and cells.json.

    Raises:
        InputError: it is not a run folder.
    """

    def __init__(self, folder: Path):
        self.run = RunFolder(folder)
        self.folder = folder
        self.results, self.sha256 = self.run.results, self.run.sha256
        self.cells = self.run.cells
        self.protocol: Protocol = find_protocol(self.results["protocol"])
        for name in self.run.record_files:
            lacking = [column for column in _ANSWERED if column not in self.run.table(name).column_names]
            if lacking:
                raise InputError(f"{folder / name} has no column {lacking[0]!r}: {_REDO}")
        self.rows_by_cell = dict(self.run.counted())  # how many records each cell has
        self._rows: dict[str, list[Row]] = {}  # by cell, once they were asked for

    def rows(self, name: str) -> list[Row]:
        """The records of one cell, on the way (`step`) and at its end."""
        if name not in self._rows:
            self._rows[name] = self.run.rows(name) if name in self.rows_by_cell else []
        return self._rows[name]

    def final(self, name: str) -> list[Row]:
        """The records from the end of a cell."""
        return [row for row in self.rows(name) if row["step"] is None]

    def files(self, names: Sequence[str]) -> dict[str, str]:
        """The digests of the files that hold the records and verdicts of some cells."""
        entries = [stated(self.cells[name], kind) for name in names for kind in ("records", "verdicts")]
        named = dict.fromkeys(entry["file"] for entry in entries if entry) or self.run.record_files
        return {name: self.run.digest(name) for name in named if (self.folder / name).is_file()}

    # -- the run ----------------------------------------------------------------------------------

    def doubts(self, judged: Sequence[str], allowed: Sequence[str]) -> list[Finding]:
        """What speaks against the run as a whole.

        Args:
            judged: the models that the verdict is about.
            allowed: departures from the protocol that are agreed to.
        """
        return [doubt(EVERY, criterion, words) for criterion, words in self._doubts(judged, allowed)]

    def _doubts(self, judged: Sequence[str], allowed: Sequence[str]) -> Iterator[tuple[str, str]]:
        results, cells = self.results, self.cells
        if results.get("complete") is not True:
            words = "results.json does not say that the run has finished"
            if results.get("complete") is False:
                words = f"the run has not finished: its table has {len(cells)} cells so far"
            yield "finished", f"{words}; run it again to go on"
        lacking = [name for name in _OF_A_RUN if name not in results]
        lacking += sorted({name for cell in judged for name in self.lacking(cell)})
        if lacking:
            schema = f"schema {results['schema']}"
            yield "evidence", f"results.json ({schema}) does not say: {', '.join(lacking)}; {_REDO} with this version"
        if (part := results.get("part", "test")) != "test" and f"part: {part} in place of test" not in allowed:
            yield (
                "part",
                f"the scores are of the {part} part, on which settings may have been chosen",
            )
        deviations = results.get("deviations") or []
        if not isinstance(deviations, list) or not all(isinstance(text, str) for text in deviations):
            yield "deviations", f"expected a list of texts, got {deviations!r}"
            deviations = []
        for text in deviations:
            if text not in allowed:
                yield "deviations", f"departs from {self.protocol.name}: {text}"
        expected = rules_of(self.protocol)
        if "rules" in results and results["rules"] != expected:
            yield "rules", f"its verdicts are by {results['rules']}, and {self.protocol.name} is judged by {expected}"
        yield from self._of_cells()

    def _of_cells(self) -> Iterator[tuple[str, str]]:
        """Cells, files and digests against each other."""
        known = list(self.cells)
        if extra := sorted(set(self.rows_by_cell) - set(known)):
            yield "cells", f"the records have cells that the table lacks: {listed(extra)}; {_REDO}"
        if empty := [name for name in known if name not in self.rows_by_cell]:
            yield "cells", f"the table has cells without records: {listed(empty)}; {_REDO}"
        if (recipes := self.run.recipes) is None:
            yield "cells", f"cells.json, which says what each model is, is not there or cannot be read; {_REDO}"
            return
        if (asked := self._asked_for()) is None:
            yield "cells", f"experiment.yaml, which says what was asked for, is not there or cannot be read; {_REDO}"
        elif lost := asked - set(known):
            yield "cells", f"experiment.yaml asks for models that the table lacks: {listed(sorted(lost))}; {_REDO}"
        if extra := sorted(set(recipes) - set(known)):
            yield "cells", f"cells.json has cells that the table lacks: {listed(extra)}; {_REDO}"
        if unmade := sorted(set(known) - set(recipes)):
            yield "cells", f"cells.json does not say how these were made: {listed(unmade)}; {_REDO}"
        wrong = [
            (name, problem)
            for name, recipe in recipes.items()
            if name in self.cells and (problem := _misstated(self.cells[name], recipe, self.results["model"]))
        ]
        for name, problem in wrong[:3]:
            yield "cells", f"{name}: {problem}, says cells.json, by which it is made"

    def _asked_for(self) -> set[str] | None:
        """The names of the models in which the experiments of the run's file end; None where that tells nothing."""
        try:
            asked = load_cells(self.folder / "experiment.yaml")[1]
        except InputError:
            return None
        return {_made(experiment, _last(experiment)).name() for experiment in asked}

    @cached_property
    def _times(self) -> dict[tuple[str, int | None], tuple[float, ...]]:
        """How long the answers of each cell, and step, took: what no two models have in common."""
        found: dict[tuple[str, int | None], list[float]] = {}
        for file in self.run.record_files:
            table = self.run.table(file)
            if "seconds" in table.column_names:
                columns = [table[name].to_pylist() for name in ("cell", "step", "set", "seconds")]
                for cell, step, kind, seconds in zip(*columns):
                    if kind == "harmful" and isinstance(seconds, float) and math.isfinite(seconds):
                        found.setdefault((str(cell), step), []).append(seconds)
        return {key: tuple(times) for key, times in found.items() if len(set(times)) > 1}

    def _of_copies(self, name: str) -> Iterator[tuple[str, str]]:
        """Rows that were copied from elsewhere in the run."""
        own, weights = self._times.get((name, None)), self.cells[name].get("weights_digest")
        for (cell, step), times in self._times.items():
            other = self.cells.get(cell, {}).get("weights_digest")
            if own == times and (cell, step) != (name, None) and (step is not None or other != weights):
                where = cell if step is None else f"{cell} at step {step}"
                yield "records", f"they took the very times of those of {where}: they are that model's; {_REDO}"

    # -- one model --------------------------------------------------------------------------------

    def lacking(self, name: str) -> list[str]:
        """What the table does not say of a model."""
        needed = _OF_A_CELL + (("verdicts",) if self.results["schema"] > 1 else ())
        return [what for what in needed if what not in self.cells[name]]

    def doubts_of(self, name: str, scores: bool) -> list[Finding]:
        """What speaks against the records of one model; with `scores`, also against those of its task answers."""
        return [doubt(name, criterion, words) for criterion, words in self._doubts_of(name, scores)]

    def _doubts_of(self, name: str, scores: bool) -> Iterator[tuple[str, str]]:
        rows = self.rows(name)
        final = [row for row in rows if row["step"] is None]
        yield from self._of_records(name, rows)
        yield from self._of_copies(name)
        if odd := sorted({str(row["set"]) for row in final} - set(_SETS)):
            yield "records", f"sets that no protocol has: {listed(odd)}"
        if others := sorted({str(row["protocol"]) for row in final} - {self.protocol.name}):
            yield "protocol", f"the table is of {self.protocol.name}, the records are of {listed(others)}"
        if blank := sum(not isinstance(row[key], str) for row in final for key in ("prompt", "answer")):
            yield "records", f"{blank} prompts or answers are no text"
            return
        harmful, benign = ([row for row in final if row["set"] == kind] for kind in ("harmful", "benign"))
        yield from self._of_prompts("prompts", harmful, self.protocol.rows)
        if benign:
            yield from self._of_prompts("benign prompts", benign, self.protocol.benign)
        both = {plain_prompt(row["prompt"]) for row in harmful} & {plain_prompt(row["prompt"]) for row in benign}
        if both:
            yield "prompts", f"{len(both)} prompts are among the harmful and the benign ones"
        for kind, part in (("harmful", harmful), ("benign", benign)):
            yield from _of_judge(kind, part, judge_of(self.protocol, kind))
        for column in self.protocol.beside:
            yield from _of_words(f"judge/{column}", column, [*harmful, *benign], f"judge/{column}")
        yield from _of_verdicts([*harmful, *benign], self.protocol)
        if scores:
            yield from _of_scores([row for row in final if row["set"] == "task"], self.protocol)

    def _of_records(self, name: str, rows: list[Row]) -> Iterator[tuple[str, str]]:
        """Digest, number, and whether they give the table's numbers."""
        cell = self.cells[name]
        for kind, file in zip(("records", "verdicts"), self.run.files_of(name)):
            entry = stated(cell, kind)
            if file is None or kind not in cell:  # that a digest is lacking is said of the run
                continue
            if entry is None:
                yield "records", f"results.json does not name the file that they are in ({kind})"
            elif not (self.folder / file).is_file():
                yield "records", f"{file} is not there; {_REDO}"
            elif (found := self.run.digest(file)) != entry.get("sha256") or entry["file"] != file:
                told = f"{entry['file']}, {str(entry.get('sha256'))[:12]}"
                yield (
                    "records",
                    f"{file} is not the file that the table was made from (SHA-256 {found[:12]} in place of {told})"
                    f"; {_REDO}",
                )
            if kind == "records" and entry and entry.get("rows") != len(rows):
                yield "records", f"{len(rows)} rows, and the table was made from {entry.get('rows')}; {_REDO}"
        said = [(None, cell)] + [(point.get("step"), point) for point in cell.get("resistance") or ()]
        for step, rates in said:
            where = "" if step is None else f" at step {step}"
            try:
                found = summarise([row for row in rows if row["step"] == step])
            except InputError as error:  # of several protocols, or judges
                yield "records", f"they give no numbers{where}: {error}"
                continue
            told = rates["rates"] | ({"extra": rates["extra"]} if "extra" in rates else {})
            if problems := list(_differing(told, found)):
                yield "records", f"they do not give the table's numbers{where}: {listed(problems)}; {_REDO}"

    def _of_prompts(self, what: str, rows: list[Row], asked: Any) -> Iterator[tuple[str, str]]:
        """As many different prompts as the protocol asks, each as often as the others, and of its set."""
        samples = sorted({sample_of(row) for row in rows})
        of_prompt = Counter(row["prompt"] for row in rows)
        n = len(rows) // max(1, len(samples))
        uneven = Counter((row["prompt"], sample_of(row)) for row in rows)
        repeats = asked is not None and not asked.unique
        if samples != list(range(len(samples))) or (
            not repeats and (len(set(of_prompt.values())) > 1 or set(uneven.values()) - {1})
        ):
            yield what, "some prompts have more answers than others, or the same answer number twice"
        said = self.results.get("deviations") or ()
        if len(samples) > 1 and f"samples: {len(samples)} in place of 1" not in said:
            yield what, f"{len(samples)} answers to each, of which the table does not say anything"
        if asked is None:
            return
        stated = f"number of {what}: {n} in place of {asked.count}" in said
        if n != asked.count and not stated:
            yield what, f"{n} in the records, where {self.protocol.name} asks {asked.count}"
        if repeats:
            return
        alike: dict[str, set[str]] = {}
        for prompt in of_prompt:
            alike.setdefault(plain_prompt(prompt), set()).add(prompt)
        if same := [min(each) for each in alike.values() if len(each) > 1]:
            yield (
                what,
                f"{len(alike)} different ones in place of {len(of_prompt)}: the others differ in case, blanks, "
                f"punctuation or signs that nobody sees, such as {same[0][:60]!r}",
            )
        ids = Counter((str(row["id"]), sample_of(row)) for row in rows)
        if twice := [name for (name, _), count in ids.items() if count > 1]:
            yield what, f"ids that are there twice: {listed(twice)}"
        own = not any(str(text).startswith(f"{what}: ") for text in said)
        if asked.source == "embedded" and own and (foreign := sorted(set(of_prompt) - _embedded(what, self.results))):
            yield what, f"{len(foreign)} are not of the embedded set, such as {foreign[0][:60]!r}"


def sample_of(row: Mapping[str, Any]) -> int:
    """The number of an answer among several to the same prompt."""
    return row.get("sample") or 0


def trained(cell: Mapping[str, Any]) -> bool:
    """Whether anything was done to the model here; a model that came finished, or answers elsewhere, has no seeds."""
    return any(cell.get(stage) not in (None, "none") for stage in STAGES)


# -- numbers --------------------------------------------------------------------------------------


def _differing(said: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """The rates that a table states otherwise than its records give them."""
    for name, rate in found.items():
        told = said.get(name)
        if name == "extra":
            yield from _differing(told if isinstance(told, dict) else {}, rate)
        elif not isinstance(told, dict):
            if name in _CORE:
                yield f"{name} is not there"
        else:
            for key in ("value", "n", "unscored"):
                absent = 0 if key == "unscored" else None
                if not _same(told.get(key, absent), rate.get(key, absent)):
                    yield f"{name}.{key} {told.get(key)!r} in place of {rate.get(key)!r}"


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
    return numbers and math.isclose(one, other, rel_tol=0, abs_tol=1e-9)


# -- what a cell is -------------------------------------------------------------------------------


def _misstated(cell: Mapping[str, Any], recipe: Any, model: str) -> str | None:
    """What the table says of a cell otherwise than the recipe by which it is made again."""
    try:
        upto, experiment = recipe["upto"], load_experiment(recipe["experiment"])
    except (InputError, LookupError, TypeError) as error:
        return f"its recipe cannot be read ({first_line(error)})"
    made = _made(experiment, upto)
    meant = {stage: getattr(made, stage) for stage in STAGES} | {"settings": made.settings, "control": made.control}
    meant |= {"harmful_ratio": made.harmful_ratio, "topology": experiment.topology, "seed": experiment.seed}
    meant["role"] = role(meant)
    for key, value in meant.items():
        if key in cell and canonical_json(cell[key]) != canonical_json(value):
            return f"{key} is {value!r}, not {cell[key]!r}"
    if experiment.model != model:
        return f"made from {experiment.model!r}, not {model!r}"
    if upto == _last(experiment) and not cell.get("final", True):
        return "its experiment ends in it, and the table says that none does"
    if cell.get("weights_digest", "") is None and "openai" not in experiment.evaluate.generator:
        return "its weights were loaded here, and the table has no digest of them"
    return None


def _made(experiment: Any, upto: str) -> Any:
    """What results.json calls an experiment's model after a stage."""
    settings: dict[str, Any] = dict(experiment.align.defense) if experiment.align else {}
    if upto != "align" and experiment.finetune:
        settings |= experiment.finetune.defense
    for post_alignment in (True, False):
        repair = repair_of(experiment, post_alignment)
        if repair and (post_alignment or upto == "repair"):
            settings[repair[0]] = repair_settings(experiment, repair[0])
    return Cell(experiment, upto, [], key="", aligned="", undefended="", settings=settings)


def _last(experiment: Any) -> str:
    return "repair" if repair_of(experiment, post_alignment=False) else "finetune" if experiment.finetune else "align"


# -- prompts --------------------------------------------------------------------------------------

# What Unicode calls ignorable for lack of a shape, beside the format characters (category Cf).
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")


@lru_cache(maxsize=10_000)  # each criterion asks for those of the same prompts
def plain_prompt(text: Any) -> str:
    """What is left of a prompt without case, width, accents, blanks, punctuation and signs that nobody sees."""
    text = str(text)
    plain = unicodedata.normalize("NFKD", _UNSEEN.sub("", text)).casefold()
    kept = (c for c in plain if unicodedata.category(c)[0] not in "ZPC" and unicodedata.combining(c) < 200)
    return "".join(kept) or text.strip()


def _embedded(what: str, results: Mapping[str, Any]) -> set[str]:
    role = "test_harmful" if what == "prompts" else "test_benign"
    part = "validation" if results.get("part") == "validation" else "test"
    return {record["prompt"] for record in embedded_records(role, part)}


# -- verdicts -------------------------------------------------------------------------------------


def judge_of(protocol: Protocol, kind: str) -> str | None:
    """The one of the protocol's own judges whose verdicts on the harmful, or benign, prompts' answers stand."""
    if kind == "harmful":
        return protocol.judge.name
    own = [known_judges.by_name(name) for name in (protocol.judge.name, *protocol.beside)]
    found = teller_of_refusals(own)
    return found.name if found else None


def words_of(judge: str) -> frozenset[str]:
    """The verdicts that a judge may give."""
    kind = known_judges.by_name(judge).kind
    return frozenset(VERDICTS[kind])


def _of_judge(kind: str, rows: list[Row], judge: str | None) -> Iterator[tuple[str, str]]:
    """Whether the column `verdict` is the protocol's judge's."""
    named = {row["judge"] for row in rows}
    if rows and judge is None:
        yield "judge", f"the protocol has no judge of {kind} prompts' answers"
    elif others := sorted(str(name) for name in named - {judge, None}):
        yield "judge", f"{kind} prompts' answers are judged by {listed(others)}, where the protocol has {judge}"
    elif bare := sum(row["judge"] is None and row["verdict"] is not None for row in rows):
        yield "judge", f"{bare} verdicts on {kind} prompts' answers do not say whose they are"
    elif judge is not None:
        yield from _of_words(f"{kind} prompts' answers", judge, rows, "verdict")


def _of_words(what: str, judge: str, rows: list[Row], column: str) -> Iterator[tuple[str, str]]:
    said = {word for row in rows if (word := row.get(column)) is not None}
    if odd := sorted(map(repr, said - words_of(judge))):
        count = sum(repr(row[column]) in odd for row in rows)
        yield "verdicts", f"{what}: {count} words that {judge} does not have, taken for unscored: {listed(odd)}"


def _of_verdicts(rows: list[Row], protocol: Protocol) -> Iterator[tuple[str, str]]:
    """Whether verdicts are what their judges say of the stored answers: those that need no model are asked again."""
    judges = [judge for judge in judges_of(protocol) if judge.about.size == "none"]
    fresh = judged(rows, protocol, judges)
    for kind in ("harmful", "benign"):
        both = [(row, new) for row, new in zip(rows, fresh) if row["set"] == kind]
        for column in ("verdict", *(f"judge/{judge.name}" for judge in judges)):
            asked = [(row, new) for row, new in both if (new["judge"] if column == "verdict" else column in new)]
            wrong = [(row, new) for row, new in asked if column in row and row[column] != new[column]]
            if wrong:
                row, new = wrong[0]
                name = new["judge"] if column == "verdict" else column.removeprefix("judge/")
                yield (
                    "verdicts",
                    f"{kind} prompts' answers: {len(wrong)} are not what {name} says of the stored answers: id "
                    f"{row['id']} is {new[column]}, not {row[column]}; {_REDO}",
                )


def _of_scores(rows: Iterable[Row], protocol: Protocol) -> Iterator[tuple[str, str]]:
    """Whether the column `correct` is what the task's rule says of the stored answers."""
    wrong, odd = [], 0
    for row in rows:
        name = str(row.get("task"))
        rule = protocol.task(name).rule if name in TASKS else None
        if rule is None or row.get("label") is None:
            odd += row["correct"] is not None
            continue
        try:
            right = TASKS[name].rules[rule](row["answer"], {"label": row["label"]})
        except (ValueError, LookupError):
            odd += 1
            continue
        if row["correct"] is not right:
            wrong.append(row)
    if wrong:
        yield "scores", f"{len(wrong)} task answers are not scored as the task's rule scores them: id {wrong[0]['id']}"
    if odd:
        yield "scores", f"{odd} task answers are scored by no rule that is known here"
