"""The shape of the house: imports go one way, and the distribution holds exactly three packages."""

import ast
import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pretrain", "transfer", "benchmarks")
# What of pretrain the tasks may use: the encoder, and what every file, checkpoint, lock, bar, worker and seed needs.
ENCODER = ("alexnet", "fillers", "filters", "rescale", "solver", "precision")
PARTS = (
    *ENCODER,
    "checkpoints",
    "contents",
    "files",
    "listing",
    "locks",
    "npy",
    "pickles",
    "progress",
    "randomness",
    "workers",
)
SHARED = {f"pretrain.{name}" for name in (*PARTS, "Precision")}


def imports(path: Path) -> set[str]:
    """Every module of ours that a source file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} if node.module not in PACKAGES else {f"{node.module}.{a.name}" for a in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_imports_go_one_way():
    for path in sources("pretrain"):
        assert all(name.startswith("pretrain") for name in imports(path)), path
    for path in sources("transfer"):
        foreign = {name for name in imports(path) if not name.startswith("transfer")}
        assert foreign <= SHARED, (path, foreign - SHARED)


def test_only_the_two_dicts_name_the_parts():
    """No `if task ==` outside TASKS, no junk-drawer names."""
    for package in PACKAGES:
        for path in sources(package):
            assert path.stem not in {"utils", "util", "common", "helpers", "misc", "core", "engine"}
            text = path.read_text(encoding="utf-8")
            assert "if task ==" not in text, path
            assert "if method ==" not in text, path


def test_the_start_is_quick():
    """`bench --help` needs no framework: torch is imported when it is used."""
    code = "import sys; from benchmarks.options import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_names_are_ours_alone(package):
    owners = importlib.metadata.packages_distributions().get(package, ["context-encoder-bench"])
    assert set(owners) == {"context-encoder-bench"}


def test_the_wheel_holds_exactly_the_three_packages(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES, "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    source = tmp_path / "source"
    for name in filter(None, tracked):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    code = "import os, sys, setuptools.build_meta as b; os.chdir(sys.argv[1]); b.build_wheel(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    expected = {name for name in tracked if name.startswith(PACKAGES)}
    assert {name for name in names if ".dist-info/" not in name} == expected
