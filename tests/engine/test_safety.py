"""Files of others run no code and change no weights silently: payloads, damage, strangers."""

import os
import pickle

import numpy as np
import pytest
import torch
from conftest import CONFIG, ROOT, complaint, error_of
from detectron2.modeling import build_model

import train_net
from tood.checkpoint.checkpointer import Checkpointer
from tood.config.files import DETECTRON2_CONFIGS, read_config_file
from tood.config.read import load_config
from tood.utils.files import read_pickle


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
    message = error_of(command(*flags, opts=["MODEL.WEIGHTS", str(path)]))
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
    ],
)
def test_yaml_with_a_payload(tmp_path, mark, line):
    (tmp_path / "a.yaml").write_text(f"_BASE_: {CONFIG}\n" + line.format(mark))
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    for name in ("a.yaml", "b.yaml"):
        sentence = complaint(load_config, str(tmp_path / name))
        assert "a.yaml is refused: reading it would run code" in sentence and "python/" in sentence


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
    assert len(retinanet.content["MODEL"]["ANCHOR_GENERATOR"]["SIZES"]) == 5


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
def test_weights_of_others_are_no_start(command, tmp_path, tiny_cfg, kind):
    path = tmp_path / "w.pth"
    torch.save(foreign(kind, build_model(tiny_cfg)), path)
    for flags in ([], ["--eval-only"]):
        message = error_of(command(*flags, opts=["MODEL.WEIGHTS", str(path)]))
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
