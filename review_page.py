"""The review of rows whose labels may be wrong: one page to decide each by eye, and its decisions read back."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from config import DataError
from run_directory import write_atomically
from tables import read_table
from tasks import DEFAULT_SEPARATOR

DECISIONS = ("keep", "relabel", "drop")
_COLUMNS = ("row", "decision", "label", "given_label", "table_sha256")
_TEXTS = ("text", "text_pair")
_OWN = ("row", "given_label", "suggested_label", "quality", *_TEXTS)
_NAMED = 20  # so many labels are named in a message


@dataclass(frozen=True)
class ReviewPage:
    """What there is to review. `suspects` has a line for each row, in the order in which they are shown, with the columns
    row, given_label, suggested_label, quality, text, where there are pairs text_pair, and any others to be shown beside
    them. In multi-label tasks the labels of a cell are joined by `separator`."""

    table: str  # its path or URL
    fingerprint: str  # of its examples
    labels: list[str]
    multilabel: bool
    suspects: pd.DataFrame
    separator: str = DEFAULT_SEPARATOR


@dataclass(frozen=True)
class Verdict:
    """What becomes of a row: `label` is its label from now on (in multi-label tasks its labels, joined), None if dropped."""

    row: int
    decision: str
    label: str | None


def write_review_page(path: Path, page: ReviewPage) -> None:
    """Writes the page, which needs nothing beside it; what is decided there leaves it as a file for `read_decisions`."""
    name = Path(page.table.rstrip("/")).name
    data = {
        "fingerprint": page.fingerprint,
        "labels": page.labels,
        "multilabel": page.multilabel,
        "separator": page.separator,
        "columns": _COLUMNS,
        "file": f"{name.split('.')[0]}-decisions.csv",
        "suspects": [_suspect(page, line) for line in page.suspects.to_dict("records")],
    }
    write_atomically(path, _TEMPLATES.get_template("review.html.jinja").render(name=name, page=page, data=data))


def _suspect(page: ReviewPage, line: dict[Any, Any]) -> dict[str, Any]:
    return {
        "row": int(line["row"]),
        "given": _labels_of(line["given_label"], page.multilabel, page.separator),
        "suggested": _labels_of(line["suggested_label"], page.multilabel, page.separator),
        "quality": _plain(line["quality"]),
        "texts": [line[column] for column in _TEXTS if column in line],
        "more": [[str(column), _plain(value)] for column, value in line.items() if column not in _OWN],
    }


def _labels_of(cell: str, multilabel: bool, separator: str) -> list[str]:
    """The labels of a cell: exactly one, but in multi-label tasks any number."""
    if not multilabel:
        return [cell]
    return cell.split(separator) if cell else []


def _plain(value: Any) -> float | str | None:
    """A value as JSON can hold it; None if there is none."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return None if value is None or value is pd.NA or value is pd.NaT else str(value)


# Back from the page


def read_decisions(
    path: str,
    labels: Sequence[str],
    fingerprint: str,
    rows: Collection[int],
    *,
    multilabel: bool = False,
    separator: str = DEFAULT_SEPARATOR,
) -> list[Verdict]:
    """Reads what was decided about `rows`, the row numbers of the table with that fingerprint, in the file's order.

    Raises:
        DataError: the file cannot be read, lacks a column, is of another table, or has a line that is no decision; one line
            with the file, its row and the column.
    """
    frame = read_table(path)
    missing = [column for column in _COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}: it has {', '.join(map(repr, frame.columns[:_NAMED]))}; "
            "give the file that the review page exports"
        )
    known, decided = {str(row): row for row in rows}, dict[int, int]()
    verdicts = []
    for place, line in enumerate(frame[list(_COLUMNS)].astype(str).to_dict("records"), 1):
        where = f"{path}: row {place}, column"
        _refuse_other_table(f"{where} 'table_sha256'", line["table_sha256"], fingerprint)
        verdict = _read_verdict(where, line, known, labels, multilabel, separator)
        if verdict.row in decided:
            raise DataError(
                f"{where} 'row': row {verdict.row} of the table is decided twice, in row {decided[verdict.row]} already; "
                "delete one"
            )
        decided[verdict.row] = place
        verdicts.append(verdict)
    return verdicts


def _read_verdict(
    where: str, line: dict[Any, str], known: dict[str, int], labels: Sequence[str], multilabel: bool, separator: str
) -> Verdict:
    row, decision, label, given = (line[column] for column in _COLUMNS[:4])
    if row not in known:
        raise DataError(f"{where} 'row': the table has no row {row!r}; take row numbers from the review page")
    if decision not in DECISIONS:
        raise DataError(f"{where} 'decision': holds {decision!r}; write {', '.join(DECISIONS[:-1])} or {DECISIONS[-1]}")
    chosen = [] if decision == "drop" else _labels_of(label, multilabel, separator)
    _refuse_labels(f"{where} 'label'", chosen, labels)
    as_given = sorted(chosen) == sorted(_labels_of(given, multilabel, separator))
    _refuse_contradiction(f"{where} 'label'", decision, label, as_given)
    return Verdict(known[row], decision, None if decision == "drop" else label)


def _refuse_other_table(where: str, sha256: str, fingerprint: str) -> None:
    if sha256 != fingerprint:
        raise DataError(
            f"{where}: decisions about another table, or about this one before it was changed "
            f"({sha256[:12]!r}, this one has {fingerprint[:12]!r}); give the table as it was reviewed"
        )


def _refuse_labels(where: str, chosen: list[str], labels: Sequence[str]) -> None:
    if unknown := [label for label in chosen if label not in labels]:
        raise DataError(f"{where}: unknown label {unknown[0]!r}; the task has {', '.join(map(repr, labels[:_NAMED]))}")
    if len(set(chosen)) < len(chosen):
        raise DataError(f"{where}: holds a label twice: {chosen!r}; name each once")


def _refuse_contradiction(where: str, decision: str, label: str, as_given: bool) -> None:
    if decision == "drop" and label:
        raise DataError(f"{where}: holds {label!r} in a row to drop; leave it empty, or write relabel for the decision")
    if decision == "keep" and not as_given:
        raise DataError(
            f"{where}: holds {label!r}, which is not the given label to keep; write relabel for the decision"
        )


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
