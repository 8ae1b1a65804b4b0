"""A folder of a data set: its files, each real folder once, and the images that names mean."""

import collections
import contextlib
import functools
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple
from urllib.parse import unquote

from tood.app.convert.ledger import Ledger
from tood.data.annotations import is_wide, parse_json
from tood.data.images import IMAGE_ERRORS, IMAGE_SUFFIXES, probe_image
from tood.utils.errors import UserError, format_reason
from tood.utils.folders import is_drawing, is_output
from tood.utils.reading import MAX_LABEL, MAX_TEXT, guard_reading, open_regular, read_regular

STATING = (".csv", ".tsv", ".yaml", ".yml", ".json", ".xml", ".data")
SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Words in names of folders that distinguish images from labels, and nothing else.
AREAS = frozenset(
    re.findall(
        r"\w+",
        "images image imgs img jpegimages labels label annotations annotation anns ann xml xmls "
        "txt txts json jsons set dataset data",
    )
)
# Label Studio puts such a prefix before the names of uploaded files.
_PREFIX = re.compile(r"^[0-9a-fA-F]{8}-")
HEAD = 4096  # bytes by which formats are recognized
OUTPUT, DRAWING = "an output folder of tood, not data", "a drawing by tood, not data"
MARKED = (".jpg", ".jpeg", ".png")  # images that may be drawings
MAX_FILES = 2_000_000
READERS = 16
_INTERESTING = re.compile(rb'"(shapes|imagePath|images|annotations)"\s*:')
_DRIVE = re.compile(r"[a-zA-Z]:/")


