"""Examples in, parts out: stratified, seeded splits and what the user should know of them, with scikit-learn alone."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from config import Config, DataError
from examples import Examples, note_empty_texts, read_examples, refuse_prediction_columns
from tables import name_rows
from tasks import Task, decide_task, leave_unknown_labels_out, refuse_unknown_labels

IN_MEMORY = "X"  # what stands for the table's name where the rows come from Python
_SPLIT_STREAM = 0x5711  # keeps the split's random numbers apart from other uses of the seed
_MISSING = {"nan", "na", "n/a", "null", "none", "#n/a"}  # as labels, in small letters


@dataclass(frozen=True)
class Splits:
    """The parts of a run, and what is to be learnt from them; `reason` says why that."""

    train: Examples
    valid: Examples | None
    test: Examples | None
    task: Task
    reason: str
    notes: list[str]
    tables: dict[str, dict[str, Any]]  # the identity of each table, by its path or URL

    @property
    def parts(self) -> dict[str, Examples]:
        """The parts that there are, by the names that metrics.json has for them."""
        named = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}


def load_splits(config: Config) -> Splits:
    """Reads the tables that `config` names, checks every row, and splits them, stratified and seeded.

    Raises:
        DataError: one line that names the file and the rows, columns or classes at fault.
    """
    table = read_examples(config.data, config)
    task, reason = decide_task(table, config)
    _refuse_no_pairs(table, config)
    decided = config.model_copy(update={"task": task.kind})  # the training table's task rules how the others are read
    test = read_examples(config.test_data, decided, only_scored=True) if config.test_data else None
    notes: list[str] = []
    if config.valid_data:
        train = table.take(split_rows(table, task, config, notes)[0]) if config.train_split else table
        valid: Examples | None = read_examples(config.valid_data, decided)
    elif config.valid_split == 0 and config.train_split is None:
        train, valid = table, None
    else:
        train_rows, valid_rows = split_rows(table, task, config, notes)
        train, valid = table.take(train_rows), table.take(valid_rows) if len(valid_rows) else None
    if valid is not None:
        refuse_unknown_labels(valid, task)
    if test is not None:
        test, unknown = leave_unknown_labels_out(test, task)
        notes.extend([*unknown, *note_empty_texts(test)])
    given = [table, *([valid] if valid and config.valid_data else []), *([test] if test else [])]
    identities = {each.source: each.identity() for each in given}
    splits = Splits(train, valid, test, task, reason, notes, identities)
    for part in (valid, test):
        if part is not None:
            refuse_prediction_columns(part.source, part.frame.columns, task.labels)
    notes.extend(_notes(splits))
    return splits


def _refuse_no_pairs(table: Examples, config: Config) -> None:
    if table.pairs is not None and not any(pair.strip() for pair in table.pairs):
        raise DataError(
            f"{table.source}: column {config.text_pair_column!r} is empty in every row; set text_pair_column"
        )


def split_rows(table: Examples, task: Task, config: Config, notes: list[str]) -> tuple[list[int], list[int]]:
    """Returns the indices of the training and validation rows, each in the table's order.

    Two stratified `train_test_split`s one after the other, training rows first, so that a published split by scikit-learn
    with the same counts and seed comes out row for row. Rows with several labels are split by iterative stratification.
    What there is to say of it is added to `notes`.

    Raises:
        DataError: the rows of a label are too few, or the sizes do not go together.
    """
    total = len(table)
    num_train, num_valid = _split_sizes(total, config)
    sizes = f"{num_train:,} training and {num_valid:,} validation rows out of {total:,}"
    if num_train < 1 or num_train + num_valid > total:
        raise DataError(f"{table.source}: cannot take {sizes}: change train_split or valid_split")
    if task.kind != "multilabel":
        _refuse_single_rows(table)
    targets = task.targets(table.labels)
    try:
        train, rest = _stratified(np.arange(total), targets, num_train, config.seed)
        valid, unused = _stratified(rest, targets, num_valid, config.seed)
    except ValueError as error:
        raise DataError(f"{table.source}: cannot take {sizes}: {' '.join(str(error).split())}") from None
    missing = set(task.labels).difference(*(table.labels[i] for i in train))
    if missing:
        raise DataError(
            f"{table.source}: label {min(missing)!r} has too few rows to split: none is left for training; add rows, "
            "give valid_data, or set another seed"
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


def _refuse_single_rows(table: Examples) -> None:
    rare = [labels for labels, count in Counter(table.labels).items() if count < 2]
    if rare:
        row = table.rows[table.labels.index(rare[0])]
        more = f" and {len(rare) - 1:,} more labels have" if len(rare) > 1 else " has"
        raise DataError(
            f"{table.source}: label {rare[0][0]!r} (row {row}){more} one row only: a stratified split needs two of each; "
            "add rows, merge classes, leave the row out, give valid_data, or check label_column"
        )


def _stratified(rows: np.ndarray, targets: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits `size` of the rows off, by label: targets are int [N], or 0 and 1, [N, K]."""
    if size in (0, len(rows)):
        return rows[:size], rows[size:]
    if targets.ndim == 2:
        chosen = iterative_stratification(targets[rows].astype(bool), size, seed)
        return rows[chosen], rows[~chosen]
    chosen, rest = train_test_split(rows, train_size=size, random_state=seed, stratify=targets[rows])
    return chosen, rest


