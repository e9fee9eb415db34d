"""prediction_files.py: what is written reads back as it was, once and in order, however often the writing was interrupted."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from config import DataError
from prediction_files import PredictionFile, as_csv
from tables import read_table

KINDS = [".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".parquet"]
TEXTS = [
    "NA",
    "",
    "null",
    'a "quote"',
    "a, b\tc",
    "two\nlines",
    "lone\rreturn",
    "both\r\n",
    "nul\0",
    "🥭 é",
    " x ",
    "\u2028",
]
PROBABILITIES = np.array([0.1, 1e-7, 1 / 3, 0.0, 1.0, *np.linspace(0.01, 0.9, 7)], dtype=np.float32)
FRAME = pd.DataFrame({"text": TEXTS, "id": range(12), "probability": PROBABILITIES})
JOB = {"input": "reviews.csv", "size of the input": 12, "columns": ["text"]}


def write(path: Path, frames: list[pd.DataFrame], job: dict[str, Any] = JOB) -> None:
    with PredictionFile(path, job) as output:
        for frame in frames:
            output.write(frame)
        output.finish()


def parts(rows: int = 5) -> list[pd.DataFrame]:
    return [FRAME.iloc[start : start + rows] for start in range(0, len(FRAME), rows)]


def assert_written(path: Path) -> None:
    frame = read_table(str(path))
    assert list(frame.columns) == ["text", "id", "probability"]
    assert frame["text"].tolist() == TEXTS
    assert [int(value) for value in frame["id"]] == list(range(12))
    assert [np.float32(value) for value in frame["probability"]] == PROBABILITIES.tolist()
    assert sorted(path.parent.iterdir()) == [path]


def refusal(path: Path, *frames: pd.DataFrame, job: dict[str, Any] = JOB) -> str:
    with pytest.raises(DataError) as caught:
        write(path, list(frames), job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_nasty_texts_and_numbers_read_back_from_every_kind(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"out{kind}", parts())
    assert_written(tmp_path / f"out{kind}")


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
def test_a_csv_in_chunks_is_the_csv_of_the_whole(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, parts())
    content = (tmp_path / name).read_bytes()
    assert (gzip.decompress(content) if name.endswith(".gz") else content).decode() == as_csv(FRAME)
    assert pd.read_csv(tmp_path / name, keep_default_na=False, lineterminator="\n")["text"].tolist() == TEXTS


def test_numbers_of_32_bits_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    assert as_csv(FRAME).splitlines()[1:3] == ['"NA",0,0.1', '"",1,1e-07']
    arrow = FRAME.astype({"probability": pd.ArrowDtype(pa.float32())})
    assert as_csv(arrow) == as_csv(FRAME)
    write(tmp_path / "out.jsonl", [FRAME, arrow])
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines[:2] == ['{"text": "NA", "id": 0, "probability": 0.1}', '{"text": "", "id": 1, "probability": 1e-07}']
    assert lines[:12] == lines[12:24]


def test_missing_cells_lists_and_mixed_cells_are_kept_where_the_kind_has_them(tmp_path: Path) -> None:
    cells = [
        None,
        float("nan"),
        ["é", None, float("nan")],
        {"a": np.array([1, 2])},
        9007199254740993,
        True,
        "x",
        1e400,
        pd.NA,
    ]
    frame = pd.DataFrame({"cell": cells, "text": "t"}, dtype=object)
    write(tmp_path / "out.jsonl", [frame])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [None, None, ["é", None, None], {"a": [1, 2]}, 9007199254740993, True, "x", None, None]
    assert [row["cell"] for row in rows] == plain
    assert "é" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    write(tmp_path / "out.csv", [frame])
    written = ["", "", '["é", null, null]', '{"a": [1, 2]}', "9007199254740993", "True", "x", "inf", ""]
    assert read_table(str(tmp_path / "out.csv"))["cell"].tolist() == written


def test_columns_of_a_parquet_input_go_into_every_kind(tmp_path: Path) -> None:
    schema = pa.schema([("ids", pa.list_(pa.int64())), ("id", pa.int64()), ("text", pa.string())])
    rows = [{"ids": [1, 2], "id": 9007199254740993, "text": "x"}, {"ids": None, "id": None, "text": None}]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "in.parquet")
    frame = read_table(str(tmp_path / "in.parquet"))
    for kind in KINDS:
        write(tmp_path / f"out{kind}", [frame.iloc[:1], frame.iloc[1:]])
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows
    assert read_table(str(tmp_path / "out.jsonl")).to_dict("records") == rows
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["[1, 2]", "9007199254740993", "x"], ["", "", ""]]


def test_parquet_columns_become_one_type_over_the_chunks(tmp_path: Path) -> None:
    chunks = [
        pd.DataFrame({"a": [1, 2], "b": [None, None], "c": [[], []]}),
        pd.DataFrame({"b": ["x"], "a": [0.5], "c": [["y"]], "d": [True]}),
    ]
    write(tmp_path / "out.parquet", chunks)
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == {
        "a": [1.0, 2.0, 0.5],
        "b": [None, None, "x"],
        "c": [[], [], ["y"]],
        "d": [None, None, True],
    }


def test_a_parquet_output_has_row_groups_of_a_useful_size(tmp_path: Path) -> None:
    write(
        tmp_path / "out.parquet", [pd.DataFrame({"a": range(start, start + 1000)}) for start in range(0, 70_000, 1000)]
    )
    with pq.ParquetFile(tmp_path / "out.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [66_000, 4_000]
        assert file.read()["a"].to_pylist() == list(range(70_000))


def test_rows_of_a_csv_in_another_order_of_columns_go_under_the_header(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", [pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"b": [2], "a": [1]})])
    assert (tmp_path / "out.csv").read_text() == '"a","b"\n1,2\n1,2\n'


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("out.csv", [{"a": [1], "b": [2]}, {"a": [1]}], "rows 2 to 2: column 'b' is missing: choose .jsonl"),
        ("out.csv", [{"a": [1]}, {"a": [1], "b": [2]}], "column 'b' is not in the rows before: choose .jsonl"),
        ("out.csv", [{"a": ["\ud83d"]}], "rows 1 to 1: hold half of a character"),
        ("out.parquet", [{"a": ["x\ud83d"]}], "rows 1 to 1: hold half of a character"),
        (
            "out.parquet",
            [{"a": [1]}, {"a": ["x"]}],
            "rows 2 to 2: of other types than the rows before (Unable to merge: Field a",
        ),
        ("out.parquet", [{"a": [1, "x"]}], "rows 1 to 2: cannot be Parquet (Could not convert 'x'"),
        ("out.parquet", [{"a": [2**70]}], "cannot be Parquet (Python int too large to convert"),
        (
            "out.parquet",
            [{"a": [2**60]}, {"a": [0.5]}],
            "rows 2 to 2: of other types than the rows before (Integer value 1152921504606846976 not in range",
        ),
        ("out.tsv", [], "a TSV cannot hold texts with tabs or line breaks: name it .csv, .jsonl"),
        ("out.csv.xz", [], "unknown kind of output '.xz': name it .csv, .jsonl or .ndjson, with .gz after it"),
        ("out.parquet.gz", [], "unknown kind of output '.parquet.gz'"),
        ("out", [], "unknown kind of output 'without a suffix'"),
        ("none/out.csv", [], "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, name: str, frames: list[dict[str, list[Any]]], message: str
) -> None:
    assert message in refusal(tmp_path / name, *(pd.DataFrame(frame, dtype=object) for frame in frames))


def test_half_a_character_is_an_escape_in_jsonl(tmp_path: Path) -> None:
    write(tmp_path / "out.jsonl", [pd.DataFrame({"a": ["cut \ud83d"]}, dtype=object)])
    assert json.loads((tmp_path / "out.jsonl").read_text())["a"] == "cut \ud83d"


def test_a_column_that_would_occur_twice_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame([[1, 2]], columns=["probability", "probability"])
    assert refusal(tmp_path / "out.csv", frame).endswith(
        "column 'probability' would occur twice: rename it in the input"
    )


def test_an_existing_output_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    assert refusal(tmp_path / "out.csv").endswith("out.csv: exists already: choose another --output, or remove it")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_an_output_that_came_into_being_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    output = PredictionFile(tmp_path / "out.csv", JOB)
    output.write(FRAME)
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        output.finish()
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_without_rows_there_is_no_output(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", [FRAME.iloc[:0]])
    assert list(tmp_path.iterdir()) == []


# Interruptions


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_job_goes_on_after_the_last_whole_chunk(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out{kind}"
    with PredictionFile(path, JOB) as output:
        assert output.rows_done == 0
        output.write(FRAME.iloc[:2])
        output.write(FRAME.iloc[2:7])
    assert not path.exists()
    (output.partial / "rows.tmp").write_bytes(b"half")
    (output.partial / "merged.tmp").write_bytes(b"half")
    with PredictionFile(path, {**JOB, "columns": ("text",)}) as output:
        assert output.rows_done == 7
        output.write(FRAME.iloc[7:])
        output.finish()
    assert_written(path)


def test_a_chunk_that_lost_its_end_and_those_after_it_are_written_again(tmp_path: Path) -> None:
    with PredictionFile(tmp_path / "out.csv", JOB) as output:
        for frame in parts(3):
            output.write(frame)
    second = sorted(output.partial.glob("rows-*"))[1]
    second.write_bytes(second.read_bytes()[:-1])
    with PredictionFile(tmp_path / "out.csv", JOB) as output:
        assert output.rows_done == 3
        for frame in (FRAME.iloc[3:8], FRAME.iloc[8:]):
            output.write(frame)
        output.finish()
    assert_written(tmp_path / "out.csv")


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_finish_is_finished_later(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"out{kind}"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with PredictionFile(path, JOB) as output:
        for frame in parts():
            output.write(frame)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                output.finish()
    assert not path.exists()
    with PredictionFile(path, JOB) as output:
        assert output.rows_done == len(FRAME)
        output.finish()
    assert_written(path)


def test_a_full_disk_leaves_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with PredictionFile(tmp_path / "out.csv", JOB) as output:
        output.write(FRAME.iloc[:4])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            with pytest.raises(OSError, match="No space left"):
                output.write(FRAME.iloc[4:])
        output.write(FRAME.iloc[4:])
        output.finish()
    assert_written(tmp_path / "out.csv")


def test_a_killed_process_leaves_whole_chunks_and_no_lock(tmp_path: Path) -> None:
    program = """
