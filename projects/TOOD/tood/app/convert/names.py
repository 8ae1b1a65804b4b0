"""Images by their names, and the splits that names of files and folders speak of."""

import collections
import functools
import os
import re
import unicodedata
from typing import Any, Dict, Iterable, List, Sequence, Tuple
from urllib.parse import unquote

SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "evaluation", "dev", "eval"), "val"),
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
    return SPLITS.get(bare_word(text), "")


def bare_word(text: str) -> str:
    """Return the one word of a folder's name, without numbers and words as "set", or ""."""
    words = [w for w in re.split(r"[\W_\d]+", text.lower()) if w and w not in AREAS]
    words = [w for w in words if w != "split"] or words
    return re.sub(r"(set|data|split|images?)$", "", words[0]) if len(words) == 1 else ""


def get_suffix(file: str) -> str:
    """Return the ending of a name, in lower case with its dot."""
    return os.path.splitext(file)[1].lower()


def get_stem(file: str) -> str:
    """Return the name of a file without its ending."""
    return os.path.splitext(os.path.basename(file))[0]
