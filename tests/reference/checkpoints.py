"""Small Hugging Face checkpoints with random weights, one for each family of encoders that is converted.

`write_checkpoint(name, directory)` makes the same files on every call; NAME.npz beside this file holds what PyTorch
computes from them (see make_reference.py, to be run again when the vocabulary's source, samples/reviews.csv, changes).
"""

import csv
import json
import re
import string
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 32, 3, 4, 64, 96
SENTENCE = 24  # length of st-dense's sentence embedding
MAX_SEQ_LENGTH = 64  # of the sentence-transformers folders
REVIEWS = Path(__file__).resolve().parents[2] / "samples" / "reviews.csv"

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = (
    string.ascii_letters + "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿœßıÀÁÄÅÇÈÉÊÎÑÓÔÖØÙÚÜİ" + string.digits
    + "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩΆΈΌ"
    + "абвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЭЮЯ"
    + "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自去之过家学可里后小么今天北京习文好很书"
)  # fmt: skip
WORDS = (
    "café cafe Café naïve naive Zürich zürich zurich École école ecole Straße strasse Привет привет Καλημέρα καλημερα "
    "##ing ##ed ##er ##ly ##es ##tion 我们 今天 北京 大学 ##大学 学习 中文 ##文"
)

BERT_LAYER = (
    "encoder.layer attention.self.query attention.self.key attention.self.value attention.output.dense "
    "intermediate.dense output.dense attention.output.LayerNorm output.LayerNorm"
)
DISTILBERT_LAYER = (
    "transformer.layer attention.q_lin attention.k_lin attention.v_lin attention.out_lin "
    "ffn.lin1 ffn.lin2 sa_layer_norm output_layer_norm"
)

