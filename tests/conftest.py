"""Common parts of the tests: a tiny model, a data set that takes no time, and training runs."""

import atexit
import gc
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import warnings
from pathlib import Path

import pytest

gc.disable()  # until all is imported
atexit.register(gc.freeze)

import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
# demo, train_net, tools, and experiments
NO_NETWORK = str(ROOT / "tests" / "no_network")
sys.path[:0] = [str(ROOT / x) for x in ("demo", "", "tools", "dev", "dev/experiments")]
sys.path.append(NO_NETWORK)

warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")

import block_sockets  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.env import TORCH_VERSION  # noqa: E402
from detectron2.utils.logger import setup_logger  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from light import lighten  # noqa: E402
from PIL import Image  # noqa: E402
from warm import serve_python  # noqa: E402

import tood  # noqa: E402
import train_net  # noqa: E402
from tood import add_tood_config  # noqa: E402
from tood.app import cli  # noqa: E402
from tood.config.read import load_config  # noqa: E402
from tood.data.shapes import write_shapes_dataset  # noqa: E402
from tood.engine import train as engine_train  # noqa: E402
from tood.utils.errors import UserError  # noqa: E402


def pytest_collection_finish():
    """What the modules hold stays: the collector need not walk through it in each test."""
    gc.freeze()
    gc.enable()


