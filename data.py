"""Examples in, batches out: token ids, computed once by `tf.py_function` on the CPU, and padded, masked batches of them.

Row order in is row order out: `score_batches` gives each row's place, so that scores can be put back where they belong.
"""

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

INPUT_NAMES = ("input_word_ids", "input_mask", "input_type_ids")
_TOKENIZE_ROWS = 2048  # rows per tokenizer call
_TOKENIZE_CALLS = 2  # at a time: TensorFlow lets go of Python while it tokenises
_CHUNK_ROWS = 2048  # rows that Python pads at once: a call for each batch would take longer than the padding
_SCORE_TOKENS = {"cpu": 4096, "gpu": 16384}  # the fastest that was measured on two cores; a guess for a GPU
_CHUNKS_AHEAD = 2  # padded while an earlier one is cut
_BATCHES_AHEAD = 64
_POOL_BATCHES = 64  # batches that are sorted by length together
_SHUFFLE_STREAM = 0x5EED  # keeps the batch order's random numbers apart from other uses of the seed


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, special tokens included, padding left out.

    Text i has `word_ids[offsets[i]:offsets[i + 1]]` and the same slice of `type_ids`, both int32.
    """

    word_ids: np.ndarray
    type_ids: np.ndarray
    offsets: np.ndarray
    uncut_lengths: np.ndarray  # tokens that each text has before max_seq_length cuts it, int32 [N]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def num_cut(self) -> int:
        """Texts that lost tokens to max_seq_length."""
        return int(np.count_nonzero(self.uncut_lengths > self.lengths))

    def take(self, rows: np.ndarray) -> "Tokens":
        """The tokens of some texts, in that order."""
        pieces = _places(self, rows)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        return Tokens(self.word_ids[pieces], self.type_ids[pieces], offsets, self.uncut_lengths[rows])


def tokenize(texts: list[str], preprocessor: Any, max_seq_length: int, pairs: list[str] | None = None) -> Tokens:
    """Turns texts, or pairs of them, into token ids with a TF-Hub preprocessor, a block of rows per `tf.py_function` call.

    The preprocessor's own `tokenize` and `bert_pack_inputs` are called, the very ones that the exported model carries, so
    training and serving cannot see different ids.
    """

    def encode(*block: tf.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, tf.Tensor]:
        packed, num_tokens = pack(preprocessor, list(block), max_seq_length)
        real = packed["input_mask"].numpy().astype(bool)
        word_ids, type_ids = (packed[name].numpy()[real] for name in ("input_word_ids", "input_type_ids"))
        return word_ids, type_ids, real.sum(axis=1), num_tokens

    segments = [texts] if pairs is None else [texts, pairs]
    columns = tuple(np.array([text.encode() for text in segment], dtype=object) for segment in segments)
    with tf.device("/cpu:0"):
        blocks = (
            tf.data.Dataset.from_tensor_slices(columns)
            .batch(_TOKENIZE_ROWS)
            .map(lambda *block: tf.py_function(encode, block, [tf.int32] * 4), num_parallel_calls=_TOKENIZE_CALLS)
            .prefetch(_TOKENIZE_CALLS)
            .with_options(runtime.untuned())
        )
        nothing = [np.empty(0, np.int32)] * 4
        parts = zip(nothing, *blocks.as_numpy_iterator(), strict=True)
        word_ids, type_ids, lengths, uncut_lengths = (np.concatenate(part) for part in parts)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Tokens(word_ids, type_ids, offsets, uncut_lengths)


def pack(preprocessor: Any, segments: list[tf.Tensor], max_seq_length: int) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Runs a TF-Hub preprocessor on texts, or on the first and second texts of pairs, each string [N], padding to the
    longest of the N. Of a pair that is too long the longer text is cut first.

    Example: "one two", "three" -> [CLS] one two [SEP] three [SEP] with type ids 0 0 0 0 1 1.

    Returns:
        The encoder's inputs, int32 [N, seq] with seq <= max_seq_length, and the tokens that each row has uncut,
        [CLS] and [SEP] included, int [N].
    """
    tokens = [
        preprocessor.tokenize(texts) for texts in segments
    ]  # each (batch, (tokens)) or (batch, (words), (pieces))
    tokens = [each.merge_dims(1, -1) if each.ragged_rank > 1 else each for each in tokens]
    num_tokens = tf.add_n([tf.cast(each.row_lengths(), tf.int32) + 1 for each in tokens]) + 1
    seq_length = tf.minimum(tf.reduce_max(tf.concat([num_tokens, [3]], axis=0)), max_seq_length)
    return preprocessor.bert_pack_inputs(tokens, seq_length=seq_length), num_tokens


