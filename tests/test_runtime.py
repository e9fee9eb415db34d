"""runtime.py: Ctrl-C wherever it comes, and what TensorFlow need not say."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import tiny_settings

import runtime
from estimators import BertTransformer
from predict import load_classifier
from spec import EncoderPaths
from train import train


@pytest.fixture(autouse=True)
def python_handles_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_in_c() -> None:
    """As TensorFlow's C++ code does it while a graph is built."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise SystemError("bad argument to internal function") from None


def test_an_interrupt_that_comes_out_as_another_error_is_one_still() -> None:
    with pytest.raises(KeyboardInterrupt), runtime.interruptible():
        interrupted_in_c()


def test_an_interrupt_that_a_library_swallows_counts_at_the_next_chance() -> None:
    def swallowed() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), runtime.interruptible():
        swallowed()
    done = []
    with contextlib.suppress(KeyboardInterrupt), runtime.interruptible():
        swallowed()
        with runtime.interruptible():
            done.append("trained")
    assert done == []


def test_an_error_without_an_interrupt_is_itself() -> None:
    with pytest.raises(SystemError), runtime.interruptible():
        raise SystemError("bad argument to internal function")


def test_an_interrupt_that_was_dealt_with_hides_no_later_error() -> None:
    def saved_after_an_interrupt() -> None:
        with contextlib.suppress(KeyboardInterrupt), runtime.interruptible():
            interrupted_in_c()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk"), runtime.interruptible():
        saved_after_an_interrupt()


def test_a_handler_of_another_program_is_left_alone() -> None:
    calls = []

    def handler(signum: int, frame: FrameType | None) -> None:
        calls.append(signum)

    signal.signal(signal.SIGINT, handler)
    with runtime.interruptible():
        signal.raise_signal(signal.SIGINT)
    assert calls == [signal.SIGINT]


def test_a_training_interrupted_while_its_graph_is_built_is_saved(
    tiny_paths: EncoderPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fitting._train_epochs", lambda *_: interrupted_in_c())
    result: Any = train(tiny_settings(tiny_paths, tmp_path))
    assert result.interrupted
    told = capsys.readouterr().out
    assert "Interrupted after 0 of" in told
    assert "No epoch was finished, so that it cannot be resumed" in told
    assert (result.run_directory / "model" / "saved_model.pb").exists()


def test_several_models_in_one_process_are_no_reason_to_warn(
    tiny_paths: EncoderPaths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = train(tiny_settings(tiny_paths, tmp_path, epochs=1)).run_directory
    for _ in range(6):
        load_classifier(model).predict(["it is good"])
        BertTransformer(model=tiny_paths.encoder, verbose=False).fit_transform(["it is good"])
    assert "retracing" not in caplog.text
