"""The doctor in a Python of its own, where an import hook (not a mock) forbids some packages."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from benchmarks import doctor

ROOT = Path(__file__).parents[1]
BLOCKER = """
import os, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["BLOCKED"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
ASK = "import json, sys; from benchmarks.doctor import report; print(json.dumps(report(None)))"


def ask(folder: Path, *, blocked: str) -> tuple[list[str], bool]:
    """The lines of a report, and its verdict, from `folder`, where `blocked` cannot be imported."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(BLOCKER)
    environment = os.environ | {"PYTHONPATH": f"{hook}:{ROOT}", "BLOCKED": blocked}
    environment.pop("BENCH_DATA", None)
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    text, well = json.loads(done.stdout.splitlines()[-1])
    return text.splitlines(), well


def finding(lines: list[str], name: str) -> tuple[str, str]:
    """The state of the line about `name`, and the command under it."""
    index = next(i for i, line in enumerate(lines) if line.split()[1] == name)
    following = lines[index + 1].strip() if index + 1 < len(lines) else ""
    return lines[index].split()[0], following.removeprefix("run: ") if following.startswith("run: ") else ""


def test_missing_packages_are_reported_with_the_command(tmp_path: Path) -> None:
    """Even without torch, which nearly everything here imports."""
    lines, well = ask(tmp_path, blocked="torch detectron2 cv2 sklearn")
    assert not well
    for name in ("torch", "detectron2", "mmseg", "sklearn"):
        assert finding(lines, name)[0] in ("missing", "wrong")
        assert finding(lines, name)[1] == "make install"
        blocked = "torch" if name == "mmseg" else name
        assert f"No module named '{blocked}" in next(line for line in lines if line.split()[1] == name)
    assert finding(lines, "data") == ("missing", "make install")
    mend = f"uv pip install --force-reinstall --no-deps opencv-contrib-python-headless=={doctor.OPENCV_VERSION}"
    assert finding(lines, "cv2")[1] == mend
    assert finding(lines, "pandas") == ("ok", "")


def test_what_is_installed_is_ok_with_its_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("torchvision", "mmengine", "mmcv", "mmseg", "detectron2"):
        monkeypatch.delitem(doctor.PROBED, slow)
    lines = {line.name: line for line in doctor.package_lines()}
    assert {line.state for line in lines.values()} <= {"ok", "note"}
    assert lines["torch"].text.startswith(f"torch {metadata.version('torch')} (C")
    assert lines["cv2"].text.endswith("(with selective search)")
    assert lines["sklearn"].text.startswith("scikit-learn ")
    assert lines["gpu"].state == ("ok" if torch.cuda.is_available() else "note")


def test_a_crashing_import_costs_one_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").write_text("import os; print('noise', flush=True); os.abort()")
    (tmp_path / "cv2.py").write_text("print('noise'); raise ImportError('libGL.so.1: cannot open\\nmore')")
    (tmp_path / "mmengine").mkdir()
    (tmp_path / "mmengine/__init__.py").write_text("print('noise')")
    (tmp_path / "mmengine/runner.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor.probe_all(["cv2", "mmcv", "mmengine"])
    assert found["cv2"][0] == "libGL.so.1: cannot open"
    assert found["mmcv"][0] == "its import ends Python (exit -6)"
    assert found["mmengine"] == ("", {})


def test_two_opencvs_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opencv_python", "opencv_contrib_python_headless"):
        info = tmp_path / f"{name}-9.9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    (line,) = doctor.opencv_lines()
    assert line.state == "wrong"
    assert "uv pip uninstall opencv-python opencv-contrib-python-headless" in line.mend
    assert line.mend.endswith("opencv-contrib-python-headless==9.9.9")


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_data_that_lacks_files_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = doctor.given_lines(tmp_path / "none")
    assert (line.state, line.mend) == ("missing", "export BENCH_DATA=FOLDER")
    write(tmp_path / "part/VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000001\n")
    states = {str(line).split()[2]: line for line in doctor.given_lines(tmp_path / "part")}
    assert states["test:"].state == "missing"
    assert states["test:"].mend == f"bench data check {tmp_path / 'part'}"
    write(tmp_path / "part/dataset.json", "{")
    (line,) = doctor.given_lines(tmp_path / "part")
    assert line.state == "wrong"
    assert "dataset.json" in line.text


def test_the_environment_names_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DATA", "elsewhere")
    assert doctor.data_lines(None)[0].text.startswith("elsewhere: ")
    assert doctor.data_lines(Path("here"))[0].text.startswith("here: ")
    monkeypatch.delenv("BENCH_DATA")
    assert [line.state for line in doctor.data_lines(None)] == ["note", "note"]


def test_half_a_tiny_set_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/tiny/VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000001\n")
    line = doctor.tiny_line()
    assert (line.state, line.mend) == ("wrong", "rm -r data/tiny && bench data tiny")


def test_encoders_and_results_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [line.state for line in doctor.work_lines()] == ["note", "note"]
    write(tmp_path / "runs/pretrain/tiny/context/encoder.safetensors", "")
    for seed in (0, 1):
        write(tmp_path / f"results/tiny/context/detection-seed{seed}.json", "{}")
    encoders, results = doctor.work_lines()
    assert encoders.text == "1 in runs/pretrain"
    assert results.text == "2 tiny"
