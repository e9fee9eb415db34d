"""Tables in, examples out: reading and checking, with pandas alone.

A row's number is its place in the file, counted from 1 after the header. Nothing is repaired: whatever cannot be used
as it stands is refused with the rows named.
"""

import bz2
import codecs
import csv
import difflib
import gzip
import http.client
import io
import json
import lzma
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from config import Config, DataError

PREDICTION_COLUMNS = ("predicted_label", "probability")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
NAMED = 5  # so many rows, labels or columns are named in a message


@dataclass(frozen=True)
class Examples:
    """Rows of one table: `texts[i]` and `labels[i]` come from row `rows[i]` of `source`, `frame` holds its columns."""

    source: str
    frame: pd.DataFrame
    texts: list[str]
    labels: list[str]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """The examples at `indices`, in that order."""
        chosen = list(indices)
        return Examples(
            self.source,
            self.frame.iloc[chosen],
            [self.texts[i] for i in chosen],
            [self.labels[i] for i in chosen],
            [self.rows[i] for i in chosen],
        )


# Reading


def read_examples(source: str, config: Config) -> Examples:
    """Reads one table or folder and checks its texts and labels.

    Raises:
        DataError: missing file or column, undecodable bytes, an empty table, empty texts or labels.
    """
    frame = read_table(source, config.text_column, config.label_column)
    for column in (config.text_column, config.label_column):
        if column not in frame.columns:
            raise DataError(
                f"{source}: no column {column!r}: {_nearest_column(column, frame.columns)}; "
                f"set {'text' if column == config.text_column else 'label'}_column"
            )
    texts = [
        _as_text(value, f"{source}: row {row}, column {config.text_column!r}")
        for row, value in enumerate(frame[config.text_column], 1)
    ]
    labels = [
        _as_label(value, f"{source}: row {row}, column {config.label_column!r}")
        for row, value in enumerate(frame[config.label_column], 1)
    ]
    _refuse_empty(source, config.text_column, texts)
    _refuse_empty(source, config.label_column, labels)
    return Examples(source, frame, texts, labels, list(range(1, len(frame) + 1)))


def read_table(source: str, text_column: str = "text", label_column: str = "label") -> pd.DataFrame:
    """Reads CSV, TSV, JSONL or Parquet (optionally compressed, from a path or URL), or a folder with one sub-folder per
    class. Words such as "NA" and "null" stay text, and CSV and TSV columns stay strings.

    Raises:
        DataError: the table is missing, empty, of an unknown kind, or broken; the line is named.
    """
    if "://" not in source and Path(source).expanduser().is_dir():
        return _read_folder(Path(source).expanduser(), text_column, label_column)
    name, raw = _decompress(source, _read_bytes(source))
    parsers: dict[str, Callable[[str, bytes], pd.DataFrame]] = {
        ".csv": _parse_csv,
        ".tsv": _parse_tsv,
        ".jsonl": _parse_jsonl,
        ".ndjson": _parse_jsonl,
        ".parquet": _parse_parquet,
    }
    suffix = Path(name).suffix.lower()
    if suffix not in parsers:
        raise DataError(
            f"{source}: unknown kind of table {suffix or 'without a suffix'!r}; "
            f"name it {', '.join(_SUFFIXES)}, with .gz, .bz2, .xz or .zip after it where compressed"
        )
    if not raw.strip():
        raise DataError(f"{source}: the file is empty")
    frame = parsers[suffix](source, raw)
    if frame.empty:
        raise DataError(f"{source}: a header but no rows")
    return frame


def _read_bytes(source: str) -> bytes:
    try:
        if "://" in source:
            print(f"Downloading {source}", flush=True)
            with urllib.request.urlopen(source, timeout=60) as response:
                return bytes(response.read())
        return Path(source).expanduser().read_bytes()
    except FileNotFoundError:
        raise DataError(f"{source}: no such file{_nearest_file(source)}") from None
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{source}: cannot be downloaded (HTTP {error.code}, {error.reason})") from None
    except (OSError, ValueError, RuntimeError, http.client.HTTPException) as error:  # a URLError is an OSError
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise DataError(f"{source}: cannot be read ({reason})") from None


