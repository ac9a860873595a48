"""A grid's plan: what it may say, and that each error names its line."""

import dataclasses
import itertools
import os
import re

import pytest

from benchmarks import cli, commands
from benchmarks.grid.plan import PLANS, Launch, find_plan, read_plan
from pretrain import METHODS
from pretrain.alexnet import AlexNet, save_encoder
from pretrain.files import Missing, Usage
from transfer import tasks

WHOLE = """\
recipe: tiny
data: {tiny}
images: [images]
methods:
  random:
  context: {{mask: central, iterations: 2, batch: 2, rate: 5e-4, seed: 3, label: short}}
  long:
    method: autoencoder
    iterations: 1_000
    batch: 2
    label: long
    variants: [rescaled]
  given: {{encoder: {encoder}}}
variants: [raw, rescaled]
tasks: [classification]
seeds: [0, 7]
launch: {{workers: 2, threads: 1, partition: debug, minutes: 30, slurm: {{account: vision, exclusive: true}}}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch, tiny):
    """An empty working folder whose embedded data is the small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setattr(commands, "TINY", tiny)
    monkeypatch.setattr(commands, "_make_tiny", lambda: None)
    return tmp_path


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """An encoder file whose row is `mine`."""
    path = tmp_path_factory.mktemp("encoder") / "mine.safetensors"
    save_encoder(path, AlexNet(), {"method": "mine", "variant": "", "supervision": "none"})
    return path


@pytest.fixture
def plan(here, tiny, mine):
    """Read a plan's text; `change` of it first."""

    def read(text=WHOLE, *change):
        file = here / "plan.yaml"
        text = text.format(tiny=tiny, encoder=mine)
        for old, new in change:
            assert old in text
            text = text.replace(old, new, 1)
        file.write_text(text)
        return read_plan(file)

    return read


def test_a_method_with_videos_is_not_trained_on_the_images_of_all(plan, tiny):
    text = "recipe: tiny\ndata: {tiny}\nimages: [images]\nmethods:\n  egomotion: {{videos: [odometry]}}\n  relative:\n"
    film, still = plan(text + "variants: [raw, rescaled]\ntasks: [classification]").entries
    assert (film.folders.images, film.folders.videos) == ((), (tiny / "odometry",))
    assert still.folders.images == film.stills == still.stills == (tiny / "images",)


def test_a_whole_plan_is_read(plan, tiny, mine):
    read = plan(WHOLE, ("label: short", "label: short, variants: [raw]"))
    assert (read.recipe, read.data, read.seeds) == ("tiny", tiny, (0, 7))
    assert list(read.read) == ["classification"]
    assert [entry.rows() for entry in read.entries] == [
        ["random", "random-rescaled"],
        ["context-central-short"],
        ["autoencoder-long-rescaled"],
        ["mine", "mine-rescaled"],
    ]
    assert read.entries[3].source == mine
    context = read.entries[1].source
    assert (context.iterations, context.batch, context.rate, context.seed) == (2, 2, 5e-4, 3)
    assert read.entries[1].folders.images == (tiny / "images",)
    assert read.entries[2].source.iterations == 1000
    assert read.launch == Launch(
        workers=2,
        threads=1,
        partition="debug",
        minutes=30,
        slurm=(("account", "vision"), ("exclusive", True)),
    )


def test_descriptors_are_rows_of_probes(plan):
    """Without `tasks` a plan means those of Table 2; a descriptor has to name others."""
    text = "recipe: tiny\ndata: {tiny}\nmethods:\n  gradients: {{features: hog}}\n  random:\n"
    read = plan(text + "tasks: [svm, knn]\n")
    assert [(entry.rows(), entry.tasks) for entry in read.entries] == [
        (["hog"], ("svm", "knn")),
        (["random"], ("svm", "knn")),
    ]
    assert list(plan(text.replace("  gradients: {{features: hog}}\n", "")).read) == [*tasks("table2")]


def test_precision_and_start_are_options_of_a_method(plan):
    read = plan(WHOLE, ("mask: central", "mask: central, precision: bf16, start: kmeans"))
    plain, other = read.entries[2].source, read.entries[1].source
    assert [(config.precision, config.start) for config in (plain, other)] == [("fp32", ""), ("bf16", "kmeans")]
    assert read.entries[1].rows()[0] == "context-central-kmeans-start-short"


