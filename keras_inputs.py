"""X and y of a scikit-learn estimator in, what Keras takes out: arrays, dicts of them, or dense batches of sparse rows.

N is the number of rows, K the number of labels. `codes` are labels as places in the sorted `classes`, int64 [N].
"""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
import tensorflow as tf
import tf_keras
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

KERAS_BATCH = 32  # what Keras takes where nothing is said
_WHOLE_NUMBERS = [np.int32, np.int64, np.int16, np.int8, np.uint8, np.uint16, np.uint32, np.bool_]

Encode = Callable[[tf.Tensor], tf.Tensor]  # codes -> targets as the loss takes them
Signature = Any  # the same nest as a model's inputs, of (shape of a row, name of its type)


# Labels


def read_labels(y: Any) -> np.ndarray:
    """Labels of any type, one a row.

    Raises:
        ValueError: there are none, they are several a row, or they are not labels.
    """
    if y is None:
        raise ValueError(
            "requires y to be passed, but the target y is None: give the labels, or a tf.data.Dataset of (x, label)"
        )
    shape = np.asarray(y).shape
    if len(shape) == 2 and shape[1] != 1:
        raise ValueError(
            f"y should be 1-D, one label a row, and has the bad shape {shape}: give y.argmax(axis=1) if it is one-hot; "
            "multi-label tasks are not supported"
        )
    labels = column_or_1d(y, warn=True)
    check_array(labels, ensure_2d=False, dtype=None, input_name="y")
    check_classification_targets(labels)
    return labels


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Places of labels in the sorted classes, int64 [N].

    Raises:
        ValueError: a label is none of the classes.
    """
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise ValueError(
            f"y has the labels {unknown[:5].tolist()}, which are not among the classes {classes[:20].tolist()}: "
            "fit with all of them, or name them all as classes in the first partial_fit"
        )
    return np.searchsorted(classes, labels)


# Rows


@dataclass(frozen=True)
class Training:
    """What goes beside the N rows of a training."""

    classes: np.ndarray
    codes: np.ndarray
    weights: np.ndarray | None
    encode: Encode
    class_weights: np.ndarray | None  # by code, float32 [K]
    batch_size: int | None
    shuffle: bool

    def finish(self, x: Any, codes: tf.Tensor, *weights: tf.Tensor) -> tuple[Any, ...]:
        """`(x, targets)` of a batch, or `(x, targets, weights)`.

        Keras' own `class_weight` fails beside weights of rows, so theirs are multiplied here.
        """
        factors = [tf.cast(weight, tf.float32) for weight in weights]
        if self.class_weights is not None:
            factors.append(tf.gather(tf.constant(self.class_weights), codes))
        return x, self.encode(codes), *([tf.reduce_prod(tf.stack(factors), axis=0)] if factors else [])

    def take(self, part: slice) -> "Training":
        """What goes beside some of the rows."""
        weights = None if self.weights is None else self.weights[part]
        return replace(self, codes=self.codes[part], weights=weights)


@dataclass
class ArrayRows:
    """An array, or a dict of arrays with one for each input of the model."""

    x: Any

    def __len__(self) -> int:
        return len(tf.nest.flatten(self.x)[0])

    def sample(self, size: int) -> Any:
        """The first rows, as a model takes them."""
        return tf.nest.map_structure(lambda array: array[:size], self.x)

    def arguments(self, given: Training) -> dict[str, Any]:
        """`x`, `y` and the like for `Model.fit`."""
        beside = [tf.constant(values) for values in (given.codes, given.weights) if values is not None]
        _, *targets = (tensor.numpy() for tensor in given.finish(tf.constant(0), *beside))
        return {
            "x": self.x,
            "y": targets[0],
            "sample_weight": targets[1] if len(targets) == 2 else None,
            "batch_size": given.batch_size,
            "shuffle": given.shuffle,
        }

    def split(self, share: float) -> tuple["ArrayRows", "ArrayRows"]:
        """The rows without their last share, and that share, cut where Keras cuts."""
        first = _first_part(len(self), share)
        cut = [
            tf.nest.map_structure(lambda array, part=part: array[part], self.x)
            for part in (slice(first), slice(first, None))
        ]
        return ArrayRows(cut[0]), ArrayRows(cut[1])

    def outputs(self, model: tf_keras.Model, batch_size: int | None, verbose: Any) -> np.ndarray:
        """What the model gives for each row, in their order."""
        return model.predict(self.x, batch_size=batch_size, verbose=verbose)


@dataclass
class SparseRows:
    """A scipy matrix; only the rows of one batch are ever dense."""

    matrix: scipy.sparse.csr_matrix

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def sample(self, size: int) -> Any:
        """The first rows, as a model takes them."""
        return self.matrix[:size].toarray()

    def split(self, share: float) -> tuple["SparseRows", "SparseRows"]:
        """The rows without their last share, and that share, cut where Keras cuts arrays."""
        first = _first_part(len(self), share)
        return SparseRows(self.matrix[:first]), SparseRows(self.matrix[first:])

    def arguments(self, given: Training) -> dict[str, Any]:
        """Shuffled, dense batches for `Model.fit`."""
        beside = [tf.constant(values) for values in (given.codes, given.weights) if values is not None]

        def batch(rows: tf.Tensor) -> tuple[Any, ...]:
            return given.finish(self._dense(rows), *(tf.gather(values, rows) for values in beside))

        order = tf.data.Dataset.range(len(self))
        if given.shuffle:
            order = order.shuffle(len(self))
        batches = order.batch(given.batch_size or KERAS_BATCH).map(batch)
        return stream_arguments(batches.with_options(runtime.untuned()))

    def _dense(self, rows: tf.Tensor) -> tf.Tensor:
        dense = tf.numpy_function(lambda places: self.matrix[places].toarray(), [rows], self.matrix.dtype)
        return tf.ensure_shape(dense, (None, self.matrix.shape[1]))

    def outputs(self, model: tf_keras.Model, batch_size: int | None, verbose: Any) -> np.ndarray:
        """What the model gives for each row, in their order."""
        batches = tf.data.Dataset.range(len(self)).batch(batch_size or KERAS_BATCH)
        return model.predict(batches.map(self._dense), verbose=verbose)


def _first_part(num_rows: int, share: float) -> int:
    first = math.floor(num_rows * (1 - share))
    if not 0 < first < num_rows:
        raise ValueError(
            f"validation_split={share} of {num_rows} rows leaves none on one side: give another share or more rows"
        )
    return first


def stream_arguments(batches: tf.data.Dataset) -> dict[str, Any]:
    """`x` and what goes with it for `Model.fit`, where batches hold targets and weights."""
    return {"x": batches.prefetch(1), "y": None, "batch_size": None}


# Reading X


def is_frame(X: Any) -> bool:
    """Whether X is a data frame: one array with names of features, or one column for each input of the model."""
    return isinstance(X, pd.DataFrame)


def read_rows(estimator: Any, X: Any, reset: bool, input_names: tuple[str, ...] = ()) -> ArrayRows | SparseRows:
    """Checks X, all but a Dataset, as scikit-learn does, and sets or compares the estimator's features.

    Args:
        reset: whether this is X of a fit.
        input_names: the inputs of a model with several: a frame with just these columns goes in by column.

    Raises:
        ValueError, TypeError: X is no such thing, or holds NaN or infinity.
    """
    if isinstance(X, Mapping) and not scipy.sparse.issparse(X):  # a dok_matrix is both
        return _named_inputs(X)
    if is_frame(X) and len(input_names) > 1 and set(X.columns) == set(input_names):
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        return _named_inputs({name: X[name] for name in input_names})
    texts = None if is_frame(X) or scipy.sparse.issparse(X) else _texts(X, "X")
    if texts is not None:
        return ArrayRows(texts)
    checked = validate_data(
        estimator, X, reset=reset, accept_sparse="csr", dtype=_number_types(), allow_nd=True, ensure_2d=True
    )
    return SparseRows(checked) if scipy.sparse.issparse(checked) else ArrayRows(checked)


def _named_inputs(columns: Mapping[str, Any]) -> ArrayRows:
    if not columns:
        raise ValueError("X is an empty dict: give an array for each input of the model")
    inputs = {}
    for name, values in columns.items():
        texts = _texts(values, f"X[{name!r}]")
        inputs[name] = texts if texts is not None else _numbers(values, f"X[{name!r}]")
    check_consistent_length(*inputs.values())
    return ArrayRows(inputs)


def _numbers(values: Any, name: str) -> np.ndarray:
    return check_array(values, dtype=_number_types(), ensure_2d=False, allow_nd=True, input_name=name)


def _number_types() -> list[Any]:
    """Whole numbers stay what they are, all else becomes Keras' float: beyond its range they are refused, not made infinite."""
    return [np.dtype(tf_keras.backend.floatx()), *_WHOLE_NUMBERS]


