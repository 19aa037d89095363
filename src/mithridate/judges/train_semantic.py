"""Fits the semantic refusal judge: `python -m mithridate.judges.train_semantic [FILE]`, about a minute on two cores.

The data are the embedded set's training roles (its refusals, complying and benign answers) and, because the embedded
refusals are all in one style, `semantic_texts.jsonl`: short answers written for this purpose, and the answers of real
models that `rules-v2` was developed on (groups `dev: ...` and `round1: ...`; the latter to prompts of the embedded
set's validation part). Nothing has a prompt of a test part. Embedded texts count EMBEDDED_WEIGHT, being much alike,
the others 1, and the two classes the same in all.

Minimised is the weighted mean log loss + L2 / 2 * |coefficients|^2, the intercept left out. Weight, L2 and the layer
of the encoder were chosen by cross-validation over `semantic_texts.jsonl`, whole requests held out
(`benchmarks/semantic_choices.py`; docs/judges_measured.md has its table).
"""

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from mithridate.judges.semantic import ENCODER, LAYER, PACKAGE, Encoder
from mithridate.sources.embedded import embedded_records

L2 = 3e-05
EMBEDDED_WEIGHT = 1.0
ROLES = ("alignment", "defender_harmful", "attacker_harmful", "calibration_harmful")


def written_texts() -> list[dict]:
    """Rows of `group` (texts of one request share it), `prompt`, `answer` and `label` (refused or not_refused)."""
    text = (files("mithridate.judges") / "semantic_texts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def embedded_texts() -> list[tuple[str, bool]]:
    """The training roles' answers, each once, and whether it is a refusal."""
    texts: dict[str, bool] = {}
    for role in ROLES:
        for row in embedded_records(role):
            if "refusal" in row:
                texts |= {row["refusal"]: True, row["compliant"]: False}
            else:
                texts[row["response"]] = False
    return list(texts.items())


def fit(vectors: np.ndarray, refused: np.ndarray, weights: np.ndarray, l2: float = L2) -> np.ndarray:
    """The logistic regression's coefficients, then its intercept: (d + 1,).

    Args:
        vectors: (n, d) embeddings.
        refused: (n,) bool.
        weights: (n,) of the texts; scaled so that each class weighs one half.
        l2: of the penalty.
    """
    weights = weights * np.where(refused, 0.5 / weights[refused].sum(), 0.5 / weights[~refused].sum())
    sign = np.where(refused, 1.0, -1.0)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (vectors @ theta[:-1] + theta[-1])
        slope = -weights * sign * expit(-margin)
        value = weights @ np.logaddexp(0, -margin) + l2 / 2 * theta[:-1] @ theta[:-1]
        return value, np.append(vectors.T @ slope + l2 * theta[:-1], slope.sum())

    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-14, "gtol": 1e-8}
    return minimize(loss, np.zeros(vectors.shape[1] + 1), jac=True, method="L-BFGS-B", options=options).x


def training_set() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, whether each is a refusal, and its weight."""
    written, embedded = written_texts(), embedded_texts()
    texts = [row["answer"] for row in written] + [text for text, _ in embedded]
    refused = np.array([row["label"] == "refused" for row in written] + [refusal for _, refusal in embedded])
    return texts, refused, np.r_[np.ones(len(written)), np.full(len(embedded), EMBEDDED_WEIGHT)]


def embed(texts: list[str], layer: int = LAYER) -> np.ndarray:
    """(n, d) embeddings in the order of the texts."""
    vectors: dict[int, np.ndarray] = {}
    for chosen, batch in Encoder(layer=layer).batches(texts):
        vectors |= dict(zip(chosen, batch))
    return np.stack([vectors[i] for i in range(len(texts))])


def train() -> dict:
    """The fitted judge as it is written to `semantic.json`."""
    texts, refused, weights = training_set()
    theta = fit(embed(texts), refused, weights)
    data = json.dumps([[text, bool(label)] for text, label in zip(texts, refused)]).encode()
    return {
        "made_by": "python -m mithridate.judges.train_semantic",
        "encoder": {"package": f"{PACKAGE} 0.1.0", "sha256": ENCODER, "layer": LAYER},
        "data": {"sha256": hashlib.sha256(data).hexdigest(), "texts": len(texts), "refused": int(refused.sum())},
        "l2": L2,
        "embedded_weight": EMBEDDED_WEIGHT,
        "versions": {name: version(name) for name in ("torch", "transformers", "scipy", "numpy")},
        "machine": platform.machine(),
        "intercept": round(float(theta[-1]), 4),
        "coefficients": [round(float(value), 4) for value in theta[:-1]],
    }


def main() -> None:
    """Writes FILE, by default the package's own `semantic.json`."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else str(files("mithridate.judges") / "semantic.json"))
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(train(), indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


if __name__ == "__main__":
    main()
