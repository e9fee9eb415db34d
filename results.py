"""Scores of one part of the data: rows that had no part in any choice, or validation rows as if they had none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from decision import Decision, cross_fit
from examples import Examples
from metrics import HEADLINE, by_label, interval, resample, score, score_probabilities

_RANKING = ("average_precision", "loss")  # headline metrics that no threshold changes


@dataclass(frozen=True)
class Scored:
    """The rows of one part beside what the model says about them; `values` is the part's section of metrics.json.

    Logits are float32 [N, 1] in binary tasks, else [N, K], probabilities [N, K]; `predicted` is in the form of `targets`.
    What is calibrated (`honest`) and predicted had no part of a row in any choice; `probabilities` are those of the shipped
    model, and the same on all but validation rows.
    """

    examples: Examples
    targets: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    honest: np.ndarray
    predicted: np.ndarray
    values: dict[str, Any]


def score_unseen(decision: Decision, examples: Examples, logits: np.ndarray) -> Scored:
    """Scores rows that had no part in choosing temperature and threshold; logits are float32 [N, 1] or [N, K]."""
    probabilities = decision.probabilities(logits)
    at_half = decision.at_half().decide(probabilities)
    return _scored(decision, examples, logits, probabilities, decision.decide(probabilities), at_half)


def score_validation(decision: Decision, examples: Examples, logits: np.ndarray, threshold_metric: str) -> Scored:
    """Scores the rows on which temperature and threshold were chosen, each of five folds by what the others choose."""
    crossed = cross_fit(decision.task, logits, decision.task.targets(examples.labels), threshold_metric)
    return _scored(decision, examples, logits, *crossed)


def _scored(
    decision: Decision,
    examples: Examples,
    logits: np.ndarray,
    honest: np.ndarray,
    predicted: np.ndarray,
    at_half: np.ndarray,
) -> Scored:
    task, probabilities = decision.task, decision.probabilities(logits)
    targets = task.targets(examples.labels)
    draws = resample(task, targets, probabilities, predicted)
    draws["loss"] = resample(task, targets, honest, predicted)["loss"]
    values: dict[str, Any] = {
        "examples": len(examples),
        # Folds with temperatures of their own cannot be ranked against each other: the shipped model ranks.
        **score(task, targets, probabilities, predicted),
        **score_probabilities(task, targets, honest),
        "intervals": {name: interval(values) for name, values in draws.items()},
        "uncalibrated": score_probabilities(task, targets, decision.uncalibrated().probabilities(logits)),
        "by_label": by_label(task, targets, probabilities, predicted),
    }
    if task.kind != "multilabel":
        values["confusion_matrix"] = confusion_matrix(targets, predicted, labels=range(len(task.labels))).tolist()
    if task.kind != "multiclass":
        half = resample(task, targets, probabilities, at_half)
        names = [name for name in HEADLINE[task.kind] if name not in _RANKING]
        scores = score(task, targets, probabilities, at_half)
        values["at_half"] = {
            **{name: scores[name] for name in names},
            "intervals": {name: interval(half[name]) for name in names},
            "gain_intervals": {name: interval(draws[name] - half[name]) for name in names},
        }
    return Scored(examples, targets, logits, probabilities, honest, predicted, values)
