"""The account of a data set: the role of each file, and where each object went."""

import collections
from typing import Dict, Iterable, List, Sequence, Set, Tuple

from tood.utils.errors import UserError, shorten

IMAGE, LABELS, CLASSES = "image", "labels", "list of classes"
LIST, CONFIGURATION, IGNORED = "list of images", "configuration", "ignored"
LEDGER = "ledger.json"  # file of it
NO_IMAGE = "its image is not there"
NO_LABELS = "images to test on without labels"
MAX_SHARE = 0.5  # more missing partners than this are a mistake, not negatives


class Ledger:
    """Roles of files and counts of objects.

    Three laws apply, which :meth:`close` checks: each file has one role; each image has at most
    one file of labels (tables label several images); and objects read = objects kept + objects
    ignored for a named reason.
    """

    def __init__(self, data: str):
        self.data = data
        self.files: Dict[str, Tuple[str, str]] = {}  # file -> (role, detail)
        self.objects_in = 0
        self.objects_out = 0
        self.ignored_objects: Dict[str, int] = collections.Counter()
        self.examples: Dict[str, str] = {}  # reason -> file
        self.notes: Dict[str, List[str]] = collections.defaultdict(list)  # text -> examples
        self.num_negatives = 0
        self.splits: Dict[str, Tuple[int, int]] = {}  # split -> (images, objects)

    def enter(self, file: str, role: str, detail: str = "") -> None:
        """Record the role of a file; raise UserError if it has another one."""
        if self.files.setdefault(file, (role, detail)) != (role, detail):
            first = " ".join(self.files[file]).strip()
            raise UserError(
                f"{self.data}: {file} is used twice, as {first} and as {role} {detail}".rstrip()
                + "; keep one of the two uses."
            )

    def ignore(self, files: Iterable[str], reason: str) -> None:
        """Record files that are not used, unless they have a role."""
        for file in files:
            self.files.setdefault(file, (IGNORED, reason))

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        """Count objects that are ignored."""
        if count:
            self.ignored_objects[reason] += count
            self.examples.setdefault(reason, example)

    def skip(self, reason: str, example: str, count: int = 1) -> None:
        """Count objects that a reader does not keep."""
        self.objects_in += count
        self.drop(reason, example, count)

    def note(self, text: str, example: str = "") -> None:
        """Count something unusual, which the table reports with its first example."""
        self.notes[text].append(example)

    def check_share(self, kind: str, lonely: Sequence[str], total: int, remedy: str) -> None:
        """Note files without a partner; raise UserError if they are more than half of all."""
        if len(lonely) > MAX_SHARE * total:
            raise UserError(
                f"{len(lonely)} of {total} {kind}, for example {lonely[0]}; more than half are "
                f"taken for a mistake: {remedy}."
            )
        if lonely:
            self.notes[f"{kind} ({len(lonely)} of {total})"] += lonely

    def orphans(self) -> List[str]:
        """Return the files of labels whose image is not there."""
        return [f for f, (_, detail) in self.files.items() if detail.startswith(NO_IMAGE)]

    def refuse_orphans(self) -> None:
        """Raise UserError if there are labels without an image, which a training must not skip."""
        orphans = self.orphans()
        if orphans:
            raise UserError(
                f"{self.data} has {len(orphans)} files of labels that belong to no image, for "
                f"example {orphans[0]}; add their images, or remove these files."
            )

    def close(self, files: Iterable[str], images: Dict[str, Set[str]]) -> None:
        """Check the laws.

        Args:
            files: those that exist.
            images: the images of each split.

        Raises:
            UserError: for a law that does not hold, with an example.
        """
        used = set().union(*images.values()) if images else set()
        unknown = [f for f in files if f not in self.files]
        unknown += [i for i in used if self.files.get(i, ("",))[0] != IMAGE]
        unknown += [f for f, x in self.files.items() if x[0] == IMAGE and f not in used]
        owners = collections.defaultdict(list)
        for file, (role, detail) in self.files.items():
            if role == LABELS and detail in self.files:
                owners[detail].append(file)
        doubled = [x for owned in owners.values() if len(owned) > 1 for x in owned]
        doubled += [owned[0] for image, owned in owners.items() if image not in used]
        left = self.objects_in - self.objects_out - sum(self.ignored_objects.values())
        if unknown or doubled or left:
            example = (unknown or doubled or [f"{left} objects"])[0]
            raise UserError(
                f"{self.data} cannot be accounted for, for example {example}; this is a mistake of "
                "the program, please report it with a list of your files."
            )

    def noted(self) -> List[Tuple[str, int, str]]:
        """Return what was ignored or is unusual: (what, count, example), the example may be ""."""
        return [
            (what if kind == "note" else f"{kind}: {what}", count, example)
            for kind, what, count, example in self._noted()
        ]

    def _noted(self) -> List[Tuple[str, str, int, str]]:
        reasons = collections.defaultdict(list)
        for file, (role, detail) in self.files.items():
            if role == IGNORED:
                reasons[detail].append(file)
        rows = [
            *(("ignored objects", k, n, self.examples[k]) for k, n in self.ignored_objects.items()),
            *(("ignored files", k, len(x), x[0]) for k, x in reasons.items()),
            *(("note", k, len(x), next(filter(None, x), "")) for k, x in self.notes.items()),
        ]
        return [(kind, shorten(k), number, shorten(x)) for kind, k, number, x in rows]

    def rows(self) -> List[Tuple[str, str]]:
        """Return the totals as rows of a table: a name, and a text."""
        counts = collections.Counter(role for role, _ in self.files.values())
        splits = [f"{name} {images}" for name, (images, _) in self.splits.items()]
        more = f", {self.num_negatives} without objects" if self.num_negatives else ""
        rows = [("images", f"{counts[IMAGE]}: {', '.join(splits)}{more}")]
        rows.append(
            ("objects", f"{self.objects_out} of {self.objects_in} in {counts[LABELS]} files")
        )
        for kind, what, count, example in self._noted():
            text = what if kind == "note" else f"{count}: {what}"
            rows.append((kind, f"{text}, e.g. {example}" if example else text))
        return rows

    def as_dict(self) -> Dict:
        """Return all of it for a JSON file."""
        return {
            "data": self.data,
            "splits": {k: {"num_images": i, "objects": n} for k, (i, n) in self.splits.items()},
            "negatives": self.num_negatives,
            "objects": {
                "read": self.objects_in,
                "kept": self.objects_out,
                "ignored": dict(self.ignored_objects),
            },
            "notes": {text: [x for x in found if x] for text, found in self.notes.items()},
            "files": {f: [role, detail] for f, (role, detail) in sorted(self.files.items())},
        }
