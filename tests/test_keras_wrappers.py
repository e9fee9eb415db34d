"""Any Keras model as a scikit-learn classifier."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import gc
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from cleanlab.classification import CleanLearning
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from tf_keras import layers

from keras_wrappers import KerasWrapperModel, KerasWrapperSequential

RANDOM = np.random.default_rng(0)
Y = np.repeat(["bad", "fine", "good"], 20)
X = (RANDOM.normal(size=(60, 4)) + 3 * np.eye(4)[np.repeat([0, 1, 2], 20)]).astype(np.float32)
TWO = Y != "fine"
COMPILE = {"optimizer": tf_keras.optimizers.Adam(0.05), "loss": "sparse_categorical_crossentropy"}  # never changed


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """Each fit collects garbage: what the tests imported need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def dense(n_features_in_: int, n_classes_: int, units: int = 8) -> tf_keras.Model:
    hidden = layers.Dense(units, activation="tanh", input_shape=(n_features_in_,))
    return tf_keras.Sequential([hidden, layers.Dense(n_classes_, activation="softmax")])


def model(**options: Any) -> KerasWrapperModel:
    return KerasWrapperModel(dense, compile_kwargs=COMPILE, **{"epochs": 4, "random_state": 0, **options})


def sequential(*stack: tf_keras.layers.Layer, **options: Any) -> KerasWrapperSequential:
    stack = stack or (layers.Dense(8, activation="tanh"), layers.Dense(3, activation="softmax"))
    return KerasWrapperSequential(list(stack), **{"compile_kwargs": COMPILE, "epochs": 4, "random_state": 0, **options})


def head(units: int, activation: str | None, loss: Any, **options: Any) -> KerasWrapperSequential:
    return sequential(layers.Dense(units, activation=activation), compile_kwargs={**COMPILE, "loss": loss}, **options)


# scikit-learn's own checks: full batches in their order and a summed loss, where a weight of 2 is the same as two rows


def checked(n_features_in_: int, n_classes_: int) -> tf_keras.Model:
    hidden = layers.Dense(8, activation="tanh", dtype="float64", input_shape=(n_features_in_,))
    return tf_keras.Sequential([hidden, layers.Dense(n_classes_, activation="softmax", dtype="float64")])


class OneOutputPerLabel(KerasWrapperSequential):
    """Layers with a last one for as many labels as there are, a number which the checks vary."""

    def _new_model(self, num_classes: int | None) -> tf_keras.Model:
        last = layers.Dense(num_classes, activation="softmax", dtype="float64")
        return KerasWrapperSequential([*self.layers, last])._new_model(num_classes)


CHECKED: dict[str, Any] = {
    "compile_kwargs": {
        "optimizer": "sgd",
        "loss": tf_keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
        "run_eagerly": True,  # tracing takes longer than these trainings
    },
    "epochs": 3,
    "batch_size": 1000,
    "shuffle": False,
    "random_state": 0,
}


UNEQUAL_COPIES = {
    "check_estimators_overwrite_params": "it compares parameters with deep copies, and no layer equals its own"
}


CHECKS = parametrize_with_checks(
    [
        KerasWrapperModel(checked, **CHECKED),
        OneOutputPerLabel([layers.Dense(8, activation="tanh", dtype="float64")], **CHECKED),
    ],
    expected_failed_checks=lambda estimator: UNEQUAL_COPIES if isinstance(estimator, OneOutputPerLabel) else {},
).mark


def name_of(value: Any) -> str:
    """scikit-learn's own names hold addresses of Keras objects, which are others in each test process."""
    return type(value).__name__ if isinstance(value, BaseEstimator) else value.func.__name__


@pytest.mark.parametrize(*CHECKS.args, ids=name_of)
def test_scikit_learn_finds_nothing_wrong(estimator: Any, check: Any) -> None:
    check(estimator)


# Fits


def test_every_fit_starts_from_new_weights_and_returns_the_estimator() -> None:
    estimator = model()
    assert estimator.fit(X, Y) is estimator
    first = estimator.predict_proba(X)
    np.testing.assert_array_equal(estimator.fit(X, Y).predict_proba(X), first)
    assert len(estimator.history_["loss"]) == 4
    assert (estimator.fit(X, Y, epochs=30).predict(X) == Y).mean() > 0.8


