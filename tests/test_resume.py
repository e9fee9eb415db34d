"""A training that stopped early goes on, and ends where it would have ended."""

import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import ROOT, SAMPLE, tiny_settings
from test_train import command, serve

import callbacks
from command_line import parse_command_line
from config import ConfigError, DataError, resume_config
from export import export_classifier
from run_directory import held
from spec import EncoderPaths
from train import Result, train

# Without dropout nothing is drawn in a step, and a training that goes on repeats the one that was not stopped.
OPTIONS: dict[str, Any] = {
    "dropout": 0,
    "encoder_dropout": 0,
    "epochs": 6,
    "early_stopping_patience": 2,
    "monitor": "val_loss",
    "valid_split": 0.3,
}


@pytest.fixture(scope="module")
def uninterrupted(tiny_paths: EncoderPaths, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(tiny_settings(tiny_paths, tmp_path_factory.mktemp("whole"), **OPTIONS))


@pytest.fixture(scope="module")
def interrupted(tiny_paths: EncoderPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a training that Ctrl-C stopped in its third epoch; its table lies beside it."""
    folder = tmp_path_factory.mktemp("interrupted")
    data = shutil.copy(SAMPLE, folder / "reviews.csv")
    on_batch_end = callbacks.Progress.on_train_batch_end

    def stop(self: callbacks.Progress, batch: int, logs: dict[str, float]) -> None:
        on_batch_end(self, batch, logs)
        if self.model.optimizer.iterations == 2 * 15 + 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_train_batch_end", stop)
        result = train(tiny_settings(tiny_paths, folder, data=str(data), **OPTIONS))
    assert result.interrupted
    return result.run_directory


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run."""
    return shutil.copytree(interrupted, tmp_path / "run")


def assert_same_training(directory: Path, whole: Result) -> None:
    """Epochs, scores and the weights that are kept are those of the training that was not stopped."""
    history, expected_history = (pd.read_csv(each / "history.csv") for each in (directory, whole.run_directory))
    pd.testing.assert_frame_equal(history, expected_history, check_exact=False, atol=1e-4)
    report = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    assert report["valid"]["uncalibrated"] == pytest.approx(whole.metrics["valid"]["uncalibrated"], abs=1e-4)
    expected = {**whole.metrics["train"], "resumed": 1}
    assert report["train"].keys() == expected.keys()
    for key in ("examples", "loss_at_start", "epochs_run", "interrupted", "steps_run", "resumed"):
        assert report["train"][key] == pytest.approx(expected[key], abs=1e-5)
    models = [tf.saved_model.load(str(each / "model")).weights for each in (directory, whole.run_directory)]
    for ours, theirs in zip(*models, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-4)


def test_a_second_interrupt_says_how_to_go_on(
    tiny_paths: EncoderPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.export_classifier", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_settings(tiny_paths, tmp_path, **OPTIONS))
    told = capsys.readouterr().out
    assert "Go on with the training: " in told
    assert f"train.py --resume {tmp_path / 'run'}" in told


def test_a_killed_training_goes_on_from_the_command_line(
    tiny_paths: EncoderPaths, tmp_path: Path, uninterrupted: Result
) -> None:
    options = tiny_settings(tiny_paths, tmp_path, **OPTIONS).model_dump(exclude_unset=True)
    process = subprocess.Popen(
        command(*(f"--{key}={value}" for key, value in options.items())),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("epoch 1/6  loss"):
        assert line
    process.kill()
    process.wait()
    process.stdout.close()
    run = tmp_path / "run"
    config = (run / "config.yaml").read_bytes()
    assert not (run / "metrics.json").exists()
    done = subprocess.run(command("--resume", str(run)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Going on after epoch" in done.stdout
    assert "epoch 1/6" not in done.stdout
    assert_same_training(run, uninterrupted)
    assert (run / "config.yaml").read_bytes() == config
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best"]  # what is left needs no more room


def test_after_ctrl_c_the_training_goes_on_after_the_last_finished_epoch(
    stopped: Path, uninterrupted: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((stopped / "metrics.json").read_text(encoding="utf-8"))
    assert (before["train"]["epochs_run"], before["train"]["interrupted"]) == (2, True)
    result = train(resume_config(str(stopped)))
    assert not result.interrupted
    assert result.run_directory == stopped
    printed = capsys.readouterr().out
    assert "Going on after epoch 2 of 6" in printed
    assert "epoch 3/6  step 15/15" in printed
    assert_same_training(stopped, uninterrupted)
    assert result.metrics["train"]["seconds"] > before["train"]["seconds"] / 2
    assert serve(stopped, ["it is good"])["label"].shape == (1,)
    with pytest.raises(DataError, match="its training ran to its end, and nothing is left to do"):
        train(resume_config(str(stopped)))


def test_what_ctrl_c_leaves_says_how_to_go_on_and_is_no_more_than_it_takes(interrupted: Path) -> None:
    files = sorted(path.name.split(".")[0] for path in (interrupted / "checkpoints" / "last").iterdir())
    assert files == ["epoch-2", "epoch-2", "state"]


def test_a_checkpoint_that_cannot_be_written_costs_no_training(
    tiny_paths: EncoderPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files may have 100 kB, too little for the checkpoint, until the model is exported."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def export_without_limit(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        export_classifier(*arguments)

    monkeypatch.setattr("train.export_classifier", export_without_limit)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        result = train(tiny_settings(tiny_paths, tmp_path, epochs=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'run' / 'checkpoints' / 'last' / 'epoch-1'}: cannot be written (" in printed
    assert "the training goes on" in printed
    assert result.metrics["train"]["epochs_run"] == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "state.json: not valid JSON .*; train anew: .*python.* train.py --config .*config.yaml --run_name NEW"),
        ('{"history": 3}', "state.json: loss_at_start=.*: field required; train anew"),
        (None, "it stopped before its first epoch was finished; train anew"),
    ],
)
def test_a_state_that_is_not_whole_is_refused(stopped: Path, content: str | None, message: str) -> None:
    state = stopped / "checkpoints" / "last" / "state.json"
    if content is None:
        state.unlink()
    else:
        state.write_text(content)
    with pytest.raises(DataError, match=message):
        train(resume_config(str(stopped)))


def test_a_damaged_checkpoint_is_refused(stopped: Path) -> None:
    [weights] = (stopped / "checkpoints" / "last").glob("epoch-2.data*")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="epoch-2: is damaged, or of another model .*; train anew"):
        train(resume_config(str(stopped)))
    (stopped / "checkpoints" / "last" / "epoch-2.index").unlink()
    with pytest.raises(DataError, match=r"epoch-2, which state\.json names, is missing; train anew"):
        train(resume_config(str(stopped)))


def test_a_changed_table_is_refused(stopped: Path, interrupted: Path) -> None:
    table = interrupted.parent / "reviews.csv"
    before = table.read_text(encoding="utf-8")
    table.write_text(before.replace("good", "bad", 1), encoding="utf-8")
    try:
        with pytest.raises(DataError, match=r"reviews\.csv: its \w+ rows are not those that .*run began with: restore"):
            train(resume_config(str(stopped)))
    finally:
        table.write_text(before, encoding="utf-8")


def test_an_option_of_its_own_is_refused_in_python(stopped: Path) -> None:
    config = resume_config(str(stopped)).model_copy(update={"epochs": 9})
    with pytest.raises(ConfigError, match=r"epochs=9: the run to resume, .*run, has 6; leave epochs as it was"):
        train(config)


def test_a_training_that_still_runs_is_not_resumed(stopped: Path) -> None:
    with held(stopped), pytest.raises(DataError, match="its training still runs: wait for its end"):
        train(resume_config(str(stopped)))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume", "absent"], 1, "resume=absent: no config.yaml is there: name the run directory of a training"),
        (["--resume=RUN", "--epochs", "9"], 2, "--epochs beside --resume: a training goes on with its own options"),
        (["--resume=RUN", "--config=c.yaml"], 2, "--config beside --resume: a training goes on with its own options"),
    ],
)
def test_a_mistake_beside_resume_is_one_line(arguments: list[str], code: int, message: str, stopped: Path) -> None:
    given = [argument.replace("RUN", str(stopped)) for argument in arguments]
    done = subprocess.run(command(*given), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_beside_resume_wandb_may_be_set(stopped: Path) -> None:
    config, debug = parse_command_line(["--resume", str(stopped), "--wandb_mode=offline", "--debug"])
    assert (config.resume, config.wandb_mode, config.epochs, debug) == (str(stopped), "offline", 6, True)
