"""What predictions are worth on rows whose labels are known, by scikit-learn, with bootstrap intervals.

N rows, K labels. Targets and predictions are in the form that `Task.targets` makes; probabilities are float32 [N, K].
"""

from collections.abc import Iterator

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    label_ranking_average_precision_score,
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
CALIBRATION_BINS = 15
_MOST_RESAMPLES, _FEWEST_RESAMPLES = 1000, 200
_CELLS = 50_000_000  # rows x labels x resamples, above which there are fewer resamples
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
    return (
        score_decisions(task, targets, predicted)
        | _score_ranking(task, targets, probabilities)
        | score_probabilities(task, targets, probabilities)
    )


def score_decisions(task: Task, targets: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The metrics of `score` that depend on what is predicted alone."""
    true, chosen = task.indicators(targets), task.indicators(predicted)
    positives = true.sum(axis=0)
    scores = {"accuracy": accuracy_score(targets, predicted), **_averages(task.kind, true, chosen)}
    if task.kind == "multilabel":
        rejected = ((1 - true) * (1 - chosen)).sum(axis=0) / np.maximum(len(true) - positives, 1)
        found = (true * chosen).sum(axis=0) / np.maximum(positives, 1)
        both = (positives > 0) & (positives < len(true))
        if both.any():
            scores["balanced_accuracy"] = (found + rejected)[both].mean() / 2
        scores["mcc"] = np.mean([_mcc(*columns) for columns in zip(true.T, chosen.T, strict=True)])
    else:
        recall = precision_recall_fscore_support(true, chosen, average=None, zero_division=0.0)[1]
        scores["balanced_accuracy"] = recall[positives > 0].mean()
        scores["mcc"] = _mcc(targets, predicted)
    return {name: float(value) for name, value in scores.items()}


def _score_ranking(task: Task, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The metrics of `score` that depend on the order of the probabilities alone."""
    true, scores = task.indicators(targets), {}
    positives = true.sum(axis=0)
    occurs, both = positives > 0, (positives > 0) & (positives < len(true))
    if task.kind == "multilabel" and (labelled := targets.any(axis=1)).any():
        scores["label_ranking_average_precision"] = label_ranking_average_precision_score(
            targets[labelled], probabilities[labelled]
        )
    if task.kind == "binary":
        occurs[0] = both[0] = False  # the positive label speaks for both
        if occurs.any():
            precision, recall, _ = precision_recall_curve(targets, probabilities[:, 1])
            scores["precision_at_recall_50"] = precision[recall >= 0.5].max()
    if occurs.any():
        scores["average_precision"] = average_precision_score(true[:, occurs], probabilities[:, occurs])
    if both.any():
        scores["roc_auc"] = roc_auc_score(true[:, both], probabilities[:, both])
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
    predicted, right = events(task, targets, probabilities)
    errors = [_calibration_error(*columns) for columns in zip(predicted.T, right.T, strict=True)]
    loss = _row_losses(task, targets, probabilities).mean()
    return {"loss": float(loss), "expected_calibration_error": float(np.mean(errors))}


def _row_losses(task: Task, targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row, float64 [N], with probabilities clipped as scikit-learn clips float32."""
    smallest = float(np.finfo(np.float32).eps)
    wide, true = np.clip(probabilities.astype(np.float64), smallest, 1 - smallest), task.indicators(targets)
    losses = -true * np.log(wide)
    if task.kind != "multilabel":
        return losses.sum(axis=1)
    return (losses - (1 - true) * np.log(1 - wide)).mean(axis=1)


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
    bins = np.minimum((predicted * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, predicted.astype(np.float64) - right, CALIBRATION_BINS)
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
    task: Task, targets: np.ndarray, probabilities: np.ndarray, honest: np.ndarray, predictions: list[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Headline metrics on bootstrap resamples of the rows, for each of some sets of predictions; float64 [resamples] each.

    There are 1,000 resamples, down to 200 of large tables. `honest` are the probabilities that log loss is about, as in
    `results.Scored`; it and average precision are in the first set alone. A label that a resample lacks counts in neither
    way in its `macro_f1`, because the rows that are there say nothing of it.
    """
    true = task.indicators(targets).astype(np.float32)
    chosen = [task.indicators(predicted).astype(np.float32) for predicted in predictions]
    losses, rows = _row_losses(task, targets, honest), len(true)
    places = [1] if task.kind == "binary" else list(range(len(task.labels)))
    curves = [_PrecisionCurve(true[:, k], probabilities[:, k]) for k in places if true[:, k].any()]
    draws: list[dict[str, list[np.ndarray]]] = [{} for _ in chosen]
    for counts in _bootstrap(rows, true.size):
        for into, each in zip(draws, chosen, strict=True):
            for name, values in _of_resamples(task.kind, counts, true, each).items():
                into.setdefault(name, []).append(values)
        draws[0].setdefault("loss", []).append(counts @ losses / rows)
        if curves:
            areas = np.stack([curve.area(counts) for curve in curves])
            draws[0].setdefault("average_precision", []).append(_mean_of_defined(areas))
    return [{name: np.concatenate(parts) for name, parts in each.items()} for each in draws]


def intervals(draws: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Ends of the 95 % percentile intervals; none where all resamples are the same, as they tell nothing then."""
    spread = {name: values for name, values in draws.items() if np.nanmax(values) > np.nanmin(values)}
    return {name: [float(end) for end in np.nanpercentile(values, _INTERVAL)] for name, values in spread.items()}


def _bootstrap(num_rows: int, cells: int) -> Iterator[np.ndarray]:
    """Blocks of resamples: how often each row is drawn, float32 [resamples, N]."""
    random = np.random.default_rng(num_rows)
    resamples = min(_MOST_RESAMPLES, max(_FEWEST_RESAMPLES, _CELLS // max(cells, 1)))
    for _ in range(resamples // _RESAMPLES_AT_ONCE):
        drawn = random.integers(num_rows, size=(_RESAMPLES_AT_ONCE, num_rows))
        yield np.stack([np.bincount(rows, minlength=num_rows) for rows in drawn]).astype(np.float32)


def _of_resamples(kind: Kind, counts: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The headline metrics of decisions, [resamples] each; `true` and `chosen` are 0 and 1, [N, K]."""
    hits, named, actual = counts @ (true * chosen), counts @ chosen, counts @ true  # each (resamples, K)
    f1 = 2 * hits / np.maximum(named + actual, 1)
    right = (true == chosen).all(axis=1).astype(np.float32)
    occurs = actual > 0
    macro_f1 = (f1 * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1) * true.any(axis=0).mean()
    values = {
        "accuracy": counts @ right / len(true),
        "macro_f1": macro_f1,
        "micro_f1": 2 * hits.sum(axis=1) / np.maximum((named + actual).sum(axis=1), 1),
        "f1": f1[:, -1],
        "precision": hits[:, -1] / np.maximum(named[:, -1], 1),
        "recall": hits[:, -1] / np.maximum(actual[:, -1], 1),
    }
    return {name: values[name] for name in HEADLINE[kind] if name in values}


class _PrecisionCurve:
    """Average precision of one label under many weightings of the rows, which are sorted once; scikit-learn's definition."""

    def __init__(self, true: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal scores are one point
        self._true = true[self._order].astype(np.float64)

    def area(self, counts: np.ndarray) -> np.ndarray:
        """Average precision of each weighting, [resamples]; NaN where no positive row has weight."""
        weights = counts[:, self._order].astype(np.float64)
        named = weights.cumsum(axis=1)[:, self._ends]
        hits = (weights * self._true).cumsum(axis=1)[:, self._ends]
        steps = np.diff(hits, axis=1, prepend=0.0)
        total = hits[:, -1]
        areas = (steps * hits / np.maximum(named, 1)).sum(axis=1) / np.maximum(total, 1)
        return np.where(total > 0, areas, np.nan)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Means over the first axis without NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    sums = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(defined.any(axis=0), sums / np.maximum(defined.sum(axis=0), 1), np.nan)