def train_batches(
    tokens: Tokens,
    targets: np.ndarray,
    batch_size: int,
    seed: int,
    draws: np.ndarray | None = None,
    first_epoch: int = 0,
    weights: np.ndarray | None = None,
    length_step: int = 1,
    vectors: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Endless `(inputs, targets)` batches, those of `epoch_batches` of `first_epoch`, counted from 0, and all that follow;
    `(inputs, targets, weights)` where the rows have weights, float32 [N]. Lengths are multiples of `length_step`, or that of
    the longest of all rows. Of rows that a frozen encoder has made `vectors` of, float32 [N, hidden], these are the inputs."""

    def epochs() -> Iterator[np.ndarray]:
        for epoch in itertools.count(first_epoch):
            yield from epoch_batches(tokens.lengths, batch_size, seed, epoch, draws)

    columns = [targets] if weights is None else [targets, weights]
    if vectors is not None:
        return _gathered(epochs, [vectors, *columns])
    chunk_batches = max(1, _CHUNK_ROWS // batch_size)
    return _padded(epochs, tokens, columns, chunk_batches, length_step)


def epoch_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, draws: np.ndarray | None = None
) -> list[np.ndarray]:
    """Row numbers of each batch of one epoch, counted from 0; `lengths` are the tokens of the N rows, int [N].

    Every epoch is newly shuffled. It holds every row once; or, with `draws`, row i `draws[i]` times on average, rounded up
    or down anew each epoch, and `rows_per_epoch(draws)` in all. Rows of similar length share a batch, because a batch is as
    long as its longest row: the shuffled rows are sorted by length within pools of 64 batches, and the batches shuffled
    again.
    """
    random = np.random.default_rng([_SHUFFLE_STREAM, seed, epoch])
    rows = random.permutation(_draw(np.ones(len(lengths)) if draws is None else draws, random))
    pool = _POOL_BATCHES * batch_size
    for start in range(0, len(rows), pool):
        part = rows[start : start + pool]
        rows[start : start + pool] = part[np.argsort(lengths[part], kind="stable")]
    batches = random.permutation(num_batches(len(rows), batch_size))
    return [rows[batch * batch_size : (batch + 1) * batch_size] for batch in batches]


class BatchSizes(NamedTuple):
    """What each of some batches holds: rows, real tokens, and places for tokens with the padding, int [batches] each."""

    rows: np.ndarray
    tokens: np.ndarray
    places: np.ndarray


def batch_sizes(lengths: np.ndarray, batches: list[np.ndarray], length_step: int = 1) -> BatchSizes:
    """What batches hold of texts that have `lengths` tokens, int [N], with lengths as `train_batches` makes them.

    Example: a batch of two texts with 3 and 5 tokens -> 2 rows, 8 tokens, 10 places.
    """
    held = [lengths[rows] for rows in batches]
    columns = ([len(part), part.sum(), len(part) * _rounded(part.max(), length_step, lengths)] for part in held)
    return BatchSizes(*np.array(list(columns)).T)


def rows_per_epoch(draws: np.ndarray) -> int:
    """Rows in one of the `epoch_batches` with these draws."""
    return round(float(draws.sum()))


def _draw(draws: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows, each drawn as often as `draws` says: whole parts always, what is left by systematic sampling."""
    order = random.permutation(len(draws))
    whole = np.floor(draws[order])
    parts = draws[order] - whole
    total = rows_per_epoch(draws) - int(whole.sum())
    if total:
        reached = np.cumsum(parts) * (total / parts.sum())
        reached[-1] = total  # whatever the sum's float error
        whole += np.diff(np.floor(reached + random.random()), prepend=0)
    return np.repeat(order, whole.astype(np.int64))


def score_batches(lengths: np.ndarray, most_rows: int | None = None, one_length: bool = False) -> Iterator[np.ndarray]:
    """Row numbers of each batch of one pass, longest texts first, and about as many tokens in each; `lengths` are the tokens
    of the N rows, int [N]. With `one_length` a batch's rows have equal lengths."""
    budget = _SCORE_TOKENS["gpu" if runtime.has_gpu() else "cpu"]
    by_length = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(by_length):
        longest = int(lengths[by_length[start]])
        rows = by_length[start : start + (most_rows or max(1, budget // longest))]
        if one_length:
            rows = rows[lengths[rows] == longest]
        yield rows
        start += len(rows)


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches in one pass over so many rows, the last partial one included."""
    return math.ceil(num_rows / batch_size)


def _padded(
    batches: Callable[[], Iterator[np.ndarray]],
    tokens: Tokens,
    columns: list[np.ndarray],
    chunk_batches: int,
    length_step: int,
) -> tf.data.Dataset:
    """Turns row numbers into `(inputs, *columns)`, each input int32 [batch, longest].

    Python pads a chunk of batches at once, TensorFlow cuts them out of it.
    """

    def chunks() -> Iterator[tuple[np.ndarray, ...]]:
        rest = batches()
        while chunk := list(itertools.islice(rest, chunk_batches)):
            rows = np.concatenate(chunk)
            yield (*_pad_chunk(tokens, chunk, length_step), *(column[rows] for column in columns))

    def cut(padded: tf.Tensor, shapes: tf.Tensor, *others: tf.Tensor) -> tf.data.Dataset:
        places, rows = shapes[:, 1] * shapes[:, 2], shapes[:, 1]
        starts = _columns(tf.zeros_like(places), tf.cumsum(places, exclusive=True))
        sizes = _columns(tf.fill(tf.shape(places), 3), places)
        ends = tf.cumsum(rows)

        def batch(
            start: tf.Tensor, size: tf.Tensor, shape: tf.Tensor, first: tf.Tensor, end: tf.Tensor
        ) -> tuple[Any, ...]:
            inputs = tf.unstack(tf.reshape(tf.slice(padded, start, size), shape), num=3)
            for tensor in inputs:
                tensor.set_shape([None, None])
            return (dict(zip(INPUT_NAMES, inputs, strict=True)), *(each[first:end] for each in others))

        return tf.data.Dataset.from_tensor_slices((starts, sizes, shapes, ends - rows, ends)).map(batch)

    signature = (
        tf.TensorSpec([3, None], tf.int32),
        tf.TensorSpec([None, 3], tf.int32),
        *(tf.TensorSpec([None, *column.shape[1:]], column.dtype) for column in columns),
    )
    with tf.device("/cpu:0"):
        made = tf.data.Dataset.from_generator(chunks, output_signature=signature)
        return made.prefetch(_CHUNKS_AHEAD).flat_map(cut).prefetch(_BATCHES_AHEAD).with_options(runtime.untuned())


def _gathered(batches: Callable[[], Iterator[np.ndarray]], columns: list[np.ndarray]) -> tf.data.Dataset:
    """Turns row numbers into those rows of the columns."""
    signature = tuple(tf.TensorSpec([None, *column.shape[1:]], column.dtype) for column in columns)
    with tf.device("/cpu:0"):
        rows = tf.data.Dataset.from_generator(
            lambda: (tuple(column[rows] for column in columns) for rows in batches()), output_signature=signature
        )
        return rows.prefetch(_BATCHES_AHEAD).with_options(runtime.untuned())


def _columns(*columns: tf.Tensor) -> tf.Tensor:
    return tf.stack(columns, axis=1)


def _pad_chunk(tokens: Tokens, batches: list[np.ndarray], length_step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Some batches, each padded with 0 to its longest text, in one array.

    Returns:
        Word ids, mask and type ids, int32 [3, places], one batch after the other, and the shape of each batch, int32
        [batches, 3]: 3, its rows, its longest text.
    """
    sizes = np.array([len(batch) for batch in batches])
    rows = np.concatenate(batches)
    lengths = tokens.offsets[rows + 1] - tokens.offsets[rows]
    firsts = np.cumsum(sizes) - sizes
    longest = _rounded(np.maximum.reduceat(lengths, firsts), length_step, tokens.lengths)
    shapes = np.stack([np.full_like(sizes, 3), sizes, longest], axis=1).astype(np.int32)
    widths = np.repeat(longest, sizes)  # of the batch that each row is in
    places = _runs(np.cumsum(widths) - widths, lengths)
    source = _runs(tokens.offsets[rows], lengths)
    padded = np.zeros((3, (sizes * longest).sum()), dtype=np.int32)
    padded[0, places], padded[1, places], padded[2, places] = tokens.word_ids[source], 1, tokens.type_ids[source]
    return padded, shapes


def pad(tokens: Tokens, rows: np.ndarray) -> list[np.ndarray]:
    """Inputs of the given rows, padded with 0 to the longest of them: word ids, mask and type ids, int32 [rows, longest].

    Example: texts of 3 and 2 tokens -> mask [[1, 1, 1], [1, 1, 0]].
    """
    return list(_pad_chunk(tokens, [rows])[0].reshape(3, len(rows), -1))


def _places(tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    """Where the ids of some texts lie, one text after the other."""
    return _runs(tokens.offsets[rows], tokens.lengths[rows])


def _rounded(longest: Any, length_step: int, lengths: np.ndarray) -> Any:
    """Lengths of batches as multiples of `length_step`, but no longer than the longest row."""
    return longest if length_step == 1 else np.minimum(-(-longest // length_step) * length_step, lengths.max())


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers that count on from each start. Example: starts 5 and 0, lengths 2 and 3 -> 5 6 0 1 2."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
