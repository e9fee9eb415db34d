"""Scores texts with a trained model: arguments, the lines of standard input, or a table of any size.

python predict.py --model runs/tickets-20261120-101500 "The invoice is wrong again"
python predict.py --model runs/tickets-20261120-101500 < lines.txt
python predict.py --model runs/tickets-20261120-101500 --data new.csv.gz --output scored.csv.gz
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from command_line import CommandParser, before_tensorflow
from config import ConfigError, DataError, read_yaml

_PRECISIONS = ("float32", "bfloat16")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: options that do not exist or do not go together.
    """
    parser = CommandParser(prog="predict.py", description="Scores texts with a trained model.", allow_abbrev=False)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to score; none: the lines of standard input")
    parser.add_argument(
        "--model",
        required=True,
        help="run directory, SavedModel that train.py wrote, or wandb:entity/project/name:alias",
    )
    parser.add_argument("--data", metavar="FILE", help="table to score: CSV, TSV, JSONL, Parquet, plain or compressed")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="table with the input's columns and the predictions: .csv, .jsonl or .parquet, the first two also as .gz "
        "[the input's name with -predictions, in this folder]",
    )
    parser.add_argument("--text_column", help="column with the texts [as in training]")
    parser.add_argument("--text_pair_column", help="column with the second texts [as in training]")
    parser.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="float32",
        help="float32: the numbers that the exported model gives; bfloat16: half as fast again or more on a CPU that has it, "
        "probabilities differ in the third decimal [float32]",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(arguments)
    if given.data is None and (given.output or given.text_column or given.text_pair_column):
        raise ConfigError("--output, --text_column and --text_pair_column go with --data")
    if given.data is not None and given.texts:
        raise ConfigError(f"give either --data or texts, not both; what is {given.texts[0]!r}?")
    return given


if __name__ == "__main__":
    GIVEN = before_tensorflow(parse_arguments)

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)

from data import Tokens, pack, tokenize
from decision import Decision, predictions_table
from downloads import download
from examples import encodable, read_texts, refuse_missing_column, refuse_prediction_columns
from prediction_files import PredictionFile
from scoring import FORMAT, Scorer
from table_sources import nearest_file
from tables import read_chunks
from tasks import Task

_CHUNK_ROWS = 4096  # are lost at most when a job is interrupted
_LINES = 1024
_FEW_TEXTS = 64  # for which setting up a pipeline takes longer than they do