def _texts(X: Any, name: str) -> np.ndarray | None:
    """X as an array of strings of any shape; None if it holds no strings.

    Raises:
        ValueError: it holds strings and other things.
    """
    kind = getattr(X, "dtype", None)
    if isinstance(kind, np.dtype) and kind.kind not in "OUT":
        return None
    try:
        array = np.asarray(X, dtype=object)
    except ValueError:  # rows of unequal lengths, of which scikit-learn says so
        return None
    if not any(isinstance(value, str) for value in array.flat):
        return None
    if array.ndim == 2 and any(isinstance(value, int | float) for value in array.flat):
        return None  # a table of numbers with some text in it, which scikit-learn names
    for place, value in enumerate(array.flat):
        if not isinstance(value, str):
            raise ValueError(
                f"{name} holds texts, and its value {place} is {type(value).__name__} {value!r}: make it a text"
            )
    return array


def signature_of(sample: Any) -> Signature:
    """Shape and type of a row of each input."""
    return tf.nest.map_structure(lambda values: _Row(tuple(values.shape[1:]), tf.as_dtype(values.dtype).name), sample)


@dataclass(frozen=True)
class _Row:
    """One row of one input. A class of its own, because `tf.nest` takes tuples apart."""

    shape: tuple[int | None, ...]
    kind: str


def empty_rows(signature: Signature) -> Any:
    """One row of zeros, or of empty texts, of each input: enough to build a model."""
    return tf.nest.map_structure(
        lambda row: tf.zeros((1, *row.shape), tf.string if row.kind in ("object", "string") else row.kind), signature
    )


def refuse_other_inputs(sample: Any, signature: Signature) -> None:
    """Refuses rows that are not like those of the fit.

    Raises:
        ValueError: other inputs, other shapes, or texts instead of numbers.
    """
    given, known = (_describe(nest) for nest in (signature_of(sample), signature))
    if given != known:
        raise ValueError(f"X holds {given}, but the model was fitted on {known}: give X as at fit")


def _describe(signature: Signature) -> str:
    def words(row: _Row) -> str:
        return f"{'texts' if row.kind in ('object', 'string') else 'numbers'} with {len(row.shape)} axes a row"

    if isinstance(signature, Mapping):
        return ", ".join(f"{name}: {words(signature[name])}" for name in sorted(signature))
    return words(signature)
