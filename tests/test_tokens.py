"""Token ids: Model Garden's `FullTokenizer` + `convert_single_example`, in every road, on real texts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_hub as hub
from conftest import real_data
from official.nlp.data.classifier_data_lib import InputExample, convert_single_example
from official.nlp.tools.tokenization import FullTokenizer

from config import Config
from data import Tokens, pack, tokenize
from model import build_classifier
from preprocessor import build_preprocessor
from spec import EncoderPaths, full_tokenizer
from tasks import Task

TEXT_COLUMNS = {
    "goemotions_dev.csv": ["text"],
    "goemotions_test.csv": ["text"],
    "goemotions_train.csv": ["text"],
    "imdb_test.csv": ["review"],
    "imdb_train.csv": ["review"],
    "magazine_test.csv": ["review_text"],
    "magazine_train.csv": ["review_text"],
    "mrpc_test.csv": ["sentence1", "sentence2"],
    "mrpc_train.csv": ["sentence1", "sentence2"],
    "quora_test.csv": ["question_text"],
    "quora_train.csv": ["question_text"],
    "quora_unlabelled.csv.gz": ["question_text"],
    "sst2_dev.csv": ["sentence"],
    "sst2_train.csv": ["sentence"],
    "text_emotion.csv": ["content"],
}
HARD = [
    "",
    "   \t\n",
    "\u2028line\u2029separators\x0band\x1ccontrols\x85",
    "[CLS] in the [SEP] text [UNK] [MASK] [PAD]",
    "##ing ##",
    "İstanbul ΣΑΣ Straße ﬁne",
    "Amélie e\u0301 n\u0303 Å",
    "中文字符 日本語 한국어 中a文",
    "🥭👩‍👩‍👧‍👦\ufe0f flags 🇨🇭",
    "\ue000 private \ufffd replacement \ufeff bom \u200b zero",
    "it's… “quoted” — dash–dash",
    "a" * 400,
    "a" * 401,
    "x " + "é" * 400 + ", " + "б" * 401 + "!",
    "ก" * 401 + " ก",
    "word " * 3000,
    "$" * 1000,
    "中" * 500,
    "no-break\u00a0space ideographic\u3000space",
]


@pytest.fixture(scope="session", params=["uncased", "cased"])
def preprocessor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, minilm_paths: EncoderPaths
) -> str:
    """A preprocessor of the 30,522-token vocabulary. Cased and uncased differ in their normalisation, not their tokens."""
    if request.param == "uncased":
        return minilm_paths.preprocessor
    directory = str(tmp_path_factory.mktemp("preprocessor") / "cased")
    cased = full_tokenizer(lower_case=False)
    build_preprocessor(directory, _vocab_file(minilm_paths), cased)
    return directory


def _vocab_file(paths: EncoderPaths) -> str:
    return str(Path(paths.encoder) / "assets" / "vocab.txt")


def full_tokenizer_ids(texts: list[str], paths: EncoderPaths, lower: bool, max_seq_length: int) -> list[list[int]]:
    """Ids by Model Garden's own code, padding taken off."""
    tokenizer = FullTokenizer(_vocab_file(paths), do_lower_case=lower)
    ids = []
    for text in texts:
        feature = convert_single_example(0, InputExample("0", text, label="0"), ["0"], max_seq_length, tokenizer)
        assert not any(feature.segment_ids)
        ids.append(feature.input_ids[: sum(feature.input_mask)])
    return ids


def full_tokenizer_pairs(pairs: list[tuple[str, str]], paths: EncoderPaths, max_seq_length: int) -> list[list[int]]:
    """Ids and type ids of pairs by Model Garden's own code, padding taken off, the ones after the others."""
    tokenizer = FullTokenizer(_vocab_file(paths))
    ids = []
    for text, pair in pairs:
        feature = convert_single_example(0, InputExample("0", text, pair, label="0"), ["0"], max_seq_length, tokenizer)
        length = sum(feature.input_mask)
        ids.append(feature.input_ids[:length] + feature.segment_ids[:length])
    return ids


