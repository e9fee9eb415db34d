"""What an encoder is: its shape, arithmetic and tokenisation, in one record that is kept beside its weights.

Imports no TensorFlow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from config import DataError

Activation = Literal["gelu", "gelu_tanh", "relu", "swish"]
TokenPooling = Literal["cls", "max", "mean", "mean_sqrt_len"]
LONGEST_WORD = 999  # characters; as far as a regular expression can count
MOST_PADDING_ROWS = 128  # embedding tables are rounded up to multiples of 8, 64 or 128 rows for speed
_FILE = "encoder.json"  # in assets.extra/, the folder that the SavedModel format leaves to libraries


@dataclass(frozen=True)
class EncoderPaths:
    """Local SavedModel directories of an encoder and of the preprocessor that makes its inputs."""

    encoder: str
    preprocessor: str


Record = TypeVar("Record", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SentenceDense(_Record):
    """A dense layer on the pooled vector, as sentence-transformers' `Dense` module."""

    units: PositiveInt
    activation: Literal["tanh", "linear"]
    bias: bool


class SentenceVector(_Record):
    """How a sentence-transformers checkpoint makes one vector per text; several poolings are concatenated."""

    poolings: list[TokenPooling]
    dense: list[SentenceDense] = []
    normalize: bool = False


class Tokenization(_Record):
    """The settings of a BERT tokenizer beside its vocabulary.

    Styles: `full_tokenizer` is Model Garden's `FullTokenizer`; `hugging_face` also drops private-use characters, and its
    lower case knows no final sigma.
    """

    style: Literal["full_tokenizer", "hugging_face"]
    lower_case: bool
    strip_accents: bool
    split_ideographs: bool  # every Chinese character is a word of its own
    max_word_length: int = Field(ge=1, le=LONGEST_WORD)  # characters; longer words are [UNK]


def full_tokenizer(lower_case: bool) -> Tokenization:
    """The settings of Model Garden's `FullTokenizer`."""
    return Tokenization(
        style="full_tokenizer",
        lower_case=lower_case,
        strip_accents=lower_case,
        split_ideographs=True,
        max_word_length=400,
    )


class EncoderSpec(_Record):
    """A BERT-like encoder: embeddings, post-norm transformer layers, a pooler where the checkpoint has one.

    `pooler` false: `pooled_output` is the plain [CLS] vector. `segments` false (DistilBERT): `input_type_ids` do nothing.
    """

    family: Literal["bert", "distilbert", "electra"]
    source: str
    vocab_size: PositiveInt  # rows of the embedding table
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    intermediate_size: PositiveInt
    embedding_size: PositiveInt
    max_positions: PositiveInt
    type_vocab_size: PositiveInt
    activation: Activation
    layer_norm_epsilon: PositiveFloat
    hidden_dropout: float = Field(ge=0, lt=1)
    attention_dropout: float = Field(ge=0, lt=1)
    pooler: bool
    segments: bool
    tokenization: Tokenization | None  # None: the encoder carries no vocabulary
    sentence: SentenceVector | None = None

    @property
    def parameters(self) -> int:
        """Weights of the encoder, embeddings and pooler included, sentence-transformers' dense layers left out."""
        width, inner, narrow = self.hidden_size, self.intermediate_size, self.embedding_size
        rows = self.vocab_size + self.max_positions + (self.type_vocab_size if self.segments else 0)
        embeddings = (rows + 2) * narrow + (narrow * width + width if narrow != width else 0)
        layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
        return embeddings + self.num_layers * layer + (width * width + width if self.pooler else 0)


def read_record(path: Path, kind: type[Record], remedy: str = "get the file again") -> Record:
    """Reads a JSON file into a pydantic model; `remedy` ends the message where it cannot be.

    Raises:
        DataError: the file is missing, not JSON, or a key of it has a value that it cannot have.
    """
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; it belongs to the encoder") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"{path}: {where + '=' if where else ''}{str(problem['input'])[:60]!r}: {problem['msg'].lower()}; {remedy}"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); {remedy}") from None


def write_spec(directory: str, spec: EncoderSpec) -> None:
    """Puts the record into a SavedModel directory."""
    path = Path(directory, "assets.extra", _FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_spec(directory: str) -> EncoderSpec | None:
    """The record in a SavedModel directory, None where there is none.

    Raises:
        DataError: it is there but not readable.
    """
    path = Path(directory, "assets.extra", _FILE)
    if not path.is_file():
        return None
    return read_record(path, EncoderSpec, remedy=f"remove {directory}, and build or convert it again")
