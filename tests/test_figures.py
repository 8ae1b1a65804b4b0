"""Tables of figures in README.md and docs/ name their origin and agree with each other.

A table of figures has at least three cells that are only numbers, with units, deviations or
intervals, apart from those of its first column. Tables of such cells that nobody measured are in
CHOSEN. Figures that follow from others of the pages, or from configs, are computed again.
"""

import contextlib
import functools
import itertools
import math
import re
import statistics
from datetime import datetime
from typing import List, NamedTuple

import pytest
import torch
from conftest import EXTENSIONS, ROOT
from count_cost import build, count_parameters
from detectron2.config import LazyConfig, instantiate

from tood import model_zoo

CHOSEN = {"docs/tiles.md: key", "docs/training.md: from `tood_R50_FPN_1x.yaml`"}
CITED = {"AP, COCO", "A", "M"}  # columns
UNITS = "to|of|those|certified|ms|s|MB|M|pixels"
FIGURE = re.compile(rf"\**[-+]?\d(?:[-\d\s.,±+()*%]|\b(?:{UNITS})\b)*")
PUBLISHED = re.compile(r"Published: .*\b(paper|authors|MMDetection)\b.*; not measured here\.")
MEASURED = re.compile(
    r"Measured: (?P<date>[A-Z]\w+ \d+)[^;,]*(?P<year>, \d{4}), [^;]*\b(cores?|machine|GPU)\b[^;]*;"
    r" [^;]*\bseeds?\b[^;]*; (?P<command>.+)"
)
# A block, or words in the text with the name of a program, a flag, a key or a test.
COMMAND = re.compile(r"^```bash|`[^`]*(\.py|tood |make |--|test_|[A-Z]\.[A-Z])[^`]*`", re.MULTILINE)
STUDENT = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764}  # 97.5 % quantiles by the number of pairs


class Table(NamedTuple):
    page: str
    above: str  # text of the section
    below: str
    head: List[str]
    rows: List[List[str]]

    @property
    def name(self):
        return f"{self.page}: {self.head[0]}"

    def columns(self):
        """Return pairs of a name and cells, without the first column."""
        cells = list(zip(*self.rows))
        return list(zip(self.head, cells))[1:]


def count(cells):
    """Return the number of figures."""
    return sum(bool(FIGURE.fullmatch(cell)) for cell in cells)


def read_tables(page, text):
    """Return the tables of a page that have figures."""
    tables = []
    blocks = re.compile("^```.*?^```", re.MULTILINE | re.DOTALL)
    text = blocks.sub(lambda block: block[0].replace("\n#", "\n #"), text)  # comments of a shell
    for section in re.split("^(?=#)", text, flags=re.MULTILINE):
        for found in re.finditer(r"^\|.*\n\|[-| ]+\|\n(\|.*\n)+", section, re.MULTILINE):
            lines = [line.strip()[1:-1].split("|") for line in found[0].splitlines()]
            head, _, *rows = ([cell.strip() for cell in line] for line in lines)
            above, below = section[: found.start()], section[found.end() :]
            tables.append(Table(page, above, below, head, rows))
    return [x for x in tables if sum(count(cells) for _, cells in x.columns()) >= 3]


@functools.cache
def read_pages():
    paths = [x for x in ("README.md", "docs/*.md", "docs/results/*.md") for x in ROOT.glob(x)]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(paths)}


@functools.cache
def read_all():
    """Return the tables of all pages whose figures were measured or cited."""
    tables = [table for page, text in read_pages().items() for table in read_tables(page, text)]
    assert CHOSEN <= {table.name for table in tables}
    return [table for table in tables if table.name not in CHOSEN]


def list_missing(table):
    """Return what the paragraph or list right below a table does not say."""
    block = table.below.strip("\n").split("\n\n")[0]
    items = [" ".join(item.split()) for item in re.split("^- ", block, flags=re.MULTILINE)]
    kinds = {name in CITED for name, cells in table.columns() if count(cells)}
    missing = []
    if True in kinds and not any(map(PUBLISHED.match, items)):
        missing.append("whose figures these are")
    if False in kinds:
        measured = [*filter(None, map(MEASURED.match, items))]
        missing += check_measured(table, measured[0]) if measured else ["how they were measured"]
    return missing


def check_measured(table, measured):
    datetime.strptime(measured["date"] + measured["year"], "%B %d, %Y")
    rows = str([table.head, *table.rows])
    places = {"above": table.above, "below": table.below, "in the table": rows}
    place = re.match(r"(the )?(command|test)s? (above|below|in the table)\.", measured["command"])
    if place is not None:
        return [] if COMMAND.search(places[place[3]]) else [f"a command {place[3]}"]
    named = re.match(r"command not recorded\.|(the )?commands? of \[", measured["command"])
    return [] if named else ["a command"]


