"""Files in, tables out: CSV, TSV, JSONL, Parquet and folders of texts, with every cell as it stands in the file."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from config import DataError

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
NAMED = 5  # so many rows, labels or columns are named in a message


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


def name_rows(rows: list[int], what: str = "row") -> str:
    """A count of rows and the first few of them, as in "7 rows (3, 9, 12, 40, 41, ...)"."""
    named = ", ".join(map(str, rows[:NAMED])) + (", ..." if len(rows) > NAMED else "")
    return f"{len(rows):,} {what}{'s' if len(rows) > 1 else ''} ({named})"


def _nearest_file(source: str) -> str:
    path = Path(source)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f": did you mean {path.parent / near[0]}?" if near else ""
