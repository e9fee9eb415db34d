"""Handles -> local folders: TF-Hub and other URLs by tensorflow_hub, Kaggle by kagglehub, Hugging Face by huggingface_hub,
W&B by wandb.

Each library keeps and shares its own cache, but W&B's models lie in ours; TensorFlow loads only for a URL.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cache import build_once, cache_directory
from config import DataError

_TRIES = 3
_SILENCE = 20.0  # seconds without a byte, after which a server counts as not answering
_NO_RETRY = {401, 404, 410}
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR}
_HUGGING_FACE = re.compile(r"hf:(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_HUGGING_FACE_FILES = ["*.json", "*.txt", "*.safetensors"]
_KAGGLE = re.compile(
    r"(https?://(www\.)?kaggle\.com/models/)?(?P<name>\w[\w.-]*/[\w.-]+)(/frameworks)?/(?P<framework>tensorflow\d?|keras|other)"
    r"(/variations)?/(?P<variation>[\w.-]+)((/versions)?/(?P<version>\d+))?/?",
    re.IGNORECASE,
)
_WANDB = re.compile(
    r"wandb:(?P<entity>[^/:\s]+)/(?P<project>[^/:\s]+)/(?P<name>[\w.-]+)(:(?P<alias>[^/:\s]+))?", re.ASCII
)
_WANDB_VERSION = re.compile(r"v\d+")
_TF_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*){1,2}/\d+")


def is_handle(source: str) -> bool:
    """Whether `source` is something to download; an existing path of the same spelling goes first."""
    if "://" in source or source.startswith(("hf:", "wandb:")):
        return True
    return not os.path.exists(os.path.expanduser(source)) and bool(
        _TF_HUB.fullmatch(source) or _KAGGLE.fullmatch(source)
    )


def download(key: str, handle: str) -> str:
    """Downloads what a handle names, unless it is cached, and returns the local folder.

    `wandb:entity/project/name[:alias]` is a model that W&B keeps, by default its `latest`. `hf:org/name[@revision]` comes from
    Hugging Face, `owner/model/framework/variation[/version]` and Kaggle's own addresses
    from Kaggle, `owner/name/version` from tfhub.dev, and any URL from there, with TF-Hub's protocol.

    Args:
        key: the option that names the handle, for messages.

    Raises:
        DataError: after three tries it did not come.
    """
    if handle.startswith("wandb:"):
        version = split_wandb(key, handle)
        return _retried(key, handle, lambda: _from_wandb(**version))
    if handle.startswith("hf:"):
        found = _HUGGING_FACE.fullmatch(handle)
        if not found:
            raise DataError(f"{key}={handle}: expected hf:organisation/name or hf:organisation/name@revision")
        return _retried(key, handle, lambda: _from_hugging_face(found["repo"], found["revision"]))
    kaggle = _KAGGLE.fullmatch(handle)
    if kaggle:
        parts = [kaggle["name"], kaggle["framework"], kaggle["variation"], kaggle["version"]]
        return _retried(key, handle, lambda: _from_kaggle("/".join(part for part in parts if part)))
    return _retried(key, handle, lambda: _from_url(handle if "://" in handle else f"https://tfhub.dev/{handle}"))


def split_wandb(key: str, handle: str) -> dict[str, str]:
    """Entity, project, name and alias of "wandb:entity/project/name:alias".

    Raises:
        DataError: it has another form.
    """
    found = _WANDB.fullmatch(handle)
    if not found:
        raise DataError(
            f"{key}={handle}: expected wandb:entity/project/name:alias, as in wandb:team/hubtune/tickets-model:best"
        )
    return {**found.groupdict(), "alias": found["alias"] or "latest"}


def _retried(key: str, handle: str, fetch: Callable[[], str]) -> str:
    print(f"Looking up {handle}", flush=True)
    for attempt in range(1, _TRIES + 1):
        try:
            return fetch()
        except Exception as error:  # the libraries let those of urllib, requests, httpx, tarfile and TensorFlow through
            reason, status = " ".join(str(error).split())[:200] or type(error).__name__, _status(error)
            if getattr(error, "errno", None) in _DISK_ERRORS or "No space left" in reason:
                raise DataError(
                    f"{key}={handle}: cannot be stored ({reason}); make room there, or move the cache"
                ) from error
            if attempt == _TRIES or status in _NO_RETRY or isinstance(error, PermissionError):
                missing = "" if "://" in handle or handle.startswith("hf:") else "no such folder, and as a handle it "
                raise DataError(
                    f"{key}={handle}: {missing}cannot be downloaded ({reason}); {_remedy(handle, status)}"
                ) from error
            print(f"  try {attempt} of {_TRIES} failed ({reason})", flush=True)
            time.sleep(2**attempt / 2)
    raise AssertionError("the last try returns or raises")


def _status(error: Exception) -> int | None:
    """The HTTP status in an error of urllib, requests or httpx."""
    return getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)


def _remedy(handle: str, status: int | None) -> str:
    if handle.startswith("wandb:"):
        return "check entity, project, name and alias, log in with `wandb login`, or give the run directory"
    if handle.startswith("hf:"):
        login = "check the name and the network, log in with `hf auth login` where it is private or gated"
    elif status in {401, 403} or "kaggle" in handle or "://" not in handle:
        login = "check the name and the network, log in to Kaggle (KAGGLE_USERNAME and KAGGLE_KEY), where TF-Hub's models now are"
    else:
        login = "check the address and the network"
    return f"{login}, or give another mirror or a local folder"


def _from_hugging_face(repository: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repository, revision=revision, allow_patterns=_HUGGING_FACE_FILES))


def _from_kaggle(handle: str) -> str:
    import kagglehub

    return str(kagglehub.model_download(handle))


def _from_wandb(entity: str, project: str, name: str, alias: str) -> str:
    """Downloads a version once; a version that is named by its number and is here needs no network."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    def folder(version: str) -> str:
        return os.path.join("wandb", entity, project, f"{name}-{version}")

    if _WANDB_VERSION.fullmatch(alias) and (cache_directory() / folder(alias)).is_dir():
        return str(cache_directory() / folder(alias))
    if wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise PermissionError("nobody is logged in to W&B here, or WANDB_MODE is offline")
    artifact = wandb.Api(timeout=int(_SILENCE)).artifact(f"{entity}/{project}/{name}:{alias}", type="model")

    def fetch(directory: str) -> None:
        artifact.download(root=directory, skip_cache=True)
        artifact.verify(root=directory)

    return build_once(folder(artifact.version), fetch)


def _from_url(url: str) -> str:
    """Downloads and unpacks as tensorflow_hub does: into $TFHUB_CACHE_DIR, here by default a part of the cache."""
    os.environ.setdefault("TFHUB_CACHE_DIR", str(cache_directory() / "tfhub"))
    if sys.stdout.isatty():
        os.environ.setdefault("TFHUB_DOWNLOAD_PROGRESS", "1")
    _remove_locks_of_the_dead(Path(os.environ["TFHUB_CACHE_DIR"]))
    import tensorflow_hub as hub

    with _impatient():
        return str(hub.resolve(url))


def _remove_locks_of_the_dead(directory: Path) -> None:
    """Removes what killed downloads of this machine left; tensorflow_hub would wait for them for ten minutes."""
    for lock in directory.glob("*.lock"):
        with contextlib.suppress(OSError, ValueError):
            host, process, task = lock.read_text(encoding="utf-8").rsplit(".", 2)
            if host == socket.gethostname() and _is_dead(int(process)):
                shutil.rmtree(f"{str(lock).removesuffix('.lock')}.{task}.tmp", ignore_errors=True)
                lock.unlink()


def _is_dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        pass
    return False


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Sockets opened in here give up on a server that is silent; by default they wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