def test_tables_of_figures_name_their_origin():
    missing = [(table.name, list_missing(table)) for table in read_all()]
    assert len(missing) > 40
    assert not [x for x in missing if x[1]]


def test_lines_that_are_removed_are_missed():
    lines = re.compile(r"^(- )?(Measured|Published): (.+\n)+?(?=\n|- )", re.MULTILINE)
    removed = 0
    for page, text in read_pages().items():
        for line in lines.finditer(text):
            shorter = text[: line.start()] + text[line.end() :]
            tables = [x for x in read_tables(page, shorter) if x.name not in CHOSEN]
            assert len([x for x in tables if list_missing(x)]) == 1, line[0]
            removed += 1
    assert removed == len(read_all()) + 1  # README's models have published and measured figures


@pytest.mark.parametrize(
    "line, missing",
    [
        ("Measured: May 2, 2026, two cores; seed 1; the command above.", []),
        ("Measured: May 2 and 3, 2026, machine not recorded; no seed; command not recorded.", []),
        ("Measured: May 2, 2026, two cores; seed 1; the command below.", ["a command below"]),
        ("Measured: May 2, 2026, two cores; seed 1; somehow.", ["a command"]),
        ("Measured: May 2, 2026; seed 1; the command above.", ["how they were measured"]),
        ("Measured: May 2, 2026, two cores; the command above.", ["how they were measured"]),
        ("Measured: 2026, two cores; seed 1; the command above.", ["how they were measured"]),
        ("It was.\n\nMeasured: May 2, 2026, two cores; seed 1.", ["how they were measured"]),
    ],
)
def test_lines_are_read(line, missing):
    text = "# A\n```bash\n# make\n```\n\n| | AP | ms |\n|---|---|---|\n| x | 1.2, 3 | **4** |\n"
    (table,) = read_tables("a.md", f"{text}| y | 0.5 ± 0.1 | - |\n\n{line}\n\n# B\n`a.py`\n")
    assert list_missing(table) == missing


def test_a_line_has_a_date_that_exists():
    text = "|a|b|\n|-|-|\n|c|1|\n|d|2|\n|e|3|\n\nMeasured: June 31, 2026, a GPU; seed 1; x.\n"
    with pytest.raises(ValueError, match="day is out of range"):
        list_missing(*read_tables("a.md", text))


def test_readme_is_short():
    assert len(read_pages()["README.md"].split()) <= 1000


# Means, standard deviations and intervals


def find_high(values):
    return statistics.mean(values) + find_error(values)


def find_low(values):
    return statistics.mean(values) - find_error(values)


def find_error(values):
    return STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def is_rounded(stated, function, values, unit):
    """Return whether a statistic of values that were rounded to a unit may be rounded to this.

    The statistics are convex or concave and homogeneous: they change by at most their largest
    value for the errors.
    """
    errors = itertools.product((-unit / 2, unit / 2), repeat=len(values))
    most = unit / 2 + max(abs(function(error)) for error in errors)
    return abs(stated - function(values)) <= most + 1e-9


def list_samples(table):
    """Yield the figures of seeds, and the cell with their statistics."""
    if "seed 1" in table.head:
        first = table.head.index("seed 1")
        for *cells, last in (row[first:] for row in table.rows):
            if table.head[-1].startswith("mean") and last:
                yield cells, last
    for i, row in enumerate(table.rows):
        if row[0].startswith("mean"):
            seeds = [x for x in table.rows[:i] if "SEED" in x[0]]
            yield from (([x[k] for x in seeds], row[k]) for k in range(1, len(row)))


def list_wrong(table):
    """Return the statistics that are not those of their seeds, and the number of all."""
    wrong, number = [], 0
    for cells, stated in list_samples(table):
        functions = [statistics.mean, statistics.stdev]
        if "95 % interval" in stated:
            functions, stated = [statistics.mean, find_low, find_high], stated.replace("95 %", "")
        figures = [float(x) for x in re.findall(r"-?\d+\.\d+", stated)]
        assert 1 <= len(figures) <= len(functions)
        values, unit = [float(x) for x in cells], 10.0 ** -len(cells[0].partition(".")[2])
        number += len(figures)
        pairs = zip(figures, functions)
        wrong += [(cells, x) for x, f in pairs if not is_rounded(x, f, values, unit)]
    return wrong, number


