"""The command line: options in before TensorFlow loads, mistakes out in one line. Imports no TensorFlow."""

import argparse
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar


def _refuse_other_python() -> None:
    """Ends a command in one line where the Python that runs it lacks the project's packages."""
    root, script = Path(__file__).resolve().parent, Path(sys.argv[0])
    missing = [name for name in ("pydantic", "yaml", "tensorflow") if importlib.util.find_spec(name) is None]
    if missing and script.resolve().parent == root:
        own = root / ".venv" / "bin" / "python"
        remedy = f"run it by {own}" if own.exists() else f"`make train` in {root} sets one up that has"
        sys.exit(f"{script.name}: this Python, {sys.executable}, has no {missing[0]}: {remedy}")


_refuse_other_python()

import yaml  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from config import (  # noqa: E402
    SECTIONS,
    Config,
    ConfigError,
    HubtuneError,
    did_you_mean,
    make_config,
    read_yaml,
    resume_config,
)
from native_log import filter_native_log  # noqa: E402

Parsed = TypeVar("Parsed")
_LOADING = "Loading TensorFlow ..."
_NOTHING = ("null", "None")  # YAML's, and what the agents of W&B's sweeps write


class CommandParser(argparse.ArgumentParser):
    """argparse, but a mistake is a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse_command_line(arguments: list[str]) -> tuple[Config, bool]:
    """Reads train.py's options, as `read_options` does.

    Returns:
        The Config, and whether `--debug` was given.

    Raises:
        ConfigError, DataError: as `read_options`.
    """
    parser = options_parser("train.py", "Fine-tunes a BERT text classifier on a table.")
    config, given = read_options(parser, arguments)
    return config, given.debug


def options_parser(prog: str, description: str) -> CommandParser:
    """A parser of all keys of `Config`, `--config` and `--debug`, to which a command adds its own options."""
    parser = CommandParser(
        prog=prog,
        description=description,
        usage="%(prog)s [--config FILE.yaml] [--data FILE] [--option VALUE ...]",
        allow_abbrev=False,
        formatter_class=_help_formatter,
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="read options from a YAML file; the command line beats it"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for name, field in Config.model_fields.items():
        if name in SECTIONS:
            section = parser.add_argument_group(SECTIONS[name])
        optional_value: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        section.add_argument(
            f"--{name}",
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{field.description} [{default_text(field)}]".replace("%", "%%"),
            **optional_value,
        )
    return parser


def default_text(field: FieldInfo) -> str:
    """An option's default as YAML writes it, or "required"."""
    if field.is_required():
        return "required"
    return yaml.safe_dump(field.default, default_flow_style=True).removesuffix("\n...\n").strip()


def read_options(
    parser: CommandParser, arguments: list[str], beside_resume: str = "wandb_mode"
) -> tuple[Config, argparse.Namespace]:
    """Reads `--config FILE.yaml` and `--key value` or `--key=value`; the command line beats YAML, YAML beats defaults. With
    `--resume` all keys are the run's own, but the one that may stand beside it.

    Returns:
        The Config, and all other options.

    Raises:
        ConfigError: an unknown key, a bad value, an unreadable config file, or another key beside `--resume`.
        DataError: `--resume` names no run directory.
    """
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        guess = f": did you mean --data {unknown[0]}?" if Path(unknown[0]).exists() else did_you_mean(key, "--")
        raise ConfigError(f"unknown argument {unknown[0]!r}{guess}")
    given = {key: value for key, value in vars(known).items() if key in Config.model_fields}
    given = {key: None if value in _NOTHING else value for key, value in given.items()}
    if given.get("resume") is not None:
        directory = given.pop("resume")
        _refuse_beside_resume(["config"] * (known.config is not None) + list(given), beside_resume)
        return resume_config(directory, **given), known
    values = read_yaml(known.config) if known.config is not None else {}
    origin = dict.fromkeys(values, known.config) | dict.fromkeys(given, "command line")
    return make_config(values | given, origin), known


def _refuse_beside_resume(given: list[str], allowed: str) -> None:
    for key in given:
        if key != allowed:
            raise ConfigError(f"--{key} beside --resume: a training goes on with its own options; leave --{key} out")


def before_tensorflow(parse: Callable[[list[str]], Parsed]) -> Parsed:
    """Reads a command's options before the slow imports, so that --help and a mistake answer at once; until the command has
    begun, in `runtime.mistakes_in_one_line`, Ctrl-C simply ends it and the garbage collector rests."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # else it goes through all of TensorFlow many times while that loads: a third of the start
    try:
        given = parse(sys.argv[1:])
    except HubtuneError as error:
        if "--debug" in sys.argv:
            raise
        fail(error)
    filter_native_log()
    if sys.stderr.isatty():
        sys.stderr.write(_LOADING)
        sys.stderr.flush()
    return given


def loaded() -> None:
    """Takes the line away that says that TensorFlow loads."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def python() -> str:
    """How this Python is called from the current folder, for lines that are to be copied."""
    if Path(sys.prefix) == Path(os.environ.get("VIRTUAL_ENV", "/")):
        return "python"
    executable, here = Path(sys.executable), Path.cwd()
    return str(executable.relative_to(here) if executable.is_relative_to(here) else executable)


def bold(text: str, stream: TextIO) -> str:
    """`text` in bold letters on a terminal, unless NO_COLOR says no."""
    return f"\033[1m{text}\033[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=32)


def from_os_error(error: OSError) -> HubtuneError:
    """What the operating system refused, in one line."""
    return HubtuneError(f"{error.filename or 'cannot write'}: {error.strerror or error}")


def fail(error: HubtuneError) -> NoReturn:
    """Ends the command with one line on standard error and the error's exit code."""
    sys.stderr.write(f"{bold(os.path.basename(sys.argv[0]), sys.stderr)}: {error}\n")
    raise SystemExit(error.exit_code)
