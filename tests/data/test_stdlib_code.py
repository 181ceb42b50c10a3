import json
import logging
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from leaven.data import stdlib_code as module
from leaven.data.near_duplicates import token_set
from leaven.data.stdlib_code import installed_code, split_of_module, stdlib_code
from leaven.errors import ConfigError, DataError


def top(example):
    return example.module.split(".")[0]


def test_splits_share_no_module_and_make_up_the_whole():
    splits = {name: stdlib_code(name) for name in ("train", "valid", "test")}
    modules = {name: {top(example) for example in examples} for name, examples in splits.items()}
    assert not modules["train"] & modules["valid"] and not modules["train"] & modules["test"]
    assert not modules["valid"] & modules["test"]
    assert sum(map(len, splits.values())) == len(stdlib_code("all"))


def test_shares_are_about_80_10_10():
    everything = stdlib_code("all")
    assert len(everything) > 5000
    for selected in (everything, stdlib_code("all", with_docstring=True)):
        counts = Counter(split_of_module(example.module) for example in selected)
        assert 0.75 < counts["train"] / len(selected) < 0.85
        assert 0.06 < counts["valid"] / len(selected) < 0.14
        assert 0.06 < counts["test"] / len(selected) < 0.14


def test_private_twins_share_a_split():
    for name in ("datetime", "decimal", "io", "abc", "strptime"):
        assert split_of_module(name) == split_of_module(f"_py{name}.x") == split_of_module(f"_{name}")


def test_no_function_of_valid_or_test_is_nearly_in_train():
    held_out = stdlib_code("valid")[::40] + stdlib_code("test")[::40]
    train = [token_set(example.code) for example in stdlib_code("train")]
    for example in held_out:
        tokens = token_set(example.code)
        assert max(len(tokens & other) / len(tokens | other) for other in train) < 0.9
    flat = [" ".join(example.code.split()) for example in stdlib_code("all")]
    assert len(set(flat)) == len(flat)


def test_spans_and_places_are_exact():
    root = Path(sysconfig.get_path("stdlib"))
    for example in stdlib_code("all")[::501]:
        line = (root / example.path).read_text(encoding="utf-8").split("\n")[example.line - 1]
        assert f"def {example.name}" in line and example.language == "python"
        assert example.path.startswith(example.module.replace(".", "/"))
    assert not any("/test/" in f"/{example.path}" or "/tests/" in f"/{example.path}" for example in stdlib_code("all"))


def test_with_docstring_is_the_documented_part():
    documented = stdlib_code("valid", with_docstring=True)
    assert documented == [example for example in stdlib_code("valid") if example.docstring]
    assert all(example.docstring and "\n\n" not in example.docstring for example in documented)


def test_unknown_split():
    with pytest.raises(ConfigError, match=r"'dev'.*train, valid, test, all"):
        stdlib_code("dev")


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    root, cache = tmp_path / "lib", tmp_path / "cache"
    (root / "pkg" / "test").mkdir(parents=True)
    (root / "site-packages").mkdir()
    (root / "a.py").write_text("def f(x):\n    'Doc.'\n    return x + 1\n")
    (root / "b.py").write_text("def f(x):\n    return x + 1\n\ndef g(y):\n    return [y]\n")
    (root / "broken.py").write_text("def f(:\n")
    (root / "pkg" / "__init__.py").write_text("def h():\n    return {}\n")
    (root / "pkg" / "test" / "t.py").write_text("def hidden():\n    return 1\n")
    (root / "site-packages" / "s.py").write_text("def hidden():\n    return 2\n")
    monkeypatch.setenv("LEAVEN_CACHE", str(cache))
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(root))
    module._everything.cache_clear()
    yield root, cache
    module._everything.cache_clear()


def found():
    module._everything.cache_clear()
    return [(example.module, example.name) for example in stdlib_code("all")]


EXPECTED = [("a", "f"), ("b", "g"), ("pkg", "h")]


def test_scan_skips_tests_and_site_packages_and_repeats(small_library):
    assert found() == EXPECTED


def test_documented_one_of_two_repeats_is_kept(small_library):
    root, _ = small_library
    (root / "0.py").write_text("def f(x):\n    return x + 1\n")
    assert ("a", "f") in found() and ("0", "f") not in found()


def test_scan_is_read_from_the_cache_until_a_file_changes(small_library, monkeypatch):
    root, cache = small_library
    assert found() == EXPECTED
    with monkeypatch.context() as patch:
        patch.setattr(module, "_scan", lambda *_: pytest.fail("scanned again"))
        assert found() == EXPECTED
    (root / "b.py").write_text("def changed():\n    return 'something else'\n")
    assert ("b", "changed") in found()
    assert len(list(cache.iterdir())) == 2 and not list(cache.glob("*.part"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"f"', b'"F"'),
        lambda content: b"\xff" * 100,
        lambda content: b"{}\n" + content.split(b"\n", 1)[1],
        lambda content: content + json.dumps({"code": 1}).encode() + b"\n",
    ],
)
def test_damaged_cache_is_noticed_and_rebuilt(small_library, caplog, damage):
    _, cache = small_library
    assert found() == EXPECTED
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    with caplog.at_level(logging.WARNING):
        assert found() == EXPECTED
    assert "is damaged" in caplog.text and file.read_bytes() == sound


def test_cache_folder_that_cannot_be_written_is_said(small_library, caplog, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LEAVEN_CACHE", str(blocked / "below"))
    with caplog.at_level(logging.WARNING):
        assert found() == EXPECTED
    assert "could not be kept" in caplog.text


def test_interpreter_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path / "none.zip"))
    with pytest.raises(DataError, match="not a folder of source files"):
        stdlib_code()
    (tmp_path / "none.zip").mkdir()
    with pytest.raises(DataError, match="no Python functions"):
        stdlib_code()


def test_installed_code_leaves_out_what_is_held_out(tmp_path, monkeypatch):
    held_out = stdlib_code("test")[100]
    everything = stdlib_code("all")
    monkeypatch.setattr(module, "stdlib_code", lambda split: everything)
    for package in ("first", "second", "leaven"):
        (tmp_path / package).mkdir()
    (tmp_path / "first" / "m.py").write_text(f"{held_out.code}\n\n\ndef unheard_of(zzz):\n    return zzz @ zzz\n")
    (tmp_path / "second" / "m.py").write_text(
        "def unheard_of(zzz):\n\n    return zzz @ zzz\n\ndef other_one(qq):\n    return ~qq\n"
    )
    (tmp_path / "leaven" / "m.py").write_text("def own(leaf):\n    return -leaf\n")
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [(e.module, e.name) for e in installed_code()] == [("first.m", "unheard_of"), ("second.m", "other_one")]
    assert [e.name for e in installed_code({"second"})] == ["unheard_of"]
