"""What TensorFlow's C++ code writes past Python: harmless lines go, all others stay."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from native_log import _GPU_DEVICES, has_nvidia_gpu

_NO_GPU = "E external/xla/cuda_platform.cc:51] failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)"
_INT64 = "E tensorflow/core/util/util.cc:131] oneDNN supports DT_INT64 only on platforms with AVX-512. Falling back"
_REAL = "E tensorflow/core/framework/op.cc:7] Could not allocate 4.0GiB"


def start(program: str) -> subprocess.Popen[str]:
    """Runs `program` behind the filter, in a session of its own."""
    begin = "from native_log import filter_native_log\nfilter_native_log()\nimport os, signal, sys, time\n"
    command = [sys.executable, "-c", begin + program]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_harmless_lines_go_and_real_ones_stay_in_their_order() -> None:
    lines = [_INT64, "first", _REAL, _INT64, "last"]
    running = start(f"os.write(2, {chr(10).join(lines).encode()!r})")
    assert running.communicate(timeout=60)[1].splitlines() == ["first", _REAL, "last"]


@pytest.mark.skipif(has_nvidia_gpu(), reason=f"this machine has one of {_GPU_DEVICES}")
def test_that_there_is_no_gpu_is_no_news_on_a_machine_without_one() -> None:
    assert start(f"os.write(2, {_NO_GPU.encode()!r})").communicate(timeout=60)[1] == ""


def test_the_last_words_of_an_aborted_process_come_through() -> None:
    running = start(f"os.write(2, {_REAL.encode()!r})\nos.abort()")
    assert running.communicate(timeout=60)[1].strip() == _REAL
    assert running.returncode == -signal.SIGABRT


def test_pythons_own_errors_go_past_the_filter() -> None:
    running = start(f"print({_INT64!r}, file=sys.stderr); 1 / 0")
    told = running.communicate(timeout=60)[1]
    assert told.startswith(_INT64)
    assert told.endswith("ZeroDivisionError: division by zero\n")


def test_an_interrupt_at_the_terminal_leaves_the_filter_at_work() -> None:
    running = start(
        "signal.signal(signal.SIGINT, lambda *_: os.write(2, b'stopped\\n') and sys.exit(130))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does, to all of the foreground
    assert running.communicate(timeout=60)[1] == "stopped\n"
    assert running.returncode == 130


def test_tensorflow_itself_starts_without_a_word() -> None:
    running = start("import runtime; import tensorflow as tf; tf.config.list_physical_devices('GPU'); tf.ones([2]) + 1")
    assert running.communicate(timeout=120)[1] == ""


def test_a_process_without_standard_error_runs() -> None:
    program = "import os; os.close(2)\nfrom native_log import filter_native_log\nfilter_native_log()\nprint('runs')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "runs\n"
