"""A training of ``tood train`` that is resumed: options that differ from its plan's."""

import contextlib
import os
import re
from typing import Dict, Iterator, NamedTuple, Sequence

from tood.app.plan.state import PLAN, find_changed
from tood.checkpoint.locate import find_model
from tood.config.files import change_config_file, read_config_file
from tood.config.options import read_training_options
from tood.config.read import load_config, read_options, refuse_missing_gpu
from tood.config.schedule import KEYS
from tood.engine.train import Run
from tood.inference.teacher import named
from tood.utils.errors import UserError
from tood.utils.files import last_checkpoint_in, write_whole
from tood.utils.tensors import read_tensors

# Options that take effect in a resumed training, and leave what it has learned valid.
CHANGEABLE = re.compile(
    r"SOLVER\..*|TEST\.EVAL_PERIOD|DATALOADER\.NUM_WORKERS|MODEL\.DEVICE|VIS_PERIOD"
    r"|MODEL\.TOOD\.(EARLY_STOP_PATIENCE|MAX_DEAD_ITERS|VAL_LOSS|EVAL_ALIGNMENT|TEACHER(_WEIGHT)?)"
)


class Changes(NamedTuple):
    """Values of the options that differ from the plan's, by their keys."""

    before: Dict[str, object]
    after: Dict[str, object]

    def __str__(self) -> str:
        return ", ".join(f"{k} {self.before[k]} -> {v}" for k, v in self.after.items())


def read_changes(plan: str, options: Sequence[str], output: str) -> Changes:
    """Return what options change.

    Raises:
        UserError: for options that cannot be used, or cannot change any more.
    """
    config_file = read_config_file(plan)
    after = read_options(config_file, options)
    refuse_missing_gpu(str(after.get("MODEL.DEVICE", "")))
    before = read_options(config_file, (), keys=list(after))
    after = {key: value for key, value in after.items() if value != before[key]}
    for key, value in after.items():
        if not CHANGEABLE.fullmatch(key):
            raise UserError(
                f"The training in {output} was begun with {key} {before[key]}, not with {value}, "
                "and cannot be continued with it; omit the option, or name another --output."
            )
    return Changes(before, after)


@contextlib.contextmanager
def applied(changes: Changes, run: Run) -> Iterator[None]:
    """Change the plan, by which the training continues. If it is refused, the previous plan is
    restored.
    """
    if not changes.after:
        yield
        return
    with open(run.config_file, "rb") as f:
        plan = f.read()
    write_whole(run.config_file, change_config_file(run.config_file, changes.after).encode())
    try:
        yield
    except UserError:
        write_whole(run.config_file, plan)
        raise


def describe(run: Run, changes: Changes, output: str) -> str:
    """Return what resuming a training would do.

    Raises:
        UserError: for options that cannot be used.
    """
    config_file, opts = read_config_file(run.config_file), [*run.opts]
    for item in changes.after.items():
        opts += map(str, item)
    teacher = read_training_options(load_config(config_file, opts, resume=True)).teacher
    if teacher:
        with named():
            find_model(teacher)
    length = read_options(config_file, opts, keys=[KEYS["max_iter"]])[KEYS["max_iter"]]
    last, done = last_checkpoint_in(output), 0
    source = "the last checkpoint that can be used"  # the training names those that cannot
    if last:
        with contextlib.suppress(UserError):
            iteration = read_tensors(os.path.join(output, last)).get("iteration")
            if type(iteration) is int:
                done = iteration + 1
                source = f"{last}, after {done} of {length} iterations"
    begins = f"continues the training in {output} from {source}"
    if not last:
        begins = (
            f"begins the training in {output}, which has no checkpoint yet: {length} iterations, "
            f"by {PLAN}"
        )
    elif done >= length:
        begins = (
            f"finds the training in {output} finished, after {length} iterations; a larger "
            "SOLVER.MAX_ITER after --resume continues it"
        )
    else:
        begins += f", by {PLAN}"
    lines = [f"--resume {begins}."]
    lines += [f"Other options than before: {changes}."] if changes.after else []
    changed = find_changed(output)
    if changed:
        lines.append(
            f"{changed} was changed after the training began, which goes on with the data as they "
            f"were, in {os.path.join(output, 'data')}."
        )
    return "\n".join(lines)
