"""The images that files of labels, and names in lists, mean."""

import collections
import os
import re
from typing import (
    Any,
    Collection,
    Dict,
    Iterable,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from tood.app.convert.folder import Folder, relative_path
from tood.app.convert.ledger import Ledger
from tood.app.convert.names import find_area, folder_splits, get_stem, get_suffix, plain
from tood.data.images import IMAGE_SUFFIXES
from tood.utils.errors import UserError

_DRIVE = re.compile(r"[a-zA-Z]:/")


def match_files(
    folder: Folder,
    ledger: Ledger,
    files: Sequence[str],
    stated: Optional[Mapping] = None,
    wanted: Collection[str] = (),
) -> Dict[str, str]:
    """Find the image of each file of labels: beside it, in the corresponding folder of images,
    and anywhere if neither folder corresponds to another one.

    Args:
        files: files of labels, each of one image.
        stated: file -> the image's name that it states.
        wanted: images that a configuration names, if one does.

    Returns:
        file -> image; files without an image are missing.

    Raises:
        UserError: if a file could belong to two images, or an image to two files.
    """
    names, stated = folder.names, stated or {}
    owners: Dict[str, str] = {}
    places = (
        lambda file, stem: names.same_folder.get((os.path.dirname(file), stem), ()),
        lambda file, stem: names.same_area.get((find_area(file), stem), ()),
        lambda file, stem: names.plain_area.find(stem, find_area(file)),
        lambda file, stem: names.stem.get(stem, ()),
        lambda file, stem: names.plain_stem.find(stem),
    )
    left, areas = list(files), {find_area(image) for image in names.images}
    homes = {(os.path.dirname(file), get_stem(file)) for file in files}
    for level, place in enumerate(places):
        pairs = {os.path.dirname(x) for pair in owners.items() for x in pair}
        found, owned = {}, set(owners) if level > 1 else set()
        for file in left:
            said = stated.get(file, "").replace("\\", "/")
            candidates = {c for s in _list_stems(folder, file, said) for c in place(file, s)}
            if level == 0:
                candidates = _list_beside(folder, file, said, candidates, homes, wanted)
            if level > 2:
                candidates = {c for c in candidates if agree(folder_splits(file), c)}
            image = _choose(folder, file, sorted(candidates - owned), os.path.basename(said))
            if image is None:
                continue
            if level > 2:
                _check_free(folder, file, image, pairs, areas)
            found[file] = image
            if level > 1:
                ledger.note("labels matched to images by names that differ", f"{file} ({image})")
        _add_owners(folder, owners, found)
        left = [file for file in left if file not in found]
    return {file: image for image, file in owners.items()}


def _add_owners(folder: Folder, owners: Dict[str, str], found: Mapping[str, str]) -> None:
    """Record the file of labels of each image; raise UserError for a second one."""
    for file, image in found.items():
        other = owners.setdefault(image, file)
        if other != file:
            raise UserError(
                f"{folder.path(image)} has two files of labels, {folder.path(other)} and "
                f"{folder.path(file)}; remove or rename one of them."
            )


def _list_beside(
    folder: Folder,
    file: str,
    said: str,
    images: Set[str],
    homes: Set[Tuple[str, str]],
    wanted: Collection[str],
) -> Set[str]:
    """Return the images that a file of labels may mean, of those beside it, the one at the path
    that it states, and others of their names in the corresponding folder.

    Args:
        homes: folder and name of each file of labels, beside which images are its own.
        wanted: as in :func:`match_files`.

    Raises:
        UserError: if neither a stated name nor ``wanted`` distinguishes them.
    """
    beside, base = images, os.path.basename(said)
    direct = relative_path(os.path.join(os.path.dirname(file), said), "") if said else ""
    if direct in folder.names.images:
        images = images | {direct}
        if "/" in said and len({get_stem(i) for i in images}) == 1:
            return {direct}
    area, known = find_area(file), folder.names.same_area
    found = {i for stem in map(get_stem, beside) for i in known.get((area, stem), ())}
    others = {i for i in found - images if (os.path.dirname(i), get_stem(i)) not in homes}
    if not others:
        return images
    both = (images | others) & set(wanted) or images | others
    both = {i for i in both if os.path.basename(i) == base} or both
    if len(both) > 1:
        _refuse_two(folder, file, sorted(both))
    return both


def _refuse_two(folder: Folder, file: str, images: Sequence[str]) -> NoReturn:
    raise UserError(
        f"{folder.path(file)} could belong to {folder.path(images[0])} or "
        f"{folder.path(images[1])}; rename one of them, or put the labels beside their image."
    )


def _list_stems(folder: Folder, file: str, said: str) -> List[str]:
    """Return the names of an image without its ending: that of its file of labels, and the stated
    one, whose ending may lack, so that what follows a dot in it is none.
    """
    base = os.path.basename(said)
    is_whole = get_suffix(base) not in IMAGE_SUFFIXES and base in folder.names.stem
    return [x for x in (get_stem(file), base if is_whole else get_stem(base)) if x]


def _check_free(folder: Folder, file: str, image: str, pairs: Set[str], areas: Set) -> None:
    """Raise UserError if labels or an image, of equal names in different places, belong to a
    folder that corresponds to another one.

    Args:
        pairs: folders that correspond to each other.
        areas: areas of all images.
    """
    area = find_area(file)
    own = _common_tail(area, find_area(image))
    has_place = area and (area in areas or any(_common_tail(area, x) > own for x in areas))
    if has_place or not pairs.isdisjoint((os.path.dirname(file), os.path.dirname(image))):
        raise UserError(
            f"{folder.path(file)} has no image in its place, but {folder.path(image)}, which has "
            "no labels, has its name; put both in corresponding folders, or rename one of them."
        )


def agree(splits: Sequence[str], image: str) -> bool:
    return not splits or not folder_splits(image) or splits == folder_splits(image)


def _choose(folder: Folder, file: str, images: Sequence[str], base: str) -> Optional[str]:
    """Return the one image that a file of labels means, or None without candidates."""
    area = find_area(file)
    if len({get_stem(i) for i in images}) == 1:  # the ending or the folder decides
        longest = max(_common_tail(find_area(i), area) for i in images)
        for is_meant in (
            lambda i: os.path.basename(i) == base,
            lambda i: 0 < longest == _common_tail(find_area(i), area),
            lambda i: i.count("/") == file.count("/") and find_area(i) == area,
        ):
            images = [i for i in images if is_meant(i)] or images
    if len(images) > 1:
        _refuse_two(folder, file, images)
    return images[0] if images else None


def match_names(
    folder: Folder,
    ledger: Ledger,
    names: Iterable[str],
    near: Sequence[str] = ("",),
    source: str = "",
    *,
    given: Sequence[Tuple[str, str]] = (),
    taken: Collection[str] = (),
    labelled: Collection[str] = (),
    is_all: bool = True,
) -> Dict[str, str]:
    """Find the images that names in a file mean.

    Args:
        names: paths, which may be of another machine, or names with or without their endings.
        near: folders that they may be relative to, the most certain one first.
        source: the file that lists them, if more than half of them must be there.
        given: names of the same list with their images, which are known.
        taken: images that these names do not mean.
        labelled: images with labels; of several of a name, these are meant, or else those in the
            folders of these.
        is_all: whether the names are all of the file.

    Returns:
        name -> image; names without an image are missing.

    Raises:
        UserError: if a name could mean two images, or two names mean one.
    """
    names = list(dict.fromkeys(names))
    direct = ((name, find_direct(folder, name, near)) for name in names)
    found = {name: image for name, image in direct if image is not None}
    known = [*given, *found.items()]
    taken, places = {*found.values(), *taken}, _places(folder, names, near, known)
    # So that folders in other names count as well.
    has_paths = any("/" in name for name, _ in known)
    likely = (labelled, {os.path.dirname(image) for image in labelled})
    by_image: Dict[str, str] = {}
    where = f"{folder.path(source)}: " if source else ""
    for name in names:
        image = None
        if name not in found:
            home = places[os.path.dirname(name)]
            image = _by_name(folder, name, near, taken, home, has_paths, where, likely)
        if image is None:
            continue
        other = by_image.setdefault(image, name)
        if other != name:
            raise UserError(
                f"{folder.path(image)} could be {other!r} or {name!r}; put images of equal names "
                "into folders as their names say."
            )
        found[name] = image
        if not f"/{image}".endswith((f"/{name}", f"/{name}{get_suffix(image)}")):
            ledger.note("images found by their names alone", name)
    if source and is_all:
        check_missing(folder, ledger, names, found, source)
    return found


def list_places(folder: Folder, name: str) -> Dict[str, str]:
    """Return the folders in which the path of an image, with or without its ending, is there, each
    with this image.
    """
    name, known = os.path.normpath(name.replace("\\", "/")), folder.names
    base = os.path.basename(name)
    whole = {image: image for image in known.base.get(base, ())}
    whole = whole or {os.path.splitext(image)[0]: image for image in known.stem.get(base, ())}
    found = {path: image for path, image in whole.items() if f"/{path}".endswith(f"/{name}")}
    return {path[: -len(name)].rstrip("/"): image for path, image in found.items()}


def check_beside(folder: Folder, source: str, found: Iterable[Tuple[str, str]]) -> None:
    """Raise UserError if an image beside the file that names it has the name of another one, which
    the file could mean as well, as masks beside a file have those of the photographs in ``images``.

    Args:
        source: the file.
        found: names in it, and their images.
    """
    home, area = os.path.dirname(source), find_area(source)
    for name, image in found:
        places = list_places(folder, name)
        for place, other in places.items() if places.get(home) == image else ():
            outer = find_area(f"{place}/x")
            is_same_split = folder_splits(f"{place}/x") == folder_splits(source)
            if place != home and outer == area[: len(outer)] and is_same_split:
                first, second = sorted((folder.path(image), folder.path(other)))
                raise UserError(
                    f"{folder.path(source)}: {name!r} could be {first} or {second}; name the "
                    "folder as well, or move the other images away if they are masks, for example."
                )


def check_missing(
    folder: Folder, ledger: Ledger, names: Sequence[Any], found: Collection, source: str
) -> None:
    """Note names in a file whose images are not there; raise UserError for more than half."""
    missing = [name for name in names if name not in found]
    texts = [name if isinstance(name, str) else name[-1] for name in missing]
    kind = f"images that {folder.path(source)} names are not there"
    ledger.check_share(kind, texts, len(names), "correct the names, or add the images")


def _places(
    folder: Folder, names: Sequence[str], near: Sequence[str], known: Sequence[Tuple[str, str]]
) -> Dict:
    """Return, for each folder in names, the folders that its images must be in: those in which
    some were found, and those of this name that are there.
    """
    places = collections.defaultdict(set)
    for name, image in known:
        places[os.path.dirname(name)].add(os.path.dirname(image))
    folders = {os.path.dirname(image) for image in folder.names.images}
    for home in {os.path.dirname(name) for name in names} - {""}:
        places[home] |= {relative_path(os.path.join(n, home), "") for n in near} & folders
    return places


def find_direct(folder: Folder, name: str, near: Sequence[str]) -> Optional[str]:
    """Return the image at exactly the path that a name says."""
    if "\\" in name:  # which may be a letter of a name
        for path in (f"{n}/{name}".lstrip("/") for n in near):
            if path in folder.names.images:
                return path
    name = name.replace("\\", "/")
    if os.path.isabs(name):
        name, near = relative_path(name, folder.root), ("",)
    for path in (os.path.normpath(os.path.join(n, name)).replace(os.sep, "/") for n in near):
        if path in folder.names.images:
            return path
        without_ending = folder.names.same_folder.get(os.path.split(path), ())
        if len(without_ending) == 1:
            return without_ending[0]
    return None


def _by_name(
    folder: Folder,
    name: str,
    near: Sequence[str],
    taken: Set[str],
    places: Set[str],
    strict: bool,
    where: str,
    likely: Tuple[Collection[str], Set[str]],
) -> Optional[str]:
    """Return the image whose path ends as a name does, with as many folders as possible.

    Args:
        places: paths at which images of the same folder were found.
        strict: whether at least one folder of a path must agree.
        where: begins the sentences of errors.
        likely: images with labels, and their folders.
    """
    index, name = folder.names, name.replace("\\", "/")
    base = name.rpartition("/")[2]
    # The folders of another machine, also of one with Windows, say nothing of splits.
    splits = () if os.path.isabs(name) or _DRIVE.match(name) else folder_splits(name)
    for images, key in (
        (index.base.get(base) or index.stem.get(base, ()), str),
        (index.plain_base.find(base) or index.plain_stem.find(base), plain),
    ):
        images = [i for i in images if i not in taken and agree(splits, i)]
        if places and "/" in name:
            images = [i for i in images if os.path.dirname(i) in places]
        if not images:
            continue
        steps = [key(x) for x in name.split("/")[:-1]]
        tails = [_common_tail([key(x) for x in i.split("/")[:-1]], steps) for i in images]
        if strict and "/" in name and not places and not max(tails):
            continue
        images = [i for i, tail in zip(images, tails) if tail == max(tails)]
        images = _choose_likely(images, near, *likely) if len(images) > 1 else images
        if len(images) > 1:
            raise UserError(
                f"{where}{name!r} could mean {folder.path(images[0])} or "
                f"{folder.path(images[1])}; name the folder as well, or rename one of them."
            )
        if places and os.path.dirname(images[0]) not in places:
            raise UserError(
                f"{where}{name!r} is not in {folder.path(min(places))} like others of its list, "
                f"but {folder.path(images[0])} has its name; name the folder, or rename one."
            )
        return images[0]
    return None


def _choose_likely(
    images: List[str], near: Sequence[str], labelled: Collection[str], homes: Collection[str]
) -> List[str]:
    """Return the images with labels, or else those in the folders of such images, or all; of these
    the ones in ``near``, if some are.
    """
    found = [image for image in images if image in labelled]
    found = found or [image for image in images if os.path.dirname(image) in homes] or images
    return [i for i in found if any(n and i.startswith(f"{n}/") for n in near)] or found


def _common_tail(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many of the last steps of two paths agree."""
    pairs = list(zip(reversed(a), reversed(b)))
    return next((n for n, (x, y) in enumerate(pairs) if x != y), len(pairs))
