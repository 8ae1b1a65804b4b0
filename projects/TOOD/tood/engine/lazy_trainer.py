"""The trainer of configs in Python: the same, with the parts that the config says how to build."""

import os
from typing import Optional

from detectron2.engine import hooks
from detectron2.solver import LRMultiplier

from tood.config.lazy_view import LazyView, build_part, target_of
from tood.data.loader import build_training_loader
from tood.engine.trainer import Trainer

__all__ = ["LazyTrainer"]


class LazyTrainer(Trainer):
    """
    :class:`Trainer`, where optimizer, schedule, data loaders and evaluator are what a lazy config
    calls, as its model is; and with ``train.ddp``, ``train.log_period`` and all of
    ``train.checkpointer``, which yacs configs have no keys for.
    """

    def __init__(self, cfg: LazyView):
        self._writers = None
        super().__init__(cfg)

    def build_hooks(self):
        train = self.cfg.to_lazy().train

        def by_this_config(hook):
            if isinstance(hook, hooks.PeriodicCheckpointer):
                return hooks.PeriodicCheckpointer(self.checkpointer, **train.checkpointer)
            if isinstance(hook, hooks.PeriodicWriter):
                return hooks.PeriodicWriter(self.build_writers(), train.get("log_period", 20))
            return hook

        return [by_this_config(hook) for hook in super().build_hooks()]

    def build_writers(self):
        if self._writers is None:  # asked twice; TensorBoard's opens a file
            self._writers = super().build_writers()
        return self._writers

    @classmethod
    def ddp_options(cls, cfg):
        return dict(cfg.to_lazy().train.get("ddp", super().ddp_options(cfg)))

    @classmethod
    def build_optimizer(cls, cfg, model):
        lazy = cfg.to_lazy()
        lazy.optimizer.params.model = model
        return build_part(lazy, "optimizer")

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        multiplier = build_part(cfg.to_lazy(), "lr_multiplier")
        return LRMultiplier(optimizer, multiplier, cfg.SOLVER.MAX_ITER)

    @classmethod
    def build_train_loader(cls, cfg, *, seed: Optional[int] = None, skip: int = 0):
        """As :meth:`Trainer.build_train_loader`; another loader begins anew with every start."""
        lazy = cfg.to_lazy()
        node = lazy.dataloader.train
        if target_of(node) is build_training_loader:
            node.seed = cfg.SEED if seed is None and cfg.SEED >= 0 else seed
            node.skip = skip
        return build_part(lazy, "dataloader.train")

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        lazy = cfg.to_lazy()
        lazy.dataloader.test.dataset.names = dataset_name
        return build_part(lazy, "dataloader.test")

    @classmethod
    def build_validation_loader(cls, cfg, dataset_name):
        lazy = cfg.to_lazy()
        lazy.dataloader.test.dataset.names = dataset_name
        lazy.dataloader.test.mapper.is_train = True
        return build_part(lazy, "dataloader.test")

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        lazy = cfg.to_lazy()
        node = lazy.dataloader.get("evaluator")
        if node is None:
            raise NotImplementedError  # which Detectron2 takes for "no figures"
        node.dataset_name = dataset_name
        if "output_dir" in node:
            node.output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
        return build_part(lazy, "dataloader.evaluator")
