"""Advice on the next step with a model, by rules."""

import argparse
import json
import shlex

import pytest

from tood.app import cli
from tood.app.plan.advice import Advice, History, format_advice, list_advice, list_aps
from tood.app.plan.history import name_next, read_data_name, read_history
from tood.app.plan.rules import DataStatistics
from tood.app.plan.state import Wishes, list_words
from tood.app.trained import find_trained, name_data, read_predictor, read_records
from tood.inference.predictor import Predictor
from tood.utils.arguments import split_overrides

GOOD = DataStatistics(60, 600, small_object=0.2, aspect=1.0)


def make_history(*aps, steps=800, **changes):
    """A training of 60 images, for which the rule takes 800 steps of four."""
    data = dict(num_images=60, images_per_step=4, input_size=320, statistics=GOOD)
    data.update(class_counts={"disc": 400, "star": 200}, entry="out/data/train.json")
    return History(("my cells",), "out/cells-2", aps, steps)._replace(**{**data, **changes})


def make_summary(AP=40.0, missed=10, false=5, doubts=()):
    errors = [("classification", 2), ("background", false), ("missed", missed)]
    return {
        "metrics": {"AP": {"value": AP}},
        "data": {"objects": 100},
        "all_classes": {"threshold": 0.4},
        "errors": [{"kind": kind, "count_above": number} for kind, number in errors],
        "suspects": [{"doubt": x} for x in doubts],
    }


def advise(*args):
    found = list_advice("out/cells", *args)
    for advice in found:
        if advice.command:
            check_command(advice.command)
    return found


def check_command(line):
    words = shlex.split(line)
    flags, options = split_overrides(words[2:])
    cli.make_parser(words[1]).parse_intermixed_args(flags)
    assert not options or words[1] == "train"


def test_a_good_model_is_exported():
    (advice,) = advise(make_history(30, 38, 40, 41), make_summary())
    assert advice.command == "tood export out/cells --format onnx --output model.onnx"
    assert advise() == [advice] and list_advice() == []


@pytest.mark.parametrize(
    "aps, steps, says, command",
    [
        # 45 steps where the rule takes 800, about 53 times all images.
        ((0.1, 1.2), 45, "learned little in 45 steps (AP 1.2): train longer", "--epochs 53"),
        # As long as the rule says, and still rising.
        ((20, 30, 36, 39), 800, "from 36.0 to 39.0): train longer", "--epochs 107"),
        ((0, 0.5, 1, 2), 800, "learned little in 800 steps (AP 2.0)", "--epochs 107"),
        ((1, 2, 2, 2), 800, "are the boxes and classes right", "tood check 'my cells'"),
        ((20, 30, 36, 37), 800, None, None),  # by less than 5 %
        ((20, 30, 39, 36), 800, None, None),
        ((30, 33), 800, None, None),  # in half of a training by less than twice as much
        ((30, 34), 800, "from 30.0 to 34.0): train longer", "--epochs 107"),
        ((36,), 800, None, None),  # of one evaluation nothing is known
    ],
)
def test_a_training_that_is_too_short(aps, steps, says, command):
    found = advise(make_history(*aps, steps=steps))
    if says is None:
        assert "export" in found[0].command
    else:
        assert says in found[0].sentence and command in found[0].command


def test_a_longer_training_goes_to_another_folder():
    history = make_history(1, 2, 3, 4, steps=100)
    expected = "tood train 'my cells' --output out/cells-2 --epochs 53"
    assert advise(history)[0].command == expected
    # tood train counts its own folders up.
    default = advise(history._replace(output=""))[0]
    assert default.command == "tood train 'my cells' --epochs 53"
    # The command of train_net.py is not known.
    assert list_advice("out/cells", history._replace(words=()))[0].command == ""


