"""Texts as scikit-learn's users have them -> checked lists of strings -> token ids, computed once a process for each text.

Lists, Series, arrays, frames; single texts or pairs. Mistakes are ValueErrors, as scikit-learn has them.
"""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from config import DataError
from data import Tokens, tokenize
from examples import encodable, is_missing

_MOST_TOKENS = 20_000_000  # that are remembered of one encoder and length: 160 MB, beside their texts
_MOST_STORES = 4


class Texts(NamedTuple):
    """N texts, and the second ones where they are pairs."""

    first: list[str]
    second: list[str] | None

    def inputs(self) -> list[Any]:
        """What the model sees of each row, hashable."""
        return self.first if self.second is None else list(zip(self.first, self.second, strict=True))

    def take(self, rows: Any) -> "Texts":
        """The texts of some rows, in that order."""
        second = None if self.second is None else [self.second[row] for row in rows]
        return Texts([self.first[row] for row in rows], second)


def texts_of(X: Any, text_column: str = "text", text_pair_column: str | None = None, missing: str = "error") -> Texts:
    """Reads the texts out of what scikit-learn's users call X.

    Args:
        X: a list, Series or array of N strings; N pairs of them, also as an array of two columns; a frame with `text_column`
            and, if it is set, `text_pair_column`, or of one column alone.
        text_column: column of a frame with the texts.
        text_pair_column: column of a frame with the second texts; None: single texts.
        missing: what becomes of None and NaN: "error", or "empty" texts, which a warning counts.

    Raises:
        ValueError: X holds no texts; the place is named.
    """
    columns = _columns(X, text_column, text_pair_column) if isinstance(X, pd.DataFrame) else _segments(X)
    segments = [_strings(column, missing) for column in columns]
    return Texts(segments[0], segments[1] if len(segments) > 1 else None)


def _columns(frame: pd.DataFrame, text_column: str, text_pair_column: str | None) -> list[list[Any]]:
    names: list[Any] = [text_column] if text_pair_column is None else [text_column, text_pair_column]
    if text_column not in frame.columns and text_pair_column is None and frame.shape[1] == 1:
        names = list(frame.columns)  # as ColumnTransformer gives it
    for key, name in zip(("text_column", "text_pair_column"), names, strict=False):
        if name not in frame.columns:
            has = ", ".join(repr(column) for column in frame.columns[:20])
            raise ValueError(f"the frame has no column {name!r}, it has {has}: set {key}")
    return [frame[name].tolist() for name in names]


def _segments(X: Any) -> list[list[Any]]:
    """The N texts, or the first and the second ones of N pairs."""
    if isinstance(X, str | bytes) or not hasattr(X, "__iter__") or isinstance(X, dict):
        raise ValueError(f"texts should be a list, Series, array or frame of strings, not {type(X).__name__}")
    if hasattr(X, "ndim") and (X.ndim > 2 or (X.ndim == 2 and X.shape[1] > 2)):
        raise ValueError(f"an array of shape {X.shape}: texts should be (N,) or (N, 1), pairs of them (N, 2)")
    rows = X.tolist() if hasattr(X, "tolist") else list(X)
    if not any(isinstance(row, list | tuple) for row in rows):
        return [rows]
    widths = {len(row) if isinstance(row, list | tuple) else 0 for row in rows}
    if len(widths) > 1 or widths > {1, 2} or not widths <= {1, 2}:
        raise ValueError("some rows are pairs and others not, or hold more than two texts: give one text or two a row")
    return [list(segment) for segment in zip(*rows, strict=True)]


def _strings(values: list[Any], missing: str) -> list[str]:
    places = [place for place, value in enumerate(values) if is_missing(value)]
    if places and missing == "error":
        raise ValueError(
            f"Input contains NaN or None in {len(places):,} texts, the first is text {places[0]}: fill or drop them"
        )
    if places:
        warnings.warn(
            f"{len(places):,} of {len(values):,} texts are None or NaN: taken as empty", UserWarning, stacklevel=4
        )
        values = ["" if is_missing(value) else value for value in values]
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"text {place} is {type(value).__name__} {value!r}, not a string: give texts, or convert them"
            )
        try:
            encodable(value, f"text {place}")
        except DataError as error:
            raise ValueError(str(error)) from None
    return values


# Token ids


class _Store:
    """The token ids of all texts that were asked for."""

    def __init__(self) -> None:
        self._rows: dict[Any, tuple[np.ndarray, np.ndarray, int]] = {}  # word ids, type ids, uncut length
        self._num_tokens = 0

    @property
    def is_full(self) -> bool:
        return self._num_tokens > _MOST_TOKENS

    def tokens(self, texts: Texts, encode: Callable[[Texts], Tokens]) -> Tokens:
        inputs = texts.inputs()
        new = {text: place for place, text in enumerate(inputs) if text not in self._rows}
        if new:
            fresh = encode(texts.take(new.values()))
            ends = zip(fresh.offsets[:-1], fresh.offsets[1:], fresh.uncut_lengths, strict=True)
            rows = [(fresh.word_ids[start:end], fresh.type_ids[start:end], uncut) for start, end, uncut in ends]
            self._rows.update(zip(new, rows, strict=True))
            self._num_tokens += len(fresh.word_ids)
        word_ids, type_ids, uncut_lengths = zip(*(self._rows[text] for text in inputs), strict=True)
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in word_ids])])
        return Tokens(np.concatenate(word_ids), np.concatenate(type_ids), offsets, np.array(uncut_lengths))


_STORES: dict[tuple[str, int], _Store] = {}


def shared_tokens(texts: Texts, preprocessor: Any, name: str, max_seq_length: int) -> Tokens:
    """Token ids of texts; those that this process has had before, in another fold or candidate, are not computed again.

    `name` tells preprocessors apart: the directory of the SavedModel that `preprocessor` was loaded from.
    """
    store = _STORES.pop((name, max_seq_length), None)
    if store is None or store.is_full:
        store = _Store()
    _STORES[name, max_seq_length] = store  # the last used is the last one
    while len(_STORES) > _MOST_STORES:
        del _STORES[next(iter(_STORES))]
    return store.tokens(texts, lambda new: tokenize(new.first, preprocessor, max_seq_length, new.second))


def forget_tokens() -> None:
    """Forgets all token ids, as in a new process."""
    _STORES.clear()
