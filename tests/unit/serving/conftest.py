import pytest

from serving.bundle import read_bundle
from tests.bundles import make_bundle


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """Models toy/1 and toy/2 (uint8 images of 8 x 8) and features/1 (float32, 5), all with 10 clusters."""
    path = tmp_path_factory.mktemp("models")
    make_bundle(path)
    make_bundle(path, version=2, seed=1)
    make_bundle(path, name="features", shape=(5,), dtype="float32")
    return path


@pytest.fixture(scope="session")
def novelty_repository(tmp_path_factory):
    """Model toy, uint8 images of 8 x 8, 10 clusters: version 1 with novelty, version 2 without."""
    path = tmp_path_factory.mktemp("novelty-models")
    make_bundle(path, novelty=True)
    make_bundle(path, version=2)
    return path


@pytest.fixture(scope="session")
def novelty_manifest(novelty_repository):
    return read_bundle(novelty_repository / "toy" / "1").manifest


@pytest.fixture(scope="session")
def manifest(repository):
    return read_bundle(repository / "toy" / "1").manifest


@pytest.fixture(scope="session")
def features_manifest(repository):
    return read_bundle(repository / "features" / "1").manifest
