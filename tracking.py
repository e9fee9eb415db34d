"""W&B: one run per training, online when somebody is logged in, offline otherwise, and never a question asked.

No texts are sent: metrics, the configuration (which names files and columns) and the environment only.
"""

import os

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

from pathlib import Path
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")  # our own lines say where the run is

import wandb
from wandb.integration.keras import WandbMetricsLogger

from config import Config, ConfigError

_LOG_EVERY = 10  # steps


class WandbCallback(WandbMetricsLogger):
    """Logs loss, metrics and learning rate: every 10 steps under `batch/`, and with the validation metrics under `epoch/`."""

    def __init__(self) -> None:
        super().__init__(log_freq=_LOG_EVERY)
        wandb.define_metric("epoch/epoch")
        wandb.define_metric("epoch/*", step_metric="epoch/epoch")


class NoRun:
    """Stands in for a W&B run when W&B is off."""

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

    def __init__(self, config: Config, run_directory: Path, online: bool) -> None:
        self._run = wandb.init(
            project=config.wandb_project,
            group=config.wandb_group,
            tags=config.wandb_tags,
            name=run_directory.name,
            job_type="train",
            dir=run_directory,
            mode="online" if online else "offline",
            config=config.model_dump(),
            settings=wandb.Settings(console="off", silent=True),  # what is printed could hold texts
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


def start_run(config: Config, run_directory: Path) -> NoRun:
    """Starts the W&B run that `config.wandb_mode` asks for.

    Raises:
        ConfigError: `online` is asked for and nobody is logged in.
    """
    if config.wandb_mode == "disabled":
        return NoRun()
    online = config.wandb_mode != "offline" and wandb.login(prompt=False)
    if config.wandb_mode == "online" and not online:
        raise ConfigError(
            "wandb_mode=online: nobody is logged in to W&B here; run `wandb login`, or set wandb_mode to auto or offline"
        )
    return WandbRun(config, run_directory, online)
