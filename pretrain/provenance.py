"""Where a number comes from: hardware, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = (
    "torch", "torchvision", "sal-detectron2", "detectron2", "onedl-mmsegmentation", "onedl-mmengine",
    "onedl-mmcv", "opencv-contrib-python-headless", "scikit-learn", "numpy",
)  # fmt: skip


def hardware(device: torch.device) -> str:
    """One line: the GPU, or the processor with the threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Python's version and those of the installed frameworks."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> tuple[str, bool]:
    """This source tree's commit and whether it has changes beside it; ("unknown", True) outside git."""
    try:
        head = _git("rev-parse", "HEAD")
        return head, bool(_git("status", "--porcelain", "--", "pretrain", "transfer", "benchmarks"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
