"""Examples in, parts out: stratified, seeded splits and what the user should know of them, with scikit-learn alone."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from config import Config, DataError
from tables import NAMED, PREDICTION_COLUMNS, Examples, name_rows, read_examples


@dataclass(frozen=True)
class Splits:
    """The parts of a run; `labels` are the classes in the order of the model's outputs."""

    train: Examples
    valid: Examples | None
    test: Examples | None
    labels: list[str]
    notes: list[str]

    @property
    def parts(self) -> dict[str, Examples]:
        """The parts that there are, by the names that metrics.json has for them."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    def label_ids(self, examples: Examples) -> np.ndarray:
        """Positions of the examples' labels in `labels`, int64 [N]."""
        index = {label: i for i, label in enumerate(self.labels)}
        return np.array([index[label] for label in examples.labels], dtype=np.int64)


def load_splits(config: Config) -> Splits:
    """Reads the tables that `config` names, checks every row, and splits them, stratified and seeded.

    Raises:
        DataError: one line that names the file and the rows, columns or classes at fault.
    """
    table = read_examples(config.data, config)
    labels = sort_labels(set(table.labels))
    if len(labels) == 1:
        raise DataError(
            f"{table.source}: column {config.label_column!r} holds one class only ({labels[0]!r}); a classifier needs two"
        )
    test = read_examples(config.test_data, config) if config.test_data else None
    notes: list[str] = []
    if config.valid_data:
        train = table.take(_split(table, config, notes)[0]) if config.train_split else table
        valid: Examples | None = read_examples(config.valid_data, config)
    elif config.valid_split == 0 and config.train_split is None:
        train, valid = table, None
    else:
        train_rows, valid_rows = _split(table, config, notes)
        train, valid = table.take(train_rows), table.take(valid_rows) if len(valid_rows) else None
    for part in (valid, test):
        if part is not None:
            _refuse_unknown_labels(part, labels)
    splits = Splits(train, valid, test, labels, notes)
    _refuse_prediction_columns(valid, labels)
    notes.extend(_notes(splits))
    return splits


def sort_labels(labels: set[str]) -> list[str]:
    """Sorts labels as numbers where all are whole numbers, else as strings; in binary tasks the last is positive."""
    if all(re.fullmatch(r"[+-]?\d+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _refuse_prediction_columns(valid: Examples | None, labels: list[str]) -> None:
    """The validation rows' own columns stand beside the prediction columns, so no name may be taken twice."""
    taken = {*PREDICTION_COLUMNS, *(f"probability_{label}" for label in labels)}.intersection(
        valid.frame.columns if valid else []
    )
    if valid and taken:
        raise DataError(f"{valid.source}: column {min(taken)!r} has the name of a prediction column; rename it")


def _refuse_unknown_labels(part: Examples, labels: list[str]) -> None:
    unknown = sorted(set(part.labels) - set(labels))
    if unknown:
        rows = [row for row, label in zip(part.rows, part.labels, strict=True) if label in unknown]
        raise DataError(
            f"{part.source}: label {', '.join(map(repr, unknown[:NAMED]))} in {name_rows(rows)} is unknown: "
            f"the training table has {', '.join(map(repr, labels[:20]))}"
        )


def _split(table: Examples, config: Config, notes: list[str]) -> tuple[list[int], list[int]]:
    """Returns the indices of the training and validation rows, each in the table's order.

    Two stratified `train_test_split`s one after the other, training rows first, so that a published split by scikit-learn
    with the same counts and seed comes out row for row.
    """
    total = len(table)
    num_train, num_valid = _split_sizes(total, config)
    sizes = f"{num_train:,} training and {num_valid:,} validation rows out of {total:,}"
    if num_train < 1 or num_train + num_valid > total:
        raise DataError(f"{table.source}: cannot take {sizes}: change train_split or valid_split")
    rare = [label for label, count in Counter(table.labels).items() if count < 2]
    if rare:
        row = table.rows[table.labels.index(rare[0])]
        more = f" and {len(rare) - 1:,} more labels have" if len(rare) > 1 else " has"
        raise DataError(
            f"{table.source}: label {rare[0]!r} (row {row}){more} one row only: a stratified split needs two of each; "
            "add rows, merge classes, give valid_data, or check label_column"
        )
    try:
        train, rest = _stratified(np.arange(total), table.labels, num_train, config.seed)
        valid, unused = _stratified(rest, table.labels, num_valid, config.seed)
    except ValueError as error:
        raise DataError(f"{table.source}: cannot take {sizes}: {' '.join(str(error).split())}") from None
    missing = set(table.labels) - {table.labels[i] for i in train}
    if missing:
        raise DataError(
            f"{table.source}: label {min(missing)!r} has too few rows to split: none is left for training; add rows"
        )
    if len(unused):
        notes.append(
            f"{len(unused):,} of {total:,} rows are not used: train_split and valid_split take {num_train:,} and {num_valid:,}"
        )
    return sorted(train.tolist()), sorted(valid.tolist())


def _split_sizes(total: int, config: Config) -> tuple[int, int]:
    """Training and validation rows, as counts."""

    def count(share: float) -> int:
        return int(share) if share >= 1 else max(1, int(share * total + 1e-9))

    valid_split = 0.0 if config.valid_data else config.valid_split
    if config.train_split is None:
        num_valid = count(0.1 if valid_split is None else valid_split)
        return total - num_valid, num_valid
    num_train = count(config.train_split)
    if valid_split is None or (config.train_split < 1 and config.train_split + valid_split == 1):
        return num_train, total - num_train
    return num_train, count(valid_split) if valid_split else 0


def _stratified(rows: np.ndarray, labels: list[str], size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits `size` of the rows off, by label."""
    if size in (0, len(rows)):
        return rows[:size], rows[size:]
    chosen, rest = train_test_split(rows, train_size=size, random_state=seed, stratify=[labels[i] for i in rows])
    return chosen, rest


def _notes(splits: Splits) -> list[str]:
    """What the user should know of the split: repeated texts across parts, labels that a part lacks."""
    notes = []
    seen = set(splits.train.texts)
    for name, part in (("validation", splits.valid), ("test", splits.test)):
        if part is None:
            continue
        repeated = [row for row, text in zip(part.rows, part.texts, strict=True) if text in seen]
        if repeated:
            earlier = (
                "a training row" if name == "validation" or splits.valid is None else "a training or validation row"
            )
            notes.append(
                f"{part.source}: {name_rows(repeated)} of the {name} part repeat the text of {earlier}; scores on them flatter"
            )
        absent = sorted(set(splits.labels) - set(part.labels), key=splits.labels.index)
        if absent:
            notes.append(f"{part.source}: no {name} row has the label {', '.join(map(repr, absent[:20]))}")
        seen.update(part.texts)
    return notes
