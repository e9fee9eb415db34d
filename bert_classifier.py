"""`BertClassifier`: the project's own training as a scikit-learn classifier of texts."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import difflib
import inspect
import io
import tarfile
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import tf_keras
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted, column_or_1d

from calibration import fit_decision
from config import Config, make_config
from decision import Decision, plain_decision
from encoders import find_encoder
from examples import Examples
from export import export_classifier
from fitting import Job, fit_in_memory, refuse_wrong_monitor
from imbalance import balance
from model import Classifier, build_classifier
from predict import TextClassifier
from scoring import Scorer
from splits import IN_MEMORY, Splits, split_rows
from tasks import Kind, Task
from text_inputs import Texts, shared_tokens, texts_of

_LEARNED = ("classes_", "decision_", "history_", "num_cut_", "run_directory_", "_pairs", "_fitted")
_OF_TABLES = {  # X and y take their place
    "data",
    "valid_data",
    "test_data",
    "train_split",
    "label_column",
    "label_separator",
    "resume",
}


def _defaults() -> dict[str, Any]:
    """The parameters and their defaults: those of `Config`, but all rows train, and nothing is written."""
    fields = {name: field.default for name, field in Config.model_fields.items() if name not in _OF_TABLES}
    own = {"valid_split": 0.0, "output_dir": None, "wandb_mode": "disabled", "wandb_tags": None, "verbose": False}
    return fields | own


_PARAMETERS = _defaults()


class BertClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a BERT on texts. N texts, K labels.

    The parameters are the options of `python train.py`, by the same names and with the same defaults, but for those that
    name tables. The other differences:

    - `valid_split` is 0: all of X is trained on. With a share or count of the rows, these choose threshold and temperature, and
      early stopping the weights, as in train.py; `predict` then goes by that threshold.
    - `output_dir` is None: nothing is written, and nothing is tracked. With a folder every fit writes and prints what train.py
      does, into W&B too unless `wandb_mode` stays disabled. Such a run cannot be resumed, as its rows are in no table.
    - `verbose` true shows the training's progress.

    X is a list, Series or array of texts; pairs of them, as tuples or an array (N, 2); or a frame with `text_column` and, if it
    is set, `text_pair_column`. y holds a label for each text, of any type; or 0 and 1, (N, K), for several labels a text, as
    array or frame, whose columns then are the labels. Token ids are computed once a process for each text, whatever folds
    and candidates it is in, unless these write runs.

    A pickle holds the model that `save` writes, as data; the graph is loaded when it is used. Load no pickle that you do not
    trust.

    Attributes:
        classes_: the K labels in the order of the probabilities.
        decision_: temperature and threshold, as `decision.Decision`.
        history_: loss and metrics, lists of a number for each epoch.
        num_cut_: texts that were cut to `max_seq_length` in training.
        run_directory_: path of the run, None without `output_dir`.
    """

    def __init__(self, **parameters: Any) -> None:
        for name in parameters:
            if name not in _PARAMETERS:
                near = difflib.get_close_matches(name, _PARAMETERS, n=1)
                guess = f": did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"BertClassifier has no parameter {name!r}{guess}")
        for name, default in _PARAMETERS.items():
            setattr(self, name, parameters.get(name, default))

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what scikit-learn reads the parameters from
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
            for name, value in _PARAMETERS.items()
        ]
    )

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains anew from the encoder's weights.

        Args:
            X: N texts or pairs, as the class says.
            y: N labels, or 0 and 1, (N, K).
            sample_weight: weights of the rows in the loss, (N,), or None.

        Raises:
            ValueError: something in X, y, the weights or the parameters is not as it should be; the message names it.
        """
        texts = self._texts(X)
        config = self._config(pairs=texts.second is not None)
        labels, classes = labels_of(y)
        check_consistent_length(texts.first, labels)
        names = [str(name) for name in classes.tolist()]
        if len(set(names)) < len(names):
            raise ValueError(
                f"the columns of y have names that are the same, or written so: {names}: give each its own"
            )
        task = Task(_kind(config, labels, classes), names)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, texts.first, dtype=np.float32)
        if weights is not None and not ((weights >= 0).all() and weights.any()):
            raise ValueError("sample_weight holds negative weights, or only 0: weights are 0 or more, some above 0")
        splits, weights = _splits(config, task, texts, labels, weights)
        refuse_wrong_monitor(config, splits)
        for name in _LEARNED:  # two models at once would need twice the memory
            self.__dict__.pop(name, None)
        train = self._fit_in_memory if self.output_dir is None else self._fit_into_run
        train(config, splits, weights)
        self.classes_, self._pairs = classes, texts.second is not None
        if self.num_cut_:
            cut = f"{self.num_cut_:,} of {len(splits.train):,} texts are cut"
            warnings.warn(f"{cut} to max_seq_length={config.max_seq_length} tokens", UserWarning, stacklevel=2)
        return self

    def _config(self, pairs: bool) -> Config:
        parameters = self.get_params(deep=False)
        if pairs and parameters["text_pair_column"] is None:
            parameters["text_pair_column"] = "text_pair"
        if not pairs and parameters["text_pair_column"] is not None:
            raise ValueError(
                f"text_pair_column={parameters['text_pair_column']}: X holds single texts: give pairs, or leave it out"
            )
        del parameters["verbose"]
        if parameters["output_dir"] is None:
            if parameters["wandb_mode"] != "disabled":
                raise ValueError(
                    f"wandb_mode={parameters['wandb_mode']}: W&B gets what a run directory holds: set output_dir"
                )
            if parameters["run_name"] is not None:
                raise ValueError(f"run_name={parameters['run_name']}: without output_dir no run is written: set it too")
        if isinstance(parameters["class_weight"], dict):
            parameters["class_weight"] = {str(label): weight for label, weight in parameters["class_weight"].items()}
        return make_config({"data": IN_MEMORY, **parameters})

    def _texts(self, X: Any) -> Texts:
        texts = texts_of(X, self.text_column, self.text_pair_column)
        if not texts.first:
            raise ValueError(
                f"Found array with 0 sample(s) (texts) while a minimum of 1 is required by {type(self).__name__}"
            )
        return texts

    def _fit_in_memory(self, config: Config, splits: Splits, weights: np.ndarray | None) -> None:
        task = splits.task
        balanced = balance(config, task, task.targets(splits.train.labels), weights)
        runtime.set_up_devices()
        runtime.forget_earlier_models()
        paths = find_encoder(config)
        classifier = build_classifier(config, paths, task)
        classifier.set_output_bias(balanced.bias)
        if classifier.encoder.note:
            warnings.warn(classifier.encoder.note, UserWarning, stacklevel=3)
        tokens = {
            name: shared_tokens(
                Texts(part.texts, part.pairs), classifier.preprocessor, paths.preprocessor, config.max_seq_length
            )
            for name, part in splits.parts.items()
        }
        kept = _without_training(classifier)
        scorer = _scorer(kept)
        fit = fit_in_memory(Job(config, splits, balanced, classifier, scorer, tokens, None), self.verbose)
        self.history_ = pd.DataFrame(fit.history).to_dict("list")
        self.decision_ = plain_decision(task)
        if splits.valid is not None:
            logits = scorer.logits(tokens["valid"]) if fit.valid_logits is None else fit.valid_logits
            targets = task.targets(splits.valid.labels)
            self.decision_, _ = fit_decision(task, logits, targets, config.threshold_metric)
        self.num_cut_ = tokens["train"].num_cut
        self.run_directory_: Path | None = None
        self._fitted = _InMemory(kept, scorer, self.decision_, config, paths.preprocessor)

    def _fit_into_run(self, config: Config, splits: Splits, weights: np.ndarray | None) -> None:
        from tracking import choose_mode
        from train import train_splits

        result = train_splits(config, splits, choose_mode(config), row_weights=weights)
        if result.interrupted:
            raise KeyboardInterrupt
        self.history_ = pd.read_csv(result.run_directory / "history.csv").to_dict("list")
        self.decision_, self.num_cut_, self.run_directory_ = result.decision, result.num_cut, result.run_directory
        kept, preprocessor = _without_training(result.classifier), find_encoder(config).preprocessor
        self._fitted = _InMemory(kept, _scorer(kept), self.decision_, config, preprocessor)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float32 (N, K), in the order of `classes_`.

        Raises:
            NotFittedError: `fit` has not run.
            ValueError: X holds no texts.
        """
        check_is_fitted(self)
        texts = self._texts(X)
        if (texts.second is not None) != self._pairs:
            fitted, given = ("pairs", "single texts") if self._pairs else ("single texts", "pairs")
            raise ValueError(f"X holds {given}, and the classifier was trained on {fitted}: give {fitted}")
        return self.decision_.probabilities(self._fitted.logits(texts))

    def predict(self, X: Any) -> np.ndarray:
        """Labels, (N,); where a text may have several, 0 and 1, int64 (N, K).

        Raises:
            NotFittedError: `fit` has not run.
            ValueError: X holds no texts.
        """
        probabilities = self.predict_proba(X)
        decided = self.decision_.decide(probabilities)
        return decided.astype(np.int64) if self.decision_.task.kind == "multilabel" else self.classes_[decided]

    def save(self, directory: str | Path) -> None:
        """Writes the model that takes raw texts, as train.py does: predict.py and TensorFlow alone load it.

        Raises:
            NotFittedError: `fit` has not run.
            ValueError: the folder exists.
        """
        check_is_fitted(self)
        if Path(directory).exists():
            raise ValueError(f"{directory} exists: choose a new folder, or remove it")
        self._fitted.save(Path(directory))

    def __sklearn_is_fitted__(self) -> bool:
        return "_pairs" in vars(self)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if isinstance(state.get("_fitted"), _InMemory):
            state = state | {"_fitted": _Saved(state["_fitted"].packed())}
        return state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        assert tags.classifier_tags is not None
        tags.classifier_tags.multi_label = True
        return tags


