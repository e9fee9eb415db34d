"""The limit of this machine: the arithmetic that a text needs, and the rate of matrix products alone.

    python -m benchmarks.limit

Rates are measured in the run that they are compared in, because a neighbour on the machine may halve them.
"""

import time
from typing import Any

import numpy as np

from benchmarks.peers import markdown, parse, parser, run
from spec import EncoderSpec

_TOKENS = 768  # of a batch of 32 short texts, padding included
_PASSES = {True: 3, False: 1}  # a product needs two more of its size for the gradients of its two factors


def flops(spec: EncoderSpec, lengths: np.ndarray, training: bool, cls_only: bool = False) -> float:
    """Floating-point operations of the encoder's matrix products for some texts, padding left out.

    A weight costs 2 operations a token forward, 6 in training; the embedding tables cost none. Attention costs
    `4 * length * hidden` a token and layer forward: its scores, and the weighted sum of the values. Biases, layer norms,
    activations and the optimizer are left out.

    Args:
        spec: the encoder.
        lengths: tokens of each text, special ones included, int [N].
        training: forward and backward; else forward alone.
        cls_only: the last layer computes the first position alone: key and value of every token, and of one token the
            query, the attention, its output and the feed-forward.
    """
    width, inner = spec.hidden_size, spec.intermediate_size
    square, forward = 2 * width * width, 4 * width * inner
    lengths = lengths.astype(np.float64)
    texts, tokens, pairs = len(lengths), lengths.sum(), np.square(lengths).sum()
    full = (4 * square + forward) * tokens + 4 * width * pairs
    last = 2 * square * tokens + (2 * square + forward) * texts + 4 * width * tokens if cls_only else full
    total = (spec.num_layers - 1) * full + last + (square * texts if spec.pooler else 0)
    if spec.embedding_size != width:
        total += 2 * spec.embedding_size * width * tokens
    return float(_PASSES[training] * total)


def matrix_rates(spec: EncoderSpec, training: bool = True, repeats: int = 50) -> dict[str, float]:
    """Operations a second of TensorFlow's matrix products, by precision: float32 and bfloat16.

    The shapes are those of a layer on a batch of 768 tokens: query, key and value in one, the attention's output, and the
    feed-forward's two; in training those of their gradients too. Each counts with the best time of `repeats`.
    """
    import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)
    import tensorflow as tf

    rates = {}
    for precision in ("float32", "bfloat16"):
        operations, seconds = 0.0, 0.0
        for rows, columns in _layer_shapes(spec):
            inputs = tf.cast(tf.random.normal([_TOKENS, rows]), precision)
            kernel = tf.cast(tf.random.normal([rows, columns]), precision)
            outputs = tf.cast(tf.random.normal([_TOKENS, columns]), precision)
            products: list[tuple[Any, Any, dict[str, bool]]] = [(inputs, kernel, {})]
            if training:
                products += [(outputs, kernel, {"transpose_b": True}), (inputs, outputs, {"transpose_a": True})]
            for left, right, options in products:
                operations += 2 * _TOKENS * rows * columns
                seconds += _best_seconds(left, right, options, repeats)
        rates[precision] = operations / seconds
    return rates


def _layer_shapes(spec: EncoderSpec) -> list[tuple[int, int]]:
    width, inner = spec.hidden_size, spec.intermediate_size
    return [(width, 3 * width), (width, width), (width, inner), (inner, width)]


def _best_seconds(left: Any, right: Any, options: dict[str, bool], repeats: int) -> float:
    import tensorflow as tf

    times = []
    for _ in range(repeats + 1):  # the first one prepares the product
        start = time.perf_counter()
        tf.matmul(left, right, **options)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def default_spec() -> EncoderSpec:
    """The embedded encoder."""
    from known_encoders import DEFAULT_ENCODER, KNOWN

    return KNOWN[DEFAULT_ENCODER]


def main() -> None:
    """Prints both rates."""
    options = parser("limit", __doc__.split("\n")[0], repeats=50)
    given = parse(options, needs_peer=False)
    rows = []
    for training in (True, False):
        rates = matrix_rates(default_spec(), training, given.repeats)
        name = "training" if training else "inference"
        rows.append({"shapes": name} | {f"{key} GFLOP/s": round(rate / 1e9) for key, rate in rates.items()})
    print(markdown(rows))


if __name__ == "__main__":
    run(main)
