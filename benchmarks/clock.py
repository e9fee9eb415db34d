"""The time that a Keras model trains for."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def clocked(model: Any) -> Iterator[Callable[[], dict[str, float]]]:
    """Times the `fit` of a Keras model that runs inside, whoever calls it."""
    import tf_keras

    times: list[float] = []

    class Clock(tf_keras.callbacks.Callback):
        _supports_tf_logs = True  # else Keras would make NumPy arrays of the logs at each step

        def on_train_begin(self, logs: Any = None) -> None:
            times.extend([time.perf_counter()] * 2)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if times[1] == times[0]:
                times[1] = time.perf_counter()

        def on_train_end(self, logs: Any = None) -> None:
            times.append(time.perf_counter())

    fit = model.fit
    model.fit = lambda *data, callbacks, **options: fit(*data, callbacks=[Clock(), *callbacks], **options)
    yield lambda: {"first step": times[1] - times[0], "seconds": times[2] - times[0]}
    del model.fit