import os, sys, pandas as pd
from pathlib import Path
from prediction_files import PredictionFile
output = PredictionFile(Path(sys.argv[1]), {})
output.write(pd.DataFrame({"a": [1, 2]}))
Path.write_bytes = lambda path, content: (path.open("wb").write(content[:3]), os.kill(os.getpid(), 9))
output.write(pd.DataFrame({"a": [3]}))
"""
    path = tmp_path / "out.csv"
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    with PredictionFile(path, {}) as output:
        assert output.rows_done == 2
        output.write(pd.DataFrame({"a": [3]}))
        output.finish()
    assert path.read_text() == '"a"\n1\n2\n3\n'


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({**JOB, "size of the input": 13}, "another job: size of the input was 12 and is 13: remove the folder"),
        ({**JOB, "model": "m"}, "another job: model was None and is 'm'"),
        ({"input": "reviews.csv"}, "another job: size of the input was 12 and is None"),
    ],
)
def test_another_job_does_not_go_on_here(tmp_path: Path, job: dict[str, Any], message: str) -> None:
    with PredictionFile(tmp_path / "out.csv", JOB) as output:
        output.write(FRAME.iloc[:3])
    before = sorted(output.partial.iterdir())
    assert message in refusal(tmp_path / "out.csv", job=job)
    assert sorted(output.partial.iterdir()) == before


def test_what_failed_before_its_first_rows_is_in_nobodys_way(tmp_path: Path) -> None:
    assert "would occur twice" in refusal(tmp_path / "out.csv", pd.DataFrame([[1, 2]], columns=["a", "a"]))
    assert list(tmp_path.iterdir()) == []
    PredictionFile(tmp_path / "out.csv", {"input": "killed before its first rows"}).close()
    write(tmp_path / "out.csv", parts())
    assert_written(tmp_path / "out.csv")


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = PredictionFile(tmp_path / "out.csv", JOB)
    first.write(FRAME.iloc[:3])
    assert "out.csv: another process is writing it: wait for its end, or choose" in refusal(tmp_path / "out.csv")
    del first
    with PredictionFile(tmp_path / "out.csv", JOB) as second:
        assert second.rows_done == 3


def test_what_is_in_the_way_of_the_folder_is_named_and_kept(tmp_path: Path) -> None:
    partial = tmp_path / "out.csv.partial"
    partial.write_text("mine")
    assert "out.csv.partial: is in the way: remove it" in refusal(tmp_path / "out.csv")
    partial.unlink()
    partial.mkdir()
    (partial / "notes.tmp").write_text("mine")
    assert "out.csv.partial: holds 'notes.tmp' but no job.json: remove the folder" in refusal(tmp_path / "out.csv")
    (partial / "job.json").write_text("{")
    (partial / "rows-000000000000-1-4").write_text('"a"\n')
    assert "job.json: cannot be read (Expecting" in refusal(tmp_path / "out.csv")
    assert (partial / "notes.tmp").read_text() == "mine"
