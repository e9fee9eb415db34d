"""Examples: the texts and labels of a table's rows, checked, with pandas alone.

A row's number is its place in the file, counted from 1 after the header. What cannot be used as it stands is refused with
the rows named; of labels only blanks around separated ones and the ".0" of whole numbers are taken off.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import Config, DataError
from tables import name_rows, read_table

LabelSet = tuple[str, ...]  # the labels of one row


@dataclass(frozen=True)
class Examples:
    """Rows of one table: `texts[i]`, `pairs[i]` (the second text, if there are such) and `labels[i]` come from row
    `rows[i]` of `source`; `frame` holds all its columns."""

    source: str
    frame: pd.DataFrame
    texts: list[str]
    pairs: list[str] | None
    labels: list[LabelSet]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """The examples at `indices`, in that order."""
        chosen = list(indices)
        return Examples(
            self.source,
            self.frame.iloc[chosen],
            [self.texts[i] for i in chosen],
            None if self.pairs is None else [self.pairs[i] for i in chosen],
            [self.labels[i] for i in chosen],
            [self.rows[i] for i in chosen],
        )

    def inputs(self) -> list[Any]:
        """What a model sees of each row, hashable: its text, or the two of a pair."""
        return self.texts if self.pairs is None else list(zip(self.texts, self.pairs, strict=True))

    def identity(self) -> dict[str, Any]:
        """What tells these examples from others and says nothing of their texts: rows, columns and fingerprint."""
        return {"rows": len(self), "columns": [str(name) for name in self.frame.columns], "sha256": self.fingerprint()}

    def fingerprint(self) -> str:
        """SHA-256, in hex, of texts, second texts and labels in their order: all that a model sees of the rows."""
        digest = hashlib.sha256()
        pairs: list[Any] = [None] * len(self) if self.pairs is None else self.pairs
        for row in zip(self.texts, pairs, self.labels, strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()


def read_examples(source: str, config: Config, only_scored: bool = False) -> Examples:
    """Reads one table or folder and checks its texts and labels; texts of rows that are only scored may be empty.

    Raises:
        DataError: missing file or column, undecodable bytes, an empty table, empty texts or labels.
    """
    if config.text_pair_column is not None and "://" not in source and Path(source).expanduser().is_dir():
        raise DataError(f"{source}: a folder of texts has no second texts; leave text_pair_column out")
    frame = read_table(source, config.text_column, config.label_column)
    texts = read_texts(source, frame, config.text_column, "text_column")
    if not only_scored:
        _refuse_empty(source, config.text_column, [not text.strip() for text in texts])
    pairs = None
    if config.text_pair_column is not None:
        pairs = read_texts(source, frame, config.text_pair_column, "text_pair_column")
    return Examples(source, frame, texts, pairs, _read_labels(source, frame, config), list(range(1, len(frame) + 1)))


def read_texts(source: str, frame: pd.DataFrame, column: str, key: str) -> list[str]:
    """The texts of a column, missing ones as empty; `key` is the option that names it, and the frame's index counts the
    table's rows from 0.

    Raises:
        DataError: there is no such column, or a cell holds something else than text.
    """
    refuse_missing_column(source, frame.columns, column, key)
    cells = zip(frame.index, frame[column], strict=True)
    return [_as_text(value, f"{source}: row {row + 1}, column {column!r}") for row, value in cells]


# Labels


def _read_labels(source: str, frame: pd.DataFrame, config: Config) -> list[LabelSet]:
    """The labels of each row, sorted: one, but for lists, separated labels and columns of 0 and 1."""
    columns = [config.label_column] if config.label_column in frame.columns else config.label_columns
    if len(set(columns)) < len(columns):
        raise DataError(f"{source}: label_column names a column twice: {config.label_column!r}")
    for name in columns:
        refuse_missing_column(source, frame.columns, name, "label_column")
    if len(columns) > 1:
        return _read_indicators(source, frame, columns)
    cells = [(f"{source}: row {row}, column {columns[0]!r}", value) for row, value in enumerate(frame[columns[0]], 1)]
    if any(isinstance(value, list | np.ndarray) for _, value in cells):
        labels = [_as_label_set(_as_list(value, where), where) for where, value in cells]
    elif config.label_separator is not None:
        labels = [_as_label_set(_split(value, config.label_separator), where) for where, value in cells]
    else:
        _refuse_lists_as_text(source, columns[0], [value for _, value in cells])
        labels = [_as_label_set([] if _is_blank(value) else [value], where) for where, value in cells]
        if config.task != "multilabel":
            remedy = "fill or delete them, or set task=multilabel where rows may have no label"
            _refuse_empty(source, columns[0], [not row for row in labels], remedy)
    return labels


def _refuse_lists_as_text(source: str, column: str, values: list[Any]) -> None:
    """A CSV file has no lists: pandas writes "['a', 'b']", which would be a class of its own."""
    written = [value for value in values if isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL)]
    if len(written) == len(values):
        raise DataError(
            f"{source}: column {column!r} holds lists written as text, such as {written[0]!r}: save the table as "
            "JSONL or Parquet, or join the labels of a row and set label_separator"
        )


def _read_indicators(source: str, frame: pd.DataFrame, columns: list[str]) -> list[LabelSet]:
    """One column of 0 and 1 per label, the column's name being the label."""
    meanings = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
    indicators = np.zeros((len(frame), len(columns)), dtype=bool)
    for place, column in enumerate(columns):
        for row, value in enumerate(frame[column]):
            number = "" if is_missing(value) else str(value).strip().lower()
            if number not in meanings:
                raise DataError(
                    f"{source}: row {row + 1}, column {column!r}: holds {value!r}; where label_column names several columns "
                    "each holds 0 or 1"
                )
            indicators[row, place] = meanings[number]
    return [tuple(sorted(columns[place] for place in np.flatnonzero(row))) for row in indicators]


