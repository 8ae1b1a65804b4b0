"""Weights are looked at before they are used, over every door."""

import io
import os
import pickle
import random
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import app_error, complaint, get_error
from torch import nn

import train_net
from tood.checkpoint.checkpointer import Checkpointer
from tood.utils.errors import UserError
from tood.utils.tensors import hash_tensors, read_pickle, read_tensors

NAME = "head.reg_pred.bias"


def replace(value):
    return lambda content: content["model"].update({NAME: value(content["model"][NAME])})


def set_first(number, dtype=torch.float32):
    def change(x):
        x = x.to(dtype)
        x[0] = number
        return x

    return replace(change)


def set_classes(names):
    return lambda content: content.update(class_names=names)


# What is done to a checkpoint, and what the sentence says beside its path.
WRONG = {
    "nan": (set_first(float("nan")), f"{NAME} contains NaN or infinity"),
    "inf": (set_first(float("-inf")), f"{NAME} contains NaN or infinity"),
    "half": (set_first(float("inf"), torch.float16), f"{NAME} contains NaN or infinity"),
    "too large": (set_first(1e300, torch.float64), f"{NAME} contains NaN or infinity"),
    "int64": (replace(lambda x: x.long()), f"{NAME} is torch.int64, and must be of floating"),
    "bool": (replace(lambda x: x.bool()), f"{NAME} is torch.bool, and must be of floating"),
    "complex": (replace(lambda x: x + 0j), f"{NAME} is torch.complex64, and must be of floating"),
    "key": (lambda content: content["model"].update({5: torch.ones(1)}), "the name 5 of a tensor"),
    "text": (set_classes("abcd"), "class_names is 'abcd', not a list of text"),
    "numbers": (set_classes([1, 2, 3, 4]), "class_names is [1, 2, 3, 4], not a list of text"),
    "surrogate": (set_classes(["a", "b", "c", "\ud800"]), "not a list of text"),
    "a number": (set_classes(4), "class_names is 4, not a list of text"),
    "a class less": (set_classes(["a", "b", "c"]), "names 3 classes, head.cls_pred.weight has 4"),
}


def change_checkpoint(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "trained")


DOORS = ["train", "eval-only", "resume", "predict", "eval", "export"]
CASES = [("nan", door) for door in DOORS]
CASES += [(kind, "predict") for kind in WRONG if (kind, "predict") not in CASES]


