"""Big tables out: written in chunks into a folder beside the output, so that an interrupted job goes on where it was."""

import csv
import fcntl
import functools
import gzip
import json
import math
import os
import re
import reprlib
import shutil
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from config import DataError

_REMEDY = "name it .csv, .jsonl or .ndjson, with .gz after it to compress it, or .parquet"
_CHUNK = re.compile(r"rows-(\d{12})-(\d+)-(\d+)")  # the first row, how many, and how many bytes
_GROUP_ROWS, _GROUP_BYTES = 1 << 16, 1 << 25  # either is enough for a row group of a Parquet file


class PredictionFile:
    """An output table in the making. `write` adds rows, whole or not at all; `finish` makes the file out of them by one
    rename. Until then they lie in `partial`, for the same job to go on from; the disk has to hold them twice.

    Attributes:
        partial: the folder beside the output.
        rows_done: how many rows an earlier, interrupted job left.
    """

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        """Opens an output for what `job` describes: input, its size and time, model, columns. Its keys and values are shown
        where they differ from those of an interrupted job.

        Raises:
            DataError: the output exists, is of an unknown kind, or is being written by another process; its folder is
                missing; another job was interrupted here.
        """
        self.path = path.expanduser()
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self._kind, self._compressed = _kind(self.path)
        self._refuse_existing()
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path}: there is no folder {self.path.parent}: make it, or choose another --output")
        self._unlock = weakref.finalize(self, os.close, self._lock())
        try:
            self._refuse_existing()  # whoever had the lock may have finished
            self._claim(json.loads(json.dumps(job, default=str)))
            self._chunks, self.rows_done = self._whole_chunks()
            self._rows = self.rows_done
            self._columns, self._schema = self._read_columns()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PredictionFile":
        return self

    def __exit__(self, *error: object) -> None:
        if self._unlock.alive and not self._chunks:  # nothing to go on from
            shutil.rmtree(self.partial)
        self.close()

    def close(self) -> None:
        """Lets go of the output; the end of the process does, too."""
        self._unlock()

    def write(self, frame: pd.DataFrame) -> None:
        """Adds one chunk of rows.

        Raises:
            DataError: the columns do not go with those of the rows before, or a cell cannot be written.
        """
        if not len(frame):
            return
        frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
        if not frame.columns.is_unique:
            name = frame.columns[frame.columns.duplicated()][0]
            raise DataError(f"{self.path}: column {name!r} would occur twice: rename it in the input")
        where = f"{self.path}: rows {self._rows + 1} to {self._rows + len(frame)}"
        content = self._encode(frame, where)
        if self._compressed:
            content = gzip.compress(content, compresslevel=6, mtime=0)
        chunk = self.partial / f"rows-{self._rows:012}-{len(frame)}-{len(content)}"
        temporary = self.partial / "rows.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, chunk)
        self._chunks.append(chunk)
        self._rows += len(frame)

    def finish(self) -> None:
        """Makes the output out of the chunks and removes them; without rows there is none. After an interruption it can be
        called again.

        Raises:
            DataError: the output has come into being meanwhile.
        """
        self._refuse_existing()
        if self._chunks:
            merged = self.partial / "merged.tmp"
            with merged.open("wb") as file:
                if self._kind == ".parquet":
                    _merge_parquet(self._chunks, self._schema, file)
                else:
                    for chunk in self._chunks:
                        with chunk.open("rb") as part:
                            shutil.copyfileobj(part, file, 1 << 20)
            os.replace(merged, self.path)
        self.close()
        shutil.rmtree(self.partial)

    def _encode(self, frame: pd.DataFrame, where: str) -> bytes:
        if self._kind == ".parquet":
            content, table = _as_parquet(frame, where)
            self._schema = _joined_schema(self._schema, self._chunks, table, where)
            return content
        if self._kind != ".csv":
            return _as_jsonl(frame)
        columns = list(frame.columns) if self._columns is None else self._columns
        if changed := sorted(set(columns).symmetric_difference(frame.columns)):
            raise DataError(
                f"{where}: column {changed[0]!r} is {'missing' if changed[0] in columns else 'not in the rows before'}: "
                "choose .jsonl, whose rows may have different columns"
            )
        content = _encodable(as_csv(frame[columns], header=not self._chunks), where)
        self._columns = columns
        return content

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.path):
            raise DataError(f"{self.path}: exists already: choose another --output, or remove it")

    def _lock(self) -> int:
        """Locks the folder for as long as this process lives, however it ends."""
        try:
            self.partial.mkdir(exist_ok=True)
        except FileExistsError:
            raise DataError(f"{self.partial}: is in the way: remove it, or choose another --output") from None
        lock = os.open(self.partial / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise DataError(
                f"{self.path}: another process is writing it: wait for its end, or choose another --output"
            ) from None
        return lock

    def _claim(self, job: dict[str, Any]) -> None:
        """Writes the job into the folder; refuses a folder with rows of another one."""
        record = self.partial / "job.json"
        if record.exists():
            self._refuse_other(record, job)
        else:
            strange = [entry.name for entry in self.partial.iterdir() if entry.name not in {"lock", "job.tmp"}]
            if strange:
                raise DataError(
                    f"{self.partial}: holds {strange[0]!r} but no job.json: remove the folder, or choose another --output"
                )
        temporary = self.partial / "job.tmp"
        temporary.write_text(json.dumps(job, ensure_ascii=False, indent=2), encoding="utf-8")
        os.replace(temporary, record)

    def _refuse_other(self, record: Path, job: dict[str, Any]) -> None:
        if not any(_CHUNK.fullmatch(entry.name) for entry in self.partial.iterdir()):
            return
        try:
            before = dict(json.loads(record.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{record}: cannot be read ({error}): remove {self.partial} to start anew") from None
        for key in [*job, *before]:
            if job.get(key) != before.get(key):
                was, now = (reprlib.repr(values.get(key)) for values in (before, job))
                raise DataError(
                    f"{self.partial}: holds the beginning of another job: {key} was {was} and is {now}: remove the folder "
                    "to start anew, or choose another --output"
                )

    def _whole_chunks(self) -> tuple[list[Path], int]:
        """The chunks from the first row on, and their rows. What else a killed process left is removed."""
        chunks, rows = [], 0
        for path in sorted(self.partial.iterdir()):
            found = _CHUNK.fullmatch(path.name)
            if found and (int(found[1]), int(found[3])) == (rows, path.stat().st_size):
                chunks.append(path)
                rows += int(found[2])
            elif found or path.suffix == ".tmp":
                path.unlink()
        return chunks, rows

    def _read_columns(self) -> tuple[list[str] | None, Any]:
        """The columns of a CSV's chunks, and the schema of Parquet's."""
        schema = None
        if self._kind == ".parquet" and self._chunks:
            schema = functools.reduce(_unified, (pq.read_schema(chunk) for chunk in self._chunks))
        if self._kind != ".csv" or not self._chunks:
            return None, schema
        with (gzip.open if self._compressed else open)(self._chunks[0], "rt", encoding="utf-8", newline="") as file:
            return next(csv.reader(file)), schema


def _kind(path: Path) -> tuple[str, bool]:
    """The suffix of a path that says what to write, and whether to compress it."""
    name = path.name.lower()
    kind, compressed = Path(name.removesuffix(".gz")).suffix, name.endswith(".gz")
    if kind == ".tsv":
        raise DataError(f"{path}: a TSV cannot hold texts with tabs or line breaks: {_REMEDY}")
    if kind not in (".csv", ".jsonl", ".ndjson", ".parquet") or (kind == ".parquet" and compressed):
        suffix = kind + ".gz" * compressed or "without a suffix"
        raise DataError(f"{path}: unknown kind of output {suffix!r}: {_REMEDY}")
    return kind, compressed


# CSV and JSONL


def as_csv(table: pd.DataFrame, header: bool = True) -> str:
    """A table as CSV. Lists are written as JSON; strings are quoted, because a lone carriage return in a text would else be
    read back as the end of a row."""

    def cells(column: "pd.Series[Any]") -> "pd.Series[Any]":
        if _is_float32(column):
            return pd.Series(column.to_numpy(np.float32, na_value=np.nan), index=column.index)
        if not isinstance(column.dtype, pd.ArrowDtype) and not pd.api.types.is_object_dtype(column.dtype):
            return column
        values = (_JSON(_plain(x)) if isinstance(x, list | dict | np.ndarray) else x for x in column)
        return pd.Series(values, index=column.index, dtype=object)  # else integers beside nulls would become floats

    written = pd.concat([cells(column) for _, column in table.items()], axis=1, keys=table.columns)
    return written.to_csv(index=False, header=header, quoting=csv.QUOTE_NONNUMERIC)


def _encodable(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _half_character(where) from None


def _half_character(where: str) -> DataError:
    return DataError(
        f"{where}: hold half of a character (a lone surrogate, as of an emoji cut in two): mend it, or choose .jsonl"
    )


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).encode


def _as_jsonl(frame: pd.DataFrame) -> bytes:
    columns = [_plain_values(column) for _, column in frame.items()]
    rows = [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]
    try:
        return "".join(f"{_JSON(row)}\n" for row in rows).encode()
    except UnicodeEncodeError:  # half of a character is JSON as an escape alone
        return "".join(f"{json.dumps(row, default=str)}\n" for row in rows).encode()


def _plain_values(column: "pd.Series[Any]") -> list[Any]:
    if _is_float32(column):  # by way of the shortest text: 0.1, not 0.10000000149011612
        column = pd.Series(column.to_numpy(np.float32, na_value=np.nan).astype(str).astype(np.float64))
    return [_plain(value) for value in column.tolist()]


def _is_float32(column: "pd.Series[Any]") -> bool:
    return bool(getattr(column.dtype, "numpy_dtype", column.dtype) == np.float32)


def _plain(value: Any) -> Any:
    """A cell as JSON has it; what is no number or not finite is null."""
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.float32) else value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


# Parquet


def _as_parquet(frame: pd.DataFrame, where: str) -> tuple[bytes, Any]:
    """The content of a file with these rows, and their Arrow table, without what pandas notes beside it."""
    content = pa.BufferOutputStream()
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
        pq.write_table(table, content)
    except UnicodeEncodeError:
        raise _half_character(where) from None
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: cannot be Parquet ({_reason(error)}): choose .jsonl") from None
    return content.getvalue().to_pybytes(), table


def _unified(before: Any, schema: Any) -> Any:
    """One schema for two: nulls become what the others are, integers beside floats floats."""
    return pa.unify_schemas([before, schema], promote_options="permissive")


def _joined_schema(before: Any, chunks: list[Path], table: Any, where: str) -> Any:
    """The schema of the chunks and a table, proven on every row, so that `finish` will not fail."""
    try:
        schema = table.schema if before is None else _unified(before, table.schema)
        _cast(table, schema)
        if schema != before:
            for chunk in chunks:
                _read_as(schema, chunk)
    except pa.ArrowException as error:
        raise DataError(f"{where}: of other types than the rows before ({_reason(error)}): choose .jsonl") from None
    return schema


def _cast(table: Any, schema: Any) -> Any:
    """The table with a schema's columns; those that it lacks are nulls."""
    names = set(table.column_names)
    columns = [
        table[key.name].cast(key.type) if key.name in names else pa.nulls(len(table), key.type) for key in schema
    ]
    return pa.table(columns, schema=schema)


def _read_as(schema: Any, chunk: Path) -> Any:
    with pq.ParquetFile(chunk) as file:
        return _cast(file.read(), schema)


def _merge_parquet(chunks: list[Path], schema: Any, file: IO[bytes]) -> None:
    """Writes the chunks' rows in row groups of a useful size."""
    held: list[Any] = []
    rows = size = 0
    with pq.ParquetWriter(file, schema) as writer:
        for chunk in chunks:
            table = _read_as(schema, chunk)
            held.append(table)
            rows, size = rows + len(table), size + table.nbytes
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES or chunk == chunks[-1]:
                writer.write_table(pa.concat_tables(held), row_group_size=rows)
                held, rows, size = [], 0, 0


def _reason(error: Exception) -> str:
    return " ".join(" ".join(map(str, error.args)).split())[:200].encode(errors="backslashreplace").decode()
