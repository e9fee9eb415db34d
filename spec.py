"""What an encoder is: its shape, arithmetic and tokenisation, in one record that is kept beside its weights.

Imports no TensorFlow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from config import DataError

Activation = Literal["gelu", "gelu_tanh", "relu", "swish"]
TokenPooling = Literal["cls", "max", "mean", "mean_sqrt_len"]
FULL_TOKENIZER_WORD_LENGTH = 400  # characters; Model Garden's FullTokenizer makes longer words [UNK]
MOST_PADDING_ROWS = 128  # embedding tables are rounded up to multiples of 8, 64 or 128 rows for speed
_FILE = "encoder.json"  # in assets.extra/, the folder that the SavedModel format leaves to libraries


@dataclass(frozen=True)
class EncoderPaths:
    """Local SavedModel directories of an encoder and of the preprocessor that makes its inputs."""

    encoder: str
    preprocessor: str


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SentenceDense(_Record):
    """A dense layer on the pooled vector, as sentence-transformers' `Dense` module."""

    units: int
    activation: Literal["tanh", "linear"]
    bias: bool


class SentenceVector(_Record):
    """How a sentence-transformers checkpoint makes one vector per text; several poolings are concatenated."""

    poolings: list[TokenPooling]
    dense: list[SentenceDense] = []
    normalize: bool = False


class Tokenization(_Record):
    """The settings of a BERT tokenizer beside its vocabulary."""

    lower_case: bool
    strip_accents: bool
    split_ideographs: bool  # every Chinese character is a word of its own
    max_word_length: int  # characters; longer words are [UNK]


class EncoderSpec(_Record):
    """A BERT-like encoder: embeddings, post-norm transformer layers, a pooler where the checkpoint has one.

    `pooler` false: `pooled_output` is the plain [CLS] vector. `segments` false (DistilBERT): `input_type_ids` do nothing.
    """

    family: Literal["bert", "distilbert", "electra"]
    source: str
    vocab_size: int  # rows of the embedding table
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    embedding_size: int
    max_positions: int
    type_vocab_size: int
    activation: Activation
    layer_norm_epsilon: float
    hidden_dropout: float
    attention_dropout: float
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


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: the file is missing, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; it belongs to the encoder") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); get the file again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: holds a {type(values).__name__}, expected an object; get the file again")
    return values


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
    try:
        return EncoderSpec.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(
            f"{path}: not an encoder's record ({' '.join(str(error).split())[:150]}): convert the encoder again"
        ) from error
