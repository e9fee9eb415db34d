"""tables.py: what is read comes out as it stands; what cannot be used is refused in one line."""

import bz2
import gzip
import json
import lzma
import os
import socketserver
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, MakeTable

from config import Config, DataError
from examples import Examples, read_examples
from tables import read_chunks, read_table

TEXTS = ["NA", "null", "tab\tand, comma", 'a "quoted" word', "two\nlines", "naïve café 🥭", " spaced "]
LABELS = ["a", "b", "a", "b", "a", "b", "NA"]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})


def read(path: Path | str) -> Examples:
    return read_examples(str(path), Config(data=str(path)))


def refusal(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save(frame: pd.DataFrame, folder: Path, kind: str, suffix: str = "") -> Path:
    plain = folder / f"t{kind}"
    if kind == ".csv":
        frame.to_csv(plain, index=False)
    elif kind == ".jsonl":
        frame.to_json(plain, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_parquet(plain, row_group_size=5)
    path = folder / f"t{kind}{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, plain.name)
    elif suffix:
        path.write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[suffix].compress(plain.read_bytes()))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zip"])
@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_every_kind_and_compression_gives_the_same_examples(tmp_path: Path, kind: str, suffix: str) -> None:
    examples = read(save(FRAME, tmp_path, kind, suffix))
    assert (examples.texts, examples.labels, examples.rows) == (
        TEXTS,
        [(label,) for label in LABELS],
        [1, 2, 3, 4, 5, 6, 7],
    )


def test_a_quote_mark_in_a_tsv_is_text(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('text\tlabel\n"he said\ta\nshe said"\tb\n')
    assert read(path).texts == ['"he said', 'she said"']


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\nx,a\n")
    assert read(path).texts == ["x"]


def test_integer_labels_become_their_digits_whatever_the_file_made_of_them(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"text": ["x", "y"], "label": [0.0, 1.0]}).to_parquet(path)
    assert read(path).labels == [("0",), ("1",)]
    pd.DataFrame({"text": ["x", "y"], "label": [0, 1]}).to_parquet(path)
    assert read(path).labels == [("0",), ("1",)]
    (tmp_path / "t.jsonl").write_text('{"text": "x", "label": 0}\n\n{"text": "y", "label": true}\n')
    assert read(tmp_path / "t.jsonl").labels == [("0",), ("True",)]


def test_big_integers_beside_a_null_are_not_rounded(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame(
        {"text": ["x", "y"], "label": ["a", "b"], "id": pd.array([9007199254740993, None], "Int64")}
    ).to_parquet(path)
    assert read(path).frame["id"].tolist()[0] == 9007199254740993


def test_a_folder_of_classes_is_a_table(tmp_path: Path) -> None:
    for name, text in (
        ("pos/1.txt", "good"),
        ("pos/2.txt", "two\nlines"),
        ("neg/1.txt", "bad"),
        (".git/x", "hidden"),
        ("neg/.DS_Store", "hidden"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    examples = read(tmp_path)
    assert (examples.texts, examples.labels) == (["bad", "good", "two\nlines"], [("neg",), ("pos",), ("pos",)])
    assert list(examples.frame["file"]) == ["neg/1.txt", "pos/1.txt", "pos/2.txt"]


def test_a_zipped_csv_is_read_from_a_url(tmp_path: Path, served_folder: str) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.write(tmp_path / "t.csv", "t.csv")
    assert read(f"{served_folder}/t.csv.zip").texts == TEXTS
    assert "absent.csv: cannot be downloaded (HTTP 404," in refusal(f"{served_folder}/absent.csv")


def test_the_input_columns_are_kept_as_strings_untouched(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,text,label\n007,x,a\n,y,1.50\n")
    assert read(path).frame.to_dict("list") == {"id": ["007", ""], "text": ["x", "y"], "label": ["a", "1.50"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv: the file is empty"),
        ("t.csv", b" \n\n", "t.csv: the file is empty"),
        ("t.csv", b"text,label\n", "t.csv: a header but no rows"),
        (
            "t.csv",
            b"txt,label\nx,a\n",
            "no column 'text': did you mean 'txt'? the table has 'txt', 'label'; set text_column",
        ),
        ("t.csv", b"text,class\nx,a\n", "no column 'label': the table has 'text', 'class'; set label_column"),
        ("t.csv", b"text,label\nx,a\n,b\n \t,a\n", "column 'text' is empty in 2 rows (2, 3)"),
        ("t.csv", b"text,label\nx,\ny,b\n", "column 'label' is empty in 1 row (1)"),
        ("t.csv", b"text,label\nx,a\ncaf\xe9,b\n", "not UTF-8 in 1 line (3), the first byte is 0xe9"),
        ("t.csv", b"\xef\xbb\xbftext,label\n\xe9x,a\nb,\xff\n", "not UTF-8 in 2 lines (2, 3), the first byte is 0xe9"),
        ("t.csv", b"text;label\nx;a\n", "the header holds ';' and is one column: save the table with commas"),
        ("t.csv", "text,label\nx,a\n".encode("utf-16"), "is UTF-16; save the table as UTF-8"),
        ("t.csv", b"text,label,text\nx,a,y\n", "column 'text' occurs twice in the header"),
        ("t.csv", b"text,label,extra\nx,a\n", "line 2: 2 fields where the header has 3"),
        ("t.csv", b"id,text,label\n1,he\rllo,a\n", "fields where the header has 3"),
        ("t.csv", b"text,label\nx,a,more\ny,b\n", "line 2: 3 fields where the header has 2"),
        ("t.csv", b"text,label\nx,a\ny,b,more\n", "line 3: 3 fields where the header has 2"),
        ("t.csv", b'text,label\n"x,a\ny,b\n', "line 3: broken quoting (unexpected end of data)"),
        ("t.docx", b"text,label\n", "unknown kind of table '.docx'; name it .csv, .tsv, .jsonl"),
        ("t.xlsx", b"PK", "t.xlsx: is a spreadsheet: save it as CSV"),
        ("t", b"text,label\n", "unknown kind of table 'without a suffix'"),
        ("t.csv.gz", b"text,label\n", "broken .gz file"),
        ("t.csv.zip", b"text,label\n", "broken .zip file"),
        ("t.parquet", b"text,label\n", "not a Parquet table"),
        ("t.csv.gz", gzip.compress(b"text,label\nx,a\n" * 99, mtime=0)[:-20], "broken .gz file"),
        ("t.csv.bz2", bz2.compress(b"text,label\nx,a\n" * 99)[:-20], "broken .bz2 file"),
        ("t.jsonl", b'{"text": "cut \\ud83d", "label": "a"}\n', "row 1, column 'text': holds half of a character"),
        (
            "t.jsonl",
            b'{"text": "x", "label": 1e400}\n',
            "row 1, column 'label': holds inf; a label is a string or a number",
        ),
        ("t.jsonl", b"[" * 100000, "line 1: not JSON"),
        ("t.jsonl", b'{"text": "x", "label": "a"}\n{"text": \n', "line 2: not JSON"),
        ("t.jsonl", b'["x", "a"]\n', "line 1: holds a list"),
        (
            "t.jsonl",
            b'{"text": "x", "label": "a"}\n{"label": "a"}\n{"text": null, "label": "b"}\n',
            "column 'text' is empty in 2 rows (2, 3)",
        ),
        ("t.jsonl", b'{"text": 3, "label": "a"}\n', "row 1, column 'text': holds int 3, not a text"),
        (
            "t.jsonl",
            b'{"text": "x", "label": {"a": 1}}\n',
            "row 1, column 'label': holds dict {'a': 1}; a label is a string or a number",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_many_empty_rows_are_counted_and_the_first_named(table: MakeTable) -> None:
    assert "is empty in 9 rows (1, 2, 3, 4, 5, ...)" in refusal(table([("", "a")] * 9))


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\nx,a\n")
    assert refusal(tmp_path / "revews.csv").endswith(f"no such file: did you mean {tmp_path / 'reviews.csv'}?")


def test_a_zip_of_two_tables_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", "text,label\n")
        archive.writestr("b.csv", "text,label\n")
    assert "holds 2 files" in refusal(tmp_path / "t.zip")


def test_an_undecodable_text_file_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pos").mkdir()
    (tmp_path / "pos" / "1.txt").write_bytes(b"fine\n\xff\n")
    assert f"{tmp_path / 'pos' / '1.txt'}: not UTF-8 in 1 line (2), the first byte is 0xff" in refusal(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files in sub-folders"):
        read_table(str(tmp_path))


# Reading in chunks


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zip"])
@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_chunks_are_the_table_in_order_from_any_row_on(tmp_path: Path, kind: str, suffix: str) -> None:
    path = str(save(FRAME, tmp_path, kind, suffix))
    whole = read_table(path)
    for rows in (1, 2, 3, 7, 100):
        for skip in range(8):
            chunks = list(read_chunks(path, rows, skip))
            assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
            if skip < 7:
                pd.testing.assert_frame_equal(pd.concat(chunks), whole.iloc[skip:])
            else:
                assert chunks == []


def test_chunks_come_from_a_url_and_a_named_pipe(tmp_path: Path, served_folder: str) -> None:
    path = save(FRAME, tmp_path, ".parquet", ".gz")
    assert [list(chunk["text"]) for chunk in read_chunks(f"{served_folder}/{path.name}", 4)] == [TEXTS[:4], TEXTS[4:]]
    os.mkfifo(tmp_path / "pipe.csv")
    content = save(FRAME, tmp_path, ".csv").read_bytes()
    threading.Thread(target=(tmp_path / "pipe.csv").write_bytes, args=[content]).start()
    assert [list(chunk["text"]) for chunk in read_chunks(str(tmp_path / "pipe.csv"), 4)] == [TEXTS[:4], TEXTS[4:]]


def test_a_download_that_ends_early_is_no_table() -> None:
    class Short(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\ntext,label\nx,a\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(DataError, match="cannot be downloaded .the connection ended 985 bytes early"):
            read_table(f"http://127.0.0.1:{server.server_address[1]}/t.csv")


def test_a_missing_key_of_a_jsonl_row_is_missing_within_its_chunk(tmp_path: Path) -> None:
    rows = [{"text": "x", "a": 1}, {"b": 2, "text": "y"}, {"text": "z"}]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    first, last = read_chunks(str(tmp_path / "t.jsonl"), 2)
    assert first.fillna("-").to_dict("list") == {"text": ["x", "y"], "a": [1, "-"], "b": ["-", 2]}
    assert last.to_dict("list") == {"text": ["z"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"\xef\xbb\xbf", "t.csv: the file is empty"),
        ("t.csv", b"text,label\n", "t.csv: a header but no rows"),
        ("t.csv", b"text,text\n" + b"x,a\n" * 9, "column 'text' occurs twice in the header"),
        ("t.csv", b"text,label\n" + b"x,a\n\n" * 99 + b"x\n", "line 200: 1 fields where the header has 2"),
        ("t.csv", b"text,label\n" + b"x,a\n" * 99 + b'"x,a\n', "line 101: broken quoting"),
        (
            "t.csv",
            b"text,label\n" + (b"x" * 99 + b",a\n") * 9999 + b"\xe9,a\n" * 7,
            "in 7 lines (10001, 10002, 10003, 10004, ",
        ),
        ("t.jsonl", b'{"text": "x"}\n\n' * 99 + b"{\n", "line 199: not JSON"),
        (
            "t.jsonl",
            b'{"text": "x"}\n' * 99 + b'{"text": "\xff"}\n',
            "not UTF-8 in 1 line (100), the first byte is 0xff",
        ),
        ("t.jsonl", b'{"text": "x"}\n' * 99 + b'{"cut \\ud83d": 1}\n', "a key holds half of a character"),
        ("t.csv.gz", gzip.compress(b"text,label\n" + os.urandom(99999).hex().encode() * 9)[:-20], "broken .gz file"),
    ],
)
def test_what_breaks_later_is_told_with_the_place_in_the_whole_file(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    readings: list[Callable[[], Any]] = [
        lambda: list(read_chunks(str(tmp_path / name), 10)),
        lambda: list(read_chunks(str(tmp_path / name), 10, 95)),
        lambda: read_table(str(tmp_path / name)),
    ]
    for reading in readings if "a header but" not in message else readings[::2]:
        with pytest.raises(DataError) as caught:
            reading()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_rows_before_a_broken_one_are_given(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"text,label\n" + b"x,a\n" * 5 + b"x\n")
    chunks = read_chunks(str(tmp_path / "t.csv"), 2)
    assert [len(next(chunks)), len(next(chunks))] == [2, 2]
    with pytest.raises(DataError, match="line 7: 1 fields"):
        next(chunks)


def test_a_folder_is_not_read_in_chunks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder; what is read in parts is a file: \.csv, "):
        next(read_chunks(str(tmp_path), 2))


def test_columns_of_the_same_name_are_refused_in_parquet_too(tmp_path: Path) -> None:
    pq.write_table(pa.table([["x"], ["y"]], names=["text", "text"]), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet").endswith("column 'text' occurs twice in the header; rename one")


@pytest.mark.parametrize("name", ["big.csv.gz", "big.jsonl", "big.parquet"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, name: str) -> None:
    block = pd.DataFrame({"id": [f"{i:015}" for i in range(4000)], "text": ["some words, more words " * 6] * 4000})
    if name == "big.parquet":
        pd.concat([block] * 100).assign(text=lambda frame: frame["text"] + frame["id"]).to_parquet(tmp_path / name)
    else:
        text = (
            block.to_json(orient="records", lines=True) if "json" in name else block.to_csv(index=False, header=False)
        )
        with gzip.open(tmp_path / name, "wb", 1) if ".gz" in name else (tmp_path / name).open("wb") as file:
            file.write(b"" if "json" in name else b"id,text\n")
            for _ in range(100):
                file.write(text.encode())
    program = """
import itertools, sys
from tables import read_chunks
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
chunks = read_chunks(sys.argv[1], 1024)
rows = sum(map(len, itertools.islice(chunks, 8)))
before = peak()
rows += sum(map(len, chunks))
print(rows, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows, growth = done.stdout.split()
    assert int(rows) == 400_000
    assert float(growth) < 20  # megabytes; the table has more than 60


def test_a_blank_line_is_an_empty_cell_where_there_is_one_column_and_nothing_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\nfirst\n\nsecond\n")
    assert read_table(str(tmp_path / "one.csv"))["text"].tolist() == ["first", "", "second"]
    (tmp_path / "two.csv").write_text("text,label\nfirst,1\n\nsecond,2\n")
    assert read_table(str(tmp_path / "two.csv"))["text"].tolist() == ["first", "second"]
