"""How a GPU spent its time, on traces whose shares are worked out by hand."""

import random

import pytest

from ppo_lab.devices.trace import device_use, union

H2D = "Memcpy HtoD (Pinned -> Device)"
D2H = "Memcpy DtoH (Device -> Pinned)"


def event(category, begin_us, duration_us, name="gemm", **args):
    """Return one event as torch.profiler writes it."""
    times = {"ts": begin_us, "dur": duration_us}
    return {"ph": "X", "cat": category, "name": name, "args": args, **times}


def kernel(begin_us, duration_us):
    return event("kernel", begin_us, duration_us)


def copy(name, begin_us, duration_us, num_bytes):
    return event("gpu_memcpy", begin_us, duration_us, name, bytes=num_bytes)


def test_overlapping_nested_and_touching_intervals_become_one():
    assert union([(0, 4), (2, 6)]) == [(0, 6)]
    assert union([(0, 10), (2, 3), (4, 5)]) == [(0, 10)]
    assert union([(5, 7), (0, 5)]) == [(0, 7)]
    assert union([(6, 7), (0, 5)]) == [(0, 5), (6, 7)]
    assert union([]) == []


def test_the_length_of_a_union_is_that_of_counting_points():
    numbers = random.Random(0)
    for _ in range(200):
        begins = numbers.choices(range(60), k=8)
        intervals = [(begin, begin + numbers.randrange(1, 9)) for begin in begins]
        points = {point for a, b in intervals for point in range(a, b)}
        assert sum(b - a for a, b in union(intervals)) == len(points)


def test_a_moment_is_device_work_or_exposed_copy_or_neither():
    events = [
        kernel(0, 400),
        kernel(300, 200),  # another stream: together [0, 500]
        copy(D2H, 450, 200, 10_000_000),  # [450, 650], of which 150 without a kernel
        copy(H2D, 800, 100, 1_000_000),  # all exposed
        event("cpu_op", 0, 5000),  # the host's own time is not the device's
    ]
    use = device_use(events)  # from 0 to 900
    assert use.wall_s == pytest.approx(900e-6)
    assert use.num_events == 4
    assert use.kernel_busy_frac == pytest.approx(500 / 900)
    assert use.exposed_copy_frac == pytest.approx((150 + 100) / 900)
    assert use.idle_no_copy_frac == pytest.approx(150 / 900)  # [650, 800]


def test_the_hosts_clock_widens_the_window_by_idle_time_alone():
    events = [kernel(0, 300), copy(D2H, 200, 200, 8)]
    use = device_use(events, wall_s=1000e-6)
    assert use.kernel_busy_frac == pytest.approx(0.3)
    assert use.exposed_copy_frac == pytest.approx(0.1)
    assert use.idle_no_copy_frac == pytest.approx(0.6)
    # A clock that runs a little behind the device's cannot make shares above 1.
    assert device_use(events, wall_s=399e-6).wall_s == pytest.approx(400e-6)


def test_a_copy_hidden_behind_kernels_is_not_exposed():
    use = device_use([kernel(0, 100), kernel(100, 100), copy(H2D, 50, 100, 4)])
    assert use.exposed_copy_frac == 0.0
    assert use.kernel_busy_frac == 1.0


def test_both_directions_at_once_are_exposed_once():
    # [0, 100] and [50, 150] with a kernel from 150 to 200: 150 of 200 are exposed.
    use = device_use([copy(H2D, 0, 100, 4), copy(D2H, 50, 100, 4), kernel(150, 50)])
    assert use.exposed_copy_frac == pytest.approx(0.75)
    assert use.h2d.busy_s == use.d2h.busy_s == pytest.approx(100e-6)


def test_bandwidth_is_bytes_over_the_time_of_copying_in_that_direction():
    events = [
        copy(H2D, 0, 100, 3_000_000),
        copy(H2D, 50, 100, 3_000_000),  # beside the first: together 150 us
        copy(H2D, 1000, 50, 2_000_000),
        copy(D2H, 0, 400, 10_000_000),
    ]
    use = device_use(events)
    assert use.h2d.num_bytes == 8_000_000
    assert use.h2d.bytes_per_s == pytest.approx(8e6 / 200e-6)
    assert use.d2h.bytes_per_s == pytest.approx(25e9)


def test_pageable_copies_are_told_apart():
    events = [
        copy("Memcpy HtoD (Pageable -> Device)", 0, 100, 1000),
        copy(H2D, 200, 100, 500),
        copy("Memcpy DtoH (Device -> Pageable)", 400, 100, 7),
    ]
    use = device_use(events)
    assert (use.h2d.num_bytes, use.h2d.pageable_bytes) == (1500, 1000)
    assert (use.d2h.num_bytes, use.d2h.pageable_bytes) == (7, 7)


def test_fills_and_copies_within_the_device_are_work_and_not_bus():
    events = [
        event("gpu_memset", 0, 10, "Memset (Device)", bytes=64),
        copy("Memcpy DtoD (Device -> Device)", 10, 30, 4096),
        copy(D2H, 40, 60, 8),
    ]
    use = device_use(events)
    assert use.kernel_busy_frac == pytest.approx(0.4)
    assert use.exposed_copy_frac == pytest.approx(0.6)
    assert use.h2d.num_bytes == 0
    assert use.h2d.bytes_per_s is None


def test_an_empty_trace_has_no_shares_and_divides_by_nothing():
    use = device_use([{"ph": "M", "name": "process_name", "args": {}}, event("cpu_op", 0, 10)])
    assert use.num_events == 0
    assert (use.kernel_busy_frac, use.exposed_copy_frac, use.idle_no_copy_frac) == (0, 0, 0)
    # With a window, a device that did nothing was idle.
    assert device_use([], wall_s=1.0).idle_no_copy_frac == 1.0


def test_shares_sum_to_one_on_a_large_trace_of_many_streams():
    numbers = random.Random(1)
    events = [kernel(numbers.uniform(0, 1e6), numbers.expovariate(0.2)) for _ in range(20_000)]
    events += [copy(H2D, numbers.uniform(0, 1e6), 20, 100) for _ in range(2_000)]
    use = device_use(events)
    total = use.kernel_busy_frac + use.exposed_copy_frac + use.idle_no_copy_frac
    assert total == pytest.approx(1.0)
    assert 0.0 < use.exposed_copy_frac < use.kernel_busy_frac < 1.0
