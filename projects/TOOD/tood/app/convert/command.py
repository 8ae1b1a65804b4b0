"""Converts data sets between formats: ``tood convert``."""

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from typing import Dict, Iterable, Iterator, List, Set

from tabulate import tabulate

from tood.app.convert.door import Part, read_data
from tood.app.convert.folder import is_inside
from tood.app.convert.ledger import Ledger
from tood.app.convert.write import LEDGER, WRITERS, write_dataset, write_ledger
from tood.data.annotations import clean_annotations
from tood.data.check import InputSize, check_data, check_images, split_broken
from tood.utils.arguments import accept_paths
from tood.utils.errors import UserError
from tood.utils.files import check_folder
from tood.utils.folders import MARK
from tood.utils.reading import MAX_TEXT, guard_nesting, read_regular

# Formats whose files are found in any folder, as readers call them.
NAMES = {"yolo": "YOLO", "voc": "Pascal VOC", "labelme": "LabelMe"}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A data set that was written; as text, the totals of its account."""

    folder: str
    entries: Dict[str, str]  # split -> how to name it: "FILE.json:IMAGES" or "FOLDER:SPLIT"
    ledger: Ledger
    omitted: Dict[str, int]  # reason -> number of objects that the format cannot express
    changed: Dict[str, int] = dataclasses.field(default_factory=dict)  # what -> number of objects

    def __str__(self) -> str:
        rows = self.ledger.rows()
        rows += [("not written", f"{number} {reason}") for reason, number in self.omitted.items()]
        rows += [("changed", f"{number} {what}") for what, number in self.changed.items()]
        rows += [("written", entry) for entry in self.entries.values()]
        return tabulate(rows, tablefmt="simple")


@accept_paths("data", "output")
def convert(
    data: str,
    *,
    output: str,
    to: str = "coco",
    keep_difficult: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Convert a data set to another format::

        tood.convert("photos", output="photos_coco").entries["train"]
        tood.convert("photos_coco", output="photos_yolo", to="yolo")

    Args:
        data: a folder, FOLDER:SPLIT or a file, as :func:`tood.app.convert.door.read_data` takes it.
        output: folder for the files, with an account of all files of ``data`` in ``ledger.json``.
        to: "coco": ``SPLIT.json``, boxes in pixels, names relative to the JSON file, and images
            are not copied. "yolo", "voc", "labelme": a folder of that format with copies of the
            images; "voc" rounds boxes to whole pixels.
        keep_difficult: keep objects that are marked as difficult, as Pascal VOC does, like others,
            not marked "iscrowd".
        overwrite: replace the files of an earlier conversion to this folder.

    Raises:
        UserError: for data that cannot be read or contradict themselves, and a folder that
            contains other files.
    """
    if to not in WRITERS:
        raise UserError(f"{to!r} is not a format to write; use one of {', '.join(WRITERS)}.")
    converted = read_data(data, keep_difficult=keep_difficult)
    for part in converted.parts.values():
        _check_records(part, is_coco=converted.format == "COCO")
        if is_inside(part.image_root, output):
            raise UserError(f"{output} contains the data; name another --output.")
        if converted.format == NAMES.get(to) and is_inside(output, part.image_root):
            raise UserError(
                f"{output} is in the folder of the data, with which it would be read as one; name "
                "another --output."
            )
    with replaced(output, overwrite):
        with guard_nesting(data):
            written = write_dataset(converted.parts.values(), to, output)
        write_ledger(converted, written, output)
    return Conversion(output, written.entries, converted.ledger, written.omitted, written.changed)


