"""Vectors of texts by sentence-transformers. Arguments: model folder, threads, tokens kept per text.

A job: {"texts": JSON file, "output": file for the vectors, float32 [N, hidden], "precision": float32 or bfloat16, "rows": of
a batch}. The answer: {"seconds": from texts to vectors}.
"""

from protocol import serve  # type: ignore[import-not-found]  # isort: skip  (before a library prints)

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]


def main(folder: str, threads: int, max_length: int) -> None:
    """Loads the model in both precisions and waits for jobs."""
    torch.set_num_threads(threads)
    models = {precision: SentenceTransformer(folder, device="cpu") for precision in ("float32", "bfloat16")}
    models["bfloat16"].bfloat16()
    for model in models.values():
        model.max_seq_length = max_length

    def encode(job: dict[str, Any]) -> dict[str, Any]:
        texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
        start = time.perf_counter()
        vectors = models[job["precision"]].encode(texts, batch_size=job["rows"], show_progress_bar=False)
        seconds = time.perf_counter() - start
        np.save(job["output"], np.asarray(vectors, dtype=np.float32))
        return {"seconds": seconds}

    serve(encode)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
