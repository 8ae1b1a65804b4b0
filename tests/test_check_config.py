"""Configs that cannot be: one sentence each, with key and value."""

import pytest
from conftest import ROOT

from tood.config.check import RANGES, check_config, known_keys, nearest_key
from tood.config.read import load_config, split_options
from tood.utils.errors import UserError

CONFIGS = sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_of_the_project_passes(name):
    load_config(str(ROOT / "configs" / name))


def with_value(cfg, key, value):
    *path, last = key.split(".")
    node = cfg
    for name in path:
        node = node[name]
    node[last] = value
    return cfg


@pytest.mark.parametrize("key", RANGES)
def test_numbers_below_their_range(tiny_cfg, key):
    check_config(tiny_cfg)
    with pytest.raises(UserError, match=rf"{key} is -3; it must be (at least|more than) "):
        check_config(with_value(tiny_cfg, key, -3))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.TOOD.PRIOR_PROB", 0, "must be more than 0 and at most 0.99"),
        ("MODEL.TOOD.NMS_THRESH_TEST", 60, "is 60; it must be at least 0 and at most 1"),
        ("MODEL.TOOD.SCORE_THRESH_TEST", float("nan"), "is nan; it must be at least 0"),
        ("MODEL.TOOD.ANCHOR_TYPE", "anchor", "is 'anchor'; it must be one of anchor_free, "),
        ("MODEL.TOOD.PRECISION_TEST", "half", "is 'half'; it must be one of float32, "),
        ("MODEL.TOOD.CONV_DIM", 48, "is 48; with MODEL.TOOD.NORM GN it must be a multiple of 32"),
        ("MODEL.TOOD.NUM_DCN_CONVS", 3, "is 3, but there are only 2 convolutions"),
        ("MODEL.TOOD.BBOX_REG_WEIGHTS", (1, 1, 0, 1), "must be four numbers above 0"),
        ("MODEL.TOOD.IN_FEATURES", ["p3", "p4"], "SIZES has 5 levels, but MODEL.TOOD.IN_FEATURES"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0]], "one anchor per location"),
    ],
)
def test_values_that_cannot_be(tiny_cfg, key, value, message):
    with pytest.raises(UserError, match=key) as error:
        check_config(with_value(tiny_cfg, key, value))
    assert message in str(error.value)


def test_groups_of_deformable_convolutions(tiny_cfg):
    tiny_cfg.MODEL.TOOD.NUM_DCN_CONVS, tiny_cfg.MODEL.TOOD.DCN_NUM_GROUPS = 1, 5
    with pytest.raises(UserError, match="DCN_NUM_GROUPS is 5; it must divide"):
        check_config(tiny_cfg)


def test_nearest_key(tiny_cfg):
    assert {"MODEL", "MODEL.TOOD", "MODEL.TOOD.TAL_TOPK"} <= set(known_keys(tiny_cfg))
    assert nearest_key(tiny_cfg, "MODEL.TOOD.TAL_TOP_K") == "MODEL.TOOD.TAL_TOPK"
    assert nearest_key(tiny_cfg, "MODEL.TODD.NUM_CLASSES") == "MODEL.TOOD.NUM_CLASSES"
    assert nearest_key(tiny_cfg, "banana") is None


@pytest.mark.parametrize("where", ["file", "option"])
def test_unknown_keys_are_told_the_nearest(tmp_path, where):
    config = tmp_path / "c.yaml"
    config.write_text(f"_BASE_: {ROOT}/configs/tood_R50_FPN_1x.yaml\n")
    opts = []
    if where == "file":
        with config.open("a") as f:
            f.write("SOLVER:\n  BASE_LRR: 0.1\n")
    else:
        opts = ["SOLVER.BASE_LRR", "0.1"]
    with pytest.raises(UserError, match=r"SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR\?"):
        load_config(str(config), opts)


def test_options_behind_a_list_of_values():
    options = ["MODEL.WEIGHTS", "a.pth", "SEED", "1"]
    assert split_options(["a.jpg", "B.jpg", *options]) == (["a.jpg", "B.jpg"], options)
    assert split_options(["a.jpg", "SEED", "1"]) == (["a.jpg"], ["SEED", "1"])
    assert split_options(["a.jpg", "NOPE.JPG"]) == (["a.jpg", "NOPE.JPG"], [])
    assert split_options(["a", "MODEL.TOOD.NUM_CLASES", "1"])[1] == ["MODEL.TOOD.NUM_CLASES", "1"]


def test_the_old_name_of_a_key_is_refused_with_the_new_one():
    with pytest.raises(UserError, match="MODEL.TOOD.WARMUP_ITERS was renamed to .*ATSS_ITERS"):
        load_config(
            str(ROOT / "configs" / "tood_R50_FPN_1x.yaml"), ["MODEL.TOOD.WARMUP_ITERS", "3"]
        )
