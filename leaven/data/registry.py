"""Standard data sets: public origin, licence and checksum of each, and where its files are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leaven.data import standard_sets as read
from leaven.data.cache import cache_dir
from leaven.data.downloads import download, offline, sha256_of
from leaven.data.examples import ClonePair, CodeExample, Example, ExampleKind, Pair, TaggedTokens, Text
from leaven.data.splits import Split, SplitName
from leaven.errors import DataError


@dataclass(frozen=True, slots=True)
class StandardFile:
    """A file of a set: place under `LEAVEN_DATA` (or the cache), public address, checksum."""

    path: str
    url: str
    sha256: str


@dataclass(frozen=True, slots=True)
class StandardSet:
    """A public data set.

    files: by part of the set as it was published.
    parts: which parts a split is read from; a part that serves several splits is divided by `read`.
    read: (paths of one part's files by the order of `files`, part, split, kind) -> examples.
    """

    name: str
    what: str
    licence: str
    origin: str
    kinds: tuple[ExampleKind, ...]
    files: Mapping[str, tuple[StandardFile, ...]]
    parts: Mapping[SplitName, str]
    read: Callable[[tuple[Path, ...], str, SplitName, ExampleKind], list[Example]]

    def load(self, split: Split, kind: ExampleKind) -> list[Example]:
        """Examples of a split. Raises: DataError when a file is neither at hand nor to be had, or is altered."""
        if split == "all":
            return [example for name in self.parts for example in self.load(name, kind)]
        part = self.parts[split]
        return self.read(tuple(locate(self, file) for file in self.files[part]), part, split, kind)

    def missing(self) -> list[StandardFile]:
        """Files that are neither under `LEAVEN_DATA` nor in the cache."""
        return [file for files in self.files.values() for file in files if _at_hand(file) is None]


def data_dir() -> Path | None:
    """The folder that `LEAVEN_DATA` names, None when it is not set."""
    named = os.environ.get("LEAVEN_DATA")
    return Path(named).expanduser() if named else None


def _cached(file: StandardFile) -> Path:
    return cache_dir() / "standard" / file.path


def _at_hand(file: StandardFile) -> Path | None:
    folder = data_dir()
    places = [folder / file.path] if folder is not None else []
    return next((place for place in [*places, _cached(file)] if place.is_file()), None)


def locate(dataset: StandardSet, file: StandardFile) -> Path:
    """Path of a file with the right checksum: from `LEAVEN_DATA`, else the cache, else downloaded into it.

    Raises: DataError saying what to put where, or which file is altered.
    """
    path = _at_hand(file)
    if path is None:
        path = _cached(file)
        advice = (
            f"Put the file from {file.url} at {file.path} in a folder and set LEAVEN_DATA to that folder, "
            f"or put it at {path}."
        )
        if offline():
            raise DataError(
                f"{dataset.name}: the file {file.path} is not at hand and the network is off "
                f"(LEAVEN_OFFLINE or HF_HUB_OFFLINE). {advice}"
            )
        try:
            download(file.url, path, file.sha256)
        except DataError as error:
            raise DataError(f"{dataset.name}: {error}. {advice}") from error
        return path
    found = sha256_of(path)
    if found != file.sha256:
        raise DataError(
            f"{dataset.name}: {path} is altered or cut off (sha256 {found}, expected {file.sha256}); "
            f"remove it or replace it by {file.url}"
        )
    return path


_CODEXGLUE = "https://raw.githubusercontent.com/microsoft/CodeXGLUE/main"
_TRANSLATION = f"{_CODEXGLUE}/Code-Code/code-to-code-trans/data"
_REFINEMENT = f"{_CODEXGLUE}/Code-Code/code-refinement/data/small"
_NER = "https://raw.githubusercontent.com/jeniyat/StackOverflowNER/master/resources/annotated_ner_data/StackOverflow"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"


def _java2cs(part: str, java: str, cs: str) -> tuple[StandardFile, ...]:
    return (
        StandardFile(f"code/java2cs.{part}.java", f"{_TRANSLATION}/{part}.java-cs.txt.java", java),
        StandardFile(f"code/java2cs.{part}.cs", f"{_TRANSLATION}/{part}.java-cs.txt.cs", cs),
    )


def _refine(part: str, buggy: str, fixed: str) -> tuple[StandardFile, ...]:
    return (
        StandardFile(f"code/refine.{part}.buggy", f"{_REFINEMENT}/{part}.buggy-fixed.buggy", buggy),
        StandardFile(f"code/refine.{part}.fixed", f"{_REFINEMENT}/{part}.buggy-fixed.fixed", fixed),
    )


STANDARD_SETS: dict[str, StandardSet] = {
    dataset.name: dataset
    for dataset in (
        StandardSet(
            name="java2cs",
            what="Java to C# translation of functions (CodeXGLUE); also the functions themselves",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(Pair, CodeExample),
            files={
                "train": _java2cs(
                    "train",
                    "397c44e7a0ad250849231a3beeb255ea54078e1cb62cf13359893d474025cb90",
                    "80013b5b5c7e973df52adec4944b895eaaee0944f09ab6179084631a15d36b7a",
                ),
                "valid": _java2cs(
                    "valid",
                    "5cf92447fd81e126c7d791527f71d16dbcb91d3aa4aafda5c7d9d5c30d75a204",
                    "513c430d61901a90895b22fb235c532dbdc26b84db9d825e1d04a5856a97aec1",
                ),
                "test": _java2cs(
                    "test",
                    "8e4c9db2467622c119366a89aa0ca798b5f72c11433e3ac3080df21e0e4e06f6",
                    "7a863a53cba15473d44ef2f7c99096370a204d4c1a54cc3d81c59d4a305756af",
                ),
            },
            parts={"train": "train", "valid": "valid", "test": "test"},
            read=read.java2cs,
        ),
        StandardSet(
            name="refine",
            what="buggy Java function to its repair (CodeXGLUE small); valid file split 90/10, and the test file",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(Pair,),
            files={
                "valid": _refine(
                    "valid",
                    "e83a0c524cdce5a4492dfe0c9bc7d642aa5ed267ddbae5ffd1e563fe54cae6b8",
                    "dc9c23594350988dcdaf456a1e8eea1dc86c81d1c0ff9985ff6d63d15196ffd2",
                ),
                "test": _refine(
                    "test",
                    "d2e675094f471b3bfbb9419eb7cf14dca11f8d41185319d3310cbc3f517df323",
                    "e7ec462d00d253ddec3d1cef7a06cfc99db1cfe94039a6607ed14afeef6be04a",
                ),
            },
            parts={"train": "valid", "valid": "valid", "test": "test"},
            read=read.refine,
        ),
        StandardSet(
            name="concode",
            what="description and class context to a Java method (CodeXGLUE); the published dev file, split 80/10/10",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(Pair,),
            files={
                "dev": (
                    StandardFile(
                        "code/concode.dev.jsonl",
                        f"{_CODEXGLUE}/Text-Code/text-to-code/dataset/concode/dev.json",
                        "cd4f91cfaa12a886a1d7acaf92eaf8ab066845c37a9221e56634d345958c922a",
                    ),
                )
            },
            parts={"train": "dev", "valid": "dev", "test": "dev"},
            read=read.concode,
        ),
        StandardSet(
            name="cosqa",
            what="does a Python function answer a web query (CodeXGLUE CoSQA); the published dev file, split 80/10/10",
            licence="C-UDA",
            origin="microsoft/CodeXGLUE",
            kinds=(ClonePair, Pair),
            files={
                "dev": (
                    StandardFile(
                        "code/cosqa.dev.json",
                        f"{_CODEXGLUE}/Text-Code/NL-code-search-WebQuery/CoSQA/cosqa-dev.json",
                        "247d48d6072f122cdd16b38974d50bc3253d80d42c3ca89790df3a7a28627cad",
                    ),
                )
            },
            parts={"train": "dev", "valid": "dev", "test": "dev"},
            read=read.cosqa,
        ),
        StandardSet(
            name="stackoverflow-ner",
            what="named entities (software) in StackOverflow posts",
            licence="MIT",
            origin="jeniyat/StackOverflowNER",
            kinds=(TaggedTokens,),
            files={
                part: (StandardFile(f"code/stackoverflow_ner.{part}.txt", f"{_NER}/{part}.txt", sha256),)
                for part, sha256 in (
                    ("train", "dd10a161731f2eb3270af6643dbcd4a5a665face786b17549cceec1846745c93"),
                    ("dev", "96d7427f9bcc91a73f21a2476b87c14e280efb3a027c53ece261cbe5bac9e157"),
                    ("test", "e09ae70248e772e3794520dcb4a51d5ff8375d088506af40ebed302830ab4c50"),
                )
            },
            parts={"train": "train", "valid": "dev", "test": "test"},
            read=read.conll,
        ),
        StandardSet(
            name="wikitext2",
            what="English Wikipedia paragraphs; the published valid file, split 90/10 by article, and the test file",
            licence="CC BY-SA",
            origin="pytorch/examples",
            kinds=(Text,),
            files={
                part: (StandardFile(f"text/wikitext2.{part}.txt", f"{_WIKITEXT}/{part}.txt", sha256),)
                for part, sha256 in (
                    ("valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
                    ("test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
                )
            },
            parts={"train": "valid", "valid": "valid", "test": "test"},
            read=read.wikitext,
        ),
    )
}
