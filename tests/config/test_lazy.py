"""Configs in Python: the same models, options and trainings as the yaml configs of their names."""

import builtins
import copy
import dataclasses
import importlib.util
import json
import os
import re
import signal

import pytest
import torch
from conftest import CONFIG, ROOT, TINY, error_of
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

import tood
from tood import model_zoo
from tood.app import predict as demo
from tood.config.lazy.read import build_lazy_model, is_lazy
from tood.config.read import load_config, read_schedule, run_options, split_options
from tood.data.mapper import CheckedMapper
from tood.engine import train as train_net
from tood.engine.build_lazy import (
    _test_loader,
    build_lazy_experiment,
)
from tood.engine.loop import TrainingLoop
from tood.engine.trainer import Trainer
from tood.utils.errors import UserError

LAZY = ROOT / "configs" / "lazy"
LITE = ["tood_lite0_N_P2_small_data", "tood_lite0_N_small_data", "tood_lite0_S_small_data"]
ALL = sorted(path.stem for path in LAZY.glob("*.py"))
# Those that need an extra are skipped without it.
NAMES = [x for x in ALL if x not in LITE or importlib.util.find_spec("timm")]
LAZY_CONFIG = str(LAZY / "tood_R18_GN_small_data.py")
# What tests/conftest.py's command has in yacs's words.
TINY_LAZY = [
    *("train.device=cpu", "model.backbone.out_channels=32", "model.head.conv_dim=64"),
    *("model.head.num_convs=2", "dataloader.train.num_workers=0", "train.report=False"),
]
SHORT = [
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    *("train.max_iter=4", "dataloader.train.total_batch_size=2"),
    *("model.num_classes=4", "model.atss_iters=2", "model.score_thresh_test=0.0"),
    *("lr_multiplier.scheduler.milestones=[3,4]", "lr_multiplier.scheduler.values=[1.0,0.1]"),
    "lr_multiplier.warmup_length=1.0",  # yaml's 100 iterations are more than all
]


def configs_of(name):
    """Both configs of a name."""
    return load_config(str(LAZY / f"{name}.py")), load_config(
        str(ROOT / "configs" / f"{name}.yaml")
    )


def described(cfg):
    """What a config says beside its model, optimizer, schedule and augmentations."""
    options = run_options(cfg)
    data = options.data._replace(num_classes_key="")
    data = data._replace(train=list(data.train), test=list(data.test))
    tta = options.tta._replace(min_sizes=list(options.tta.min_sizes))
    options = options._replace(data=data, tta=tta, weights_key="")
    return options, read_schedule(cfg)._replace(steps=())