def test_arguments_are_repeated_in_the_next_training():
    typed = ("cells", "--val-data", "my val", "--epochs", "3", "--images-per-step", "2")
    keys = ("SOLVER.MAX_ITER", "45", "SOLVER.BASE_LR", "0.02", "INPUT.MIN_SIZE_TRAIN", "(32, 64)")
    history = make_history(1, 2, 3, 4, steps=100, words=typed + keys)
    common = "tood train cells --val-data 'my val'"
    assert advise(history)[0].command == (
        f"{common} --images-per-step 2 --output out/cells-2 --epochs 53 SOLVER.BASE_LR 0.02 "
        "INPUT.MIN_SIZE_TRAIN '(32, 64)'"
    )
    small = GOOD._replace(small_object=0.02)
    longer = history._replace(aps=(40, 40), steps=800, statistics=small)
    assert advise(longer)[0].command == (
        f"{common} --epochs 3 --images-per-step 2 --output out/cells-2 --image-size 800 "
        "SOLVER.MAX_ITER 45 SOLVER.BASE_LR 0.02"
    )


def test_words_of_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my cells").mkdir()
    argv = ["my cells", "--epochs", "2.5", "--val-data", "my cells:val", "--batch", "2"]
    argv += ["--val-data", "registered", "--config-file", "tood_lite0_N_small_data", "SEED", "3"]
    flags, options = split_overrides(argv)
    args = cli.make_parser("train").parse_intermixed_args(flags)
    typed = Wishes(
        args.data,
        args.val_data,
        config=args.config,
        epochs=args.epochs,
        images_per_step=args.images_per_step,
        options=options,
    )
    again = argparse.Namespace(**vars(args), seed=3)
    words = list_words(Wishes(**json.loads(json.dumps(typed.as_dict()))))
    flags, options = split_overrides(words)
    assert cli.make_parser("train").parse_intermixed_args(flags) == again
    assert options == [] and typed.options == ["SEED", "3"]  # a separate flag


def test_the_folder_of_the_next_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("output/cells", "output/cells-7", str(tmp_path / "output" / "cells-3")):
        assert name_next(folder, "cells") == ""
    (tmp_path / "mine-2").mkdir()
    (tmp_path / "mine").mkdir()
    assert name_next("mine", "cells") == name_next("mine-2", "cells") == "mine-3"


def test_classes_with_few_objects():
    counts = {"disc": 400, **{f"rare {i}": i for i in range(3, 10)}, "star": 49}
    (advice,) = advise(make_history(40, 40, class_counts=counts))
    named = "rare 3 (3), rare 4 (4), rare 5 (5), rare 6 (6), rare 7 (7) and 3 more"
    assert f"Few objects to learn from: {named}." in advice.sentence
    assert advice.command.startswith("tood predict out/cells NEW_PHOTOS --save-as labelme")
    # One that has learned nothing draws no boxes.
    few = advise(make_history(2, 3, class_counts=counts))[1]
    assert few.sentence.endswith("of each class.") and few.command == ""


def test_objects_that_are_too_small_for_the_input():
    small = GOOD._replace(small_object=0.02)  # 6.4 of 320 pixels
    (advice,) = advise(make_history(40, 40, statistics=small))
    assert "less than 6.4 pixels in the network's input: train on larger" in advice.sentence
    assert advice.command.endswith("--output out/cells-2 --image-size 800")
    large = small._replace(small_object=0.004, small_pixels=8, large_pixels=40, shorter_side=2000)
    (advice,) = advise(make_history(40, 40, statistics=large, input_size=800))
    assert "train on tiles" in advice.sentence
    assert advice.command.endswith("INPUT.TILES.SIZE 256 INPUT.TILES.OVERLAP 48")
    enough = GOOD._replace(small_object=0.025)
    assert "export" in advise(make_history(40, 40, statistics=enough))[0].command
    unchanged = make_history(40, 40, statistics=small, input_size=0)
    assert "export" in advise(unchanged)[0].command


