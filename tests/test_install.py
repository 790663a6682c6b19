"""Source archive and wheel: what is in them, and that the wheel runs by itself, from an empty directory."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds the wheel from the source archive, from a copy so that nothing is left in the project."""
    copy, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    for name in ("elite_pl", "conf"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    """Installs the wheel alone into an empty place."""
    place = tmp_path_factory.mktemp("place")
    install = [sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--target", str(place)]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def test_the_folder_that_holds_the_checkout_does_not_hide_the_package(tmp_path):
    (tmp_path / "elite_pl").mkdir()
    command = [sys.executable, "-c", "import elite_pl; print(elite_pl.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).resolve() == (PROJECT / "elite_pl" / "__init__.py").resolve()


def test_it_holds_all_modules_configs_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(p.relative_to(PROJECT)) for p in (PROJECT / "elite_pl").rglob("*.py*") if p.suffix in (".py", ".pyi")
    }
    configs = {f"elite_pl/{p.relative_to(PROJECT)}" for p in (PROJECT / "conf").rglob("*.yaml")}
    assert modules | configs | {"elite_pl/py.typed", "elite_pl/conf/__init__.py"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"elite_pl"}, "nothing else"


def test_it_runs_alone_from_an_empty_directory(place, tmp_path):
    # PYTHONPATH comes before what is installed. To show that the configs, too, come from there, one is changed.
    digits = place / "elite_pl" / "conf" / "dataset" / "digits.yaml"
    changed = digits.read_text().replace("epochs: 20", "epochs: 2")
    assert changed != digits.read_text()
    digits.write_text(changed)

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(place)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    imported = python("-c", "import elite_pl, elite_pl.conf as c; print(elite_pl.__file__, c.__file__, sep='\\n')")
    assert imported.splitlines() == [str(place / "elite_pl" / part / "__init__.py") for part in ("", "conf")]
    assert "pollution" in python("-m", "elite_pl.train", "--help")
    directory = tmp_path / python("-m", "elite_pl.train", "logger=none", "method.pretrain_epochs=0").splitlines()[-1]
    assert (directory / "metrics.json").is_file()
    assert len((directory / "history.csv").read_text().splitlines()) == 3, "header and the two epochs"
    assert [p.name for p in tmp_path.iterdir()] == ["outputs"]
