"""W&B online, against a server on this machine: versions, models by reference, lost networks, refused keys, resumed runs."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb
from conftest import ROOT, SAMPLE, tiny_settings
from test_wandb_jobs import sync
from wandb_server import Run, WandbServer

import artifacts
import tracking
import wandb_callback
from config import Config, ConfigError, DataError, resume_config
from encoders import find_encoder
from evaluation import evaluate
from predict import load_classifier
from spec import EncoderPaths
from train import Result, train

TEXTS = ["it is good", "the worst of all", "not for me"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "tickets.csv"
    pd.read_csv(SAMPLE, keep_default_na=False)[:200].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def logged_in() -> Iterator[WandbServer]:
    """A server that stays for the module, with somebody logged in to it and the waits for it short."""
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        wandb.teardown()
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_HTTP_TIMEOUT", "2")
        patch.setattr(tracking, "_INIT_SECONDS", 2)
        patch.setattr(tracking, "_FINISH_SECONDS", 4)
        yield server
        wandb.teardown()
        assert server.unanswered == []


def settings(paths: EncoderPaths, table: Path, name: str, **options: Any) -> Config:
    common = {"data": str(table), "valid_split": 0.2, "wandb_mode": "online", "batch_size": 16}
    return tiny_settings(paths, table.parent, run_name=name, **(common | options))


@pytest.fixture(scope="module")
def trained_online(logged_in: WandbServer, tiny_paths: EncoderPaths, table: Path) -> Result:
    return train(settings(tiny_paths, table, "first", epochs=1, wandb_registry="models/tickets", wandb_tags=["a"]))


def runs_of(server: WandbServer, group: str) -> dict[str, Run]:
    return {str(run.job_type): run for run in server.runs.values() if run.group == group}


def test_an_online_training_leaves_the_same_as_an_offline_one(logged_in: WandbServer, trained_online: Result) -> None:
    runs = runs_of(logged_in, "first")
    assert list(runs) == ["train", "save", "evaluate"]
    assert [run.exit_code for run in runs.values()] == [0, 0, 0]
    assert [artifact.name for artifact in runs["train"].used] == ["tickets-data"]
    assert [artifact.name for artifact in runs["save"].used] == ["tickets-training"]
    model = next(artifact for artifact in runs["save"].logged if artifact.type == "model")
    assert {"latest", "best"} <= set(model.aliases)
    for name, content in model.files.items():
        assert content == (trained_online.run_directory / name).read_bytes()
    assert [artifact.name for artifact in runs["evaluate"].used] == ["tickets-model", "tickets-data"]
    assert [(link.project, link.name, link.digest) for link in logged_in.links] == [
        ("wandb-registry-models", "tickets", model.digest)
    ]
    assert not (trained_online.run_directory / "wandb" / "sync.sh").exists()


def test_the_api_key_is_in_no_file(logged_in: WandbServer, trained_online: Result) -> None:
    files = [file for file in trained_online.run_directory.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [file for file in files if logged_in.api_key.encode() in file.read_bytes()]


def test_a_model_is_used_by_its_name_in_wandb(
    trained_online: Result, table: Path, tiny_paths: EncoderPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path / "cache"))
    name = "wandb:tester/hubtune/tickets-model"
    there, here = load_classifier(f"{name}:best"), load_classifier(trained_online.run_directory)
    assert np.array_equal(there.predict_proba(TEXTS), here.predict_proba(TEXTS))
    encoder = find_encoder(settings(tiny_paths, table, "x", encoder=f"{name}:v0"))
    assert Path(encoder.encoder).is_dir()


def test_an_evaluation_by_name_uses_that_very_version(
    logged_in: WandbServer, trained_online: Result, table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    directory, _ = evaluate("wandb:tester/hubtune/tickets-model:latest", str(table))
    assert directory.parent == Path("evaluations")
    run = list(logged_in.runs.values())[-1]
    assert (run.job_type, run.group, run.project) == ("evaluate", "first", "hubtune")
    used = next(artifact for artifact in run.used if artifact.type == "model")
    assert (used.version, used.created_by) == (0, runs_of(logged_in, "first")["save"].id)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wandb:tester/hubtune/tickets-model:nix", "check entity, project, name and alias"),
        ("wandb:tester/tickets-model", "expected wandb:entity/project/name:alias"),
    ],
)
def test_a_version_that_there_is_not_is_one_line(logged_in: WandbServer, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        load_classifier(name)
    assert "\n" not in str(caught.value)
    assert logged_in.api_key not in str(caught.value)


def test_the_best_and_the_last_version_stay_and_those_with_a_name(logged_in: WandbServer, tmp_path: Path) -> None:
    scores = [0.5, 0.9, 0.6, 0.7, 0.99, 0.8]
    with wandb.init(project="versions", mode="online", dir=tmp_path, settings=wandb.Settings(console="off")) as run:
        for number, score in enumerate(scores):
            rows = "others" if score == 0.99 else "the same"
            metadata = {"monitor": "val_f1", "score": score, "valid_rows": rows}
            artifact = wandb.Artifact("m", "model", metadata=metadata)
            with artifact.new_file("weights") as file:
                file.write(str(number))
            run.log_artifact(artifact, aliases=["kept"] if number == 2 else []).wait()
            if number == 0:
                artifact.link("wandb-registry-models/linked")
            artifacts.settle("tester/versions/m")
    left = {a.version: set(a.aliases) for a in logged_in.artifacts if a.project == "versions" and a.name == "m"}
    assert left == {0: set(), 1: {"best"}, 2: {"kept"}, 4: set(), 5: {"latest"}}
    assert artifacts.settle("tester/versions/m") == []


def test_a_network_that_goes_away_costs_nothing(
    logged_in: WandbServer,
    tiny_paths: EncoderPaths,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    best_values = wandb_callback.best_values

    def cut(history: Any) -> dict[str, float]:
        logged_in.hang_up()
        return best_values(history)

    monkeypatch.setattr(wandb_callback, "best_values", cut)
    result = train(settings(tiny_paths, table, "cut", epochs=2, seed=1))
    printed = capsys.readouterr().out
    assert "from here on it is kept offline" in printed
    assert "wandb/sync.sh" in printed
    assert result.metrics["train"]["epochs_run"] == 2
    moved = result.run_directory.rename(result.run_directory.with_name("moved"))
    logged_in.listen_again()
    sync(logged_in, "sh wandb/sync.sh", moved)
    runs = runs_of(logged_in, "cut")
    assert {name: run.exit_code for name, run in runs.items()} == {"train": 0, "save": 0, "evaluate": 0}
    assert {line["epoch/epoch"] for line in runs["train"].history if "epoch/epoch" in line} == {1, 2}
    assert "valid/rows" in runs["evaluate"].summary
    assert {"data/parts", "best/val_f1", "epoch/val_f1", "valid/f1"} <= runs["train"].summary.keys()
    assert [a.name for a in runs["train"].logged if a.type == "training"] == ["tickets-training"]
    model = next(artifact for artifact in runs["save"].logged if artifact.type == "model")
    assert model.files["model/saved_model.pb"] == (moved / "model" / "saved_model.pb").read_bytes()
    assert all(a.files.keys() == a.manifest["contents"].keys() for run in runs.values() for a in run.logged + run.used)


def test_a_server_that_is_lost_between_two_steps_does_not_keep_a_run_from_ending(
    logged_in: WandbServer, tmp_path: Path
) -> None:
    identity = {"rows": 1, "columns": ["text"], "sha256": "0"}
    config = Config(data="-", wandb_group="lost")
    with tracking.start_run(config, tmp_path, "online", {}) as run, run.job("evaluate") as evaluated:
        logged_in.hang_up()
        evaluated.uses(lambda: artifacts.dataset("lost.csv", identity))
        evaluated.summarize({"score": 1})
    logged_in.listen_again()
    sync(logged_in, "sh wandb/sync.sh", tmp_path)
    runs = runs_of(logged_in, "lost")
    assert [artifact.name for artifact in runs["evaluate"].used] == ["lost-data"]
    assert runs["evaluate"].summary["score"] == 1
    assert {run.exit_code for run in runs.values()} == {0}


def test_what_the_server_lacks_of_an_earlier_process_stays_in_the_script(
    logged_in: WandbServer, tmp_path: Path
) -> None:
    config = Config(data="-", wandb_group="twice")
    with tracking.start_run(config, tmp_path, "online", {}):
        logged_in.hang_up()
        wandb.log({"number": 1})
    logged_in.listen_again()
    with tracking.start_run(config, tmp_path, "online", {}, resumed=True):
        wandb.log({"number": 2})
    sync(logged_in, "sh wandb/sync.sh", tmp_path)
    assert {line["number"] for line in runs_of(logged_in, "twice")["train"].history} == {1, 2}


def test_beside_a_run_of_the_callers_its_mode_counts_and_it_stays_open(logged_in: WandbServer, tmp_path: Path) -> None:
    config = Config(data="-", wandb_mode="online")
    with wandb.init(project="mine", mode="online", dir=tmp_path, settings=wandb.Settings(console="off")) as own:
        assert tracking.choose_mode(config) == "online"
        with tracking.start_run(config, tmp_path, "online", {}) as run:
            logged_in.hang_up()
            run.log(lambda: {"table": wandb.Table(columns=["a"], data=[[1]])})
            logged_in.listen_again()
            run.summarize({"score": 1})
        assert wandb.run is own
    assert logged_in.runs[own.id].summary["score"] == 1


def test_a_server_that_fails_for_a_while_gets_everything_in_the_end(
    logged_in: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 60)
    with tracking.start_run(Config(data="-", wandb_group="failing"), tmp_path, "online", {}):
        logged_in.fail(500)
        threading.Timer(3, logged_in.fail, [None]).start()
        for number in range(3):
            wandb.log({"number": number})
    run = runs_of(logged_in, "failing")["train"]
    assert [line["number"] for line in run.history] == [0, 1, 2]
    assert run.exit_code == 0


def test_a_resumed_training_goes_on_in_the_same_runs_and_on_the_same_axes(
    logged_in: WandbServer, tiny_paths: EncoderPaths, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    config = settings(tiny_paths, table, "again", epochs=3, seed=3, wandb_mode="offline")
    with monkeypatch.context() as patch:
        patch.setattr(wandb_callback, "best_values", interrupt)
        first = train(config)
    assert first.interrupted
    train(resume_config(str(first.run_directory)))
    runs = sync(logged_in, "sh wandb/sync.sh", first.run_directory)
    runs = runs_of(logged_in, "again")
    assert len([run for run in logged_in.runs.values() if run.group == "again"]) == 3
    lines = runs["train"].history
    steps = [line["_step"] for line in lines]
    assert steps == sorted(set(steps))
    assert [line["batch/batch_step"] for line in lines if "batch/loss" in line] == [10, 20, 30]
    assert [line["epoch/epoch"] for line in lines if "epoch/epoch" in line] == [1, 2, 3]
    assert runs["train"].summary["train/resumed"] == 1


def test_a_refused_key_keeps_the_run_offline_and_is_not_printed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from config import Config; import tracking\n"
        "config, folder = Config(data='-', wandb_mode='online'), Path(sys.argv[1])\n"
        "for mode in tracking.choose_mode(config), 'online':\n"
        "    (folder / mode).mkdir()\n"
        "    with tracking.start_run(config, folder / mode, mode, {}) as run:\n"
        "        run.summarize({'score': 1})\n"
        "    print(*run.where())\n"
    )
    with WandbServer() as server:
        server.refuse_keys()
        environment = os.environ | server.environment | {"WANDB_API_KEY": "not-the-key" * 4}
        environment.pop("WANDB_SERVICE", None)  # of this process
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert "user is not logged in): the runs are kept offline" in done.stdout
    assert "): from here on it is kept offline" in done.stdout
    assert "not-the-key" not in done.stdout + done.stderr
    assert len(list(tmp_path.glob("*/wandb/sync.sh"))) == 2


def test_the_id_of_another_run_is_refused(
    logged_in: WandbServer, trained_online: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = runs_of(logged_in, "first")["train"].id
    monkeypatch.setenv("WANDB_RUN_ID", taken)
    with pytest.raises(ConfigError, match=f"{taken}.*already exists.*WANDB_RESUME=allow"):
        tracking.start_run(Config(data="-"), tmp_path, "online", {})


def test_a_full_disk_costs_what_does_not_fit_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with tracking.start_run(Config(data="-"), tmp_path, "offline", {}) as run:
        run.logs(full)
        run.log(full)
        run.summarize({"score": 1})
    printed = capsys.readouterr().out
    assert "W&B: an artifact cannot be logged ([Errno 28] No space left on device); the job goes on" in printed
    assert "plots and tables cannot be logged" in printed


@pytest.mark.parametrize("who", ["a sweep's agent", "the caller"])
def test_where_there_can_be_one_run_all_jobs_are_in_it(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Any = None
    if who == "the caller":
        opened = wandb.init(mode="offline", dir=tmp_path, project="mine", settings=wandb.Settings(console="off"))
    else:
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    with tracking.start_run(Config(data="-"), tmp_path, "offline", {}) as run:
        with run.job("evaluate") as evaluated:
            evaluated.summarize({"score": 1})
        assert wandb.run is not None
        assert wandb.run.summary["score"] == 1
        assert wandb.run.config["data"] == "-"
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    assert (wandb.run is None) == (opened is None)
    if opened:
        opened.finish()
