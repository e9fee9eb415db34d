"""The TensorFlow this project runs on: Keras 2, a quiet start, devices, precision, seeds.

Every module that uses TensorFlow imports this one first: `hub.KerasLayer` and Model Garden need Keras 2, which TensorFlow
selects once, when it is first imported.
"""

import contextlib
import gc
import os
import re
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

if "tensorflow" in sys.modules and hasattr(sys.modules["tensorflow"].keras, "__version__"):
    raise ImportError(
        "TensorFlow was imported with Keras 3 before hubtune could choose Keras 2: restart Python (in a notebook: "
        "Runtime > Restart), then import hubtune's modules, or set os.environ['TF_USE_LEGACY_KERAS'] = '1', first"
    )
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)

import absl.logging  # noqa: E402
import tensorflow as tf  # noqa: E402  (after the environment above)
import tf_keras  # noqa: E402

from command_line import fail, from_os_error, loaded  # noqa: E402
from config import ConfigError, HubtuneError  # noqa: E402
from native_log import has_nvidia_gpu  # noqa: E402

_BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_STREAMS = 2  # of the work on a CPU
_FLOAT16_GPU_CAPABILITY = (7, 0)  # tensor cores
_BFLOAT16_GPU_CAPABILITY = (8, 0)  # tensor cores that know bfloat16


def set_up_devices() -> str:
    """Lets GPU memory grow on demand and returns the device that training uses, in words."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # a notebook has used the GPU before
            tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
    if has_nvidia_gpu() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print("note: TensorFlow does not see this machine's NVIDIA GPU: install requirements-gpu.txt", file=sys.stderr)
    if _num_cores() > 1 and "TF_NUM_INTRAOP_THREADS" not in os.environ:
        with contextlib.suppress(RuntimeError):  # TensorFlow runs already, with threads as they are
            tf.config.threading.set_inter_op_parallelism_threads(_STREAMS)
            tf.config.threading.set_intra_op_parallelism_threads(_num_cores() // _STREAMS)
    return f"CPU, {os.cpu_count()} cores"


def num_streams() -> int:
    """In how many parts, side by side, the work should be done: 2 on a CPU whose threads `set_up_devices` could divide."""
    threads = tf.config.threading
    divided = threads.get_inter_op_parallelism_threads(), threads.get_intra_op_parallelism_threads()
    return _STREAMS if divided == (_STREAMS, max(1, _num_cores() // _STREAMS)) and not has_gpu() else 1


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def untuned() -> tf.data.Options:
    """Options of `tf.data` pipelines: no autotuning. Its thread sleeps longer and longer, and is waited for in the end: up to
    20 s were seen after a training of a minute."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def forget_earlier_models() -> None:
    """Frees what Keras and Python still hold of models that are out of use: trainings in one process must not add up."""
    tf_keras.backend.clear_session()
    gc.collect()


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def choose_precision(wanted: str, opened: bool) -> str:
    """Turns `auto` into the best precision that this machine has in hardware, and refuses what it lacks.

    An opened encoder computes in any precision. A hub encoder's graph is fixed at float32, so a lower precision reaches it
    only through TensorFlow's graph rewrites: bfloat16 on CPUs, float16 on GPUs. There is none to bfloat16 on GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        available = ["float32", "float16"] if capability >= _FLOAT16_GPU_CAPABILITY else ["float32"]
        if opened and capability >= _BFLOAT16_GPU_CAPABILITY:
            available.append("bfloat16")
    else:
        available = ["float32", "bfloat16"] if _BFLOAT16_CPU_FLAGS & _cpu_flags() else ["float32"]
    if wanted == "auto":
        return available[-1]
    if wanted not in available:
        raise ConfigError(
            f"precision={wanted}: this machine offers {' and '.join(available)}; choose one of them or auto"
        )
    return wanted


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@contextlib.contextmanager
def graph_precision(precision: str) -> Iterator[None]:
    """Functions called inside this context run with TensorFlow's graph rewrite to `precision`."""
    rewrites = {"auto_mixed_precision_onednn_bfloat16": "bfloat16", "auto_mixed_precision": "float16"}
    found = tf.config.optimizer.get_experimental_options()
    before = {option: found.get(option, False) for option in rewrites}
    wanted = {option: precision == target for option, target in rewrites.items()}
    if wanted == before:  # to set an option, be it to what it is, has every function optimised anew
        yield
        return
    tf.config.optimizer.set_experimental_options(wanted)
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options(before)


def traced_once(function: Callable[..., Any], signature: list[Any], autograph: bool = True) -> Any:
    """`function` as a graph for inputs of one signature. TensorFlow counts what shares its code as one function, those of all
    SavedModels too, and would take the fifth model of a process for one that is traced again and again."""
    graph = tf.function(function, input_signature=signature, autograph=autograph)
    graph._omit_frequent_tracing_warning = True  # there is no public way
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps absl's and TensorFlow's remarks on untraced functions and missing configs out of a SavedModel export."""
    logger = tf.get_logger()
    before = logger.level, absl.logging.get_verbosity()
    logger.setLevel("ERROR")
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        absl.logging.set_verbosity(before[1])


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """`quiet`, and what TensorFlow raises when it cannot write is an OSError."""
    try:
        with quiet():
            yield
    except tf.errors.OpError as error:  # a full disk, say
        raise OSError(_without_names(error.message)[-150:]) from error


class _Interrupt:
    """What Ctrl-C does inside `interruptible`."""

    came = False

    def __call__(self, signum: int, frame: Any) -> None:
        self.came = True
        raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside ends in a KeyboardInterrupt, if only at the end, whatever a library makes of it: in TensorFlow's building of
    a graph it became "SystemError: bad argument to internal function", and W&B's start was seen to swallow it. Another
    program's handler stays as it is."""
    before, interrupt = signal.getsignal(signal.SIGINT), _Interrupt()
    if isinstance(before, _Interrupt) and before.came:
        raise KeyboardInterrupt
    ours = before is signal.default_int_handler or isinstance(before, _Interrupt)
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if interrupt.came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupt.came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def mistakes_in_one_line(debug: bool, if_interrupted: str) -> Iterator[None]:
    """Runs a command: a mistake is one line on standard error and an exit code, a traceback only with `debug`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `command_line.before_tensorflow` leaves it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not gc.isenabled():  # as it leaves that
        gc.freeze()  # modules are no garbage, not at the end of the command either
        gc.enable()
    loaded()
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        print(f"\nInterrupted: {if_interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
    except (HubtuneError, OSError, tf.errors.OpError) as error:
        if debug:
            raise
        fail(_explain(error))


def _explain(error: Exception) -> HubtuneError:
    if isinstance(error, HubtuneError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error)
    reason = _without_names(str(error))
    if "No space left" in reason:
        return HubtuneError(f"the disk is full: make room or choose another folder ({reason[:200]})")
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return HubtuneError(f"out of memory: lower batch_size or max_seq_length ({reason[:200]})")
    return HubtuneError(f"TensorFlow stopped: {reason[:200]}; --debug shows where")


def _without_names(message: str) -> str:
    """A message of TensorFlow in one line, without its names of nodes and operations."""
    return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", message).split())


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow."""
    tf_keras.utils.set_random_seed(seed)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def versions() -> dict[str, Any]:
    """The versions that a run's numbers depend on."""
    packages = ("tensorflow", "tensorflow-text", "tensorflow-hub", "tf-models-official", "tf_keras", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
