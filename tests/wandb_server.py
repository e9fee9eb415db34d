"""A stand-in for the W&B service: it answers what the real client sends, and keeps what it was sent for tests to read."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

Node = dict[str, Any]

ENTITY = "tester"
_OPERATION = re.compile(r"(query|mutation)\s+(\w+)")
_TIMES = {"createdAt": "2025-01-01T00:00:00Z", "updatedAt": "2025-01-01T00:00:00Z"}
_FEATURES = ["CLIENT_IDS", "FILESTREAM_GZIP", "LARGE_FILENAMES", "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION"]


class RefusedError(Exception):
    """What the service answers as an error of the request, in its words."""


@dataclass
class Artifact:
    """One version of a collection. `created_by` is a run id."""

    id: str
    project: str
    type: str
    name: str
    digest: str
    description: str | None
    metadata: Node
    created_by: str | None
    aliases: list[str]
    version: int = -1  # until it is committed
    manifest: Node = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def collection(self) -> str:
        return f"{self.project}/{self.name}"

    def is_called(self, name: str) -> bool:
        collection, _, alias = name.partition(":")
        return self.name == collection and (alias or "latest") in [*self.aliases, f"v{self.version}"]


@dataclass
class Run:
    """What was sent of one run. `lines` holds the line files of the file stream; `exit_code` is None until it ends."""

    id: str
    project: str
    group: str | None = None
    job_type: str | None = None
    display_name: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    config: Node = field(default_factory=dict)
    summary: Node = field(default_factory=dict)
    lines: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[Artifact] = field(default_factory=list)
    logged: list[Artifact] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def history(self) -> list[Node]:
        return [json.loads(line) for line in self.lines["wandb-history.jsonl"]]

    @property
    def events(self) -> list[Node]:
        return [json.loads(line) for line in self.lines["wandb-events.jsonl"]]


class WandbServer:
    """The service on a port of this machine, while the context lasts. `unanswered` names operations it does not know."""

    def __init__(self) -> None:
        self.api_key = "local-" + "0123456789" * 4
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.links: list[Artifact] = []  # copies with the project, collection and aliases they were linked to
        self.requests: list[tuple[str, str, str | None]] = []
        self.unanswered: list[str] = []
        self.uploaded_bytes = 0
        self._created: dict[str, Artifact] = {}  # by their own id and by the client's
        self._contents: dict[tuple[str, str], tuple[str, bytes]] = {}  # (collection, MD5): first owner, and the bytes
        self._versions: defaultdict[str, int] = defaultdict(int)  # of every collection, with those deleted
        self._own_key_only = False
        self._status: int | None = None
        self._lock = threading.Lock()
        self._port = 0
        self._listener: http.server.ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self.listen_again()
        return self

    def __exit__(self, *error: object) -> None:
        self.hang_up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a client here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.api_key, "WANDB_MODE": "online"}

    def refuse_keys(self) -> None:
        """From now on every key but `api_key` is answered 401."""
        self._own_key_only = True

    def fail(self, status: int | None) -> None:
        """Every request is answered `status`, until it is None."""
        self._status = status

    def hang_up(self) -> None:
        """Connections are refused from now on."""
        if self._listener:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def listen_again(self) -> None:
        """Connections are taken, on the same port as before."""
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                status, answer = service.answer(self.command, self.path, self.headers.get("Authorization"), body)
                with contextlib.suppress(ConnectionError):  # the client was killed
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *arguments: object) -> None:
                pass

        self._listener = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._listener.server_port
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, method: str, target: str, authorization: str | None, body: bytes) -> tuple[int, bytes]:
        address = urlsplit(target)
        path = unquote(address.path)
        request = json.loads(body) if path == "/graphql" else {}
        found = _OPERATION.search(request.get("query", ""))
        operation = found[2] if found else None
        with self._lock:
            self.requests.append((method, path, operation))
            if self._status:
                return self._status, b'{"error": "told to fail"}'
            if path.startswith("/storage/"):  # signed addresses: no key is sent there
                return self._storage(method, path.removeprefix("/storage/"), unquote(address.query), body)
            if path.startswith("/sdk/otel/"):  # the client's telemetry, without a key too
                return 200, b"{}"
            own_key = "Basic " + base64.b64encode(f"api:{self.api_key}".encode()).decode()
            if authorization is None or (self._own_key_only and authorization != own_key):
                return 401, b'{"errors": [{"message": "user is not logged in"}]}'
            if path.endswith("/file_stream"):
                return 200, self._file_stream(self.runs[path.split("/")[-2]], json.loads(body))
            handler = getattr(self, f"_on_{operation}", None)
            if found is None or handler is None:
                self.unanswered.append(operation or path)
                return 404, b'{"errors": [{"message": "not known here"}]}'
            variables = request.get("variables") or {}
            try:
                data = handler(variables.get("input") or variables)
            except RefusedError as error:
                return 200, json.dumps({"errors": [{"message": str(error)}]}).encode()
            if found[1] == "mutation":  # its field has the same name, and some clients rename it
                data = {found[2][0].lower() + found[2][1:]: data, "result": data}
            return 200, json.dumps({"data": data}).encode()

    # Bytes

    def _address(self, *parts: str) -> str:
        return f"{self.url}/storage/{quote('/'.join(parts))}"

    def _storage(self, method: str, path: str, md5: str, body: bytes) -> tuple[int, bytes]:
        kind, owner, name = path.split("/", 2)
        if method == "GET":
            artifact = self._by_id(owner)
            return 200, json.dumps(artifact.manifest).encode() if kind == "manifest" else artifact.files[name]
        self.uploaded_bytes += len(body)
        if md5 and md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
            return 400, b"these are not the bytes of the manifest"
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self._created[owner].manifest = json.loads(body)
        else:
            self._contents[self._created[owner].collection, md5] = (owner, body)
        return 200, b""

    def _file_stream(self, run: Run, sent: Node) -> bytes:
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
            else:
                run.lines[name][chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]
        return b"{}"

    # Accounts and runs

    def _on_ServerFeaturesQuery(self, _: Node) -> Node:
        return {"serverInfo": {"features": [{"name": name, "isEnabled": True} for name in _FEATURES]}}

    def _on_Viewer(self, _: Node) -> Node:
        account = {"id": "user", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "admin": False}
        return {"viewer": account | {"flags": "{}", "deletedAt": None, "apiKeys": _pages([]), "teams": _pages([])}}

    _on_GetViewer = _on_GetDefaultEntity = _on_Viewer

    def _on_OrganizationCoreWeaveOrganizationID(self, _: Node) -> Node:
        return {"entity": {"organization": None}}

    def _on_RunResumeStatus(self, asked: Node) -> Node:
        run = self.runs.get(asked["name"])
        return {"model": _project(asked["project"]) | {"bucket": self._run(run) if run else None}}

    def _on_UpsertBucket(self, sent: Node) -> Node:
        name = sent.get("name") or sent["id"].removeprefix("run-")
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name, sent.get("project") or "uncategorized"))
        run.group, run.job_type = sent.get("groupName") or run.group, sent.get("jobType") or run.job_type
        run.notes, run.tags = sent.get("notes") or run.notes, sent.get("tags") or run.tags
        run.display_name = sent.get("displayName") or run.display_name or name
        run.config = json.loads(sent.get("config") or "null") or run.config
        run.summary = json.loads(sent.get("summaryMetrics") or "null") or run.summary
        return {"bucket": self._run(run), "inserted": inserted}

    def _on_CreateRunFiles(self, sent: Node) -> Node:
        files = [{"name": name, "uploadUrl": self._address("run", sent["run"], name)} for name in sent["files"]]
        return {"runID": f"run-{sent['run']}", "uploadHeaders": [], "files": files}

    def _run(self, run: Run) -> Node:
        state = {None: "running", 0: "finished"}.get(run.exit_code, "failed")
        names: Node = {"id": f"run-{run.id}", "name": run.id, "displayName": run.display_name, "notes": run.notes}
        kinds: Node = {"tags": run.tags, "group": run.group, "jobType": run.job_type, "state": state}
        values = {"config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary)}
        history, events = run.lines["wandb-history.jsonl"], run.lines["wandb-events.jsonl"]
        tails = {"historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:])}
        counts = {"historyLineCount": len(history), "eventsLineCount": len(events)}
        counts["logLineCount"] = len(run.lines["output.log"])
        rest = {"wandbConfig": '{"t": {}}', "project": _project(run.project), "projectId": "1"}
        return {"__typename": "Run"} | names | kinds | values | tails | counts | rest | _TIMES

    # Artifacts, written

    def _on_CreateArtifact(self, sent: Node) -> Node:
        project, name = sent["projectName"], sent["artifactCollectionName"]
        aliases = [alias["alias"] for alias in sent["aliases"] or []]
        collection = self._collection(project, name)
        same = [a for a in collection if a.digest == sent["digest"] and sent.get("enableDigestDeduplication")]
        if same:
            artifact = same[-1]
            self._give(artifact, aliases)
        else:
            key = base64.b64encode(f"Artifact:{len(self._created)}".encode()).decode()  # the client decodes it
            kind, digest, about = sent["artifactTypeName"], sent["digest"], sent.get("description")
            metadata = json.loads(sent.get("metadata") or "{}")
            artifact = Artifact(key, project, kind, name, digest, about, metadata, sent.get("runName"), aliases)
        self._created[artifact.id] = self._created[sent["clientID"]] = artifact
        sequence = {"latestArtifact": {"id": collection[-1].id} if collection else None}
        state = "COMMITTED" if same else "PENDING"
        return {"artifact": {"id": artifact.id, "state": state, "artifactSequence": sequence}}

    def _on_CreateArtifactManifest(self, sent: Node) -> Node:
        url = self._address("manifest", sent["artifactID"], "manifest")
        return {"artifactManifest": {"id": "manifest", "file": {"id": "file", "uploadUrl": url, "uploadHeaders": []}}}

    def _on_CreateArtifactFiles(self, sent: Node) -> Node:
        nodes = []
        for file in sent["artifactFiles"]:
            collection = self._created[file["artifactID"]].collection
            owner, content = self._contents.get((collection, file["md5"]), (file["artifactID"], None))
            url = f"{self._address('file', owner, file['name'])}?{quote(file['md5'], '')}" if content is None else None
            place = {"storagePath": file["md5"], "artifact": {"id": owner}}
            nodes.append(place | {"uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None})
        return {"files": _pages(nodes)}

    def _on_CommitArtifact(self, sent: Node) -> Node:
        artifact = self._created[sent["artifactID"]]
        if artifact not in self.artifacts:
            for path, entry in artifact.manifest["contents"].items():
                if "ref" not in entry:
                    key = (artifact.collection, entry["digest"])
                    if key not in self._contents:
                        raise RefusedError(f"{path} was not uploaded")
                    artifact.files[path] = self._contents[key][1]
            self._versions[artifact.collection] += 1
            artifact.version = self._versions[artifact.collection] - 1
            self.artifacts.append(artifact)
            self._give(artifact, [*artifact.aliases, "latest"])
            if artifact.created_by in self.runs:
                self.runs[artifact.created_by].logged.append(artifact)
        return {"artifact": {"id": artifact.id, "digest": artifact.digest}}

    def _on_UseArtifact(self, sent: Node) -> Node:
        artifact, run = self._by_id(sent["artifactID"]), self.runs[sent["runName"]]
        if artifact not in run.used:
            run.used.append(artifact)
        return {"artifact": self._artifact(artifact)}

    def _on_AddAliases(self, sent: Node) -> Node:
        self._give(self._by_id(sent["artifactID"]), [alias["alias"] for alias in sent["aliases"]])
        return {"success": True}

    def _on_DeleteAliases(self, sent: Node) -> Node:
        artifact, gone = self._by_id(sent["artifactID"]), [alias["alias"] for alias in sent["aliases"]]
        artifact.aliases = [alias for alias in artifact.aliases if alias not in gone]
        return {"success": True}

    def _on_UpdateArtifact(self, sent: Node) -> Node:
        artifact = self._by_id(sent["artifactID"])
        artifact.description, artifact.metadata = sent.get("description"), json.loads(sent["metadata"])
        return {"artifact": self._artifact(artifact)}

    def _on_DeleteArtifact(self, sent: Node) -> Node:
        artifact = self._by_id(sent["artifactID"])
        if artifact.aliases and not sent["deleteAliases"]:
            raise RefusedError("unable to delete artifact: it has aliases")
        self.artifacts.remove(artifact)
        return {"artifact": {"id": artifact.id}}

    def _on_LinkArtifact(self, sent: Node) -> Node:
        keys = [sent.get(name) for name in ("artifactID", "artifactId", "clientID", "clientId")]
        source = next(self._created[key] for key in keys if key)
        aliases = [*(alias["alias"] for alias in sent["aliases"] or []), "latest"]
        link = replace(source, project=sent["projectName"], name=sent["artifactPortfolioName"], aliases=aliases)
        self.links.append(link)
        return {"versionIndex": link.version, "artifactMembership": self._membership(link)}

    def _on_FetchLinkedArtifacts(self, asked: Node) -> Node:
        artifact = self._by_id(asked["artifactID"])
        nodes = [self._membership(place) for place in (artifact, *self.links) if place.id == artifact.id]
        for node in nodes[1:]:
            node["artifactCollection"] = node["artifactCollection"] | {"__typename": "ArtifactPortfolio"}
        return {"artifact": {"artifactMemberships": _pages(nodes)}}

    def _on_FetchOrgInfoFromEntity(self, asked: Node) -> Node:
        organization = {"name": "Testers", "orgEntity": {"name": f"org-of-{asked['entity']}"}}
        return {"entity": {"organization": organization, "user": None}}

    # Artifacts, read

    def _on_project(self, asked: Node) -> Node:
        """Any question about a project: all that its names lead to, and the client takes what it asked for."""
        project, collection, name = asked["project"], asked.get("collection", ""), asked.get("name", "")
        found = self._named(project, name or f"{collection}:{asked.get('alias', '')}")
        runs = {run.id: run for run in self.runs.values() if run.project == project}
        if not runs and not found:
            return {"project": None}
        place: Node = {"__typename": "ArtifactSequence", "artifactMembership": None}
        node: Node = {"run": self._run(runs[name]) if name in runs else None, "artifactCollection": place}
        node |= {"artifact": None, "artifactCollectionMembership": None}
        if found:
            node |= {"artifact": self._artifact(found), "artifactCollectionMembership": self._membership(found)}
            files = [{"name": path, "directUrl": self._address("file", found.id, path)} for path in found.files]
            place["artifactMembership"] = {"files": _pages(files)}
        versions = [a for a in reversed(self._collection(project, collection)) if a.type == asked.get("type")]
        place["artifacts"] = _pages([self._artifact(artifact) for artifact in versions])
        for edge in place["artifacts"]["edges"]:
            edge["version"] = f"v{edge['node']['versionIndex']}"
        return {"project": node | {"artifactType": {"artifactCollection": place if versions else None}}}

    _on_Run = _on_ArtifactType = _on_ArtifactMembershipByName = _on_project
    _on_GetArtifactMembershipFileUrls = _on_ProjectArtifacts = _on_project

    def _on_ArtifactByID(self, asked: Node) -> Node:
        return {"artifact": self._artifact(self._by_id(asked["id"]))}

    _on_FetchArtifactManifest = _on_ArtifactUsedBy = _on_ArtifactCreatedBy = _on_ArtifactByID

    def _collection(self, project: str, name: str) -> list[Artifact]:
        return [artifact for artifact in self.artifacts if (artifact.project, artifact.name) == (project, name)]

    def _named(self, project: str, name: str) -> Artifact | None:
        places = [place for place in [*self.artifacts, *reversed(self.links)] if place.project == project]
        return next((place for place in places if place.is_called(name)), None)

    def _by_id(self, wanted: str) -> Artifact:
        found = next((artifact for artifact in self.artifacts if artifact.id == wanted), None)
        if found is None:
            raise RefusedError(f"artifact {wanted} not found")
        return found

    def _give(self, artifact: Artifact, aliases: list[str]) -> None:
        """An alias names one version of its collection: it leaves the version that had it."""
        for other in self._collection(artifact.project, artifact.name):
            other.aliases = [alias for alias in other.aliases if alias not in aliases]
        artifact.aliases = list(dict.fromkeys([*artifact.aliases, *aliases]))

    def _artifact(self, artifact: Artifact) -> Node:
        sizes = [len(content) for content in artifact.files.values()]
        makers = [self._run(run) for run in self.runs.values() if run.id == artifact.created_by]
        users = [self._run(run) for run in self.runs.values() if artifact in run.used]
        manifest = {"file": {"directUrl": self._address("manifest", artifact.id, "manifest")}}
        names = {"__typename": "Artifact", "id": artifact.id, "artifactType": {"name": artifact.type}}
        words: Node = {"description": artifact.description, "metadata": json.dumps(artifact.metadata), "tags": []}
        state: Node = {"state": "COMMITTED", "digest": artifact.digest, "commitHash": artifact.id, "historyStep": None}
        size: Node = {"size": sum(sizes), "fileCount": len(sizes), "ttlDurationSeconds": -2, "ttlIsInherited": True}
        runs: Node = {"createdBy": makers[0] if makers else None, "usedBy": _pages(users)}
        return _place(artifact) | names | words | state | size | runs | _TIMES | {"currentManifest": manifest}

    def _membership(self, place: Artifact) -> Node:
        """A place is the artifact itself in its collection, or a link."""
        node = {"__typename": "ArtifactCollectionMembership", "id": f"{place.id}-{place.name}"} | _TIMES
        return _place(place) | node | {"artifact": self._artifact(self._by_id(place.id))}


def _pages(nodes: list[Node]) -> Node:
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"totalCount": len(nodes), "pageInfo": page, "edges": [{"node": node} for node in nodes]}


def _project(name: str) -> Node:
    return {"id": name, "internalId": "1", "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


def _place(place: Artifact) -> Node:
    sequence = {"__typename": "ArtifactSequence", "name": place.name, "project": _project(place.project)}
    fields: Node = {"__typename": "ArtifactAlias", "artifactCollection": sequence}
    aliases = [fields | {"id": alias, "alias": alias} for alias in place.aliases]
    collections: Node = {"artifactSequence": sequence, "artifactCollection": sequence}
    return collections | {"versionIndex": place.version, "aliases": aliases}
