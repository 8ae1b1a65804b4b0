"""One step of training: forward, backward, a check of the numbers, and then the optimizer."""

import math
import time
from typing import Dict, List

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from tood.utils.errors import UserError


class Diverged(UserError):
    """A loss or a gradient is not finite."""


class TrainingStep(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` that does not step on a loss or a gradient that is not finite,
    logs the norm of all gradients together as "grad_norm", and scales them if training is in
    float16. The precision itself is the model's (``MODEL.TOOD.PRECISION_TRAIN``).
    """

    def __init__(self, model, data_loader, optimizer, *, scale_gradients: bool = False):
        """
        Args:
            model, data_loader, optimizer: see ``SimpleTrainer``.
            scale_gradients: whether to scale gradients, which float16 needs for small ones; on a
                GPU only.
        """
        super().__init__(model, data_loader, optimizer)
        self.grad_scaler = make_grad_scaler() if scale_gradients else None
        self.set_data_loader(data_loader)

    def set_data_loader(self, data_loader) -> None:
        """Take the next batch, and all after it, from another loader."""
        self.data_loader = data_loader
        self._batches = iter(data_loader)

    def close(self) -> None:
        """End the processes that load images."""
        if hasattr(self._batches, "close"):  # a generator
            self._batches.close()

    def run_step(self):
        start = time.perf_counter()
        data = next(self._batches)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()  # before the forward pass: gradients take memory
        losses = self.model(data)
        total = sum(losses.values())
        if self.grad_scaler is None:
            total.backward()
            self._check_numbers(losses, data)
            self._write_metrics(losses, data_time)
            self.optimizer.step()
        else:
            # Overflowing gradients are expected: the scaler skips the step.
            self.grad_scaler.scale(total).backward()
            self._check_numbers(losses, data, with_gradients=False)
            self._write_metrics(losses, data_time)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _check_numbers(
        self, losses: Dict[str, Tensor], data: List[Dict], *, with_gradients: bool = True
    ) -> None:
        """Raise Diverged for a loss or, ``with_gradients``, a gradient that is not finite, with
        losses, gradient and images; log the norm of the gradients.
        """
        check_gradients(self.model)
        gradients = {
            name: p.grad.detach() for name, p in self.model.named_parameters() if p.grad is not None
        }
        norms = torch.stack([gradient.norm() for gradient in gradients.values()])
        # The one moment when the CPU waits for a GPU, as for the losses in Detectron2's log.
        total, grad_norm = torch.stack([sum(losses.values()).detach(), norms.norm()]).tolist()
        finite = math.isfinite(total)
        if with_gradients:
            # Processes share their gradients, and so the answer.
            finite = finite and math.isfinite(grad_norm)
            get_event_storage().put_scalar("grad_norm", grad_norm)
        else:
            finite = all(comm.all_gather(finite))
        if finite:
            return
        largest = norms.argmax().item()  # of NaN and numbers, NaN
        values = ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
        images = ", ".join(str(x.get("file_name", "without a name")) for x in data)
        raise Diverged(
            f"Training stopped at iteration {self.iter}, before the optimizer step: {values}, and "
            f"the largest gradient is that of {list(gradients)[largest]}, with norm "
            f"{norms[largest].item():.3g}; the images were {images}. Look at these, lower "
            "the learning rate, or turn on gradient clipping"
        )

    def state_dict(self) -> Dict:
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Dict) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def check_gradients(model: nn.Module) -> None:
    """Raise UserError for parameters without a gradient after a backward pass, if there are several
    processes: each would wait for the gradient of the others.
    """
    if comm.get_world_size() == 1:
        return
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    missing = [name.removeprefix("module.") for name, p in named if p.grad is None]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"No loss depends on {', '.join(missing[:3])}{more}, which several processes cannot "
            "train; add a loss by sum_losses (docs/extending.md), turn off its requires_grad, or "
            "train in one process."
        )


def make_grad_scaler(enabled: bool = True):
    """Return PyTorch's gradient scaler for a GPU, which does nothing if it is not enabled."""
    if hasattr(torch.amp, "GradScaler"):  # since PyTorch 2.3
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
