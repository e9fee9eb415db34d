"""Finds the rows of a table whose labels look wrong, for a review, and shows what putting them right buys.

python label_issues.py --data tickets.csv --label_column team --test_data test.csv
python label_issues.py --resume runs/tickets-issues-20261121-101500 --retrain
python label_issues.py --resume runs/tickets-issues-20261121-101500 --decisions tickets-decisions.csv --retrain
"""

import argparse
import dataclasses
import json
import shlex
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from command_line import before_tensorflow, options_parser, python, read_options
from config import Config, ConfigError, DataError, HubtuneError


def parse_arguments(arguments: list[str]) -> tuple[Config, argparse.Namespace]:
    """Reads the command line: train.py's options, which say what the table is and how the models are trained, and a few more.

    Raises:
        ConfigError: options that do not exist or do not go together.
        DataError: `--resume` names no directory of this command.
    """
    parser = options_parser(
        "label_issues.py",
        "Finds rows whose labels look wrong: each is judged by a model that was trained on others. Takes train.py's options; "
        "nothing goes to W&B. --resume goes on with an earlier call, and may have --test_data beside it.",
    )
    parser.add_argument("--folds", type=int, metavar="VALUE", help="parts of the rows; each takes a training [5]")
    parser.add_argument("--retrain", action="store_true", help="compare trainings on the raw and on the cleaned rows")
    parser.add_argument(
        "--decisions", metavar="FILE", help="what the review page exported; none: all suspects are dropped"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="VALUE", help="trainings of each kind for --retrain [3]"
    )
    config, given = read_options(parser, arguments, beside_resume="test_data")
    if given.folds is not None and (given.folds < 2 or config.resume is not None):
        raise ConfigError(f"--folds {given.folds}: should be 2 or more, and stays as it was beside --resume")
    if given.seeds < 1:
        raise ConfigError(f"--seeds {given.seeds}: should be 1 or more")
    if given.decisions and not given.retrain:
        raise ConfigError("--decisions goes with --retrain")
    if given.retrain and config.test_data is None:
        raise ConfigError("--retrain needs --test_data: rows whose labels you trust, on which both models are scored")
    for key in ("valid_data", "train_split", "run_name", *(() if config.early_stopping_patience else ("valid_split",))):
        if getattr(config, key) is not None:
            raise ConfigError(
                f"{key} has no meaning here: all rows of data are judged, into a folder of its own; leave it out"
            )
    return config, given


if __name__ == "__main__":
    CONFIG, GIVEN = before_tensorflow(parse_arguments)

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import numpy as np
import pandas as pd

from decision import plain_decision
from examples import Examples, note_empty_texts, read_examples, rows_where
from issue_finding import assign_folds, find_label_issues, issue_table, out_of_fold
from metrics import HEADLINE, score
from predict import one_line
from relabelling import (
    apply_verdicts,
    cleaned_frame,
    compare,
    drop_issues,
    labels_for,
    make_classifier,
)
from review_page import ReviewPage, read_decisions, write_review_page
from run_directory import claim_dated_directory, held, resumed_directory, write_atomically
from tasks import Task, decide_task, leave_unknown_labels_out
from text_inputs import Texts

__all__ = ["find_label_issues"]

_PLAN = "label_issues.json"
_FOLDS = 5
_SUSPICIOUS = 0.15  # share of suspects above which the model is the likelier culprit
_SHOWN = 10
_SHOWN_CHARACTERS = 90


def main(config: Config, given: argparse.Namespace) -> None:
    """Runs the command."""
    table = read_examples(config.data, config)
    task, reason = decide_task(table, config)
    test = None
    if config.test_data:
        decided = config.model_copy(update={"task": task.kind})
        test, notes = leave_unknown_labels_out(read_examples(config.test_data, decided, only_scored=True), task)
        test, seen = _leave_seen_out(test, table)
        for note in [*notes, *note_empty_texts(test), *seen]:
            print(f"note: {note}")
    print(f"{len(table):,} rows ({table.source})\ntask: {reason}", flush=True)
    directory, folds = _claim(config, given.folds or _FOLDS, table)
    with held(directory), warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"note: {message}", flush=True)
        try:
            issues = _find(config, folds, table, task, directory)
            if given.retrain:
                assert test is not None
                _retrain(config, given, table, task, issues, test, directory)
        except KeyboardInterrupt:
            print(f"\nInterrupted. Go on: {_command(directory, config, given, given.retrain)}", file=sys.stderr)
            raise SystemExit(130) from None
        if not given.retrain:
            print(f"Review them: open {directory / 'review.html'} in a browser; it exports your decisions as a file")
            print(f"See what dropping them buys: {_command(directory, config, given, retrain=True)}")


