"""The number of classes that nobody typed."""

import json

import pytest
import torch
from conftest import CONFIG, ROOT, TINY, get_error

import train_net
from tood.config.read import load_config
from tood.utils.errors import UserError

KEY = "MODEL.TOOD.NUM_CLASSES"


@pytest.fixture
def renamed(shapes, tmp_path):
    """Return a function that writes the shapes of some classes, under given names."""

    def write(name, **names):
        content = json.loads((shapes / "annotations.json").read_text())
        ids = {c["id"]: c["name"] for c in content["categories"] if c["name"] in names}
        content["categories"] = [{"id": i, "name": names[ids[i]]} for i in ids]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
        (tmp_path / name).write_text(json.dumps(content))
        return f"{tmp_path / name}:{shapes}/images"

    return write


def num_classes(train=(), val=(), opts=(), config_file=CONFIG, **kwargs):
    cfg = load_config(config_file, opts, train, val, **kwargs)
    return cfg.MODEL.TOOD.NUM_CLASSES


def test_it_is_that_of_the_data(entry, renamed):
    assert num_classes([entry], training=True) == 4
    assert num_classes(val=[entry]) == 4
    one = renamed("one.json", disc="disc")
    assert num_classes([one], training=True) == 1
    assert num_classes([entry], [one], training=True) == 4  # evaluated on less than it learns
    reordered = renamed("two.json", star="star", disc="disc", square="square", triangle="triangle")
    assert num_classes([entry], [reordered], training=True) == 4


def test_what_is_typed_stays(entry, command):
    assert num_classes([entry], opts=[KEY, "7"], training=True) == 7
    demo = str(ROOT / "configs" / "demo_shapes.yaml")  # states 4
    assert num_classes(["nothing.json"], config_file=demo, training=True) == 4
    assert "set it to 4" in get_error(command(opts=[KEY, "7"]))


def test_registered_data():
    assert num_classes(["coco_2017_train"], ["coco_2017_val"], training=True) == 80


def test_different_classes_are_united_only_on_demand(entry, renamed):
    other = renamed("other.json", disc="disc", square="box")
    for train, val in (([entry], [other]), ([entry, other], [])):
        with pytest.raises(UserError) as error:
            num_classes(train, val, training=True)
        text = str(error.value)
        assert f"{entry} and {other} have different classes: only {entry} has 'square'," in text
        assert f"only {other} has 'box'. Correct the names, or type {KEY} 5 to unite" in text
        assert num_classes(train, val, [KEY, "5"], training=True) == 5
    # What one set to train on lacks would be taught to be nothing.
    lacking = renamed("lacking.json", disc="disc")
    with pytest.raises(UserError, match="'square', 'triangle', 'star'. Correct the names, or"):
        num_classes([entry, lacking], training=True)


@pytest.mark.parametrize(
    "content",
    [
        {"class_names": ["a", "b", "c"], "model": {}},
        {"model": {"head.cls_pred.weight": torch.zeros(3, 2, 3, 3)}},
        {"head.cls_pred.weight": torch.zeros(3, 2, 3, 3)},
    ],
)
def test_it_is_that_of_the_weights_where_nothing_is_trained(content, entry, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    opts = ["MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(tmp_path)]
    assert num_classes(val=[entry], opts=opts) == 3
    assert num_classes([entry], opts=opts, training=True) == 4
    (tmp_path / "last_checkpoint").write_text(path.name)
    opts = ["OUTPUT_DIR", str(tmp_path)]
    assert num_classes(val=[entry], opts=opts, resume=True) == 3
    assert num_classes(val=[entry], opts=opts) == 4


@pytest.mark.slow
def test_nothing_of_a_training_asks_for_it(command, tmp_path):
    def without(argv):
        at = argv.index(KEY)
        return argv[:at] + argv[at + 2 :]

    train_net.cli(without(command(opts=["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"])))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "out" / "model_final.pth")]
    train_net.cli(without(command("--eval-only", opts=weights)))
    assert "4 classes, of the data" in (tmp_path / "out" / "log.txt").read_text()
    build_detector(weights)


def build_detector(weights):
    from tood import Predictor

    detect = Predictor(CONFIG, weights[1], opts=TINY, score_threshold="from-config")
    assert detect.class_names == ["disc", "square", "triangle", "star"]
