"""downloads.py: handles become local folders, or one line on what to try; the caches stay usable."""

import errno
import http.server
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import tensorflow_hub as hub
from conftest import ROOT, MakeTable
from reference.checkpoints import write_checkpoint

import downloads
from config import Config, DataError
from downloads import download, is_handle
from encoders import find_encoder
from spec import EncoderPaths
from train import train

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "tfhub"))


class Server:
    """A server on this machine that answers as told and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Answer = lambda request: request.send_error(404)
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def sends(content: bytes) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(content)

    return answer


def packed(directory: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(directory, arcname=".")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://tfhub.dev/tensorflow/bert_en_uncased_L-12_H-768_A-12/4", True),
        ("tensorflow/bert_en_uncased_L-12_H-768_A-12/4", True),
        ("tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2/2", True),
        ("tensorflow/bert/tensorFlow2/en-uncased-l-12-h-768-a-12", True),
        ("tensorflow/bert/tensorFlow2/en-uncased-l-12-h-768-a-12/4", True),
        ("hf:google-bert/bert-base-cased", True),
        ("runs/quora", False),
        ("/models/bert/1", False),
        ("bert-base-cased", False),
        ("./bert/1", False),
        ("../models/bert/3", False),
    ],
)
def test_handles_are_told_from_folders(source: str, expected: bool) -> None:
    assert is_handle(source) == expected


def test_an_existing_folder_goes_before_a_handle_of_the_same_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("google/electra_small/2").mkdir(parents=True)
    assert not is_handle("google/electra_small/2")


@pytest.mark.parametrize(
    ("handle", "kind", "asked"),
    [
        ("tensorflow/bert_zh/4", "_from_url", ("https://tfhub.dev/tensorflow/bert_zh/4",)),
        ("google/collection/electra/2", "_from_url", ("https://tfhub.dev/google/collection/electra/2",)),
        ("https://example.org/bert/1", "_from_url", ("https://example.org/bert/1",)),
        ("tensorflow/bert/tensorFlow2/en-a", "_from_kaggle", ("tensorflow/bert/tensorFlow2/en-a",)),
        ("tensorflow/bert/TensorFlow2/en-a/4", "_from_kaggle", ("tensorflow/bert/TensorFlow2/en-a/4",)),
        (
            "https://www.kaggle.com/models/tensorflow/bert/frameworks/TensorFlow2/variations/en-a/versions/4",
            "_from_kaggle",
            ("tensorflow/bert/TensorFlow2/en-a/4",),
        ),
        (
            "https://kaggle.com/models/tensorflow/bert/tensorFlow2/en-a",
            "_from_kaggle",
            ("tensorflow/bert/tensorFlow2/en-a",),
        ),
        ("hf:bert-base-cased", "_from_hugging_face", ("bert-base-cased", None)),
        ("hf:google-bert/bert-base-cased@v1.0", "_from_hugging_face", ("google-bert/bert-base-cased", "v1.0")),
    ],
)
def test_each_handle_goes_to_the_library_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, handle: str, kind: str, asked: tuple[str, ...]
) -> None:
    for name in ("_from_url", "_from_kaggle", "_from_hugging_face"):
        monkeypatch.setattr(downloads, name, lambda *given, name=name: str((name, given)))
    assert download("encoder", handle) == str((kind, asked))


def test_kaggle_models_come_by_kagglehub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "kagglehub", types.SimpleNamespace(model_download=lambda handle: f"/cache/{handle}")
    )
    assert download("encoder", "a/b/tensorFlow2/c/1") == "/cache/a/b/tensorFlow2/c/1"


def test_kaggles_refusal_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: str) -> str:
        error = RuntimeError("403 Client Error.\n\nYou don't have permission")
        error.response = types.SimpleNamespace(status_code=403)  # type: ignore[attr-defined]
        raise error

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(model_download=refuse))
    with pytest.raises(DataError, match=r"cannot be downloaded \(403 Client Error.*log in to Kaggle.*local folder"):
        download("encoder", "a/b/tensorFlow2/c/1")


def test_hugging_face_checkpoints_come_by_huggingface_hub_without_other_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def snapshot(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("org/name", None)
        assert not any("bin" in pattern or "h5" in pattern for pattern in allow_patterns)
        write_checkpoint("distilbert", tmp_path / "snapshot")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    paths = find_encoder(Config(data="-", encoder="hf:org/name"))
    assert Path(paths.encoder).name.startswith("org-name-")


@pytest.mark.parametrize("handle", ["hf:", "hf:a/b/c", "hf:a b", "hf:../x"])
def test_a_malformed_hugging_face_handle_is_one_line(handle: str) -> None:
    with pytest.raises(DataError, match="expected hf:organisation/name"):
        download("encoder", handle)


def test_a_hub_that_fails_at_first_is_asked_again(server: Server, tiny_paths: EncoderPaths) -> None:
    archive = packed(tiny_paths.encoder)

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if len(server.asked) < 3:
            request.send_error(403)
        else:
            sends(archive)(request)

    server.answer = answer
    paths = find_encoder(Config(data="-", encoder=f"{server.url}/tiny"))
    assert server.asked == ["/tiny?tf-hub-format=compressed"] * 3
    assert paths.preprocessor == tiny_paths.preprocessor  # one vocabulary, one preprocessor
    hub.load(paths.encoder)
    find_encoder(Config(data="-", encoder=f"{server.url}/tiny"))
    assert len(server.asked) == 3  # cached


def test_a_hub_handle_trains(server: Server, published_encoder: str, tmp_path: Path, table: MakeTable) -> None:
    server.answer = sends(packed(published_encoder))
    handle = f"{server.url}/bert"
    data = table([("it is good", "pos"), ("it was the worst", "neg")] * 8)
    settings = {"data": data, "encoder": handle, "valid_split": 0.0, "epochs": 1, "max_seq_length": 16}
    result = train(Config(**settings, wandb_mode="disabled", output_dir=str(tmp_path / "runs")))
    assert result.metrics["encoder"] == handle
    assert result.classifier.encoder.spec is not None
    assert server.asked == ["/bert?tf-hub-format=compressed"]


@pytest.mark.parametrize(
    ("status", "tries", "remedy"),
    [(403, 3, "log in to Kaggle"), (500, 3, "the network"), (404, 1, "check the address")],
)
def test_a_hub_that_refuses_is_one_line_with_what_to_try(
    server: Server, tmp_path: Path, status: int, tries: int, remedy: str
) -> None:
    server.answer = lambda request: request.send_error(status)
    with pytest.raises(DataError, match=rf"cannot be downloaded \(HTTP Error {status}.*{remedy}.*local folder"):
        download("encoder", f"{server.url}/bert")
    assert len(server.asked) == tries
    assert list((tmp_path / "tfhub").iterdir()) == []


def test_a_silent_hub_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_SILENCE", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(DataError, match=r"cannot be downloaded \(.*timed out"):
        download("encoder", f"http://127.0.0.1:{silent.getsockname()[1]}/bert")
    assert socket.getdefaulttimeout() is None


def test_nobody_at_the_address_is_one_line() -> None:
    with pytest.raises(DataError, match="cannot be downloaded .*Connection refused"):
        download("encoder", "http://127.0.0.1:9/bert")


@pytest.mark.parametrize("name", ["../../outside.txt", "/../outside.txt"])
def test_an_archive_that_climbs_out_of_the_cache_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    server.answer = sends(buffer.getvalue())
    with pytest.raises(DataError, match="cannot be downloaded .*is invalid"):
        download("encoder", f"{server.url}/evil")
    assert list((tmp_path / "tfhub").iterdir()) == []
    assert not list(tmp_path.rglob("outside.txt"))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_download_cut_short_leaves_the_cache_as_it_was(
    server: Server, tmp_path: Path, tiny_paths: EncoderPaths, share: float
) -> None:
    archive = packed(tiny_paths.encoder)
    server.answer = sends(archive[: int(len(archive) * share)])
    with pytest.raises(DataError, match="cannot be downloaded"):
        download("encoder", f"{server.url}/tiny")
    assert list((tmp_path / "tfhub").iterdir()) == []
    server.answer = sends(archive)
    hub.load(download("encoder", f"{server.url}/tiny"))


def test_a_killed_download_does_not_hold_up_the_next(server: Server, tmp_path: Path, tiny_paths: EncoderPaths) -> None:
    """tensorflow_hub's lock outlives a process that was killed; the next one would wait for ten minutes."""
    program = (
        "import os; from downloads import download; import tensorflow_hub.file_utils as files\n"
        "files.extract_file = lambda *given, **named: os.kill(os.getpid(), 9)\n"
        f"download('encoder', '{server.url}/tiny')"
    )
    server.answer = sends(packed(tiny_paths.encoder))
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9
    assert len(list((tmp_path / "tfhub").iterdir())) == 2  # the lock and the half
    hub.load(download("encoder", f"{server.url}/tiny"))
    assert not list((tmp_path / "tfhub").glob("*.lock"))
    assert not list((tmp_path / "tfhub").glob("*.tmp"))


