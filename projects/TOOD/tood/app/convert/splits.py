"""The splits of a folder: by its folders and names, or by its lists."""

import os
import re
from typing import Collection, Dict, List, Optional, Sequence, Tuple

from tood.app.convert.folder import Folder, decode
from tood.app.convert.ledger import LIST, Ledger
from tood.app.convert.matching import check_beside, check_missing, find_direct, match_names
from tood.app.convert.names import (
    SPLITS,
    find_area,
    folder_splits,
    get_stem,
    get_suffix,
    read_split,
    split_words,
)
from tood.data.images import IMAGE_SUFFIXES
from tood.utils.errors import UserError

LISTED = ("train", "val", "test")
LABEL_ENDINGS = (".xml", ".txt", ".json")
# In a list, behind a name: a flag or a file of labels; anything, behind the name of an image.
_SUFFIX = f"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
_NUMBER = re.compile(r"(.*\S)\s+-?\d+")  # flags, or numbers of classes
_FOLLOWS = [
    re.compile(r"(.*\S)\s+(-?[01]|\S+\.(xml|txt|json))"),
    re.compile(rf"(.*{_SUFFIX})\s.*", re.IGNORECASE),
]


def find_split(folder: Folder, files: Sequence[str]) -> Dict[str, str]:
    """Return the split of each file that labels many images, by its folders or its name.

    Raises:
        UserError: if two files are of one split, or a file of several is of none.
    """
    if folder.only:  # a data set by itself
        return dict.fromkeys(files, "all")
    splits: Dict[str, str] = {}
    for file, named in name_splits(files).items():
        split = named or "all"
        other = next(
            (f for f, known in splits.items() if split in (known, "all") or known == "all"), ""
        )
        if other:
            is_unnamed = "all" in (split, splits[other])
            what = "two sets without different names" if is_unnamed else f"two sets {split!r}"
            raise UserError(
                f"{folder.root} contains {what}, {other} and {file}; name one of them, or move the "
                "other away."
            )
        splits[file] = split
    return splits


def name_splits(files: Sequence[str]) -> Dict[str, str]:
    """Return the split that each file is named after, or "": by its folders, or else by its name,
    which is their innermost step if it distinguishes files, as in training/val.csv.
    """
    words = {file: split_words(get_stem(file)) for file in files}
    words = {file: found if len(found) == 1 else [] for file, found in words.items()}
    if len(files) == 1:
        return {file: next(iter([*folder_splits(file), *words[file]]), "") for file in files}
    return choose_steps({file: [*folder_splits(file), *words[file]] for file in files})


def match_in_splits(
    folder: Folder,
    ledger: Ledger,
    pairs: Sequence[Tuple[str, str]],
    near: Sequence[str],
    source: str,
) -> Dict[Tuple[str, str], str]:
    """Find the images of names in splits: in the folder of the split, or as match_names does.

    Args:
        pairs: (split or "", name) of each image.
        near, source: as in match_names.

    Raises:
        UserError: for an image in two splits, and as match_names and check_beside do.
    """
    places = {split: [*find_homes(folder, split), *near] for split, _ in pairs}
    found = {pair: find_direct(folder, pair[1], places[pair[0]]) for pair in pairs}
    matched = {pair: image for pair, image in found.items() if image is not None}
    for split, homes in places.items():
        known = [(name, image) for (own, name), image in matched.items() if own == split]
        rest = [name for own, name in pairs if own == split and (own, name) not in matched]
        taken = set(matched.values())
        more = match_names(
            folder, ledger, rest, homes, source, given=known, taken=taken, is_all=False
        )
        matched.update({(split, name): image for name, image in more.items()})
    check_missing(folder, ledger, list(dict.fromkeys(pairs)), matched, source)
    _refuse_two_splits(folder, matched, source)
    check_beside(folder, source, ((name, image) for (_, name), image in matched.items()))
    return matched


def _refuse_two_splits(folder: Folder, matched: Dict[Tuple[str, str], str], source: str) -> None:
    splits: Dict[str, str] = {}
    for (split, name), image in matched.items():
        other = splits.setdefault(image, split)
        if other != split:
            raise UserError(
                f"{folder.path(source)} puts {name} into {other or 'no split'} and into "
                f"{split or 'no split'}; correct one of them."
            )


