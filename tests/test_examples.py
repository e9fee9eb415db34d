"""examples.py: pairs, and rows with several labels, whatever form the table gives them in."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from config import Config, DataError
from examples import Examples, read_examples

LABELS = [("joy", "love"), (), ("anger",)]


def read(path: Path, **options: Any) -> Examples:
    return read_examples(str(path), Config(data=str(path), **options))


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_separated_labels_lists_and_columns_of_0_and_1_are_the_same_labels(tmp_path: Path) -> None:
    separated = write(tmp_path / "s.csv", "text,label\na,love | joy\nb,\nc,anger\n")
    assert read(separated, label_separator="|").labels == LABELS
    assert read(separated, label_separator=" | ").labels == LABELS
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": ["love", "joy"]},
        {"text": "b", "label": None},
        {"text": "c", "label": ["anger"]},
    ]
    listed = write(tmp_path / "l.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(listed).labels == LABELS
    pd.DataFrame(rows).to_parquet(tmp_path / "l.parquet")
    assert read(tmp_path / "l.parquet").labels == LABELS
    columns = write(tmp_path / "c.csv", "text,anger,joy,love\na,0,1,1\nb,0,0,0\nc,1,0,0\n")
    assert read(columns, label_column="anger, joy, love").labels == LABELS
    assert read(columns, label_column=["anger", "joy", "love"]).labels == LABELS
    typed = pd.DataFrame(
        {"text": list("abc"), "anger": [0.0, 0.0, 1.0], "joy": [1, 0, 0], "love": [True, False, False]}
    )
    typed.to_parquet(tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet", label_column="anger,joy,love").labels == LABELS


def test_a_folder_of_texts_has_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder of texts has no second texts; leave text_pair_column out"):
        read(tmp_path, text_pair_column="file")


def test_a_column_whose_name_holds_commas_is_one_column(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", 'text,"a,b"\nx,yes\n')
    assert read(table, label_column="a,b").labels == [("yes",)]


def test_a_plain_column_may_have_rows_without_a_label_only_where_the_task_is_multilabel(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "text,label\nx,a\ny, \n")
    assert read(table, task="multilabel").labels == [("a",), ()]
    with pytest.raises(DataError, match=r"column 'label' is empty in 1 row \(2\)"):
        read(table)


def test_second_texts_are_read_and_may_be_empty(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "text,other,label\nx,X,a\ny,,b\n")
    examples = read(table, text_pair_column="other")
    assert examples.pairs == ["X", ""]
    assert examples.take([1]).pairs == [""]
    assert read(table).pairs is None


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text,label\nx,a|\n", {"label_separator": "|"}, "row 1, column 'label': one of the labels ['a', ''] is empty"),
        ("text,label\nx,a|b\ny,b|a|b\n", {"label_separator": "|"}, "row 2, column 'label': holds a label twice"),
        ("text,a,b\nx,0,1\ny,2,0\n", {"label_column": "a,b"}, "row 2, column 'a': holds '2'; where label_column names"),
        ("text,a,b\nx,0,\n", {"label_column": "a,b"}, "row 1, column 'b': holds ''; where label_column names several"),
        (
            "text,a,b\nx,0,1\n",
            {"label_column": "a,c"},
            "no column 'c': the table has 'text', 'a', 'b'; set label_column",
        ),
        ("text,label\nx,a\n", {"text_pair_column": "txt"}, "no column 'txt': did you mean 'text'? the table has"),
        ("text,a,b\nx,0,1\n", {"label_column": "a,b,a"}, "label_column names a column twice: 'a,b,a'"),
        (
            "text,label\nx,\"['a', 'b']\"\ny,[]\n",
            {},
            "holds lists written as text, such as \"['a', 'b']\": save the table as",
        ),
    ],
)
def test_labels_and_pairs_that_cannot_be_used_are_refused_with_the_place(
    tmp_path: Path, content: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "t.csv", content), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_beside_plain_labels_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.jsonl", '{"text": "x", "label": ["a"]}\n{"text": "y", "label": "b"}\n')
    with pytest.raises(DataError, match="row 2, column 'label': holds str 'b' where other rows hold lists of labels"):
        read(table)


def test_a_fingerprint_is_of_texts_pairs_and_labels_in_their_order_and_of_nothing_else(tmp_path: Path) -> None:
    def fingerprint(rows: str, **options: Any) -> str:
        table = write(tmp_path / "t.csv", f"text,other,label,id\n{rows}")
        return read(table, text_pair_column="other", **options).fingerprint()

    first = fingerprint("a,b,x,1\nc,d,y,2\n")
    assert first == fingerprint("a,b,x,3\nc,d,y,4\n")
    changed = ["c,d,y,2\na,b,x,1\n", "a,b,y,1\nc,d,y,2\n", "ab,,x,1\nc,d,y,2\n", "a,b,x,1\n"]
    assert len({first, *map(fingerprint, changed)}) == 5
    assert fingerprint("a,b,x|y,1\n", label_separator="|") != fingerprint("a,b,x|y,1\n")
