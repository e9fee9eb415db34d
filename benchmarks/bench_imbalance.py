"""What each tool against class imbalance buys: average precision, and F1 at 0.5 and at the best threshold.

    python -m benchmarks.bench_imbalance --data quora_train.csv --test_data quora_test.csv \\
        --text_column question_text --label_column target --epochs 2 --tool oversampling --seed 1 --results imbalance.jsonl
    python -m benchmarks.bench_imbalance --results imbalance.jsonl

The first form trains once and appends a line to the results, the second prints the table of them. All runs of a seed share
their rows. The model is calibrated and its threshold has the best F1 on the validation rows; every figure is of the test
rows. A multi-label task has a threshold for each label, and means over the labels.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.peers import run
from command_line import CommandParser
from config import Config, DataError, make_config

TOOLS: dict[str, dict[str, Any]] = {
    "none": {},
    "class_weight": {"class_weight": "balanced"},
    "oversampling": {"oversampling": 0.25},
}


def measure(config: Config, tool: str) -> dict[str, float | str]:
    """Trains once and scores the test rows.

    Raises:
        DataError: the task is neither binary nor multi-label.
    """
    from train import train

    report = train(config).metrics
    test, f1 = report.get("test", {}), "f1" if report["task"] == "binary" else "macro_f1"
    if "at_half" not in test or "valid" not in report:
        raise DataError(
            f"{config.data}: the benchmark is for binary and multi-label tasks with validation and test rows"
        )
    thresholds = report["threshold"]
    return {
        "tool": tool,
        "seed": config.seed,
        "average_precision": test["average_precision"],
        "f1 at 0.5": test["at_half"][f1],
        "f1 at threshold": test[f1],
        "threshold": thresholds if isinstance(thresholds, float) else sum(thresholds.values()) / len(thresholds),
        "test loss": test["loss"],
        "loss at start": report["train"]["loss_at_start"],
    }


def table(results: Path) -> str:
    """Mean and standard deviation over the seeds, a line per tool."""
    frame = pd.DataFrame(map(json.loads, results.read_text().splitlines())).drop(columns="seed")
    groups = frame.groupby("tool")
    cells = groups.mean().map("{:.4f}".format) + groups.std().map(" ± {:.4f}".format).replace(" ± nan", "")
    cells.insert(0, "seeds", groups.size().astype(str))
    lines = [["tool", *cells.columns], ["---"] * (len(cells.columns) + 1)]
    lines += [[tool, *cells.loc[tool]] for tool in TOOLS if tool in cells.index]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Runs the command."""
    parser = CommandParser(prog="python -m benchmarks.bench_imbalance", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="JSONL file of the runs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--tool", choices=TOOLS, help="train with this tool")
    tables = ("data", "valid_data", "test_data", "text_column", "label_column", "label_separator")
    for key in (*tables, "train_split", "valid_split", "epochs", "seed"):
        parser.add_argument(f"--{key}", help="as in train.py")
    values = vars(parser.parse_args())
    results, tool, _ = values.pop("results"), values.pop("tool"), values.pop("debug")
    if tool is None:
        if not results.exists():
            raise DataError(f"{results}: no such file; run with --tool first")
        print(table(results))
        return
    with tempfile.TemporaryDirectory() as output:
        config = make_config(values | TOOLS[tool] | {"output_dir": output, "wandb_mode": "disabled"})
        line = json.dumps(measure(config, tool))
    with results.open("a") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    run(main)