class Folder:
    """The files below a folder, relative to it with "/"."""

    def __init__(self, root: str, only: str = "", *, walk: bool = True):
        """
        Args:
            root: path.
            only: the one file, relative to it, that may state boxes; "" for all.
            walk: whether to look for files.
        """
        self.root, self.only = root, only
        self.files: List[str] = []
        self.ignored: Dict[str, str] = {}  # file or folder -> reason
        self.links: Dict[str, str] = {}  # file that is a link -> its real path
        self.folders: Dict[str, str] = {}  # real path -> folder
        self._bytes: Dict[str, bytes] = {}
        self._json: Dict[str, Any] = {}
        self.images: List[str] = []
        self._known: Set[str] = set()  # files that are not drawings
        if walk:
            self.include(root)

    def include(self, path: str) -> None:
        """Add the files of a folder, which may lie outside of the root."""
        start = relative_path(path, self.root)
        links = self._walk(os.path.realpath(path), start)
        while links:  # after the real folders, which are preferred
            file, real = links.pop(0)
            if is_output(real):
                self.ignored[f"{file}/"] = OUTPUT
            elif real in self.folders or is_inside(self.root, real):
                self.ignored[f"{file}/"] = "a link to a folder that is read elsewhere"
            else:
                links += self._walk(real, file)
        self._omit_drawings()
        self.files.sort()
        self.images = [f for f in self.files if get_suffix(f) in IMAGE_SUFFIXES]
        self.__dict__.pop("names", None)

    def _omit_drawings(self) -> None:
        """Ignore the images that the program wrote."""
        new = [f for f in self.files if get_suffix(f) in MARKED and f not in self._known]
        with ThreadPoolExecutor(READERS) as pool:  # reading the head of a file is waiting, mostly
            drawings = [f for f, x in zip(new, pool.map(is_drawing, map(self.path, new))) if x]
        self.ignored.update(dict.fromkeys(sorted(drawings), DRAWING))
        self.files = [f for f in self.files if self.ignored.get(f) != DRAWING]
        self._known.update(new)

    def _walk(self, real: str, start: str) -> List[Tuple[str, str]]:
        """Add the files of a folder; return its links to folders, with their real paths."""
        links, pending = [], [(real, start)]
        while pending:
            real, prefix = pending.pop()
            if real in self.folders:
                continue
            if prefix != start and is_output(real):
                self.ignored[f"{prefix}/"] = OUTPUT
                continue
            self.folders[real] = prefix
            if len(self.files) > MAX_FILES:
                raise UserError(
                    f"{self.root} contains more than {MAX_FILES:,} files; name a smaller folder."
                )
            for entry in self._entries(real):
                file = f"{prefix}/{entry.name}".lstrip("/")
                if entry.name.startswith((".", "__MACOSX")):
                    self._hide(entry, file)
                elif entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, file))
                elif entry.is_file(follow_symlinks=False):
                    self.files.append(file)
                elif os.path.isdir(entry.path):
                    links.append((file, os.path.realpath(entry.path)))
                elif os.path.isfile(entry.path):  # unlike is_file, False if links have no end
                    self.files.append(file)
                    self.links[file] = os.path.realpath(entry.path)
                else:
                    self.ignored[file] = "a link to nothing, or not a file"
        return sorted(links)

    def _entries(self, real: str) -> List[os.DirEntry]:
        try:
            return list(os.scandir(real))
        except OSError as error:
            raise UserError(
                f"The folder {real} cannot be read ({error.strerror}); check its permissions."
            ) from error

    def _hide(self, entry: os.DirEntry, file: str) -> None:
        if not entry.is_dir(follow_symlinks=False):
            self.ignored[file] = "hidden"
            return
        for path, _, names in os.walk(entry.path):
            prefix = f"{file}/{relative_path(path, entry.path)}".rstrip("/")
            self.ignored.update({f"{prefix}/{name}": "hidden" for name in names})

    @functools.cached_property
    def names(self) -> "Names":
        """Indices of the images."""
        return Names(self.images)

    def path(self, file: str) -> str:
        """Return the path of one of its files."""
        return os.path.normpath(os.path.join(self.root, file))

    def with_suffix(self, *suffixes: str) -> List[str]:
        """Return the files with one of some endings, in lower case with their dot."""
        found = [f for f in self.files if get_suffix(f) in suffixes]
        if self.only:
            found = [f for f in found if f == self.only or get_suffix(f) not in STATING]
        return found

    def summary(self) -> str:
        """Describe its files, for a sentence."""
        if not self.files:
            return "no files"
        counts = collections.Counter(get_suffix(f) or "no ending" for f in self.files)
        texts = [f"{count} of {suffix}" for suffix, count in counts.most_common(4)]
        return f"{len(self.files)} files ({', '.join(texts)})"

    def head(self, file: str) -> bytes:
        """Return the first bytes of a file, by which formats are recognized."""
        if file in self._bytes:
            return self._bytes[file][:HEAD]
        path = self.path(file)
        with open_regular(path) as f, guard_reading(path):
            return f.read(HEAD)

    def bytes(self, file: str, limit: int = MAX_LABEL) -> bytes:
        """Return the content of a file of at most ``limit`` bytes, which is opened once."""
        if file not in self._bytes:
            self._bytes[file] = self.read(file, limit)
        return self._bytes[file]

    def read(self, file: str, limit: int = MAX_TEXT) -> bytes:
        """Return the content of a file of at most ``limit`` bytes."""
        return read_regular(self.path(file), limit)

    def text(self, file: str, limit: int = MAX_LABEL) -> str:
        """Return the text of a file of at most ``limit`` bytes."""
        return decode(self.bytes(file, limit), self.path(file))

    def lines(self, file: str) -> List[str]:
        """Return the lines of a text, stripped, without empty ones."""
        return [line.strip() for line in self.text(file, MAX_TEXT).splitlines() if line.strip()]

    def json(self, file: str) -> Any:
        """Return the content of a JSON file without the images in it (``imageData``: True if there
        is one), or None if it has none of the keys of known formats.
        """
        if file not in self._json:
            data, self._json[file] = self.read(file), None
            # Of UTF-16, the bytes of letters are those of UTF-8.
            if _INTERESTING.search(data.replace(b"\0", b"") if is_wide(data) else data):
                content = parse_json(data, self.path(file))
                if isinstance(content, dict) and "imageData" in content:
                    content["imageData"] = bool(content["imageData"])
                self._json[file] = content
        return self._json[file]

    def probe_size(self, image: str) -> Tuple[int, int]:
        """Return width and height in pixels, upright; raise UserError for a broken image."""
        try:
            return probe_image(self.path(image))
        except IMAGE_ERRORS as error:
            raise UserError(
                f"The image {self.path(image)} cannot be read ({format_reason(error)}); "
                "repair it or take it out of the folder."
            ) from error


class Names:
    """Images by their paths, and by parts of their names."""

    def __init__(self, images: Sequence[str]):
        self.images = set(images)
        self.same_folder = _index(images, lambda i: (os.path.dirname(i), get_stem(i)))
        self.same_area = _index(images, lambda i: (find_area(i), get_stem(i)))
        self.plain_area = PlainIndex((find_area(i), get_stem(i), i) for i in images)
        self.stem = _index(images, get_stem)
        self.plain_stem = PlainIndex(("", get_stem(i), i) for i in images)
        self.base = _index(images, os.path.basename)
        self.plain_base = PlainIndex(("", os.path.basename(i), i) for i in images)


