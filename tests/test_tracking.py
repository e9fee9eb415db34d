"""tracking.py: W&B never asks, never blocks, and never costs a run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from conftest import ROOT

import tracking
from config import Config, ConfigError


def mode_in_a_fresh_process(wandb_mode: str, home: Path, **environment: str) -> str:
    """What `choose_mode` gives with nothing of this machine's W&B login in sight."""
    program = (
        "from config import Config; from tracking import choose_mode; "
        f"print(choose_mode(Config(data='-', wandb_mode={wandb_mode!r})))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.strip() or done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("wandb_mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        (
            "auto",
            {"WANDB_MODE": "offlin"},
            "config.ConfigError: WANDB_MODE=offlin: should be online, offline or disabled",
        ),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": "0" * 40}, "offline"),
    ],
)
def test_auto_is_online_when_logged_in_and_else_offline(
    wandb_mode: str, environment: dict[str, str], expected: str, tmp_path: Path
) -> None:
    assert mode_in_a_fresh_process(wandb_mode, tmp_path, **environment) == expected


def test_online_without_a_login_is_an_error_and_no_question(tmp_path: Path) -> None:
    assert "wandb_mode=online: nobody is logged in to W&B here" in mode_in_a_fresh_process("online", tmp_path)


def test_a_run_that_cannot_start_online_is_kept_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def init(**arguments: Any) -> object:
        started.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no network")
        return object()

    monkeypatch.setattr(wandb, "init", init)
    tracking.start_run(Config(data="-"), tmp_path, "online", {})
    assert started == ["online", "offline"]
    assert "W&B cannot be used (no network): from here on it is kept offline" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"wandb_project": "a/b"}, {"wandb_tags": ["x" * 70]}])
def test_what_wandb_refuses_is_one_line(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match="W&B does not take this run .*change wandb_project .*, wandb_group or wandb_tags"
    ):
        tracking.start_run(Config(data="-", **options), tmp_path, "offline", {})


def test_a_run_ends_with_its_context_and_knows_whether_it_failed() -> None:
    ends: list[bool] = []

    class Run(tracking.NoRun):
        def finish(self, failed: bool = False) -> None:
            ends.append(failed)

    with Run():
        pass
    with pytest.raises(KeyError), Run():
        raise KeyError
    assert ends == [False, True]