def test_errors_and_labels():
    history = make_history(40, 40)
    labels, missed = advise(history, make_summary(missed=30, doubts=(0.9, 0.6, 0.4)))
    assert labels.sentence.startswith("2 labels may be wrong or missing")
    assert "--val-data out/data/train.json" in labels.command
    assert missed.sentence.startswith("30 of 100 objects are missed")
    assert missed.command == "tood predict out/cells NEW_PHOTOS --score-threshold 0.20"
    # 75 found, 2 of another class, and 30 where nothing is.
    missed, false = advise(None, make_summary(missed=35, false=30))
    assert missed.sentence.startswith("35 of 100 objects are missed")
    assert false.sentence.startswith("30 of 97 detections are false alarms")
    # The errors of a model that has learned nothing say nothing.
    assert "export" in advise(None, make_summary(AP=2.0, missed=90))[0].command
    (missed,) = advise(history, make_summary(19.9, missed=30, doubts=(0.9, 0.6)))
    assert "labels" not in missed.sentence  # such a model says little about them
    unknown = list_advice("", None, make_summary(missed=30, doubts=(0.9,)))
    assert [x.command for x in unknown] == ["", ""] and "1 label may" in unknown[0].sentence


def test_the_most_useful_comes_first_and_the_list_is_short():
    history = make_history(
        10, 20, class_counts={"a": 3}, statistics=GOOD._replace(small_object=0.02)
    )
    found = advise(history, make_summary(missed=50, false=90, doubts=(0.9,)))
    openings = [x.sentence.split()[0] for x in found]
    assert openings == ["AP", "A", "Few", "1"]  # rising, a tenth of the objects, few, 1 label


def test_ap_of_the_weights_or_their_average():
    records = [
        {"iteration": 9, "bbox/AP": 10.0, "ema/bbox/AP": 12.0},
        {"iteration": 19, "bbox/AP": 14.0, "ema/bbox/AP": None},
        {"iteration": 4, "bbox/AP": float("nan")},
        {"total_loss": 1.0},
    ]
    assert list_aps(records) == [12.0, 14.0]
    again = [{"iteration": 9, "bbox/AP": 11.0}]  # after --resume
    assert list_aps([*records, *again]) == [11.0, 14.0]


def test_lines_for_a_terminal():
    text = format_advice([Advice("word " * 30, "tood " + "x" * 90), Advice("Short.")])
    lines = text.split("\n")
    assert lines[0] == "What next:" and lines[-1] == "- Short."
    assert [len(line) <= 80 for line in lines] == [True, True, True, False, True]
    assert lines[1].startswith("- word") and lines[2].startswith("  word")
    assert lines[3] == "    tood " + "x" * 90 and format_advice([]) == ""


@pytest.mark.slow
def test_the_history_of_a_training(trained, entry):
    predictor, _ = read_predictor(find_trained(str(trained)))
    history = read_history(predictor, list(read_records(str(trained))))
    assert history.steps == 4 and history.images_per_step == 2 and history.num_images == 8
    assert history.input_size == 64 and history.entry == entry
    assert list(history.class_counts) == ["disc", "square", "triangle", "star"]
    assert sum(history.class_counts.values()) == history.statistics.num_objects > 8
    assert history.words == ()  # train_net.py has no ledger
    gone = predictor.cfg.clone()
    gone.DATASETS.TRAIN = ("gone.json:images",)
    gone = read_history(Predictor.from_model(predictor.model, gone, predictor.class_names), [{}])
    assert gone.statistics is None and gone.entry == "" and gone.aps == []
    assert list_advice("m", gone)[0].command.startswith("tood export")


def test_the_name_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "data").mkdir(parents=True)
    ledger = tmp_path / "out" / "data" / "ledger.json"
    for data, expected in ((str(tmp_path / "my cells"), "my cells"), ("/cells", "/cells")):
        ledger.write_text(json.dumps({"data": data}))
        assert read_data_name("out") == expected
    ledger.write_text("[]")
    assert read_data_name("out") == read_data_name("nowhere") == ""
    assert name_data("out/data/val.json") == "out"
