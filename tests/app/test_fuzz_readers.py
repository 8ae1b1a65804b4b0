"""Every reader of data, with valid files of which bytes or values were changed: a result, or one
sentence that ends the program. A few thousand cases, the same in every run.
"""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tood.app.check import check
from tood.app.convert.command import convert
from tood.utils.errors import UserError

SIZE = (64, 48)
XML = (
    '<?xml version="1.0" encoding="utf-8"?><annotation><filename>0.png</filename><size><width>64'
    "</width><height>48</height></size><object><name>disc</name><difficult>0</difficult><bndbox>"
    "<xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
)
CVAT = (
    '<?xml version="1.0" encoding="utf-8"?><annotations><meta><task><labels><label><name>disc'
    '</name></label></labels></task></meta><image id="0" name="0.png" width="64" height="48">'
    '<box label="disc" xtl="5" ytl="6" xbr="20" ybr="30" rotation="10"/><polygon label="disc" '
    'points="1,2;30,2;30,20"/><ellipse label="disc" cx="20" cy="20" rx="5" ry="6"/></image>'
    '<track label="disc"><box frame="1" outside="0" xtl="5" ytl="6" xbr="20" ybr="30"/></track>'
    "</annotations>"
)
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(2)],
    "categories": [{"id": 1, "name": "disc", "supercategory": "x"}],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 6, 20, 30], "area": 9, "iscrowd": 0}
        for i in range(2)
    ],
}
LABELME = {
    "version": "5.0",
    "imagePath": "0.png",
    "imageWidth": 64,
    "imageHeight": 48,
    "imageData": "AAAA",
    "shapes": [
        {"label": "disc", "shape_type": "rectangle", "group_id": 1, "points": [[5, 6], [20, 30]]},
        {"label": "disc", "shape_type": "circle", "group_id": None, "points": [[25, 26], [20, 30]]},
    ],
}
DATA_YAML = "path: .\ntrain: [images]\nval: images/1.png\nnc: 2\nnames: {0: disc, 1: star}\n"
# name -> {file: text}; the first file is changed.
LAYOUTS = {
    "coco": {"a.json": json.dumps(COCO)},
    "labelme": {"0.json": json.dumps(LABELME)},
    "voc": {"0.xml": XML},
    "cvat": {"annotations.xml": CVAT},
    "csv": {
        "a.csv": "filename,xmin,ymin,xmax,ymax,label,width,height,split\n"
        "0.png,5,6,20,30,disc,64,48,train\n1.png,5,6,20,30,disc,64,48,val\n"
    },
    "descriptions": {
        "class-descriptions.csv": "/m/1,disc\n/m/2,star\n",
        "a.csv": "0.png,5,6,20,30,/m/1\n1.png,5,6,20,30,/m/2\n",
    },
    "labels": {"labels/0.txt": "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.5 0.1 0.5 0.5\n"},
    "yaml": {
        "data.yaml": DATA_YAML,
        "labels/0.txt": "0 0.5 0.5 0.2 0.2\n",
        "labels/1.txt": "1 0.5 0.5 0.2 0.2\n",
    },
    "obj": {
        "obj.data": "classes = 2\ntrain = train.txt\nnames = obj.names\n",
        "obj.names": "disc\nstar\n",
        "train.txt": "images/0.png\nimages/1.png\n",
        "labels/0.txt": "0 0.5 0.5 0.2 0.2\n",
    },
    "list": {
        "train.txt": "images/0.png\nimages/1.png\n",
        "classes.txt": "disc\nstar\n",
        "labels/0.txt": "0 0.5 0.5 0.2 0.2\n",
    },
    "classes": {"classes.txt": "disc\nstar\n", "labels/0.txt": "0 0.5 0.5 0.2 0.2\n"},
}
LAYOUTS["labels"]["classes.txt"] = "disc\nstar\n"
IN_FOLDERS = ("labels", "yaml", "obj", "list", "classes")  # images in "images"