# Machines may be slow; fixtures are shared by the examples.
settings.register_profile("tood", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("tood")

# docs/deploy.md
NO_GRAPHS = TORCH_VERSION < (2, 8)
WHY_NO_GRAPHS = "PyTorch cannot export graphs of any size"
needs_graphs = pytest.mark.skipif(NO_GRAPHS, reason=WHY_NO_GRAPHS)
EXTENSIONS = ROOT / "tests" / "extensions"
CONFIG = str(ROOT / "configs" / "tood_R18_GN_small_data.yaml")
# A model small enough for an iteration in a fraction of a second.
TINY = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.TOOD.CONV_DIM", "64"),
    *("MODEL.TOOD.NUM_CONVS", "2"),
    # With 32 channels, what GroupNorm needs, a third of a ResNet-18's time and checkpoint.
    *("MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "32"),
    *("DATALOADER.NUM_WORKERS", "0"),
    # Which precision is quicker depends on the machine, and on what else runs there.
    *("MODEL.TOOD.PRECISION_TRAIN", "float32"),
]
SMALL = [  # for the images of ``shapes``
    *(*TINY, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signals_arrive():
    """``nohup`` and shells without a terminal start programs that ignore SIGHUP or SIGINT."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [x for x in defaults if signal.getsignal(x) is signal.SIG_IGN]
    for x in ignored:
        signal.signal(x, defaults[x])
    yield
    for x in ignored:
        signal.signal(x, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Files of tests need not outlive the machine."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def network_log(tmp_path_factory):
    """Nothing needs a network at run time, also not in the processes that tests start. Processes of
    this machine may be asked.
    """
    path = tmp_path_factory.mktemp("network") / "attempts.txt"
    path.touch()
    folders = [NO_NETWORK, *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
        monkeypatch.setenv(block_sockets.LOG, str(path))
        for holder, name, _ in block_sockets.REPLACED:
            monkeypatch.setattr(holder, name, getattr(holder, name))  # is set back at the end
        block_sockets.block_sockets()
        yield path
        check_network(path)


@pytest.fixture(autouse=True)
def no_network(network_log):
    """A test fails if something asked the network while it ran."""
    check_network(network_log)  # of fixtures of several tests
    yield
    check_network(network_log)


def check_network(path):
    attempts = path.read_text()
    path.write_text("")  # one test fails
    assert not attempts, f"A test, or a fixture before it, asks the network: {attempts}"


@pytest.fixture(scope="session", autouse=True)
def no_traces():
    """PyTorch's exporter writes a trace for whoever listens, as pytest does: three times slower."""
    logging.getLogger("torch.__trace").handlers.clear()


@pytest.fixture(scope="session", autouse=True)
def little_around_a_run():
    with pytest.MonkeyPatch.context() as patch:
        lighten(patch.setattr)
        yield


@pytest.fixture
def tiny_cfg():
    cfg = get_cfg()
    add_tood_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.merge_from_list(TINY)
    cfg.MODEL.TOOD.NUM_CLASSES = 4
    return cfg


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Folder of a data set of eight drawn images."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes_dataset(str(folder), num_images=8, seed=0, size=64)
    return folder


@pytest.fixture(scope="session")
def entry(shapes):
    """The same, as configs and flags name data."""
    return f"{shapes}/annotations.json:{shapes}/images"


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """An executable like Python, whose processes have imported the package."""
    with serve_python(tmp_path_factory.mktemp("warm")) as path:
        yield path


@pytest.fixture
def out(tmp_path):
    """The output folder of ``command``."""
    return tmp_path / "out"


@pytest.fixture(scope="session")
def trained(entry, tmp_path_factory):
    """The output folder of a training of a few steps, with a report."""
    out = tmp_path_factory.mktemp("trained")
    config = out / "c.yaml"
    small = {"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": "64", "OUTPUT_DIR": str(out)}
    small.update({"SOLVER.MAX_ITER": "4", "SOLVER.STEPS": "()", "MODEL.TOOD.ATSS_ITERS": "2"})
    small.update({"SOLVER.IMS_PER_BATCH": "2", "MODEL.TOOD.NUM_CLASSES": "4", "SEED": "1"})
    small["MODEL.TOOD.SCORE_THRESH_TEST"] = "0.001"
    opts = [x for item in small.items() for x in item]
    base = load_config(CONFIG, [*TINY, *opts])
    config.write_text(base.dump())
    data = ["--train-data", entry, "--val-data", entry]
    engine_train.main(train_net.parse_args(["--config-file", str(config), *data]))
    tood.report(str(out))
    clear_loggers()
    return out


@pytest.fixture
def photos(shapes, tmp_path):
    """A folder with three photos of different sizes, and a broken one."""
    folder = tmp_path / "photos"
    shutil.copytree(shapes / "images", folder)
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    with Image.open(folder / "00000.jpg") as image:
        image.resize((100, 64)).save(folder / "00000.jpg")
    return folder


@pytest.fixture
def photo_folder(shapes, tmp_path, monkeypatch, fresh_loggers):
    """A folder of eight images with boxes, beside which one works."""
    folder = tmp_path / "photos"
    shutil.copytree(shapes, folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def without_steps(monkeypatch):
    """Plans measure neither the time nor the memory of a step. A backward pass in this process
    would forbid others in those that are forked from it.
    """
    monkeypatch.setattr("tood.app.plan.memory._take_step", lambda *_: None)


@pytest.fixture
def without_pictures(monkeypatch):
    """Reports have neither plots nor galleries, which take most of their time."""
    monkeypatch.setattr("tood.app.report.plots.draw_plots", lambda *_: {})
    monkeypatch.setattr("tood.app.report.make._draw_galleries", lambda *_: ())


@pytest.fixture
def make_input():
    def make(height=64, width=96, boxes=((8.0, 8.0, 40.0, 48.0),), classes=None):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        classes = list(range(len(boxes))) if classes is None else classes
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        return {"image": image, "instances": instances}

    return make


@pytest.fixture
def fresh_loggers():
    """Each run sets up Detectron2's loggers; the next test must not write to its folder."""
    yield
    clear_loggers()


def clear_loggers():
    for name in ("detectron2", "fvcore", "tood"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    setup_logger.cache_clear()


@pytest.fixture
def command(entry, out, fresh_loggers):
    """Builds the arguments of a run of four iterations on the shapes."""

    def build(*flags, opts=(), train=entry, val=entry):
        data = ["--train-data", train, "--val-data", val]
        sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
        run = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.IMS_PER_BATCH", "2"]
        classes = ["MODEL.TOOD.NUM_CLASSES", "4", "MODEL.TOOD.ATSS_ITERS", "2"]
        # Two epochs teach nothing that passes a threshold.
        low = ["MODEL.TOOD.SCORE_THRESH_TEST", "0.0"]
        output = ["OUTPUT_DIR", str(out), *low]
        return [
            *("--config-file", CONFIG, *flags, *data),
            *(*TINY, *sizes, *run, *classes, *output, *opts),
        ]

    return build


def skip_without_graphs():
    """In fixtures, where marks do nothing."""
    if NO_GRAPHS:
        pytest.skip(WHY_NO_GRAPHS)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def setup_run(run):
    """Return the config of a run that has begun to write."""
    cfg, news = engine_train.check(run)
    engine_train.begin(cfg, run, news)
    return cfg


def get_error(argv):
    with pytest.raises(SystemExit) as error:
        train_net.cli(argv)
    message = str(error.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def complaint(function, *args, **kwargs):
    """Return the sentence of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    sentence = error.value.sentence()
    assert "\n" not in sentence and "\x1b" not in sentence
    return sentence


def app_error(*argv):
    """Return the sentence with which a command of the program ends."""
    with pytest.raises(SystemExit) as error:
        cli.main([str(x) for x in argv])
    message = str(error.value)
    assert message.startswith("error: ") and "\n" not in message
    return message


def load_extension(name):
    """Import a file of tests/extensions, which registers its parts."""
    spec = importlib.util.spec_from_file_location(f"extensions_{name}", EXTENSIONS / f"{name}.py")
    if spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])


def assert_from_their_locations(model, image, instances):
    """Each detection has the uncertainty of the location with its score."""
    with torch.no_grad():
        _, predictions = model.predict_with_images([image])
    assert len(instances) > 10 and predictions.extras["uncertainty"].std() > 0
    for score, label, found in zip(instances.scores, instances.pred_classes, instances.uncertainty):
        differences = (predictions.pred_scores[0, :, label] - score).abs()
        # Rounding may give two locations one score: it is that of one of them.
        expected = predictions.extras["uncertainty"][0, differences < differences.min() + 1e-6]
        nearest = expected[(expected - found).abs().sum(dim=1).argmin()]
        torch.testing.assert_close(found, nearest, atol=1e-4, rtol=1e-3)
