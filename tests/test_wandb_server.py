"""wandb_server.py: the real client takes it for the W&B service."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_server import ENTITY, WandbServer

A_RUN = """
import os, sys, wandb

mode, content, aliases = sys.argv[1:4]
run = wandb.init(
    project="project", group="group", job_type="train", name="name", tags=["tag"], notes="notes", config={"size": 2},
    mode=mode, id=sys.argv[4] if sys.argv[4:] else None, resume="allow", settings=wandb.Settings(console="off"),
)
for loss in (3, 2, 1):
    run.log({"loss": loss})
run.summary["best"] = 1
with open("weights", "w") as file:
    file.write(content)
model = wandb.Artifact("model", type="model", metadata={"size": 2})
model.add_file("weights", name="folder/weights", policy="immutable", skip_cache=True)
run.log_artifact(model, aliases=aliases.split(","))
run.finish()
"""
AN_INPUT = """
import wandb

with wandb.init(project="project", id="reader", settings=wandb.Settings(console="off")) as run:
    print(run.use_artifact("model:best").download("downloaded"))
"""
BY_THE_API = """
import json, wandb

api = wandb.Api()
artifact = api.artifact("tester/project/model:best")
found = {
    "versions": [version.name for version in api.artifacts("model", "tester/project/model")],
    "aliases": artifact.aliases,
    "metadata": artifact.metadata,
    "logged by": artifact.logged_by().id,
    "used by": [run.id for run in artifact.used_by()],
    "config": api.run(f"tester/project/{artifact.logged_by().id}").config,
    "summary": api.run(f"tester/project/{artifact.logged_by().id}").summary["best"],
}
artifact.link("tester/shelf/models", aliases=["shown"])
found["link"] = api.artifact("tester/shelf/models:shown").digest == artifact.digest
artifact.aliases.remove("best")
artifact.aliases.append("champion")
artifact.save()
for path in ("tester/project/model:best", "tester/nothing/model:best"):
    try:
        api.artifact(path)
    except wandb.Error as error:
        found[path] = str(error)
try:
    artifact.delete()
except wandb.Error as error:
    found["delete"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running
        assert running.unanswered == []


class Client:
    """Programs that use W&B against `server`, with `folder` as theirs."""

    def __init__(self, server: WandbServer, folder: Path) -> None:
        self.folder = folder
        own = {"WANDB_DIR": str(folder), "WANDB_SILENT": "true", "NETRC": str(folder / "netrc")}
        self.environment = os.environ | server.environment | own
        self.environment.pop("WANDB_SERVICE", None)  # of this process

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            check=check,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def log(self, mode: str, content: str, aliases: str, *run_id: str) -> None:
        self.run("-c", A_RUN, mode, content, aliases, *run_id)

    def sync(self) -> None:
        folders = sorted(str(path) for path in self.folder.glob("wandb/offline-run-*"))
        self.run("-m", "wandb", "sync", *folders)


@pytest.fixture
def client(server: WandbServer, tmp_path: Path) -> Client:
    return Client(server, tmp_path)


def sent(server: WandbServer) -> dict[str, Any]:
    """What the only run sent, without times."""
    (run,) = server.runs.values()
    return {
        "names": (run.project, run.group, run.job_type, run.display_name, run.notes, run.tags),
        "config": run.config["size"],
        "history": [{key: row[key] for key in ("_step", "loss")} for row in run.history],
        "summary": {key: run.summary[key] for key in ("loss", "best")},
        "exit": run.exit_code,
        "files": sorted(run.files),
        "logged": [(a.type, a.name, a.version, sorted(a.aliases), a.metadata, a.files) for a in run.logged],
    }


def test_an_offline_run_that_is_synced_ends_as_an_online_run(server: WandbServer, client: Client) -> None:
    client.log("online", "a", "best")
    online = sent(server)
    with WandbServer() as another:
        client.environment |= another.environment
        client.log("offline", "a", "best")
        client.sync()
        assert sent(another) == online
    assert online["names"] == ("project", "group", "train", "name", "notes", ["tag"])
    assert online["history"] == [{"_step": 0, "loss": 3}, {"_step": 1, "loss": 2}, {"_step": 2, "loss": 1}]
    assert online["logged"] == [("model", "model", 0, ["best", "latest"], {"size": 2}, {"folder/weights": b"a"})]


def test_versions_follow_the_content_and_come_back_byte_for_byte(server: WandbServer, client: Client) -> None:
    for content, aliases in (("a", "best"), ("b", "latest"), ("a", "again")):
        client.log("online", content, aliases)
    assert [(a.version, sorted(a.aliases)) for a in server.artifacts] == [
        (0, ["again", "best", "latest"]),
        (1, []),
    ]
    assert [path for method, path, _ in server.requests if method == "PUT" and "weights" in path] == [
        f"/storage/file/{artifact.id}/folder/weights" for artifact in server.artifacts
    ]
    client.run("-c", AN_INPUT)
    assert (client.folder / "downloaded" / "folder" / "weights").read_text() == "a"
    assert server.runs["reader"].used == server.artifacts[:1]

    found = json.loads(client.run("-c", BY_THE_API).stdout.splitlines()[-1])
    assert found == {
        "versions": ["model:v1", "model:v0"],
        "aliases": found["aliases"],
        "metadata": {"size": 2},
        "logged by": server.artifacts[0].created_by,
        "used by": ["reader"],
        "config": {"size": 2},
        "summary": 1,
        "link": True,
        f"{ENTITY}/project/model:best": "artifact membership 'model:best' not found in 'tester/project'",
        f"{ENTITY}/nothing/model:best": "project 'nothing' not found under entity 'tester'",
        "delete": "input: unable to delete artifact: it has aliases\n",
    }
    assert sorted(server.artifacts[0].aliases) == ["again", "champion", "latest"]


def test_a_resumed_run_goes_on_where_it_ended(server: WandbServer, client: Client) -> None:
    for mode in ("online", "online", "offline"):
        client.log(mode, "a", "best", "same")
    client.sync()
    assert [(row["_step"], row["loss"]) for row in server.runs["same"].history] == list(enumerate([3, 2, 1] * 3))


def test_a_wrong_key_is_refused(server: WandbServer, client: Client) -> None:
    server.refuse_keys()
    client.environment["WANDB_API_KEY"] = "0" * 40
    assert "user is not logged in" in client.run("-c", "import wandb; wandb.init()", check=False).stderr
    assert not server.runs


def test_a_run_outlives_a_failing_service_and_a_cut(server: WandbServer, client: Client) -> None:
    program = A_RUN.replace("for loss", "print(flush=True); input()\nfor loss")
    command = [sys.executable, "-c", program, "online", "a", "best"]
    with subprocess.Popen(
        command,
        cwd=client.folder,
        env=client.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin
        assert running.stdout
        running.stdout.readline()
        server.fail(500)
        before = len(server.requests)
        running.stdin.write("\n")
        running.stdin.flush()
        while len(server.requests) == before:
            time.sleep(0.01)
        server.hang_up()
        time.sleep(0.5)
        server.fail(None)
        server.listen_again()
        assert running.wait(timeout=100) == 0
    assert sent(server)["history"][-1] == {"_step": 2, "loss": 1}
    assert sent(server)["logged"][0][-1] == {"folder/weights": b"a"}
