"""Files in, tables out: CSV, TSV, JSONL, Parquet and folders of texts, with every cell as it stands in the file."""

import codecs
import contextlib
import csv
import io
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from config import DataError
from table_sources import open_source

NAMED = 5  # so many rows, labels or columns are named in a message
_PARQUET_BUFFER = 1 << 18

_Parser = Callable[[str, BinaryIO, int, int], Iterator[pd.DataFrame]]


def read_table(source: str, text_column: str = "text", label_column: str = "label") -> pd.DataFrame:
    """Reads CSV, TSV, JSONL or Parquet (optionally compressed, from a path or URL), or a folder with one sub-folder per
    class. Words such as "NA" and "null" stay text, and CSV and TSV columns stay strings.

    Raises:
        DataError: the table is missing, empty, of an unknown kind, or broken; the line is named.
    """
    if _is_folder(source):
        return _read_folder(Path(source).expanduser(), text_column, label_column)
    [frame] = read_chunks(source, sys.maxsize)
    if frame.empty:
        raise _no_rows(source)
    return frame


def read_chunks(source: str, rows: int, skip: int = 0) -> Iterator[pd.DataFrame]:
    """Reads the rows after the first `skip` as `read_table` does, in order, in frames of `rows` rows, the last of the rest, in
    memory that does not grow with the table. The index counts the file's rows from 0.

    A frame has the file's columns, but of JSONL those that occur in its own rows.

    Raises:
        DataError: as `read_table`, when the place is reached.
    """
    if _is_folder(source):
        raise DataError(f"{source}: is a folder; what is read in parts is a file: {', '.join(_PARSERS)}")
    with open_source(source) as (name, stream):
        suffix = Path(name).suffix.lower()
        if suffix in _SPREADSHEETS:
            raise DataError(f"{source}: is a spreadsheet: save it as CSV (UTF-8), and give that")
        if suffix not in _PARSERS:
            raise DataError(
                f"{source}: unknown kind of table {suffix or 'without a suffix'!r}; "
                f"name it {', '.join(_PARSERS)}, with .gz, .bz2, .xz or .zip after it where compressed"
            )
        _refuse_blank(source, stream)
        end = skip
        try:
            for frame in _PARSERS[suffix](source, stream, rows, skip):
                start, end = end, end + len(frame)
                frame.index = pd.RangeIndex(start, end)
                yield frame
        except UnicodeDecodeError:
            raise _not_utf8(source, stream) from None
        if end == 0:
            raise _no_rows(source)


def _is_folder(source: str) -> bool:
    return "://" not in source and Path(source).expanduser().is_dir()


def _refuse_blank(source: str, stream: BinaryIO) -> None:
    while block := stream.read(io.DEFAULT_BUFFER_SIZE):
        if block.strip():
            stream.seek(0)
            return
    raise _blank(source)


def _blank(source: str) -> DataError:
    return DataError(f"{source}: the file is empty")


def _no_rows(source: str) -> DataError:
    return DataError(f"{source}: a header but no rows")


# Text


@contextlib.contextmanager
def _decoded(source: str, stream: BinaryIO, newline: str) -> Iterator[io.TextIOWrapper]:
    """The stream as UTF-8 text, from its start and without a byte order mark."""
    mark = stream.read(len(codecs.BOM_UTF8))
    if mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{source}: is UTF-16; save the table as UTF-8")
    if mark != codecs.BOM_UTF8:
        stream.seek(0)
    text = io.TextIOWrapper(stream, encoding="utf-8", newline=newline)
    try:
        yield text
    finally:
        text.detach()  # else it would close the stream