def pairs_as_lists(tokens: Tokens) -> list[list[int]]:
    types = np.split(tokens.type_ids, tokens.offsets[1:-1])
    return [ids + part.tolist() for ids, part in zip(as_lists(tokens), types, strict=True)]


def real_pairs(every: int) -> list[tuple[str, str]]:
    pairs = []
    for name in ("mrpc_train.csv", "mrpc_test.csv"):
        frame = pd.read_csv(real_data(name), dtype=str, keep_default_na=False)
        pairs += list(zip(frame["sentence1"], frame["sentence2"], strict=True))
    return pairs[::every]


def as_lists(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.word_ids, tokens.offsets[1:-1])]


def count_differences(texts: list[str], paths: EncoderPaths, preprocessor: str, max_seq_length: int = 128) -> int:
    ours = as_lists(tokenize(texts, hub.load(preprocessor), max_seq_length))
    theirs = full_tokenizer_ids(texts, paths, lower="uncased" in preprocessor, max_seq_length=max_seq_length)
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def real_texts(every: int) -> list[str]:
    texts: list[str] = []
    for name, columns in TEXT_COLUMNS.items():
        frame = pd.read_csv(real_data(name), dtype=str, keep_default_na=False)
        for column in columns:
            texts += frame[column].tolist()
    return texts[::every]


def test_ids_equal_model_gardens_on_constructed_texts(minilm_paths: EncoderPaths, preprocessor: str) -> None:
    assert count_differences(HARD, minilm_paths, preprocessor) == 0
    assert count_differences(HARD, minilm_paths, preprocessor, max_seq_length=512) == 0


def test_ids_equal_model_gardens_on_real_texts(minilm_paths: EncoderPaths, preprocessor: str) -> None:
    assert count_differences(real_texts(every=40), minilm_paths, preprocessor) == 0


