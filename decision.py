"""From logits to what is predicted: calibrated probabilities and tuned thresholds, both chosen on validation rows alone.

N rows, K labels, L logits: one in binary tasks, else K.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax
from sklearn.metrics import confusion_matrix_at_thresholds

from config import split_threshold_metric
from examples import prediction_columns
from tables import NAMED
from tasks import Task

HALF = 0.5
_FOLDS = 5
_FEWEST = 10  # rows with a label, and without it, that its threshold and temperature are chosen on
_LOG_TEMPERATURES = (-3.0, 3.0)  # of the search: 1/20 to 20
_SEED = 0


@dataclass(frozen=True)
class Decision:
    """How logits become probabilities, and probabilities labels.

    `temperature`, float32, divides the logits: [1], or [K] in multi-label tasks. `threshold`, float32, is what the probability
    of the positive label, [1], or of each of several, [K], must reach; in multi-class tasks, where the likeliest is taken, [0].
    """

    task: Task
    temperature: np.ndarray
    threshold: np.ndarray

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits, float32 [N, L] -> probabilities in the order of the labels, float32 [N, K]."""
        scaled = logits / self.temperature
        if self.task.kind == "multiclass":
            return softmax(scaled, axis=1)
        return expit(scaled if self.task.kind == "multilabel" else np.concatenate([-scaled, scaled], axis=1))

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """What is predicted, in the form of targets: int64 [N], or 0 and 1, float32 [N, K], in multi-label tasks."""
        if self.task.kind == "multilabel":
            return (probabilities >= self.threshold).astype(np.float32)
        if self.task.kind == "binary":
            return (probabilities[:, 1] >= self.threshold).astype(np.int64)
        return probabilities.argmax(axis=1)

    def named_thresholds(self) -> float | dict[str, float] | None:
        """The threshold in binary tasks, one for each label in multi-label ones, none in multi-class ones."""
        values = [float(value) for value in self.threshold]
        if self.task.kind == "multilabel":
            return dict(zip(self.task.labels, values, strict=True))
        return values[0] if values else None

    def named_temperatures(self) -> float | dict[str, float]:
        """The temperature; in multi-label tasks one for each label."""
        values = [float(value) for value in self.temperature]
        return dict(zip(self.task.labels, values, strict=True)) if self.task.kind == "multilabel" else values[0]

    def at_half(self) -> "Decision":
        """The same probabilities, decided at 0.5."""
        return replace(self, threshold=np.full_like(self.threshold, HALF))

    def uncalibrated(self) -> "Decision":
        """The same thresholds, on the probabilities as they were trained."""
        return replace(self, temperature=np.ones_like(self.temperature))


def predictions_table(decision: Decision, probabilities: np.ndarray) -> pd.DataFrame:
    """What stands beside a table's own columns: the label (of a multi-label task all labels, joined by its separator), its
    probability (of the likeliest label), and the probability of each label."""
    task, chosen, names = decision.task, decision.decide(probabilities), np.array(decision.task.labels, dtype=object)
    if task.kind == "multilabel":
        labels = [task.separator.join(names[row > 0]) for row in chosen]
        probability = probabilities.max(axis=1)
    else:
        labels = names[chosen].tolist()
        probability = probabilities[np.arange(len(chosen)), chosen]
    columns = [labels, probability, *probabilities.T]
    return pd.DataFrame(dict(zip(prediction_columns(task.labels), columns, strict=True)))


def plain_decision(task: Task) -> Decision:
    """Temperature 1 and thresholds of 0.5: what a model starts with."""
    per_label = len(task.labels) if task.kind == "multilabel" else 1
    thresholds = 0 if task.kind == "multiclass" else per_label
    return Decision(task, np.ones(per_label, np.float32), np.full(thresholds, HALF, np.float32))


def fit_decision(
    task: Task, logits: np.ndarray, targets: np.ndarray, threshold_metric: str
) -> tuple[Decision, list[str]]:
    """Chooses temperatures and thresholds on validation rows; `threshold_metric` is as in `Config`.

    A label that fewer than 10 rows have, or lack, keeps temperature 1 and threshold 0.5.

    Returns:
        The decision, and in words what is not as asked for and why.
    """
    decision = plain_decision(task)
    temperature, threshold = decision.temperature.copy(), decision.threshold.copy()
    too_few, not_reached = [], []
    for place, (part, true) in enumerate(_problems(task, logits, targets)):
        name = task.labels[place] if task.kind == "multilabel" else ""
        if not _enough(part, true):
            too_few.append(name)
            continue
        temperature[place] = _calibrate(part, true)
        if task.kind != "multiclass":
            probabilities = expit(part[:, 0] / temperature[place])
            threshold[place], reached = best_threshold(true, probabilities, threshold_metric)
            not_reached += [] if reached else [name]
    kept = "no calibration" if task.kind == "multiclass" else "no calibration, and 0.5 as the threshold"
    notes = [f"too few validation rows{_for(too_few)}: {kept}"] if too_few else []
    if not_reached:
        notes.append(
            f"no threshold has {threshold_metric}{_for(not_reached)} on the validation rows: the most precise is taken"
        )
    return Decision(task, temperature, threshold), notes


