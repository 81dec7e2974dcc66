"""The Hub's HTTP interface, one function per route: `serve(hub, request, query, *groups of the path)`."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field

from hub_store import LARGE, File, Repository, small_file

NAME = r"([\w.-]+/[\w.-]+)"


@dataclass
class Answer(Exception):
    """A response. It is raised if a request cannot be served."""

    status: int
    body: bytes | dict | list = b""
    headers: dict[str, str] = field(default_factory=dict)


def refuse(status: int, message: str, code: str | None = None):
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, {"error": message}, headers)


def answer(body=b"", headers=None):
    return Answer(200, body, headers or {})


def who(hub, request) -> tuple[str | None, bool]:
    """Return the user and whether the token may write. A wrong token is refused. Without a token, it is a visitor."""
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    if sent and sent not in hub.store.tokens:
        raise refuse(401, "Invalid user token.")
    return hub.store.tokens.get(sent, (None, False))


def writer(hub, request, namespace: str | None) -> str:
    user, may_write = who(hub, request)
    if user is None:
        raise refuse(401, "Invalid username or password.")
    if not may_write or namespace not in (None, user):
        raise refuse(403, f"You don't have the rights to write to the namespace {namespace or user!r}.")
    return user


def find(hub, request, name: str, *, to_write: bool = False) -> Repository:
    user, _ = who(hub, request)
    repository = hub.store.repositories.get(name)
    if repository is None or (repository.private and user != name.split("/")[0]):
        raise refuse(404 if user else 401, "Repository not found", "RepoNotFound")
    if to_write:
        writer(hub, request, name.split("/")[0])
    return repository


def commit_at(repository: Repository, revision: str):
    commit = repository.find(revision)
    if commit is None:
        raise refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def create(hub, request, query):
    asked = json.loads(request.body)
    user = writer(hub, request, asked.get("organization"))
    name = f"{user}/{asked['name']}"
    url = f"{hub.url}/{name}"
    if name in hub.store.repositories:
        return Answer(409, {"error": "You already created this model repo", "url": url})
    hub.store.create(name, asked.get("visibility") == "private")
    return answer({"url": url, "name": name, "id": name})


def whoami(hub, request, query):
    user, may_write = who(hub, request)
    if user is None:
        raise refuse(401, "Invalid username or password.")
    role = {"role": "write" if may_write else "read"}
    return answer({"name": user, "type": "user", "orgs": [], "auth": {"accessToken": role}})


def may_write(hub, request, query, name):
    find(hub, request, name, to_write=True)
    return answer({})


def create_branch(hub, request, query, name, branch):
    repository = find(hub, request, name, to_write=True)
    if branch in repository.branches:
        raise refuse(409, "Reference already exists")
    start = commit_at(repository, json.loads(request.body or b"{}").get("startingPoint", "main"))
    repository.branches[branch] = [start]
    return answer({})


def validate_yaml(hub, request, query):
    """Make the known checks of the Hub on metadata: YAML, fields that are lists, names of models, model-index."""
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    who(hub, request)
    errors = []
    try:
        data = ModelCard(json.loads(request.body)["content"]).data.to_dict()
        bases = data.get("base_model") or []
        for base in [bases] if isinstance(bases, str) else bases:
            validate_repo_id(base)
        for key in ("datasets", "tags", "metrics"):
            if not all(isinstance(value, str) for value in data.get(key) or []):
                errors.append(f'"{key}" must be a list of strings')
        for result in (r for model in data.get("model-index") or [] for r in model["results"]):
            if not all(isinstance(result["dataset"].get(key), str) for key in ("name", "type")):
                errors.append('"model-index[0].results[0].dataset" needs "name" and "type"')
    except HFValidationError as error:
        errors.append(f'"base_model" is not valid. Use a model id: {error}')
    except Exception as error:  # any error that the library finds
        errors.append(f"{type(error).__name__}: {error}")
    if errors:
        return Answer(400, {"errors": [{"message": message} for message in errors], "warnings": []})
    return answer({"errors": [], "warnings": []})


def preupload(hub, request, query, name, revision):
    commit = commit_at(find(hub, request, name, to_write=True), revision)
    files = []
    for file in json.loads(request.body)["files"]:
        path, known = file["path"], commit.files.get(file["path"])
        large = path.endswith(LARGE) or file["size"] > 10 << 20
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        files.append(entry | ({"oid": known.oid} if known else {}))
    return answer({"files": files})


def lfs_batch(hub, request, query, name):
    find(hub, request, name, to_write=True)
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        entry, oid = {"oid": wanted["oid"], "size": wanted["size"]}, wanted["oid"]
        if oid not in hub.store.large:
            signed = f"?signature={secrets.token_hex(8)}"
            upload = {"href": f"{hub.url}/lfs/{oid}{signed}"}
            if hub.chunk is not None and wanted["size"] > hub.chunk:
                count = -(-wanted["size"] // hub.chunk)
                parts = {f"{i + 1:05d}": f"{hub.url}/lfs/{oid}/{i + 1}{signed}" for i in range(count)}
                upload = {"href": f"{hub.url}/lfs-complete/{oid}", "header": {"chunk_size": str(hub.chunk), **parts}}
            verify = {"href": f"{hub.url}/{name}.git/info/lfs/objects/verify"}
            entry["actions"] = {"upload": upload, "verify": verify}
        objects.append(entry)
    return answer({"transfer": "basic" if hub.chunk is None else "multipart", "objects": objects})


def signed(query) -> None:
    if not query.get("signature"):
        raise refuse(403, "no signature")


def lfs_put(hub, request, query, oid):
    signed(query)
    if not hub.store.keep_large(oid, request.body):
        raise refuse(400, "the content has another digest")
    return answer()


def lfs_put_part(hub, request, query, oid, number):
    signed(query)
    hub.store.parts.setdefault(oid, {})[int(number)] = request.body
    return answer(headers={"ETag": f'"{oid[:8]}-{number}"'})


def lfs_complete(hub, request, query, oid):
    asked = json.loads(request.body)
    parts = hub.store.parts.get(oid, {})
    content = b"".join(parts.get(part["partNumber"], b"") for part in asked["parts"])
    if asked["oid"] != oid or not hub.store.keep_large(oid, content):
        raise refuse(400, "the parts have another digest")
    return answer({})


def lfs_verify(hub, request, query, name):
    find(hub, request, name, to_write=True)
    asked = json.loads(request.body)
    if len(hub.store.large.get(asked["oid"], b"")) != asked["size"]:
        raise refuse(404, "no such object")
    return answer({})


def commit(hub, request, query, name, revision):
    repository = find(hub, request, name, to_write=True)
    files = dict(commit_at(repository, revision).files)
    message = ""
    for line in map(json.loads, request.body.splitlines()):
        key, value = line["key"], line["value"]
        if key == "header":
            message = value["summary"]
        elif key == "file":
            files[value["path"]] = small_file(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in hub.store.large:
                raise refuse(400, f"{value['path']}: its content was never uploaded")
            files[value["path"]] = File(None, value["oid"], value["size"])
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise refuse(400, f"unknown key {key}")
    made = hub.store.commit(repository, revision, message, files)
    return answer({"commitUrl": f"{hub.url}/{name}/commit/{made.oid}", "commitOid": made.oid, "success": True})


def info(hub, request, query, name, revision="main"):
    repository = find(hub, request, name)
    at = commit_at(repository, revision)
    siblings = [{"rfilename": path} for path in at.files]
    return answer({"id": name, "sha": at.oid, "private": repository.private, "tags": [], "siblings": siblings})


def refs(hub, request, query, name):
    branches = find(hub, request, name).branches
    listed = [
        {"name": n, "ref": f"refs/heads/{n}", "targetCommit": commits[-1].oid} for n, commits in branches.items()
    ]
    return answer({"branches": listed, "tags": [], "converts": []})


def tree(hub, request, query, name, revision, folder=""):
    at = commit_at(find(hub, request, name), revision)
    entries = []
    for path, file in at.files.items():
        if path.startswith(folder):
            entry = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            entries.append(entry | ({"lfs": lfs} if file.is_large else {}))
    return answer(entries)


def resolve(hub, request, query, name, revision, path):
    at = commit_at(find(hub, request, name), revision)
    file = at.files.get(path)
    if file is None:
        raise refuse(404, f"Entry not found: {path}", "EntryNotFound")
    content = hub.store.content(file)
    return answer(content, {"ETag": f'"{file.oid}"', "X-Repo-Commit": at.oid, "Accept-Ranges": "none"})


MODEL = rf"/api/models/{NAME}"
ROUTES = [
    ("POST", r"/api/repos/create", create),
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"{MODEL}/auth-check/write", may_write),
    ("POST", rf"{MODEL}/branch/([^/]+)", create_branch),
    ("POST", rf"{MODEL}/preupload/([^/]+)", preupload),
    ("POST", rf"{MODEL}/commit/([^/]+)", commit),
    ("GET", rf"{MODEL}/refs", refs),
    ("GET", rf"{MODEL}/revision/([^/]+)", info),
    ("GET", rf"{MODEL}/tree/([^/]+)", tree),
    ("GET", rf"{MODEL}/tree/([^/]+)/(.+)", tree),
    ("GET", MODEL, info),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/verify", lfs_verify),
    ("PUT", r"/lfs/([0-9a-f]{64})", lfs_put),
    ("PUT", r"/lfs/([0-9a-f]{64})/(\d+)", lfs_put_part),
    ("POST", r"/lfs-complete/([0-9a-f]{64})", lfs_complete),
    ("HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", resolve),
    ("GET", rf"/{NAME}/resolve/([^/]+)/(.+)", resolve),
]
