"""What a dashboard shows of scores and data, from the same numbers as report.html: charts, tables and pictures for W&B."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wandb

from curves import Curve, precision_recall_curves, roc_curves, thin
from decision import Decision, predictions_table
from examples import Examples
from looks import label_counts, word_lengths
from plots import Plot
from results import Scored
from tasks import Task

_MOST_ROWS = 10_000  # of a table; dashboards are slow beyond
_CURVE_POINTS = 200
_HEAD = 100  # rows of the training table that are shown


def scores(decision: Decision, scored: dict[str, Scored], texts: bool) -> dict[str, Any]:
    """Charts and tables of each part, as in "test/confusion_matrix"; without `texts` rows are named by their number alone."""
    return {
        f"{name}/{title}": panel
        for name, part in scored.items()
        for title, panel in _panels(decision, part, texts).items()
    }


def _panels(decision: Decision, part: Scored, texts: bool) -> dict[str, Any]:
    task, first = decision.task, 1 if decision.task.kind == "binary" else 0
    columns = task.labels[first:], task.indicators(part.targets)[:, first:], part.probabilities[:, first:]
    panels = {
        "precision_recall": _curves(precision_recall_curves(*columns), "recall", "precision"),
        "roc": _curves(roc_curves(*columns), "false positive rate", "true positive rate"),
        "by_label": _by_label(decision, part),
        "rows": wandb.Table(dataframe=_rows(decision, part, texts)),
    }
    if "confusion_matrix" in part.values and len(task.labels) ** 2 <= _MOST_ROWS:
        panels["confusion_matrix"] = _confusion(task.labels, part.values["confusion_matrix"])
    return panels


def _curves(curves: list[Curve], x: str, y: str) -> Any:
    """A chart in which dashboards lay the curves of several runs over each other."""
    most = min(_CURVE_POINTS, _MOST_ROWS // max(len(curves), 1))
    points = [
        pd.DataFrame(dict(zip((x, y), thin(curve.x, curve.y, most), strict=True))).assign(**{"class": curve.label})
        for curve in curves
    ]
    return wandb.plot_table(
        "wandb/area-under-curve/v0",
        wandb.Table(dataframe=pd.concat([pd.DataFrame(columns=[x, y, "class"]), *points])),
        {"x": x, "y": y, "class": "class"},
        {"title": f"{y} by {x}", "x-axis-title": x, "y-axis-title": y},
    )


def _confusion(labels: list[str], matrix: list[list[int]]) -> Any:
    table = pd.DataFrame(matrix, index=labels, columns=labels).stack().reset_index()
    table.columns = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(dataframe=table),
        {column: column for column in table.columns},
        {"title": "rows by true and by predicted label"},
    )


def _by_label(decision: Decision, part: Scored) -> wandb.Table:
    thresholds = decision.named_thresholds()
    frame = pd.DataFrame.from_dict(part.values["by_label"], orient="index")
    if isinstance(thresholds, dict):
        frame["threshold"] = pd.Series(thresholds)
    return wandb.Table(dataframe=frame.rename_axis("label").reset_index())


def _rows(decision: Decision, part: Scored, texts: bool) -> pd.DataFrame:
    """Row number, label, prediction and probabilities; of more rows than a dashboard bears, evenly spaced ones."""
    examples = part.examples
    columns: dict[str, Any] = {"row": examples.rows}
    if texts:
        columns |= _texts(examples)
    columns["label"] = [decision.task.separator.join(labels) for labels in examples.labels]
    predicted = predictions_table(decision, part.probabilities)
    table = pd.concat([pd.DataFrame(columns), predicted], axis=1)
    return table.iloc[:: math.ceil(len(table) / _MOST_ROWS)]


def _texts(examples: Examples) -> dict[str, list[str]]:
    return {"text": examples.texts} | ({} if examples.pairs is None else {"second text": examples.pairs})


def data_looks(task: Task, parts: dict[str, Examples], texts: bool) -> dict[str, Any]:
    """Tables of what the data is: rows, labels and lengths of each part; with `texts` also the first rows."""
    table = pd.DataFrame([_part(name, part) for name, part in parts.items()])
    looks = {"data/parts": wandb.Table(dataframe=table)}
    looks["data/labels"] = wandb.Table(dataframe=pd.DataFrame({"label": task.labels, **label_counts(task, parts)}))
    if texts:
        head = parts["train"].take(range(min(_HEAD, len(parts["train"]))))
        labels = [task.separator.join(row) for row in head.labels]
        looks["data/head"] = wandb.Table(dataframe=pd.DataFrame({"row": head.rows, **_texts(head), "label": labels}))
    return looks


def _part(name: str, part: Examples) -> dict[str, Any]:
    told: dict[str, Any] = {"part": name, "table": Path(part.source).name, "rows": len(part)}
    for unit, values in word_lengths(part).items():
        told |= {f"mean {unit}": float(np.mean(values)), f"longest, {unit}": int(np.max(values))}
    return told


def pictures(directory: Path, plots: list[Plot]) -> dict[str, Any]:
    """The report's plots, which lie in `directory`/plots."""
    return {
        f"plots/{plot.name}": wandb.Image(str(directory / "plots" / f"{plot.name}.png"), caption=plot.alt)
        for plot in plots
    }
