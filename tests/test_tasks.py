"""tasks.py: what is learnt is decided from the labels, said in one line, and can be overruled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeTable

from config import Config, DataError
from examples import read_examples
from splits import load_splits
from tasks import Task, decide_task, sort_labels


def decide(path: str, **options: Any) -> tuple[Task, str]:
    config = Config(data=path, **options)
    return decide_task(read_examples(path, config), config)


@pytest.mark.parametrize(
    ("labels", "options", "kind", "reason"),
    [
        ("a b", {}, "binary", "binary (2 labels in 'label', one a row)"),
        ("a b c", {}, "multiclass", "multiclass (3 labels in 'label', one a row)"),
        ("a b", {"task": "multiclass"}, "multiclass", "multiclass (2 labels in 'label', one a row; as task says)"),
        (
            "a a|b c",
            {"label_separator": "|"},
            "multilabel",
            "multilabel (3 labels in 'label', 1 of 3 rows have several, 0 have none)",
        ),
        (
            "a b c",
            {"label_separator": "|"},
            "multiclass",
            "multiclass (3 labels in 'label', one a row; if later rows may have several or none, set task=multilabel)",
        ),
        (
            "a b c",
            {"label_separator": "|", "task": "multilabel"},
            "multilabel",
            "multilabel (3 labels in 'label', 0 of 3 rows have several, 0 have none; as task says)",
        ),
        ("a|b a", {}, "binary", "binary (2 labels in 'label', one a row)"),
        ("0.5 1.5 1", {}, "multiclass", "multiclass (3 labels in 'label', one a row)"),
    ],
)
def test_the_task_follows_from_the_labels(
    table: MakeTable, labels: str, options: dict[str, str], kind: str, reason: str
) -> None:
    task, said = decide(table([(f"text {i}", label) for i, label in enumerate(labels.split())]), **options)
    assert (task.kind, said) == (kind, reason)


def test_many_numbers_with_decimals_are_a_quantity_unless_the_task_is_set(table: MakeTable) -> None:
    path = table([(f"text {i}", f"{i / 8}") for i in range(40)])
    with pytest.raises(
        DataError, match=r"column 'label' holds 40 distinct numbers such as 0\.125: a quantity, not classes"
    ):
        decide(path)
    task, _ = decide(path, task="multiclass")
    assert task.labels[:3] == ["0.0", "0.125", "0.25"]


def test_many_whole_numbers_are_classes(table: MakeTable) -> None:
    assert decide(table([(f"text {i}", str(i)) for i in range(40)]))[0].kind == "multiclass"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [("x", "a"), ("y", "b"), ("z", "c")],
            {"task": "binary"},
            "task=binary takes two labels, column 'label' has 3",
        ),
        (
            [("x", "a|b"), ("y", "b")],
            {"task": "binary", "label_separator": "|"},
            "several labels in 1 row (1), and the task is binary, with one label a row; mend the rows, or set task=multilabel",
        ),
        (
            [("x", ""), ("y", "b"), ("z", "a")],
            {"task": "multiclass", "label_separator": "|"},
            "no label in 1 row (1), and the task is multiclass",
        ),
        ([("x", "a"), ("y", "")], {"label_separator": "|"}, "column 'label' holds one class only ('a')"),
        ([("x", ""), ("y", "")], {"label_separator": "|"}, "column 'label' holds no label at all"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(
    table: MakeTable, rows: list[tuple[str, str]], options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        decide(table(rows), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_with_the_separator_in_it_is_refused(tmp_path: Path) -> None:
    """From lists and column names a label may hold anything, and predictions join labels by the separator."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "x", "label": ["a|b", "c"]}\n{"text": "y", "label": ["c"]}\n')
    with pytest.raises(
        DataError, match=r"label 'a\|b' contains '\|', which stands between labels in predictions: set label"
    ):
        decide(str(path))
    assert decide(str(path), label_separator=";")[0].separator == ";"


def test_a_column_of_zeros_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,a,b,c\nx,1,1,0\ny,0,1,0\n")
    with pytest.raises(
        DataError, match="column 'c' holds no 1: nothing can be learnt of it; leave it out of label_column"
    ):
        decide(str(path), label_column="a,b,c")
    assert decide(str(path), label_column="a,b")[0].labels == ["a", "b"]


@pytest.mark.parametrize("key", ["valid_data", "test_data"])
def test_rows_with_another_number_of_labels_than_the_task_has_are_refused(
    table: MakeTable, tmp_path: Path, key: str
) -> None:
    (tmp_path / "other.csv").write_text("text,label\nx,a|new\ny,b\nz,a|b\n")
    single = table([(f"text {i}", "a" if i % 2 else "b") for i in range(20)])
    with pytest.raises(DataError, match=r"several labels in 2 rows \(1, 3\), and the task is binary"):
        load_splits(Config(data=single, label_separator="|", **{key: str(tmp_path / "other.csv")}))


def test_numbers_sort_as_numbers_and_the_last_is_positive() -> None:
    assert sort_labels({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert sort_labels({"0.5", "10", "2"}) == ["0.5", "2", "10"]
    assert sort_labels({"pos", "neg"}) == ["neg", "pos"]


def test_targets_are_positions_or_indicators() -> None:
    single = Task("multiclass", ["a", "b", "c"])
    targets = single.targets([("c",), ("a",)])
    assert targets.dtype == np.int64
    assert targets.tolist() == [2, 0]
    assert single.indicators(targets).tolist() == [[0, 0, 1], [1, 0, 0]]
    several = Task("multilabel", ["a", "b", "c"])
    assert several.targets([("a", "c"), ()]).tolist() == [[1, 0, 1], [0, 0, 0]]
