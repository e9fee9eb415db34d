"""What a model is worth on rows whose labels are known: scores with intervals, plots and a report.

    python evaluation.py --model runs/tickets-20261120-101500 --data labelled.csv

`train.py` does the same for its validation and test rows.
"""

import argparse
import contextlib
import functools
import json
from pathlib import Path
from typing import Any

from command_line import CommandParser, before_tensorflow
from config import Config, make_config

_COLUMNS = ("text_column", "text_pair_column", "label_column", "label_separator")
_WIDEST = 30  # characters of a label on the screen


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: an option that does not exist, or one that is missing.
    """
    parser = CommandParser(
        prog="evaluation.py", description="Scores a trained model on a table with labels.", allow_abbrev=False
    )
    parser.add_argument(
        "--model",
        required=True,
        help="run directory, SavedModel that train.py wrote, or wandb:entity/project/name:alias",
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="table with texts and labels")
    for key in _COLUMNS:
        parser.add_argument(f"--{key}", help=f"{Config.model_fields[key].description} [as in training]")
    parser.add_argument(
        "--output_dir", metavar="DIR", help="folder for the results [evaluations in the run directory, or here]"
    )
    parser.add_argument("--wandb_mode", help="auto, online, offline or disabled [as in training]")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    GIVEN = before_tensorflow(parse_arguments)

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import pandas as pd

import artifacts
import dashboard
from data import Tokens
from decision import predictions_table
from downloads import split_wandb
from examples import Examples, note_empty_texts, read_examples, refuse_prediction_columns
from looks import draw_data, draw_scores
from metrics import HEADLINE
from predict import RowProgress, TextClassifier, load_classifier, one_line, run_settings, training_notes
from prediction_files import as_csv
from report import Facts, write_report
from results import score_unseen
from run_directory import claim_dated_directory, write_atomically
from tasks import Kind, leave_unknown_labels_out
from tracking import NoRun, choose_mode, start_run


def write_results(directory: Path, facts: Facts) -> None:
    """Writes what there is to look at into a run's or an evaluation's folder: predictions, plots/ and report.html."""
    for name, part in facts.scored.items():
        predicted = predictions_table(facts.decision, facts.decision.probabilities(part.logits))
        table = pd.concat([part.examples.frame.reset_index(drop=True), predicted], axis=1)
        write_atomically(directory / f"{name}_predictions.csv", as_csv(table))
    (directory / "plots").mkdir(exist_ok=True)
    for plot in facts.plots:
        (directory / "plots" / f"{plot.name}.png").write_bytes(plot.png)
    write_report(directory / "report.html", facts)


def evaluate(
    model: str, data: str, output_dir: str | None = None, wandb_mode: str | None = None, **columns: str | None
) -> tuple[Path, dict[str, Any]]:
    """Scores a trained model on a table with labels and writes predictions, metrics.json, plots/ and report.html, and a W&B run
    in the group of its training.

    Args:
        model: run directory, SavedModel, or "wandb:entity/project/name:alias".
        data: table as `Config.data`.
        output_dir: folder in which the results get one of their own; None: `evaluations` in the run directory, or in the
            working directory for a model without one of its own.
        wandb_mode: as `Config.wandb_mode`; None: as in training.
        columns: `text_column`, `text_pair_column`, `label_column`, `label_separator`; None: as in training.

    Returns:
        The folder of the results, and the content of metrics.json.

    Raises:
        HubtuneError: one line on what is wrong with the model, the table or a column.
    """
    classifier = load_classifier(model)
    trained = run_settings(classifier.directory)
    tracked = _tracked(model, classifier.directory, trained, wandb_mode)
    mode = choose_mode(tracked)
    task, decision = classifier.task, classifier.decision
    named = {key: columns.get(key) or trained.get(key) for key in _COLUMNS}
    examples, tokens, notes = _read(classifier, data, named)
    progress = RowProgress(0, len(examples))
    scored = {"test": score_unseen(decision, examples, classifier.logits(tokens, progress.add))}
    progress.end()
    report = {
        "task": task.kind,
        "labels": task.labels,
        "model": str(classifier.directory),
        "data": data,
        "test": scored["test"].values,
        "threshold": decision.named_thresholds(),
        "threshold_metric": trained.get("threshold_metric"),
        "temperature": decision.named_temperatures(),
        "environment": runtime.versions(),
        "notes": notes,
    }
    own = trained and not model.startswith("wandb:")
    parent = Path(output_dir or (classifier.directory.parent if own else Path()) / "evaluations").expanduser()
    directory = claim_dated_directory(parent, data)
    write_atomically(directory / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    drawn = draw_scores(decision, scored)
    drawn += draw_data(task, {"test": examples}, {"test": tokens}, classifier.max_seq_length)
    options = {"model": model, "data": data, **named}
    facts = Facts(directory.name, decision, scored, report, drawn, options, classifier.directory)
    write_results(directory, facts)
    more = {"evaluated": data, "environment": report["environment"]}
    with start_run(tracked, directory, mode, more, "evaluate", entity=_reference(model).get("entity")) as run:
        saved = classifier.directory.parent
        if trained and tracked.log_model:
            run.uses(lambda: artifacts.model(saved, _reference(model).get("name")))
        log_evaluation(run, directory, facts, {data: examples.identity()}, tracked.log_examples)
    for line in run.where():
        print(f"W&B: {line}")
    return directory, report


def log_evaluation(run: NoRun, directory: Path, facts: Facts, tables: dict[str, dict[str, Any]], texts: bool) -> None:
    """Logs what a dashboard shows of scores: numbers, charts, tables, the pictures in `directory`, and the tables used."""
    for source, identity in tables.items():
        run.uses(functools.partial(artifacts.dataset, source, identity))
    run.log(
        lambda: {
            **numbers(facts.metrics, *facts.scored),
            **dashboard.scores(facts.decision, facts.scored, texts),
            **dashboard.pictures(directory, facts.plots),
        }
    )


def numbers(report: dict[str, Any], *parts: str) -> dict[str, float]:
    """The numbers of some parts of metrics.json, as in "test/macro_f1"."""
    return {
        f"{part}/{name}": value
        for part in parts
        for name, value in report.get(part, {}).items()
        if isinstance(value, int | float)
    }


def _tracked(model: str, saved: Path, trained: dict[str, Any], wandb_mode: str | None) -> Config:
    """The options of the model's training, for the W&B run of its evaluation: in the training's project and group."""
    options = {key: value for key, value in trained.items() if key in Config.model_fields} or {"data": "-"}
    if trained:
        options["wandb_group"] = trained.get("wandb_group") or _run_name(saved)
    if "project" in _reference(model):
        options["wandb_project"] = _reference(model)["project"]
    return make_config(options | {"wandb_mode": wandb_mode or options.get("wandb_mode")})


def _run_name(saved: Path) -> str:
    """The name of a model's run, by which its W&B runs are grouped; W&B's copies lie in folders of other names."""
    with contextlib.suppress(OSError, ValueError, LookupError):
        return str(json.loads((saved.parent / "metrics.json").read_text(encoding="utf-8"))["run_name"])
    return saved.parent.name


def _reference(model: str) -> dict[str, str]:
    """Entity, project, name and alias of a model that W&B keeps, unless it is in the registry, which has no runs."""
    if not model.startswith("wandb:") or "/wandb-registry-" in model:
        return {}
    return split_wandb("model", model)


def _read(classifier: TextClassifier, data: str, named: dict[str, Any]) -> tuple[Examples, Tokens, list[str]]:
    """The rows that can be scored, their token ids, and what there is to say of them, which is printed."""
    task, most = classifier.task, classifier.max_seq_length
    config = make_config({**named, "data": data, "task": task.kind, "max_seq_length": most})
    examples, notes = leave_unknown_labels_out(read_examples(data, config, only_scored=True), task)
    refuse_prediction_columns(data, examples.frame.columns, task.labels)
    tokens = classifier.tokenize(examples.texts, examples.pairs)
    notes = [*training_notes(classifier.directory, examples.fingerprint()), *notes, *note_empty_texts(examples)]
    if tokens.num_cut:
        notes.append(f"{data}: {tokens.num_cut:,} of {len(examples):,} texts are cut to {most} tokens")
    for note in notes:
        print(f"note: {note}", flush=True)
    return examples, tokens, notes


def print_scores(kind: Kind, values: dict[str, Any]) -> None:
    """Prints the scores of each label and the headline metrics with their intervals."""
    width = min(_WIDEST, max(map(len, values["by_label"])))
    print(f"{'':<{width}}  {'rows':>9}  {'predicted':>9}  precision  recall     F1")
    for label, line in values["by_label"].items():
        shares = f"{line['precision']:>9.3f}  {line['recall']:>6.3f}  {line['f1']:>5.3f}"
        print(f"{one_line(label)[:width]:<{width}}  {line['support']:>9,}  {line['predicted']:>9,}  {shares}")
    for name in HEADLINE[kind]:
        if name in values:
            low, high = values["intervals"].get(name, (None, None))
            told = "" if low is None else f"  (95 % interval {low:.4f} to {high:.4f})"
            half = values.get("at_half", {}).get(name)
            print(f"{name:<20} {values[name]:.4f}{told}" + ("" if half is None else f"  at 0.5: {half:.4f}"))


if __name__ == "__main__":
    with runtime.mistakes_in_one_line(GIVEN.debug, "nothing is written"):
        runtime.set_up_devices()
        columns = {key: getattr(GIVEN, key) for key in _COLUMNS}
        DIRECTORY, REPORT = evaluate(GIVEN.model, GIVEN.data, GIVEN.output_dir, GIVEN.wandb_mode, **columns)
        print_scores(REPORT["task"], REPORT["test"])
        print(f"Report: {DIRECTORY / 'report.html'}")
