"""Artefacts of a training: no command changes it, and none takes one artefact for another."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, app_error, clear_loggers, complaint
from PIL import Image

import tood
import train_net
from tood.checkpoint.identity import hash_weights
from tood.data.shapes import write_shapes_dataset
from tood.engine import train as engine_train
from tood.inference.exported import RUNTIMES, ExportedFile
from tood.utils.files import encode_json, write_json


@pytest.fixture
def run(trained, tmp_path, fresh_loggers):
    """A copy of a training without its report."""
    return copy_training(trained, tmp_path, "report")


@pytest.fixture
def reported(trained, tmp_path, fresh_loggers):
    """A copy of a training with its report."""
    return copy_training(trained, tmp_path)


def copy_training(trained, tmp_path, *without):
    ignored = shutil.ignore_patterns("detections", "eval", "explained", "drawings", *without)
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=ignored))


@pytest.fixture
def other(tmp_path):
    """Other images with the same classes."""
    write_shapes_dataset(str(tmp_path / "other"), num_images=4, seed=9, size=64)
    return tmp_path / "other"


def hash_files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(x.relative_to(folder)): hashlib.sha256(x.read_bytes()).hexdigest() for x in paths}


def read_strictly(path):
    """Parse JSON, or JSON lines, as parsers do that know no NaN."""

    def refuse(text):
        raise AssertionError(f"{path} has {text}")

    lines = path.read_text().splitlines() if path.name == "metrics.json" else [path.read_text()]
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize("name", ["eval", "report", "predict", "draw", "explain", "export"])
def test_no_command_changes_a_training(run, shapes, other, name):
    before = hash_files(run)
    image = str(shapes / "images" / "00001.jpg")
    calls = {
        "eval": lambda: [tood.evaluate(run), tood.evaluate(run, val_data=other)],
        "report": lambda: tood.report(run),
        "predict": lambda: tood.predict(run, image),
        "draw": lambda: tood.draw(run, num_images=2),
        "explain": lambda: tood.explain(run, image, (1, 1, 20, 20)),
        "export": lambda: tood.export(run, output=run / "new" / "a.ts", format="torchscript"),
    }
    folders = {"predict": "detections", "draw": "drawings", "explain": "explained", "export": "new"}
    calls[name]()
    after = hash_files(run)
    assert {path: after.get(path) for path in before} == before
    new = {path.split("/")[0] for path in after.keys() - before.keys()}
    assert new == {folders.get(name, name)}


def test_eval_only_does_not_touch_the_config(run, other):
    """It writes to the folder of a training, as Detectron2 does, and may be killed at any time."""
    config = run / "config.yaml"
    config.chmod(0o444)
    before = config.read_bytes(), config.stat().st_mtime_ns, config.stat().st_ino
    data = ["--val-data", f"{other}/annotations.json:{other}/images"]
    options = ["MODEL.WEIGHTS", str(run / "model_final.pth"), "OUTPUT_DIR", str(run), *TINY]
    argv = ["--config-file", str(config), "--eval-only", *data, *options]
    engine_train.main(train_net.parse_args(argv))
    assert (config.read_bytes(), config.stat().st_mtime_ns, config.stat().st_ino) == before
    assert "Full config saved" not in (run / "log.txt").read_text().split("eval_only=True")[1]
    assert read_strictly(run / "inference" / "results.json")[0]["identity"]["data"]


@pytest.mark.usefixtures("without_pictures")
def test_a_report_is_the_same_after_an_evaluation_on_other_data(run, other, tmp_path, monkeypatch):
    before = tood.report(run).metrics
    clear_loggers()
    evaluated = tood.evaluate(run, val_data=other)
    assert evaluated.folder == str(run / "eval" / "other")
    monkeypatch.chdir(tmp_path)
    again = tood.report(run, overwrite=True).metrics
    assert again == pytest.approx(before, abs=0, nan_ok=True)
    assert tood.load(run).metrics == {k: x for k, x in before.items() if x == x}


def test_evaluations_have_a_folder_for_each_data_set(run, other, tmp_path, shapes):
    twin = tmp_path / "twin" / "other"
    shutil.copytree(shapes, twin)
    found = []
    for arguments in (
        dict(val_data=other),
        dict(val_data=twin),  # other data of the same name
        dict(val_data=other),
        dict(model=run / "model_final.pth", val_data=other),
        dict(val_data=other, output=tmp_path / "typed"),
        dict(val_data=other, options=["OUTPUT_DIR", str(tmp_path / "option")]),
    ):
        found.append(tood.evaluate(**{"model": run, **arguments}))
        clear_loggers()
        (results,) = read_strictly(Path(found[-1].folder, "inference", "results.json"))
        assert set(results) == {"bbox", "alignment", "identity"} or "bbox" in results
        assert {"weights", "data"} <= set(results["identity"])
        assert "identity" not in found[-1].results
    names = [os.path.relpath(x.folder, run / "eval") for x in found[:4]]
    assert names == ["other", "other_2", "other", "other_model_final"]
    assert [x.folder for x in found[4:]] == [str(tmp_path / x) for x in ("typed", "option")]
    arguments = dict(output="a", options=["OUTPUT_DIR", "b"])
    assert "omit one of them" in complaint(tood.evaluate, run, **arguments)
    assert "contains a training" in complaint(tood.evaluate, run, output=str(run))


def test_results_of_augmented_views_are_printed_and_renewed(run, other, tmp_path):
    aug = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"]
    folder = tmp_path / "found"
    found = tood.evaluate(run, val_data=other, output=folder, options=aug)
    clear_loggers()
    line = re.search(r"\nwith test-time augmentation \(TEST.AUG\): AP ([0-9.]+)", str(found))
    assert line and float(line[1]) == pytest.approx(found.results["bbox_TTA"]["AP"], abs=0.05)
    assert list(folder.glob("TTA/inference/*.json"))
    assert "augmentation" not in str(tood.evaluate(run, val_data=other, output=folder))
    clear_loggers()
    assert not list(folder.glob("TTA/inference/*")) and list(folder.glob("inference/*.json"))


def change_weights(path):
    content = torch.load(path, weights_only=True)
    name = next(x for x in content["model"] if x.endswith("weight"))
    content["model"][name][:] += 1e-3
    torch.save(content, path)


@pytest.mark.usefixtures("without_pictures")
def test_thresholds_of_other_weights_are_refused(reported, shapes):
    run, image = reported, str(shapes / "images" / "00001.jpg")
    summary = json.loads((run / "report" / "report.json").read_text())
    assert summary["identity"]["weights"] == hash_weights(
        tood.load(run).predictor().model.state_dict()
    )
    assert tood.load(run).report == str(run / "report" / "report.html")
    detect = tood.load(run).predictor(score_threshold="from-report")
    assert detect.thresholds == tood.Predictor(run).thresholds  # by default
    assert detect.thresholds.values == [x["threshold"] for x in summary["classes"]]
    change_weights(run / "model_best.pth")  # as by a longer training
    commands = [
        ("predict", run, image, "--score-threshold", "from-report"),
        ("draw", run, "--score-threshold", "from-report"),
        ("explain", run, image, "1,1,20,20", "--score-threshold", "from-report"),
    ]
    remedy = f"tood report {run}/model_best.pth --overwrite writes one on these."
    for command in commands:
        message = app_error(*command)
        assert "report.json is the report on other weights than" in message
        assert message.endswith(remedy)
    assert sorted(x.name for x in run.iterdir() if x.is_dir()) == ["inference", "report"]
    note = "The thresholds of the report are not used: "
    text = str(tood.predict(run, image, output=run / "a.jpg"))
    assert " detections of at least 0.3, " in text and f"{note}{run}/report/report.json" in text
    assert tood.load(run).report == ""
    # A report of an older version.
    del summary["identity"]
    write_json(summary, str(run / "report" / "report.json"))
    assert "does not say which weights it is on; tood report" in app_error(*commands[0])
    tood.report(run, overwrite=True)
    assert tood.load(run).predictor(score_threshold="from-report") is not None


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "true", "null", '"0.5"', "-1", "1.5", "[0]"])
def test_thresholds_in_a_report_that_are_none(reported, shapes, wrong):
    path = reported / "report" / "report.json"
    summary = json.loads(path.read_text())
    summary["classes"][1]["threshold"] = "HERE"
    path.write_text(json.dumps(summary).replace('"HERE"', wrong))
    message = app_error("predict", reported, shapes / "images", "--score-threshold", "from-report")
    name = summary["classes"][1]["name"]
    assert f"report.json: the threshold of {name!r} is " in message
    assert "must be a number from 0 to 1; tood report " in message


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), True, -0.1, 1.1, "many", [0.5]])
def test_thresholds_that_are_none(trained, shapes, wrong):
    image = str(shapes / "images" / "00001.jpg")
    for call in (
        lambda: tood.predict(trained, image, score_threshold=wrong),
        lambda: tood.draw(trained, score_threshold=wrong),
        lambda: tood.explain(trained, image, (1, 1, 9, 9), score_threshold=wrong),
    ):
        assert "must be a number from 0 to 1" in complaint(call)


@pytest.mark.parametrize("key", ["score_threshold", "nms_threshold"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), True, -1, 2])
def test_thresholds_of_an_exported_file_that_are_none(tmp_path, monkeypatch, key, wrong):
    metadata = {
        **{"classes": ["disc"], "outputs": ["boxes", "scores"], "strides": [8, 16]},
        **{"input_format": "BGR", "preprocessing": "inside", "size_divisibility": 32},
        **{"pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1], "min_size": 64, "max_size": 64},
        **{"score_threshold": 0.1, "nms_threshold": 0.6},
        **{"candidates_per_level": 10, "max_detections": 10},
    }
    metadata["model"] = "TOOD"
    monkeypatch.setitem(RUNTIMES, "torchscript", ((".ts",), lambda path: (None, metadata)))
    (tmp_path / "a.ts").touch()
    assert ExportedFile(str(tmp_path / "a.ts")).metadata is metadata
    metadata[key] = wrong
    assert f"have no valid {key!r}" in complaint(ExportedFile, str(tmp_path / "a.ts"))


@pytest.mark.usefixtures("without_pictures")
def test_detections_of_other_data_are_refused(reported, other, tmp_path):
    run = reported
    evaluated = tood.evaluate(run, val_data=other)
    theirs = f"{evaluated.folder}/inference/coco_instances_results.json"
    mine = f"{run}/report/detections.json"
    for path in (theirs, mine):
        identity = json.loads(Path(path.replace(".json", ".identity.json")).read_text())
        assert len(identity["weights"]) == len(identity["data"]) == 64
    message = complaint(tood.report, run, compare=theirs, output=str(tmp_path / "a" / "r"))
    assert f"{theirs} contains detections of other data" in message
    data = f"{other}/annotations.json:{other}/images"
    arguments = dict(val_data=data, output=str(tmp_path / "a" / "r"))
    assert "detections of other data" in complaint(tood.report, results=mine, **arguments)
    assert not (tmp_path / "a").exists()  # a refused command leaves nothing
    made = tood.report(results=theirs, **arguments)
    assert made.metrics["AP"] == pytest.approx(evaluated.metrics["AP"], abs=1e-9)
    identities = [
        json.loads(Path(x, "report.json").read_text())["identity"]
        for x in (made.folder, run / "report")
    ]
    assert identities[0]["weights"] == identities[1]["weights"]
    assert identities[0]["data"] != identities[1]["data"]


def test_exports_and_predictions_name_their_weights(run, shapes, tmp_path):
    weights = hash_weights(tood.load(run).predictor().model.state_dict())
    exported = tood.export(run, output=tmp_path / "a.ts", format="torchscript")
    assert ExportedFile(exported.path).metadata["weights"] == weights
    image = shapes / "images" / "00001.jpg"
    found = tmp_path / "found.json"
    tood.predict(run, image, json=found, output=tmp_path / "drawn.jpg")
    assert read_strictly(found)[0]["info"]["weights"] == weights
    tood.predict(run, image, save_as="yolo", output=tmp_path / "yolo")
    assert read_strictly(tmp_path / "yolo" / "ledger.json")[0]["identity"]["weights"] == weights


def test_json_of_every_command_is_read_by_any_parser(reported, shapes, tmp_path):
    """Small data have metrics that are not defined."""
    run = reported
    assert "bbox/APl" in (run / "metrics.json").read_text()
    tood.evaluate(run)
    tood.predict(run, shapes / "images", json=tmp_path / "found.json", output=tmp_path / "drawn")
    tood.convert(shapes, output=tmp_path / "converted")
    paths = sorted(tmp_path.rglob("*.json"))
    assert {
        "metrics.json",
        "report.json",
        "detections.json",
        "results.json",
        "found.json",
        "ledger.json",
    } <= {x.name for x in paths}
    texts = [path.read_text() for path in paths if read_strictly(path)]
    assert len(texts) == len(paths) > 8 and sum("null" in x for x in texts) >= 3


def test_null_at_every_depth():
    import numpy as np

    wrong = [float("nan"), float("inf"), -np.inf, np.float32("nan"), np.float64("inf")]
    content = {"a": [wrong, ({"b": wrong[0]},)], "c": np.array([[1.5, np.nan]]), "d": np.int64(3)}
    content["e"] = torch.tensor([float("inf"), 2.0])
    read = json.loads(encode_json(content), parse_constant=lambda x: pytest.fail(x))
    nothing = [None] * len(wrong)
    assert read == {"a": [nothing, [{"b": None}]], "c": [[1.5, None]], "d": 3, "e": [None, 2.0]}


def test_what_is_refused_leaves_no_folder(trained, tmp_path):
    new = tmp_path / "a" / "b"
    (tmp_path / "broken.png").write_bytes(b"no image")
    for call in (
        lambda: tood.predict(trained, tmp_path / "broken.png", output=new),
        lambda: tood.report(results=tmp_path / "none.json", val_data="x.json", output=new),
        lambda: tood.explain(trained, tmp_path / "broken.png", (1, 1, 9, 9), output=new / "a.png"),
        lambda: tood.export(trained, output=new / "a.ts", format="torchscript", options=["X", "1"]),
        lambda: tood.draw(trained, val_data="none", output=new / "a.png"),
    ):
        complaint(call)
        assert not (tmp_path / "a").exists()


def test_drawings_are_not_written_over(run, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = shapes / "images" / "00001.jpg"
    calls = [
        lambda **more: tood.draw(run, num_images=1, **more),
        lambda **more: tood.explain(run, image, "-1,2.5,20,20", **more),
    ]
    expected = [run / "drawings" / "predictions.png", run / "explained" / "00001_-1_2.5_20_20.png"]
    for call, path in zip(calls, expected):
        assert call().output == str(path)
        assert Image.open(path).size[0] > 20
        assert "already exists" in complaint(call, output=path)
        before = path.read_bytes()
        assert call().output == str(path.with_name(f"{path.stem}-2.png"))
        assert path.read_bytes() == before
        assert call(overwrite=True).output == str(path)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["run"]


@pytest.mark.usefixtures("without_pictures")
def test_default_folders_count_up(run, shapes, capsys):
    """The folder in use is printed first; --overwrite and a typed --output are as they were."""
    image = shapes / "images" / "00001.jpg"
    for number in ("", "-2", "-3"):
        assert tood.predict(run, image).output == f"{run}/detections{number}"
        assert capsys.readouterr().out.splitlines()[0] == f"Output: {run}/detections{number}"
    before = hash_files(run / "detections-2")
    assert tood.predict(run, image, overwrite=True).output == f"{run}/detections"
    assert hash_files(run / "detections-2") == before and not (run / "detections-4").exists()
    assert "already exists" in complaint(tood.predict, run, image, output=run / "detections-2")
    (run / "report").mkdir()
    (run / "report" / "report.html").write_text("of before")
    capsys.readouterr()
    assert tood.report(run).folder == f"{run}/report-2"
    assert capsys.readouterr().out.splitlines()[0] == f"Output: {run}/report-2"
    assert (run / "report" / "report.html").read_text() == "of before"
    assert "already exists" in complaint(tood.report, run, output=run / "report")


def test_metrics_without_a_report(run):
    """They are those that the training has logged for its best weights."""
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    for name in ("model_best.pth", "model_final.pth"):
        metrics = tood.load(run / name).metrics
        assert metrics["AP"] == last["bbox/AP"] and "APl" not in metrics
        assert not any("-" in key for key in metrics)
