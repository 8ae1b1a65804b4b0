"""Config files: each read once, and what follows from a file that has been read."""

import os
import subprocess

import pytest
from conftest import CONFIG, ROOT

from tood.config.files import override_config_file, read_config_file
from tood.config.inferred import is_typed
from tood.config.read import load_config, read_options
from tood.config.zoo import get_config_file
from tood.utils.errors import UserError

COUNT_OPENS = """
import sys
from tood.config.files import read_config_file
from tood.config.read import load_config, read_options, read_schedule
opened = []
def note(event, args):
    if event == "open" and str(args[0]).endswith((".yaml", ".json")):
        opened.append(args[0])
sys.addaudithook(note)
path = sys.argv[1]
load_config(path)
print(*map(str, opened), sep="\\n", end="\\n--\\n")
config_file = read_config_file(path)
del opened[:]
for shorter in "240", "320":
    load_config(config_file, ["INPUT.MIN_SIZE_TEST", shorter], training=True)
assert read_schedule(config_file).max_iter == load_config(config_file).SOLVER.MAX_ITER
print(opened)
"""


@pytest.mark.slow
def test_each_file_of_a_chain_is_opened_once(tmp_path, warm_python):
    child = tmp_path / "child.yaml"
    child.write_text(f"_BASE_: {ROOT}/configs/tood_lite0_N_small_data.yaml\nSEED: 3\n")
    command = [warm_python, "-c", COUNT_OPENS, str(child)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    once, again = done.stdout.split("\n--\n")
    names = ["child", "tood_lite0_N_small_data", "tood_lite0_S_small_data"]
    names += ["tood_R18_GN_small_data", "Base-TOOD"]
    assert [os.path.basename(x) for x in once.splitlines()] == [f"{name}.yaml" for name in names]
    assert again == "[]\n"


def test_what_is_typed(tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text(f"_BASE_: {CONFIG}\nMODEL: {{TOOD: {{NUM_CLASSES: 3}}, WEIGHTS: null}}\n")
    config_file = read_config_file(str(child))
    assert config_file.typed >= {"MODEL.TOOD.NUM_CLASSES", "MODEL.RESNETS.DEPTH", "SEED"}
    assert config_file.content["MODEL"]["TOOD"] == {"ATSS_ITERS": 267, "NUM_CLASSES": 3}
    assert is_typed(config_file, ()) and not is_typed(read_config_file(CONFIG), ())
    # That of the base of all is a default.
    assert config_file.content["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert not is_typed(config_file, (), "MODEL.PIXEL_MEAN")
    assert is_typed(config_file, ["MODEL.PIXEL_MEAN", "[1, 2, 3]"], "MODEL.PIXEL_MEAN")


def test_a_file_that_was_read_is_not_changed_by_its_use():
    config_file = read_config_file(CONFIG)
    cfg = load_config(config_file, ["MODEL.RESNETS.DEPTH", "50"])
    cfg.MODEL.FPN.IN_FEATURES.append("res9")
    assert config_file == read_config_file(CONFIG)
    assert load_config(config_file).MODEL.RESNETS.DEPTH == 18


def test_configs_and_options_in_python_are_refused(tmp_path):
    lazy = str(ROOT / "configs" / "lazy" / "tood_R50_FPN_1x.py")
    with pytest.raises(UserError, match="lazyconfig_train_net.py .*name a .yaml config"):
        load_config(lazy)
    with pytest.raises(UserError, match="gone.yaml does not exist"):
        load_config(str(tmp_path / "gone.yaml"))
    with pytest.raises(UserError, match="SEED=3 is not an option; write SEED 3, with a space"):
        load_config(CONFIG, ["SEED=3"])


def test_keys_of_earlier_versions_are_ignored(tmp_path, caplog):
    old = tmp_path / "old.yaml"
    old.write_text(f"_BASE_: {CONFIG}\nMODEL: {{TOOD: {{REPORT: True}}}}\n")
    with caplog.at_level("WARNING"):
        cfg = load_config(str(old), ["MODEL.TOOD.REPORT", "False"])
    assert "REPORT" not in cfg.MODEL.TOOD and cfg.MODEL.RESNETS.DEPTH == 18
    assert "MODEL.TOOD.REPORT" in caplog.text
    assert read_options(read_config_file(str(old)), ["MODEL.TOOD.REPORT", "False"]) == {}


def test_a_written_config_can_be_moved(tmp_path):
    ours = read_config_file(get_config_file("demo_shapes"))
    path = tmp_path / "a.yaml"
    changed, text = override_config_file(ours, str(path), {"SOLVER.MAX_ITER": 7})
    assert text == "_BASE_: demo_shapes.yaml\nSOLVER:\n  MAX_ITER: 7\n"
    path.write_text(text)
    assert read_config_file(str(path)) == changed

    other, plan = tmp_path / "other.yaml", tmp_path / "plan.yaml"
    other.write_text("_BASE_: demo_shapes.yaml\nSOLVER: {BASE_LR: 0.5}")
    values = {"SOLVER.MAX_ITER": 7, "INPUT.MIN_SIZE_TRAIN": (64,)}
    changed, text = override_config_file(read_config_file(str(other)), str(plan), values)
    other.unlink()
    plan.write_text(text)
    assert "_BASE_" not in text
    assert load_config(str(plan)).dump() == load_config(changed).dump()
    assert load_config(str(plan)).SOLVER.BASE_LR == 0.5


def test_a_base_beside_the_config_comes_before_ours(tmp_path):
    (tmp_path / "demo_shapes.yaml").write_text("SOLVER: {MAX_ITER: 3}")
    (tmp_path / "a.yaml").write_text("_BASE_: demo_shapes.yaml")
    assert read_config_file(str(tmp_path / "a.yaml")).content == {"SOLVER": {"MAX_ITER": 3}}
