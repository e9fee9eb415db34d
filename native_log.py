"""TensorFlow's C++ log on its way to the terminal, less the lines that are known to mean nothing. Imports no TensorFlow.

TensorFlow writes to file descriptor 2, past Python. A process of its own reads that and passes on everything else, so that
what TensorFlow says before it aborts or is killed still comes through.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

_HARMLESS = [
    rb"util\.cc:\d+\] oneDNN supports DT_INT64 only on platforms with AVX-512",
    rb"loop_optimizer\.cc:\d+\] Skipping loop optimization for Merge node with control input",
    rb"layout failed: INVALID_ARGUMENT: Size of values 0 does not match size of permutation",
    rb"Unable to register cu(DNN|FFT|BLAS) factory",
    rb"computation placer already registered",
    rb"All log messages before absl::InitializeLog\(\) is called are written to STDERR",
]
_NO_GPU = rb"failed call to cuInit"  # harmless on a machine without one, and the reason to look for on others
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # Linux, Windows' subsystem for it


def has_nvidia_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU with a driver, whatever TensorFlow makes of it."""
    return any(Path(device).exists() for device in _GPU_DEVICES)


def filter_native_log() -> None:
    """Puts the filter between file descriptor 2 and where it leads; Python's own `sys.stderr`, and a notebook's, go past it.

    To be called once, before TensorFlow is imported. Without a standard error nothing happens.
    """
    try:
        destination = os.dup(2)
    except OSError:
        return
    # In a session of its own, where Ctrl-C does not reach it: it ends when all that write to it have ended.
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=destination,
        start_new_session=True,
    )
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    reader.returncode = 0  # nobody waits for it, which Python would remark on
    if sys.stderr is sys.__stderr__:
        sys.stderr = os.fdopen(destination, "w", buffering=1, errors="backslashreplace")


def _pass_on() -> None:
    harmless = re.compile(b"|".join(_HARMLESS if has_nvidia_gpu() else [*_HARMLESS, _NO_GPU]))
    for line in sys.stdin.buffer:
        if not harmless.search(line):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    _pass_on()
