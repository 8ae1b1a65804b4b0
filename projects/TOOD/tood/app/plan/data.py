"""The data of ``tood train``: what is trained on, and what is evaluated on."""

import os
from typing import Dict, List, NamedTuple, Sequence, Tuple, Union

from tood.app.check import CheckedPart, check_part, list_paths, read_validation_data
from tood.app.convert.door import read_data
from tood.app.convert.folder import relative_path
from tood.app.convert.ledger import NO_IMAGE, Ledger
from tood.app.convert.write import LEDGER
from tood.app.plan.split import split_data
from tood.data.annotations import LISTS, DataSet
from tood.data.check import check_overlap
from tood.utils.errors import UserError
from tood.utils.files import check_folder, write_json


class TrainingData(NamedTuple):
    """Training and validation data."""

    format: str
    checked: CheckedPart  # what was named, before the split
    ledger: Ledger
    train: DataSet
    val: Sequence[DataSet]
    val_names: Sequence[str]  # of registered data sets
    how: str  # the part to validate on was found


def read_training_data(
    data: str,
    *,
    val_data: Union[None, str, Sequence[str]] = None,
    val_share: float = 0.2,
    group: str = "",
) -> TrainingData:
    """Find the parts of the data; split one off if there is none to validate on.

    Args:
        data: as :func:`tood.app.convert.door.read_data` takes it.
        val_data: other data to validate on, or names of registered data sets.
        val_share, group: of :func:`~tood.app.plan.split.split_data`.

    Raises:
        UserError: for data that cannot be trained on.
    """
    converted = read_data(data)
    _refuse_lost_labels(converted.ledger)
    parts = converted.parts
    name = next((x for x in ("train", "all") if x in parts), None)
    name = next(iter(parts)) if name is None and len(parts) == 1 else name
    if name is None:
        raise UserError(
            f"{data} has no part to train on, but {', '.join(parts)}; name one of them, as in "
            f"{next(iter(parts.values())).source}."
        )
    checked = check_part(parts[name])
    if checked.report.findings:
        print(checked.report)
    checked.refuse_errors()
    found = TrainingData(converted.format, checked, converted.ledger, checked.dataset, (), (), "")
    val, names = read_validation_data(val_data)
    if val or names:
        how = ", ".join([*(dataset.entry for dataset in val), *names])
        return _with_val(found, val, names, how)
    if "val" in parts and name != "val":
        val = check_part(parts["val"])
        val.refuse_errors()
        return _with_val(found, [val.dataset], [], parts["val"].source)
    return _split(found, val_share, group)


def _refuse_lost_labels(ledger: Ledger) -> None:
    """Raise UserError for labels without an image: in files of one image, or in rows of a table."""
    ledger.refuse_orphans()
    if NO_IMAGE in ledger.ignored_objects:
        raise UserError(
            f"{ledger.data} has {ledger.ignored_objects[NO_IMAGE]} objects of images that are not "
            f"there, for example {ledger.examples[NO_IMAGE]}; add the images, or remove the "
            "objects from the table."
        )


def _with_val(
    found: TrainingData, val: Sequence[DataSet], names: Sequence[str], how: str
) -> TrainingData:
    for dataset in val:
        shared = check_overlap(list_paths(found.checked.dataset), list_paths(dataset))
        if shared:
            print(found.checked.report._replace(json_file=dataset.entry, findings=shared))
    return found._replace(val=val, val_names=names, how=how)


def _split(found: TrainingData, share: float, group: str) -> TrainingData:
    whole = found.train
    split = split_data(whole.content, whole.image_root, share=share, group=group)
    train, val = (whole._replace(content=content) for content in (split.train, split.val))
    how = f"{len(split.val['images'])} images, split off"
    if split.num_copies:
        how += f" ({split.num_copies} copies stay with their originals)"
    return found._replace(train=train, val=[val], how=how)


def write_training_data(data: TrainingData, output: str) -> Tuple[DataSet, List[DataSet]]:
    """Write both parts as ``OUTPUT/data/*.json``, with the names of the images relative to it, and
    the account of the files that they are from.

    Returns:
        the data sets of these files: to train on, and to validate on.
    """
    folder = os.path.join(os.path.abspath(output), "data")
    check_folder(folder, "--output")
    named = os.path.abspath(os.path.expanduser(data.ledger.data))
    write_json({**data.ledger.as_dict(), "data": named}, os.path.join(folder, LEDGER))
    train = _write(data.train, os.path.join(folder, "train.json"))
    val = [
        _write(dataset, os.path.join(folder, f"val{i if len(data.val) > 1 else ''}.json"))
        for i, dataset in enumerate(data.val, 1)
    ]
    return train, val


def _write(dataset: DataSet, path: str) -> DataSet:
    folder = os.path.dirname(path)
    root = relative_path(os.path.realpath(dataset.image_root), os.path.realpath(folder))
    images = [
        {**image, "file_name": os.path.join(root, image["file_name"]).replace(os.sep, "/")}
        for image in dataset.content["images"]
    ]
    content = {**dataset.content, "images": images}
    write_json({name: content[name] for name in LISTS if name in content}, path)
    content.pop("repairs", None)  # they are in the file now
    return DataSet(path, content, folder, images_checked=True)


def count_negatives(content: Dict) -> int:
    """Return the number of images without objects."""
    return len(content["images"]) - len({a["image_id"] for a in content["annotations"]})
