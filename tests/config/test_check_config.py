"""Configs that cannot be: one sentence each, with key and value."""

import pytest
from conftest import CONFIG, ROOT, TINY, get_error
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from tood.config.build import check_builds
from tood.config.check import RANGES, check_config, get_key, known_keys
from tood.config.options import get_training_ranges
from tood.config.read import get_config, load_config, run_options
from tood.config.unread import UNREAD
from tood.data.datasets import prepare_datasets
from tood.engine import train as engine_train
from tood.inference.predictor import Predictor
from tood.utils.arguments import split_overrides
from tood.utils.errors import UserError
from tood.utils.suggest import suggest


def with_value(cfg, key, value):
    *path, last = key.split(".")
    node = cfg
    for name in path:
        node = node[name]
    node[last] = value
    return cfg


@pytest.mark.parametrize("key", [*RANGES, *get_training_ranges()])
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
        ("MODEL.TOOD.BBOX_REG_WEIGHTS", (1, 1, 0, 1), "must be 4 numbers, each more than 0"),
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
    keys = known_keys(tiny_cfg)
    assert suggest("MODEL.TOOD.TAL_TOP_K", keys) == "; did you mean MODEL.TOOD.TAL_TOPK?"
    assert suggest("MODEL.TODD.NUM_CLASSES", keys) == "; did you mean MODEL.TOOD.NUM_CLASSES?"
    assert suggest("banana", keys) == ""


@pytest.mark.parametrize("where", ["file", "option"])
def test_unknown_keys_are_answered_with_the_nearest(tmp_path, where):
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
    assert split_overrides(["a.jpg", "B.jpg", *options]) == (["a.jpg", "B.jpg"], options)
    assert split_overrides(["a.jpg", "SEED", "1"]) == (["a.jpg"], ["SEED", "1"])
    assert split_overrides(["a.jpg", "IMG_1.JPG"]) == (["a.jpg", "IMG_1.JPG"], [])
    assert split_overrides(["a", "MODEL.TOOD.NUM_CLASES", "1"])[1] == ["MODEL.TOOD.NUM_CLASES", "1"]


