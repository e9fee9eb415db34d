"""From logits to what is predicted: calibrated probabilities, then labels, by temperatures and thresholds that are given.

N rows, K labels, L logits: one in binary tasks, else K.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from examples import prediction_columns
from tasks import Task

HALF = 0.5


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

    @property
    def calibrated(self) -> bool:
        """Whether any temperature is other than 1."""
        return bool((self.temperature != 1).any())

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
