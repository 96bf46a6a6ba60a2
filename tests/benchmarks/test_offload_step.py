"""The benchmark's bounds on an offloaded gradient step, on numbers worked out by hand."""

import pytest

from benchmarks.offload_step import Bound


def test_a_step_is_at_least_as_long_as_its_busiest_resource():
    assert Bound(compute_s=4.0, d2h_s=1.0, h2d_s=2.0, host_s=3.0).busiest_s == 4.0
    assert Bound(compute_s=1.0, d2h_s=1.0, h2d_s=2.0, host_s=3.0).busiest_s == 3.0


def test_with_exact_clipping_the_host_begins_after_the_last_gradient():
    # Gradients leave beside the backward pass, weights return beside the host's step: 4 + 3.
    assert Bound(compute_s=4.0, d2h_s=1.0, h2d_s=2.0, host_s=3.0).clipped_s == 7.0
    assert Bound(compute_s=1.0, d2h_s=5.0, h2d_s=6.0, host_s=3.0).clipped_s == 11.0


def test_copies_hide_behind_the_backward_pass_alone():
    # Of 6 s of compute the backward pass is 4: a copy of 3 s hides in it, of 5 s not quite.
    assert Bound(compute_s=6.0, d2h_s=3.0, h2d_s=2.0, host_s=1.0).exposed_s == 2.0
    assert Bound(compute_s=6.0, d2h_s=5.0, h2d_s=2.0, host_s=1.0).exposed_s == pytest.approx(3.0)
