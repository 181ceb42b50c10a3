"""What a piece of the standard library is about, from its documentation or from a line of its source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from leaven.data.examples import Labelled
from leaven.data.splits import Split, check_split, hash_share
from leaven.data.stdlib_code import stdlib_code
from leaven.errors import ConfigError, DataError

# Packages of every Python from 3.11 on.
TOPICS: dict[str, tuple[str, ...]] = {
    "windows": ("tkinter", "idlelib", "turtle"),
    "concurrency": ("asyncio", "threading", "multiprocessing", "concurrent", "queue", "subprocess", "selectors"),
    "mail": ("email", "mailbox", "imaplib", "smtplib", "poplib", "quopri"),
    "web": ("http", "urllib", "html", "wsgiref", "xmlrpc", "ftplib", "socketserver", "ssl", "socket"),
    "numbers": ("_pydecimal", "fractions", "statistics", "numbers", "random", "datetime", "_pydatetime", "calendar"),
    "files": ("tarfile", "zipfile", "pathlib", "shutil", "gzip", "bz2", "lzma", "tempfile", "_pyio", "os", "posixpath"),
    "debugging": ("inspect", "ast", "dis", "pdb", "bdb", "pydoc", "doctest", "unittest", "traceback", "trace"),
    "modules": ("importlib", "pkgutil", "zipimport", "runpy", "sysconfig", "platform", "venv", "site", "ensurepip"),
}
PACKAGES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (
        "tkinter", "idlelib", "asyncio", "email", "importlib", "logging", "multiprocessing", "mailbox", "turtle", "xml",
        "unittest", "http", "tarfile", "urllib", "inspect", "pydoc", "imaplib",
    )},
    "decimal": ("_pydecimal",),
    "datetime": ("datetime", "_pydatetime"),
    "io": ("_pyio",),
}  # fmt: skip
"""Twenty packages with many documented functions, each a topic of its own."""
_WORD = re.compile(r"[A-Za-z]+")


def topic_texts(
    split: Split, *, topics: Mapping[str, Sequence[str]] | None = None, source: bool = False
) -> list[Labelled]:
    """Different texts with the index of their topic, each in one split (80/10/10 by a hash of the text).

    The names of the packages of all topics are struck from the texts, so that none gives itself away.

    Args:
        split: train, valid, test, or all.
        topics: names and the top-level packages of each; by default `TOPICS`.
        source: also the longest line of code of every function, documented or not.

    Raises: ConfigError for less than two topics or a package in two of them; DataError for a topic without texts.
    """
    check_split(split, "docstring-topics")
    topics = topics or TOPICS
    owner = {package: label for label, packages in enumerate(topics.values()) for package in packages}
    if len(topics) < 2 or len(owner) < sum(len(packages) for packages in topics.values()):
        raise ConfigError(f"topics={dict(topics)}: expected two topics or more, and every package in one of them")
    names = {name for package in owner for name in _WORD.findall(package.lower())} | {"tk"}
    found: dict[str, Labelled] = {}
    everything = [0] * len(topics)
    for example in stdlib_code("all"):
        label = owner.get(example.module.partition(".")[0])
        if label is None:
            continue
        everything[label] += 1
        texts = [example.docstring.replace("\n", " ")] if example.docstring else []
        if source:
            texts.append(max((line.strip() for line in example.code.splitlines()[1:]), key=len, default=""))
        for text in texts:
            stripped = _WORD.sub(lambda word: "" if word.group().lower() in names else word.group(), text).strip()
            if len(_WORD.findall(stripped)) >= 3 and split in ("all", _split_of(stripped)):
                found.setdefault(stripped, Labelled(stripped, label))
    empty = [topic for topic, count in zip(topics, everything, strict=True) if not count]
    if empty:
        raise DataError(f"topic {empty[0]!r}: this Python's library has no function of {', '.join(topics[empty[0]])}")
    return list(found.values())


def _split_of(text: str) -> str:
    share = hash_share(f"topic\0{text}")
    return "train" if share < 0.8 else "valid" if share < 0.9 else "test"
