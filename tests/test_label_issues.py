"""Labels that look wrong: who judges whom, what is found, what a review and a retraining make of it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SAMPLE, real_data
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from config import Config, ConfigError, DataError
from issue_finding import assign_folds, out_of_fold
from label_issues import find_label_issues, main, parse_arguments
from spec import EncoderPaths
from text_inputs import Texts

pytestmark = pytest.mark.filterwarnings("ignore:.* are cut to max_seq_length:UserWarning")

OTHER = {"positive": "negative", "negative": "positive"}
WRONG = [5, 17, 40, 66, 81, 99]  # rows, from 1


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    """Two tables of reviews with a word in front that gives the label away; in the first six labels are wrong."""
    frame = pd.read_csv(SAMPLE, keep_default_na=False)[:160]
    hints = frame["label"].map({"positive": "good good good", "negative": "not not not"})
    frame["text"] = hints + " " + frame["text"].str[:40]
    train, test = frame[:120].copy(), frame[120:]
    places = [row - 1 for row in WRONG]
    train.loc[places, "label"] = train.loc[places, "label"].map(OTHER)
    train.assign(id=range(120)).to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    return str(tmp_path / "train.csv"), str(tmp_path / "test.csv")


def run(*arguments: str) -> None:
    main(*parse_arguments(list(arguments)))


def options(paths: EncoderPaths, data: str, output: Path) -> list[str]:
    tiny = {"data": data, "encoder": paths.encoder, "output_dir": str(output), "max_seq_length": "32", "epochs": "8"}
    tiny |= {"learning_rate": "5e-3", "precision": "float32", "batch_size": "8", "folds": "2"}
    tiny |= {"dropout": "0", "encoder_dropout": "0"}  # with it one of three seeds missed two wrong labels
    return [f"--{key}={value}" for key, value in tiny.items()]


def test_a_table_is_judged_reviewed_and_trained_on_again(
    tables: tuple[str, str], tiny_paths: EncoderPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, test = tables
    run(*options(tiny_paths, data, tmp_path / "runs"))
    [directory] = (tmp_path / "runs").iterdir()
    issues = pd.read_csv(directory / "label_issues.csv", keep_default_na=False)
    assert sorted(issues["row"]) == list(range(1, 121))
    found = issues["row"][issues["is_issue"]].tolist()
    assert set(WRONG) <= set(found)
    assert len(found) < 12
    assert issues["row"][:4].isin(WRONG).all()
    line = issues.set_index("row").loc[WRONG[0]]
    assert line["suggested_label"] == OTHER[str(line["given_label"])]
    assert line["text"] == pd.read_csv(data)["text"][WRONG[0] - 1]
    assert "Fold 2 of 2: training on 60 rows, judging 60" in capsys.readouterr().out
    assert json.loads((directory / "summary.json").read_text())["issues"] == len(found)

    (directory / "folds" / "fold-2.npy").unlink()  # as if it had been interrupted there
    run(f"--resume={directory}", f"--test_data={test}", "--retrain", "--seeds=1")
    told = capsys.readouterr().out
    assert "Fold 1" not in told
    assert "Fold 2 of 2" in told
    pd.testing.assert_frame_equal(pd.read_csv(directory / "label_issues.csv", keep_default_na=False), issues)
    compared = json.loads((directory / "comparison-cleaned.json").read_text())
    assert compared["seeds"] == [42]
    assert compared["epochs"] == 8
    assert compared["gains"]["accuracy"] == pytest.approx(
        compared["scores"]["cleaned"]["accuracy"] - compared["scores"]["raw"]["accuracy"]
    )
    low, high = compared["gain_intervals"].get("accuracy", [0, 0])
    assert low <= compared["gains"]["accuracy"] <= high
    cleaned = pd.read_csv(directory / "cleaned.csv", keep_default_na=False)
    assert sorted(cleaned["id"]) == sorted(set(range(120)) - {row - 1 for row in found})

    _review(directory, tmp_path / "decisions.csv")
    run(
        f"--resume={directory}",
        f"--test_data={test}",
        "--retrain",
        "--seeds=1",
        f"--decisions={tmp_path / 'decisions.csv'}",
    )
    told = capsys.readouterr().out
    assert "3 rows reviewed: 1 dropped, 1 relabelled" in told
    assert "Training on 119 cleaned rows" in told
    assert "raw rows" not in told  # that training is there already
    cleaned = pd.read_csv(directory / "reviewed.csv", keep_default_na=False).set_index("id")
    before = pd.read_csv(data).set_index("id")
    assert cleaned["label"][WRONG[0] - 1] == OTHER[before["label"][WRONG[0] - 1]]
    assert WRONG[1] - 1 not in cleaned.index
    rest = before.drop([WRONG[0] - 1, WRONG[1] - 1])
    pd.testing.assert_frame_equal(cleaned.loc[rest.index], rest)

    with open(data, "a", encoding="utf-8") as file:
        file.write("one more,positive,120\n")
    with pytest.raises(DataError, match="its rows are not those that"):
        run(f"--resume={directory}")


def _review(directory: Path, decisions: Path) -> None:
    issues = pd.read_csv(directory / "label_issues.csv", keep_default_na=False).set_index("row")
    sha256 = json.loads((directory / "label_issues.json").read_text())["sha256"]
    given = [str(issues.loc[row, "given_label"]) for row in WRONG[:3]]
    lines = [
        (WRONG[0], "relabel", OTHER[given[0]], given[0], sha256),
        (WRONG[1], "drop", "", given[1], sha256),
        (WRONG[2], "keep", given[2], given[2], sha256),
    ]
    pd.DataFrame(lines, columns=["row", "decision", "label", "given_label", "table_sha256"]).to_csv(
        decisions, index=False
    )


def test_flipped_labels_of_real_reviews_are_found() -> None:
    frame = pd.read_csv(real_data("imdb_train.csv"), keep_default_na=False)[:2000]
    flipped = np.random.default_rng(0).choice(len(frame), 100, replace=False)
    labels = frame["sentiment"].to_numpy(dtype=object, copy=True)
    labels[flipped] = np.where(labels[flipped] == "pos", "neg", "pos")
    classifier = make_pipeline(TfidfVectorizer(min_df=2), LogisticRegression(C=10))
    issues = find_label_issues(frame["review"], labels, classifier)
    found = set(issues["row"][issues["is_issue"]])
    assert len(found & set(flipped)) > 60
    assert issues["row"][:20].isin(flipped).mean() > 0.5


def test_of_several_labels_those_that_look_wrong_are_turned() -> None:
    random = np.random.default_rng(0)
    truth = random.random((300, 3)) < 0.4
    words = np.array(["red", "green", "blue"])
    texts = [" ".join(["some", *words[row], f"thing{number}"]) for number, row in enumerate(truth)]
    given = truth.copy()
    given[:15, 0] ^= True
    classifier = make_pipeline(TfidfVectorizer(min_df=2), OneVsRestClassifier(LogisticRegression(C=100)))
    frame = pd.DataFrame(given.astype(int), columns=words)
    issues = find_label_issues(texts, frame, classifier).set_index("row")
    found = issues.index[issues["is_issue"]]
    assert len(set(found) & set(range(15))) >= 10
    assert len(found) < 20
    for row in range(300):
        assert issues["given_label"][row] == "|".join(words[given[row]])
        believed = truth if row in found and row < 15 else given
        if row not in found or row < 15:
            assert issues["suggested_label"][row] == "|".join(words[believed[row]])


def test_a_label_that_all_rows_have_or_none_is_never_turned() -> None:
    texts = [f"{'red' if number % 2 else 'blue'} thing{number}" for number in range(80)]
    red = np.arange(80) % 2
    red[:5] ^= 1
    frame = pd.DataFrame({"red": red, "all": 1, "none": 0})
    issues = find_label_issues(texts, frame, _Forest())
    assert set(issues["row"][issues["is_issue"]]) == set(range(5))
    assert issues["suggested_label"].isin(["red|all", "all"]).all()


class _Forest(BaseEstimator):
    """Probabilities of several labels, (N, K), some of which may be the same in all rows."""

    def fit(self, X: list[str], y: np.ndarray) -> "_Forest":
        self.shares_ = y.mean(axis=0)
        return self

    def predict_proba(self, X: list[str]) -> np.ndarray:
        red = np.array([0.9 if text.startswith("red") else 0.1 for text in X])
        return np.stack([red, np.full(len(X), self.shares_[1]), np.full(len(X), self.shares_[2])], axis=1)


def test_equal_texts_judge_each_other_never_and_contradictions_are_told() -> None:
    texts = [f"text {number % 50}" for number in range(200)]
    labels = np.arange(200) % 50 % 2
    labels[150] ^= 1
    fold = assign_folds(texts, labels, 5, seed=1)
    assert pd.Series(fold).groupby(texts).nunique().max() == 1
    assert np.bincount(fold).min() >= 30
    several = assign_folds(texts, np.stack([labels, 1 - labels], axis=1).astype(np.float32), 4, seed=1)
    assert pd.Series(several).groupby(texts).nunique().max() == 1
    assert np.bincount(several).min() >= 40
    classifier = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression())
    issues = find_label_issues(texts, labels, classifier).set_index("row")
    assert sorted(issues.index[issues["conflict"]]) == [0, 50, 100, 150]
    assert issues["repeats"].eq(3).all()


def test_a_label_that_a_fold_lacks_has_no_probability() -> None:
    texts = Texts([f"a {number}" for number in range(10)] + ["b", "c"], None)
    y = np.array(["10"] * 5 + ["9"] * 5 + ["2", "2"], dtype=object)
    fold = np.array([0, 1] * 5 + [0, 0])
    classifier = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression())
    probabilities = out_of_fold(classifier, texts, y, np.array(["2", "9", "10"], dtype=object), fold)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (probabilities[fold == 0, 0] == 0).all()
    assert (probabilities[fold == 1, 0] > 0).all()


BAD = [
    (["--data=x.csv", "--folds=1"], ConfigError, "--folds 1: should be 2 or more"),
    (["--data=x.csv", "--retrain"], ConfigError, "--retrain needs --test_data"),
    (["--data=x.csv", "--decisions=d.csv"], ConfigError, "--decisions goes with --retrain"),
    (["--data=x.csv", "--retrain", "--test_data=t.csv", "--seeds=0"], ConfigError, "--seeds 0"),
    (["--data=x.csv", "--valid_data=v.csv"], ConfigError, "valid_data has no meaning here"),
    (["--data=x.csv", "--fold=3"], ConfigError, "unknown argument '--fold=3'"),
    (["--resume=nowhere"], DataError, "no config.yaml is there"),
    (["--data=missing.csv"], DataError, "missing.csv"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_what_cannot_be_done_is_one_line(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(*arguments)


def test_a_training_is_no_directory_to_go_on_from(tmp_path: Path, tables: tuple[str, str]) -> None:
    (tmp_path / "config.yaml").write_text(Config(data=tables[0]).to_yaml())
    with pytest.raises(DataError, match="holds no label_issues.json"):
        run(f"--resume={tmp_path}")


@pytest.mark.parametrize(
    ("y", "folds", "message"),
    [
        ([0, 1, 1, 1], 2, "1 labels have one row"),
        ([0, 0, 1, 1], 5, "folds=5: should be from 2 to the number of rows, 4"),
        ([0, 0, 1], 2, "X has 4 rows and y 3"),
        ([[1, 0], [0, 1], [1, 1], [0, 0]], 5, "folds=5"),
    ],
)
def test_rows_that_cannot_be_judged_are_a_value_error(y: list[int], folds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_label_issues(["a", "b", "c", "d"], y, folds=folds)
