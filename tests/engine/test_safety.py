"""Files of others run no code and change no weights silently: payloads, damage, strangers."""

import os
import pickle
import sys

import detectron2
import numpy as np
import pytest
import torch
from conftest import CONFIG, ROOT, app_error, complaint, get_error
from detectron2.modeling import build_model

import train_net
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.files import read_config_file
from tood.config.read import load_config
from tood.utils.tensors import read_pickle


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    mark = tmp_path / "mark"
    yield mark
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
@pytest.mark.parametrize("flags", [[], ["--eval-only"]])
def test_weights_with_a_payload(command, tmp_path, mark, suffix, flags):
    path = tmp_path / f"weights.{suffix}"
    content = {"model": {"a": np.zeros(2)}, "more": Payload(mark), "__author__": "me"}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": {"a": torch.zeros(2)}, "more": Payload(mark)}, path)
    message = get_error(command(*flags, opts=["MODEL.WEIGHTS", str(path)]))
    assert f"{path} is refused: reading it would run code" in message and "mkdir" in message


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_the_model_zoo_are_read(tmp_path, tiny_cfg, protocol):
    model = build_model(tiny_cfg)
    arrays = {name: x.numpy() for name, x in model.state_dict().items()}
    path = tmp_path / "model.pkl"
    content = {"model": arrays, "__author__": "me", "number": np.float64(3), "names": ("a", 1)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_pickle(str(path))["number"] == 3
    for x in model.parameters():
        x.data.zero_()
    Checkpointer(model, complete=True).load(str(path))
    for name, x in model.state_dict().items():
        assert np.array_equal(x.numpy(), arrays[name]), name
    path.write_bytes(path.read_bytes()[:1000])
    assert "is damaged" in complaint(read_pickle, str(path))


@pytest.mark.slow
def test_last_checkpoint_stays_in_its_folder(command, tmp_path, mark):
    train_net.cli(command())
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Payload(mark), "trainer": {}}))
    torch.save({"model": {}, "trainer": {}}, tmp_path / "other.pth")
    out = tmp_path / "out"
    for name in ("../evil.pkl", "../other.pth", str(tmp_path / "evil.pkl"), "", "a\nb"):
        (out / "last_checkpoint").write_text(name)
        checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(out))
        assert checkpointer.get_checkpoint_file() == ""
    os.rename(out / "model_final.pth", out / "model_0000003.pth")
    train_net.cli(command("--resume", opts=["SOLVER.MAX_ITER", "5"]))
    assert "Starting training from iteration 4" in (out / "log.txt").read_text()
    assert (out / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    "line",
    [
        "OUTPUT_DIR: !!python/object/apply:os.mkdir [{}]",
        "OUTPUT_DIR: !!python/object/new:os.mkdir [{}]",
        "OUTPUT_DIR: !!python/name:os.mkdir",
        "MODEL: {{WEIGHTS: !!python/object/apply:builtins.eval ['open(1) or \"{}\"']}}",
        "MODEL: {{WEIGHTS: !!python/object/apply:os.mkdir ['{}']}}",
    ],
)
def test_yaml_with_a_payload(tmp_path, mark, line):
    (tmp_path / "a.yaml").write_text(f"_BASE_: {CONFIG}\n" + line.format(mark))
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    for name in ("a.yaml", "b.yaml"):
        sentence = complaint(load_config, str(tmp_path / name))
        assert "a.yaml is refused: reading it would run code" in sentence and "python/" in sentence


DETECTRON2_CONFIGS = os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs")


@pytest.mark.skipif(
    not os.path.isdir(DETECTRON2_CONFIGS),
    reason="runs from its source, whose package has no configs",
)
def test_configs_of_detectron2_are_read():
    paths = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(DETECTRON2_CONFIGS)
        for name in names
        if name.endswith(".yaml")
    ]
    assert len(paths) > 50
    assert all(read_config_file(path).content for path in paths)
    retinanet = read_config_file(os.path.join(DETECTRON2_CONFIGS, "Base-RetinaNet.yaml"))
    sizes = retinanet.content["MODEL"]["ANCHOR_GENERATOR"]["SIZES"]
    assert sizes == [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]


def test_computed_lists_are_not_computed(tmp_path, mark):
    expression = f"__import__('os').mkdir('{mark}')"
    (tmp_path / "a.yaml").write_text(f'SEED: !!python/object/apply:eval ["{expression}"]')
    assert "it computes __import__" in complaint(read_config_file, str(tmp_path / "a.yaml"))


def test_config_files_are_bounded(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 20))
    )
    assert path.stat().st_size < 700
    assert "cannot be read: it has more than 200,000" in complaint(read_config_file, str(path))
    path.write_text(f"SEED: {'1' * 2**20}")
    assert "at most 1.0 MiB are read" in complaint(read_config_file, str(path))
    for i in range(20):
        (tmp_path / f"b{i}.yaml").write_text(f"_BASE_: [b{i + 1}.yaml, b{i + 1}.yaml]\n")
    (tmp_path / "b20.yaml").write_text("SEED: 1\n")
    assert "has more than 50 bases" in complaint(read_config_file, str(tmp_path / "b0.yaml"))
    path.write_text("_BASE_: 5\n")
    assert "_BASE_ in" in complaint(read_config_file, str(path))
    for name in ("fifo", "f.yaml"):
        os.mkfifo(tmp_path / name)
        sentence = complaint(read_config_file, str(tmp_path / name))
        assert sentence == f"{tmp_path / name} is not a regular file; name a file."
    assert "is not a regular file" in complaint(read_config_file, str(tmp_path))


