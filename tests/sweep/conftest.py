"""What tests of several files need: a database server, started once."""

import pytest
from postgres_server import PostgresServer, why_not


@pytest.fixture(scope="session")
def server():
    if reason := why_not():
        pytest.skip(reason)
    running = PostgresServer()
    yield running
    running.close()
