"""The options of `bench`: every command, what it takes, what --help says."""

import argparse
from pathlib import Path

from benchmarks import commands
from benchmarks.commands import RUNS, TINY, WEIGHTS
from benchmarks.values import Parser, count, folder, given, label, number, positive, rate, row, seed, small
from pretrain import METHODS, PRECISIONS
from transfer import TASKS, tasks


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = Parser(prog="bench", description=SUMMARY, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")
    _add_pretrain(subparsers)
    _add_rescale(subparsers)
    _add_import(subparsers)
    _add_fetch(subparsers)
    _add_transfer(subparsers)
    _add_run(subparsers)
    _add_table2(subparsers)
    _add_probes(subparsers)
    _add_summary(subparsers)
    _add_curve(subparsers)
    _add_compare(subparsers)
    _add_data(subparsers)
    doctor = subparsers.add_parser(
        "doctor", help="say what is installed, what data is found, and how to mend what is missing"
    )
    doctor.add_argument("--data", type=folder, help="a folder with VOCdevkit to look at (default: $BENCH_DATA)")
    doctor.set_defaults(command=commands.doctor)
    return top


SUMMARY = """\
How good are the features that a pre-training learned? Table 2 of Context Encoders (CVPR 2016).

  bench pretrain                      learn an encoder (default: context encoder, embedded data)
  bench import FILE --method NAME     or make one of published weights (bench import --list, bench fetch)
  bench transfer --task all           score it: classification, detection, segmentation
  bench run PLAN                      all of that for a grid of methods, tasks and seeds, on one machine or Slurm
  bench table2 > table2.md            print the table of all results
  bench transfer --task probes        score it as it is: linear SVMs on each layer, few images, neighbours
  bench probes                        print the table of those
  bench curve [RUN]                   the same on the way: by iterations of pre-training (pretrain --save-at)

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 missing data or dependency, 130 interrupted."""

Subparsers = argparse._SubParsersAction  # argparse has no public name for it


def _add_pretrain(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
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
        type=folder,
        action="append",
        metavar="DIR",
        help="a folder of images, or a VOC year's folder (then its trainval); may be repeated; for labels, "
        "class folders (perhaps under train and val); egomotion and tracking make motion from stills",
    )
    add(
        "--videos",
        type=folder,
        action="append",
        metavar="DIR",
        help="for tracking, a folder of videos; for egomotion, frames and poses laid out as KITTI odometry's "
        "(sequences/NN/image_2/*.png, poses/NN.txt); may be repeated",
    )
    add(
        "--shapes",
        type=folder,
        action="append",
        metavar="DIR",
        help="a VOC year's folder with masks, the silhouettes of random-region holes "
        "(default: VOC2012 in $BENCH_DATA, else the embedded data)",
    )
    add("--loss", choices=("l2", "l1"), default="l2", help="(default: l2)")
    add("--iterations", type=count, help="(default: the budget's)")
    add("--batch", type=small, help="items per iteration (default: the budget's)")
    add("--lr", type=rate, help="learning rate (default: the budget's)")
    add(
        "--budget",
        choices=("tiny", "paper"),
        help="iterations, batch, rate, solver and fillers, where not given: paper: the published ones (default with "
        "--images or --videos); tiny: shrunken, with Adam and fresh layers at data-dependent scales, as the published "
        "fillers start on a plateau that a short run does not leave (default for the embedded data)",
    )
    add("--precision", choices=PRECISIONS, default="fp32", help="bf16: bfloat16 autocast (default: fp32)")
    add(
        "--start",
        choices=("scaled", "kmeans"),
        default="",
        help="how the encoder of context and autoencoder starts, in place of Caffe's fillers: at data-dependent "
        "scales, or from k-means filters; a row of its own",
    )
    add(
        "--save-at",
        type=count,
        nargs="+",
        default=[],
        metavar="N",
        help="save the encoder on the way, after these iterations (0: before the first); see `bench curve`",
    )
    add("--seed", type=seed, default=0)
    add("--label", type=label, default="", help="added to the row's name, to tell two budgets apart")
    _add_places(parser)
    parser.set_defaults(command=commands.pretrain)


def _add_rescale(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "rescale",
        help="balance the scales of an encoder's layers",
        description="Rescale conv1–conv5 of an encoder so that all layers learn at the same rate (Krähenbühl et al., "
        "2016), on 160 images, and write the result as an encoder of its own, a row of its own: "
        "its variant is the old one with `rescaled` added.",
    )
    add = parser.add_argument
    add("encoder", type=folder, help="an encoder.safetensors")
    add(
        "--images",
        type=folder,
        action="append",
        metavar="DIR",
        help="a folder of images, or a VOC year's folder; may be repeated (default: the embedded data)",
    )
    add(
        "--out", type=folder, metavar="FILE", help="(default: under runs/pretrain; `bench transfer` then takes it next)"
    )
    add("--seed", type=seed, default=0)
    _add_places(parser)
    parser.set_defaults(command=commands.rescale)


def _add_import(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "import",
        help="make an encoder of published weights",
        description="Read conv1–conv5 out of a .caffemodel, .pth, .pt, .pth.tar, .npy, .npz, .pkl or .safetensors "
        "file, executing nothing of it, and write an encoder file for RGB images, 0–255, minus (123, 117, 104). "
        "What became of each blob is said on stderr. It is then the encoder that `bench transfer` takes.",
    )
    add = parser.add_argument
    add("file", type=folder, nargs="?", metavar="FILE", help="the weights")
    add("--list", action="store_true", help="print a table of the known published files, and stop")
    add("--method", type=row, metavar="NAME", help="the row these weights make, as context, tracking, bigan")
    add("--variant", type=label, metavar="V", help="added to the row's name")
    add("--known", metavar="NAME", help="take method and preprocessing from this known file (see --list)")
    add("--order", choices=("bgr", "rgb"), help="of the file's input channels (default: bgr for .caffemodel, else rgb)")
    add("--mean", type=number, nargs=3, metavar=("R", "G", "B"), help="what was subtracted from the pixels (0–255)")
    add("--std", type=rate, nargs="+", metavar="S", help="what they were then divided by: one number, or R G B")
    add(
        "--norm",
        choices=("lrn", "lrn-before-pool", "none"),
        help="LRN behind or before pooling (default: as a .caffemodel says; else lrn for CaffeNet's widths)",
    )
    add("--out", type=folder, metavar="ENCODER", help="(default: runs/import/<row>-<digest>/encoder.safetensors)")
    add("--runs", type=folder, default=RUNS, help="where work in progress is kept (default: runs)")
    parser.set_defaults(command=commands.import_)


def _add_fetch(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "fetch",
        help="download a known weights file",
        description="Download a published weights file that `bench import --list` names: mirrors in order, "
        "going on where a download stopped, with a checksum where one is known.",
    )
    parser.add_argument("name", metavar="NAME", help="see bench import --list")
    parser.add_argument("--to", type=folder, default=WEIGHTS, metavar="DIR", help=f"(default: {WEIGHTS})")
    parser.set_defaults(command=commands.fetch)


def _add_transfer(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "transfer",
        help="score an encoder on a task",
        description="Load conv1–conv5 of an encoder into a task's network, train, test, and write "
        "results/<recipe>/<method>/<task>-seed<k>.json. Finished results are reused, stale ones computed again, "
        "interrupted ones go on.",
    )
    add = parser.add_argument
    add(
        "--task",
        choices=(*TASKS, "all", "probes"),
        required=True,
        help=f"all: {', '.join(tasks('table2'))}; probes, of the encoder as it is: {', '.join(tasks('probes'))}",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--encoder",
        type=folder,
        help="an encoder.safetensors (default: the one written last, by `bench pretrain`, `import` or `rescale`)",
    )
    source.add_argument(
        "--features",
        choices=("colour-histogram", "hog", "pixels"),
        help="what the probes see in place of an encoder: control rows",
    )
    add(
        "--recipe",
        type=row,
        default="tiny",
        metavar="NAME",
        help="tiny: embedded data, minutes; quick: real VOC, cut; paper: the published protocol; or a variant of a "
        "task: paper-fc6-8, paper-fc8, quick-fc6-8, quick-fc8 (classification), paper-40k, paper-conv1-frozen, "
        "paper-40k-conv1-frozen (detection) (default: tiny)",
    )
    add(
        "--data", type=folder, help="the folder that holds VOCdevkit (default: $BENCH_DATA; for tiny the embedded data)"
    )
    add("--seed", type=seed, nargs="+", default=[0], help="one or more seeds (default: 0)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="bf16: conv1–conv5, fc6 and fc7 in bfloat16 autocast; a recipe of its own, NAME-bf16 (default: fp32)",
    )
    add("--again", action="store_true", help="compute results that are finished once more")
    _add_results(parser)
    _add_places(parser)
    parser.set_defaults(command=commands.transfer)


def _add_run(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "run",
        help="fill a grid of methods, variants, tasks and seeds",
        description="Train each encoder of a plan once, score it on each task with each seed, every job in a process "
        "of its own, and print the table. What is done is reused; what failed is recorded with its log under "
        "runs/grid/, and tried again next time; after any kind of end the same command goes on.",
    )
    add = parser.add_argument
    add(
        "plan",
        type=given,
        metavar="PLAN",
        help="a YAML file, or a plan that ships with the package: tiny, quick, paper",
    )
    add("--dry-run", action="store_true", help="check the plan, say what is done, stale and missing, and stop")
    add("--data", type=folder, help="the folder that holds VOCdevkit (default: $BENCH_DATA, or the plan's)")
    add("--launcher", choices=("local", "slurm"), default="local", help="(default: local)")
    add(
        "--workers",
        type=small,
        metavar="N",
        help="jobs at once on this machine, with those of other grids in the same --runs "
        "(default: the plan's, or one a GPU, or one)",
    )
    _add_results(parser)
    _add_places(parser)
    parser.set_defaults(command=commands.run)


def _add_table2(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "table2", help="print Table 2", description="Print the table of all results on stdout."
    )
    _add_form(parser)
    parser.add_argument("--with", choices=("successors",), dest="also", help="later papers' published rows too")
    parser.add_argument(
        "--long", action="store_true", help="the classes' scores too; in csv and json these alone, a record each"
    )
    _add_results(parser)
    parser.set_defaults(command=commands.table2)


def _add_form(parser: argparse.ArgumentParser) -> None:
    """Of a report on all results: its format, and which recipe's."""
    parser.add_argument("--format", choices=("markdown", "csv", "latex", "json"), default="markdown")
    parser.add_argument("--recipe", type=row, metavar="NAME", help="only the results of this recipe")


def _add_summary(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "summary",
        help="print the short table: frozen and fine-tuned features side by side",
        description="Print a row a method, controls first: linear SVMs on frozen features, and the columns of Table 2.",
    )
    parser.add_argument("--recipe", type=row, metavar="NAME", default="quick", help="(default: quick)")
    _add_results(parser)
    parser.set_defaults(command=commands.summary)


def _add_probes(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "probes", help="print the table of frozen features", description="Print the probes of all rows on stdout."
    )
    _add_form(parser)
    _add_results(parser)
    parser.set_defaults(command=commands.probes)


def _add_curve(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "curve",
        help="print svm mAP by layer against iterations of pre-training",
        description="Score the encoders that `bench pretrain --save-at` saved on the way, and the final one, by "
        "`--task svm`, and print a table of each training: a row a number of iterations, a column a layer. What is "
        "scored is reused. Each encoder leaves its features under RUNS/features (of `quick` some 240 MB).",
    )
    add = parser.add_argument
    add(
        "run",
        nargs="*",
        type=given,
        metavar="RUN",
        help="the folder of a pre-training, or its name under RUNS/pretrain (default: score nothing, print all that "
        "the results hold)",
    )
    add("--recipe", type=row, default="quick", metavar="NAME", help="tiny, quick or paper (default: quick)")
    add(
        "--data", type=folder, help="the folder that holds VOCdevkit (default: $BENCH_DATA; for tiny the embedded data)"
    )
    add("--seed", type=seed, nargs="+", default=[0], help="one or more seeds of the scoring (default: 0)")
    add("--out", type=folder, metavar="FILE.png", help="draw the curves, too")
    add("--layers", action="store_true", help="what happened in the layers, too; in csv and json that alone")
    add("--format", choices=("markdown", "csv", "json"), default="markdown")
    _add_results(parser)
    _add_places(parser)
    parser.set_defaults(command=commands.curve)


def _add_compare(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser(
        "compare",
        help="say whether row A beats row B",
        description="Answer, task by task, with a paired bootstrap over the test images, whether row A beats row B.",
    )
    parser.add_argument("first", metavar="A", help="a row's folder under results/<recipe>/: context-random-region")
    parser.add_argument("second", metavar="B", help="another: random")
    parser.add_argument("--recipe", type=row, metavar="NAME", help="(default: every recipe with results of both)")
    _add_results(parser)
    parser.set_defaults(command=commands.compare)


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=folder, default=Path("results"), help="where results are kept (default: results)"
    )


def _add_data(subparsers: "Subparsers[Parser]") -> None:
    parser = subparsers.add_parser("data", help="make, cut and check data")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    tiny = kinds.add_parser("tiny", help="make the embedded synthetic VOC")
    tiny.add_argument("dir", type=folder, nargs="?", default=TINY, help=f"(default: {TINY})")
    tiny.add_argument("--seed", type=seed, default=0)
    tiny.set_defaults(command=commands.data_tiny)
    cut = kinds.add_parser("subset", help="cut a small subset out of a real VOCdevkit")
    cut.add_argument("source", type=folder, help="the folder that holds VOCdevkit")
    cut.add_argument("dir", type=folder, help="where to write the subset; must not exist")
    cut.add_argument("--images", type=positive, default=40, help="images per split (default: 40)")
    cut.add_argument("--seed", type=seed, default=0)
    cut.set_defaults(command=commands.data_subset)
    held = kinds.add_parser("holdout", help="part VOC's training sets, to choose constants without the test sets")
    held.add_argument("source", type=folder, help="the folder that holds VOCdevkit")
    held.add_argument("dir", type=folder, help="where to write the lists, with links to the images; must not exist")
    held.add_argument("--every", type=positive, default=4, help="one image in so many is tested on (default: 4)")
    held.set_defaults(command=commands.data_holdout)
    check = kinds.add_parser("check", help="verify a VOC tree, naming each bad file")
    check.add_argument("dir", type=folder, help="the folder that holds VOCdevkit")
    check.set_defaults(command=commands.data_check)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=folder, default=RUNS, help="where work in progress is kept (default: runs)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if there is one)")
