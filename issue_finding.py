"""Which labels of a table look wrong: probabilities of each row by a model that has not seen it, and cleanlab's judgement.

The judgement is confident learning (Northcutt et al., arXiv:1911.00068). N rows, K labels; labels are positions among the K,
int64 [N], or for several labels a row 0 and 1, float32 [N, K].
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues as confident_learning
from cleanlab.multilabel_classification import get_label_quality_scores as multilabel_quality
from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
from cleanlab.rank import get_label_quality_scores
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from bert_classifier import BertClassifier, labels_of
from run_directory import write_atomically
from splits import iterative_stratification
from tasks import DEFAULT_SEPARATOR
from text_inputs import Texts, texts_of


def find_label_issues(
    X: Any, y: Any, classifier: BaseEstimator | None = None, folds: int = 5, seed: int = 42
) -> pd.DataFrame:
    """Finds rows whose labels look wrong.

    Args:
        X: N texts or pairs of them, as `BertClassifier` takes them.
        y: their labels, (N,), or 0 and 1, (N, K).
        classifier: any scikit-learn classifier of texts with `predict_proba`; None: a `BertClassifier` of default options.
        folds: parts of the rows; each is judged by a model that was trained on the others.
        seed: of the folds.

    Returns:
        A table as `issue_table` makes it, `row` counting the rows of X from 0.

    Raises:
        ValueError: X and y do not fit together, or a label has too few rows for the folds.
    """
    classifier = BertClassifier(verbose=True) if classifier is None else classifier
    parameters = classifier.get_params()
    columns = {key: parameters[key] for key in ("text_column", "text_pair_column") if parameters.get(key)}
    texts = texts_of(X, **columns)
    labels, classes = labels_of(y)
    if len(labels) != len(texts.first):
        raise ValueError(f"X has {len(texts.first):,} rows and y {len(labels):,}: there should be as many")
    fold = assign_folds(texts.inputs(), labels, folds, seed)
    names = [str(label) for label in classes.tolist()]

    def say(number: int) -> None:
        print(f"Fold {number + 1} of {folds}", flush=True)

    given = classes[labels] if labels.ndim == 1 else labels
    probabilities = out_of_fold(classifier, texts, given, classes, fold, on_fold=say)
    return issue_table(texts, labels, names, probabilities, list(range(len(labels))))


# Probabilities of rows that the model has not seen


def assign_folds(inputs: list[Any], labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, int64 [N]: stratified, and equal texts in one fold, or a model would have seen its judgement's text.

    Raises:
        ValueError: there are fewer than two folds, or a label with one row alone.
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds={folds}: should be from 2 to the number of rows, {len(labels):,}")
    counts = np.bincount(labels) if labels.ndim == 1 else labels.sum(axis=0)
    if (counts == 1).any():
        raise ValueError(
            f"{int((counts == 1).sum()):,} labels have one row: no model that has not seen it can know them"
        )
    first = {text: place for place, text in reversed(list(enumerate(inputs)))}
    group = np.array([first[text] for text in inputs])  # the place of the first row with that text
    if labels.ndim == 2:
        return _multilabel_folds(labels.astype(bool), group, folds, seed)
    splitter: Any = StratifiedKFold if len(first) == len(inputs) else StratifiedGroupKFold
    fold = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="The least populated class", category=UserWarning
        )  # told by the caller
        warnings.filterwarnings("ignore", message="The groups parameter is ignored", category=UserWarning)
        parts = splitter(folds, shuffle=True, random_state=seed).split(inputs, labels, group)
        for number, (_, rows) in enumerate(parts):
            fold[rows] = number
    return fold


def _multilabel_folds(indicators: np.ndarray, group: np.ndarray, folds: int, seed: int) -> np.ndarray:
    fold = np.full(len(group), folds - 1, np.int64)
    left = np.unique(group)  # first rows
    if len(left) < folds:
        raise ValueError(f"folds={folds}: there are {len(left):,} different texts: take so many folds at most")
    size = len(left) // folds
    for number in range(folds - 1):
        chosen = iterative_stratification(indicators[left], size, seed + number)
        fold[left[chosen]] = number
        left = left[~chosen]
    return fold[group]


def out_of_fold(
    classifier: BaseEstimator,
    texts: Texts,
    y: np.ndarray,
    classes: np.ndarray,
    fold: np.ndarray,
    directory: Path | None = None,
    on_fold: Callable[[int], None] = lambda fold: None,
) -> np.ndarray:
    """Probabilities of each row, float32 [N, K] in the order of `classes`, by a clone of the classifier that was trained on the
    other folds. A label that the other folds lack has probability 0.

    Each fold's are kept in `directory`, if there is one, and not computed again; `on_fold` is told each fold before its
    training.
    """
    result = np.zeros((len(y), len(classes)), np.float32)
    inputs = texts.inputs()
    for number in range(int(fold.max()) + 1):
        rows, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        file = None if directory is None else directory / f"fold-{number + 1}.npy"
        if file is not None and file.exists():
            result[rows] = np.load(file, allow_pickle=False)
            continue
        on_fold(number)
        fitted = clone(classifier).fit([inputs[row] for row in others], y[others])
        result[rows] = probabilities_of(fitted, [inputs[row] for row in rows], classes, several=y.ndim == 2)
        if file is not None:
            save_array(file, result[rows])
    return result


def probabilities_of(fitted: Any, inputs: list[Any], classes: np.ndarray, several: bool) -> np.ndarray:
    """Probabilities of rows, float32 [N, K] in the order of `classes`; those that the classifier was not trained on have 0.
    With `several` labels a row the classifier's columns are the K already."""
    probabilities = np.asarray(fitted.predict_proba(inputs), np.float32)
    if several:
        return probabilities
    index = {label: place for place, label in enumerate(classes.tolist())}
    result = np.zeros((len(inputs), len(classes)), np.float32)
    result[:, [index[label] for label in fitted.classes_.tolist()]] = probabilities
    return result