def test_means_and_intervals_are_those_of_the_seeds():
    found = [list_wrong(table) for table in read_all()]
    assert not [x for wrong, _ in found for x in wrong]
    assert sum(number for _, number in found) > 40
    text = (
        "| | seed 1 | 2 | 3 | 4 | 5 | mean |\n|-|-|-|-|-|-|-|\n| a | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 |"
    )
    for stated, is_wrong in (
        ("3.1, 1.6", False),  # 1.5811
        ("3.2", True),
        ("3.0, 1.7", True),
        ("3.0, 95 % interval 1.0 to 5.0", False),  # 1.0368 to 4.9632
        ("3.0, 95 % interval 0.7 to 5.0", True),
        ("3.0, 95 % interval 1.0 to 5.2", True),
    ):
        (table,) = read_tables("a.md", f"{text} {stated} |\n")
        assert bool(list_wrong(table)[0]) == is_wrong, stated


def test_differences_are_those_of_the_rows_above():
    found = 0
    for rows in (table.rows for table in read_all()):
        for old, new, row in zip(rows, rows[1:], rows[2:]):
            if row[0] == "difference":
                for a, b, difference in zip(old[1:-1], new[1:-1], row[1:-1]):
                    assert float(b) - float(a) == pytest.approx(float(difference), abs=0.1501)
                    found += 1
    assert found >= 7


# Figures that are in several tables

NUMBERS = {  # of tables of a page
    "models": ("README.md", 0),
    "results": ("README.md", 1),
    "backbones": ("docs/backbones.md", 0),
    "runtimes": ("docs/backbones.md", 2),
    "AP of runtimes": ("docs/backbones.md", 3),
    "R18": ("docs/results/small_data.md", 0),
    "ImageNet": ("docs/results/small_data.md", 1),
    "P2": ("docs/results/small_data.md", 2),
    "R18's curve": ("docs/results/small_data.md", 4),
    "bfloat16": ("docs/results/small_data.md", 6),
    "Pico": ("docs/results/small_data.md", 9),
    "shapes": ("docs/results/experiments.md", 1),
    "shapes again": ("docs/results/experiments.md", 2),
    "speed": ("docs/results/performance.md", 0),
    "newest": ("docs/results/performance.md", 1),
    "steps": ("docs/results/performance.md", 3),
}
LITE, R18, BCCD = "tood_lite0_{}_small_data", "tood_R18_GN_small_data", "BCCD, 87 images"
P2, N, S, PICO = (LITE.format(x) for x in ("N_P2", "N", "S", "Pico"))
SEEDS = ("seed 1", "2", "3", "4", "5")
WEIGHTS = "AP of the weights"
T_HEADS = ("T-head + ATSS", "T-head + TAL", "alpha 0.5 beta 6")
SAME = [  # table/row/column
    [f"models/{P2}/AP, BCCD", f"results/{BCCD} {P2}/AP", f"ImageNet/from stride 4, {WEIGHTS}/800"],
    [f"models/{P2}/AP, BCCD", "P2/800, weights/seed 1"],
    [f"results/{BCCD} {P2}/command", "P2/800, weights/mean, standard deviation"],
    [f"models/{N}/AP, BCCD", f"ImageNet/from stride 8, {WEIGHTS}/800"],
    [f"models/{PICO}/AP, BCCD", "Pico/Pico 1/AP"],
    *([f"results/{BCCD} {R18}/{x}", f"R18/here, SEED 1/{x}"] for x in ("AP", "AP50", "AP75")),
    [f"models/{R18}/AP, BCCD", "R18/here, SEED 1/AP"],
    [f"results/{BCCD} {R18}/command", "R18/mean, standard deviation/AP"],
    ["models/tood_R50_FPN_1x/CPU ms", "backbones/ResNet-50 (tood_R50_FPN_1x)/ms"],
    [f"models/{P2}/CPU ms", "runtimes/N with P2, 320 x 320/PyTorch 2.14.1"],
    [f"models/{N}/CPU ms", "runtimes/N, 320 x 320/PyTorch 2.14.1"],
    [f"models/{S}/CPU ms", "runtimes/S, 320 x 320/PyTorch 2.14.1"],
    [f"models/{PICO}/CPU ms", "runtimes/Pico, 320 x 320/PyTorch 2.14.1"],
    ["AP of runtimes/N/ONNX Runtime 1.32.0", "Pico/N 1/AP"],
    *([f"R18/here, SEED {x[-1]}/AP", f"R18's curve/800/{x}"] for x in SEEDS),
    *([f"P2/800/{x}", f"bfloat16/float32/{x}"] for x in (*SEEDS, "mean, standard deviation")),
    *([f"shapes/{x}/AP", f"shapes again/{x}/before"] for x in T_HEADS),
]


def find_cell(address):
    """Return a cell of a table by the first cells of its row and the name of its column."""
    name, row, column = address.split("/")
    page, number = NUMBERS[name]
    table = [x for x in read_all() if x.page == page][number]
    rows = {" ".join(x[:k]).replace("`", ""): x for x in table.rows[::-1] for k in (1, 2)}
    return rows[row][table.head.index(column)]


