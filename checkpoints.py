"""Hugging Face and sentence-transformers checkpoint folders -> `EncoderSpec`, vocabulary, weights by Model Garden's names.

Only JSON, text and safetensors are read: nothing is unpickled, no PyTorch is needed. What Model Garden's BertEncoder
cannot compute exactly is refused with the reason. Imports no TensorFlow.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, RootModel

from config import DataError
from spec import MOST_PADDING_ROWS, Activation, EncoderSpec, SentenceDense, SentenceVector, TokenPooling, read_record
from tensor_files import TensorFiles
from vocabulary import read_tokenizer

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "swish",
    "swish": "swish",
}


class _Settings(BaseModel):
    """What is read of a file; defaults are those of transformers and sentence-transformers."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Architecture(_Settings):
    model_type: str | None = None
    position_embedding_type: str | None = "absolute"
    auto_map: Any = None
    is_decoder: bool | None = False
    add_cross_attention: bool | None = False
    pruned_heads: Any = None
    quantization_config: Any = None


class _Bert(_Settings):
    vocab_size: PositiveInt = 30522
    hidden_size: PositiveInt = 768
    num_layers: PositiveInt = Field(12, alias="num_hidden_layers")
    num_heads: PositiveInt = Field(12, alias="num_attention_heads")
    intermediate_size: PositiveInt = 3072
    max_positions: PositiveInt = Field(512, alias="max_position_embeddings")
    type_vocab_size: PositiveInt = 2
    activation: str = Field("gelu", alias="hidden_act")
    layer_norm_epsilon: PositiveFloat = Field(1e-12, alias="layer_norm_eps")
    hidden_dropout: float = Field(0.1, alias="hidden_dropout_prob", ge=0, lt=1)
    attention_dropout: float = Field(0.1, alias="attention_probs_dropout_prob", ge=0, lt=1)


class _Electra(_Bert):
    hidden_size: PositiveInt = 256
    num_heads: PositiveInt = Field(4, alias="num_attention_heads")
    intermediate_size: PositiveInt = 1024
    embedding_size: PositiveInt = 128


class _DistilBert(_Settings):
    vocab_size: PositiveInt = 30522
    hidden_size: PositiveInt = Field(768, alias="dim")
    num_layers: PositiveInt = Field(6, alias="n_layers")
    num_heads: PositiveInt = Field(12, alias="n_heads")
    intermediate_size: PositiveInt = Field(3072, alias="hidden_dim")
    max_positions: PositiveInt = Field(512, alias="max_position_embeddings")
    activation: str = "gelu"
    hidden_dropout: float = Field(0.1, alias="dropout", ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)


_FAMILIES: dict[str, type[_Settings]] = {"bert": _Bert, "distilbert": _DistilBert, "electra": _Electra}
# Parts of a layer by Model Garden's names -> by those of BERT and ELECTRA, and of DistilBERT, in Hugging Face's files.
_LAYER_PARTS = {
    "self_attention/query": ("attention.self.query", "attention.q_lin"),
    "self_attention/key": ("attention.self.key", "attention.k_lin"),
    "self_attention/value": ("attention.self.value", "attention.v_lin"),
    "self_attention/attention_output": ("attention.output.dense", "attention.out_lin"),
    "self_attention_layer_norm": ("attention.output.LayerNorm", "sa_layer_norm"),
    "intermediate": ("intermediate.dense", "ffn.lin1"),
    "output": ("output.dense", "ffn.lin2"),
    "output_layer_norm": ("output.LayerNorm", "output_layer_norm"),
}
_ENCODER_PARTS = ("embeddings.", "encoder.", "transformer.", "embeddings_project.", "pooler.")
_BUFFERS = {"embeddings.position_ids", "embeddings.token_type_ids"}
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
_DENSE_ACTIVATIONS: dict[str, Literal["tanh", "linear"]] = {"Tanh": "tanh", "Identity": "linear"}  # of torch.nn


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose files agree with each other; its tensors are read when `weights` is walked through."""

    spec: EncoderSpec
    vocab: list[str]
    notes: list[str]
    files: list[Path]  # that decide what the encoder is
    tensors: TensorFiles
    modules: "SentenceModules"

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every variable of the encoder by Model Garden's name, float32; kernels are [in, out].

        Raises:
            DataError: a tensor holds numbers that are not finite.
        """
        for ours, theirs, _ in _places(self.spec):
            tensor = self.tensors.read(self.tensors.prefix + theirs)
            yield ours, tensor.T if ours.endswith("/kernel") else tensor
        if not self.spec.segments:
            yield (
                "type_embeddings/embeddings",
                np.zeros((self.spec.type_vocab_size, self.spec.embedding_size), np.float32),
            )
        for number, folder in enumerate(self.modules.dense_folders):
            dense = TensorFiles(folder)
            yield f"sentence_vector/dense_{number}/kernel", dense.read("linear.weight").T
            if "linear.bias" in dense.shapes:
                yield f"sentence_vector/dense_{number}/bias", dense.read("linear.bias")


