"""The trainer: Detectron2's ``DefaultTrainer``, and the training loop."""

import os
from collections import OrderedDict

from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluators, verify_results
from detectron2.utils import comm
from fvcore.nn.precise_bn import BN_MODULE_TYPES, get_bn_modules
from torch.utils.data import DataLoader

from tood.checkpoint.identity import hash_data, hash_weights, write_identity
from tood.config.check import get_key
from tood.config.options import read_training_options
from tood.config.read import run_options, tile_options
from tood.data.loader import GuardedLoader, build_training_loader
from tood.data.mapper import CheckedMapper
from tood.data.tiles import tile_records
from tood.engine.loop import Experiment, LoopOptions, TrainingLoop
from tood.engine.optimizer import clip_gradients
from tood.evaluation.alignment_evaluator import AlignmentEvaluator
from tood.evaluation.coco import CleanCOCOEvaluator, load_content, results_folder
from tood.inference.teacher import EQUAL_KEYS, load_teacher
from tood.inference.tiles import ResizedTOOD, TiledTOOD
from tood.inference.tta import TOODWithTTA
from tood.modeling.detector import TOOD
from tood.utils.errors import UserError


class Trainer(TrainingLoop, DefaultTrainer):
    """Detectron2's trainer, to be subclassed like it: its ``build_...`` methods make the
    :class:`Experiment` of a config, which :class:`TrainingLoop` trains. One more
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``, "full_model", bounds the norm of all gradients together by
    ``CLIP_VALUE``, where Detectron2's own "norm" bounds that of each parameter.
    """

    def __init__(self, cfg):
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        super().__init__(self.build_experiment(cfg))

    @staticmethod
    def auto_scale_workers(cfg, num_workers):
        """Scale the iterations of ATSS by ``SOLVER.REFERENCE_WORLD_SIZE`` as well."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        factor = cfg.SOLVER.IMS_PER_BATCH / scaled.SOLVER.IMS_PER_BATCH
        if factor != 1:
            atss_iters = round(factor * cfg.MODEL.TOOD.ATSS_ITERS)
            scaled = _changed(scaled, "MODEL.TOOD.ATSS_ITERS", atss_iters)
        return scaled

    def build_experiment(self, cfg) -> Experiment:
        """Build all parts of a training, in the order of ``DefaultTrainer``."""
        model = self.build_model(cfg)
        options = self.build_options(cfg, model)
        attach_teacher(cfg, model, options.class_names)
        optimizer = self.build_optimizer(cfg, model)
        return Experiment(
            model=model,
            optimizer=optimizer,
            train_loader=self.build_train_loader(cfg),
            scheduler=self.build_lr_scheduler(cfg, optimizer),
            evaluate=lambda model, folder: self.test(_changed(cfg, "OUTPUT_DIR", folder), model),
            validation_loaders=lambda: {
                name: self.build_validation_loader(cfg, name) for name in cfg.DATASETS.TEST
            },
            options=options,
            precise_bn=self.build_precise_bn(cfg, model),
        )

    @classmethod
    def build_options(cls, cfg, model) -> LoopOptions:
        return LoopOptions(
            output_dir=cfg.OUTPUT_DIR,
            max_iter=cfg.SOLVER.MAX_ITER,
            ims_per_batch=cfg.SOLVER.IMS_PER_BATCH,
            class_names=get_class_names(cfg),
            weights=cfg.MODEL.WEIGHTS,
            checkpoint_period=cfg.SOLVER.CHECKPOINT_PERIOD,
            max_to_keep=cfg.SOLVER.CHECKPOINT_KEEP or None,
            eval_period=cfg.TEST.EVAL_PERIOD,
            vis_period=cfg.VIS_PERIOD,
            num_test_sets=len(cfg.DATASETS.TEST),
            seed=cfg.SEED if cfg.SEED >= 0 else None,
            training=read_training_options(cfg),
        )

    @classmethod
    def build_precise_bn(cls, cfg, model):
        options = cfg.TEST.PRECISE_BN
        if not options.ENABLED:
            return None
        check_precise_bn(cfg, model)
        loader = cls.build_train_loader(_changed(cfg, "DATALOADER.NUM_WORKERS", 0))
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, model, loader, options.NUM_ITER)

    def train(self):
        results = super().train()
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    @classmethod
    def build_train_loader(cls, cfg):
        if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
            mapper = CheckedMapper(cfg, is_train=True)
            loader = build_detection_train_loader(cfg, mapper=mapper)
            if isinstance(loader, DataLoader):
                return GuardedLoader(loader)
            loader.dataset = GuardedLoader(loader.dataset)  # whose images it groups
            return loader
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        tiles = tile_options(cfg)
        records = tile_records(records, tiles) if tiles.size else records
        return build_training_loader(
            dataset=records,
            mapper=CheckedMapper(cfg, is_train=True, records=records),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=cfg.SEED if cfg.SEED >= 0 else None,
            repeat_factors=_compute_repeat_factors(cfg, records),
        )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        mapper = CheckedMapper(cfg, is_train=False)
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        return GuardedLoader(loader, "evaluation")

    @classmethod
    def build_validation_loader(cls, cfg, dataset_name):
        """Return the test loader with ground truth."""
        mapper = CheckedMapper(
            is_train=True,
            augmentations=build_augmentation(cfg, is_train=False),
            image_format=cfg.INPUT.FORMAT,
            bit_depth=cfg.INPUT.BIT_DEPTH,
        )
        tiles = tile_options(cfg)
        if not tiles.size:
            loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
            return GuardedLoader(loader, "evaluation")
        records = tile_records(get_detection_dataset_dicts(dataset_name, False), tiles)
        workers = cfg.DATALOADER.NUM_WORKERS
        loader = build_detection_test_loader(records, mapper=mapper, num_workers=workers)
        return GuardedLoader(loader, "evaluation")

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CleanCOCOEvaluator(
            dataset_name,
            output_dir=results_folder(cfg.OUTPUT_DIR, dataset_name, cfg.DATASETS.TEST),
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate as Detectron2 does, with the alignment as well (``EVAL_ALIGNMENT``), and in
        tiles (``INPUT.TILES``), of which there is no alignment.
        """
        tiles, is_complete = tile_options(cfg), evaluators is None
        if tiles.size and isinstance(model, TOOD):
            resize = build_augmentation(cfg, is_train=False)[0]
            model = TiledTOOD(model, tiles, ResizedTOOD(model, resize))
            cfg = _changed(cfg, "INPUT.MIN_SIZE_TEST", 0)
            cfg.MODEL.TOOD.EVAL_ALIGNMENT = False
        if evaluators is None and cfg.MODEL.TOOD.EVAL_ALIGNMENT:
            names = cfg.DATASETS.TEST
            folders = [results_folder(cfg.OUTPUT_DIR, name, names) for name in names]
            evaluators = [
                DatasetEvaluators(
                    [cls.build_evaluator(cfg, name), AlignmentEvaluator(name, model, folder)]
                )
                for name, folder in zip(names, folders)
            ]
        results = super().test(cfg, model, evaluators)
        if is_complete and comm.is_main_process():
            _write_identities(cfg, model)
        return results

    @classmethod
    def test_with_TTA(cls, cfg, model):
        """Return the results of test-time augmentation (``TEST.AUG``), as "bbox_TTA" and so on."""
        cfg = _changed(cfg, "OUTPUT_DIR", os.path.join(cfg.OUTPUT_DIR, "TTA"))
        # It resizes the images itself, from their original size, and has no dense output.
        cfg.INPUT.MIN_SIZE_TEST = 0
        cfg.MODEL.TOOD.EVAL_ALIGNMENT = False
        detect = TOODWithTTA(model, run_options(cfg).tta)
        tiles = tile_options(cfg)
        results = cls.test(cfg, TiledTOOD(model, tiles, detect) if tiles.size else detect)
        return OrderedDict((f"{name}_TTA", metrics) for name, metrics in results.items())

    @classmethod
    def build_optimizer(cls, cfg, model):
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not clip.ENABLED or clip.CLIP_TYPE == "value":
            return super().build_optimizer(cfg, model)
        without_clipping = _changed(cfg, "SOLVER.CLIP_GRADIENTS.ENABLED", False)
        optimizer = super().build_optimizer(without_clipping, model)
        each = clip.CLIP_TYPE == "norm"  # quicker than Detectron2's; all together are missing there
        clip_gradients(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE, each=each)
        return optimizer


