"""How a worker talks: "ready", then a JSON answer for each JSON job. Import it first: what libraries print goes to stderr."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

_ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers jobs until there are no more."""
    print("ready", file=_ANSWERS)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=_ANSWERS)