def is_checkpoint(directory: str) -> bool:
    """Whether a folder is laid out as Hugging Face's or sentence-transformers' checkpoints are."""
    return any(Path(directory, name).is_file() for name in ("config.json", "modules.json"))


def read_checkpoint(directory: str, source: str) -> Checkpoint:
    """Reads a checkpoint folder; `source` is what the user called it.

    Raises:
        DataError: a file is missing or corrupt, files disagree, or the checkpoint is not a BERT, DistilBERT or ELECTRA that
            can be mapped exactly.
    """
    modules = _read_modules(Path(directory))
    folder = modules.transformer_folder
    architecture = read_record(folder / "config.json", _Architecture)
    _refuse_other_architectures(folder / "config.json", architecture)
    tensors = TensorFiles(folder, _WORD_EMBEDDINGS)
    vocab, tokenization = read_tokenizer(folder, lower_case_first=modules.lower_case)
    spec = _spec_of(
        folder / "config.json",
        str(architecture.model_type),
        source=source,
        pooler=f"{tensors.prefix}pooler.dense.weight" in tensors.shapes,
        tokenization=tokenization,
        sentence=modules.sentence,
    )
    heads = _check_shapes(spec, tensors)
    notes = [*modules.notes, *_check_vocabulary(folder, vocab, spec)]
    if heads:
        notes.append(f"left out, as no part of the encoder: {', '.join(heads)}")
    if not spec.pooler:
        notes.append("it has no pooler: pooled_output is the plain [CLS] vector")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in {".json", ".txt"}] + tensors.files
    return Checkpoint(spec, vocab, notes, [*modules.files, *files], tensors, modules)


def _refuse_other_architectures(path: Path, settings: _Architecture) -> None:
    reason = None
    if settings.model_type not in _FAMILIES:
        reason = f"its architecture is {settings.model_type!r}; bert, distilbert and electra can be mapped exactly"
    elif settings.auto_map is not None:
        reason = "it needs code of its own (auto_map)"
    elif settings.position_embedding_type not in {"absolute", None}:
        reason = f"its position embeddings are {settings.position_embedding_type!r}, only 'absolute' can be mapped"
    elif settings.is_decoder or settings.add_cross_attention:
        reason = "it is a decoder (is_decoder, add_cross_attention)"
    elif settings.pruned_heads:
        reason = "attention heads were pruned (pruned_heads)"
    elif settings.quantization_config:
        reason = "its weights are quantized (quantization_config)"
    if reason:
        raise DataError(f"{path}: this checkpoint cannot become a hub encoder: {reason}")


def _spec_of(path: Path, family: str, **found: Any) -> EncoderSpec:
    """What config.json at `path` says, and what was `found` elsewhere."""
    values = read_record(path, _FAMILIES[family]).model_dump()
    activation = _ACTIVATIONS.get(values["activation"])
    if activation is None:
        raise DataError(f"{path}: the activation {values['activation']!r} is not one of {', '.join(_ACTIVATIONS)}")
    if values["hidden_size"] % values["num_heads"]:
        raise DataError(
            f"{path}: {values['hidden_size']} wide, not divisible by its {values['num_heads']} attention heads"
        )
    everywhere = {"embedding_size": values["hidden_size"], "type_vocab_size": 2, "layer_norm_epsilon": 1e-12}
    settled = {"activation": activation, "family": family, "segments": family != "distilbert"}
    return EncoderSpec.model_validate({**everywhere, **values, **settled, **found})