def _check_records(part: Part, is_coco: bool) -> None:
    """Raise UserError for records that no program could read; of COCO files, which are kept as they
    are, also for unknown ids and for images that are missing or of another size.
    """
    content = clean_annotations(dict(part.content), part.source, part.image_root)
    if is_coco:
        usable = [{**a, "ignore": 0} for a in content["annotations"]]
        _, found = split_broken({**content, "annotations": usable})
        found += check_images(content["images"], part.image_root)
        for what, count, example, remedy, *_ in found:
            if count:
                raise UserError(f"{part.source} has {count} {what}, as {example}; {remedy}.")
    report = check_data(part.source, content, InputSize(0, 0), 1, to_train=False)
    for error in report.errors:  # other units than pixels
        raise UserError(
            f"{part.source} has {error.number} {error.what}, as {error.example}; "
            f"{error.consequence}."
        )


@contextlib.contextmanager
def replaced(output: str, overwrite: bool) -> Iterator[None]:
    """Make a folder for a data set, without the earlier one in it. After an error, its files are
    those of before: what was written would look like a whole data set.

    Raises:
        UserError: as :func:`list_replaced` does.
    """
    earlier = list_replaced(output, overwrite)
    if os.path.isdir(output) and os.listdir(output) == [MARK]:  # of a command that was stopped
        os.remove(os.path.join(output, MARK))
    check_folder(output, "--output", is_data=True)
    before, empty = _list_files(output), _list_empty_folders(output)
    aside = os.path.join(output, f".{uuid.uuid4().hex[:8]}.part")
    try:
        _move(earlier, output, aside)
        yield
    except BaseException as error:  # Ctrl-C as well
        _give_back(output, aside, before, error)
        raise
    else:
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        _remove_empty_folders(output, empty)


def _give_back(output: str, aside: str, before: Set[str], error: BaseException) -> None:
    """Move the files of an earlier data set back, and remove those that were not there before."""
    try:
        _move(_list_files(aside), aside, output)
        for file in _list_files(output) - before:
            os.remove(os.path.join(output, file))
    except OSError as other:
        left = f"; the earlier data set is in {aside}" if _list_files(aside) else ""
        raise UserError(
            f"{output} could not be given back as it was before ({other.strerror}){left}."
        ) from error


def list_replaced(output: str, overwrite: bool) -> List[str]:
    """Return the files of the data set that a folder contains, which may be replaced.

    Raises:
        UserError: for a folder with other files, one whose files must stay, and one of which parts
            are elsewhere, by links.
    """
    if not os.path.isdir(output) or not set(os.listdir(output)) - {MARK}:
        return []
    if not overwrite:
        raise UserError(
            f"{output} already contains files; name another --output, or add --overwrite."
        )
    path = os.path.join(output, LEDGER)
    try:
        written = [str(file) for file in json.loads(read_regular(path, MAX_TEXT))["written"]]
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{output} contains files that no conversion wrote; name another --output."
        ) from None
    found = []
    for file in dict.fromkeys((*written, LEDGER)):
        inner = os.path.join(output, file)
        if ".." in file.split("/") or os.path.isabs(file) or not os.path.isfile(inner):
            continue
        if not is_inside(os.path.dirname(inner), output):
            raise UserError(
                f"{inner} lies in another folder, to which {output} has a link; name another "
                "--output."
            )
        found.append(file)
    return found


def _list_files(folder: str) -> Set[str]:
    """Return the files below a folder, relative to it."""
    paths = (os.path.join(home, name) for home, _, names in os.walk(folder) for name in names)
    return {os.path.relpath(path, folder) for path in paths}


def _move(files: Iterable[str], source: str, target: str) -> None:
    for file in files:
        os.makedirs(os.path.dirname(os.path.join(target, file)), exist_ok=True)
        os.replace(os.path.join(source, file), os.path.join(target, file))


def _list_empty_folders(folder: str) -> Set[str]:
    return {x for x, folders, files in os.walk(folder) if x != folder and not folders + files}


def _remove_empty_folders(folder: str, kept: Set[str]) -> None:
    for home, _, _ in os.walk(folder, topdown=False):
        if home != folder and home not in kept and not os.listdir(home):
            with contextlib.suppress(OSError):
                os.rmdir(home)
