"""train.py end to end, with a real tiny hub encoder on the bundled reviews."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml
from conftest import ROOT, SAMPLE, MakeTable, tiny_settings
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
)

import runtime
from config import Config, ConfigError, DataError, HubtuneError
from data import Tokens, pad
from spec import EncoderPaths
from train import Result, train


def serve(run_directory: Path, texts: list[str]) -> dict[str, np.ndarray]:
    signature = tf.saved_model.load(str(run_directory / "model")).signatures["serving_default"]
    return {name: value.numpy() for name, value in signature(text=tf.constant(texts)).items()}


def test_the_run_directory_holds_what_the_contract_says(trained: Result) -> None:
    assert {path.name for path in trained.run_directory.iterdir()} == {
        "MODEL_CARD.md",
        "config.yaml",
        "history.csv",
        "metrics.json",
        "model",
        "plots",
        "report.html",
        "test_predictions.csv",
        "valid_predictions.csv",
    }
    assert {path.name for path in (trained.run_directory / "plots").iterdir()} == {
        "confusion_matrix.png",
        "label_distribution.png",
        "learning_curves.png",
        "precision_recall.png",
        "reliability.png",
        "roc.png",
        "text_lengths.png",
        "thresholds.png",
    }
    assert Config(**yaml.safe_load((trained.run_directory / "config.yaml").read_text())).epochs == 3
    report = json.loads((trained.run_directory / "metrics.json").read_text())
    assert report == trained.metrics
    assert (report["task"], report["labels"]) == ("binary", ["negative", "positive"])
    saved = tf.saved_model.load(str(trained.run_directory / "model"))
    assert [report["threshold"]] == saved.threshold.numpy().tolist() != [0.5]
    assert [report["temperature"]] == saved.temperature.numpy().tolist()
    assert (report["train"]["examples"], report["valid"]["examples"], report["test"]["examples"]) == (400, 100, 152)
    assert report["train"]["epochs_run"] == 3
    assert report["train"]["steps_run"] == 3 * 13
    assert report["train"]["examples_per_second"] == pytest.approx(1200 / report["train"]["seconds"])
    assert report["environment"]["seed"] == 42
    assert report["environment"]["precision"] == "float32"


def test_the_test_metrics_are_those_of_the_exported_model_on_the_test_rows(trained: Result) -> None:
    frame = pd.read_csv(trained.run_directory.parent / "test.csv", keep_default_na=False)
    given = serve(trained.run_directory, frame["text"].tolist())
    truth = (frame["label"] == "positive").to_numpy().astype(int)
    positive = given["probabilities"][:, 1]
    predicted = (given["label"] == b"positive").astype(int)
    expected = {
        "examples": 152,
        "loss": log_loss(truth, positive),
        "accuracy": accuracy_score(truth, predicted),
        "macro_f1": f1_score(truth, predicted, average="macro"),
        "f1": f1_score(truth, predicted),
        "average_precision": average_precision_score(truth, positive),
    }
    scores = trained.metrics["test"]
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert scores["at_half"]["f1"] == pytest.approx(f1_score(truth, positive >= 0.5))
    low, high = scores["intervals"]["f1"]
    assert low < scores["f1"] < high
    assert np.sum(scores["confusion_matrix"]) == 152


def test_valid_predictions_keep_the_input_columns_and_order_beside_the_served_scores(trained: Result) -> None:
    predictions = pd.read_csv(trained.run_directory / "valid_predictions.csv", keep_default_na=False)
    assert list(predictions.columns) == [
        "text",
        "label",
        "predicted_label",
        "probability",
        "probability_negative",
        "probability_positive",
    ]
    table = pd.read_csv(trained.run_directory.parent / "train.csv", keep_default_na=False)
    places = [table["text"].tolist().index(text) for text in predictions["text"]]
    assert places == sorted(places)
    assert table["label"].iloc[places].tolist() == predictions["label"].tolist()
    given = serve(trained.run_directory, predictions["text"].tolist())
    assert [label.decode() for label in given["label"]] == predictions["predicted_label"].tolist()
    np.testing.assert_allclose(predictions["probability_positive"], given["probabilities"][:, 1], atol=1e-5)
    np.testing.assert_allclose(predictions["probability"], given["probability"], atol=1e-5)


def test_history_has_a_line_per_epoch_and_the_last_is_the_score_before_any_choice(trained: Result) -> None:
    history = pd.read_csv(trained.run_directory / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    scores = trained.metrics["valid"]
    plain = {**scores["uncalibrated"], "average_precision": scores["average_precision"]}
    for name, value in plain.items():
        assert history[f"val_{name}"].iloc[-1] == pytest.approx(value, abs=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_another(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    def losses(name: str, seed: int) -> list[float]:
        train(tiny_settings(tiny_paths, tmp_path, run_name=name, seed=seed, epochs=1))
        return pd.read_csv(tmp_path / name / "history.csv")[["loss", "val_loss"]].iloc[0].tolist()

    first = losses("a", 1)
    assert losses("b", 1) == pytest.approx(first, abs=1e-5)
    assert losses("c", 2) != pytest.approx(first, abs=1e-5)


def test_early_stopping_restores_the_best_weights(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable, capsys: pytest.CaptureFixture[str]
) -> None:
    """The validation rows contradict the training rows, so that what is learnt makes later epochs worse than the best."""
    rows = [("it is good", "pos"), ("it was the worst", "neg")] * 20
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("text,label\nit is good,neg\nit was the worst,pos\n", encoding="utf-8")
    config = tiny_settings(
        tiny_paths,
        tmp_path,
        data=table(rows),
        valid_data=str(swapped),
        valid_split=None,
        epochs=12,
        learning_rate=1e-2,
        early_stopping_patience=2,
        monitor="val_loss",
    )
    result = train(config)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    best = int(history["val_loss"].to_numpy().argmin())
    assert len(history) == best + 3 < 12
    assert f"val_loss was best in epoch {best + 1}, whose weights are kept" in capsys.readouterr().out
    loss = result.metrics["valid"]["uncalibrated"]["loss"]
    assert loss == pytest.approx(history["val_loss"].min(), abs=1e-5)
    assert loss != pytest.approx(history["val_loss"].iloc[-1], abs=1e-4)


def test_more_than_two_labels_train_as_multiclass(tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable) -> None:
    rows = [(f"{word} {i}", str(number)) for i in range(20) for number, word in ((2, "good"), (10, "bad"), (1, "it"))]
    result = train(tiny_settings(tiny_paths, tmp_path, data=table(rows), epochs=1))
    assert (result.metrics["task"], result.metrics["labels"]) == ("multiclass", ["1", "2", "10"])
    assert result.metrics["threshold"] is None
    assert "at_half" not in result.metrics["valid"]
    assert {"macro_f1", "weighted_f1", "roc_auc", "mcc"} <= result.metrics["valid"].keys()
    assert serve(result.run_directory, ["it"])["probabilities"].shape == (1, 3)


def test_many_labels_a_row_train_score_and_serve(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which words a text holds are its labels; a few texts hold none of them."""
    words = ("good", "bad", "it")
    random = np.random.default_rng(0)
    sets = [[word for word in words if random.random() < share] for share in random.choice([0.2, 0.5], 300)]
    rows = [(" ".join([*labels, "a", str(i)]), "; ".join(labels)) for i, labels in enumerate(sets)]
    config = tiny_settings(
        tiny_paths,
        tmp_path,
        data=table(rows),
        valid_split=0.2,
        label_separator=";",
        epochs=12,
        learning_rate=1e-2,
        pooling="mean",
        monitor="val_micro_f1",
        early_stopping_patience=12,
    )
    result = train(config)
    printed = capsys.readouterr().out
    none, several = sum(not row for row in sets), sum(len(row) > 1 for row in sets)
    assert f"task: multilabel (3 labels in 'label', {several} of 300 rows have several, {none} have none)" in printed
    assert (result.metrics["task"], result.metrics["labels"]) == ("multilabel", ["bad", "good", "it"])
    predictions = pd.read_csv(tmp_path / "run" / "valid_predictions.csv", keep_default_na=False)
    labels = result.metrics["labels"]
    scores = predictions[[f"probability_{label}" for label in labels]].to_numpy()
    truth = np.array([[label in row.split("; ") for label in labels] for row in predictions["label"]])
    labelled = truth.any(axis=1)
    expected = {
        "examples": 60,
        "average_precision": average_precision_score(truth, scores, average="macro"),
        "label_ranking_average_precision": label_ranking_average_precision_score(truth[labelled], scores[labelled]),
    }
    valid = result.metrics["valid"]
    assert {name: valid[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert valid["micro_f1"] > 0.8
    assert result.metrics["threshold"].keys() == set(labels)
    thresholds = np.array(list(result.metrics["threshold"].values()))
    decided = ["; ".join(np.array(labels)[row >= thresholds]) for row in scores]
    assert predictions["predicted_label"].tolist() == [row.replace("; ", ";") for row in decided]
    given = serve(result.run_directory, predictions["text"].tolist())
    assert [label.decode() for label in given["label"]] == predictions["predicted_label"].tolist()
    np.testing.assert_allclose(given["probabilities"], scores, atol=1e-5)


def test_pairs_train_and_serve(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    """The label says whether both texts hold the same word: neither text alone tells."""
    random = np.random.default_rng(0)
    words = np.array(["good", "bad"])
    one, other = words[random.integers(0, 2, (2, 400))]
    frame = pd.DataFrame({"one": one, "other": other, "label": np.where(one == other, "same", "different")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    result = train(
        tiny_settings(
            tiny_paths,
            tmp_path,
            data=str(tmp_path / "t.csv"),
            text_column="one",
            text_pair_column="other",
            valid_split=0.2,
            epochs=12,
            learning_rate=1e-2,
            pooling="mean",
        )
    )
    assert result.metrics["valid"]["accuracy"] == 1.0
    signature = tf.saved_model.load(str(tmp_path / "run" / "model")).signatures["serving_default"]
    given = signature(text=tf.constant(["good", "bad", "good"]), text_pair=tf.constant(["good", "bad", "bad"]))
    assert given["label"].numpy().tolist() == [b"same", b"same", b"different"]


@pytest.mark.parametrize("encoder_mode", ["hub", "opened"])
def test_a_frozen_encoder_reads_each_text_once_however_many_epochs(
    tiny_paths: EncoderPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_mode: str
) -> None:
    rows_read = []

    def counted(tokens: Tokens, rows: np.ndarray) -> list[np.ndarray]:
        rows_read.append(len(rows))
        return pad(tokens, rows)

    monkeypatch.setattr("scoring.pad", counted)
    counts, losses = [], []
    for epochs in (1, 4):
        rows_read.clear()
        options = {"trainable": False, "encoder_mode": encoder_mode, "learning_rate": 1e-2, "epochs": epochs}
        result = train(tiny_settings(tiny_paths, tmp_path, run_name=f"{encoder_mode}{epochs}", **options))
        counts.append(sum(rows_read))
        losses.append(result.metrics["valid"]["loss"])
    assert counts[0] == counts[1] > 0
    assert losses[1] < losses[0]


def test_a_step_compiled_by_xla_learns_what_the_plain_one_learns(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable
) -> None:
    data = table(
        [(f"it is good {'good ' * (number % 7)}", "pos") for number in range(24)] + [("it was bad", "neg")] * 24
    )
    options = {"encoder_dropout": 0.0, "dropout": 0.0, "precision": "float32", "learning_rate": 1e-3, "data": data}
    plain, compiled = (
        train(tiny_settings(tiny_paths, tmp_path, **options, epochs=1, run_name=str(jit), jit_compile=jit)).metrics
        for jit in (False, True)
    )
    assert compiled["valid"]["loss"] == pytest.approx(plain["valid"]["loss"], abs=1e-4)


def test_training_starts_at_the_shares_of_the_labels(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"it is good {i}", "rare" if i % 20 == 0 else "common") for i in range(400)]
    result = train(tiny_settings(tiny_paths, tmp_path, data=table(rows), epochs=1))
    entropy = -(0.05 * np.log(0.05) + 0.95 * np.log(0.95))
    assert result.metrics["train"]["loss_at_start"] == pytest.approx(entropy, abs=0.02)  # without the bias: 0.69
    assert "step 0: loss 0." in capsys.readouterr().out


def test_an_average_precision_that_validation_does_not_have_cannot_be_monitored(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable
) -> None:
    rows = [(f"it is good {i}", "1" if i < 3 else "0") for i in range(300)]
    with pytest.raises(
        ConfigError, match=r"monitor=val_average_precision: .*no validation row is positive; use val_loss"
    ):
        train(tiny_settings(tiny_paths, tmp_path / "out", data=table(rows), monitor="val_average_precision"))


def test_a_weight_for_an_unknown_label_writes_no_run(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="class_weight: no label 'postive' in the training table: did you mean 'positive'"
    ):
        train(tiny_settings(tiny_paths, tmp_path / "out", class_weight={"postive": 2}))
    assert not (tmp_path / "out").exists()


def test_accumulated_steps_and_oversampled_rows_are_counted_as_what_they_are(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable
) -> None:
    rows = [(f"it is good {i}", "rare" if i % 10 == 0 else "common") for i in range(200)]
    result = train(
        tiny_settings(
            tiny_paths,
            tmp_path,
            data=table(rows),
            valid_split=0,
            epochs=1,
            batch_size=16,
            gradient_accumulation_steps=2,
            oversampling=0.5,
            class_weight={"rare": 4},
            learning_rate=1e-9,
        )
    )
    # The 20 rare rows are drawn 90 times in all and weigh 4: the bias says 360 to 180, and nothing is learnt beyond it.
    expected = -(360 * np.log(360 / 540) + 180 * np.log(180 / 540)) / 270
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["loss"].iloc[0] == pytest.approx(expected, abs=0.05)
    report = result.metrics["train"]
    assert report["examples"] == 200
    assert report["steps_run"] == 9  # 270 rows an epoch (180 and half as many), 32 a step
    assert report["examples_per_second"] == pytest.approx(270 / report["seconds"])


def test_a_second_run_into_the_first_is_refused_and_the_first_kept(trained: Result, tiny_paths: EncoderPaths) -> None:
    with pytest.raises(DataError, match=r"run directory .*run is not empty: choose another run_name"):
        train(tiny_settings(tiny_paths, trained.run_directory.parent))
    assert json.loads((trained.run_directory / "metrics.json").read_text()) == trained.metrics


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "absent.csv"}, DataError, "absent.csv: no such file"),
        ({"text_column": "txt"}, DataError, "no column 'txt': did you mean 'text'"),
        ({"encoder": "absent"}, DataError, "encoder=absent: neither a SavedModel"),
        ({"max_seq_length": 65}, ConfigError, "64 positions"),
        ({"learning_rate": 1e30}, HubtuneError, "training diverged: the weights are no longer finite"),
    ],
)
def test_a_mistake_writes_no_run(
    tiny_paths: EncoderPaths, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(tiny_settings(tiny_paths, tmp_path, **options))
    assert not (tmp_path / "run" / "model").exists()
    if "learning_rate" not in options:
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_the_training(
    tiny_paths: EncoderPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(DataError, match="a run needs about 20 MB and 1 MB are free: make room, or set output_dir"):
        train(tiny_settings(tiny_paths, tmp_path / "not" / "yet"))
    assert list(tmp_path.iterdir()) == []


def test_the_f1_of_the_positive_class_cannot_be_monitored_without_one(
    tiny_paths: EncoderPaths, tmp_path: Path, table: MakeTable
) -> None:
    rows = [(f"{label} {i}", label) for i in range(20) for label in "abc"]
    with pytest.raises(
        ConfigError, match="monitor=val_f1: it belongs to binary tasks, and this one is multiclass; use val_macro_f1"
    ):
        train(tiny_settings(tiny_paths, tmp_path / "out", data=table(rows), monitor="val_f1"))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "train.py", *arguments]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["--data", "absent.csv"], 1, "absent.csv: no such file"), (["--data", "x", "--epochs=0"], 2, "epochs='0'")],
)
def test_the_command_tells_a_mistake_in_one_line_without_a_traceback(
    arguments: list[str], code: int, message: str
) -> None:
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_where_a_mistake_was_found() -> None:
    arguments = command("--data", "x", "--epochs=0", "--debug")
    debugged = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert debugged.returncode != 0
    assert "Traceback" in debugged.stderr
    with pytest.raises(DataError, match="of the data"), runtime.mistakes_in_one_line(True, "nothing is kept"):
        raise DataError("of the data")
    with pytest.raises(SystemExit, match="1"), runtime.mistakes_in_one_line(False, "nothing is kept"):
        raise DataError("of the data")


