"""What rare labels get: weights in the loss, more draws per epoch, and an output bias that starts at the labels' shares."""

import difflib
from dataclasses import dataclass

import numpy as np

from config import Config, ConfigError
from tasks import Task


@dataclass(frozen=True)
class Balance:
    """What the training does about the labels' shares. `targets` are those of the N training rows."""

    targets: np.ndarray
    weights: np.ndarray | None  # of the K labels in the loss, float32 [K]
    draws: np.ndarray  # of each row per epoch, on average, float64 [N]
    bias: np.ndarray  # of the logits before the first step, float32 [1] or [K]


def balance(config: Config, task: Task, targets: np.ndarray) -> Balance:
    """Works out `class_weight`, `oversampling` and the output bias from the training rows.

    Raises:
        ConfigError: `class_weight` names a label that there is not.
    """
    weights = label_weights(config, task, targets)
    draws = draws_per_epoch(config, task, targets)
    return Balance(targets, weights, draws, output_bias(task, targets, weights, draws))


def label_weights(config: Config, task: Task, targets: np.ndarray) -> np.ndarray | None:
    """Weights of the K labels in the loss, float32 [K], None where all are 1.

    In multi-label tasks a weight is that of the rows that have the label, and those that lack it weigh 1. `balanced` makes
    every class count the same in sum (as scikit-learn's `compute_class_weight`), and for each label of a multi-label task its
    positives as much as its negatives.

    Raises:
        ConfigError: `class_weight` names a label that there is not.
    """
    if config.class_weight == "none":
        return None
    if isinstance(config.class_weight, dict):
        return np.array(
            [_named_weights(config.class_weight, task).get(label, 1.0) for label in task.labels], np.float32
        )
    counts = task.indicators(targets).sum(axis=0, dtype=np.float64)
    if task.kind == "multilabel":
        return ((len(targets) - counts) / counts).astype(np.float32)
    return (len(targets) / (len(task.labels) * counts)).astype(np.float32)


def _named_weights(weights: dict[str, float], task: Task) -> dict[str, float]:
    for label in weights:
        if label not in task.labels:
            near = difflib.get_close_matches(label, task.labels, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"class_weight: no label {label!r} in the training table: {guess}it has {', '.join(map(repr, task.labels[:20]))}"
            )
    return weights


def draws_per_epoch(config: Config, task: Task, targets: np.ndarray) -> np.ndarray:
    """How often each row is drawn in an epoch, on average, float64 [N], at least once.

    With `oversampling` every label comes up to that share of the most frequent one's rows; of several labels of a row the
    one that asks for most decides, as in LVIS' repeat factor sampling (Gupta et al., arXiv:1908.03195).
    """
    indicators = task.indicators(targets)
    counts = indicators.sum(axis=0, dtype=np.float64)
    per_label = np.maximum(1.0, config.oversampling * counts.max() / counts)
    return np.maximum(1.0, (indicators * per_label).max(axis=1))


def output_bias(task: Task, targets: np.ndarray, weights: np.ndarray | None, draws: np.ndarray) -> np.ndarray:
    """Bias of the logits, float32 [1] or [K], that says what the labels' shares alone say, before anything is learnt.

    The shares are those that the loss sees: drawn and weighted. (Lin et al., arXiv:1708.02002, section 4.1, start at a
    prior as well, a fixed one.)
    """
    positive = (task.indicators(targets) * draws[:, None]).sum(axis=0, dtype=np.float64)
    negative = draws.sum() - positive
    if weights is not None:
        positive = positive * weights
    if task.kind == "binary":
        return np.log(positive[1:] / positive[:1]).astype(np.float32)
    if task.kind == "multiclass":
        return np.log(positive / positive.sum()).astype(np.float32)
    half = 0.5  # of a row: a label that every row has would else start at infinity
    return np.log((positive + half) / (negative + half)).astype(np.float32)
