"""An exponential moving average of the weights, which often detects better than the last ones."""

import copy
import os
from typing import Dict

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from .files import write_atomically

__all__ = ["AverageWeights", "WeightAverage"]


class WeightAverage:
    """
    A copy of a model whose parameters follow its own slowly; its buffers are copied. (PyTorch's
    ``AveragedModel`` reads its count of steps from a tensor for every parameter, for which a GPU
    would wait.)
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: not wrapped.
            decay: of the average at each step. The first steps have a smaller one,
                (1 + n) / (10 + n) after n steps, and none at the very first, so that the average
                does not hang on to the weights of the start.
        """
        self.decay = decay
        self.num_steps = 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        n = self.num_steps
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        for average, current in zip(self.model.parameters(), model.parameters()):
            average.lerp_(current, 1 - decay)
        for average, current in zip(self.model.buffers(), model.buffers()):
            average.copy_(current)
        self.num_steps += 1

    def state_dict(self) -> Dict:
        return {"num_steps": self.num_steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: Dict) -> None:
        self.num_steps = state["num_steps"]
        self.model.load_state_dict(state["model"])


class AverageWeights(HookBase):
    """Updates the average after each step, and leaves it in ``model_final_ema.pth`` at the end."""

    def __init__(self, model: nn.Module, averaged: WeightAverage, folder: str, constants: Dict):
        """
        Args:
            model: not wrapped.
            folder: of the file.
            constants: what the file holds as well.
        """
        self.model, self.averaged = model, averaged
        self.folder, self.constants = folder, constants

    def after_step(self):
        self.averaged.update(self.model)

    def after_train(self):
        finished = self.trainer.iter + 1 >= self.trainer.max_iter or self.trainer.stopped_early
        if finished and comm.is_main_process():
            content = {"model": self.averaged.model.state_dict(), **self.constants}
            write_atomically(content, os.path.join(self.folder, "model_final_ema.pth"))
