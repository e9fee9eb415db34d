"""decision.py and calibration.py: temperatures and thresholds, chosen on validation rows."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, precision_score, recall_score

from calibration import best_threshold, cross_fit, fit_decision
from decision import Decision, plain_decision, predictions_table
from tasks import Kind, Task

BINARY = Task("binary", ["no", "yes"])
SEVERAL = Task("multilabel", ["a", "b", "c"], "; ")
CLASSES = Task("multiclass", ["x", "y", "z"])


def overconfident(kind: Kind, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are three times too large, and what came true by the right ones."""
    random = np.random.default_rng(seed)
    if kind == "multiclass":
        logits = random.normal(scale=1.5, size=(rows, 3))
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = np.array([random.choice(3, p=share) for share in shares])
    else:
        logits = random.normal(-1, 1.5, size=(rows, 1 if kind == "binary" else 3))
        targets = (random.random(logits.shape) < expit(logits)).astype(np.float32)
        targets = targets[:, 0].astype(np.int64) if kind == "binary" else targets
    return (3 * logits).astype(np.float32), targets


def test_a_plain_decision_is_the_likeliest_label_or_one_half() -> None:
    probabilities = plain_decision(BINARY).probabilities(np.array([[0.0], [np.log(3.0)]], np.float32))
    np.testing.assert_allclose(probabilities, [[0.5, 0.5], [0.25, 0.75]], rtol=1e-6)
    assert probabilities.dtype == np.float32
    assert plain_decision(BINARY).decide(probabilities).tolist() == [1, 1]
    assert plain_decision(CLASSES).decide(np.array([[0.3, 0.4, 0.3]])).tolist() == [1]
    assert plain_decision(SEVERAL).decide(np.array([[0.5, 0.4, 0.6]])).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("task", [BINARY, CLASSES, SEVERAL])
def test_calibration_finds_the_temperature_of_overconfident_logits(task: Task) -> None:
    logits, targets = overconfident(task.kind, 4000)
    decision, notes = fit_decision(task, logits, targets, "f1")
    assert decision.temperature == pytest.approx(3.0, rel=0.1)
    assert decision.temperature.shape == (3 if task.kind == "multilabel" else 1,)
    assert notes == []


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier whose logits are its input."""

    def fit(self, rows: np.ndarray, targets: np.ndarray) -> "Logits":
        self.classes_ = np.unique(targets)
        return self

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.classes_[rows.argmax(axis=1)]

    def decision_function(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, 0] if rows.shape[1] == 1 else rows


@pytest.mark.parametrize("task", [BINARY, CLASSES])
def test_calibrated_probabilities_are_those_of_scikit_learns_temperature_scaling(task: Task) -> None:
    logits, targets = overconfident(task.kind, 500)
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, targets)), method="temperature")
    expected = theirs.fit(logits, targets).predict_proba(logits)
    ours = fit_decision(task, logits, targets, "f1")[0].probabilities(logits)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_calibration_that_does_not_help_unseen_rows_is_not_kept() -> None:
    """Calibrated to begin with, so that any temperature only fits the sample's chance."""
    kept = []
    for seed in range(20):
        logits, targets = overconfident("binary", 60, seed)
        kept.append(fit_decision(BINARY, logits / 3, targets, "f1")[0].temperature[0] != 1)
    assert sum(kept) < 10


@pytest.mark.parametrize(
    ("metric", "value"),
    [("f1", f1_score), ("balanced_accuracy", balanced_accuracy_score)],
)
def test_the_threshold_is_the_best_that_there_is(metric: str, value: object) -> None:
    logits, targets = overconfident("binary", 300)
    probabilities = expit(logits[:, 0])
    threshold, reached = best_threshold(targets, probabilities, metric)
    assert reached
    every = [value(targets, probabilities >= each) for each in np.unique(probabilities)]  # type: ignore[operator]
    assert value(targets, probabilities >= threshold) == max(every)  # type: ignore[operator]
    assert threshold not in probabilities


def test_a_threshold_for_a_recall_is_the_most_precise_that_has_it() -> None:
    logits, targets = overconfident("binary", 300)
    probabilities = expit(logits[:, 0])
    threshold, _ = best_threshold(targets, probabilities, "precision_at_recall=0.9")
    predicted = probabilities >= threshold
    assert recall_score(targets, predicted) >= 0.9
    others = [probabilities >= each for each in np.unique(probabilities)]
    precisions = [precision_score(targets, other) for other in others if recall_score(targets, other) >= 0.9]
    assert precision_score(targets, predicted) == max(precisions)


def test_a_precision_that_no_threshold_has_is_told() -> None:
    logits, targets = overconfident("binary", 300)
    assert fit_decision(BINARY, logits, targets, "recall_at_precision=0.8")[1] == []
    targets[logits[:, 0].argmax()] = 0  # what it is surest of is wrong
    decision, notes = fit_decision(BINARY, logits, targets, "recall_at_precision=1.0")
    assert notes == ["no threshold has recall_at_precision=1.0 on the validation rows: the most precise is taken"]
    predicted = decision.decide(decision.probabilities(logits))
    precisions = [precision_score(targets, logits[:, 0] >= each) for each in logits[:, 0]]
    assert precision_score(targets, predicted) == max(precisions)


def test_thresholds_stay_between_the_probabilities_of_float32_neighbours() -> None:
    near = np.float32(0.5)
    probabilities = np.array([near, np.nextafter(near, np.float32(1))], np.float32)
    threshold, _ = best_threshold(np.array([0, 1]), probabilities, "f1")
    assert (probabilities >= np.float32(threshold)).tolist() == [False, True]