class PlainIndex:
    """Images by their folders, or nothing, and names without what programs change: the quoting,
    the case of letters, and a prefix, of which one of two names that are equal may have one.
    """

    def __init__(self, entries: Iterable[Tuple[Any, str, str]]):
        """
        Args:
            entries: (folders, name, image) of each image.
        """
        self._whole: Dict[Any, List[str]] = collections.defaultdict(list)
        self._bare: Dict[Any, List[str]] = collections.defaultdict(list)
        for home, name, image in entries:
            self._whole[home, plain(name)].append(image)
            if _PREFIX.match(unquote(name)):
                self._bare[home, plain(_PREFIX.sub("", unquote(name)))].append(image)

    def find(self, name: str, home: Any = "") -> List[str]:
        """Return the images of a name."""
        found = self._whole.get((home, plain(name))) or self._bare.get((home, plain(name)))
        bare = _PREFIX.sub("", unquote(name))
        return found or self._whole.get((home, plain(bare)), [])


def match_files(
    folder: Folder, ledger: Ledger, files: Sequence[str], stated: Optional[Mapping] = None
) -> Dict[str, str]:
    """Find the image of each file of labels: beside it, in the corresponding folder of images,
    and anywhere if neither folder corresponds to another one.

    Args:
        files: files of labels, each of one image.
        stated: file -> the image's name that it states.

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
    for level, place in enumerate(places):
        pairs = {os.path.dirname(x) for pair in owners.items() for x in pair}
        found, owned = {}, set(owners) if level > 1 else set()
        for file in left:
            said = stated.get(file, "").replace("\\", "/")
            candidates = {c for s in (get_stem(file), get_stem(said)) if s for c in place(file, s)}
            direct = relative_path(os.path.join(os.path.dirname(file), said), "")
            candidates |= {direct} & names.images if said and level == 0 else set()
            if level > 2:
                candidates = {c for c in candidates if _agree(folder_splits(file), c)}
            image = _choose(folder, file, sorted(candidates - owned), os.path.basename(said))
            if image is None:
                continue
            if level > 2:
                _check_free(folder, file, image, pairs, areas)
            found[file] = image
            if level > 1:
                ledger.note("labels matched to images by names that differ", f"{file} ({image})")
        for file, image in found.items():
            other = owners.setdefault(image, file)
            if other != file:
                raise UserError(
                    f"{folder.path(image)} has two files of labels, {folder.path(other)} and "
                    f"{folder.path(file)}; remove or rename one of them."
                )
        left = [file for file in left if file not in found]
    return {file: image for image, file in owners.items()}


def _check_free(folder: Folder, file: str, image: str, pairs: Set[str], areas: Set) -> None:
    """Raise UserError if labels or an image, of equal names in different places, belong to a
    folder that corresponds to another one.

    Args:
        pairs: folders that correspond to each other.
        areas: areas of all images.
    """
    has_place = find_area(file) and find_area(file) in areas
    if has_place or not pairs.isdisjoint((os.path.dirname(file), os.path.dirname(image))):
        raise UserError(
            f"{folder.path(file)} has no image in its place, but {folder.path(image)}, which has "
            "no labels, has its name; put both in corresponding folders, or rename one of them."
        )


def _agree(splits: Sequence[str], image: str) -> bool:
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
        raise UserError(
            f"{folder.path(file)} could belong to {folder.path(images[0])} or "
            f"{folder.path(images[1])}; rename one of them, or put the labels beside their image."
        )
    return images[0] if images else None


def match_names(
    folder: Folder,
    ledger: Ledger,
    names: Iterable[str],
    near: Sequence[str] = ("",),
    source: str = "",
) -> Dict[str, str]:
    """Find the images that names in a file mean.

    Args:
        names: paths, which may be of another machine, or names with or without their endings.
        near: folders that they may be relative to, the most certain one first.
        source: the file that lists them, if more than half of them must be there.

    Returns:
        name -> image; names without an image are missing.

    Raises:
        UserError: if a name could mean two images, or two names mean one.
    """
    found: Dict[str, str] = {}
    names = list(dict.fromkeys(names))
    for name in names:
        image = _direct(folder, name, near)
        if image is not None:
            found[name] = image
    taken, places = set(found.values()), _places(folder, names, near, found)
    has_paths = any("/" in name for name in found)  # so that folders in other names count as well
    by_image: Dict[str, str] = {}
    where = f"{folder.path(source)}: " if source else ""
    for name in names:
        image = None
        if name not in found:
            home = places[os.path.dirname(name)]
            image = _by_name(folder, name, near, taken, home, has_paths, where)
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
    if source:
        missing = [name for name in names if name not in found]
        kind = f"images that {folder.path(source)} names are not there"
        ledger.check_share(kind, missing, len(names), "correct the names, or add the images")
    return found


def _places(folder: Folder, names: Sequence[str], near: Sequence[str], found: Dict) -> Dict:
    """Return, for each folder in names, the folders that its images must be in: those in which
    some were found, and those of this name that are there.
    """
    places = collections.defaultdict(set)
    for name, image in found.items():
        places[os.path.dirname(name)].add(os.path.dirname(image))
    folders = {os.path.dirname(image) for image in folder.names.images}
    for home in {os.path.dirname(name) for name in names} - {""}:
        places[home] |= {relative_path(os.path.join(n, home), "") for n in near} & folders
    return places


def _direct(folder: Folder, name: str, near: Sequence[str]) -> Optional[str]:
    """Return the image at exactly the path that a name says."""
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
) -> Optional[str]:
    """Return the image whose path ends as a name does, with as many folders as possible.

    Args:
        places: paths at which images of the same folder were found.
        strict: whether at least one folder of a path must agree.
        where: begins the sentences of errors.
    """
    index, name = folder.names, name.replace("\\", "/")
    base = name.rpartition("/")[2]
    # The folders of another machine, also of one with Windows, say nothing of splits.
    splits = () if os.path.isabs(name) or _DRIVE.match(name) else folder_splits(name)
    for images, key in (
        (index.base.get(base) or index.stem.get(base, ()), str),
        (index.plain_base.find(base) or index.plain_stem.find(base), plain),
    ):
        images = [i for i in images if i not in taken and _agree(splits, i)]
        if places and "/" in name:
            images = [i for i in images if os.path.dirname(i) in places]
        if not images:
            continue
        steps = [key(x) for x in name.split("/")[:-1]]
        tails = [_common_tail([key(x) for x in i.split("/")[:-1]], steps) for i in images]
        if strict and "/" in name and not places and not max(tails):
            continue
        images = [i for i, tail in zip(images, tails) if tail == max(tails)]
        if len(images) > 1:
            images = [i for i in images if any(n and i.startswith(f"{n}/") for n in near)] or images
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


def _common_tail(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many of the last steps of two paths agree."""
    pairs = list(zip(reversed(a), reversed(b)))
    return next((n for n, (x, y) in enumerate(pairs) if x != y), len(pairs))


