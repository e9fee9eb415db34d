"""model.py: two models, one encoder; the settings do what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from conftest import TEXTS, build, inputs_of

from config import Config, ConfigError, DataError
from model import Classifier, compile_classifier
from spec import EncoderPaths


def train_once(classifier: Classifier, paths: EncoderPaths, **options: float) -> dict[str, float]:
    """One step; returns how far each variable moved."""
    config = Config(data="-", warmup_ratio=0, weight_decay=0, **options)
    compile_classifier(classifier, config, total_steps=10)
    weights = [variable for variable in classifier.token_model.variables if variable.dtype == tf.float32]
    before = {variable.name: variable.numpy() for variable in weights}
    inputs = inputs_of(paths)
    if classifier.vector_model is not None:
        inputs = classifier.vector_model(inputs)
    classifier.training_model.train_on_batch(inputs, np.array([0, 1, 0, 1]))
    return {variable.name: float(np.abs(variable.numpy() - before[variable.name]).max()) for variable in weights}


def test_the_text_model_and_the_token_model_give_the_same_logits(tiny_paths: EncoderPaths) -> None:
    classifier = build(tiny_paths, ("a", "b", "c"))
    logits = classifier.token_model(inputs_of(tiny_paths))
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(classifier.text_model(tf.constant(TEXTS)), logits, atol=1e-6)


@pytest.mark.parametrize("encoder_mode", ["hub", "opened"])
@pytest.mark.parametrize("pooling", ["pooled_output", "cls", "mean", "default"])
def test_pooling_takes_what_it_says_and_ignores_padding(
    tiny_paths: EncoderPaths, pooling: str, encoder_mode: str
) -> None:
    classifier = build(tiny_paths, pooling=pooling, encoder_mode=encoder_mode)
    inputs = inputs_of(tiny_paths)
    outputs = hub.load(tiny_paths.encoder)(inputs, training=False)
    sequence, mask = outputs["sequence_output"].numpy(), inputs["input_mask"].numpy().astype(bool)
    expected = {
        "pooled_output": outputs["pooled_output"].numpy(),
        "default": outputs["default"].numpy(),
        "cls": sequence[:, 0],
        "mean": np.stack([row[real].mean(axis=0) for row, real in zip(sequence, mask, strict=True)]),
    }[pooling]
    kernel, bias = classifier.token_model.get_layer("logits").get_weights()
    np.testing.assert_allclose(classifier.token_model(inputs), expected @ kernel + bias, atol=1e-5)


def test_hidden_units_put_a_relu_layer_before_the_logits(tiny_paths: EncoderPaths) -> None:
    model = build(tiny_paths, hidden_units=8).token_model
    assert model.get_layer("hidden").kernel.shape == (16, 8)
    assert model.get_layer("hidden").activation is tf_keras.activations.relu
    assert model.get_layer("logits").kernel.shape == (8, 1)


@pytest.mark.parametrize("encoder_mode", ["hub", "opened"])
def test_a_frozen_encoder_stays_and_a_trainable_one_moves(tiny_paths: EncoderPaths, encoder_mode: str) -> None:
    frozen = train_once(build(tiny_paths, trainable=False, encoder_mode=encoder_mode), tiny_paths)
    assert {name for name, moved in frozen.items() if moved} == {"logits/kernel:0", "logits/bias:0"}
    moved = train_once(build(tiny_paths, trainable=True, encoder_mode=encoder_mode), tiny_paths)
    assert sum(distance > 0 for distance in moved.values()) > 30


@pytest.mark.parametrize("encoder_mode", ["hub", "opened"])
def test_the_head_of_a_frozen_encoder_learns_from_what_it_will_be_given(
    tiny_paths: EncoderPaths, encoder_mode: str
) -> None:
    classifier = build(tiny_paths, trainable=False, dropout=0.0, encoder_mode=encoder_mode)
    inputs = inputs_of(tiny_paths)
    assert classifier.vector_model is not None
    logits = classifier.training_model(classifier.vector_model(inputs, training=True), training=True)
    np.testing.assert_allclose(logits, classifier.token_model(inputs, training=False), atol=1e-6)


@pytest.mark.parametrize("encoder_mode", ["hub", "opened"])
def test_embedding_rows_of_absent_tokens_stay(tiny_paths: EncoderPaths, encoder_mode: str) -> None:
    """That is: the table's gradient is sparse, also out of the SavedModel, also in mixed precision."""
    classifier = build(tiny_paths, encoder_mode=encoder_mode, precision="auto")
    [table] = [variable for variable in classifier.token_model.variables if "word_embeddings" in variable.name]
    before = table.numpy()
    train_once(classifier, tiny_paths)
    present = np.unique(inputs_of(tiny_paths)["input_word_ids"])
    moved = np.abs(table.numpy() - before).max(axis=1) > 0
    assert set(np.flatnonzero(moved)) <= set(present)
    assert moved.sum() > 10