@pytest.mark.parametrize("kind, door", CASES)
def test_wrong_weights_are_refused_at_every_door(folder, shapes, command, tmp_path, kind, door):
    change, says = WRONG[kind]
    best, last = folder / "model_best.pth", folder / "model_final.pth"
    for path in (best, last):
        change_checkpoint(path, change)
    for path in folder.glob("model_0*.pth"):
        path.unlink()
    opts = ["MODEL.WEIGHTS", str(best)]
    message = {
        "train": lambda: get_error(command(opts=opts)),
        "eval-only": lambda: get_error(command("--eval-only", opts=opts)),
        "resume": lambda: get_error(
            command("--resume", opts=["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "6"])
        ),
        "predict": lambda: app_error("predict", best, shapes / "images"),
        "eval": lambda: app_error("eval", folder),
        "export": lambda: app_error("export", folder, "--output", tmp_path / "a.onnx"),
    }[door]()
    assert says in message and str(last if door == "resume" else best) in message
    assert not (tmp_path / "a.onnx").exists() and not list((tmp_path / "out").glob("model*"))


def test_a_resumed_training_goes_back_to_weights_that_are_finite(command, tmp_path, caplog):
    train_net.cli(command(opts=["SOLVER.CHECKPOINT_PERIOD", "2"]))
    out = tmp_path / "out"

    def change(content):  # momentum
        next(iter(content["trainer"]["_trainer"]["optimizer"]["state"].values()))[
            "momentum_buffer"
        ].fill_(float("nan"))

    for name in ("model_final.pth", "model_0000003.pth"):
        change_checkpoint(out / name, change)
    train_net.cli(command("--resume", opts=["SOLVER.MAX_ITER", "6"]))
    log = (out / "log.txt").read_text()
    assert "momentum_buffer contains NaN or infinity" in log
    assert "Trying the one before it" in log and "Starting training from iteration 2" in log


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("iteration", "3", "the iteration in it is '3', not an integer"),
        ("iteration", True, "the iteration in it is True, not an integer"),
        ("iteration", None, "the iteration in it is None, not an integer"),
        ("run_id", 5, "the run_id in it is not text"),
    ],
)
def test_state_of_another_type(folder, command, key, value, says):
    for path in folder.glob("model_*.pth"):
        if "best" not in path.name:
            change_checkpoint(path, lambda content: content["trainer"].update({key: value}))
    opts = ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "6"]
    assert says in get_error(command("--resume", opts=opts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_converted(tmp_path, dtype):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    state = {
        n: x.to(dtype) if x.is_floating_point() else x + 7 for n, x in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "a.pth")
    Checkpointer(model, complete=True).load(str(tmp_path / "a.pth"))
    assert model[1].num_batches_tracked == 7 and model[1].num_batches_tracked.dtype == torch.int64
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, state[name].to(x.dtype))


def test_arrays_are_looked_at(tmp_path):
    path = tmp_path / "a.pkl"
    for x, says in (
        (np.array([1, np.nan], np.float16), "conv.w contains NaN"),
        (np.array([1e300]), "conv.w contains NaN"),
        (np.array([1, np.inf * 1j]), "conv.w contains NaN"),
    ):
        path.write_bytes(pickle.dumps({"model": {"conv.w": x}, "__author__": "me"}))
        assert says in complaint(read_pickle, str(path))
    model = nn.Linear(2, 2)
    arrays = {"weight": np.zeros((2, 2), int), "bias": np.zeros(2)}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    assert "weight is torch.int64" in complaint(Checkpointer(model).load, str(path))
    content = {"model": arrays, "__author__": "me", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    assert "weight is torch.int64" in complaint(Checkpointer(model).load, str(path))


def write_archive(path, edit):
    """Write a checkpoint, and its records again by ``edit(archive, name, content)``."""
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            edit(archive, name, content)


def test_compressed_records_are_refused(tmp_path):
    path = str(tmp_path / "a.pth")
    write_archive(path, lambda archive, *record: archive.writestr(*record))
    assert len(read_tensors(path)["model"]["a"]) == 1000
    write_archive(
        path,
        lambda archive, name, content: archive.writestr(
            name, content, zipfile.ZIP_DEFLATED if name.endswith("/0") else zipfile.ZIP_STORED
        ),
    )
    assert "a/data/0 is compressed" in complaint(read_tensors, path)


def test_records_of_one_name_are_refused(tmp_path, recwarn):
    path = str(tmp_path / "a.pth")

    def twice(archive, name, content):
        archive.writestr(name, content)
        archive.writestr(name.upper(), content)

    write_archive(path, twice)
    assert "two of its records have one name" in complaint(read_tensors, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_not_larger_than_their_file(tmp_path, legacy):
    path, x = tmp_path / "a.pth", torch.zeros(2**16)
    views = [x.as_strided((2**15, 2**15), (1, 1)) for _ in range(20)]
    torch.save({"model": {"a": views}}, path, _use_new_zipfile_serialization=not legacy)
    assert "such as a.0, are larger than the file" in complaint(read_tensors, str(path))
    expanded = {"model": {"a": torch.zeros(1).expand(10**6, 10**6), "b": x, "c": x}}
    torch.save(expanded, path, _use_new_zipfile_serialization=not legacy)
    assert read_tensors(str(path))["model"]["a"].shape == (10**6, 10**6)
    nested = [0]
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"model": {"a": x}, "more": nested}, path)
    assert list(read_tensors(str(path))) == ["model", "more"]


def test_directories_in_two_places_are_refused(tmp_path):
    """Python adds what precedes an archive to the places in it, PyTorch does not."""
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(b"PK\3\4" + bytes(60) + path.read_bytes())
    assert "its directory is not " in complaint(read_tensors, str(path))


def make_calls(name, argument, number):
    """Return a pickle of {"model": {"a": name(argument)}}, name being called again by ``number``
    times on its result.
    """
    calls = f"c{name}\n".encode() * number + argument + b"\x86R"
    calls += (b"X\3\0\0\0hex\x86R" if name == "_codecs\nencode" else b"") * (number - 1)
    return b"\x80\2}X\5\0\0\0model}X\1\0\0\0a" + calls + b"ss."


@pytest.mark.parametrize(
    "name, argument, number",
    [
        ("_codecs\nencode", b"X\4\0\0\0aaaaX\6\0\0\0latin1", 40),
        ("builtins\nbytearray", b"(\x8a\5\0\0\0\0\x10N", 1),
        ("numpy\nndarray", b"\x8a\5\0\0\0\0\x10\x85X\1\0\0\0O", 1),
    ],
)
def test_few_bytes_do_not_become_many(tmp_path, name, argument, number):
    payload, path = make_calls(name, argument, number), tmp_path / "a.pth"
    write_archive(path, lambda archive, record, content: archive.writestr(record, content))
    with zipfile.ZipFile(path) as archive:
        records = {x: archive.read(x) for x in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for record, content in {**records, "a/data.pkl": payload}.items():
            archive.writestr(record, content)
    assert "is refused" in complaint(read_tensors, str(path))
    magic, version = torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION
    first = b"".join(pickle.dumps(x, 2) for x in (magic, version, {}))
    path.write_bytes(first + payload + pickle.dumps([], 2))
    assert "is refused" in complaint(read_tensors, str(path))
    (tmp_path / "a.pkl").write_bytes(payload)
    assert re.search("is refused|is damaged", complaint(read_pickle, str(tmp_path / "a.pkl")))


def test_arrays_of_all_protocols_are_read(tmp_path):
    path = tmp_path / "a.pkl"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(3), "c": np.array(["x"])}
    arrays["d"] = np.asfortranarray(np.arange(6, dtype=">i2").reshape(3, 2))
    for protocol in range(6):
        content = pickle.dumps({"model": arrays}, protocol)
        path.write_bytes(content)
        for name, x in read_pickle(str(path))["model"].items():
            expected = pickle.loads(content)["model"][name]
            assert x.dtype == expected.dtype and np.array_equal(x, arrays[name])


def test_values_in_themselves_are_named_in_short(tmp_path):
    nested = [0]
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"model": {"a": torch.zeros(1)}, "class_names": nested}, tmp_path / "a.pth")
    sentence = complaint(read_tensors, str(tmp_path / "a.pth"))
    assert "class_names is [[[[[[" in sentence and len(sentence) < 1000


