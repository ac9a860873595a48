"""Result files: one JSON per run, whose path follows from its identity and whose identity is inside."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain import row_name
from pretrain.alexnet import described
from pretrain.files import Failed, write_text
from transfer import TASKS, Data

SCHEMA = 2
KEYS = {
    "schema", "method", "variant", "task", "recipe", "data", "encoder", "receipt", "seed", "metrics", "per_class",
    "per_image", "seconds", "resumed", "peak_memory_bytes", "hardware", "versions", "commit", "dirty",
}  # fmt: skip

Result = dict[str, Any]


def result_path(results: Path, *, recipe: str, method: str, variant: str, task: str, seed: int) -> Path:
    """results/<recipe>/<method>[-<variant>]/<task>-seed<k>.json."""
    return results / recipe / row_name(method, variant) / f"{task}-seed{seed}.json"


def packed(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Arrays as text: a compressed .npz in base64, the same text for the same arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for its own option
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> dict[str, NDArray[Any]]:
    """What `packed` packed. Raises ValueError when it is damaged; no pickle is opened."""
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        raise ValueError(f"damaged per-image scores ({error})") from error


def write_result(path: Path, result: Result) -> None:
    """Write one result, atomically, keys sorted."""
    if missing := KEYS ^ set(result):
        raise Failed(f"{path}: a result with missing or unknown keys: {sorted(missing)}")
    write_text(path, json.dumps(result, indent=1, sort_keys=True) + "\n")


def read_result(path: Path) -> Result:
    """Read one result and check that it is whole and lies where its identity says.

    Raises Failed, naming the file, when it is damaged, of another schema, or mislabelled.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["schema"] != SCHEMA or set(result) != KEYS:
            raise ValueError(f"schema {result['schema']}, keys {sorted(set(result) ^ KEYS)}")
        identity = {key: result[key] for key in ("method", "variant", "task", "seed")}
        own = result_path(path.parents[2], recipe=result["recipe"]["name"], **identity)
        provenance = result["encoder"]["provenance"]
        _check_content(result)
        named = (provenance["method"], provenance["variant"]) == (result["method"], result["variant"])
        if own != path or not named:
            raise ValueError(f"its content is that of {own}")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        raise Failed(f"{path}: not a result file ({error}): delete it and run `bench transfer` again") from error
    return result  # type: ignore[no-any-return]


def _check_content(result: Result) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError unless all that a table reads is there."""
    task, provenance = result["task"], result["encoder"]["provenance"]
    if task not in TASKS:
        raise ValueError(f"no task {task!r}")
    numbers = [result["metrics"][prefix + TASKS[task].metric] for prefix in ("", "chance_")]
    numbers.append(result["metrics"].get(f"chance_{TASKS[task].metric}_spread", 0.0))  # older results lack it
    numbers += [result["data"]["images"][part] for part in ("train", "test")] + [result["seed"]]
    numbers += [value for value in result["per_class"].values() if value is not None]
    numbers += [*(provenance.get("held_out") or {}).values(), provenance.get("processes") or 1]
    numbers += _on_the_way(provenance)
    texts = [provenance.get(key) or "" for key in ("supervision", "data", "hardware")]  # older encoders lack some
    texts += [result["per_image"], result["commit"], result["hardware"], result["data"]["name"]]
    texts += [result["data"]["split"], result["data"]["sha256"], result["recipe"]["sha256"]]
    if not all(isinstance(n, int | float) for n in numbers) or not all(isinstance(t, str) for t in texts):
        raise ValueError("a number or a text is missing")
    result["data"]["sources"].items()
    if result["encoder"]["architecture"] is not None or TASKS[task].table != "probes":  # a descriptor has none
        described(result["encoder"]["architecture"])


def _on_the_way(provenance: dict[str, Any]) -> list[Any]:
    """The numbers that only an encoder on the way has; see pretrain.train. KeyError or AttributeError without one."""
    if provenance.get("of_iterations") is None:
        return []
    layers = [value for found in provenance["layers"].values() for value in found.values() if value is not None]
    return [provenance[key] for key in ("iterations", "of_iterations", "batch", "rate")] + layers


def read_results(results: Path, *, recipe: str = "*") -> list[Result]:
    """Every result under `results`, or of one recipe, in the order of their paths."""
    return [read_result(path) for path in sorted(results.glob(f"{recipe}/*/*-seed*.json"))]


def data_identity(result: Result) -> str:
    """What two results on the same data agree in: the files' digest, and the sources of what is not a file."""
    return json.dumps([result["data"]["sha256"], result["data"]["sources"]], sort_keys=True)


def same_run(result: Result, *, encoder: str, recipe: str, data: Data) -> bool:
    """Whether a result was made from the encoder and recipe with these digests and this data (else it is stale)."""
    found = (result["encoder"]["sha256"], result["recipe"]["sha256"], result["data"]["sha256"])
    return found == (encoder, recipe, data.sha256) and result["data"]["sources"] == data.sources
