"""Check data sets: what they hold, and what is wrong with them::

    tood check photos/
    tood check photos:train photos:val
    tood check train.json:images --output data.png

With --output, the images are also drawn as a training would see them. It exits with 1 where
something must be corrected before a training.
"""

import argparse
from typing import Dict, List, NamedTuple, Sequence

from tood.app.plan.rules import STRIDE, choose_input
from tood.data.annotations import class_names, read_annotations
from tood.data.check import (
    DataReport,
    Finding,
    InputSize,
    check_data,
    check_images,
    check_overlap,
    image_paths,
)
from tood.data.entries import parse_own_data
from tood.data.formats import find_parts, split_entry
from tood.utils.arguments import parse_arguments
from tood.utils.errors import UserError, run_main


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="tood check",
        description=__doc__.split("::")[0],
        epilog=__doc__.split("::", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="a folder, FOLDER:PART or a file")
    parser.add_argument("--output", metavar="PNG", help="draw the first images, augmented")
    parser.add_argument("--overwrite", action="store_true", help="a file that already exists")
    return parse_arguments(parser, argv)


class Checked(NamedTuple):
    """A data set that was looked through."""

    entry: str
    content: Dict
    input_size: InputSize  # by which small objects are recognized
    report: DataReport

    @property
    def paths(self) -> List[str]:
        """Paths of its images."""
        return image_paths(self.content["images"], parse_own_data(self.entry).image_root)

    def with_findings(self, findings: Sequence[Finding]) -> "Checked":
        """Return it with more in its report."""
        report = self.report._replace(findings=[*self.report.findings, *findings])
        return self._replace(report=report)


def main(args):
    entries = [entry for data in args.data for entry in entries_of(data).values()]
    checked = _with_overlaps([check_entry(entry) for entry in entries])
    for one in checked:
        print(describe(one))
    wrong = [one.report for one in checked if one.report.errors]
    if wrong:
        raise UserError(wrong[0].error_sentence())
    if args.output:
        draw(entries, args)


def draw(entries, args):
    # Here, for the rest needs no PyTorch, which takes seconds to import.
    from tood.app.view import draw_training_images
    from tood.config.zoo import get_config_file

    config = get_config_file("tood_R18_GN_small_data")
    print(
        draw_training_images(
            config, train_data=entries, output=args.output, overwrite=args.overwrite
        )
    )


def entries_of(data: str) -> Dict[str, str]:
    """
    Args:
        data: what a user names: an entry of ``DATASETS``, or a folder of several parts.

    Returns:
        an entry for each part, by "train", "val", "test" or "".

    Raises:
        UserError: for what is no data set.
    """
    own_data = parse_own_data(data)
    if own_data is None:
        raise UserError(f"There is no folder or file {data}; name the folder of a data set.")
    path, part = split_entry(data)
    if own_data.json_file.endswith(".json") or part:
        return {part: data}
    return {name: f"{path}:{name}" if name else path for name in find_parts(path)[1]}


def check_entry(entry: str) -> Checked:
    """Read a data set, its images' heads as well.

    Raises:
        UserError: for what cannot be read.
    """
    own_data = parse_own_data(entry)
    content = read_annotations(*own_data, to_train=True)
    input_size = choose_input(content)
    report = check_data(entry, content, input_size, STRIDE)
    found = check_images(content["images"], own_data.image_root)
    return Checked(entry, content, input_size, report).with_findings(found)


def _with_overlaps(checked: List[Checked]) -> List[Checked]:
    """Add to the reports on other parts which of their images are trained on."""
    trained = [x for x in checked if split_entry(x.entry)[1] == "train"]
    paths = [path for x in trained for path in x.paths]
    return [
        x if x in trained or not paths else x.with_findings(check_overlap(paths, x.paths))
        for x in checked
    ]


def describe(checked: Checked) -> str:
    """Return the report, with the number of objects of each class."""
    content = checked.content
    names = class_names(content)
    ids = sorted(c["id"] for c in content["categories"])
    counts = dict.fromkeys(ids, 0)
    for annotation in content["annotations"]:
        if annotation["category_id"] in counts:
            counts[annotation["category_id"]] += 1
    texts = [f"{name} {counts[i]}" for i, name in zip(ids, names)]
    more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
    text = f"{checked.report}\nObjects: {', '.join(texts[:20])}{more}."
    tiles = checked.input_size.tiles
    if tiles.size:
        text += (
            "\nObjects are small for images of this size: tood train uses tiles of "
            f"{tiles.size} pixels that overlap by {tiles.overlap}."
        )
    return text


def run(_, argv):
    cli(argv)


def cli(argv=None):
    run_main(lambda: main(parse_args(argv)))
