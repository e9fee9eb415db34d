"""The matrix rates of the machine, in a process whose threads are TensorFlow's own choice. It runs in the project's environment.

A job: {"training": whether the shapes of the gradients count too}. The answer: operations a second by precision.
"""

from protocol import serve  # type: ignore[import-not-found]  # isort: skip  (before a library prints)

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.limit import default_spec, matrix_rates

if __name__ == "__main__":
    serve(lambda job: matrix_rates(default_spec(), job["training"]))
