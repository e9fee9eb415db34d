"""Every option of the project: one typed, frozen `Config`, from YAML, the command line or a dict, through one check.

Imports no TensorFlow, so that `--help` and a mistyped key answer at once.
"""

import contextlib
import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)


class HubtuneError(ValueError):
    """A mistake in what the user gave, told in one line. Commands print it and leave with `exit_code`."""

    exit_code = 1


class DataError(HubtuneError):
    """Something is wrong with a table, an encoder or a run directory."""


class ConfigError(HubtuneError):
    """Something is wrong with an option."""

    exit_code = 2


def _list_as_text(value: Any) -> Any:
    """A list as the agents of W&B's sweeps write it, ['a', 'b'], becomes one."""
    if isinstance(value, str) and re.fullmatch(r"\[.*\]", value.strip()):
        with contextlib.suppress(yaml.YAMLError):
            return yaml.load(value, yaml.BaseLoader)
    return value


def _split_commas(value: Any) -> Any:
    value = _list_as_text(value)
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _join_commas(value: Any) -> Any:
    value = _list_as_text(value)
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(name, str) and "," not in name for name in value):
        raise ValueError("should be names of columns, in quotes where YAML reads them otherwise, and without commas")
    return ",".join(value)


def _class_weight(value: Any) -> Any:
    """A mapping as text, as the command line and sweeps give it, and labels that YAML reads as numbers, become a dict."""
    if isinstance(value, dict):
        if any(isinstance(label, bool) for label in value):
            raise ValueError(
                "should have its labels in quotes: YAML reads yes, no, true and false without them as truth values"
            )
        if any(isinstance(weight, bool) for weight in value.values()):
            raise ValueError("should have numbers for weights")
    try:
        # The base loader leaves every scalar a text, so that a label such as yes stays one.
        read = yaml.load(value, yaml.BaseLoader) if isinstance(value, str) else value
        if isinstance(read, dict):
            read = {str(label): float(weight) for label, weight in read.items()}
    except (yaml.YAMLError, TypeError, ValueError):
        read = None
    if read in ("none", "balanced") or (isinstance(read, dict) and all(0 < x < math.inf for x in read.values())):
        return read
    raise ValueError("should be none, balanced or a mapping such as {spam: 5, ham: 1}, of weights above 0")


def split_threshold_metric(value: str) -> tuple[str, float | None]:
    """The metric and its level: "precision_at_recall=0.9" -> ("precision_at_recall", 0.9), "f1" -> ("f1", None).

    Raises:
        ValueError: it is none of those that there are.
    """
    name, equals, level = value.partition("=")
    if name in ("f1", "balanced_accuracy") and not equals:
        return name, None
    with contextlib.suppress(ValueError):
        if name in ("precision_at_recall", "recall_at_precision") and 0 < float(level) <= 1:
            return name, float(level)
    raise ValueError("should be f1, balanced_accuracy, or such as precision_at_recall=0.9 or recall_at_precision=0.95")


_MISREAD = {  # pydantic's names for what it could not read, and what should be there
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "bool_parsing": "should be true or false",
}
_SHORTEST_PAIR = 5  # [CLS], a token, [SEP], a token, [SEP]
# The first key of each section of `--help`, and what it is called there.
SECTIONS = {
    "data": "data",
    "encoder": "encoder and head",
    "epochs": "training",
    "output_dir": "output",
    "wandb_mode": "Weights & Biases",
}
OPENED_ONLY = ("freeze_layers", "encoder_dropout", "layer_decay")  # what a hub layer cannot honour

Share = Annotated[float, Field(ge=0)]


