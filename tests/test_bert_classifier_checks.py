"""scikit-learn's own checks of `BertClassifier`.

Its input is text, for which scikit-learn has nearly no checks; so they also run on a subclass that takes numbers and writes
each as a word.
"""

from typing import Any, Self

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.exceptions import SkipTestWarning
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from estimators import BertClassifier
from spec import EncoderPaths

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class NumbersClassifier(BertClassifier):
    """Takes (N, D) numbers; a row becomes a text of D letters, each the place of a number between the training's extremes."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        X, y = validate_data(self, X, y, multi_output=True)
        self.lowest_, self.highest_ = X.min(axis=0), X.max(axis=0)
        return super().fit(self._written(X), y, sample_weight)

    def predict_proba(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return super().predict_proba(self._written(validate_data(self, X, reset=False)))

    def _written(self, X: np.ndarray) -> list[str]:
        span = np.where(self.highest_ > self.lowest_, self.highest_ - self.lowest_, 1)
        places = np.clip((X - self.lowest_) / span * len(_LETTERS), 0, len(_LETTERS) - 1).astype(int)
        return [" ".join(_LETTERS[place] for place in row) for row in places]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        return tags


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    return {
        "check_sample_weight_equivalence_on_dense_data": "batches hold other rows, so that the steps of AdamW differ",
        "check_methods_sample_order_invariance": "float32 products round by a row's place in its batch, by 6e-8",
    }


TINY = {"max_seq_length": 16, "epochs": 10, "batch_size": 8, "learning_rate": 5e-3, "precision": "float32"}


def test_texts(tiny_paths: EncoderPaths) -> None:
    with pytest.warns(SkipTestWarning, match="Can't test estimator BertClassifier which requires input"):
        results = check_estimator(BertClassifier(encoder=tiny_paths.encoder, **TINY))
    assert {result["status"] for result in results} == {"passed"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks([NumbersClassifier(**TINY)], expected_failed_checks=expected_failures)
def test_numbers_written_as_texts(estimator: BertClassifier, check: Any, tiny_paths: EncoderPaths) -> None:
    check(estimator.set_params(encoder=tiny_paths.encoder))
