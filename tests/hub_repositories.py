"""Repositories of the Hub of hub_server.py: branches of commits, their hashes, and which files go through LFS."""

import hashlib
from dataclasses import dataclass, field

Files = dict[str, bytes]
LARGE = 10_000  # bytes from which a file goes through LFS; binary ones always do


@dataclass
class Commit:
    oid: str
    files: Files
    message: str
    deleted: list[str] = field(default_factory=list)


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]]

    def at(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c.oid == revision), None)


def commit_of(before: list[Commit], files: Files, message: str) -> Commit:
    content = repr((before and before[-1].oid, sorted(files.items()), message))
    return Commit(hashlib.sha1(content.encode()).hexdigest(), files, message)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def large(content: bytes) -> bool:
    return len(content) >= LARGE or b"\0" in content[:512]
