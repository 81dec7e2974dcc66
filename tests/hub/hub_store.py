"""What a Hub stores: repositories with branches and commits, and large files. There is no HTTP here."""

from __future__ import annotations

import hashlib
import itertools
import threading
from dataclasses import dataclass, field

# The same as in the .gitattributes of a new repository
LARGE = (".bin", ".safetensors", ".pt", ".pth", ".pkl", ".npz", ".parquet", ".onnx", ".h5", ".gz", ".zip")


@dataclass(frozen=True)
class File:
    """A file of a commit: its bytes, or only the digest if it is large."""

    content: bytes | None
    sha256: str
    size: int

    @property
    def is_large(self) -> bool:
        return self.content is None

    @property
    def oid(self) -> str:
        """The digest that a client compares with that of its own file."""
        if self.content is None:
            return self.sha256
        return hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()


def small_file(content: bytes) -> File:
    return File(content, hashlib.sha256(content).hexdigest(), len(content))


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    name: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """Return the last commit of a branch, or the commit with this digest."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for branch in self.branches.values() for c in branch if c.oid == revision), None)


class Store:
    """
    All repositories and large files.

    Attributes:
        tokens: `token: (user, may write)`.
    """

    def __init__(self, tokens: dict[str, tuple[str, bool]]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()
        self._numbers = itertools.count()

    def create(self, name: str, private: bool) -> Repository:
        repository = Repository(name, private)
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE).encode()
        repository.branches["main"] = [self._commit("initial commit", {".gitattributes": small_file(attributes)})]
        self.repositories[name] = repository
        return repository

    def commit(self, repository: Repository, branch: str, message: str, files: dict[str, File]) -> Commit:
        commit = self._commit(message, files)
        repository.branches[branch].append(commit)
        return commit

    def content(self, file: File) -> bytes:
        return self.large[file.sha256] if file.content is None else file.content

    def keep_large(self, oid: str, content: bytes) -> bool:
        """Store a large file and return `True` if its digest is right."""
        if hashlib.sha256(content).hexdigest() != oid:
            return False
        self.large[oid] = content
        return True

    def _commit(self, message: str, files: dict[str, File]) -> Commit:
        oid = hashlib.sha1(f"{next(self._numbers)} {message}".encode()).hexdigest()
        return Commit(oid, message, files)
