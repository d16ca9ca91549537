"""The wheel alone: what is in it, and that it predicts without the packages of its extras."""

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mips_dist.errors import EXTRA_OF

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# In a process that has this on its path, these packages are not there.
BLOCKER = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Blocker())
"""


def undeclared() -> list[str]:
    """Packages that are installed here and that an install of the wheel alone would not bring."""
    brought = {"mips-dist"}
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    while wanted:
        required = wanted.pop()
        name = canonicalize_name(required.name)
        is_meant = required.marker is None or required.marker.evaluate({"extra": ""})
        if is_meant and name not in brought and _is_installed(name):
            brought.add(name)
            wanted += map(Requirement, importlib.metadata.requires(name) or [])
    brought |= {"pip", "setuptools"}
    return sorted(
        package
        for package, owners in importlib.metadata.packages_distributions().items()
        if not brought & {canonicalize_name(owner) for owner in owners}
    )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the tree: a build leaves files beside what it builds."""
    tree, output = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("mips_dist", "preprocess", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"]
    command = [*pip, "--quiet", "--wheel-dir", output, tree]
    subprocess.run(command, check=True, timeout=300)
    (made,) = output.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel in it, and an import hook that leaves what it asks for."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--quiet", "--target", site, wheel], check=True, timeout=300)
    (site / "sitecustomize.py").write_text(BLOCKER.format(blocked=undeclared()))
    return site


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MIPS_")}
    environment["PYTHONPATH"] = str(installed)
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def mips(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the console script as pip made it."""
    return run(installed, folder, str(installed / "bin" / "mips"), *arguments)


def test_wheel_has_what_a_checkout_has(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("mips_dist", "preprocess")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {
        f"mips_dist/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert {name for name in names if "dist-info" not in name} == expected
    assert {"mips_dist/py.typed", "mips_dist/configs/model/base.yaml"} <= expected
    assert "mips_dist/released/egc/weights.safetensors" in expected
    info = next(name for name in names if name.endswith("METADATA")).removesuffix("METADATA")
    assert f"{info}licenses/LICENSE" in names
    metadata = zipfile.ZipFile(wheel).read(f"{info}METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0] in metadata


def test_predict_and_explain_from_another_folder(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import mips_dist; print(mips_dist.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed)
    (tmp_path / "in.csv").write_text("psmiles\n*CC*\nCCO\n*c1ccc(*)s1\n")
    done = mips(installed, tmp_path, "predict", "in.csv", "-p", "egc", "-o", "out.csv")
    assert (done.returncode, done.stderr) == (0, "")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "rejected", "ok"]
    # Polyethylene has a wide gap, polythiophene a narrow one.
    assert float(rows[0]["egc"]) > 6 > 3.5 > float(rows[2]["egc"])
    done = mips(installed, tmp_path, "explain", "*c1ccc(*)s1", "-o", "bands.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "bands.svg").read_text().startswith("<svg")
    done = mips(installed, tmp_path, "canonicalize", "in.csv", "-o", "canonical.csv")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (
            ["-m", "mips_dist.cli", "rsit", "--input", "in.csv", "--json", "o.json"],
            "torch_geometric",
        ),
        (["-m", "mips_dist.cli", "plan"], "omegaconf"),
        (["-m", "mips_dist.pretrain", "shards=x", "run_dir=y"], "omegaconf"),
        (["-m", "mips_dist.finetune", "run_dir=y"], "omegaconf"),
        (["-m", "preprocess", "input=in.csv", "output=y"], "omegaconf"),
        (["-m", "preprocess.corpus", "embedded", "output=y"], "omegaconf"),
    ],
)
def test_a_missing_extra_is_one_line(installed, tmp_path, command, package):
    (tmp_path / "in.csv").write_text("psmiles\n*CC*\n")
    done = run(installed, tmp_path, *command)
    assert done.returncode == 1
    remedy = "which is not installed: pip install 'mips-dist[train]'"
    assert done.stderr == f"error: this needs {package}, {remedy}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_the_doctor_says_what_it_cannot_look_at(installed, tmp_path):
    done = mips(installed, tmp_path, "doctor", "--json", "findings.json")
    assert done.stderr == ""
    found = {f["what"]: f for f in json.loads((tmp_path / "findings.json").read_text())}
    assert "the floors of the package" in found["versions"]["seen"]
    for what, package in (("ray", "ray"), ("compiler", "deepspeed")):
        assert found[what]["state"] == "unchecked"
        assert f"{package} is not installed" in found[what]["seen"]


def test_what_extras_bring_is_blocked():
    assert set(EXTRA_OF) <= set(undeclared())
    assert not {"torch", "rdkit", "numpy", "descriptastorus", "mips_dist"} & set(undeclared())


def test_every_package_of_an_extra_is_named_in_it():
    names = {"hydra": "hydra-core", "sklearn": "scikit-learn", "torch_geometric": "torch-geometric"}
    for package, extra in EXTRA_OF.items():
        wanted = names.get(package, package)
        required = PROJECT["optional-dependencies"][extra]
        assert any(r.startswith(wanted) for r in required), f"{package} is not in [{extra}]"
        assert not any(r.startswith(wanted) for r in PROJECT["dependencies"])