WRONG = {  # what is written instead of what → line, said
    "not YAML": ("variants: [raw, rescaled]\n", "variants: [raw\n", 15, "not YAML"),
    "a tab": ("    method: auto", "\tmethod: auto", 8, "not YAML"),
    "unknown key": ("seeds: [0, 7]", "seed: [0]", 16, "seed: unknown key; known: recipe, data"),
    "unknown key of a method": ("    batch: 2", "    batchsize: 2", 10, "methods.long.batchsize: unknown key"),
    "unknown key of launch": ("threads: 1", "thread: 1", 17, "launch.thread: unknown key"),
    "twice": ("recipe: tiny\n", "recipe: tiny\nrecipe: tiny\n", 2, "recipe: given twice"),
    "a method twice": ("  long:", "  random:\n  long:", 7, "methods.random: given twice"),
    "a seed twice": ("[0, 7]", "[7, 7]", 16, "7 is given twice"),
    "unknown recipe": ("recipe: tiny", "recipe: huge", 1, "no recipe 'huge' of classification, which has paper"),
    "no recipe": ("recipe: tiny\n", "", 1, "no recipe: add it"),
    "no methods": (re.compile("methods:.*?(?=variants: \\[raw, r)", re.S), "", 1, "no methods: add it"),
    "empty methods": (re.compile("methods:.*?(?=variants: \\[raw, r)", re.S), "methods: {}\n", 4, "no method: add one"),
    "unknown task": ("[classification]", "[classification,\n  chess]", 16, "tasks: no 'chess'; there are"),
    "unknown method": ("  random:", "  randon:", 5, "methods.randon: no method of this name: give it a `method`"),
    "unknown method named": ("method: autoencoder", "method: auto", 8, "method: no 'auto'; there are labels"),
    "unknown mask": ("mask: central", "mask: round", 6, "methods.context.mask: no 'round'; there are"),
    "a mask for none": ("  random:", "  random: {mask: central}", 5, "mask: method random takes no mask"),
    "unknown precision": ("mask: central", "precision: fp16", 6, "context.precision: no 'fp16'; there are fp32, bf16"),
    "unknown start": ("mask: central", "start: cold", 6, "methods.context.start: no 'cold'; there are scaled, kmeans"),
    "a start for none": ("  random:", "  random: {start: scaled}", 5, "start: method random has one start"),
    "a precision of a file": ("given: {", "given: {precision: bf16, ", 13, "an encoder file is not trained"),
    "unknown loss": ("mask: central", "loss: l3", 6, "methods.context.loss: no 'l3'; there are l2, l1"),
    "unknown variant": ("[raw, rescaled]", "[raw, cooked]", 14, "no 'cooked'; there are raw, rescaled"),
    "not whole": ("1_000", "1.5", 9, "methods.long.iterations: '1.5' is not a whole number"),
    "negative": ("[0, 7]", "[-1]", 16, "seeds: '-1' is not a whole number"),
    "no image": ("    batch: 2", "    batch: 0", 10, "methods.long.batch: 0 is less than 1"),
    "no number": ("5e-4", "fast", 6, "methods.context.rate: 'fast' is not a positive number"),
    "not a number": ("5e-4", ".nan", 6, "'.nan' is not a positive number"),
    "a task of no column": ("    label: long", "    tasks: [detection]", 11, "tasks: no 'detection'; there are"),
    "a list for a word": ("recipe: tiny", "recipe: [tiny]", 1, "recipe: needs one word or number"),
    "a word for a list": ("[classification]", "classification", 15, "tasks: needs a list"),
    "an empty list": ("[classification]", "[]", 15, "tasks: needs a list"),
    "a word for keys": ("  random:", "  random: yes", 5, "methods.random: needs keys and values here"),
    "a label of a path": ("label: short", "label: a/b", 6, "methods.context.label: 'a/b' is not a label"),
    "iterations for none": ("  random:", "  random: {iterations: 5}", 5, "method random is not trained"),
    "a budget for a file": ("given: {", "given: {batch: 2, ", 13, "batch: an encoder file is not trained"),
    "the same row": ("  long:", "  more: {method: context, mask: central, label: short}\n  long:", 7, "makes the row"),
    "a file twice": ("  long:", "  twin: {encoder: mine.safetensors}\n  long:", 14, "makes the row mine, as"),
    "another encoder of one name": (
        "  long:", "  one: {method: autoencoder, label: long, variants: [raw]}\n  long:", 8,
        "methods.long: makes another encoder autoencoder-long than methods.one does: give it a label",
    ),
    "a dot in a key": ("  random:", "  x.random:", 4, "methods: 'x.random' is no key"),
    "too many digits": ("1_000", "1" * 5000, 9, "methods.long.iterations: a number of more than 9 digits"),
    "a seed twice in other words": ("[0, 7]", "[7, 0_7]", 16, "7 is given twice"),
    "a label too long": ("label: short", f"label: {'a' * 101}", 6, "is not a label"),
    "a name too long": ("data: ", f"data: {'a' * 300}", 2, "data: a name of more than 255 bytes"),
    "nobody's home": ("data: ", "data: ~nobody-here", 2, "nobody here has such a home folder"),
    "data of no name": ("data: ", "data: # ", 2, "plan.yaml:2: data: needs one word or number"),
    "features of no name": ("  random:", "  sift: {features: sift}", 5, "no 'sift'; there are colour-histogram, hog"),
    "features that are tuned": ("  random:", "  hog: {features: hog}", 5, "classification trains an encoder: give `"),
    "features that are trained": ("  random:", "  hog: {features: hog, batch: 2}", 5, "features are not trained: leav"),
    "a variant of nothing": ("images: [images]\n", "", 4, "methods.random: the rescaled variant is balanced on images"),
}  # fmt: skip
ABSENT = {
    "a folder of images": ("images: [images]", "images: [images,\n  pictures]", 4, "pictures: no such folder"),
    "data": ("data: ", "data: /nowhere", 2, "data: /nowhere"),
    "masks": ("mask: central", "mask: random-region, shapes: [images]", 6, "images: no segmentation masks"),
    "images to rescale on": (
        "given: {", "given: {images: [odometry/poses], variants: [rescaled], ", 13,
        "methods.given: {tiny}/odometry/poses: no images here (not looked at: ",
    ),
    "an encoder": ("encoder: ", "encoder: /nowhere", 13, "methods.given: /nowhere"),
    "images at all": ("images: [images]\n", "", 5, "methods.context: no folder of images: give `images` DIR"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_with_its_line(old, new, line, said, plan, here, tiny, mine, capsys):
    (here / "mine.safetensors").write_bytes(mine.read_bytes())
    text = WHOLE.format(tiny=tiny, encoder=mine)
    changed = text.replace(old, new, 1) if isinstance(old, str) else old.sub(new, text, count=1)
    assert changed != text
    with pytest.raises(Usage) as caught:
        plan(changed.replace("{", "{{").replace("}", "}}"))
    assert str(caught.value).startswith(f"{here / 'plan.yaml'}:{line}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("old", "new", "line", "said"), ABSENT.values(), ids=ABSENT)
def test_what_is_missing_is_said_with_its_line(old, new, line, said, plan, here, tiny):
    with pytest.raises(Missing) as caught:
        plan(WHOLE, ("  random:\n", "  # \n"), ("variants: [raw, rescaled]", "variants: [raw]"), (old, new))
    assert str(caught.value).startswith(f"{here / 'plan.yaml'}:{line}: ")
    assert said.format(tiny=tiny) in str(caught.value)


def test_the_exit_codes_of_a_plan_that_is_refused(here, capsys):
    (here / "wrong.yaml").write_text("recipe: tiny\nmethod: {}\n")
    assert cli.main(["run", "wrong.yaml"]) == 2
    assert capsys.readouterr().err.startswith("bench: wrong.yaml:2: method: unknown key")
    (here / "absent.yaml").write_text("recipe: tiny\nmethods: {random: {}}\ndata: nowhere\n")
    assert cli.main(["run", "absent.yaml"]) == 3
    assert capsys.readouterr().err.startswith("bench: absent.yaml:3: data: nowhere: no VOCdevkit")
    assert cli.main(["run", "nosuch"]) == 3
    assert "nosuch: cannot be read (No such file or directory)" in capsys.readouterr().err
    (here / "quick.yaml").write_text("recipe: quick\nmethods: {random: {}}\n")
    assert cli.main(["run", "quick.yaml"]) == 3
    assert "give --data DIR, or set $BENCH_DATA" in capsys.readouterr().err
    (here / "deep.yaml").write_text("recipe: " + "[" * 2000 + "]" * 2000)
    assert cli.main(["run", "deep.yaml"]) == 2
    assert capsys.readouterr().err == "bench: deep.yaml: nested too deep for a plan\n"
    (here / "right.yaml").write_text("recipe: tiny\nmethods: {random: {}}\ntasks: [segmentation]\n")
    assert cli.main(["run", "right.yaml", "--data", "/nowhere"]) == 3
    assert capsys.readouterr().err.startswith("bench: /nowhere: no VOCdevkit here")
    assert cli.main(["run", "right.yaml", "--device", "abacus", "--dry-run"]) == 2
    assert capsys.readouterr().err == "bench: --device abacus: no such device: use cpu, cuda or cuda:N\n"
    assert not (here / "runs").exists(), "something was started"


ENDLESS = {
    "a list of lists of lists": ("a: &a [x, x, x, x, x, x, x, x, x]\n", "unfolds to more than 100000 values"),
    "what holds itself": ("methods: &m {random: *m}\nrecipe: tiny\n", "unfolds to more than 100000 values"),
    "huge": ("recipe: tiny\n" * 20_000, "larger than 100000 bytes"),
    "deep": ("[" * 20_000, "nested too deep"),
    "no character": ('recipe: "\\UFFFFFFFF"\n', "not YAML"),
    "no text": ("recipe: \udcff\n", "not YAML"),
}


@pytest.mark.parametrize(("text", "said"), ENDLESS.values(), ids=ENDLESS)
def test_a_plan_that_unfolds_without_end_is_refused(text, said, here, capsys):
    if text.startswith("a:"):
        for one, other in itertools.pairwise("abcdefgh"):
            text += f"{other}: &{other} [{', '.join(['*' + one] * 9)}]\n"
    (here / "plan.yaml").write_bytes(text.encode(errors="surrogateescape"))
    assert cli.main(["run", "plan.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bench: plan.yaml: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_plan_that_is_no_file_is_not_waited_for(here, capsys):
    os.mkfifo(here / "pipe")
    for name in ("pipe", "/dev/zero"):
        assert cli.main(["run", name]) == 2
        assert capsys.readouterr().err.startswith(f"bench: {name}: not a regular file: give a YAML file")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "x" * 300])
    assert "is too long: a path has at most" in capsys.readouterr().err


@pytest.mark.parametrize("name", ['"a\\0b"', '"\\uD800"', "/".join(["a" * 200] * 30), "a" * 256])
def test_names_that_no_file_has_are_refused(name, here, capsys):
    (here / "plan.yaml").write_text(f"recipe: tiny\ndata: {name}\nmethods: {{random: }}\n")
    assert cli.main(["run", "plan.yaml"]) == 2
    assert re.match(r"bench: plan\.yaml:2: data: .*a name .*no file has\n$", capsys.readouterr().err)


def test_a_plan_may_be_in_utf_16(here, capsys):
    (here / "plan.yaml").write_text("recipe: tiny\nmethods: {rando: }\n", encoding="utf-16")
    assert cli.main(["run", "plan.yaml"]) == 2
    assert capsys.readouterr().err.startswith("bench: plan.yaml:2: methods.rando: no method of this name")


def test_where_the_data_is_looked_for(plan, tiny, monkeypatch, tmp_path):
    """--data, then the plan's; for a recipe of real data $BENCH_DATA goes before the plan's."""
    real = "recipe: quick\ndata: {tiny}\nmethods: {{random: {{}}}}\ntasks: [classification]\n"
    assert plan(real).data == tiny
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(Missing, match="elsewhere"):
        plan(real)
    assert plan("recipe: tiny\nmethods: {{random: {{}}}}\ntasks: [segmentation]\n").data == tiny
    with pytest.raises(Missing, match="given"):
        read_plan(tmp_path / "plan.yaml", data=tmp_path / "given")


def test_the_embedded_data_comes_with_its_own_budget(plan, tiny):
    read = plan("recipe: tiny\nmethods: {{autoencoder: {{}}, relative: {{iterations: 3}}}}\ntasks: [segmentation]\n")
    from pretrain.autoencoder import TINY

    assert read.entries[0].source.iterations == TINY.iterations
    assert read.entries[0].folders.images == (tiny / "images",)
    assert read.entries[1].source.iterations == 3


def test_the_shipped_plan_of_the_embedded_data_is_whole(here, tiny):
    assert {path.stem for path in PLANS.glob("*.yaml")} == {"demo", "tiny", "quick", "controls", "probes", "paper"}
    read = read_plan(find_plan("tiny"))
    assert {dataclasses.asdict(entry)["row"].split("-")[0] for entry in read.entries} == set(METHODS)
    assert len(read.read) == 3


def test_a_file_goes_before_a_shipped_plan(here):
    assert find_plan("quick") == PLANS / "quick.yaml"
    (here / "quick").write_text("")
    assert find_plan("quick").resolve() == here / "quick"
