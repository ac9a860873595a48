"""What this machine has of what the suite needs, and for everything that lacks, the command that mends it.

Nothing but the standard library is imported here, so that the report comes even where nothing is installed.
The frameworks are imported by a child process: an import that crashes, prints or takes time harms nobody.
"""

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from benchmarks.data import Split

INSTALL = "make install"
PROBED = {  # name → the module whose import shows that it works
    "torch": "torch",
    "torchvision": "torchvision",
    "cv2": "cv2.ximgproc.segmentation",
    "mmengine": "mmengine.runner",
    "mmcv": "mmcv.transforms",
    "mmseg": "mmseg.models",
    "detectron2": "detectron2.modeling",
}
# It is enough that these are there.
FOUND = ("sklearn", "pandas", "matplotlib", "safetensors", "scipy", "yaml", "pycocotools", "submitit")
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
OPENCV = OPENCVS[-1]
OPENCV_VERSION = "5.0.0.93"
TINY = Path("data/tiny")
MAKE_TINY = "bench data tiny"
SPARE_BYTES = 10e9
Facts = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One finding; `mend` is the command that mends it."""

    state: Literal["ok", "note", "missing", "wrong"]
    name: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:<9}{self.name:<15}{self.text}" + (f"\n{'':24}run: {self.mend}" if self.mend else "")


def report(data: Path | None) -> tuple[str, bool]:
    """The findings as text, and whether all is well (notes are). `data` stands before $BENCH_DATA."""
    lines = [*machine_lines(), *package_lines(), *data_lines(data), *work_lines()]
    return "\n".join(map(str, lines)), all(line.state in ("ok", "note") for line in lines)


# ---- the machine ----


def machine_lines() -> list[Line]:
    """Python, cores, memory, disk."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(Path.cwd()).free
    right = sys.version_info[:2] == (3, 11)
    spare = "" if free > SPARE_BYTES else " (datasets and checkpoints want more)"
    return [
        Line("ok", "python", f"{platform.python_version()}, {sys.executable}")
        if right
        else Line(
            "wrong", "python", f"{platform.python_version()}: 3.11 is needed", f"uv venv --python 3.11 && {INSTALL}"
        ),
        Line("ok", "machine", f"{platform.machine()}, {os.cpu_count()} cores, {memory / 1e9:.1f} GB memory"),
        Line("note" if spare else "ok", "disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}{spare}"),
    ]


def gpu_line(gpus: list[str], cuda: str | None) -> Line:
    """The GPUs that torch sees, and the driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = ""
    if shutil.which(command[0]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        driver = done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""
    if gpus:
        return Line("ok", "gpu", f"{', '.join(gpus)}; driver {driver or 'unknown'}")
    if driver:
        return Line("note", "gpu", f"driver {driver}, but torch (CUDA {cuda}) sees no GPU: a newer driver may help")
    return Line("note", "gpu", "none: everything runs on the CPU")


# ---- packages ----


def package_lines() -> list[Line]:
    """Every package: its version, the distribution it comes from, whether it works."""
    probed = probe_all(list(PROBED))
    distributions = metadata.packages_distributions()
    lines = []
    for name, (error, facts) in probed.items():
        lines.append(_package_line(name, error, facts, distributions.get(name, [])))
        if name == "torch" and not error:
            lines.append(gpu_line(facts["gpus"], facts["cuda"]))
    lines += [_package_line(name, _absent(name), {}, distributions.get(name, [])) for name in FOUND]
    return [*lines, *opencv_lines()]


def _package_line(name: str, error: str, facts: Facts, sources: list[str]) -> Line:
    versions = [f"{source} {metadata.version(source)}" for source in sorted(set(sources))]
    text = ", ".join(versions) or "of no known distribution"
    if error:
        mend = f"uv pip install --force-reinstall --no-deps {OPENCV}=={OPENCV_VERSION}" if name == "cv2" else INSTALL
        return Line("wrong" if versions else "missing", name, f"{text}: {error}" if versions else error, mend)
    if name == "torch":
        text += f" (CUDA {facts['cuda']})" if facts["cuda"] else " (CPU build)"
    if name == "cv2":
        text += " (with selective search)"
    if name == "detectron2":
        text += f", {facts['path']} ({'with' if facts['compiled'] else 'without'} _C, which is not needed)"
    return Line("ok", name, text)


def _absent(name: str) -> str:
    """Why the module `name` cannot be found, or nothing."""
    try:
        return "" if util.find_spec(name) else f"No module named {name!r}"
    except (ImportError, ValueError) as error:
        return str(error)


def opencv_lines() -> list[Line]:
    """Two OpenCV distributions write the same files: the last one installed wins, perhaps without ximgproc."""
    there = [name for name in OPENCVS if _version(name)]
    if len(there) < 2:
        return []
    version = _version(OPENCV) or OPENCV_VERSION
    mend = f"uv pip uninstall {' '.join(there)} && uv pip install --no-deps {OPENCV}=={version}"
    return [Line("wrong", "opencv", f"{len(there)} distributions overwrite each other: {', '.join(there)}", mend)]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def probe_all(names: list[str]) -> dict[str, tuple[str, Facts]]:
    """Import each in a child process: name → (why it failed, or ""; facts). A crash costs one name, not the rest."""
    results: dict[str, tuple[str, Facts]] = {}
    while todo := [name for name in names if name not in results]:
        # -P: this file's folder must not shadow other packages' modules.
        child = subprocess.run([sys.executable, "-P", __file__, *todo], capture_output=True, text=True, check=False)
        for line in child.stdout.splitlines():
            name, error, facts = json.loads(line)
            results[name] = (error, facts)
        crashed = next((name for name in todo if name not in results), None)
        if crashed:
            results[crashed] = (f"its import ends Python (exit {child.returncode})", {})
    return {name: results[name] for name in names}


def probe(names: list[str]) -> None:
    """In the child: import each of `names` and print [name, error, facts] as a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the imports print must not mix with the answers
    for name in names:
        error, found = "", Facts()
        try:
            importlib.import_module(PROBED[name])
            found = facts_of(name)
        except Exception as failure:
            error = (str(failure).splitlines() or [""])[0] or type(failure).__name__
        print(json.dumps([name, error, found]), file=answers, flush=True)