def test_encoder_and_head_have_rates_of_their_own(tiny_paths: EncoderPaths) -> None:
    moved = train_once(
        build(tiny_paths, encoder_mode="hub"), tiny_paths, learning_rate=1e-2, encoder_learning_rate=1e-4
    )
    assert moved["logits/kernel:0"] == pytest.approx(1e-2, rel=0.01)  # Adam's first step is the rate
    assert moved["pooler_transform/kernel:0"] == pytest.approx(1e-4, rel=0.01)


def test_loss_scaling_for_float16_leaves_the_step_as_it_is(tiny_paths: EncoderPaths) -> None:
    classifiers = [build(tiny_paths, encoder_mode="hub") for _ in range(2)]
    classifiers[1] = replace(classifiers[1], encoder=replace(classifiers[1].encoder, precision="float16"))
    plain, scaled = (train_once(classifier, tiny_paths) for classifier in classifiers)
    assert scaled["logits/kernel:0"] == pytest.approx(plain["logits/kernel:0"], rel=1e-3)
    assert scaled["word_embeddings/embeddings:0"] == pytest.approx(plain["word_embeddings/embeddings:0"], rel=1e-3)


def test_the_logits_start_at_their_bias(tiny_paths: EncoderPaths) -> None:
    classifier = build(tiny_paths, ("a", "b", "c"))
    bias = np.array([0.5, -1.0, 2.0], np.float32)
    classifier.set_output_bias(bias)
    assert np.abs(classifier.token_model(inputs_of(tiny_paths)) - bias).max() < 0.5
    assert np.abs(classifier.text_model(tf.constant(TEXTS)) - bias).max() < 0.5


def test_a_preprocessor_must_be_one(tiny_encoder: str) -> None:
    with pytest.raises(DataError, match="has no `tokenize`; give a TF-Hub text preprocessor"):
        build(EncoderPaths(tiny_encoder, tiny_encoder))


def test_a_preprocessor_with_more_tokens_than_the_encoder_has_rows_is_refused(
    tiny_encoder: str, minilm_paths: EncoderPaths
) -> None:
    with pytest.raises(DataError, match=r"preprocessor .* has 30,522 tokens, encoder .* has 474; name its own one"):
        build(EncoderPaths(tiny_encoder, minilm_paths.preprocessor))


def test_a_saved_model_that_is_no_layer_is_refused(tmp_path: Path, tiny_paths: EncoderPaths) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    for paths in (
        EncoderPaths(str(tmp_path / "bare"), tiny_paths.preprocessor),
        EncoderPaths(tiny_paths.encoder, str(tmp_path / "bare")),
    ):
        with pytest.raises(DataError, match="bare: cannot be loaded as a layer"):
            build(paths)


def test_an_encoder_must_take_the_three_inputs(tmp_path: Path, tiny_paths: EncoderPaths) -> None:
    module = tf.Module()
    module.__call__ = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "other"))
    with pytest.raises(DataError, match="does not take input_word_ids, input_mask, input_type_ids as a dict"):
        build(EncoderPaths(str(tmp_path / "other"), tiny_paths.preprocessor))


def test_more_tokens_than_positions_are_refused(tiny_paths: EncoderPaths) -> None:
    with pytest.raises(ConfigError, match=r"max_seq_length=65: the encoder .* has 64 positions; set 64 or less"):
        build(tiny_paths, max_seq_length=65)
