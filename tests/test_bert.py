"""bert.py: an opened encoder is the hub encoder, and can do what a frozen graph cannot."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from conftest import MakeTable, build, inputs_of, tiny_spec
from test_model import train_once

import bert
from bert import CannotOpen, assign, build_bert, export_bert, largest_difference, open_encoder
from config import Config, ConfigError, DataError
from data import INPUT_NAMES
from encoders import find_encoder
from spec import EncoderPaths, EncoderSpec, SentenceDense, SentenceVector, full_tokenizer, read_spec
from train import train
from vocabulary import read_vocab


def opened(directory: str, **options: object) -> tuple[tf_keras.Model, EncoderSpec]:
    spec, weights = open_encoder(directory)
    model = build_bert(spec, **options)  # type: ignore[arg-type]
    assign(model, weights.items())
    return model, spec


def test_a_published_encoder_opens_with_equal_outputs_and_its_own_settings(published_encoder: str) -> None:
    model, spec = opened(published_encoder)
    assert (spec.activation, spec.num_layers, spec.num_heads, spec.hidden_dropout, spec.attention_dropout) == (
        "gelu_tanh",
        3,
        4,
        0.2,
        0.3,
    )
    assert spec.tokenization == full_tokenizer(lower_case=True)
    assert largest_difference(published_encoder, model, spec) <= 1e-5


def test_the_proof_of_a_published_encoder_is_made_once(published_encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_encoder(published_encoder)
    monkeypatch.setattr(bert, "_prove", lambda *_: pytest.fail("proven again"))
    open_encoder(published_encoder)


def test_another_activation_is_told_from_the_right_one(published_encoder: str) -> None:
    _, spec = opened(published_encoder)
    wrong = build_bert(spec.model_copy(update={"activation": "gelu"}))
    assign(wrong, bert.stored_weights(published_encoder).items())
    assert largest_difference(published_encoder, wrong, spec) > 1e-4


def test_opened_saved_and_opened_again_it_is_the_same(published_encoder: str, tmp_path: Path) -> None:
    spec, weights = open_encoder(published_encoder)
    export_bert(str(tmp_path / "again"), spec, None, weights.items())
    model, _ = opened(str(tmp_path / "again"))
    assert largest_difference(published_encoder, model, spec) <= 1e-5


@pytest.mark.parametrize(
    "changes", [{"embedding_size": 8}, {"pooler": False}, {"segments": False, "family": "distilbert"}]
)
def test_weights_are_counted(changes: dict[str, object]) -> None:
    spec = tiny_spec(50, **changes)
    assert sum(np.prod(weight.shape) for weight in build_bert(spec).trainable_variables) == spec.parameters


def test_the_last_layer_for_cls_alone_gives_the_same_pooled_output(
    published_encoder: str, tiny_paths: EncoderPaths
) -> None:
    inputs = inputs_of(tiny_paths)
    whole, short = (opened(published_encoder, cls_only=cls_only)[0](inputs) for cls_only in (False, True))
    assert short["sequence_output"].shape == (4, 1, 16)
    np.testing.assert_allclose(short["pooled_output"], whole["pooled_output"], atol=1e-6)
    np.testing.assert_allclose(short["sequence_output"][:, 0], whole["sequence_output"][:, 0], atol=1e-6)


@pytest.mark.parametrize(("rate", "same"), [(0.0, True), (None, False), (0.5, False)])
def test_encoder_dropout_replaces_the_encoders_own(tiny_paths: EncoderPaths, rate: float | None, same: bool) -> None:
    model = build(tiny_paths, encoder_dropout=rate, dropout=0.0).training_model
    inputs = inputs_of(tiny_paths)
    first, second = (model(inputs, training=True).numpy() for _ in range(2))
    assert (np.abs(first - second).max() < 1e-6) == same


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize(
    ("freeze_layers", "frozen"),
    [(0, ("word_", "position_", "type_", "embeddings/")), (1, ("word_", "transformer/layer_0/"))],
)
def test_freeze_layers_freezes_from_below(
    tiny_paths: EncoderPaths, freeze_layers: int, frozen: tuple[str, ...], precision: str
) -> None:
    moved = train_once(build(tiny_paths, freeze_layers=freeze_layers, precision=precision), tiny_paths)
    for name, distance in moved.items():
        if name.startswith(frozen):
            assert distance == 0, name
        elif "layer_1/" in name and "key/bias" not in name:  # softmax does not feel the key's bias
            assert distance > 0, name


def test_layer_decay_slows_each_layer_below(tiny_paths: EncoderPaths) -> None:
    options = {"learning_rate": 1e-2, "encoder_learning_rate": 1e-3, "layer_decay": 0.5}
    moved = train_once(build(tiny_paths), tiny_paths, **options)
    expected = {
        "logits/kernel:0": 1e-2,
        "pooler_transform/kernel:0": 1e-3,
        "transformer/layer_1/output/kernel:0": 1e-3,
        "transformer/layer_0/output/kernel:0": 0.5e-3,
        "word_embeddings/embeddings:0": 0.25e-3,
    }
    for name, rate in expected.items():  # Adam's first step is the rate
        assert moved[name] == pytest.approx(rate, rel=0.02), name


def test_options_of_opened_encoders_are_refused_where_they_mean_nothing(tiny_paths: EncoderPaths) -> None:
    with pytest.raises(ConfigError, match=r"freeze_layers=3: the encoder .* has 2 layers"):
        build(tiny_paths, freeze_layers=3)


@pytest.fixture
def strange_encoder(tiny_paths: EncoderPaths, tmp_path: Path) -> str:
    """A hub encoder with the interface of BERT, and other insides."""
    ids = {name: tf_keras.Input(shape=(None,), dtype=tf.int32, name=name) for name in INPUT_NAMES}
    sequence = tf_keras.layers.Embedding(1000, 16, name="word_embeddings")(ids["input_word_ids"])
    outputs = {"sequence_output": sequence, "pooled_output": sequence[:, 0], "default": sequence[:, 0]}
    tf_keras.Model(ids, outputs).save(str(tmp_path / "strange"), save_format="tf", include_optimizer=False)
    return str(tmp_path / "strange")


def test_a_hub_layer_that_is_no_bert_stays_one_and_says_what_it_cannot(
    strange_encoder: str, tiny_paths: EncoderPaths
) -> None:
    paths = EncoderPaths(strange_encoder, tiny_paths.preprocessor)
    with pytest.raises(CannotOpen, match="its variables are not those of a BERT"):
        open_encoder(strange_encoder)
    with pytest.raises(DataError, match="has 1,000; name its own one"):
        build(paths)
    with pytest.raises(
        ConfigError, match=r"freeze_layers, layer_decay: the encoder .* cannot be opened \(its variables"
    ):
        build(paths, freeze_layers=1, layer_decay=0.9)
    with pytest.raises(ConfigError, match="encoder_mode=opened: the encoder"):
        build(paths, encoder_mode="opened")


def test_an_encoder_with_the_names_of_bert_and_other_arithmetic_stays_a_hub_layer(
    tmp_path: Path, vocab_file: str
) -> None:
    spec = tiny_spec(600, layer_norm_epsilon=0.1)
    export_bert(str(tmp_path / "other"), spec, None, ((v.name[:-2], v.numpy()) for v in build_bert(spec).variables))
    shutil.rmtree(tmp_path / "other" / "assets.extra")
    with pytest.raises(CannotOpen, match="a BertEncoder with its weights differs from it by"):
        open_encoder(str(tmp_path / "other"))


def test_damaged_variables_are_one_line(tiny_encoder: str, tmp_path: Path) -> None:
    for damage in ("missing", "cut"):
        directory = shutil.copytree(tiny_encoder, tmp_path / damage)
        [data] = (directory / "variables").glob("*.data*")
        if damage == "missing":
            data.unlink()
        else:
            os.truncate(data, 1000)
        with pytest.raises(DataError, match="its variables are missing or corrupt"):
            open_encoder(str(directory))


def test_an_unreadable_record_is_one_line(tiny_encoder: str, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_encoder, tmp_path / "encoder")
    (directory / "assets.extra" / "encoder.json").write_text('{"family": "gpt"}')
    with pytest.raises(DataError, match=r"encoder\.json: family='gpt': .*remove .*build or convert it again"):
        open_encoder(str(directory))


def test_sentence_vectors_are_saved_and_opened(tmp_path: Path) -> None:
    sentence = SentenceVector(
        poolings=["cls", "mean_sqrt_len"], dense=[SentenceDense(units=5, activation="tanh", bias=False)], normalize=True
    )
    spec = tiny_spec(50, sentence=sentence)
    source = build_bert(spec)
    export_bert(str(tmp_path / "st"), spec, None, ((v.name[:-2], v.numpy()) for v in source.variables))
    model, read = opened(str(tmp_path / "st"))
    assert read == spec
    inputs = {name: tf.constant([[7, 3, 2], [5, 1, 0]]) for name in INPUT_NAMES}
    inputs["input_mask"], inputs["input_type_ids"] = tf.constant([[1, 1, 1], [1, 1, 0]]), tf.zeros([2, 3], tf.int32)
    outputs = source(inputs)
    sequence = outputs["sequence_output"].numpy()
    pooled = np.stack(
        [
            np.concatenate([row[0], row[:length].sum(axis=0) / length**0.5])
            for row, length in zip(sequence, (3, 2), strict=True)
        ]
    )
    vector = np.tanh(pooled @ source.get_layer("sentence_vector").get_weights()[0])
    expected = vector / np.linalg.norm(vector, axis=1, keepdims=True)
    for found in (model(inputs), hub.load(str(tmp_path / "st"))(inputs, training=False)):
        np.testing.assert_allclose(found["default"], expected, atol=1e-6)


@pytest.mark.parametrize("damage", ["list signature", "no default", "cut graph", "empty graph", "not callable"])
def test_a_proof_that_cannot_be_made_leaves_a_hub_layer_or_one_line(
    published_encoder: str, tiny_paths: EncoderPaths, tmp_path: Path, damage: str
) -> None:
    directory = tmp_path / "encoder"
    if damage in {"cut graph", "empty graph"}:
        shutil.copytree(published_encoder, directory)
        os.truncate(directory / "saved_model.pb", 5000 if damage == "cut graph" else 0)
    else:
        loaded = hub.load(published_encoder)
        module = tf.Module()
        module.kept = loaded.variables
        specs = [tf.TensorSpec([None, None], tf.int32, name=name) for name in INPUT_NAMES]
        if damage == "list signature":
            module.__call__ = tf.function(lambda x: loaded(dict(zip(INPUT_NAMES, x, strict=True))), [specs])
        elif damage == "no default":
            signature = [{spec.name: spec for spec in specs}, tf.TensorSpec([], tf.bool, name="training")]

            def without_default(inputs: dict[str, tf.Tensor], training: tf.Tensor) -> dict[str, tf.Tensor]:
                outputs = loaded(inputs, training=False)
                return {name: outputs[name] for name in ("sequence_output", "pooled_output")}

            module.__call__ = tf.function(without_default, signature)
        tf.saved_model.save(module, str(directory))
    with pytest.raises(CannotOpen, match="it does not run as TF-Hub's BERT encoders do"):
        open_encoder(str(directory))
    if damage not in {"no default"}:
        with pytest.raises(DataError, match="cannot be loaded as a layer|does not take input_word_ids"):
            build(EncoderPaths(str(directory), tiny_paths.preprocessor))


def test_a_module_of_tensorflow_1_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "variables").mkdir()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("x", [2])
        session.run(variable.initializer)
        tf.compat.v1.train.Saver().save(session, str(tmp_path / "variables" / "variables"), write_meta_graph=False)
    with pytest.raises(CannotOpen, match="it is in TensorFlow 1's format"):
        open_encoder(str(tmp_path))


def test_distilberts_type_embeddings_stay_zero_in_training(tmp_path: Path, vocab_file: str) -> None:
    spec = tiny_spec(len(read_vocab(vocab_file)), family="distilbert", segments=False)
    weights = {v.name[:-2]: v.numpy() for v in build_bert(spec).variables}
    weights["type_embeddings/embeddings"][:] = 0
    export_bert(str(tmp_path / "distilbert"), spec, read_vocab(vocab_file), weights.items())
    paths = find_encoder(Config(data="-", encoder=str(tmp_path / "distilbert")))
    for encoder_mode in ("hub", "opened"):
        moved = train_once(build(paths, encoder_mode=encoder_mode), paths)
        assert moved["type_embeddings/embeddings:0"] == 0
        assert moved["position_embedding/embeddings:0"] > 0


@pytest.mark.parametrize(
    ("pooling", "still"),
    [("mean", True), ("cls", True), ("pooled_output", False), ("default", False)],
)
def test_weights_that_the_head_does_not_see_are_not_trained(
    tiny_paths: EncoderPaths, pooling: str, still: bool
) -> None:
    classifier = build(tiny_paths, pooling=pooling)
    names = {variable.name for variable in classifier.training_model.trainable_variables}
    assert ("pooler_transform/kernel:0" not in names) == still
    assert "pooler_transform/kernel:0" in {variable.name for variable in classifier.text_model.variables}


def test_the_seed_gives_the_head_whatever_loading_the_encoder_drew(
    published_encoder: str, tiny_paths: EncoderPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))  # the first build proves, the second does not
    paths = EncoderPaths(published_encoder, tiny_paths.preprocessor)
    first, second = (build(paths).token_model.get_layer("logits").kernel.numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


# Training in Keras' mixed precision, as on a GPU


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_mixed_precision_trains_stops_scores_saves_and_goes_on(
    tiny_encoder: str, tmp_path: Path, table: MakeTable, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("runtime.has_gpu", lambda: True)
    monkeypatch.setattr("runtime.choose_precision", lambda wanted, opened: precision)
    result = train(
        Config(
            data=table([("it is good", "pos"), ("it was the worst", "neg")] * 20),
            encoder=tiny_encoder,
            epochs=3,
            valid_split=0.25,
            freeze_layers=1,
            learning_rate=1e-2,
            early_stopping_patience=1,
            max_seq_length=16,
            wandb_mode="disabled",
            output_dir=str(tmp_path),
        )
    )
    classifier = result.classifier
    assert classifier.encoder.training_layer is not classifier.encoder.layer
    assert result.metrics["environment"]["precision"] == precision
    before, after = bert.stored_weights(tiny_encoder), bert.stored_weights(str(result.run_directory / "model"))
    np.testing.assert_array_equal(
        after["transformer/layer_0/output/kernel"], before["transformer/layer_0/output/kernel"]
    )
    assert np.abs(after["transformer/layer_1/output/kernel"] - before["transformer/layer_1/output/kernel"]).max() > 1e-4
    served = tf.saved_model.load(str(result.run_directory / "model")).signatures["serving_default"]
    table_written = pd.read_csv(result.run_directory / "valid_predictions.csv")
    given = served(text=tf.constant(table_written["text"].tolist()))["probability"]
    np.testing.assert_allclose(given, table_written["probability"], atol=1e-6)  # scored in float32
    find_encoder(Config(data="-", encoder=str(result.run_directory)))


# A trained run as an encoder


@pytest.mark.parametrize(("encoder_mode", "known"), [("opened", True), ("opened", False), ("hub", False)])
def test_a_trained_run_is_the_encoder_of_another(
    tiny_encoder: str, tmp_path: Path, table: MakeTable, encoder_mode: str, known: bool
) -> None:
    source = shutil.copytree(tiny_encoder, tmp_path / "source")
    if not known:
        shutil.rmtree(source / "assets.extra")
    data = table([("it is good", "pos"), ("it was the worst", "neg")] * 8)
    settings = {"data": data, "valid_split": 0.0, "epochs": 1, "learning_rate": 1e-2, "max_seq_length": 16}
    settings |= {"wandb_mode": "disabled", "output_dir": str(tmp_path)}
    first = train(Config(**settings, encoder=str(source), run_name="first", encoder_mode=encoder_mode))
    shutil.rmtree(source)
    moved = shutil.move(first.run_directory, tmp_path / "moved")
    paths = find_encoder(Config(data="-", encoder=str(moved)))
    inputs = inputs_of(paths)
    trained = first.classifier.encoder.layer(inputs, training=False)["pooled_output"]
    np.testing.assert_allclose(hub.load(paths.encoder)(inputs, training=False)["pooled_output"], trained, atol=1e-6)
    assert (read_spec(paths.encoder) is None) == (encoder_mode == "hub" and not known)
    next_model = build(paths)
    assert train_once(next_model, paths, learning_rate=1e-3)["logits/kernel:0"] > 0


def test_an_opened_encoder_learns_what_the_hub_layer_learns(tmp_path: Path, vocab_file: str) -> None:
    """Dropout left out, as its random numbers are other ones."""
    vocab = read_vocab(vocab_file)
    spec = tiny_spec(len(vocab), hidden_dropout=0.0, attention_dropout=0.0)
    export_bert(str(tmp_path / "still"), spec, vocab, ((v.name[:-2], v.numpy()) for v in build_bert(spec).variables))
    paths = find_encoder(Config(data="-", encoder=str(tmp_path / "still")))
    after = []
    for encoder_mode in ("hub", "opened"):
        classifier = build(paths, encoder_mode=encoder_mode, dropout=0.0)
        for _ in range(3):
            train_once(classifier, paths, learning_rate=1e-3)
        after.append({v.name: v.numpy() for v in classifier.token_model.variables if v.dtype == tf.float32})
    assert after[0].keys() == after[1].keys()
    for name, value in after[0].items():
        # Adam makes steps of full size of gradients that are nothing but rounding, as the key's bias has.
        np.testing.assert_allclose(value, after[1][name], atol=0.01 if "key/bias" in name else 2e-5, err_msg=name)
