"""How time and memory grow: scoring a table, and training, at growing numbers of rows and tokens.

    python -m benchmarks.bench_scale --output scale

Every figure is of a process of its own: seconds of the command, and the most resident memory that it has had. Scoring, and
training by rows, use a random BERT of 2 layers that is 32 wide, made on the fly, or `--encoder`: it leaves what is this
project's own, reading, tokenising, batches and writing, which must not grow beyond what is told. Texts are questions,
repeated and numbered, so that no two are equal. Training by tokens uses the embedded encoder on long reviews, cut at several
lengths. Seconds of training are of its loop, with the trace of the graph; a line is fitted through them.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.peers import markdown, parse, parser, read_table, run, weights_folder
from config import HubtuneError

_ROOT = Path(__file__).parents[1]
_COLUMNS = ("--text_column", "text", "--label_column", "label")
_MIB = 1 << 20


# Processes


def measure(*arguments: str | Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of a command of this project.

    Raises:
        HubtuneError: the command fails.
    """
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        command = [sys.executable, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise HubtuneError(f"{arguments[0]} failed: {errors.read().decode(errors='replace').strip()[-200:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trained(folder: Path, name: str, table: Path, *options: str) -> tuple[Path, dict[str, Any], int]:
    """Trains one epoch without validation rows; its run directory, the "train" part of metrics.json, and peak bytes."""
    shared = ["--valid_split", "0", "--epochs", "1", "--wandb_mode", "disabled"]
    placed = ["--output_dir", str(folder), "--run_name", name]
    _, peak = measure("train.py", "--data", table, *_COLUMNS, *shared, *placed, *options)
    metrics = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
    return folder / name, metrics["train"], peak


def make_encoder(directory: str) -> None:
    """Writes a random BERT of 2 layers, 32 wide, with the vocabulary of the embedded encoder."""
    import runtime
    from bert import build_bert, export_bert
    from known_encoders import standard_bert
    from vocabulary import read_vocab

    runtime.set_seed(0)
    vocab = read_vocab(str(weights_folder() / "vocab.txt"))
    spec = standard_bert("tiny", 2, 32, len(vocab), cased=False, num_heads=2)
    weights = [(variable.name.removesuffix(":0"), variable.numpy()) for variable in build_bert(spec).variables]
    export_bert(directory, spec, vocab, weights)


def write_rows(file: Path, rows: int, table: str, text_column: str, label_column: str | None) -> Path:
    """The first rows of a table of the real data, repeated as often as it takes and numbered."""
    frame = read_table(table, rows)
    texts = frame[text_column].tolist()
    labels = frame[label_column].tolist() if label_column else [""]
    repeated = zip(itertools.cycle(texts), itertools.cycle(labels), range(rows), strict=False)
    lines = ((f"{number} {text}", label) for text, label, number in repeated)
    with file.open("w", newline="", encoding="utf-8") as stream:
        for part in iter(lambda: list(itertools.islice(lines, 1 << 16)), []):
            pd.DataFrame(part, columns=["text", "label"]).to_csv(stream, index=False, header=stream.tell() == 0)
    return file


# Figures


def by_rows(folder: Path, encoder: str, sizes: list[int]) -> list[dict[str, Any]]:
    """Scores, and trains on, tables of so many rows."""
    small = write_rows(folder / "small.csv", 1000, "quora_train.csv", "question_text", "target")
    model, _, _ = trained(folder, "small", small, "--encoder", encoder)
    lines = []
    for rows in sizes:
        table = write_rows(folder / "table.csv", rows, "quora_unlabelled.csv.gz", "question_text", None)
        output = folder / "scored.csv"
        seconds, peak = measure("predict.py", "--model", model, "--data", table, *_COLUMNS[:2], "--output", output)
        output.unlink()
        lines.append({"command": "predict.py", "rows": rows, "seconds": seconds, "peak MiB": peak / _MIB})
    for rows in sizes:
        table = write_rows(folder / "table.csv", rows, "quora_train.csv", "question_text", "target")
        options = ("--encoder", encoder, "--batch_size", "256")
        _, figures, peak = trained(folder, f"train-{rows}", table, *options)
        tokens = round(figures["tokens_per_second"] * figures["seconds"])
        lines.append(
            {
                "command": "train.py",
                "rows": rows,
                "seconds": figures["seconds"],
                "peak MiB": peak / _MIB,
                "tokens": tokens,
            }
        )
    return lines


def by_tokens(folder: Path, sizes: list[int], lengths: list[int]) -> list[dict[str, Any]]:
    """Trains the embedded encoder on so many reviews of so many tokens."""
    lines = []
    for rows, length in itertools.product(sizes, lengths):
        table = write_rows(folder / "reviews.csv", rows, "imdb_train.csv", "review", "sentiment")
        _, figures, peak = trained(folder, f"reviews-{rows}-{length}", table, "--max_seq_length", str(length))
        tokens = round(figures["tokens_per_second"] * figures["seconds"])
        lines.append(
            {
                "rows": rows,
                "max_seq_length": length,
                "tokens": tokens,
                "seconds": figures["seconds"],
                "peak MiB": peak / _MIB,
            }
        )
    return lines


def fit(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Slope, intercept and r^2 of a line through the points."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.array(y) - (slope * np.array(x) + intercept)
    return float(slope), float(intercept), float(1 - rest.var() / np.var(y))


def fitted(rows: list[dict[str, Any]], tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a row or a token more costs."""
    lines = []
    for command in ("predict.py", "train.py"):
        part = [line for line in rows if line["command"] == command]
        counts = [line["rows"] for line in part]
        for what, unit, scale in (("seconds", "µs a row", 1e6), ("peak MiB", "bytes a row", _MIB)):
            slope, start, r2 = fit(counts, [line[what] for line in part])
            lines.append(
                {"line": f"{command}, {what} by rows", "slope": slope * scale, "unit": unit, "at 0": start, "r^2": r2}
            )
    slope, start, r2 = fit([line["tokens"] for line in tokens], [line["seconds"] for line in tokens])
    return [
        *lines,
        {"line": "training, seconds by tokens", "slope": slope * 1e6, "unit": "µs a token", "at 0": start, "r^2": r2},
    ]


def draw(rows: list[dict[str, Any]], tokens: list[dict[str, Any]], file: Path) -> None:
    """Seconds by tokens, and memory by rows."""
    from matplotlib.figure import Figure

    from plots import Plot, styled

    @styled
    def make() -> Figure:
        figure = Figure((9, 3.8))
        left, right = figure.subplots(1, 2)
        x, y = ([line[key] for line in tokens] for key in ("tokens", "seconds"))
        slope, start, r2 = fit(x, y)
        for length in sorted({line["max_seq_length"] for line in tokens}):
            part = [line for line in tokens if line["max_seq_length"] == length]
            left.plot([p["tokens"] for p in part], [p["seconds"] for p in part], "o", label=f"{length} tokens a text")
        ends = np.array([0, max(x)])
        label = f"{slope * 1e6:.3g} µs a token + {start:.2g} s, r² {r2:.4f}"
        left.plot(ends, slope * ends + start, "-", color="0.45", label=label)
        left.set(
            title="An epoch of the embedded encoder", xlabel="tokens of the epoch", ylabel="seconds", ylim=(0, None)
        )
        for command in ("predict.py", "train.py"):
            part = [line for line in rows if line["command"] == command]
            right.plot([p["rows"] for p in part], [p["peak MiB"] for p in part], "o-", label=command)
        right.set(title="Peak memory of the command", xlabel="rows of the table", ylabel="MiB", ylim=(0, None))
        for axes in (left, right):
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.locator_params("x", nbins=5)
            axes.legend()
        return figure

    file.write_bytes(Plot("scale", "Growth", "seconds by tokens, memory by rows", make()).png)


# The command


def read_options() -> argparse.Namespace:
    """Reads the command line."""
    options = parser("bench_scale", __doc__.split("\n")[0], repeats=1)
    options.add_argument("--output", type=Path, required=True, help="folder for scale.png and scale.json")
    options.add_argument("--encoder", help="for the growth by rows [a random one, 2 layers, 32 wide]")
    sizes = [10_000, 100_000, 1_000_000]
    options.add_argument("--rows", type=int, nargs="+", default=sizes, help="of the tables [10000 100000 1000000]")
    options.add_argument(
        "--train-rows", type=int, nargs="+", default=[500, 1000, 2000, 4000], help="reviews [500 to 4000]"
    )
    options.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128], help="tokens of a review [32 64 128]")
    return parse(options, needs_peer=False)


def main() -> None:
    """Runs the command."""
    given = read_options()
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = given.encoder
        if encoder is None:  # by another process: a child's peak memory is never told as less than its parent's
            encoder = str(folder / "tiny")
            measure("-c", f"from benchmarks.bench_scale import make_encoder; make_encoder({encoder!r})")
        rows = by_rows(folder, encoder, given.rows)
        print(markdown([{"command": "", "rows": "", "tokens": "", **line} for line in rows]), end="\n\n", flush=True)
        tokens = by_tokens(folder, given.train_rows, given.lengths)
    print(markdown(tokens), end="\n\n")
    lines = fitted(rows, tokens)
    print(markdown(lines))
    (given.output / "scale.json").write_text(
        json.dumps({"rows": rows, "tokens": tokens, "lines": lines}, indent=2) + "\n"
    )
    draw(rows, tokens, given.output / "scale.png")


if __name__ == "__main__":
    run(main)
