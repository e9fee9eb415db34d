"""losses.py: the numbers of Keras' own losses, for each task, in one class."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from losses import WeightedCrossEntropy, exact_match
from tasks import Kind

RANDOM = np.random.default_rng(0)
LOGITS = {kind: (3 * RANDOM.normal(size=shape)).astype(np.float32) for kind, shape in
          {"binary": (8, 1), "multiclass": (8, 3), "multilabel": (8, 3)}.items()}  # fmt: skip
TARGETS: dict[str, np.ndarray] = {
    "binary": np.array([0, 1, 1, 0, 1, 0, 0, 0]),
    "multiclass": np.array([0, 1, 2, 0, 1, 0, 2, 0]),
    "multilabel": (RANDOM.random((8, 3)) < 0.4).astype(np.float32),
}
DENSE = {
    "binary": TARGETS["binary"][:, None].astype(np.float32),
    "multiclass": np.eye(3, dtype=np.float32)[TARGETS["multiclass"]],
    "multilabel": TARGETS["multilabel"],
}
KINDS: list[Kind] = ["binary", "multiclass", "multilabel"]


def ours(kind: Kind, weights: np.ndarray | None = None) -> np.ndarray:
    """The loss of each row."""
    return WeightedCrossEntropy(kind, weights).call(tf.constant(TARGETS[kind]), tf.constant(LOGITS[kind])).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_it_is_keras_cross_entropy(kind: Kind) -> None:
    losses = tf_keras.losses
    theirs = losses.CategoricalCrossentropy if kind == "multiclass" else losses.BinaryCrossentropy
    expected = theirs(from_logits=True, reduction="none")(DENSE[kind], LOGITS[kind])
    np.testing.assert_allclose(ours(kind), expected, rtol=1e-5)


def test_weights_count_rows_by_their_label() -> None:
    np.testing.assert_allclose(
        ours("binary", np.array([0.5, 4.0], np.float32)),
        ours("binary") * np.array([0.5, 4.0])[TARGETS["binary"]],
        rtol=1e-6,
    )
    weights = np.array([0.5, 4.0, 2.0], np.float32)
    np.testing.assert_allclose(
        ours("multiclass", weights), ours("multiclass") * weights[TARGETS["multiclass"]], rtol=1e-6
    )


def test_weights_of_several_labels_count_positives_alone() -> None:
    weights = np.array([0.5, 4.0, 2.0], np.float32)
    targets = TARGETS["multilabel"]
    expected = tf.nn.weighted_cross_entropy_with_logits(targets, LOGITS["multilabel"], weights).numpy().mean(axis=1)
    np.testing.assert_allclose(ours("multilabel", weights), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_is_the_share_of_rows_that_are_wholly_right(kind: Kind) -> None:
    metric, logits = exact_match(kind), LOGITS[kind] + 5 * (DENSE[kind] - 0.5)
    metric.update_state(tf.constant(TARGETS[kind]), tf.constant(logits))
    if kind == "multiclass":
        expected = (logits.argmax(axis=1) == TARGETS[kind]).mean()
    else:
        expected = ((logits > 0) == (DENSE[kind] > 0)).all(axis=1).mean()
    assert 0 < expected < 1, "the example should have rows of both kinds"
    assert float(metric.result()) == pytest.approx(expected)
