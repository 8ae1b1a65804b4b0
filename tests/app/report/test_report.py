"""The report: its page, summary, drawings and commands, and what a browser makes of it."""

import datetime
import json
import re
import time

import markupsafe
import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image
from test_matching import load_content, make_detections, random_set, run_pycocotools

from tood.app.report import gallery
from tood.app.report.analysis import (
    NOT_DISTINGUISHABLE,
    analyze,
    compare_analyses,
    explain_miss,
    summarize_analysis,
)
from tood.app.report.make import report
from tood.app.report.page import CAPTIONS, TABLE_ROWS, Facts, Gallery, number, render
from tood.app.report.plots import draw_confusion
from tood.app.report.suspects import (
    MISSING,
    NOTHING_THERE,
    OTHER_CLASS,
    find_suspects,
    list_suspects,
)
from tood.utils.errors import UserError

EVIL = '</script><script>alert("x")</script>'
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with a class of an evil name, results in COCO's format, and images."""
    folder = tmp_path_factory.mktemp("report")
    content, found = random_set(NUM_IMAGES, seed=5, num_classes=3)
    for category, name in zip(content["categories"], ("disc", EVIL, "$_x")):
        category["name"] = name
    noise = np.random.default_rng(0)
    (folder / "images").mkdir()
    for image in content["images"]:
        pixels = noise.integers(256, size=(480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(make_detections(found)))
    return folder, content, found


def write_report(folder, **more):
    arguments = {
        "val_data": f"{folder}/val.json:{folder}/images",
        "results": f"{folder}/results.json",
        "output": f"{folder}/report",
        **more,
    }
    return report(**arguments)


@pytest.fixture(scope="module")
def written(data):
    folder, _, found = data
    worse = [x for x in make_detections(found) if x["score"] < 0.2]
    (folder / "worse.json").write_text(json.dumps(worse))
    written = write_report(folder, compare=f"{folder}/worse.json")
    assert written.page == f"{folder}/report/report.html"
    assert str(written).startswith(f"{written.page}: AP {written.metrics['AP']:.1f}, ")
    assert written.detections == make_detections(found)
    return folder / "report"


def test_figures_are_pycocotools(data, written):
    _, content, found = data
    summary = json.loads((written / "report.json").read_text())
    expected, per_class = run_pycocotools(content, found)
    for name, value in expected.items():
        actual = summary["metrics"][name]
        assert actual["value"] == pytest.approx(value, abs=1e-9)
        if "note" in actual:
            assert actual["low"] is None and "fewer than 3 images" in actual["note"]
        else:
            assert actual["low"] <= actual["value"] <= actual["high"]
    for row, AP in zip(summary["classes"], per_class):
        assert row["AP"]["value"] == pytest.approx(AP, abs=1e-9)
    assert [x["name"] for x in summary["classes"]] == ["disc", EVIL, "$_x"]
    assert sum(map(sum, summary["confusion"]["rows"])) > 0
    assert len(json.loads((written / "detections.json").read_text())) == len(found)
    plots = {"objects", "box_sizes", "precision_recall", "f1", "confusion", "errors"}
    plots |= {"calibration"}
    assert {x.stem for x in written.glob("*.png")} == plots
    for path in written.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 5


def test_page_contains_everything_and_no_code_of_others(written):
    html = (written / "report.html").read_text()
    assert len(html) < 8_000_000  # of noise, which JPEG cannot compress
    assert EVIL not in html and "&lt;/script&gt;&lt;script&gt;alert" in html
    assert html.count("<script>") == 1
    assert "http://" not in html and "https://" not in html and 'src="/' not in html
    assert html.count("data:image/png") == 6 and html.count("data:image/jpeg") > 3
    assert "worse.json" in html and "better here" in html
    assert f"tood report --results {written.parent}/results.json --val-data " in html


def test_sections_stand_in_the_order_of_use(written):
    """First what to do, then the data, the photographs, the numbers, and the source."""
    html = (written / "report.html").read_text()
    title = f"Report: {written.parent.name}, {datetime.date.today():%Y-%m-%d}"
    assert f"<title>{title}</title>" in html and f"<h1>{title}</h1>" in html
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert headings[:2] == ["What next", "Metrics"] and "worse.json" in headings[2]
    photographs = ["The worst images", "Missed objects", "Wrong detections", "Suspect labels"]
    tables = ["Kinds of error", "Confusion", "Curves", "Data check", "Origin"]
    assert headings[3:] == ["Classes", *photographs, *tables]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions[0].startswith("The objects of each class")
    for term in ("AP", "AP50, AP75", "interval", "at the thresholds", "points"):
        assert f"<dt>{term}</dt>" in html


def test_confusion_stands_once_and_names_errors(written):
    html = (written / "report.html").read_text()
    table = html.split('id="confusion"')[1].split("</table>")[0]
    heads = re.findall(r"<th[^>]*>(.*?)</th>", table)
    assert heads[1:5] == [
        "disc",
        markupsafe.escape(EVIL[:10] + " ... " + EVIL[-10:]),
        "$_x",
        "missed",
    ]
    assert heads[-1] == "false alarm" and CAPTIONS["confusion.png"] not in html
    # The plot, for more classes than the table has.
    content = load_content(1, [(0, k, (0, 0, 30, 30), False, 900) for k in range(30)], 30)
    facts = Facts("many", "command", {}, plots={"confusion.png": b"png"})
    many = render(summarize_analysis(analyze(content, [])), facts)
    assert 'id="confusion"' not in many and CAPTIONS["confusion.png"] in many


def test_counts_stand_beside_costs(data, written):
    summary = json.loads((written / "report.json").read_text())
    html = (written / "report.html").read_text()
    table = html.split('id="errors"')[1].split("</table>")[0]
    cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    counts = {x["kind"]: x["count_above"] for x in summary["errors"]}
    analysis = analyze(data[1], make_detections(data[2]))
    totals = {kind: int(analysis.above.sum()) for kind in counts}
    totals["missed"] = summary["data"]["objects"]
    assert {x[0]: x[1] for x in cells} == {k: f"{counts[k]} of {totals[k]}" for k in counts}
    assert "Counts and points need not agree" in html


def test_advice_stands_at_the_top_and_in_the_summary(written):
    summary = json.loads((written / "report.json").read_text())
    html = (written / "report.html").read_text()
    assert summary["advice"] and all(x.keys() == {"sentence", "command"} for x in summary["advice"])
    top = html.split('id="metrics"')[0]
    assert all(markupsafe.escape(x["sentence"]) in top for x in summary["advice"])


def test_long_names_are_cut_in_the_middle():
    name = "photographs/of the third camera/2026-11-29_" + "0123456789" * 6 + "_end.jpg"
    objects = [(0, 0, (0, 0, 50, 50), False, 2500), (0, 0, (90, 90, 50, 50), False, 2500)]
    content = load_content(1, objects)
    content["images"][0]["file_name"] = name
    analysis = analyze(content, make_detections([(0, 0, (0, 0, 50, 50), 0.9)]))
    rows = list_suspects(analysis.table, analysis.pairs, analysis.thresholds)
    images = gallery.draw_suspects(analysis, rows, lambda i: np.zeros((480, 640, 3), np.uint8))
    cut = "photographs/of the ... 0123456789_end.jpg"
    assert images[0].caption == f"{cut}: no detection overlaps this class 0 by 0.5"
    facts = Facts("a", "b", {}, galleries=[Gallery("Suspects", "", [], "suspects")])
    html = render(summarize_analysis(analysis), facts._replace(sections={"suspects": rows}))
    assert f'title="{name}">{cut}</td>' in html and '<details class="all" open>' in html


def test_a_crop_is_about_its_subject():
    """It is drawn last, and the others are dimmed."""
    objects = [(0, 0, (100, 100, 60, 60), False, 3600), (0, 0, (130, 100, 60, 60), False, 3600)]
    analysis = analyze(load_content(1, objects), [])
    grey = np.full((300, 300, 3), 128, dtype=np.uint8)
    boxes = gallery._list_boxes(analysis, 0)
    assert len(boxes.names) == 2
    subject, others = boxes.select([0]), boxes.select([1])
    drawing = gallery._draw_subject(grey, subject, others, (0, 0)).astype(int)
    scale = gallery.CROP_SIDE / 300
    # The lower edges, where one is alone: how far the colours are from the grey.
    y = slice(int(155 * scale), int(165 * scale))
    mine, other = (np.abs(drawing[y, int(x * scale)] - 128).max() for x in (115, 180))
    assert mine > 2 * other > 20
    # Where both are, it looks as where the subject is alone.
    both = np.abs(drawing[y, int(145 * scale)] - 128).max()
    assert both >= 0.9 * mine
    assert len(gallery._omit(boxes, subject).names) == 1


def test_sizes_of_boxes():
    objects = [(0, 0, (0, 0, w, w), False, w * w) for w in (8, 16, 16, 128)]
    objects.append((0, 0, (0, 0, 300, 300), True, 90_000))  # a crowd does not count
    sizes = summarize_analysis(analyze(load_content(1, objects), []))["box_sizes"]
    assert sizes["edges"][0] < 8 and 128 < sizes["edges"][-1] < 140
    assert sum(sizes["numbers"]) == 4 and max(sizes["numbers"]) == 2


def test_the_same_every_time(data):
    _, content, found = data
    first, second = (summarize_analysis(analyze(content, make_detections(found))) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_nothing_found_and_nothing_to_find():
    content = load_content(2, [(0, 0, (0, 0, 50, 50), False, 2500)])
    facts = Facts("nothing", "command", {})
    for other in (content, load_content(2, [])):
        summary = summarize_analysis(analyze(other, []))
        assert "<!doctype html>" in render(summary, facts)
        assert summary["all_classes"]["f1"] == 0 or np.isnan(summary["all_classes"]["precision"])
    assert number(float("nan")) == "–"


def test_comparison():
    content, found = random_set(40, seed=5)
    here = analyze(content, make_detections(found))
    rows = {x["name"]: x for x in compare_analyses(here, here)}
    assert all(x["verdict"] == NOT_DISTINGUISHABLE for x in rows.values())
    assert rows["AP"]["value"] == rows["AP"]["low"] == rows["AP"]["high"] == 0
    worse = analyze(content, make_detections(found)[::3])
    row = {x["name"]: x for x in compare_analyses(here, worse)}["AP"]
    assert row["verdict"] == "better here" and 0 < row["low"] < row["value"] < row["high"]
    assert {x["name"]: x for x in compare_analyses(worse, here)}["AP"]["verdict"] == "better there"
    with pytest.raises(UserError, match="their images differ"):
        compare_analyses(here, analyze(load_content(2, []), []))


@pytest.mark.parametrize(
    "found, says",
    [
        ([], "no detection of its class overlaps it by 0.1"),
        ([(0, 1, (0, 0, 100, 95), 0.8)], "found as class 1, with the score 0.80"),
        ([(0, 0, (60, 0, 100, 100), 0.4)], "overlaps by 0.25 only, score 0.40"),
        # The other one sets the threshold of the class.
        ([(0, 0, (0, 0, 100, 95), 0.2), (0, 0, (400, 300, 50, 50), 0.9)], "below the threshold"),
    ],
)
def test_why_missed(found, says):
    objects = [(0, 0, (0, 0, 100, 100), False, 1e4), (0, 0, (400, 300, 50, 50), False, 2500)]
    analysis = analyze(load_content(1, objects), make_detections(found))
    if says == "below the threshold":
        analysis = analysis._replace(thresholds=np.array([0.5, 0.5]))
    assert says in explain_miss(analysis, 0)


def test_suspects_by_hand():
    objects = [
        (0, 0, (0, 0, 100, 100), False, 1e4),  # found
        (0, 0, (200, 0, 100, 100), False, 1e4),  # looks like class 1
        (0, 1, (0, 300, 50, 50), False, 2500),  # nothing there
        (0, 1, (300, 300, 200, 200), True, 4e4),  # a crowd: nothing to say
    ]
    found = [
        (0, 0, (0, 0, 100, 100), 0.9),
        (0, 1, (200, 0, 100, 100), 0.8),
        (0, 0, (200, 0, 100, 100), 0.3),
        (0, 1, (0, 150, 50, 50), 0.7),  # no annotation
        (0, 0, (0, 150, 50, 50), 0.6),  # the same place
        (0, 1, (350, 350, 50, 50), 0.6),  # in the crowd
    ]
    analysis = analyze(load_content(1, objects), make_detections(found))
    suspects = find_suspects(analysis.table, analysis.pairs)
    found = [(x.kind, x.annotation, x.class_index, pytest.approx(x.doubt)) for x in suspects]
    # None of the one object of its class is found.
    assert found == [(MISSING, -1, 1, 0.7), (NOTHING_THERE, 2, 1, 0.5), (OTHER_CLASS, 1, 0, 0.5)]
    assert "looks like class 1 (0.80), not class 0 (0.30)" in suspects[2].reason


@pytest.mark.parametrize(
    "change, says",
    [
        ({"results": "nowhere.json"}, "nowhere.json cannot be read"),
        ({"results": "text.json"}, "text.json cannot be read: Expecting value"),
        ({"results": "val.json"}, "val.json is not a list of detections"),
        ({"compare": "other.json"}, "entry 0 has the image_id 1234"),
        ({"output": "val.json"}, "val.json"),
    ],
)
def test_refuses(data, change, says):
    folder = data[0]
    (folder / "text.json").write_text("no")
    other = [{"image_id": 1234, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5}]
    (folder / "other.json").write_text(json.dumps(other))
    output = folder / "refused"
    change = {key: str(folder / value) for key, value in change.items()}
    with pytest.raises(UserError, match=says):
        write_report(folder, **{"output": str(output), **change})
    assert not output.exists() or [x.name for x in output.iterdir()] == [".tood-output"]


def test_refuses_arguments_and_to_write_over(data, written):
    with pytest.raises(UserError, match="report.html already exists"):
        write_report(data[0])
    for arguments in ({}, {"model": "output/mine", "results": "a.json"}):
        with pytest.raises(UserError, match="either a model, or a file of detections"):
            report(**arguments)
    with pytest.raises(UserError, match="--results needs --val-data and --output"):
        report(results="a.json")


def test_a_page_of_1000_classes_is_bounded():
    """It shows the classes with the most objects, and says so; report.json has all of them."""
    most = 1000
    objects = [(0, k, (0, 0, 30, 30), False, 900) for k in range(most)]
    objects += [(0, 700, (100, 100, 30, 30), False, 900)]
    content = load_content(1, objects, most)
    detections = make_detections([(0, k, (0, 0, 30, 30), 0.5) for k in range(0, most, 2)])
    analysis = analyze(content, detections)
    summary = summarize_analysis(analysis)
    assert len(summary["classes"]) == len(analysis.table.class_names) == most
    html = render(summary, Facts("many", "command", {}))
    table = html.split('id="class-table"')[1].split("</table>")[0]
    assert table.count("<tr>") == 1 + TABLE_ROWS and "<td>class 700</td>" in table
    assert f"{TABLE_ROWS} of 1000 classes, those with the most objects" in html
    assert 'id="confusion"' not in html and len(html) < 200_000
    start = time.perf_counter()
    draw_confusion(summary["confusion"])
    assert time.perf_counter() - start < 20


# --- in a browser ----------------------------------------------------------------------------

TABLE = """[...document.querySelectorAll("#class-table tbody tr")].map(
    (row) => [...row.cells].map((cell) => cell.textContent.trim()))"""
# Right edges of all visible elements, except for the content of scrollable boxes.
EDGES = """[...document.body.querySelectorAll("*")]
    .filter((x) => !x.closest(".wide > *")).map((x) => x.getBoundingClientRect())
    .filter((r) => r.width > 0).map((r) => [r.left, r.right])"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("Chromium is not installed: the page was not looked at in a browser")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def click(browser, column):
    script = f"""document.querySelectorAll("#class-table th button")[{column}].click()"""
    browser.run(script)
    return browser.run(TABLE)


@pytest.mark.slow
def test_in_a_browser(browser, written):
    summary = json.loads((written / "report.json").read_text())
    browser.open(written / "report.html", width=1400)
    tiles = browser.run(
        """Object.fromEntries([...document.querySelectorAll(".tile")].map(
            (x) => [x.dataset.metric, x.querySelector("b").textContent]))"""
    )
    expected = {name: x["value"] for name, x in summary["metrics"].items()}
    assert tiles == {name: "–" if x is None else f"{x:.1f}" for name, x in expected.items()}
    rows = browser.run(TABLE)
    assert [row[0] for row in rows] == ["disc", EVIL, "$_x"]
    assert [row[2] for row in rows] == [f"{x['AP']['value']:.1f}" for x in summary["classes"]]
    by_AP = sorted(rows, key=lambda row: float(row[2]), reverse=True)
    assert click(browser, 2) == by_AP
    assert click(browser, 2) == by_AP[::-1]
    by_name = click(browser, 0)
    assert by_name[-1][0] == "disc" and sorted(by_name) == sorted(rows)
    assert click(browser, 0) == by_name[::-1]
    # The class that would end the script, and say something, is text.
    assert browser.run("document.scripts.length") == 1
    drawings = "[...document.images].map((x) => x.complete && x.naturalWidth > 0)"
    assert all(browser.run(drawings)) and len(browser.run(drawings)) > 8


@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(1400, False), (400, True)])
def test_nothing_lies_outside_the_window(browser, written, width, dark):
    browser.open(written / "report.html", width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    edges = browser.run(EDGES)
    assert min(left for left, _ in edges) >= 0 and max(right for _, right in edges) <= width
    hidden = """(({parentElement: x}) => x.scrollWidth - x.clientWidth)(
        document.querySelector("#class-table"))"""
    assert browser.run(hidden) == 0
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(browser, written):
    browser.requests.clear()
    browser.open(written / "report.html", width=1000)
    schemes = {url.split(":")[0] for url in browser.requests}
    assert schemes <= {"file", "data"}
    assert [x for x in browser.requests if x.startswith("file:")] == [
        (written / "report.html").as_uri()
    ]


@pytest.mark.slow
def test_a_click_enlarges_a_drawing(browser, written):
    browser.open(written / "report.html", width=1400)
    width = "document.querySelector('%s').getBoundingClientRect().width"
    small = browser.run(width % ".crops img")
    browser.run("document.querySelector('.crops img').click()")
    assert browser.run("document.querySelector('dialog').open")
    assert browser.run(width % "dialog img") > 3 * small
    alt = browser.run("document.querySelector('.crops img').alt")
    assert alt in browser.run("document.querySelector('dialog p').textContent")
    browser.run("document.querySelector('dialog').click()")
    assert not browser.run("document.querySelector('dialog').open")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_heads_of_tables_do_not_break(browser, written, width):
    browser.open(written / "report.html", width=width)
    heights = browser.run(
        """[...document.querySelectorAll("thead th")].map((x) => x.getBoundingClientRect())
            .filter((x) => x.width).map((x) => x.height)"""
    )
    assert len(heights) > 12 and max(heights) < 36  # one line


@pytest.mark.slow
def test_printed_pages_show_what_is_folded(browser, written):
    browser.open(written / "report.html", width=800)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details')].every((x) => x.open)")
