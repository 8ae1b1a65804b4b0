"""An exponential moving average of the weights, which often detects better than the last ones."""

import os

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.optim.swa_utils import AveragedModel

from .files import write_atomically

__all__ = ["AverageWeights", "make_average"]


def make_average(model, decay: float) -> AveragedModel:
    """
    Args:
        model: not wrapped; its buffers are copied, not averaged.
        decay: of the average at each step. The first steps have a smaller one, (1 + n) / (10 + n)
            after n steps, so that the average does not hang on to the weights of the start.
    """

    def average(averaged, current, num_averaged):
        n = float(num_averaged)
        return torch.lerp(current, averaged, min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, avg_fn=average)


class AverageWeights(HookBase):
    """Updates the average after each step, and leaves it in ``model_final_ema.pth`` at the end."""

    def __init__(self, model, averaged: AveragedModel, folder: str):
        self.model, self.averaged, self.folder = model, averaged, folder

    def after_step(self):
        self.averaged.update_parameters(self.model)

    def after_train(self):
        finished = self.trainer.iter + 1 >= self.trainer.max_iter or self.trainer.stopped_early
        if finished and comm.is_main_process():
            content = {"model": self.averaged.module.state_dict(), "iteration": self.trainer.iter}
            write_atomically(content, os.path.join(self.folder, "model_final_ema.pth"))