def iterative_stratification(indicators: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Chooses `size` of the rows so that each of K labels keeps its share, as bool [N]; `indicators` are bool [N, K].

    Sechidis et al., "On the Stratification of Multi-Label Data" (2011), for two parts: the label with the fewest rows not yet
    placed comes first. Here the size is exact, a label with two rows or more has one in either part where that can be, and
    rows with few and with many labels are taken alike.
    """
    random = np.random.default_rng([_SPLIT_STREAM, seed])
    chosen, placed = np.zeros((2, len(indicators)), dtype=bool)
    totals = indicators.sum(axis=0)
    wanted = np.maximum(1, np.minimum(np.round(totals * size / len(indicators)).astype(int), totals - 1))
    left = totals.copy()
    while left.any():
        label = int(np.where(left > 0, left, len(indicators) + 1).argmin())
        rows = random.permutation(np.flatnonzero(indicators[:, label] & ~placed))
        rows = rows[np.argsort(indicators[rows].sum(axis=1), kind="stable")]
        count = wanted[label] - int(indicators[chosen, label].sum())
        count = max(0, min(count, size - int(chosen.sum()), len(rows)))
        chosen[rows[((np.arange(count) + random.random()) * len(rows) / max(1, count)).astype(int)]] = True
        placed[rows] = True
        left -= indicators[rows].sum(axis=0)
    return _to_size(chosen, indicators, size, random)


def _to_size(chosen: np.ndarray, indicators: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Adds rows at random, those without a label first, then those that leave each label a row on the other side."""
    order = random.permutation(np.flatnonzero(~chosen))
    order = order[np.argsort(indicators[order].any(axis=1), kind="stable")]
    remaining = indicators[~chosen].sum(axis=0)
    short = size - int(chosen.sum())
    for row in order:
        if not short:
            return chosen
        if (remaining[indicators[row]] > 1).all():
            chosen[row] = True
            remaining -= indicators[row]
            short -= 1
    chosen[order[~chosen[order]][:short]] = True  # a table too small for every label to have a row on either side
    return chosen


def _notes(splits: Splits) -> list[str]:
    """What the user should know of the split: repeated texts across parts, labels that a part lacks."""
    notes = _notes_on_pairs("training", splits.train)
    if missing := [label for label in splits.task.labels if label.lower() in _MISSING]:
        notes.append(
            f"{splits.train.source}: {', '.join(map(repr, missing))} looks like a missing value and is taken as a label: if "
            "it is none, remove its rows"
        )
    seen = set(splits.train.inputs())
    for name, part in (("validation", splits.valid), ("test", splits.test)):
        if part is None:
            continue
        notes += _notes_on_pairs(name, part)
        repeated = [row for row, text in zip(part.rows, part.inputs(), strict=True) if text in seen]
        if repeated:
            earlier = (
                "a training row" if name == "validation" or splits.valid is None else "a training or validation row"
            )
            notes.append(
                f"{part.source}: {name_rows(repeated)} of the {name} part repeat the text of {earlier}; scores on them flatter"
            )
        present = {label for labels in part.labels for label in labels}
        if absent := [label for label in splits.task.labels if label not in present]:
            notes.append(f"{part.source}: no {name} row has the label {', '.join(map(repr, absent[:20]))}")
        seen.update(part.inputs())
    return notes


def _notes_on_pairs(name: str, part: Examples) -> list[str]:
    empty = [row for row, pair in zip(part.rows, part.pairs or [], strict=False) if not pair.strip()]
    return (
        [f"{part.source}: {name_rows(empty)} of the {name} part have an empty second text, and stay"] if empty else []
    )
