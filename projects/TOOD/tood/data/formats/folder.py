"""A folder that may hold a data set: its files, and the images that names in it may mean."""

import collections
import os
import re
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from tood.data.images import IMAGE_ERRORS, IMAGE_SUFFIXES, probe_image
from tood.utils.errors import UserError, reason_of

# Names of parts, of folders and in file names.
PARTS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MAX_DEPTH = 6  # of folders
# More images without labels, or labels without images, than this are a mistake, not negatives.
MAX_LONELY = 0.5
NOT_IMAGES = frozenset((".pdf", ".eps", ".ps"))
CLASS_FILES = ("classes.txt", "labels.txt", "labelmap.txt")
NOT_CLASSES = ("__ignore__", "_background_", "background")
# Label Studio puts such a prefix before the names of uploaded files.
_PREFIX = re.compile(r"^[0-9a-f]{8}-")


class Part(NamedTuple):
    """A part of a data set, not read yet."""

    name: str  # "train", "val", "test", or ""
    source: str  # the file or folder that states its boxes
    read: Callable[[], Tuple[Dict, List[str]]]  # COCO's lists, and remarks


class Folder:
    """The files below a folder, relative to it with "/", without hidden ones."""

    def __init__(self, root: str, only: Optional[str] = None):
        """
        Args:
            root: path.
            only: the one file that may state boxes, or None for all.
        """
        self.root, self.files = root, []
        for path, folders, names in os.walk(root, followlinks=True):
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            depth = 0 if relative == "." else relative.count("/") + 1
            shown = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
            folders[:] = shown if depth < MAX_DEPTH else []
            prefix = "" if relative == "." else relative + "/"
            self.files += [prefix + name for name in sorted(names) if not name.startswith(".")]
        self.images = [f for f in self.files if _suffix(f) in IMAGE_SUFFIXES - NOT_IMAGES]
        if only is not None:
            kept = os.path.basename(only)
            stating = (".csv", ".yaml", ".yml", ".json", ".xml")
            self.files = [f for f in self.files if f == kept or _suffix(f) not in stating]
        self._by_path = set(self.images)
        self._by_name = collections.defaultdict(list)
        for image in self.images:
            for key in {os.path.basename(image), _stem(image)}:
                self._by_name[key].append(image)

    def path(self, file: str) -> str:
        """Return the path of one of its files."""
        return os.path.join(self.root, file)

    def with_suffix(self, *suffixes: str) -> List[str]:
        """Return its files with one of some endings, in lower case with their dot."""
        return [f for f in self.files if _suffix(f) in suffixes]

    def summary(self) -> str:
        """Describe what is in it, for a sentence."""
        if not self.files:
            return "no files"
        counts = collections.Counter(_suffix(f) or "no ending" for f in self.files)
        texts = [f"{count} of {suffix}" for suffix, count in counts.most_common(4)]
        return f"{len(self.files)} files ({', '.join(texts)})"

    def find_image(self, name: str, near: Sequence[str] = ()) -> Optional[str]:
        """Find the image that a name in an annotation means.

        Args:
            name: a path, which may be of another machine, or a name with or without its ending.
            near: folders, relative to the root, in which it is looked for first.

        Returns:
            the image, or None where there is none or where the name alone does not tell.
        """
        name = name.replace("\\", "/")
        if os.path.isabs(name):
            relative = os.path.relpath(name, self.root).replace(os.sep, "/")
            if relative in self._by_path:
                return relative
        for folder in (*near, "", "images"):
            path = os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")
            if path in self._by_path:
                return path
        base = name.rpartition("/")[2]
        for key in (base, _PREFIX.sub("", base)):
            found = self._by_name.get(key, ())
            within = [x for x in found if any(x.startswith(f"{n}/") for n in near if n)]
            for candidates in (within, found):
                if len(candidates) == 1:
                    return candidates[0]
        return None

    def size_of(self, image: str) -> Tuple[int, int]:
        """Return width and height in pixels, upright.

        Raises:
            UserError: for an image that cannot be read.
        """
        try:
            return probe_image(self.path(image))
        except IMAGE_ERRORS as error:
            raise UserError(
                f"The image {self.path(image)} cannot be read ({reason_of(error)}); repair it or "
                "take it out of the folder."
            ) from error


def stated_classes(folder: Folder) -> List[str]:
    """Return the names of classes, in their order, of a ``classes.txt``, ``labels.txt`` (LabelMe)
    or ``labelmap.txt`` (CVAT); none without such a file.
    """
    files = [f for f in folder.with_suffix(".txt") if os.path.basename(f) in CLASS_FILES]
    if len(files) != 1:
        return []
    with open(folder.path(files[0]), encoding="utf-8-sig", errors="replace") as f:
        lines = [line.split(":")[0].strip() for line in f if not line.startswith("#")]
    return [name for name in dict.fromkeys(lines) if name and name not in NOT_CLASSES]


class Lists:
    """COCO's lists, filled image by image; classes by names that nothing orders are sorted."""

    def __init__(self, class_names: Optional[Sequence[str]] = None, *, stated: Sequence[str] = ()):
        """
        Args:
            class_names: in their order, where the objects have numbers.
            stated: names in an order to keep (:func:`stated_classes`), where objects have names.
        """
        self.class_names, self.stated = class_names, stated
        self.images: List[Dict] = []
        self.annotations: List[Dict] = []

    def add(self, image: str, size: Tuple[int, int], objects: Sequence[Tuple]) -> None:
        """
        Args:
            image: file name.
            size: (width, height).
            objects: (class, xyxy) or (class, xyxy, iscrowd); a class is a name, or a number where
                the names are known.
        """
        image_id = len(self.images) + 1
        width, height = size
        self.images.append({"id": image_id, "file_name": image, "width": width, "height": height})
        for label, (x1, y1, x2, y2), *rest in objects:
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                    "iscrowd": int(bool(rest and rest[0])),
                }
            )

    def content(self) -> Dict:
        """Return "images", "categories" and "annotations"."""
        names = self.class_names
        if names is None:
            found = {a["category_id"] for a in self.annotations}
            names = list(self.stated) if found <= set(self.stated) else sorted(found)
            ids = {name: i for i, name in enumerate(names)}
            for annotation in self.annotations:
                annotation["category_id"] = ids[annotation["category_id"]]
        categories = [{"id": i, "name": str(name)} for i, name in enumerate(names)]
        return {
            "images": self.images,
            "categories": categories,
            "annotations": self.annotations,
        }


def part_of(file: str) -> str:
    """Return the part that a path speaks of: by its folders, or by a word of its name; or ""."""
    *folders, name = file.lower().split("/")
    words = re.findall(r"[a-z]+", os.path.splitext(name)[0])
    for word in (*reversed(folders), *reversed(words)):
        if word in PARTS:
            return PARTS[word]
    return ""


def check_lonely(source: str, kind: str, lonely: Sequence[str], total: int) -> List[str]:
    """Return a remark on files that have no partner, if there are any.

    Raises:
        UserError: where that is more than half of all.
    """
    if not lonely:
        return []
    if len(lonely) > MAX_LONELY * total:
        raise UserError(
            f"{source}: {len(lonely)} of {total} {kind}, for example {lonely[0]}; more than half "
            "are taken for a mistake: put images and labels of the same names together."
        )
    return [f"{len(lonely)} of {total} {kind}, for example {lonely[0]}"]


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]
