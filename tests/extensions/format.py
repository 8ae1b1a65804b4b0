"""A format of data sets: a text file per image, with lines "class x1 y1 x2 y2" in pixels."""

from tood.app.convert import door
from tood.app.convert.build import Format, Labels, Object, build_contents, match_labels


def find_toy(folder):
    return folder.with_suffix(".toy")


def read_toy(folder, files, ledger):
    labels = {}
    for file in files:
        cells = [line.split() for line in folder.lines(file)]
        labels[file] = Labels([Object(name, tuple(map(float, box))) for name, *box in cells])
    return build_contents(folder, ledger, match_labels(folder, ledger, labels))


door.FORMATS.append(Format("Toy", find_toy, read_toy))
