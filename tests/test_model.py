"""model.py: two models, one encoder; the settings do what they say; the export stands alone."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras

from config import Config, ConfigError, DataError
from data import pack
from export import export_classifier
from model import Classifier, build_classifier, compile_classifier
from spec import EncoderPaths
from tasks import Kind, Task

TEXTS = ["it is good", "the worst, and it is not even cheap!", "", "a b c d e f g h i j k"]


def build(
    paths: EncoderPaths, labels: tuple[str, ...] = ("neg", "pos"), kind: Kind | None = None, **options: object
) -> Classifier:
    tf_keras.utils.set_random_seed(0)
    return build_classifier(
        Config(data="-", encoder=paths.encoder, **{"max_seq_length": 64, "precision": "float32", **options}),
        paths,
        Task(kind or ("binary" if len(labels) == 2 else "multiclass"), list(labels)),
    )


def inputs_of(paths: EncoderPaths, texts: list[str] = TEXTS) -> dict[str, tf.Tensor]:
    return pack(hub.load(paths.preprocessor), [tf.constant(texts)], 64)[0]


def train_once(classifier: Classifier, paths: EncoderPaths, **options: float) -> dict[str, float]:
    """One step; returns how far each variable moved."""
    config = Config(data="-", warmup_ratio=0, weight_decay=0, **options)
    compile_classifier(classifier, config, total_steps=10)
    weights = [variable for variable in classifier.token_model.variables if variable.dtype == tf.float32]
    before = {variable.name: variable.numpy() for variable in weights}
    classifier.training_model.train_on_batch(inputs_of(paths), np.array([0, 1, 0, 1]))
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
def test_a_frozen_encoder_drops_nothing_out_in_training(tiny_paths: EncoderPaths, encoder_mode: str) -> None:
    model = build(tiny_paths, trainable=False, dropout=0.0, encoder_mode=encoder_mode).training_model
    inputs = inputs_of(tiny_paths)
    np.testing.assert_allclose(model(inputs, training=True), model(inputs, training=False), atol=1e-6)


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


def test_probabilities_of_two_labels_come_from_one_logit(tiny_paths: EncoderPaths) -> None:
    classifier = build(tiny_paths)
    probabilities = classifier.probabilities(tf.constant([[0.0], [np.log(3.0)]])).numpy()
    np.testing.assert_allclose(probabilities, [[0.5, 0.5], [0.25, 0.75]], rtol=1e-6)


STRANGER = """
import json, sys
import numpy as np, tensorflow as tf, tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
given = serve(**{name: tf.constant(texts) for name, texts in json.loads(sys.argv[2]).items()})
print(json.dumps({"label": [x.decode() for x in given["label"].numpy()], "probability": given["probability"].numpy().tolist(),
                  "probabilities": given["probabilities"].numpy().tolist()}))
