"""What is typed takes effect or is refused, and no file of others is written over."""

import json
import re
import shutil

import pytest
import torch
from conftest import CONFIG, complaint
from PIL import Image

import tood
from tood.app import cli
from tood.app.plan import resume

BOX = (8, 8, 20, 20)


def draw_on(command, trained, image, data):
    """Return what is said of a drawing that is to replace a photograph."""
    calls = {
        "explain": lambda: tood.explain(
            trained, image, (8, 8, 20, 20), output=image, overwrite=True
        ),
        "draw": lambda: tood.draw(trained, output=image, overwrite=True),
        "check": lambda: tood.check(data, output=image, overwrite=True),
        # Of another image, to the name of the photograph.
        "predict": lambda: tood.predict(
            trained, sorted(image.parent.glob("*.jpg"))[1], output=image, overwrite=True
        ),
        "sheet": lambda: tood.predict(
            trained, image, output=data / "found", sheet=image, overwrite=True
        ),
    }
    return complaint(calls[command])


@pytest.mark.parametrize("command", ["explain", "draw", "check", "predict", "sheet"])
def test_photographs_are_not_drawn_over(command, trained, photo_folder):
    image = photo_folder / "images" / "00000.jpg"
    before = image.read_bytes()
    message = draw_on(command, trained, image, photo_folder)
    assert str(image) in message and "written over" in message
    assert image.read_bytes() == before


@pytest.mark.parametrize("ending", ["bmp", "webp", "tif"])
def test_drawings_without_a_mark_are_kept(ending, trained, photo_folder):
    image, mine = photo_folder / "images" / "00000.jpg", photo_folder / f"mine.{ending}"
    Image.new("RGB", (9, 9)).save(mine)
    message = complaint(tood.predict, trained, image, output=mine, overwrite=True)
    assert "mine." in message and "not marked as drawn by tood" in message
    assert Image.open(mine).size == (9, 9)


def test_drawings_are_drawn_over(trained, photo_folder):
    images = sorted((photo_folder / "images").glob("*.jpg"))
    for image in images[:2]:
        tood.predict(trained, image, output=photo_folder / "found.jpg", overwrite=True)


def test_files_of_others_are_no_place_for_detections(trained, photo_folder, tmp_path):
    shutil.copytree(trained, tmp_path / "mine")
    image, config = photo_folder / "images" / "00000.jpg", tmp_path / "mine" / "config.yaml"
    for path in (config, photo_folder / "annotations.json"):
        before = path.read_bytes()
        message = complaint(
            tood.predict, trained, image, output=tmp_path / "out", json=path, overwrite=True
        )
        assert str(path) in message and path.read_bytes() == before
    for _ in range(2):  # its own file may be replaced
        tood.predict(trained, image, output=tmp_path / "out", json="found.json", overwrite=True)


def test_evaluations_in_a_folder_of_others(trained, tmp_path, fresh_loggers):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("{}")
    message = complaint(tood.evaluate, trained, output=tmp_path / "mine")
    assert "mine contains other files" in message
    assert [x.name for x in (tmp_path / "mine").iterdir()] == ["metrics.json"]


@pytest.mark.slow
def test_the_config_of_an_earlier_evaluation_is_replaced(trained, tmp_path, fresh_loggers):
    for value in ("0.7", "0.5"):
        options = ["MODEL.TOOD.NMS_THRESH_TEST", value]
        tood.evaluate(trained, output=tmp_path / "out", options=options)
        assert f"NMS_THRESH_TEST: {value}" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "command, line",
    [
        ("report", "M --val-data a --val-data b"),
        ("guarantee", "M --calibration-data a --calibration-data b"),
        ("predict", "M --output a --output b"),
        ("train", "photos --output=a --output b"),
    ],
)
def test_flags_that_are_typed_twice(command, line, capsys):
    with pytest.raises(SystemExit) as error:
        cli.run(command, line.split())
    assert error.value.code == 2 and "is typed twice; omit one" in capsys.readouterr().err


def test_two_checkpoints(trained, photo_folder):
    weights, image = trained / "model_final.pth", photo_folder / "images" / "00000.jpg"
    options = ["MODEL.WEIGHTS", "other.pth"]
    for call in (
        lambda: tood.predict(weights, image, options=options),
        lambda: tood.evaluate(weights, options=options),
        lambda: tood.explain(weights, image, BOX, options=options),
    ):
        assert "model_final.pth and MODEL.WEIGHTS other.pth are typed" in complaint(call)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m, p: tood.predict(m, []), "list of images is empty"),
        (lambda m, p: tood.predict(m, p / "images", columns=3), "--columns is about --sheet"),
        (lambda m, p: tood.check(p, config="nope.yaml"), "--config-file is about the drawing"),
        (
            lambda m, p: tood.check(p, options=["MODEL.FOO", "1"]),
            "MODEL.FOO 1 is about the drawing",
        ),
        (lambda m, p: tood.check(p, overwrite=True), "--overwrite is about the drawing"),
        (
            lambda m, p: tood.export(m, output=p / "a.onnx", calibration_images=5),
            "--calibration-images is for",
        ),
        (
            lambda m, p: tood.train(p, group="zzz", dry_run=True),
            "--group zzz matches the name of no",
        ),
        (lambda m, p: tood.count(m, p / "images", overwrite=True), "--overwrite is of the images"),
        (lambda m, p: tood.calibrate(m, calibration_data=p, seed=-1), "--seed is -1"),
        (
            lambda m, p: tood.predict(m, p / "images", options=["MODEL.WEIGHTS", ""]),
            "MODEL.WEIGHTS is empty; name a checkpoint, or omit it",
        ),
        (
            lambda m, p: tood.evaluate(m, options=["SOLVER.BASE_LR", 1]),
            "SOLVER.BASE_LR is an option of trainings; a trained model has no use for it",
        ),
        (
            lambda m, p: tood.predict(m, p / "images", options={"INPUT.MIN_SIZE_TRAIN": (96,)}),
            "INPUT.MIN_SIZE_TRAIN is an option of trainings",
        ),
        (
            lambda m, p: tood.predict(m, p / "images", options=["OUTPUT_DIR", "a"]),
            "OUTPUT_DIR a has no effect",
        ),
        (lambda m, p: tood.draw(m, options={"OUTPUT_DIR": "a"}), "OUTPUT_DIR a has no effect"),
        (
            lambda m, p: tood.export(m, output=p / "a.onnx", options={"OUTPUT_DIR": "a"}),
            "OUTPUT_DIR a has no effect",
        ),
        (lambda m, p: tood.load(m).predictor(opts=["SEED", 2]), "SEED is an option of trainings"),
        (
            lambda m, p: tood.evaluate(m, options=["SOLVER.BASE_LRR", 1]),
            "key: SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR?",
        ),
        (
            lambda m, p: tood.report(results="a", val_data="b", output="c", options=["SEED", 1]),
            "--results needs no config",
        ),
        (
            lambda m, p: tood.train(p, output=p / "annotations.json", dry_run=True),
            "annotations.json (--output) cannot be written to",
        ),
    ],
)
def test_what_would_have_no_effect(call, says, trained, photo_folder):
    assert says in complaint(call, trained, photo_folder)


