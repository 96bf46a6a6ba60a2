"""Reward hacking: what becomes of language that nothing rewards."""

from __future__ import annotations

from benchmarks.claims.grids import interval, setting_values, trained
from benchmarks.claims.pictures import axes, draw_bands, save
from benchmarks.result_page import table
from benchmarks.runs import by_setting

__all__ = ["text"]


def text() -> list[str]:
    """Which of clip and KL keeps the language?"""
    groups = {}
    for its in by_setting(trained("text")).values():
        values = setting_values(its[0])
        clip = "no clip" if values["epsilon"] == "none" else f"ε = {values['epsilon']}"
        kl = "no KL" if float(values["env.kl_coef"]) == 0 else f"KL {values['env.kl_coef']}"
        groups[f"{clip}, {kl}"] = its
    figure, panels = axes(["reward", "grammatical share (not rewarded)", "distinct share"])
    names = ("text/reward_mean", "text/grammatical_frac", "text/distinct_frac")
    for panel, name in zip(panels, names):
        draw_bands(panel, groups, name)
    panels[2].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, "text")
    rows = [
        [label, len(its), *(interval([run.last(name) for run in its], 2) for name in names)]
        for label, its in groups.items()
    ]
    header = ["setting", "seeds", "reward, 95 %", "grammatical", "distinct"]
    what = "`python -m ppo_lab sweep=claims/text -m`, the last 5 iterations:"
    return ["## Reward hacking", what, table(header, rows)]