def save_array(file: Path, values: np.ndarray) -> None:
    """Writes an array so that a reader never sees half of it.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    write_atomically(file, content.getvalue())


# The judgement


def issue_table(
    texts: Texts,
    labels: np.ndarray,
    names: list[str],
    probabilities: np.ndarray,
    rows: list[int],
    separator: str = DEFAULT_SEPARATOR,
) -> pd.DataFrame:
    """All rows, the least trustworthy first.

    Columns: `row`; `is_issue`, whether confident learning takes the label for wrong; `given_label`; `suggested_label`, the
    likeliest one, or the given ones with those turned that look wrong, joined by `separator`; `quality`, the model's
    probability of the given label, of several labels cleanlab's average, where a low one weighs most; `repeats`, other rows
    with the same text; `conflict`, whether one of them has another label; `text`, `text_pair`.
    """
    if labels.ndim == 1:
        wrong = confident_learning(labels, probabilities, n_jobs=1)
        quality = get_label_quality_scores(labels, probabilities)
        given = [names[label] for label in labels]
        suggested = [names[place] for place in probabilities.argmax(axis=1)]
    else:
        turned = _turned(labels, probabilities)
        wrong = turned.any(axis=1)
        quality = multilabel_quality([np.flatnonzero(row).tolist() for row in labels], probabilities)
        given, suggested = (
            [separator.join(names[place] for place in np.flatnonzero(row)) for row in indicators]
            for indicators in (labels > 0, (labels > 0) ^ turned)
        )
    frame = pd.DataFrame(
        {"row": rows, "is_issue": wrong, "given_label": given, "suggested_label": suggested, "quality": quality}
    )
    text = pd.Series(texts.inputs())
    frame["repeats"] = text.groupby(text).transform("size") - 1
    frame["conflict"] = frame["given_label"].groupby(text).transform("nunique") > 1
    frame["text"] = texts.first
    if texts.second is not None:
        frame["text_pair"] = texts.second
    return frame.sort_values("quality", kind="stable", ignore_index=True)


def _turned(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Which of the labels that rows have, or lack, look wrong, bool [N, K]; each label is judged for itself, but not those that
    no row has, or every one."""
    judged = np.flatnonzero((labels.min(axis=0) == 0) & (labels.max(axis=0) == 1))
    sets = [np.flatnonzero(row).tolist() for row in labels[:, judged]]
    turned = np.zeros(labels.shape, dtype=bool)
    turned[:, judged] = find_multilabel_issues_per_class(sets, probabilities[:, judged], n_jobs=1)
    return turned