def structure(model):
    """Parameters, buffers and every plain attribute of every module of a model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    said = {name: (tuple(x.shape), x.dtype, x.requires_grad) for name, x in tensors}
    said["assigners"] = [(type(x), vars(x)) for x in (model.assigner, model.warmup_assigner)]
    said["loss options"] = model.loss_options
    for name, module in model.named_modules():
        said[f"{name}()"] = type(module)
        for key, value in vars(module).items():
            if isinstance(value, Box2BoxTransform):
                value = [*map(float, value.weights), value.scale_clamp]
            if plain(value):
                said[f"{name}.{key}"] = list(value) if isinstance(value, tuple) else value
    return said


def plain(value):
    if isinstance(value, (list, tuple, ListConfig)):
        return all(plain(x) for x in value)
    return value is None or isinstance(value, (bool, int, float, str))


def on_meta(cfg):
    """A model without memory for its weights."""
    cfg = copy.deepcopy(cfg)
    with torch.device("meta"):
        if isinstance(cfg, DictConfig):
            cfg.train.device = "meta"
            return build_lazy_model(cfg)
        cfg.MODEL.DEVICE = "meta"
        return build_model(cfg)


def test_every_released_model_is_there_and_the_small_ones():
    small = {"tood_R18_GN_small_data", "demo_shapes", *LITE}
    assert set(ALL) == {*model_zoo.RELEASED_MODELS, *small}
    for name in ALL:
        assert model_zoo.get_config_file(f"{name}.py") == str(LAZY / f"{name}.py")
    assert model_zoo.get_config("demo_shapes.py").model.num_classes == 4
    with pytest.raises(UserError, match="no config named 'tood_R51.py'"):
        model_zoo.get_config("tood_R51.py")


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_yamls(name):
    lazy, yaml = configs_of(name)
    assert described(lazy) == described(yaml)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_attribute_of_the_model_is_yamls(name):
    lazy, yaml = map(on_meta, configs_of(name))
    said = structure(lazy)
    assert said == structure(yaml)
    assert sum(key.startswith("head.") for key in said) > 200
    assert {"atss_iters", "head.anchor_type", "head.box2box_transform"} <= {
        key.lstrip(".") for key in said
    }


@pytest.mark.parametrize(
    "override",
    [
        "model.assigner.beta=4.0",
        "model.warmup_assigner.topk=8",
        "model.cls_loss_weight=2.0",
        "model.nms_thresh_test=0.5",
        "model.head.anchor_type=anchor_based",
        "model.head.box2box_transform.weights=[10,10,5,6]",
        "model.head.num_dcn_convs=1",
        "model.head.norm=BN",
        "model.backbone.fuse_type=avg",
        "model.backbone.bottom_up.freeze_at=1",
    ],
)
def test_the_comparison_sees_a_change(override):
    before = structure(on_meta(load_config(LAZY_CONFIG)))
    assert before != structure(on_meta(load_config(LAZY_CONFIG, [override])))


@pytest.mark.parametrize("name", ["demo_shapes", "tood_X101_64x4d_DCN_FPN_mstrain_2x"])
def test_same_seed_same_weights(name):
    lazy, yaml = configs_of(name)
    lazy.model.head.conv_dim = yaml.MODEL.TOOD.CONV_DIM = 64
    lazy.model.backbone.out_channels = yaml.MODEL.FPN.OUT_CHANNELS = 64
    if "X101" in name:  # deformable and grouped, but quick
        yaml.MODEL.RESNETS.DEPTH, yaml.MODEL.RESNETS.NUM_GROUPS = 50, 2
        lazy.model.backbone.bottom_up.stages.update(depth=50, num_groups=2)
    models = []
    for build, cfg in ((build_lazy_model, lazy), (build_model, yaml)):
        torch.manual_seed(3)
        models.append(build(cfg))
    lazy, yaml = (model.state_dict() for model in models)
    assert list(lazy) == list(yaml)
    assert all(torch.equal(lazy[key], yaml[key]) for key in yaml)
    buffers = [dict(model.named_buffers()) for model in models]  # pixel mean, anchors
    assert all(torch.equal(x, buffers[1][key]) for key, x in buffers[0].items())


def few_layers():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))


def parts_of(cfg, model):
    """Optimizer and scheduler."""
    if isinstance(cfg, DictConfig):
        parts = copy.deepcopy(cfg)
        parts.optimizer.params.model = model
        optimizer = instantiate(parts.optimizer)
        multiplier = instantiate(parts.lr_multiplier)
        return optimizer, LRMultiplier(optimizer, multiplier, cfg.train.max_iter)
    optimizer = Trainer.build_optimizer(cfg, model)
    return optimizer, Trainer.build_lr_scheduler(cfg, optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_same_optimizer_schedule_and_augmentation(name):
    model, rates, groups, steps = few_layers(), [], [], []
    lazy, yaml = configs_of(name)
    solver = yaml.SOLVER
    iterations = [s + d for s in (*solver.STEPS, solver.WARMUP_ITERS) for d in (-1, 0)]
    for cfg in (lazy, yaml):
        optimizer, scheduler = parts_of(cfg, model)
        lr = []
        for scheduler.last_epoch in (0, 1, 77, *iterations, solver.MAX_ITER - 1):
            lr.append(scheduler.get_lr())
        rates.append(lr)
        index = {id(p): i for i, p in enumerate(model.parameters())}
        ignored = ("params", "foreach", "initial_lr")  # foreach: Detectron2's main branch alone
        groups.append(
            [
                ([index[id(p)] for p in g["params"]], {k: g[k] for k in g if k not in ignored})
                for g in optimizer.param_groups
            ]
        )
        steps.append(a_step(model, optimizer))
    assert rates[0] == rates[1] and len({tuple(lr) for lr in rates[0]}) > 3
    assert groups[0] == groups[1]
    assert torch.equal(*steps)
    nodes = lazy.dataloader
    for node, is_train in ((nodes.train.mapper, True), (nodes.test.mapper, False)):
        mapper, other = instantiate(node), CheckedMapper(yaml, is_train=is_train)
        said = [
            {k: str(v) for k, v in vars(x).items() if k != "augmentations"} for x in (mapper, other)
        ]
        assert said[0] == said[1]
        augs = [[(type(a), plain_vars(a)) for a in x.augmentations.augs] for x in (mapper, other)]
        assert augs[0] == augs[1] and len(augs[0]) == 1 + is_train


def plain_vars(x):
    values = {k: v for k, v in vars(x).items() if plain(v)}
    return {k: [*v] if isinstance(v, (tuple, ListConfig)) else v for k, v in values.items()}


def a_step(model, optimizer):
    """By how much large gradients move the parameters, which are as before afterwards."""
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    moved = torch.cat([(p - b).detach().flatten() for p, b in zip(model.parameters(), before)])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before):
            parameter.copy_(value)
    return moved


@pytest.fixture
def entry(shapes):
    return f"{shapes}/annotations.json:{shapes}/images"


@pytest.fixture
def lazy_command(entry, tmp_path, fresh_loggers):
    """The run of conftest.py's command, by a config in Python."""

    def build(*flags, opts=(), config=LAZY_CONFIG):
        data = ["--train-data", entry, "--val-data", entry]
        output = f"train.output_dir={tmp_path / 'lazy'}"
        return ["--config-file", config, *flags, *data, *TINY_LAZY, *SHORT, output, *opts]

    return build


