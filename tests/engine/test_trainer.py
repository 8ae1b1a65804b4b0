"""The trainer subclassed as Detectron2's tutorials do, and the loop without any config."""

import itertools

import pytest
import torch
from conftest import complaint, get_error, setup_run
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model

import tood
import train_net
from tood.config.build import check_builds
from tood.engine.loop import Experiment, LoopOptions, TrainingLoop
from tood.engine.trainer import Trainer, check_precise_bn


class CountEvaluator(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(outputs)

    def evaluate(self):
        return {"bbox": {"AP": float(self.count)}}


class CountSteps(HookBase):
    def after_step(self):
        self.trainer.steps += 1


class OwnTrainer(Trainer):
    steps = 0

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountEvaluator()

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.AdamW(model.parameters(), lr=cfg.SOLVER.BASE_LR)

    def build_hooks(self):
        hooks = super().build_hooks()
        hooks.insert(-1, CountSteps())
        return hooks

    def build_writers(self):
        return super().build_writers()[:1]


@pytest.mark.slow
def test_a_subclass_of_the_trainer(command, tmp_path):
    args = train_net.parse_args(command(opts=["TEST.EVAL_PERIOD", "2"]))
    trainer = OwnTrainer(setup_run(args))
    assert isinstance(trainer, DefaultTrainer)
    trainer.register_hooks([CountSteps()])  # beside those that are there
    trainer.resume_or_load(resume=False)
    assert trainer.train()["bbox"] == {"AP": 8.0}
    assert trainer.steps == 2 * 4
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.model is trainer.experiment.model
    assert (tmp_path / "out" / "metrics.json").read_text() == ""  # without its writer
    assert trainer.best.AP == 8.0 and (tmp_path / "out" / "model_best.pth").exists()
    # The checkpoint resumes, without the order of the images.
    again = OwnTrainer(setup_run(args))
    again.resume_or_load(resume=True)
    assert again.start_iter == 4
    results = OwnTrainer.test(again.cfg, again.model, evaluators=[CountEvaluator()])
    assert results == {"bbox": {"AP": 8.0}}


def test_expected_results_are_verified(command):
    expected = ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 99.0, 0.5]]"]
    with pytest.raises(SystemExit):
        train_net.cli(command(opts=expected))


def test_the_loop_needs_no_config(tiny_cfg, tmp_path, make_input):
    model = build_model(tiny_cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scores = iter([3.0, 5.0, 4.0])
    loop = TrainingLoop(
        Experiment(
            model=model,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
            train_loader=itertools.repeat([make_input()]),
            evaluate=lambda model, folder: {"bbox": {"AP": next(scores)}},
            validation_loaders=dict,
            options=LoopOptions(
                output_dir=str(tmp_path),
                max_iter=3,
                ims_per_batch=1,
                class_names=["a", "b", "c", "d"],
                eval_period=1,
            ),
        )
    )
    before = model.head.cls_pred.weight.detach().clone()
    assert loop.train() == {"bbox": {"AP": 4.0}}
    assert not torch.equal(before, model.head.cls_pred.weight)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert (best["AP"], best["iteration"]) == (5.0, 1)
    assert best["class_names"] == ["a", "b", "c", "d"]
    assert best["tood_version"] == tood.__version__


FROZEN = "set MODEL.TOOD.FREEZE_BN_STATS False, or omit it."


@pytest.mark.parametrize(
    "norm, head_norm, freeze, says",
    [
        ("BN", "GN", "True", FROZEN),
        ("BN", "GN", "False", None),
        ("BN", "BN", "True", None),  # that of the head is not frozen
        ("FrozenBN", "GN", "False", "training changes; omit it."),
        ("GN", "GN", "True", "training changes; omit it."),
    ],
)
def test_precise_bn_without_an_effect_is_refused(tiny_cfg, norm, head_norm, freeze, says):
    opts = ["MODEL.RESNETS.NORM", norm, "MODEL.TOOD.NORM", head_norm, "MODEL.FPN.NORM", ""]
    opts += ["MODEL.TOOD.FREEZE_BN_STATS", freeze, "TEST.PRECISE_BN.ENABLED", "True"]
    tiny_cfg.merge_from_list(opts)
    model = check_builds(tiny_cfg)
    if says is None:
        check_precise_bn(tiny_cfg, model)
    else:
        assert says in complaint(check_precise_bn, tiny_cfg, model)
        assert says in complaint(Trainer.build_precise_bn, tiny_cfg, model)
        tiny_cfg.TEST.PRECISE_BN.ENABLED = False
        check_precise_bn(tiny_cfg, model)
        assert Trainer.build_precise_bn(tiny_cfg, model) is None


def test_precise_bn_by_command(command, out):
    bn = ["MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", "True"]
    assert FROZEN in get_error(command(opts=bn)) and not out.exists()
    assert "--eval-only needs weights" in get_error(command("--eval-only", opts=bn))


def test_precise_bn_measures_statistics(command, out):
    bn = ["MODEL.RESNETS.NORM", "BN", "MODEL.TOOD.FREEZE_BN_STATS", "False", "SOLVER.MAX_ITER", "1"]
    bn += ["SOLVER.STEPS", "()", "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
    train_net.cli(command(opts=bn))
    assert "Running precise-BN for 2 iterations" in (out / "log.txt").read_text()