def _decompress(source: str, raw: bytes) -> tuple[str, bytes]:
    """Returns the name without its compression suffix, and the plain bytes."""
    name = Path(source.split("?")[0] if "://" in source else source).name
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".zip":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                members = [
                    member
                    for member in archive.namelist()
                    if not member.endswith("/") and not member.startswith("__MACOSX")
                ]
                if len(members) != 1:
                    raise DataError(f"{source}: holds {len(members)} files; a zipped table holds one")
                return members[0], archive.read(members[0])
        decompress = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}.get(suffix)
        return (name.removesuffix(Path(name).suffix), decompress(raw)) if decompress else (name, raw)
    except (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{source}: broken {suffix} file ({error})") from None


def _decode(source: str, raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{source}: is UTF-16; save the table as UTF-8")
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        broken = [
            number for number, line in enumerate(raw.split(b"\n"), 1) if line.decode(errors="ignore").encode() != line
        ]
        byte = error.object[error.start]
        raise DataError(
            f"{source}: not UTF-8 in {name_rows(broken, 'line')}, the first byte is 0x{byte:02x}; save the table as UTF-8"
        ) from None


def _parse_csv(source: str, raw: bytes) -> pd.DataFrame:
    return _parse_delimited(source, raw, strict=True)


def _parse_tsv(source: str, raw: bytes) -> pd.DataFrame:
    return _parse_delimited(source, raw, delimiter="\t", quoting=csv.QUOTE_NONE)  # as in GLUE: quotes are text


def _parse_delimited(source: str, raw: bytes, **dialect: Any) -> pd.DataFrame:
    """Reads delimited text by the csv module, because pandas pads short rows and renames columns without a word."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_decode(source, raw), newline=""), **dialect)
    try:
        header = next(row for row in reader if row)
        if len(header) == 1 and (other := set(header[0]) & {";", "\t", "|", ","}):
            raise DataError(
                f"{source}: the header holds {min(other)!r} and is one column: save the table with commas as .csv or tabs as .tsv"
            )
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(
                    f"{source}: line {reader.line_num}: {len(row)} fields where the header has {len(header)}"
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{source}: line {reader.line_num}: broken quoting ({error})") from None
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: column {repeated[0]!r} occurs twice in the header; rename one")
    return pd.DataFrame(rows, columns=header, dtype=object)


def _parse_jsonl(source: str, raw: bytes) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_decode(source, raw).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source}: line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(
                f"{source}: line {number}: holds a {type(row).__name__}; "
                'every line of a JSONL table is an object such as {"text": "...", "label": "..."}'
            )
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _parse_parquet(source: str, raw: bytes) -> pd.DataFrame:
    try:
        # pyarrow's types, so that integers beside nulls stay integers
        return pd.read_parquet(io.BytesIO(raw), dtype_backend="pyarrow").reset_index(drop=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{source}: not a Parquet table ({' '.join(str(error).split())})") from None


def _read_folder(folder: Path, text_column: str, label_column: str) -> pd.DataFrame:
    """Reads `<folder>/<class>/<file>`; hidden files and folders are left out."""
    rows = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for file in sorted(path for path in class_folder.iterdir() if path.is_file() and not path.name.startswith(".")):
            rows.append(
                {
                    "file": str(file.relative_to(folder)),
                    text_column: _decode(str(file), file.read_bytes()),
                    label_column: class_folder.name,
                }
            )
    if not rows:
        raise DataError(
            f"{folder}: no files in sub-folders; a folder of texts holds one sub-folder per class, one file per text"
        )
    return pd.DataFrame(rows)


# Checking


def _as_text(value: Any, where: str) -> str:
    if _is_missing(value):
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: holds {type(value).__name__} {value!r}, not a text")
    return _encodable(value, where)


def _as_label(value: Any, where: str) -> str:
    if _is_missing(value):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():  # integers beside a missing value
        return str(int(value))
    if not isinstance(value, str | int | np.integer | bool | np.bool_):
        raise DataError(f"{where}: holds {type(value).__name__} {value!r}; a label is a string or an integer")
    return _encodable(str(value), where)


def _encodable(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: holds half of a character (a lone surrogate, as of an emoji cut in two); mend the text"
        ) from None
    return value


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value))


def _refuse_empty(source: str, column: str, values: list[str]) -> None:
    empty = [row for row, value in enumerate(values, 1) if not value.strip()]
    if empty:
        raise DataError(
            f"{source}: column {column!r} is empty in {name_rows(empty)}: every row needs a text and a label; fill or delete them"
        )


def name_rows(rows: list[int], what: str = "row") -> str:
    """A count of rows and the first few of them, as in "7 rows (3, 9, 12, 40, 41, ...)"."""
    named = ", ".join(map(str, rows[:NAMED])) + (", ..." if len(rows) > NAMED else "")
    return f"{len(rows):,} {what}{'s' if len(rows) > 1 else ''} ({named})"


def _nearest_column(column: str, columns: Iterable[Any]) -> str:
    names = [str(name) for name in columns]
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}the table has {', '.join(map(repr, names[:20]))}"


def _nearest_file(source: str) -> str:
    path = Path(source)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f": did you mean {path.parent / near[0]}?" if near else ""
