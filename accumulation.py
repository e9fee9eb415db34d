"""Gradient accumulation: the step of a large batch in the memory of a small one."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from typing import Any

import tensorflow as tf
import tf_keras

State = tuple[tf.Tensor, tf.Tensor]


class AccumulatingModel(tf_keras.Model):
    """A model whose training step goes through its batch in parts of `part_size` rows and adds their gradients up.

    The optimizer sees what it would see for the whole batch, because a part's mean loss counts by its rows: exact up to
    float error, dropout apart, which draws other numbers.
    """

    def __init__(self, part_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._part_size = part_size

    def train_step(self, data: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        inputs, targets, weights = tf_keras.utils.unpack_x_y_sample_weight(data)
        num_rows = tf.shape(targets)[0]
        variables = self.trainable_variables
        sums = [_GradientSum(variable) for variable in variables]

        def add_part(start: tf.Tensor, states: list[State]) -> tuple[tf.Tensor, list[State]]:
            end = tf.minimum(start + self._part_size, num_rows)
            part_weights = None if weights is None else weights[start:end]
            gradients = self._part_gradients(_part(inputs, start, end), targets[start:end], part_weights, num_rows)
            return end, [each.add(*pair) for each, *pair in zip(sums, states, gradients, strict=True)]

        first = (tf.constant(0), [each.zero() for each in sums])
        # One part at a time, or memory would be that of several.
        _, states = tf.while_loop(lambda start, _: start < num_rows, add_part, first, parallel_iterations=1)
        gradients = [each.gradient(state) for each, state in zip(sums, states, strict=True)]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}

    def _part_gradients(
        self, inputs: dict[str, tf.Tensor], targets: tf.Tensor, weights: tf.Tensor | None, num_rows: tf.Tensor
    ) -> list[Any]:
        """Gradients of the part's share of the batch's mean loss."""
        scaled = isinstance(self.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)
        with tf.GradientTape() as tape:
            logits = self(inputs, training=True)
            loss = self.compiled_loss(targets, logits, weights, regularization_losses=self.losses)
            loss *= tf.cast(tf.shape(targets)[0] / num_rows, tf.float32)
            loss = self.optimizer.get_scaled_loss(loss) if scaled else loss
        self.compiled_metrics.update_state(targets, logits, weights)
        gradients = tape.gradient(loss, self.trainable_variables)
        return self.optimizer.get_unscaled_gradients(gradients) if scaled else gradients


def _part(inputs: dict[str, tf.Tensor], start: tf.Tensor, end: tf.Tensor) -> dict[str, tf.Tensor]:
    """Rows of a batch, as long as the longest of them."""
    rows = {name: tensor[start:end] for name, tensor in inputs.items()}
    longest = tf.reduce_max(tf.reduce_sum(rows["input_mask"], axis=1))
    return {name: tensor[:, :longest] for name, tensor in rows.items()}


class _GradientSum:
    """The sum of one variable's gradients over the parts. Gradients of embedding tables stay sparse, by a record of the
    rows that were touched, so that the optimizer leaves the others alone."""

    def __init__(self, variable: tf.Variable) -> None:
        self._shape = variable.shape
        self._is_sparse = self._is_there = False  # known when the loop's body has been traced

    def zero(self) -> State:
        return tf.zeros(self._shape), tf.zeros(self._shape[:1], tf.bool)

    def add(self, state: State, gradient: Any) -> State:
        total, touched = state
        if gradient is None:  # a hub layer holds weights that the head does not see
            return state
        self._is_there = True
        if not isinstance(gradient, tf.IndexedSlices):
            return total + gradient, touched
        self._is_sparse = True
        rows = gradient.indices[:, None]
        seen = tf.ones_like(gradient.indices, tf.bool)
        return tf.tensor_scatter_nd_add(total, rows, gradient.values), tf.tensor_scatter_nd_update(touched, rows, seen)

    def gradient(self, state: State) -> Any:
        total, touched = state
        if not self._is_sparse:
            return total if self._is_there else None
        rows = tf.where(touched)[:, 0]
        return tf.IndexedSlices(tf.gather(total, rows), rows, tf.constant(self._shape.as_list()))
