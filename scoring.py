"""Token ids in, logits out, in their order: for a classifier in memory and for one that was loaded."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from data import INPUT_NAMES, Tokens, pad, score_batches

FORMAT = 2  # of what stands beside the weights in an exported model
INPUT_SIGNATURE = [{name: tf.TensorSpec([None, None], tf.int32, name=name) for name in INPUT_NAMES}]


class Scorer:
    """Scores tokenised texts, in float32 as the exported model does, or in bfloat16.

    Args:
        logits: a dict of int32 [batch, seq] -> float32 [batch, num_logits].
        num_logits: 1 in binary tasks, else the number of labels.
        precision: of the products.
    """

    def __init__(
        self, logits: Callable[[dict[str, tf.Tensor]], tf.Tensor], num_logits: int, precision: str = "float32"
    ) -> None:
        self._logits = runtime.traced_once(logits, INPUT_SIGNATURE)
        self._num_logits, self._precision = num_logits, precision

    def logits_of_batch(self, inputs: dict[str, tf.Tensor]) -> np.ndarray:
        """Logits of one batch of the encoder's inputs, each int32 [batch, seq]; float32 [batch, num_logits]."""
        with runtime.graph_precision(self._precision):
            return self._logits(inputs).numpy()

    def logits(self, tokens: Tokens, on_batch: Callable[[int], None] = lambda rows: None) -> np.ndarray:
        """Logits in the order of the tokens, float32 [N, num_logits]; `on_batch` is told the rows of each batch."""

        def compute(rows: np.ndarray) -> np.ndarray:
            inputs = dict(zip(INPUT_NAMES, map(tf.constant, pad(tokens, rows)), strict=True))
            return self._logits(inputs).numpy()

        result = np.empty((len(tokens), self._num_logits), dtype=np.float32)
        with runtime.graph_precision(self._precision):
            for rows, logits in in_streams(compute, score_batches(tokens.lengths), runtime.num_streams()):
                result[rows] = logits
                on_batch(len(rows))
        return result


class FrozenScorer:
    """Scores with a frozen encoder, whose vectors of the texts are computed once.

    Args:
        vectors: a scorer that gives vectors in place of logits.
        head: vectors, float32 [N, hidden] -> logits.
    """

    def __init__(self, vectors: Scorer, head: Callable[[np.ndarray], Any]) -> None:
        self._scorer, self._head = vectors, head
        self._last: tuple[Tokens, np.ndarray] | None = None

    def logits(self, tokens: Tokens) -> np.ndarray:
        """Logits in the order of the tokens, float32 [N, num_logits]."""
        if self._last is None or self._last[0] is not tokens:
            self._last = tokens, self._scorer.logits(tokens)
        return np.asarray(self._head(self._last[1]))


def in_streams(
    compute: Callable[[np.ndarray], Any], batches: Iterable[np.ndarray], num_streams: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Batches and what `compute` makes of them, in their order, so many at a time."""
    with ThreadPoolExecutor(num_streams) as pool:
        running = deque[Any]()
        for rows in batches:
            running.append((rows, pool.submit(compute, rows)))
            if len(running) > num_streams:  # one waits, so that none idles
                done, future = running.popleft()
                yield done, future.result()
        for done, future in running:
            yield done, future.result()
