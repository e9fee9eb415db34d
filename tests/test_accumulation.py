"""accumulation.py: several parts, one step, the same weights as the whole batch gives."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tf_keras
from conftest import SAMPLE

from accumulation import AccumulatingModel
from config import Config
from data import Tokens, num_batches, tokenize, train_batches
from model import build_classifier, compile_classifier
from optimization import AdamW
from spec import EncoderPaths
from tasks import Task

ROWS = 100
TEXTS = pd.read_csv(SAMPLE, keep_default_na=False)["text"].tolist()[:ROWS]
TARGETS = (np.random.default_rng(0).random((ROWS, 3)) < 0.3).astype(np.float32)
Weights = dict[str, np.ndarray]


def train(
    paths: EncoderPaths, batch_size: int, parts: int, loss_scaling: bool = False, **options: Any
) -> tuple[Weights, dict[str, float], Tokens]:
    """An epoch of steps of 24 rows, the last one of 4, without dropout."""
    config = Config(
        data="-",
        max_seq_length=64,
        batch_size=batch_size,
        gradient_accumulation_steps=parts,
        precision="float32",
        dropout=0,
        learning_rate=1e-2,
        **options,
    )
    classifier = build_classifier(config, paths, Task("multilabel", ["a", "b", "c"]))
    if loss_scaling:
        classifier = replace(classifier, encoder=replace(classifier.encoder, precision="float16"))
    steps = num_batches(ROWS, batch_size * parts)
    compile_classifier(classifier, config, steps, np.array([0.5, 2.0, 3.0], np.float32))
    tokens = tokenize(TEXTS, classifier.preprocessor, 64)
    batches = train_batches(tokens, TARGETS, batch_size * parts, seed=1)
    history = classifier.training_model.fit(batches, steps_per_epoch=steps, verbose=0).history
    weights = {
        variable.name: variable.numpy() for variable in classifier.token_model.weights if variable.dtype == tf.float32
    }
    return weights, {name: values[0] for name, values in history.items()}, tokens


def start(paths: EncoderPaths, **options: Any) -> Weights:
    """The weights before the first step."""
    config = Config(data="-", max_seq_length=64, **options)
    model = build_classifier(config, paths, Task("multilabel", ["a", "b", "c"])).token_model
    return {variable.name: variable.numpy() for variable in model.weights if variable.dtype == tf.float32}


def assert_same_steps(one: Weights, other: Weights, before: Weights) -> None:
    """Equal up to float error, as a whole: Adam makes much of the error of a gradient that is nearly 0."""
    moved = sum(float(np.square(one[name] - before[name]).sum()) for name in one)
    apart = sum(float(np.square(one[name] - other[name]).sum()) for name in one)
    assert moved > 0
    assert np.sqrt(apart / moved) < 1e-3


def test_parts_of_a_batch_give_the_step_of_the_whole(tiny_paths: EncoderPaths) -> None:
    whole, logged, tokens = train(tiny_paths, 24, 1, encoder_dropout=0)
    parts, logged_in_parts, _ = train(tiny_paths, 8, 3, encoder_dropout=0)
    before = start(tiny_paths)
    assert_same_steps(whole, parts, before)
    assert logged_in_parts == pytest.approx(logged, abs=1e-4)
    [table] = [name for name in parts if "word_embeddings" in name]
    moved = np.flatnonzero(np.abs(parts[table] - before[table]).max(axis=1))
    padding = 0
    assert set(moved) == {padding, *np.unique(tokens.word_ids)}  # rows of other tokens stay


def test_loss_scaling_leaves_the_sum_as_it_is(tiny_paths: EncoderPaths) -> None:
    options: dict[str, Any] = {"encoder_dropout": 0}
    whole, _, _ = train(tiny_paths, 24, 1, **options)
    parts, _, _ = train(tiny_paths, 8, 3, loss_scaling=True, **options)
    assert_same_steps(whole, parts, start(tiny_paths, **options))


class HalfSeen(tf_keras.layers.Layer):
    """Like a hub layer with a part that the head does not see."""

    def build(self, shape: Any) -> None:
        self.seen, self.unseen = (self.add_weight(name, (shape[-1], 1)) for name in ("seen", "unseen"))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs @ self.seen


def test_weights_without_a_gradient_stay() -> None:
    layer = HalfSeen()
    inputs = {"input_mask": tf_keras.Input((None,), dtype="int32"), "features": tf_keras.Input((2,))}
    model = AccumulatingModel(2, inputs=inputs, outputs=layer(inputs["features"]))
    model.compile(AdamW(0.1, 0.01, rate_factor=lambda name: 1.0), "mse")
    before = [weight.numpy() for weight in (layer.seen, layer.unseen)]
    model.train_on_batch({"input_mask": np.full((5, 2), 1, np.int32), "features": np.ones((5, 2))}, np.ones((5, 1)))
    moved = [np.abs(weight.numpy() - old).max() for weight, old in zip((layer.seen, layer.unseen), before, strict=True)]
    assert moved[0] > 0.05
    assert moved[1] == 0
