"""The predictor, and the functions that use a model: predict, report, explain and draw."""

import json
import os
import shutil
import threading

import analyze_alignment
import cv2
import numpy as np
import pytest
import torch
import visualize_assignment
from conftest import TINY
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from PIL import Image

import train_net
from tood import add_tood_config
from tood.app.explain import explain
from tood.app.predict import predict
from tood.app.report.make import report
from tood.data.shapes import SHAPES
from tood.engine import train as engine_train
from tood.inference.predictor import Predictor
from tood.utils.errors import UserError


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The folder of a training of a few steps, and its arguments."""
    out = tmp_path_factory.mktemp("trained")
    entry = f"{shapes}/annotations.json:{shapes}/images"
    config = out / "c.yaml"
    small = {"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": "64", "OUTPUT_DIR": str(out)}
    small.update({"SOLVER.MAX_ITER": "4", "SOLVER.STEPS": "()", "MODEL.TOOD.ATSS_ITERS": "2"})
    small.update({"SOLVER.IMS_PER_BATCH": "2", "MODEL.TOOD.NUM_CLASSES": "4", "SEED": "1"})
    small["MODEL.TOOD.SCORE_THRESH_TEST"] = "0.001"
    opts = [x for item in small.items() for x in item]
    base = engine_train.load_config("configs/tood_R18_GN_small_data.yaml", [*TINY, *opts])
    config.write_text(base.dump())
    data = ["--train-data", entry, "--val-data", entry]
    engine_train.main(train_net.parse_args(["--config-file", str(config), *data]))
    return out


@pytest.fixture
def photos(shapes, tmp_path):
    """A folder with three photos of different sizes, and a broken one."""
    folder = tmp_path / "photos"
    shutil.copytree(shapes / "images", folder)
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    with Image.open(folder / "00000.jpg") as image:
        image.resize((100, 64)).save(folder / "00000.jpg")
    return folder


def run_predict(trained, *images, **arguments):
    images = [str(x) for x in images]
    return predict(str(trained / "model_final.pth"), images, **arguments)


def test_predictor_says_what_evaluation_does(trained, shapes):
    predictor = Predictor(str(trained / "config.yaml"), str(trained / "model_final.pth"))
    assert predictor.class_names == list(SHAPES)
    results = json.loads((trained / "inference" / "coco_instances_results.json").read_text())
    paths = sorted((shapes / "images").iterdir())
    # One at a time, as the evaluation; a batch may swap detections whose scores are all but equal.
    for image_id, path in enumerate(paths, 1):
        instances = predictor(path)
        expected = [r for r in results if r["image_id"] == image_id]
        assert instances.scores.tolist() == [r["score"] for r in expected]
        x1, y1, x2, y2 = instances.pred_boxes.tensor.unbind(dim=1)
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1)
        torch.testing.assert_close(boxes, torch.tensor([r["bbox"] for r in expected]))


def test_predictor_takes_lists_paths_and_arrays(trained, photos):
    predictor = Predictor(str(trained / "config.yaml"), str(trained / "model_final.pth"))
    paths = sorted(photos.iterdir())
    arrays = [cv2.imread(str(path)) for path in paths]
    one_by_one = [predictor(str(path)) for path in paths]
    together = predictor(paths)
    found = [None] * len(paths)
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, predictor(paths[i])))
        for i in range(len(paths))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for alone, other, threaded in zip(one_by_one, together, found):
        torch.testing.assert_close(alone.scores, other.scores, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(alone.pred_boxes.tensor, threaded.pred_boxes.tensor)
    plain = predictor.as_dicts(arrays[1:2])[0]
    assert plain["boxes"].shape == (len(plain["scores"]), 4)
    assert plain["names"][0] == SHAPES[plain["classes"][0]]
    assert predictor.as_dicts(arrays[1])["scores"] == pytest.approx(plain["scores"])


def test_predictor_equals_default_predictor(trained, photos):
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(str(trained / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(trained / "model_final.pth")
    image = cv2.imread(str(photos / "00000.jpg"))
    expected = DefaultPredictor(cfg)(image)["instances"]
    actual = Predictor(cfg)(image)
    torch.testing.assert_close(actual.scores, expected.scores)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_predictor_options(trained, photos):
    files = (str(trained / "config.yaml"), str(trained / "model_final.pth"))
    all_of_them = Predictor(*files, score_threshold=0.0)(photos / "00001.jpg")
    threshold = all_of_them.scores[10].item()
    few = Predictor(*files, score_threshold=threshold, device="cpu", precision="bfloat16")
    assert few.model.precision_test == "bfloat16"
    assert 0 < len(few(photos / "00001.jpg")) < len(all_of_them)


def test_explain(trained, shapes, tmp_path):
    content = json.loads((shapes / "annotations.json").read_text())
    annotation, image = content["annotations"][0], content["images"][0]
    assert annotation["image_id"] == image["id"]
    path, output = str(shapes / "images" / image["file_name"]), str(tmp_path / "why.png")
    found = explain(str(trained), path, annotation["bbox"], output=output)
    name = {c["id"]: c["name"] for c in content["categories"]}[annotation["category_id"]]
    assert str(found).startswith(f"{name}: {found.sentence} In training, ")
    assert str(found).endswith(f"Its locations: {output}") and found.cause in found.sentence.lower()
    assert np.asarray(Image.open(output)).std() > 5
    # A box that is not annotated, of a class that is named.
    named = dict(class_name=SHAPES[1], output=output, overwrite=True)
    assert explain(str(trained), path, "1,1,9,9", **named).class_name == SHAPES[1]
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


def test_thresholds_of_classes(trained, photos):
    files = str(trained / "config.yaml"), str(trained / "model_final.pth")
    everything = Predictor(*files)(photos / "00001.jpg")
    thresholds = torch.full((4,), 2.0)
    thresholds[everything.pred_classes[0]] = everything.scores[2]
    found = Predictor(*files, score_threshold=thresholds.tolist())(photos / "00001.jpg")
    kept = everything.scores >= thresholds[everything.pred_classes]
    assert 0 < len(found) < len(everything)
    assert found.scores.tolist() == everything.scores[kept].tolist()
    with pytest.raises(UserError, match="must be a number, one for each of the 4 classes"):
        Predictor(*files, score_threshold=[0.5])
    with pytest.raises(UserError, match="must be a number, one for each of the 4 classes"):
        Predictor(*files, score_threshold="high")


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
    told = run_predict(trained, photos / "00001.jpg", score_threshold="from-report", **files)
    assert "at least the report's thresholds" in str(told)
    found = json.loads((tmp_path / "a.json").read_text())
    names = {x["id"]: x["name"] for x in found["categories"]}
    for x in found["annotations"]:
        assert x["score"] >= thresholds[names[x["category_id"]]]
    with pytest.raises(UserError, match="There is no report at .* tood report"):
        shutil.copy(trained / "model_final.pth", tmp_path)
        Predictor(
            str(trained / "config.yaml"),
            str(tmp_path / "model_final.pth"),
            score_threshold="from-report",
        )


@pytest.mark.parametrize(
    "image, says",
    [
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\) of uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        ("no/such.jpg", r"no/such.jpg cannot be read"),
    ],
)
def test_predictor_refuses(trained, image, says):
    predictor = Predictor(str(trained / "config.yaml"), str(trained / "model_final.pth"))
    with pytest.raises(UserError, match=says):
        predictor(image)


def test_predictor_checks_a_config_of_python(trained, photos):
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(str(trained / "config.yaml"))
    weights = str(trained / "model_final.pth")
    cfg.MODEL.DEVICE = "cuda"
    assert len(Predictor(cfg, weights, score_threshold=1)(photos / "00001.jpg")) == 0
    with pytest.raises(UserError, match="float16 needs a GPU"):
        Predictor(cfg, weights, precision="float16", device="cpu")


def test_predictor_without_weights(trained):
    with pytest.raises(UserError, match="No checkpoint given"):
        Predictor(str(trained / "config.yaml"))
    with pytest.raises(UserError, match="There is no config named 'tood_R51'"):
        Predictor("tood_R51", "weights.pth")


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
    nothing = run_predict(trained, photos, score_threshold=2, output=f"{out}2")
    assert nothing.num_detections == 0 and nothing.num_images == 3
    with Image.open(out / "00001.jpg") as drawn, Image.open(f"{out}2/00001.jpg") as plain:
        changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(plain)).max(axis=2) > 60
        assert changed.mean() > 0.01  # boxes
    content = json.loads((out / "d.json").read_text())
    assert [i["width"] for i in content["images"]] == [100, 64, 64]
    assert [c["name"] for c in content["categories"]] == list(SHAPES)
    found = Predictor(str(trained / "config.yaml"), str(trained / "model_final.pth"))
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


def test_analyze_alignment_of_two_models(trained, tmp_path, capsys):
    config, weights = str(trained / "config.yaml"), str(trained / "model_final.pth")
    content = torch.load(weights, weights_only=False)
    content["model"]["head.reg_pred.bias"] += 1.0  # larger boxes
    torch.save(content, tmp_path / "other.pth")
    models = [
        "--model",
        "one",
        config,
        weights,
        "--model",
        "other",
        config,
        f"{tmp_path}/other.pth",
    ]
    out = tmp_path / "alignment"
    argv = [*models, "--output", str(out), "--num-images", "2"]
    analyze_alignment.main(analyze_alignment.parse_args(argv))
    rows = json.loads((out / "alignment.json").read_text())
    one, other = (rows[name]["all"] for name in ("one", "other"))
    assert one["objects"] == other["objects"] == 21 and one["IoU"] != other["IoU"]
    printed = capsys.readouterr().out
    assert all(f"{found['IoU']:.3f}" in printed for found in (one, other))
    with pytest.raises(UserError, match="table.md already exists"):
        analyze_alignment.main(analyze_alignment.parse_args(argv))
    twice = analyze_alignment.parse_args([*models[:4], *models[:4], "--output", str(out)])
    with pytest.raises(UserError, match="Two models have one name"):
        analyze_alignment.main(twice)
    assert "## other" in (out / "table.md").read_text()
    for name in ("maps_0.png", "maps_1.png", "scatter.png", "histograms.png"):
        assert np.asarray(Image.open(out / name)).std() > 10
    assert not (out / "maps_2.png").exists()


def test_visualize_assignment(trained, tmp_path, capsys):
    drawing, weights = tmp_path / "a.png", str(trained / "model_final.pth")
    argv = ["--overwrite", "--config-file", str(trained / "config.yaml"), "--output", str(drawing)]
    main, parse = visualize_assignment.main, visualize_assignment.parse_args
    main(parse([*argv, "--num-images", "2", "--weights", weights]))
    printed = capsys.readouterr().out
    assert "00000.jpg" in printed and "TAL: largest t" in printed
    width, height = Image.open(drawing).size
    assert width == 2 * 360 + 4 and height == 2 * (360 + 22) + 4
    main(parse([*argv, "--image", "00003.jpg", "--weights", weights, weights]))
    assert capsys.readouterr().out.count("model_final.pth: 00003.jpg") == 2
    with pytest.raises(UserError, match="There is no image 7.jpg"):
        main(parse([*argv, "--image", "7.jpg", "--weights", weights]))


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
    assert sorted(p.name for p in out.iterdir()) == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_a_video_that_cannot_be_read(trained, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"not a video")
    with pytest.raises(UserError, match="None of the inputs could be read"):
        run_predict(trained, tmp_path / "v.mp4", output=str(tmp_path / "found"))
    assert not list((tmp_path / "found").glob("*"))


def test_hard_links_to_an_input(trained, photos, tmp_path):
    out = tmp_path / "found"
    out.mkdir()
    os.link(photos / "00000.jpg", out / "00000.jpg")
    with pytest.raises(UserError, match="is an input, and would be written over"):
        run_predict(trained, photos, output=str(out), overwrite=True)


def test_a_wrong_option_of_the_predictor(trained):
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(str(trained / "config.yaml"))
    with pytest.raises(
        UserError, match=r"An option is wrong: .*NUM_CLASES; did you mean MODEL.TOOD"
    ):
        Predictor(cfg, str(trained / "model_final.pth"), opts=["MODEL.TOOD.NUM_CLASES", "3"])


def test_clients_of_detectron2_know_the_classes(trained):
    """As a program that reads the config of a training with Detectron2's means."""
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(str(trained / "config.yaml"))
    name = cfg.DATASETS.TEST[0]
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    cfg.MODEL.WEIGHTS = str(trained / "model_final.pth")
    assert DefaultPredictor(cfg).metadata.thing_classes == list(SHAPES)
    assert len(DatasetCatalog.get(name)) == 8