def test_a_fit_leaves_other_estimators_as_they_are() -> None:
    one = model().fit(X, Y)
    before = one.predict_proba(X)
    unused = model(random_state=5).fit(X, Y)
    model(random_state=1).fit(X, Y == "good")
    np.testing.assert_array_equal(one.predict_proba(X), before)
    assert unused.predict(X).shape == (60,)


def test_fits_leave_nothing_behind() -> None:
    def graphs() -> int:
        gc.collect()
        return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())

    estimator = model(epochs=1).fit(X, Y)
    before = graphs()
    for _ in range(3):
        estimator.fit(X, Y)
    assert graphs() == before


def test_a_fit_gives_the_random_generators_their_state_back() -> None:
    np.random.seed(3)
    random.seed(3)
    wanted = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    model(random_state=7).fit(X, Y)
    assert (np.random.rand(), random.random()) == wanted


def test_objects_of_the_user_stay_as_they_were() -> None:
    first, optimizer = layers.Dense(8), tf_keras.optimizers.AdamW(0.05)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    accuracy = tf_keras.metrics.SparseCategoricalAccuracy()
    compiled = {"optimizer": optimizer, "loss": COMPILE["loss"], "metrics": [accuracy]}
    estimator = sequential(first, layers.Dense(3, activation="softmax"), compile_kwargs=compiled).fit(X, Y)
    assert not first.built
    assert int(optimizer.iterations) == 0
    assert accuracy.result() == 0
    assert estimator.model_.optimizer is not optimizer
    assert estimator.model_.optimizer._exclude_from_weight_decay_names == ["bias"]
    assert estimator.model_.optimizer.iterations == 8


def test_layers_that_come_built_start_every_fit_from_what_they_hold() -> None:
    texts = np.array([["good film"], ["bad film"]] * 8, dtype=object)
    vectorize = layers.TextVectorization(output_sequence_length=2)
    vectorize.adapt(["good bad film"])
    embed = layers.Embedding(8, 2, trainable=False)
    embed.build((None, 2))
    estimator = sequential(
        vectorize, embed, layers.GlobalAveragePooling1D(), layers.Dense(2, activation="softmax"), epochs=30
    )
    for _ in range(2):
        estimator.fit(texts, ["yes", "no"] * 8)
        np.testing.assert_array_equal(estimator.model_.layers[1].get_weights()[0], embed.get_weights()[0])
        assert estimator.model_.layers[0].get_vocabulary() == vectorize.get_vocabulary()
    loaded = pickle.loads(pickle.dumps(clone(estimator).fit(texts, ["yes", "no"] * 8)))
    assert loaded.predict(texts).tolist() == ["yes", "no"] * 8


def test_a_hub_layer_serves_as_a_layer_and_as_an_argument(tmp_path: Path) -> None:
    module = tf.train.Checkpoint(kernel=tf.Variable(tf.random.normal([4, 4], seed=1)))
    module.variables = module.trainable_variables = [module.kernel]
    module.__call__ = tf.function(lambda rows: rows @ module.kernel, input_signature=[tf.TensorSpec([None, 4])])
    tf.saved_model.save(module, str(tmp_path))
    encoder = hub.KerasLayer(str(tmp_path), trainable=True)
    before = encoder.get_weights()[0]

    def build(encoder: Any) -> tf_keras.Model:
        return tf_keras.Sequential([encoder, layers.Dense(3, activation="softmax")])

    still = {"optimizer": tf_keras.optimizers.SGD(0.0), "loss": COMPILE["loss"]}
    for estimator in (
        KerasWrapperModel(build, {"encoder": encoder}, COMPILE),
        sequential(encoder, layers.Dense(3, activation="softmax")),
    ):
        trained = clone(estimator).fit(X, Y).model_.layers[0].get_weights()[0]
        assert not np.array_equal(trained, before)
        again = estimator.fit(X, Y).set_params(compile_kwargs=still).fit(X, Y)
        np.testing.assert_array_equal(again.model_.layers[0].get_weights()[0], before)
        np.testing.assert_array_equal(encoder.get_weights()[0], before)


def test_layers_of_one_name_go_together() -> None:
    first = layers.Dense(8)
    model().fit(X, Y)  # Keras counts from the start again
    last = layers.Dense(3, activation="softmax", name=first.name)
    assert sequential(tf_keras.Input((4,)), first, last).fit(X, Y).predict(X).shape == (60,)


