"""A grid's plan: methods, variants, tasks, seeds, recipe, data, and how to launch it, from a YAML file.

Everything is checked before anything starts; an error names the file and the line.

    recipe: quick                    # of every task
    data: /data/voc                  # holds VOCdevkit; --data and $BENCH_DATA go before it
    images: [images/imagenette]      # for every method that names none itself; so are videos and shapes
    methods:                         # relative folders are looked for under data
      context: {mask: random-region, iterations: 500, batch: 32, rate: 5e-4}
      long: {method: context, label: long, iterations: 5000, precision: bf16, start: kmeans}
      mine: {encoder: mine.safetensors, variants: [raw]}
      hog: {features: hog, tasks: [svm, low-shot, knn]}    # no encoder, for the probes alone
    variants: [raw, rescaled]        # of every method that names none itself (default: raw)
    tasks: [classification]          # (default: Table 2's); a method may name some of them
    seeds: [0, 1]                    # of the transfer (default: 0)
    launch: {workers: 2, threads: 1}
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks import commands
from benchmarks.grid.entries import KINDS, Entry, Written, at, once, read_method, resolve
from benchmarks.grid.lines import Value, read_lines
from benchmarks.run import read_data
from benchmarks.values import bench_data
from transfer import TASKS, Data, find_recipe
from transfer import tasks as known_tasks
from transfer.voc import find_devkit

PLANS = Path(__file__).parent / "plans"  # those that ship with the package
KEYS = ("recipe", "data", *KINDS, "methods", "variants", "tasks", "seeds", "launch")
NUMBERS = ("workers", "threads", "attempts", "gpus", "cpus", "memory", "minutes")


@dataclass(frozen=True)
class Launch:
    """How jobs are started. Local: so many workers at once; Slurm: what each job asks for.

    A job that dies without a word (killed, out of time, its node gone) is started `attempts` times in
    all. `slurm` holds any other option of sbatch, by its long name; one without a value is true.
    """

    workers: int | None = None  # (default: one a GPU, or else one)
    threads: int | None = None  # of each job (default: the cores shared out among the workers)
    attempts: int = 3
    partition: str | None = None
    gpus: int = 0
    cpus: int | None = None  # (default: as many as threads)
    memory: int | None = None  # GB
    minutes: int = 1440
    slurm: tuple[tuple[str, str | bool], ...] = ()


@dataclass(frozen=True)
class Plan:
    """A plan that can be carried out: all it names is there."""

    file: Path
    recipe: str
    data: Path
    read: dict[str, tuple[str, Data]]  # task → digest of its recipe, and of what that reads
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    launch: Launch


def find_plan(name: str) -> Path:
    """A plan's file: `name` itself, or the shipped plan of that name."""
    shipped = {path.stem: path for path in sorted(PLANS.glob("*.yaml"))}
    if name not in shipped or Path(name).is_file():
        return Path(name)
    return shipped[name]


def read_plan(file: Path, *, data: Path | None = None) -> Plan:
    """Read a plan and check all of it; `data` goes before the plan's own.

    Raises Usage for what is written wrong and Missing for data that is not there, naming file and line.
    """
    top = read_lines(file)
    said = top.fields(KEYS)
    for key in ("recipe", "methods"):
        if key not in said:
            raise top.wrong(f"no {key}: add it")
    tasks = once(said["tasks"], lambda v: v.choice(TASKS)) if "tasks" in said else known_tasks("table2")
    seeds = once(said["seeds"], Value.whole) if "seeds" in said else (0,)
    launch = read_launch(said["launch"]) if "launch" in said else Launch()
    written = [read_method(value, said, tasks) for value in said["methods"].fields().values()]
    if not written:
        raise said["methods"].wrong("no method: add one")
    recipe = _recipe(said["recipe"], tasks)
    blamed = None if data else said.get("data") or said["recipe"]
    with at(blamed):
        folder, embedded = _data(said.get("data"), recipe, data)
        find_devkit(folder)
    entries = tuple(resolve(method, folder, embedded=embedded) for method in written)
    _check_rows(written, entries)
    with at(blamed):  # last, for this reads all images that the tasks read
        read = {task: read_data(task, recipe=recipe, data=folder) for task in tasks}
    digests = {task: (chosen.sha256, digested) for task, (chosen, _, digested) in read.items()}
    return Plan(file, recipe, folder, digests, entries, seeds, launch)


def read_launch(value: Value) -> Launch:
    """The plan's `launch`."""
    said = value.fields([field.name for field in fields(Launch)])
    numbers = {key: v.whole(least=0 if key == "gpus" else 1) for key, v in said.items() if key in NUMBERS}
    partition = said["partition"].text() if "partition" in said else None
    options = said["slurm"].fields() if "slurm" in said else {}
    slurm = tuple((key, v.text() == "true" or v.text()) for key, v in options.items())
    return Launch(partition=partition, slurm=slurm, **numbers)


def _recipe(value: Value, tasks: Sequence[str]) -> str:
    """The recipe's name. All of `tasks` have it."""
    for task in tasks:
        if find_recipe(task, value.text()) is None:
            known = ", ".join(TASKS[task].load().RECIPES)
            raise value.wrong(f"no recipe {value.text()!r} of {task}, which has {known}")
    return value.text()


def _data(value: Value | None, recipe: str, given: Path | None) -> tuple[Path, bool]:
    """The folder that holds VOCdevkit, and whether it is the embedded data, which is made if it is not there."""
    if given:
        return given, False
    if recipe.split("-")[0] == "tiny":
        return (value.path(), False) if value else (commands.default_data(recipe), True)
    if value and bench_data() is None:
        return value.path(), False
    return commands.default_data(recipe), False


def _check_rows(written: Sequence[Written], entries: Sequence[Entry]) -> None:
    """Raise Usage when two methods make the same row, or other encoders under one name."""
    rows: dict[str, str] = {}
    made: dict[str, tuple[object, str]] = {}
    for method, entry in zip(written, entries, strict=True):
        for row in entry.rows():
            if row in rows:
                raise method.value.wrong(f"makes the row {row}, as {rows[row]} does: give it a label")
            rows[row] = method.value.name
        for name, how in entry.makes().items():
            other, by = made.setdefault(name, (how, method.value.name))
            if other != how:
                raise method.value.wrong(f"makes another encoder {name} than {by} does: give it a label")