def tiny_command(paths: EncoderPaths, output: Path, *options: str) -> list[str]:
    """The command that trains the tiny encoder on the bundled reviews into `<output>/run`."""
    where = [f"--data={SAMPLE}", f"--encoder={paths.encoder}", f"--output_dir={output}", "--run_name=run"]
    return command(*where, "--max_seq_length=64", *options)


def test_ctrl_c_keeps_what_is_trained(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    arguments = tiny_command(tiny_paths, tmp_path, "--epochs=5000", "--learning_rate=1e-3", "--wandb_mode=disabled")
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    assert process.stdout is not None
    seen = ""
    while "epoch 2/5000" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "Interrupted after" in rest
    assert "Traceback" not in rest
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 1 <= report["train"]["epochs_run"] < 5000
    assert report["train"]["interrupted"] is True
    assert f"the training was interrupted after {report['train']['steps_run']:,} of 95,000 steps" in report["notes"]
    assert serve(tmp_path / "run", ["it is good"])["label"].shape == (1,)


def test_who_is_not_logged_in_to_wandb_is_told_how_to_upload_and_asked_nothing(
    tiny_paths: EncoderPaths, tmp_path: Path
) -> None:
    arguments = tiny_command(tiny_paths, tmp_path, "--epochs=1", "--wandb_mode=auto")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB_") or name == "WANDB_CONFIG_DIR"
    }
    environment |= {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "netrc")}
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    script = tmp_path / "run" / "wandb" / "sync.sh"
    assert f"W&B: sh {script}" in done.stdout
    assert script.exists()
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in done.stdout
    assert f"Model: {tmp_path / 'run' / 'model'}\n" in done.stdout
    assert done.stderr == ""
    assert "\033" not in done.stdout
    scored = done.stdout.splitlines()[-1].removeprefix("Use the model: ").replace("your text", "it is good")
    answer = subprocess.run(scored, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split("\t")[-1] == "it is good\n"
    assert answer.stderr == ""


@pytest.mark.slow
def test_trainings_in_one_process_do_not_add_up_in_memory(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    sizes = []
    for trial in range(20):
        train(tiny_settings(tiny_paths, tmp_path, run_name=f"trial-{trial}", epochs=1, wandb_mode="offline"))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        sizes.append(pages * resource.getpagesize() / 1e6)
    assert sizes[-1] < sizes[4] + 50, sizes  # a model that is kept takes 65 MB