def test_too_few_rows_keep_one_half_and_say_so() -> None:
    logits, targets = overconfident("binary", 300)
    targets[:] = 0
    targets[:9] = 1
    decision, notes = fit_decision(BINARY, logits, targets, "f1")
    assert decision.threshold.tolist() == [0.5]
    assert notes == ["too few validation rows: the threshold stays 0.5"]


@pytest.mark.parametrize("task", [BINARY, CLASSES, SEVERAL])
def test_rows_that_are_all_right_are_no_reason_for_certainty(task: Task) -> None:
    random = np.random.default_rng(0)
    several = random.integers(0, 2, (100, 3)).astype(np.float32)
    targets: np.ndarray = several if task.kind == "multilabel" else random.integers(0, len(task.labels), 100)
    signs = 2 * task.indicators(targets) - 1
    logits = (3 * signs[:, 1:] if task.kind == "binary" else 3 * signs).astype(np.float32)
    decision, notes = fit_decision(task, logits, targets, "f1")
    assert (decision.temperature == 1).all()
    assert notes[0].startswith("fewer than 10 validation rows are decided wrongly")
    assert notes[0].endswith(": no calibration")


def test_a_fold_decides_like_the_whole_where_a_label_is_rare() -> None:
    """Ten positive rows are enough for a threshold, and so are the eight that a fold leaves."""
    logits = np.random.default_rng(0).normal(-6, 1, (400, 1)).astype(np.float32)
    targets = np.zeros(400, np.int64)
    targets[:10], logits[:10] = 1, -3
    _, predicted, at_half = cross_fit(BINARY, logits, targets, "f1")
    assert predicted[:10].all()
    assert not at_half.any()


def test_each_of_several_labels_has_a_threshold_if_it_has_the_rows() -> None:
    logits, targets = overconfident("multilabel", 400)
    targets[:, 2], logits[:, 2] = 0, -3
    targets[:5, 2] = 1
    decision, notes = fit_decision(SEVERAL, logits, targets, "f1")
    assert notes == [
        "too few validation rows for 1 label ('c'): the threshold stays 0.5",
        "fewer than 10 validation rows are decided wrongly for 1 label ('c'): no calibration",
    ]
    assert decision.threshold[2] == 0.5
    assert decision.temperature[2] == 1
    assert (decision.threshold[:2] != 0.5).all()
    assert decision.named_thresholds() == {"a": decision.threshold[0], "b": decision.threshold[1], "c": 0.5}


def test_cross_fitting_lets_no_row_choose_its_own_threshold() -> None:
    """A logit that moves changes the temperature of all rows but those of its own fold."""
    logits, targets = overconfident("binary", 200)
    probabilities, _, at_half = cross_fit(BINARY, logits, targets, "f1")
    moved = logits.copy()
    moved[7] = -20 * np.sign(targets[7] - 0.5)
    again, _, _ = cross_fit(BINARY, moved, targets, "f1")
    assert (again == probabilities).all(axis=1).sum() == 200 / 5 - 1
    assert (at_half == (probabilities[:, 1] >= 0.5)).all()


def test_calibration_on_noise_is_honest_only_when_crossed() -> None:
    """Logits that say nothing: a threshold chosen and scored on the same rows flatters."""
    random = np.random.default_rng(3)
    flattered, honest = [], []
    for _ in range(30):
        logits, targets = random.normal(size=(60, 1)).astype(np.float32), random.integers(0, 2, 60)
        decision, _ = fit_decision(BINARY, logits, targets, "balanced_accuracy")
        flattered.append(balanced_accuracy_score(targets, decision.decide(decision.probabilities(logits))))
        honest.append(balanced_accuracy_score(targets, cross_fit(BINARY, logits, targets, "balanced_accuracy")[1]))
    assert np.mean(flattered) > 0.56
    assert abs(np.mean(honest) - 0.5) < 0.03


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_hardly_any_rows_are_no_error(rows: int) -> None:
    logits, targets = overconfident("binary", rows)
    assert fit_decision(BINARY, logits, targets, "f1")[0].threshold.tolist() == [0.5]
    assert cross_fit(BINARY, logits, targets, "f1")[0].shape == (rows, 2)


def test_the_table_of_predictions_joins_labels_and_names_every_probability() -> None:
    probabilities = np.array([[0.9, 0.1, 0.8], [0.2, 0.1, 0.3]], np.float32)
    frame = predictions_table(plain_decision(SEVERAL), probabilities)
    names = ["predicted_label", "probability", "probability_a", "probability_b", "probability_c"]
    assert list(frame.columns) == names
    assert frame["predicted_label"].tolist() == ["a; c", ""]
    assert frame["probability"].tolist() == [np.float32(0.9), np.float32(0.3)]
    frame = predictions_table(Decision(BINARY, np.ones(1), np.array([0.2])), np.array([[0.7, 0.3]], np.float32))
    assert frame["predicted_label"].tolist() == ["yes"]
    assert frame["probability"].tolist() == [np.float32(0.3)]


def test_log_loss_falls_by_calibration() -> None:
    logits, targets = overconfident("binary", 2000)
    decision, _ = fit_decision(BINARY, logits[:1000], targets[:1000], "f1")
    unseen, truth = logits[1000:], targets[1000:]
    before, after = decision.uncalibrated().probabilities(unseen), decision.probabilities(unseen)
    assert log_loss(truth, after) < log_loss(truth, before) - 0.1
