"""What becomes of rows whose labels look wrong, and what that buys: trainings on the rows as they were and as they are then."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bert_classifier import BertClassifier
from config import Config, DataError
from decision import plain_decision
from examples import Examples
from issue_finding import probabilities_of, save_array
from metrics import HEADLINE, intervals, resample, score
from review_page import Verdict
from tasks import Task

ARMS = ("raw", "cleaned")


def labels_for(task: Task, examples: Examples) -> np.ndarray:
    """The labels as `BertClassifier` takes them: strings, (N,), or 0 and 1, (N, K)."""
    if task.kind == "multilabel":
        return task.targets(examples.labels)
    return np.array([label for (label,) in examples.labels], dtype=object)


def make_classifier(config: Config, task: Task, **changed: Any) -> BertClassifier:
    """The estimator that trains as `config` says, in memory. Without early stopping it trains on all rows that it gets."""
    known = BertClassifier().get_params().keys()
    own = {key: value for key, value in config.model_dump().items() if key in known}
    own |= {"output_dir": None, "run_name": None, "wandb_mode": "disabled", "task": task.kind, "verbose": True}
    if not config.early_stopping_patience:
        own["valid_split"] = 0.0
    if task.kind == "multilabel" and isinstance(config.class_weight, dict):  # its columns have numbers for names
        places = {label: str(place) for place, label in enumerate(task.labels)}
        own["class_weight"] = {places.get(label, label): weight for label, weight in config.class_weight.items()}
    return BertClassifier(**own | changed)


def drop_issues(table: Examples, issues: pd.DataFrame) -> tuple[Examples, str]:
    """The rows without those that `issues` takes for wrong, and in words what was done."""
    wrong = set(issues["row"][issues["is_issue"]])
    kept = table.take(place for place, row in enumerate(table.rows) if row not in wrong)
    return kept, f"{len(wrong):,} of {len(table):,} rows dropped: all that look wrong"


def apply_verdicts(table: Examples, verdicts: list[Verdict], task: Task) -> tuple[Examples, str]:
    """The rows as a review leaves them, and in words what was done; rows that were not decided stay as they are."""
    by_row = {verdict.row: verdict for verdict in verdicts}
    kept = table.take(
        place for place, row in enumerate(table.rows) if row not in by_row or by_row[row].decision != "drop"
    )
    labels, changed = [], 0
    for row, given in zip(kept.rows, kept.labels, strict=True):
        verdict = by_row.get(row)
        label = given
        if verdict is not None and verdict.decision == "relabel":
            separator = task.separator if task.kind == "multilabel" else None
            text = verdict.label or ""
            label = tuple(sorted(text.split(separator))) if separator and text else (text,) if text else ()
        changed += label != given
        labels.append(label)
    done = f"{len(verdicts):,} rows reviewed: {len(table) - len(kept):,} dropped, {changed:,} relabelled"
    return replace(kept, labels=labels), done


def cleaned_frame(examples: Examples, config: Config, task: Task) -> pd.DataFrame:
    """The examples as a table like the one they came from, with their labels as they are now."""
    frame = examples.frame.copy()
    if config.label_column not in frame.columns:  # several columns of 0 and 1
        indicators = task.targets(examples.labels).astype(int)
        for column in config.label_columns:
            frame[column] = indicators[:, task.labels.index(column)]
    elif config.label_separator is not None:
        frame[config.label_column] = [config.label_separator.join(labels) for labels in examples.labels]
    elif task.kind == "multilabel":
        frame[config.label_column] = [list(labels) for labels in examples.labels]
    else:
        frame[config.label_column] = [label for (label,) in examples.labels]
    return frame


@dataclass(frozen=True)
class Comparison:
    """Scores on the same test rows of models that were trained on the raw and on the cleaned rows.

    Attributes:
        scores: each arm's means over the seeds, by metric.
        gains: cleaned less raw.
        gain_intervals: 95 % intervals of the gains, from bootstrap resamples of the test rows; what the seeds make of it is
            averaged, not in them.
        seeds: the trainings' seeds, each used for both arms.
    """

    scores: dict[str, dict[str, float]]
    gains: dict[str, float]
    gain_intervals: dict[str, list[float]]
    seeds: list[int]


def compare(
    config: Config,
    task: Task,
    arms: dict[str, Examples],
    test: Examples,
    seeds: list[int],
    directory: Path,
    say: Callable[[str], None],
) -> Comparison:
    """Trains each arm with each seed, for all epochs, whatever early stopping says, and scores the same test rows.

    The test rows' probabilities of each training are kept in `directory`, and not computed again.

    Raises:
        DataError: cleaning leaves fewer than two labels.
    """
    directory.mkdir(exist_ok=True)
    targets, unstopped = task.targets(test.labels), config.model_copy(update={"early_stopping_patience": 0})
    rows = {arm: f"{arm}-{examples.fingerprint()[:12]}-{test.fingerprint()[:12]}" for arm, examples in arms.items()}
    probabilities: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        for arm, examples in arms.items():
            file = directory / f"{rows[arm]}-seed-{seed}.npy"
            if not file.exists():
                classifier = make_classifier(unstopped, task, seed=seed)
                say(f"Training on {len(examples):,} {arm} rows, seed {seed}, {config.epochs} epochs")
                save_array(file, _train_and_score(classifier, task, examples, test))
            probabilities.setdefault(arm, []).append(np.load(file, allow_pickle=False))
    return _compared(task, targets, probabilities, seeds)


def _train_and_score(classifier: BertClassifier, task: Task, examples: Examples, test: Examples) -> np.ndarray:
    """Probabilities of the test rows, float32 [N, K]."""
    try:
        fitted = classifier.fit(examples.inputs(), labels_for(task, examples))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{examples.source}: after cleaning: {error}") from error
    return probabilities_of(fitted, test.inputs(), np.array(task.labels, dtype=object), task.kind == "multilabel")


def _compared(
    task: Task, targets: np.ndarray, probabilities: dict[str, list[np.ndarray]], seeds: list[int]
) -> Comparison:
    decision = plain_decision(task)
    decided = {arm: [decision.decide(each) for each in parts] for arm, parts in probabilities.items()}
    names = [name for name in HEADLINE[task.kind] if name not in ("loss", "average_precision")]
    means = {
        arm: _mean([score(task, targets, *pair) for pair in zip(probabilities[arm], decided[arm], strict=True)])
        for arm in probabilities
    }
    first = next(iter(probabilities.values()))[0]
    draws = resample(task, targets, first, first, [each for parts in decided.values() for each in parts])
    raw, cleaned = draws[: len(seeds)], draws[len(seeds) :]
    differences = {
        name: np.mean([after[name] - before[name] for before, after in zip(raw, cleaned, strict=True)], axis=0)
        for name in names
    }
    gains = {name: means["cleaned"][name] - means["raw"][name] for name in names}
    return Comparison(means, gains, intervals(differences), seeds)


def _mean(scores: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
