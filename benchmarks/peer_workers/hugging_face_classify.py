"""Scoring by Hugging Face's BertForSequenceClassification. Arguments: model folder (settings and tokenizer), .npz file with the
weights by their names in the model, threads, tokens kept per text.

A job: {"texts": JSON file, "precision": float32 or bfloat16, "rows": of a batch, "way": pipeline, sorted pipeline, or sorted
loop, "output": file for the probabilities, float32 [N, labels]}. The answer: {"seconds": from texts to probabilities}. With
"way" single the texts go to the pipeline one by one, and "seconds" is a list.
"""

from protocol import serve  # type: ignore[import-not-found]  # isort: skip  (before a library prints)

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoConfig,
    AutoTokenizer,
    BertForSequenceClassification,
    logging,
    pipeline,
)

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(folder: str, weights: str, threads: int, max_length: int) -> None:
    """Loads the model in both precisions and waits for jobs."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = {precision: load(folder, weights).to(kind) for precision, kind in _PRECISIONS.items()}
    options = {"tokenizer": tokenizer, "device": "cpu", "top_k": None}
    pipelines = {name: pipeline("text-classification", model=model, **options) for name, model in models.items()}
    cut = {"truncation": True, "max_length": max_length}

    def by_pipeline(texts: list[str], job: dict[str, Any]) -> np.ndarray:
        answers = pipelines[job["precision"]](texts, batch_size=job["rows"], **cut)
        names = models[job["precision"]].config.id2label.values()
        scores = [{each["label"]: each["score"] for each in answer} for answer in answers]
        return np.array([[score[name] for name in names] for score in scores], np.float32)

    @torch.inference_mode()  # type: ignore[untyped-decorator,unused-ignore]
    def by_loop(texts: list[str], job: dict[str, Any]) -> np.ndarray:
        model, parts = models[job["precision"]], []
        for start in range(0, len(texts), job["rows"]):
            batch = tokenizer(texts[start : start + job["rows"]], padding=True, return_tensors="pt", **cut)
            logits = model(**batch).logits.float()
            parts.append(logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1))
        return torch.cat(parts).numpy()

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
        if job["way"] == "single":
            return {"seconds": [_timed(lambda text=text: by_pipeline([text], {"rows": 1} | job)) for text in texts]}
        start = time.perf_counter()
        order = (
            sorted(range(len(texts)), key=lambda row: -len(texts[row])) if "sorted" in job["way"] else range(len(texts))
        )
        score = by_loop if job["way"].endswith("loop") else by_pipeline
        scored = score([texts[row] for row in order], job)
        probabilities = np.empty_like(scored)
        probabilities[list(order)] = scored
        seconds = time.perf_counter() - start
        np.save(job["output"], probabilities)
        return {"seconds": seconds}

    serve(answer)


def load(folder: str, weights: str) -> Any:
    """The model with the given weights, all of which it must have."""
    with np.load(weights) as tensors:
        state = {name: torch.from_numpy(tensors[name]) for name in tensors.files}
    config = AutoConfig.from_pretrained(folder, num_labels=len(state["classifier.bias"]))
    model = BertForSequenceClassification(config)
    model.load_state_dict(state)
    return model.eval()


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
