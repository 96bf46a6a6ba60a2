"""Claims that are measured on control tasks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.claims.grids import interval, setting_values, trained
from benchmarks.claims.pictures import axes, draw_bands, ratio_map, save
from benchmarks.result_page import table
from benchmarks.runs import SeedRun, by_setting

__all__ = ["asymmetric", "clip", "critic", "normalised"]

_RETURN = "charts/episodic_return_last100"


def clip() -> list[str]:
    """Does the clip prevent collapse; does it keep the ratio inside; does entropy last?"""
    runs = trained("clip")
    _draw_collapse(runs)
    _draw_ratio(runs)
    return [
        "## The clip and collapse",
        "`python -m ppo_lab sweep=claims/clip -m`, CartPole:",
        _score_table(runs),
        "## The ratio",
        "The same runs, all iterations, measured over the whole rollout after the last epoch. "
        "`inside`: iterations in which no ratio of the rollout was outside the clip; `outside`: "
        "rows outside, of all rows; largest: of each iteration, its median and its maximum.",
        _ratio_table(runs),
    ]


def _of_rate(runs: Sequence[SeedRun], rate: str) -> dict[str, list[SeedRun]]:
    """Return the runs of one learning rate by epsilon."""
    its = [run for run in runs if setting_values(run)["lr"] == rate]
    names = dict.fromkeys(setting_values(run)["epsilon"] for run in its)
    return {
        f"ε = {name}" if name != "none" else "no clip": [
            run for run in its if setting_values(run)["epsilon"] == name
        ]
        for name in names
    }


def _draw_collapse(runs: Sequence[SeedRun]) -> None:
    rates = sorted({setting_values(run)["lr"] for run in runs}, key=float)
    titles = [f"return, lr {float(rate):g}" for rate in rates]
    figure, panels = axes([*titles, f"entropy, lr {float(rates[0]):g}"])
    for panel, rate in zip(panels, rates):
        draw_bands(panel, _of_rate(runs, rate), _RETURN)
    draw_bands(panels[-1], _of_rate(runs, rates[0]), "ppo/entropy_frac")
    panels[-1].set_ylim(0, 1)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, "clip")


def _draw_ratio(runs: Sequence[SeedRun]) -> None:
    groups = _of_rate(runs, min((setting_values(run)["lr"] for run in runs), key=float))
    figure, panels = axes([f"probability ratio, {name}" for name in groups])
    for panel, its in zip(panels, groups.values()):
        ratio_map(panel, its)
    save(figure, "ratio")


def _score_table(runs: Sequence[SeedRun]) -> str:
    rows = []
    for setting, its in by_setting(runs).items():
        returns = [run.summary["final_return"] for run in its]
        has_share = "ppo/entropy_frac" in its[0].rows[-1]  # of discrete actions
        rows.append([
            setting,
            len(its),
            interval(returns),
            f"{min(returns):.0f}",
            sum(bool(run.summary["collapsed"]) for run in its),
            sum(bool(run.summary["dead"]) for run in its),
            sum(run.summary["status"] == "diverged" for run in its),
            interval([run.last("ppo/entropy_frac") for run in its], 2) if has_share else "",
        ])  # fmt: skip
    header = ["setting", "seeds", "final return, 95 %", "worst seed", "collapsed", "dead"]
    return table([*header, "diverged", "entropy at the end, of its maximum"], rows)


def _ratio_table(runs: Sequence[SeedRun]) -> str:
    rows = []
    for setting, its in by_setting(runs).items():
        epsilon = setting_values(its[0])["epsilon"]
        every = [row for run in its for row in run.rows]
        largest = [row["ppo/ratio_max"] for row in every]
        kl = [row["ppo/kl_k3"] for row in every]
        name = "ppo/outside_0p2_frac" if epsilon == "none" else "ppo/clip_frac"
        outside = [row[name] for row in every]
        rows.append([
            setting,
            "" if epsilon == "none" else f"{sum(frac == 0 for frac in outside) / len(every):.1%}",
            f"{statistics.fmean(outside):.1%}" + (" of 0.2" if epsilon == "none" else ""),
            f"{statistics.median(largest):.2f}",
            f"{max(largest):.3g}",
            f"{statistics.median(kl):.4f}",
            f"{max(kl):.3g}",
        ])  # fmt: skip
    header = ["setting", "inside", "outside", "largest, median", "largest, max"]
    return table([*header, "KL (k3), median", "KL, max"], rows)


def asymmetric() -> list[str]:
    """Does a clip that is wider above keep more entropy?"""
    runs = trained("asymmetric")
    groups = {
        f"[1 - {values['epsilon']}, 1 + {values['epsilon_high']}]": its
        for its in by_setting(runs).values()
        if (values := setting_values(its[0]))
    }
    figure, panels = axes(["return", "entropy, share of its maximum"])
    for panel, metric in zip(panels, (_RETURN, "ppo/entropy_frac")):
        draw_bands(panel, groups, metric)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, "asymmetric")
    return [
        "## Entropy and the two sides of the clip",
        "`python -m ppo_lab sweep=claims/asymmetric -m`, CartPole:",
        _score_table(runs),
    ]


def normalised() -> list[str]:
    """Does training without a clip fail on MuJoCo, with and without normalised observations?"""
    runs = trained("normalised")
    figure, panels = axes(["normalised observations", "raw observations"])
    for panel, value in zip(panels, ("true", "false")):
        its = [r for r in runs if setting_values(r)["env.normalize_observations"].lower() == value]
        groups = {
            "no clip" if name == "none" else f"ε = {name}": [
                run for run in its if setting_values(run)["epsilon"] == name
            ]
            for name in dict.fromkeys(setting_values(run)["epsilon"] for run in its)
        }
        draw_bands(panel, groups, _RETURN)
    panels[0].set_ylabel("return", fontsize=8)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, "normalised")
    return [
        "## The clip and normalisation",
        "`python -m ppo_lab sweep=claims/normalised -m`, Hopper-v5:",
        _score_table(runs),
    ]


def critic() -> list[str]:
    """What do a critic, a shared trunk and no critic reach?"""
    runs = trained("critic")
    groups = {setting_values(its[0])["memory"]: its for its in by_setting(runs).values()}
    figure, panels = axes(["return"])
    draw_bands(panels[0], groups, _RETURN)
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, "critic")
    rows = []
    for name, its in groups.items():
        returns = [run.summary["final_return"] for run in its]
        parameters = its[0].summary["num_parameters"]
        rows.append([
            name, len(its), interval(returns), f"{min(returns):.0f}",
            f"{sum(filter(None, parameters.values())):,}",
        ])  # fmt: skip
    header = ["setting", "seeds", "final return, 95 %", "worst seed", "parameters"]
    return [
        "## With a critic and without, control",
        "`python -m ppo_lab sweep=claims/critic -m`, CartPole:",
        table(header, rows),
    ]
