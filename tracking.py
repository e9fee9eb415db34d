"""W&B: the runs of a training, online when somebody is logged in, offline otherwise; never a question, never the end of a job.

A training is three runs of one group, by `job_type`: `train`, `save` and `evaluate`. Under a sweep's agent, and where a run is
open already, it is that one run. What W&B, its server or a full disk refuse is said in one line, and the job goes on.
"""

import contextlib
import json
import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import wandb

import artifacts
from command_line import python
from config import Config, ConfigError
from portable import SYNC_SCRIPT, last_value, make_portable, mark_unsent, wait_for_the_end, write_sync_script
from run_directory import write_atomically
from wandb_callback import WandbCallback, reason, tell

# W&B's telemetry would talk of a lost network at the end.
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
_INIT_SECONDS = 30
_ANSWER_SECONDS = 10
_FINISH_SECONDS = 120  # for what is not uploaded at a run's end
_NEVER_GIVE_UP = 1_000_000  # tries
_STAGE = "WANDB_DATA_DIR"
_IDS = Path("wandb", "ids.json")
Mode = Literal["online", "offline", "disabled"]
Job = Literal["train", "save", "evaluate"]


@dataclass
class _About:
    """What the runs of one job's directory have in common. `mode` turns to offline when W&B is lost."""

    config: Config
    directory: Path
    mode: Mode
    facts: dict[str, Any]  # beside the options
    resumed: bool
    entity: str | None
    users_stage: str | None  # WANDB_DATA_DIR as it was


class NoRun:
    """Stands in for a W&B run when W&B is off. A run is a context: it ends with it, as failed if an error leaves it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self.finish(failed=kind is not None)

    def job(self, job_type: Job) -> AbstractContextManager["NoRun"]:
        """The run of another job of the same group, as a context; it may be this run."""
        return NoRun()

    def callbacks(self, **arguments: Any) -> list[Any]:
        """Keras callbacks that log the training; the arguments are WandbCallback's."""
        return []

    def log(self, make: Callable[[], dict[str, Any]]) -> None:
        """Logs numbers, plots and tables."""

    def summarize(self, values: dict[str, Any]) -> None:
        """Records the run's final numbers."""

    def uses(self, make: Callable[[], wandb.Artifact]) -> None:
        """Names an artifact that goes into the run: the server's version of the same content, or else a new one."""

    def logs(self, make: Callable[[], wandb.Artifact], after: Callable[[wandb.Artifact], None] | None = None) -> None:
        """Keeps an artifact that comes out of the run; online, `after` gets it once the server has it."""

    def finish(self, failed: bool = False) -> None:
        """Closes the run."""

    def where(self) -> list[str]:
        """Where to look at the run, and how to upload what is not uploaded."""
        return []