Json = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Family:
    """What sets a family's checkpoint apart from that of an uncased BERT with a pooler."""

    model_type: str = "bert"
    config: Json = field(default_factory=dict)  # of config.json, besides the sizes
    tokenizer: Json | None = field(default_factory=lambda: {"do_lower_case": True})  # None: no tokenizer_config.json
    tokenizer_json: bool = False  # instead of vocab.txt
    prefix: str = ""  # of the encoder's tensors, where those of its pre-training's heads lie beside them
    pooler: bool = True
    old_names: bool = False  # LayerNorm.gamma, LayerNorm.beta, and the positions' numbers among the tensors
    dtype: npt.DTypeLike = np.float32
    shards: int = 1
    transformer: str = ""  # the encoder's sub-folder in a sentence-transformers folder
    modules: dict[str, Json] = field(default_factory=dict)  # what follows the encoder there: kind -> its config.json
    types: dict[str, str] = field(default_factory=dict)  # kind -> class, where sentence-transformers 6 wrote the folder


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
DENSE = {"in_features": HIDDEN, "out_features": SENTENCE, "bias": True}
TANH = {"activation_function": "torch.nn.modules.activation.Tanh"}
TYPES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
}
FAMILIES = {
    "bert-uncased": Family(),
    "bert-cased": Family(config={"hidden_act": "gelu_new"}, tokenizer={"do_lower_case": False}, prefix="bert."),
    "bert-multilingual": Family(
        tokenizer={"do_lower_case": False, "strip_accents": True}, tokenizer_json=True, shards=2
    ),
    "bert-accents": Family(
        config={"hidden_act": "relu", "layer_norm_eps": 1e-5},
        tokenizer={"do_lower_case": True, "strip_accents": False},
    ),
    "bert-chinese": Family(tokenizer={"do_lower_case": False, "tokenize_chinese_chars": True}),
    "bert-whole-chinese": Family(tokenizer={"do_lower_case": True, "tokenize_chinese_chars": False}),
    "bert-no-pooler": Family(pooler=False, old_names=True),
    "bert-bfloat16": Family(config={"dtype": "bfloat16"}, dtype=ml_dtypes.bfloat16),
    "distilbert": Family(
        "distilbert",
        tokenizer={"do_lower_case": False, "tokenizer_class": "DistilBertTokenizer"},
        prefix="distilbert.",
    ),
    "electra": Family("electra", {"embedding_size": HIDDEN // 2}, prefix="electra."),
    "electra-square": Family("electra", {"embedding_size": HIDDEN}, tokenizer=None, prefix="electra."),
    "st-mean": Family(modules={"Pooling": {"word_embedding_dimension": HIDDEN} | MEAN, "Normalize": {}}),
    "st-dense": Family(
        tokenizer={"do_lower_case": False},
        modules={"Pooling": {"word_embedding_dimension": HIDDEN} | CLS, "Dense": DENSE | TANH, "Normalize": {}},
    ),
    "st-max": Family(
        tokenizer={"do_lower_case": True, "model_max_length": MAX_SEQ_LENGTH, "tokenizer_class": "BertTokenizer"},
        tokenizer_json=True,
        transformer="0_Transformer",
        modules={"Pooling": {"embedding_dimension": HIDDEN, "pooling_mode": "max", "include_prompt": True}},
        types=TYPES,
    ),
}
NAMES: tuple[str, ...] = tuple(FAMILIES)


def write_checkpoint(name: str, directory: Path) -> None:
    """Write the checkpoint of the family `name` (one of NAMES) into `directory`, made if it is not there."""
    family, vocabulary = FAMILIES[name], make_vocabulary()
    encoder = directory / family.transformer
    encoder.mkdir(parents=True, exist_ok=True)
    _write_json(encoder / "config.json", _model_config(family, len(vocabulary)))
    _write_tokenizer(encoder, family, vocabulary)
    tensors = _fill(_model_shapes(family, len(vocabulary)), zlib.crc32(name.encode()), family.dtype)
    if family.old_names:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        tensors = {re.sub("|".join(old), lambda new: old[new[0]], key): value for key, value in tensors.items()}
        tensors["embeddings.position_ids"] = np.arange(POSITIONS, dtype=np.int64)[np.newaxis]
    _write_weights(encoder, tensors, family.shards)
    if family.modules:
        _write_modules(directory, family)


def make_vocabulary() -> list[str]:
    """The tokens in the order of their ids: special ones, single characters, words of several scripts and of reviews."""
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        counts = Counter(word for row in csv.DictReader(file) for word in re.findall(r"[^\W\d_]{2,}", row["text"]))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:160]
    characters = [*string.punctuation, "…", *LETTERS, *("##" + letter for letter in LETTERS)]
    return list(dict.fromkeys([*SPECIAL, *characters, *WORDS.split(), *frequent, *map(str.lower, frequent)]))


def _model_config(family: Family, vocabulary_size: int) -> Json:
    """The content of config.json: DistilBERT has its own names for the sizes."""
    if family.model_type == "distilbert":
        sizes: Json = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INTERMEDIATE}
        sizes |= {"activation": "gelu"}
    else:
        sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        sizes |= {"intermediate_size": INTERMEDIATE, "type_vocab_size": 2, "hidden_act": "gelu"}
    sizes |= {"vocab_size": vocabulary_size, "max_position_embeddings": POSITIONS}
    return {"model_type": family.model_type} | sizes | family.config


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    """A linear layer: PyTorch keeps its kernel transposed."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int = HIDDEN) -> Shapes:
    """A layer normalisation."""
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _model_shapes(family: Family, vocabulary_size: int) -> Shapes:
    """The names and shapes of the checkpoint's tensors."""
    size = family.config.get("embedding_size", HIDDEN)
    tables = {"word": vocabulary_size, "position": POSITIONS, "token_type": 2}
    if family.model_type == "distilbert":
        del tables["token_type"]
    shapes: Shapes = {f"embeddings.{table}_embeddings.weight": (rows, size) for table, rows in tables.items()}
    shapes |= _norm("embeddings.LayerNorm", size)
    if size != HIDDEN:
        shapes |= _dense("embeddings_project", size, HIDDEN)
    for number in range(LAYERS):
        shapes |= _layer_shapes(family.model_type, number)
    if family.model_type == "bert" and family.pooler:
        shapes |= _dense("pooler.dense", HIDDEN, HIDDEN)
    heads = _head_shapes(family.model_type, vocabulary_size) if family.prefix else {}
    return {family.prefix + name: shape for name, shape in shapes.items()} | heads


