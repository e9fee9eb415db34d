"""splits.py: stratified, seeded, complete, and honest about repeated texts."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeTable, real_data
from sklearn.model_selection import train_test_split

from config import Config, DataError
from splits import iterative_stratification, load_splits

ROWS = [(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(200)]


def test_by_default_a_tenth_validates_with_each_label_in_proportion(table: MakeTable) -> None:
    splits = load_splits(Config(data=table(ROWS)))
    assert splits.valid is not None
    assert Counter(splits.train.labels) == {("common",): 162, ("rare",): 18}
    assert Counter(splits.valid.labels) == {("common",): 18, ("rare",): 2}
    assert sorted(splits.train.rows + splits.valid.rows) == list(range(1, 201))
    assert splits.notes == []


def test_parts_keep_the_order_of_the_table(table: MakeTable) -> None:
    splits = load_splits(Config(data=table(ROWS), valid_split=0.25))
    assert splits.valid is not None
    for part in (splits.train, splits.valid):
        assert part.rows == sorted(part.rows)
        assert part.texts == [ROWS[row - 1][0] for row in part.rows] == list(part.frame["text"])


def test_the_seed_decides_the_split(table: MakeTable) -> None:
    def valid_rows(seed: int) -> list[int]:
        valid = load_splits(Config(data=path, seed=seed)).valid
        assert valid is not None
        return valid.rows

    path = table(ROWS)
    assert valid_rows(1) == valid_rows(1) != valid_rows(2)


@pytest.mark.parametrize(
    ("options", "train", "valid", "unused"),
    [
        ({"train_split": 0.8}, 160, 40, 0),
        ({"train_split": 0.8, "valid_split": 0.2}, 160, 40, 0),
        ({"train_split": 0.3, "valid_split": 0.1}, 60, 20, 120),
        ({"train_split": 100, "valid_split": 50}, 100, 50, 50),
        ({"valid_split": 30}, 170, 30, 0),
        ({"valid_split": 0}, 200, 0, 0),
        ({"train_split": 0.5, "valid_split": 0}, 100, 0, 100),
    ],
)
def test_splits_are_fractions_or_counts_and_unused_rows_are_told(
    table: MakeTable, options: dict[str, float], train: int, valid: int, unused: int
) -> None:
    splits = load_splits(Config(data=table(ROWS), **options))
    assert (len(splits.train), len(splits.valid) if splits.valid else 0) == (train, valid)
    assert [note.split(" rows")[0] for note in splits.notes] == ([f"{unused} of 200"] if unused else [])


def test_a_published_split_by_scikit_learn_comes_out_row_for_row() -> None:
    path = real_data("quora_train.csv")
    frame = pd.read_csv(path)
    train, rest = train_test_split(frame, train_size=0.1, random_state=42, stratify=frame["target"])
    valid, _ = train_test_split(rest, train_size=0.01, random_state=42, stratify=rest["target"])
    ours = load_splits(
        Config(data=path, text_column="question_text", label_column="target", train_split=0.1, valid_split=len(valid))
    )
    assert ours.valid is not None
    assert ours.train.texts == train.sort_index()["question_text"].tolist()
    assert ours.valid.texts == valid.sort_index()["question_text"].tolist()


@pytest.mark.parametrize("size", [4341, 1000])
def test_rare_labels_are_in_every_part_of_real_multi_label_rows(size: int) -> None:
    """The rarest of these 28 labels has 77 of 43,410 rows."""
    path = real_data("goemotions_train.csv")
    splits = load_splits(Config(data=path, label_column="labels", label_separator="|", valid_split=size))
    assert splits.valid is not None
    assert len(splits.valid) == size
    whole, part = (splits.task.targets(rows.labels) for rows in (splits.train, splits.valid))
    assert part.sum(axis=0).min() >= 1
    expected = (whole.sum(axis=0) + part.sum(axis=0)) * size / 43410
    assert np.abs(part.sum(axis=0) - expected).max() < 4  # a plain random split is off by 15 to 40
    assert splits.notes[1:] == []


def test_iterative_stratification_takes_exactly_so_many_and_leaves_each_label_on_both_sides() -> None:
    random = np.random.default_rng(0)
    for trial in range(50):
        shares = random.choice([0.003, 0.02, 0.2, 0.6], 8)
        indicators = random.random((400, 8)) < shares
        indicators[:2, indicators.sum(axis=0) < 2] = True
        size = int(random.integers(40, 360))
        chosen = iterative_stratification(indicators, size, seed=trial)
        assert chosen.sum() == size
        assert (indicators[chosen].any(axis=0) & indicators[~chosen].any(axis=0)).all()
        assert (chosen == iterative_stratification(indicators, size, seed=trial)).all()


def test_the_training_table_decides_that_rows_may_have_no_label(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": [["a"], ["a", "b"], None][i % 3]} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text('{"text": "x", "label": null}\n{"text": "y"}\n')
    splits = load_splits(
        Config(data=str(tmp_path / "train.jsonl"), valid_split=0, test_data=str(tmp_path / "test.jsonl"))
    )
    assert splits.test is not None
    assert splits.test.labels == [(), ()]


def test_a_label_of_one_row_is_trained_on(tmp_path: Path) -> None:
    rows = [f"text {i},{'a|b' if i % 3 else 'b'}\n" for i in range(40)]
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(rows) + "last,single|a\n")
    for seed in range(3):
        splits = load_splits(Config(data=str(tmp_path / "t.csv"), label_separator="|", seed=seed))
        assert ("a", "single") in splits.train.labels
        assert "no validation row has the label 'single'" in splits.notes[0]


def test_pairs_repeat_only_where_both_texts_do_and_empty_second_texts_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"text,other {i},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "empty.csv").write_text("text,other,label\ntext,,a\nother, ,b\n")
    with pytest.raises(DataError, match="column 'other' is empty in every row; set text_pair_column"):
        load_splits(Config(data=str(tmp_path / "empty.csv"), valid_split=0, text_pair_column="other"))
    (tmp_path / "train.csv").write_text("text,other,label\n" + rows)
    (tmp_path / "test.csv").write_text("text,other,label\ntext,other 1,a\ntext,new,b\ntext,,b\n")
    test = str(tmp_path / "test.csv")
    splits = load_splits(
        Config(data=str(tmp_path / "train.csv"), valid_split=0, test_data=test, text_pair_column="other")
    )
    assert splits.notes == [
        f"{test}: 1 row (3) of the test part have an empty second text, and stay",
        f"{test}: 1 row (1) of the test part repeat the text of a training row; scores on them flatter",
    ]


def test_repeated_texts_across_parts_are_counted(table: MakeTable, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\ntext 1,common\nnew,rare\ntext 2,common\n")
    splits = load_splits(Config(data=table(ROWS), valid_split=0, test_data=str(tmp_path / "test.csv")))
    assert splits.notes == [
        f"{tmp_path / 'test.csv'}: 2 rows (1, 3) of the test part repeat the text of a training row; scores on them flatter"
    ]


def test_test_rows_are_compared_with_validation_rows_too(table: MakeTable, tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text("text,label\nnew,common\nother,rare\n")
    (tmp_path / "test.csv").write_text("text,label\nnew,common\nnewer,rare\n")
    splits = load_splits(
        Config(data=table(ROWS), valid_data=str(tmp_path / "valid.csv"), test_data=str(tmp_path / "test.csv"))
    )
    [note] = splits.notes
    assert "1 row (1) of the test part repeat the text of a training or validation row" in note


def test_a_column_with_the_name_of_a_prediction_column_is_refused(tmp_path: Path) -> None:
    for name in ("probability", "predicted_label", "probability_common"):
        path = tmp_path / "t.csv"
        path.write_text(f"text,label,{name}\n" + "".join(f"{text},{label},0\n" for text, label in ROWS))
        with pytest.raises(DataError, match=f"column '{name}' has the name of a prediction column"):
            load_splits(Config(data=str(path)))
        assert load_splits(Config(data=str(path), valid_split=0)).valid is None


def test_a_label_that_looks_like_a_missing_value_is_told(table: MakeTable) -> None:
    rows = [(f"text {number}", label) for number, label in enumerate(["a", "b", "NaN"] * 10)]
    notes = load_splits(Config(data=table(rows))).notes
    assert any("'NaN' looks like a missing value and is taken as a label" in note for note in notes)


def test_a_label_that_validation_lacks_is_told(table: MakeTable, tmp_path: Path) -> None:
    (tmp_path / "valid.csv").write_text("text,label\nnew,common\n")
    splits = load_splits(Config(data=table(ROWS), valid_data=str(tmp_path / "valid.csv")))
    assert splits.notes == [f"{tmp_path / 'valid.csv'}: no validation row has the label 'rare'"]
    assert len(splits.train) == 200


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("x", "a"), ("y", "a")], {}, "column 'label' holds one class only ('a')"),
        ([*ROWS, ("x", "single")], {}, "label 'single' (row 201) has one row only"),
        (ROWS, {"valid_split": 1e-9}, "cannot take 199 training and 1 validation rows out of 200"),
        (ROWS, {"train_split": 150, "valid_split": 100}, "cannot take 150 training and 100 validation rows out of 200"),
        (
            ROWS,
            {"valid_split": 200},
            "cannot take 0 training and 200 validation rows out of 200: change train_split or valid_split",
        ),
        ([(f"text {i}", str(i)) for i in range(9)], {}, "label '0' (row 1) and 8 more labels have one row only"),
    ],
)
def test_what_cannot_be_split_is_refused(
    table: MakeTable, rows: list[tuple[str, str]], options: dict[str, float], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_splits(Config(data=table(rows), **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_labels_and_empty_texts_are_refused_in_validation_and_told_in_test(
    table: MakeTable, tmp_path: Path
) -> None:
    (tmp_path / "other.csv").write_text("text,label\nx,common\ny,Rare\nz,rare\n")
    path, other = table(ROWS), str(tmp_path / "other.csv")
    with pytest.raises(
        DataError, match=r"label 'Rare' in 1 row \(2\) is unknown: the training table has 'common', 'rare'"
    ):
        load_splits(Config(data=path, valid_data=other))
    splits = load_splits(Config(data=path, test_data=other))
    assert splits.test is not None
    assert (splits.test.texts, splits.test.rows) == (["x", "z"], [1, 3])
    assert f"{other}: label 'Rare' in 1 row (2) is unknown to the model: left out of the scores" in splits.notes
    (tmp_path / "other.csv").write_text("text,label\n ,common\ny,rare\n")
    splits = load_splits(Config(data=path, test_data=other))
    assert splits.notes[0] == f"{other}: the text is empty in 1 row (1), scored as such"
    with pytest.raises(DataError, match=r"column 'text' is empty in 1 row \(1\)"):
        load_splits(Config(data=path, valid_data=other))
    (tmp_path / "other.csv").write_text("text,label\ny,Rare\n")
    with pytest.raises(DataError, match="and no other row is left: the model knows 'common', 'rare'"):
        load_splits(Config(data=path, test_data=other))
