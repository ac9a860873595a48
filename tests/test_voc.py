"""VOC's lists, annotations, images and masks, as people really have them: read as they are meant, or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from pretrain.files import Failed, Missing, Usage
from transfer import voc, voc_mask
from transfer.truth import Example, check_objects

# ---- annotations ----

BOX = (10, 10, 50, 60)


def xml(*objects: str, width: object = 100, more: str = "") -> str:
    size = f"<size><width>{width}</width><height>80</height><depth>3</depth></size>"
    return f"<annotation><folder>VOC2007</folder>{size}<segmented>0</segmented>{''.join(objects)}{more}</annotation>"


def item(*, name: str = "dog", flags: str = "", box: tuple[object, ...] = BOX, tag: str = "object") -> str:
    corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<{tag}><name>{name}</name><pose>Unspecified</pose>{flags}<bndbox>{corners}</bndbox></{tag}>"


def read(tmp_path: Path, text: str | bytes) -> voc.Annotation:
    path = tmp_path / "000001.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return voc.read_annotation(path)


YES = ("1", "1.0", "True", "true", "TRUE", "yes", "Yes", " 1 ", "\n true \n", "y", "on")
NO = ("0", "0.0", "False", "false", "no", "NO", " 0", "n", "off")


@pytest.mark.parametrize(("word", "expected"), [*((w, True) for w in YES), *((w, False) for w in NO)])
def test_a_flag_is_read_in_the_usual_words(word: str, expected: bool, tmp_path: Path) -> None:
    found = read(tmp_path, xml(item(flags=f"<difficult>{word}</difficult><truncated>{word}</truncated>")))
    assert (found.difficult.tolist(), found.truncated.tolist()) == ([expected], [expected])
    assert voc.presence([found])[0, voc.CLASSES.index("dog")] == (0 if expected else 1)


def test_a_flag_that_is_not_said_is_no(tmp_path: Path) -> None:
    assert read(tmp_path, xml(item())).difficult.tolist() == [False]


@pytest.mark.parametrize("flag", ["difficult", "truncated", "occluded"])
@pytest.mark.parametrize("word", ["Unspecified", "", "2", "-1", "0.35", "maybe", "nan", "None"])
def test_a_flag_that_is_neither_is_refused(flag: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=rf"000001\.xml: .*<{flag}> is .*neither yes nor no"):
        read(tmp_path, xml(item(flags=f"<{flag}>{word}</{flag}>")))


def test_a_flag_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="2 <difficult>"):
        read(tmp_path, xml(item(flags="<difficult>0</difficult><difficult>1</difficult>")))


@pytest.mark.parametrize(("word", "counted"), [("0", 0), ("1", 0), (" 1\n", 0), ("false", 0), ("True", 1), ("1.0", 1)])
def test_what_was_read_otherwise_before_makes_results_stale(word: str, counted: int, tmp_path: Path) -> None:
    read(tmp_path, xml(item(flags=f"<difficult>{word}</difficult>")))
    assert bool(voc.sources([tmp_path / "000001.xml", tmp_path / "no.jpg"])) == bool(counted)


OTHER = {
    "Object": (xml(item(tag="Object")), "<Object>"),
    "OBJECT": (xml(item(), item(tag="OBJECT")), "<OBJECT>"),
    "objects": (xml(f"<objects>{item()}</objects>"), "<objects>"),
    "a group": (xml(item(), f"<group>{item()}</group>"), "<object>"),
    "items": (xml("<items><item><label>dog</label></item></items>"), "no <object>, but <items>"),
    "a box at the top": (xml("<bndbox><xmin>1</xmin></bndbox>"), "<bndbox>"),
    "a namespace": (xml(item()).replace("<annotation>", '<annotation xmlns="http://a/b">'), "another format"),
    "another root": ("<OpenLabel><size/></OpenLabel>", "its root is <OpenLabel>"),
    "no size": ("<annotation></annotation>", "no <size>"),
    "no box": (xml("<object><name>dog</name></object>"), "no <bndbox>"),
    "two boxes": (xml(item().replace("</object>", "<bndbox/></object>")), "2 <bndbox>"),
    "no name": (xml(item().replace("<name>dog</name>", "")), "no <name>"),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_schema_is_refused(case: str, tmp_path: Path) -> None:
    text, said = OTHER[case]
    with pytest.raises(Failed, match=r"000001\.xml: broken annotation") as error:
        read(tmp_path, text)
    assert said in str(error.value)


def test_an_image_without_objects_and_parts_of_a_person_are_voc_s(tmp_path: Path) -> None:
    assert len(read(tmp_path, xml()).labels) == 0
    part = item(name="person").replace("</object>", "<part><name>head</name><bndbox/></part></object>")
    assert read(tmp_path, xml(part, more="<verified/>")).labels.tolist() == [voc.CLASSES.index("person")]


BOXES = {
    "from 0": ((0, 10, 50, 60), "VOC counts pixels from 1"),
    "negative": ((-3, 10, 50, 60), "counts pixels from 1"),
    "beyond": ((10, 10, 101, 60), "outside its 100×80 image"),
    "reversed": ((50, 10, 10, 60), "reversed"),
    "NaN": (("nan", 10, 50, 60), "<xmin> is 'nan', not a finite number"),
    "infinite": ((1, 1, "inf", 60), "<xmax> is 'inf'"),
    "1e999": ((1, 1, "1e999", 60), "<xmax> is '1e999'"),
    "a word": ((1, 1, "right", 60), "<xmax> is 'right', not a number"),
    "empty": ((1, 1, "", 60), "<xmax> is '', not a number"),
}


@pytest.mark.parametrize("case", BOXES)
def test_a_box_that_is_none_says_why(case: str, tmp_path: Path) -> None:
    box, said = BOXES[case]
    with pytest.raises(Failed) as error:
        read(tmp_path, xml(item(box=box)))
    assert said in str(error.value)
    assert "000001.xml" in str(error.value)


def test_the_whole_image_and_one_pixel_are_boxes(tmp_path: Path) -> None:
    found = read(tmp_path, xml(item(box=(1, 1, 100, 80)), item(box=(7, 7, 7, 7)), item(box=(1.5, 2, 45.7, 60))))
    assert found.boxes.tolist() == [[0, 0, 100, 80], [6, 6, 7, 7], [0.5, 1, 45.7, 60]]


@pytest.mark.parametrize(
    ("name", "hint"), [("Dog", "'dog'"), ("dining table", "'diningtable'"), ("zebra", "aeroplane, bicycle")]
)
def test_an_unknown_class_is_named_with_what_is_near(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=f"{name!r} is not one of VOC's 20 classes") as error:
        read(tmp_path, xml(item(name=name)))
    assert hint in str(error.value)


def bomb(levels: int) -> str:
    entities = '<!ENTITY a0 "dog">' + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(levels))
    return f"<!DOCTYPE annotation [{entities}]>{xml(item(name=f'&a{levels};'))}"


MALFORMED: dict[str, bytes] = {
    "an unknown encoding": b'<?xml version="1.0" encoding="klingon"?>' + xml(item()).encode(),
    "an encoding of several bytes": b'<?xml version="1.0" encoding="gb18030"?>' + xml(item()).encode(),
    "another encoding than it says": xml(item(name="caf\xe9")).encode("latin-1"),
    "entities": bomb(2).encode(),
    "a bomb": bomb(9).encode(),
    "an external entity": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + xml(item(name="&x;")).encode(),
    "nothing": b"",
    "NULs": b"\0" * 99,
    "deep": b"<annotation>" + b"<a>" * 200_000,
    "deep and closed": b"<annotation>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</annotation>",
    "a size of NaN": xml(item(), width="nan").encode(),
    "a size of 5,000 digits": xml(item(), width="9" * 5000).encode(),
    "a negative size": xml(item(), width=-100).encode(),
    "a JPEG": b"\xff\xd8\xff\xe0" + bytes(range(256)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_xml_is_one_line(case: str, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"000001\.xml: broken annotation") as error:
        read(tmp_path, MALFORMED[case])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_xml_in_other_encodings_that_it_declares_is_read(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="{}"?>' + xml(item(), more="<owner><name>caf\xe9</name></owner>")
    for encoding in ("utf-8", "utf-16", "latin-1", "utf-8-sig"):
        assert len(read(tmp_path, text.format(encoding.removesuffix("-sig")).encode(encoding)).labels) == 1


def test_an_xml_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfer.voc_xml.MOST", 100)
    with pytest.raises(Failed, match="more than 100 bytes"):
        read(tmp_path, xml(item()))


# ---- lists ----

IDS = ["000001", "000002", "2008_000003", "caf\xe9"]
LISTS: dict[str, bytes] = {
    "plain": "\n".join(IDS).encode(),
    "UTF-8 with a mark": "\n".join(IDS).encode("utf-8-sig"),
    "UTF-16": "\n".join(IDS).encode("utf-16"),
    "UTF-16 BE": b"\xfe\xff" + "\r\n".join(IDS).encode("utf-16-be"),
    "CRLF": "\r\n".join(IDS).encode(),
    "tabs and blanks": "".join(f"\t{i}  1 \t\n\n" for i in IDS).encode(),
    "no last newline, blank lines first": ("\n\n \n" + "\n".join(IDS)).encode(),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_is_read_however_it_was_saved(case: str, tmp_path: Path) -> None:
    path = tmp_path / "ImageSets" / "Main" / "test.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(LISTS[case])
    assert voc.image_set(tmp_path, "Main", "test") == IDS


REFUSED: dict[str, tuple[bytes, str]] = {
    "Latin-1": ("\n".join(IDS).encode("latin-1"), "UTF-8"),
    "UTF-32": ("\n".join(IDS).encode("utf-32"), "UTF-8"),
    "AppleDouble": (b"\x00\x05\x16\x07" + bytes(60), "UTF-8"),
    "an odd UTF-16": ("\n".join(IDS).encode("utf-16") + b"\x00", "UTF-16"),
    "twice": (b"000001\n000002\n000001\n", "000001 more than once"),
    "twice, with and without a blank": (b"000001 \n000001", "more than once"),
    "a path": (b"JPEGImages/000001.jpg\n", "no image id"),
    "upwards": (b"../../etc/passwd\n", "no image id"),
    "a long one": (b"0" * 300, "no image id"),
    "a control character": (b"0000\x1b01", "no image id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_list_that_cannot_be_meant_is_refused_by_name(case: str, tmp_path: Path) -> None:
    content, said = REFUSED[case]
    path = tmp_path / "ImageSets" / "Main" / "test.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(Failed, match=r"test\.txt: ") as error:
        voc.image_set(tmp_path, "Main", "test")
    assert said in str(error.value)
    assert str(error.value).isprintable()


# ---- images and masks ----


def mask(fill: int = 3) -> np.ndarray:
    found = np.zeros((40, 60), np.uint8)
    found[10:20, 10:20], found[9] = fill, voc.VOID
    return found


def saved(path: Path, pixels: np.ndarray, palette: np.ndarray | None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    if palette is not None:
        image = image.convert("P") if image.mode != "L" else Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path, **options)
    return path


def test_voc_s_own_masks_and_grey_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for palette in (voc_mask.COLOURS, np.repeat(np.arange(256)[:, None], 3, 1), None):
        assert (voc.read_mask(saved(path, mask(), palette), size=(40, 60)) == mask()).all()
    few = np.where(mask() == voc.VOID, 0, mask())  # 4 colours, 2 bits: numbers stay
    assert (voc.read_mask(saved(path, few, voc_mask.COLOURS[:4], bits=2)) == few).all()


def test_the_colour_map_is_voc_s() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {label: tuple(voc_mask.COLOURS[label].tolist()) for label in known} == known


def bits(path: Path, depth: int) -> None:
    """A grey mask of fewer bits, whose label 3 Pillow would spread: no label of VOC's by what is meant."""
    small = np.where(mask() == voc.VOID, 0, 1) if depth == 1 else np.where(mask() == voc.VOID, 0, mask() % 4)
    import struct
    import zlib

    rows = [np.packbits(((row[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8).reshape(-1)) for row in small]
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", small.shape[1], small.shape[0], depth, 0, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends)


OTHER_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "renumbered": (lambda p: saved(p, mask(), np.roll(voc_mask.COLOURS, 3, 0)), "in VOC's colour map"),
    "another set's colours": (lambda p: saved(p, mask(), np.full((256, 3), 120)), "in VOC's colour map"),
    "void is another class": (
        lambda p: saved(p, mask(), np.vstack([voc_mask.COLOURS[:255], [[1, 2, 3]]])),
        "label 255 has the colour (1, 2, 3)",
    ),
    "colours instead of labels": (lambda p: saved(p, voc_mask.COLOURS[mask()], None), "RGB pixels"),
    "16 bits": (lambda p: saved(p, mask().astype(np.uint16), None), "I;16"),
    "1 bit": (lambda p: bits(p, 1), "grey of 1 bits"),
    "2 bits": (lambda p: bits(p, 2), "grey of 2 bits"),
    "4 bits": (lambda p: bits(p, 4), "grey of 4 bits"),
    "35 labels": (lambda p: saved(p, mask(33), voc_mask.COLOURS), "labels [33]"),
    "a JPEG": (lambda p: saved(p, mask(), None, format="JPEG"), "no PNG"),
}


@pytest.mark.parametrize("case", OTHER_MASKS)
def test_a_mask_that_is_not_voc_s_is_refused(case: str, tmp_path: Path) -> None:
    make, said = OTHER_MASKS[case]
    path = tmp_path / "2008_000001.png"
    make(path)
    with pytest.raises(Failed, match=r"2008_000001\.png: ") as error:
        voc.read_mask(path)
    assert said in str(error.value)


def split(tmp_path: Path, labels: list[int], *, said: str | None = None) -> list[Example]:
    found = []
    for number, label in enumerate(labels):
        where = tmp_path / "VOC2012" / "SegmentationClass" / f"{number:06d}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        found.append(Example(where.with_suffix(".jpg"), saved(where, mask(label), voc_mask.COLOURS)))
        if said:
            path = where.parent.parent / "Annotations" / f"{number:06d}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(xml(item(name=said)))
    return found


def test_a_split_must_show_an_object(tmp_path: Path) -> None:
    check_objects(split(tmp_path / "a", [0, 255, 7]), Path("val.txt"))
    for empty in ([0, 0], [255, 255], [0, 255]):
        with pytest.raises(Failed, match=r"val\.txt: no mask of this list shows any object"):
            check_objects(split(tmp_path / "b", empty), Path("val.txt"))


def test_numbers_of_instances_are_no_classes(tmp_path: Path) -> None:
    dog = 1 + voc.CLASSES.index("dog")
    check_objects(split(tmp_path / "a", [1, 2, dog], said="dog"), Path("val.txt"))
    with pytest.raises(Failed, match=r"000000\.png: shows none of the classes that its annotation names"):
        check_objects(split(tmp_path / "b", [1, 2, 1], said="dog"), Path("val.txt"))


def test_an_image_of_16_bits_is_refused_and_one_of_another_format_read(tmp_path: Path) -> None:
    path = tmp_path / "000001.jpg"
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(path, format="PNG")
    with pytest.raises(Failed, match=r"000001\.jpg: its pixels have more than 8 bits"):
        voc.read_image(path)
    for form in ("PNG", "WEBP", "BMP", "GIF"):
        Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(path, format=form)
        assert voc.read_image(path).shape == (9, 9, 3)
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(path, format="DDS")
    with pytest.raises(Failed, match=r"000001\.jpg: corrupt"):
        voc.read_image(path)


# ---- trees ----

APPLE = b"\x00\x05\x16\x07" + bytes(60)


@pytest.fixture
def tree(tiny: Path, tmp_path: Path) -> Path:
    """A subset to damage."""
    data.subset(tiny, tmp_path / "tree", images=2)
    return tmp_path / "tree"


LEFT = ("._{}", ".{}.swp", "{}~", ".DS_Store", "Thumbs.db", "desktop.ini", "#{}#")


def test_what_systems_and_editors_leave_is_no_data(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devkit = tree / "VOCdevkit"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        first = next(path for path in sorted((devkit / "VOC2007" / folder).iterdir()) if path.is_file())
        for pattern in LEFT:
            first.with_name(pattern.format(first.name)).write_bytes(APPLE)
    mask_file = next((devkit / "VOC2012/SegmentationClass").iterdir())
    mask_file.with_name(f"._{mask_file.name}").write_bytes(APPLE)
    for folder in ("VOC2007/ImageSets/.ipynb_checkpoints", "VOC2007/ImageSets/__MACOSX", "VOC2007~/ImageSets"):
        (devkit / folder).mkdir(parents=True)
        (devkit / folder / "train.txt").write_bytes(APPLE)
    assert data.check(tree) == []
    told = capsys.readouterr().err
    assert "VOC2007/JPEGImages: not looked at: 7 hidden or left by a system" in told
    assert "VOC2012/SegmentationClass: not looked at: 1 hidden or left by a system" in told
    data.subset(tree, tree.with_name("again"), images=2)
    names = {path.name for path in tree.with_name("again").rglob("*")}
    assert not [name for name in names if name.startswith((".", "#", "__")) or name.endswith("~")]


def test_what_no_list_names_is_counted(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tree / "VOCdevkit/VOC2007/JPEGImages"
    shutil.copy(next(images.iterdir()), images / "extra.jpg")
    (images / "notes.txt").write_text("x")
    assert data.check(tree) == []
    assert "JPEGImages: not looked at: 1 in no list, 1 of .txt" in capsys.readouterr().err


def test_a_list_that_cannot_be_read_is_a_problem_by_name(tree: Path) -> None:
    path = tree / "VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    path.write_bytes("caf\xe9\n".encode("latin-1"))
    problems = data.check(tree)
    assert [line for line in problems if str(path) in line and "UTF-8" in line]
    with pytest.raises(Failed, match=r"test\.txt"):
        data.splits(tree)


def test_a_tree_of_utf16_lists_is_the_same_tree(tree: Path) -> None:
    for path in tree.glob("VOCdevkit/*/ImageSets/*/*.txt"):
        path.write_bytes(path.read_text().encode("utf-16"))
    assert data.check(tree) == []
    data.subset(tree, tree.with_name("again"), images=2)
    assert data.check(tree.with_name("again")) == []


def test_masks_without_objects_are_a_problem_of_their_list(tree: Path) -> None:
    year = tree / "VOCdevkit/VOC2012"
    for path in (year / "SegmentationClass").glob("*.png"):
        pixels = np.array(Image.open(path))
        saved(path, np.where(pixels > 0, voc.VOID, 0).astype(np.uint8), voc_mask.COLOURS)
    problems = data.check(tree)
    assert [line for line in problems if "val.txt: no mask of this list shows any object" in line]


def test_numbers_of_instances_are_a_problem_of_each_mask(tree: Path) -> None:
    year = tree / "VOCdevkit/VOC2012"
    path = next(iter((year / "SegmentationClass").glob("*.png")))
    classes = set(voc.read_annotation(voc.annotation_path(year, path.stem)).labels.tolist())
    other = next(label for label in range(20) if label not in classes)
    pixels = np.array(Image.open(path))
    saved(path, np.where(pixels > 0, other + 1, 0).astype(np.uint8), voc_mask.COLOURS)
    assert [line for line in data.check(tree) if f"{path}: shows no class that its annotation names" in line]


def test_nothing_to_train_on_is_refused(tree: Path, tmp_path: Path) -> None:
    from benchmarks.holdout import hold_out

    with pytest.raises(Usage, match="--every 1"):
        hold_out(tree, tmp_path / "held", every=1)
    with pytest.raises(Missing, match="too few"):
        hold_out(tree, tmp_path / "held", every=100)
    assert not (tmp_path / "held").exists()
