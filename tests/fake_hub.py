"""A Hugging Face Hub on the loopback interface, as much of it as pushing and fetching need.

    with FakeHub() as hub, hub.in_process(monkeypatch, cache): ...      # this process
    env = {**os.environ, **hub.environment(cache)}                      # another one

Model and dataset repositories, private or not, with branches, tags and commits; small files in the
commit itself, others through LFS. `hub.fail(...)` and `hub.drop(...)` make the next matching
requests go wrong; `hub.requests` holds every request with its headers.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t" * 34
LFS = (".parquet", ".mp4", ".safetensors", ".png", ".jpg", ".npz", ".bin")


@dataclass
class File:
    data: bytes
    lfs: bool

    @property
    def oid(self):
        """As git names it: the blob, or for LFS the content."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def __post_init__(self):
        self.commit("main", {}, "initial commit")

    def commit(self, branch, files, message):
        oid = hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision):
        """Commit of a branch, tag or commit; None if there is none."""
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def files(self, revision="main"):
        return self.commits[self.resolve(revision)]


@dataclass
class Trouble:
    """What goes wrong with the next `times` requests that match."""

    method: str
    pattern: str
    times: int
    status: int | None
    after: int
    late: bool = False
    words: str = "made to fail"


class FakeHub:
    """The server; `url` is its address, `repos` what it holds by (kind, OWNER/NAME)."""

    def __init__(self):
        self.repos, self.objects, self.requests, self.troubles = {}, {}, [], []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def repo(self, kind, name):
        return self.repos[kind, name]

    def fail(self, method, pattern, status, times=1, words="made to fail"):
        """Answer with an error status, and words of the Hub's own."""
        self.troubles.append(Trouble(method, pattern, times, status, 0, words=words))

    def drop(self, method, pattern, times=1, after=0, late=False):
        """Close the connection, after some bytes of the body; `late`: after doing what was asked.

        Without `late`, what would change something is not done.
        """
        self.troubles.append(Trouble(method, pattern, times, None, after, late))

    def count(self, method, pattern):
        """Requests so far."""
        return sum(m == method and bool(re.search(pattern, path)) for m, path, _ in self.requests)

    def environment(self, cache):
        """Variables for another process, logged in."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def in_process(self, monkeypatch, cache, *, token=TOKEN):
        """Point huggingface_hub here, which read its variables when it was imported."""
        from huggingface_hub import constants

        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        return self


class _AnswerError(Exception):
    def __init__(self, status, content=b"", headers=None, code=None):
        super().__init__(status)
        self.status = status
        self.body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.headers = headers or {}
        if code is not None:
            self.headers = {**self.headers, "X-Error-Code": code, "X-Error-Message": code}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def _serve(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self._chunks() if self._chunked() else self.rfile.read(length)
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        drop = None
        with self.hub.lock:
            self.hub.requests.append((self.command, self.route, dict(self.headers)))
            trouble = self._trouble()
            try:
                if trouble is not None and trouble.status is not None:
                    raise _AnswerError(trouble.status, {"error": trouble.words})
                if trouble is not None and trouble.late:
                    with contextlib.suppress(_AnswerError):
                        self._dispatch()
                if trouble is not None and self.command not in ("GET", "HEAD"):
                    self.close_connection = True
                    return
                self._dispatch()
                answer = _AnswerError(404, {"error": f"no such route {self.command} {self.route}"})
            except _AnswerError as found:
                answer = found
            if trouble is not None and trouble.status is None:
                drop = trouble.after
        self.send_response(answer.status)
        body = answer.body
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if drop is None else body[:drop])
        if drop is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _chunked(self):
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def _chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _trouble(self):
        for trouble in self.hub.troubles:
            matches = trouble.method == self.command and re.search(trouble.pattern, self.route)
            if matches and trouble.times > 0:
                trouble.times -= 1
                return trouble
        return None

    @property
    def _known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _must_be_known(self):
        if not self._known:
            raise _AnswerError(401, {"error": "Invalid credentials"})

    def _dispatch(self):
        if self.route == "/api/whoami-v2":
            self._must_be_known()
            raise _AnswerError(
                200, {"name": "tester", "type": "user", "auth": {"type": "access_token"}}
            )
        if self.route == "/api/validate-yaml":
            raise _AnswerError(200, {"errors": [], "warnings": []})
        if self.route == "/api/repos/create":
            self._create()
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", self.route):
            self.hub.objects[found[1]] = self.body
            good = hashlib.sha256(self.body).hexdigest() == found[1]
            raise _AnswerError(200 if good else 400)
        if found := re.fullmatch(
            r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.route
        ):
            self._batch()
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route):
            self._resolve("dataset" if found[1] else "model", *found.groups()[1:])
        if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(.*))?", self.route):
            self._api(self._repo(found[1], found[2]), found[3] or "")

    def _repo(self, kind, name):
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self._known):
            raise _AnswerError(
                404 if self._known else 401, {"error": "Repository not found"}, code="RepoNotFound"
            )
        return repo

    def _commit_of(self, repo, revision):
        oid = repo.resolve(unquote(revision))
        if oid is None:
            raise _AnswerError(404, {"error": "Invalid rev"}, code="RevisionNotFound")
        return oid

    def _create(self):
        self._must_be_known()
        wanted = json.loads(self.body)
        kind, name = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repos:
            raise _AnswerError(409, {"error": "You already created this repo", "url": url})
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.hub.repos[kind, name] = Repo(kind, name, bool(private))
        raise _AnswerError(200, {"url": url, "name": name})

    def _batch(self):
        self._must_be_known()
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        raise _AnswerError(200, {"transfer": "basic", "objects": objects})

    def _resolve(self, kind, name, revision, path):
        repo = self._repo(kind, name)
        oid = self._commit_of(repo, revision)
        file = repo.commits[oid].get(unquote(path))
        if file is None:
            raise _AnswerError(
                404, {"error": "Entry not found"}, {"X-Repo-Commit": oid}, "EntryNotFound"
            )
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        data, status = file.data, 200
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        headers["Content-Length"] = str(len(data))
        raise _AnswerError(status, data, headers)

    def _api(self, repo, rest):
        action, _, argument = rest.partition("/")
        argument = unquote(argument)
        if self.command in ("GET", "HEAD") and action in ("", "revision"):
            oid = self._commit_of(repo, argument or "main")
            siblings = [{"rfilename": path} for path in repo.commits[oid]]
            raise _AnswerError(
                200,
                {
                    "id": repo.name,
                    "sha": oid,
                    "private": repo.private,
                    "siblings": siblings,
                    "tags": [],
                },
            )
        if action == "tree":
            revision, _, folder = argument.partition("/")
            self._tree(repo, self._commit_of(repo, revision), folder)
        if action == "paths-info":
            files = repo.commits[self._commit_of(repo, argument)]
            form = parse_qs(self.body.decode()) if b"=" in self.body else json.loads(self.body)
            raise _AnswerError(200, [_entry(p, files[p]) for p in form["paths"] if p in files])
        if action == "refs":
            raise _AnswerError(
                200,
                {
                    "branches": _refs(repo.branches, "heads"),
                    "converts": [],
                    "tags": _refs(repo.tags, "tags"),
                },
            )
        self._must_be_known()
        if action == "preupload":
            self._preupload(repo, self._commit_of(repo, argument))
        if action == "commit":
            self._commit(repo, argument)
        if action == "branch" and self.command == "POST":
            if argument in repo.branches:
                raise _AnswerError(409, {"error": "Reference already exists"})
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repo.branches[argument] = self._commit_of(repo, start)
            raise _AnswerError(200, {})
        if action == "tag" and self.command == "POST":
            name = json.loads(self.body)["tag"]
            if name in repo.tags:
                raise _AnswerError(409, {"error": "Tag reference exists already"})
            repo.tags[name] = self._commit_of(repo, argument)
            raise _AnswerError(200, {})
        if action == "tag" and self.command == "DELETE":
            raise _AnswerError(200 if repo.tags.pop(argument, None) else 404, {})

    def _tree(self, repo, oid, folder):
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        found, folders = [], set()
        for path, file in sorted(repo.commits[oid].items()):
            if not path.startswith(prefix):
                continue
            parents = path[len(prefix) :].split("/")[:-1]
            for depth in range(len(parents) if deep else min(1, len(parents))):
                folders.add(prefix + "/".join(parents[: depth + 1]))
            if deep or not parents:
                found.append(_entry(path, file))
        listed = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        if folder and not found and not folders:
            raise _AnswerError(404, {"error": "not found"}, code="EntryNotFound")
        raise _AnswerError(200, listed + found)

    def _preupload(self, repo, oid):
        answers = []
        for file in json.loads(self.body)["files"]:
            lfs = file["path"].endswith(LFS) or file["size"] > 10**7
            old = repo.commits[oid].get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": old.oid if old else None,
                }
            )
        raise _AnswerError(200, {"files": answers})

    def _commit(self, repo, revision):
        branch = unquote(revision)
        files = dict(repo.commits[self._commit_of(repo, branch)])
        message = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _AnswerError(400, {"error": f"{value['path']} was not uploaded"})
                files[value["path"]] = File(self.hub.objects[value["oid"]], True)
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif entry["key"] == "deletedFolder":
                files = {p: f for p, f in files.items() if not p.startswith(value["path"])}
        oid = repo.commit(branch, files, message)
        url = f"{self.hub.url}/{repo.name}/commit/{oid}"
        raise _AnswerError(200, {"success": True, "commitOid": oid, "commitUrl": url})


def _entry(path, file):
    entry = {"type": "file", "path": path, "oid": file.oid[:40], "size": len(file.data)}
    if file.lfs:
        entry["lfs"] = {"oid": file.oid, "size": len(file.data), "pointerSize": 134}
    return entry


def _refs(names, kind):
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid}
        for name, oid in names.items()
    ]
