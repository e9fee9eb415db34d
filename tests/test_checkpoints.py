"""checkpoints.py, vocabulary.py: a checkpoint becomes what PyTorch computes from it, or is refused with the reason."""

import json
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
        inputs, _ = pack(hub.load(paths.preprocessor), tf.constant(reference["texts"]), mask.shape[1])
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
    assert list((tmp_path / "cache").iterdir()) == []
    save_file(whole, folder / "model.safetensors")
    assert read_spec(find_encoder(Config(data="-", encoder=str(folder))).encoder) is not None


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
    [("{", "config.json: not valid JSON"), ("[]", "config.json: holds a list, expected an object")],
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


def test_another_kind_of_tokenizer_file_is_refused(tmp_path: Path) -> None:
    write_checkpoint("bert-multilingual", tmp_path)
    edit_json(tmp_path / "tokenizer.json", model={"type": "BPE", "vocab": {}})
    with pytest.raises(DataError, match=r"tokenizer\.json: its model is BPE, not BERT's WordPiece"):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


# sentence-transformers


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "modules.json",
            [{"type": "sentence_transformers.models.CLIPModel", "path": ""}],
            "the modules CLIPModel cannot",
        ),
        ("modules.json", {}, "the modules  cannot be mapped"),
        ("modules.json", [{"path": ""}], "modules.json: not a list of modules"),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "the pooling lasttoken cannot be mapped"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.ReLU"},
            "the activation ReLU cannot",
        ),
        ("2_Dense/config.json", {"in_features": 3, "out_features": 4}, "are not those of config.json"),
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
    assert hub.load(paths.encoder)(pack(hub.load(paths.preprocessor), tf.constant(["good"]), 8)[0])[
        "default"
    ].shape == (1, 32)