def test_the_lock_of_a_living_download_is_respected(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text(f"{socket.gethostname()}.{os.getpid()}.abc")
    downloads._remove_locks_of_the_dead(tmp_path)
    assert lock.exists()


def test_a_cache_that_cannot_be_written_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_paths: EncoderPaths
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "file" / "below"))
    server.answer = sends(packed(tiny_paths.encoder))
    with pytest.raises(DataError, match=r"encoder=http.*/tiny: cannot be (stored|downloaded)"):
        download("encoder", f"{server.url}/tiny")


def test_a_full_disk_is_not_called_a_network_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(model_download=full))
    with pytest.raises(DataError, match=r"cannot be stored \(.*No space left on device\); make room there"):
        download("encoder", "a/b/tensorFlow2/c/1")


def test_a_mistyped_folder_that_looks_like_a_handle_is_called_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_from_url", lambda url: socket.create_connection(("127.0.0.1", 9)))
    with pytest.raises(DataError, match="encoder=runs/bert/1: no such folder, and as a handle it cannot be downloaded"):
        download("encoder", "runs/bert/1")


def test_a_damaged_copy_in_the_hubs_cache_is_named(server: Server, tmp_path: Path, tiny_paths: EncoderPaths) -> None:
    server.answer = sends(packed(tiny_paths.encoder))
    directory = download("encoder", f"{server.url}/tiny")
    Path(directory, "saved_model.pb").unlink()
    with pytest.raises(DataError, match=rf"encoder={server.url}/tiny: .*remove {directory}"):
        find_encoder(Config(data="-", encoder=f"{server.url}/tiny"))
