"""docs/migration.md: the right side of its tables runs as it stands there, and old lines end as the left side says."""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tf_keras
from conftest import ROOT
from reference.checkpoints import write_checkpoint

from command_line import parse_command_line
from config import ConfigError
from spec import EncoderPaths

PAGE = ROOT / "docs" / "migration.md"
WORDS = ("good", "bad", "it is a", "not", "the worst", "very nice")


def read_tables() -> dict[str, list[list[str]]]:
    """Heading -> the rows of its table: [what you had, what you write now]."""
    tables: dict[str, list[list[str]]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = tables[line.removeprefix("## ")] = []
        elif line.startswith("| ") and line != "| what you had | what you write now |":
            rows.append(line.removeprefix("| ").removesuffix(" |").split(" | "))
    return tables


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


TABLES = read_tables()


# What a reader has: a folder with tables, and names in Python


def make_texts(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join([*random.choice(WORDS, 3), str(number)]) for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the tables and folders that the lines name."""
    monkeypatch.chdir(tmp_path)
    questions = pd.DataFrame({"question_text": make_texts(600), "target": [0, 1, 0] * 200})
    questions.head(30).to_csv("later.csv", index=False)
    with zipfile.ZipFile("quora_dataset_train.csv.zip", "w") as archive:
        archive.writestr("train.csv", questions.to_csv(index=False))
    tickets = pd.DataFrame({"body": make_texts(60), "team": ["billing", "login", "shipping"] * 20})
    tickets.to_csv("tickets.csv", index=False)
    for number, text in enumerate(make_texts(60)):
        part, label = ("train", "train", "test")[number % 3], ("neg", "pos")[number % 2]
        file = Path("aclImdb", part, label, f"{number}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    write_checkpoint("bert-uncased", tmp_path / "checkpoint")
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tiny_paths: EncoderPaths, folder: Path) -> None:
    """Whatever encoder is named, from wherever, is the tiny one; an address of a file gives that of the current folder."""

    def answer(handle: str, *revision: str | None) -> str:
        return tiny_paths.preprocessor if "preprocess" in handle else tiny_paths.encoder

    monkeypatch.setattr("encoders.default_encoder", lambda: tiny_paths.encoder)
    for library in ("_from_url", "_from_kaggle", "_from_hugging_face"):
        monkeypatch.setattr(f"downloads.{library}", answer)
    monkeypatch.setattr("model._refuse_too_long", lambda *given: None)  # it has 64 positions, and the texts are short
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: (folder / Path(url).name).open("rb"))


@pytest.fixture
def names() -> dict[str, Any]:
    def build_model(units: int) -> tf_keras.Model:
        hidden = tf_keras.layers.Dense(units, activation="relu", input_shape=(4,))
        return tf_keras.Sequential([hidden, tf_keras.layers.Dense(2)])

    labels = np.array(["neg", "pos"] * 30)
    return {
        "texts": make_texts(60),
        "labels": labels.tolist(),
        "build_model": build_model,
        "X": np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32),
        "y": (labels == "pos").astype(int),
    }


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `.venv/bin/python SCRIPT ...` in this process, where TensorFlow is loaded."""
    script, *arguments = shlex.split(line)[1:]
    monkeypatch.setattr("command_line.filter_native_log", lambda: None)
    monkeypatch.setattr("sys.argv", [script, *arguments])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("heading", TABLES)
def test_the_new_lines_of_a_table_run_from_top_to_bottom(
    heading: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "W&B" not in heading:
        monkeypatch.setenv("WANDB_MODE", "disabled")  # it takes seconds
    for _, now in TABLES[heading]:
        for line in code(now):
            if line.startswith(".venv/bin/python "):
                run_command(line, monkeypatch)
            else:
                exec(compile(line, f"{PAGE.name}: {line}", "exec"), names)


# Old lines

QUOTED = [
    (code(had)[0], code(today)[0])
    for rows in TABLES.values()
    for had, _, today in (row[0].partition("today") for row in rows)
    if today
]
KERAS_3 = """
import sys
import tensorflow as tf, tensorflow_hub as hub
from official.nlp import optimization

def of(function):
    try:
        function()
    except Exception as error:
        print(error)

ids = [tf.keras.layers.Input(shape=(8,), dtype=tf.int32) for _ in range(3)]
of(lambda: hub.KerasLayer(sys.argv[1], trainable=True)(ids))
model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
adamw = optimization.create_optimizer(3e-5, num_train_steps=10, num_warmup_steps=1, optimizer_type="adamw")
of(lambda: model.compile(optimizer=adamw))
of(lambda: model.save("./imdb_bert", include_optimizer=False))
"""


def test_old_imports_end_in_the_errors_that_are_quoted() -> None:
    imports = [(line, error) for line, error in QUOTED if line.startswith("from ")]
    here = [pair for pair in imports if importlib.util.find_spec(pair[0].split()[1].split(".")[0])]
    assert len(here) == 5
    for line, error in here:
        with pytest.raises(ImportError, match=re.escape(error)):
            exec(line, {})


def test_the_tutorials_lines_end_in_the_errors_that_are_quoted(tiny_encoder: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", KERAS_3, tiny_encoder]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    errors = {error for _, error in QUOTED if not error.startswith(("No module", "cannot import", "HTTP Error"))}
    assert len(errors) == 3
    assert [error for error in errors if error not in told] == []


def test_an_old_option_is_answered_by_the_new_one() -> None:
    option, answer = re.findall(r"`(--\w+)` is answered by\s`([^`]+)`", PAGE.read_text(encoding="utf-8"))[0]
    with pytest.raises(ConfigError, match=re.escape(answer)):
        parse_command_line(["--data", "tickets.csv", option, "32"])
