"""The configs of Detectron2's own ``lazyconfig_train_net.py``: the models and schedules of the yaml
configs of the same names, trained and evaluated by that script.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path

import detectron2
import pytest
import torch
from conftest import ROOT
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.solver import LRMultiplier
from omegaconf import ListConfig
from torch import nn

from tood import model_zoo
from tood.config.read import load_config
from tood.data.datasets import load_own_data
from tood.data.mapper import CheckedMapper
from tood.engine.trainer import Trainer

LAZY = ROOT / "configs" / "lazy"
SCRIPT = "lazyconfig_train_net.py"
SIZES = ("N_P2", "N", "Pico", "S")
NEED_TIMM = [f"tood_lite0_{size}_small_data" for size in SIZES]
ALL = sorted(path.stem for path in LAZY.glob("tood_*.py"))
NAMES = [x for x in ALL if x not in NEED_TIMM or importlib.util.find_spec("timm")]


def test_every_released_model_and_the_small_ones_have_a_config():
    assert set(ALL) == {*model_zoo.RELEASED_MODELS, "tood_R18_GN_small_data", *NEED_TIMM}
    for name in ALL:
        assert model_zoo.get_config_file(f"{name}.py") == str(LAZY / f"{name}.py")


def make_configs(name):
    """Both configs of a name."""
    path = str(ROOT / "configs" / f"{name}.yaml")
    return LazyConfig.load(str(LAZY / f"{name}.py")), load_config(path)


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
            if is_plain(value):
                said[f"{name}.{key}"] = list(value) if isinstance(value, tuple) else value
    return said


def is_plain(value):
    if isinstance(value, (list, tuple, ListConfig)):
        return all(is_plain(x) for x in value)
    return value is None or isinstance(value, (bool, int, float, str))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_attribute_of_the_model_is_yamls(name):
    lazy, yaml = make_configs(name)
    yaml.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        said, expected = structure(instantiate(lazy.model)), structure(build_model(yaml))
        assert said == expected
        assert sum(key.startswith("head.") for key in said) > 200
        lazy.model.head.align_box = False  # the comparison sees a change
        assert structure(instantiate(lazy.model)) != expected
    assert (lazy.train.init_checkpoint, lazy.train.output_dir) == (
        yaml.MODEL.WEIGHTS,
        yaml.OUTPUT_DIR,
    )


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_schedule_and_augmentation_are_yamls(name):
    lazy, yaml = make_configs(name)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    lazy.optimizer.params.model = model
    optimizer, other = instantiate(lazy.optimizer), Trainer.build_optimizer(yaml, model)
    solver, train = yaml.SOLVER, lazy.dataloader.train
    schedule = LRMultiplier(optimizer, instantiate(lazy.lr_multiplier), lazy.train.max_iter)
    expected = Trainer.build_lr_scheduler(yaml, other)
    iterations = [s + d for s in (*solver.STEPS, solver.WARMUP_ITERS) for d in (-1, 0)]
    for schedule.last_epoch in (0, 1, 77, *iterations, solver.MAX_ITER - 1):
        expected.last_epoch = schedule.last_epoch
        assert set(schedule.get_lr()) == set(expected.get_lr())
    assert move(model, optimizer).equal(move(model, other))
    assert (lazy.train.max_iter, train.total_batch_size) == (solver.MAX_ITER, solver.IMS_PER_BATCH)
    assert lazy.train.checkpointer.period == solver.CHECKPOINT_PERIOD
    for mapper, is_train in ((train.mapper, True), (lazy.dataloader.test.mapper, False)):
        ours, yamls = instantiate(mapper), CheckedMapper(yaml, is_train=is_train)
        assert ours.image_format == yamls.image_format and ours.is_train == yamls.is_train
        augmentations = [[plain_values(a) for a in x.augmentations.augs] for x in (ours, yamls)]
        assert augmentations[0] == augmentations[1] and len(augmentations[0]) == 1 + is_train


def plain_values(x):
    values = {k: v for k, v in vars(x).items() if is_plain(v)}
    return type(x), {
        k: [*v] if isinstance(v, (tuple, ListConfig)) else v for k, v in values.items()
    }


def move(model, optimizer):
    """Return how far large gradients move the parameters, and restore them."""
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    moved = torch.cat([(p - b).detach().flatten() for p, b in zip(model.parameters(), before)])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before):
            parameter.copy_(value)
    return moved


def find_lazy_script():
    """Return the path of the script: installed by tools/bootstrap.py, or of a checkout."""
    beside = Path(detectron2.__file__).parents[1] / "tools" / SCRIPT
    places = [sysconfig.get_path("scripts"), *os.environ.get("PATH", "").split(os.pathsep)]
    found = shutil.which(SCRIPT, path=os.pathsep.join(places), mode=os.F_OK)
    return str(beside) if beside.is_file() else found


@pytest.mark.slow
@pytest.mark.skipif(find_lazy_script() is None, reason=f"this Detectron2 came without {SCRIPT}")
def test_the_script_of_detectron2_trains_and_evaluates(shapes, tmp_path, warm_python):
    """The guide's config of own data, made tiny by overrides."""
    text = (ROOT / "docs" / "training.md").read_text()
    config = text.split("```python\n# mine.py\n")[1].split("```")[0]
    for part in ("train", "val"):
        config = config.replace(f'"{part}.json"', f'"{shapes}/annotations.json"')
        config = config.replace(f'"{part}/"', f'"{shapes}/images/"')
    (tmp_path / "mine.py").write_text(config)
    overrides = [
        *("model.num_classes=4", "model.backbone.out_channels=32", "model.head.conv_dim=64"),
        *("model.head.num_convs=2", "model.atss_iters=2", "model.score_thresh_test=0.0"),
        *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"),
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        *("train.device=cpu", "train.max_iter=4", "train.log_period=1"),
        f"train.output_dir={tmp_path / 'out'}",
    ]
    run(warm_python, tmp_path, *overrides)
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    *metrics, last = [json.loads(line) for line in lines]
    assert [row["iteration"] for row in metrics] == [0, 1, 2, 3]
    assert all(0 < row["loss_cls"] < 10 and 0 < row["loss_box_reg"] <= 4 for row in metrics)
    weights = tmp_path / "out" / "model_final.pth"
    overrides.append(f"train.init_checkpoint={weights}")
    evaluated = run(warm_python, tmp_path, "--eval-only", *overrides)
    assert f"'AP': {last['bbox/AP']}" in evaluated and f"'APs': {last['bbox/APs']}" in evaluated


def run(python, folder, *arguments):
    flags = [a for a in arguments if a.startswith("--")]
    overrides = [a for a in arguments if not a.startswith("--")]
    command = [python, find_lazy_script(), "--config-file", "mine.py"]
    command += ["--num-gpus", "0", *flags, *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_augmentations_of_several_images(shapes):
    """Documented in docs/augmentations.md."""
    page = (ROOT / "docs" / "augmentations.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    dataloader = LazyConfig.load(str(LAZY / "tood_R18_GN_small_data.py")).dataloader
    dataloader.train.dataset = L(load_own_data)(
        json_file=f"{shapes}/annotations.json", image_root=f"{shapes}/images"
    )
    dataloader.train.num_workers = 0
    exec(code, {"dataloader": dataloader})
    numbers, sizes = set(), set()
    for batch in itertools.islice(iter(instantiate(dataloader.train)), 10):
        numbers |= {len(x["instances"]) for x in batch}
        sizes |= {x["image"].shape for x in batch}
    content = json.loads((shapes / "annotations.json").read_text())
    most = max(Counter(a["image_id"] for a in content["annotations"]).values())
    assert max(numbers) > most and sizes == {(3, 240, 240)}
