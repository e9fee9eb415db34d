"""predict.py: a trained model on texts, lines and tables of any size."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import ROOT, TEXTS, build, real_data

import predict
from config import ConfigError, DataError
from decision import plain_decision
from export import export_classifier
from predict import TextClassifier, load_classifier, output_for, parse_arguments, predict_table, training_notes
from prediction_files import PredictionFile
from scoring import Scorer
from spec import EncoderPaths
from tables import read_table
from train import Result


@pytest.fixture(scope="module")
def classifier(trained: Result) -> TextClassifier:
    return load_classifier(trained.run_directory)


@pytest.fixture
def many_rows(tmp_path: Path) -> Path:
    """300 rows with what a real table holds: line breaks, quotes, emoji, empty texts, NA, and columns of its own."""
    odd = ["", "  ", "NA", 'she said "no"\r\nand left', "😀 it is good", "a,b", "good " * 200, "Zoë’s"]
    texts = [f"{odd[i % len(odd)]} {i}" if i % len(odd) > 1 else odd[i % len(odd)] for i in range(300)]
    frame = pd.DataFrame({"id": [f"{i:04}" for i in range(300)], "text": texts, "other": ["null", "1.0", ""] * 100})
    frame.to_csv(tmp_path / "many.csv", index=False)
    return tmp_path / "many.csv"


def served(run: Path, texts: list[str]) -> dict[str, np.ndarray]:
    signature = tf.saved_model.load(str(run / "model")).signatures["serving_default"]
    blocks = [signature(text=tf.constant(texts[i : i + 100])) for i in range(0, len(texts), 100)]
    return {name: np.concatenate([block[name].numpy() for block in blocks]) for name in blocks[0]}


def test_a_loaded_classifier_gives_what_the_saved_model_serves_on_5000_real_texts(
    trained: Result, classifier: TextClassifier
) -> None:
    texts = pd.read_csv(real_data("quora_test.csv"), keep_default_na=False)["question_text"].tolist()
    assert len(texts) == 5000
    given = served(trained.run_directory, texts)
    np.testing.assert_allclose(classifier.predict_proba(texts), given["probabilities"], atol=1e-6)
    assert classifier.predict(texts).tolist() == [label.decode() for label in given["label"]]
    assert len(set(classifier.predict(texts))) == 2


def test_bfloat16_gives_nearly_the_same_and_says_so(trained: Result, classifier: TextClassifier) -> None:
    texts = [f"{text} {number}" for number in range(50) for text in TEXTS]
    rounded = load_classifier(trained.run_directory, precision="bfloat16").predict_proba(texts)
    difference = np.abs(rounded - classifier.predict_proba(texts)).max()
    assert 1e-6 < difference < 0.02
    assert parse_arguments(["--model", "x", "--precision", "bfloat16", "text"]).precision == "bfloat16"


def test_a_precision_that_the_machine_has_not_is_refused(trained: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime._cpu_flags", lambda: set())
    with pytest.raises(
        ConfigError, match="^precision=bfloat16: this machine offers float32; choose one of them or auto$"
    ):
        load_classifier(trained.run_directory, precision="bfloat16")


def test_a_classifier_has_scikit_learns_shapes_and_labels(classifier: TextClassifier) -> None:
    assert classifier.classes_.tolist() == ["negative", "positive"]
    probabilities = classifier.predict_proba(TEXTS)
    assert probabilities.shape == (len(TEXTS), 2)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert classifier.predict_proba([]).shape == (0, 2)
    assert classifier.predict(pd.Series(TEXTS)).shape == (len(TEXTS),)
    many = classifier.predict_proba(TEXTS * 20)  # through the pipeline; a few texts go straight
    np.testing.assert_allclose(many[: len(TEXTS)], probabilities, atol=1e-6)


def test_texts_that_are_none_are_told_in_one_line(classifier: TextClassifier) -> None:
    for texts, message in [
        ("one text", "texts should be a list of strings, this is one string: put it into a list"),
        (["good", None], "text 1 is NoneType None, not a string"),
        (["\ud83d"], "text 0: holds half of a character"),
    ]:
        with pytest.raises(DataError, match=message):
            classifier.predict(texts)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the model takes one text a row, and no pairs"):
        classifier.predict(["good"], ["bad"])


def test_models_of_pairs_and_of_many_labels_load_as_what_they_are(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    model = build(tiny_paths, ("a", "b", "c"), "multilabel", text_pair_column="other")
    export_classifier(model, str(tmp_path / "model"), plain_decision(model.task), 64)
    loaded = load_classifier(tmp_path / "model")
    decided = loaded.predict(["it is good"] * 2, ["", "the worst"])
    assert decided.shape == (2, 3)
    assert decided.dtype == np.int64
    with pytest.raises(DataError, match=r"the model takes pairs of texts \(text_pair_column\)"):
        loaded.predict(["it is good"])
    with pytest.raises(DataError, match="2 texts and 1 second texts: there should be as many"):
        loaded.predict(["it", "is"], ["good"])


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "out.parquet"])
def test_a_scored_table_keeps_columns_and_order_beside_the_predictions(
    classifier: TextClassifier, many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ROWS", 64)
    tally = predict_table(classifier, str(many_rows), tmp_path / name, "text", None)
    before, after = read_table(str(many_rows)), read_table(str(tmp_path / name))
    assert list(after.columns) == [
        *before.columns,
        "predicted_label",
        "probability",
        "probability_negative",
        "probability_positive",
    ]
    pd.testing.assert_frame_equal(after[before.columns].astype(object), before.astype(object))
    expected = classifier.predict_proba(before["text"].tolist())
    np.testing.assert_allclose(after["probability_positive"].astype(np.float32), expected[:, 1], atol=1e-6)
    assert after["predicted_label"].tolist() == classifier.predict(before["text"].tolist()).tolist()
    assert (tally.rows, tally.empty, tally.cut) == (300, 76, 37)


def test_an_interrupted_table_goes_on_where_it_stopped(
    classifier: TextClassifier, many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ROWS", 50)
    predict_table(classifier, str(many_rows), tmp_path / "whole.csv", "text", None)
    scored: list[int] = []
    most, logits = 3, Scorer.logits

    def counted(*arguments: object) -> np.ndarray:
        if len(scored) == most:
            raise KeyboardInterrupt
        result = logits(*arguments)  # type: ignore[arg-type]
        scored.append(len(result))
        return result

    monkeypatch.setattr(Scorer, "logits", counted)
    with pytest.raises(KeyboardInterrupt):
        predict_table(classifier, str(many_rows), tmp_path / "out.csv", "text", None)
    assert not (tmp_path / "out.csv").exists()
    most = 6  # chunks: three before, three after
    predict_table(classifier, str(many_rows), tmp_path / "out.csv", "text", None)
    assert len(scored) == most
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "out.csv.partial").exists()


def test_a_mistake_at_the_end_of_a_table_is_told_before_anything_is_scored(
    classifier: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ROWS", 10)
    (tmp_path / "t.jsonl").write_text('{"text": "good"}\n' * 25 + '{"text": 5}\n')
    monkeypatch.setattr(Scorer, "logits", lambda *arguments: pytest.fail("scored"))
    with pytest.raises(DataError, match=r"t.jsonl: row 26, column 'text': holds int 5, not a text"):
        predict_table(classifier, str(tmp_path / "t.jsonl"), tmp_path / "out.csv", "text", None)
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("body", None), "no column 'body': the table has 'id', 'text', 'other'; set text_column"),
        (("texts", None), "no column 'texts': did you mean 'text'?"),
        (("text", "other"), "text_pair_column=other: the model takes one text a row"),
    ],
)
def test_wrong_columns_are_told(
    classifier: TextClassifier, many_rows: Path, tmp_path: Path, columns: tuple[str, str | None], message: str
) -> None:
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        predict_table(classifier, str(many_rows), tmp_path / "out.csv", *columns)
    assert not (tmp_path / "out.csv.partial").exists()


def test_rows_of_jsonl_may_differ_in_their_keys_from_chunk_to_chunk(
    classifier: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ROWS", 2)
    lines = [
        '{"id": 1, "text": "good"}',
        '{"id": 2, "text": "bad"}',
        '{"id": 3}',
        '{"id": 4}',
        '{"late": "x", "text": "it"}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    tally = predict_table(classifier, str(tmp_path / "t.jsonl"), tmp_path / "out.csv", "text", None)
    assert (tally.rows, tally.empty) == (5, 2)
    scored = pd.read_csv(tmp_path / "out.csv")
    assert list(scored.columns[:3]) == ["id", "text", "late"]
    expected = classifier.predict(["good", "bad", "", "", "it"]).tolist()
    assert scored["predicted_label"].tolist() == expected


def test_a_full_disk_is_told_with_where_the_rows_are_that_are_done(
    trained: Result, many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ROWS", 50)
    write = PredictionFile.write
    written: list[int] = []

    def full(file: PredictionFile, frame: pd.DataFrame) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, frame)
        written.append(len(frame))

    monkeypatch.setattr(PredictionFile, "write", full)
    out = tmp_path / "out.csv"
    arguments = ["--model", str(trained.run_directory), "--data", str(many_rows), "--output", str(out)]
    with pytest.raises(
        DataError, match=f"No space left on device: what is done lies in {out}.partial; the same command"
    ):
        predict.main(parse_arguments(arguments))


def test_a_pipe_is_refused_instead_of_waited_for(classifier: TextClassifier, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe.csv: a pipe, which can be read once only: save it as a file"):
        predict_table(classifier, str(tmp_path / "pipe.csv"), tmp_path / "out.csv", "text", None)


def test_a_table_that_is_not_there_leaves_nothing_behind(classifier: TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.csv: no such file"):
        predict_table(classifier, str(tmp_path / "absent.csv"), tmp_path / "out.csv", "text", None)
    assert list(tmp_path.iterdir()) == []


def test_a_table_with_a_prediction_column_of_its_own_is_refused(classifier: TextClassifier, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,probability\ngood,1\n")
    with pytest.raises(DataError, match="column 'probability' has the name of a prediction column; rename it"):
        predict_table(classifier, str(tmp_path / "t.csv"), tmp_path / "out.csv", "text", None)


# Finding and loading models


def test_a_run_without_a_model_says_why(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: x\n")
    with pytest.raises(
        DataError, match="a run without a model: its training was interrupted, failed, or still goes on"
    ):
        load_classifier(tmp_path / "run")
    with pytest.raises(DataError, match=r"runn: no such folder: did you mean .*run\?"):
        load_classifier(tmp_path / "runn")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a run directory nor a SavedModel"):
        load_classifier(tmp_path / "empty")


def test_a_model_of_an_older_version_or_of_others_is_refused_with_a_remedy(
    trained: Result, tiny_encoder: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="a SavedModel, but not one of hubtune's classifiers"):
        load_classifier(tiny_encoder)
    older = tf.Module()
    older.labels, older.threshold = tf.Variable(["a", "b"]), tf.Variable(0.5)
    older.serve = tf.function(lambda: tf.constant(0), input_signature=[])
    tf.saved_model.save(older, str(tmp_path / "older"))
    with pytest.raises(
        DataError, match=r"saved by an older version of hubtune \(format 1, this one reads 2\): train again"
    ):
        load_classifier(tmp_path / "older")


def test_a_model_with_a_part_missing_is_told_from_one_that_is_none(trained: Result, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(trained.run_directory / "model", tmp_path / "broken"))
    next((broken / "variables").glob("*.data-*")).unlink()
    with pytest.raises(DataError, match=r"broken: the model is incomplete \(.*\): copy it again, or train again"):
        load_classifier(broken)
    (broken / "saved_model.pb").write_bytes(b"half")
    with pytest.raises(DataError, match="the model is incomplete"):
        load_classifier(broken)


def test_a_model_whose_training_was_interrupted_is_named_as_such(trained: Result, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run_directory, tmp_path / "run"))
    assert training_notes(run / "model") == []
    report = json.loads((run / "metrics.json").read_text())
    report["train"] |= {"interrupted": True, "steps_run": 1234}
    (run / "metrics.json").write_text(json.dumps(report))
    interrupted = f"the training of {run} was interrupted after 1,234 steps"
    assert training_notes(run / "model") == [interrupted]
    report["data"]["tables"] = {}  # as where the rows came from Python
    (run / "metrics.json").write_text(json.dumps(report))
    assert training_notes(run / "model", "another table") == [interrupted]


def test_a_model_that_was_moved_away_from_its_run_still_scores(trained: Result, tmp_path: Path) -> None:
    moved = shutil.copytree(trained.run_directory / "model", tmp_path / "elsewhere")
    assert load_classifier(moved).predict(TEXTS).shape == (len(TEXTS),)


# The command


def run_command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "predict.py", *arguments], cwd=ROOT, input=stdin, capture_output=True, check=False
    )


def test_lines_of_standard_input_are_answered_in_order(trained: Result, classifier: TextClassifier) -> None:
    texts = ["it is good", "", "the worst,\tand not cheap", "😀"]
    done = run_command("--model", str(trained.run_directory), stdin="\r\n".join(texts).encode())
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [line[0] for line in lines] == classifier.predict(texts).tolist()
    assert [line[2] for line in lines] == ["it is good", "", "the worst, and not cheap", "😀"]
    probabilities = classifier.predict_proba(texts)
    chosen = classifier.decision.decide(probabilities)
    assert [float(line[1]) for line in lines] == pytest.approx(probabilities[range(4), chosen].tolist(), abs=1e-4)
    assert "note: 1 empty, scored as such" in done.stderr.decode()


def test_the_command_scores_a_table_with_the_columns_of_the_training(trained: Result, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.run_directory, tmp_path / "run"))
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("text_column: text\n", "text_column: body\n"), encoding="utf-8")
    with gzip.open(tmp_path / "new.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"body": text, "n": i}) + "\n" for i, text in enumerate(TEXTS))
    arguments = ["--data", str(tmp_path / "new.jsonl.gz"), "--output", str(tmp_path / "out.parquet")]
    done = run_command("--model", str(run), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert "4 rows; 1 with an empty text, scored as such\nDone in 0:0" in done.stderr.decode()
    assert pd.read_parquet(tmp_path / "out.parquet")["n"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text"], "the following arguments are required: --model"),
        (["--model", "m", "--output", "x.csv"], "--output, --text_column and --text_pair_column go with --data"),
        (["--model", "m", "--data", "x.csv", "text"], "give either --data or texts, not both; what is 'text'?"),
        (["--model", "m", "--dta", "x.csv"], "unrecognized arguments: --dta"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(arguments)
    assert message in str(caught.value)


def test_mistakes_are_one_line_and_an_exit_code(trained: Result) -> None:
    model = str(trained.run_directory)
    for arguments, stdin, code, message in [
        (["--model", model], b"good\n\xff\n", 1, "standard input: line 2 is not UTF-8"),
        (["--model", model, "--dta", "x"], b"", 2, "unrecognized arguments: --dta"),
    ]:
        done = run_command(*arguments, stdin=stdin)
        assert done.returncode == code
        assert f"predict.py: {message}" in done.stderr.decode()
        assert b"Traceback" not in done.stderr


def test_help_needs_no_tensorflow() -> None:
    for script in ("predict.py", "evaluation.py"):
        program = (
            f"import runpy, sys\nsys.argv = [{script!r}, '--help']\ntry:\n    runpy.run_path(sys.argv[0], run_name="
        )
        program += "'__main__')\nexcept SystemExit:\n    pass\nassert 'tensorflow' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "--model" in done.stdout


def test_predictions_lie_in_the_folder_one_is_in_unless_told_otherwise() -> None:
    names = {
        "a/new.csv.gz": "new-predictions.csv.gz",
        "new.tsv": "new-predictions.csv",
        "data.2024.csv": "data.2024-predictions.csv",
        "new.JSONL.zip": "new-predictions.jsonl",
        "https://host/new.parquet?x=1": "new-predictions.parquet",
        "new.parquet.gz": "new-predictions.parquet",
    }
    assert {data: str(output_for(data)) for data in names} == names
