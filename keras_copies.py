"""Fresh copies of the layers, optimizers and metrics that a user passes, so that no fit changes them; also into pickles."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras


def walk(value: Any, change: Callable[[Any], Any]) -> Any:
    """New lists, tuples and dicts with `change` done to what they hold."""
    if isinstance(value, Mapping):
        return {key: walk(part, change) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(walk(part, change) for part in value)
    return change(value)


@dataclass(frozen=True)
class Blueprint:
    """A layer, model, optimizer or metric as plain values: what copies are made from, and what pickle carries for it."""

    kind: type
    config: dict[str, Any]
    classes: dict[str, type]  # of the parts, which Keras finds by name
    built: dict[str, Any] | None  # the shapes that the weights were made for
    weights: list[np.ndarray]  # and vocabularies and the like
    not_decayed: list[str]  # variables that an optimizer spares, which its config leaves out

    @classmethod
    def of(cls, part: Any) -> "Blueprint":
        try:
            config = part.get_config()
        except NotImplementedError as error:
            raise ValueError(
                f"{type(part).__name__} has no get_config that works, and copies of it are made by that: write one, or create "
                "it inside the building function of KerasWrapperModel"
            ) from error
        is_layer = isinstance(part, tf_keras.layers.Layer) and not isinstance(part, tf_keras.metrics.Metric)
        weights = part.get_weights() if is_layer else []
        return cls(
            type(part),
            config,
            {type(each).__name__: type(each) for each in part.submodules} if is_layer else {},
            part.get_build_config() if weights else None,
            weights,
            list(getattr(part, "_exclude_from_weight_decay_names", [])),
        )

    def make(self) -> Any:
        with tf_keras.saving.custom_object_scope(self.classes):
            made = self.kind.from_config(copy.deepcopy(self.config))  # type: ignore[attr-defined]
        if self.weights:
            if self.built:
                made.build_from_config(self.built)
            set_weights(made, self.weights)
        if self.not_decayed:
            made.exclude_from_weight_decay(var_names=self.not_decayed)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_blueprint, (self.kind, self.config, self.classes, self.built, self.weights, self.not_decayed)


def _from_blueprint(*fields: Any) -> Any:
    return Blueprint(*fields).make()


def set_weights(part: Any, weights: list[np.ndarray]) -> None:
    part.set_weights(weights)
    for each in (part, *part.submodules):
        if hasattr(each, "finalize_state"):  # Normalization derives its mean and deviation here
            each.finalize_state()


def layer_of(value: Any) -> Any:
    """The layer behind what `tf_keras.Input` gives; anything else as it is."""
    return value._keras_history.layer if hasattr(value, "_keras_history") else value


def _is_keras_object(value: Any) -> bool:
    optimizers = tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer
    return isinstance(value, (tf_keras.layers.Layer, *optimizers))  # metrics are layers


def copied(value: Any) -> Any:
    """A parameter with its Keras objects copied."""

    def change(part: Any) -> Any:
        if isinstance(part, tf_keras.losses.Loss):
            return copy.copy(part)  # has no state
        if not _is_keras_object(part):
            return part
        made = Blueprint.of(part).make()
        if isinstance(part, tf_keras.layers.Layer) or made.get_config() == part.get_config():
            return made
        raise ValueError(
            f"get_config of the {type(part).__name__} does not give it back as it was: create it, and compile, inside the "
            "building function of KerasWrapperModel"
        )

    return walk(value, change)


def picklable(value: Any) -> Any:
    """A parameter with blueprints for its Keras objects, which pickle makes into such objects again."""
    parts = walk(value, layer_of)
    return walk(parts, lambda part: Blueprint.of(part) if _is_keras_object(part) else part)