def find_homes(folder: Folder, split: str) -> List[str]:
    """Return the one folder that is named after a split, and those in it that only contain its
    images, as train and train/images; nothing if there are several.
    """
    homes: Dict[str, List[str]] = {}
    for home in dict.fromkeys(os.path.dirname(image) for image in folder.images) if split else ():
        steps = home.split("/")
        named = next((i for i, step in enumerate(steps, 1) if read_split(step)), 0)
        if named and read_split(steps[named - 1]) == split:
            top = "/".join(steps[:named])
            is_plain = find_area(f"{home}/x") == find_area(f"{top}/x")
            homes.setdefault(top, [top]).extend([home] if is_plain and home != top else [])
    return next(iter(homes.values())) if len(homes) == 1 else []


def split_by_image(folder: Folder) -> Dict[str, str]:
    """Return the split of each image by its folders, or by its name if every image has one."""
    steps = {i: folder_splits(i) for i in folder.images}
    names = {i: split_words(get_stem(i)) for i in folder.images}
    kinds = {tuple(x) for x in names.values()}
    if not any(steps.values()) and len(kinds) > 1 and all(len(x) == 1 for x in kinds):
        steps = names
    return choose_steps(steps)


def choose_steps(steps: Dict[str, List[str]]) -> Dict[str, str]:
    """Return the split of each file by those that its folders speak of: the outermost decides,
    unless those in it are the splits, as in training/val.
    """
    inner = {outer: {tuple(x[1:]) for x in steps.values() if x[:1] == [outer]} for outer in LISTED}
    is_alone = len({tuple(x[:1]) for x in steps.values()}) == 1
    nested = {outer for outer, rest in inner.items() if is_alone or (len(rest) > 1 and all(rest))}
    return {i: x[-1 if x[0] in nested else 0] if x else "" for i, x in steps.items()}


def check_splits(stated: Dict[str, str], ledger: Ledger) -> None:
    """Hold the splits that a file states to those that are known, or to none.

    Args:
        stated: split, as it is written, -> where.

    Raises:
        UserError: if some are known and some are not.
    """
    known = next((text for text in stated if read_split(text)), "")
    for text, where in stated.items():
        if known and not read_split(text):
            raise UserError(
                f"{where} has {repr(text) if text else 'nothing'} as its split, and others have "
                f"{known!r}; name train, val or test, or remove it."
            )
        if text and not known:
            ledger.note("splits other than train, val and test, which divide nothing", text)


def read_split_lists(
    folder: Folder, ledger: Ledger, labelled: Collection[str]
) -> Optional[Dict[str, List[str]]]:
    """Return the images of the splits that text files such as ``train.txt`` list, or None.

    Such files are in ``ImageSets`` or ``ImageSets/Main``, or anywhere if a line of their first ones
    names an image. A ``trainval.txt`` beside others contributes what they lack. ``labelled`` as in
    match_names.

    Raises:
        UserError: for two different lists of one split, and images in the lists of several folders.
    """
    homes: Dict[str, Dict[str, List[str]]] = {}
    for file in folder.with_suffix(".txt"):
        name, home = get_stem(file).lower(), os.path.dirname(file)
        root, is_voc = re.subn(r"(^|/)ImageSets(/Main)?$", "", home, flags=re.IGNORECASE)
        if name not in SPLITS:
            continue
        if is_voc or ("imagesets" not in home.lower() and names_image(folder, file, whole=True)):
            homes.setdefault(root, {}).setdefault(name, []).append(file)
    splits: Dict[str, List[str]] = {}
    listed: Dict[str, str] = {}  # image -> the first list of it
    for root, files in homes.items():
        near = [os.path.join(root, place).rstrip("/") for place in ("", "JPEGImages", "images")]
        lists = {
            n: _list_once(folder, ledger, some, [*near, ""], labelled) for n, some in files.items()
        }
        both = lists.pop("trainval", None)
        if both is not None and not {"train", "val"} <= set(lists):
            rest = {*lists.get("train", ()), *lists.get("val", ())}
            lists["val" if "train" in lists else "train"] = [i for i in both if i not in rest]
        for name, images in lists.items():
            splits.setdefault(SPLITS[name], []).extend(images)
            _check_listed(folder, listed, files.get(name, [""])[0], images)
    used = {image for images in splits.values() for image in images}
    if not used:
        return None
    ledger.ignore([i for i in folder.images if i not in used], "in no list of images")
    return splits


