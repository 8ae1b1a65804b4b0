"""The door: any data set in, COCO's lists and an account of its files out.

:func:`read_data` looks through a folder once, asks each of ``FORMATS`` whether it recognizes its
own, and lets that one read. A new format is a file with a :class:`Format`, and a line here.
"""

import collections
import os
import re
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from tood.app.convert.build import Contents, Format
from tood.app.convert.copies import look_at_images
from tood.app.convert.folder import STATING, Folder, relative_path
from tood.app.convert.formats.coco import COCO, read_coco_file
from tood.app.convert.formats.cvat import CVAT
from tood.app.convert.formats.labelme import LABELME
from tood.app.convert.formats.tables import CSV, explain_unread
from tood.app.convert.formats.voc import VOC
from tood.app.convert.formats.yolo import YOLO, label_files, names_alone
from tood.app.convert.formats.yolo_config import find_config_above
from tood.app.convert.ledger import (
    CONFIGURATION,
    IGNORED,
    IMAGE,
    LABELS,
    LEDGER,
    LIST,
    NO_LABELS,
    Ledger,
)
from tood.app.convert.matching import agree
from tood.app.convert.names import (
    SPLITS,
    bare_word,
    find_area,
    folder_splits,
    get_stem,
    get_suffix,
    read_split,
    split_words,
)
from tood.app.convert.objects import hashable
from tood.app.convert.splits import LISTED, names_image
from tood.utils.errors import UserError
from tood.utils.folders import MARK, is_output
from tood.utils.reading import guard_nesting
from tood.utils.suggest import suggest, suggest_path

FORMATS: List[Format] = [COCO, YOLO, VOC, LABELME, CSV, CVAT]
ORDER = ("train", "val", "test", "all")
ENDINGS = {VOC: ".xml", LABELME: ".json"}  # of files of labels, one for each image
LOOKED_FOR = (
    "a COCO JSON file, a YOLO data.yaml or classes.txt, Pascal VOC, LabelMe or CVAT files, or a "
    "CSV file with the columns filename, xmin, ymin, xmax, ymax, label"
)
SINGLE_FILES = (".csv", ".tsv", ".yaml", ".yml", ".xml", ".data")
TABLES = (".csv", ".tsv", ".json", ".xml")  # files that may label many images
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")


class UnknownFormatError(UserError):
    """A folder contains no data set of any format."""


class Part(NamedTuple):
    """A split of a data set."""

    name: str  # "train", "val", "test", or "all" for data without splits
    content: Dict  # COCO: "images" (names relative to image_root, with "/"), "categories",
    # "annotations"; as tood.data.annotations.clean_annotations accepts it
    image_root: str
    source: str  # for messages, such as "photos:train" or "val.json:images"


class Converted(NamedTuple):
    """A data set that was read."""

    data: str  # as it was named
    format: str  # "COCO", "YOLO", ...
    parts: Dict[str, Part]  # by their names, in the order train, val, test or all
    ledger: Ledger


def read_data(data: str, *, keep_difficult: bool = False) -> Converted:
    """Read a data set of any format; write nothing.

    Args:
        data: a folder, FOLDER:SPLIT, FILE.json, FILE.json:IMAGES, a CSV file, a ``data.yaml``, or
            an ``annotations.xml``.
        keep_difficult: keep objects that Pascal VOC or another format marks as difficult like
            others; by default they are marked "iscrowd", which the evaluation ignores.

    Returns:
        its splits and the account of its files. Sizes of images are those of the upright images.

    Raises:
        UserError: for data that are not there, of no or several formats, or ambiguous.
    """
    path, split, images = _parse(data)
    ledger = Ledger(data)
    if images is not None:
        folder = Folder(images, walk=False)
        with guard_nesting(path):
            kind, contents = COCO, read_coco_file(folder, relative_path(path, images), ledger)
    else:
        is_folder = os.path.isdir(path)
        if is_folder and is_output(path):
            raise UserError(
                f"{path} is an output folder of tood (it contains {MARK}), not data; name the "
                "folder of your data, or a file as FILE.json:IMAGES."
            )
        folder = Folder(path) if is_folder else Folder(os.path.dirname(path) or ".", _only(path))
        try:
            kind, found = _recognize(path, folder)
        except UnknownFormatError:
            above = find_config_above(path) if is_folder else ""
            if not above:
                raise
            converted = read_data(above)
            converted.ledger.note(f"{data} is read as a part of the data that it names", above)
            return converted
        with guard_nesting(path):
            contents = kind.read(folder, found, ledger)
    _refuse_other_labels(folder, kind, contents)
    _refuse_broken(folder, kind, contents, ledger)
    look_at_images(folder, ledger, contents, omit=kind is not COCO)
    _close(folder, ledger, contents)
    contents = _choose_parts(path, contents, split, ledger)
    if keep_difficult:
        _keep_difficult(contents)
    parts = {}
    for name, content in contents.items():
        # Sentences must not begin with "."
        shown = os.path.abspath(data) if os.path.normpath(data) in (".", "..") else data
        source = shown if split or name == "all" else f"{shown}:{name}"
        parts[name] = Part(name, content, folder.root, source)
    return Converted(data, kind.name, parts, ledger)


