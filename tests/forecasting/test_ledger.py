"""The ledger's bytes, worked out by hand. 512 bytes are 128 float32 numbers: one block."""

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.forecasting.categories import Category, HostBytes, MemoryKey, sum_by_key
from ppo_lab.forecasting.ledger import Ledger

CPU = torch.device("cpu")
KIB = 1024


@pytest.fixture
def ledger():
    return Ledger(Placement(CPU))


def floats(num_kib):
    return torch.zeros(num_kib * 256)


def test_a_tensor_counts_until_the_last_view_of_it_is_gone(ledger):
    with ledger, ledger.phase("update"):
        tensor = floats(8)
        view = tensor[:10]
        assert ledger.now == 8 * KIB
        del tensor
        assert ledger.now == 8 * KIB
        del view
        assert ledger.now == 0
    assert ledger.peak.total == 8 * KIB


def test_sizes_are_rounded_up_to_512_bytes(ledger):
    with ledger:
        kept = [torch.zeros(1), torch.zeros(128), torch.zeros(129)]  # 4, 512 and 516 bytes
        assert ledger.now == 512 + 512 + 1024
    del kept
    assert ledger.now == 0


def test_the_peak_is_the_most_at_once_and_not_the_sum(ledger):
    with ledger, ledger.phase("rollout"):
        first = floats(4)
        del first
        second = floats(6)
        del second
        third = floats(5)
    assert ledger.peak.total == 6 * KIB
    assert (ledger.peak.phase, ledger.peak.doing) == ("rollout", "(zeros)")
    assert ledger.now == 5 * KIB
    del third


def test_each_phase_has_its_own_peak_which_includes_what_was_there_before(ledger):
    with ledger:
        with ledger.phase("rollout"):
            kept = floats(3)
        with ledger.phase("update"):
            floats(4)
        with ledger.phase("rollout"):
            floats(1)  # 3 + 1 is more than the first time, 3
    peaks = {name: peak.total for name, peak in ledger.phase_peaks.items()}
    assert peaks == {"rollout": 4 * KIB, "update": 7 * KIB}
    assert ledger.peak.phase == "update"
    del kept


def test_a_tensor_has_been_what_it_turned_out_to_be(ledger):
    with ledger, ledger.phase("rollout"):
        column = floats(4)
        noise = floats(2)  # the peak: 6 KiB, when the column had no name yet
        del noise
        ledger.mark(Category.rollout, [column])
    assert ledger.peak.by_key == {
        MemoryKey(Category.rollout): 4 * KIB,
        MemoryKey(Category.workspace): 2048,
    }
    assert ledger.peak.by_category()[Category.rollout] == 4 * KIB
    assert ledger.peak.by_category()[Category.weights] == 0


def test_one_storage_is_shared_out_by_the_bytes_of_its_views(ledger):
    with ledger, ledger.phase("build"):
        bucket = torch.zeros(300)  # 1200 bytes, 1536 rounded
        actor, critic = bucket.split([100, 200])
        ledger.mark_shared(Category.weights, [(actor, "actor"), (critic, "critic")])
    assert sum_by_key(ledger._live) == {
        MemoryKey(Category.weights, "actor"): 400,
        MemoryKey(Category.weights, "critic"): 1136,
    }


def test_a_training_step_is_weights_gradients_and_activations(ledger):
    """One 256 x 256 layer (256 KiB) on 16 rows (16 KiB): by hand.

    Forward keeps x @ w; backward needs its gradient beside it, and ends with w's gradient.
    """
    with ledger:
        with ledger.phase("build"):
            weight = nn.Parameter(torch.zeros(256, 256))
            ledger.mark(Category.weights, [weight], "actor")
            ledger.watch({"actor": [weight]})
            rows = torch.zeros(16, 256)
        with ledger.phase("update"):
            (rows @ weight).tanh().sum().backward()
    peak = ledger.peak
    assert (peak.phase, peak.doing) == ("update", "backward (mm)")
    assert peak.by_key[MemoryKey(Category.weights, "actor")] == 256 * KIB
    assert peak.by_key[MemoryKey(Category.gradients, "actor")] == 256 * KIB
    assert peak.by_key[MemoryKey(Category.workspace)] == 16 * KIB  # the rows
    # tanh's gradient; the sum and its gradient are gone or one number; its result is freed first
    assert 16 * KIB <= peak.by_key[MemoryKey(Category.activations)] <= 17 * KIB
    weight.grad = None
    assert ledger.now == 256 * KIB + 16 * KIB


def test_activations_made_inside_a_module_belong_to_its_network(ledger):
    layer = nn.Linear(256, 256)
    removers = ledger.watch_forward("critic", layer)
    rows = torch.zeros(16, 256)
    with ledger, ledger.phase("update"):
        values = layer(rows)
        own = values * 2.0
    assert sum_by_key(ledger._live)[MemoryKey(Category.activations, "critic")] == 16 * KIB
    assert sum_by_key(ledger._live)[MemoryKey(Category.activations)] == 16 * KIB
    for remove in removers:
        remove()
    with ledger, ledger.phase("update"):
        again = layer(rows)
    assert sum_by_key(ledger._live)[MemoryKey(Category.activations)] == 32 * KIB
    del values, own, again


def test_what_is_computed_without_gradients_is_workspace(ledger):
    layer = nn.Linear(256, 256)
    with ledger, ledger.phase("rollout"), torch.no_grad():
        values = layer(torch.zeros(16, 256))
    # addmm returns 16 KiB; the weight, 256 KiB, is known from its transpose; the rows are gone
    assert sum_by_key(ledger._live) == {MemoryKey(Category.workspace): (256 + 16) * KIB}
    assert ledger.peak.doing == "(addmm)"
    del values


def test_moved_tensors_lie_where_they_were_moved_and_pinned_blocks_round_up():
    placement = Placement(CPU)
    ledger = Ledger(placement)
    with ledger, ledger.phase("build"):
        weights = torch.zeros(300)  # 1200 bytes
        pinned = placement.empty_host_like(weights, pin=True)  # 1200 bytes take 2048
        placement.move(weights, Place.host, out=pinned)
        moments = torch.zeros_like(pinned)  # made from a host tensor: in the host, pageable
        up = placement.move(moments, Place.device)
        assert ledger.now == 2 * 1536
        assert ledger.host_peak == HostBytes(pinned=2048, pageable=1200)
    del weights, pinned, moments, up
    assert ledger.now == 0


def test_fake_tensors_are_counted_like_real_ones():
    def program():
        ledger = Ledger(Placement(CPU))
        with ledger:
            with ledger.phase("build"):
                layer = nn.Linear(300, 70)
                ledger.mark(Category.weights, layer.parameters(), "actor")
                ledger.watch({"actor": list(layer.parameters())})
                ledger.watch_forward("actor", layer)
            with ledger.phase("update"):
                layer(torch.zeros(33, 300)).relu().square().mean().backward()
        return ledger.peak

    with FakeTensorMode():
        fake = program()
    assert fake == program()


def test_the_ledger_keeps_nothing_alive(ledger):
    with ledger, ledger.phase("update"):
        for _ in range(100):
            floats(1)
    gc.collect()
    assert ledger.now == 0
    assert ledger.peak.total == KIB
