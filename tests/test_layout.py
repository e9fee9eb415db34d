"""The shape of the project: which module imports which, and what loads when."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from train import Result

ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "native_log": set(),
    "command_line": {"config", "native_log"},
    "runtime": {"command_line", "config", "native_log"},
    "table_sources": {"config"},
    "tables": {"config", "table_sources"},
    "examples": {"config", "tables"},
    "tasks": {"config", "examples", "tables"},
    "splits": {"config", "examples", "tables", "tasks"},
    "imbalance": {"config", "tasks"},
    "run_directory": {"command_line", "config", "spec"},
    "prediction_files": {"config"},
    "spec": {"config"},
    "cache": {"config"},
    "downloads": {"cache", "config"},
    "vocabulary": {"config", "spec"},
    "tensor_files": {"config", "spec"},
    "checkpoints": {"config", "spec", "tensor_files", "vocabulary"},
    "known_encoders": {"spec"},
    "preprocessor": {"runtime", "spec", "vocabulary"},
    "bert": {"cache", "config", "preprocessor", "runtime", "spec"},
    "encoders": {
        "bert",
        "cache",
        "checkpoints",
        "command_line",
        "config",
        "downloads",
        "encoder_checks",
        "known_encoders",
        "native_log",
        "preprocessor",
        "runtime",
        "spec",
        "vocabulary",
    },
    "encoder_checks": {"bert", "config", "data", "runtime", "spec"},
    "data": {"runtime"},
    "optimization": {"runtime"},
    "losses": {"runtime", "tasks"},
    "accumulation": {"runtime"},
    "wandb_callback": {"data", "runtime"},
    "portable": set(),
    "tracking": {"artifacts", "command_line", "config", "portable", "run_directory", "wandb_callback"},
    "artifacts": {"command_line", "config"},
    "dashboard": {"curves", "decision", "examples", "looks", "plots", "results", "tasks"},
    "scoring": {"data", "runtime"},
    "model": {
        "accumulation",
        "bert",
        "config",
        "data",
        "lean_bert",
        "losses",
        "optimization",
        "runtime",
        "spec",
        "tasks",
    },
    "decision": {"examples", "tasks"},
    "calibration": {"config", "decision", "tables", "tasks"},
    "metrics": {"tasks"},
    "results": {"calibration", "decision", "examples", "metrics"},
    "plots": {"metrics"},
    "curves": {"plots"},
    "looks": {"curves", "data", "decision", "examples", "metrics", "plots", "results", "tasks"},
    "report": {"decision", "known_encoders", "looks", "metrics", "plots", "results", "run_directory"},
    "export": {"data", "decision", "model", "runtime", "scoring", "spec", "tasks"},
    "predict": {
        "command_line",
        "config",
        "data",
        "decision",
        "downloads",
        "examples",
        "prediction_files",
        "runtime",
        "scoring",
        "table_sources",
        "tables",
        "tasks",
    },
    "evaluation": {
        "artifacts",
        "command_line",
        "config",
        "dashboard",
        "data",
        "decision",
        "downloads",
        "examples",
        "looks",
        "metrics",
        "predict",
        "prediction_files",
        "report",
        "results",
        "run_directory",
        "runtime",
        "tasks",
        "tracking",
    },
    "callbacks": {"config", "data", "decision", "metrics", "run_directory", "runtime", "scoring", "tasks"},
    "fitting": {
        "callbacks",
        "config",
        "data",
        "imbalance",
        "model",
        "run_directory",
        "runtime",
        "scoring",
        "splits",
    },
    "train": {
        "artifacts",
        "calibration",
        "command_line",
        "config",
        "dashboard",
        "data",
        "decision",
        "encoders",
        "evaluation",
        "export",
        "fitting",
        "imbalance",
        "looks",
        "metrics",
        "model",
        "plots",
        "report",
        "results",
        "run_directory",
        "runtime",
        "scoring",
        "splits",
        "tracking",
        "wandb_callback",
    },
    "bert_classifier": {
        "calibration",
        "config",
        "decision",
        "encoders",
        "examples",
        "export",
        "fitting",
        "imbalance",
        "model",
        "predict",
        "runtime",
        "scoring",
        "splits",
        "tasks",
        "text_inputs",
        "tracking",
        "train",
    },
    "estimators": {"bert_classifier", "features", "keras_wrappers"},
    "feature_cache": set(),
    "feature_encoders": {
        "bert",
        "cache",
        "config",
        "data",
        "encoders",
        "lean_bert",
        "model",
        "runtime",
        "scoring",
        "spec",
        "text_inputs",
    },
    "features": {"data", "feature_cache", "feature_encoders", "scoring", "text_inputs"},
    "issue_finding": {"bert_classifier", "run_directory", "splits", "tasks", "text_inputs"},
    "keras_classifier": {"keras_copies", "keras_inputs", "keras_outputs", "keras_streams", "runtime"},
    "keras_copies": {"runtime"},
    "keras_inputs": {"runtime"},
    "keras_outputs": {"runtime"},
    "keras_streams": {"keras_inputs", "runtime"},
    "keras_wrappers": {"keras_classifier", "keras_copies", "runtime"},
    "label_issues": {
        "command_line",
        "config",
        "decision",
        "examples",
        "issue_finding",
        "metrics",
        "predict",
        "relabelling",
        "review_page",
        "run_directory",
        "runtime",
        "tasks",
        "text_inputs",
    },
    "lean_bert": {"bert", "config", "runtime", "spec"},
    "relabelling": {
        "bert_classifier",
        "config",
        "decision",
        "examples",
        "issue_finding",
        "metrics",
        "review_page",
        "tasks",
    },
    "review_page": {"config", "run_directory", "tables", "tasks"},
    "text_inputs": {"config", "data", "examples", "runtime"},
}


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names & ALLOWED.keys()


def test_imports_run_one_way() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == ALLOWED.keys()
    assert {name: imported(ROOT / f"{name}.py") for name in ALLOWED} == ALLOWED


@pytest.mark.parametrize("module", ["config", "tables", "splits", "encoders"])
def test_options_and_tables_need_no_tensorflow(module: str) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; assert 'tensorflow' not in sys.modules"], cwd=ROOT, check=True
    )


COMMANDS = ["train", "predict", "evaluation", "encoders", "label_issues", "artifacts"]
LOADED = """import gc, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(gc.isenabled(), *sys.modules)"""


def loaded_by(*arguments: str) -> list[str]:
    """What a command leaves loaded, first whether the garbage collector is at work."""
    command = [sys.executable, "-c", LOADED, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_slow(command: str) -> None:
    slow = {"tensorflow", "tf_keras", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "wandb", "tensorflow_hub"}
    assert slow.isdisjoint(loaded_by(f"{command}.py", "--help"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_python_without_the_packages_is_told_in_one_line(command: str) -> None:
    bare = [sys.executable, "-S", f"{command}.py", "--help"]  # -S: without site-packages
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"{command}\.py: this Python, .*, has no pydantic: .*\n", done.stderr)


def test_scoring_a_text_loads_no_more_than_scoring_needs(trained: Result) -> None:
    collector, *loaded = loaded_by("predict.py", "--model", str(trained.run_directory), "it is good")
    assert collector == "True"
    assert {"sklearn", "scipy.stats", "matplotlib", "wandb", "tensorflow_hub", "official"}.isdisjoint(loaded)
    assert ALLOWED["predict"] <= set(loaded)
    assert {"train", "model", "encoders", "calibration"}.isdisjoint(loaded)


def test_tensorflow_imported_with_keras_3_is_told_in_one_sentence() -> None:
    program = "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None)\nimport tensorflow as tf; tf.keras\nimport model"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        "ImportError: TensorFlow was imported with Keras 3 before hubtune could choose Keras 2: restart Python"
        in done.stderr
    )


def test_tensorflow_imported_with_keras_2_is_fine() -> None:
    program = "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'\nimport tensorflow as tf; tf.keras\nimport runtime"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_the_readme_maps_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in ALLOWED if f"{name}.py " not in readme] == []