def _list_once(
    folder: Folder,
    ledger: Ledger,
    files: Sequence[str],
    near: Sequence[str],
    labelled: Collection[str],
) -> List[str]:
    """Return the images that the lists of one split name, which may be written in several forms."""
    lists = [list_images(folder, ledger, file, near, labelled) for file in files]
    for file, images in zip(files, lists):
        if set(images) != set(lists[0]):
            raise UserError(
                f"{folder.path(files[0])} and {folder.path(file)} are lists of one split, and name "
                "other images; leave one of them in the folder."
            )
    return lists[0]


def _check_listed(folder: Folder, listed: Dict[str, str], file: str, images: Sequence[str]) -> None:
    """Raise UserError if lists in several folders name the same image, as those of folds do."""
    for image in images:
        other = listed.setdefault(image, file)
        if other and file and os.path.dirname(other) != os.path.dirname(file):
            raise UserError(
                f"{folder.path(other)} and {folder.path(file)} both list {image}; leave the lists "
                "of one division in the folder."
            )


def list_images(
    folder: Folder,
    ledger: Ledger,
    file: str,
    near: Sequence[str],
    labelled: Collection[str] = (),
) -> List[str]:
    """Return the images that a text file names; ``near`` and ``labelled`` as in match_names."""
    lines = folder.lines(file)
    number = _count_numbers(folder, lines)
    names = [_listed_name(folder, line, number) for line in lines]
    found = match_names(folder, ledger, names, near, file, labelled=labelled)
    if labelled:
        check_beside(folder, file, [x for x in found.items() if x[1] not in labelled])
    ledger.enter(file, LIST)
    return [found[name] for name in names if name in found]


def _count_numbers(folder: Folder, lines: Sequence[str]) -> int:
    """Return how many numbers, of classes and flags, follow each name of a list: none if lines
    without them name images, or have other numbers of them.
    """
    forms = []  # of each line: without numbers, without the last one, ...
    for line in filter(str.strip, lines):
        forms.append([line.strip()])
        while match := _NUMBER.fullmatch(forms[-1][-1]):
            forms[-1].append(match.group(1))
    if len({len(form) for form in forms}) != 1:
        return 0
    known = [sum(_is_known(folder, name) for name in names) for names in zip(*forms)]
    return 0 if known[0] else known.index(max(known))


def _listed_name(folder: Folder, line: str, number: int) -> str:
    """Return a line of a list without what follows the name, as :func:`_count_numbers` found."""
    for _ in range(number):
        line = _NUMBER.sub(r"\1", line)
    more = [x.group(1) for x in (form.fullmatch(line) for form in _FOLLOWS) if x]
    line = line if not more or _is_known(folder, line) else more[0]
    # Some lists name the files of labels.
    stem, suffix = os.path.splitext(line)
    is_label = suffix.lower() in LABEL_ENDINGS and not _is_known(folder, line)
    images = folder.names.stem.get(os.path.basename(stem.replace("\\", "/")), ())
    return stem if is_label and len(images) == 1 else line


def _is_known(folder: Folder, name: str) -> bool:
    base = os.path.basename(name.replace("\\", "/"))
    return base in folder.names.base or base in folder.names.stem


def names_image(folder: Folder, file: str, *, whole: bool = False) -> bool:
    """Return whether a line of its beginning, or of all of it, names an image, perhaps with another
    ending.
    """
    known = folder.names
    data = folder.read(file) if whole else folder.head(file)
    text = decode(data, folder.path(file), "replace").replace("\\", "/")
    lines = [line.strip() for line in text.splitlines()]
    number = _count_numbers(folder, lines)
    for line in lines:
        base = os.path.basename(_listed_name(folder, line, number))
        is_image = get_suffix(base) in IMAGE_SUFFIXES and get_stem(base) in known.stem
        if is_image or base in known.base or base in known.stem:
            return True
    return False