@pytest.mark.parametrize("form", ["zip", "legacy", "pkl"])
def test_other_bytes_of_checkpoints(tmp_path, form):
    """Bytes of valid files are changed at random: a dict, or one sentence."""
    path, number = tmp_path / ("a.pkl" if form == "pkl" else "a.pth"), random.Random(0)
    content = {"model": {"a": torch.zeros(9), "b": torch.ones(2, 3).half()}, "iteration": 7}
    if form == "pkl":
        content["model"] = {name: x.numpy() for name, x in content["model"].items()}
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    valid, refused = path.read_bytes(), 0
    for _ in range(400):
        changed = bytearray(valid)
        for _ in range(number.choice((1, 1, 3, 30))):
            changed[number.randrange(len(changed))] = number.randrange(256)
        path.write_bytes(changed[: number.choice((len(changed), number.randrange(len(changed))))])
        try:
            assert isinstance((read_pickle if form == "pkl" else read_tensors)(str(path)), dict)
        except UserError as error:
            refused += 1
            assert str(path) in error.sentence() and "\n" not in error.sentence()
    assert refused > 200


def test_pipes_are_refused(tmp_path, shapes, command):
    for name in ("a.pth", "a.pkl"):
        path = tmp_path / name
        os.mkfifo(path)
        read = read_pickle if name.endswith("pkl") else read_tensors
        assert complaint(read, str(path)) == f"{path} is not a regular file; name a file."
        assert str(path) in get_error(command(opts=["MODEL.WEIGHTS", str(path)]))
        assert str(path) in app_error("predict", path, shapes / "images")
    os.mkfifo(tmp_path / "config.yaml")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "b.pth")
    message = app_error("predict", tmp_path / "b.pth", shapes / "images")
    assert f"{tmp_path / 'config.yaml'} is not a regular file" in message


def test_files_that_are_not_of_pytorch(tmp_path):
    path = tmp_path / "a.pth"
    for content in (b"", b"PK\3\4", b"storages\0", b"\x80\x02.", b"\x80\x02}q\0."):
        path.write_bytes(content)
        assert f"{path} is damaged, or is not a checkpoint" in complaint(read_tensors, str(path))


def test_hash_of_tensors():
    tensors = {"a": torch.arange(4.0).view(2, 2), "b": torch.tensor(3)}
    known = hash_tensors(tensors)
    assert known == hash_tensors(dict(reversed(tensors.items()))) and len(known) == 64
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    assert known == hash_tensors(torch.load(buffer, weights_only=True))
    for other in (
        {**tensors, "a": tensors["a"].T},
        {**tensors, "a": tensors["a"].view(4)},
        {**tensors, "b": torch.tensor(4)},
        {**tensors, "b": torch.tensor(3, dtype=torch.int32)},
        {"a": tensors["a"]},
    ):
        assert hash_tensors(other) != known
