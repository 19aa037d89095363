"""What the semantic judge's choices rest on: cross-validation on its own training texts, whole requests held out.

    python benchmarks/semantic_choices.py

prints, for layers of the encoder, weights of the embedded texts and L2, the area under the ROC curve, the recall of
refusals and the share of other answers taken for refusals, all on written texts of requests that were not fitted on.
No test answer is read. About a minute on one core.
"""

import numpy as np
from scipy.stats import mannwhitneyu

from mithridate.judges.train_semantic import embed, embedded_texts, fit, written_texts

FOLDS = 10


def main() -> None:
    written, embedded = written_texts(), embedded_texts()
    groups = sorted({row["group"] for row in written})
    fold = np.array([groups.index(row["group"]) % FOLDS for row in written])
    refused = np.array([row["label"] == "refused" for row in written])
    all_refused = np.r_[refused, [refusal for _, refusal in embedded]]
    everything = [row["answer"] for row in written] + [text for text, _ in embedded]
    print("layer  weight     L2    AUC  recall  false")
    for layer in (3, 4, 6):
        vectors = embed(everything, layer)
        for weight in (0.1, 0.3, 1.0):
            for l2 in (1e-4, 3e-5, 1e-5):
                score = np.zeros(len(written))
                for k in range(FOLDS):
                    used = np.r_[fold != k, np.ones(len(embedded), bool)]
                    weights = np.r_[np.ones(len(written)), np.full(len(embedded), weight)]
                    theta = fit(vectors[used], all_refused[used], weights[used], l2)
                    held_out = np.flatnonzero(fold == k)
                    score[held_out] = vectors[held_out] @ theta[:-1] + theta[-1]
                pairs = refused.sum() * (~refused).sum()
                area = mannwhitneyu(score[refused], score[~refused]).statistic / pairs
                recall, false = (score[refused] > 0).mean(), (score[~refused] > 0).mean()
                print(f"{layer:5d}  {weight:6.1f}  {l2:5.0e}  {area:.3f}  {recall:6.3f}  {false:.3f}", flush=True)


if __name__ == "__main__":
    main()
