"""Checks of an encoder and its preprocessor: do they agree with each other, with themselves, and with the original's outputs?"""

import runtime  # isort: skip  # noqa: F401  (chooses Keras 2 before TensorFlow loads)

import zipfile
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_hub as hub

from bert import TOLERANCE, CannotOpen, assign, build_bert, largest_difference, open_encoder
from config import DataError
from data import INPUT_NAMES, pack
from spec import EncoderPaths

_TEXTS = [
    "Is anybody out there?!",
    "",
    "Naïve café owners in Zürich pay 12,50 CHF… 🥭",
    "中文 and Ελληνικά and кириллица",
    "One text is longer than the others, so that the batch that holds all of them is padded for most of its rows.",
]


def verify_encoder(paths: EncoderPaths, reference: str | None = None) -> bool:
    """Prints one line per check and returns whether all hold.

    A reference is an .npz with `texts` [N] and what the original makes of them: `input_word_ids`, `input_mask` and
    `input_type_ids`, int32 [N, seq], and any of `sequence_output`, float32 [tokens, hidden] of the real tokens of the first
    texts, `pooled_output` [N, hidden] and `default` [N, D].

    Raises:
        DataError: the encoder or the reference cannot be read.
    """
    print(f"encoder      {paths.encoder}\npreprocessor {paths.preprocessor}")
    wanted = _read_reference(reference) if reference is not None else None
    with tf.device("/cpu:0"):  # GPUs round float32 products
        try:
            encoder, preprocessor = hub.load(paths.encoder), hub.load(paths.preprocessor)
            results = [
                _vocabulary_fits(encoder, preprocessor),
                _padding_changes_nothing(encoder, preprocessor),
                _opened_is_equal(paths.encoder),
            ]
            if wanted is not None:
                results += _agrees_with(wanted, encoder, preprocessor)
        except (tf.errors.OpError, OSError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{paths.encoder}: cannot be run ({' '.join(str(error).split())[:200]})") from error
    return all(results)


def _read_reference(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            reference = {name: file[name] for name in file.files}
        texts, mask = reference["texts"], reference["input_mask"]
        for name in INPUT_NAMES:
            reference[name] = reference[name].astype(np.int32, casting="same_kind")
            if reference[name].shape != mask.shape or mask.ndim != 2 or len(texts) != len(mask):
                raise ValueError(f"{name} has the shape {reference[name].shape} for {len(texts)} texts")
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: not a reference ({error}); it is an .npz with texts, {', '.join(INPUT_NAMES)}"
        ) from None
    return reference


def _say(holds: bool, text: str) -> bool:
    print(f"{'ok    ' if holds else 'FAILED'} {text}", flush=True)
    return holds


def _vocabulary_fits(encoder: Any, preprocessor: Any) -> bool:
    tokens = int(preprocessor.tokenize.get_special_tokens_dict()["vocab_size"])
    rows = next((weight.shape[0] for weight in encoder.variables if "word_embeddings" in weight.name), None)
    return _say(
        rows is None or tokens <= rows,
        f"vocabulary: {tokens:,} tokens, {rows or 0:,} rows of the embedding table",
    )


def _padding_changes_nothing(encoder: Any, preprocessor: Any) -> bool:
    together = encoder(pack(preprocessor, [tf.constant(_TEXTS)], 128)[0], training=False)["pooled_output"].numpy()
    alone = np.concatenate(
        [encoder(pack(preprocessor, [tf.constant([text])], 128)[0], training=False)["pooled_output"] for text in _TEXTS]
    )
    difference = float(np.abs(together - alone).max())
    return _say(
        bool(np.isfinite(together).all()) and difference <= TOLERANCE,
        f"outputs are finite and the same alone as in a padded batch: largest difference {difference:.1e}",
    )


def _opened_is_equal(directory: str) -> bool:
    try:
        spec, weights = open_encoder(directory)
    except CannotOpen as error:
        return _say(True, f"stays a hub layer: {error}")
    model = build_bert(spec)
    assign(model, weights.items())
    difference = largest_difference(directory, model, spec)
    return _say(
        difference <= TOLERANCE, f"opened, it gives the hub encoder's outputs: largest difference {difference:.1e}"
    )


def _agrees_with(reference: dict[str, np.ndarray], encoder: Any, preprocessor: Any) -> list[bool]:
    texts, mask = reference["texts"], reference["input_mask"].astype(bool)
    ids = {name: reference[name] for name in INPUT_NAMES}
    inputs = pack(preprocessor, [tf.constant([str(text) for text in texts])], mask.shape[1])[0]
    made = {name: _widened(inputs[name].numpy(), mask.shape[1]) for name in INPUT_NAMES}
    same = np.all([(made[name] == ids[name]).all(axis=1) for name in INPUT_NAMES], axis=0)
    results = [_say(bool(same.all()), f"token ids: {same.sum():,} of {len(texts):,} texts are identical")]
    outputs = {name: value.numpy() for name, value in encoder(ids, training=False).items() if name in reference}
    for name, value in outputs.items():
        wanted = reference[name]
        found = value[mask][: len(wanted)] if name == "sequence_output" else value
        difference = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
        results.append(_say(difference <= TOLERANCE, f"{name} {wanted.shape}: largest difference {difference:.1e}"))
    return results


def _widened(ids: np.ndarray, width: int) -> np.ndarray:
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])))
