"""The shape of the house: who may import whom, and names that would break an entry run by path."""

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import preprocess

ROOT = Path(__file__).resolve().parent.parent

# Package or module -> what it must not import. Longest match wins.
FORBIDDEN = {
    "mips_dist.chem": {"torch", "ray", "deepspeed", "hydra", "mips_dist.data", "mips_dist.model"},
    "mips_dist.config": {"torch", "ray", "deepspeed"},
    "mips_dist.data": {"ray", "deepspeed", "torch.distributed", "mips_dist.model"},
    "mips_dist.data.shards": {"torch", "webdataset", "ray", "deepspeed"},
    "mips_dist.data.block": {"torch", "webdataset", "ray", "deepspeed"},
    "mips_dist.model": {"ray", "deepspeed", "webdataset", "hydra", "mips_dist.train", "rdkit"},
    "mips_dist.train": {"ray", "deepspeed", "hydra"},
    "mips_dist.train.engine": {"ray", "hydra"},
    "mips_dist.train.partitions": {"ray", "hydra"},
    "mips_dist.train.trials": {"deepspeed", "hydra"},
    "mips_dist.shell": {"torch", "ray", "hydra", "omegaconf", "rdkit", "numpy", "mips_dist.model"},
    "mips_dist.page": {"torch", "ray", "deepspeed", "hydra", "rdkit", "mips_dist.data"},
    "mips_dist.train.sweep": {"deepspeed", "hydra"},
    "mips_dist.serve": {"deepspeed", "hydra", "mips_dist.train"},
    **{
        f"mips_dist.serve.{name}": {"torch", "rdkit", "ray", "mips_dist.use", "mips_dist.model"}
        for name in ("api", "engine", "guard")
    },
    "mips_dist.serve.worker": {"ray", "fastapi", "starlette"},
    "mips_dist.serve.pictures": {"ray", "fastapi", "starlette"},
    "mips_dist.doctor": {"deepspeed", "hydra", "omegaconf", "mips_dist.model", "mips_dist.train"},
    "mips_dist.use": {"ray", "deepspeed", "mips_dist.train"},
    "mips_dist.use.report": {"ray", "deepspeed", "hydra"},  # it reads what training wrote
    "mips_dist.pretrain": {"ray", "deepspeed"},
    "mips_dist.finetune": {"deepspeed", "mips_dist.pretrain"},
    "preprocess": {"torch", "deepspeed", "mips_dist.model", "mips_dist.train"},
}
# `mips finetune` is another front of the same study; it takes its function from the entry file.
FRONTS = {("mips_dist.cli.train", "mips_dist.finetune")}
NOBODY_IMPORTS = {"preprocess", "mips_dist.pretrain", "mips_dist.finetune", "mips_dist.cli"}


def modules() -> dict[str, Path]:
    files = [*(ROOT / "mips_dist").rglob("*.py"), *(ROOT / "preprocess").rglob("*.py")]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imports(file: Path) -> set[str]:
    """Every module that a file imports, inside functions too, but for type checking only."""
    names = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", sorted(modules()))
def test_dependency_rules(module):
    imported = imports(modules()[module])
    rules = [package for package in FORBIDDEN if is_within(module, package)]
    forbidden = FORBIDDEN[max(rules, key=len)] if rules else set()
    broken = {i for i in imported for f in forbidden if is_within(i, f)}
    own_package = module.split(".")[0] if module.startswith("preprocess") else module
    broken |= {
        i
        for i in imported
        for n in NOBODY_IMPORTS
        if is_within(i, n)
        and not is_within(own_package, n)
        and not is_within(n, module)
        and (module, n) not in FRONTS
    }
    assert not broken, f"{module} must not import {sorted(broken)}"


def test_rules_name_modules_that_exist():
    names = modules()
    missing = [p for p in [*FORBIDDEN, *NOBODY_IMPORTS] if p not in names]
    assert not missing


def test_only_the_engine_imports_deepspeed():
    importers = {
        module
        for module, file in modules().items()
        if any(is_within(name, "deepspeed") for name in imports(file))
    }
    assert importers == {"mips_dist.train.engine"}


def test_no_child_of_the_package_shadows_a_module():
    # `deepspeed mips_dist/pretrain.py` puts mips_dist/ itself first on sys.path.
    dependencies = {d.lower() for d in importlib.metadata.packages_distributions()}
    inside = (ROOT / "mips_dist").iterdir()
    children = {p.stem for p in inside if p.is_dir() or p.suffix == ".py"} - {"__init__"}
    assert not children & (set(sys.stdlib_module_names) | dependencies)


def test_preprocess_is_ours():
    # A distribution of the same name exists; installed over ours it would be a riddle.
    assert Path(preprocess.__file__).is_relative_to(ROOT), "another `preprocess` is installed"
    owners = importlib.metadata.packages_distributions()["preprocess"]
    assert set(owners) == {"mips-dist"}


def test_nothing_unsafe():
    unsafe = ("pickle.load", "weights_only=False", "allow_pickle=True", "shell=True", "yaml.load(")
    for module, file in modules().items():
        found = [u for u in unsafe if u in file.read_text(encoding="utf-8").replace(" = ", "=")]
        assert not found, f"{module}: {found}"


def test_lock_file_is_exact_and_names_no_index():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0].startswith("torch==")
    assert all("==" in pin and "--" not in pin and "@" not in pin for pin in pins)
    assert not any("+" in pin for pin in pins)


def test_locked_versions_run_on_the_oldest_python():
    # Debian 12 has 3.11.2; a package that wanted 3.11.5 stopped cluster/setup.sh there.
    pins = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    installed = [d for d in importlib.metadata.distributions() if f"{d.name}=={d.version}" in pins]
    assert len(installed) > 100
    too_new = [
        d.name
        for d in installed
        if "3.11.0" not in SpecifierSet(d.metadata.get("Requires-Python") or "")
    ]
    assert not too_new
