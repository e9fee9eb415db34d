"""What is to be learnt: one of two labels, one of several, or any number of them; and the labels as numbers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from config import Config, DataError
from examples import Examples, LabelSet, rows_where
from tables import NAMED, name_rows

Kind = Literal["binary", "multiclass", "multilabel"]
DEFAULT_SEPARATOR = "|"
_MOST_NUMBERS = 20  # more distinct numbers with decimals than that are a quantity


@dataclass(frozen=True)
class Task:
    """K labels in the order of the model's outputs. In binary tasks the last one is positive."""

    kind: Kind
    labels: list[str]
    separator: str = DEFAULT_SEPARATOR  # between the labels of one row, in predictions

    @property
    def num_logits(self) -> int:
        """Outputs of the head: one for two labels, K otherwise."""
        return 1 if self.kind == "binary" else len(self.labels)

    def targets(self, label_sets: list[LabelSet]) -> np.ndarray:
        """Which labels each row has: positions in `labels`, int64 [N], or for multi-label tasks 0 and 1, float32 [N, K]."""
        index = {label: i for i, label in enumerate(self.labels)}
        if self.kind != "multilabel":
            return np.array([index[labels[0]] for labels in label_sets], dtype=np.int64)
        targets = np.zeros((len(label_sets), len(self.labels)), dtype=np.float32)
        for row, labels in enumerate(label_sets):
            targets[row, [index[label] for label in labels]] = 1
        return targets

    def indicators(self, targets: np.ndarray) -> np.ndarray:
        """Targets of any task as 0 and 1, [N, K]."""
        return targets if targets.ndim == 2 else np.eye(len(self.labels), dtype=np.float32)[targets]


def decide_task(examples: Examples, config: Config) -> tuple[Task, str]:
    """Decides the task from the training table, or checks the one that `config` sets.

    Returns:
        The task, and in one line what was decided and why.

    Raises:
        DataError: the labels do not allow the task that is set, or any.
    """
    source, column = examples.source, config.label_column
    labels = sort_labels({label for row in examples.labels for label in row})
    _refuse_unused_columns(examples, config, labels)
    if len(labels) < 2:
        only = f"one class only ({labels[0]!r})" if labels else "no label at all"
        raise DataError(f"{source}: column {column!r} holds {only}; a classifier needs two")
    none, several = (rows_where(examples, test) for test in (lambda row: not row, lambda row: len(row) > 1))
    kind: Kind = config.task if config.task != "auto" else _kind_of(labels, any_other_than_one=bool(none or several))
    if kind != "multilabel":
        _refuse_other_than_one(examples, kind)
    if kind == "binary" and len(labels) > 2:
        raise DataError(
            f"{source}: task=binary takes two labels, column {column!r} has {len(labels):,}; set task to auto or multiclass"
        )
    if config.task == "auto":
        _refuse_quantity(source, column, labels)
    separator = config.label_separator or DEFAULT_SEPARATOR
    if kind == "multilabel":
        _refuse_separator_in_labels(examples, labels, separator)
    facts = f"{len(labels):,} labels in {column!r}, "
    if kind == "multilabel":
        facts += f"{len(several):,} of {len(examples):,} rows have several, {len(none):,} have none"
    else:
        facts += "one a row"
    if config.task != "auto":
        facts += "; as task says"
    elif kind != "multilabel" and (config.label_separator is not None or "," in column):
        facts += "; if later rows may have several or none, set task=multilabel"
    return Task(kind, labels, separator), f"{kind} ({facts})"


def sort_labels(labels: set[str]) -> list[str]:
    """Sorts labels as numbers where all are numbers, else as strings; in binary tasks the last is positive."""
    if all(_is_number(label) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)


def refuse_unknown_labels(examples: Examples, task: Task) -> None:
    """Refuses a validation table with labels, or numbers of them, that the training table has not.

    Raises:
        DataError: one line with the labels and the rows.
    """
    if problem := _unknown_labels(examples, task)[1]:
        raise DataError(f"{problem}: the training table has {', '.join(map(repr, task.labels[:20]))}")


def leave_unknown_labels_out(examples: Examples, task: Task) -> tuple[Examples, list[str]]:
    """The rows of a test table whose labels the model knows, and what there is to say of the others: they have no score.

    Raises:
        DataError: no row has a label that the model knows, or rows have another number of labels than the task allows.
    """
    known, problem = _unknown_labels(examples, task)
    if not problem:
        return examples, []
    if not known:
        raise DataError(
            f"{problem}, and no other row is left: the model knows {', '.join(map(repr, task.labels[:20]))}"
        )
    return examples.take(known), [f"{problem} to the model: left out of the scores"]


def _unknown_labels(examples: Examples, task: Task) -> tuple[list[int], str]:
    """The places of the rows whose labels are all known, and in words which rows have others."""
    if task.kind != "multilabel":
        _refuse_other_than_one(examples, task.kind)
    unknown = {label for labels in examples.labels for label in labels} - set(task.labels)
    if not unknown:
        return list(range(len(examples))), ""
    rows = rows_where(examples, lambda labels: not unknown.isdisjoint(labels))
    known = [place for place, labels in enumerate(examples.labels) if unknown.isdisjoint(labels)]
    named = ", ".join(map(repr, sorted(unknown)[:NAMED]))
    return known, f"{examples.source}: label {named} in {name_rows(rows)} is unknown"


def _kind_of(labels: list[str], any_other_than_one: bool) -> Kind:
    if any_other_than_one:
        return "multilabel"
    return "binary" if len(labels) == 2 else "multiclass"


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", label, re.ASCII) is not None


def _refuse_other_than_one(examples: Examples, kind: Kind) -> None:
    tests: dict[str, Callable[[LabelSet], bool]] = {
        "several labels": lambda labels: len(labels) > 1,
        "no label": lambda labels: not labels,
    }
    for what, test in tests.items():
        if rows := rows_where(examples, test):
            raise DataError(
                f"{examples.source}: {what} in {name_rows(rows)}, and the task is {kind}, with one label a row; "
                "mend the rows, or set task=multilabel"
            )


def _refuse_quantity(source: str, column: str, labels: list[str]) -> None:
    decimals = [label for label in labels if _is_number(label) and not float(label).is_integer()]
    if decimals and len(labels) > _MOST_NUMBERS and all(map(_is_number, labels)):
        raise DataError(
            f"{source}: column {column!r} holds {len(labels):,} distinct numbers such as {decimals[0]}: a quantity, not classes; "
            "put them into bins, or set task=multiclass to take each as a class"
        )


def _refuse_unused_columns(examples: Examples, config: Config, labels: list[str]) -> None:
    if config.label_column in examples.frame.columns:
        return
    unused = [column for column in config.label_columns if column not in labels]
    if unused:
        raise DataError(
            f"{examples.source}: column {unused[0]!r} holds no 1: nothing can be learnt of it; leave it out of label_column"
        )


def _refuse_separator_in_labels(examples: Examples, labels: list[str], separator: str) -> None:
    holding = [label for label in labels if separator in label]
    if holding:
        raise DataError(
            f"{examples.source}: label {holding[0]!r} contains {separator!r}, which stands between labels in predictions: set "
            "label_separator to what stands between labels in the table, or to something that no label contains"
        )
