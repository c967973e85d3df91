import pytest
from demo_folder import make_demo

from frugalfm.reporting import collect_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The stand-in's folder; not to be changed."""
    return make_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def results(demo):
    return collect_demo(demo)
