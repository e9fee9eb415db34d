"""The notebooks: clean in git, the same first cell in each, and every cell runs."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from reference.checkpoints import write_checkpoint

from notebooks import start
from spec import EncoderPaths

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {  # what goes after the cell of parameters, beside an encoder and a folder for the output
    "01_fine_tune_bert": "OPTIONS = {'encoder': ENCODER, 'max_seq_length': 64, 'epochs': 1, 'precision': 'float32'}",
    "02_sentence_encoder_in_keras": "EPOCHS = 1",
    "03_scikit_learn_and_label_errors": "GRID, CV, SEEDS, EPOCHS = {'batch_size': [32], 'epochs': [1]}, 2, [0], 1",
    "04_bert_features_in_scikit_learn": "POOLINGS, MAX_SEQ_LENGTH = ['cls'], 48",
    "05_hugging_face_checkpoint": "CHECKPOINT, EPOCHS = CHECKPOINT_FOLDER, 1",
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def run(notebook: Any) -> Any:
    """Executes all cells, in a Python of their own, as a reader of `notebooks/` does."""
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}})
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return client.execute(env=environment)  # under pytest ipykernel would hide what C++ code writes


@each_notebook
def test_runs_from_top_to_bottom_without_warnings(path: Path, tiny_paths: EncoderPaths, tmp_path: Path) -> None:
    notebook = read(path)
    parameters = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    write_checkpoint("bert-cased", tmp_path / "checkpoint")
    paths = {
        "ENCODER": tiny_paths.encoder,
        "OUTPUT_DIR": tmp_path / "runs",
        "CHECKPOINT_FOLDER": tmp_path / "checkpoint",
    }
    small = "".join(f"{name} = {str(value)!r}\n" for name, value in paths.items()) + SMALL[path.stem]
    notebook.cells.insert(parameters + 1, nbformat.v4.new_code_cell(small))  # type: ignore[no-untyped-call]
    outputs = [output for cell in run(notebook).cells for output in cell.get("outputs", [])]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.findall(r".*Warning.*|^WARNING.*|^\S+ \S+ E .*", told, re.MULTILINE) == []
    assert any({"image/png", "text/html"} & output.get("data", {}).keys() for output in outputs)


@each_notebook
def test_is_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []


@each_notebook
def test_opens_itself_in_colab_and_sets_up_as_the_others_do(path: Path) -> None:
    cells = read(path).cells
    assert f"colab.research.google.com/github/hubtune/hubtune/blob/main/notebooks/{path.name})" in cells[0].source
    assert cells[1].source == read(NOTEBOOKS[0]).cells[1].source


def test_the_readme_links_every_notebook() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"blob/main/notebooks/{path.name})" not in readme] == []


# What the first cell does where something is missing


@pytest.fixture
def colab(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As in Colab: what is installed and whether Python restarts comes back as a list of words."""
    done: list[str] = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: done.append(Path(command[-1]).name))
    kernel = types.SimpleNamespace(do_shutdown=lambda restart: done.append(f"restart {restart}"))
    monkeypatch.setattr("IPython.get_ipython", lambda: types.SimpleNamespace(kernel=kernel))
    return done


def test_colab_gets_the_lock_and_a_restart(
    colab: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "_installed", lambda name: "0.1")
    start.ready()
    assert [word for word in colab if "gpu" not in word] == ["requirements.txt", "restart True"]
    assert "run this cell once more" in capsys.readouterr().out


def test_colab_restarts_where_keras_3_is_loaded(colab: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    keras_3 = types.SimpleNamespace(keras=types.SimpleNamespace(__version__="3.11.0"))
    monkeypatch.setitem(sys.modules, "tensorflow", keras_3)
    start.ready()
    assert colab == ["restart True"]


def test_a_set_up_colab_neither_installs_nor_restarts(colab: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    start.ready()
    assert colab == []
    assert capsys.readouterr().out.startswith("Ready: TensorFlow 2.20")


def test_elsewhere_missing_packages_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_installed", lambda name: None)
    with pytest.raises(
        RuntimeError, match=r"lacks cleanlab 2\.9\.0, .*choose .*\.venv as its kernel, after `make train`"
    ):
        start.ready()


def test_a_cell_that_has_loaded_keras_3_is_told_to_restart() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport tensorflow as tf; tf.keras.layers\n"
    program += "from notebooks.start import ready\nready()"
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert "imported with Keras 3, which hub layers cannot use: restart the kernel" in done.stderr
