"""``tood train``: from a folder to a detector."""

import json
import math
import os
import re
import shlex
import shutil
import types
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIG, SMALL, TINY, app_error, clear_loggers
from detectron2.data import DatasetCatalog
from opens import OPENS
from PIL import Image

import tood
from tood.app import cli
from tood.app import train as command
from tood.app.evaluate import Evaluated
from tood.app.train import choose_output
from tood.app.trained import name_data
from tood.data.annotations import read_annotations
from tood.data.shapes import write_shapes_dataset
from tood.engine.train import Run
from tood.modeling.detector import TOOD


def test_a_dry_run_writes_nothing(photo_folder, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    cli.main(["train", "photos", "--dry-run", *SMALL])
    out = capsys.readouterr().out
    assert out.count("4: disc, square, triangle, star") == 1
    assert "2 images, split off" in out
    assert re.search(r"images +8: all 8\n", out) and re.search(
        r"objects +\d+ of \d+ in 1 files", out
    )
    assert re.search(r"image size +64, longer side at most 64:", out)  # as typed
    assert "iterations, 100 times all images; learning rate 0.01" in out
    assert "output/photos, config plan.yaml" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("without_steps")
def test_small_objects_in_large_images_are_seen_in_tiles(photo_folder, tmp_path, capsys):
    folder = tmp_path / "large"
    for part, size in (("train", 1000), ("val", 400)):
        write_shapes_dataset(str(folder / part), 1, size, size, crowded=True)
    cli.main(["check", "large:train"])
    checked = capsys.readouterr().out
    tiles = re.search(r"tiles of (\d+) pixels that overlap by (\d+)", checked).groups()
    flags = ["large", "--output", "out", "--epochs", "0.02"]
    cli.main(["train", *flags, "--no-report", *SMALL, "INPUT.TILES.EMPTY_SHARE", "0.5"])
    printed = capsys.readouterr().out
    assert f"of {tiles[0]} pixels that overlap by {tiles[1]}" in printed and "tile size" in printed
    plan = yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())["INPUT"]
    assert [str(plan["TILES"][key]) for key in ("SIZE", "OVERLAP")] == list(tiles)
    assert plan["MIN_SIZE_TRAIN"] == [plan["MAX_SIZE_TRAIN"]]
    assert 256 <= int(tiles[0]) < 400 and 16 <= int(tiles[1]) <= 32
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["INPUT"]["TILES"]
    assert config["EMPTY_SHARE"] == 0.5 and config["SIZE"] == int(tiles[0])
    assert (tmp_path / "out" / "predictions.png").is_file()
    assert not (tmp_path / "out" / "report").exists()
    cli.main(["train", *flags[:2], "off", "--dry-run", *TINY, "INPUT.TILES.SIZE", "0"])
    assert "tiles" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def counted(shapes, tmp_path_factory):
    """Return the result of ``tood.train`` after two epochs, and what it has opened and built."""
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "photos"
    shutil.copytree(shapes, data)
    output = folder / "my output"
    options = [*SMALL, "MODEL.TOOD.SCORE_THRESH_TEST", "0.0", "TEST.EVAL_PERIOD", "2"]
    built, build = [], TOOD.__init__
    with pytest.MonkeyPatch.context() as patch, OPENS as opens:
        patch.setattr(TOOD, "__init__", lambda *a, **k: built.append(1) or build(*a, **k))
        trained = tood.train(str(data), epochs=2, output=str(output), options=options)
    clear_loggers()
    return trained, opens, len(built), data


@pytest.fixture(scope="module")
def finished(counted):
    return Path(counted[0].folder)


