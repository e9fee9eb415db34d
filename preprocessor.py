"""Text -> token ids inside the graph: BERT's tokenizer, in the layout of TF-Hub's text preprocessors."""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import os
import tempfile
from pathlib import Path

import tensorflow as tf
import tensorflow_text as text
import tf_keras
from official.nlp.modeling import layers
from official.nlp.tools import export_tfhub_lib

from spec import Tokenization
from vocabulary import read_vocab

_DEFAULT_SEQ_LENGTH = 128
_UNKNOWN_CHARACTER = "\ue000"  # private use: in no vocabulary
_IDEOGRAPHS = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_PUNCTUATION = r"\p{P}$+<=>^`|~"  # Unicode's, and the ASCII symbols that BERT counts as such


class BertTokenizer(tf_keras.layers.Layer):
    """Model Garden's `FullTokenizer`, or Hugging Face's, in the graph: texts, string [N] -> ids, ragged int32 [N, (tokens)].

    tf-text's own BERT tokenizers fold characters by NFKC and so differ from both (an ellipsis becomes three dots); here the
    text is normalised as the one or the other does it and only then split by tf-text. What is left is Unicode's age:
    Python, Rust and ICU know different versions, so some characters newer than 2021 may differ. Special tokens that are
    written out in a text, such as "[SEP]", are text, as for `FullTokenizer`; Hugging Face makes them the tokens.
    """

    def __init__(self, vocab: list[str], settings: Tokenization) -> None:
        super().__init__(name="tokenizer")
        ids = {token: number for number, token in enumerate(vocab)}
        self._special_tokens = {
            "start_of_sequence_id": ids["[CLS]"],
            "end_of_segment_id": ids["[SEP]"],
            "padding_id": ids["[PAD]"],
            "vocab_size": len(vocab),
        }
        if "[MASK]" in ids:
            self._special_tokens["mask_id"] = ids["[MASK]"]
        self._settings = settings
        # Words past the limit are masked before; a character has up to 4 bytes.
        options = {"vocab": vocab, "token_out_type": tf.int32, "max_bytes_per_word": 4 * settings.max_word_length}
        if settings.split_ideographs:
            self._wordpiece = text.FastBertTokenizer(lower_case_nfd_strip_accents=False, **options)
        else:
            self._wordpiece = text.FastWordpieceTokenizer(no_pretokenization=True, **options)

    def get_special_tokens_dict(self) -> dict[str, int]:
        """The ids that `BertPackInputs` needs, by its names for them."""
        return self._special_tokens

    def call(self, texts: tf.Tensor) -> tf.RaggedTensor:
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        texts = tf.strings.regex_replace(texts, r"[\t\n\r\p{Z}]", " ")
        hugging_face = self._settings.style == "hugging_face"
        dropped = r"\p{Cc}\p{Cf}\x{FFFD}" + (r"\p{Co}" if hugging_face else "")
        texts = tf.strings.regex_replace(texts, f"[{dropped}]+", "")
        if self._settings.lower_case:
            if hugging_face:
                texts = tf.strings.regex_replace(texts, "Σ", "σ")  # or it would be a final ς at the end of a word
            texts = tf.strings.lower(texts, encoding="utf-8")
        if self._settings.strip_accents:
            texts = tf.strings.regex_replace(text.normalize_utf8(texts, "NFD"), r"\p{Mn}+", "")
        if self._settings.split_ideographs:
            return self._wordpiece.tokenize(self._mask_long_words(texts))
        words = self._split_words(self._mask_long_words(texts))
        return self._wordpiece.tokenize(words).merge_dims(1, -1)

    def _split_words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Words as BERT's tokenizer splits them, string [N, (words)]: at blanks, and punctuation is a word of its own."""
        separators = _PUNCTUATION + (_IDEOGRAPHS if self._settings.split_ideographs else "")
        return tf.strings.split(tf.strings.regex_replace(texts, f"([{separators}])", r" \1 "))

    def _mask_long_words(self, texts: tf.Tensor) -> tf.Tensor:
        """Replaces words that are too long by one that no vocabulary has, as `FullTokenizer` does."""
        limit = self._settings.max_word_length
        suspects = tf.strings.regex_full_match(texts, rf".*[^ ]{{{limit + 1}}}.*")
        masked = tf.ragged.map_flat_values(
            lambda word: tf.where(tf.strings.length(word, unit="UTF8_CHAR") > limit, _UNKNOWN_CHARACTER, word),
            self._split_words(tf.where(suspects, texts, "")),
        )
        return tf.where(suspects, tf.strings.reduce_join(masked, axis=-1, separator=" "), texts)


def build_preprocessor(directory: str, vocab_file: str, settings: Tokenization) -> None:
    """Writes a TF-Hub preprocessor SavedModel with `tokenize` and `bert_pack_inputs`, like Model Garden's
    `export_tfhub_lib.create_preprocessing` but with `BertTokenizer` inside; the vocabulary goes along as an asset.

    Raises:
        DataError: the vocabulary cannot be read, or lacks a token that BERT needs.
        OSError: the directory cannot be written.
    """
    vocab = read_vocab(vocab_file)
    tokenizer = BertTokenizer(vocab, settings)
    special_tokens = tokenizer.get_special_tokens_dict()
    sentences = tf_keras.layers.Input(shape=(), dtype=tf.string, name="sentences")
    tokens = tokenizer(sentences)
    pack = layers.BertPackInputs(seq_length=_DEFAULT_SEQ_LENGTH, special_tokens_dict=special_tokens)
    preprocessor = tf_keras.Model(sentences, pack(tokens))
    preprocessor.tokenize = tf_keras.Model(sentences, tokens)
    preprocessor.tokenize.get_special_tokens_dict = tf.train.Checkpoint()
    preprocessor.tokenize.get_special_tokens_dict.__call__ = tf.function(lambda: special_tokens, input_signature=[])
    preprocessor.bert_pack_inputs = export_tfhub_lib.BertPackInputsSavedModelWrapper(pack)
    with tempfile.TemporaryDirectory() as temporary:
        asset = write_vocab(vocab, temporary)
        preprocessor.vocab_file = tf.saved_model.Asset(asset)
        save_keras(preprocessor, directory)


def write_vocab(vocab: list[str], directory: str) -> str:
    """Writes `vocab.txt` into a directory and returns its path."""
    path = os.path.join(directory, "vocab.txt")
    Path(path).write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    return path


def save_keras(model: tf_keras.Model, directory: str) -> None:
    """Saves a Keras model as a SavedModel.

    Raises:
        OSError: the directory cannot be written.
    """
    with runtime.saving():
        model.save(directory, include_optimizer=False, save_format="tf")
