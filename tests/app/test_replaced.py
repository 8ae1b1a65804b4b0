"""A command that is refused or fails changes nothing, and no file of others is removed."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import app_error, complaint
from PIL import Image

import tood
from tood.app import cli
from tood.app import predict as predict_module
from tood.app.convert import command as convert_module
from tood.app.report import plots
from tood.utils.files import name_part, write_image


def read_all(folder):
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def no_training(monkeypatch):
    def refuse(run):
        raise RuntimeError("trained")

    monkeypatch.setattr("tood.app.train.start", refuse)


OTHERS = [
    *("last_evaluation.json", "inference/results.json", "report/training.png"),
    *("data/val2017.json", "data/calibration.json", "metrics.json", "plan.yaml"),
    *("events.out.tfevents.1", "report/report.html", "predictions.png", "model_best.pth"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_a_training_would_replace(photo_folder, no_training, tmp_path, name):
    out = tmp_path / "mine"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("a user's")
    (out / "data").mkdir(exist_ok=True)
    (out / "data" / "big.zip.part").write_text("of a browser")
    before = read_all(out)
    says = complaint(tood.train, photo_folder, output=out)
    assert f"{out} has been used already (it contains {name})" in says
    assert read_all(out) == before


def test_parts_of_files_of_others(photo_folder, no_training, without_steps, tmp_path):
    out = tmp_path / "mine"
    for name in ("a.zip.part", "data/b.zip.part"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of a browser")
    with pytest.raises(RuntimeError, match="trained"):
        tood.train(photo_folder, output=out)
    assert {"a.zip.part", "data/b.zip.part"} == {*read_all(out)} - {".lock"}


def test_the_demo_keeps_what_is_in_its_folder(tmp_path, no_training):
    out = tmp_path / "out"
    for name in ("shapes/train/annotations.json", "model_final.pth"):
        shutil.rmtree(out, ignore_errors=True)
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("a user's")
        assert "name another" in complaint(tood.demo, output=out)
        assert read_all(out) == {name: b"a user's"}


# --- data sets ---------------------------------------------------------------------------------


@pytest.fixture
def audit(trained, photo_folder, tmp_path):
    """A data set of detections that a user corrects."""
    out = tmp_path / "audit"
    tood.count(trained, photo_folder / "images", audit=2, save_as="yolo", output=out)
    (out / "notes.txt").write_text("a user's")
    return out


@pytest.mark.parametrize(
    "flags",
    [
        dict(options=["MODEL.TOOD.NMS_THRES_TEST", "0.5"]),
        dict(score_threshold="guaranteed"),
        dict(options=["OUTPUT_DIR", "elsewhere"]),
    ],
)
def test_a_refused_count_keeps_the_earlier_audit(trained, photo_folder, audit, flags):
    before = read_all(audit)
    images = photo_folder / "images"
    complaint(tood.count, trained, images, audit=2, output=audit, overwrite=True, **flags)
    assert read_all(audit) == before


def test_predictions_of_images_that_cannot_be_read(trained, audit, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    before = read_all(audit)
    flags = dict(save_as="yolo", output=audit, overwrite=True)
    assert "None of the inputs" in complaint(
        tood.predict, trained, tmp_path / "broken.jpg", **flags
    )
    assert read_all(audit) == before


@pytest.mark.parametrize("to", ["yolo", "voc", "labelme", "coco"])
@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_conversion_that_fails(photo_folder, tmp_path, monkeypatch, to, is_stopped):
    out = tmp_path / "out"
    tood.convert(photo_folder, output=out, to="yolo")
    (out / "images" / "mine.jpg").write_bytes(b"a user's")
    (out / "empty").mkdir()
    before, write = read_all(out), convert_module.write_dataset

    def fail(parts, to, output):
        write(parts, to, output)
        raise KeyboardInterrupt if is_stopped else OSError("disk")

    monkeypatch.setattr(convert_module, "write_dataset", fail)
    with pytest.raises((KeyboardInterrupt, OSError)):
        tood.convert(photo_folder, output=out, to=to, overwrite=True)
    assert read_all(out) == before and (out / "empty").is_dir()
    monkeypatch.undo()
    tood.convert(photo_folder, output=out, to=to, overwrite=True)
    mine = os.path.join("images", "mine.jpg")
    after = read_all(out)
    assert after[mine] == b"a user's" and (out / "empty").is_dir()
    assert not [x for x in after if x.endswith(".part")]
    if to != "yolo":
        assert not [x for x in before if x.startswith("labels") and x in after]


@pytest.mark.parametrize("number", [1, 5])
def test_a_conversion_that_is_stopped_before_it_writes(photo_folder, tmp_path, monkeypatch, number):
    out = tmp_path / "out"
    tood.convert(photo_folder, output=out, to="yolo")
    before, replace, calls = read_all(out), os.replace, []

    def stop(*paths):
        calls.append(paths)
        if len(calls) == number:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(convert_module.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        tood.convert(photo_folder, output=out, to="voc", overwrite=True)
    assert read_all(out) == before


def test_a_conversion_that_cannot_be_undone(photo_folder, tmp_path, monkeypatch):
    """The files of the earlier one remain, and the error says where."""
    out = tmp_path / "out"
    tood.convert(photo_folder, output=out, to="yolo")
    before, replace = read_all(out), os.replace

    def fail(parts, to, output):
        def refuse(*paths):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(convert_module.os, "replace", refuse)
        raise OSError("disk")

    monkeypatch.setattr(convert_module, "write_dataset", fail)
    says = complaint(tood.convert, photo_folder, output=out, to="voc", overwrite=True)
    monkeypatch.setattr(convert_module.os, "replace", replace)
    (aside,) = out.glob(".*.part")
    assert f"the earlier data set is in {aside}" in says
    assert read_all(aside) == before


@pytest.mark.parametrize(
    "to, name",
    [
        ("coco", "all.json"),
        ("yolo", "labels/00000.txt"),
        ("voc", "JPEGImages/00000.jpg"),
        ("labelme", "00000.json"),
        ("labelme", "labels.txt"),
    ],
)
def test_other_files_of_the_names_that_are_written(photo_folder, tmp_path, to, name):
    out = tmp_path / "out"
    tood.convert(photo_folder, output=out, to="coco" if to != "coco" else "yolo")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("a user's")
    before = read_all(out)
    says = complaint(tood.convert, photo_folder, output=out, to=to, overwrite=True)
    assert name in says and "is not of the data set that is replaced" in says
    assert read_all(out) == before


def test_an_empty_folder_stays(photo_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (photo_folder / "images" / "00000.jpg").unlink()
    complaint(tood.convert, photo_folder, output=out)
    assert out.is_dir()


def test_originals_behind_a_link_are_kept(photo_folder, tmp_path):
    out, originals = tmp_path / "out", tmp_path / "originals"
    tood.convert(photo_folder, output=out, to="yolo")
    shutil.move(out / "images", originals)
    (out / "images").symlink_to(originals)
    before = read_all(originals)
    assert "lies in another folder" in complaint(
        tood.convert, photo_folder, output=out, to="voc", overwrite=True
    )
    assert read_all(originals) == before and (out / "classes.txt").exists()


# --- single files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report.json", "detections.json", "f1.png"])
def test_reports_do_not_replace_other_files(trained, tmp_path, name):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("a user's")
    assert f"{out / name} already exists" in complaint(tood.report, trained, output=out)
    assert read_all(out) == {name: b"a user's"}


def test_the_pictures_of_a_report_are_known(trained):
    assert {x.name for x in (trained / "report").glob("*.png")} <= {*plots.NAMES}


def test_a_guarantee_does_not_replace_a_picture(trained, photo_folder, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "guarantee.png").write_text("a user's")
    says = complaint(
        tood.guarantee, trained, miss_rate=0.5, calibration_data=photo_folder, output=out
    )
    assert "guarantee.png already exists" in says


@pytest.mark.parametrize(
    "flags, says",
    [
        (dict(save_as="coco", output="ds", json="ds/all.json"), "lies in the data set ds"),
        (dict(save_as="yolo", output="ds", sheet="./ds/a.png"), "lies in the data set ds"),
        (dict(output="./f", sheet="f/00000.jpg"), "would be written twice"),
        (dict(output="f", sheet="link/00001.jpg"), "would be written twice"),
        (dict(output="f", json="here"), "here is a folder; name a file"),
        (dict(output="f", json="new/"), "new/ is a folder; name a file"),
        (dict(output="f", sheet="here"), "here is a folder; name a file"),
    ],
)
def test_outputs_of_a_prediction_that_meet(trained, photo_folder, tmp_path, flags, says):
    for name in ("f", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "f")
    before = read_all(tmp_path)
    assert says in complaint(tood.predict, trained, photo_folder / "images", **flags)
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("name", ["a.psd", "a.webp", "a.pdf", "a.tif"])
def test_drawings_of_other_kinds(trained, photo_folder, tmp_path, name):
    image = photo_folder / "images" / "00000.jpg"
    before = read_all(tmp_path)
    says = complaint(tood.predict, trained, image, output=name)
    assert name in says and "name" in says and read_all(tmp_path) == before
    for sheet in ("s.webp", "s.mp4"):
        assert sheet in complaint(tood.predict, trained, image, output="f", sheet=sheet)
    assert not list((tmp_path).rglob("*.jpg.*"))


def test_folders_whose_names_have_a_dot(trained, photo_folder, tmp_path):
    tood.predict(trained, photo_folder / "images" / "00000.jpg", output="found.d")
    assert (tmp_path / "found.d" / "00000.jpg").exists()


def test_an_exported_file_in_the_place_of_a_folder(trained, tmp_path):
    (tmp_path / "a.ts").mkdir()
    flags = dict(output=tmp_path / "a.ts", format="torchscript", overwrite=True)
    assert "a.ts is a folder; name a file" in complaint(tood.export, trained, **flags)


def test_names_of_parts(tmp_path):
    """A name may be as long as the disk allows, and a part of another program is another file."""
    for length in (10, 240, 251):
        path = str(tmp_path / ("é" * (length // 2) + ".png"))
        for suffix in ("", ".mp4"):
            assert len(os.fsencode(os.path.basename(name_part(path, suffix)))) <= 255
        assert name_part(path) != name_part(path)
        write_image(np.zeros((4, 4, 3), np.uint8), path)
    old = tmp_path / "z.json.old.part"
    old.write_text("a user's")
    os.utime(old, (0, 0))
    left = tmp_path / "z.json.0123abcd.part"
    left.write_text("of a killed process")
    os.utime(left, (0, 0))
    tood.utils.files.write_json({}, str(tmp_path / "z.json"))
    assert old.exists() and not left.exists()


@pytest.fixture
def video(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "in" / "clip.part.mp4")
    os.makedirs(os.path.dirname(path))
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no videos")
    for value in (40, 90):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return path


def test_videos(trained, video, tmp_path):
    """Neither is one written over, nor a drawn one read as an input."""
    with open(video, "rb") as f:
        before = f.read()
    out = tmp_path / "in" / "clip.mp4"
    tood.predict(trained, video, output=out)
    with open(video, "rb") as f:
        assert f.read() == before
    found = tood.predict(trained, tmp_path / "in", output=tmp_path / "again")
    assert found.num_images == 2 and "1 drawings and output folders of tood" in str(found)
    cv2 = predict_module.cv2
    assert int(cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FRAME_COUNT)) == 2
    shutil.copy(video, tmp_path / "mine.mp4")
    flags = dict(output=tmp_path / "mine.mp4", overwrite=True)
    assert "mine.mp4 is not marked as drawn" in complaint(tood.predict, trained, video, **flags)
    assert "--sheet is of images, and all inputs are videos" in complaint(
        tood.predict, trained, video, output=tmp_path / "v", sheet=tmp_path / "s.png"
    )


# --- two values of one thing -------------------------------------------------------------------


@pytest.fixture
def other(trained, tmp_path):
    content = torch.load(trained / "model_final.pth", weights_only=True)
    content["model"] = {k: torch.zeros_like(x) for k, x in content["model"].items()}
    torch.save(content, tmp_path / "zero.pth")
    return str(tmp_path / "zero.pth")


def test_typed_weights_of_a_loaded_model(trained, photo_folder, other):
    model = tood.load(trained)
    opts = ["MODEL.WEIGHTS", other]
    assert model.predictor(opts=opts).options.weights == other
    assert model.predictor(opts={"MODEL.WEIGHTS": other}).options.weights == other


@pytest.mark.parametrize(
    "arguments, opts",
    [
        (dict(precision="float32"), ["MODEL.TOOD.PRECISION_TEST", "bfloat16"]),
        (dict(augment=False), ["TEST.AUG.ENABLED", "True"]),
        (dict(score_threshold=0.001), ["MODEL.TOOD.SCORE_THRESH_TEST", "0.9"]),
        (dict(score_threshold="guaranteed"), ["MODEL.TOOD.SCORE_THRESH_TEST", "0.9"]),
    ],
)
def test_an_argument_and_an_option(trained, arguments, opts):
    says = complaint(tood.load(trained).predictor, opts=opts, **arguments)
    assert opts[0] in says and opts[1] in says and "omit one of them" in says


def test_a_checkpoint_and_another_one(trained, other):
    files = (trained / "config.yaml", trained / "model_final.pth")
    says = complaint(tood.Predictor, *files, opts=["MODEL.WEIGHTS", other])
    assert "zero.pth" in says and "model_final.pth" in says
    same = os.path.relpath(files[1])
    assert tood.Predictor(*files, opts=["MODEL.WEIGHTS", same]).options.weights == str(files[1])


@pytest.mark.parametrize(
    "option",
    [["TEST.AUG.ENABLED", "True"], ["MODEL.TOOD.PRECISION_TEST", "bfloat16"]],
)
def test_options_that_no_exported_file_has(trained, tmp_path, option):
    flags = dict(output=tmp_path / "a.ts", format="torchscript", options=option)
    assert "has no effect on an exported file" in complaint(tood.export, trained, **flags)


@pytest.mark.parametrize(
    "option",
    [
        ["MODEL.TOOD.TEACHER", "a"],
        ["MODEL.TOOD.PRECISION_TRAIN", "bfloat16"],
        ["SOLVER.AMP.ENABLED", "True"],
        ["INPUT.TILES.EMPTY_SHARE", "0.5"],
    ],
)
def test_options_without_an_effect_on_predictions(trained, photo_folder, option):
    says = complaint(tood.predict, trained, photo_folder / "images", options=option)
    assert option[0] in says


@pytest.mark.parametrize("command", ["count", "calibrate", "guarantee"])
def test_other_output_folders_without_an_effect(trained, photo_folder, command):
    arguments = {
        "count": (trained, photo_folder / "images"),
        "calibrate": (trained,),
        "guarantee": (trained,),
    }[command]
    flags = {} if command == "count" else {"calibration_data": photo_folder}
    flags.update({"miss_rate": 0.5} if command == "guarantee" else {})
    options = ["OUTPUT_DIR", "elsewhere"]
    says = complaint(getattr(tood, command), *arguments, options=options, **flags)
    assert "OUTPUT_DIR elsewhere has no effect" in says


def test_a_key_with_two_values(trained, photo_folder):
    keys = ["TEST.DETECTIONS_PER_IMAGE", "5", "TEST.DETECTIONS_PER_IMAGE"]
    words = ["predict", trained, photo_folder / "images", *keys]
    says = app_error(*words, "6")
    assert "TEST.DETECTIONS_PER_IMAGE is typed as 5 and as 6; omit one of them" in says


def test_a_guarantee_of_other_weights_is_beside_them(trained, other):
    home = os.path.dirname(other)
    arguments = dict(miss_rate=0.5, calibration_data=trained / "none")
    says = complaint(
        tood.guarantee, trained, options=["MODEL.WEIGHTS", other], **arguments, output=""
    )
    assert "none" in says and not (trained / "guarantee").exists()
    assert os.path.isdir(home)


# --- values that look like something else ------------------------------------------------------


@pytest.mark.parametrize("value", ["seq=(.*)", "lr=0.01"])
def test_values_of_flags_that_contain_an_equals_sign(photo_folder, value):
    says = app_error("train", photo_folder, "--dry-run", "--group", value)
    assert f"--group {value}" in says.replace("'", "") and "does not take" not in says


def test_values_of_flags_that_are_called_like_a_key(trained, photo_folder):
    image = photo_folder / "images" / "00000.jpg"
    says = app_error("explain", trained, image, "1,1,9,9", "--class", "SEED")
    assert "SEED" in says and "expected one argument" not in says


def test_keys_with_an_equals_sign(trained, photo_folder):
    says = app_error("predict", trained, photo_folder / "images", "MODEL.DEVICE=cpu")
    assert "write tood predict" in says and says.endswith("MODEL.DEVICE cpu")
    keys = ("MODEL.DEVICE=cpu", "TEST.DETECTIONS_PER_IMAGE", "5")
    says = app_error("predict", trained, photo_folder / "images", *keys)
    assert says.endswith("MODEL.DEVICE cpu TEST.DETECTIONS_PER_IMAGE 5")
    assert "at cam.1=*.jpg" in app_error("predict", trained, "cam.1=*.jpg")


@pytest.mark.parametrize("value", ["1e3x", "-5", "0", "nan"])
def test_limits_of_pixels_that_are_none(photo_folder, monkeypatch, value):
    monkeypatch.setenv("TOOD_MAX_PIXELS", value)
    says = complaint(tood.check, photo_folder)
    assert f"TOOD_MAX_PIXELS is '{value}'; it must be a number of pixels" in says


@pytest.mark.parametrize("value", ["5e8", "500_000_000", "500000000"])
def test_limits_of_pixels(photo_folder, monkeypatch, value):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    monkeypatch.setenv("TOOD_MAX_PIXELS", value)
    tood.check(photo_folder)
    assert Image.MAX_IMAGE_PIXELS == 250_000_000


@pytest.mark.parametrize("image", [None, 5, b"a.jpg", torch.zeros(3), Image.new("RGB", (9, 9))])
def test_images_of_other_kinds(trained, image):
    predictor = tood.load(trained).predictor(score_threshold=np.array(0.5))
    assert predictor.thresholds.values == [0.5] * 4
    says = complaint(predictor.predict, [image])
    assert "must be a path or an array" in says or "An image must be an array" in says


def test_images_that_are_iterated_over(trained, photo_folder):
    model, paths = tood.load(trained), sorted((photo_folder / "images").iterdir())[:2]
    expected = [len(x) for x in model.predict(paths)]
    for images in ((x for x in paths), dict.fromkeys(paths), tuple(paths)):
        assert [len(x) for x in model.predict(images)] == expected
    assert [len(x) for x in model.predictor()(iter(paths))] == expected


def test_names_of_explanations_in_other_encodings(trained, photo_folder, tmp_path):
    image = os.path.join(str(tmp_path), os.fsdecode(b"caf\xe9" + b"x" * 90 + b".jpg"))
    shutil.copy(photo_folder / "images" / "00000.jpg", image)
    tood.explain(trained, image, (8, 8, 20, 20))
    assert list((trained / "explained").glob("cafx*"))


def test_an_empty_command(capsys):
    assert cli.main([""]) == 2 and "is not a command" in capsys.readouterr().err
    assert cli.main([]) == 2 and cli.main(["--help"]) == 0


def test_results_that_are_not_the_expected_ones(trained, tmp_path):
    expected = "[['bbox','AP',99.0,0.2]]"
    flags = dict(output=tmp_path / "e", options=["TEST.EXPECTED_RESULTS", expected])
    says = complaint(tood.evaluate, trained, **flags)
    assert "are not those of TEST.EXPECTED_RESULTS" in says
    assert "bbox" in json.loads((tmp_path / "e" / "inference" / "results.json").read_text())
