"""What each `bench` command does with its options: an exit code, and the answer for stdout."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.values import bench_data
from pretrain import Folders, method_module
from pretrain.files import Missing, Usage
from transfer import Table, tasks

if TYPE_CHECKING:
    import torch  # slow to import, so imported for real only where it is used

RUNS, TINY, WEIGHTS = Path("runs"), Path("data/tiny"), Path("data/weights")
Answer = tuple[int, str]


def pretrain(options: argparse.Namespace) -> Answer:
    from pretrain.parallel import group, in_turn
    from pretrain.train import configure, pretrain

    given = Folders(*(tuple(found or ()) for found in (options.images, options.videos, options.shapes)))
    tiny = not given.images and not given.videos
    module = method_module(options.method)
    shapes = given.shapes or ((_default_shapes(),) if module.MASKS else ())
    folders = replace(embedded(options.method) if tiny else given, shapes=shapes)
    with group(torch_device(options.device)) as (shard, device):
        reads = module.TINY.batch or options.batch
        if (tiny and reads) or any(TINY in folder.parents for folder in folders.shapes):
            with in_turn(shard):
                _make_tiny()
        config = configure(
            options.method,
            folders=folders,
            budget=options.budget or ("tiny" if tiny else "paper"),
            mask=options.mask,
            loss=options.loss,
            iterations=options.iterations,
            batch=options.batch,
            rate=options.lr,
            seed=options.seed,
            label=options.label,
            precision=options.precision,
            start=options.start,
        )
        path = pretrain(config, folders=folders, runs=options.runs, device=device, shard=shard, save_at=options.save_at)
    return 0, "" if shard.rank else f"{path}\n"


def embedded(method: str) -> Folders:
    """Where the embedded data has what a method is trained on."""
    name, shapes = method_module(method).EMBEDDED, (TINY / "VOCdevkit" / "VOC2012",)
    kind = "images" if name == "images" else "videos"
    return Folders(shapes=shapes, **{kind: (TINY / name,)})


def rescale(options: argparse.Namespace) -> Answer:
    from pretrain.alexnet import read_encoder
    from pretrain.rescaled import rescale

    read_encoder(options.encoder)  # before any data is made
    if not options.images:
        _make_tiny()
    path = rescale(
        options.encoder,
        images=options.images or [TINY / "images"],
        runs=options.runs,
        device=torch_device(options.device),
        seed=options.seed,
        out=options.out,
    )
    return 0, f"{path}\n"


def _default_shapes() -> Path:
    data = bench_data()
    real = data and data / "VOCdevkit" / "VOC2012"
    return real if real and real.is_dir() else TINY / "VOCdevkit" / "VOC2012"


def import_(options: argparse.Namespace) -> Answer:
    from benchmarks.weights import import_file, known_table

    if options.list:
        return 0, known_table()
    if options.file is None:
        raise Usage("give the weights FILE, or --list")
    if options.std and len(options.std) not in (1, 3):
        raise Usage("--std takes one number, or three: R G B")
    from pretrain.foreign import Reading

    if max(options.mean or [128]) < 2:
        raise Usage("--mean and --std are those of pixels 0–255: multiply yours by 255")
    std = options.std and tuple(options.std * 3)[:3]
    mean = options.mean and tuple(options.mean)
    path = import_file(
        options.file,
        method=options.method,
        variant=options.variant,
        reading=Reading(order=options.order, mean=mean, std=std, norm=options.norm),
        name=options.known,
        out=options.out,
        runs=options.runs,
    )
    return 0, f"{path}\n"


def fetch(options: argparse.Namespace) -> Answer:
    from benchmarks.fetch import fetch
    from benchmarks.weights import known_file

    return 0, f"{fetch(known_file(options.name), options.to)}\n"


def transfer(options: argparse.Namespace) -> Answer:
    from benchmarks.run import check_recipe, transfer
    from pretrain.alexnet import read_encoder
    from transfer import BF16
    from transfer.probes.descriptors import Descriptor

    names = chosen_tasks(options.task)
    if options.precision == "bf16" and set(names) & set(tasks("probes")):
        raise Usage("--precision bf16: frozen features are computed in float32: leave it out")
    recipe = options.recipe.removesuffix(BF16) + BF16 if options.precision == "bf16" else options.recipe
    check_recipe(recipe, names)
    if options.features:
        check_probes(names, f"--features {options.features}")
    given = options.encoder or (None if options.features else last_encoder(options.runs))
    encoder = read_encoder(given) if given else Descriptor(options.features)
    data = options.data or default_data(recipe)
    paths = [
        path
        for seed in options.seed
        for path in transfer(
            encoder,
            tasks=names,
            recipe=recipe,
            data=data,
            seed=seed,
            results=options.results,
            runs=options.runs,
            device=torch_device(options.device),
            again=options.again,
        )
    ]
    return 0, "".join(f"{path}\n" for path in paths)


def chosen_tasks(name: str) -> tuple[str, ...]:
    """What --task names: all, the columns of Table 2; probes, those of frozen features; or one task."""
    groups: dict[str, Table] = {"all": "table2", "probes": "probes"}
    return tasks(groups[name]) if name in groups else (name,)


def check_probes(names: Sequence[str], given: str) -> None:
    """Raise Usage when one of the tasks is not a probe, and so needs an encoder to train."""
    if wrong := [name for name in names if name not in tasks("probes")]:
        raise Usage(f"{given}: {wrong[0]} trains an encoder: give --encoder, or a task of {', '.join(tasks('probes'))}")


def last_encoder(runs: Path) -> Path:
    """The encoder that `bench pretrain` wrote last. Raises Missing when there is none."""
    pointer = runs / "pretrain" / "last"
    if not pointer.is_file():
        raise Missing(f"{pointer}: no encoder yet: run `bench pretrain`, or give --encoder FILE")
    return runs / pointer.read_text().strip()


def default_data(recipe: str) -> Path:
    """The embedded data, made if need be, or $BENCH_DATA. Raises Missing when that is not set."""
    if recipe.split("-")[0] == "tiny":
        _make_tiny()
        return TINY
    data = bench_data()
    if data is None:
        raise Missing(f"recipe {recipe} needs real VOC data: give --data DIR, or set $BENCH_DATA (a plan: `data`)")
    return data


def _make_tiny() -> None:
    from benchmarks.embedded.tiny import make_tiny

    make_tiny(TINY)


def torch_device(name: str | None) -> "torch.device":
    """The device of that name; without one a GPU, if there is one. Raises Missing or Usage."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]{0,2}))?", name, re.ASCII)
    if found is None:
        raise Usage(f"--device {name[:60]}: no such device: use cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise Missing(f"--device {name}: torch sees no GPU here: leave --device out, or run `bench doctor`")
    if found[1] and int(found[1]) >= torch.cuda.device_count():
        raise Missing(
            f"--device {name}: torch sees {torch.cuda.device_count()} GPUs here, counted from 0: give another"
        )
    return torch.device(name)


def run(options: argparse.Namespace) -> Answer:
    from benchmarks.grid.encoders import Places
    from benchmarks.grid.fill import fill
    from benchmarks.grid.plan import find_plan, read_plan
    from benchmarks.grid.survey import survey, table

    plan = read_plan(find_plan(options.plan), data=options.data)
    if options.launcher == "local":  # a login node need not have what the nodes have
        torch_device(options.device)
    places = Places(options.results, options.runs, options.device)
    rows = survey(plan, places)
    if options.dry_run:
        return 0, table(plan, rows)
    done = fill(plan, rows, places, kind=options.launcher, workers=options.workers)
    return int(not done), tables(options.results, recipe=plan.recipe, names=plan.read)


def tables(results: Path, *, recipe: str, names: Iterable[str]) -> str:
    """The tables, in Markdown, of those of `names` that have results."""
    from benchmarks import probes, table2

    reports: dict[Table, Callable[..., str]] = {"table2": table2.report, "probes": probes.report}
    text = []
    for kind, report in reports.items():
        if set(tasks(kind)) & set(names):
            with suppress(Missing):  # nothing came of anything, which has been said
                text.append(report(results, recipe=recipe, style="markdown"))
    return "\n".join(text)


def table2(options: argparse.Namespace) -> Answer:
    from benchmarks.table2 import report

    return 0, report(
        options.results,
        recipe=options.recipe,
        style=options.format,
        successors=options.also == "successors",
        long=options.long,
    )


def summary(options: argparse.Namespace) -> Answer:
    from benchmarks.summary import report

    return 0, report(options.results, recipe=options.recipe)


def probes(options: argparse.Namespace) -> Answer:
    from benchmarks.probes import report

    return 0, report(options.results, recipe=options.recipe, style=options.format)


def curve(options: argparse.Namespace) -> Answer:
    from benchmarks import plot, trainings
    from benchmarks.curve import read, report

    if options.out:
        plot.check_picture(options.out)
    saved = trainings.score(
        options.run,
        recipe=options.recipe,
        data=options.data or (default_data(options.recipe) if options.run else Path()),
        seeds=options.seed,
        results=options.results,
        runs=options.runs,
        device=torch_device(options.device),
    )
    curves = read(options.results, recipe=options.recipe, saved=saved)
    if options.out:
        plot.draw(curves, options.out)
    return 0, report(curves, style=options.format, layers=options.layers)


def compare(options: argparse.Namespace) -> Answer:
    from benchmarks.compare import compare

    return 0, compare(options.results, options.first, options.second, recipe=options.recipe)


def data_tiny(options: argparse.Namespace) -> Answer:
    from benchmarks.embedded.tiny import make_tiny

    make_tiny(options.dir, seed=options.seed)
    return 0, f"{options.dir}\n"


def data_subset(options: argparse.Namespace) -> Answer:
    from benchmarks.data import subset

    subset(options.source, options.dir, images=options.images, seed=options.seed)
    return 0, f"{options.dir}\n"


def data_holdout(options: argparse.Namespace) -> Answer:
    from benchmarks.holdout import hold_out

    hold_out(options.source, options.dir, every=options.every)
    return 0, f"{options.dir}\n"


def data_check(options: argparse.Namespace) -> Answer:
    from benchmarks.data import check

    problems = check(options.dir)
    return (1, "".join(f"{problem}\n" for problem in problems)) if problems else (0, f"{options.dir}: clean\n")


def doctor(options: argparse.Namespace) -> Answer:
    from benchmarks.doctor import report

    text, well = report(options.data)
    return 0 if well else 3, text
