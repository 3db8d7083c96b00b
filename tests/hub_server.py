"""A small Hub on loopback: what the real huggingface_hub client needs to make, fill and read model repositories.

As there, a commit is applied whole or not at all, large and binary files go through LFS, and files that a .gitignore
hides are left out of a commit. Xet is not spoken: clients are started with HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from hub_connection import Connection
from hub_repositories import LARGE, Commit, Files, Repository, commit_of, git_oid, large

Fault = Literal["500", "cut", "lost"]  # answer 500; close before doing it; do it and close before answering
TOKEN, USER = "hf_of_the_tests", "tester"
REPO, REVISION = r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"


class Hub:
    """A context: `with Hub() as hub: ... hub.url`. `faults`: kind of request -> what happens to it until removed."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: Files = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def create(self, name: str, private: bool = False) -> Repository:
        first = commit_of([], {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.repositories[name] = Repository(private, {"main": [first]})
        return self.repositories[name]

    def commits(self, name: str, branch: str = "main") -> list[Commit]:
        """Those after the Hub's own first one."""
        return self.repositories[name].branches[branch][1:]


class Handler(Connection):
    hub: Hub

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.read_body()
        routes = [(re.fullmatch(pattern, url.path), run, kind) for m, pattern, run, kind in ROUTES if m == self.command]
        match, run, kind = next((route for route in routes if route[0]), (None, None, ""))
        if match is None or run is None:
            return self.answer(404, {"error": f"no route {self.command} {url.path}"})
        fault = self.hub.faults.get(kind)
        with self.hub.lock:
            self.hub.requests.append(kind)
            if fault == "500":
                return self.answer(500, {"error": "planted"})
            if fault == "cut":
                return self.cut()
            self.mute = fault == "lost"
            names = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
            if kind not in ("resolve", "lfs", "verify", "info", "tree") and not self.known():
                return self.answer(401, {"error": "Invalid username or password."})
            run(self, **names)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, repo: str, revision: str | None) -> tuple[Repository, Commit] | None:
        """The repository and the commit, or an answer that says what is missing, as the Hub does."""
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self.known()):
            return self.answer(404, {"error": "Repository not found", "code": "RepoNotFound"})
        commit = repository.at(revision or "main")
        if commit is None:
            return self.answer(404, {"error": "Invalid rev id", "code": "RevisionNotFound"})
        return repository, commit

    def on_whoami(self) -> None:
        self.answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def on_create(self) -> None:
        request = json.loads(self.body)
        owner, name = request.get("organization") or USER, request["name"]
        if owner != USER:
            return self.answer(403, {"error": f"no right to create under {owner}"})
        if f"{owner}/{name}" in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo"})
        self.hub.create(f"{owner}/{name}", request.get("visibility") == "private")
        self.answer(200, {"url": f"{self.hub.url}/{owner}/{name}"})

    def on_validate(self) -> None:
        head = re.match(r"---\n.*?\n---\n", json.loads(self.body)["content"], re.DOTALL)
        problems = [] if head else [{"message": "no metadata"}]
        self.answer(200 if head else 400, {"errors": problems, "warnings": []})

    def on_info(self, repo: str, revision: str | None = None) -> None:
        if target := self.find(repo, revision):
            siblings = [{"rfilename": name} for name in target[1].files]
            facts = {"id": repo, "modelId": repo, "sha": target[1].oid, "private": target[0].private, "tags": []}
            self.answer(200, facts | {"siblings": siblings})

    def on_tree(self, repo: str, revision: str) -> None:
        if target := self.find(repo, revision):
            files = target[1].files.items()
            self.answer(200, [{"type": "file", "path": n, "size": len(c), "oid": git_oid(c)} for n, c in files])

    def on_preupload(self, repo: str, revision: str) -> None:
        if not (target := self.find(repo, revision)):
            return
        request, files = json.loads(self.body), []
        hidden = request.get("gitIgnore", target[1].files.get(".gitignore", b"").decode()).split()
        for file in request["files"]:
            old = target[1].files.get(file["path"])
            sample = base64.b64decode(file["sample"])
            lfs = file["size"] >= LARGE or large(sample)
            oid = None if old is None else hashlib.sha256(old).hexdigest() if lfs else git_oid(old)
            ignored = any(fnmatch(file["path"], pattern) for pattern in hidden)
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        self.answer(200, {"files": files})

    def on_batch(self, repo: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, actions = wanted["oid"], {}
            if oid not in self.hub.objects:
                actions = {
                    "upload": {"href": f"{self.hub.url}/lfs/{oid}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify"},
                }
                actions = {"actions": actions}
            objects.append({"oid": oid, "size": wanted["size"], **actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def on_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer(400, {"error": "the content has another hash"})
        self.hub.objects[oid] = self.body
        self.answer(200, {})

    def on_verify(self) -> None:
        request = json.loads(self.body)
        there = len(self.hub.objects.get(request["oid"], b"")) == request["size"]
        self.answer(200 if there else 404, {})

    def on_commit(self, repo: str, revision: str) -> None:
        if not (target := self.find(repo, revision)):
            return
        if not repo.startswith(f"{USER}/") and "create_pr" not in self.query:
            return self.answer(403, {"error": "no right to write"})
        lines = [json.loads(line) for line in self.body.splitlines()]
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        if header.get("parentCommit", target[1].oid) != target[1].oid:
            return self.answer(412, {"error": "the branch has moved"})
        files, deleted = dict(target[1].files), []
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.hub.objects:
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile" and value["path"] in files:
                del files[value["path"]]
                deleted.append(value["path"])
            elif key != "header":
                return self.answer(400, {"error": f"{key} {value['path']} cannot be"})
        branches, pull = target[0].branches, None
        if "create_pr" in self.query:
            pull = f"refs/pr/{sum(name.startswith('refs/') for name in branches) + 1}"
            branches[pull] = list(branches[revision])
        branch = branches[pull or revision]
        commit = commit_of(branch, files, header["summary"])
        commit.deleted = deleted
        branch.append(commit)
        url = f"{self.hub.url}/{repo}"
        number = pull and f"{url}/discussions/{pull.rpartition('/')[2]}"
        self.answer(200, {"commitUrl": f"{url}/commit/{commit.oid}", "commitOid": commit.oid, "pullRequestUrl": number})

    def on_resolve(self, repo: str, revision: str, path: str) -> None:
        if not (target := self.find(repo, revision)):
            return
        content = target[1].files.get(path)
        if content is None:
            return self.answer(
                404, {"error": "Entry not found", "code": "EntryNotFound"}, {"X-Repo-Commit": target[1].oid}
            )
        etag = hashlib.sha256(content).hexdigest() if large(content) else git_oid(content)
        headers = {"X-Repo-Commit": target[1].oid, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        self.answer(200, None, headers, content)


ROUTES: tuple[tuple[str, str, Callable[..., None], str], ...] = (  # method, pattern, what runs, kind for `faults`
    ("GET", r"/api/whoami-v2", Handler.on_whoami, "whoami"),
    ("POST", r"/api/repos/create", Handler.on_create, "create"),
    ("POST", r"/api/validate-yaml", Handler.on_validate, "validate"),
    ("GET", rf"/api/models/{REPO}(/revision/{REVISION})?", Handler.on_info, "info"),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(/.*)?", Handler.on_tree, "tree"),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", Handler.on_preupload, "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", Handler.on_commit, "commit"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.on_batch, "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.on_upload, "lfs"),
    ("POST", r"/lfs/verify", Handler.on_verify, "verify"),
    ("HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.on_resolve, "resolve"),
    ("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.on_resolve, "resolve"),
)
