"""What the summary says about memory and bus."""

from core_helpers import config

from ppo_lab.bus import BusLimit
from ppo_lab.memory_summary import device_section
from ppo_lab.placement import Traffic
from ppo_lab.trace import Copies, DeviceUse
from ppo_lab.trainer import Trainer


def test_the_bus_is_summed_over_the_run_and_compared_with_its_limit():
    trainer = Trainer([config()])
    trainer.placement.traffic = Traffic(700, 300)
    assert device_section(trainer) == {"pcie": {"h2d_bytes": 700, "d2h_bytes": 300}}
    trainer.meters.bus = BusLimit(60e9, 50e9)
    limits = {"h2d_limit_gb_per_s": 60.0, "d2h_limit_gb_per_s": 50.0}
    traffic = {"h2d_bytes": 700, "d2h_bytes": 300}
    assert device_section(trainer) == {"pcie": traffic | limits}
    up, down = Copies(30_000_000_000, 4, 1.0), Copies(0, 0, 0.0)
    trainer.meters.use = DeviceUse(2.0, 3, 0.25, 0.5, 0.25, up, down)
    trainer.meters.used_phases = ("update",)
    window = {"h2d_gb_per_s": 30.0, "h2d_limit_frac": 0.5, "pageable_bytes": 4.0}
    assert device_section(trainer) == {
        "pcie": traffic | limits | window,
        "perf": {
            "kernel_busy_frac": 0.25,
            "exposed_copy_frac": 0.5,
            "idle_no_copy_frac": 0.25,
            "window_s": 2.0,
            "window_phases": ["update"],
        },
    }