@pytest.mark.slow
def test_ids_equal_model_gardens_on_every_real_text(
    minilm_paths: EncoderPaths, preprocessor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = real_texts(every=1)
    differences = count_differences(texts, minilm_paths, preprocessor)
    with capsys.disabled():
        print(f"\n{preprocessor}: {len(texts):,} texts compared, {differences} differ")
    assert differences == 0


@pytest.mark.parametrize("max_seq_length", [128, 40, 5])
def test_pairs_equal_model_gardens_whichever_is_cut(minilm_paths: EncoderPaths, max_seq_length: int) -> None:
    """At 40 tokens nearly all of these pairs are cut, where the one text is longer, or the other, or neither."""
    hard = [(one, other) for one in HARD if one.strip() for other in ("short", "word " * 60) if other.strip()]
    pairs = real_pairs(every=10) + hard + [(other, one) for one, other in hard if one.split() and one[0].isalpha()]
    texts, seconds = map(list, zip(*pairs, strict=True))
    ours = tokenize(texts, hub.load(minilm_paths.preprocessor), max_seq_length, seconds)
    expected = full_tokenizer_pairs(pairs, minilm_paths, max_seq_length)
    assert [i for i, (a, b) in enumerate(zip(pairs_as_lists(ours), expected, strict=True)) if a != b] == []


@pytest.mark.slow
def test_every_real_pair_equals_model_gardens(minilm_paths: EncoderPaths, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = real_pairs(every=1)
    for max_seq_length in (128, 40):
        ours = tokenize(
            [text for text, _ in pairs],
            hub.load(minilm_paths.preprocessor),
            max_seq_length,
            [pair for _, pair in pairs],
        )
        expected = full_tokenizer_pairs(pairs, minilm_paths, max_seq_length)
        differences = sum(a != b for a, b in zip(pairs_as_lists(ours), expected, strict=True))
        with capsys.disabled():
            print(
                f"\n{max_seq_length} tokens: {len(pairs):,} pairs compared, {ours.num_cut:,} cut, {differences} differ"
            )
        assert differences == 0


def test_an_empty_second_text_is_an_empty_second_segment(minilm_paths: EncoderPaths) -> None:
    """As in Hugging Face's tokenizers; Model Garden's leave the second [SEP] out."""
    tokens = tokenize(["one two"], hub.load(minilm_paths.preprocessor), 16, [""])
    assert tokens.type_ids.tolist() == [0, 0, 0, 0, 1]
    assert tokens.word_ids[-1] == tokens.word_ids[-2] != tokens.word_ids[0]


def test_the_text_model_sees_the_pairs_that_training_saw(minilm_paths: EncoderPaths) -> None:
    config = Config(data="-", max_seq_length=40, text_pair_column="other")
    classifier = build_classifier(config, minilm_paths, Task("binary", ["a", "b"]))
    texts, seconds = map(list, zip(*real_pairs(every=300), strict=True))
    trained_on = pairs_as_lists(tokenize(texts, classifier.preprocessor, 40, seconds))
    inside = classifier.text_model.get_layer("preprocess")([tf.constant(texts), tf.constant(seconds)])
    served = [
        [*ids[mask.astype(bool)], *types[mask.astype(bool)]]
        for ids, types, mask in zip(
            *(inside[name].numpy() for name in ("input_word_ids", "input_type_ids", "input_mask")), strict=True
        )
    ]
    assert served == trained_on


def test_the_text_model_sees_the_ids_that_training_saw(minilm_paths: EncoderPaths) -> None:
    classifier = build_classifier(Config(data="-", max_seq_length=64), minilm_paths, Task("binary", ["a", "b"]))
    texts = HARD + real_texts(every=4000)
    trained_on = tokenize(texts, classifier.preprocessor, 64)
    inside = classifier.text_model.get_layer("preprocess")([tf.constant(texts)])
    served = [
        ids[mask.astype(bool)].tolist()
        for ids, mask in zip(inside["input_word_ids"].numpy(), inside["input_mask"].numpy(), strict=True)
    ]
    assert served == as_lists(trained_on)


def test_a_named_preprocessor_rules_over_full_tokenizer(minilm_paths: EncoderPaths, tmp_path: Path) -> None:
    """Published preprocessors hold tf-text's BertTokenizer, whose ids are other ones for an ellipsis."""
    from official.nlp.tools import export_tfhub_lib

    published = str(tmp_path / "published")
    export_tfhub_lib.export_preprocessing(
        published,
        vocab_file=_vocab_file(minilm_paths),
        do_lower_case=True,
        tokenize_with_offsets=False,
        default_seq_length=128,
    )
    texts = ["wait…", "plain words"]
    ours = as_lists(tokenize(texts, hub.load(minilm_paths.preprocessor), 16))
    theirs = as_lists(tokenize(texts, hub.load(published), 16))
    assert ours[1] == theirs[1]
    assert ours[0] != theirs[0]
    classifier = build_classifier(
        Config(data="-", max_seq_length=16), EncoderPaths(minilm_paths.encoder, published), Task("binary", ["a", "b"])
    )
    inside = classifier.text_model.get_layer("preprocess")([tf.constant(texts[:1])])
    assert inside["input_word_ids"].numpy()[0].tolist() == theirs[0]


def test_texts_are_cut_to_max_seq_length_and_counted(minilm_paths: EncoderPaths) -> None:
    tokens = tokenize(["one two three", "one two three four", "one"], hub.load(minilm_paths.preprocessor), 5)
    assert tokens.lengths.tolist() == [5, 5, 3]
    assert tokens.num_cut == 1


def test_packing_pads_to_the_longest_text_of_the_batch(minilm_paths: EncoderPaths) -> None:
    inputs, num_tokens = pack(hub.load(minilm_paths.preprocessor), [tf.constant(["one two", "one"])], 128)
    assert inputs["input_mask"].numpy().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert num_tokens.numpy().tolist() == [4, 3]
    inputs, _ = pack(hub.load(minilm_paths.preprocessor), [tf.constant([], tf.string)], 128)
    assert inputs["input_word_ids"].shape[0] == 0
