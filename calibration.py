"""Temperatures and thresholds, chosen on validation rows alone: what `Decision` is made of after a training.

N rows, K labels, L logits: one in binary tasks, else K.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp
from sklearn.metrics import confusion_matrix_at_thresholds

from config import split_threshold_metric
from decision import Decision, plain_decision
from tables import name_rows
from tasks import Task

_FOLDS = 5
_FEWEST = 10  # rows with a label, and without it, for its threshold; wrong rows for its temperature
_LOG_TEMPERATURES = (-3.0, 3.0)  # of the search: 1/20 to 20
_SEED = 0


def fit_decision(
    task: Task, logits: np.ndarray, targets: np.ndarray, threshold_metric: str
) -> tuple[Decision, list[str]]:
    """Chooses temperatures and thresholds on validation rows; `threshold_metric` is as in `Config`.

    A label that fewer than 10 rows have, or lack, keeps threshold 0.5; where fewer than 10 rows are decided wrongly the
    temperature stays 1, because rows that are all right would be best explained by certainty.

    Returns:
        The decision, and in words what is not as asked for and why.
    """
    problems = _problems(task, logits, targets)
    decision, missed = _fit(task, problems, problems, threshold_metric)
    few = [place for place, problem in enumerate(problems) if not problem.has_threshold]
    right = [place for place, problem in enumerate(problems) if not problem.has_temperature]
    notes = []
    if few and task.kind != "multiclass":
        notes.append(f"too few validation rows{_for(task, few)}: the threshold stays 0.5")
    if right:
        notes.append(f"fewer than {_FEWEST} validation rows are decided wrongly{_for(task, right)}: no calibration")
    if missed:
        aim = f"no threshold has {threshold_metric}{_for(task, missed)} on the validation rows"
        notes.append(f"{aim}: the most precise is taken")
    return decision, notes


def cross_fit(task: Task, logits: np.ndarray, targets: np.ndarray, threshold_metric: str) -> tuple[np.ndarray, ...]:
    """Decides about the validation rows themselves as about unseen ones: those of each of five folds by temperatures and
    thresholds that were chosen on the other four.

    Returns:
        Probabilities, float32 [N, K]; what is predicted; what is predicted at 0.5.
    """
    probabilities = np.empty((len(logits), len(task.labels)), np.float32)
    predicted, at_half = np.empty_like(targets), np.empty_like(targets)
    whole = _problems(task, logits, targets)
    for rows in _folds(targets):
        others = _problems(task, logits[~rows], targets[~rows])
        decision, _ = _fit(task, others, whole, threshold_metric)
        probabilities[rows] = decision.probabilities(logits[rows])
        predicted[rows] = decision.decide(probabilities[rows])
        at_half[rows] = decision.at_half().decide(probabilities[rows])
    return probabilities, predicted, at_half


@dataclass(frozen=True)
class _Problem:
    """What has a temperature of its own: logits, float32 [N, 1] or [N, K], and targets, 0 and 1 or positions, [N]."""

    logits: np.ndarray
    targets: np.ndarray

    @property
    def has_threshold(self) -> bool:
        """Whether there are rows enough with the label, and without it."""
        positive = np.count_nonzero(self.targets)
        return bool(self.logits.shape[1] == 1 and min(positive, len(self.targets) - positive) >= _FEWEST)

    @property
    def has_temperature(self) -> bool:
        """Whether mistakes enough are made to say how sure of itself the model may be."""
        binary = self.logits.shape[1] == 1
        decided = self.logits[:, 0] >= 0 if binary else self.logits.argmax(axis=1)
        return bool(np.count_nonzero(decided != self.targets) >= _FEWEST)


def _problems(task: Task, logits: np.ndarray, targets: np.ndarray) -> list[_Problem]:
    """One, but in multi-label tasks one for each label."""
    if task.kind != "multilabel":
        return [_Problem(logits, targets)]
    return [_Problem(logits[:, [place]], targets[:, place]) for place in range(len(task.labels))]


def _fit(
    task: Task, problems: list[_Problem], whole: list[_Problem], threshold_metric: str
) -> tuple[Decision, list[int]]:
    """Fits what there are rows enough for in `whole`, of which `problems` hold all rows or four fifths.

    Returns:
        The decision, and the places of the labels for which no threshold has what the metric asks for.
    """
    decision, missed = plain_decision(task), []
    temperature, threshold = decision.temperature.copy(), decision.threshold.copy()
    for place, (problem, all_rows) in enumerate(zip(problems, whole, strict=True)):
        if all_rows.has_temperature:
            temperature[place] = _calibrate(problem)
        if all_rows.has_threshold:
            probabilities = expit(problem.logits[:, 0] / temperature[place])
            threshold[place], reached = best_threshold(problem.targets, probabilities, threshold_metric)
            missed += [] if reached else [place]
    return Decision(task, temperature, threshold), missed


def _for(task: Task, places: list[int]) -> str:
    """A few labels in words; nothing in tasks that are not multi-label."""
    if task.kind != "multilabel":
        return ""
    return f" for {name_rows([repr(task.labels[place]) for place in places], 'label')}"


def _folds(targets: np.ndarray) -> list[np.ndarray]:
    """Five parts of the rows at random, as bool [N] each, with each label, or each row's rarest one, spread over all."""
    groups = targets
    if targets.ndim == 2:
        rarest = np.argsort(targets.sum(axis=0), kind="stable")
        groups = np.where(targets.any(axis=1), targets[:, rarest].argmax(axis=1), len(rarest))
    order = np.random.default_rng(_SEED).permutation(len(targets))
    fold = np.empty(len(targets), np.int64)
    fold[order[np.argsort(groups[order], kind="stable")]] = np.arange(len(targets)) % _FOLDS
    return [fold == number for number in range(min(_FOLDS, len(targets)))]


# Calibration


def _calibrate(problem: _Problem) -> float:
    """Temperature scaling (Guo et al., arXiv:1706.04599); 1 unless the log loss of rows left out of fitting is lower."""
    logits, targets = problem.logits, problem.targets
    before = after = 0.0
    for rows in _folds(targets):
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