def _layer_shapes(model_type: str, number: int) -> Shapes:
    """One of the encoder's layers: four square kernels, two of the feed-forward part, two normalisations."""
    names = DISTILBERT_LAYER if model_type == "distilbert" else BERT_LAYER
    layer, *square, inner, outer, first, second = names.split()
    layer = f"{layer}.{number}"
    shapes = _norm(f"{layer}.{first}") | _norm(f"{layer}.{second}")
    for part in square:
        shapes |= _dense(f"{layer}.{part}", HIDDEN, HIDDEN)
    return shapes | _dense(f"{layer}.{inner}", HIDDEN, INTERMEDIATE) | _dense(f"{layer}.{outer}", INTERMEDIATE, HIDDEN)


def _head_shapes(model_type: str, vocabulary_size: int) -> Shapes:
    """What pre-training leaves in a checkpoint beside the encoder."""
    if model_type == "electra":
        shapes = _dense("discriminator_predictions.dense", HIDDEN, HIDDEN)
        return shapes | _dense("discriminator_predictions.dense_prediction", HIDDEN, 1)
    if model_type == "distilbert":
        shapes = _dense("vocab_transform", HIDDEN, HIDDEN) | _norm("vocab_layer_norm")
        return shapes | {"vocab_projector.bias": (vocabulary_size,)}
    shapes = _dense("cls.predictions.transform.dense", HIDDEN, HIDDEN) | _norm("cls.predictions.transform.LayerNorm")
    return shapes | {"cls.predictions.bias": (vocabulary_size,)} | _dense("cls.seq_relationship", HIDDEN, 2)


def _fill(shapes: Shapes, seed: int, dtype: npt.DTypeLike = np.float32) -> Tensors:
    """Random numbers about 0, those of the normalisations' scales about 1."""
    generator, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        centre = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0
        tensors[name] = generator.normal(centre, 0.2, shape).astype(np.float32).astype(dtype)
    return tensors


def _write_weights(directory: Path, tensors: Tensors, shards: int = 1) -> None:
    """model.safetensors, or several files and the index that tells which tensor is in which."""
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    weight_map = {name: files[index * shards // len(tensors)] for index, name in enumerate(tensors)}
    for file in files:
        save_file({key: tensors[key] for key in tensors if weight_map[key] == file}, directory / file, {"format": "pt"})
    metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    _write_json(directory / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _write_tokenizer(directory: Path, family: Family, vocabulary: list[str]) -> None:
    """The tokenizer's settings, and the vocabulary as vocab.txt or in a tokenizer.json that has the settings too."""
    if family.tokenizer is not None:
        _write_json(directory / "tokenizer_config.json", family.tokenizer)
    if not family.tokenizer_json:
        (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
        return
    settings, numbers = family.tokenizer or {}, {token: number for number, token in enumerate(vocabulary)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    cls, sep = (["[CLS]", numbers["[CLS]"]], ["[SEP]", numbers["[SEP]"]])
    content = {
        "version": "1.0",
        "added_tokens": [{"id": numbers[token], "content": token} | flags for token in SPECIAL],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": cls, "sep": sep},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model | {"max_input_chars_per_word": 100, "vocab": numbers},
    }
    _write_json(directory / "tokenizer.json", content)


def _write_modules(directory: Path, family: Family) -> None:
    """modules.json, and a folder for each module with settings that follows the encoder."""
    folders = {"Transformer": family.transformer}
    folders |= {kind: f"{number}_{kind}" for number, kind in enumerate(family.modules, start=1)}
    types = {kind: f"sentence_transformers.models.{kind}" for kind in folders} | family.types
    modules = [{"idx": i, "name": str(i), "path": folders[kind], "type": types[kind]} for i, kind in enumerate(folders)]
    _write_json(directory / "modules.json", modules)
    if not family.types:
        settings = {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False}
        _write_json(directory / family.transformer / "sentence_bert_config.json", settings)
    for kind, config in family.modules.items():
        if config:
            (directory / folders[kind]).mkdir(exist_ok=True)
            _write_json(directory / folders[kind] / "config.json", config)
    if "Dense" in family.modules:
        _write_weights(directory / folders["Dense"], _fill(_dense("linear", HIDDEN, SENTENCE), seed=0))


def _write_json(path: Path, content: Json | list[Json]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