def _not_utf8(source: str, stream: BinaryIO) -> DataError:
    """Reads all of the stream once more, line by line, for what to say."""
    stream.seek(0)
    broken: list[int] = []
    count = byte = 0
    for number, line in enumerate(stream, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            byte = byte if broken else line[error.start]
            count += 1
            if count <= NAMED:
                broken.append(number)
    return DataError(
        f"{source}: not UTF-8 in {name_rows(broken, 'line', count)}, the first byte is 0x{byte:02x}; save the table as UTF-8"
    )


def _csv_chunks(source: str, stream: BinaryIO, rows: int, skip: int) -> Iterator[pd.DataFrame]:
    return _delimited_chunks(source, stream, rows, skip, strict=True)


def _tsv_chunks(source: str, stream: BinaryIO, rows: int, skip: int) -> Iterator[pd.DataFrame]:
    # as in GLUE: quotes are text
    return _delimited_chunks(source, stream, rows, skip, delimiter="\t", quoting=csv.QUOTE_NONE)


def _delimited_chunks(source: str, stream: BinaryIO, rows: int, skip: int, **dialect: Any) -> Iterator[pd.DataFrame]:
    """Reads delimited text by the csv module, because pandas pads short rows and renames columns without a word."""
    csv.field_size_limit(sys.maxsize)
    with _decoded(source, stream, newline="") as text:
        reader = csv.reader(text, **dialect)
        try:
            header = next(filter(None, reader), None)
            if header is None:
                raise _blank(source)
            _check_header(source, header)
            body = _of_width(source, reader, len(header))
            deque(islice(body, skip), maxlen=0)
            while chunk := list(islice(body, rows)):
                yield pd.DataFrame(chunk, columns=header, dtype=object)
        except csv.Error as error:
            raise DataError(f"{source}: line {reader.line_num}: broken quoting ({error})") from None


def _check_header(source: str, header: list[str]) -> None:
    if len(header) == 1 and (other := set(header[0]) & {";", "\t", "|", ","}):
        raise DataError(
            f"{source}: the header holds {min(other)!r} and is one column: save the table with commas as .csv or tabs as .tsv"
        )
    _refuse_repeated(source, header)


def _refuse_repeated(source: str, header: list[str]) -> None:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: column {repeated[0]!r} occurs twice in the header; rename one")


def _of_width(source: str, reader: Any, width: int) -> Iterator[list[str]]:
    """The rows. A blank line is none, but in a table of one column it is an empty cell."""
    for row in reader:
        if len(row) == width:
            yield row
        elif not row and width == 1:
            yield [""]
        elif row:
            raise DataError(f"{source}: line {reader.line_num}: {len(row)} fields where the header has {width}")


def _jsonl_chunks(source: str, stream: BinaryIO, rows: int, skip: int) -> Iterator[pd.DataFrame]:
    with _decoded(source, stream, newline="\n") as text:
        filled = ((number, line) for number, line in enumerate(text, 1) if line.strip())
        deque(islice(filled, skip), maxlen=0)
        while chunk := [_read_object(source, number, line) for number, line in islice(filled, rows)]:
            try:
                frame = pd.DataFrame(chunk, dtype=object)
            except UnicodeEncodeError:
                raise DataError(f"{source}: a key holds half of a character (a lone surrogate); mend it") from None
            yield frame


def _read_object(source: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line.removesuffix("\n"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: line {number}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{source}: line {number}: holds a {type(row).__name__}; "
            'every line of a JSONL table is an object such as {"text": "...", "label": "..."}'
        )
    return row


# Parquet and folders


def _parquet_chunks(source: str, stream: BinaryIO, rows: int, skip: int) -> Iterator[pd.DataFrame]:
    try:
        # A buffer of some size, and nothing ahead of it: else whole row groups are held.
        with pq.ParquetFile(stream, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            _refuse_repeated(source, file.schema_arrow.names)
            for table in _grouped(_batches_after(file, rows, skip), rows):
                # pyarrow's types, so that integers beside nulls stay integers
                yield table.to_pandas(types_mapper=pd.ArrowDtype).reset_index(drop=True)
    except DataError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{source}: not a Parquet table ({' '.join(str(error).split())})") from None


def _batches_after(file: Any, rows: int, skip: int) -> Iterator[Any]:
    """Batches of at most `rows` rows; row groups that are skipped as a whole are not read."""
    groups = list(range(file.num_row_groups))
    while groups and skip >= (first := file.metadata.row_group(groups[0]).num_rows):
        skip -= first
        del groups[0]
    for batch in file.iter_batches(min(rows, file.metadata.num_rows or 1), row_groups=groups):
        yield batch.slice(skip)
        skip = max(0, skip - len(batch))


def _grouped(batches: Iterator[Any], rows: int) -> Iterator[Any]:
    """Tables of `rows` rows, but for the last, out of batches of at most as many."""
    held: list[Any] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        if count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held, count = table.slice(rows).to_batches(), count - rows
    if count:
        yield pa.Table.from_batches(held)


def _read_folder(folder: Path, text_column: str, label_column: str) -> pd.DataFrame:
    """Reads `<folder>/<class>/<file>`; hidden files and folders are left out."""
    rows = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for file in sorted(path for path in class_folder.iterdir() if path.is_file() and not path.name.startswith(".")):
            rows.append(
                {
                    "file": str(file.relative_to(folder)),
                    text_column: _read_text(file),
                    label_column: class_folder.name,
                }
            )
    if not rows:
        raise DataError(
            f"{folder}: no files in sub-folders; a folder of texts holds one sub-folder per class, one file per text"
        )
    return pd.DataFrame(rows)


def _read_text(file: Path) -> str:
    with file.open("rb") as stream:
        try:
            with _decoded(str(file), stream, newline="") as text:
                return text.read()
        except UnicodeDecodeError:
            raise _not_utf8(str(file), stream) from None


_SPREADSHEETS = (".xls", ".xlsx", ".ods", ".numbers")
_PARSERS: dict[str, _Parser] = {
    ".csv": _csv_chunks,
    ".tsv": _tsv_chunks,
    ".jsonl": _jsonl_chunks,
    ".ndjson": _jsonl_chunks,
    ".parquet": _parquet_chunks,
}


def name_rows(rows: Sequence[object], what: str = "row", count: int | None = None) -> str:
    """A count of rows and the first few of them, as in "7 rows (3, 9, 12, 40, 41, ...)"; `count` where `rows` is not all."""
    count = len(rows) if count is None else count
    named = ", ".join(map(str, rows[:NAMED])) + (", ..." if count > NAMED else "")
    return f"{count:,} {what}{'s' if count > 1 else ''} ({named})"
