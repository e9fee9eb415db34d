"""What there is to look at: plots of the scores and of the data, the worst mistakes, the least certain rows."""

from typing import Any

import numpy as np
import pandas as pd

import curves
import plots
from data import Tokens
from decision import HALF, Decision
from examples import Examples
from metrics import events
from results import Scored
from tasks import Task


def draw_scores(decision: Decision, scored: dict[str, Scored]) -> list[plots.Plot]:
    """The plots of the scores on the test rows, or the validation rows where there are no others; what the threshold was
    chosen by is shown on validation rows always."""
    task, shown, valid = decision.task, scored.get("test", next(iter(scored.values()))), scored.get("valid")
    indicators, first = task.indicators(shown.targets), 1 if task.kind == "binary" else 0
    columns = task.labels[first:], indicators[:, first:], shown.probabilities[:, first:]
    marked = None
    if task.kind == "binary":
        threshold = float(decision.threshold[0])
        marked = {f"threshold {value:.3g}": value for value in (threshold, HALF)}
    drawn = [curves.precision_recall(*columns, marked), curves.roc(*columns, marked)]
    if "confusion_matrix" in shown.values:
        drawn.insert(0, plots.confusion(task.labels, np.array(shown.values["confusion_matrix"])))
    if task.kind == "binary" and valid is not None:
        drawn.append(curves.threshold_curve(task.labels[1], valid.targets, valid.probabilities[:, 1], threshold))
    before, right = events(task, shown.targets, decision.uncalibrated().probabilities(shown.logits))
    errors = shown.values["uncalibrated"]["expected_calibration_error"], shown.values["expected_calibration_error"]
    after = events(task, shown.targets, shown.honest)[0].ravel() if decision.calibrated else None
    return [*drawn, plots.reliability(before.ravel(), after, right.ravel(), errors)]


def draw_data(
    task: Task, parts: dict[str, Examples], tokens: dict[str, Tokens], max_seq_length: int
) -> list[plots.Plot]:
    """The looks at the data: rows by label, and the lengths of the texts."""
    counts = label_counts(task, parts)
    lengths = {
        name: plots.TextLengths(**word_lengths(part), tokens=tokens[name].uncut_lengths) for name, part in parts.items()
    }
    return [plots.label_distribution(task.labels, counts), plots.text_lengths(lengths, max_seq_length)]


def label_counts(task: Task, parts: dict[str, Examples]) -> dict[str, np.ndarray]:
    """Rows of each label in each part, int [K]."""
    return {name: task.indicators(task.targets(part.labels)).sum(axis=0).astype(int) for name, part in parts.items()}


def word_lengths(part: Examples) -> dict[str, np.ndarray]:
    """Words and characters of each text, or of the two of a pair together, int [N] each."""
    texts = part.texts if part.pairs is None else [" ".join(pair) for pair in zip(part.texts, part.pairs, strict=True)]
    return {
        "words": np.array([len(text.split()) for text in texts]),
        "characters": np.array([len(text) for text in texts]),
    }


def mistakes(decision: Decision, scored: Scored, most: int) -> pd.DataFrame:
    """The wrong rows that the model is most sure of: those whose labels it holds for least likely."""
    task = decision.task
    wrong = np.flatnonzero((task.indicators(scored.targets) != task.indicators(scored.predicted)).any(axis=1))
    gaps = np.abs(task.indicators(scored.targets) - scored.probabilities).max(axis=1)
    return _rows(task, scored, wrong[np.argsort(-gaps[wrong], kind="stable")][:most])


def least_certain(decision: Decision, scored: Scored, most: int) -> pd.DataFrame:
    """The rows nearest to another decision: to a threshold, or to the second likeliest class."""
    if decision.task.kind == "multiclass":
        best = np.sort(scored.probabilities, axis=1)
        distances = best[:, -1] - best[:, -2]
    else:
        columns = scored.probabilities[:, 1:] if decision.task.kind == "binary" else scored.probabilities
        distances = np.abs(columns - decision.threshold).min(axis=1)
    return _rows(decision.task, scored, np.argsort(distances, kind="stable")[:most])


def _rows(task: Task, scored: Scored, places: np.ndarray) -> pd.DataFrame:
    """Some rows: their number in the file, texts, labels, what is predicted, and the probability of that label (of the
    likeliest one in multi-label tasks)."""
    examples, names = scored.examples, np.array(task.labels, dtype=object)
    chosen = task.indicators(scored.predicted)[places] > 0
    probabilities = scored.probabilities[places]
    held = probabilities if task.kind == "multilabel" else np.where(chosen, probabilities, 0)
    columns: dict[str, Any] = {"row": [examples.rows[place] for place in places]}
    columns["text"] = [examples.texts[place] for place in places]
    if examples.pairs is not None:
        columns["second text"] = [examples.pairs[place] for place in places]
    columns["label"] = [task.separator.join(examples.labels[place]) for place in places]
    columns["predicted"] = [task.separator.join(names[row]) for row in chosen]
    return pd.DataFrame({**columns, "probability": held.max(axis=1)})