class WandbRun(NoRun):
    """A W&B run whose files lie in the directory of its job.

    What an online run cannot send is lost but for numbers: W&B's file of the run holds no artifacts, nor those of its tables.
    So when the server fails, all of that is done once more at the end, in an offline part of the run: W&B lets only one part of
    a run be open.
    """

    def __init__(self, about: _About, run: Any, job_type: Job, owned: bool) -> None:
        self._about, self._run, self._job_type, self._owned = about, run, job_type, owned
        self._done: list[Callable[[Any], object]] = []  # online, and again offline when the server fails
        self._given: set[str] = set()  # digests of the artifacts that come out of the run
        self._failed = False

    def job(self, job_type: Job) -> AbstractContextManager[NoRun]:
        if not self._owned or _in_a_sweep():
            return contextlib.nullcontext(self)
        with _told(f"there is no run for {job_type}"):
            return WandbRun(self._about, _open(self._about, job_type), job_type, owned=True)
        return NoRun()

    def callbacks(self, **arguments: Any) -> list[Any]:
        if self._about.resumed:
            for key, name in {"logged_steps": "batch/batch_step", "logged_epochs": "epoch/epoch"}.items():
                arguments[key] = int(last_value(self._about.directory, self._run.id, name))
        return [WandbCallback(**arguments)]

    def log(self, make: Callable[[], dict[str, Any]]) -> None:
        self._do("plots and tables", lambda run: run.log(make()))

    def summarize(self, values: dict[str, Any]) -> None:
        self._do("the summary", lambda run: run.summary.update(values))

    def uses(self, make: Callable[[], wandb.Artifact]) -> None:
        def use(run: Any) -> None:
            artifact = make()
            if artifact.digest not in self._given:  # where all jobs are one run
                artifacts.use(run, artifact, _FINISH_SECONDS)

        self._do("an artifact", use)

    def logs(self, make: Callable[[], wandb.Artifact], after: Callable[[wandb.Artifact], None] | None = None) -> None:
        kept: list[wandb.Artifact] = []

        def log(run: Any) -> None:
            kept.append(artifacts.log(run, make(), _FINISH_SECONDS))
            self._given.add(kept[-1].digest)

        self._do("an artifact", log)
        if kept and after and not self._run.offline:
            with _told("the versions are not settled"):
                after(kept[0])

    def _do(self, what: str, action: Callable[[Any], object]) -> None:
        self._done.append(action)
        if self._failed:
            return
        with _told(f"{what} cannot be logged"):
            try:
                if not self._run.offline:
                    # This asks the server: what waits for it in vain can keep a run from ending.
                    wandb.Api(timeout=_ANSWER_SECONDS)
                action(self._run)
            except Exception as error:  # W&B's and those of its network libraries
                if self._run.offline or not self._owned:
                    raise
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        if self._about.mode == "online":
            _lost(self._about, error)

    def finish(self, failed: bool = False) -> None:
        if not self._owned:
            return
        try:
            with _told("the run is not complete"):
                self._close(int(failed))
        finally:
            _restore_stage(self._about)
            with _told("there is no sync.sh"):
                write_sync_script(self._about.directory, list(_run_ids(self._about).values()))

    def _close(self, exit_code: int) -> None:
        run = self._run
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError as error:
            self._fail(error)
            if self._job_type == "train":  # its numbers are in this part alone; of other jobs all is done again
                mark_unsent(Path(run.dir).parent)
        if self._failed:
            run = _init(self._about, self._job_type, run_id=run.id)
            for action in self._done:
                with _told("a part of the run cannot be kept offline"):
                    action(run)
            run.finish(exit_code=exit_code)
        wait_for_the_end(Path(run.dir).parent)
        if run.offline:
            make_portable(self._about.directory, Path(run.dir).parent)

    def where(self) -> list[str]:
        lines = [str(self._run.url)] if self._run.url and not self._run.offline else []
        script = self._about.directory / SYNC_SCRIPT
        if script.exists():
            login = f"{python()} -m wandb login"
            lines.append(
                f"sh {shlex.quote(str(script))}  (uploads what is kept offline, once you are logged in: {login})"
            )
        return lines


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Says in one line what W&B or the disk refuses, and goes on."""
    try:
        yield
    except Exception as error:  # W&B's, those of its network libraries, and a full disk's
        tell(what, error)


def choose_mode(config: Config) -> Mode:
    """Turns `auto` into W&B's own WANDB_MODE, else online when somebody is logged in, else offline.

    Where a run of the caller's is open already, it is that run's mode.

    Raises:
        ConfigError: `online` is asked for and nobody is logged in, or a WANDB_ variable has a value that W&B does not take.
    """
    wanted = os.environ.get("WANDB_MODE", "auto") if config.wandb_mode == "auto" else config.wandb_mode
    if wanted not in {"auto", "online", "offline", "disabled"}:
        raise ConfigError(f"WANDB_MODE={wanted}: should be online, offline or disabled")
    if wanted != "disabled" and wandb.run is not None:  # the caller's
        return "offline" if wandb.run.offline else "online"
    if wanted in {"disabled", "offline"}:
        return cast(Mode, wanted)
    try:
        logged_in = wandb.login(prompt=False, verify=True)
    except wandb.errors.UsageError:  # there is no key
        logged_in = False
    except wandb.Error as error:
        print(f"W&B cannot be used ({reason(error)}): the runs are kept offline", flush=True)
        return "offline"
    except ValueError as error:
        raise ConfigError(f"W&B does not take its WANDB_ variables: {' '.join(str(error).split())[:200]}") from error
    if wanted == "online" and not logged_in:
        raise ConfigError(
            "wandb_mode=online: nobody is logged in to W&B here; run `wandb login`, or set auto or offline"
        )
    return "online" if logged_in else "offline"


def start_run(
    config: Config,
    directory: Path,
    mode: Mode,
    facts: dict[str, Any],
    job_type: Job = "train",
    resumed: bool = False,
    entity: str | None = None,
) -> NoRun:
    """Starts the W&B run of a job; one that cannot start online is kept offline, and said so.

    Args:
        directory: the job's folder; W&B's files go into `wandb` in it.
        facts: what the dashboard's hyperparameter table has beside the options, such as the data's identity.
        resumed: it goes on with the runs of the same directory.
        entity: whose project it is; None: as W&B is set up.

    Raises:
        ConfigError: W&B refuses the project, the group, a tag or the run's id.
    """
    if mode == "disabled":
        return NoRun()
    about = _About(config, directory, mode, facts, resumed, entity, os.environ.get(_STAGE))
    if wandb.run is not None:  # the caller's, as in a sweep's function
        wandb.run.config.update({**config.model_dump(), **facts}, allow_val_change=True)  # type: ignore[no-untyped-call]
        return WandbRun(about, wandb.run, job_type, owned=False)
    if mode == "online":
        print("Connecting to W&B", flush=True)
    try:
        return WandbRun(about, _open(about, job_type), job_type, owned=True)
    except OSError as error:
        tell("there is no run", error)
        return NoRun()


def _open(about: _About, job_type: Job) -> Any:
    """The run of a job, offline where the server fails.

    Raises:
        ConfigError: W&B refuses what it is to be.
    """
    try:
        try:
            return _init(about, job_type)
        except wandb.errors.CommError as error:
            if about.mode == "offline":
                raise
            _lost(about, error)
            _let_go_of_the_id()
            return _init(about, job_type)
    except (wandb.Error, ValueError) as error:
        _restore_stage(about)
        _let_go_of_the_id()
        raise ConfigError(
            f"W&B does not take this run ({reason(error)}): change wandb_project (a team's name goes into WANDB_ENTITY), "
            "wandb_group or wandb_tags, or set WANDB_RESUME=allow for a run that exists"
        ) from error


def _let_go_of_the_id() -> None:
    """W&B's other process holds the id of a run that did not start, as long as it lives."""
    if wandb.run is None:
        wandb.teardown()