def _index(images: Iterable[str], key) -> Dict[Any, List[str]]:
    index = collections.defaultdict(list)
    for image in images:
        index[key(image)].append(image)
    return dict(index)


def plain(name: str) -> str:
    """Return a name without what programs change in it: quoting and the case of letters."""
    name = unicodedata.normalize("NFC", unquote(name))
    return name.casefold().replace(" ", "_")


def find_area(file: str) -> Tuple[str, ...]:
    """Return the folders of a file without words such as "images" and "labels"."""
    return _find_area(os.path.dirname(file))


@functools.lru_cache(maxsize=4096)
def _find_area(folder: str) -> Tuple[str, ...]:
    steps = []
    for step in folder.casefold().split("/"):
        words = [SPLITS.get(w, w) for w in re.split(r"[\W_]+", step) if w and w not in AREAS]
        steps += [" ".join(words)] if words else []
    return tuple(steps)


def split_words(text: str) -> List[str]:
    """Return the splits that the words of a name speak of."""
    words = re.findall(r"[a-z]+", text.lower())
    return list(dict.fromkeys(SPLITS[w] for w in words if w in SPLITS))


def folder_splits(file: str) -> List[str]:
    """Return the splits that the folders of a file are named after, the outermost first:
    "train2017", "val" and "images_test" are, "train_station" is not.
    """
    return list(filter(None, map(read_split, file.split("/")[:-1])))


def read_split(text: str) -> str:
    """Return the split that a folder, or a value, is named after, or ""."""
    words = [w for w in re.split(r"[\W_\d]+", text.lower()) if w and w not in AREAS]
    return SPLITS.get(words[0], "") if len(words) == 1 else ""


def decode(data: bytes, path: str, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with its mark, or raise UserError."""
    try:
        is_wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return data.decode("utf-16" if is_wide else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8.") from error


def relative_path(path: str, root: str) -> str:
    """Return a path relative to a folder with "/", "" for the folder itself. A path on another
    drive of Windows stays absolute.
    """
    path = os.path.abspath(path)
    with contextlib.suppress(ValueError):
        path = os.path.relpath(path, os.path.abspath(root))
    return "" if path == "." else path.replace(os.sep, "/")


def is_inside(path: str, folder: str) -> bool:
    """Return whether a path is a folder or lies in it, after following links."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on another drive of Windows
        return False


def get_suffix(file: str) -> str:
    """Return the ending of a name, in lower case with its dot."""
    return os.path.splitext(file)[1].lower()


def get_stem(file: str) -> str:
    """Return the name of a file without its ending."""
    return os.path.splitext(os.path.basename(file))[0]