def _command(directory: Path, config: Config, given: argparse.Namespace, retrain: bool) -> str:
    """The call that goes on from here."""
    words = ["python", "label_issues.py", "--resume", str(directory)]
    if retrain:
        words += ["--retrain", "--seeds", str(given.seeds), "--test_data", config.test_data or "LABELLED.csv"]
        words += ["--decisions", given.decisions] if given.decisions else []
    return shlex.join(words)


def _leave_seen_out(test: Examples, table: Examples) -> tuple[Examples, list[str]]:
    """The test rows whose texts are not in the table, which a wrong label there would favour; and what there is to say."""
    known = set(table.inputs())
    unseen = [place for place, text in enumerate(test.inputs()) if text not in known]
    if len(unseen) == len(test):
        return test, []
    if not unseen:
        raise DataError(
            f"{test.source}: all its texts are in {table.source} too: give rows that no model is trained on"
        )
    seen = f"{len(test) - len(unseen):,} of {len(test):,} rows repeat texts of {table.source}: left out of the scores"
    return test.take(unseen), [f"{test.source}: {seen}"]


# The suspects


def _claim(config: Config, folds: int, table: Examples) -> tuple[Path, int]:
    """The directory of this call, a new one, or that of the call that goes on, and its number of folds."""
    plan = {"folds": folds, "sha256": table.fingerprint()}
    if config.resume is None:
        directory = claim_dated_directory(
            Path(config.output_dir).expanduser(), f"{Path(config.data).name.split('.')[0]}-issues"
        )
        write_atomically(directory / "config.yaml", config.to_yaml())
        write_atomically(directory / _PLAN, json.dumps(plan) + "\n")
        return directory, folds
    directory = resumed_directory(config.resume)
    try:
        earlier = json.loads((directory / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"resume={config.resume}: holds no {_PLAN}: name a directory that label_issues.py wrote"
        ) from None
    if earlier["sha256"] != plan["sha256"]:
        raise DataError(
            f"{table.source}: its rows are not those that {config.resume} began with: restore the table, or begin anew"
        )
    return directory, earlier["folds"]


def _find(config: Config, folds: int, table: Examples, task: Task, directory: Path) -> pd.DataFrame:
    """Judges all rows, or takes what is judged already; writes tables, page and scores."""
    targets, texts = task.targets(table.labels), Texts(table.texts, table.pairs)
    _look_at_rare(table, task, targets, folds)

    def say(number: int) -> None:
        rows = int((fold != number).sum())
        print(f"Fold {number + 1} of {folds}: training on {rows:,} rows, judging {len(fold) - rows:,}", flush=True)

    (directory / "folds").mkdir(exist_ok=True)
    classifier = make_classifier(config, task)
    names = np.array(task.labels, dtype=object)
    try:
        fold = assign_folds(texts.inputs(), targets, folds, config.seed)
        probabilities = out_of_fold(classifier, texts, labels_for(task, table), names, fold, directory / "folds", say)
    except HubtuneError:
        raise
    except ValueError as error:  # scikit-learn's kind
        raise DataError(f"{table.source}: {error}") from error
    issues = issue_table(texts, targets, task.labels, probabilities, table.rows, task.separator)
    _write(config, table, task, targets, probabilities, issues, directory)
    _tell(table, task, issues, directory)
    return issues


def _look_at_rare(table: Examples, task: Task, targets: np.ndarray, folds: int) -> None:
    """Refuses labels of one row, which no model that has not seen it can know, and names those of few."""
    counts = task.indicators(targets).sum(axis=0)
    rare = [f"{label!r} ({int(count)})" for label, count in zip(task.labels, counts, strict=True) if count < 2 * folds]
    for label, count in zip(task.labels, counts, strict=True):
        if count < 2:
            [row] = rows_where(table, lambda labels, wanted=label: wanted in labels)  # type: ignore[misc]
            raise DataError(f"{table.source}: label {label!r} has one row only ({row}): add rows, or leave it out")
    if rare:
        print(f"note: {table.source}: labels with few rows are judged badly: {', '.join(rare[:_SHOWN])}")


def _write(
    config: Config,
    table: Examples,
    task: Task,
    targets: np.ndarray,
    probabilities: np.ndarray,
    issues: pd.DataFrame,
    directory: Path,
) -> None:
    decision = plain_decision(task)
    scores = score(task, targets, probabilities, decision.decide(probabilities))
    print("out of fold: " + "  ".join(f"{name} {scores[name]:.4f}" for name in HEADLINE[task.kind] if name in scores))
    write_atomically(directory / "label_issues.csv", issues.to_csv(index=False))
    suspects = issues[issues["is_issue"]]
    suspects = suspects.drop(
        columns=["is_issue", *(name for name in ("repeats", "conflict") if not suspects[name].any())]
    )
    page = ReviewPage(
        config.data, table.fingerprint(), task.labels, task.kind == "multilabel", suspects, separator=task.separator
    )
    write_review_page(directory / "review.html", page)
    summary = {
        "rows": len(table),
        "issues": len(suspects),
        "task": task.kind,
        "labels": task.labels,
        "out_of_fold": scores,
    }
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _tell(table: Examples, task: Task, issues: pd.DataFrame, directory: Path) -> None:
    wrong = issues[issues["is_issue"]]
    print(f"{len(wrong):,} of {len(table):,} labels look wrong ({len(wrong) / len(table):.1%})")
    if len(wrong) > _SUSPICIOUS * len(table):
        print(
            "note: that many are rather the model's mistakes than the table's: train it better, or review before you drop"
        )
    if conflicts := int(issues["conflict"].sum()):
        print(f"{conflicts:,} rows have the text of another row and another label than it: column conflict")
    pairs = Counter(zip(wrong["given_label"], wrong["suggested_label"], strict=True))
    for (given, suggested), count in pairs.most_common(_SHOWN):
        print(f"  {count:>6,}  {given!r} -> {suggested!r}")
    print("The least trustworthy:" if len(wrong) else "The least trustworthy, none of which looks wrong:")
    for line in (wrong if len(wrong) else issues).head(_SHOWN).to_dict("records"):
        text = one_line(line["text"])
        text = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
        print(
            f"  row {line['row']:<6} {line['given_label']!r} -> {line['suggested_label']!r}  {line['quality']:.3f}  {text}"
        )
    print(f"All rows, worst first: {directory / 'label_issues.csv'}", flush=True)


# The retraining


def _retrain(
    config: Config,
    given: argparse.Namespace,
    table: Examples,
    task: Task,
    issues: pd.DataFrame,
    test: Examples,
    directory: Path,
) -> None:
    if given.decisions:
        verdicts = read_decisions(
            given.decisions,
            task.labels,
            table.fingerprint(),
            table.rows,
            multilabel=task.kind == "multilabel",
            separator=task.separator,
        )
        cleaned, done = apply_verdicts(table, verdicts, task)
    else:
        cleaned, done = drop_issues(table, issues)
    print(done)
    name = "reviewed" if given.decisions else "cleaned"
    file = _write_cleaned(cleaned_frame(cleaned, config, task), directory / name)
    if cleaned.fingerprint() == table.fingerprint():
        print("Nothing is changed, and there is nothing to compare")
        return
    seeds = [config.seed + number for number in range(given.seeds)]
    arms = {"raw": table, "cleaned": cleaned}
    compared = compare(config, task, arms, test, seeds, directory / "retrain", lambda line: print(line, flush=True))
    record: dict[str, Any] = {
        "cleaning": done,
        "epochs": config.epochs,
        "test_rows": len(test),
        **dataclasses.asdict(compared),
    }
    write_atomically(directory / f"comparison-{name}.json", json.dumps(record, indent=2) + "\n")
    print(f"{len(test):,} test rows, {config.epochs} epochs each, means of seeds {', '.join(map(str, seeds))}:")
    print(f"  {'':<12} {'raw':>8} {'cleaned':>8} {'gain':>8}  95 % interval of the gain, by test rows")
    for name, gain in compared.gains.items():
        low, high = compared.gain_intervals.get(name, [gain, gain])
        raw, after = (compared.scores[arm][name] for arm in ("raw", "cleaned"))
        print(f"  {name:<12} {raw:>8.4f} {after:>8.4f} {gain:>+8.4f}  {low:+.4f} to {high:+.4f}")
    options = directory / "config.yaml"
    print(f"Train on the cleaned rows: {python()} train.py --data {_quoted(file)} and the other options of {options}")


def _write_cleaned(frame: pd.DataFrame, path: Path) -> Path:
    if any(isinstance(value, list) for value in frame.iloc[0]):
        path = path.with_suffix(".jsonl")
        write_atomically(path, frame.to_json(orient="records", lines=True, force_ascii=False))
        return path
    path = path.with_suffix(".csv")
    write_atomically(path, frame.to_csv(index=False))
    return path


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


if __name__ == "__main__":
    with runtime.mistakes_in_one_line(GIVEN.debug, "nothing is judged yet"):
        main(CONFIG, GIVEN)
