"""BertTransformer: texts in, rows of features out, as scikit-learn's own transformers give them."""

import functools
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from conftest import TEXTS, tiny_spec
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import runtime
from bert import assign, build_bert, export_bert, open_encoder
from config import Config
from data import INPUT_NAMES, pack
from encoders import find_encoder
from estimators import BertTransformer
from feature_encoders import Outputs
from spec import EncoderPaths, SentenceDense, SentenceVector
from vocabulary import read_vocab

MANY = [f"{text} {number % 7}" for number in range(40) for text in TEXTS]
REFERENCE_TEXTS = [*TEXTS, "one", "not the best, not the worst"]


def features(paths: EncoderPaths, texts: Any = REFERENCE_TEXTS, **options: Any) -> np.ndarray:
    settings = {"model": paths.encoder, "precision": "float32", **options}
    result: np.ndarray = BertTransformer(**settings).fit_transform(texts)
    return result


@functools.cache
def by_hand(paths: EncoderPaths) -> list[dict[str, Any]]:
    """The outputs of the project's Keras encoder, one text at a time and so without padding."""
    spec, weights = open_encoder(paths.encoder)
    model, preprocessor = build_bert(spec), hub.load(paths.preprocessor)
    assign(model, weights.items())
    results = []
    for text in REFERENCE_TEXTS:
        inputs = pack(preprocessor, [tf.constant([text])], 60)[0]
        length = int(tf.reduce_sum(inputs["input_mask"]))
        results.append(model({name: ids[:, :length] for name, ids in inputs.items()}, training=False))
    return results


def pooled(outputs: dict[str, Any], pooling: str, layer: int) -> np.ndarray:
    states = outputs["encoder_outputs"][layer if layer < 0 else layer - 1].numpy()[0]
    return {"cls": states[0], "mean": states.mean(axis=0), "max": states.max(axis=0)}[pooling]


@pytest.fixture(scope="module", params=["tiny", "published", "narrow"])
def any_paths(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: str, vocab_file: str
) -> EncoderPaths:
    """Exact and tanh GELU, 2 and 3 layers, with a record and without; narrow embeddings, a sentence vector and no pooler."""
    if request.param == "narrow":
        vocab = read_vocab(vocab_file)
        sentence = SentenceVector(
            poolings=["mean", "max"], dense=[SentenceDense(units=5, activation="tanh", bias=True)], normalize=True
        )
        shape = {"embedding_size": 8, "pooler": False, "activation": "swish", "layer_norm_epsilon": 1e-3}
        spec = tiny_spec(len(vocab), sentence=sentence, **shape)
        directory = str(tmp_path_factory.mktemp("narrow") / "bert")
        random = np.random.default_rng(0)
        weights = ((v.name[:-2], v.numpy() + random.normal(0, 0.2, v.shape)) for v in build_bert(spec).variables)
        export_bert(directory, spec, vocab, weights)
    else:
        directory = {"tiny": tiny_encoder}.get(request.param) or request.getfixturevalue("published_encoder")
    return find_encoder(Config(data="-", encoder=directory))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("layers", [-1, 1, [1, -1]])
def test_features_are_the_pooled_vectors_of_the_layers_in_the_order_of_the_texts(
    any_paths: EncoderPaths, pooling: str, layers: int | list[int]
) -> None:
    chosen = layers if isinstance(layers, list) else [layers]
    expected = [np.concatenate([pooled(out, pooling, layer) for layer in chosen]) for out in by_hand(any_paths)]
    found = features(any_paths, pooling=pooling, layers=layers)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["pooled_output", "default"])
def test_pooled_output_and_default_are_the_encoders_own(any_paths: EncoderPaths, pooling: str) -> None:
    expected = [outputs[pooling].numpy()[0] for outputs in by_hand(any_paths)]
    np.testing.assert_allclose(features(any_paths, pooling=pooling), expected, atol=1e-5)


