"""The one way a tensor changes sides, and the clocks beside it."""

import time

import pytest
import torch

from ppo_lab.devices.meters import PhaseClock
from ppo_lab.devices.placement import Place, Placement, Traffic

CPU = torch.device("cpu")


@pytest.mark.parametrize("to", Place)
def test_a_move_copies_even_where_both_sides_are_one_memory(to):
    placement, tensor = Placement(CPU), torch.arange(6.0)
    moved = placement.move(tensor, to)
    assert torch.equal(moved, tensor)
    assert moved.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("to", "traffic"),
    [(Place.device, Traffic(h2d_bytes=24 + 5)), (Place.host, Traffic(d2h_bytes=24 + 5))],
)
def test_bytes_are_counted_by_direction(to, traffic):
    placement = Placement(CPU)
    placement.move(torch.zeros(6), to)  # 6 float32: 24 B
    placement.move(torch.zeros(5, dtype=torch.bool), to)  # 5 B
    assert placement.traffic == traffic


def test_a_move_writes_into_what_it_is_given():
    placement, out = Placement(CPU), torch.zeros(3)
    moved = placement.move(torch.ones(3), Place.host, out=out)
    assert moved is out
    assert out.tolist() == [1.0, 1.0, 1.0]
    assert placement.traffic == Traffic(d2h_bytes=12)


def test_traffic_since_an_earlier_count_is_the_difference():
    assert Traffic(10, 7).since(Traffic(4, 2)) == Traffic(6, 5)


def test_host_tensors_are_pinned_only_where_there_is_a_bus():
    host = Placement(CPU).empty_host_like(torch.zeros(2, 3), pin=True)
    assert host.shape == (2, 3)
    assert not host.is_pinned()
    assert not Placement(CPU).is_cuda


def test_a_phase_clock_adds_up_within_an_iteration_and_over_all_of_them():
    clock = PhaseClock(CPU)
    for _ in range(2):
        with clock.phase("update"):
            time.sleep(0.01)
    clock.add("record", 2.0)
    first = clock.read()
    assert first.keys() == {"update", "record"}
    assert 0.02 <= first["update"] < 1.0
    assert first["record"] == 2.0
    clock.add("record", 1.0)
    assert clock.read() == {"record": 1.0}  # only what came after the last read
    assert clock.totals == {"update": first["update"], "record": 3.0}
    assert clock.read() == {}
