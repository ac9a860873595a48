"""The curves as a picture: a panel a training, a line a layer, the rows to compare with as horizontal lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bootstrap import LEVEL
from benchmarks.controls import imagenet
from benchmarks.curve import Curves
from benchmarks.probes import Column, chances, columns, score
from benchmarks.rows import Measured
from benchmarks.trainings import TASK, Training
from pretrain.files import Usage, atomic
from transfer.probes.features import LAYERS

if TYPE_CHECKING:  # slow to import, so imported for real only where it is drawn
    from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 12.0, 4.2, 100  # inches, of the whole and of a row of panels; 1,200 pixels
LAST = LAYERS[-1]
THRESHOLD = 0.5  # decades that the linear part takes, from 0 to the first encoder


def check_picture(path: Path) -> None:
    """Raise Usage unless it is named as a PNG file."""
    if path.suffix.lower() != ".png":
        raise Usage(f"--out {path}: a PNG file is written: name it {path.with_suffix('.png').name}")


def draw(curves: Sequence[Curves], path: Path) -> None:
    """Write the picture, 1,200 pixels wide, to `path`: the same bytes for the same curves."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(one, training) for one in curves for training in one.trainings]
    width = min(2, len(panels))
    height = -(-len(panels) // width)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's own: everybody's picture is the same
        figure = Figure(figsize=(WIDTH, HEIGHT * height + 0.8), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(height, width, squeeze=False, sharey=True).flatten().tolist()
        for place, (one, training) in zip(axes, panels, strict=False):
            _panel(place, one, training)
        for place in axes[len(panels) :]:
            place.axis("off")
        lines = {line.get_label(): line for place in axes for line in place.get_legend_handles_labels()[0]}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=5, frameon=False)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _panel(axes: "Axes", curves: Curves, training: Training) -> None:
    axes.set_title(f"{training.name}\n{training.told}; recipe {curves.section.recipe}", fontsize=9)
    axes.set_ylabel("mAP of linear SVMs (%)")
    axes.yaxis.set_tick_params(labelleft=True)
    axes.grid(alpha=0.3)
    steps = list(training.points)
    for number, column in enumerate(columns()[: len(LAYERS)]):
        _line(axes, training, column, place=number / (len(LAYERS) - 1))
    for row in curves.references:
        if found := score(row, _column(LAST)):
            colour = "tab:red" if imagenet(row.results[0]) else "tab:gray"
            axes.axhline(found.mean, color=colour, linestyle="--", label=f"{row.name}, {LAST}")
    axes.axhline(chances(curves.section, TASK)[0], color="black", linewidth=1, linestyle=":", label="chance")
    first = min((step for step in steps if step), default=1)
    axes.set_xlabel(f"iterations of pre-training (linear up to {first:,}, then logarithmic)")
    axes.set_xscale("symlog", linthresh=first, linscale=THRESHOLD)
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()
    axes.set_xlim(-0.1 * first, 1.15 * max(steps[-1], first))


def _line(axes: "Axes", training: Training, column: Column, *, place: float) -> None:
    """One layer's; of pool5 with the interval. `place`: of its colour, from 0 (conv1) to 1 (pool5)."""
    from matplotlib import colormaps

    found = {n: score(Measured("", None, own), column) for n, own in training.points.items()}
    points = [(n, one.mean, one.low, one.high) for n, one in found.items() if one]
    if not points:
        return
    steps, means, lows, highs = zip(*points, strict=True)
    colour: Any = colormaps["viridis"](0.9 * (1 - place))
    last = column.heading == LAST
    axes.plot(steps, means, "o-", color=colour, label=column.heading, linewidth=2.5 if last else 1.2, markersize=4)
    if last:
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.2, label=f"{LAST}, {LEVEL}% interval")


def _column(heading: str) -> Column:
    return next(column for column in columns() if column.heading == heading)