"""


@pytest.mark.parametrize("labels", [("neg", "pos"), ("a", "b", "ü")])
def test_the_export_needs_neither_this_project_nor_the_hub_directories(
    tiny_paths: EncoderPaths, tmp_path: Path, labels: tuple[str, ...]
) -> None:
    paths = EncoderPaths(
        str(shutil.copytree(tiny_paths.encoder, tmp_path / "e")),
        str(shutil.copytree(tiny_paths.preprocessor, tmp_path / "p")),
    )
    classifier = build(paths, labels)
    classifier.token_model.get_layer("logits").bias.assign([0.3] if len(labels) == 2 else [0.1, 0.2, 0.3])
    export_classifier(classifier, str(tmp_path / "model"), threshold=0.5)
    expected = classifier.probabilities(classifier.token_model(inputs_of(paths))).numpy()
    for directory in ("e", "p"):
        shutil.rmtree(tmp_path / directory)
    given = serve_as_a_stranger((tmp_path / "model").rename(tmp_path / "moved"), text=TEXTS)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    assert given["label"] == [labels[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(given["probability"], expected.max(axis=1), atol=1e-6)


def serve_as_a_stranger(directory: Path, **texts: list[str]) -> dict[str, list[Any]]:
    """What an exported model gives in a process of its own, far from this project."""
    arguments = [sys.executable, "-c", STRANGER, str(directory), json.dumps(texts)]
    return json.loads(subprocess.run(arguments, cwd="/", capture_output=True, text=True, check=True).stdout)


def test_an_export_of_pairs_takes_both_texts(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    classifier = build(tiny_paths, text_pair_column="other")
    seconds = ["it was good", "", "the best", "z"]
    export_classifier(classifier, str(tmp_path / "model"), threshold=0.5)
    inputs = pack(hub.load(tiny_paths.preprocessor), [tf.constant(TEXTS), tf.constant(seconds)], 64)[0]
    expected = classifier.probabilities(classifier.token_model(inputs)).numpy()
    given = serve_as_a_stranger(tmp_path / "model", text=TEXTS, text_pair=seconds)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    swapped = serve_as_a_stranger(tmp_path / "model", text=seconds, text_pair=TEXTS)
    assert np.abs(np.array(swapped["probabilities"]) - expected).max() > 1e-3


def test_an_export_of_many_labels_joins_those_that_reach_the_threshold(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    classifier = build(tiny_paths, ("a", "b", "ü"), "multilabel")
    classifier.set_output_bias(np.array([0.0, 0.3, -0.1], np.float32))
    classifier.token_model.get_layer("logits").kernel.assign(np.random.default_rng(0).normal(size=(16, 3)))
    export_classifier(classifier, str(tmp_path / "model"), threshold=0.6)
    expected = tf.sigmoid(classifier.token_model(inputs_of(tiny_paths))).numpy()
    given = serve_as_a_stranger(tmp_path / "model", text=TEXTS)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(given["probability"], expected.max(axis=1), atol=1e-6)
    names = np.array(["a", "b", "ü"])
    assert given["label"] == ["|".join(names[row >= 0.6]) for row in expected]
    assert len(set(given["label"])) > 1


def test_the_logits_start_at_their_bias(tiny_paths: EncoderPaths) -> None:
    classifier = build(tiny_paths, ("a", "b", "c"))
    bias = np.array([0.5, -1.0, 2.0], np.float32)
    classifier.set_output_bias(bias)
    assert np.abs(classifier.token_model(inputs_of(tiny_paths)) - bias).max() < 0.5
    assert np.abs(classifier.text_model(tf.constant(TEXTS)) - bias).max() < 0.5


def test_an_export_with_a_published_preprocessor_carries_its_vocabulary_file(
    tiny_encoder: str, vocab_file: str, tmp_path: Path
) -> None:
    from official.nlp.tools import export_tfhub_lib

    published = str(tmp_path / "p")
    export_tfhub_lib.export_preprocessing(
        published, vocab_file=vocab_file, do_lower_case=True, tokenize_with_offsets=False, default_seq_length=128
    )
    classifier = build(EncoderPaths(tiny_encoder, published))
    expected = classifier.probabilities(classifier.text_model(tf.constant(TEXTS))).numpy()
    export_classifier(classifier, str(tmp_path / "model"), threshold=0.5)
    shutil.rmtree(published)
    given = serve_as_a_stranger(tmp_path / "model", text=TEXTS)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)


def test_the_threshold_inside_the_export_decides_the_label(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    classifier = build(tiny_paths)
    labels = {}
    for threshold in (0.0, 1.0):
        export_classifier(classifier, str(tmp_path / str(threshold)), threshold)
        loaded = tf.saved_model.load(str(tmp_path / str(threshold)))
        assert loaded.labels.numpy().tolist() == [b"neg", b"pos"]
        assert loaded.threshold.numpy() == threshold
        given = loaded.signatures["serving_default"](text=tf.constant(["it is good"]))
        labels[threshold] = given["label"].numpy()[0]
        side = {b"neg": 0, b"pos": 1}[labels[threshold]]
        assert given["probability"].numpy()[0] == given["probabilities"].numpy()[0, side]
    assert labels == {0.0: b"pos", 1.0: b"neg"}


def test_an_export_takes_no_texts_one_text_and_bytes_that_are_not_utf8(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    export_classifier(build(tiny_paths), str(tmp_path / "model"), 0.5)
    serve = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    assert serve(text=tf.constant([], tf.string))["probabilities"].shape == (0, 2)
    broken, clean = (
        serve(text=tf.constant([text]))["probabilities"].numpy() for text in (b"it is\xff good", b"it is good")
    )
    np.testing.assert_array_equal(broken, clean)


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