def _keep_difficult(contents: Contents) -> None:
    for content in contents.values():
        for annotation in filter(lambda x: isinstance(x, dict), content["annotations"]):
            if annotation.pop("difficult", 0) == 1:  # as it is written here
                annotation["iscrowd"] = 0
            if annotation.get("ignore"):
                annotation["ignore"] = 0


def _choose_parts(path: str, contents: Contents, split: str, ledger: Ledger) -> Contents:
    """Return the named part, or all in their order."""
    if split and split not in contents:
        known = ", ".join(name for name in ORDER if name in contents)
        if split == "test" and (IGNORED, NO_LABELS) in ledger.files.values():
            raise UserError(f"{path}: the images of its part 'test' have no labels; name {known}.")
        raise UserError(f"{path} has no part {split!r}, but {known}; name one of these.")
    return {name: contents[name] for name in ORDER if name in contents and split in ("", name)}


def refuse_missing(data: str) -> None:
    """Raise UserError for data that are not there."""
    _parse(data)


def _parse(data: str) -> Tuple[str, str, Any]:
    """Return the path, the split or "", and the folder of images if a COCO file is named."""
    if data.lower().endswith(ARCHIVES) and os.path.isfile(data):
        raise UserError(f"{data} is an archive; unpack it, and name the folder.")
    match = re.fullmatch(r"(.+\.json)(?::(.+))?", data, re.IGNORECASE)
    if match and not os.path.isdir(os.path.expanduser(data)):
        path, images = (x and os.path.expanduser(x) for x in match.groups())
        if not os.path.isfile(path):
            raise UserError(
                f"The annotation file {path} cannot be read (No such file or directory)"
                f"{suggest_path(path) or '; check its name.'}"
            )
        return path, "", images or os.path.dirname(path) or "."
    path, colon, part = data.rpartition(":")
    path, split = os.path.expanduser(path), {**SPLITS, "all": "all"}.get(part.lower(), "")
    if colon and not split and os.path.isdir(path) and not os.path.exists(f"{path}:{part}"):
        known = ", ".join(dict.fromkeys(SPLITS.values()))
        hint = suggest(part, SPLITS) or f"; parts are called {known}."
        raise UserError(f"{part!r} is not the name of a part of {path}{hint}")
    if not (colon and split and os.path.exists(path)):
        path, split = os.path.expanduser(data), ""
    if not os.path.isdir(path) and not (_only(path) and os.path.isfile(path)):
        if os.path.isfile(path):
            raise UserError(f"{path} is not a data set; name its folder.")
        hint = suggest_path(path) or "; name the folder of a data set."
        raise UserError(f"There is no folder {path}{hint}")
    return path, split, None


def _only(path: str) -> str:
    """Return the name of a file that describes a data set, "" for a folder."""
    return os.path.basename(path) if path.lower().endswith(SINGLE_FILES) and path else ""


def _recognize(path: str, folder: Folder) -> Tuple[Format, Any]:
    path = os.path.abspath(path) if os.path.normpath(path) in (".", "..") else path
    found = [(kind, kind.find(folder)) for kind in FORMATS]
    found = [(kind, what) for kind, what in found if what]
    if not found:
        labels = label_files(folder)
        if labels:
            raise UnknownFormatError(
                f"{folder.path(labels[0])} is in YOLO's format, but nothing names the classes; add "
                "a classes.txt with a name in each line, or a data.yaml."
            )
        raise UnknownFormatError(
            f"{path} contains {folder.summary()}; looked for were {LOOKED_FOR}{_explain(folder)}."
        )
    if len(found) > 1:  # names of classes alone are not a data set beside another one
        found = [(kind, what) for kind, what in found if kind is not YOLO or not names_alone(what)]
    if len(found) > 1:
        texts = [f"{kind.name} ({_example(what)})" for kind, what in found]
        raise UserError(
            f"{path} contains data in {len(found)} formats, {' and '.join(texts)}; leave one of "
            "them in the folder."
        )
    return found[0]


def _explain(folder: Folder) -> str:
    """Return why a file that seems to be one of labels is not, to follow a sentence, or ""."""
    texts = [explain_unread(folder)]
    for file in folder.with_suffix(".json")[:1]:
        content = folder.json(file)
        keys = content if isinstance(content, dict) else {}
        if not {"images", "annotations"} <= set(keys):
            texts.append(f"{file} has no images and annotations, as COCO's, nor LabelMe's shapes")
    return "".join(f"; {text}" for text in texts if text)


def _example(found: Any) -> str:
    """Return the first of the files that a format recognized."""
    while not isinstance(found, str):
        found = next(x for x in found if x)
    return found


