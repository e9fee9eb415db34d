"""What a training and an evaluation leave in W&B, read back from its own files and from a server that got them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wandb
from conftest import SAMPLE, tiny_settings
from wandb_server import Run, WandbServer

import dashboard
from config import Config
from decision import plain_decision
from evaluation import evaluate
from examples import read_examples
from portable import read_records
from results import score_unseen
from spec import EncoderPaths
from tasks import Task
from train import Result, train

WANDB = str(Path(sys.executable).with_name("wandb"))
SECRET_TEXT = "zebra quartz"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running
        assert running.unanswered == []


@pytest.fixture
def online(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server, with somebody logged in to it."""
    wandb.teardown()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    wandb.teardown()


@pytest.fixture(scope="module")
def offline_run(tiny_paths: EncoderPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An offline training with validation and test rows, and the evaluation of its model on the latter."""
    folder = tmp_path_factory.mktemp("offline")
    frame = pd.read_csv(SAMPLE, keep_default_na=False)
    frame["text"] += f" {SECRET_TEXT}"
    frame[:300].to_csv(folder / "tickets.csv", index=False)
    frame[300:360].to_csv(folder / "tickets test.csv", index=False)
    tables = {"data": str(folder / "tickets.csv"), "test_data": str(folder / "tickets test.csv")}
    more = {
        "wandb_mode": "offline",
        "wandb_tags": ["first"],
        "wandb_notes": "why",
        "layer_decay": 0.5,
        "batch_size": 16,
    }
    with contextlib.chdir(folder):
        result = train(tiny_settings(tiny_paths, folder, **tables, valid_split=0.2, **more))
        evaluate(str(result.run_directory), tables["test_data"])
    return result.run_directory


def sync(server: WandbServer, command: str, folder: Path) -> dict[str, Run]:
    """Uploads with W&B's own command in `folder`; the runs by job type."""
    environment = {**os.environ, **server.environment, "PATH": f"{Path(WANDB).parent}:{os.environ['PATH']}"}
    environment.pop("WANDB_SERVICE", None)  # of this process
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {str(run.job_type): run for run in server.runs.values()}


@dataclass(frozen=True)
class Uploaded:
    """An offline run that was moved and then uploaded."""

    server: WandbServer
    runs: dict[str, Run]
    directory: Path


@pytest.fixture(scope="module")
def uploaded(offline_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploaded]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = shutil.move(shutil.copytree(offline_run, elsewhere / "copy", symlinks=True), elsewhere / "moved")
    shutil.move(offline_run, offline_run.with_name("away"))
    with WandbServer() as server:
        runs = sync(server, "sh moved/wandb/sync.sh", elsewhere)
        shutil.move(offline_run.with_name("away"), offline_run)
        yield Uploaded(server, runs, Path(moved))


def test_a_training_is_a_group_of_three_runs(uploaded: Uploaded) -> None:
    assert list(uploaded.runs) == ["train", "save", "evaluate"]
    for job_type, run in uploaded.runs.items():
        assert (run.project, run.group, run.tags, run.notes) == ("hubtune", "run", ["first"], "why")
        assert run.display_name == ("run" if job_type == "train" else f"run-{job_type}")
        assert run.exit_code == 0
        config = {key: entry["value"] for key, entry in run.config.items()}
        assert config["learning_rate"] == 3e-3
        assert config["environment"]["git_commit"]
        table = config["tables"][0]
        assert (Path(table["table"]).name, table["rows"], table["columns"]) == ("tickets.csv", 300, ["text", "label"])


def test_lineage_goes_from_the_dataset_over_the_runs_and_the_model_to_the_scores(uploaded: Uploaded) -> None:
    named = {
        job: (sorted(a.name for a in run.used), [a.name for a in run.logged if a.type != "run_table"])
        for job, run in uploaded.runs.items()
    }
    assert named["train"] == (["tickets-data", "tickets-test-data"], ["tickets-training"])
    assert named["save"] == (["tickets-training"], ["tickets-model"])
    assert named["evaluate"] == (["tickets-data", "tickets-model", "tickets-test-data"], [])


def test_every_byte_arrives_after_a_move(uploaded: Uploaded) -> None:
    for artifact in uploaded.server.artifacts:
        assert artifact.files.keys() == artifact.manifest["contents"].keys()
    model = next(artifact for artifact in uploaded.server.artifacts if artifact.is_called("tickets-model:latest"))
    for name, content in model.files.items():
        assert content == (uploaded.directory / name).read_bytes()
    assert {"model/saved_model.pb", "config.yaml", "metrics.json", "MODEL_CARD.md"} <= model.files.keys()
    assert model.metadata["monitor"] == "val_macro_f1"


def test_training_curves_have_their_axes_rates_and_speeds(uploaded: Uploaded) -> None:
    run = uploaded.runs["train"]
    batches = [line for line in run.history if "batch/loss" in line]
    assert [line["batch/batch_step"] for line in batches] == [10, 20, 30]
    groups = {"head", "pooler", "layer_1", "layer_0", "embeddings"}
    assert {f"batch/learning_rate_{group}" for group in groups} <= batches[0].keys()
    assert batches[0]["batch/learning_rate_layer_0"] == pytest.approx(batches[0]["batch/learning_rate"] / 2)
    assert 0 < batches[1]["batch/padding_share"] < 1
    assert batches[1]["batch/tokens_per_second"] > batches[1]["batch/examples_per_second"] > 0
    epochs = [line for line in run.history if "epoch/epoch" in line]
    assert [line["epoch/epoch"] for line in epochs] == [1, 2]
    f1 = [line["epoch/val_f1"] for line in epochs]
    losses = [line["epoch/val_loss"] for line in epochs]
    assert (run.summary["best/val_f1"], run.summary["best/val_loss"]) == (max(f1), min(losses))
    assert (
        run.summary["test/accuracy"]
        == json.loads((uploaded.directory / "metrics.json").read_text())["test"]["accuracy"]
    )


def table_of(run: Run, key: str) -> pd.DataFrame:
    """A table of a run's history, by the file that the server has of it."""
    (entry,) = [line[key] for line in run.history if key in line]
    table = json.loads(run.files[entry["path"]])
    return pd.DataFrame(table["data"], columns=table["columns"])


def test_the_dashboard_has_curves_tables_and_pictures_of_both_parts(uploaded: Uploaded) -> None:
    run, directory = uploaded.runs["evaluate"], uploaded.directory
    metrics = json.loads((directory / "metrics.json").read_text())
    for part in ("valid", "test"):
        cells = table_of(run, f"{part}/confusion_matrix_table")
        assert cells["nPredictions"].tolist() == [n for row in metrics[part]["confusion_matrix"] for n in row]
        assert set(table_of(run, f"{part}/precision_recall_table")["class"]) == {"positive"}
        assert {"false positive rate", "true positive rate"} <= set(table_of(run, f"{part}/roc_table"))
        assert table_of(run, f"{part}/by_label")["label"].tolist() == ["negative", "positive"]
        written = pd.read_csv(directory / f"{part}_predictions.csv")
        rows = table_of(run, f"{part}/rows")
        assert rows["predicted_label"].tolist() == written["predicted_label"].tolist()
        assert rows["probability"].tolist() == pytest.approx(written["probability"].tolist(), rel=1e-6)
        assert "text" not in rows
    pictures = {key for line in run.history for key in line if key.startswith("plots/")}
    assert {"plots/reliability", "plots/label_distribution", "plots/text_lengths", "plots/learning_curves"} <= pictures
    parts = table_of(uploaded.runs["train"], "data/parts").set_index("part").to_dict("index")
    assert {name: part["rows"] for name, part in parts.items()} == {"train": 240, "valid": 60, "test": 60}
    assert parts["train"]["longest, words"] >= parts["train"]["mean words"] > 0


def test_no_text_goes_to_wandb_unasked(uploaded: Uploaded) -> None:
    sent = [content for run in uploaded.runs.values() for content in run.files.values()]
    sent += [content for artifact in uploaded.server.artifacts for content in artifact.files.values()]
    sent += [file.read_bytes() for file in (uploaded.directory / "wandb").rglob("*") if file.is_file()]
    texts = [content for content in sent if SECRET_TEXT.encode() in content]
    assert len(sent) > 50
    assert texts == []


def test_wandb_reads_its_own_files_after_they_were_made_portable(offline_run: Path) -> None:
    for file in (offline_run / "wandb").glob("offline-run-*/*.wandb"):
        done = subprocess.run(
            [WANDB, "leet", "inspect", "--json", str(file)], capture_output=True, text=True, check=True
        )
        seen = [json.loads(line) for line in done.stdout.splitlines()]
        assert [each["num"] for each in seen] == list(range(1, len(list(read_records(file))) + 1))
        assert seen[-1]["type"] == "exit"


@pytest.mark.parametrize(("folder", "command"), [("moved", "wandb sync wandb"), (".", "wandb sync moved/wandb")])
def test_plain_wandb_sync_finds_every_byte(
    folder: str, command: str, offline_run: Path, tmp_path: Path, server: WandbServer
) -> None:
    shutil.copytree(offline_run, tmp_path / "moved", symlinks=True)
    away = shutil.move(offline_run, offline_run.with_name("away"))
    try:
        if folder == ".":  # as for somebody who has moved the whole project
            (tmp_path / "moved").rename(tmp_path / "run")
            command = "wandb sync run/wandb"
        sync(server, command, tmp_path / folder)
    finally:
        shutil.move(away, offline_run)
    assert {"tickets-model", "tickets-training"} <= {artifact.name for artifact in server.artifacts}
    assert all(a.files.keys() == a.manifest["contents"].keys() for a in server.artifacts)


def test_texts_are_in_the_tables_when_they_are_asked_for(trained: Result) -> None:
    table = str(trained.run_directory.parent / "test.csv")
    examples = read_examples(table, Config(data=table))
    frame = pd.read_csv(table, keep_default_na=False)
    task = Task("binary", ["negative", "positive"])
    decision = plain_decision(task)
    scored = {"test": score_unseen(decision, examples, np.zeros((len(examples), 1), np.float32))}
    rows = dashboard.scores(decision, scored, texts=True)["test/rows"].get_dataframe()
    assert rows["text"].tolist() == frame["text"].tolist()
    head = dashboard.data_looks(task, {"train": examples}, texts=True)["data/head"].get_dataframe()
    assert head["text"].tolist() == frame["text"].tolist()[:100]