def _for(labels: list[str]) -> str:
    """A few labels in words; nothing in tasks that are not multi-label."""
    named = [repr(label) for label in labels if label]
    more = ", ..." if len(named) > NAMED else ""
    return (
        f" for {len(named):,} label{'s' if len(named) > 1 else ''} ({', '.join(named[:NAMED])}{more})" if named else ""
    )


def cross_fit(task: Task, logits: np.ndarray, targets: np.ndarray, threshold_metric: str) -> tuple[np.ndarray, ...]:
    """Decides about the validation rows themselves as about unseen ones: those of each of five folds by temperatures and
    thresholds that were chosen on the other four.

    Returns:
        Probabilities, float32 [N, K]; what is predicted; what is predicted at 0.5.
    """
    probabilities = np.empty((len(logits), len(task.labels)), np.float32)
    predicted, at_half = np.empty_like(targets), np.empty_like(targets)
    for rows in _folds(len(logits)):
        decision, _ = fit_decision(task, logits[~rows], targets[~rows], threshold_metric)
        probabilities[rows] = decision.probabilities(logits[rows])
        predicted[rows] = decision.decide(probabilities[rows])
        at_half[rows] = decision.at_half().decide(probabilities[rows])
    return probabilities, predicted, at_half


def _folds(num_rows: int) -> list[np.ndarray]:
    """Five parts of the rows at random, as bool [N] each; fewer where there are fewer rows."""
    fold = np.random.default_rng(_SEED).permutation(num_rows) % _FOLDS
    return [fold == number for number in range(min(_FOLDS, num_rows))]


def _problems(task: Task, logits: np.ndarray, targets: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """What has a temperature of its own: logits, [N, 1] or [N, K], and targets, [N]; in multi-label tasks each label."""
    if task.kind != "multilabel":
        return [(logits, targets)]
    return [(logits[:, [place]], targets[:, place]) for place in range(len(task.labels))]


def _enough(logits: np.ndarray, targets: np.ndarray) -> bool:
    if logits.shape[1] > 1:
        return len(targets) >= 2 * _FEWEST
    positive = np.count_nonzero(targets)
    return bool(min(positive, len(targets) - positive) >= _FEWEST)


# Calibration


def _calibrate(logits: np.ndarray, targets: np.ndarray) -> float:
    """Temperature scaling (Guo et al., arXiv:1706.04599); 1 unless the log loss of rows left out of fitting is lower."""
    before = after = 0.0
    for rows in _folds(len(logits)):
        temperature = _best_temperature(logits[~rows], targets[~rows])
        before += _losses(logits[rows], targets[rows], 1.0).sum()
        after += _losses(logits[rows], targets[rows], temperature).sum()
    return _best_temperature(logits, targets) if after < before else 1.0


def _best_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    def loss(log_temperature: float) -> float:
        return float(_losses(logits, targets, np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


def _losses(logits: np.ndarray, targets: np.ndarray, temperature: float) -> np.ndarray:
    """Cross-entropy of each row, float64 [N]; logits are [N, 1] or [N, K]."""
    scaled = logits.astype(np.float64) / temperature
    if scaled.shape[1] == 1:
        return np.logaddexp(0.0, (1 - 2 * targets) * scaled[:, 0])
    return logsumexp(scaled, axis=1) - scaled[np.arange(len(targets)), targets]


# Thresholds


def best_threshold(true: np.ndarray, probabilities: np.ndarray, threshold_metric: str) -> tuple[float, bool]:
    """The threshold with the best value of a metric, halfway to the next lower probability, so that it is none of them.

    Args:
        true: 0 or 1, [N].
        probabilities: float32 [N].
        threshold_metric: as in `Config`.

    Returns:
        The threshold, and whether it has the recall or precision that is asked for; else it is the most precise one.
    """
    name, level = split_threshold_metric(threshold_metric)
    tn, fp, fn, tp, thresholds = confusion_matrix_at_thresholds(true, probabilities)  # from the highest on
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    if name == "precision_at_recall":
        values = np.where(recall >= level, precision, -1.0)
    elif name == "recall_at_precision":
        values = np.where(precision >= level, recall, precision - 2.0)
    elif name == "balanced_accuracy":
        values = (recall + tn / (tn + fp)) / 2
    else:
        values = 2 * tp / (2 * tp + fp + fn)
    best = int(values.argmax())
    lower = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    middle = np.float32((np.float64(thresholds[best]) + lower) / 2)
    return float(middle if middle > lower else thresholds[best]), bool(values[best] >= 0)
