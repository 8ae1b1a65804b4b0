"""The data of ``tood train``: what is trained on, and what is evaluated on."""

import os
from typing import Dict, List, NamedTuple, Optional

from tood.app.check import Checked, check_entry, entries_of
from tood.app.plan.split import split_data
from tood.data.entries import parse_own_data
from tood.data.formats import find_parts, split_entry
from tood.utils.errors import UserError
from tood.utils.files import write_json


class Data(NamedTuple):
    """Training and validation data."""

    checked: Checked
    train: Dict  # COCO's lists
    val: Optional[Dict]  # None: a data set of its own
    val_entries: List[str]
    how: str  # the part to validate on was found


def read_data(args) -> Data:
    """Find the parts of the data; split one off where there is none to validate on.

    Raises:
        UserError: for data that cannot be trained on.
    """
    entries = entries_of(args.data)
    train = next((entries[part] for part in ("train", "") if part in entries), None)
    if train is None:
        raise UserError(
            f"{args.data} has no part to train on, but {', '.join(entries)}; name one of them, as "
            f"in {next(iter(entries.values()))}."
        )
    checked = check_entry(train)
    if checked.report.findings:
        print(checked.report)
    if checked.report.errors:
        raise UserError(checked.report.error_sentence())
    if args.val_data or "val" in entries:
        val_entries = args.val_data or [entries["val"]]
        return Data(checked, checked.content, None, val_entries, ", ".join(val_entries))
    root = parse_own_data(train).image_root
    split = split_data(checked.content, root, share=args.val_share, group=args.group)
    how = f"{len(split.val['images'])} images, split off"
    if split.num_copies:
        how += f" ({split.num_copies} copies stay with their originals)"
    return Data(checked, split.train, split.val, [], how)


def write_data(data: Data, output: str) -> Dict[str, List[str]]:
    """Write the parts of a split; return the entries of "train" and "val"."""
    own_data = parse_own_data(data.checked.entry)
    if data.val is None:
        val = [_absolute(entry) for entry in data.val_entries]
        return {"train": [_absolute(data.checked.entry)], "val": val}
    root = os.path.abspath(own_data.image_root)
    entries = {}
    for part, content in (("train", data.train), ("val", data.val)):
        path = os.path.abspath(os.path.join(output, "data", f"{part}.json"))
        write_json(content, path)
        entries[part] = [f"{path}:{root}"]
    return entries


def _absolute(entry: str) -> str:
    """Return an entry of files that is understood in any folder."""
    own_data = parse_own_data(entry)
    if own_data is None:  # a registered name
        return entry
    if own_data.json_file.endswith(".json"):
        return f"{os.path.abspath(own_data.json_file)}:{os.path.abspath(own_data.image_root)}"
    path, part = split_entry(entry)
    return f"{os.path.abspath(path)}:{part}" if part else os.path.abspath(path)


def format_of(entry: str) -> str:
    """Return what form a data set has, and where it is."""
    if parse_own_data(entry).json_file.endswith(".json"):
        return f"{entry}, COCO"
    return f"{entry}, {find_parts(split_entry(entry)[0])[0]}"


def num_negatives(content: Dict) -> int:
    """Return the number of images without objects."""
    return len(content["images"]) - len({a["image_id"] for a in content["annotations"]})
