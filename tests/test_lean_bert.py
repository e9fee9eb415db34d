"""BERT's lean forward pass: Model Garden's outputs and gradients, in parts side by side too."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conftest import inputs_of

from bert import assign, build_bert, open_encoder
from data import INPUT_NAMES
from lean_bert import LeanEncoder, make_variables, sentence_layer
from model import TextVectors
from spec import EncoderPaths

Inputs = dict[str, tf.Tensor]


def lean(directory: str, precision: str = "float32", first_only: bool = False, dropout: float = 0.0) -> LeanEncoder:
    spec, weights = open_encoder(directory)
    variables = make_variables(spec, weights, lambda name: True)
    options: dict[str, Any] = {"precision": precision, "first_only": first_only, "dropout": dropout}
    return LeanEncoder(spec, variables, None if first_only else sentence_layer(spec, weights), **options)


def gradients(encoder: Any, pooling: str, inputs: Inputs, streams: int = 1) -> dict[str, np.ndarray]:
    vectors = TextVectors(encoder, pooling, trainable=True, streams=streams)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(3.0 * vectors(inputs, training=True)))
    found = zip(encoder.trainable_variables, tape.gradient(loss, encoder.trainable_variables), strict=True)
    return {
        variable.name: tf.convert_to_tensor(gradient).numpy() for variable, gradient in found if gradient is not None
    }


def assert_close(first: dict[str, np.ndarray], second: dict[str, np.ndarray], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        if name.endswith("key/bias:0"):  # softmax does not feel it: its gradient is rounding
            continue
        scale = np.abs(gradient).max() + 1e-3
        np.testing.assert_allclose(second[name] / scale, gradient / scale, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("pooling", ["pooled_output", "mean"])
def test_its_gradients_are_those_of_model_garden(
    published_encoder: str, tiny_paths: EncoderPaths, pooling: str
) -> None:
    spec, weights = open_encoder(published_encoder)
    garden = build_bert(spec, cls_only=pooling == "pooled_output", dropout=0.0)
    assign(garden, weights.items())
    inputs = inputs_of(tiny_paths)
    ours = gradients(lean(published_encoder, first_only=pooling == "pooled_output"), pooling, inputs)
    assert_close(gradients(garden, pooling, inputs), ours, 1e-4)


def test_in_bfloat16_it_computes_nearly_the_same_and_learns_in_float32(
    published_encoder: str, tiny_paths: EncoderPaths
) -> None:
    inputs = inputs_of(tiny_paths)
    exact, rounded = (lean(published_encoder, precision) for precision in ("float32", "bfloat16"))
    difference = np.abs(exact(inputs)["sequence_output"] - rounded(inputs)["sequence_output"]).max()
    assert 1e-5 < difference < 0.1
    assert {gradient.dtype for gradient in gradients(rounded, "mean", inputs).values()} == {np.dtype(np.float32)}
    assert_close(gradients(exact, "mean", inputs), gradients(rounded, "mean", inputs), 0.1)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_parts_side_by_side_give_what_the_batch_gives(published_encoder: str, rows: int) -> None:
    lengths = np.arange(3, 3 + rows)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    ids = np.random.default_rng(rows).integers(5, 20, mask.shape).astype(np.int32) * mask
    inputs = dict(zip(INPUT_NAMES, map(tf.constant, (ids, mask, np.zeros_like(ids))), strict=True))
    encoder = lean(published_encoder)
    for pooling in ("pooled_output", "mean"):
        whole, parts = (TextVectors(encoder, pooling, True, streams)(inputs) for streams in (1, 2))
        np.testing.assert_allclose(parts, whole, atol=1e-5)
        assert_close(gradients(encoder, pooling, inputs), gradients(encoder, pooling, inputs, streams=2), 1e-4)


def test_dropout_drops_at_its_rate_keeps_the_mean_and_is_never_the_same(
    published_encoder: str, tiny_paths: EncoderPaths
) -> None:
    runtime.set_seed(1)
    inputs = {name: tf.repeat(tensor[:1], 400, axis=0) for name, tensor in inputs_of(tiny_paths).items()}
    encoder = lean(published_encoder, dropout=0.1)
    bert = encoder._bert
    bert._num_layers = 0  # the embeddings alone, and their dropout
    whole, dropped, again = (
        tf.convert_to_tensor(bert.states(inputs, training).hidden[0]).numpy() for training in (False, True, True)
    )
    kept = dropped != 0
    assert kept.mean() == pytest.approx(1 - 26 / 256, abs=0.005)
    np.testing.assert_allclose(dropped[kept], (whole * 256 / 230)[kept], rtol=1e-5)
    assert (kept != (again != 0)).mean() == pytest.approx(2 * 26 / 256 * 230 / 256, abs=0.01)


def test_training_draws_the_same_numbers_from_the_same_seed(published_encoder: str, tiny_paths: EncoderPaths) -> None:
    inputs = inputs_of(tiny_paths)

    def drawn() -> np.ndarray:
        runtime.set_seed(3)
        encoder = lean(published_encoder, dropout=0.5)
        compute = tf.function(lambda: encoder(inputs, training=True)["pooled_output"])
        return np.stack([compute(), compute()])

    first, second = drawn(), drawn()
    np.testing.assert_array_equal(first, second)
    assert np.abs(first[0] - first[1]).max() > 1e-3