def weights_of(path):
    return torch.load(path, map_location="cpu", weights_only=False)["model"]


def test_a_training_is_yamls_bit_by_bit_also_stopped_and_resumed(
    command, lazy_command, tmp_path, monkeypatch, caplog
):
    """Detections and checkpoints of either are the other's as well."""
    train_net.cli(command())
    out, lazy_out = tmp_path / "out", tmp_path / "lazy"

    run_step = TrainingLoop.run_step

    def run_step_and_signal(self):
        run_step(self)
        if self.iter == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingLoop, "run_step", run_step_and_signal)
    with pytest.raises(SystemExit) as stop:
        train_net.cli(lazy_command())
    assert stop.value.code == 128 + signal.SIGTERM
    assert (lazy_out / "last_checkpoint").read_text() == "model_0000001.pth"
    monkeypatch.setattr(TrainingLoop, "run_step", run_step)
    train_net.cli(lazy_command("--resume", opts=["train.log_period=1"]))

    yaml, lazy = (weights_of(folder / "model_final.pth") for folder in (out, lazy_out))
    assert list(yaml) == list(lazy)
    assert all(torch.equal(yaml[name], lazy[name]) for name in yaml)
    results = "inference/coco_instances_results.json"
    detections = json.loads((out / results).read_text())
    assert len(detections) > 100
    assert detections == json.loads((lazy_out / results).read_text())
    lines = [json.loads(line) for line in (lazy_out / "metrics.json").read_text().splitlines()]
    assert {2, 3} <= {line["iteration"] for line in lines}  # log_period
    assert (lazy_out / "model_best.pth").exists()

    # The other's weights by this config, and the config that was left behind.
    weights = f"train.init_checkpoint={out / 'model_final.pth'}"
    evaluation = [weights, f"train.output_dir={tmp_path / 'eval'}"]
    left = str(lazy_out / "config.yaml")
    for config in (LAZY_CONFIG, left):
        train_net.cli(lazy_command("--eval-only", opts=evaluation, config=config))
        assert detections == json.loads((tmp_path / "eval" / results).read_text())
    as_started, as_left = (
        described(load_config(*x)) for x in ((LAZY_CONFIG, [*TINY_LAZY, *SHORT]), (left,))
    )
    same = dict(data=None, output_dir="")
    assert as_left[0]._replace(**same) == as_started[0]._replace(**same)
    assert as_left[1] == as_started[1]
    detect_with_what_is_left(lazy_out, detections)


