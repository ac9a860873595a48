"""The documents: every citation in the code resolves, every link leads somewhere, README's tree is the real one."""

import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *DOCS]

NUMBER = r"\d+(?:\.\d+)*(?: rule \d+)?(?![\w–])"
# "protocols 7.1, 7.7", "protocols 5.1 and 9", "Protocols 9 rule 7"; a pickle's "protocols 0–5" is none.
PROTOCOLS = re.compile(rf"\b[Pp]rotocols ({NUMBER}(?:(?:, | and ){NUMBER})*)")
PART = r"(?:\d+(?:\.\d+)+|\d(?! of|\.\d)|[A-C]|eq\. \d)\b"
# "paper 3.3", "paper 3, 5.2 and B", "Paper 5.2 and B", "paper eq. 1".
PAPER = re.compile(rf"\b[Pp]aper ({PART}(?:(?:, | and ){PART})*)")
# "5.1: 2", "(6.2)", "5.1's five", in a file that cites protocols by that word too.
BARE = re.compile(r"(?<![\w.×])([1-9]\.\d(?=: |'s\b)|(?<=\()[1-9]\.\d(?=\)))")


def headings(page: Path) -> list[str]:
    """The titles of a Markdown page, outside of its code blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+?)\s*$", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the titles."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings(page)}


def targets(text: str) -> set[str]:
    """What protocols.md, given as text, offers: "4", "4.1", "9 rule 7", "Paper 3.3", "Paper eq. 1"."""
    found: set[str] = set()
    chapter = ""
    for line in text.splitlines():
        if title := re.match(r"#+ (Paper [\w.]+|\d+(?:\.\d+)*)", line):
            chapter = title[1].rstrip(".")
            found.add(chapter)
        elif rule := re.match(r"(\d+)\. ", line):
            found.add(f"{chapter} rule {rule[1]}")
        if chapter.startswith("Paper"):
            found |= {f"Paper eq. {number}" for number in re.findall(r"[Ee]quation (\d)", line)}
    return found


def prose(path: Path) -> str:
    """The comments and strings of a source file that may cite, lines of a comment joined; of any other its comments."""
    text = path.read_text(encoding="utf-8")
    if not re.search(r"[Pp](?:rotocols|aper)\s+#?\s*[\dA-Ce]", text):
        return ""
    if path.suffix != ".py":
        return " ".join(re.findall(r"#\s*(.*)", text))
    with path.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    kinds = (tokenize.COMMENT, tokenize.STRING)
    return " ".join(" ".join(token.string.lstrip("#").split()) for token in tokens if token.type in kinds)


def citations(text: str) -> Iterator[str]:
    """What a file's prose cites, as `targets` names it."""
    for listed in PROTOCOLS.findall(text):
        yield from re.split(r", | and ", listed)
    for listed in PAPER.findall(text):
        yield from (f"Paper {part}" for part in re.split(r", | and ", listed))
    if PROTOCOLS.search(text):
        yield from BARE.findall(PAPER.sub("", PROTOCOLS.sub("", text)))


def test_every_citation_resolves():
    offered = targets((ROOT / "docs" / "protocols.md").read_text(encoding="utf-8"))
    folders = ("pretrain", "transfer", "benchmarks", "tests")
    files = [p for folder in folders for kind in ("py", "yaml") for p in sorted((ROOT / folder).rglob(f"*.{kind}"))]
    cited = {(str(p.relative_to(ROOT)), name) for p in files if p != Path(__file__) for name in citations(prose(p))}
    assert {(path, name) for path, name in cited if name not in offered} == set()
    assert len({name for _, name in cited}) > 20, "the pattern finds no citations any more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(protocols 7.1, 7.7): x", ["7.1", "7.7"]),
        ("protocols 1.1, 9 rule 7.", ["1.1", "9 rule 7"]),
        ("Protocols 5.1 and 9. Fast", ["5.1", "9"]),
        (
            "protocols 4.1 throughout; 5.2: 50k; mAP of 5.2 (6.2), factor 1.5); 0.5 of 5.1's five",
            ["4.1", "5.2", "6.2", "5.1"],
        ),
        ("the pickle (protocols 0–5, Python 2's too), 5.1: x", []),
        ("paper 3, 5.2 and B; protocols 2.1", ["2.1", "Paper 3", "Paper 5.2", "Paper B"]),
        ("(paper eq. 1), in the paper 3 of them", ["Paper eq. 1"]),
    ],
)
def test_a_citation_is_seen(text, expected):
    assert list(citations(text)) == expected


def test_a_citation_that_leads_nowhere_is_found():
    offered = targets("## 9. Importing\n\n1. One.\n2. Two.\n\n### Paper 3.2\n\nEquation 1 is the loss.\n")
    assert offered == {"9", "9 rule 1", "9 rule 2", "Paper 3.2", "Paper eq. 1"}
    cited = citations("protocols 9, 9 rule 2 and 9 rule 3; paper 3.2 and 3.4")
    assert [name for name in cited if name not in offered] == ["9 rule 3", "Paper 3.4"]


def broken(page: Path) -> list[str]:
    """The relative links of a page whose file or heading is not there."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            found.append(link)
    return found


def test_links_lead_somewhere(tmp_path):
    assert {str(page.relative_to(ROOT)): bad for page in PAGES if (bad := broken(page))} == {}
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, here\n[a](#a-title-here) [b](#gone) [c](gone.md) [d](https://example.org) [e](page.md#x)\n"
    )
    assert broken(page) == ["#gone", "gone.md", "page.md#x"]


def test_every_document_is_linked_from_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS if f"(docs/{page.name}" not in readme] == []


def test_readme_is_short_and_says_the_two_commands_first():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    first = "\n".join(lines[:24])
    assert "make demo" in first
    assert "make test" in first


def test_readme_shows_the_folders_that_there_are():
    """Every package, and the folders at the top, each with a few words."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^## Folders\n\n```\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    shown, above = set(), ""
    for indent, name, words in re.findall(r"^( *)(\S+)/ +(.+)$", tree, flags=re.MULTILINE):
        above = above if indent else name
        shown.add(f"{above}/{name}" if indent else name)
        assert 1 <= len(words.split()) <= 9, words
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    top = {name.split("/")[0] for name in tracked if "/" in name} | {"docs"}
    packages = {str(Path(name).parent) for name in tracked if name.endswith("/__init__.py")}
    assert shown == top | packages