def _places(spec: EncoderSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every tensor: Model Garden's name, Hugging Face's name without prefix, and its shape there ([out, in] for kernels)."""
    narrow, width, inner = spec.embedding_size, spec.hidden_size, spec.intermediate_size
    yield "word_embeddings/embeddings", _WORD_EMBEDDINGS, (spec.vocab_size, narrow)
    yield "position_embedding/embeddings", "embeddings.position_embeddings.weight", (spec.max_positions, narrow)
    if spec.segments:
        yield "type_embeddings/embeddings", "embeddings.token_type_embeddings.weight", (spec.type_vocab_size, narrow)
    yield from _norm("embeddings/layer_norm", "embeddings.LayerNorm", narrow)
    if narrow != width:
        yield from _linear("embedding_projection", "embeddings_project", narrow, width)
    column, stack = (1, "transformer") if spec.family == "distilbert" else (0, "encoder")
    sizes = {"intermediate": (width, inner), "output": (inner, width)}
    for number in range(spec.num_layers):
        for part, names in _LAYER_PARTS.items():
            ours, theirs = f"transformer/layer_{number}/{part}", f"{stack}.layer.{number}.{names[column]}"
            if part.endswith("layer_norm"):
                yield from _norm(ours, theirs, width)
            else:
                yield from _linear(ours, theirs, *sizes.get(part, (width, width)))
    if spec.pooler:
        yield from _linear("pooler_transform", "pooler.dense", width, width)


def _linear(ours: str, theirs: str, inputs: int, outputs: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"{ours}/kernel", f"{theirs}.weight", (outputs, inputs)
    yield f"{ours}/bias", f"{theirs}.bias", (outputs,)


def _norm(ours: str, theirs: str, size: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"{ours}/gamma", f"{theirs}.weight", (size,)
    yield f"{ours}/beta", f"{theirs}.bias", (size,)


def _check_shapes(spec: EncoderSpec, tensors: TensorFiles) -> list[str]:
    """Refuses an encoder that is not whole or not BERT's; returns the parts of the checkpoint that are beside it."""
    wanted = {tensors.prefix + theirs: shape for _, theirs, shape in _places(spec)}
    missing = [name for name in wanted if name not in tensors.shapes]
    if missing:
        raise DataError(
            f"{tensors.folder}: {len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}; get the files again"
        )
    for name, shape in wanted.items():
        if tensors.shapes[name] != shape:
            raise DataError(
                f"{tensors.folder}: the tensor {name} has the shape {tensors.shapes[name]}, config.json says {shape}; "
                "one of the two files is another checkpoint's"
            )
    others = tensors.shapes.keys() - wanted.keys() - {tensors.prefix + name for name in _BUFFERS}
    inside = tuple(tensors.prefix + part for part in _ENCODER_PARTS)
    strange = sorted(name for name in others if name.startswith(inside))
    if strange:
        raise DataError(
            f"{tensors.folder}: the encoder holds {len(strange)} tensors that BERT has no place for, such as {strange[0]}; "
            "it cannot be mapped exactly"
        )
    return sorted({name.split(".")[0] for name in others})


def _check_vocabulary(folder: Path, vocab: list[str], spec: EncoderSpec) -> list[str]:
    """Refuses a vocabulary that is not the embedding table's; rows that only round the table up are noted."""
    rows, tokens = spec.vocab_size, len(vocab)
    if tokens > rows or (tokens < rows and (rows % 8 or rows - tokens >= MOST_PADDING_ROWS)):
        raise DataError(
            f"{folder}: the vocabulary has {tokens:,} tokens, the embedding table {rows:,} rows; "
            "the two are not of one checkpoint, get the files again"
        )
    return [f"{rows - tokens} rows of its embedding table belong to no token"] if tokens < rows else []


# sentence-transformers: which modules follow the transformer


@dataclass(frozen=True)
class SentenceModules:
    """What `modules.json` of a sentence-transformers folder says; without that file, the folder as it is."""

    transformer_folder: Path
    sentence: SentenceVector | None
    dense_folders: list[Path]
    lower_case: bool  # texts are lower-cased before the tokenizer sees them
    notes: list[str]
    files: list[Path]


class _Module(_Settings):
    type: str
    path: str


class _Modules(RootModel[list[_Module]]):
    """modules.json."""


class _Transformer(_Settings):
    do_lower_case: bool | None = False


class _Prompts(_Settings):
    default_prompt_name: str | None = None


class _Pooling(_Settings):
    pooling_mode: str | list[str] | None = None
    pooling_mode_cls_token: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_tokens: bool = True
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class _Dense(_Settings):
    in_features: PositiveInt
    out_features: PositiveInt
    bias: bool = True
    activation_function: str | None = "torch.nn.modules.activation.Tanh"
    use_residual: bool = False
    module_input_name: str | None = "sentence_embedding"
    module_output_name: str | None = None


def _read_modules(folder: Path) -> SentenceModules:
    index = folder / "modules.json"
    if not index.is_file():
        return SentenceModules(folder, None, [], False, [], [])
    modules = read_record(index, _Modules).root
    for module in modules:
        if Path(module.path).is_absolute() or ".." in Path(module.path).parts:
            raise DataError(f"{index}: the module path {module.path!r} is not in that folder; get the file again")
    found = [(module.type.split(".")[-1], folder / module.path) for module in modules]
    kinds = [kind for kind, _ in found]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Dense", "Normalize"} or "Normalize" in kinds[:-1]:
        raise DataError(
            f"{index}: the modules {', '.join(kinds)} cannot be mapped; Transformer, Pooling, any Dense, and Normalize last can"
        )
    dense_folders = [path for kind, path in found if kind == "Dense"]
    sentence = SentenceVector(
        poolings=_poolings(found[1][1] / "config.json"),
        dense=[_dense(path) for path in dense_folders],
        normalize=kinds[-1] == "Normalize",
    )
    transformer, prompts = found[0][1] / "sentence_bert_config.json", folder / "config_sentence_transformers.json"
    prompt = read_record(prompts, _Prompts).default_prompt_name if prompts.is_file() else None
    return SentenceModules(
        found[0][1],
        sentence,
        dense_folders,
        bool(read_record(transformer, _Transformer).do_lower_case) if transformer.is_file() else False,
        [f"its default prompt {prompt!r} is not put before the texts"] if prompt else [],
        [index, *(path for _, place in found[1:] for path in sorted(place.glob("*")) if path.is_file())],
    )


def _poolings(path: Path) -> list[TokenPooling]:
    settings = read_record(path, _Pooling)
    chosen = [settings.pooling_mode] if isinstance(settings.pooling_mode, str) else settings.pooling_mode
    if chosen is None:
        flags = [name for name, value in settings.model_dump().items() if value is True]
        chosen = [re.sub(r"pooling_mode_|_tokens?$", "", flag) for flag in flags]
    strange = [pooling for pooling in chosen if pooling not in get_args(TokenPooling)]
    if strange or not chosen:
        raise DataError(
            f"{path}: the pooling {', '.join(strange) or 'of nothing'} cannot be mapped; {', '.join(get_args(TokenPooling))} can"
        )
    return [pooling for pooling in get_args(TokenPooling) if pooling in chosen]


def _dense(folder: Path) -> SentenceDense:
    settings, tensors = read_record(folder / "config.json", _Dense), TensorFiles(folder)
    activation = str(settings.activation_function).split(".")[-1]
    plain = settings.module_output_name in {None, "sentence_embedding"} and settings.module_input_name in {
        None,
        "sentence_embedding",
    }
    if activation not in _DENSE_ACTIVATIONS or settings.use_residual or not plain:
        raise DataError(
            f"{folder / 'config.json'}: a dense layer with {activation}, a residual or other inputs cannot be mapped; "
            f"{' and '.join(_DENSE_ACTIVATIONS)} on the sentence's vector can"
        )
    wanted: dict[str, tuple[int, ...]] = {"linear.weight": (settings.out_features, settings.in_features)}
    wanted |= {"linear.bias": (settings.out_features,)} if settings.bias else {}
    if tensors.shapes != wanted:
        raise DataError(
            f"{folder}: the tensors {tensors.shapes} are not those of config.json {wanted}; get the files again"
        )
    return SentenceDense(units=settings.out_features, activation=_DENSE_ACTIVATIONS[activation], bias=settings.bias)