def detect_with_what_is_left(out, detections):
    detect = tood.Predictor(str(out / "config.yaml"), str(out / "model_final.pth"))
    images = LazyConfig.load(str(out / "config.yaml")).dataloader.test.dataset.names.split(":")[1]
    first = min(detections, key=lambda x: x["image_id"])["image_id"]
    found = detect(f"{images}/{sorted(os.listdir(images))[0]}")
    scores = sorted((x["score"] for x in detections if x["image_id"] == first), reverse=True)
    assert torch.allclose(found.scores, torch.tensor(scores))
    assert detect.class_names[0] == "disc"
    few = tood.Predictor(
        LAZY_CONFIG,
        str(out / "model_final.pth"),
        score_threshold=0.25,
        opts=[*TINY_LAZY, "model.num_classes=4"],
    )
    assert few.model.score_thresh_test == 0.25
    # The demo takes the config beside the checkpoint.
    option = f"train.init_checkpoint={out / 'model_final.pth'}"
    args = demo.parse_args(["--input", "a.jpg", option])
    assert (args.input, args.opts) == (["a.jpg"], [option])
    assert demo.config_of(args) == str(out / "config.yaml")
    args = demo.parse_args(["MODEL.WEIGHTS", str(out / "model_final.pth")])
    with pytest.raises(UserError, match="train.init_checkpoint=model.pth"):
        demo.main(args)


def test_watching_a_training(lazy_command, tmp_path):
    opts = ["train.eval_period=4", "train.val_loss=True", "train.ema_decay=0.5"]
    opts += ["train.checkpointer.period=1", "train.checkpointer.max_to_keep=2"]
    opts += ["train.log_period=1", "train.report=True"]
    train_net.cli(lazy_command(opts=opts))
    lines = (tmp_path / "lazy" / "metrics.json").read_text().splitlines()
    metrics = set().union(*map(json.loads, lines))
    assert {"grad_norm", "bbox/AP", "ema/bbox/AP", "val_loss/loss_cls"} <= metrics
    assert (tmp_path / "lazy" / "model_final_ema.pth").exists()
    assert (tmp_path / "lazy" / "report" / "report.html").exists()
    kept = sorted(path.name for path in (tmp_path / "lazy").glob("model_0*.pth"))
    assert kept == ["model_0000002.pth", "model_0000003.pth"]


def test_numbers_that_are_not_finite_name_keys_of_the_config(lazy_command, tmp_path):
    opts = ["optimizer.lr=1e20", "lr_multiplier.warmup_length=0.0", "optimizer.max_norm=1e20"]
    message = error_of(lazy_command(opts=opts))
    assert "before the optimizer step" in message and "lower the learning rate" in message


def test_test_time_augmentation(lazy_command, tmp_path):
    model = build_lazy_model(load_config(LAZY_CONFIG, [*TINY_LAZY, *SHORT]))
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    opts = [f"train.init_checkpoint={tmp_path / 'weights.pth'}", "train.test_aug.enabled=True"]
    train_net.cli(lazy_command("--eval-only", opts=[*opts, "train.test_aug.min_sizes=[64]"]))
    results = json.loads((tmp_path / "lazy" / "inference" / "results.json").read_text())
    assert set(results) == {"bbox", "bbox_TTA"}


@pytest.mark.parametrize(
    "flags, yaml, lazy",
    [
        (["--epochs", "2"], [], []),
        (["--images-per-step", "8"], [], []),
        (
            ["--images-per-step", "2", "--epochs", "50"],
            ["SOLVER.BASE_LR", "0.3"],
            ["optimizer.lr=0.3"],
        ),
        (
            ["--epochs", "2"],
            ["SOLVER.IMS_PER_BATCH", "1", "TEST.EVAL_PERIOD", "3"],
            ["dataloader.train.total_batch_size=1", "train.eval_period=3"],
        ),
    ],
)
def test_flags_scale_the_schedule(entry, flags, yaml, lazy):
    schedules = []
    for config, opts in ((CONFIG, yaml), (LAZY_CONFIG, lazy)):
        args = train_net.parse_args(["--config-file", config, *flags, *opts])
        classes = "model.num_classes=4" if config == LAZY_CONFIG else "MODEL.TOOD.NUM_CLASSES 4"
        cfg = load_config(config, [*opts, *classes.split()], [entry], [entry])
        train_net.prepare_datasets(run_options(cfg).data, training=True)
        train_net.set_schedule(cfg, args)
        schedules.append(read_schedule(cfg))
    assert schedules[0]._replace(steps=()) == schedules[1]
    assert schedules[0] != read_schedule(load_config(CONFIG))


