"""The functions that use a trained model: predict, report and explain."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, complaint
from PIL import Image

import tood
from tood.app.cli import make_parser
from tood.app.convert.door import read_data
from tood.app.explain import explain
from tood.app.predict import DEFAULT_INPUTS, predict
from tood.app.report.make import report
from tood.app.trained import find_trained
from tood.data.shapes import SHAPES
from tood.inference.predictor import Predictor
from tood.utils.errors import UserError
from tood.visualization import draw as visualization


def run_predict(trained, *images, **arguments):
    images = [str(x) for x in images] or None
    return predict(str(trained / "model_final.pth"), images, **arguments)


def test_explain(trained, shapes, tmp_path):
    content = json.loads((shapes / "annotations.json").read_text())
    annotation, image = content["annotations"][0], content["images"][0]
    assert annotation["image_id"] == image["id"]
    path, output = str(shapes / "images" / image["file_name"]), str(tmp_path / "why.png")
    found = explain(str(trained), path, annotation["bbox"], output=output)
    name = {c["id"]: c["name"] for c in content["categories"]}[annotation["category_id"]]
    lines = str(found).splitlines()
    assert lines[0] == f"{name}: {found.sentence}"
    assert lines[1] == f"The box means the annotated {name} (IoU 1.00)."
    assert lines[2].startswith("In training, ") and lines[4] == f"Its locations: {output}"
    assert lines[5:] == ([f"To change that: {found.setting}"] if found.setting else [])
    assert found.cause in ("found", "localization", "score", "classification", "threshold")
    assert np.asarray(Image.open(output)).std() > 5
    # A box that is not annotated, of a class that is named.
    named = dict(class_name=SHAPES[1], output=output, overwrite=True)
    assert explain(str(trained), path, "1,1,9,9", **named).class_name == SHAPES[1]
    # The threshold is the cause: the key is on the last line.
    found = dataclasses.replace(found, cause="threshold")
    assert str(found).endswith("\nTo change that: --score-threshold")
    for image, box, class_name, says in (
        (path, "900,1,9,9", "", "lies outside of"),
        (path, "1,1,9,9", "dog", "'dog' .--class. is none of"),
        ("nowhere.jpg", "1,1,9,9", "", "nowhere.jpg"),
        (path, "1,1,9", "", "write x,y,width,height"),
    ):
        with pytest.raises(UserError, match=says):
            output = str(tmp_path / "b.png")
            explain(str(trained), image, box, class_name=class_name, output=output)
    assert not (tmp_path / "b.png").exists()


def test_explain_says_which_class_it_took(trained, shapes, tmp_path):
    content = json.loads((shapes / "annotations.json").read_text())
    annotation, image = content["annotations"][0], content["images"][0]
    name = {c["id"]: c["name"] for c in content["categories"]}[annotation["category_id"]]
    other = next(x for x in SHAPES if x != name)
    path, (x, y, w, h) = shapes / "images" / image["file_name"], annotation["bbox"]

    def choose(box, path=path, class_name=""):
        files = dict(output=tmp_path / "a.png", overwrite=True)
        return explain(trained, path, box, class_name=class_name, **files)

    assert choose((x, y, w, 0.8 * h)).choice == f"The box means the annotated {name} (IoU 0.80)."
    found = choose((x, y, w, h), class_name=other)
    assert found.choice == (
        f"No {other} is annotated there (the nearest annotation, {name}, has an IoU of 1.00); the "
        f"class is {other}, as typed."
    )
    found = choose((x, y, 0.25 * w, h))
    assert found.choice == (
        f"No annotation is there (the nearest annotation, {name}, has an IoU of 0.25); the class "
        f"is {found.class_name}, the most likely one."
    )
    shutil.copy(path, tmp_path / "new.jpg")
    found = choose((x, y, w, h), path=tmp_path / "new.jpg")
    assert found.choice == (
        "The data sets of the model do not contain this image; the class is "
        f"{found.class_name}, the most likely one."
    )


def test_predict_without_images(trained, shapes, tmp_path, monkeypatch):
    found = predict(str(trained), output=tmp_path / "a")
    names = sorted(path.name for path in (shapes / "images").iterdir())
    assert sorted(x.name for x in (tmp_path / "a").glob("*.*g")) == [*names, "sheet.png"]
    assert " They are the first 8 of 8 validation images." in str(found)
    monkeypatch.setattr("tood.app.predict.DEFAULT_INPUTS", 2)
    found = predict(str(trained), output=tmp_path / "b")
    assert " They are the first 2 of 8 validation images." in str(found)
    options = ["DATASETS.TEST", "('coco_2017_val',)"]
    says = complaint(predict, str(trained), output=tmp_path / "c", options=options)
    assert "(DATASETS.TEST is coco_2017_val); name images, folders or patterns." in says


def test_the_help_of_predict_says_how_many_images_it_takes():
    help = " ".join(make_parser("predict").format_help().split())
    assert f"default: the first {DEFAULT_INPUTS} validation images, and a sheet of them" in help


def test_a_report_of_data_without_objects(trained, photos, tmp_path):
    content = {"images": [], "annotations": [], "categories": []}
    shapes = sorted({"disc", "square", "triangle", "star"})
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(shapes, 1)]
    content["images"] = [{"id": 1, "file_name": "00001.jpg", "width": 64, "height": 64}]
    (tmp_path / "empty.json").write_text(json.dumps(content))
    data, output = f"{tmp_path}/empty.json:{photos}", str(tmp_path / "report")
    written = report(str(trained), val_data=data, output=output)
    assert str(written).endswith("report.html: there are no objects to find.")
    summary = json.loads((tmp_path / "report" / "report.json").read_text())
    assert summary["positives"] == [] and summary["data"]["objects"] == 0


def test_a_training_writes_a_report(trained, photos, tmp_path):
    summary = json.loads((trained / "report" / "report.json").read_text())
    AP = json.loads((trained / "metrics.json").read_text().splitlines()[-1])["bbox/AP"]
    assert summary["metrics"]["AP"]["value"] == pytest.approx(AP, abs=1e-9)
    assert sum(x["objects"] for x in summary["positives"]) == summary["data"]["objects"]
    for row in summary["positives"]:
        assert row["ATSS"]["positives"] >= 0 and 0 <= row["TAL"]["without"] <= 1
    assert "Positives by size" in (trained / "report" / "report.html").read_text()
    assert {"training.png", "alignment.png", "report.html"} <= set(os.listdir(trained / "report"))
    assert summary["alignment"]["all"]["objects"] == summary["data"]["objects"]
    thresholds = {x["name"]: x["threshold"] for x in summary["classes"]}
    files = dict(output=str(tmp_path), json=str(tmp_path / "a.json"))
    found = run_predict(trained, photos / "00001.jpg", score_threshold="from-report", **files)
    listed = ", ".join(f"{thresholds[name]:.2f} {name}" for name in SHAPES)
    assert f" detections at the thresholds of {trained}/report ({listed}), " in str(found)
    found = json.loads((tmp_path / "a.json").read_text())
    names = {x["id"]: x["name"] for x in found["categories"]}
    for x in found["annotations"]:
        assert x["score"] >= thresholds[names[x["category_id"]]]
    with pytest.raises(UserError, match="need the report .*, which does not exist; tood report"):
        shutil.copy(trained / "model_final.pth", tmp_path)
        Predictor(
            str(trained / "config.yaml"),
            str(tmp_path / "model_final.pth"),
            score_threshold="from-report",
        )


@pytest.fixture
def count_drawn(monkeypatch):
    """Numbers of boxes in drawings."""
    drawn, draw_boxes = [], visualization.draw_boxes

    def draw(image, boxes, *args, **kwargs):
        drawn.append(len(boxes))
        return draw_boxes(image, boxes, *args, **kwargs)

    monkeypatch.setattr(visualization, "draw_boxes", draw)
    return drawn


@pytest.mark.parametrize("threshold", [None, 0.012])
def test_number_pictures_and_json_agree(trained, photos, tmp_path, count_drawn, threshold):
    files = dict(output=str(tmp_path / "out"), json=str(tmp_path / "a.json"))
    found = predict(str(trained), photos, score_threshold=threshold, **files)
    content = json.loads((tmp_path / "a.json").read_text())
    number = len(content["annotations"])
    assert found.num_detections == sum(count_drawn) == number > 0
    assert str(found).startswith(f"3 images, {number} detections ")
    limits = content["info"]["score_thresholds"]
    names = {x["id"]: x["name"] for x in content["categories"]}
    assert all(x["score"] >= limits[names[x["category_id"]]] for x in content["annotations"])
    # The other functions have the same thresholds.
    model = tood.load(str(trained))
    results = model.predict(photos, score_threshold=threshold)
    assert [x.scores for x in results] == [x.scores for x in found.results]
    predictor = Predictor(trained, score_threshold=threshold)
    assert [len(x) for x in predictor(sorted(photos.iterdir()))] == count_drawn
    more = dict(files, all_detections=True, overwrite=True)
    everything = predict(str(trained), photos, score_threshold=threshold, **more)
    content = json.loads((tmp_path / "a.json").read_text())
    assert everything.num_detections == number and "score_thresholds" not in content["info"]
    total = sum(map(len, predictor.find_all(sorted(photos.iterdir()))))
    assert len(content["annotations"]) == total > number
    assert f" {files['json']} has all {total} detections (--all)." in str(everything)


def test_code_of_the_readme(trained, photos, tmp_path, monkeypatch, capsys):
    """All of its blocks, as they stand; the first has at most ten lines."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "my_photos").symlink_to(trained)
    (photos / "00000.jpg").rename(photos / "a.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall("```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2 and blocks[0].count("\n") <= 10
    scope = {}
    exec("".join(blocks), scope)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("output/my_photos/report/report.html") and float(first.split()[0]) >= 0
    results = scope["model"].predict(photos)
    assert len(lines) == sum(map(len, results)) > 0
    assert all(re.match(r"photos/\w+.jpg \w+ 0\.\d+ \[[\d., ]+\]$", line) for line in lines)
    assert sorted(x.name for x in (tmp_path / "found").glob("*.jpg")) == [
        "00001.jpg",
        "00002.jpg",
        "a.jpg",
    ]
    assert len(scope["instances"]) == len(results[-1]) == len(scope["plain"]["names"])


def find_scalars(x):
    """Yield the scalars of NumPy and PyTorch in values and objects."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        yield from (found for value in x for found in find_scalars(value))
    elif dataclasses.is_dataclass(x):
        yield from find_scalars(vars(x))
    elif isinstance(x, np.generic) or (hasattr(x, "dtype") and x.ndim == 0):
        yield x


@pytest.mark.usefixtures("without_pictures")
def test_results_contain_plain_numbers(trained, tmp_path, fresh_loggers):
    assert len(list(find_scalars({"a": [np.float32(1)]}))) == 1
    made = report(str(trained), output=str(tmp_path / "report"))
    assert len(made.summary) > 10 and not list(find_scalars(made))
    evaluated = tood.evaluate(trained, output=tmp_path / "eval")
    assert len(evaluated.metrics) > 6 and not list(find_scalars(evaluated))
    assert not list(find_scalars([tood.load(trained), Predictor(trained).thresholds]))


def test_all_is_for_a_file(trained, photos):
    assert "--all is about the file of --json" in complaint(
        predict, str(trained), photos, all_detections=True
    )


def test_drawings_of_a_data_set_have_the_thresholds_of_the_report(trained, tmp_path, count_drawn):
    output = str(tmp_path / "a.png")
    drawn = tood.draw(str(trained), num_images=2, output=output)
    predictor = Predictor(trained)
    assert drawn.thresholds == predictor.thresholds
    assert str(drawn) == (
        f"Predictions (left) and ground truth (right): {output}\n"
        f"Detections {predictor.thresholds.text} are drawn."
    )
    assert f"at the thresholds of {trained}/report (" in str(drawn)


@pytest.mark.slow
def test_a_folder(trained, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"not an image")
    (photos / "notes.txt").write_text("not meant")
    out = tmp_path / "new" / "out"
    files = dict(output=str(out), json=str(out / "d.json"), sheet=str(out / "s.png"))
    result = run_predict(trained, photos, score_threshold=0.0, **files)
    printed = capsys.readouterr()
    assert not printed.out and "broken.png cannot be read" in printed.err
    assert "3 images" in str(result) and "1 inputs skipped" in str(result)
    assert result.num_images == 3 and result.skipped == 1
    assert str(result).endswith(f"They are in {out}")
    with Image.open(out / "00000.jpg") as drawn, Image.open(photos / "00000.jpg") as original:
        assert drawn.size == original.size == (100, 64)
    nothing = run_predict(trained, photos, score_threshold=1, output=f"{out}2")
    assert nothing.num_detections == 0 and nothing.num_images == 3
    with Image.open(out / "00001.jpg") as drawn, Image.open(f"{out}2/00001.jpg") as plain:
        changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(plain)).max(axis=2) > 60
        assert changed.mean() > 0.01  # boxes
    content = json.loads((out / "d.json").read_text())
    assert [i["width"] for i in content["images"]] == [100, 64, 64]
    assert [c["name"] for c in content["categories"]] == list(SHAPES)
    found = Predictor(trained / "model_final.pth", score_threshold=0.0)
    instances = found(photos / "00001.jpg")
    mine = [a for a in content["annotations"] if a["image_id"] == 2]
    assert [a["score"] for a in mine] == pytest.approx(instances.scores.tolist(), rel=1e-4)
    assert result.num_detections == len(content["annotations"])
    returned = result.detections[str(photos / "00001.jpg")]
    assert [a["score"] for a in mine] == pytest.approx(returned["scores"].tolist(), abs=1e-6)
    x1, y1, x2, y2 = instances.pred_boxes.tensor[0].tolist()
    assert mine[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)
    assert mine[0]["category_id"] == instances.pred_classes[0].item() + 1
    assert (out / "s.png").exists()

    # Nothing is overwritten without being asked.
    before = (out / "00001.jpg").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"00000.jpg already exists, and 4 more.*--overwrite"):
        run_predict(trained, photos, **files)
    assert (out / "00001.jpg").stat().st_mtime_ns == before
    run_predict(trained, photos / "*1.jpg", output=str(out), overwrite=True)
    assert (out / "00001.jpg").stat().st_mtime_ns > before


def test_one_file_and_by_default(trained, photos, tmp_path):
    one = str(tmp_path / "one.png")
    path = str(photos / "00002.jpg")
    assert list(predict(str(trained), path, output=one).detections) == [path]
    assert Image.open(one).size == (64, 64)
    run_predict(trained)
    found = trained / "detections"
    assert len(list(found.glob("*.jpg"))) == 8 and (found / "sheet.png").exists()


def test_a_video(trained, tmp_path):
    path = str(tmp_path / "a.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 12.0, (96, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no videos")
    for value in range(5):
        writer.write(np.full((64, 96, 3), 40 * value, np.uint8))
    writer.release()
    result = run_predict(trained, path, output=str(tmp_path / "out"))
    assert list(result.detections) == [f"{path}#{number}" for number in range(5)]
    reader = cv2.VideoCapture(str(tmp_path / "out" / "a.mp4"))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert reader.read()[1].shape == (64, 96, 3)


def test_no_input_is_written_over(trained, photos):
    paths = sorted(photos.iterdir())
    before = [path.read_bytes() for path in paths]
    for images, files in (
        (photos, dict(output=str(photos))),
        (paths[0], dict(output=str(paths[0]))),
        (paths[0], dict(output="o.jpg", json=str(paths[0]))),
    ):
        with pytest.raises(UserError, match="is an input, and would be written over"):
            run_predict(trained, images, overwrite=True, **files)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(output="o.mp4"), "is not the name of an? image"),
        (dict(output="o.jpg", sheet="s.xyz"), "end in .png or .jpg"),
        (dict(output="o.jpg", json="o.jpg"), "would be written twice"),
        (dict(output="o.jpg", json="00000.jpg/d.json"), "cannot be written to"),
        (dict(output="o.jpg", columns=0), "--columns is 0"),
    ],
)
def test_outputs_are_checked_first(trained, photos, monkeypatch, arguments, says):
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match=says):
        run_predict(trained, "00000.jpg", **arguments)
    assert not (photos / "o.jpg").exists()


def test_no_images(trained, tmp_path):
    with pytest.raises(UserError, match="no image or video at .*nothing"):
        run_predict(trained, tmp_path / "nothing*")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="None of the inputs could be read"):
        run_predict(trained, tmp_path / "b.jpg", output=str(tmp_path / "o"))
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match="There is no config.yaml beside"):
        predict(str(tmp_path / "w.pth"))
    for name in ("a.onnx", "a.PT2"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{name} is an exported file, not a checkpoint"):
            predict(str(tmp_path / name))


def test_inputs_that_cannot_be_used_are_skipped(trained, photos, tmp_path, capsys):
    Image.new("RGB", (5000, 1)).save(photos / "line.png")
    (photos / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "a.dds").write_bytes(b"DDS " + bytes(40))
    (photos / "v.mp4").write_bytes(b"not a video")
    out = tmp_path / "found"
    result = str(run_predict(trained, photos, output=str(out)))
    printed = capsys.readouterr()
    assert "3 images" in result and "4 inputs skipped" in result
    assert "(5000 x 1): nothing is left of it" in printed.err
    assert "is in HEIC" in printed.err or "photo.heic cannot be read" in printed.err
    assert sorted(p.name for p in out.glob("*.*g")) == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_a_video_that_cannot_be_read(trained, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"not a video")
    with pytest.raises(UserError, match="None of the inputs could be read"):
        run_predict(trained, tmp_path / "v.mp4", output=str(tmp_path / "found"))
    assert not list((tmp_path / "found").glob("[!.]*"))


def test_hard_links_to_an_input(trained, photos, tmp_path):
    out = tmp_path / "found"
    out.mkdir()
    os.link(photos / "00000.jpg", out / "00000.jpg")
    with pytest.raises(UserError, match="is an input, and would be written over"):
        run_predict(trained, photos, output=str(out), overwrite=True)


def test_models_by_name_and_with_a_config(trained):
    config = str(trained / "config.yaml")
    released = find_trained("tood_R50_FPN_1x")
    assert (
        released.weights == "tood://tood_R50_FPN_1x" and released.folder == "output/tood_R50_FPN_1x"
    )
    assert released.config_file.endswith("configs/tood_R50_FPN_1x.yaml")
    assert find_trained(str(trained)).weights == str(trained / "model_best.pth")
    weights = str(trained / "model_final.pth")
    named = find_trained(weights, "tood_R50_FPN_1x")
    assert named.weights == weights and named.config_file == released.config_file
    assert find_trained(weights, config).config_file == config
    with pytest.raises(UserError, match="No checkpoint or output folder at w.pth"):
        find_trained("w.pth", config)


# The last digit that a format has, in pixels of an image 100 pixels wide.
@pytest.mark.parametrize("to, digit", [("coco", 0), ("yolo", 1e-6), ("voc", 0.5), ("labelme", 0)])
def test_detections_are_saved_as_a_data_set(trained, photos, tmp_path, to, digit):
    shutil.copytree(photos, photos / "more" / "deep")  # of the same names
    out = str(tmp_path / "new" / "labelled")
    arguments = dict(output=out, save_as=to, score_threshold=0.01)
    result = run_predict(trained, photos, photos / "**", **arguments)
    assert result.num_images == 6 and result.num_detections > 6 and str(result).endswith(out)
    (part,) = read_data(out).parts.values()
    names = {c["id"]: c["name"] for c in part.content["categories"]}
    assert list(names.values()) == list(SHAPES)
    boxes = {image["id"]: [] for image in part.content["images"]}
    for a in part.content["annotations"]:
        boxes[a["image_id"]].append((names[a["category_id"]], a["bbox"]))
    left = {path: [*zip(x["names"], x["boxes"])] for path, x in result.detections.items()}
    for image in part.content["images"]:
        content = Path(part.image_root, image["file_name"]).read_bytes()
        # Copies in several folders have the same detections.
        path = next(path for path in left if content == Path(path).read_bytes())
        for (name, (x, y, w, h)), (expected, box) in zip(boxes[image["id"]], left[path]):
            assert name == expected
            assert [x, y, x + w, y + h] == pytest.approx(box.tolist(), abs=digit + 1e-12)
        assert len(boxes[image["id"]]) == len(left.pop(path))
    assert not left
    with pytest.raises(UserError, match="already contains files"):
        run_predict(trained, photos, **arguments)
    run_predict(trained, photos, overwrite=True, **arguments)
    (part,) = read_data(out).parts.values()
    assert len(part.content["images"]) == 3


def test_data_sets_that_cannot_be_saved(trained, photos, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"")
    out = str(tmp_path / "out")
    for images, output, save_as, says in (
        (photos, out, "vox", "--save-as is 'vox'; it must be one of coco, yolo"),
        (tmp_path / "v.mp4", out, "coco", "v.mp4 is a video"),
        (photos, str(tmp_path), "coco", "lies in .*; name another --output"),
    ):
        with pytest.raises(UserError, match=says):
            run_predict(trained, images, output=output, save_as=save_as, overwrite=True)
    assert not os.path.exists(out)


def test_images_in_sub_folders(trained, photos, tmp_path):
    (photos / "more" / "deep").mkdir(parents=True)
    for name in ("a.gif", "deep/b.avif", "deep/c.webp"):
        Image.new("RGB", (64, 64)).save(photos / "more" / name)
    (photos / "more" / "again").symlink_to(photos)
    (photos / "notes.pdf").write_text("not an image")
    result = run_predict(trained, photos, output=str(tmp_path / "a"))
    assert result.num_images == 3 and result.skipped == 0
    note = f" 3 images in sub-folders of {photos} are not among them; name '{photos}/**' for all."
    assert note in str(result)
    everything = run_predict(trained, photos, photos / "**", output=str(tmp_path / "b"))
    assert everything.num_images == 6 and "sub-folders" not in str(everything)
    with pytest.raises(UserError, match="no image or video at .*deep"):
        run_predict(trained, photos / "more" / "deep" / "x*")
    with pytest.raises(UserError, match=r"no image or video at .* 5 images in sub-folders"):
        (photos / "more" / "a.gif").unlink()
        run_predict(trained, photos / "more")