def test_partial_fit_goes_on_with_the_labels_of_the_first_call() -> None:
    estimator = model(epochs=9).partial_fit(X[:30], Y[:30], classes=["good", "bad", "fine"])
    estimator.partial_fit(X, Y).partial_fit(X[30:], Y[30:], epochs=2)
    assert len(estimator.history_["loss"]) == 4
    assert estimator.classes_.tolist() == ["bad", "fine", "good"]
    with pytest.raises(ValueError, match="'odd'"):
        estimator.partial_fit(X[:1], ["odd"])
    with pytest.raises(ValueError, match="first partial_fit"):
        estimator.partial_fit(X, Y, classes=["bad", "good"])


# Labels, outputs, probabilities


@pytest.mark.parametrize(
    ("labels", "units", "activation", "loss"),
    [
        (["no", "yes"], 1, "sigmoid", "binary_crossentropy"),
        ([False, True], 2, "softmax", "categorical_crossentropy"),
        ([-1, 1], 1, "tanh", "hinge"),
        ([7, 3], 1, None, "mse"),
    ],
)
def test_labels_of_any_type_come_back(labels: list[Any], units: int, activation: str, loss: str) -> None:
    y = np.array(labels, dtype=object if isinstance(labels[0], str) else None)[(Y == "good").astype(int)]
    estimator = head(units, activation, loss, epochs=8, batch_size=8).fit(X, y)
    assert estimator.classes_.tolist() == sorted(labels)
    assert estimator.score(X, y) > 0.7


@pytest.mark.parametrize("eagerly", [False, True])
def test_probabilities_are_neither_squashed_twice_nor_left_as_logits(eagerly: bool) -> None:
    def given(units: int, activation: str | None, loss: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        compiled = {"optimizer": "adam", "loss": loss, "run_eagerly": eagerly}
        estimator = sequential(layers.Dense(units, activation=activation), compile_kwargs=compiled, epochs=1).fit(X, y)
        probabilities = estimator.predict_proba(X)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        return estimator.model_(X).numpy(), probabilities

    softmax, probabilities = given(3, "softmax", "sparse_categorical_crossentropy", Y)
    np.testing.assert_allclose(probabilities, softmax, atol=1e-6)
    logits, probabilities = given(3, None, tf_keras.losses.CategoricalCrossentropy(from_logits=True), Y)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), atol=1e-6)
    sigmoid, probabilities = given(1, "sigmoid", "binary_crossentropy", TWO)
    np.testing.assert_allclose(probabilities[:, 1:], sigmoid, atol=1e-6)
    logit, probabilities = given(1, None, tf_keras.losses.BinaryCrossentropy(from_logits=True), TWO)
    np.testing.assert_allclose(probabilities[:, 1:], tf.sigmoid(logit), atol=1e-6)
    softmax, probabilities = given(3, "softmax", "mse", Y)
    np.testing.assert_allclose(probabilities, softmax, atol=1e-6)


