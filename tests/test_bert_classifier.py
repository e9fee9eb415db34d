"""`BertClassifier`: the training as a scikit-learn estimator, on a tiny encoder and the bundled reviews."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cleanlab.classification import CleanLearning
from conftest import SAMPLE
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from config import Config
from data import Tokens, tokenize
from estimators import BertClassifier
from predict import load_classifier
from spec import EncoderPaths

pytestmark = pytest.mark.filterwarnings("ignore:.* are cut to max_seq_length:UserWarning")


@pytest.fixture(scope="module")
def reviews() -> pd.DataFrame:
    """Reviews with a word in front that gives their label away, which a tiny encoder can learn in seconds."""
    frame = pd.read_csv(SAMPLE, keep_default_na=False)[:120]
    hints = frame["label"].map({"positive": "good good good", "negative": "not not not"})
    return frame.assign(text=hints + " " + frame["text"].str[:40])


def make(paths: EncoderPaths, **parameters: Any) -> BertClassifier:
    tiny = {"encoder": paths.encoder, "max_seq_length": 48, "epochs": 4, "learning_rate": 5e-3, "precision": "float32"}
    return BertClassifier(**(tiny | {"batch_size": 8} | parameters))


@pytest.fixture(scope="module")
def fitted(tiny_paths: EncoderPaths, reviews: pd.DataFrame) -> BertClassifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make(tiny_paths, epochs=8).fit(reviews["text"], reviews["label"])


def test_every_option_of_a_training_is_a_parameter_with_its_default() -> None:
    parameters = BertClassifier().get_params()
    tables = {"data", "valid_data", "test_data", "train_split", "label_column", "label_separator", "resume"}
    assert parameters.keys() == Config.model_fields.keys() - tables | {"verbose"}
    changed = {
        name for name, field in Config.model_fields.items() if parameters.get(name, field.default) != field.default
    }
    assert changed == {"valid_split", "output_dir", "wandb_mode", "wandb_tags"}


def test_it_learns_and_predicts_labels_of_their_own_type(fitted: BertClassifier, reviews: pd.DataFrame) -> None:
    texts, labels = reviews["text"], reviews["label"]
    assert fitted.classes_.tolist() == ["negative", "positive"]
    probabilities = fitted.predict_proba(texts)
    assert probabilities.shape == (120, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(fitted.predict(texts), fitted.classes_[probabilities.argmax(axis=1)])
    assert fitted.score(texts, labels) > 0.8
    assert fitted.history_["epoch"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert fitted.history_["loss"][-1] < fitted.history_["loss"][0]
    assert fitted.predict(["good good good", "not not not"]).tolist() == ["positive", "negative"]


def test_every_fit_begins_with_fresh_weights(fitted: BertClassifier, reviews: pd.DataFrame) -> None:
    again = clone(fitted).fit(reviews["text"].tolist(), reviews["label"].to_numpy())
    once = again.predict_proba(reviews["text"])
    np.testing.assert_array_equal(once, fitted.predict_proba(reviews["text"]))
    assert again.fit(reviews["text"], reviews["label"]) is again
    np.testing.assert_array_equal(again.predict_proba(reviews["text"]), once)


def test_it_says_how_many_texts_it_cuts(tiny_paths: EncoderPaths, reviews: pd.DataFrame) -> None:
    long = ["a b c d e f g"] * 5 + ["a b"] * 5
    with pytest.warns(UserWarning, match="5 of 10 texts are cut to max_seq_length=8 tokens"):
        cut = make(tiny_paths, max_seq_length=8, epochs=1).fit(long, [0, 1] * 5)
    assert cut.num_cut_ == 5
    assert cut.predict(long).dtype == np.int64


def test_a_grid_over_folds_computes_token_ids_of_each_text_once(
    tiny_paths: EncoderPaths, reviews: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def counted(texts: list[str], *rest: Any) -> Tokens:
        seen.extend(texts)
        return tokenize(texts, *rest)

    monkeypatch.setattr("text_inputs.tokenize", counted)
    lower = FunctionTransformer(lambda texts: [f"{text} ." for text in texts])
    search = GridSearchCV(
        Pipeline([("clean", lower), ("bert", make(tiny_paths))]), {"bert__epochs": [1, 2]}, cv=2, refit=False
    )
    search.fit(reviews["text"], reviews["label"] == "positive")
    assert len(search.cv_results_["mean_test_score"]) == 2
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    assert sorted(seen) == sorted({f"{text} ." for text in reviews["text"]})


def test_a_pickle_holds_the_model_and_not_the_way_to_it(
    fitted: BertClassifier, reviews: pd.DataFrame, tmp_path: Path
) -> None:
    texts, wanted = reviews["text"], fitted.predict_proba(reviews["text"])
    restored = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_allclose(restored.predict_proba(texts), wanted, atol=1e-6)
    np.testing.assert_array_equal(restored.predict(texts), fitted.predict(texts))
    restored = pickle.loads(pickle.dumps(restored))
    restored.save(tmp_path / "model")
    saved = load_classifier(tmp_path / "model")
    np.testing.assert_allclose(saved.predict_proba(texts), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="exists: choose a new folder"):
        fitted.save(tmp_path / "model")


def test_rows_of_no_weight_teach_nothing(tiny_paths: EncoderPaths, reviews: pd.DataFrame) -> None:
    right = (reviews["label"] == "positive").to_numpy()
    texts = [*reviews["text"], *reviews["text"]]
    labels = np.concatenate([right, ~right])
    weights = np.repeat([1.0, 0.0], len(reviews))
    exact: dict[str, Any] = {"epochs": 6, "dropout": 0.0, "encoder_dropout": 0.0}
    weighted = make(tiny_paths, **exact).fit(texts, labels, sample_weight=weights)
    assert weighted.classes_.tolist() == [False, True]
    assert weighted.score(reviews["text"], right) > 0.8
    parts = make(tiny_paths, **exact, batch_size=4, gradient_accumulation_steps=2)
    parts.fit(texts, labels, sample_weight=weights)
    np.testing.assert_allclose(parts.predict_proba(texts), weighted.predict_proba(texts), atol=1e-3)


def test_pairs_come_as_tuples_or_as_columns(
    tiny_paths: EncoderPaths, fitted: BertClassifier, reviews: pd.DataFrame
) -> None:
    first, second = reviews["text"].tolist(), reviews["text"].tolist()[::-1]
    pairs = list(zip(first, second, strict=True))
    classifier = make(tiny_paths, epochs=1, text_pair_column="b").fit(pairs, reviews["label"])
    wanted = classifier.predict_proba(pairs)
    frame = pd.DataFrame({"text": first, "b": second, "other": 1})
    np.testing.assert_array_equal(classifier.predict_proba(frame), wanted)
    np.testing.assert_array_equal(classifier.predict_proba(np.array(pairs, dtype=object)), wanted)
    restored = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_allclose(restored.predict_proba(pairs), wanted, atol=1e-6)
    for X in (first, frame[["text"]]):
        with pytest.raises(ValueError, match=r"trained on pairs: give pairs|no column 'b'"):
            classifier.predict(X)
    with pytest.raises(ValueError, match="X holds single texts: give pairs, or leave it out"):
        classifier.fit(first, reviews["label"])
    with pytest.raises(ValueError, match="X holds pairs, and the classifier was trained on single texts"):
        fitted.predict(pairs)


def test_texts_may_have_several_labels(tiny_paths: EncoderPaths, reviews: pd.DataFrame) -> None:
    texts = reviews["text"]
    positive = reviews["label"] == "positive"
    y = pd.DataFrame({"good": positive, "any": 1, "none": 0, "bad": ~positive}).astype(int)  # as a fold may have them
    classifier = make(tiny_paths, class_weight="balanced").fit(texts, y)
    assert classifier.classes_.tolist() == ["good", "any", "none", "bad"]
    predicted = classifier.predict(texts)
    assert (predicted == y.to_numpy()).mean() > 0.9
    assert classifier.predict_proba(texts).shape == (120, 4)


def test_validation_rows_choose_threshold_and_weights_and_a_folder_gets_the_run(
    tiny_paths: EncoderPaths, reviews: pd.DataFrame, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"valid_split": 0.4, "early_stopping_patience": 1, "epochs": 3}
    inside = make(tiny_paths, **options).fit(reviews["text"], reviews["label"])
    assert "val_macro_f1" in inside.history_
    assert inside.run_directory_ is None
    outside = make(tiny_paths, **options, output_dir=str(tmp_path)).fit(reviews["text"], reviews["label"])
    assert outside.run_directory_ is not None
    assert {"report.html", "model", "metrics.json"} <= {path.name for path in outside.run_directory_.iterdir()}
    assert outside.decision_.threshold == inside.decision_.threshold
    np.testing.assert_allclose(outside.predict_proba(reviews["text"]), inside.predict_proba(reviews["text"]), atol=1e-6)
    np.testing.assert_array_equal(
        load_classifier(outside.run_directory_).predict(reviews["text"]), outside.predict(reviews["text"])
    )


def test_scikit_learn_and_cleanlab_take_it_as_one_of_theirs(tiny_paths: EncoderPaths, reviews: pd.DataFrame) -> None:
    texts, labels = reviews["text"].to_numpy(), (reviews["label"] == "positive").astype(int).to_numpy()
    classifier = make(tiny_paths, epochs=1)
    calibrated = CalibratedClassifierCV(classifier, cv=2, ensemble=False).fit(texts, labels)
    assert calibrated.predict_proba(texts).shape == (120, 2)
    voted = VotingClassifier([("a", classifier), ("b", clone(classifier).set_params(seed=1))], voting="soft")
    both = voted.fit(texts, labels).predict_proba(texts)
    apart = [each.predict_proba(texts) for each in voted.estimators_]
    np.testing.assert_allclose(both, np.mean(apart, axis=0), atol=1e-6)
    assert (apart[0] != apart[1]).any()
    issues = CleanLearning(classifier, cv_n_folds=2).find_label_issues(texts, labels)
    assert len(issues) == 120


BAD_PARAMETERS = [
    ({"epochs": 0}, "epochs=0"),
    ({"wandb_mode": "offline"}, "set output_dir"),
    ({"run_name": "a"}, "set it too"),
    ({"task": "multilabel"}, "task=multilabel: y makes it binary"),
    ({"class_weight": {"spam": 2}}, "no label 'spam'"),
    ({"encoder": "/nowhere"}, "neither a SavedModel"),
    ({"max_seq_length": 1000}, "64 positions"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_PARAMETERS)
def test_a_parameter_that_cannot_be_is_a_value_error(
    tiny_paths: EncoderPaths, reviews: pd.DataFrame, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_paths, **parameters).fit(reviews["text"], reviews["label"])


def test_a_parameter_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="no parameter 'epoch': did you mean 'epochs'"):
        BertClassifier(epoch=3)


BAD_DATA = [
    ("one text", [0, 1], "not str"),
    ([], [], r"0 sample"),
    (["a", "b", None], [0, 1, 0], "NaN or None in 1 texts, the first is text 2"),
    (["a", "b", 3.5], [0, 1, 0], "text 2 is float 3.5"),
    (["a", "b", "c"], [0, 1], "inconsistent numbers of samples"),
    (["a", "b"], None, "requires y to be passed, but the target y is None"),
    (["a", "b"], [1, 1], "one class only"),
    (["a", "b"], [0.5, 1.5], "Unknown label type"),
    (["a", "b"], ["x", None], "NaN or None in 1 rows"),
    (["a", "b"], [[0, 2], [1, 1]], "0 and 1"),
    (np.zeros((2, 3)), [0, 1], r"shape \(2, 3\)"),
    (np.zeros(2), [0, 1], "text 0 is float 0.0"),
    ([("a", "b"), "c"], [0, 1], "some rows are pairs"),
    (["a", "half \ud83d"], [0, 1], "text 1: holds half of a character"),
    (pd.DataFrame({"a": ["x"], "b": ["y"], "c": ["z"]}), [0], "no column 'text'"),
]


@pytest.mark.parametrize(("X", "y", "message"), BAD_DATA)
def test_rows_that_cannot_be_are_a_value_error(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertClassifier().fit(X, y)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_weights_that_cannot_be_are_a_value_error(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"(?i)sample.weight|NaN"):
        BertClassifier().fit(["a", "b"], [0, 1], sample_weight=weights)


def test_nothing_is_predicted_before_fit() -> None:
    for method in ("predict", "predict_proba", "save"):
        with pytest.raises(NotFittedError):
            getattr(BertClassifier(), method)(["a"])


def test_a_fit_that_fails_leaves_nothing_that_looks_fitted(
    tiny_paths: EncoderPaths, reviews: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = reviews["text"][:20], reviews["label"][:20]
    classifier = make(tiny_paths, epochs=1).fit(texts, labels)
    before = classifier.predict_proba(texts)
    for y in (labels[:5], None, ["a"] * 20):
        with pytest.raises(ValueError, match=r"inconsistent|y is None|one class"):
            classifier.fit(texts, y)
    with pytest.raises(ValueError, match="belongs to binary tasks"):
        clone(classifier).set_params(monitor="val_f1").fit(texts, ["a", "b", "c", "d"] * 5)
    np.testing.assert_array_equal(classifier.predict_proba(texts), before)  # a mistake costs no model

    def interrupted(*_: Any) -> Tokens:
        raise KeyboardInterrupt

    monkeypatch.setattr("text_inputs.tokenize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(texts + " and more", labels)
    with pytest.raises(NotFittedError):
        classifier.predict(texts)
    monkeypatch.undo()
    again = classifier.fit(texts + " and more", labels).predict_proba(texts + " and more")
    aside = make(tiny_paths, epochs=1, max_seq_length=49).fit(texts + " and more", labels)
    np.testing.assert_allclose(aside.predict_proba(texts + " and more"), again, atol=1e-6)


def test_early_stopping_without_a_share_takes_a_tenth_to_validate(
    tiny_paths: EncoderPaths, reviews: pd.DataFrame
) -> None:
    classifier = make(tiny_paths, epochs=2, early_stopping_patience=1, valid_split=None)
    assert "val_macro_f1" in classifier.fit(reviews["text"], reviews["label"]).history_


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_label_without_weight_is_learnt_to_be_absent(
    tiny_paths: EncoderPaths, reviews: pd.DataFrame, class_weight: str
) -> None:
    positive = (reviews["label"] == "positive").astype(int)
    classifier = make(tiny_paths, epochs=1, class_weight=class_weight)
    classifier.fit(reviews["text"], positive, sample_weight=positive)
    assert (classifier.predict(reviews["text"]) == 1).all()


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a", "b", "c"], ["x", "y", float("nan")], "NaN or None in 1 rows"),
        (["a", "b", "c"], ["x", 1, "y"], "strings and labels of other types"),
        (["a", "b"], pd.DataFrame([[0, 1], [1, 0]], columns=["k", "k"]), "give each its own"),
        (pd.DataFrame({"id": ["1", "2"], "body": ["x", "y"]}), [0, 1], "no column 'text'.*set text_column"),
    ],
)
def test_nothing_is_guessed_of_rows(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertClassifier().fit(X, y)
