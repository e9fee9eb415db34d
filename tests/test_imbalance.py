"""imbalance.py: weights and draws that make rare labels count, and a bias that knows the labels' shares."""

from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from config import Config, ConfigError
from imbalance import balance
from tasks import Task

BINARY = Task("binary", ["no", "yes"])
THREE = Task("multiclass", ["a", "b", "c"])
SEVERAL = Task("multilabel", ["a", "b", "c"])
FEW = np.array([0] * 90 + [1] * 10)
CLASSES = np.array([0] * 70 + [1] * 20 + [2] * 10)
INDICATORS = np.array([[1, 0, 0]] * 60 + [[1, 1, 0]] * 15 + [[0, 1, 1]] * 5 + [[0, 0, 0]] * 20, dtype=np.float32)


def config(**options: Any) -> Config:
    return Config(data="-", **options)


@pytest.mark.parametrize(("task", "targets"), [(BINARY, FEW), (THREE, CLASSES)])
def test_balanced_weights_are_scikit_learns(task: Task, targets: np.ndarray) -> None:
    weights = balance(config(class_weight="balanced"), task, targets).weights
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.unique(targets), y=targets))


def test_balanced_weights_of_several_labels_make_positives_count_as_much_as_negatives() -> None:
    weights = balance(config(class_weight="balanced"), SEVERAL, INDICATORS).weights
    assert weights == pytest.approx([25 / 75, 80 / 20, 95 / 5])


def test_balanced_weights_count_rows_as_often_as_they_are_drawn() -> None:
    both = balance(config(class_weight="balanced", oversampling=0.5), BINARY, FEW)
    assert both.bias == pytest.approx([0], abs=1e-6)
    assert both.weights == pytest.approx([135 / 180, 135 / 90])


def test_named_weights_leave_the_other_labels_at_one() -> None:
    assert balance(config(class_weight={"b": 3}), THREE, CLASSES).weights.tolist() == [1, 3, 1]  # type: ignore[union-attr]
    assert balance(config(), THREE, CLASSES).weights is None


def test_a_weight_for_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"class_weight: no label 'yess' in the training table: did you mean 'yes'\?"):
        balance(config(class_weight={"yess": 3}), BINARY, FEW)


def test_oversampling_brings_rare_labels_up_to_a_share_of_the_most_frequent() -> None:
    draws = balance(config(oversampling=0.5), THREE, CLASSES).draws
    assert [draws[label == CLASSES].sum() for label in range(3)] == pytest.approx([70, 35, 35])
    assert balance(config(), THREE, CLASSES).draws.tolist() == [1.0] * 100


def test_of_several_labels_of_a_row_the_rarest_decides_how_often_it_is_drawn() -> None:
    draws = balance(config(oversampling=1), SEVERAL, INDICATORS).draws
    assert draws[[0, 60, 75, 80]] == pytest.approx([1, 75 / 20, 75 / 5, 1])


def test_the_output_bias_says_the_shares_of_the_labels() -> None:
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    assert sigmoid(balance(config(), BINARY, FEW).bias) == pytest.approx([0.1])
    assert np.exp(balance(config(), THREE, CLASSES).bias) == pytest.approx([0.7, 0.2, 0.1])
    assert sigmoid(balance(config(), SEVERAL, INDICATORS).bias) == pytest.approx([0.75, 0.2, 0.05], abs=0.01)


def test_the_output_bias_counts_rows_as_the_loss_does() -> None:
    assert balance(config(class_weight="balanced"), BINARY, FEW).bias == pytest.approx([0], abs=1e-6)
    assert balance(config(class_weight={"yes": 3}), BINARY, FEW).bias == pytest.approx([np.log(30 / 90)])
    assert balance(config(oversampling=0.5), BINARY, FEW).bias == pytest.approx([np.log(0.5)])
    assert balance(config(class_weight="balanced"), SEVERAL, INDICATORS).bias == pytest.approx([0, 0, 0], abs=0.1)


def test_a_label_that_every_row_has_starts_at_a_finite_bias() -> None:
    every = np.array([[1, 0], [1, 1]], dtype=np.float32)
    bias = balance(config(class_weight="balanced"), Task("multilabel", ["a", "b"]), every).bias
    assert bias == pytest.approx([np.log(5), 0], abs=0.3)
