"""A validation part, split off a data set: seeded, by classes, without copies on both sides."""

import collections
import os
import random
import re
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tood.data.copies import AUGMENTED, find_copies
from tood.utils.errors import UserError


class Split(NamedTuple):
    """Two parts of a data set."""

    train: Dict  # "images", "annotations" and "categories"
    val: Dict
    num_copies: int  # images of the same content as an earlier one


def split_data(
    content: Dict,
    image_root: str,
    *,
    share: float = 0.2,
    seed: int = 1,
    group: str = "",
) -> Split:
    """Split off a validation part.

    Images of the same content stay together, and so do Roboflow's augmented copies. Within that,
    each part gets its share of the images of each class, the rarest first (iterative
    stratification: Sechidis, Tsoumakas, Vlahavas 2011).

    Args:
        content: as :func:`tood.data.annotations.read_annotations` returns it.
        image_root: folder of the images.
        share: fraction of the images that become the validation part.
        seed: decides between images that are as good.
        group: regular expression on file names. Images for which it finds the same text, or the
            same first group of it, stay together: those of a video, of a patient.

    Raises:
        UserError: for a share or an expression that cannot be used, or too few images.
    """
    if not 0 < share < 1:
        raise UserError(f"The share of the validation part is {share}; it must be between 0 and 1.")
    groups, num_copies = _group_images(content, image_root, group)
    if len(groups) < 2:
        raise UserError(
            f"{image_root} contains {len(groups)} kind of images, too few to split; name data to "
            "validate on with --val-data."
        )
    chosen = _stratified(groups, _classes_by_image(content), share, random.Random(seed))
    return _make_split(content, chosen, num_copies)


def draw_part(
    content: Dict, image_root: str, *, share: float, seed: int = 2, group: str = ""
) -> Split:
    """Draw a part at random: other than :func:`split_data`, without regard to classes, so that its
    images are like any others of their kind, as a guarantee needs. Images that
    :func:`split_data` keeps together stay together.

    Args:
        content, image_root, group: see :func:`split_data`.
        share: fraction of the images, or of the groups of images, that are drawn.
        seed: random seed of the draw.

    Returns:
        the rest as "train", the part as "val".

    Raises:
        UserError: for a share or an expression that cannot be used, or too few images.
    """
    if not 0 < share < 1:
        raise UserError(f"--calibration-share is {share}; it must be between 0 and 1.")
    groups, num_copies = _group_images(content, image_root, group)
    number = max(1, round(share * len(groups)))
    if number >= len(groups):
        raise UserError(
            f"{image_root} contains {len(groups)} kind of images, too few for a "
            f"--calibration-share of {share:g}; omit it, or add images."
        )
    chosen = random.Random(seed).sample(groups, number)
    return _make_split(content, [i for one in chosen for i in one], num_copies)


def _group_images(content: Dict, image_root: str, group: str) -> Tuple[List[List[int]], int]:
    """Return the indices of images that must stay together, and the number of copies."""
    names = [image["file_name"] for image in content["images"]]
    copies = find_copies([os.path.join(image_root, name) for name in names])
    return find_groups(names, copies, group), len(names) - len(set(copies))


def _make_split(content: Dict, chosen: Iterable[int], num_copies: int) -> Split:
    """Return the images that are not chosen, by their indices, and those that are."""
    val = {content["images"][i]["id"] for i in chosen}
    train = {image["id"] for image in content["images"]} - val
    return Split(_part(content, train), _part(content, val), num_copies)


def find_groups(names: Sequence[str], copies: Sequence[int], group: str = "") -> List[List[int]]:
    """Return the indices of images that must stay together, for each such group.

    Args:
        names: names of the files.
        copies: result of :func:`tood.data.copies.find_copies`.
        group: regular expression, see :func:`split_data`.

    Raises:
        UserError: for an expression that cannot be used, or that no name matches.
    """
    try:
        pattern = re.compile(group) if group else None
    except re.error as error:
        raise UserError(f"--group {group} is not a regular expression ({error}).") from error
    if pattern and not any(map(pattern.search, names)):
        raise UserError(f"--group {group} matches the name of no image, for example {names[0]}.")
    parent = list(copies)

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first: Dict[Tuple[str, str], int] = {}
    for i, name in enumerate(names):
        for key in _keys(name, pattern):
            a, b = root(first.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    groups = collections.defaultdict(list)
    for i in range(len(names)):
        groups[root(i)].append(i)
    return list(groups.values())


def _keys(name: str, pattern: Optional["re.Pattern"]) -> Iterator[Tuple[str, str]]:
    augmented = AUGMENTED.match(name)
    if augmented:
        yield "photograph", augmented[1]
    found = pattern.search(name) if pattern else None
    if found:
        yield "group", found[1] if pattern.groups and found[1] is not None else found[0]


def _classes_by_image(content: Dict) -> List[List]:
    """Return the categories of each image, (None,) for none."""
    found = collections.defaultdict(set)
    for annotation in content["annotations"]:
        found[annotation["image_id"]].add(annotation["category_id"])
    return [sorted(found[i["id"]], key=str) or [None] for i in content["images"]]


def _stratified(
    groups: Sequence[Sequence[int]], classes: Sequence[List], share: float, rng: random.Random
) -> List[int]:
    """Return the images of the validation part."""
    counts = [collections.Counter(c for i in group for c in classes[i]) for group in groups]
    wanted_val = collections.Counter()
    for count in counts:
        wanted_val.update({c: n * share for c, n in count.items()})
    wanted_train = {c: n * (1 - share) / share for c, n in wanted_val.items()}
    room = share * sum(map(len, groups))  # for images of the validation part
    left = list(range(len(groups)))
    rng.shuffle(left)
    val = []
    while left:
        remaining = collections.Counter(c for g in left for c in counts[g])
        rarest = min(remaining, key=lambda c: (remaining[c], str(c)))
        # Large groups first: they are hard to place later.
        now = sorted((g for g in left if counts[g][rarest]), key=lambda g: -len(groups[g]))
        for g in now:
            needed = wanted_val[rarest] - counts[g][rarest] / 2
            goes_to_val = (
                needed >= 0
                and wanted_val[rarest] > wanted_train[rarest] - 1e-9
                and room >= len(groups[g]) / 2
            )
            for c, n in counts[g].items():
                (wanted_val if goes_to_val else wanted_train)[c] -= n
            if goes_to_val:
                room -= len(groups[g])
                val.append(g)
        left = [g for g in left if g not in set(now)]
    if not val:  # each class is too rare
        val = [min(range(len(groups)), key=lambda g: len(groups[g]))]
    return [i for g in val for i in groups[g]]


def _part(content: Dict, image_ids: set) -> Dict:
    return {
        "images": [i for i in content["images"] if i["id"] in image_ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in image_ids],
        "categories": content["categories"],
    }
