"""What stands under the table of frozen features: how the numbers were made."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.sections import Section
from transfer import TASKS


def notes(section: Section) -> Iterator[str]:
    """A sentence or two about intervals and chance, about each of the section's tasks, and where they ran."""
    told = section.data()
    definition = TASKS[next(iter(told))].metric.split("_")[-1]
    yield (
        "In square brackets: the test images are resampled, the training images are not. (chance): mean AP of random "
        f"rankings of the test labels ± its standard deviation. AP: {definition}'s; others are in the results."
    )
    for task, write in {"svm": _svm, "low-shot": _low_shot, "knn": _knn}.items():
        if task in told:
            yield write(section, TASKS[task].load().RECIPES[section.recipe])
    hardware = sorted({r["hardware"] for r in section.results})
    commits = sorted({r["commit"][:10] + (" with local changes" if r["dirty"] else "") for r in section.results})
    yield f"On: {'; '.join(hardware)}. Code: {', '.join(commits)}."


def _svm(_: Section, recipe: Any) -> str:
    machine = recipe.machine
    return (
        f"SVMs: conv1 to conv5 behind the ReLU; a layer is averaged to about {recipe.numbers:,} numbers of length one; "
        f"C of each class from {_listed(machine.costs)} (up to where their mean falls) by {machine.folds}-fold "
        "cross-validation on the training images, which chooses the best layer too."
    )


def _low_shot(section: Section, recipe: Any) -> str:
    metrics = [result["metrics"] for result in section.results if result["task"] == "low-shot"]
    filled = {k: min(found[f"k{k}_filled"] for found in metrics) for k in recipe.sizes}
    lack = ", ".join(f"{k} ({100 * share:.0f}%)" for k, share in filled.items() if share < 1)
    said = f" Where classes have fewer positives, they take all (share there was): {lack}." if lack else ""
    return f"Images: k positives and 19·k negatives a class on the last layer, {recipe.samples} samples a seed.{said}"


def _knn(_: Section, recipe: Any) -> str:
    return f"k-NN: cosine, last layer; k from {_listed(recipe.neighbours)} by leaving one training image out."


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