class _InMemory:
    """A classifier that was trained in this process."""

    def __init__(
        self, classifier: Classifier, scorer: Scorer, decision: Decision, config: Config, preprocessor: str
    ) -> None:
        self._classifier, self._scorer, self._decision = classifier, scorer, decision
        self._max_seq_length, self._preprocessor = config.max_seq_length, preprocessor

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of texts, float32 [N, 1] in binary tasks, else [N, K]."""
        tokens = shared_tokens(texts, self._classifier.preprocessor, self._preprocessor, self._max_seq_length)
        return self._scorer.logits(tokens)

    def save(self, directory: Path) -> None:
        """Writes the SavedModel."""
        export_classifier(self._classifier, str(directory), self._decision, self._max_seq_length)

    def packed(self) -> bytes:
        """The SavedModel as the bytes of a tar file."""
        packed = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder, "model"))
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(Path(folder, "model"), arcname="model")
        return packed.getvalue()


class _Saved:
    """A classifier that came out of a pickle: a SavedModel as the bytes of a tar file, loaded when it is used."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._loaded: TextClassifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_packed": self._packed, "_loaded": None}

    def logits(self, texts: Texts) -> np.ndarray:
        """Logits of texts, as `_InMemory.logits`."""
        if self._loaded is None:
            with tempfile.TemporaryDirectory() as folder:
                self.save(Path(folder, "model"))
                self._loaded = TextClassifier(Path(folder, "model"))
        return self._loaded.logits(self._loaded.tokenize(*(part for part in texts if part is not None)))

    def save(self, directory: Path) -> None:
        """Writes the SavedModel."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (
            tarfile.open(fileobj=io.BytesIO(self._packed)) as archive,
            tempfile.TemporaryDirectory(dir=directory.parent) as folder,
        ):
            archive.extractall(folder, filter="data")
            Path(folder, "model").rename(directory)


def _without_training(classifier: Classifier) -> Classifier:
    """The same weights without the model that trains them, whose optimizer holds twice their size."""
    trained = classifier.token_model
    token_model = tf_keras.Model(trained.inputs, trained.outputs[0], name="token_model")
    return replace(classifier, token_model=token_model, training_model=token_model)


def _scorer(classifier: Classifier) -> Scorer:
    return Scorer(lambda inputs: classifier.token_model(inputs, training=False), classifier.task.num_logits)


# X and y


def labels_of(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """The labels as positions among the classes, int64 (N,), or 0 and 1, float32 (N, K); and the K classes."""
    if y is None:
        raise ValueError("BertClassifier requires y to be passed, but the target y is None")
    y = y if hasattr(y, "shape") else _as_array(y)
    if y.ndim == 2 and y.shape[1] > 1:
        names = np.array(y.columns) if isinstance(y, pd.DataFrame) else np.arange(y.shape[1])
        indicators = np.asarray(y.toarray() if hasattr(y, "toarray") else y)
        if not np.isin(indicators, (0, 1)).all():
            raise ValueError(
                "y of several columns should hold 0 and 1, a column for each label; else give one label a row"
            )
        return indicators.astype(np.float32), names
    column = column_or_1d(y, warn=True)
    if pd.isna(column).any():
        raise ValueError(f"Input y contains NaN or None in {int(pd.isna(column).sum()):,} rows: give each row a label")
    if column.dtype == object and len({isinstance(label, str) for label in column}) > 1:
        raise ValueError("y holds strings and labels of other types: give labels of one type")
    check_classification_targets(column)
    classes, places = np.unique(column, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y holds one class only ({classes[0]!r}): a classifier needs two; stratify the folds, or add rows"
        )
    return places, classes


def _as_array(y: Any) -> np.ndarray:
    """A list as an array; NumPy alone would make texts of what stands beside a text, NaN too."""
    values = list(y)
    array = np.asarray(values)
    return np.array(values, dtype=object) if array.dtype.kind == "U" else array


def _kind(config: Config, labels: np.ndarray, classes: np.ndarray) -> Kind:
    several: Kind = "multilabel" if labels.ndim == 2 else "binary" if len(classes) == 2 else "multiclass"
    kind: Kind = several if config.task == "auto" else config.task
    if (kind == "multilabel") != (labels.ndim == 2) or (kind == "binary" and len(classes) > 2):
        raise ValueError(f"task={kind}: y makes it {several}: set task to auto, or give y as that task has it")
    return kind


def _splits(
    config: Config, task: Task, texts: Texts, labels: np.ndarray, weights: np.ndarray | None
) -> tuple[Splits, np.ndarray | None]:
    """The rows as train.py has them, and the weights of those that train."""
    names = np.array(task.labels, dtype=object)
    sets = [tuple(names[row > 0]) if labels.ndim == 2 else (names[row],) for row in labels]
    frame = pd.DataFrame({"text": texts.first} | ({} if texts.second is None else {"text_pair": texts.second}))
    table = Examples(IN_MEMORY, frame, texts.first, texts.second, sets, list(range(1, len(sets) + 1)))
    train, valid, notes = table, None, list[str]()
    if config.valid_split != 0:
        train_rows, valid_rows = split_rows(table, task, config, notes)
        train, valid = table.take(train_rows), table.take(valid_rows)
        weights = None if weights is None else weights[train_rows]
    reason = f"{task.kind} ({len(task.labels):,} labels in y)"
    return Splits(train, valid, None, task, reason, notes, {IN_MEMORY: table.identity()}), weights
