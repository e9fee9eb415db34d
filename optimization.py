"""AdamW as BERT fine-tuning uses it: decay exclusions, one rate per group of weights, warm-up and linear decay."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import re
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
import tf_keras

GradientsAndVariables = list[tuple[Any, tf.Variable]]
_NO_DECAY = re.compile(r"bias|layer_norm|LayerNorm|beta|gamma")


class WarmupLinearDecay(tf_keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to `peak` over `warmup_steps`, then falls linearly to 0 at `total_steps`."""

    def __init__(self, peak: float, total_steps: int, warmup_steps: int) -> None:
        self.peak, self.total_steps, self.warmup_steps = peak, total_steps, warmup_steps

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * tf.clip_by_value(tf.minimum(rising, falling) if self.warmup_steps else falling, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "total_steps": self.total_steps, "warmup_steps": self.warmup_steps}


class AdamW(tf_keras.optimizers.legacy.Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) and global-norm clipping.

    Built on the fused Adam operation, which on a CPU takes a third of the time of Keras' own AdamW. Embedding tables are
    updated lazily, as TensorFlow Addons' LazyAdam did: a step touches only the rows of tokens that its batch holds, so
    rows of absent tokens neither decay nor move on by momentum. Other weights get exact AdamW.

    Args:
        learning_rate: rate or schedule.
        weight_decay: decay per unit of learning rate; biases and layer norms are left out.
        rate_factor: factor on the learning rate by a variable's name, as `lambda name: 0.1`.
        clip_norm: largest global norm of the gradients.
    """

    def __init__(
        self, learning_rate: Any, weight_decay: float, rate_factor: Callable[[str], float], clip_norm: float = 1.0
    ) -> None:
        super().__init__(learning_rate, epsilon=1e-8, name="AdamW", global_clipnorm=clip_norm)
        self._weight_decay = weight_decay
        self._rate_factor = rate_factor

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, tf.Variable]], *args: Any, **kwargs: Any) -> Any:
        # A hub layer holds weights that the head may not see, such as the pooler's under mean pooling: no news to warn of.
        return super().apply_gradients([pair for pair in grads_and_vars if pair[0] is not None], *args, **kwargs)

    def _transform_gradients(self, grads_and_vars: GradientsAndVariables) -> GradientsAndVariables:
        # Rows of one token are summed before clipping: their norm is that of the dense gradient.
        return super()._transform_gradients(
            [(_merge_rows(gradient), variable) for gradient, variable in grads_and_vars]
        )

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None) -> tf.Operation:
        state = apply_state[var.device, var.dtype.base_dtype]
        rate = state["lr_t"] * self._rate_factor(var.name)
        if self._decays(var):
            var.assign_sub(rate * self._weight_decay * var)
        return tf.raw_ops.ResourceApplyAdam(
            var=var.handle,
            m=self.get_slot(var, "m").handle,
            v=self.get_slot(var, "v").handle,
            beta1_power=state["beta_1_power"],
            beta2_power=state["beta_2_power"],
            lr=rate,
            beta1=state["beta_1_t"],
            beta2=state["beta_2_t"],
            epsilon=state["epsilon"],
            grad=grad,
        )

    def _resource_apply_sparse_duplicate_indices(
        self, grad: tf.Tensor, handle: tf.Variable, indices: tf.Tensor, **kwargs: Any
    ) -> tf.Operation:
        return self._resource_apply_sparse(grad, handle, indices, **kwargs)  # merged before

    def _resource_apply_sparse(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, apply_state: Any = None
    ) -> tf.Operation:
        state = apply_state[var.device, var.dtype.base_dtype]
        factor = self._rate_factor(var.name)
        m, v = self.get_slot(var, "m"), self.get_slot(var, "v")
        m_rows = tf.gather(m, indices) * state["beta_1_t"] + grad * state["one_minus_beta_1_t"]
        v_rows = tf.gather(v, indices) * state["beta_2_t"] + tf.square(grad) * state["one_minus_beta_2_t"]
        step = factor * state["lr"] * m_rows / (tf.sqrt(v_rows) + state["epsilon"])  # "lr" has Adam's bias correction
        if self._decays(var):
            step += factor * state["lr_t"] * self._weight_decay * tf.gather(var, indices)
        updates = [
            m.scatter_update(tf.IndexedSlices(m_rows, indices)),
            v.scatter_update(tf.IndexedSlices(v_rows, indices)),
            var.scatter_sub(tf.IndexedSlices(step, indices)),
        ]
        return tf.group(*updates)

    def _decays(self, var: tf.Variable) -> bool:
        return bool(self._weight_decay) and not _NO_DECAY.search(var.name)


def _merge_rows(gradient: Any) -> Any:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, places = tf.unique(gradient.indices)
    return tf.IndexedSlices(
        tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows)), rows, gradient.dense_shape
    )
