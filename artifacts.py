"""What runs take in and give out as W&B artifacts: tables by their fingerprint, trained models by their files.

The versions of a model share one name, after its training table. `best` is the version with the best score on the same
validation rows as the latest; of these, versions that are neither `best` nor `latest`, and that nobody gave a name or tag
or linked to the registry, are deleted. An online training sees to that; after the upload of offline ones it is

    python artifacts.py team/hubtune/tickets-model
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from command_line import CommandParser, fail
from config import ConfigError, DataError, read_yaml


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: not one name is given.
    """
    parser = CommandParser(
        prog="artifacts.py", description="Names the best version of a model in W&B, deletes what is not needed."
    )
    parser.add_argument("model", metavar="ENTITY/PROJECT/NAME", help="the model, as W&B names it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        GIVEN = parse_arguments(sys.argv[1:])
    except ConfigError as error:
        fail(error)

os.environ.setdefault("WANDB_SILENT", "true")

import wandb

_KEYS = {"monitor", "score", "valid_rows"}  # in the metadata of our models
_SLOWEST = 250_000  # bytes a second of an upload that is still waited for
_VERSION = re.compile(r"v\d+")
_LONGEST = 100  # characters of a table's name in that of an artifact


def artifact_name(data: str, what: str) -> str:
    """The name of what belongs to a table: "data/my tickets.csv.gz", "model" -> "my-tickets-model"."""
    stem = Path(data.split("?")[0].rstrip("/")).name.split(".")[0]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', stem)[:_LONGEST] or 'table'}-{what}"


def dataset(data: str, identity: dict[str, Any]) -> wandb.Artifact:
    """A table as W&B gets to know it: rows, columns and a hash of texts and labels, and nothing of the texts themselves.

    The same rows give the same version, wherever they lie and whoever reads them; `identity` is `Examples.identity()`.
    """
    artifact = wandb.Artifact(artifact_name(data, "data"), "dataset", metadata=identity)
    with artifact.new_file("identity.json", encoding="utf-8") as file:
        file.write(json.dumps(identity, indent=2, ensure_ascii=False))
    return artifact


def training(run_directory: Path) -> wandb.Artifact:
    """What a training hands on to the job that saves its model: the options and the epochs."""
    artifact = wandb.Artifact(artifact_name(_options(run_directory)["data"], "training"), "training")
    _add(artifact, [run_directory / "config.yaml", run_directory / "history.csv"])
    return artifact


def model(run_directory: Path, name: str | None = None) -> wandb.Artifact:
    """A run directory's SavedModel with options, scores and card; what is downloaded works as a run directory.

    Files are named where they lie and not copied. Without a `name` it is that of the training table.
    """
    options = _options(run_directory)
    metrics = json.loads((run_directory / "metrics.json").read_text(encoding="utf-8"))
    monitor, rows = options["monitor"], metrics.get("data", {}).get("parts", {}).get("valid")
    metadata = {
        "encoder": metrics["encoder"],
        "task": metrics["task"],
        "labels": len(metrics["labels"]),
        "monitor": monitor,
        "score": metrics.get("valid", {}).get(monitor.removeprefix("val_")),
        "valid_rows": rows,
        "git_commit": metrics["environment"]["git_commit"],
    }
    artifact = wandb.Artifact(name or artifact_name(options["data"], "model"), "model", metadata=metadata)
    with contextlib.redirect_stderr(io.StringIO()):  # W&B says how many files it adds
        artifact.add_dir(str(run_directory / "model"), name="model", policy="immutable", skip_cache=True)
    _add(artifact, [run_directory / file for file in ("config.yaml", "metrics.json", "MODEL_CARD.md")])
    return artifact


def _options(run_directory: Path) -> dict[str, Any]:
    return read_yaml(str(run_directory / "config.yaml"))


def _add(artifact: wandb.Artifact, files: Iterable[Path]) -> None:
    for file in files:
        if file.exists():
            artifact.add_file(str(file), policy="immutable", skip_cache=True)


def log(run: Any, artifact: wandb.Artifact, patience: int) -> wandb.Artifact:
    """Gives an artifact out of a run as `latest`, and online waits until the server has it.

    Args:
        run: W&B's.
        patience: seconds to wait, beside the time for its bytes.

    Raises:
        wandb.Error, ValueError: it does not get there.
    """
    run.log_artifact(artifact)
    if not run.offline:
        artifact.wait(timeout=patience + artifact.size // _SLOWEST)
    return artifact


def use(run: Any, artifact: wandb.Artifact, patience: int) -> None:
    """Names an artifact as a run's input: of a model the version on the server, of others the server makes one if need be.

    W&B's `use_artifact` refuses offline runs, and waits without end for what is not on the server; what it calls does neither.

    Raises:
        wandb.Error, TimeoutError: it does not get there.
    """
    artifact.finalize()
    record = {"is_user_created": True, "use_after_commit": True}
    if run.offline:
        aliases = [] if artifact.type == "model" else ["latest"]
        run._interface.publish_artifact(run, artifact, aliases, **record)
    elif artifact.type == "model":  # made anew, a version that was deleted would be `latest`
        same = _same(run, artifact)
        if same is None:
            print(
                f"W&B: {artifact.name} has no version of this model, which the run would name as its input", flush=True
            )
        else:
            run.use_artifact(same)
    else:
        answer = run._interface.deliver_artifact(run, artifact, ["latest"], **record).wait_or(timeout=patience)
        if reason := answer.response.log_artifact_response.error_message:
            raise wandb.Error(reason)


def _same(run: Any, artifact: wandb.Artifact) -> Any | None:
    """The version on the server that has the content of an artifact."""
    with contextlib.suppress(ValueError):  # what W&B makes of a name that nothing has yet
        versions = wandb.Api().artifacts(artifact.type, f"{run.entity}/{run.project}/{artifact.name}")
        return next((version for version in versions if version.digest == artifact.digest), None)
    return None


def keep(artifact: wandb.Artifact, registry: str | None) -> None:
    """Settles the versions of a model that W&B has just got, links it to a collection of the registry, and says so.

    Raises:
        wandb.Error: the server does not answer, or refuses.
    """
    for line in settle(f"{artifact.entity}/{artifact.project}/{artifact.name.split(':')[0]}"):
        print(f"W&B: {line}", flush=True)
    if registry:
        artifact.link(f"wandb-registry-{registry}")
        print(f"W&B: {artifact.name} is linked to the registry's {registry}", flush=True)


def settle(collection: str) -> list[str]:
    """Gives `best` to the best version of a model and deletes those that nobody needs; returns what was done, in words.

    Args:
        collection: "entity/project/name".

    Raises:
        wandb.Error: the server does not answer, or refuses.
    """
    versions = _compared(wandb.Api().artifacts("model", collection))
    best, done = _best(versions), []
    if best is not None and "best" not in best.aliases:
        best.aliases.append("best")
        best.save()
        done.append(f"{best.name} is `best`: {best.metadata['monitor']} {best.metadata['score']:.4f}")
    for version in versions:
        names = {alias for alias in version.aliases if not _VERSION.fullmatch(alias)}
        if version is not best and not names - {"best"} and not version.tags and not version.linked_artifacts:
            version.delete(delete_aliases=True)
            done.append(
                f"{version.name} is deleted: neither `latest` nor `best`, and without another name, tag or link"
            )
    return done


def _compared(versions: Iterable[Any]) -> list[Any]:
    """The versions that can be compared with the latest: same metric, same validation rows."""
    ours = [version for version in versions if version.metadata.keys() >= _KEYS]
    latest = next((version.metadata for version in ours if "latest" in version.aliases), None)
    return [v for v in ours if latest and all(v.metadata[key] == latest[key] for key in ("monitor", "valid_rows"))]


def _best(versions: list[Any]) -> Any | None:
    scored = [version for version in versions if version.metadata["score"] is not None]
    sign = -1 if any(version.metadata["monitor"].endswith("loss") for version in scored) else 1
    return max(scored, key=lambda version: sign * version.metadata["score"], default=None)


if __name__ == "__main__":
    try:
        print("\n".join(settle(GIVEN.model)) or "nothing to do")
    except (wandb.Error, ValueError) as error:
        fail(
            DataError(
                f"{GIVEN.model}: {' '.join(str(error).split())[:200]}: check the name, and log in with `wandb login`"
            )
        )
