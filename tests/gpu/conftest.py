"""What GPU tests of several files need: a guard against waiting for the device."""

import pytest
import torch


@pytest.fixture
def forbid_syncs(monkeypatch):
    """Return a function that makes ``owner.name`` raise wherever it waits for the device.

    It returns the names of what has been called since, in order.
    """
    calls = []

    def forbid(owner, name, function):
        def guarded(*args, **kwargs):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                calls.append(name)

        monkeypatch.setattr(owner, name, guarded)
        return calls

    return forbid
