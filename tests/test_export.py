"""export.py: texts in, labels and probabilities out, with TensorFlow alone."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
from conftest import TEXTS, build, inputs_of

from data import pack
from decision import HALF, plain_decision
from export import export_classifier
from model import Classifier
from spec import EncoderPaths

STRANGER = """
import json, sys
import numpy as np, tensorflow as tf, tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
given = serve(text=tf.constant(json.loads(sys.argv[2])))
print(json.dumps({"label": [x.decode() for x in given["label"].numpy()], "probability": given["probability"].numpy().tolist(),
                  "probabilities": given["probabilities"].numpy().tolist()}))
"""


def exported(classifier: Classifier, directory: Path, temperature: float = 1.0, threshold: float = 0.5) -> tf.Module:
    """The classifier, written and loaded again."""
    plain = plain_decision(classifier.task)
    decision = replace(plain, temperature=plain.temperature * temperature, threshold=plain.threshold * threshold / HALF)
    export_classifier(classifier, str(directory), decision, 64)
    return tf.saved_model.load(str(directory))


def probabilities_of(classifier: Classifier, inputs: dict[str, tf.Tensor], temperature: float = 1.0) -> np.ndarray:
    return plain_decision(classifier.task).probabilities(classifier.token_model(inputs).numpy() / temperature)


def test_the_export_needs_neither_this_project_nor_the_hub_directories(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    paths = EncoderPaths(
        str(shutil.copytree(tiny_paths.encoder, tmp_path / "e")),
        str(shutil.copytree(tiny_paths.preprocessor, tmp_path / "p")),
    )
    labels = ("a", "b", "ü")
    classifier = build(paths, labels)
    classifier.set_output_bias(np.array([0.1, 0.2, 0.3], np.float32))
    exported(classifier, tmp_path / "model", temperature=1.5)
    expected = probabilities_of(classifier, inputs_of(paths), temperature=1.5)
    for directory in ("e", "p"):
        shutil.rmtree(tmp_path / directory)
    elsewhere = (tmp_path / "model").rename(tmp_path / "moved")
    arguments = [sys.executable, "-c", STRANGER, str(elsewhere), json.dumps(TEXTS)]
    given = json.loads(subprocess.run(arguments, cwd="/", capture_output=True, text=True, check=True).stdout)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    assert given["label"] == [labels[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(given["probability"], expected.max(axis=1), atol=1e-6)


def test_an_export_with_a_published_preprocessor_carries_its_vocabulary_file(
    tiny_encoder: str, vocab_file: str, tmp_path: Path
) -> None:
    from official.nlp.tools import export_tfhub_lib

    published = str(tmp_path / "p")
    export_tfhub_lib.export_preprocessing(
        published, vocab_file=vocab_file, do_lower_case=True, tokenize_with_offsets=False, default_seq_length=128
    )
    classifier = build(EncoderPaths(tiny_encoder, published))
    logits = classifier.text_model(tf.constant(TEXTS)).numpy()
    expected = plain_decision(classifier.task).probabilities(logits)
    exported(classifier, tmp_path / "model")
    shutil.rmtree(published)
    arguments = [sys.executable, "-c", STRANGER, str(tmp_path / "model"), json.dumps(TEXTS)]
    given = json.loads(subprocess.run(arguments, cwd="/", capture_output=True, text=True, check=True).stdout)
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)


def test_threshold_and_temperature_inside_the_export_decide_the_label_of_two(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    classifier = build(tiny_paths)
    classifier.set_output_bias(np.array([2.0], np.float32))
    loaded = exported(classifier, tmp_path / "model", temperature=2.0, threshold=0.99)
    assert loaded.labels.numpy().tolist() == [b"neg", b"pos"]
    assert loaded.threshold.numpy() == np.float32(0.99)
    given = loaded.signatures["serving_default"](text=tf.constant(["it is good"]))
    assert 0.5 < given["probabilities"].numpy()[0, 1] < 0.99
    logit = classifier.text_model(tf.constant(["it is good"])).numpy()[0, 0]
    assert given["probabilities"].numpy()[0, 1] == pytest.approx(1 / (1 + np.exp(-logit / 2)), abs=1e-6)
    assert given["label"].numpy()[0] == b"neg"
    assert given["probability"].numpy()[0] == given["probabilities"].numpy()[0, 0]


def test_an_export_takes_no_texts_one_text_and_bytes_that_are_not_utf8(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    serve = exported(build(tiny_paths), tmp_path / "model").signatures["serving_default"]
    assert serve(text=tf.constant([], tf.string))["probabilities"].shape == (0, 2)
    broken, clean = (
        serve(text=tf.constant([text]))["probabilities"].numpy() for text in (b"it is\xff good", b"it is good")
    )
    np.testing.assert_array_equal(broken, clean)


def test_an_export_of_pairs_takes_both_texts(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    classifier = build(tiny_paths, text_pair_column="other")
    texts, pairs = tf.constant(TEXTS), tf.constant(["it was good", "", "the best", "z"])
    serve = exported(classifier, tmp_path / "model").signatures["serving_default"]
    inputs = pack(hub.load(tiny_paths.preprocessor), [texts, pairs], 64)[0]
    expected = probabilities_of(classifier, inputs)
    np.testing.assert_allclose(serve(text=texts, text_pair=pairs)["probabilities"], expected, atol=1e-6)
    assert np.abs(serve(text=pairs, text_pair=texts)["probabilities"] - expected).max() > 1e-3


def test_an_export_of_many_labels_joins_those_that_reach_the_threshold(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    classifier = build(tiny_paths, ("a", "b", "ü"), "multilabel")
    classifier.token_model.get_layer("logits").kernel.assign(np.random.default_rng(0).normal(size=(16, 3)))
    classifier.set_output_bias(0.4 - classifier.token_model(inputs_of(tiny_paths)).numpy().mean(axis=0))
    threshold = float(tf.sigmoid(0.4))  # so that each label has texts on either side of it
    serve = exported(classifier, tmp_path / "model", threshold=threshold).signatures["serving_default"]
    given = {name: value.numpy() for name, value in serve(text=tf.constant(TEXTS)).items()}
    expected = tf.sigmoid(classifier.token_model(inputs_of(tiny_paths))).numpy()
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(given["probability"], expected.max(axis=1), atol=1e-6)
    names = np.array(["a", "b", "ü"])
    joined = ["|".join(names[row >= threshold]) for row in expected]
    assert [label.decode() for label in given["label"]] == joined
    assert len(set(joined)) > 1
    assert serve(text=tf.constant([], tf.string))["label"].shape == (0,)
