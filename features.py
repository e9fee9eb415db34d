"""Texts -> features for scikit-learn, by a BERT whose weights stay as they are.

    make_pipeline(BertTransformer(), LinearSVC(class_weight="balanced")).fit(texts, labels)

Equal texts are encoded once, texts of similar length together, and each row comes out where it went in.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from data import Tokens, pad, score_batches
from feature_cache import FeatureCache, digest
from feature_encoders import Encoder, ModelObject, NamedEncoder, Outputs, as_tuple
from scoring import in_streams
from text_inputs import texts_of

SAFE_COSINE = 0.999  # the least of bfloat16's features to float32's, or precision="auto" is float32
_SAMPLE = 64  # texts that are computed in both
_BUILD = 1  # raise it when features change: those that are kept from before are then left alone
_SHOWN_AFTER = 1.0  # seconds, or nothing is to be shown
_POOLINGS = ("cls", "mean", "max", "pooled_output", "default")
_PRECISIONS = ("auto", "float32", "bfloat16")


class BertTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turns N texts into features, float32 [N, D], in their order, with a BERT that is not trained.

    X is a list, Series or array of texts, pairs of them, or a frame. None and NaN are taken as empty texts; an empty text is
    [CLS][SEP] to the encoder and has features like any other. Warnings count both those and the texts that are cut.

    Args:
        tokenizer: None: the encoder's own; else a TF-Hub preprocessor, directory or handle. For a model object: an object
            called as `tokenizer(texts, truncation=True, max_length=60, add_special_tokens=True)["input_ids"]`, or with
            `encode_plus` for one text.
        model: whatever the option `encoder` takes: a name, a folder, a handle, a run directory. Or an object called as
            `model(ids, attention_mask)`, both int64 [n, seq], whose result has the last layer, [n, seq, hidden], at [0]. A
            PyTorch module gets tensors on its own device, in eval mode and without gradients.
        max_length: tokens kept per text, [CLS] and [SEP] included.
        embedding_func: makes features of `Outputs`, [n, D] or what reshapes to it, instead of `pooling`. All n texts have
            the same number of tokens, so no padding is ever seen. D must be one for all texts; to flatten, pad first:
            `lambda x: np.pad(x[0], ((0, 0), (0, 60 - x[0].shape[1]), (0, 0))).reshape(len(x[0]), -1)`.
        pooling: "cls": the vector of [CLS]; "mean", "max": over all real tokens, [CLS] and [SEP] included; "pooled_output":
            BERT's pooled vector; "default": the encoder's own, that of a sentence-transformers encoder if it is one.
        layers: whose vectors are pooled: 1 is the first layer, -1 the last; a list: their vectors side by side.
        batch_size: most texts that are encoded at once; None: as many as are fast, by their tokens.
        precision: "auto": bfloat16 where the machine has it and 64 of fit's texts keep a cosine of 0.999 to float32.
        cache_dir: folder that keeps features, so that no text is encoded twice, in another process neither; None: none.
        text_column: column of a frame with the texts.
        text_pair_column: column of a frame with the second texts; None: single texts.
        verbose: progress on standard error of what takes longer than a second.

    Attributes:
        precision_: "float32" or "bfloat16", "the model's own" for a model object.
        n_features_out_: D.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        model: Any = "all-MiniLM-L6-v2",
        max_length: int = 60,
        embedding_func: Callable[[Outputs], Any] | None = None,
        *,
        pooling: str = "cls",
        layers: int | list[int] = -1,
        batch_size: int | None = None,
        precision: str = "auto",
        cache_dir: str | Path | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        verbose: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.max_length = max_length
        self.embedding_func = embedding_func
        self.pooling = pooling
        self.layers = layers
        self.batch_size = batch_size
        self.precision = precision
        self.cache_dir = cache_dir
        self.text_column = text_column
        self.text_pair_column = text_pair_column
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "BertTransformer":
        """Checks the parameters and the texts, and chooses the precision; the encoder is not trained.

        Raises:
            ValueError: a parameter or X cannot be; the encoder cannot be found.
            TypeError: tokenizer and model do not go together, or one of them is no such object.
        """
        _check_parameters(self)
        texts = texts_of(X, self.text_column, self.text_pair_column, missing="empty")
        if not texts.first:
            raise ValueError("Found array with 0 sample(s): fit needs one text or more")
        if self.cache_dir is not None:
            FeatureCache(Path(self.cache_dir).expanduser())
        encoder = self._find()
        sample = texts.take(np.unique(np.linspace(0, len(texts.first) - 1, _SAMPLE).astype(int)))
        precision = encoder.first_precision(self.precision)
        tokens = encoder.tokens(sample)
        if self.precision == "auto" and precision == "bfloat16":
            features = self._encode_all(encoder, tokens, "bfloat16")
            if not _agree(features, self._encode_all(encoder, tokens, "float32")):
                precision = "float32"
        else:
            features = self._encode_all(encoder, tokens.take(np.arange(1)), precision)
        self._encoder_key = encoder.key
        self.precision_, self.n_features_out_ = precision, features.shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features of N texts, float32 [N, D].

        Raises:
            NotFittedError: before fit.
            ValueError: X holds no texts; `embedding_func` gives what are no features; the encoder is not the one of fit.
        """
        check_is_fitted(self)
        texts = texts_of(X, self.text_column, self.text_pair_column, missing="empty")
        if not texts.first:
            return np.empty((0, self.n_features_out_), np.float32)
        encoder = self._find()
        if encoder.key != self._encoder_key:
            raise ValueError(f"model={self.model}: another encoder than at fit has this name here: fit again")
        tokens = encoder.tokens(texts)
        if tokens.num_cut:
            warnings.warn(
                f"{tokens.num_cut:,} of {len(tokens):,} texts are cut to max_length={self.max_length} tokens",
                UserWarning,
                stacklevel=3,  # scikit-learn wraps transform
            )
        return self._unique_features(encoder, tokens)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = tags.input_tags.allow_nan = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []  # texts have none to preserve
        return tags

    def _find(self) -> Encoder:
        if isinstance(self.model, str | os.PathLike):
            return NamedEncoder(self)
        return ModelObject(self)

    def _unique_features(self, encoder: Encoder, tokens: Tokens) -> np.ndarray:
        """Features of all rows, of which those with equal token ids are computed once, those in the cache not at all."""
        ids = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
        keys = [digest(tokens.word_ids[a:b].tobytes(), tokens.type_ids[a:b].tobytes()) for a, b in ids]
        places = {key: place for place, key in enumerate(keys)}  # one row for each
        cache = None if self.cache_dir is None else FeatureCache(self._cache_folder(encoder))
        features = {} if cache is None else cache.read(list(places))
        missing = sorted(
            places.keys() - features.keys()
        )  # so that batches, and rounding, are those of the texts in any order
        if missing:
            part = tokens.take(np.array([places[key] for key in missing]))
            show = {"desc": "BERT", "unit": " texts", "delay": _SHOWN_AFTER, "disable": not self.verbose}
            try:
                with tqdm(total=len(part), **show) as bar:
                    for rows, vectors in self._encode(encoder, part, self.precision_, self.n_features_out_):
                        batch = [missing[row] for row in rows]
                        features.update(zip(batch, vectors, strict=True))
                        if cache is not None:
                            cache.add(batch, vectors)
                        bar.update(len(rows))
            finally:
                if cache is not None:
                    cache.flush()
        return np.stack([features[key] for key in keys])

    def _cache_folder(self, encoder: Encoder) -> Path:
        settings = repr((_BUILD, encoder.key, self.pooling, as_tuple(self.layers), self.precision_))
        return Path(str(self.cache_dir)).expanduser() / digest(settings.encode()).hex()

    def _encode(
        self, encoder: Encoder, tokens: Tokens, precision: str, width: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their features, batch by batch, which must have the same width."""
        run = encoder.runner(precision)
        batches = score_batches(tokens.lengths, self.batch_size, one_length=self.embedding_func is not None)
        for rows, vectors in in_streams(lambda rows: run(pad(tokens, rows)), batches, encoder.num_streams):
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                raise ValueError(
                    f"embedding_func gives {vectors.shape[1]} features for some texts and {width} for others: before it "
                    f"flattens let it pad, np.pad(x[0], ((0, 0), (0, {self.max_length} - x[0].shape[1]), (0, 0)))"
                )
            yield rows, vectors

    def _encode_all(self, encoder: Encoder, tokens: Tokens, precision: str) -> np.ndarray:
        rows, vectors = zip(*self._encode(encoder, tokens, precision), strict=True)
        return np.concatenate(vectors)[np.argsort(np.concatenate(rows))]


def _check_parameters(bert: BertTransformer) -> None:
    named = isinstance(bert.model, str | os.PathLike)
    if named and not (bert.tokenizer is None or isinstance(bert.tokenizer, str | os.PathLike)):
        raise TypeError(
            f"model={bert.model!r} is a name and tokenizer a {type(bert.tokenizer).__name__}: give names or objects for both"
        )
    if not named and (bert.tokenizer is None or isinstance(bert.tokenizer, str | os.PathLike)):
        raise TypeError(
            f"model is a {type(bert.model).__name__} and tokenizer={bert.tokenizer!r}: give names or objects for both"
        )
    shortest = 3 if bert.text_pair_column is None else 5  # [CLS], a token, [SEP], and both again
    _check_integer("max_length", bert.max_length, shortest)
    if bert.batch_size is not None:
        _check_integer("batch_size", bert.batch_size, 1)
    for key, allowed in {"pooling": _POOLINGS, "precision": _PRECISIONS}.items():
        if getattr(bert, key) not in allowed:
            raise ValueError(f"{key}={getattr(bert, key)!r}: choose one of {', '.join(allowed)}")
    layers = as_tuple(bert.layers)
    for layer in layers:
        if not isinstance(layer, Integral) or isinstance(layer, bool):
            raise TypeError(
                f"layers={bert.layers!r}: give a layer's number, 1 for the first, -1 for the last, or a list"
            )
    if not layers:
        raise ValueError("layers=[]: name a layer, such as -1, the last")
    if bert.pooling in ("pooled_output", "default") and layers != (-1,):
        raise ValueError(
            f"pooling={bert.pooling!r} is of the last layer: leave layers at -1, or choose cls, mean or max"
        )
    if bert.embedding_func is None:
        return
    if not callable(bert.embedding_func):
        raise TypeError(
            f"embedding_func is {type(bert.embedding_func).__name__}: give a function of the outputs, or None"
        )
    if bert.cache_dir is not None:
        raise ValueError(
            "cache_dir with an embedding_func: what a function computes cannot be told from its name, so kept features "
            "could be those of another; set cache_dir=None, or use pooling"
        )
    if bert.pooling != "cls" or layers != (-1,):
        raise ValueError("embedding_func takes the place of pooling and layers: leave those at their defaults")


def _check_integer(key: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{key}={value!r}: give a whole number, {least} or more")
    if value < least:
        raise ValueError(f"{key}={value}: give {least} or more")


def _agree(features: np.ndarray, reference: np.ndarray) -> bool:
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    return bool(np.all((features * reference).sum(axis=1) >= SAFE_COSINE * norms))