def test_loaders_and_options_of_the_loop_are_yamls(entry):
    data = dict(train_data=[entry], val_data=[entry])
    lazy = load_config(LAZY_CONFIG, [*TINY_LAZY, "model.num_classes=4"], **data)
    yaml = load_config(CONFIG, [*TINY, "MODEL.TOOD.NUM_CLASSES", "4"], **data)
    train_net.prepare_datasets(run_options(yaml).data, training=True)
    experiment = build_lazy_experiment(lazy)
    yaml_options = Trainer.build_options(yaml, experiment.model)
    ddp = dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False)
    assert experiment.options == dataclasses.replace(yaml_options, ddp=ddp)
    loaders = [
        (
            experiment.train_loader,
            _test_loader(lazy, entry),
            experiment.validation_loaders()[entry],
        ),
        (
            Trainer.build_train_loader(yaml),
            Trainer.build_test_loader(yaml, entry),
            Trainer.build_validation_loader(yaml, entry),
        ),
    ]
    batches = []
    for train, test, validation in loaders:
        train = iter(train.restart(seed=5, skip=1))
        batches.append([next(train), next(train), next(iter(test)), next(iter(validation))])
    for batch, other in zip(*batches):
        assert [x["file_name"] for x in batch] == [x["file_name"] for x in other]
        assert all(torch.equal(x["image"], y["image"]) for x, y in zip(batch, other))
        assert [str(x.get("instances")) for x in batch] == [str(x.get("instances")) for x in other]
    assert "instances" in batches[0][3][0] and "instances" not in batches[0][2][0]


def test_detectron2s_own_tool_could_train_it(entry):
    """As its ``tools/lazyconfig_train_net.py`` goes about it."""
    cfg = LazyConfig.load(LAZY_CONFIG)
    overrides = [*TINY_LAZY, *SHORT, "dataloader.train.dataset.names=own", "train.seed=1"]
    cfg = LazyConfig.apply_overrides(cfg, [*overrides, "dataloader.test.dataset.names=own"])
    yaml = load_config(CONFIG, ["MODEL.TOOD.NUM_CLASSES", "4"], [entry])
    train_net.prepare_datasets(run_options(yaml).data, training=True)
    DatasetCatalog.register("own", lambda: DatasetCatalog.get(entry))
    try:
        model = instantiate(cfg.model)
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        batch = next(iter(instantiate(cfg.dataloader.train)))
        assert len(instantiate(cfg.dataloader.test)) == 8
    finally:
        DatasetCatalog.remove("own")
    assert instantiate(cfg.lr_multiplier)(0.0) == pytest.approx(0.001)
    assert len(batch) == 2 and model.training
    assert len(optimizer.param_groups) == 2
    assert OmegaConf.to_container(cfg.train.ddp)["broadcast_buffers"] is False


def test_changes_and_half_precision():
    lazy = load_config(LAZY_CONFIG, ["model.num_classes=7"], val_data=["a", "b"])
    assert lazy.model.head.num_classes == 7
    assert list(lazy.dataloader.evaluator.dataset_name) == ["a", "b"]
    half = load_config(LAZY_CONFIG, ["train.amp.enabled=True", "train.device=cpu"])
    assert half.model.precision_train == "bfloat16" and not half.train.amp.enabled


def test_another_order_of_augmentations(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        f"""
from detectron2.config import LazyCall as L, LazyConfig
from detectron2.data import transforms as T

base = LazyConfig.load("{LAZY_CONFIG}")
model, optimizer, dataloader = base.model, base.optimizer, base.dataloader
lr_multiplier, train = base.lr_multiplier, dict(max_iter=30, output_dir="mine")
dataloader.train.mapper.augmentations.insert(0, L(T.RandomBrightness)(
    intensity_min=0.9, intensity_max=1.1))
dataloader.test.mapper.augmentations = []
"""
    )
    cfg = load_config(str(config), ["train.seed=4", "train.vis_period=7"])
    options = run_options(cfg)
    assert options.data.train_size[:2] == (240, 320) and options.min_size_test == 0
    assert (cfg.train.max_iter, cfg.train.seed, options.output_dir) == (30, 4, "mine")
    # An eighth of the training, as a share of it.
    assert read_schedule(cfg).warmup_iters == 4
    assert not cfg.train.ddp.broadcast_buffers


