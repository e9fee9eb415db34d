"""What predictions are worth on rows whose labels are known, by scikit-learn, with bootstrap intervals.

N rows, K labels. Targets and predictions are in the form that `Task.targets` makes; probabilities are float32 [N, K].
"""

from collections.abc import Iterator

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    label_ranking_average_precision_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from tasks import Kind, Task

HEADLINE: dict[Kind, tuple[str, ...]] = {  # what is printed, first the one that says most
    "binary": ("f1", "precision", "recall", "average_precision", "accuracy", "loss"),
    "multiclass": ("accuracy", "macro_f1", "average_precision", "loss"),
    "multilabel": ("micro_f1", "macro_f1", "average_precision", "accuracy", "loss"),
}
_CALIBRATION_BINS = 15
_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50  # so many counts of all rows are in memory
_INTERVAL = (2.5, 97.5)  # percentiles


def score(task: Task, targets: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """All metrics of one set of rows.

    `macro_` values are means over all K labels, where one that does not occur counts as 0. `balanced_accuracy`, `roc_auc` and
    `average_precision` are means over the labels for which they are defined, in binary tasks that of the positive label, and
    left out where there is none. In multi-label tasks `accuracy` is the share of rows whose labels are all right, `loss`, `mcc`
    and `expected_calibration_error` are means over the labels, and `label_ranking_average_precision` is the mean over the
    rows that have a label.
    """
    true, chosen = task.indicators(targets), task.indicators(predicted)
    positives = true.sum(axis=0)
    occurs, both = positives > 0, (positives > 0) & (positives < len(true))
    scores = {"accuracy": accuracy_score(targets, predicted), **_averages(task.kind, true, chosen)}
    if task.kind == "multilabel":
        rejected = ((1 - true) * (1 - chosen)).sum(axis=0) / np.maximum(len(true) - positives, 1)
        found = (true * chosen).sum(axis=0) / np.maximum(positives, 1)
        if both.any():
            scores["balanced_accuracy"] = (found + rejected)[both].mean() / 2
        scores["mcc"] = np.mean([_mcc(*columns) for columns in zip(true.T, chosen.T, strict=True)])
        if (labelled := targets.any(axis=1)).any():
            scores["label_ranking_average_precision"] = label_ranking_average_precision_score(
                targets[labelled], probabilities[labelled]
            )
    else:
        recall = precision_recall_fscore_support(true, chosen, average=None, zero_division=0.0)[1]
        scores["balanced_accuracy"] = recall[occurs].mean()
        scores["mcc"] = _mcc(targets, predicted)
    if task.kind == "binary":
        occurs[0] = both[0] = False  # the positive label speaks for both
        if occurs.any():
            precision, recall, _ = precision_recall_curve(targets, probabilities[:, 1])
            scores["precision_at_recall_50"] = precision[recall >= 0.5].max()
    if occurs.any():
        scores["average_precision"] = average_precision_score(true[:, occurs], probabilities[:, occurs])
    if both.any():
        scores["roc_auc"] = roc_auc_score(true[:, both], probabilities[:, both])
    scores |= score_probabilities(task, targets, probabilities)
    return {name: float(value) for name, value in scores.items()}


def _mcc(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation, 0 where there is nothing to correlate, which scikit-learn warns of."""
    return float(matthews_corrcoef(targets, predicted)) if len(np.union1d(targets, predicted)) > 1 else 0.0


def _averages(kind: Kind, true: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 averaged over labels, and of the positive label in binary tasks; 0 and 1, [N, K]."""
    scores: dict[str, float] = {}
    for average in {"binary": ("macro",), "multiclass": ("macro", "weighted"), "multilabel": ("macro", "micro")}[kind]:
        values = precision_recall_fscore_support(true, chosen, average=average, zero_division=0.0)
        scores |= dict(zip((f"{average}_precision", f"{average}_recall", f"{average}_f1"), values[:3], strict=True))
    if kind == "binary":
        values = precision_recall_fscore_support(true[:, 1], chosen[:, 1], average="binary", zero_division=0.0)
        scores |= dict(zip(("precision", "recall", "f1"), values[:3], strict=True))
    return scores


def score_probabilities(task: Task, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Log loss (the training's loss without weights) and expected calibration error."""
    wide = probabilities.astype(np.float64)
    if task.kind == "multilabel":
        pairs = np.stack([1 - wide.ravel(), wide.ravel()], axis=1)
        loss = log_loss(targets.ravel(), pairs, labels=[0, 1])
    else:
        loss = log_loss(targets, wide / wide.sum(axis=1, keepdims=True), labels=range(len(task.labels)))
    predicted, right = events(task, targets, probabilities)
    errors = [_calibration_error(*columns) for columns in zip(predicted.T, right.T, strict=True)]
    return {"loss": float(loss), "expected_calibration_error": float(np.mean(errors))}


def events(task: Task, targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What calibration is about: predicted probabilities, and 0 or 1 for what came true, both [N, K'].

    The positive label in binary tasks, whether the likeliest label is right in multi-class ones, else every label.
    """
    if task.kind == "binary":
        return probabilities[:, 1:], targets[:, None]
    if task.kind == "multiclass":
        return probabilities.max(axis=1, keepdims=True), (probabilities.argmax(axis=1) == targets)[:, None].astype(int)
    return probabilities, targets


def _calibration_error(predicted: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error over 15 bins of equal width (Guo et al., arXiv:1706.04599); both [N]."""
    bins = np.minimum((predicted * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, predicted.astype(np.float64) - right, _CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(predicted))


def by_label(
    task: Task, targets: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray
) -> dict[str, dict[str, float]]:
    """Metrics of each label against all others; `support` counts its rows, `predicted` the rows that were given it."""
    true, chosen = task.indicators(targets), task.indicators(predicted)
    precision, recall, f1, _ = precision_recall_fscore_support(true, chosen, average=None, zero_division=0.0)
    table: dict[str, dict[str, float]] = {}
    for place, label in enumerate(task.labels):
        support = int(true[:, place].sum())
        table[label] = {
            "support": support,
            "predicted": int(chosen[:, place].sum()),
            "precision": float(precision[place]),
            "recall": float(recall[place]),
            "f1": float(f1[place]),
        }
        if support:
            table[label]["average_precision"] = float(average_precision_score(true[:, place], probabilities[:, place]))
        if 0 < support < len(true):
            table[label]["roc_auc"] = float(roc_auc_score(true[:, place], probabilities[:, place]))
    return table


# Intervals


def resample(
    task: Task, targets: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
    """The headline metrics on 1,000 bootstrap resamples of the rows, float64 [1000] each.

    The resamples depend on N alone, so that two sets of predictions for the same rows can be compared draw by draw.
    """
    true, chosen = task.indicators(targets).astype(np.float32), task.indicators(predicted).astype(np.float32)
    right = (true == chosen).all(axis=1).astype(np.float32)
    losses = _row_losses(true, probabilities, task.kind)
    curve = _PrecisionCurve(targets, probabilities[:, 1]) if task.kind == "binary" else None
    draws: dict[str, list[np.ndarray]] = {name: [] for name in HEADLINE[task.kind]}
    for counts in _bootstrap(len(true)):
        hits, named, actual = counts @ (true * chosen), counts @ chosen, counts @ true  # each [resamples, K]
        f1 = 2 * hits / np.maximum(named + actual, 1)
        values = {
            "accuracy": counts @ right / len(true),
            "loss": counts @ losses / len(true),
            "macro_f1": f1.mean(axis=1),
        }
        values["micro_f1"] = 2 * hits.sum(axis=1) / np.maximum((named + actual).sum(axis=1), 1)
        if curve is not None:
            values["f1"], values["precision"] = f1[:, 1], hits[:, 1] / np.maximum(named[:, 1], 1)
            values["recall"] = hits[:, 1] / np.maximum(actual[:, 1], 1)
            values["average_precision"] = curve.area(counts)
        for name in draws.keys() & values.keys():
            draws[name].append(values[name])
    return {name: np.concatenate(parts) for name, parts in draws.items() if parts}


def interval(draws: np.ndarray) -> list[float]:
    """Ends of the 95 % percentile interval."""
    return [float(end) for end in np.percentile(draws, _INTERVAL)]


def _bootstrap(num_rows: int) -> Iterator[np.ndarray]:
    """Blocks of resamples: how often each row is drawn, float32 [resamples, N]."""
    random = np.random.default_rng(num_rows)
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        drawn = random.integers(num_rows, size=(_RESAMPLES_AT_ONCE, num_rows))
        yield np.stack([np.bincount(rows, minlength=num_rows) for rows in drawn]).astype(np.float32)


def _row_losses(true: np.ndarray, probabilities: np.ndarray, kind: Kind) -> np.ndarray:
    """Cross-entropy of each row, float32 [N]."""
    smallest = np.finfo(np.float32).tiny
    losses = -true * np.log(np.maximum(probabilities, smallest))
    if kind != "multilabel":
        return losses.sum(axis=1)
    return (losses - (1 - true) * np.log(np.maximum(1 - probabilities, smallest))).mean(axis=1)


class _PrecisionCurve:
    """Average precision under many weightings of the same rows, which are sorted once; scikit-learn's definition."""

    def __init__(self, targets: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal scores are one point
        self._positive = (targets[self._order] == 1).astype(np.float64)

    def area(self, counts: np.ndarray) -> np.ndarray:
        """Average precision of each weighting, [resamples]; 0 where no positive row has weight."""
        weights = counts[:, self._order].astype(np.float64)
        named = weights.cumsum(axis=1)[:, self._ends]
        hits = (weights * self._positive).cumsum(axis=1)[:, self._ends]
        steps = np.diff(hits, axis=1, prepend=0.0)
        return (steps * hits / np.maximum(named, 1)).sum(axis=1) / np.maximum(hits[:, -1], 1)
