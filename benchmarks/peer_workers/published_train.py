"""Training as the published recipe does. It runs in the project's own environment.

A job: {"train": JSON file of "texts" and "labels", which are positions, "test": JSON file of texts or null, "output": file for
the scores of the test texts, float32 [M, K], [M, 1] of two labels, "num_labels", "epochs", "seed"}. The answer: seconds until
the first batch is "ready", of the "first step", of the training, "seconds", and in "total".
"""

from protocol import serve  # type: ignore[import-not-found]  # isort: skip  (before a library prints)

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import runtime
from benchmarks import published_recipe
from benchmarks.clock import clocked
from encoders import default_encoder


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Trains once, and scores the test texts if there are any."""
    runtime.forget_earlier_models()
    runtime.set_seed(job["seed"])
    rows = json.loads(Path(job["train"]).read_text(encoding="utf-8"))
    encoder, tokenizer = published_recipe.load_encoder(default_encoder())
    start = time.perf_counter()
    batches = published_recipe.make_dataset(rows["texts"], np.array(rows["labels"]), tokenizer, training=True)
    next(iter(batches))
    ready = time.perf_counter() - start
    model = published_recipe.build_model(encoder, job["num_labels"])
    with clocked(model) as clock:
        model.fit(batches, epochs=job["epochs"], verbose=0, callbacks=[])
    seconds = clock() | {"ready": ready, "total": time.perf_counter() - start}
    if job["test"] is not None:
        texts = json.loads(Path(job["test"]).read_text(encoding="utf-8"))
        labels = np.arange(len(texts)) % job["num_labels"]  # the recipe's features need some
        test = published_recipe.make_dataset(texts, labels, tokenizer, training=False)
        np.save(job["output"], model.predict(test, verbose=0))
    return seconds


if __name__ == "__main__":
    serve(train)