class Subclassed(tf_keras.Model):
    """No layer that says what its outputs are."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.dense, self.function = layers.Dense(3), function

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.function(self.dense(inputs))


def test_subclassed_models_are_understood_by_their_graph() -> None:
    estimator = KerasWrapperModel(Subclassed, {"function": tf.nn.softmax}, COMPILE).fit(X, Y)
    np.testing.assert_allclose(estimator.predict_proba(X), estimator.model_(X), atol=1e-6)
    with pytest.raises(ValueError, match="from_logits=True"):
        KerasWrapperModel(Subclassed, {"function": tf.identity}, COMPILE).fit(X, Y)


@pytest.mark.parametrize(
    ("units", "activation", "loss", "message"),
    [
        (3, None, "sparse_categorical_crossentropy", "from_logits=True"),
        (1, None, "binary_crossentropy", "3 labels"),
        (5, "softmax", "sparse_categorical_crossentropy", "5 outputs and y has 3 labels"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(units: int, activation: str | None, loss: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(units, activation, loss).fit(X, Y)


def test_outputs_that_are_no_probabilities_predict_labels_alone() -> None:
    estimator = head(3, None, "mse", epochs=40).fit(X, Y)
    assert estimator.score(X, Y) > 0.8
    with pytest.raises(ValueError, match="softmax"):
        estimator.predict_proba(X)
    with pytest.raises(ValueError, match="from_logits=True"):
        head(1, None, "binary_crossentropy").fit(X, TWO)
    with pytest.raises(ValueError, match="sigmoid"):
        head(1, None, lambda y, z: tf.nn.sigmoid_cross_entropy_with_logits(y, z)).fit(X, TWO)


def test_several_labels_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="argmax"):
        sequential().fit(X, np.eye(3)[[0, 1, 2] * 20])
    with pytest.raises(ValueError, match="one class"):
        model().fit(X, ["one"] * 60)


# Weights


def test_weights_of_rows_and_labels_count_as_often_as_they_say() -> None:
    def weights(**options: Any) -> list[np.ndarray]:
        given = {name: options.pop(name) for name in ("X", "y", "sample_weight") if name in options}
        estimator = sequential(
            layers.Dense(3, activation="softmax", kernel_initializer="zeros"),
            compile_kwargs={"optimizer": "sgd", "loss": tf_keras.losses.SparseCategoricalCrossentropy(reduction="sum")},
            **{"shuffle": False, "batch_size": 500, "epochs": 2, **options},
        )
        return estimator.fit(given.get("X", X), given.get("y", Y), given.get("sample_weight")).model_.get_weights()

    def same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
        for left, right in zip(one, other, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)

    counts = np.where(Y == "good", 3, 1)
    again = np.repeat(np.arange(60), counts)
    thrice = weights(X=X[again], y=Y[again])
    same(thrice, weights(sample_weight=counts))
    same(thrice, weights(class_weight={"good": 3}))
    same(thrice, weights(X=scipy.sparse.csr_array(X), class_weight={"good": 3}))
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(60)
    same(thrice, weights(X=dataset, y=None, sample_weight=counts))
    same(thrice, weights(X=dataset, y=None, class_weight={"good": 3}))
    same(thrice, weights(X=tf.data.Dataset.from_tensor_slices((X, Y, counts.astype(np.float32))), y=None))
    twice = np.where(Y == "bad", 2, counts * np.arange(1, 61) % 4)
    both = weights(sample_weight=twice / np.where(Y == "good", 3, 1), class_weight={"good": 3, "bad": 1, "fine": 1})
    same(weights(sample_weight=twice), both)
    rare = np.r_[0:60, 40:60]
    same(
        weights(X=X[rare], y=Y[rare], class_weight="balanced"),
        weights(
            X=X[rare],
            y=Y[rare],
            sample_weight=[{"bad": 80 / 60, "fine": 80 / 60, "good": 80 / 120}[label] for label in Y[rare]],
        ),
    )
    with pytest.raises(ValueError, match="not in class_weight|class_weight"):
        weights(class_weight={"nice": 3})


# Rows of other kinds


def test_sparse_rows_train_as_dense_ones_do() -> None:
    options = {"shuffle": False, "validation_split": 0.25, "batch_size": 7}
    order = np.random.default_rng(1).permutation(60)
    dense_fit = model(**options).fit(X[order], Y[order])
    sparse_fit = model(**options).fit(scipy.sparse.csr_matrix(X[order]), Y[order])
    np.testing.assert_allclose(
        sparse_fit.predict_proba(scipy.sparse.coo_array(X)), dense_fit.predict_proba(X), atol=1e-5
    )
    np.testing.assert_allclose(sparse_fit.history_["val_loss"], dense_fit.history_["val_loss"], rtol=1e-4)


@pytest.mark.parametrize("labels", [np.repeat([-4, 2, 9], 20), np.repeat([0.0, 1.0, 2.0], 20)])
def test_labels_of_a_dataset_come_back(labels: np.ndarray) -> None:
    estimator = model(epochs=1).fit(tf.data.Dataset.from_tensor_slices((X, labels)))
    assert estimator.classes_.tolist() == sorted(set(labels.tolist()))
    assert set(estimator.predict(X)) <= set(labels)


def test_a_dataset_trains_as_arrays_do() -> None:
    labels = Y
    wanted = model(shuffle=False, batch_size=16, epochs=2).fit(X, labels)
    rows = tf.data.Dataset.from_tensor_slices((X, labels))
    alone = tf.data.Dataset.from_tensor_slices(X)
    for dataset, y, batch_size in [
        (rows, None, 16),
        (rows.batch(16), None, None),
        (rows.batch(10), labels, 16),
        (alone.batch(16), labels, None),
        (alone, labels, 16),
    ]:
        estimator = clone(wanted).set_params(batch_size=batch_size).fit(dataset, y)
        np.testing.assert_allclose(estimator.predict_proba(dataset), wanted.predict_proba(X), atol=1e-5)
        np.testing.assert_allclose(estimator.predict_proba(alone), wanted.predict_proba(X), atol=1e-5)
        assert estimator.predict(alone.batch(7)).tolist() == wanted.predict(X).tolist()
    assert estimator.score(rows.shuffle(60)) == estimator.score(X, labels) == estimator.score(alone, labels)


def test_datasets_that_cannot_be_read_are_refused() -> None:
    rows = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises(ValueError, match="leave y out"):
        model().fit(rows, Y[::-1])
    with pytest.raises(ValueError, match=r"repeat\(\)"):
        model().fit(rows.repeat())
    with pytest.raises(ValueError, match="argmax"):
        model().fit(tf.data.Dataset.from_tensor_slices((X, np.eye(3)[[0, 1, 2] * 20])))
    with pytest.raises(ValueError, match=r"\[60, 59\]|59 labels"):
        model().fit(rows.map(lambda x, y: x), Y[:59])
    with pytest.raises(ValueError, match="validation_data"):
        model(validation_split=0.2).fit(rows)
    with pytest.raises(ValueError, match="0 sample"):
        model().fit(rows.take(0))


def lookup() -> list[tf_keras.layers.Layer]:
    vectorize = layers.TextVectorization(vocabulary=["good", "worst", "cheap"], output_mode="multi_hot")
    return [tf_keras.Input((), dtype=tf.string), vectorize, layers.Dense(2, activation="softmax")]


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, lambda texts: np.array(texts, dtype=object)])
def test_texts_of_any_kind_go_in(kind: Any) -> None:
    texts = kind(["good", "the worst"] * 10)
    estimator = sequential(*lookup(), epochs=30).fit(texts, ["+", "-"] * 10)
    assert estimator.predict(texts).tolist() == ["+", "-"] * 10
    stream = tf.data.Dataset.from_tensor_slices(["the worst", "good"])
    assert estimator.predict(stream).tolist() == estimator.predict(stream.batch(2)).tolist() == ["-", "+"]
    with pytest.raises(ValueError, match="fitted on texts"):
        estimator.predict(X)
    with pytest.raises(ValueError, match="value 1 is NoneType"):
        estimator.predict(["good", None])


def two_inputs() -> tf_keras.Model:
    inputs = {"age": tf_keras.Input((1,), name="age"), "kind": tf_keras.Input((1,), name="kind", dtype=tf.string)}
    kinds = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs["kind"])
    return tf_keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.concatenate([inputs["age"], kinds])))


def test_a_frame_goes_in_as_one_array_or_by_the_names_of_the_inputs() -> None:
    frame = pd.DataFrame({"kind": ["a", "b"] * 10, "age": np.arange(20.0) / 20})
    compiled = {"optimizer": tf_keras.optimizers.Adam(0.1), "loss": "binary_crossentropy"}
    estimator = KerasWrapperModel(two_inputs, compile_kwargs=compiled, epochs=30, random_state=0).fit(
        frame, frame["kind"]
    )
    assert estimator.predict(frame).tolist() == frame["kind"].tolist()
    columns = {name: frame[name].to_numpy() for name in frame}
    np.testing.assert_allclose(estimator.predict_proba(columns), estimator.predict_proba(frame))
    assert pickle.loads(pickle.dumps(estimator)).predict(columns).tolist() == frame["kind"].tolist()

    numbers = pd.DataFrame(X, columns=list("abcd"))
    estimator = model().fit(numbers, Y)
    assert estimator.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(numbers[["b", "a", "c", "d"]])


def test_rows_of_several_axes_go_in() -> None:
    images = X.reshape(60, 2, 2)
    estimator = sequential(layers.Flatten(), layers.Dense(3, activation="softmax")).fit(images, Y)
    assert estimator.predict(images).shape == (60,)
    with pytest.raises(ValueError, match="NaN"):
        estimator.predict(np.full((1, 2, 2), np.nan))


# What goes into fit


def test_arguments_of_fit_are_those_of_keras() -> None:
    estimator = model(epochs=9, batch_size=60)
    stop = tf_keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, min_delta=100)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    for validation in [(X, Y), (X, Y, np.ones(60)), (scipy.sparse.csr_array(X), Y), dataset, dataset.batch(4)]:
        estimator.fit(X, Y, validation_data=validation, callbacks=[stop], epochs=5)
        assert len(estimator.history_["val_loss"]) == 2
        np.testing.assert_allclose(
            estimator.history_["val_loss"][1],
            -np.log(estimator.predict_proba(X)[np.arange(60), np.repeat([0, 1, 2], 20)]).mean(),
            rtol=1e-3,
        )
    with pytest.raises(TypeError, match="'epoch'.*did you mean epochs"):
        estimator.fit(X, Y, epoch=3)


def test_callbacks_of_the_constructor_stay_new() -> None:
    stop = tf_keras.callbacks.EarlyStopping(monitor="loss", patience=1, min_delta=100)
    assert len(model(callbacks=[stop]).fit(X, Y).history_["loss"]) == 2
    assert getattr(stop, "model", None) is None


def test_a_model_compiled_by_its_function_is_used_as_it_is() -> None:
    def compiled(n_classes_: int) -> tf_keras.Model:
        built = dense(4, n_classes_)
        built.compile("sgd", "categorical_crossentropy")
        return built

    assert "SGD" in type(KerasWrapperModel(compiled).fit(X, Y).model_.optimizer).__name__
    assert "Adam" in type(KerasWrapperModel(compiled, None, COMPILE).fit(X, Y).model_.optimizer).__name__
    with pytest.raises(ValueError, match="give compile_kwargs"):
        KerasWrapperModel(dense).fit(X, Y)
    with pytest.raises(TypeError, match="should return a tf_keras model, and returned builtins.dict"):
        KerasWrapperModel(lambda: {}).fit(X, Y)
    with pytest.raises(TypeError, match="function that builds"):
        KerasWrapperModel(dense(4, 3), None, COMPILE).fit(X, Y)
    always = compiled(3)
    once = KerasWrapperModel(lambda: always).fit(X, Y)
    with pytest.raises(ValueError, match="an earlier fit has trained"):
        once.fit(X, Y)


def test_summary_works_before_and_after_the_fit(capsys: pytest.CaptureFixture[str]) -> None:
    KerasWrapperModel(dense, {"n_features_in_": 4, "n_classes_": 3}).summary()
    model().fit(X, Y).summary()
    assert capsys.readouterr().out.count("Total params: 67") == 2
    with pytest.raises(ValueError, match="n_features_in_"):
        model().summary()
    with pytest.raises(NotFittedError):
        model().predict(X)
    with pytest.raises(NotFittedError):
        _ = model().model_


# Company


def test_pickle_keeps_what_was_learned(tmp_path: Any) -> None:
    optimizer = tf_keras.optimizers.Adam(0.05)
    compiled = {"optimizer": optimizer, "loss": "sparse_categorical_crossentropy"}
    normalize = layers.Normalization()
    normalize.adapt(X)
    for estimator in (model(), sequential(normalize, layers.Dense(3, activation="softmax"), compile_kwargs=compiled)):
        pickle.loads(pickle.dumps(estimator)).fit(X, Y)
        wanted = estimator.fit(X, Y).predict_proba(X)
        loaded = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(estimator))))
        np.testing.assert_allclose(loaded.predict_proba(X), wanted, atol=1e-6)
        assert len(loaded.partial_fit(X, Y).history_["loss"]) == 5
        np.testing.assert_array_equal(clone(loaded).fit(X, Y).predict(X), estimator.predict(X))


def test_a_grid_search_runs_over_parameters() -> None:
    grid = {"epochs": [1, 20], "model_kwargs": [{"units": 8}]}
    search = GridSearchCV(model(batch_size=8), grid, cv=2, error_score="raise").fit(X, Y)
    assert search.best_params_["epochs"] == 20
    assert search.best_score_ > 0.8


def test_it_goes_along_with_other_estimators() -> None:
    pipeline = make_pipeline(StandardScaler(), model(epochs=20))
    probabilities = cross_val_predict(pipeline, X, Y, cv=3, method="predict_proba")
    assert (np.unique(Y)[probabilities.argmax(axis=1)] == Y).mean() > 0.8
    calibrated = CalibratedClassifierCV(model(epochs=20), cv=2).fit(X, Y)
    assert calibrated.score(X, Y) > 0.8
    voting = VotingClassifier([("keras", model(epochs=20)), ("linear", LogisticRegression())], voting="soft").fit(X, Y)
    assert voting.score(X, Y) > 0.8


def test_cleanlab_finds_wrong_labels() -> None:
    codes = np.repeat([0, 1, 2], 20)
    noisy = codes.copy()
    noisy[[5, 25]] = 2, 0
    cleaner = CleanLearning(model(epochs=30), cv_n_folds=3, seed=0).fit(X, noisy)
    issues = cleaner.get_label_issues()
    assert issues.loc[[5, 25], "is_label_issue"].all()
    assert (cleaner.predict(X) == codes).mean() > 0.8