def _as_list(value: Any, where: str) -> list[Any]:
    if isinstance(value, list | np.ndarray):
        return list(value)
    if is_missing(value):
        return []
    raise DataError(f"{where}: holds {type(value).__name__} {value!r} where other rows hold lists of labels")


def _split(value: Any, separator: str) -> list[Any]:
    """The parts of a cell, blanks around them taken off: "joy | love" -> ["joy", "love"], "" -> []."""
    if _is_blank(value):
        return []
    if not isinstance(value, str):
        return [value]
    return [part.strip() for part in value.split(separator.strip() or separator)]


def _as_label_set(values: list[Any], where: str) -> LabelSet:
    labels = [_as_label(value, where) for value in values]
    if not all(label.strip() for label in labels):
        raise DataError(f"{where}: one of the labels {labels!r} is empty; a row without any label holds nothing at all")
    if len(set(labels)) < len(labels):
        raise DataError(f"{where}: holds a label twice: {labels!r}")
    return tuple(sorted(labels))


def _as_label(value: Any, where: str) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise DataError(f"{where}: holds {value}; a label is a string or a number")
        return str(int(value)) if float(value).is_integer() else str(value)
    if not isinstance(value, str | int | np.integer | bool | np.bool_):
        raise DataError(f"{where}: holds {type(value).__name__} {value!r}; a label is a string or a number")
    return encodable(str(value), where)


# Checks


def _as_text(value: Any, where: str) -> str:
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: holds {type(value).__name__} {value!r}, not a text")
    return encodable(value, where)


def encodable(value: str, where: str) -> str:
    """The text, if it can be written as UTF-8.

    Raises:
        DataError: it holds a lone surrogate; `where` begins the message.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: holds half of a character (a lone surrogate, as of an emoji cut in two); mend the text"
        ) from None
    return value


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _is_blank(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _refuse_empty(source: str, column: str, is_empty: list[bool], remedy: str = "fill or delete them") -> None:
    empty = [row for row, value in enumerate(is_empty, 1) if value]
    if empty:
        raise DataError(
            f"{source}: column {column!r} is empty in {name_rows(empty)}: every row needs a text and a label; {remedy}"
        )


def refuse_missing_column(source: str, columns: Iterable[Any], column: str, key: str) -> None:
    """Refuses a table without a column; `key` is the option that names it.

    Raises:
        DataError: one line with the columns that there are.
    """
    if column not in columns:
        raise DataError(f"{source}: no column {column!r}: {_nearest_column(column, columns)}; set {key}")


def _nearest_column(column: str, columns: Iterable[Any]) -> str:
    names = [str(name) for name in columns]
    near = difflib.get_close_matches(column, names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}the table has {', '.join(map(repr, names[:20]))}"


def prediction_columns(labels: list[str]) -> list[str]:
    """Names of the columns that stand beside a table's own ones in a file of predictions."""
    return ["predicted_label", "probability", *(f"probability_{label}" for label in labels)]


def refuse_prediction_columns(source: str, columns: Iterable[Any], labels: list[str]) -> None:
    """Refuses a table whose own columns have the names of prediction columns.

    Raises:
        DataError: one line with the column.
    """
    if taken := set(prediction_columns(labels)).intersection(columns):
        raise DataError(f"{source}: column {min(taken)!r} has the name of a prediction column; rename it")


def note_empty_texts(examples: Examples) -> list[str]:
    """What there is to say of rows without a text, which only a table that is only scored can have."""
    empty = [row for row, text in zip(examples.rows, examples.texts, strict=True) if not text.strip()]
    return [f"{examples.source}: the text is empty in {name_rows(empty)}, scored as such"] if empty else []


def rows_where(examples: Examples, test: Callable[[LabelSet], bool]) -> list[int]:
    """Numbers of the rows whose labels pass a test."""
    return [row for row, labels in zip(examples.rows, examples.labels, strict=True) if test(labels)]
