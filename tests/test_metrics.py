"""metrics.py: what scikit-learn says, and intervals that hold."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    classification_report,
    f1_score,
    label_ranking_average_precision_score,
    log_loss,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from decision import plain_decision
from metrics import HEADLINE, by_label, events, intervals, resample, score, score_probabilities
from tasks import Kind, Task

TASKS: dict[Kind, Task] = {
    "binary": Task("binary", ["no", "yes"]),
    "multiclass": Task("multiclass", ["a", "b", "c"]),
    "multilabel": Task("multilabel", ["a", "b", "c"]),
}


def example(kind: Kind, rows: int = 300) -> tuple[Task, np.ndarray, np.ndarray, np.ndarray]:
    """Targets, probabilities that know something of them, with equal ones among them, and what is predicted."""
    random, task = np.random.default_rng(0), TASKS[kind]
    truth = random.choice(2 if kind == "binary" else 3, rows, p=[0.8, 0.2] if kind == "binary" else [0.7, 0.2, 0.1])
    targets = (random.random((rows, 3)) < [0.5, 0.2, 0.05]).astype(np.float32) if kind == "multilabel" else truth
    logits = task.indicators(targets) + random.normal(size=(rows, len(task.labels))).round(1)
    logits = logits[:, 1:] - logits[:, :1] if kind == "binary" else logits - (kind == "multilabel")
    decision = plain_decision(task)
    probabilities = decision.probabilities(logits.astype(np.float32))
    return task, targets, probabilities, decision.decide(probabilities)


def test_binary_scores_are_scikit_learns() -> None:
    task, targets, probabilities, predicted = example("binary")
    positive = probabilities[:, 1]
    scores = score(task, targets, probabilities, predicted)
    expected = {
        "accuracy": accuracy_score(targets, predicted),
        "balanced_accuracy": balanced_accuracy_score(targets, predicted),
        "mcc": matthews_corrcoef(targets, predicted),
        "precision": precision_score(targets, predicted),
        "recall": recall_score(targets, predicted),
        "f1": f1_score(targets, predicted),
        "macro_f1": f1_score(targets, predicted, average="macro"),
        "average_precision": average_precision_score(targets, positive),
        "roc_auc": roc_auc_score(targets, positive),
        "loss": log_loss(targets, positive),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    levels = [positive >= each for each in np.unique(positive)]
    best = max(precision_score(targets, each) for each in levels if recall_score(targets, each) >= 0.5)
    assert scores["precision_at_recall_50"] == pytest.approx(best)


def test_multiclass_scores_are_scikit_learns() -> None:
    task, targets, probabilities, predicted = example("multiclass")
    scores = score(task, targets, probabilities, predicted)
    expected = {
        "accuracy": accuracy_score(targets, predicted),
        "balanced_accuracy": balanced_accuracy_score(targets, predicted),
        "mcc": matthews_corrcoef(targets, predicted),
        "macro_precision": precision_score(targets, predicted, average="macro"),
        "weighted_f1": f1_score(targets, predicted, average="weighted"),
        "average_precision": average_precision_score(np.eye(3)[targets], probabilities),
        "roc_auc": roc_auc_score(targets, probabilities.astype(float), multi_class="ovr"),
        "loss": log_loss(targets, probabilities),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_multilabel_scores_are_scikit_learns() -> None:
    task, targets, probabilities, predicted = example("multilabel")
    scores = score(task, targets, probabilities, predicted)
    labelled = targets.any(axis=1)
    columns = list(zip(targets.T, predicted.T, strict=True))
    expected = {
        "accuracy": (targets == predicted).all(axis=1).mean(),
        "balanced_accuracy": np.mean([balanced_accuracy_score(*column) for column in columns]),
        "mcc": np.mean([matthews_corrcoef(*column) for column in columns]),
        "micro_f1": f1_score(targets, predicted, average="micro"),
        "macro_recall": recall_score(targets, predicted, average="macro"),
        "average_precision": average_precision_score(targets, probabilities),
        "roc_auc": roc_auc_score(targets, probabilities),
        "loss": log_loss(targets.ravel(), probabilities.ravel()),
        "label_ranking_average_precision": label_ranking_average_precision_score(
            targets[labelled], probabilities[labelled]
        ),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_the_table_by_label_is_scikit_learns_report(kind: Kind) -> None:
    task, targets, probabilities, predicted = example(kind)
    ours = by_label(task, targets, probabilities, predicted)
    theirs = classification_report(targets, predicted, target_names=task.labels, output_dict=True)
    for place, label in enumerate(task.labels):
        line = theirs[label]
        assert ours[label]["support"] == line["support"]
        assert ours[label]["f1"] == pytest.approx(line["f1-score"])
        assert ours[label]["precision"] == pytest.approx(line["precision"])
        assert ours[label]["predicted"] == np.count_nonzero(predicted == place)


def test_scores_that_are_undefined_are_left_out_and_nothing_warns() -> None:
    task = TASKS["binary"]
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    scores = score(task, np.array([0, 0]), probabilities, np.array([0, 1]))
    assert not {"roc_auc", "average_precision", "precision_at_recall_50"} & scores.keys()
    assert (scores["f1"], scores["accuracy"], scores["balanced_accuracy"]) == (0.0, 0.5, 0.5)
    assert "roc_auc" not in by_label(task, np.array([0, 0]), probabilities, np.array([0, 1]))["yes"]
    empty = np.zeros((4, 3), np.float32)
    assert "average_precision" not in score(TASKS["multilabel"], empty, empty + 0.5, empty)


def test_calibration_error_is_the_gap_between_what_was_said_and_what_came_true() -> None:
    """100 rows said 0.9 of which 70 are positive, 100 said 0.2 of which 20 are: off by 0.2 for half of the rows."""
    positive = np.repeat([0.9, 0.2], 100)
    targets = np.concatenate([np.arange(100) < 70, np.arange(100) < 20]).astype(int)
    probabilities = np.stack([1 - positive, positive], axis=1)
    error = score_probabilities(TASKS["binary"], targets, probabilities)["expected_calibration_error"]
    assert error == pytest.approx(0.1)


def test_multiclass_calibration_is_about_the_likeliest_label() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    predicted, right = events(TASKS["multiclass"], np.array([1, 2]), probabilities)
    assert predicted.ravel().tolist() == [0.6, 0.8]
    assert right.ravel().tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_resamples_are_scores_of_rows_drawn_again(kind: Kind) -> None:
    """The first resample, drawn by hand, by scikit-learn; a second set of predictions is scored on the same rows."""
    task, targets, probabilities, predicted = example(kind)
    draws, reversed_draws = resample(task, targets, probabilities, probabilities, [predicted, predicted[::-1]])
    assert draws.keys() == set(HEADLINE[kind])
    assert reversed_draws.keys() == draws.keys() - {"loss", "average_precision"}
    rows = np.random.default_rng(len(targets)).integers(len(targets), size=(50, len(targets)))[0]
    for values, chosen in ((draws, predicted), (reversed_draws, predicted[::-1])):
        expected = score(task, targets[rows], probabilities[rows], chosen[rows])
        assert {name: each[0] for name, each in values.items()} == pytest.approx(
            {name: expected[name] for name in values}, abs=1e-5
        )


def test_a_rare_label_that_a_resample_lacks_does_not_pull_the_interval_down() -> None:
    """300 labels of 3 rows each, two of three right: every resample lacks some labels."""
    task = Task("multiclass", [f"{i:03}" for i in range(300)])
    targets = np.repeat(np.arange(300), 3)
    predicted = np.where(np.arange(900) % 3 < 2, targets, (targets + 1) % 300)
    probabilities = np.full((900, 300), 1 / 300, np.float32)
    macro_f1 = score(task, targets, probabilities, predicted)["macro_f1"]
    low, high = intervals(resample(task, targets, probabilities, probabilities, [predicted])[0])["macro_f1"]
    assert low < macro_f1 < high


def test_resamples_that_are_all_the_same_give_no_interval() -> None:
    task, right = TASKS["binary"], np.array([0, 1, 0, 0])
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.7, 0.3]], np.float32)
    [draws] = resample(task, right, probabilities, probabilities, [right])
    assert intervals({"accuracy": draws["accuracy"]}) == {}
    assert "loss" in intervals(draws)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Accuracy of a coin that is right in 80 %: 100 samples of 200 rows."""
    random, held = np.random.default_rng(0), 0
    for _ in range(100):
        targets = random.integers(0, 2, 200)
        predicted = np.where(random.random(200) < 0.8, targets, 1 - targets)
        probabilities = np.eye(2, dtype=np.float32)[predicted] * 0.8 + 0.1
        [draws] = resample(TASKS["binary"], targets, probabilities, probabilities, [predicted])
        low, high = intervals(draws)["accuracy"]
        held += low <= 0.8 <= high
    assert 88 <= held <= 100