def test_the_old_name_of_a_key_is_refused_with_the_new_one():
    with pytest.raises(UserError, match="MODEL.TOOD.WARMUP_ITERS was renamed to .*ATSS_ITERS"):
        load_config(
            str(ROOT / "configs" / "tood_R50_FPN_1x.yaml"), ["MODEL.TOOD.WARMUP_ITERS", "3"]
        )


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("MODEL.TOOD.TAL_TOPK", "-1", "is -1; it must be at least 1"),
        ("MODEL.TOOD.TAL_ALPHA", "-0.5", "is -0.5; it must be at least 0"),
        ("MODEL.TOOD.TAL_TOP", "13", "did you mean MODEL.TOOD.TAL_TOPK?"),
        ("MODEL.TOOD.IN_FEATURES", "['p3', 'p9']", "p9"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[64], [128]]", "has 2 levels"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]", "one anchor per location"),
        ("INPUT.FORMAT", "HSV", "INPUT.FORMAT is 'HSV'"),
        ("MODEL.TOOD.NORM", "bn", "must be one of '', BN, SyncBN"),
        ("MODEL.RESNETS.NORM", "x", "must be one of '', BN, SyncBN"),
        ("MODEL.DEVICE", "gpu", "must be cpu, cuda"),
        ("MODEL.RESNETS.DEPTH", "51", "must be one of 18, 34, 50"),
        ("MODEL.FPN.OUT_CHANNELS", "-1", "must be at least 1"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn", "did you mean build_resnet_fpn_backbone?"),
        ("SOLVER.MAX_ITER", "0", "must be at least 1"),
        ("SOLVER.WEIGHT_DECAY", "-1", "must be at least 0"),
        ("SOLVER.WARMUP_METHOD", "none", "must be one of linear, constant"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full", "must be one of value, norm, full_model"),
        ("SOLVER.STEPS", "(0,0)", "must be increasing numbers of iterations"),
        ("SOLVER.LR_SCHEDULER_NAME", "abc", "must be one of WarmupMultiStepLR"),
        ("SOLVER.BASE_LR", "1e999", "must be more than 0"),
        ("INPUT.RANDOM_FLIP", "both", "must be one of horizontal, vertical, none"),
        ("DATALOADER.SAMPLER_TRAIN", "Random", "must be one of TrainingSampler"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD is 0"),
        ("DATALOADER.REPEAT_THRESHOLD", "0.1", "RepeatFactorTrainingSampler, not TrainingS"),
        ("INPUT.AUGMENTATIONS", "['mosaik']", "'mosaik'; it must contain names of color_jitter"),
        ("INPUT.AUGMENTATIONS", "['mosaic', 3]", "has 3; it must contain names of"),
        ("INPUT.MIN_SIZE_TRAIN", "(0,)", "must be one or more numbers, each at least 1"),
    ],
)
def test_options_by_command(command, tmp_path, key, value, says):
    message = get_error(command(opts=[key, value]))
    assert key in message and says in message
    assert not (tmp_path / "out").exists()


def test_a_value_that_building_refuses(command, tmp_path):
    message = get_error(command(opts=["MODEL.FPN.IN_FEATURES", "(0,0)"]))
    assert "look at the options of MODEL.BACKBONE, MODEL.RESNETS, MODEL.FPN" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_option_is_read_or_refused(command, entry, tmp_path, monkeypatch):
    """Options are read by a training or an evaluation, or known to be unread."""
    cfg = load_config(CONFIG, [*command()[6:]], [entry], [entry])
    conditional = ["TEST.AUG.ENABLED", "True", "INPUT.CROP.ENABLED", "True"]
    conditional += ["TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.MAX_SIZE", "64"]
    # Detectron2 reads a copy of these keys, which is not recorded.
    cfg.merge_from_list([*conditional, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"])
    prepare_datasets(run_options(cfg).data, training=True)
    read = set()
    cfg = recorded(cfg, read)
    cfg.OUTPUT_DIR = str(tmp_path)
    trainer = engine_train.Trainer(cfg)
    run_options(cfg)
    engine_train.Trainer.test_with_TTA(cfg, trainer.experiment.model)
    trainer.build_validation_loader(cfg, entry)
    read = set(read)  # what follows reads all of them
    leaves = {key for key in known_keys(cfg) if not isinstance(get_key(cfg, key), CfgNode)}
    unread = {key for key in leaves if any(key == x or key.startswith(f"{x}.") for x in UNREAD)}
    # Read by Detectron2's set-up, for other values of other options, or by its data loader,
    # which reads keys of masks to no effect.
    elsewhere = {
        *("CUDNN_BENCHMARK", "VERSION", "SEED", "SOLVER.AMP.ENABLED", "MODEL.TOOD.CENTERNESS"),
        *("DATALOADER.REPEAT_THRESHOLD", "TEST.PRECISE_BN.NUM_ITER", "MODEL.META_ARCHITECTURE"),
        *("DATALOADER.RANDOM_SUBSET_RATIO", "TEST.EXPECTED_RESULTS", "MODEL.WEIGHTS"),
        *("DATALOADER.REPEAT_SQRT", "FLOAT32_PRECISION", "SOLVER.RESCALE_INTERVAL"),
        *("SOLVER.NUM_DECAYS", "SOLVER.BASE_LR_END"),
        *(f"MODEL.TIMM.{key}" for key in cfg.MODEL.TIMM),  # by another backbone
    }
    assert leaves - read - unread - elsewhere == set()
    of_masks = {key for key in unread if "MASK" in key or "KEYPOINT" in key or "PROPOSAL" in key}
    assert unread & read <= of_masks | {"MODEL.LOAD_PROPOSALS"}


def recorded(node, read, prefix=""):
    """A copy of a config that notes the keys that are read of it."""

    class Recorded(CfgNode):
        def __getattr__(self, name):
            if name not in self:
                raise AttributeError(name)
            return self[name]

        def __getitem__(self, name):
            value = dict.__getitem__(self, name)
            if not isinstance(value, CfgNode):
                read.add(self.__dict__["_prefix"] + name)
            return value

        def __deepcopy__(self, memo):
            return recorded(self, read, self.__dict__["_prefix"])

    copied = Recorded()
    copied.__dict__["_prefix"] = prefix
    for key in node:
        value = dict.__getitem__(node, key)
        is_node = isinstance(value, CfgNode)
        value = recorded(value, read, f"{prefix}{key}.") if is_node else value
        dict.__setitem__(copied, key, value)
    return copied


@pytest.mark.parametrize("group", ["ROI_HEADS", "RETINANET"])
def test_options_of_other_detectors_are_refused(group, tmp_path):
    key = f"MODEL.{group}.SCORE_THRESH_TEST"
    with pytest.raises(UserError, match=rf"{key} is 0.3, .* set MODEL.TOOD.SCORE_THRESH_TEST"):
        load_config(CONFIG, [key, "0.3"])
    path = tmp_path / "a.yaml"
    path.write_text(f"_BASE_: {CONFIG}\nMODEL: {{{group}: {{SCORE_THRESH_TEST: 0.3}}}}\n")
    with pytest.raises(UserError, match="set MODEL.TOOD.SCORE_THRESH_TEST"):
        load_config(str(path))
    load_config(CONFIG, [key, "0.05"])  # its default


def test_options_without_an_effect_are_warned_of(caplog):
    with caplog.at_level("WARNING"):
        load_config(CONFIG, ["MODEL.RPN.NMS_THRESH", "0.9"])
    assert "MODEL.RPN.NMS_THRESH is 0.9, which has no effect" in caplog.text


ANCHORS = "MODEL.TOOD.ANCHOR_TYPE"


@pytest.mark.parametrize(
    "key, value, default, switch, on",
    [
        ("TEST.AUG.FLIP", "False", "True", "TEST.AUG.ENABLED", "True"),
        ("TEST.PRECISE_BN.NUM_ITER", "7", "200", "TEST.PRECISE_BN.ENABLED", "True"),
        ("INPUT.TILES.OVERLAP", "32", "0", "INPUT.TILES.SIZE", "128"),
        ("INPUT.CROP.SIZE", "[0.5,0.5]", "[0.9,0.9]", "INPUT.CROP.ENABLED", "True"),
        ("MODEL.TOOD.TEACHER_WEIGHT", "3", "1", "MODEL.TOOD.TEACHER", "output"),
        ("MODEL.TOOD.EVAL_EMA_ALONE", "True", "False", "MODEL.TOOD.EMA_DECAY", "0.99"),
        ("MODEL.TOOD.DCN_NUM_GROUPS", "2", "4", "MODEL.TOOD.NUM_DCN_CONVS", "1"),
        ("MODEL.TOOD.TAL_TOPK", "5", "13", "MODEL.TOOD.ASSIGNER", "tal"),
        ("MODEL.TOOD.ATSS_TOPK", "3", "9", "MODEL.TOOD.ATSS_ITERS", "4"),
        (
            "MODEL.TOOD.BBOX_REG_WEIGHTS",
            "(1.,1.,1.,1.)",
            "(10.,10.,5.,5.)",
            ANCHORS,
            "anchor_based",
        ),
    ],
)
def test_typed_options_whose_switch_is_off_are_refused(key, value, default, switch, on):
    load_config(CONFIG, [key, value, switch, on])
    load_config(CONFIG, [key, default])  # changes nothing
    off = {"MODEL.TOOD.EMA_DECAY": "0.0", "MODEL.TOOD.ASSIGNER": "atss"}
    off["MODEL.TOOD.ATSS_ITERS"] = "0"
    typed, off = [key, value], off.get(switch)
    with pytest.raises(UserError, match=rf"{key} has no effect while {switch} is .*; set that too"):
        load_config(CONFIG, [*typed, *([switch, off] if off else [])])
    with pytest.raises(UserError, match=f"{key} has no effect"):
        Predictor(
            get_config("tood_R18_GN_small_data"),
            "w.pth",
            opts=[*typed, *([switch, off] if off else [])],
        )


def test_levels_of_another_backbone(command, caplog):
    backbone = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    out_features = ["MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"]
    backbone += [*out_features, "MODEL.FPN.IN_FEATURES", "['res2','res3','res4','res5']"]
    cfg = load_config(CONFIG, [*backbone])
    with pytest.raises(UserError, match=r"has 'p7', but build_resnet_fpn_backbone makes p2") as e:
        check_builds(cfg)
    assert "SIZES to 8 strides each, [[32], [64], [128], [256], [512]]" in str(e.value)
    cfg.MODEL.TOOD.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    with caplog.at_level("WARNING"):
        check_builds(cfg)
    assert "here [[32], [64], [128], [256], [512]]" in caplog.text
    caplog.clear()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    with caplog.at_level("WARNING"):
        check_builds(cfg)
    assert "SIZES" not in caplog.text


odd_values = st.sampled_from(
    [None, True, -1, 0, 1, 3, 1e9, 0.5, "x", "", "bn", (0, 0), (1,), ("res9",), [[1]], [], {}]
)


@pytest.mark.slow
def test_values_that_pass_the_checks_are_built():
    @settings(max_examples=150, derandomize=True, database=None)
    @given(st.sampled_from(known_keys(tiny())), odd_values)
    def check(key, value):
        try:
            check_builds(load_config(CONFIG, [*TINY, key, str(value)]))
        except UserError as error:
            assert "\n" not in error.sentence()

    check()


def tiny():
    return load_config(CONFIG, TINY)


@pytest.mark.parametrize("value", ["mosaic,color_jitter", "['mosaic', 'color_jitter']"])
def test_names_of_augmentations_in_both_ways(value):
    cfg = load_config(CONFIG, ["INPUT.AUGMENTATIONS", value, "SEED", "2"])
    assert cfg.INPUT.AUGMENTATIONS == ["mosaic", "color_jitter"] and cfg.SEED == 2
    assert load_config(CONFIG, ["INPUT.AUGMENTATIONS", "[]"]).INPUT.AUGMENTATIONS == []
    for wrong in ("mosaic,", "3", "Mosaic"):
        with pytest.raises(UserError, match="INPUT.AUGMENTATIONS has '.*'; it must contain names"):
            load_config(CONFIG, ["INPUT.AUGMENTATIONS", wrong])