def test_values_of_the_training_may_be_repeated(trained):
    options = tood.load(trained).options(["SEED", 1, "SOLVER.STEPS", "()"])
    assert options[-4:] == ["SEED", 1, "SOLVER.STEPS", "()"]


def test_a_model_that_was_trained_in_float16_on_a_gpu(trained, photo_folder, tmp_path):
    """It is used on a CPU in the precision of inference."""
    model = shutil.copytree(trained, tmp_path / "model")
    config = (model / "config.yaml").read_text()
    assert "PRECISION_TRAIN: float32" in config
    (model / "config.yaml").write_text(config.replace("_TRAIN: float32", "_TRAIN: float16"))
    assert tood.Predictor(model).class_names == tood.Predictor(trained).class_names
    options = ["MODEL.TOOD.PRECISION_TRAIN", "float16"]
    message = complaint(tood.train, photo_folder, options=options, dry_run=True)
    assert "float16 needs a GPU" in message


def test_a_gpu_that_is_typed(trained, photo_folder, tmp_path, monkeypatch):
    """A config may name one, as those of other machines do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = complaint(tood.train, photo_folder, device="cuda", dry_run=True)
    assert message.startswith("MODEL.DEVICE, or --device of tood train, is cuda, but PyTorch finds")
    assert "finds no GPU" in complaint(tood.evaluate, trained, options=["MODEL.DEVICE", "cuda:1"])
    cfg = tood.Predictor(trained).cfg
    assert "finds no GPU" in complaint(tood.Predictor, cfg, device="cuda")
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"_BASE_: {CONFIG}\nMODEL: {{DEVICE: cuda}}\n")
    message = complaint(resume.read_changes, str(plan), ["MODEL.DEVICE", "cuda"], "out")
    assert "finds no GPU" in message and not resume.read_changes(str(plan), [], "out").after


@pytest.mark.parametrize(
    "argv, name",
    [
        (["train", "photos", "--output", ""], "--output"),
        (["train", "", "--output", "a"], "DATA"),
        (["predict", "m", ""], "IMAGES"),
        (["eval", "m", "--val-data", "photos", "--val-data", ""], "--val-data"),
    ],
)
def test_an_empty_value_is_refused(argv, name, photo_folder, capsys):
    """As of a variable of the shell that is not set."""
    with pytest.raises(SystemExit):
        cli.main(argv)
    message = capsys.readouterr().err
    assert message.startswith(f"error: tood {argv[0]}: {name} is empty; type a value")


def test_values_of_the_network_are_settings(trained):
    plain = tood.Predictor(trained).settings
    assert json.loads(json.dumps(plain)) == plain
    for options in (["INPUT.FORMAT", "BGR"], ["MODEL.FPN.FUSE_TYPE", "avg"]):
        assert tood.Predictor(trained, opts=options).settings != plain
    for options in (["MODEL.TOOD.SCORE_THRESH_TEST", "0.2"], ["MODEL.DEVICE", "cpu"]):
        assert tood.Predictor(trained, opts=options).settings == plain


def test_an_explanation_at_a_lower_threshold_than_the_models(trained, photo_folder, tmp_path):
    """As in predictions, a typed threshold decides; a lower one than the model's is applied."""
    image, typed = photo_folder / "images" / "00000.jpg", ["MODEL.TOOD.SCORE_THRESH_TEST", 0.99]
    why = tood.explain(trained, image, BOX, options=typed)
    assert why.setting.endswith("SCORE_THRESH_TEST"), why
    for threshold in (0.0005, 0.98):
        flags = dict(score_threshold=threshold, options=typed)
        assert "omit one of them" in complaint(tood.explain, trained, image, BOX, **flags)
    config = tmp_path / "high.yaml"
    text = (trained / "config.yaml").read_text()
    config.write_text(re.sub(r"SCORE_THRESH_TEST: 0.001", "SCORE_THRESH_TEST: 0.99", text))
    low, high = (
        tood.explain(trained, image, BOX, score_threshold=0.0005, config=x) for x in ("", config)
    )
    assert (high.cause, high.sentence) == (low.cause, low.sentence)
    why = tood.explain(trained, image, BOX, score_threshold=0.98, config=config)
    assert why.setting.endswith("--score-threshold"), why
