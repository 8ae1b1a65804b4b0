"""The experiment of a config in Python: its parts are what the config calls."""

import copy
import logging
import os
from collections import OrderedDict
from typing import Dict

from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, OmegaConf

from tood.config.lazy.check import target_of
from tood.config.lazy.options import lazy_run_options
from tood.config.lazy.read import build_lazy_model, build_part
from tood.data.loader import build_training_loader
from tood.data.tiles import tile_records
from tood.engine.loop import Experiment, LoopOptions
from tood.evaluation.alignment_evaluator import AlignmentEvaluator
from tood.evaluation.coco import CleanCOCOEvaluator, results_folder
from tood.inference.tiles import ResizedTOOD, TiledTOOD
from tood.inference.tta import TOODWithTTA
from tood.modeling.detector import TOOD

logger = logging.getLogger(__name__)


def build_lazy_experiment(lazy: DictConfig) -> Experiment:
    """Build all parts of a training, in the order of Detectron2's ``DefaultTrainer``."""
    model = build_lazy_model(lazy)
    logger.info(f"Model:\n{model}")
    parts = copy.deepcopy(lazy)
    parts.optimizer.params.model = model
    optimizer = build_part(parts, "optimizer")
    if target_of(parts.dataloader.train) is build_training_loader and lazy.train.seed >= 0:
        parts.dataloader.train.seed = lazy.train.seed
    if lazy.train.tiles.size:
        parts.dataloader.train.tiles = lazy.train.tiles
    return Experiment(
        model=model,
        optimizer=optimizer,
        train_loader=build_part(parts, "dataloader.train"),
        scheduler=LRMultiplier(optimizer, build_part(lazy, "lr_multiplier"), lazy.train.max_iter),
        evaluate=lambda model, folder: evaluate_lazy(lazy, model, folder),
        validation_loaders=lambda: {
            name: _test_loader(lazy, name, with_gt=True)
            for name in lazy_run_options(lazy).data.test
        },
        options=_loop_options(lazy),
    )


def _loop_options(lazy: DictConfig) -> LoopOptions:
    train, data = lazy.train, lazy_run_options(lazy).data
    names = MetadataCatalog.get(data.train[0]).get("thing_classes")
    return LoopOptions(
        output_dir=train.output_dir,
        max_iter=train.max_iter,
        ims_per_batch=lazy.dataloader.train.total_batch_size,
        class_names=names or [str(i) for i in range(data.num_classes)],
        weights=train.init_checkpoint,
        checkpoint_period=train.checkpointer.period,
        max_to_keep=train.checkpointer.max_to_keep,
        eval_period=train.eval_period,
        log_period=train.log_period,
        vis_period=train.vis_period,
        val_loss=train.val_loss,
        ema_decay=train.ema_decay,
        early_stop_patience=train.early_stop_patience,
        num_test_sets=len(data.test),
        max_dead_iters=train.max_dead_iters,
        seed=train.seed if train.seed >= 0 else None,
        ddp=dict(train.ddp),
    )


def evaluate_lazy(lazy: DictConfig, model, folder: str = "", *, alignment: bool = True) -> Dict:
    """Evaluate a model on the test data of a config, as ``Trainer.test`` does.

    Args:
        folder: of the files that the evaluators write; default: the config's.
        alignment: measure the alignment as well, where the config asks for it.
    """
    options = lazy_run_options(lazy)
    results, names, tiles = OrderedDict(), options.data.test, options.tiles
    if tiles.size and isinstance(model, TOOD):
        resize = T.ResizeShortestEdge([options.min_size_test] * 2, options.max_size_test)
        model = TiledTOOD(model, tiles, ResizedTOOD(model, resize))
        lazy, alignment = copy.deepcopy(lazy), False
        lazy.dataloader.test.mapper.augmentations = []
    for name in names:
        if "evaluator" not in lazy.dataloader:
            logger.warning("The config has no dataloader.evaluator: nothing is measured.")
            results[name] = {}
            continue
        output_dir = results_folder(folder or lazy.train.output_dir, name, names)
        parts = copy.deepcopy(lazy)
        node = parts.dataloader.evaluator
        node.dataset_name = name
        if "output_dir" in node:
            node.output_dir = output_dir
        if target_of(node) is CleanCOCOEvaluator and "max_dets_per_image" not in node:
            node.max_dets_per_image = lazy.model.get("max_detections_per_image", None)
        evaluator = build_part(parts, "dataloader.evaluator")
        if alignment and lazy.train.eval_alignment:
            alignment_evaluator = AlignmentEvaluator(name, model, output_dir)
            evaluator = DatasetEvaluators([evaluator, alignment_evaluator])
        results[name] = inference_on_dataset(model, _test_loader(lazy, name), evaluator) or {}
        if results[name]:
            logger.info(f"Evaluation results for {name} in csv format:")
            print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_lazy_with_TTA(lazy: DictConfig, model) -> Dict:
    """Return the results of test-time augmentation, as "bbox_TTA" and so on."""
    options = lazy_run_options(lazy)
    # It resizes the images itself, from their own size, and has no dense output of its own.
    lazy = copy.deepcopy(lazy)
    lazy.dataloader.test.mapper.augmentations = []
    folder = os.path.join(options.output_dir, "TTA")
    augmented = TOODWithTTA(model, options.tta)
    if options.tiles.size:
        augmented = TiledTOOD(model, options.tiles, augmented)
    results = evaluate_lazy(lazy, augmented, folder, alignment=False)
    return OrderedDict((f"{name}_TTA", metrics) for name, metrics in results.items())


def _test_loader(lazy: DictConfig, name: str, *, with_gt: bool = False):
    lazy = copy.deepcopy(lazy)
    OmegaConf.update(lazy, "dataloader.test.dataset.names", name, merge=False)
    if with_gt:
        lazy.dataloader.test.mapper.is_train = True
        tiles = lazy_run_options(lazy).tiles
        if tiles.size:
            records = tile_records(build_part(lazy, "dataloader.test.dataset"), tiles)
            mapper = build_part(lazy, "dataloader.test.mapper")
            return build_detection_test_loader(records, mapper=mapper)
    return build_part(lazy, "dataloader.test")