def test_pairs_are_one_input_and_a_named_preprocessor_is_used(tiny_paths: EncoderPaths) -> None:
    frame = pd.DataFrame({"text": ["it is good", "one"], "other": ["not the best", "it is"]})
    found = features(tiny_paths, frame, text_pair_column="other", tokenizer=tiny_paths.preprocessor)
    model, preprocessor = hub.load(tiny_paths.encoder), hub.load(tiny_paths.preprocessor)
    for row, (first, second) in enumerate(zip(frame["text"], frame["other"], strict=True)):
        inputs = pack(preprocessor, [tf.constant([first]), tf.constant([second])], 60)[0]
        np.testing.assert_allclose(found[row], model(inputs)["sequence_output"][0, 0], atol=1e-5)


def test_an_encoder_that_stays_a_hub_layer_gives_features_too(
    tiny_paths: EncoderPaths, vocab_file: str, tmp_path: Path
) -> None:
    ids = {name: tf_keras.Input(shape=(None,), dtype=tf.int32, name=name) for name in INPUT_NAMES}
    words = tf_keras.layers.Embedding(len(read_vocab(vocab_file)), 4, name="word_embeddings")
    sequence = words(ids["input_word_ids"])
    outputs = {"sequence_output": -sequence, "pooled_output": sequence[:, 0], "encoder_outputs": [sequence, -sequence]}
    tf_keras.Model(ids, outputs).save(str(tmp_path / "hub"), save_format="tf", include_optimizer=False)
    options: dict[str, Any] = {"model": tmp_path / "hub", "tokenizer": tiny_paths.preprocessor}
    table = words.get_weights()[0]
    packed = pack(hub.load(tiny_paths.preprocessor), [tf.constant(["it is good"])], 60)[0]["input_word_ids"].numpy()[0]
    texts = ["it is good and it is not the worst", "it is good"]
    mean = table[packed].mean(axis=0)
    expected = {"mean": np.concatenate([mean, -mean]), "pooled_output": table[packed[0]]}
    chosen: dict[str, int | list[int]] = {"mean": [1, 2], "pooled_output": -1}
    for pooling, layers in chosen.items():
        transformer = BertTransformer(pooling=pooling, layers=layers, **options).fit(texts)
        np.testing.assert_allclose(transformer.transform(texts)[1], expected[pooling], atol=1e-6)
        assert transformer.precision_ == "float32"
    with pytest.raises(ValueError, match="gives no 'default'"):
        BertTransformer(pooling="default", **options).fit(texts)
    with pytest.raises(ValueError, match="precision=bfloat16"):
        BertTransformer(precision="bfloat16", **options).fit(texts)


