"""A folder of a data set: its files, each real folder once."""

import collections
import contextlib
import functools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Set, Tuple

from tood.app.convert.names import Names, get_suffix
from tood.data.annotations import is_wide, parse_json
from tood.data.images import IMAGE_ERRORS, IMAGE_SUFFIXES, probe_image
from tood.utils.errors import UserError, format_reason
from tood.utils.folders import is_drawing, is_output
from tood.utils.reading import MAX_LABEL, MAX_TEXT, guard_reading, open_regular, read_regular

STATING = (".csv", ".tsv", ".yaml", ".yml", ".json", ".xml", ".data")
HEAD = 4096  # bytes by which formats are recognized
OUTPUT, DRAWING = "an output folder of tood, not data", "a drawing by tood, not data"
MASKS = frozenset(("SegmentationClass", "SegmentationObject"))  # folders of Pascal VOC
MARKED = (".jpg", ".jpeg", ".png")  # images that may be drawings
MAX_FILES = 2_000_000
TASKS = ("detect", "segment", "pose", "obb", "classify")
READERS = 16
_INTERESTING = re.compile(rb'"(shapes|imagePath|images|annotations)"\s*:')


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
        masks = {f for f in self.images if not MASKS.isdisjoint(f.split("/")[:-1])}
        self.omit(masks, "masks of Pascal VOC, not images")

    def omit(self, images: Set[str], reason: str) -> None:
        """Ignore some of the images."""
        self.ignored.update(dict.fromkeys(sorted(images), reason))
        self.images = [image for image in self.images if image not in images]
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
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    self._hide(entry, file)
                elif _is_runs(entry):
                    self.ignored[f"{file}/"] = "what Ultralytics wrote, not data"
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


def _is_runs(entry: os.DirEntry) -> bool:
    """Return whether a folder is Ultralytics' of trainings, detections and drawings."""
    if entry.name != "runs" or not entry.is_dir(follow_symlinks=False):
        return False
    return any(os.path.isdir(os.path.join(entry.path, task)) for task in TASKS)


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
