from pathlib import Path

import pytest

from tests.outside.package import SOURCE, on_the_path, write_distribution


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """The package is installed while a module's tests run. Gives the folder with its dist-info."""
    folder = write_distribution(tmp_path_factory.mktemp("site"))
    with on_the_path(folder, SOURCE):
        yield folder
