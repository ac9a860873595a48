"""The `bench` command. stdout carries the answer; progress, logs and errors go to stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 missing data or dependency, 130 interrupted.
"""

import argparse
import contextlib
import errno
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.files import FREE_SPACE, Failed, Missing, Usage

if TYPE_CHECKING:
    import torch  # slow to import, so imported for real only where it is used

RUNS, TINY, WEIGHTS = Path("runs"), Path("data/tiny"), Path("data/weights")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = parser().parse_args(arguments)
    # What the frameworks say of their own imports is not for our users.
    warnings.filterwarnings("ignore", module=r"(torch|mmcv|mmengine|mmseg|detectron2|fvcore)\b")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # frameworks print; the answer alone is stdout's
            code, answer = options.command(options)
        if answer:
            print(answer, end="", flush=True)
        return int(code)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", 130)
    except Failed as error:
        return _say(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        return _say(f"{error.name}: not installed: run `make install`; `bench doctor` says what is missing", 3)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _say(f"{error.filename or 'the disk'}: disk full: {FREE_SPACE}", 1)
        raise


def _say(message: str, code: int) -> int:
    print(f"bench: {message}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="bench", description=SUMMARY, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_pretrain(commands)
    _add_rescale(commands)
    _add_import(commands)
    _add_fetch(commands)
    _add_transfer(commands)
    _add_table2(commands)
    _add_compare(commands)
    _add_data(commands)
    doctor = commands.add_parser(
        "doctor", help="say what is installed, what data is found, and how to mend what is missing"
    )
    doctor.add_argument("--data", type=Path, help="a folder with VOCdevkit to look at (default: $BENCH_DATA)")
    doctor.set_defaults(command=_doctor)
    return top


SUMMARY = """\
How good are the features that a pre-training learned? Table 2 of Context Encoders (CVPR 2016).

  bench pretrain                      learn an encoder (default: context encoder, embedded data)
  bench import FILE --method NAME     or make one of published weights (bench import --list, bench fetch)
  bench transfer --task all           score it: classification, detection, segmentation
  bench table2 > results/table2.md    print the table of all results"""

Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_pretrain(commands: "Commands[argparse.ArgumentParser]") -> None:
    from pretrain import METHODS

    parser = commands.add_parser(
        "pretrain",
        help="learn an encoder",
        description="Train an encoder and write encoder.safetensors, with a resumable checkpoint, log.jsonl, "
        "TensorBoard scalars and pictures beside it, under runs/pretrain/. Without --images it uses the embedded "
        "data and a budget of minutes; with --images, the paper's. The same command goes on where it was stopped.",
    )
    add = parser.add_argument
    add("--method", choices=METHODS, default="context", help="the pretext (default: context)")
    add(
        "--mask",
        metavar="KIND",
        help="the kind of hole, for context: central, random-block, random-pattern, random-region (default: the last)",
    )
    add(
        "--images",
        type=Path,
        action="append",
        metavar="DIR",
        help="a folder of images, or a VOC year's folder (then its trainval); may be repeated",
    )
    add(
        "--shapes",
        type=Path,
        action="append",
        metavar="DIR",
        help="a VOC year's folder with masks, the silhouettes of random-region holes "
        "(default: VOC2012 in $BENCH_DATA, else the embedded data)",
    )
    add("--loss", choices=("l2", "l1"), default="l2", help="(default: l2)")
    add("--iterations", type=_count, help="(default with --images: the paper's, 100000)")
    add("--batch", type=_positive, help="images per iteration (default with --images: 64)")
    add("--lr", type=_rate, help="Adam's learning rate (default with --images: the paper's)")
    add("--seed", type=_count, default=0)
    add("--label", type=_label, default="", help="added to the row's name, to tell two budgets apart")
    _add_places(parser)
    parser.set_defaults(command=_pretrain)


def _add_rescale(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "rescale",
        help="balance the scales of an encoder's layers",
        description="Rescale conv1–conv5 of an encoder so that all layers learn at the same rate (Krähenbühl et al., "
        "2016), on 160 images, and write the result as an encoder of its own, a row of its own: "
        "its variant is the old one with `rescaled` added.",
    )
    add = parser.add_argument
    add("encoder", type=Path, help="an encoder.safetensors")
    add(
        "--images",
        type=Path,
        action="append",
        metavar="DIR",
        help="a folder of images, or a VOC year's folder; may be repeated (default: the embedded data)",
    )
    add("--out", type=Path, metavar="FILE", help="(default: under runs/pretrain; `bench transfer` then takes it next)")
    add("--seed", type=_count, default=0)
    _add_places(parser)
    parser.set_defaults(command=_rescale)


def _add_import(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import",
        help="make an encoder of published weights",
        description="Read conv1–conv5 out of a .caffemodel, .pth, .pt, .pth.tar, .npy, .npz, .pkl or .safetensors "
        "file, executing nothing of it, and write an encoder file for RGB images, 0–255, minus (123, 117, 104). "
        "What became of each blob is said on stderr. It is then the encoder that `bench transfer` takes.",
    )
    add = parser.add_argument
    add("file", type=Path, nargs="?", metavar="FILE", help="the weights")
    add("--list", action="store_true", help="print a table of the known published files, and stop")
    add("--method", type=_row, metavar="NAME", help="the row these weights make, as context, motion, bigan")
    add("--variant", type=_label, metavar="V", help="added to the row's name")
    add("--known", metavar="NAME", help="take method and preprocessing from this known file (see --list)")
    add("--order", choices=("bgr", "rgb"), help="of the file's input channels (default: bgr for .caffemodel, else rgb)")
    add("--mean", type=_number, nargs=3, metavar=("R", "G", "B"), help="what was subtracted from the pixels (0–255)")
    add("--std", type=_rate, nargs="+", metavar="S", help="what they were then divided by: one number, or R G B")
    add(
        "--norm",
        choices=("lrn", "lrn-before-pool", "none"),
        help="LRN behind or before pooling (default: as a .caffemodel says; else lrn for CaffeNet's widths)",
    )
    add("--out", type=Path, metavar="ENCODER", help="(default: runs/import/<row>-<digest>/encoder.safetensors)")
    add("--runs", type=Path, default=RUNS, help="where work in progress is kept (default: runs)")
    parser.set_defaults(command=_import)


def _add_fetch(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "fetch",
        help="download a known weights file",
        description="Download a published weights file that `bench import --list` names: mirrors in order, "
        "going on where a download stopped, with a checksum where one is known.",
    )
    parser.add_argument("name", metavar="NAME", help="see bench import --list")
    parser.add_argument("--to", type=Path, default=WEIGHTS, metavar="DIR", help=f"(default: {WEIGHTS})")
    parser.set_defaults(command=_fetch)


def _add_transfer(commands: "Commands[argparse.ArgumentParser]") -> None:
    from transfer import TASKS

    parser = commands.add_parser(
        "transfer",
        help="score an encoder on a task",
        description="Load conv1–conv5 of an encoder into a task's network, train, test, and write "
        "results/<recipe>/<method>/<task>-seed<k>.json. Finished results are reused, stale ones computed again, "
        "interrupted ones go on.",
    )
    add = parser.add_argument
    add("--task", choices=(*TASKS, "all"), required=True)
    add("--encoder", type=Path, help="an encoder.safetensors (default: the one `bench pretrain` wrote last)")
    add(
        "--recipe",
        default="tiny",
        metavar="NAME",
        help="tiny: embedded data, minutes; quick: real VOC, cut; paper: the published protocol; or a variant of a "
        "task: paper-fc6-8, paper-fc8, quick-fc6-8, quick-fc8 (classification), paper-40k, paper-conv1-frozen, "
        "paper-40k-conv1-frozen (detection) (default: tiny)",
    )
    add("--data", type=Path, help="the folder that holds VOCdevkit (default: $BENCH_DATA; for tiny the embedded data)")
    add("--seed", type=_count, nargs="+", default=[0], help="one or more seeds (default: 0)")
    add("--again", action="store_true", help="compute results that are finished once more")
    _add_results(parser)
    _add_places(parser)
    parser.set_defaults(command=_transfer)


def _add_table2(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "table2", help="print Table 2", description="Print the table of all results on stdout."
    )
    parser.add_argument("--format", choices=("markdown", "csv", "latex", "json"), default="markdown")
    parser.add_argument("--recipe", metavar="NAME", help="only the results of this recipe")
    parser.add_argument("--with", choices=("successors",), dest="also", help="later papers' published rows too")
    _add_results(parser)
    parser.set_defaults(command=_table2)


def _add_compare(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "compare",
        help="say whether row A beats row B",
        description="Answer, task by task, with a paired bootstrap over the test images, whether row A beats row B.",
    )
    parser.add_argument("first", metavar="A", help="a row's folder under results/<recipe>/: context-random-region")
    parser.add_argument("second", metavar="B", help="another: random")
    parser.add_argument("--recipe", metavar="NAME", help="(default: every recipe with results of both)")
    _add_results(parser)
    parser.set_defaults(command=_compare)


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where results are kept (default: results)"
    )


def _add_data(commands: "Commands[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("data", help="make, cut and check data")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    tiny = kinds.add_parser("tiny", help="make the embedded synthetic VOC")
    tiny.add_argument("dir", type=Path, nargs="?", default=TINY, help=f"(default: {TINY})")
    tiny.add_argument("--seed", type=_count, default=0)
    tiny.set_defaults(command=_data_tiny)
    cut = kinds.add_parser("subset", help="cut a small subset out of a real VOCdevkit")
    cut.add_argument("source", type=Path, help="the folder that holds VOCdevkit")
    cut.add_argument("dir", type=Path, help="where to write the subset; must not exist")
    cut.add_argument("--images", type=_positive, default=40, help="images per split (default: 40)")
    cut.add_argument("--seed", type=_count, default=0)
    cut.set_defaults(command=_data_subset)
    check = kinds.add_parser("check", help="verify a VOC tree, naming each bad file")
    check.add_argument("dir", type=Path, help="the folder that holds VOCdevkit")
    check.set_defaults(command=_data_check)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=RUNS, help="where work in progress is kept (default: runs)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: only letters, digits, '_', '.', '+' and '-', as it becomes part of a path"
        )
    return text


def _row(text: str) -> str:
    if not text or not text[0].isalnum():
        raise argparse.ArgumentTypeError(f"{text!r}: a row's name starts with a letter or a digit")
    return _label(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


Answer = tuple[int, str]


def _pretrain(options: argparse.Namespace) -> Answer:
    from pretrain import method_module
    from pretrain.train import Config, pretrain

    module = method_module(options.method)
    if options.mask and options.mask not in module.MASKS:
        raise Usage(f"--mask {options.mask}: method {options.method} takes {', '.join(module.MASKS) or 'no mask'}")
    mask = options.mask or (module.MASKS[0] if module.MASKS else None)
    budget = module.defaults(mask) if options.images else module.TINY
    config = Config(
        method=options.method,
        mask=mask,
        loss=options.loss,
        seed=options.seed,
        label=options.label,
        iterations=budget.iterations if options.iterations is None else options.iterations,
        batch=options.batch or budget.batch,
        rate=options.lr or budget.rate,
    )
    images, shapes = options.images or [TINY / "images"], options.shapes
    shapes = shapes or [_default_shapes()]
    embedded = not options.images or (mask == "random-region" and TINY in shapes[0].parents)
    if embedded and config.batch:
        _make_tiny()
    path = pretrain(config, images=images, shapes=shapes, runs=options.runs, device=_device(options.device))
    return 0, f"{path}\n"


def _rescale(options: argparse.Namespace) -> Answer:
    from pretrain.rescaled import rescale

    if not options.images:
        _make_tiny()
    path = rescale(
        options.encoder,
        images=options.images or [TINY / "images"],
        runs=options.runs,
        device=_device(options.device),
        seed=options.seed,
        out=options.out,
    )
    return 0, f"{path}\n"


def _default_shapes() -> Path:
    real = Path(os.environ.get("BENCH_DATA", "")) / "VOCdevkit" / "VOC2012"
    return real if "BENCH_DATA" in os.environ and real.is_dir() else TINY / "VOCdevkit" / "VOC2012"


def _import(options: argparse.Namespace) -> Answer:
    from benchmarks.weights import import_file, known_table

    if options.list:
        return 0, known_table()
    if options.file is None:
        raise Usage("give the weights FILE, or --list")
    if options.std and len(options.std) not in (1, 3):
        raise Usage("--std takes one number, or three: R G B")
    from pretrain.foreign import Reading

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


def _fetch(options: argparse.Namespace) -> Answer:
    from benchmarks.fetch import fetch
    from benchmarks.weights import known_file

    return 0, f"{fetch(known_file(options.name), options.to)}\n"


def _transfer(options: argparse.Namespace) -> Answer:
    from benchmarks.run import transfer
    from pretrain.alexnet import read_encoder
    from transfer import TASKS

    encoder = read_encoder(options.encoder or last_encoder(options.runs))
    tasks = tuple(TASKS) if options.task == "all" else (options.task,)
    data = options.data or _default_data(options.recipe)
    paths = [
        path
        for seed in options.seed
        for path in transfer(
            encoder,
            tasks=tasks,
            recipe=options.recipe,
            data=data,
            seed=seed,
            results=options.results,
            runs=options.runs,
            device=_device(options.device),
            again=options.again,
        )
    ]
    return 0, "".join(f"{path}\n" for path in paths)


def last_encoder(runs: Path) -> Path:
    """The encoder that `bench pretrain` wrote last. Raises Missing when there is none."""
    pointer = runs / "pretrain" / "last"
    if not pointer.is_file():
        raise Missing(f"{pointer}: no encoder yet: run `bench pretrain`, or give --encoder FILE")
    return runs / pointer.read_text().strip()


def _default_data(recipe: str) -> Path:
    if recipe == "tiny":
        _make_tiny()
        return TINY
    if "BENCH_DATA" not in os.environ:
        raise Missing(f"recipe {recipe} needs real VOC data: give --data DIR, or set $BENCH_DATA")
    return Path(os.environ["BENCH_DATA"])


def _make_tiny() -> None:
    from benchmarks.tiny import make_tiny

    make_tiny(TINY)


def _device(name: str | None) -> "torch.device":
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise Missing("--device cuda: torch sees no GPU here: leave --device out, or run `bench doctor`")
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise Usage(f"--device {name}: no such device: use cpu or cuda") from error


def _table2(options: argparse.Namespace) -> Answer:
    from benchmarks.table2 import report

    return 0, report(
        options.results, recipe=options.recipe, style=options.format, successors=options.also == "successors"
    )


def _compare(options: argparse.Namespace) -> Answer:
    from benchmarks.compare import compare

    return 0, compare(options.results, options.first, options.second, recipe=options.recipe)


def _data_tiny(options: argparse.Namespace) -> Answer:
    from benchmarks.tiny import make_tiny

    make_tiny(options.dir, seed=options.seed)
    return 0, f"{options.dir}\n"


def _data_subset(options: argparse.Namespace) -> Answer:
    from benchmarks.data import subset

    subset(options.source, options.dir, images=options.images, seed=options.seed)
    return 0, f"{options.dir}\n"


def _data_check(options: argparse.Namespace) -> Answer:
    from benchmarks.data import check

    problems = check(options.dir)
    return (1, "".join(f"{problem}\n" for problem in problems)) if problems else (0, f"{options.dir}: clean\n")


def _doctor(options: argparse.Namespace) -> Answer:
    from benchmarks.doctor import report

    text, well = report(options.data)
    return 0 if well else 3, text