@pytest.mark.parametrize("addresses", SAME, ids=lambda x: x[0])
def test_figures_in_several_tables_are_the_same(addresses):
    figures = [re.search(r"\d+\.\d+|\d+", find_cell(x))[0] for x in addresses]
    decimals = min(len(x.partition(".")[2]) for x in figures)
    assert len({round(float(x), decimals) for x in figures}) == 1, figures


def test_figures_in_the_text_are_those_of_tables():
    text = {page: " ".join(content.split()) for page, content in read_pages().items()}
    step, inference = (find_cell(f"newest/{x}/ratio") for x in ("training step", "inference"))
    memory = find_cell("speed/peak memory of a training process/ratio")
    assert f"{step} of the time and {memory} of the memory" in text["README.md"]
    assert f"inference {inference} of the time" in text["README.md"]
    bfloat16, float32 = (
        find_cell(f"steps/{x}/now") for x in ("bfloat16 (--dtype bfloat16)", "float32")
    )
    assert f"{bfloat16} instead of {float32[:-3]}" in text["docs/results/small_data.md"]


def read_column(table, column):
    """Return the cells of a column by the model in the first cell of their row."""
    place = table.head.index(column)
    return {re.search(r"tood_\w+", row[0])[0]: row[place] for row in table.rows}


def test_published_ap_is_that_of_the_model_zoo():
    readme, zoo = read_all()[0], next(x for x in read_all() if x.head[1:3] == ["A", "M"])
    authors, others = read_column(zoo, "A"), read_column(zoo, "M")
    published = {x: others[x] if ap == "-" else ap for x, ap in authors.items()}
    cells = read_column(readme, "AP, COCO")
    assert {x: ap for x, ap in cells.items() if ap != "-"} == published
    assert set(published) == set(model_zoo.RELEASED_MODELS)


# Parameters and multiply-adds

# Files that docs/backbones.md quotes.
QUOTED = {"RegNetX-4GF": "regnet", "Swin-T": "swin", "MViTv2-T": "mvit", "ViT-S": "vit"}


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Let models run on the meta device, which has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


@functools.cache
def build_on_meta(cell):
    """Return the model of a row, without memory for its weights."""
    if cell.startswith("Detectron2: "):
        path = EXTENSIONS / "backbones" / f"{QUOTED[cell.partition(': ')[2]]}.py"
        try:
            model = instantiate(LazyConfig.load(str(path)).model).to("meta")
        except ImportError:
            pytest.skip("a backbone of Detectron2's main branch")
    else:
        name = re.search(r"tood_\w+|timm: `\w+", cell)[0].replace(" `", "")
        with torch.device("meta"):
            model = build(name, "meta")
    for layer in model.modules():  # products that can be counted
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    return model.eval()


def count_deform_conv(x, weight, *args, out_shape=None, **kwargs):
    return 2 * math.prod(weight[1:]) * math.prod(out_shape)


def count_multiply_adds(model, size):
    """Return G multiply-adds of the model and of its head, counted in another way than the tool."""
    from torch.utils.flop_counter import FlopCounterMode

    formulas = {torch.ops.torchvision.deform_conv2d: count_deform_conv}
    counts = [FlopCounterMode(display=False, custom_mapping=formulas) for _ in range(2)]
    with torch.no_grad(), torch.device("meta"):
        with counts[0]:
            features = model.backbone(torch.zeros(1, 3, *size))
        with counts[1]:
            model.head([features[x] for x in model.head_in_features])
    backbone, head = (count.get_total_flops() / 2e9 for count in counts)
    return f"{backbone + head:.2f}", f"{head:.2f}"


def list_costs():
    """Yield the page, the model, and the cells of each row with parameters."""
    for table in read_all():
        if "parameters" in table.head:
            first = table.head.index("parameters")
            for row in table.rows:
                if row[first] != "-":
                    yield table.page, row[0], row[first:]


def test_costs_are_found():
    assert len([*list_costs()]) > 30


@pytest.mark.parametrize("page, cell, costs", [*list_costs()])
def test_costs_are_those_of_the_configs(page, cell, costs):
    pytest.importorskip("timm", reason="an extra")
    pytest.importorskip("torch.utils.flop_counter", reason="of newer PyTorch")
    model = build_on_meta(cell)
    parameters, of_head = count_parameters(model), count_parameters(model.head)
    if page == "README.md":
        expected = [f"{parameters / 1e6:.1f} M"]
    elif len(costs) == 3:
        sizes = ((320, 320), (640, 640))
        expected = [f"{parameters:,}", *(count_multiply_adds(model, x)[0] for x in sizes)]
    else:
        size = (800, 1280) if page == "docs/model_zoo.md" else (480, 640)
        expected = [f"{parameters:,}", f"{of_head:,}", *count_multiply_adds(model, size)]
    assert costs[: len(expected)] == expected
