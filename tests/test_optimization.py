"""optimization.py against AdamW written out in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from optimization import AdamW, WarmupLinearDecay

RATE, DECAY = 0.1, 0.5


def adamw_by_hand(value: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float) -> np.ndarray:
    m = v = np.zeros_like(value)
    for step, gradient in enumerate(gradients, 1):
        value = value - rate * decay * value
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        value = value - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return value


@pytest.mark.parametrize(
    ("name", "decay", "factor"),
    [
        ("layer/kernel", DECAY, 1.0),
        ("logits/kernel", DECAY, 0.1),
        ("layer/bias", 0.0, 1.0),
        ("layer_norm/gamma", 0.0, 1.0),
    ],
)
def test_dense_weights_get_adamw_with_exclusions_and_rate_factors(name: str, decay: float, factor: float) -> None:
    start = np.array([1.0, -2.0, 3.0], np.float32)
    gradients = [np.array(g, np.float32) for g in ([0.1, 0.2, -0.3], [0.0, -0.4, 0.2], [0.3, 0.1, 0.0])]
    variable = tf.Variable(start, name=name)
    optimizer = AdamW(RATE, DECAY, rate_factor=lambda name: 0.1 if name.startswith("logits") else 1.0)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
    np.testing.assert_allclose(variable, adamw_by_hand(start, gradients, RATE * factor, decay), rtol=1e-4)


def test_embedding_rows_of_the_batch_get_adamw_and_others_stay() -> None:
    table = tf.Variable(np.ones([4, 2], np.float32), name="embeddings")
    optimizer = AdamW(RATE, DECAY, rate_factor=lambda name: 1.0)
    slices = tf.IndexedSlices(tf.constant([[0.1, 0.2], [0.3, 0.1]]), tf.constant([2, 2]), tf.constant([4, 2]))
    optimizer.apply_gradients([(slices, table)])
    optimizer.apply_gradients([(slices, table)])
    expected = adamw_by_hand(
        np.ones(2, np.float32), [np.array([0.4, 0.3])] * 2, RATE, DECAY
    )  # both slices are of row 2
    np.testing.assert_allclose(table[2], expected, rtol=1e-4)
    np.testing.assert_array_equal(tf.gather(table, [0, 1, 3]), np.ones([3, 2]))


def test_gradients_are_clipped_by_their_global_norm_with_repeated_rows_summed() -> None:
    table, kernel = tf.Variable(tf.zeros([2, 1]), name="embeddings"), tf.Variable([0.0], name="kernel")
    optimizer = AdamW(RATE, 0.0, rate_factor=lambda name: 1.0)
    slices = tf.IndexedSlices(tf.constant([[1.5], [1.5]]), tf.constant([0, 0]), tf.constant([2, 1]))
    optimizer.apply_gradients([(slices, table), (tf.constant([4.0]), kernel)])  # norm of (3, 4) is 5
    np.testing.assert_allclose(optimizer.get_slot(kernel, "m"), [0.1 * 4 / 5], rtol=1e-5)
    np.testing.assert_allclose(optimizer.get_slot(table, "m")[0], [0.1 * 3 / 5], rtol=1e-5)


def test_the_rate_rises_falls_and_ends_at_zero() -> None:
    schedule = WarmupLinearDecay(peak=2.0, total_steps=10, warmup_steps=4)
    assert [round(float(schedule(step)), 3) for step in range(11)] == [
        0.5,
        1.0,
        1.5,
        2.0,
        2.0,
        1.667,
        1.333,
        1.0,
        0.667,
        0.333,
        0.0,
    ]
    assert float(WarmupLinearDecay(2.0, 10, 0)(0)) == 2.0
