"""W&B: one run per training, online when somebody is logged in, offline otherwise, and never a question asked.

No texts are sent: metrics, the configuration (which names files and columns) and the environment only.
"""

import os

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from pathlib import Path
from typing import Any, Literal, Self

os.environ.setdefault("WANDB_SILENT", "true")  # our own lines say where the run is

import wandb
from wandb.integration.keras import WandbMetricsLogger

from config import Config, ConfigError

_LOG_EVERY = 10  # steps
Mode = Literal["online", "offline", "disabled"]


class WandbCallback(WandbMetricsLogger):
    """Logs loss, metrics and learning rate: every 10 steps under `batch/`, and after every epoch under `epoch/`."""

    def __init__(self) -> None:
        super().__init__(log_freq=_LOG_EVERY)
        # The base class sets the axis of the one or the other; here both are logged.
        wandb.define_metric("epoch/epoch")
        wandb.define_metric("epoch/*", step_metric="epoch/epoch")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.global_step += 1  # the base class counts from 0 in every epoch
        if self.global_step % _LOG_EVERY == 0:
            values = {f"batch/{name}": value for name, value in (logs or {}).items()}
            wandb.log({**values, "batch/learning_rate": self._get_lr(), "batch/batch_step": self.global_step})


class NoRun:
    """Stands in for a W&B run when W&B is off. A run is a context: it ends with it, as failed if an error leaves it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self.finish(failed=kind is not None)

    def callbacks(self) -> list[Any]:
        """Keras callbacks that log the training."""
        return []

    def summarize(self, values: dict[str, Any]) -> None:
        """Records the run's final numbers."""

    def finish(self, failed: bool = False) -> None:
        """Closes the run."""

    def where(self) -> str | None:
        """Where to look at the run, in words."""
        return None


class WandbRun(NoRun):
    """A W&B run whose files lie in the run directory."""

    def __init__(self, config: Config, run_directory: Path, mode: Mode) -> None:
        self._run = wandb.init(
            project=config.wandb_project,
            group=config.wandb_group,
            tags=config.wandb_tags,
            name=run_directory.name,
            job_type="train",
            dir=run_directory,
            mode=mode,
            config=config.model_dump(),
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),  # what is printed could hold texts
        )

    def callbacks(self) -> list[Any]:
        return [WandbCallback()]

    def summarize(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)

    def finish(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))

    def where(self) -> str:
        if self._run.offline:
            return f"wandb sync {Path(self._run.dir).parent}  (the run is offline; this uploads it)"
        return str(self._run.url)


def choose_mode(config: Config) -> Mode:
    """Turns `auto` into W&B's own WANDB_MODE, else online when somebody is logged in, else offline.

    Raises:
        ConfigError: `online` is asked for and nobody is logged in.
    """
    wanted = os.environ.get("WANDB_MODE", "auto") if config.wandb_mode == "auto" else config.wandb_mode
    if wanted == "disabled":
        return "disabled"
    if wanted == "offline":
        return "offline"
    try:
        logged_in = wandb.login(prompt=False, verify=False)
    except wandb.Error:  # a key of the wrong form
        logged_in = False
    if wanted == "online" and not logged_in:
        raise ConfigError(
            "wandb_mode=online: nobody is logged in to W&B here; run `wandb login`, or set auto or offline"
        )
    return "online" if logged_in else "offline"


def start_run(config: Config, run_directory: Path, mode: Mode) -> NoRun:
    """Starts the W&B run; one that cannot start online is kept offline, and said so.

    Raises:
        ConfigError: W&B refuses the project, the group or a tag.
    """
    if mode == "disabled":
        return NoRun()
    if mode == "online":
        print("Connecting to W&B", flush=True)
    try:
        return WandbRun(config, run_directory, mode)
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split()).split(" Consider ")[0]
        if mode == "offline" or isinstance(error, wandb.errors.UsageError | ValueError):
            raise ConfigError(
                f"W&B does not take this run ({reason}): change wandb_project, wandb_group or wandb_tags"
            ) from error
        print(f"W&B cannot be reached ({reason}): the run is kept offline", flush=True)
        return WandbRun(config, run_directory, "offline")