def facts_of(name: str) -> Facts:
    """What the report says of an imported package beside its version."""
    if name == "torch":
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return {"cuda": torch.version.cuda, "gpus": gpus}
    if name == "detectron2":
        import detectron2

        return {"path": str(Path(detectron2.__file__).parent), "compiled": not _absent("detectron2._C")}
    return {}


# ---- data, encoders, results ----


def data_lines(data: Path | None) -> list[Line]:
    """The data given by `data` or $BENCH_DATA, and the embedded tiny set."""
    try:
        importlib.import_module("benchmarks.data")
    except (ImportError, OSError) as error:
        return [Line("missing", "data", f"cannot look: {error}", INSTALL)]
    if data is None and os.environ.get("BENCH_DATA"):
        data = Path(os.environ["BENCH_DATA"])
    none = Line("note", "data", "none given: quick and paper read a VOCdevkit, from --data DIR or $BENCH_DATA")
    return [*(given_lines(data) if data else [none]), tiny_line()]


def given_lines(data: Path) -> list[Line]:
    """The given data: its name, and how much of each split is there."""
    from benchmarks.data import dataset_name, splits
    from pretrain.files import Failed, Missing

    try:
        return [Line("ok", "data", f"{data}: {dataset_name(data)}"), *(split_line(s, data) for s in splits(data))]
    except Missing as error:
        return [Line("missing", "data", str(error), "export BENCH_DATA=FOLDER")]
    except Failed as error:
        return [Line("wrong", "data", str(error), f"bench data check {data}")]


def split_line(split: "Split", data: Path) -> Line:
    """A split of the given data: whole, a part of it, or with files missing."""
    name = f"  {split.year}"
    text = str(split).removeprefix(f"{split.year} ")
    if split.present < split.listed:
        return Line("missing", name, text, f"bench data check {data}")
    return Line("ok" if split.whole else "note", name, text)


def tiny_line() -> Line:
    """The embedded set is there, and all its files."""
    from benchmarks.data import SEG11VALID, splits
    from pretrain.files import Failed

    if not TINY.exists():
        return Line("note", "tiny", f"{TINY}: not made yet", MAKE_TINY)
    remake = f"rm -r {TINY} && {MAKE_TINY}"
    try:
        found = [split for split in splits(TINY) if split.name != SEG11VALID]
    except Failed as error:
        return Line("wrong", "tiny", str(error), remake)
    if any(split.present < max(split.listed, 1) for split in found):
        return Line("wrong", "tiny", f"{TINY}: not whole", remake)
    return Line("ok", "tiny", f"{TINY}: " + ", ".join(f"{s.year} {s.name} {s.listed}" for s in found))


def work_lines() -> list[Line]:
    """Encoders trained and results written so far, from the folder the command is run in."""
    encoders = sorted(Path("runs/pretrain").rglob("encoder.safetensors"))
    results = Counter(path.parts[1] for path in Path("results").glob("*/**/*.json"))
    counts = ", ".join(f"{count} {recipe}" for recipe, count in sorted(results.items()))
    return [
        Line("ok", "encoders", f"{len(encoders)} in runs/pretrain")
        if encoders
        else Line("note", "encoders", "none in runs/pretrain yet", "bench pretrain --help"),
        Line("ok", "results", counts) if counts else Line("note", "results", "none yet", "bench transfer --help"),
    ]


if __name__ == "__main__":
    probe(sys.argv[1:])
