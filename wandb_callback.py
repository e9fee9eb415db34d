"""WandbCallback: what a dashboard shows of a training as it goes, built on W&B's own WandbMetricsLogger."""

import os

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

os.environ.setdefault("WANDB_SILENT", "true")  # our own lines say where the run is

import wandb
from wandb.integration.keras import WandbMetricsLogger

from data import BatchSizes

_LOG_EVERY = 10  # steps


class WandbCallback(WandbMetricsLogger):
    """Logs a training: every 10 steps under `batch/`, by the optimizer's step, and after every epoch under `epoch/`.

    Beside Keras' own logs these are the learning rate of each group of weights, examples and tokens per second, and the share
    of padding; the run's summary holds the best value of each epoch metric.

    Args:
        logged_steps, logged_epochs: what was logged before a resume; steps are not logged twice, epochs that are missing are.
        sizes: what the batches of an epoch, counted from 0, hold.
        rates: factor on the learning rate, by group of weights.
        history: the epochs before a resume.
    """

    _supports_tf_logs = True  # it looks at the numbers of every tenth step

    def __init__(
        self,
        logged_steps: int = 0,
        logged_epochs: int = 0,
        sizes: Callable[[int], BatchSizes] | None = None,
        rates: dict[str, float] | None = None,
        history: Iterable[dict[str, float]] = (),
    ) -> None:
        super().__init__(log_freq=_LOG_EVERY)
        # The base class sets the axis of the one or the other; here both are logged.
        wandb.define_metric("epoch/epoch")
        wandb.define_metric("epoch/*", step_metric="epoch/epoch")
        self._sizes_of, self._rates, self._logged_steps = sizes, rates or {}, logged_steps
        self._history = list(history)
        for epoch in self._history[logged_epochs:]:
            _log({f"epoch/{name}": value for name, value in epoch.items()})
        self._sizes: BatchSizes | None = None
        self._epoch = self._window = self._now = (0, 0.0)  # batches done in the epoch, and when

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.global_step = int(self.model.optimizer.iterations)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._sizes = self._sizes_of(epoch) if self._sizes_of else None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.global_step += 1
        self._now = (batch + 1, time.monotonic())
        if batch == 0:  # the first step of all builds the graph
            self._epoch = self._window = self._now
        if self.global_step % _LOG_EVERY == 0 and self.global_step > self._logged_steps:
            numbers = {name: float(value) for name, value in (logs or {}).items()}
            values = {**numbers, **self._learning_rates(), **self._speed(self._window)}
            values["batch_step"] = self.global_step
            _log({f"batch/{name}": value for name, value in values.items()})
            self._window = self._now

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = dict(logs or {})
        self._history.append(logs)
        values = {**logs, **self._learning_rates(), **self._speed(self._epoch), "epoch": epoch + 1}
        _log({f"epoch/{name}": value for name, value in values.items()}, best_values(self._history))

    def _learning_rates(self) -> dict[str, float]:
        rate = self._get_lr()
        if rate is None:
            return {}
        groups = {f"learning_rate_{group}": rate * factor for group, factor in self._rates.items()}
        return {"learning_rate": rate, **groups}

    def _speed(self, since: tuple[int, float]) -> dict[str, float]:
        """Examples and tokens per second, and the share of padding, where it is known what batches hold."""
        (first, started), (last, ended) = since, self._now
        if self._sizes is None or last <= first:
            return {}
        rows, tokens, places = (int(np.sum(part[first:last])) for part in self._sizes)
        return {
            "examples_per_second": rows / (ended - started),
            "tokens_per_second": tokens / (ended - started),
            "padding_share": 1 - tokens / places,
        }


def best_values(history: Iterable[Mapping[Any, float]]) -> dict[str, float]:
    """The best value of each metric, as in "best/val_macro_f1": the lowest of losses and errors, the highest of others."""
    columns: dict[str, list[float]] = {}
    for logs in history:
        for name, value in logs.items():
            columns.setdefault(name, []).append(float(value))
    columns.pop("epoch", None)
    return {
        f"best/{name}": min(values) if name.endswith(("loss", "error")) else max(values)
        for name, values in columns.items()
    }


def _log(values: dict[str, Any], summary: dict[str, Any] | None = None) -> None:
    """Logs into the run that is open."""
    try:
        wandb.log(values)
        if wandb.run is not None:
            wandb.run.summary.update(summary or {})
    except Exception as error:  # whatever W&B comes up with, and a training is not lost by it
        tell("metrics cannot be logged", error)


def tell(what: str, error: Exception) -> None:
    """Says in one line what W&B, its server or the disk refuses."""
    print(f"W&B: {what} ({reason(error)}); the job goes on", flush=True)


def reason(error: Exception) -> str:
    """An error in one line, without the API key that it may quote."""
    line = " ".join(str(error).split()).split(" Consider ")[0] or type(error).__name__
    key = wandb.setup().settings.api_key
    return (line.replace(key, "***") if key else line)[:200]
