"""data.py: every row once, in batches of like length, newly shuffled each epoch; scores go back where they belong."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from data import (
    INPUT_NAMES,
    Tokens,
    batch_sizes,
    epoch_batches,
    num_batches,
    pad,
    rows_per_epoch,
    score_batches,
    train_batches,
)


def make_tokens(lengths: list[int]) -> Tokens:
    """Text i holds the id i + 1 throughout, so that a row shows where it came from."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths).astype(np.int32)
    return Tokens(ids, (ids % 2).astype(np.int32), offsets, np.diff(offsets))


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return make_tokens(np.random.default_rng(0).integers(3, 60, 1000).tolist())


def epochs(
    tokens: Tokens, batch_size: int, count: int, seed: int = 0
) -> list[list[tuple[dict[str, np.ndarray], np.ndarray]]]:
    batches = train_batches(tokens, np.arange(len(tokens)), batch_size, seed).as_numpy_iterator()
    return [list(itertools.islice(batches, num_batches(len(tokens), batch_size))) for _ in range(count)]


def test_padding_example() -> None:
    word_ids, mask, type_ids = pad(make_tokens([3, 2, 4]), np.array([0, 1]))
    assert word_ids.tolist() == [[1, 1, 1], [2, 2, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert type_ids.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_every_epoch_holds_every_row_once_with_its_own_label(tokens: Tokens) -> None:
    for epoch in epochs(tokens, 32, 3):
        assert sorted(np.concatenate([labels for _, labels in epoch])) == list(range(1000))
        for inputs, labels in epoch:
            assert (inputs["input_word_ids"][:, 0] == labels + 1).all()
            assert (inputs["input_mask"].sum(axis=1) == tokens.lengths[labels]).all()


def test_rows_are_drawn_as_often_as_asked_and_newly_each_epoch(tokens: Tokens) -> None:
    draws = np.where(np.arange(1000) % 10 == 0, 2.5, 1.0)
    batches = train_batches(tokens, np.arange(1000), 32, 0, draws).as_numpy_iterator()
    assert rows_per_epoch(draws) == 1150
    counts = []
    for _ in range(40):
        rows = np.concatenate([labels for _, labels in itertools.islice(batches, num_batches(1150, 32))])
        assert len(rows) == 1150
        counts.append(np.bincount(rows, minlength=1000))
    assert np.unique(np.array(counts)[:, 1]).tolist() == [1]
    often = np.array(counts)[:, ::10]
    assert np.unique(often).tolist() == [2, 3]
    assert often.sum(axis=1).tolist() == [250] * 40
    assert np.abs(often.mean(axis=0) - 2.5).max() < 0.4  # each of them, not always the same ones
    assert len({tuple(row) for row in often}) == 40


def test_every_row_is_drawn_in_every_epoch_also_where_the_draws_sum_to_no_whole_number(tokens: Tokens) -> None:
    draws = np.ones(1000)
    draws[:7] = 1.2
    batches = train_batches(tokens, np.arange(1000), 32, 0, draws).as_numpy_iterator()
    for _ in range(20):
        rows = np.concatenate([labels for _, labels in itertools.islice(batches, num_batches(1001, 32))])
        assert (len(rows), len(np.unique(rows))) == (1001, 1000)


def test_some_texts_of_many_keep_their_ids(tokens: Tokens) -> None:
    some = tokens.take(np.array([7, 0]))
    assert some.lengths.tolist() == tokens.lengths[[7, 0]].tolist()
    assert some.word_ids.tolist() == [8] * tokens.lengths[7] + [1] * tokens.lengths[0]


def test_epochs_differ_and_the_seed_decides_them(tokens: Tokens) -> None:
    def order(seed: int) -> list[list[int]]:
        return [[int(label) for _, labels in epoch for label in labels] for epoch in epochs(tokens, 32, 2, seed)]

    first, second = order(0)
    assert first != second
    assert order(0) == [first, second] != order(1)


def test_the_order_of_the_rows_stays_what_it_was(tokens: Tokens) -> None:
    """Runs of earlier versions are repeated, and gone on with, row for row."""
    draws = np.where(np.arange(1000) % 10 == 0, 2.5, 1.0)
    batches = epoch_batches(tokens.lengths, 32, 7, 2, draws)
    assert [len(batch) for batch in batches].count(32) == num_batches(1150, 32) - 1
    assert batches[0][:6].tolist() == [282, 745, 103, 117, 251, 203]


def test_a_later_epoch_can_be_the_first(tokens: Tokens) -> None:
    expected = epochs(tokens, 32, 3)[2]
    batches = train_batches(tokens, np.arange(1000), 32, 0, first_epoch=2).as_numpy_iterator()
    for (_, labels), (_, expected_labels) in zip(batches, expected, strict=False):
        assert labels.tolist() == expected_labels.tolist()


def test_batches_are_as_long_as_their_longest_row_and_padding_is_rare(tokens: Tokens) -> None:
    padded = real = 0
    for inputs, labels in epochs(tokens, 32, 1)[0]:
        assert inputs["input_word_ids"].shape[1] == tokens.lengths[labels].max()
        padded += inputs["input_mask"].size
        real += inputs["input_mask"].sum()
    assert real == len(tokens.word_ids)
    assert padded / real < 1.05  # unsorted batches of these rows hold 1.8 times the real tokens


def test_a_step_of_lengths_makes_few_shapes_none_longer_than_the_longest_row(tokens: Tokens) -> None:
    lengths = set()
    batches = train_batches(tokens, np.arange(1000), 32, 0, length_step=16).take(32).as_numpy_iterator()
    for inputs, labels in batches:
        lengths.add(inputs["input_word_ids"].shape[1])
        assert (inputs["input_mask"].sum(axis=1) == tokens.lengths[labels]).all()
    assert lengths == {16, 32, 48, 59}
    sizes = batch_sizes(tokens.lengths, epoch_batches(tokens.lengths, 32, 0, 0), length_step=16)
    assert set(sizes.places // sizes.rows) <= lengths


def test_batches_keep_open_shapes_so_that_keras_traces_once(tokens: Tokens) -> None:
    inputs, _ = train_batches(tokens, np.arange(1000), 32, 0).element_spec
    assert inputs == {name: tf.TensorSpec([None, None], tf.int32) for name in INPUT_NAMES}


def test_nothing_is_autotuned_as_the_end_of_a_training_would_wait_for_the_tuner(tokens: Tokens) -> None:
    targets, vectors = np.zeros(1000), np.zeros([1000, 2])
    for batches in (train_batches(tokens, targets, 32, 0), train_batches(tokens, targets, 32, 0, vectors=vectors)):
        assert batches.options().autotune.enabled is False


def test_scoring_batches_say_where_each_row_belongs(tokens: Tokens) -> None:
    scores = np.zeros(1000)
    for rows in score_batches(tokens.lengths):
        scores[rows] += pad(tokens, rows)[0][:, 0]
    assert (scores == np.arange(1, 1001)).all()


def test_the_last_partial_batch_is_kept() -> None:
    tokens = make_tokens([3] * 33)
    assert num_batches(33, 32) == 2
    assert sorted(len(labels) for _, labels in epochs(tokens, 32, 1)[0]) == [1, 32]
