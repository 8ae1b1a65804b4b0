"""Identity of artefacts: hashes of the weights and of the data that reports, detections, metrics
and exported files are of, so that none of them is used for others.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from typing import Any, Dict, List

from tood.data.annotations import has_size, is_box
from tood.utils.errors import UserError
from tood.utils.files import write_json
from tood.utils.reading import MAX_CONFIG, guard_reading, read_regular

IDENTITY = "identity"  # key in JSON files


def hash_weights(state_dict: Dict[str, Any]) -> str:
    """Return a hash of the weights of a model, of the names, shapes and values of its tensors of
    floating point numbers. It is the same for a model and its checkpoint, with or without the state
    of a training, and in any precision that a model is loaded from exactly.
    """
    digest = hashlib.sha256()
    for name, x in sorted(state_dict.items()):
        if x.is_floating_point():
            digest.update(f"{name} {tuple(x.shape)}\n".encode())
            digest.update(x.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def hash_data(*contents: Dict) -> str:
    """Return a hash of data sets as they are evaluated: images, with their ids and the names of
    their files, but not of folders, and objects. Classes count by the objects that they have.

    Args:
        contents: annotations in the clean form of :mod:`tood.data.annotations`.
    """
    digest = hashlib.sha256()
    for content in contents:
        names = {x["id"]: x["name"] for x in content["categories"]}
        rows = [
            (x["id"], x["file_name"].replace("\\", "/").rpartition("/")[2], x["width"], x["height"])
            for x in content["images"]
        ]
        rows += [
            (
                *(x["image_id"], x["category_id"], names.get(x["category_id"])),
                *(*map(float, x["bbox"]), float(x["area"]), x["iscrowd"]),
            )
            for x in content.get("annotations", ())
            if is_box(x["bbox"]) and has_size(x["bbox"])
        ]
        digest.update("\n".join([*sorted(map(json.dumps, rows)), "\n"]).encode())
    return digest.hexdigest()


def make_identity(**hashes: str) -> Dict[str, str]:
    """Return the identity of an artefact: its hashes, those that are known, and the version of this
    project, if it is installed.

    Args:
        hashes: "weights" and "data".
    """
    identity = {name: value for name, value in hashes.items() if value}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        identity["tood"] = importlib.metadata.version("tood-detectron2")
    return identity


def write_identity(results: str, **hashes: str) -> None:
    """Write the identity of detections beside their file, whose format has no place for it."""
    write_json(make_identity(**hashes), _get_sidecar(results))


def read_identity(results: str) -> Dict[str, str]:
    """Return the identity that was written beside a file of detections; empty without one.

    Raises:
        UserError: for a file that cannot be read.
    """
    path = _get_sidecar(results)
    if not os.path.exists(path):
        return {}
    with guard_reading(path, f"remove it, or write {results} again"):
        content = json.loads(read_regular(path, MAX_CONFIG))
        return {str(name): str(value) for name, value in content.items()}


def check_same_data(results: str, content: Dict) -> List[str]:
    """Check that some detections were found in these data; return notes on what is not known.

    Raises:
        UserError: for detections that were written for other data.
    """
    known = read_identity(results).get("data")
    if known and known != hash_data(content):
        raise UserError(
            f"{results} contains detections of other data, as {_get_sidecar(results)} says; name "
            "the data of these detections with --val-data, or detect in these data first."
        )
    if known:
        return []
    return [
        f"Not checked: that the detections of {results} are of these data, beyond the ids of their "
        "images;\nno record beside them says so."
    ]


def _get_sidecar(results: str) -> str:
    return f"{os.path.splitext(results)[0]}.{IDENTITY}.json"
