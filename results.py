"""Scores of one part of the data: rows that had no part in any choice, or validation rows as if they had none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from calibration import cross_fit
from decision import Decision
from examples import Examples
from metrics import by_label, intervals, resample, score, score_decisions, score_probabilities


@dataclass(frozen=True)
class Scored:
    """The rows of one part beside what the model says about them; `values` is the part's section of metrics.json.

    Logits are float32 [N, 1] in binary tasks, else [N, K], probabilities [N, K]; `predicted` is in the form of `targets`.
    `probabilities` are those of the shipped model. `honest` ones and `predicted` come, on validation rows, from temperatures
    and thresholds that other rows chose; on all other rows they are the shipped model's.
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
    draws, at_half_draws = resample(task, targets, probabilities, honest, [predicted, at_half])
    # Folds with temperatures of their own cannot be ranked against each other: the shipped model ranks.
    scores = score(task, targets, probabilities, predicted) | score_probabilities(task, targets, honest)
    values: dict[str, Any] = {
        "examples": len(examples),
        **scores,
        "intervals": intervals({name: draws[name] for name in draws.keys() & scores.keys()}),
        "uncalibrated": score_probabilities(task, targets, decision.uncalibrated().probabilities(logits)),
        "by_label": by_label(task, targets, probabilities, predicted),
    }
    if task.kind != "multilabel":
        values["confusion_matrix"] = confusion_matrix(targets, predicted, labels=range(len(task.labels))).tolist()
    if task.kind != "multiclass":
        scores = score_decisions(task, targets, at_half)
        values["at_half"] = {
            **{name: scores[name] for name in at_half_draws},
            "intervals": intervals(at_half_draws),
            "gain_intervals": intervals({name: draws[name] - half for name, half in at_half_draws.items()}),
        }
    return Scored(examples, targets, logits, probabilities, honest, predicted, values)