# Values that some parser or writer has stumbled on.
HARD = [
    *("", " ", "-1", "nan", "inf", "-inf", "1e400", "-1e308", "9" * 23, "9" * 400, "9" * 5000),
    *("0x" + "f" * 5000, "²", "1_0", "2001-01-01", "true", "null", "~", "[1]", "{a: 1}", "&a [*a]"),
    *("*a", "!!python/name:os.system", "!!binary x", "<<", "é" * 300, "\0", "../../x", "/dev/zero"),
    *("a/" * 3000, "\\", "\"'", "<!ENTITY a 'b'>", "&a;", "\ud800", "1" * 200_000, "[" * 900),
]
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**22, -1, 0, 1e308, 2**53 + 1]))
values = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.sampled_from(HARD),
    st.text(max_size=6),
    st.lists(numbers, max_size=5),
    st.dictionaries(st.text(max_size=3), numbers, max_size=2),
    st.integers(50, 960).map(lambda depth: nest(depth)),
)
fuzzed = settings(derandomize=True, database=None)


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("readers")
    for name, files in LAYOUTS.items():
        images = root / name / ("images" if name in IN_FOLDERS else "")
        for i in range(2):
            images.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE, (i, 9, 9)).save(images / f"{i}.png")
        for file, text in files.items():
            (root / name / file).parent.mkdir(exist_ok=True)
            (root / name / file).write_text(text)
    return root


def look_through(data, output=None):
    """Check data, and write them if they are accepted; return the sentence of a refusal, or ""."""
    try:
        checked = check(str(data))
        str(checked).encode()
        sentence = checked.error
        if not sentence and output is not None:
            for to in ("coco", "yolo", "voc", "labelme"):
                convert(str(data), output=str(output / to), to=to, overwrite=True)
    except UserError as error:
        sentence = error.sentence()
    assert "\n" not in sentence and "Traceback" not in sentence and len(sentence) < 2000
    return sentence


def change_file(path, content, look):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        return look()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", LAYOUTS)
def test_valid_files_are_read(name, folders, tmp_path):
    assert look_through(folders / name, tmp_path) == ""


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_bytes(name, folders):
    path = folders / name / next(iter(LAYOUTS[name]))
    whole = path.read_bytes()
    pieces = st.one_of(
        st.binary(max_size=4), st.sampled_from(HARD).map(lambda x: x.encode(errors="surrogatepass"))
    )

    @settings(fuzzed, max_examples=25)
    @given(st.integers(0, len(whole)), st.integers(0, 9), pieces)
    def change(start, length, piece):
        content = whole[:start] + piece + whole[start + length :]
        change_file(path, content, lambda: look_through(folders / name))

    change()


@pytest.mark.parametrize("name", [x for x in LAYOUTS if x not in ("coco", "labelme")])
def test_other_values_in_texts(name, folders, tmp_path):
    """Each value is one that stands between the marks of its format."""
    path = folders / name / next(iter(LAYOUTS[name]))
    text = path.read_text()
    spans = [m.span() for m in re.finditer(r"[^\s,;=\"'<>{}\[\]:]+", text)]

    @settings(fuzzed, max_examples=30)
    @given(st.sampled_from(spans), st.sampled_from(HARD))
    def change(span, value):
        content = text[: span[0]] + value + text[span[1] :]
        encoded = content.encode(errors="surrogatepass")
        change_file(path, encoded, lambda: look_through(folders / name, tmp_path))

    change()


@pytest.mark.parametrize("name", ["coco", "labelme"])
def test_other_values_in_json(name, folders, tmp_path):
    path = folders / name / next(iter(LAYOUTS[name]))
    content = json.loads(path.read_text())
    places = list(list_places(content))

    @settings(fuzzed, max_examples=120)
    @given(st.sampled_from(places), values)
    def change(place, value):
        changed = json.loads(json.dumps(content))
        inner = changed
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
        encoded = json.dumps(changed).encode()
        change_file(path, encoded, lambda: look_through(folders / name, tmp_path))

    change()


def list_places(content, before=()):
    """Yield the steps to each value."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, (dict, list)):
            yield from list_places(value, (*before, key))


def test_other_values_in_yaml(folders):
    path = folders / "yaml" / "data.yaml"
    content = yaml.safe_load(DATA_YAML)

    @settings(fuzzed, max_examples=60)
    @given(st.sampled_from([*content, "kpt_shape"]), values)
    def change(key, value):
        text = json.dumps({**content, key: value})  # which is YAML, too
        change_file(path, text.encode(), lambda: look_through(folders / "yaml"))

    change()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".tif"])
def test_other_bytes_of_images(suffix, tmp_path):
    """Pillow decodes these formats by different code."""
    path = tmp_path / f"0{suffix}"
    Image.radial_gradient("L").resize(SIZE).save(path)
    (tmp_path / "0.xml").write_text(XML)
    whole = path.read_bytes()

    @settings(fuzzed, max_examples=60)
    @given(st.integers(0, len(whole)), st.integers(0, 9), st.binary(max_size=9))
    def change(start, length, piece):
        content = whole[:start] + piece + whole[start + length :]
        change_file(path, content, lambda: look_through(tmp_path))

    change()
