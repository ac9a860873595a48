"""Result files: one JSON per run, whose path follows from its identity and whose identity is inside."""

import json
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.arrays import packed as packed
from benchmarks.arrays import unpacked as unpacked
from benchmarks.result_checks import SCORE, check_result
from pretrain import row_name
from pretrain.files import Failed, read_bounded, write_text
from pretrain.listing import data_in
from pretrain.progress import log
from transfer import Data

SCHEMA = 2
MOST = 256 * 2**20  # bytes of a file; full VOC07's have about 2 MB
KEYS = {
    "schema", "method", "variant", "task", "recipe", "data", "encoder", "receipt", "seed", "metrics", "per_class",
    "per_image", "seconds", "resumed", "peak_memory_bytes", "hardware", "versions", "commit", "dirty",
}  # fmt: skip

Result = dict[str, Any]


class Read(Result):
    """A result that was read from the file at `path`."""

    def __init__(self, content: Result, path: Path) -> None:
        super().__init__(content)
        self.path = path


def result_path(results: Path, *, recipe: str, method: str, variant: str, task: str, seed: int) -> Path:
    """results/<recipe>/<method>[-<variant>]/<task>-seed<k>.json."""
    return results / recipe / row_name(method, variant) / f"{task}-seed{seed}.json"


def write_result(path: Path, result: Result) -> None:
    """Write one result, atomically, keys sorted.

    Raises Failed, and writes nothing, when a table could not read it: a score that is NaN, infinite or out of range.
    """
    if missing := KEYS ^ set(result):
        raise Failed(f"{path}: a result with missing or unknown keys: {sorted(missing)}")
    scores = result["per_class"] | result["metrics"]
    for name, value in scores.items():
        if not SCORE(value) and not (value is None and name in result["per_class"]):
            raise Failed(f"{path}: nothing recorded: {name} is {value}, {UNDEFINED}")
    try:
        check_result(result)
        text = json.dumps(result, indent=1, sort_keys=True, allow_nan=False)
    except (ValueError, KeyError, TypeError, AttributeError, Failed) as error:
        raise Failed(f"{path}: nothing recorded: {error}: correct what the encoder file says of itself") from error
    write_text(path, text + "\n")


UNDEFINED = "no score between 0 and 1; check that the test images show objects (`bench data check`), and the encoder"


def read_result(path: Path) -> Result:
    """Read one result and check that it is whole and lies where its identity says.

    Raises Failed, naming the file, when it is damaged, of another schema, or mislabelled.
    """
    try:
        result = json.loads(_content(path), parse_constant=_no_number)
        if not isinstance(result, dict) or result.get("schema") != SCHEMA or set(result) != KEYS:
            raise ValueError(_differs(result))
        check_result(result)
        identity = {key: result[key] for key in ("method", "variant", "task", "seed")}
        own = result_path(path.parents[2], recipe=result["recipe"]["name"], **identity)
        provenance = result["encoder"]["provenance"]
        named = (provenance["method"], provenance["variant"]) == (result["method"], result["variant"])
        if own != path or not named:
            raise ValueError(f"its content is that of {own}")
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        Failed,
    ) as error:
        raise Failed(f"{path}: not a result file ({_line(error)}): delete it and run `bench transfer` again") from error
    return Read(result, path)


def _content(path: Path) -> str:
    """The text of a result file. Raises ValueError when it is none, or too long."""
    try:
        if not path.is_file():  # a FIFO would block
            raise ValueError("no file" if path.exists() else "it links to nothing")
        content = read_bounded(path, most=MOST)
    except OSError as error:
        raise Failed(f"cannot be read, {error.strerror or error}") from error
    return content.decode("utf-8")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} in it")


def _differs(result: Any) -> str:
    if not isinstance(result, dict):
        return f"a JSON {type(result).__name__}"
    if result.get("schema") != SCHEMA:
        return f"schema {str(result.get('schema'))[:20]}, this version writes {SCHEMA}"
    return f"missing or unknown keys: {', '.join(sorted(set(result) ^ KEYS))[:200]}"


def _line(error: Exception) -> str:
    """Its text on one line that is not long."""
    text = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 300 else text[:300] + "…"


def read_results(results: Path, *, recipe: str = "*") -> list[Result]:
    """Every result under `results`, or of one recipe, in the order of their paths.

    A file that is no result is left out, and named on stderr. Raises Failed, naming the first, when all are such.
    """
    found, bad = [], []
    for path in data_in(results.glob(f"{recipe}/*/*-seed*.json")):
        try:
            found.append(read_result(path))
        except Failed as error:
            bad.append(error)
    leave_out(bad, all_of_them=not found)
    return found


def leave_out(errors: list[Failed], *, all_of_them: bool) -> None:
    """Name on stderr the results that are left out; raise the first error where nothing else is left."""
    if errors and all_of_them:
        raise errors[0]
    for error in errors:
        log(f"left out: {error}")


def data_identity(result: Result) -> str:
    """What two results on the same data agree in: the files' digest, and the sources of what is not a file."""
    return json.dumps([result["data"]["sha256"], result["data"]["sources"]], sort_keys=True)


def same_run(result: Result, *, encoder: str, recipe: str, data: Data) -> bool:
    """Whether a result was made from the encoder and recipe with these digests and this data (else it is stale)."""
    found = (result["encoder"]["sha256"], result["recipe"]["sha256"], result["data"]["sha256"])
    return found == (encoder, recipe, data.sha256) and result["data"]["sources"] == data.sources
