"""The real data that trainings are measured on: the same training and test rows for all that are compared."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from benchmarks.peers import read_table
from config import DataError

if TYPE_CHECKING:
    from config import Config
    from fitting import Job
    from splits import Splits

_SEED = 0  # of the choice of the rows; those of the trainings come on top


class _Source(NamedTuple):
    train: str
    test: str | None  # None: the test rows are taken out of `train`
    text_column: str
    label_column: str
    test_rows: int


_SOURCES = {
    "text_emotion": _Source("text_emotion.csv", None, "content", "sentiment", 6000),
    "quora": _Source("quora_train.csv", "quora_test.csv", "question_text", "target", 5000),
}
SETS = tuple(_SOURCES)


@dataclass(frozen=True)
class Rows:
    """N training rows and M test rows; targets are positions among the sorted labels, int64."""

    name: str
    labels: list[str]
    texts: list[str]
    targets: np.ndarray
    test_texts: list[str]
    test_targets: np.ndarray

    def take(self, count: int) -> "Rows":
        """A stratified choice of the training rows; all where there are no more than `count`."""
        if count >= len(self.texts):
            return self
        chosen = _choose(self.targets, count)
        return replace(self, texts=[self.texts[row] for row in chosen], targets=self.targets[chosen])

    def splits(self) -> "Splits":
        """The training rows as train.py has them."""
        from examples import Examples, LabelSet
        from splits import IN_MEMORY, Splits
        from tasks import Task

        task = Task("binary" if len(self.labels) == 2 else "multiclass", self.labels)
        sets: list[LabelSet] = [(self.labels[target],) for target in self.targets]
        frame = pd.DataFrame({"text": self.texts})
        train = Examples(IN_MEMORY, frame, self.texts, None, sets, list(range(1, len(sets) + 1)))
        return Splits(train, None, None, task, "as the benchmark has it", [], {IN_MEMORY: train.identity()})


def read_rows(name: str, rows: int | None, test_rows: int | None) -> Rows:
    """Reads a set; `rows` and `test_rows` are how many are chosen, None: all.

    Raises:
        DataError: its table is not there, or has fewer rows than labels are to be kept of.
    """
    source = _SOURCES[name]
    train = read_table(source.train)
    labels = sorted(train[source.label_column].astype(str).unique())
    targets = np.searchsorted(labels, train[source.label_column].astype(str))
    texts = train[source.text_column].tolist()
    count = test_rows or source.test_rows
    if source.test is None:
        kept, held = train_test_split(np.arange(len(texts)), test_size=count, stratify=targets, random_state=_SEED)
        parts = ([texts[row] for row in kept], targets[kept], [texts[row] for row in held], targets[held])
    else:
        table = read_table(source.test)
        held_targets = np.searchsorted(labels, table[source.label_column].astype(str))
        chosen = _choose(held_targets, count) if count < len(table) else np.arange(len(table))
        parts = (texts, targets, table[source.text_column].iloc[chosen].tolist(), held_targets[chosen])
    whole = Rows(name, labels, *parts)
    if rows is not None and rows < len(labels):
        raise DataError(f"--rows {rows}: {name} has {len(labels)} labels; take more rows than that")
    return whole if rows is None else whole.take(rows)


def _choose(targets: np.ndarray, count: int) -> np.ndarray:
    """A stratified choice of so many rows, in their order."""
    chosen, _ = train_test_split(np.arange(len(targets)), train_size=count, stratify=targets, random_state=_SEED)
    return np.sort(chosen)


def make_job(rows: Rows, config: "Config") -> "Job":
    """This project's training of the rows, ready but for their token ids, which `tokens["train"]` is to get."""
    import runtime
    from encoders import find_encoder
    from fitting import Job
    from imbalance import balance
    from model import build_classifier
    from scoring import Scorer

    runtime.forget_earlier_models()
    splits = rows.splits()
    balanced = balance(config, splits.task, splits.task.targets(splits.train.labels))
    classifier = build_classifier(config, find_encoder(config), splits.task)
    classifier.set_output_bias(balanced.bias)
    scorer = Scorer(lambda inputs: classifier.token_model(inputs, training=False), splits.task.num_logits)
    return Job(config, splits, balanced, classifier, scorer, {}, None)
