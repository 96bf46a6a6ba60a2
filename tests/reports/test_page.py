"""The page in a real browser: figures, tables, players, and no request to anywhere."""

import json

import pytest

from ppo_lab.reports.report import write_page
from tests.helpers.chromium import CHROMIUM, ChromiumPage
from tests.helpers.report_runs import write_run
from tests.reports.test_player import balancing_policy

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page in")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of six runs, one of which has diverged and two of which play."""
    folder = tmp_path_factory.mktemp("runs")
    counted = {"categories_gib": {"weights": 0.5}, "peak_gib": 0.5}
    memory = {"memory": {"strategy": "co_resident", "ledger": counted}}
    for number, (epsilon, seed) in enumerate([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]):
        end = 100.0 * (number + 1)
        write_run(folder / str(number), epsilon=epsilon, seed=seed, end=end, summary=memory)
        balancing_policy(folder / str(number))
    write_run(folder / "4", epsilon=None, end=9.0, status="diverged", summary={"reason": "NaN"})
    write_run(folder / "5", env="Pendulum-v1", end=-300.0)
    figures = write_page([folder], folder / "report.html", pytest.fail)
    return folder / "report.html", [figure.name for figure in figures]


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    opened = ChromiumPage(tmp_path_factory.mktemp("profile"))
    opened.open(page[0])
    yield opened
    opened.close()


def texts(browser, selector):
    script = f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
    return browser.run(script)


def test_all_figures_are_drawn_without_an_error_or_a_request(page, browser):
    path, names = page
    assert len(names) > 12
    drawn = browser.run(
        "[...document.querySelectorAll('.plot')].filter((e) => e.querySelector("
        "'.scatterlayer .trace, .barlayer .trace, .heatmaplayer image')).map((e) => e.id)"
    )
    assert drawn == names
    assert browser.errors == []
    outside = [url for url in browser.requests if not url.startswith(("data:", path.as_uri()))]
    assert outside == []


def test_the_page_may_not_request_anything(browser):
    browser.run("fetch('http://127.0.0.1:9/').catch(() => { window.refused = true; })")
    browser.run(
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    refused = [error for error in browser.errors if "Content Security Policy" in error]
    assert len(refused) >= 2
    browser.errors.clear()


def test_the_table_sorts_by_number_and_filters(browser):
    column = texts(browser, "th button").index("return")
    cells = f"tbody tr:not([hidden]) td:nth-child({column + 1})"
    click = f"document.querySelectorAll('th button')[{column}].click()"
    browser.run(click)
    assert texts(browser, cells) == ["-300", "9", "100", "200", "300", "400"]
    browser.run(click)
    assert texts(browser, cells) == ["400", "300", "200", "100", "9", "-300"]
    browser.run(
        "(() => { const filter = document.querySelector('input[type=search]');"
        "filter.value = 'diverged'; filter.dispatchEvent(new Event('input')); })()"
    )
    assert texts(browser, cells) == ["9"]
    assert texts(browser, ".sortable output") == ["1 of 6"]


def test_the_statistic_can_be_chosen(browser):
    shown = (
        "document.getElementById('returns-CartPole-v1').data"
        ".filter((t) => t.meta && t.visible).map((t) => t.meta)"
    )
    assert set(browser.run(shown)) == {"mean"}
    browser.run(
        "(() => { const choice = document.getElementById('aggregate');"
        "choice.value = 'IQM'; choice.dispatchEvent(new Event('change')); })()"
    )
    assert set(browser.run(shown)) == {"IQM"}


def test_the_slider_chooses_a_measured_epsilon_and_the_policy_balances(browser):
    labels = []
    for value in (0, 1):
        browser.run(
            "(() => { const slider = document.querySelector('[data-part=policy]');"
            f"slider.value = {value}; slider.dispatchEvent(new Event('input')); }})()"
        )
        labels += texts(browser, "[data-part=label]")
    assert labels == [
        "epsilon 0.1 (seed 2, final return 200)", "epsilon 0.2 (seed 2, final return 400)",
    ]  # fmt: skip
    steps = browser.run(
        "PPO.play(PPO.envs['CartPole-v1'], PPO.load(DATA.players[0].policies[1]),"
        " [0.04, -0.03, 0.02, 0.04]).actions.length"
    )
    assert steps >= 475


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling_in_light_and_dark(page, browser, is_dark):
    browser.open(page[0], width=390, is_dark=is_dark)
    assert browser.run("document.documentElement.scrollWidth") == 390
    ink = browser.run("document.getElementById('returns-CartPole-v1').layout.font.color")
    assert ink == ("#e6e8ec" if is_dark else "#1d2129")
    assert browser.errors == []
