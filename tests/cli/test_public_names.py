import subprocess
import sys

import pytest

import leaven


def test_the_catalogue_is_reached_from_the_package():
    assert leaven.catalog.card("codet5").number == 1


def test_public_names_are_listed():
    assert {"run", "load", "apply", "compare", "catalog", "__version__"} <= set(dir(leaven))


def test_an_unknown_name_says_which_exist():
    with pytest.raises(AttributeError, match="catalog, run, load, apply, compare"):
        leaven.rum  # noqa: B018


def test_importing_the_package_imports_nothing_of_it():
    script = "import sys, leaven; print(sorted(name for name in sys.modules if name.startswith('leaven.')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
