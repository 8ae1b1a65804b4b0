"""The data of ``tood train``: what is trained on, and what is evaluated on."""

import os
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from tood.app.check import CheckedPart, check_part, list_paths, read_validation_data
from tood.app.convert.door import read_data
from tood.app.convert.folder import relative_path
from tood.app.convert.ledger import NO_IMAGE, Ledger
from tood.app.plan.split import draw_part, split_data
from tood.app.plan.state import CALIBRATION, DATA, LEDGER, ROOT, TYPED, Wishes
from tood.data.annotations import LISTS, DataSet
from tood.data.check import check_overlap
from tood.utils.errors import UserError
from tood.utils.files import check_folder, write_json

VAL_SHARE = 0.2  # of the images, if a part to validate on is split off


class TrainingData(NamedTuple):
    """Training and validation data."""

    format: str
    checked: CheckedPart  # what was named, before the split
    ledger: Ledger
    train: DataSet
    val: Sequence[DataSet]
    val_names: Sequence[str]  # of these and of registered data sets, in the order given
    how: str  # the part to validate on was found
    calibration: Optional[DataSet] = None  # neither trained nor validated on


def read_training_data(wishes: Wishes) -> TrainingData:
    """Find the parts of the data; split one off if there is none to validate on.

    Raises:
        UserError: for data that cannot be trained on, and a share or a group if nothing is split.
    """
    data = wishes.data
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
    found = _keep_calibration(found, wishes)
    val, names = read_validation_data(wishes.val_data, notify=print)
    if not names and "val" in parts and name != "val":
        part = check_part(parts["val"])
        if part.report.findings:
            print(part.report)
        part.refuse_errors()
        val, names = [part.dataset], [part.dataset.entry]
    if not names:
        return _split(found, wishes)
    group = wishes.group if found.calibration is None else ""
    for flag, value in (("--val-share", wishes.val_share), ("--group", group or None)):
        if value is not None:
            raise UserError(
                f"{flag} is {value}, but nothing is split off: {names[0]} is validated on; omit it."
            )
    return _with_val(found, val, names)


def _keep_calibration(found: TrainingData, wishes: Wishes) -> TrainingData:
    """Take a part of the training data away, if it was asked for."""
    if wishes.calibration_share is None:
        return found
    whole = found.train
    share, group = wishes.calibration_share, wishes.group
    split = draw_part(whole.content, whole.image_root, share=share, group=group)
    train, kept = (whole._replace(content=content) for content in (split.train, split.val))
    return found._replace(train=train, calibration=kept)


def _refuse_lost_labels(ledger: Ledger) -> None:
    """Raise UserError for labels without an image: in files of one image, or in rows of a table."""
    ledger.refuse_orphans()
    if NO_IMAGE in ledger.ignored_objects:
        raise UserError(
            f"{ledger.data} has {ledger.ignored_objects[NO_IMAGE]} objects of images that are not "
            f"there, for example {ledger.examples[NO_IMAGE]}; add the images, or remove the "
            "objects from the table."
        )


def _with_val(found: TrainingData, val: Sequence[DataSet], names: Sequence[str]) -> TrainingData:
    for dataset in val:
        shared = check_overlap(list_paths(found.checked.dataset), list_paths(dataset))
        if shared:
            print(found.checked.report._replace(json_file=dataset.entry, findings=shared))
    return found._replace(val=val, val_names=names, how=", ".join(names))


def _split(found: TrainingData, wishes: Wishes) -> TrainingData:
    whole = found.train
    share = VAL_SHARE if wishes.val_share is None else wishes.val_share
    split = split_data(whole.content, whole.image_root, share=share, group=wishes.group)
    train, val = (whole._replace(content=content) for content in (split.train, split.val))
    how = f"{len(split.val['images'])} images, split off"
    if split.num_copies:
        how += f" ({split.num_copies} copies stay with their originals)"
    return found._replace(train=train, val=[val], val_names=[val.entry], how=how)


def write_training_data(
    data: TrainingData, wishes: Wishes, output: str
) -> Tuple[DataSet, List[DataSet], List[str]]:
    """Write all parts as ``OUTPUT/data/*.json``, with the names of the images relative to it, and
    before them the account of their source files, with the arguments of the training.

    Returns:
        the data sets of these files, to train on and to validate on, and the names of all to
        validate on.
    """
    output = os.path.abspath(output)
    check_folder(os.path.join(output, "data"), "--output")
    root = _find_root(data.train, os.path.join(output, os.path.dirname(LEDGER)))
    account = {**data.ledger.as_dict(), TYPED: wishes.as_dict(), ROOT: root}
    write_json(account, os.path.join(output, LEDGER))
    training, written = _write(data.train, os.path.join(output, DATA[0])), {}
    if data.calibration is not None:
        _write(data.calibration, os.path.join(output, CALIBRATION))
    for i, dataset in enumerate(data.val, 1):
        name = DATA[1] if len(data.val) == 1 else os.path.join("data", f"val{i}.json")
        written[dataset.entry] = _write(dataset, os.path.join(output, name))
    names = [written[x].entry if x in written else x for x in data.val_names]
    return training, list(written.values()), names


def _find_root(dataset: DataSet, folder: str) -> str:
    """Return the folder of the images relative to another folder."""
    return relative_path(os.path.realpath(dataset.image_root), os.path.realpath(folder))


def _write(dataset: DataSet, path: str) -> DataSet:
    folder = os.path.dirname(path)
    root = _find_root(dataset, folder)
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