class TextClassifier:
    """A trained classifier as it was saved, with scikit-learn's names for what it does. N texts, K labels.

    Attributes:
        classes_: the labels in the order of the probabilities, an array of K strings.
        precision: of the arithmetic, float32 or bfloat16.
    """

    def __init__(self, directory: Path, precision: str = "float32") -> None:
        self.directory, self.precision = directory, precision
        runtime.set_up_devices()
        if precision != "float32":
            runtime.choose_precision(precision, opened=False)
        try:
            with runtime.quiet():
                saved = tf.saved_model.load(str(directory))
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{directory}: the model is incomplete ({reason}): copy it again, or train again") from None
        _refuse_other_format(directory, saved)
        record = {name: getattr(saved, name).numpy() for name in ("labels", "kind", "separator", "inputs")}
        labels = [label.decode() for label in record["labels"]]
        self.task = Task(record["kind"].decode(), labels, record["separator"].decode())
        self.decision = Decision(self.task, saved.temperature.numpy(), saved.threshold.numpy())
        self.max_seq_length = int(saved.max_seq_length)
        self.takes_pairs = len(record["inputs"]) > 1
        self.classes_ = np.array(labels)
        self._saved = saved  # its functions hold its variables by weak references alone
        self._scorer = Scorer(saved.logits, self.task.num_logits, precision)
        self._pack = runtime.traced_once(  # called plainly, the preprocessor is traced for every number of tokens
            lambda *columns: pack(saved.preprocessor, list(columns), self.max_seq_length),
            [tf.TensorSpec([None], tf.string)] * len(record["inputs"]),
        )

    def predict_proba(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> np.ndarray:
        """Calibrated probabilities, float32 [N, K]; `pairs` are the second texts of a model that was trained on pairs.

        Raises:
            DataError: something in `texts` or `pairs` is no string, or half of a character, or there should be pairs, or none.
        """
        return self.score(texts, pairs)[0]

    def score(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> tuple[np.ndarray, int]:
        """What `predict_proba` gives, and how many of the texts, or pairs, were cut to `max_seq_length`."""
        segments = self._segments(texts, pairs)
        if 0 < len(segments[0]) <= _FEW_TEXTS:
            columns = [tf.constant([text.encode() for text in segment]) for segment in segments]
            inputs, lengths = self._pack(*columns)
            num_cut = np.count_nonzero(lengths.numpy() > self.max_seq_length)
            return self.decision.probabilities(self._scorer.logits_of_batch(inputs)), int(num_cut)
        tokens = self.tokenize(*segments)
        return self.decision.probabilities(self.logits(tokens)), tokens.num_cut

    def predict(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> np.ndarray:
        """Labels, an array of N strings; for multi-label models 0 and 1, int64 [N, K], as scikit-learn has it.

        Raises:
            DataError: as `predict_proba`.
        """
        decided = self.decision.decide(self.predict_proba(texts, pairs))
        return decided.astype(np.int64) if self.task.kind == "multilabel" else self.classes_[decided]

    def tokenize(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> Tokens:
        """Token ids of texts, or of pairs of them."""
        segments = self._segments(texts, pairs)
        return tokenize(segments[0], self._saved.preprocessor, self.max_seq_length, *segments[1:])

    def _segments(self, texts: Iterable[str], pairs: Iterable[str] | None) -> list[list[str]]:
        """The texts, and the second ones if there are such, checked."""
        if (pairs is not None) != self.takes_pairs:
            raise DataError(
                f"the model takes {'pairs of texts (text_pair_column)' if self.takes_pairs else 'one text a row, and no pairs'}"
            )
        segments = [_checked(each) for each in (texts, pairs) if each is not None]
        if len({len(each) for each in segments}) > 1:
            raise DataError(
                f"{len(segments[0]):,} texts and {len(segments[1]):,} second texts: there should be as many"
            )
        return segments

    def logits(self, tokens: Tokens, on_batch: Callable[[int], None] = lambda rows: None) -> np.ndarray:
        """Logits before calibration, float32 [N, 1] in binary tasks, else [N, K]; `on_batch` is told the rows of each batch."""
        return self._scorer.logits(tokens, on_batch)


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str | bytes):
        raise DataError("texts should be a list of strings, this is one string: put it into a list")
    for place, text in enumerate(texts := list(texts)):
        if not isinstance(text, str):
            raise DataError(f"text {place} is {type(text).__name__} {text!r}, not a string")
        encodable(text, f"text {place}")
    return texts


def load_classifier(model: str | Path, precision: Literal["float32", "bfloat16"] = "float32") -> TextClassifier:
    """Loads a classifier from a run directory, from the SavedModel in it, or from W&B: "wandb:entity/project/name:alias".

    Args:
        model: the directory or name.
        precision: float32 gives the numbers of the exported model; bfloat16 is faster on a CPU that has it.

    Raises:
        DataError: there is none, or another version of hubtune wrote it.
        ConfigError: this machine has no such arithmetic.
    """
    return TextClassifier(find_model(model), precision)


def find_model(model: str | Path) -> Path:
    """The SavedModel of a run directory or of a model that W&B keeps, or the one that is named.

    Raises:
        DataError: there is none, or it does not come.
    """
    if str(model).startswith("wandb:"):
        model = download("model", str(model))
    directory = Path(model).expanduser()
    for candidate in (directory, directory / "model"):
        if (candidate / "saved_model.pb").exists():
            return candidate
    if (directory / "config.yaml").exists():
        raise DataError(f"{model}: a run without a model: its training was interrupted, failed, or still goes on")
    if directory.exists():
        raise DataError(f"{model}: neither a run directory nor a SavedModel")
    raise DataError(f"{model}: no such folder{nearest_file(str(directory))}")


def _refuse_other_format(directory: Path, saved: Any) -> None:
    if not hasattr(saved, "labels"):
        raise DataError(f"{directory}: a SavedModel, but not one of hubtune's classifiers")
    found = int(saved.format) if hasattr(saved, "format") else 1
    if found != FORMAT:
        age = "an older" if found < FORMAT else "a newer"
        raise DataError(
            f"{directory}: saved by {age} version of hubtune (format {found}, this one reads {FORMAT}): train again, or use that "
            "version; TensorFlow's serving of it works as before"
        )


def run_settings(model: Path) -> dict[str, Any]:
    """The options that a SavedModel was trained with; empty for one outside a run directory."""
    config = model.parent / "config.yaml"
    return read_yaml(str(config)) if config.exists() else {}


def training_notes(model: Path, scored: str | None = None) -> list[str]:
    """What whoever uses a SavedModel should hear of how it was trained: that it was interrupted, or that the rows to be scored,
    by their `Examples.fingerprint`, are those of its training."""
    try:
        report = json.loads((model.parent / "metrics.json").read_text(encoding="utf-8"))
        trained, tables = report["train"], report["data"]["tables"]
    except (OSError, ValueError, KeyError):  # a SavedModel outside a run
        return []
    notes = []
    trained_on = next(iter(tables.values()), None)  # none where the rows came from Python
    if trained_on is not None and trained_on["sha256"] == scored:
        notes.append("the model was trained on these rows, or most of them: its scores on them flatter it")
    if trained["interrupted"]:
        notes.append(f"the training of {model.parent} was interrupted after {trained['steps_run']:,} steps")
    return notes


# Tables


@dataclass
class Tally:
    """What there is to say of the rows of a table."""

    rows: int = 0
    empty: int = 0
    cut: int = 0


def predict_table(
    classifier: TextClassifier, data: str, output: Path, text_column: str, text_pair_column: str | None
) -> Tally:
    """Scores a table chunk by chunk into `output`, the predictions beside the table's own columns and in its order.

    A first pass checks all rows. After an interruption the same call goes on where it stopped, from what lies in
    `<output>.partial`.

    Raises:
        DataError: a column is missing, a cell holds no text, `output` exists, or the table is broken.
    """
    if bool(text_pair_column) != classifier.takes_pairs:
        wanted = "pairs of texts: name the column of the second ones" if classifier.takes_pairs else "one text a row"
        raise DataError(f"text_pair_column={text_pair_column}: the model takes {wanted}")
    columns = {"text_column": text_column}
    if text_pair_column:
        columns["text_pair_column"] = text_pair_column

    with PredictionFile(output, _job(classifier, data, columns)) as file:
        tally, header = _check_table(classifier, data, columns)
        progress = RowProgress(file.rows_done, tally.rows)
        for frame in read_chunks(data, _CHUNK_ROWS, skip=file.rows_done):
            frame = frame.reindex(columns=header)
            tokens = classifier.tokenize(*(read_texts(data, frame, column, key) for key, column in columns.items()))
            tally.cut += tokens.num_cut
            probabilities = classifier.decision.probabilities(classifier.logits(tokens, progress.add))
            scored = predictions_table(classifier.decision, probabilities).set_index(frame.index)
            file.write(pd.concat([frame, scored], axis=1))
        progress.end()
        file.finish()
    return tally


def _check_table(classifier: TextClassifier, data: str, columns: dict[str, str]) -> tuple[Tally, list[str]]:
    """Reads all rows of a table and checks their texts; counts them and gives the table's columns, of JSONL those of all rows."""
    tally = Tally()
    header: dict[str, None] = {}  # in the order of their first row
    for frame in read_chunks(data, _CHUNK_ROWS):
        refuse_prediction_columns(data, frame.columns, classifier.task.labels)
        header |= dict.fromkeys(frame.columns)
        for place, (key, column) in enumerate(columns.items()):
            texts = read_texts(data, frame, column, key) if column in frame else [""] * len(frame)
            tally.empty += sum(not text.strip() for text in texts) if place == 0 else 0
        tally.rows += len(frame)
    for key, column in columns.items():
        refuse_missing_column(data, header, column, key)
    return tally, list(header)


def _job(classifier: TextClassifier, data: str, columns: dict[str, str]) -> dict[str, Any]:
    """What an interrupted job must have in common with the one that goes on with it."""
    job: dict[str, Any] = {"data": data, **columns}
    path = Path(data).expanduser().resolve()
    if "://" not in data and path.exists():
        if not path.is_file() and not path.is_dir():
            raise DataError(
                f"{data}: a pipe, which can be read once only: save it as a file, or give lines of text to predict.py"
            )
        job |= {"data": str(path), "size": path.stat().st_size, "modified": path.stat().st_mtime_ns}
    weights = (classifier.directory / "variables" / "variables.index").read_bytes()  # holds checksums of them
    return job | {"model": hashlib.sha256(weights).hexdigest(), "precision": classifier.precision}


def output_for(data: str) -> Path:
    """Where predictions go if nothing is said: "a/new.csv.gz" -> "new-predictions.csv.gz" in the folder one is in."""
    path = Path(data.split("?")[0] if "://" in data else data)
    packed = path.suffix.lower() if path.suffix.lower() in (".gz", ".bz2", ".xz", ".zip") else ""
    plain = Path(path.stem if packed else path.name)
    kind = plain.suffix.lower() if plain.suffix.lower() in (".jsonl", ".ndjson", ".parquet") else ".csv"
    return Path(f"{plain.stem}-predictions{kind}{'.gz' if packed == '.gz' and kind != '.parquet' else ''}")


class RowProgress:
    """Rows done, rows a second and the time left on standard error: a line that moves on a terminal, in a log one for every
    twentieth of the rows."""

    def __init__(self, done: int, total: int) -> None:
        self._first = self._done = done
        self._total = total
        self._started = time.monotonic()

    def add(self, rows: int) -> None:
        """Tells that so many more rows are scored."""
        before, self._done = self._done, self._done + rows
        if sys.stderr.isatty():
            print(f"\r\033[K{self._line()}", end="", file=sys.stderr, flush=True)
        elif self._done * 20 // self._total > before * 20 // self._total:
            print(self._line(), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Ends the line."""
        if sys.stderr.isatty():
            print(f"\r\033[K{self._line()}", file=sys.stderr)

    def _line(self) -> str:
        rate = (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)
        left = runtime.clock((self._total - self._done) / rate) if rate else "?"
        return f"{self._done:,} of {self._total:,} rows  {rate:,.0f} rows a second  about {left} left"


# The command


def main(given: argparse.Namespace) -> None:
    """Runs the command."""
    model = find_model(given.model)
    for note in training_notes(model):
        print(f"note: {note}", file=sys.stderr)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that is not UTF-8
    if given.data is None and not given.texts and sys.stdin.isatty():
        print("One text a line; Ctrl-D ends", file=sys.stderr)
    classifier = TextClassifier(model, given.precision)
    if given.data is not None:
        _score_table(classifier, given)
    elif classifier.takes_pairs:
        raise ConfigError("the model takes pairs of texts: put them into a table and give it as --data")
    else:
        try:
            _score_lines(classifier, given.texts or _standard_input())
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes out the rest at its end
            raise SystemExit(1) from None


def _score_table(classifier: TextClassifier, given: argparse.Namespace) -> None:
    trained = run_settings(classifier.directory)
    columns = [getattr(given, key) or trained.get(key) for key in ("text_column", "text_pair_column")]
    output = Path(given.output).expanduser() if given.output else output_for(given.data)
    started = time.monotonic()
    try:
        tally = predict_table(classifier, given.data, output, columns[0] or "text", columns[1])
    except KeyboardInterrupt:
        print(f"\nInterrupted: {_what_is_done(output)}", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:  # a full disk, say
        raise DataError(f"{error.filename or output}: {error.strerror or error}: {_what_is_done(output)}") from error
    notes = [f"{tally.empty:,} with an empty text, scored as such"] if tally.empty else []
    notes += [f"{tally.cut:,} cut to {classifier.max_seq_length} tokens"] if tally.cut else []
    print(f"{tally.rows:,} rows" + "".join(f"; {note}" for note in notes), file=sys.stderr)
    print(f"Done in {runtime.clock(time.monotonic() - started)}. Predictions: {output}", file=sys.stderr)


def _what_is_done(output: Path) -> str:
    if not os.path.exists(f"{output}.partial"):
        return "no rows are scored yet"
    return f"what is done lies in {output}.partial; the same command goes on from there"


def _score_lines(classifier: TextClassifier, texts: Iterable[str]) -> None:
    """Prints label, probability and text, separated by tabs, a line for each text."""
    lines, tally = iter(texts), Tally()
    at_once = 1 if sys.stdin.isatty() else _LINES  # who types wants the answer at once
    while chunk := list(itertools.islice(lines, at_once)):
        probabilities, num_cut = classifier.score(chunk)
        scored = predictions_table(classifier.decision, probabilities)
        for label, probability, text in zip(scored["predicted_label"], scored["probability"], chunk, strict=True):
            print(f"{one_line(label)}\t{probability:.4f}\t{one_line(text)}")
        sys.stdout.flush()
        tally.empty += sum(not text.strip() for text in chunk)
        tally.cut += num_cut
    if tally.empty:
        print(f"note: {tally.empty:,} empty, scored as such", file=sys.stderr)
    if tally.cut:
        print(f"note: {tally.cut:,} cut to {classifier.max_seq_length} tokens", file=sys.stderr)


def one_line(text: str) -> str:
    """Text for a terminal: blanks and control characters become single blanks."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _standard_input() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError(f"standard input: line {number} is not UTF-8") from None


if __name__ == "__main__":
    with runtime.mistakes_in_one_line(GIVEN.debug, "nothing more is scored"):
        main(GIVEN)
