"""A section of the report, added by the three pieces of docs/extending.md; and how often a report
and drawings open the images.
"""

import json
import re

import numpy as np
import pytest
import torch
from conftest import CONFIG, ROOT, TINY
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from opens import OPENS

from tood.app.draw import draw_predictions
from tood.app.report import make, page
from tood.app.report.subject import examine
from tood.config.read import load_config, run_options
from tood.data.datasets import prepare_datasets
from tood.data.shapes import SHAPES
from tood.data.tiles import RecentImages
from tood.inference.predictor import Predictor
from tood.inference.views import build_training_views

GUIDE = (ROOT / "docs" / "extending.md").read_text()
GUIDE = GUIDE.partition("## A section of the report")[2].partition("\n## ")[0]
GUIDE = GUIDE.partition("\n## ")[0]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_a_section_is_three_pieces(tmp_path, monkeypatch):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "ring"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 64, "iscrowd": 0}
            for i, box in enumerate(([0, 0, 16, 8], [9, 20, 8, 8]), 1)
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text("[]")
    function, line = blocks("python")
    (part,) = blocks("html")
    names = {}
    exec(function, names)  # the guide's own code
    ((name, compute),) = eval(f"{{{line}}}", names).items()
    monkeypatch.setitem(make.SECTIONS, name, compute)
    (template,) = (tmp_path / page.TEMPLATE,)
    text = (ROOT / "projects/TOOD/tood/app/report" / page.TEMPLATE).read_text()
    before, origin, after = text.partition('<h2 id="origin">')
    template.write_text(before + part + origin + after)
    monkeypatch.setattr(page, "FOLDER", str(tmp_path))
    data, output = f"{tmp_path}/val.json:{tmp_path}", str(tmp_path / "report")
    report = make.report(results=str(tmp_path / "found.json"), val_data=data, output=output)
    assert report.summary["shapes"][0] == {"name": "disc", "ratio": 1.5}
    # No record beside the file says which data its detections are of.
    assert "found.json are of these data, beyond the ids" in report.summary["data_check"][-1]
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["shapes"] == [{"name": "disc", "ratio": 1.5}, {"name": "ring", "ratio": None}]
    html = (tmp_path / "report" / "report.html").read_text()
    assert "<tr><td>disc</td><td>1.50</td></tr>\n<tr><td>ring</td><td>–</td></tr>" in html


# --- how often files are opened --------------------------------------------------------------


@pytest.fixture(scope="module")
def cfg(shapes, tmp_path_factory):
    entry = f"{shapes}/annotations.json:{shapes}/images"
    opts = ["MODEL.TOOD.NUM_CLASSES", "4", "INPUT.MIN_SIZE_TEST", "64"]
    opts += ["MODEL.TOOD.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "8"]
    opts += ["OUTPUT_DIR", str(tmp_path_factory.mktemp("output"))]
    return load_config(CONFIG, [*TINY, *opts], val_data=[entry])


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    # Scores that differ between locations.
    torch.nn.init.normal_(model.head.cls_pred.weight, std=0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["INPUT.TILES.SIZE", "40", "INPUT.TILES.OVERLAP", "16"],
        ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 64)"],
    ],
)
def test_report_and_drawings_open_an_image_twice(shapes, cfg, model, options, tmp_path):
    cfg = cfg.clone()
    cfg.merge_from_list(options)
    prepare_datasets(run_options(cfg).data, training=False, known_classes=SHAPES)
    with OPENS as opened:
        predictor = Predictor.from_model(model, cfg, SHAPES, "mine.pth")
        assert not opened and predictor.options.weights == "mine.pth"
        read = RecentImages().read
        report = make.report_on(predictor, output=str(tmp_path / "report"), read_image=read)
        picture = str(tmp_path / "a.png")
        found = report.detections
        draw_predictions(predictor, picture, num_images=8, detections=found, read_image=read)
    # Of tiles and augmented views, alignment is not defined.
    assert bool(report.summary["alignment"]) == (not options)
    images = sorted(str(path) for path in (shapes / "images").iterdir())
    assert len(images) == 8 and {path: opened[path] for path in images} == dict.fromkeys(images, 2)
    assert opened[f"{shapes}/annotations.json"] <= 3
    html = (tmp_path / "report" / "report.html").read_text()
    assert "Missed objects" in html and html.count("data:image/jpeg") > 8
    other = str(tmp_path / "b.png")
    draw_predictions(predictor, other, num_images=8)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    # Detections in memory instead of a pass.
    again = make.report_on(
        predictor, output=str(tmp_path / "other"), detections=found, notes=["a note"]
    )
    assert again.metrics == pytest.approx(report.metrics, nan_ok=True)
    assert again.summary["data_check"] == ["a note"] and again.summary["alignment"] == {}
    assert len(again.summary["positives"]) == 0 < len(report.summary["positives"])


def test_positives_in_one_pass_are_those_of_training(shapes, cfg, model):
    """Objects of tiles are counted from a pass over whole images."""
    tiled = cfg.clone()
    tiled.merge_from_list(["INPUT.TILES.SIZE", "40", "INPUT.TILES.OVERLAP", "16"])
    prepare_datasets(run_options(cfg).data, training=False, known_classes=SHAPES)
    subjects = [examine(Predictor.from_model(model, x, SHAPES)) for x in (cfg, tiled)]
    content = json.loads((shapes / "annotations.json").read_text())
    whole, tiles = (sum(row["objects"] for row in x.positives) for x in subjects)
    assert whole == len(content["annotations"]) == subjects[0].alignment["all"]["objects"]
    assert tiles >= 0.9 * whole and subjects[1].alignment == {}
    limited = Predictor.from_model(model, cfg, SHAPES)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    views = build_training_views(limited, records, 3)
    loader = limited.build_test_loader(records)
    chosen = [view for batch in loader for x in batch for view in views(x)]
    assert len(chosen) == 3
    boxes = [np.array(a["bbox"]) for a in records[0]["annotations"]]
    width = (
        chosen[0]["instances"].gt_boxes.tensor[0, 2] - chosen[0]["instances"].gt_boxes.tensor[0, 0]
    )
    assert float(width) == pytest.approx(boxes[0][2] * chosen[0]["image"].shape[2] / 64, abs=1e-3)
