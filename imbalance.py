"""What rare labels get: weights in the loss, more draws per epoch, and an output bias that starts at the labels' shares."""

import difflib
from dataclasses import dataclass

import numpy as np

from config import Config, ConfigError
from tasks import Task

_HALF = 0.5  # of a row: labels that no row has, or all rows, or rows of no weight, would else start at infinity


@dataclass(frozen=True)
class Balance:
    """What the training does about the labels' shares. `targets` are those of the N training rows."""

    targets: np.ndarray
    weights: np.ndarray | None  # of the K labels in the loss, float32 [K]
    draws: np.ndarray  # of each row per epoch, on average, float64 [N]
    bias: np.ndarray  # of the logits before the first step, float32 [1] or [K]
    row_weights: np.ndarray | None = None  # in the loss, float32 [N]


def balance(config: Config, task: Task, targets: np.ndarray, row_weights: np.ndarray | None = None) -> Balance:
    """Works out `class_weight`, `oversampling` and the output bias from the training rows; `row_weights` are float32 [N].

    Raises:
        ConfigError: `class_weight` names a label that there is not.
    """
    draws = draws_per_epoch(config, task, targets)
    counted = draws if row_weights is None else draws * row_weights / row_weights.mean()
    weights = label_weights(config, task, targets, counted)
    return Balance(targets, weights, draws, output_bias(task, targets, weights, counted), row_weights)


def label_weights(config: Config, task: Task, targets: np.ndarray, draws: np.ndarray) -> np.ndarray | None:
    """Weights of the K labels in the loss, float32 [K], None where all are 1.

    In multi-label tasks a weight is that of the rows that have the label, and those that lack it weigh 1. `balanced` makes
    every class count the same in sum (as scikit-learn's `compute_class_weight`), and for each label of a multi-label task its
    positives as much as its negatives; rows count as often as they are drawn.

    Raises:
        ConfigError: `class_weight` names a label that there is not.
    """
    if config.class_weight == "none":
        return None
    if isinstance(config.class_weight, dict):
        _refuse_unknown_weights(config.class_weight, task)
        return np.array([config.class_weight.get(label, 1.0) for label in task.labels], np.float32)
    positive = np.maximum(_drawn(task, targets, draws), _HALF)
    if task.kind == "multilabel":
        negative = draws.sum() - positive
        return np.where(negative > 0, negative / positive, 1.0).astype(np.float32)
    return (draws.sum() / (len(task.labels) * positive)).astype(np.float32)


def _drawn(task: Task, targets: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Rows of each label in an epoch, float64 [K]."""
    if targets.ndim == 1:
        return np.bincount(targets, draws, len(task.labels))
    return draws @ targets


def _refuse_unknown_weights(weights: dict[str, float], task: Task) -> None:
    for label in weights:
        if label not in task.labels:
            near = difflib.get_close_matches(label, task.labels, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"class_weight: no label {label!r} in the training table: {guess}it has {', '.join(map(repr, task.labels[:20]))}"
            )


def draws_per_epoch(config: Config, task: Task, targets: np.ndarray) -> np.ndarray:
    """How often each row is drawn in an epoch, on average, float64 [N], at least once.

    With `oversampling` the rows of every label come up to that share of the most frequent one's rows in the table; of several
    labels of a row the one that asks for most decides, as in LVIS' repeat factor sampling (Gupta et al., arXiv:1908.03195),
    and the others rise with it.
    """
    counts = _drawn(task, targets, np.ones(len(targets)))
    per_label = np.maximum(1.0, config.oversampling * counts.max() / np.maximum(counts, 1.0))
    if targets.ndim == 1:
        return per_label[targets]
    return np.maximum(1.0, (targets * per_label).max(axis=1))


def output_bias(task: Task, targets: np.ndarray, weights: np.ndarray | None, draws: np.ndarray) -> np.ndarray:
    """Bias of the logits, float32 [1] or [K], that says what the labels' shares alone say, before anything is learnt.

    The shares are those that the loss sees, drawn and weighted. (Lin et al., arXiv:1708.02002, section 4.1,
    start at a prior as well, a fixed one.)
    """
    positive = _drawn(task, targets, draws)
    negative = draws.sum() - positive
    if task.kind != "multilabel":
        positive = np.maximum(positive, _HALF)
    if weights is not None:
        positive = positive * weights
    if task.kind == "binary":
        return np.log(positive[1:] / positive[:1]).astype(np.float32)
    if task.kind == "multiclass":
        return np.log(positive / positive.sum()).astype(np.float32)
    return np.log((positive + _HALF) / (negative + _HALF)).astype(np.float32)
