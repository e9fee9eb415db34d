"""checkpoints.py, vocabulary.py: a checkpoint becomes what PyTorch computes from it, or is refused with the reason."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
from conftest import ROOT
from reference.checkpoints import NAMES, write_checkpoint
from safetensors.numpy import load_file, save_file

import encoders
from checkpoints import read_checkpoint
from config import Config, DataError
from data import pack
from encoders import find_encoder
from spec import read_spec
from vocabulary import read_vocab

REFERENCES = ROOT / "tests" / "reference"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint("bert-uncased", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_outputs_agree_with_pytorch(name: str, tmp_path: Path) -> None:
    write_checkpoint(name, tmp_path / name)
    paths = find_encoder(Config(data="-", encoder=str(tmp_path / name)))
    with np.load(REFERENCES / f"{name}.npz") as reference:
        mask = reference["input_mask"]
        inputs, _ = pack(hub.load(paths.preprocessor), [tf.constant(reference["texts"])], mask.shape[1])
        for key, ids in inputs.items():
            np.testing.assert_array_equal(ids, reference[key])
        outputs = hub.load(paths.encoder)(inputs, training=False)
        sequence = outputs["sequence_output"].numpy()[mask.astype(bool)]
        np.testing.assert_allclose(
            sequence[: len(reference["sequence_output"])], reference["sequence_output"], atol=1e-5
        )
        for key in {"pooled_output", "default"} & set(reference.files):
            np.testing.assert_allclose(outputs[key], reference[key], atol=1e-5)
        if "pooled_output" not in reference.files:
            np.testing.assert_array_equal(outputs["pooled_output"], outputs["sequence_output"][:, 0])


def test_half_precision_is_widened_exactly(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({k: v.astype(np.float16) for k, v in tensors.items()}))
    weights = dict(read_checkpoint(str(folder), "x").weights())
    stored = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert weights["word_embeddings/embeddings"].dtype == np.float32
    np.testing.assert_array_equal(weights["word_embeddings/embeddings"], stored.astype(np.float32))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_checkpoint("bert-cased", tmp_path)
    assert read_checkpoint(str(tmp_path), "x").notes == ["left out, as no part of the encoder: cls"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model_type": "roberta"},
            "its architecture is 'roberta'; bert, distilbert and electra can be mapped exactly",
        ),
        ({"model_type": None}, "its architecture is None"),
        ({"position_embedding_type": "relative_key"}, "its position embeddings are 'relative_key'"),
        ({"auto_map": {"AutoModel": "modeling.Bert"}}, "it needs code of its own"),
        ({"is_decoder": True}, "it is a decoder"),
        ({"quantization_config": {"bits": 8}}, "its weights are quantized"),
        ({"pruned_heads": {"0": [1]}}, "attention heads were pruned"),
        ({"hidden_size": "wide"}, "config.json: hidden_size='wide': input should be a valid integer"),
        ({"num_attention_heads": None}, "config.json: num_attention_heads='None': input should be a valid integer"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads='0': input should be greater than 0"),
        ({"hidden_dropout_prob": 1.5}, "config.json: hidden_dropout_prob='1.5': input should be less than 1"),
        ({"layer_norm_eps": float("nan")}, "config.json: layer_norm_eps='nan': input should be a finite number"),
        ({"model_type": ["bert"]}, "config.json: model_type="),
        ({"hidden_act": "mish"}, "the activation 'mish' is not one of"),
        ({"num_attention_heads": 5}, "32 wide, not divisible by its 5 attention heads"),
        ({"num_hidden_layers": 4}, r"16 of \d+ tensors are missing, such as encoder\.layer\.3"),
        (
            {"num_hidden_layers": 2},
            r"the encoder holds 16 tensors that BERT has no place for, such as encoder\.layer\.2",
        ),
        (
            {"intermediate_size": 65},
            r"intermediate\.dense\.weight has the shape \(64, 32\), config\.json says \(65, 32\)",
        ),
    ],
)
def test_what_cannot_be_mapped_exactly_is_refused_with_the_reason(
    folder: Path, changes: dict[str, Any], reason: str
) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(DataError, match=reason):
        find_encoder(Config(data="-", encoder=str(folder)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"", r"model\.safetensors: corrupt or cut short"),
        (b"\x08\0\0\0\0\0\0\0notjson!", r"model\.safetensors: corrupt or cut short"),
        (None, r"model\.safetensors: corrupt or cut short"),
    ],
)
def test_corrupt_weights_are_refused(folder: Path, damage: bytes | None, message: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(DataError, match=message):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_weights_that_are_not_finite_are_refused_and_leave_no_cache_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path / "cache"))
    whole = load_file(folder / "model.safetensors")
    edit_tensors(folder, lambda tensors: tensors["pooler.dense.bias"].fill(np.nan))
    with pytest.raises(DataError, match=r"the tensor pooler\.dense\.bias holds numbers that are not finite"):
        find_encoder(Config(data="-", encoder=str(folder)))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    save_file(whole, folder / "model.safetensors")
    assert read_spec(find_encoder(Config(data="-", encoder=str(folder))).encoder) is not None


def test_tensors_that_float32_cannot_hold_are_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"pooler.dense.bias": np.zeros(32)}))
    with pytest.raises(DataError, match=r"the tensor pooler\.dense\.bias is F64; only F32, F16, BF16"):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_a_tensor_under_two_names_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"embeddings.LayerNorm.gamma": np.ones(32, np.float32)}))
    with pytest.raises(DataError, match=r"the tensor embeddings\.LayerNorm\.weight occurs twice"):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_missing_tensors_are_counted_and_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(
        DataError, match=r"1 of 55 tensors are missing, such as encoder\.layer\.1\.output\.dense\.weight"
    ):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_another_architecture_under_the_name_of_bert_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("embeddings.word_embeddings.weight"))
    with pytest.raises(DataError, match=r"0 tensors are named \*embeddings\.word_embeddings\.weight"):
        find_encoder(Config(data="-", encoder=str(folder)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5"])
def test_weights_that_could_run_code_are_refused_with_the_remedy(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(DataError, match=rf"{name}: only safetensors files are read.*save_pretrained"):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_a_folder_without_weights_says_so(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no model\.safetensors there"):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_shards_are_looked_for_in_their_own_folder_only(tmp_path: Path) -> None:
    write_checkpoint("bert-multilingual", tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"]["pooler.dense.bias"] = "../../secret.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(DataError, match=r"names the file '\.\./\.\./secret\.safetensors', which is not in that folder"):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "config.json: not valid JSON"), ("[]", r"config.json: '\[\]': input should be a valid dictionary")],
)
def test_a_broken_config_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        find_encoder(Config(data="-", encoder=str(folder)))


# Vocabularies and tokenizers


def vocabulary_of(folder: Path) -> list[str]:
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


def write_vocabulary(folder: Path, tokens: list[str]) -> None:
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


@pytest.mark.parametrize("change", [lambda tokens: tokens[:-1], lambda tokens: [*tokens, "one", "more"]])
def test_a_vocabulary_of_another_length_than_the_embedding_table_is_refused(
    folder: Path, change: Callable[[list[str]], list[str]]
) -> None:
    write_vocabulary(folder, change(vocabulary_of(folder)))
    with pytest.raises(DataError, match=r"the vocabulary has 81\d tokens, the embedding table 814 rows"):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_rows_that_round_the_table_up_are_said(folder: Path) -> None:
    def widen(tensors: dict[str, np.ndarray]) -> None:
        name = "embeddings.word_embeddings.weight"
        tensors[name] = np.pad(tensors[name], ((0, 832 - 814), (0, 0)))

    edit_tensors(folder, widen)
    edit_json(folder / "config.json", vocab_size=832)
    assert read_checkpoint(str(folder), "x").notes == ["18 rows of its embedding table belong to no token"]


def test_of_a_token_that_occurs_twice_the_last_id_counts(folder: Path) -> None:
    tokens = vocabulary_of(folder)
    first = next(
        number
        for number, token in enumerate(tokens)
        if len(token) > 3 and token.islower() and token.isascii() and token.isalpha()
    )
    word = tokens[first]
    write_vocabulary(folder, [*tokens[:-1], word])
    vocab = read_vocab(folder / "vocab.txt")
    assert vocab[-1] == word
    assert vocab[first] == f"[unreachable {first}]"
    paths = find_encoder(Config(data="-", encoder=str(folder)))
    ids = hub.load(paths.preprocessor).tokenize(tf.constant([word, vocab[first]])).to_list()
    assert ids[0] == [813]
    assert first not in ids[1]


@pytest.mark.parametrize("token", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_a_token_that_bert_needs_is_refused(folder: Path, token: str) -> None:
    write_vocabulary(folder, [other if other != token else "other" for other in vocabulary_of(folder)])
    with pytest.raises(DataError, match=rf"vocab\.txt: the token \{token[:-1]}\] is missing"):
        find_encoder(Config(data="-", encoder=str(folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "the tokenizer is a BertJapaneseTokenizer"),
        ({"never_split": ["x"]}, "do_basic_tokenize=false and never_split cannot be mapped"),
        ({"cls_token": "<s>"}, r"cls_token is '<s>', BERT's is \[CLS\]"),
        ({"cls_token": {"content": "<s>"}}, r"cls_token is '<s>', BERT's is \[CLS\]"),
        ({"cls_token": {"x": 1}}, "tokenizer_config.json: cls_token"),
        ({"do_lower_case": None}, "tokenizer_config.json: do_lower_case='None': input should be a valid boolean"),
        ({"strip_accents": "maybe"}, "tokenizer_config.json: strip_accents='maybe'"),
        ({"tokenizer_class": []}, "tokenizer_config.json: tokenizer_class="),
        ({"added_tokens_decoder": None}, "tokenizer_config.json: added_tokens_decoder="),
        ({"added_tokens_decoder": {"0": "[PAD]"}}, "tokenizer_config.json: added_tokens_decoder.0="),
        ({"additional_special_tokens": ["<user>"]}, "the tokenizer has 1 added tokens, such as '<user>'"),
        ({"extra_special_tokens": {"user": "<user>"}}, "the tokenizer has 1 added tokens, such as '<user>'"),
        (
            {"added_tokens_decoder": {"9": {"content": "<user>"}, "0": {"content": "[PAD]"}}},
            "the tokenizer has 1 added tokens, such as '<user>'",
        ),
    ],
)
def test_another_tokenizer_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "tokenizer_config.json", **changes)
    with pytest.raises(DataError, match=message):
        find_encoder(Config(data="-", encoder=str(folder)))


def test_a_tokenizer_file_that_transformers_would_overrule_is_refused(tmp_path: Path) -> None:
    write_checkpoint("bert-multilingual", tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["do_lower_case"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match=r"does not say do_lower_case, and tokenizer\.json has lowercase=False"):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


def test_a_tokenizer_file_of_no_class_of_its_own_is_taken_at_its_word(tmp_path: Path) -> None:
    write_checkpoint("bert-multilingual", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    spec = read_checkpoint(str(tmp_path), "x").spec
    assert spec.tokenization is not None
    assert not spec.tokenization.lower_case
    assert spec.tokenization.strip_accents


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}}}, "its model is BPE, not BERT's WordPiece"),
        ({"model": {"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 2}}}, "its ids are not 0 to"),
        ({"model": {"type": "WordPiece", "vocab": ["a"]}}, "model.vocab="),
        ({"model": {"type": "WordPiece", "vocab": {"a": "0"}}}, "model.vocab.a="),
        ({"model": {"type": "WordPiece", "unk_token": "<unk>"}}, "its unk_token is <unk>"),
        ({"model": {"type": "WordPiece", "continuing_subword_prefix": "@@"}}, "its continuing_subword_prefix is @@"),
        ({"model": {"type": "WordPiece", "max_input_chars_per_word": 2000}}, "model.max_input_chars_per_word="),
        ({"model": "WordPiece"}, "model='WordPiece'"),
        ({"normalizer": None}, "its normalizer is None, not BERT's BertNormalizer"),
        ({"normalizer": "x"}, "normalizer='x'"),
        ({"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "its clean_text is False"),
        ({"post_processor": None}, "its post_processor is False"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer is Whitespace"),
        ({"added_tokens": None}, "added_tokens="),
        ({"added_tokens": ["[PAD]"]}, "added_tokens.0="),
    ],
)
def test_another_kind_of_tokenizer_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_checkpoint("bert-multilingual", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    edit_json(tmp_path / "tokenizer.json", **changes)
    with pytest.raises(DataError, match=rf"tokenizer\.json: {re.escape(message)}"):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}])
def test_an_index_of_shards_that_is_none_is_refused(tmp_path: Path, weight_map: Any) -> None:
    write_checkpoint("bert-multilingual", tmp_path)
    edit_json(tmp_path / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(DataError, match=r"index\.json: weight_map"):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


# sentence-transformers

DENSE = {"in_features": 32, "out_features": 24, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["mean"]),
        ({"pooling_mode_cls_token": True}, ["cls", "mean"]),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode": "cls"}, ["cls"]),
        ({"pooling_mode": ["mean_sqrt_len", "max"]}, ["max", "mean_sqrt_len"]),
    ],
)
def test_poolings_are_read_with_the_defaults_of_sentence_transformers(
    tmp_path: Path, settings: dict[str, Any], expected: list[str]
) -> None:
    write_checkpoint("st-mean", tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    sentence = read_checkpoint(str(tmp_path), "x").spec.sentence
    assert sentence is not None
    assert sentence.poolings == expected


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "modules.json",
            [{"type": "sentence_transformers.models.CLIPModel", "path": ""}],
            "the modules CLIPModel cannot",
        ),
        ("modules.json", {}, r"modules\.json: '{}': input should be a valid list"),
        ("modules.json", [{"path": ""}], r"modules\.json: 0\.type="),
        (
            "modules.json",
            [{"type": "x.Transformer", "path": "../out"}],
            r"the module path '\.\./out' is not in that folder",
        ),
        ("modules.json", [{"type": "x.Transformer", "path": "/etc"}], "the module path '/etc' is not in that folder"),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "the pooling lasttoken cannot be mapped"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "the pooling of nothing cannot be mapped"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "the pooling of nothing cannot be mapped"),
        ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling_mode"),
        ("2_Dense/config.json", {**DENSE, "activation_function": "torch.nn.ReLU"}, "a dense layer with ReLU"),
        ("2_Dense/config.json", {**DENSE, "use_residual": True}, "a residual or other inputs cannot be mapped"),
        (
            "2_Dense/config.json",
            {**DENSE, "module_input_name": "token_embeddings"},
            "a residual or other inputs cannot",
        ),
        ("2_Dense/config.json", {**DENSE, "in_features": 3}, "are not those of config.json"),
        ("2_Dense/config.json", {**DENSE, "bias": False}, "are not those of config.json"),
    ],
)
def test_modules_that_cannot_be_mapped_are_refused(tmp_path: Path, file: str, content: Any, message: str) -> None:
    write_checkpoint("st-dense", tmp_path)
    (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


def test_a_default_prompt_is_said(tmp_path: Path) -> None:
    write_checkpoint("st-mean", tmp_path)
    edit_json(tmp_path / "config_sentence_transformers.json", default_prompt_name="query")
    assert "its default prompt 'query' is not put before the texts" in read_checkpoint(str(tmp_path), "x").notes


def test_changed_weights_are_another_encoder(folder: Path) -> None:
    first = find_encoder(Config(data="-", encoder=str(folder)))
    assert find_encoder(Config(data="-", encoder=str(folder))) == first
    edit_tensors(folder, lambda tensors: tensors["pooler.dense.bias"].fill(0.5))
    second = find_encoder(Config(data="-", encoder=str(folder)))
    assert second.encoder != first.encoder
    assert second.preprocessor == first.preprocessor


def test_a_checkpoint_is_needed_for_its_conversion_only(folder: Path, tmp_path: Path) -> None:
    encoders.main(["convert", str(folder), str(tmp_path / "converted")])
    shutil.rmtree(folder)
    paths = find_encoder(Config(data="-", encoder=str(tmp_path / "converted")))
    assert hub.load(paths.encoder)(pack(hub.load(paths.preprocessor), [tf.constant(["good"])], 8)[0])[
        "default"
    ].shape == (1, 32)
