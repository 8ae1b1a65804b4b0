"""Checkpoints that are written whole or not at all, and errors for unusable ones."""

import contextlib
import logging
import os
import re
import reprlib
from typing import Any, Dict, List, Optional

from detectron2.checkpoint import DetectionCheckpointer

from tood.config.read import get_config
from tood.utils.errors import UserError, format_reason
from tood.utils.files import last_checkpoint_in, write_atomically, write_whole
from tood.utils.signals import mark_resumable
from tood.utils.tensors import check_types, read_pickle, read_tensors

logger = logging.getLogger(__name__)

# Weights to start from must fit at least this share of the file's entries or of the model's.
MIN_SHARE = 0.25


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer and format. A process killed while it writes leaves the earlier
    checkpoints intact, and resuming goes back to the newest readable one.
    """

    def __init__(
        self,
        model,
        save_dir="",
        *,
        complete: bool = False,
        contents: Optional[Dict[str, Dict]] = None,
        **kwargs,
    ):
        """
        Args:
            contents: path -> content of files that :func:`read_tensors` has read.
            complete: refuse weights without a part of the model, or with another shape of it, as
                evaluation needs; Detectron2 would leave such a part random.
        """
        super().__init__(model, save_dir, **kwargs)
        self.complete, self.contents = complete, contents or {}
        self.extra_metadata: Dict[str, Any] = {}  # further entries of every file
        self.resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and ``kwargs`` to ``name``.pth.

        Raises:
            UserError: if it cannot be written; then nothing is left of it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:
            return super().save(name, **kwargs)
        content = {"model": self.model.state_dict(), **self.extra_metadata}
        content.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        content.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info(f"Saving checkpoint to {path}")
        write_atomically(content, path)
        self.tag_last_checkpoint(f"{name}.pth")

    def get_checkpoint_file(self) -> str:
        """Return the checkpoint that "last_checkpoint" names, a file beside it; "" without one."""
        name = last_checkpoint_in(self.save_dir)
        if not name:
            return ""
        if os.path.basename(name) != name or not name.endswith(".pth"):
            logger.warning(
                f"{self.save_dir}/last_checkpoint names {name!r}, which is not a checkpoint of its "
                "folder; the newest one there is used."
            )
            return ""
        return os.path.join(self.save_dir, name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            return super().tag_last_checkpoint(last_filename_basename)
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_whole(path, last_filename_basename.encode())
        mark_resumable()

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """Load the newest checkpoint in ``save_dir`` that can be read whole, if ``resume`` is set
        and there is one; otherwise only the weights at ``path``.
        """
        if not resume or not self.has_checkpoint():
            return self.load(path, checkpointables=[])
        self.resuming = True
        try:
            return self._load_newest()
        finally:
            self.resuming = False

    def _load_newest(self) -> Dict[str, Any]:
        paths = self._newest_first()
        if not paths:
            raise UserError(f"There is no checkpoint to resume in {self.save_dir}; omit --resume.")
        for path, before in zip(paths, paths[1:]):
            try:
                return self.load(path)
            except UserError as error:
                logger.warning(f"{error.sentence()} Trying the one before it, {before}.")
        return self.load(paths[-1])

    def tag_last_sound(self, before: int) -> Optional[str]:
        """Make the newest checkpoint of an iteration less than ``before``, all of whose weights are
        finite, the last one; return its name, or None without one.
        """
        for path in self._newest_first():
            with contextlib.suppress(UserError, KeyError, TypeError):
                if read_tensors(path)["iteration"] < before:  # refused unless all are finite
                    self.tag_last_checkpoint(os.path.basename(path))
                    return os.path.basename(path)
        return None

    def _newest_first(self) -> List[str]:
        last = self.get_checkpoint_file()
        numbered = sorted(
            path
            for path in self.get_all_checkpoint_files()
            if re.fullmatch(r"model_\d+\.pth", os.path.basename(path))
        )
        older = [path for path in reversed(numbered) if path != last]
        return [last, *older] if last else older

    def load(self, path, *args, **kwargs):
        try:
            return super().load(path, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # of any kind, from the file's content
            advice = "name another one with MODEL.WEIGHTS"
            if self.resuming:
                advice = "omit --resume to start again"
            raise UserError(
                f"The checkpoint {path} cannot be loaded ({format_reason(error)}); {advice}."
            ) from error
        finally:
            # Detectron2's main branch refuses another load as long as this one seems to go on.
            self._parsed_url_during_load = None

    def _load_file(self, filename):
        """Read the files that Detectron2 reads, without running code in them."""
        if filename.endswith(".pkl"):
            content = _read_model_zoo(read_pickle(filename))
        else:
            content = self.contents.pop(filename, None) or read_tensors(filename)
        if self.resuming:
            _check_state(content.get("trainer"))
        if filename.endswith(".pyth") and "model_state" in content:  # of pycls
            model = content["model_state"]
            content = {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if "model" not in content:
            content = {"model": content.get("state_dict", content)}
        query = getattr(self, "_parsed_url_during_load", None)
        if query is not None and "matching_heuristics=True" in query.query:
            content["matching_heuristics"] = True
        for name in content["model"]:
            if not isinstance(name, str):
                raise ValueError(f"the name {reprlib.repr(name)} of a tensor is not text")
        _refuse_other_projects(content["model"], filename)
        return content

    def _load_model(self, checkpoint):
        self._check_anchor_type(checkpoint)
        expected = self.model.state_dict()
        number, entries = len(checkpoint["model"]), set(expected)
        self._convert_ndarray_to_tensor(checkpoint["model"])
        tensors = {re.sub(r"^module\.", "", n): x for n, x in checkpoint["model"].items()}
        if checkpoint.get("matching_heuristics"):  # finds the names of the model later
            of_floats = next(x for x in expected.values() if x.is_floating_point())
            names = [n for n in tensors if not n.endswith("num_batches_tracked")]
            expected = dict.fromkeys(names, of_floats)
        check_types(tensors, expected)
        incompatible = super()._load_model(checkpoint)
        lacking = [*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)]
        if lacking and (self.complete or self.resuming):
            raise UserError(
                f"The weights do not fit the config: they lack {len(set(lacking))} entries of the "
                f"model, or have them in another shape, for example {lacking[0]}; use the config "
                "they were trained with, and convert another project's file with "
                "tools/convert_checkpoint.py first."
            )
        matched = len(entries - set(lacking))
        if matched < MIN_SHARE * min(len(entries), number):  # training would start from scratch
            raise UserError(
                f"The weights do not fit the model: only {matched} of their {number} entries have "
                f"a place among its {len(entries)}; name weights of this model or of its backbone, "
                "and convert another project's file with tools/convert_checkpoint.py first."
            )
        return incompatible

    def _check_anchor_type(self, checkpoint: Dict[str, Any]) -> None:
        """Hold the anchor type that a converted file states to the model's: no entry shows it, and
        with the other one every box is wrong. A training may start from either.
        """
        config, head = checkpoint.get("config"), getattr(self.model, "head", None)
        mine = getattr(head, "anchor_type", None)
        if mine is None or not isinstance(config, str):
            return
        try:
            theirs = get_config(config, checkpoint.get("options", ())).MODEL.TOOD.ANCHOR_TYPE
        except UserError:  # of another project
            return
        if theirs == mine:
            return
        text = f"The weights are {theirs}, as their file says, and the config is {mine}"
        if self.complete or self.resuming:
            raise UserError(f"{text}; use the config {config}, or MODEL.TOOD.ANCHOR_TYPE {theirs}.")
        logger.warning(f"{text}: boxes are predicted in another way at the start.")

    def _log_incompatible_keys(self, incompatible):
        """Log one line for fine-tuning, a class predictor of another number of classes."""
        shapes = incompatible.incorrect_shapes
        predictor = {x[0]: x for x in shapes if x[0].startswith("head.cls_pred.")}
        if predictor:
            _, old, new = next(iter(predictor.values()))
            logger.warning(
                f"The weights are of {old[0]} classes, the config has {new[0]}: the class "
                "predictor (head.cls_pred) starts at random, all else from the weights."
            )
        super()._log_incompatible_keys(
            incompatible._replace(
                incorrect_shapes=[x for x in shapes if x[0] not in predictor],
                missing_keys=[x for x in incompatible.missing_keys if x not in predictor],
            )
        )


def _check_state(trainer: Any) -> None:
    """Raise ValueError for what is not the state of a training."""
    if trainer is None:
        raise ValueError("it contains weights, but no state of a training to resume")
    iteration = trainer.get("iteration") if isinstance(trainer, dict) else None
    if type(iteration) is not int or iteration < 0:
        shown = reprlib.repr(iteration)
        raise ValueError(f"the iteration in it is {shown}, not an integer from 0 on")
    if not isinstance(trainer.get("run_id", ""), str):
        raise ValueError("the run_id in it is not text")


def _read_model_zoo(content: Dict) -> Dict:
    """Return a file of Detectron2's model zoo, or of Detectron1's, as Detectron2 does."""
    if "model" in content and "__author__" in content:
        return content
    content = content.get("blobs", content)
    model = {name: x for name, x in content.items() if not name.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _refuse_other_projects(model, path: str) -> None:
    if not isinstance(model, dict) or not model:
        raise UserError(f"The checkpoint {path} contains no state dict; name another file.")
    if any(re.match(r"(module\.)?(bbox_head|neck|backbone\.layer\d)\.", str(n)) for n in model):
        raise UserError(
            f"The checkpoint {path} has MMDetection's names; convert it with "
            "tools/convert_checkpoint.py first, and name the converted file."
        )
