"""Fine-tuning by Hugging Face's Trainer. Arguments: model folder, threads, tokens kept per text.

A job: {"train": JSON file with "texts" and "labels", numbers from 0; "test": JSON file with texts, or null; "output": file for
the logits of the test texts, float32 [N, labels]; "num_labels", "epochs", "seed", "learning_rate", "batch_size"; "settings":
options of TrainingArguments, and "attention": sdpa or eager}. The answer has seconds: "ready", from texts to the first batch;
"first step" of the training; "seconds", the whole training loop; "total", from texts to the trained model.
"""

from protocol import serve  # type: ignore[import-not-found]  # isort: skip  (before a library prints)

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
    set_seed,
)

_SCORE_ROWS = 64


class Clock(TrainerCallback):
    """When the training loop began, finished its first step, and ended."""

    def __init__(self) -> None:
        self.begin = self.first = self.end = 0.0

    def on_train_begin(self, *state: Any, **rest: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *state: Any, **rest: Any) -> None:
        self.end = time.perf_counter()
        self.first = self.first or self.end


def main(folder: str, threads: int, max_length: int) -> None:
    """Loads the tokenizer and waits for jobs."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    collator = DataCollatorWithPadding(tokenizer)

    def encode(texts: list[str]) -> list[dict[str, Any]]:
        ids = tokenizer(texts, truncation=True, max_length=max_length)
        return [dict(zip(ids, row, strict=True)) for row in zip(*ids.values(), strict=True)]

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        train = json.loads(Path(job["train"]).read_text(encoding="utf-8"))
        settings = dict(job["settings"])
        set_seed(job["seed"])
        model = BertForSequenceClassification.from_pretrained(
            folder, num_labels=job["num_labels"], attn_implementation=settings.pop("attention")
        )
        clock = Clock()
        with tempfile.TemporaryDirectory() as output:
            arguments = TrainingArguments(output, **_arguments(job), **settings)
            start = time.perf_counter()
            rows = [row | {"labels": label} for row, label in zip(encode(train["texts"]), train["labels"], strict=True)]
            trainer = Trainer(
                model,
                arguments,
                data_collator=collator,
                train_dataset=rows,
                processing_class=tokenizer,
                callbacks=[clock],
            )
            next(iter(trainer.get_train_dataloader()))
            ready = time.perf_counter() - start
            trainer.train()
            total = time.perf_counter() - start
        if job["test"] is not None:
            texts = json.loads(Path(job["test"]).read_text(encoding="utf-8"))
            np.save(
                job["output"],
                _logits(trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False), encode(texts), collator),
            )
        seconds, first = clock.end - clock.begin, clock.first - clock.begin
        return {"ready": ready, "first step": first, "seconds": seconds, "total": total}

    serve(answer)


def _arguments(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "use_cpu": True,
        "num_train_epochs": job["epochs"],
        "per_device_train_batch_size": job["batch_size"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,  # a share of all steps
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "seed": job["seed"],
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


@torch.inference_mode()  # type: ignore[untyped-decorator,unused-ignore]
def _logits(model: Any, rows: list[dict[str, Any]], collator: Any) -> np.ndarray:
    """Logits in float32, in the order of the rows."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    logits = np.empty((len(rows), model.config.num_labels), np.float32)
    for start in range(0, len(order), _SCORE_ROWS):
        part = order[start : start + _SCORE_ROWS]
        logits[part] = model(**collator([rows[row] for row in part])).logits.float().numpy()
    return logits


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
