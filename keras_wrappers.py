"""Any Keras classification model as a scikit-learn classifier: `KerasWrapperModel` and `KerasWrapperSequential`."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tf_keras

from keras_classifier import KerasClassifier
from keras_copies import Blueprint, copied, layer_of


class KerasWrapperModel(KerasClassifier):
    """A Keras model, from a function that builds it, as a scikit-learn classifier.

    Example: `KerasWrapperModel(build, {"units": 64}, {"optimizer": "adam", "loss": "binary_crossentropy"}, epochs=5)`

    X of `fit` and `predict`: numbers [N, ...] (checked as scikit-learn does), texts, a data frame, a dict with an array for each
    input of the model, a scipy matrix (dense batch by batch only), or a `tf.data.Dataset` of rows or batches: (x, label),
    (x, label, weight), or x with y beside. A Dataset is read as a stream and keeps its order: `shuffle` is for the others, NaN
    is not looked for, and one that shuffles anew at each pass must hold its labels and weights itself. `batch_size` is that of
    single rows; batches of another size are made anew.

    Every fit starts from new weights; a layer that comes with weights or a vocabulary starts from those. Keras objects in
    parameters are never trained or changed, but copied by their `get_config`. A fit frees what Keras holds of models out of
    use, so run several in processes, not in threads.

    pickle and joblib keep the parameters and the weights, not the optimizer's state. The model is built anew at its first
    use: by the building function, which pickle finds by its import, or from the layers' configs. Load no pickle that you do
    not trust.

    Args:
        model: the building function, or a class of models. Where it has arguments `n_features_in_` or `n_classes_` that
            model_kwargs does not give, it gets the numbers of features and of labels.
        model_kwargs: its arguments.
        compile_kwargs: arguments of `Model.compile`; None where the function compiles the model itself.
        epochs, batch_size, verbose, callbacks, validation_split, shuffle: as in Keras' `Model.fit`. Callbacks are copied for
            each fit; those that are to tell something afterwards are given to `fit`.
        class_weight: {label: weight}, "balanced" or None; multiplied by sample_weight.
        random_state: the same number gives the same weights; None draws from NumPy's global state.

    Attributes:
        classes_: the labels, sorted [K].
        model_: the trained Keras model.
        history_: for each loss and metric, its value in each epoch, over all calls of `partial_fit`.
        n_features_in_, feature_names_in_: of tables, as anywhere in scikit-learn.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        model_kwargs: dict[str, Any] | None = None,
        compile_kwargs: dict[str, Any] | None = None,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        verbose: Any = 0,
        callbacks: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.model_kwargs = model_kwargs
        self.compile_kwargs = compile_kwargs
        self.epochs = epochs
        self.batch_size = batch_size
        self.verbose = verbose
        self.callbacks = callbacks
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.class_weight = class_weight
        self.random_state = random_state

    def _new_model(self, num_classes: int | None) -> tf_keras.Model:
        if not callable(self.model) or isinstance(self.model, tf_keras.Model):
            raise TypeError(
                f"model should be a function that builds a Keras model, and is {type(self.model).__name__}: give lambda: ... or "
                "the function itself, without calling it"
            )
        kwargs = copied(self.model_kwargs or {})
        wanted = inspect.signature(self.model).parameters
        for name, value in {"n_features_in_": getattr(self, "n_features_in_", None), "n_classes_": num_classes}.items():
            if name not in wanted or name in kwargs:
                continue
            if value is not None:
                kwargs[name] = value
            elif wanted[name].default is inspect.Parameter.empty:
                raise ValueError(
                    f"the building function needs {name}, which is not known: fit on a table first, or name it in model_kwargs"
                )
        model = self.model(**kwargs)
        if not isinstance(model, tf_keras.Model):
            kind = type(model)
            raise TypeError(
                f"the building function should return a tf_keras model, and returned {kind.__module__}.{kind.__qualname__}: "
                "return one, made of tf_keras layers"
            )
        return model


class KerasWrapperSequential(KerasClassifier):
    """A stack of Keras layers as a scikit-learn classifier.

    Example: `KerasWrapperSequential([Dense(64, "relu"), Dense(3, "softmax")], compile_kwargs={"optimizer": "adam", "loss":
    "sparse_categorical_crossentropy"}, epochs=5)`

    What it takes as X, and what holds for fits and pickle, is as with `KerasWrapperModel`.

    Args:
        layers: instances of Keras layers, the last one with an output for each label, or with one for two labels.
        name: of the Keras model.
        compile_kwargs: arguments of `Model.compile`.
        epochs, ..., random_state: as with `KerasWrapperModel`.

    Attributes: as with `KerasWrapperModel`.
    """

    def __init__(
        self,
        layers: list[tf_keras.layers.Layer],
        name: str | None = None,
        compile_kwargs: dict[str, Any] | None = None,
        *,
        epochs: int = 1,
        batch_size: int | None = None,
        verbose: Any = 0,
        callbacks: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        class_weight: Any = None,
        random_state: Any = None,
    ) -> None:
        self.layers = layers
        self.name = name
        self.compile_kwargs = compile_kwargs
        self.epochs = epochs
        self.batch_size = batch_size
        self.verbose = verbose
        self.callbacks = callbacks
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.class_weight = class_weight
        self.random_state = random_state

    def _new_model(self, num_classes: int | None) -> tf_keras.Model:
        copies: dict[str, tf_keras.layers.Layer] = {}
        for layer in map(layer_of, self.layers):
            if not isinstance(layer, tf_keras.layers.Layer):
                kind = type(layer)
                raise TypeError(
                    f"layers should be instances of tf_keras layers, and one is {kind.__module__}.{kind.__qualname__}: "
                    "create them from tf_keras.layers"
                )
            # Keras counts its names anew after each fit, so layers made at different times may have one name.
            name = layer.name if layer.name not in copies else f"{layer.name}_in_place_{len(copies)}"
            blueprint = Blueprint.of(layer)
            copies[name] = replace(blueprint, config={**blueprint.config, "name": name}).make()
        return tf_keras.Sequential(list(copies.values()), name=self.name)