def _refuse_other_labels(folder: Folder, kind: Format, contents: Contents) -> None:
    """Raise UserError if images without objects have some in YOLO's labels, whose classes no file
    names.
    """
    if kind is YOLO:
        return
    find = folder.names.plain_area.find
    labels = {i: f for f in label_files(folder) for i in find(get_stem(f), find_area(f))}
    for content in contents.values() if labels else ():
        labelled = {
            hashable(a.get("image_id")) for a in content["annotations"] if isinstance(a, dict)
        }
        for image in (image for image in content["images"] if isinstance(image, dict)):
            name = str(image.get("file_name"))
            other = labels.get(name, "")
            if other and hashable(image.get("id")) not in labelled and folder.head(other).strip():
                raise UserError(
                    f"{folder.path(name)} has no objects in {kind.name}'s form, but "
                    f"some in {folder.path(other)}; leave labels of one kind in the folder."
                )


def _refuse_broken(folder: Folder, kind: Format, contents: Contents, ledger: Ledger) -> None:
    """Raise UserError if an image without labels has a file at their place, in another form."""
    if kind not in ENDINGS:
        return
    known = {file for file, (role, _) in ledger.files.items() if role == LABELS}
    homes = {os.path.dirname(file) for file in known}
    labelled = {ledger.files[file][1] for file in known}
    used = {str(image["file_name"]) for x in contents.values() for image in x["images"]}
    names = folder.names
    places: Dict[str, Set[str]] = {}
    for file in folder.with_suffix(ENDINGS[kind]):
        if file not in ledger.files:
            places[file] = set(names.plain_area.find(get_stem(file), find_area(file)))
            if os.path.dirname(file) in homes:
                found = names.plain_stem.find(get_stem(file))
                places[file].update(i for i in found if agree(folder_splits(file), i))
    # Of another program, which has written one for images with labels as well.
    others = {os.path.dirname(f) for f, images in places.items() if images & labelled} - homes
    for file, images in places.items():
        broken = sorted((images & used) - labelled)
        if broken and os.path.dirname(file) not in others:
            raise UserError(
                f"{folder.path(file)} is at the place of the labels of {broken[0]}, but not in "
                f"{kind.name}'s form; write it again, or remove it."
            )


def _note_splits(folder: Folder, ledger: Ledger, contents: Contents) -> None:
    """Note names that speak of splits, and divide nothing."""
    if list(contents) == ["all"]:
        homes = {os.path.dirname(i) for i, (role, _) in ledger.files.items() if role == IMAGE}
        steps = {step: home for home in homes for step in home.split("/")}
        spoken = {step: split for step in steps for split in split_words(step)[:1]}
        for step in sorted(spoken) if homes else ():
            ledger.note("folders that speak of splits, and divide nothing", steps[step])
    _note_words(ledger)
    for file in folder.with_suffix(".txt"):
        is_unused = ledger.files.get(file, (IGNORED,))[0] == IGNORED
        if is_unused and split_words(get_stem(file)) and names_image(folder, file):
            ledger.note("lists of images that speak of splits, and divide nothing", file)


def _note_words(ledger: Ledger) -> None:
    """Note folders of different words that are one split, unless a list or a configuration divides
    the images.
    """
    roles = {role for role, _ in ledger.files.values()}
    if not roles.isdisjoint((LIST, CONFIGURATION)):
        return
    words: Dict[str, Dict[str, str]] = collections.defaultdict(dict)
    for image, (role, split) in ledger.files.items():
        steps = image.split("/")[:-1] if role == IMAGE and split in LISTED else []
        spoken = [bare_word(step) for step in steps if read_split(step) == split]
        if spoken:
            words[split].setdefault("/".join(spoken), image)
    for split, homes in words.items():
        if len(homes) > 1:
            text = f"folders of several names are one split, {split}: {', '.join(sorted(homes))}"
            ledger.note(text, homes[max(homes)])


def _close(folder: Folder, ledger: Ledger, contents: Contents) -> None:
    """Give files without a role the reason, and check the account."""
    _note_splits(folder, ledger, contents)
    for file, reason in folder.ignored.items():
        ledger.ignore([file], reason)
    ledger.ignore(folder.images, "in no split")
    for file in folder.files:
        if os.path.basename(file) == LEDGER and file not in ledger.files:
            ledger.enter(file, CONFIGURATION, "the account that tood convert wrote")
    named = [f for f in folder.with_suffix(*TABLES) if split_words(get_stem(f))]
    ledger.ignore(named, "named as a split, but not labels of this format")
    if folder.only:
        beside = [f for f in folder.files if get_suffix(f) in STATING]
        ledger.ignore(beside, "beside the file that is named")
    ledger.ignore(folder.files, "not labels of this format")
    used = {}
    for name, content in contents.items():
        ledger.splits[name] = (len(content["images"]), len(content["annotations"]))
        labelled = {
            hashable(a.get("image_id")) for a in content["annotations"] if isinstance(a, dict)
        }
        images = [image for image in content["images"] if isinstance(image, dict)]
        used[name] = {str(image.get("file_name")) for image in images}
        ledger.num_negatives += sum(hashable(image.get("id")) not in labelled for image in images)
    ledger.close(folder.files, used)