def check_precise_bn(cfg, model) -> None:
    """Raise UserError if ``TEST.PRECISE_BN`` is on, but has no effect on a model, which may have no
    numbers.
    """
    frozen = any(isinstance(x, BN_MODULE_TYPES) for x in model.modules())
    # A model that was just built has not frozen its norms yet.
    if cfg.TEST.PRECISE_BN.ENABLED and not get_bn_modules(model.train()):
        remedy = "set MODEL.TOOD.FREEZE_BN_STATS False, or omit it" if frozen else "omit it"
        raise UserError(
            "TEST.PRECISE_BN.ENABLED is True, but no norm of this model has statistics that "
            f"training changes; {remedy}."
        )


def attach_teacher(cfg, model, class_names) -> None:
    """Give a model the teacher that a config names; errors as of :func:`load_teacher`.

    Args:
        model: may have no numbers; None: the teacher is only checked, apart from its levels.
    """
    options = read_training_options(cfg)
    if options.active_teacher:
        values = {key: get_key(cfg, key) for key in (*EQUAL_KEYS, "MODEL.DEVICE", "OUTPUT_DIR")}
        facts = dict(student=model, class_names=class_names, values=values)
        teacher = load_teacher(options.teacher, options.teacher_weight, **facts)
        if model is not None:
            model.teacher = teacher


def get_class_names(cfg):
    """Return the names of the classes of the training data, numbers if they have none."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    return names or [str(i) for i in range(cfg.MODEL.TOOD.NUM_CLASSES)]


def _compute_repeat_factors(cfg, records):
    """Return how often each image comes in an epoch; None for once."""
    options = cfg.DATALOADER
    if options.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return None
    # Detectron2's main has this key as well.
    more = {"sqrt": options.REPEAT_SQRT} if "REPEAT_SQRT" in options else {}
    compute = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    return compute(records, options.REPEAT_THRESHOLD, **more)


def _write_identities(cfg, model) -> None:
    """Write which weights and data the detections in each folder of results are of."""
    while not isinstance(model, TOOD) and hasattr(model, "model"):  # of tiles, augmented views
        model = model.model
    weights = hash_weights(model.state_dict())
    for name in cfg.DATASETS.TEST:
        folder = results_folder(cfg.OUTPUT_DIR, name, cfg.DATASETS.TEST)
        path = os.path.join(folder, "coco_instances_results.json")
        if os.path.isfile(path):
            data = hash_data(load_content(name, MetadataCatalog.get(name)))
            write_identity(path, weights=weights, data=data)


def _changed(cfg, key: str, value):
    """Return a copy of a config, not frozen, with another value."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    return cfg
