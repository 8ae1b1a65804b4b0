"""Bad input, through the command: one sentence and an exit status, or a training that takes it.

What is wrong inside of annotation files and configs is in test_data.py and test_check_config.py.
"""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, get_error
from PIL import Image

import train_net

NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def write_data(folder, images, json_file="data.json"):
    """A data set of images {name: (width, height)} with an object in each."""
    content = {
        "images": [
            {"id": i, "file_name": name, "width": size[0], "height": size[1]}
            for i, (name, size) in enumerate(images.items(), 1)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 4,
                "bbox": [0, 0, size[0], size[1]],
                "area": size[0] * size[1],
                "iscrowd": 0,
            }
            for i, size in enumerate(images.values(), 1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 5)],
    }
    (folder / json_file).write_text(json.dumps(content))
    return f"{folder / json_file}:{folder}"


@pytest.mark.slow
def test_unusual_images_are_trained_and_evaluated_on(command, tmp_path):
    image = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("LA").save(tmp_path / "grey_alpha.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("P").save(tmp_path / "palette.gif")
    image.convert("1").save(tmp_path / "bits.png")
    Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (20_000, 300)).save(tmp_path / "wide.png")
    sizes = {p.name: (80, 60) for p in tmp_path.iterdir()}
    sizes.update({"turned.jpg": (60, 80), "dot.png": (1, 1), "wide.png": (20_000, 300)})
    data = write_data(tmp_path, sizes)
    train_net.cli(command(train=data, val=data))
    log = (tmp_path / "out" / "log.txt").read_text()
    assert f"{len(sizes)} images, {len(sizes)} objects, 4 classes" in log
    results = tmp_path / "out" / "inference" / "coco_instances_results.json"
    assert len({r["image_id"] for r in json.loads(results.read_text())}) == len(sizes)


@pytest.mark.parametrize(
    "name, spoil, says",
    [
        ("cut.jpg", lambda path: path.write_bytes(path.read_bytes()[:2000]), "truncated"),
        ("empty.jpg", lambda path: path.write_bytes(b""), "cannot identify image file"),
        ("text.jpg", lambda path: path.write_text("not an image"), "cannot identify image file"),
        ("gone.jpg", os.remove, "not there"),
        ("folder.jpg", lambda path: (path.unlink(), path.mkdir()), "not there"),
        (
            "huge.png",
            lambda path: Image.new("1", (20_000, 20_000)).save(path),
            "more than the limit of 179",
        ),
        ("other.png", lambda path: Image.new("L", (9, 9)).save(path), "9 x 9, not 80 x 60"),
    ],
)
def test_images_that_cannot_be_used(command, tmp_path, name, spoil, says):
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    Image.fromarray(NOISE).save(tmp_path / name)
    spoil(tmp_path / name)
    data = write_data(tmp_path, {"good.png": (80, 60), name: (80, 60)})
    for use in ({"train": data}, {"val": data}):
        message = get_error(command(**use))
        assert f"{tmp_path / name}" in message and says in message and "data.json" in message
    assert not (tmp_path / "out").exists()


def test_images_too_slender(command, tmp_path):
    Image.new("RGB", (20_000, 1)).save(tmp_path / "line.png")
    data = write_data(tmp_path, {"line.png": (20_000, 1)})
    assert "1 images of extreme aspect ratio, for example line.png" in get_error(
        command(train=data)
    )


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"images": [{"id": 1, "file_na', "cannot be read: Unterminated string"),
        ("", "cannot be read: Expecting value"),
        ("[1, 2]", "is not in COCO's instances format"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ('{"info": {}}', "is not in COCO's instances format"),
        ("\ufeff{}", "is not in COCO's instances format"),
    ],
)
def test_annotation_files(command, tmp_path, text, says):
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    for use in ({"train": f"{tmp_path}/data.json"}, {"val": f"{tmp_path}/data.json"}):
        message = get_error(command(**use))
        assert "data.json" in message and says in message
    (tmp_path / "data.json").write_bytes(b"\xff\xfe\x00binary")
    assert "is in UTF-16; save it as UTF-8" in get_error(command(train=f"{tmp_path}/data.json"))


def test_output_folder_that_cannot_be_written_to(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in ("file", "file/out"):
        message = get_error(command(opts=["OUTPUT_DIR", str(tmp_path / folder)]))
        assert f"{tmp_path / folder} (OUTPUT_DIR) cannot be written to" in message
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.slow
def test_disk_full_while_saving(command, tmp_path, warm_python):
    """No file may grow beyond a megabyte, and a checkpoint does."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = subprocess.run(
        [warm_python, str(ROOT / "train_net.py"), *command()],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/out/model_") and "cannot be written" in last
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith("model")]
    assert not (tmp_path / "out" / "last_checkpoint").exists()


@pytest.mark.parametrize(
    "flag, value, says",
    [
        ("--epochs", "0", "--epochs is 0.0; it must be more than 0"),
        ("--epochs", "1e30", "--epochs is 1e+30; that would be 4e+30 iterations"),
        ("--images-per-step", "-2", "--images-per-step is -2; it must be more than 0"),
    ],
)
def test_schedules(command, flag, value, says):
    assert says in get_error(command(flag, value))


def test_images_without_a_library_to_draw_them(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "tood.visualization.draw", None)
    message = get_error(command(opts=["VIS_PERIOD", "5"]))
    assert "VIS_PERIOD is 5" in message and "pip install opencv-python" in message
