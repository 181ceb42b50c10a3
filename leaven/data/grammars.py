"""The eight programming languages: their files, grammars and parsers."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from leaven.errors import ConfigError

if TYPE_CHECKING:
    import tree_sitter


@dataclass(frozen=True, slots=True)
class Language:
    """One language: canonical name, other spellings, file suffixes and the grammar's words for names and functions.

    name_kinds: node kinds that hold developer-chosen names beside those that end in `identifier`.
    function_kinds: node kinds of named functions and methods.
    class_wrapper: text put before and after a fragment that is only legal inside a class body.
    """

    name: str
    aliases: tuple[str, ...]
    suffixes: tuple[str, ...]
    function_kinds: frozenset[str]
    name_kinds: frozenset[str] = frozenset()
    comment_kinds: frozenset[str] = frozenset({"comment"})
    class_wrapper: tuple[str, str] | None = None
    entry_points: tuple[str, ...] = field(default=("language",))


_ALL = (
    Language("python", ("py", "python3"), (".py",), frozenset({"function_definition"})),
    Language(
        "java",
        (),
        (".java",),
        frozenset({"method_declaration", "constructor_declaration"}),
        comment_kinds=frozenset({"line_comment", "block_comment"}),
        class_wrapper=("class {name} {{\n", "\n}"),
    ),
    Language("c", (), (".c", ".h"), frozenset({"function_definition"})),
    Language(
        "c_sharp",
        ("csharp", "c#", "cs", "c-sharp"),
        (".cs",),
        frozenset({"method_declaration", "constructor_declaration", "local_function_statement"}),
        class_wrapper=("class {name} {{\n", "\n}"),
    ),
    Language(
        "javascript",
        ("js", "ecmascript", "node"),
        (".js", ".mjs", ".cjs", ".jsx"),
        frozenset(
            {
                "function_declaration",
                "generator_function_declaration",
                "method_definition",
                "variable_declarator",
                "assignment_expression",
            }
        ),
        # Ends in `_pattern`, yet it is the name bound by `const {name} = x`.
        name_kinds=frozenset({"shorthand_property_identifier_pattern"}),
        comment_kinds=frozenset({"comment", "html_comment"}),
        class_wrapper=("class {name} {{\n", "\n}"),
    ),
    Language(
        "go",
        ("golang",),
        (".go",),
        frozenset({"function_declaration", "method_declaration"}),
        name_kinds=frozenset({"label_name"}),
    ),
    Language(
        "ruby",
        ("rb",),
        (".rb", ".rake"),
        frozenset({"method", "singleton_method"}),
        name_kinds=frozenset({"constant", "instance_variable", "class_variable", "global_variable"}),
    ),
    Language(
        "php",
        (),
        (".php", ".phtml"),
        frozenset({"function_definition", "method_declaration"}),
        name_kinds=frozenset({"name"}),
        class_wrapper=("class {name} {{\n", "\n}"),
        entry_points=("language_php", "language_php_only"),
    ),
)
LANGUAGES: tuple[str, ...] = tuple(language.name for language in _ALL)
_BY_NAME = {language.name: language for language in _ALL}
_BY_ALIAS = {alias: language.name for language in _ALL for alias in (language.name, *language.aliases)}
_BY_SUFFIX = {suffix: language.name for language in _ALL for suffix in language.suffixes}


def resolve_language(name: str) -> str:
    """Canonical name of a language from its name, alias or suffix in any letter case (`C#`, `js`, `.py`).

    Raises: ConfigError when the language is not supported; the message lists those that are.
    """
    key = name.strip().lower()
    found = _BY_ALIAS.get(key) or _BY_SUFFIX.get(key)
    if found is not None:
        return found
    near = difflib.get_close_matches(key, _BY_ALIAS, n=1, cutoff=0.6)
    hint = f"; did you mean {_BY_ALIAS[near[0]]!r}?" if near else ""
    raise ConfigError(f"unknown programming language {name!r}: supported are {', '.join(LANGUAGES)}{hint}")


def language_of(path: str | Path) -> str | None:
    """Language of a file by its suffix, None when the suffix belongs to none of the eight."""
    return _BY_SUFFIX.get(Path(path).suffix.lower())


def language_info(name: str) -> Language:
    """The record of a language by any of its names. Raises: ConfigError for an unknown one."""
    return _BY_NAME[resolve_language(name)]


@cache
def grammar(language: str, entry_point: str) -> tree_sitter.Language:
    """The grammar of a canonical language, loaded once."""
    import tree_sitter

    module = importlib.import_module(f"tree_sitter_{language}")
    return tree_sitter.Language(getattr(module, entry_point)())


@cache
def _parser(language: str, entry_point: str) -> tree_sitter.Parser:
    import tree_sitter

    return tree_sitter.Parser(grammar(language, entry_point))


def utf8(code: str) -> bytes:
    """UTF-8 form; a lone surrogate becomes one `?`, so that character offsets stay true."""
    return code.encode("utf-8", errors="replace")


# A page starts with markup or has an opening tag at the head of a line; a tag inside a string makes no page.
_PHP_PAGE = re.compile(rb"\A\s*<|^\s*<\?(?:php\b|=)", re.MULTILINE)


def _parse(code: bytes, language: str) -> tuple[tree_sitter.Tree, str]:
    entry_point = "language"
    if language == "php":
        entry_point = "language_php" if _PHP_PAGE.search(code) else "language_php_only"
    return _parser(language, entry_point).parse(code), entry_point


def parse(code: str | bytes, language: str) -> tree_sitter.Tree:
    """Concrete syntax tree of a file or function (byte offsets of its UTF-8 form).

    PHP without an opening tag is read as code rather than as a page. Raises: ConfigError for an unknown language.
    """
    return _parse(code if isinstance(code, bytes) else utf8(code), resolve_language(language))[0]


def _enclosing_name(code: bytes) -> str:
    # A constructor is only legal in the class of its own name.
    found = re.search(rb"(\w+)\s*\(", code)
    return found[1].decode("utf-8", errors="replace") if found else "Fragment"


def wrapped_fragment(code: bytes, language: str) -> tuple[tree_sitter.Tree, str, int]:
    """Tree, grammar entry point and the number of bytes put before the code."""
    tree, entry_point = _parse(code, language)
    wrapper = _BY_NAME[language].class_wrapper
    if not tree.root_node.has_error or wrapper is None or entry_point == "language_php":
        return tree, entry_point, 0
    name = _enclosing_name(code) if language != "javascript" else "Fragment"
    before = wrapper[0].format(name=name).encode()
    wrapped, wrapped_entry = _parse(before + code + wrapper[1].encode(), language)
    if wrapped.root_node.has_error:
        return tree, entry_point, 0
    return wrapped, wrapped_entry, len(before)


def parse_fragment(code: str | bytes, language: str) -> tuple[tree_sitter.Tree, int]:
    """Like `parse`, but a method that is only legal inside a class is given a class around it when that helps.

    Returns: the tree and the number of bytes before the code in it (0 without a class around it).
    """
    tree, _, shift = wrapped_fragment(code if isinstance(code, bytes) else utf8(code), resolve_language(language))
    return tree, shift


def has_syntax_error(code: str | bytes, language: str) -> bool:
    """Whether the grammar had to skip or invent anything; a lone method without its class is no error."""
    return parse_fragment(code, language)[0].root_node.has_error


def character_offsets(code: bytes, offsets: Sequence[int]) -> list[int]:
    """Character offset of each byte offset; `offsets` ascending and on character boundaries."""
    if code.isascii():
        return list(offsets)
    result, last, characters = [], 0, 0
    for offset in offsets:
        characters += len(code[last:offset].decode("utf-8", errors="replace"))
        result.append(characters)
        last = offset
    return result
