import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LEAVEN_CACHE", str(tmp_path_factory.mktemp("leaven-cache")))
    yield
    patch.undo()