@pytest.mark.slow
def test_train_alone_does_the_right_thing(finished, counted):
    parts = [json.loads((finished / "data" / f"{p}.json").read_text()) for p in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [6, 2]
    for part in parts:  # named relative to the file
        assert all((finished / "data" / x["file_name"]).is_file() for x in part["images"])
        assert all(not Path(x["file_name"]).is_absolute() for x in part["images"])
    ledger = json.loads((finished / "data" / "ledger.json").read_text())
    assert ledger["splits"]["all"]["num_images"] == 8 and len(ledger["files"]) == 9
    for path in finished.rglob("*.json"):  # NaN is not JSON
        content = path.read_text()
        for text in content.splitlines() if path.name == "metrics.json" else [content]:
            json.loads(text, parse_constant=lambda x: pytest.fail(x))
    plan = yaml.safe_load((finished / "plan.yaml").read_text())
    assert plan["SOLVER"]["MAX_ITER"] == 3 and plan["SOLVER"]["STEPS"] == [2]
    assert plan["INPUT"]["MIN_SIZE_TRAIN"] == [64]  # as it was typed
    assert plan["MODEL"]["TOOD"]["NUM_CLASSES"] == 4
    assert plan["DATASETS"]["TRAIN"] == [str(finished / "data" / "train.json")]
    log = (finished / "log.txt").read_text()
    assert "AP50" in log and "beyond" not in log
    assert f"tood predict '{finished}/model_best.pth' IMAGES" in log
    with Image.open(finished / "predictions.png") as drawn:
        assert min(drawn.size) > 50
    assert (finished / "report" / "report.html").is_file()
    trained_on = yaml.safe_load(
        (finished / "config.yaml").read_text().replace("!!python/tuple", "")
    )
    assert trained_on["INPUT"]["MIN_SIZE_TRAIN"] == [64]


@pytest.mark.slow
def test_the_result_says_what_came_out(finished, counted):
    trained = counted[0]
    assert trained.weights == str(finished / "model_best.pth")
    assert trained.report == str(finished / "report" / "report.html")
    evaluated = tood.evaluate(str(finished)).metrics
    clear_loggers()
    assert trained.metrics["AP"] == pytest.approx(evaluated["AP"], abs=1e-6)
    loaded = tood.load(str(finished))
    assert loaded == command.dataclasses.replace(trained, plan="")
    detect = loaded.predictor(score_threshold=0.0)
    found = detect(str(counted[3] / "images" / "00001.jpg"))
    assert len(found) and detect.class_names == ["disc", "square", "triangle", "star"]


@pytest.mark.slow
def test_data_are_read_once(counted):
    """Annotations, configs, images and models: what one training of a folder may open."""
    trained, opens, built, data = counted
    assert built <= 2
    written = [Path(trained.folder, "data", f"{part}.json") for part in ("train", "val")]
    annotations = [data / "annotations.json", *written]
    counts = {path.name: opens[os.path.realpath(path)] for path in annotations}
    assert all(count <= 4 for count in counts.values()), counts
    configs = {path: number for path, number in opens.items() if str(path).endswith(".yaml")}
    assert 2 <= sum(configs.values()) <= 12, configs
    num_evaluations = 5  # of the weights and their average twice each, and that of the report
    for part, most in (("val", 3 + num_evaluations), ("train", 2 + 2)):  # 2 epochs
        json_file = Path(trained.folder, "data", f"{part}.json")
        content = read_annotations(str(json_file), str(json_file.parent), to_train=True)
        images = [json_file.parent / image["file_name"] for image in content["images"]]
        counts = {path.name: opens[os.path.realpath(path)] for path in images}
        assert all(1 <= count <= most for count in counts.values()), counts


@pytest.mark.slow
def test_evaluate_predict_export(finished, shapes, tmp_path, fresh_loggers, capsys):
    cli.main(["eval", str(finished)])
    out = capsys.readouterr().out
    assert "AP50" in out and "Environment info" not in out  # a page for the log alone
    evaluated = finished / "eval" / "val"
    assert "Environment info" in (evaluated / "log.txt").read_text()
    results = json.loads((evaluated / "inference" / "results.json").read_text())
    assert set(results["bbox"]) >= {"AP", "AP50"}
    image = str(shapes / "images" / "00001.jpg")
    found = ["--output", str(tmp_path / "found.jpg"), "--json", str(tmp_path / "found.json")]
    cli.main(["predict", str(finished), *found, "--score-thresh", "0.1", image])
    assert (tmp_path / "found.jpg").is_file()
    names = [c["name"] for c in json.loads((tmp_path / "found.json").read_text())["categories"]]
    assert names == ["disc", "square", "triangle", "star"]


@pytest.mark.slow
def test_runs_of_one_process_do_not_share_a_log(finished, shapes, tmp_path, capsys):
    data = f"{shapes}/annotations.json:{shapes}/images"
    before, config = ((finished / name).read_text() for name in ("log.txt", "config.yaml"))
    for name in ("a", "b"):
        output = str(tmp_path / name)
        options = [*SMALL, "OUTPUT_DIR", output]
        tood.evaluate(str(finished), val_data=data, options=options)
        out = capsys.readouterr().out
        assert (tmp_path / name / "log.txt").read_text().count("copypaste: Task: bbox") == 1
        assert out == f"Evaluating; the log is {output}/log.txt ...\n"  # all else is there
    assert (finished / "log.txt").read_text() == before
    tood.evaluate(str(finished), val_data=data)
    assert (finished / "log.txt").read_text() == before
    assert (finished / "config.yaml").read_text() == config


@pytest.mark.slow
def test_images_of_the_validation_data_are_predicted_by_default(finished, tmp_path):
    found = tood.predict(str(finished), output=str(tmp_path / "found"))
    content = json.loads((finished / "data" / "val.json").read_text())
    assert found.num_images == len(content["images"]) == 2


@pytest.mark.slow
def test_evaluate_takes_any_format(finished, shapes, tmp_path, fresh_loggers):
    """The same images and boxes as a CSV file."""
    content = json.loads((shapes / "annotations.json").read_text())
    images = {x["id"]: x["file_name"] for x in content["images"]}
    names = {x["id"]: x["name"] for x in content["categories"]}
    rows = ["filename,xmin,ymin,xmax,ymax,class"]
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        box = f"{x},{y},{x + w},{y + h}"
        rows.append(f"{images[a['image_id']]},{box},{names[a['category_id']]}")
    shutil.copytree(shapes / "images", tmp_path / "csv")
    (tmp_path / "csv" / "labels.csv").write_text("\n".join(rows))
    own = tood.evaluate(str(finished), val_data=f"{shapes}/annotations.json:{shapes}/images")
    clear_loggers()
    csv = tood.evaluate(str(finished), val_data=str(tmp_path / "csv"))
    assert csv.metrics["AP"] == pytest.approx(own.metrics["AP"], abs=1e-6)


@pytest.mark.slow
def test_models_that_cannot_be_found(finished, tmp_path):
    assert "No checkpoint or output folder at nothing" in app_error("predict", "nothing", "a.jpg")
    assert "contains no checkpoint" in app_error("predict", tmp_path, "a.jpg")
    (tmp_path / "lonely.pth").write_bytes(b"")
    assert "no config.yaml beside" in app_error(
        "export", tmp_path / "lonely.pth", "--output", "a.onnx"
    )


@pytest.mark.slow
def test_a_folder_is_not_written_over(finished, shapes):
    message = app_error("train", shapes, "--output", finished)
    assert "has been used already (it contains last_checkpoint); continue its training" in message


def test_torchrun_is_for_train_net(photo_folder, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert "torchrun with train_net.py" in app_error("train", "photos")


@pytest.mark.slow
def test_resume_refuses_other_data(finished, shapes, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shapes, other)
    message = app_error("train", other, "--output", finished, "--resume")
    assert "was begun with " in message and f"not with {other}" in message


@pytest.mark.slow
def test_a_folder_that_was_moved_with_its_data(counted, tmp_path, fresh_loggers):
    """Its config has the previous paths of the data; other data may be there now."""
    folder = Path(counted[0].folder)
    shutil.copytree(folder.parent, tmp_path / "moved")
    moved = tmp_path / "moved" / folder.name
    (moved / "data" / "val.json").write_text(
        (moved / "data" / "val.json").read_text().replace("disc", "disk")
    )
    options = tood.load(str(moved)).options()
    assert str((str(moved / "data" / "val.json"),)) in options
    evaluated = tood.evaluate(str(moved))
    assert evaluated.metrics.keys() >= {"AP", "AP50"}
    assert "disk" in Path(evaluated.folder, "log.txt").read_text()
    assert str(folder) not in tood.load(str(folder)).options()[5:]


def test_data_of_a_user_are_not_written_over(photo_folder, tmp_path):
    mine = tmp_path / "mine" / "data" / "train.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("of a user")
    assert "it contains data/train.json" in app_error("train", "photos", "--output", "mine")
    assert mine.read_text() == "of a user"


def test_resume_continues_by_the_plan(photo_folder, monkeypatch, tmp_path, without_steps):
    flags = ["--output", "out", "--epochs", "1", *SMALL]
    seen = []
    monkeypatch.setattr(command, "_run", lambda run, *_: seen.append(run) or tood_result())
    cli.main(["train", "photos", *flags])
    cli.main(["train", "photos", "--resume", *flags])
    first, second = seen
    assert second.resume and second.config_file == first.config_file == "out/plan.yaml"
    assert first.opts == second.opts == ["OUTPUT_DIR", "out"] and first.epochs is None
    # The flags change only the schedule of a config that is named.
    named = ["train", "photos", "--config-file", CONFIG, "--output"]
    cli.main([*named, "own", "--epochs", "1", *TINY])
    plan = yaml.safe_load((tmp_path / "own" / "plan.yaml").read_text())
    assert plan["SOLVER"]["MAX_ITER"] == 2 and "INPUT" not in plan  # 6 images, 4 of a step
    cli.main([*named, "whole", *TINY])
    assert "SOLVER" not in yaml.safe_load((tmp_path / "whole" / "plan.yaml").read_text())


@pytest.mark.parametrize("content", [None, {"iteration": "3"}, {"iteration": 3, "model": {}}])
def test_resume_leaves_a_bad_last_checkpoint_to_the_training(
    photo_folder, monkeypatch, tmp_path, capsys, without_steps, content
):
    """The training names it, and continues from the previous one."""
    monkeypatch.setattr(command, "_run", lambda run, *_: tood_result())
    flags = ["--output", "out", "--epochs", "5", *SMALL]
    cli.main(["train", "photos", *flags])
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000003.pth")
    path = tmp_path / "out" / "model_0000003.pth"
    path.write_bytes(b"half of it") if content is None else torch.save(content, path)
    for flag in ([], ["--dry-run"]):
        capsys.readouterr()
        cli.main(["train", "photos", "--resume", *flag, *flags])
        text = " ".join(capsys.readouterr().out.split())
        known = content is not None and "model" in content
        assert ("from model_0000003.pth, after 4 of" in text) == known
        assert ("from the last checkpoint that can be used, by plan.yaml." in text) != known


def test_a_training_that_is_stopped_before_it_begins_leaves_nothing(photo_folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        tood.train("photos", output="out", epochs=1, options=SMALL)
    assert not os.path.exists("out")


def test_no_error_of_a_report_loses_the_training(monkeypatch, tmp_path, caplog, fresh_loggers):
    """Such as that of a library which a machine without a screen does not have."""

    def report_on(*_, **__):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(command, "report_on", report_on)
    predictor = types.SimpleNamespace(options=types.SimpleNamespace(bit_depth=16))
    command._draw_and_report(predictor, str(tmp_path), True)
    assert "ImportError: libGL.so.1" in caplog.text and f"tood report {tmp_path}" in caplog.text


@pytest.mark.slow
def test_a_training_of_several_processes_is_reported_on(
    trained, entry, tmp_path, monkeypatch, capsys
):
    """They have registered the data, not the calling process."""
    out = tmp_path / "out"
    shutil.copytree(trained, out, ignore=shutil.ignore_patterns("report"))
    DatasetCatalog.remove(entry)
    monkeypatch.setattr(command, "start", lambda run: None)
    found = command._run(Run(str(out / "config.yaml"), is_reported=True), str(out))
    assert found.report == str(out / "report" / "report.html")
    assert found.metrics == tood.load(str(trained)).metrics
    assert (out / "predictions.png").is_file()
    assert f"Detections at the thresholds of {out}/report (" in capsys.readouterr().out


def test_several_processes_return_their_metrics(trained, tmp_path, monkeypatch):
    """One of them has written the file; the calling process has no part in it."""
    path = tmp_path / "inference" / "results.json"
    path.parent.mkdir()
    path.write_text('{"bbox": {"AP": 12.5, "APl": null}}')
    monkeypatch.setattr("tood.app.evaluate.start", lambda run: None)
    found = tood.evaluate(str(trained), num_gpus=2, options=["OUTPUT_DIR", str(tmp_path)])
    assert found.metrics["AP"] == 12.5 and math.isnan(found.metrics["APl"])
    assert str(found) == f"AP 12.5\nMetrics: {path}"


def test_metrics_are_lines_for_a_terminal():
    metrics = {"AP": 40.04, "AP50": 60.0, "APs": 1.0, "AP-a": 39.0, "AP-b": math.nan}
    metrics.update({f"AP-class {i}": float(i) for i in range(20)})
    first, *rest = str(Evaluated({"bbox": metrics}, "out")).splitlines()
    assert first == "AP 40.0, AP50 60.0" and rest[-1] == "Metrics: out/inference/results.json"
    assert " ".join(rest[:-1]).startswith("AP of classes: a 39.0, class 0 0.0, class 1 1.0")
    assert max(map(len, rest)) <= 80 and "b nan" not in " ".join(rest)
    several = Evaluated({"x": {"bbox": {"AP": 1.0}}, "y": {"bbox": {"AP": 2.0}}}, "out")
    assert str(several).splitlines()[:2] == ["x: AP 1.0", "y: AP 2.0"]


def test_options_are_part_of_the_plan(photo_folder, monkeypatch, tmp_path, capsys, without_steps):
    """--resume, and train_net.py with the plan, train by them without typing them again."""
    seen = []
    monkeypatch.setattr(command, "_run", lambda run, *_: seen.append(run) or tood_result())
    options = ["INPUT.MAX_SIZE_TRAIN", "96", "SOLVER.BASE_LR", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    cli.main(["train", "photos", "--output", "out", "--epochs", "1", *options])
    table = capsys.readouterr().out
    assert "image size       64, longer side at most 96:" in table and "learning rate 1\n" in table
    plan = yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())
    assert plan["INPUT"]["MIN_SIZE_TRAIN"] == [64] and plan["INPUT"]["MAX_SIZE_TRAIN"] == 96
    assert plan["SOLVER"]["BASE_LR"] == 1 and plan["OUTPUT_DIR"] == "out"
    assert seen[0].config.content["INPUT"]["MAX_SIZE_TRAIN"] == 96
    # The log of a training starts with this text.
    assert seen[0].datasets and "annotations" not in str(seen[0])


def test_a_refused_training_leaves_nothing(photo_folder, tmp_path):
    assert "There is no folder nothing" in app_error("train", "nothing")
    assert not (tmp_path / "output" / "nothing").exists()
    for flag in ("--epochs", "--images-per-step"):
        message = app_error("train", "photos", "--dry-run", flag, "0")
        assert f"{flag} is 0" in message and "more than 0" in message


def test_labels_without_an_image_stop_a_training(photo_folder, tmp_path):
    """Another program may have lost images; a training without them would say nothing."""
    for name in ("voc", "csv"):
        shutil.copytree("photos/images", name)
    box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    text = f"<annotation><object><name>disc</name>{box}</object></annotation>"
    rows = ["filename,xmin,ymin,xmax,ymax,class"]
    for i in range(9):  # of which there are eight images
        (tmp_path / "voc" / f"{i:05d}.xml").write_text(text)
        rows.append(f"{i:05d}.jpg,9,9,30,30,disc")
    (tmp_path / "csv" / "labels.csv").write_text("\n".join(rows))
    message = app_error("train", "voc", "--dry-run")
    assert "voc has 1 files of labels that belong to no image, for example 00008.xml" in message
    message = app_error("train", "csv", "--dry-run")
    assert "csv has 1 objects of images that are not there, for example 00008.jpg" in message
    (tmp_path / "voc" / "00008.xml").unlink()
    (tmp_path / "voc" / "more").mkdir()
    (tmp_path / "voc" / "more" / "00007.xml").write_text(text)
    assert "00007" in app_error("train", "voc", "--dry-run")


def tood_result():
    return command.Trained("", "", "")


@pytest.mark.usefixtures("without_steps")
def test_mistakes(photo_folder, tmp_path):
    other = tmp_path / "five.yaml"
    other.write_text(f"_BASE_: {CONFIG}\nMODEL: {{TOOD: {{NUM_CLASSES: 5}}}}")
    five = ["--config-file", str(other), "--output", "five"]
    assert "4 classes, but MODEL.TOOD.NUM_CLASSES is 5" in app_error("train", "photos", *five)
    assert not (tmp_path / "five").exists()
    assert "share of the validation part is 2.0" in app_error("train", "photos", "--val-share", "2")
    (photo_folder / "images" / "00003.jpg").write_bytes(b"no image")
    assert "images that cannot be read" in app_error("train", "photos")
    assert not (tmp_path / "output" / "photos" / "data").exists()
    (tmp_path / "empty").mkdir()
    assert "empty" in app_error("train", "empty")


def test_default_output_folders():
    def name(data, *options, output=""):
        return choose_output(data, output, options)

    assert name("~/my photos/") == "output/my photos"
    assert name("cells.json:images") == "output/cells"
    assert name("cells/train/annotations.json:cells/train/images") == "output/cells"
    assert name("a", output="b") == "b"
    assert name("a", "OUTPUT_DIR", "c") == "c"
    assert shlex.quote(name("a b")) == "'output/a b'"
    # Evaluations as well.
    entry = "demo/shapes/val/annotations.json:demo/shapes/val/images"
    assert name_data(entry) == "shapes" and name_data("cells:val") == "cells"