@pytest.mark.parametrize(
    "opts, says",
    [
        (["train.max_itr=10"], "no train.max_itr in .*did you mean train.max_iter"),
        (
            ["model.num_clases=3"],
            "model.num_clases is not an argument of TOOD; did you mean model",
        ),
        (["model.head.prior=0.1"], "model.head.prior is not an argument of TOODHead; .*prior_prob"),
        (["modle.num_classes=3"], "no modle.num_classes in .*model.num_classes"),
        (["train.max_iter=many"], "train.max_iter is 'many', of type str; it must be int"),
        (["train.max_iter=1,2"], "train.max_iter=1,2 cannot be used"),
        (["train.seed=null"], "train.seed is None.*must be int"),
        (["model.num_classes=0"], "model.num_classes is 0; it must be at least 1"),
        (["model.head.num_dcn_convs=9"], "model.head.num_dcn_convs is 9.*model.head.num_convs"),
        (["model.precision_train=float16"], "model.precision_train float16 needs a GPU"),
        (["model.input_format=BGR"], "image_format is 'RGB', but model.input_format is 'BGR'"),
        (["model=3"], "model is 3, but it has keys of its own"),
        (["train.checkpointer=3"], "train.checkpointer is 3, but it has keys of its own"),
        (["model._target_=tood.Nothing"], r"tood.Nothing \(_target_\) is not available"),
        (["model.head._target_=3"], r"3 \(_target_\) cannot be called"),
        (["train.output_dir=a=b"], "train.output_dir=a=b cannot be used"),
        (["train.max_iter"], "'train.max_iter' is not an override .* write KEY=VALUE"),
        (["SOLVER.MAX_ITER", "10"], "'SOLVER.MAX_ITER' is a key of .yaml .*KEY=VALUE"),
        (
            ["MODEL.WEIGHTS=a.pth"],
            "'MODEL.WEIGHTS' is a key of .yaml .*train.init_checkpoint=model.pth",
        ),
        (["train.max_iter=3", "--resume"], "--resume stands among .*flags go before"),
        (["train.early_stop_patience=3"], "train.early_stop_patience is 3"),
        ([], "No training data"),
    ],
)
def test_wrong_overrides(opts, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = error_of(["--config-file", LAZY_CONFIG, *opts])
    assert re.search(says, message), message
    assert not (ROOT / "output" / "small_data").exists()


@pytest.mark.parametrize(
    "text, says",
    [
        ("model = (", r"mine.py has syntax error \(line 1: "),
        ("x = 1\ny = x / 0", r"division by zero \(line 2 of .*mine.py\)"),
        ("from .gone import model", r"gone.py.*\(line 1 of .*mine.py\)"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("train = dict(max_iter=3)", "mine.py has no model to call"),
        ("model = dict(num_classes=3)", "mine.py has no model to call"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, says):
    config = tmp_path / "mine.py"
    config.write_text(text)
    before = builtins.__import__
    message = error_of(["--config-file", str(config)])
    assert re.search(says, message), message
    assert builtins.__import__ is before


def test_mistakes_beside_the_config(lazy_command, tmp_path):
    assert "gone.py does not exist" in error_of(["--config-file", "gone.py"])
    assert "train.init_checkpoint after" in error_of(lazy_command("--eval-only"))
    message = error_of(lazy_command(opts=["train.init_checkpoint=no/such.pth"]))
    assert "no/such.pth (train.init_checkpoint)" in message
    message = error_of(lazy_command(opts=["model.num_classes=5"]))
    assert "has 4 classes, but model.num_classes is 5" in message
    assert not (tmp_path / "lazy").exists()
    message = error_of(lazy_command(opts=["model.backbone.bottom_up.stages.depth=51"]))
    assert "model of the config cannot be built: depth is 51" in message
    message = error_of(["--config-file", CONFIG, "train.max_iter=10"])
    assert "configs/tood_R18_GN_small_data.yaml, write KEY 10" in message
    message = error_of(["--config-file", CONFIG, "SOLVER.MAX_ITER", "3", "model.foo=10", "x"])
    assert "write KEY 10" in message


def test_options_after_a_list_of_values():
    values, opts = ["a", "b=c.jpg"], ["model.x=3", "d"]
    assert split_options([*values, *opts]) == (values, opts)
    assert not is_lazy(CONFIG) and is_lazy(LAZY_CONFIG)


def test_other_tools_refuse_configs_in_python():
    with pytest.raises(UserError, match="is a config in Python, which this tool does not take"):
        load_config(LAZY_CONFIG, allow_python=False)
