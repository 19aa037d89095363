"""docs/results.md, as a function of what was kept of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from benchmarks.results_page import findings, papers
from benchmarks.results_page.evidence import Evidence
from mithridate.studies.presets.book import MARKS

_HEAD = """# Results

<!-- Written by `python -m benchmarks.results {folders}`; a test compares. -->

[Benchmarks](benchmark.md): every method with the same number of tries on validation parts, then once on the test
parts. Tables, records and verdicts are in {listed}; this page is written from them, sentences included. Below, the
papers' own numbers for the same methods stand beside: other models, other data, other judges.
"""


def page(runs: Sequence[Evidence]) -> str:
    """The whole page."""
    folders = [f"benchmarks/results/{one.name}" for one in runs]
    head = _HEAD.format(folders=" ".join(folders), listed=", ".join(f"`{one}`" for one in folders))
    lines = [head, *(line for one in runs for line in of_run(one)), *beside(runs)]
    return "\n".join(lines).rstrip() + "\n"


def of_run(evidence: Evidence) -> Iterator[str]:
    """One benchmark: what was run, its table, what its tests say, what was chosen, and every try."""
    yield f"## `{evidence.name}`"
    yield ""
    yield from what_was_run(evidence)
    yield ""
    yield evidence.table.strip()
    for topology in evidence.topologies:
        yield ""
        yield f"### What the tests say of `{evidence.name}`, {topology}"
        yield ""
        yield (
            "Differences are of the harmful score, in points with 95 % intervals; a p-value is corrected by Holm "
            "within its family (methods against the undefended run, against their controls, against baselines). What "
            "is not shown is not absent: with few seeds little can be shown."
        )
        yield ""
        yield from findings.of_each(evidence, topology)
        yield ""
        yield f"**Against the trivial baselines** ({', '.join(findings.BASELINES)}; those that were run):"
        yield ""
        yield from findings.against_baselines(evidence, topology)
    yield ""
    yield f"### What was chosen in `{evidence.name}`"
    yield ""
    yield from findings.choices(evidence)
    yield ""
    if evidence.found["tries"]:
        yield from findings.all_tries(evidence)
        yield ""
    if evidence.found.get("knowing"):
        yield from findings.all_knowing(evidence)
        yield ""


def beside(runs: Sequence[Evidence]) -> Iterator[str]:
    """The papers' numbers, and where their order is not that of the runs."""
    tables, parameters = papers.book()
    yield "## The papers' numbers"
    yield ""
    yield (
        "Nothing below was measured by this project. Marks: "
        + "; ".join(f"**{mark}** {meaning}" for mark, meaning in MARKS.items())
        + ". Where the order of the methods that were run here too is another one, it is said which change places, "
        "and in what the two set-ups differ; which of these differences is the cause, none of these numbers says."
    )
    for one in tables:
        yield ""
        yield f"### {one.name}"
        yield ""
        yield from papers.numbers(one)
        for evidence in runs:
            for topology in evidence.topologies:
                yield ""
                yield from papers.compared(evidence, topology, one, parameters)


def what_was_run(evidence: Evidence) -> Iterator[str]:
    """Model, data, attack, tries, bounds, seeds, machine, versions, time: a line each."""
    file, model, parameters = evidence.found["file"], str(evidence.experiment.model), papers.book()[1]
    size = f", {parameters[model] / 1e6:.0f} million parameters" if model in parameters else ""
    yield f"- Model: {model}{size}, digest `{str(evidence.results.get('model_digest'))[:12]}`."
    for topology in evidence.topologies:
        setup = papers.setup_here(evidence, topology)
        rest = [f"{name} {value}" for name, value in setup.items() if name not in ("model", "topology")]
        yield f"- Set-up ({topology}): {'; '.join(rest)}."
    points = [", ".join(f"{path} {value}" for path, value in point.items()) for point in evidence.found["points"]]
    listed = f" ({'; '.join(points)})" if any(points) else ""
    yield f"- Attacks: {len(points)}{listed}; each method meets every one."
    bounds = ", ".join(f"{name} {value:g}" for name, value in file["bounds"].items() if value is not None) or "none"
    seeds = ", ".join(map(str, file["seeds"]))
    yield f"- Tries: {file['tries']} of each method in each topology; bounds: {bounds}."
    yield f"- Seeds of the final runs: {seeds}."
    deviations = evidence.results.get("deviations") or []
    yield f"- Departs from its protocol in: {'; '.join(deviations) or 'nothing'}."
    for note in evidence.results.get("notes") or []:
        yield f"- {note}"
    yield from made_with(evidence.made)


def made_with(made: Mapping[str, Any]) -> Iterator[str]:
    """The machine, how busy it was, versions, commit and wall time."""
    for one in made["computers"]:
        hardware, versions = one["hardware"], one["versions"]
        machine = ", ".join(hardware["gpus"]) or f"{hardware['cores']} cores of {hardware['cpu']}"
        used = ", ".join(f"{name} {value}" for name, value in versions.items() if value and name != "commit")
        commit = (
            f"commit `{versions['commit']}`" if versions.get("commit") else "an installed package, of no known commit"
        )
        memory = f"{hardware['memory_bytes'] / 1e9:.0f} GB"
        yield f"- {one['stages']} stages ({one['seconds'] / 3600:.2f} h) on {machine}, {memory}; {used}; {commit}."
    begun, ended = (datetime.fromisoformat(made[name]) for name in ("started", "finished"))
    hours = (ended - begun).total_seconds() / 3600
    busy = sum(one["seconds"] for one in made["computers"]) / 3600
    at_a_time = f", {busy / hours:.1f} at a time on average" if hours else ""
    yield f"- Wall time: {hours:.2f} h, from {begun:%Y-%m-%d %H:%M} UTC to the last stage's end{at_a_time}."
    alike = made["alike"]
    if alike["groups"]:
        yield (
            f"- How busy the machine was: of trainings with equal settings the longest took {alike['median']:g} times "
            f"the shortest's time (median of {alike['groups']} groups; at most {alike['most']:g} times)."
        )
    if made.get("note"):
        yield f"- {made['note'].rstrip('.')}."