class Config(BaseModel):
    """One run, fully described. Fields are in the order of `--help` and docs/config.md, whose sections begin as SECTIONS says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = Field(
        min_length=1,
        description="table to train on: CSV, TSV, JSONL, Parquet, plain or compressed, path or URL; or a folder of class folders",
    )
    valid_data: str | None = Field(None, description="table with the validation rows, instead of a split of `data`")
    test_data: str | None = Field(None, description="table that is only scored, once, after training")
    text_column: str = Field("text", description="column with the texts")
    text_pair_column: str | None = Field(
        None, description="column with the second text of each row, for sentence pairs"
    )
    label_column: Annotated[str, BeforeValidator(_join_commas)] = Field(
        "label",
        description="column with the labels: strings, integers, or lists of them; or several columns of 0 and 1, one per label, "
        "separated by commas",
    )
    label_separator: str | None = Field(
        None,
        min_length=1,
        description="what stands between the labels of one row, as in joy|love; null: one label a row",
    )
    task: Literal["auto", "binary", "multiclass", "multilabel"] = Field(
        "auto",
        description="auto: multilabel if a row has several labels or none, binary for two labels, else multiclass",
    )
    train_split: Share | None = Field(
        None, description="training rows of `data`: a fraction below 1 or a count; null: all that valid_split leaves"
    )
    valid_split: Share | None = Field(
        None,
        description="validation rows of `data`: a fraction or a count; 0: none; null: what train_split leaves, or 0.1 without it",
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="seed of the split, the head's first weights, the batch order and the dropout",
    )

    encoder: str = Field(
        "all-MiniLM-L6-v2",
        description="all-MiniLM-L6-v2 (embedded), a TF-Hub or Kaggle handle or URL, hf:organisation/name, "
        "wandb:entity/project/name:alias, or a folder: SavedModel, Hugging Face or sentence-transformers checkpoint, "
        "run directory",
    )
    preprocessor: str | None = Field(
        None,
        description="TF-Hub preprocessor that goes with the encoder; null: built from the encoder's own vocabulary",
    )
    encoder_mode: Literal["auto", "hub", "opened"] = Field(
        "auto",
        description="hub: its graph as it is; opened: its weights in Keras layers, proven equal; auto: opened if it can be",
    )
    trainable: bool = Field(True, description="fine-tune the encoder; false: train the head alone on frozen features")
    freeze_layers: int | None = Field(
        None, ge=0, description="freeze the embeddings and so many of the lowest layers (opened encoders); null: none"
    )
    pooling: Literal["pooled_output", "cls", "mean", "default"] = Field(
        "pooled_output",
        description="what the head sees: BERT's pooled [CLS] vector, the plain [CLS] vector, the mean over real tokens, "
        "or the encoder's own default (the sentence vector of sentence-transformers)",
    )
    max_seq_length: int = Field(
        128, ge=3, description="tokens kept per text, [CLS] and [SEP] included; longer texts are cut and counted"
    )
    hidden_units: int = Field(0, ge=0, description="width of an extra dense ReLU layer before the logits; 0: none")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate before the logits")
    encoder_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="hidden and attention dropout inside an opened encoder; null: the encoder's own rates",
    )

    epochs: int = Field(3, ge=1, description="passes over the training rows")
    batch_size: int = Field(32, ge=1, description="rows per step")
    learning_rate: float = Field(
        1e-4, gt=0, description="peak learning rate of the head; for encoders of BERT-base size 2e-5 to 5e-5"
    )
    encoder_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of the encoder; null: learning_rate"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="rate of each layer of an opened encoder over that of the layer above; 1: one rate for all",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW's decoupled decay; biases and layer norms are left out; 0: plain Adam"
    )
    warmup_ratio: float = Field(
        0.1, ge=0, le=1, description="share of the steps with a rising rate, before it falls linearly to 0"
    )
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="parts of batch_size rows whose gradients are added up for one step; memory for one part is enough",
    )
    class_weight: Annotated[Literal["none", "balanced"] | dict[str, float], BeforeValidator(_class_weight)] = Field(
        "none",
        description="weight of a row in the loss by its label: none; balanced: rare labels as much as frequent ones; "
        "or {label: weight}, 1 for labels not named",
    )
    oversampling: float = Field(
        0.0,
        ge=0,
        le=1,
        description="rare labels' rows are drawn again, newly each epoch, up to this share of the most frequent label's; 0: off",
    )
    early_stopping_patience: int = Field(
        0,
        ge=0,
        description="stop after so many epochs without a better `monitor`, keep the best weights; 0: keep the last",
    )
    monitor: Literal["val_loss", "val_accuracy", "val_macro_f1", "val_micro_f1", "val_f1", "val_average_precision"] = (
        Field("val_macro_f1", description="validation metric that early stopping and the best weights go by")
    )
    threshold_metric: str = Field(
        "f1",
        description="what the threshold is chosen for on the validation rows: f1, balanced_accuracy, precision_at_recall=0.9 "
        "(the most precise with that recall) or recall_at_precision=0.9; multi-class tasks have no threshold",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="arithmetic of the training step; auto: what the CPU or GPU has in hardware"
    )
    jit_compile: bool = Field(
        False,
        description="compile the training step by XLA, on a GPU: texts are padded to multiples of 32 tokens, because every shape "
        "is compiled anew",
    )

    output_dir: str = Field("runs", description="folder that holds the run directories")
    run_name: str | None = Field(
        None, description="name of the run directory, new or empty; null: the table's name and the time"
    )
    resume: str | None = Field(
        None,
        description="run directory of a training that stopped early: it goes on after its last finished epoch, with its own "
        "options",
    )
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="W&B logging; auto: online when logged in, else offline"
    )
    wandb_project: str = Field("hubtune", description="W&B project")
    wandb_group: str | None = Field(
        None, description="W&B group that the runs belong to; null: the run directory's name"
    )
    wandb_tags: Annotated[list[str], BeforeValidator(_split_commas)] = Field(
        [], description="W&B tags, separated by commas"
    )
    wandb_notes: str | None = Field(None, description="W&B notes: what this run is about")
    wandb_registry: str | None = Field(
        None,
        description="W&B registry that an online run links its model to: registry/collection, as in models/tickets; null: none",
    )
    log_model: bool = Field(True, description="keep the model as a version of a W&B artifact")
    log_examples: bool = Field(False, description="send texts to W&B too, in tables; false: row numbers alone")

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_where_they_belong(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("should not be a truth value")
        return value

    @field_validator("train_split", "valid_split")
    @classmethod
    def _fraction_or_count(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and (value == 1 or value != int(value)):
            raise ValueError("should be a fraction below 1 or a whole number of rows from 2")
        return value

    @field_validator("threshold_metric")
    @classmethod
    def _known_threshold_metric(cls, value: str) -> str:
        split_threshold_metric(value)
        return value

    @field_validator("train_split")
    @classmethod
    def _some_training_rows(cls, value: float | None) -> float | None:
        if value == 0:
            raise ValueError("should be greater than 0, or null for all rows")
        return value

    @field_validator("wandb_registry")
    @classmethod
    def _registry_and_collection(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"[^/\s]+/[^/\s]+", value) or value.startswith("wandb-registry-")):
            raise ValueError("should be registry/collection, as in models/tickets")
        return value

    @field_validator("run_name")
    @classmethod
    def _one_folder(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or value in {".", ".."} or Path(value).name != value):
            raise ValueError("should be a folder's name without any path; use output_dir for the path")
        return value

    @model_validator(mode="after")
    def _keys_agree(self) -> "Config":
        columns = {"text_column": self.text_column, "text_pair_column": self.text_pair_column}
        for key, column in columns.items():
            if column in {self.label_column, *self.label_columns}:
                raise ValueError(f"{key} and label_column are both {column!r}: name two columns")
        if self.text_column == self.text_pair_column:
            raise ValueError(f"text_column and text_pair_column are both {self.text_column!r}: name two columns")
        if self.text_pair_column is not None and self.max_seq_length < _SHORTEST_PAIR:
            raise ValueError(
                f"max_seq_length={self.max_seq_length}: a pair of texts needs {_SHORTEST_PAIR} tokens or more"
            )
        if self.valid_data is not None and self.valid_split:
            raise ValueError("valid_data and valid_split both say where validation rows come from: set one of them")
        if (
            (self.train_split or 1) < 1
            and (self.valid_split or 1) < 1
            and (self.train_split or 0) + (self.valid_split or 0) > 1
        ):
            raise ValueError(
                f"train_split={self.train_split} and valid_split={self.valid_split} are more than the whole: let them sum to 1"
            )
        if self.jit_compile and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "jit_compile and gradient_accumulation_steps: XLA cannot compile such a step; use one of them"
            )
        for key in self.opened_only:
            if self.encoder_mode == "hub":
                raise ValueError(f"{key} needs an opened encoder: set encoder_mode to auto or opened")
            if not self.trainable:
                raise ValueError(f"{key} is about training the encoder, and trainable is false: leave one of them out")
        if self.early_stopping_patience and self.valid_data is None and self.valid_split == 0:
            raise ValueError("early_stopping_patience needs validation rows: set valid_data or valid_split")
        return self

    @property
    def label_columns(self) -> list[str]:
        """The columns that `label_column` names, if none has all of it as its name."""
        return [name.strip() for name in self.label_column.split(",")]

    @property
    def opened_only(self) -> list[str]:
        """The options that are set and that a hub layer cannot honour."""
        return [key for key in OPENED_ONLY if getattr(self, key) != type(self).model_fields[key].default]

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `--config` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def make_config(values: dict[str, Any], origin: dict[str, str] | None = None) -> Config:
    """Checks `values` and returns the Config; None gives a key its default; `origin` says where a key comes from, for messages.

    Raises:
        ConfigError: one line that names the origin, the key, the value and what is allowed.
    """
    origin = origin or {}
    for key in values:
        if key not in Config.model_fields:
            raise ConfigError(f"{origin.get(key, 'config')}: unknown key {key!r}{did_you_mean(str(key))}")
    try:
        return Config(**{key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(_one_line(problem, origin) for problem in error.errors())) from None


def resume_config(directory: str, **changed: Any) -> Config:
    """The options of the run in `directory`, for `train` to go on with it; those in `changed` that are not None are others now.

    Raises:
        DataError: there is no run.
        ConfigError: its config.yaml cannot be read, or holds what is not allowed.
    """
    path = Path(directory).expanduser() / "config.yaml"
    if not path.is_file():
        raise DataError(f"resume={directory}: no config.yaml is there: name the run directory of a training")
    values = read_yaml(str(path))
    changed = {key: value for key, value in changed.items() if value is not None}
    origin = dict.fromkeys(values, str(path)) | dict.fromkeys(changed, "command line")
    return make_config(values | changed | {"resume": directory}, origin)


def _one_line(problem: Any, origin: dict[str, str]) -> str:
    message = _MISREAD.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    message = message[0].lower() + message[1:]
    if not problem["loc"]:
        return message
    key = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{key} is missing: name your table, as in --{key} samples/reviews.csv"
    return f"{origin.get(key, 'config')}: {key}={problem['input']!r}: {message}"


def did_you_mean(key: str, prefix: str = "") -> str:
    """The end of a message on a key that there is not: the nearest that there is, after `prefix`."""
    near = difflib.get_close_matches(key, Config.model_fields, n=1)
    return f": did you mean {prefix + near[0]!r}?" if near else "; --help lists the keys"


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a config file into a dict of its keys.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"--config {path}: a config file holds `key: value` lines, this one holds {type(values).__name__}"
        )
    return values
