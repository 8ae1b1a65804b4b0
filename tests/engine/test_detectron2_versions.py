"""The same training on another Detectron2, where one is at hand, on the same images in the same
order (the versions shuffle differently from the same seed)::

    OTHER_DETECTRON2=/path/to/a/checkout/of/detectron2 python -m pytest tests

for example of the main branch, beside the installed v0.6.
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import CONFIG, NO_NETWORK, ROOT, TINY

OTHER = os.environ.get("OTHER_DETECTRON2")


def loss_curve(entry, output, python_path):
    """Return the losses of each iteration, in both phases, of a run in a separate process."""
    options = {
        "MODEL.TOOD.NUM_CLASSES": 4,
        "MODEL.TOOD.ATSS_ITERS": 3,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.RANDOM_FLIP": "none",
        "SOLVER.MAX_ITER": 6,
        "SOLVER.STEPS": "(5,)",
        "SOLVER.IMS_PER_BATCH": 2,
        "OUTPUT_DIR": output,
    }
    command = [sys.executable, "-c", LOG_EVERY_LOSS]
    command += ["--config-file", CONFIG, "--train-data", entry, "--val-data", entry, *TINY]
    command += [str(x) for item in options.items() for x in item]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    paths = [NO_NETWORK, *python_path, str(ROOT), str(ROOT / "projects" / "TOOD")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOSSES ")]
    return [json.loads(line[7:]) for line in lines], done.stdout.split("DETECTRON2 ")[1].split()[0]


LOG_EVERY_LOSS = """
import json, sys
import detectron2, tood
print("DETECTRON2", detectron2.__file__)
forward = tood.TOOD.forward_training
def log(self, *args):
    losses = forward(self, *args)
    print("LOSSES", json.dumps({k: v.item() for k, v in losses.items()}))
    return losses
tood.TOOD.forward_training = log
import train_net
from detectron2.data import DatasetCatalog
from tood.engine import train as engine_train
from tood.data.mapper import CheckedMapper
def in_order(cls, cfg):
    mapper = CheckedMapper(cfg, is_train=True)
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    while True:
        for i in range(0, len(records), 2):
            yield [mapper(record) for record in records[i : i + 2]]
engine_train.Trainer.build_train_loader = classmethod(in_order)
train_net.cli(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(OTHER is None, reason="OTHER_DETECTRON2 names no other Detectron2")
def test_same_loss_curve_on_another_detectron2(entry, tmp_path):
    here, path_here = loss_curve(entry, tmp_path / "here", [])
    there, path_there = loss_curve(entry, tmp_path / "there", [OTHER])
    assert path_there.startswith(OTHER) and path_here != path_there
    assert len(here) == 6
    assert here == there