# Functions of the user's


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "cls": lambda x: x[0][:, 0, :],
    "squeezed": lambda x: x[0][:, 0, :].squeeze(),
    "mean": lambda x: x[0].mean(axis=1),
    "pooled": lambda x: x[1],
    "layers": lambda x: np.concatenate([x.hidden_states[-1][:, 0], x[2][1][:, -1]], axis=1),
    "a number": lambda x: x.attention_mask.sum(axis=1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_for_many_texts_what_it_gives_for_one(tiny_paths: EncoderPaths, name: str) -> None:
    expected = []
    for outputs in by_hand(tiny_paths):
        states = [outputs["sequence_output"], *outputs["encoder_outputs"]]  # the first of them is not asked for
        sequence = outputs["sequence_output"].numpy()
        x = Outputs(
            sequence, outputs["pooled_output"].numpy(), tuple(map(np.asarray, states)), np.ones(sequence.shape[:2])
        )
        expected.append(np.asarray(FUNCTIONS[name](x)).ravel())
    np.testing.assert_allclose(features(tiny_paths, embedding_func=FUNCTIONS[name]), expected, atol=1e-5)


def test_a_function_that_pads_may_flatten(tiny_paths: EncoderPaths) -> None:
    def flatten(x: Outputs) -> np.ndarray:
        return np.pad(x[0], ((0, 0), (0, 60 - x[0].shape[1]), (0, 0))).reshape(len(x[0]), -1)

    assert features(tiny_paths, embedding_func=flatten).shape == (len(REFERENCE_TEXTS), 60 * 16)


@pytest.mark.parametrize(
    ("function", "texts", "message"),
    [
        (lambda x: x[0].reshape(len(x[0]), -1), TEXTS, "features for some texts and 64 for others: before it flattens"),
        (lambda x: x[0].mean(axis=0), ["is it", "good it"], "keep the first axis"),
        (lambda x: x[0][:, 0] * np.nan, [], "NaN or infinity"),
        (lambda x: None, [], "gives NoneType of object: let it give numbers"),
    ],
)
def test_what_a_function_gives_must_be_features(
    tiny_paths: EncoderPaths, function: Any, texts: list[str], message: str
) -> None:
    transformer = BertTransformer(model=tiny_paths.encoder, embedding_func=function, precision="float32")
    with pytest.raises(ValueError, match=message):
        transformer.fit(["it is"]).transform(texts)


# Texts


def test_none_and_nan_are_empty_texts_and_counted(tiny_paths: EncoderPaths) -> None:
    transformer = BertTransformer(model=tiny_paths.encoder).fit(TEXTS)
    with pytest.warns(UserWarning, match="2 of 3 texts are None or NaN: taken as empty"):
        found = transformer.transform([None, "it is good", float("nan")])
    np.testing.assert_allclose(found[[0, 2]], transformer.transform(["", ""]), atol=1e-2)  # perhaps bfloat16


def test_cut_texts_are_counted_and_are_what_is_left_of_them(tiny_paths: EncoderPaths) -> None:
    transformer = BertTransformer(model=tiny_paths.encoder, max_length=5, precision="float32").fit(["it"])
    with pytest.warns(UserWarning, match="1 of 2 texts are cut to max_length=5 tokens"):
        found = transformer.transform(["it is good", "it is good and not the worst"])
    np.testing.assert_allclose(found, np.repeat(features(tiny_paths, ["it is good"]), 2, axis=0), atol=1e-5)


def test_equal_texts_have_equal_features_and_the_batch_size_changes_nothing(tiny_paths: EncoderPaths) -> None:
    found = features(tiny_paths, MANY)
    for text in set(MANY):
        assert len(np.unique(found[[place for place, each in enumerate(MANY) if each == text]], axis=0)) == 1
    np.testing.assert_allclose(features(tiny_paths, MANY, batch_size=3), found, atol=1e-5)


def test_no_texts_give_no_rows(tiny_paths: EncoderPaths) -> None:
    transformer = BertTransformer(model=tiny_paths.encoder).fit(TEXTS)
    assert transformer.transform([]).shape == (0, 16)
    with pytest.raises(ValueError, match="0 sample"):
        transformer.fit([])


def test_automatic_precision_is_bfloat16_only_where_features_stay_the_same(tiny_paths: EncoderPaths) -> None:
    automatic = BertTransformer(model=tiny_paths.encoder).fit(MANY)
    assert automatic.precision_ == runtime.choose_precision("auto", opened=True)
    found, plain = automatic.transform(MANY), features(tiny_paths, MANY)
    assert found.dtype == np.float32
    cosines = (found * plain).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(plain, axis=1)
    assert cosines.min() > 0.999
    # Of this function's features nothing but the rounding is left.
    rounding = BertTransformer(model=tiny_paths.encoder, embedding_func=lambda x: x[0][:, 0] % 1e-3).fit(MANY)
    assert rounding.precision_ == "float32"


# Kept on disk


@pytest.fixture
def keeping(tiny_paths: EncoderPaths, tmp_path: Path) -> BertTransformer:
    return BertTransformer(model=tiny_paths.encoder, precision="float32", cache_dir=tmp_path / "kept").fit(MANY)


def chunks(transformer: BertTransformer) -> list[Path]:
    return sorted(Path(str(transformer.cache_dir)).rglob("*.npz"))


def test_kept_features_are_read_and_not_computed_again(keeping: BertTransformer, tiny_paths: EncoderPaths) -> None:
    first = keeping.transform(MANY)
    np.testing.assert_array_equal(keeping.transform(MANY[::-1]), first[::-1])
    [chunk] = chunks(keeping)
    with np.load(chunk) as file:
        keys, rows = file["keys"], file["rows"]
    np.savez(chunk, keys=keys, rows=rows + 1)  # so that what is read can be told from what is computed
    np.testing.assert_array_equal(clone(keeping).fit(MANY).transform(MANY), first + 1)
    np.testing.assert_allclose(keeping.transform(["new", MANY[0]])[1], first[0] + 1)
    assert len(chunks(keeping)) == 2


def test_kept_features_are_those_of_one_way_to_compute_them(keeping: BertTransformer, tiny_paths: EncoderPaths) -> None:
    keeping.transform(MANY)
    for options in ({"pooling": "mean"}, {"layers": 1}, {"layers": [1, 2]}, {"max_length": 4}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on cut texts
            found = clone(keeping).set_params(**options).fit_transform(MANY)
            expected = clone(keeping).set_params(**options, cache_dir=None).fit_transform(MANY)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_noticed_and_its_features_computed_again(keeping: BertTransformer, damage: str) -> None:
    first = keeping.transform(MANY)
    [chunk] = chunks(keeping)
    content = bytearray(chunk.read_bytes())
    if damage == "foreign":
        np.savez(chunk, keys=np.array([{}], dtype=object), rows=first)
    elif damage == "flipped":
        content[-2000] ^= 0xFF
        chunk.write_bytes(content)
    else:
        os.truncate(chunk, len(content) // 2 if damage == "cut" else 0)
    with pytest.warns(UserWarning, match="is damaged .* computed again"):
        np.testing.assert_allclose(keeping.transform(MANY), first, atol=1e-5)
    np.testing.assert_allclose(keeping.transform(MANY), first, atol=1e-5)


def test_an_interruption_loses_nothing_that_was_computed(keeping: BertTransformer) -> None:
    words = ["".join("abcdefghij"[int(digit)] for digit in str(number)) for number in range(6000)]
    main = threading.get_ident()

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not chunks(keeping) and time.monotonic() < deadline:
            time.sleep(0.001)
        if chunks(keeping):
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    keeping.set_params(batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        keeping.transform(words)
    thread.join()
    kept = 0
    for chunk in chunks(keeping):
        with np.load(chunk) as file:
            kept += len(file["keys"])
    assert kept >= 2048
    assert not list(Path(str(keeping.cache_dir)).rglob(".unfinished*"))


def test_a_folder_that_cannot_be_made_is_told_at_fit(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cache_dir: cannot make .*: name a folder that can be written, or None"):
        BertTransformer(model=tiny_paths.encoder, cache_dir=tmp_path / "file" / "kept").fit(TEXTS)


# In scikit-learn


def test_a_fitted_transformer_is_pickled_without_the_encoder(tiny_paths: EncoderPaths) -> None:
    fitted = BertTransformer(model=tiny_paths.encoder).fit(TEXTS)
    content = pickle.dumps(fitted)
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content).transform(TEXTS), fitted.transform(TEXTS))


def test_another_encoder_under_the_same_name_is_refused(tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    os.symlink(tiny_paths.encoder, folder)
    fitted = BertTransformer(model=folder).fit(TEXTS)
    vocab = read_vocab(os.path.join(tiny_paths.encoder, "assets", "vocab.txt"))
    spec = tiny_spec(len(vocab))
    folder.unlink()
    export_bert(str(folder), spec, vocab, ((v.name[:-2], v.numpy()) for v in build_bert(spec).variables))
    with pytest.raises(ValueError, match="another encoder than at fit has this name here: fit again"):
        fitted.transform(TEXTS)
    assert not np.allclose(clone(fitted).fit_transform(TEXTS), features(tiny_paths, TEXTS))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_pipelines_are_cross_validated_in_one_process_and_in_several(tiny_paths: EncoderPaths, n_jobs: int) -> None:
    texts = [f"{word} {word} {word} {number}" for number in range(12) for word in ("good", "not")]
    pipeline = make_pipeline(
        BertTransformer(model=tiny_paths.encoder, pooling="mean"), LinearSVC(class_weight="balanced")
    )
    scores = cross_val_score(pipeline, texts, ["pos", "neg"] * 12, cv=2, n_jobs=n_jobs)
    assert scores.mean() > 0.8


def test_it_stands_beside_other_transformers(tiny_paths: EncoderPaths) -> None:
    bert = BertTransformer(model=tiny_paths.encoder)
    union = FeatureUnion([("bert", bert), ("words", CountVectorizer())]).fit(TEXTS)
    assert union.transform(TEXTS).shape == (4, len(union.get_feature_names_out()))
    frame = pd.DataFrame({"title": TEXTS, "stars": range(4)}, index=list("abcd"))
    for column in ("title", ["title"]):
        columns = ColumnTransformer([("bert", clone(bert), column)], remainder="passthrough").set_output(
            transform="pandas"
        )
        found = columns.fit_transform(frame)
        assert list(found.columns) == [*(f"bert__berttransformer{n}" for n in range(16)), "remainder__stars"]
        assert list(found.index) == list("abcd")
        np.testing.assert_allclose(found.iloc[:, :16], bert.fit_transform(TEXTS), atol=1e-5)


class NumbersAsTexts(BertTransformer):
    """Rows of numbers, checked as scikit-learn does, to a word per number: for its checks, which know no texts."""

    def fit(self, X: Any, y: Any = None) -> "NumbersAsTexts":
        super().fit(self._texts(validate_data(self, X)), y)
        return self

    def transform(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return super().transform(self._texts(validate_data(self, X, reset=False)))

    def _texts(self, X: np.ndarray) -> list[str]:
        return [" ".join("abcdefghijklmnopqrstuvwxyz"[int(value * 2) % 26] for value in row) for row in X]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.allow_nan = True, False
        tags.input_tags.one_d_array = tags.input_tags.string = False
        return tags


def test_scikit_learns_checks_pass(tiny_paths: EncoderPaths) -> None:
    with pytest.warns(SkipTestWarning, match="Can't test estimator BertTransformer"):  # its inputs are texts
        check_estimator(BertTransformer(model=tiny_paths.encoder, verbose=False))
    results = check_estimator(NumbersAsTexts(model=tiny_paths.encoder, verbose=False), on_skip=None, on_fail=None)
    assert [result for result in results if result["status"] not in ("passed", "skipped")] == []
    assert sum(result["status"] == "passed" for result in results) >= 40


def test_before_fit_it_says_so() -> None:
    with pytest.raises(NotFittedError):
        BertTransformer().transform(TEXTS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pooling": "sum"}, ValueError, "pooling='sum': choose one of cls, mean"),
        ({"precision": "float16"}, ValueError, "precision='float16': choose one of auto"),
        ({"max_length": 2}, ValueError, "max_length=2: give 3 or more"),
        ({"max_length": 4, "text_pair_column": "b"}, ValueError, "max_length=4: give 5 or more"),
        ({"max_length": 65}, ValueError, "max_length=65: the encoder has 64 positions; set 64 or less"),
        ({"max_length": 60.0}, TypeError, "max_length=60.0: give a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size=0: give 1 or more"),
        ({"layers": 0}, ValueError, "there is no layer 0; the encoder has 2"),
        ({"layers": [1, -3]}, ValueError, "there is no layer -3"),
        ({"layers": "last"}, TypeError, "layers='last': give a layer's number"),
        ({"layers": []}, ValueError, "name a layer"),
        ({"layers": 1, "pooling": "default"}, ValueError, "is of the last layer"),
        ({"embedding_func": "cls"}, TypeError, "embedding_func is str: give a function"),
        ({"embedding_func": len, "pooling": "mean"}, ValueError, "takes the place of pooling"),
        ({"embedding_func": len, "cache_dir": "kept"}, ValueError, "cannot be told from its name"),
        ({"tokenizer": len}, TypeError, "is a name and tokenizer a builtin.*give names or objects for both"),
        ({"model": len}, TypeError, "give names or objects for both"),
        ({"model": len, "tokenizer": len, "pooling": "default"}, ValueError, "of a model object"),
        ({"model": len, "tokenizer": len, "precision": "float32"}, ValueError, "computes as it does: set auto"),
        ({"model": len, "tokenizer": len, "cache_dir": "kept"}, ValueError, "whose contents have no name"),
        ({"model": len, "tokenizer": object()}, TypeError, "tokenizer is a object"),
        ({"model": object(), "tokenizer": len}, TypeError, "model is a object"),
        ({"model": "/nowhere"}, ValueError, "neither a SavedModel"),
    ],
)
def test_parameters_that_cannot_be_are_told_at_fit(
    tiny_paths: EncoderPaths, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BertTransformer(**{"model": tiny_paths.encoder, **options}).fit(["it", "is"])


@pytest.mark.parametrize("X", [[1, 2], "a text", np.zeros((2, 3)), ["a", ["b", "c"]], {"a": "b"}])
def test_what_holds_no_texts_is_told_at_fit_and_transform(tiny_paths: EncoderPaths, X: Any) -> None:
    transformer = BertTransformer(model=tiny_paths.encoder)
    for call in (transformer.fit, clone(transformer).fit(TEXTS).transform):
        with pytest.raises(ValueError, match=r"text|rows"):
            call(X)


# Objects of the user's


class Words:
    """A tokenizer with Hugging Face's call: a number for each letter of a text."""

    def __call__(
        self, texts: list[str], truncation: bool, add_special_tokens: bool, max_length: int | None = None
    ) -> Any:
        return {
            "input_ids": [
                self.encode_plus(text, truncation, add_special_tokens, max_length)["input_ids"] for text in texts
            ]
        }

    def encode_plus(self, text: str, truncation: bool, add_special_tokens: bool, max_length: int | None = None) -> Any:
        letters = [ord(letter) for letter in text]
        return {"input_ids": [1, *letters[: max_length - 2 if truncation and max_length else None], 2]}


class OldWords:
    encode_plus = Words.encode_plus


def model(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    assert ids.shape == mask.shape
    assert ids.dtype == mask.dtype == np.int64
    states = np.stack([ids, ids**2, mask], axis=2) / 100
    return states, states[:, 0] * 2


@pytest.mark.parametrize("tokenizer", [Words(), OldWords()])
def test_a_tokenizer_and_a_model_of_ones_own(tokenizer: Any) -> None:
    texts = ["c", "", "ab", "zyx", "c"]

    def transform(**options: Any) -> np.ndarray:
        result: np.ndarray = BertTransformer(tokenizer, model, **options).fit_transform(texts)
        return result

    letters = [np.array([1, *map(ord, text), 2]) for text in texts]
    assert transform()[:, 0] == pytest.approx([0.01] * 5)
    assert transform(pooling="mean")[:, 0] == pytest.approx([row.mean() / 100 for row in letters])
    assert transform(pooling="max")[:, 1] == pytest.approx([(row**2).max() / 100 for row in letters])
    assert transform(pooling="pooled_output")[:, 0] == pytest.approx([0.02] * 5)
    last = transform(embedding_func=lambda x: x[0][:, -2, :].squeeze())
    assert last[:, 0] == pytest.approx([row[-2] / 100 for row in letters])
    with pytest.warns(UserWarning, match="1 of 5 texts are cut to max_length=4"):
        assert transform(max_length=4, pooling="max")[3, 0] == pytest.approx(ord("z") / 100)


@pytest.fixture
def torch_model() -> Any:
    torch = pytest.importorskip("torch", reason="PyTorch is not a dependency")

    class Module(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.dropout = torch.nn.Embedding(200, 8), torch.nn.Dropout(0.5)

        def forward(self, ids: Any, mask: Any) -> tuple[Any]:
            assert not torch.is_grad_enabled()
            return (self.dropout(self.words(ids)) * mask[:, :, None],)

    return Module().train()


def test_a_pytorch_module_runs_in_eval_mode_and_is_left_as_it_was(torch_model: Any) -> None:
    transformer = BertTransformer(Words(), torch_model, pooling="max").fit(["ab", "c"])
    np.testing.assert_array_equal(transformer.transform(["ab", "c"]), transformer.transform(["c", "ab"])[::-1])
    assert torch_model.training
