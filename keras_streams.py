"""A `tf.data.Dataset` as X of a scikit-learn estimator: its batches, labels and weights, streamed.

N is the number of rows, K the number of labels. `codes` are labels as places in the sorted `classes`, int64 [N].
"""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_inputs import KERAS_BATCH, Signature, Training, encode_labels, stream_arguments


@dataclass
class StreamRows:
    """A tf.data.Dataset of batches x, (x, labels) or (x, labels, weights), read batch by batch whenever it is needed."""

    batches: tf.data.Dataset
    sizes: list[int]  # rows of each batch
    labels: np.ndarray | None

    @property
    def weighted(self) -> bool:
        """Whether the Dataset holds weights."""
        return len(_parts(self.batches.element_spec)) == 3

    def __len__(self) -> int:
        return sum(self.sizes)

    def sample(self, size: int) -> Any:
        """The first rows, as a model takes them."""
        x = _parts(next(iter(self.batches)))[0]
        return tf.nest.map_structure(lambda tensor: tensor[:size], x)

    def arguments(self, given: Training) -> dict[str, Any]:
        """Batches for `Model.fit`, in the Dataset's own order."""

        def code(labels: tf.Tensor) -> tf.Tensor:
            found = tf.numpy_function(lambda y: encode_labels(_from_tensor(y), given.classes), [labels], tf.int64)
            return tf.ensure_shape(found, (None,))

        if self.labels is None:
            coded = tf.data.Dataset.zip(without_labels(self.batches), self._beside(given.codes))
        else:
            coded = self.batches.map(lambda x, y, *weights: (x, code(y), *weights))
        if given.weights is not None:
            both = tf.data.Dataset.zip(coded, self._beside(given.weights))
            coded = both.map(lambda element, weight: (*element, weight))
        # Keras trains a little differently where it does not know the number of batches: it counts a step that finds none.
        counted = coded.map(given.finish).apply(tf.data.experimental.assert_cardinality(len(self.sizes)))
        return stream_arguments(counted)

    def _beside(self, values: np.ndarray) -> tf.data.Dataset:
        """Values of the N rows in batches of the Dataset's own sizes."""
        return tf.data.Dataset.from_tensor_slices(tf.RaggedTensor.from_row_lengths(values, self.sizes))


def without_labels(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The x of each element."""
    return dataset.map(lambda x, *beside: x)


def labelled_batches(dataset: tf.data.Dataset, signature: Signature) -> Iterator[tuple[Any, np.ndarray, Any]]:
    """`(x, labels, weights or None)` of each batch of a Dataset that holds labels, in one pass over it.

    Raises:
        ValueError: it holds none.
    """
    for element in in_batches(dataset, None, signature):
        x, *rest = _parts(element)
        if not rest:
            raise ValueError(
                "requires y to be passed, but the target y is None and the Dataset holds no labels: give y"
            )
        yield x, _from_tensor(rest[0]), rest[1].numpy() if len(rest) == 2 else None


def _parts(element: Any) -> tuple[Any, ...]:
    return element if isinstance(element, tuple) else (element,)


def _from_tensor(labels: Any) -> np.ndarray:
    """Labels of a Dataset [N] or [N, 1], its strings decoded."""
    labels = np.asarray(labels).reshape(-1)
    return np.array([label.decode() for label in labels], dtype=str) if labels.dtype == object else labels


def read_dataset(
    dataset: tf.data.Dataset, y: np.ndarray | None, batch_size: int | None, signature: Signature | None = None
) -> StreamRows:
    """Passes once over a Dataset and notes its labels and the sizes of its batches; x is not kept.

    Args:
        y: labels beside the Dataset [N], in its order.
        signature: rows of the fit; they tell batches from single rows where a Dataset has no labels.

    Raises:
        ValueError: it is empty or endless, its labels are not those beside it, or nothing tells whether it is batched.
    """
    batches = in_batches(dataset, batch_size, signature, None if y is None else len(y))
    sizes, labels = [], []
    for element in batches:
        x, *rest = _parts(element)
        sizes.append(tf.nest.flatten(x)[0].shape[0])
        labels += [_from_tensor(rest[0])] if rest else []
    own = np.concatenate(labels) if labels else None
    if y is not None and len(y) != sum(sizes):
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[sum(sizes), len(y)]}")
    if own is not None and y is not None and not np.array_equal(own, y):
        raise ValueError(
            "the Dataset holds labels, and y has other ones: leave y out (a Dataset that shuffles anew gives another order "
            "each time)"
        )
    return StreamRows(batches, sizes, own)


def in_batches(
    dataset: tf.data.Dataset, batch_size: int | None, signature: Signature | None, num_labels: int | None = None
) -> tf.data.Dataset:
    """The Dataset in batches: its own ones, of another size if one is asked for, or new ones of single rows."""
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("the Dataset never ends: leave out its repeat(); `epochs` says how often it is read")
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("the Dataset has 0 sample(s) while a minimum of 1 is required")
    if not _is_batched(dataset, first, signature, num_labels):
        return dataset.batch(batch_size or KERAS_BATCH)
    if batch_size and tf.nest.flatten(first)[0].shape[0] != batch_size:
        return dataset.unbatch().batch(batch_size)
    return dataset


def _is_batched(dataset: tf.data.Dataset, first: Any, signature: Signature | None, num_labels: int | None) -> bool:
    x, *rest = _parts(first)
    if rest:
        shape = rest[0].shape
        if shape.rank > 2 or (shape.rank == 2 and shape[1] != 1) or (shape.rank == 1 and _is_vector(x, rest[0])):
            raise ValueError(
                f"the labels of a Dataset should be one a row, and have the bad shape {tuple(shape)}: map them with "
                "tf.argmax(y, axis=-1) if they are one-hot"
            )
        return bool(shape.rank)
    rank = tf.nest.flatten(x)[0].shape.rank
    if signature is not None:
        return _batched_by_rank(rank, len(tf.nest.flatten(signature)[0].shape))
    if rank == 0:
        return False
    num_elements = num_rows = 0
    for element in dataset:
        num_elements, num_rows = num_elements + 1, num_rows + tf.nest.flatten(element)[0].shape[0]
    if num_labels not in (num_elements, num_rows):
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: a Dataset of {num_elements} elements, "
            f"{num_rows} rows if they are batches, and {num_labels} labels"
        )
    if num_elements == num_rows:  # batches of one row, or single rows with one number: only the former vary in length
        return tf.nest.flatten(dataset.element_spec)[0].shape[0] is None
    return num_labels == num_rows


def _is_vector(x: Any, labels: tf.Tensor) -> bool:
    """Whether labels of one axis are those of one row: a one-hot row, not a batch."""
    return tf.nest.flatten(x)[0].shape[:1] != labels.shape[:1]


def _batched_by_rank(rank: int, row_rank: int) -> bool:
    if rank not in (row_rank, row_rank + 1):
        raise ValueError(
            f"the Dataset's elements have {rank} axes, and the rows of the fit {row_rank}: give rows or batches of them"
        )
    return rank == row_rank + 1
