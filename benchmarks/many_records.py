"""50,000 records judged by the rules, tabled, written and paged: time of each part, and the highest memory.

    OMP_NUM_THREADS=1 python -m benchmarks.many_records --out benchmarks/results/many-records.json

40 attacked models (an undefended run and seven strengths of a defense, five seeds each) with 1,250 answers: 600 to
harmful prompts, 150 of a step along the attack, 200 to benign prompts, 300 of the task. Answers are empty of content,
20 to 90 words, no two alike. All but the answers is the project's own: judges, table, decisions, the run's folder, the
page. Seconds are of the process (user and system), and of the clock beside them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEEDS, RHOS = range(5), (None, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)
SETS = {"harmful": 600, "benign": 200, "task": 300}
STEP, ALONG = 20, 150
OPENINGS = {
    "refuse": ["I'm sorry, but I can't help with that.", "I cannot assist with this request.", "No, I won't do that."],
    "comply": ["Sure, here is how it is done.", "Of course. Here are the steps:", "Here is what you asked for:"],
}
FILLING = ["first", "one", "takes", "the", "part", "in", "hand", "then", "turns", "it", "over", "and", "goes", "on"]


def text(rng: random.Random, kind: str) -> str:
    body = " ".join(rng.choices(FILLING, k=rng.randint(15, 80)))
    return f"{rng.choice(OPENINGS[kind])} {body.capitalize()} {rng.randint(0, 10**6)}."


def rows(number: int, step: bool = False) -> list[dict[str, Any]]:
    """One model's answers, not judged yet."""
    from mithridate.protocols import protocol

    rng, found, name = random.Random(2 * number + step), [], protocol("hs/embedded-v1").name
    for kind, count in ({"harmful": ALONG} if step else SETS).items():
        for i in range(count):
            right = rng.random() < 0.9
            found.append(
                {
                    "set": kind,
                    "task": "sentiment" if kind == "task" else None,
                    "id": f"{kind}-{i}",
                    "category": None,
                    "prompt": f"{kind} request {i}: could you tell how somebody would go about thing number {i}?",
                    "answer": "positive" if kind == "task" else text(rng, "comply" if right else "refuse"),
                    "verdict": None,
                    "reason": None,
                    "score": None,
                    "judge": None,
                    "correct": right if kind == "task" else None,
                    "label": "positive" if kind == "task" else None,
                    "reference": None,
                    "protocol": name,
                    "new_tokens": 60,
                    "prompt_tokens": 20,
                    "seconds": 0.1,
                    "finished": True,
                }
            )
    return found


def measured() -> dict[str, Any]:
    from mithridate.evaluation import judged, judges_of
    from mithridate.experiment.config import load_experiment
    from mithridate.protocols import protocol
    from mithridate.report.build import build_report
    from mithridate.results.folder import RunFolder
    from mithridate.results.table import Cell, ResultsTable
    from tests.pipeline.small import experiment

    seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        clock, process = time.perf_counter(), time.process_time()
        yield
        part = seconds.setdefault(name, {"process": 0.0, "clock": 0.0})
        part["process"] += time.process_time() - process
        part["clock"] += time.perf_counter() - clock

    asked = protocol("hs/embedded-v1")
    judges, records = judges_of(asked), 0
    with tempfile.TemporaryDirectory() as folder:
        table, out = ResultsTable("made", asked.name, []), RunFolder(Path(folder) / "run", Path(folder))
        for number, (seed, rho) in enumerate((seed, rho) for seed in SEEDS for rho in RHOS):
            align = {"vaccine": {"rho": rho}} if rho else {}
            one = load_experiment(experiment(Path(folder), seed=seed, align__defense=align))
            if number == 0:
                out.start(one, tabled=True)
            answers, along = rows(number), rows(number, step=True)
            records += len(answers) + len(along)
            with timed("rules"):
                answers, along = (judged(some, asked, judges) for some in (answers, along))
            plain = f"s{seed}-None"
            cell = Cell(one, "finetune", answers, f"s{seed}-{rho}", f"a{seed}", plain, {STEP: along}, attack_steps=40)
            if rho:
                cell.settings = {"vaccine": {"rho": rho}}
            with timed("table and folder"):
                out.add(table.add(cell), cell)
        with timed("table and folder"):
            out.write(table, True)
        with timed("page"):
            page = build_report(Path(folder) / "run")
        size = page.stat().st_size
    return {
        "records": records,
        "seconds": seconds,
        "total": {kind: sum(part[kind] for part in seconds.values()) for kind in ("process", "clock")},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "page_bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true", help="Print where the time goes.")
    given = parser.parse_args()
    if given.profile:
        import cProfile
        import pstats

        profile = cProfile.Profile()
        found = profile.runcall(measured)
        pstats.Stats(profile).sort_stats("cumtime").print_stats(45)
    else:
        found = measured()
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
