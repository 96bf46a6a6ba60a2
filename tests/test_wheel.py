"""The wheel carries the YAML and runs from any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_yaml_of_conf_and_sweeps(wheel):
    shipped = {
        name.removeprefix("ppo_lab/_shipped/")
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".yaml")
    }
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("conf", "sweeps")
        for path in (ROOT / folder).rglob("*.yaml")
    }
    assert shipped == there
    assert len(there) > 20


def test_the_wheel_holds_what_the_page_is_made_of(wheel):
    assets = {name for name in zipfile.ZipFile(wheel).namelist() if "/assets/" in name}
    names = ("page.css", "page.js", "player.js")
    assert assets == {f"ppo_lab/reports/assets/{name}" for name in names}


def test_the_wheel_trains_from_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    work = tmp_path / "work"
    work.mkdir()
    # -P and an explicit path: neither the checkout nor its editable install may be found first.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "import ppo_lab; assert ppo_lab.__file__.startswith(sys.path[0]), ppo_lab.__file__; "
        "sys.argv = ['ppo-lab', 'network=tiny', 'total_steps=1024', 'tracking=local']; "
        "from ppo_lab.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (summary,) = work.glob("outputs/runs/*/summary.json")
    assert summary.is_file()