def test_bases(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: a.yaml\n")
    assert "a.yaml has itself as _BASE_" in complaint(load_config, str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("_BASE_: c.yaml\n")
    (tmp_path / "c.yaml").write_text("_BASE_: b.yaml\n")
    assert "b.yaml has itself as _BASE_" in complaint(load_config, str(tmp_path / "b.yaml"))
    (tmp_path / "d.yaml").write_text("_BASE_: gone.yaml\n")
    assert "gone.yaml (_BASE_), which does not exist" in complaint(
        load_config, str(tmp_path / "d.yaml")
    )
    (tmp_path / "e.yaml").write_text(f"_BASE_: {CONFIG}\nSOLVER: {{STEPS: '(7,)'}}\n")
    (tmp_path / "f.yaml").write_text("_BASE_: e.yaml\nSOLVER: {MAX_ITER: 9}\n")
    solver = load_config(str(tmp_path / "f.yaml")).SOLVER
    assert (solver.STEPS, solver.MAX_ITER) == ((7,), 9)
    assert solver.BASE_LR == load_config(CONFIG).SOLVER.BASE_LR


def foreign(kind, model):
    tensors = {f"blocks.{i}.weight": torch.zeros(3) for i in range(50)}
    if kind == "mmdet":
        names = ("backbone.layer1.0.conv1.weight", "neck.lateral_convs.0.conv.weight")
        return {"meta": {}, "state_dict": dict.fromkeys(names, torch.zeros(3))}
    if kind == "a few that fit":
        first = list(model.state_dict().items())[:5]
        return {**tensors, **dict(first)}
    return {"bare": tensors, "wrapped": {"state_dict": tensors}}[kind]


@pytest.mark.parametrize("kind", ["mmdet", "bare", "wrapped", "a few that fit"])
def test_weights_of_others_are_refused(command, tmp_path, tiny_cfg, kind):
    path = tmp_path / "w.pth"
    torch.save(foreign(kind, build_model(tiny_cfg)), path)
    for flags in ([], ["--eval-only"]):
        message = get_error(command(*flags, opts=["MODEL.WEIGHTS", str(path)]))
        assert "tools/convert_checkpoint.py" in message and "--resume" not in message
        assert not list((tmp_path / "out").glob("model*"))


def test_a_backbone_alone_is_a_start(tmp_path, tiny_cfg):
    model = build_model(tiny_cfg)
    backbone = {n: x for n, x in model.state_dict().items() if n.startswith("backbone.bottom_up")}
    torch.save({"model": backbone}, tmp_path / "w.pth")
    Checkpointer(model).load(str(tmp_path / "w.pth"))


def test_predict_reads_the_config_beside_a_checkpoint_safely(tmp_path, mark):
    from tood.app.predict import predict

    torch.save({"model": {}}, tmp_path / "model_best.pth")
    payload = f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{mark}]\n"
    (tmp_path / "config.yaml").write_text(f"_BASE_: {CONFIG}\n{payload}")
    assert "would run code" in complaint(predict, str(tmp_path / "model_best.pth"), str(ROOT))


LAZY = [
    "model: {_target_: hostile.build, mark: x}",
    "model:\n  _target_: torch.utils.data.datapipes.utils.decoder.basichandlers\n  a: !!binary A",
    "model: {'_target_': timm.models._helpers.load_state_dict, weights_only: false}",
    "a: !!python/object/apply:hostile.build [x]\nmodel:\n- {a: 1, _target_: hostile.build}",
]
COMMANDS = [
    ["predict", "{weights}", "{data}"],
    ["eval", "{folder}"],
    ["report", "{folder}"],
    ["export", "{weights}", "--output", "{folder}/a.onnx"],
]


@pytest.mark.parametrize("text", LAZY)
@pytest.mark.parametrize("argv", COMMANDS)
def test_nothing_that_a_config_names_is_called(shapes, tmp_path, monkeypatch, mark, argv, text):
    (tmp_path / "hostile.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "trained"
    folder.mkdir()
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(text)
    names = {"weights": folder / "model_final.pth", "folder": folder, "data": shapes / "images"}
    called = _record_events(lambda: app_error(*(x.format(**names) for x in argv)))
    assert called.message == (
        f"error: The config file {folder}/config.yaml is of a training by Detectron2's "
        "lazyconfig_train_net.py, and names functions to call; name a YAML config of the same "
        "model with --config-file."
    )
    assert not [event for event in called.events if event in ("hostile", "pickle.find_class")]
    assert sorted(x.name for x in folder.iterdir()) == ["config.yaml", "model_final.pth"]


def test_a_pickled_config_is_not_read(tmp_path, mark):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml.pkl").write_bytes(pickle.dumps(Payload(mark)))
    message = app_error("eval", tmp_path)
    assert f"{tmp_path}/config.yaml.pkl is of a training by Detectron2's lazyconfig" in message


class Called:
    """The result of a call, and the modules that it imports and classes that it unpickles."""

    active = None

    def __init__(self):
        self.events, self.message = [], ""


def _note(event, args, Called=Called):  # cannot be removed, and outlives the module
    if Called.active is not None and event in ("import", "pickle.find_class"):
        Called.active.events.append(str(args[0]) if event == "import" else event)


def _record_events(call):
    if not hasattr(Called, "installed"):
        Called.installed = True
        sys.addaudithook(_note)
    Called.active = called = Called()
    try:
        called.message = call()
    finally:
        Called.active = None
    return called