def _restore_stage(about: _About) -> None:
    """Puts WANDB_DATA_DIR back where it was, with the last of the job's runs."""
    if wandb.run is None:
        os.environ.pop(_STAGE, None)
        os.environ |= {} if about.users_stage is None else {_STAGE: about.users_stage}


def _init(about: _About, job_type: Job, run_id: str | None = None) -> Any:
    config, stage = about.config, about.directory / "wandb"
    stage.mkdir(exist_ok=True)
    if about.mode == "offline" and any(stage.glob("*run-*")):
        time.sleep(1 - time.time() % 1)  # folders are named by the second, and are uploaded in their order
    os.environ[_STAGE] = str(stage.absolute())  # the bytes of artifacts wait there: they move with the directory
    name = about.directory.name
    run = wandb.init(
        entity=about.entity,
        project=config.wandb_project,
        group=config.wandb_group or name,
        tags=config.wandb_tags,
        notes=config.wandb_notes,
        name=name if job_type == "train" else f"{name}-{job_type}",
        job_type=job_type,
        id=run_id or _run_id(about, job_type),
        resume=_resume(about, job_type, run_id),
        reinit="create_new" if wandb.run else None,
        dir=about.directory.absolute(),
        mode=about.mode,
        config={**config.model_dump(), **about.facts},
        settings=wandb.Settings(
            console="off",  # what is printed could hold texts
            silent=True,
            disable_git=True,  # it would send the working tree's changes
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            x_file_stream_retry_max=_NEVER_GIVE_UP,  # of itself: a network may be away for long
            x_file_transfer_retry_max=_NEVER_GIVE_UP,
        ),
    )
    write_sync_script(about.directory, list(_run_ids(about).values()))
    return run


def _resume(about: _About, job_type: Job, run_id: str | None) -> Any:
    """What W&B does with a run of the same id that it has already; a sweep's is there before it begins."""
    if about.resumed or run_id:
        return "allow"
    if _in_a_sweep():
        return None
    return os.environ.get("WANDB_RESUME", "never") if job_type == "train" else "never"


def _run_id(about: _About, job_type: Job) -> str:
    """The id of a directory's run: new, or that of the run that is gone on with."""
    known = _run_ids(about)
    if job_type not in known:
        given = os.environ.get("WANDB_RUN_ID") if job_type == "train" else None
        known[job_type] = given or secrets.token_hex(4)
        write_atomically(about.directory / _IDS, json.dumps(known))
    return known[job_type]


def _run_ids(about: _About) -> dict[str, str]:
    """The ids of a directory's runs by their job types, in the order of the jobs."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        ids: dict[str, str] = json.loads((about.directory / _IDS).read_text(encoding="utf-8"))
        return ids
    return {}


def _in_a_sweep() -> bool:
    return "WANDB_SWEEP_ID" in os.environ


def _lost(about: _About, error: Exception) -> None:
    """From here on nothing waits for a server that does not answer."""
    about.mode = "offline"
    print(f"W&B cannot be used ({reason(error)}): from here on it is kept offline", flush=True)
