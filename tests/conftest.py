"""What holds for all tests: none reads or fills the cache of programs of whoever runs them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def program_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPO_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "programs"))
        yield
