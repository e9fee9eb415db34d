"""A real, tiny TF-Hub encoder, made once per session by the project's own exporter, and helpers around it."""

import os
import tempfile

# Before anything is imported: nothing of the user's is read or written, and nothing goes online.
_SCRATCH = tempfile.TemporaryDirectory(prefix="hubtune-tests-")
os.environ["HUBTUNE_CACHE"] = os.path.join(_SCRATCH.name, "cache")
os.environ["TFHUB_CACHE_DIR"] = os.path.join(_SCRATCH.name, "tfhub")
os.environ["WANDB_MODE"] = "offline"
for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # tiny models gain nothing by more, and `make test` runs two processes
for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "DIR"):
    os.environ[f"WANDB_{name}"] = os.path.join(_SCRATCH.name, "wandb")
os.makedirs(os.environ["WANDB_DIR"])

import runtime  # isort: skip  (chooses Keras 2 before TensorFlow loads)

import csv
import functools
import gc
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tf_keras
from official.legacy.bert.configs import BertConfig
from official.nlp.tools import export_tfhub_lib

from bert import build_bert, export_bert
from config import Config
from data import pack
from encoders import default_encoder, find_encoder
from known_encoders import DEFAULT_ENCODER, standard_bert
from model import Classifier, build_classifier
from spec import EncoderPaths, EncoderSpec
from tasks import Kind, Task
from train import Result, train
from vocabulary import read_vocab

# Graphs leave millions of objects: looking through all of them as often as by default takes a sixth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("HUBTUNE_DATA", ROOT.parent / "shared" / "data"))
SAMPLE = ROOT / "samples" / "reviews.csv"

MakeTable = Callable[[list[tuple[str, str]]], str]


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Special tokens, letters, and the frequent words of the sample: 500 odd tokens."""
    counts: dict[str, int] = {}
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for word in row["text"].lower().split():
                if word.isalpha() and word.isascii() and len(word) > 1:
                    counts[word] = counts.get(word, 0) + 1
    words = sorted(counts, key=lambda word: (-counts[word], word))[:400]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *".,!?'\"-0123456789",
        *words,
    ]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    return str(path)


def tiny_spec(vocab_size: int, **changes: object) -> EncoderSpec:
    """A 2-layer, 16-wide BERT, uncased, 64 positions."""
    tiny = {"num_heads": 2, "intermediate_size": 32, "max_positions": 64, **changes}
    return standard_bert("tiny", 2, 16, vocab_size, cased=False, **tiny)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, vocab_file: str) -> str:
    """A tiny BERT with random weights, by the project's own exporter."""
    vocab = read_vocab(vocab_file)
    spec = tiny_spec(len(vocab))
    tf_keras.utils.set_random_seed(1)  # the same whichever tests a process begins with
    random = tf.random.Generator.from_seed(1)
    weights = {
        variable.name.removesuffix(":0"): (variable + 0.2 * random.normal(variable.shape)).numpy()
        for variable in build_bert(spec).variables
    }
    directory = str(tmp_path_factory.mktemp("hub") / "tiny")
    export_bert(directory, spec, vocab, weights.items())
    return directory


@pytest.fixture(scope="session")
def published_encoder(tmp_path_factory: pytest.TempPathFactory, vocab_file: str) -> str:
    """A tiny BERT by Model Garden's own exporter, as on TF-Hub: tanh GELU, and no record of what it is."""
    tf_keras.utils.set_random_seed(1)
    bert_config = BertConfig(
        vocab_size=len(read_vocab(vocab_file)),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=32,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        max_position_embeddings=64,
        type_vocab_size=2,
        initializer_range=0.5,
    )
    encoder = export_tfhub_lib.get_bert_encoder(bert_config)
    folder = tmp_path_factory.mktemp("published")
    checkpoint = tf.train.Checkpoint(model=encoder, encoder=encoder).save(str(folder / "checkpoint"))
    with runtime.quiet():
        export_tfhub_lib.export_model(
            str(folder / "bert"),
            bert_config=bert_config,
            model_checkpoint_path=checkpoint,
            with_mlm=False,
            vocab_file=vocab_file,
            do_lower_case=True,
        )
    return str(folder / "bert")


@pytest.fixture(scope="session")
def tiny_paths(tiny_encoder: str) -> EncoderPaths:
    return find_encoder(Config(data="-", encoder=tiny_encoder))


@pytest.fixture(scope="session")
def minilm_paths() -> EncoderPaths:
    """The embedded default, converted once."""
    default_encoder()
    return find_encoder(Config(data="-", encoder=DEFAULT_ENCODER))


TEXTS = ["it is good", "the worst, and it is not even cheap!", "", "a b c d e f g h i j k"]


def build(
    paths: EncoderPaths, labels: tuple[str, ...] = ("neg", "pos"), kind: Kind | None = None, **options: object
) -> Classifier:
    tf_keras.utils.set_random_seed(0)
    return build_classifier(
        Config(data="-", encoder=paths.encoder, **{"max_seq_length": 64, "precision": "float32", **options}),
        paths,
        Task(kind or ("binary" if len(labels) == 2 else "multiclass"), list(labels)),
    )


def inputs_of(paths: EncoderPaths, texts: list[str] = TEXTS) -> dict[str, tf.Tensor]:
    return pack(hub.load(paths.preprocessor), [tf.constant(texts)], 64)[0]


@pytest.fixture
def table(tmp_path: Path) -> MakeTable:
    """Writes (text, label) rows as a CSV and returns its path."""

    def write(rows: list[tuple[str, str]]) -> str:
        path = tmp_path / "table.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        return str(path)

    return write


@pytest.fixture
def served_folder(tmp_path: Path) -> Iterator[str]:
    """URL of an HTTP server on this machine that gives out `tmp_path`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def tiny_settings(paths: EncoderPaths, output: Path, **options: Any) -> Config:
    """A short training of the tiny encoder on the bundled reviews."""
    defaults = {
        "data": str(SAMPLE),
        "encoder": paths.encoder,
        "max_seq_length": 64,
        "epochs": 2,
        "learning_rate": 3e-3,
        "precision": "float32",
        "output_dir": str(output),
        "run_name": "run",
        "wandb_mode": "disabled",
    }
    return Config(**(defaults | options))


@pytest.fixture(scope="session")
def trained(tiny_paths: EncoderPaths, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One training with validation and test rows, `train.csv` and `test.csv` beside its run directory."""
    folder = tmp_path_factory.mktemp("runs")
    frame = pd.read_csv(SAMPLE, keep_default_na=False)
    frame[:500].to_csv(folder / "train.csv", index=False)
    frame[500:].assign(id=range(152)).to_csv(folder / "test.csv", index=False)
    tables = {"data": str(folder / "train.csv"), "test_data": str(folder / "test.csv")}
    return train(tiny_settings(tiny_paths, folder, **tables, valid_split=0.2, epochs=3))


def real_data(name: str) -> str:
    """Path of a real table; the test is skipped where it is absent."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}: point HUBTUNE_DATA at the folder that has {name}")
    return str(path)
