"""Interim."""

from typing import Dict, NamedTuple

from tood.data import entries
from tood.data.annotations import _read_json
from tood.data.formats import find_parts, is_entry, read_entry, root_of, split_entry
from tood.utils.errors import UserError


class Part(NamedTuple):
    name: str
    content: Dict
    image_root: str
    source: str


class Ledger(NamedTuple):
    def rows(self):
        return []


class Converted(NamedTuple):
    data: str
    format: str
    parts: Dict[str, Part]
    ledger: Ledger


def read_data(data: str) -> Converted:
    files = entries.parse_own_data(data)
    if files is not None:
        content = _read_json(files.json_file)
        part = Part("all", content, files.image_root, data)
        return Converted(data, "COCO", {"all": part}, Ledger())
    if not is_entry(data):
        raise UserError(f"There is no folder or file {data}; name the folder of a data set.")
    path, part = split_entry(data)
    names = [part] if part else list(find_parts(path)[1])
    parts = {}
    for name in names:
        entry = f"{path}:{name}" if name else path
        content, _ = read_entry(entry)
        parts[name or "all"] = Part(name or "all", content, root_of(entry), entry)
    return Converted(data, find_parts(path)[0], parts, Ledger())
