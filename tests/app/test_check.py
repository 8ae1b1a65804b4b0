"""``tood check``: what data contain, and what is wrong with them."""

import json
import shutil

from conftest import app_error
from detectron2.data import DatasetCatalog
from PIL import Image

import tood
from tood.app import cli
from tood.app.check import read_validation_data
from tood.app.plan.data import read_training_data
from tood.app.plan.state import Wishes


def test_check_reports_what_the_data_contain(photo_folder, capsys):
    cli.main(["check", "photos"])
    out = capsys.readouterr().out
    assert "photos: 8 images" in out and "4 classes" in out and "Objects: disc " in out
    cli.main(["check", "photos/annotations.json:photos/images", "--output", "data.png"])
    with Image.open("data.png") as drawn:
        assert min(drawn.size) > 100
    (photo_folder / "images" / "00003.jpg").write_bytes(b"no image")
    assert "1 images that cannot be read, for example photos/images/00003.jpg" in app_error(
        "check", "photos"
    )
    assert "There is no folder nothing" in app_error("check", "nothing")


def test_check_draws_augmented_images(photo_folder):
    drawings = []
    for name in ("color_jitter", "mosaic"):
        cli.main(
            ["check", "photos", "--output", f"{name}.png", "INPUT.AUGMENTATIONS", f"['{name}']"]
        )
        with Image.open(f"{name}.png") as drawn:
            drawings.append(drawn.convert("RGB"))
    assert drawings[0].size == drawings[1].size and drawings[0].tobytes() != drawings[1].tobytes()
    options = ("--output", "c.png", "INPUT.AUGMENTATIONS", "['mosaik']")
    assert "must contain names of color_jitter" in app_error("check", "photos", *options)


def test_check_returns_what_it_has_found(photo_folder):
    checked = tood.check("photos")
    (part,) = checked.parts
    content = json.loads((photo_folder / "annotations.json").read_text())
    assert checked.error == "" and part.report.num_images == 8
    assert sum(part.num_objects.values()) == len(content["annotations"])
    assert list(part.num_objects) == [c["name"] for c in content["categories"]]
    (photo_folder / "images" / "00003.jpg").write_bytes(b"no image")
    assert "images that cannot be read" in tood.check("photos").error


def test_check_finds_images_on_both_sides(photo_folder, tmp_path, capsys):
    for part, number in (("train", 8), ("valid", 3)):
        shutil.copytree(photo_folder / "images", tmp_path / "both" / part)
        content = json.loads((photo_folder / "annotations.json").read_text())
        content["images"] = content["images"][:number]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (tmp_path / "both" / part / "_annotations.coco.json").write_text(json.dumps(content))
    cli.main(["check", "both"])
    _, val = capsys.readouterr().out.split("both:val")
    assert "- images that are also trained on" in val
    cli.main(["check", "both:val"])
    assert "also trained on" not in capsys.readouterr().out


def test_data_are_read_again_after_an_evaluation_has_registered_them(photo_folder):
    for name in ("photos:all", "photos/../photos/annotations.json:photos/images", "registered"):
        DatasetCatalog.register(name, list)
        try:
            read, names = read_validation_data(name)
        finally:
            DatasetCatalog.remove(name)
        assert len(read) == ("photos" in name)
        assert names == ([read[0].entry] if read else [name])


def test_the_next_command_follows(photo_folder, tmp_path):
    assert str(tood.check(photo_folder)).endswith(f"\nNext: tood train {photo_folder}")
    both = tood.check([str(photo_folder), str(photo_folder)])
    assert both.next == f"tood train {photo_folder} --val-data {photo_folder}"
    (tmp_path / "a.json").write_text('{"images": [], "categories": [], "annotations": []}')
    images = [{"id": 1, "file_name": "gone.jpg", "width": 9, "height": 9}]
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    checked = tood.check(tmp_path / "a.json")
    assert checked.error and "Next" not in str(checked)


def test_images_without_objects_are_background(photo_folder, tmp_path):
    """tood train uses them in the same way."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)]
    for image in images:
        Image.new("RGB", (64, 48), (9 * image["id"], 3, 3)).save(tmp_path / image["file_name"])
    objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20]}]
    content = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    (tmp_path / "a.json").write_text(json.dumps(content))
    text = " ".join(str(tood.check(tmp_path / "a.json")).split())
    assert "- images without objects: 1, for example 2.png; trained on as background" in text


def test_the_account_of_a_conversion_is_known(photo_folder, tmp_path):
    tood.convert(photo_folder, output=tmp_path / "voc", to="voc")
    assert "ledger.json" not in str(tood.check(tmp_path / "voc"))


def test_findings_in_validation_data_are_reported(photo_folder, capsys):
    path = photo_folder / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [3.0, 3.0, 0.0, 5.0]
    val = photo_folder / "val.json"
    val.write_text(json.dumps(content))
    reports = []
    read_validation_data(f"{val}:{photo_folder}/images", notify=reports.append)
    read_validation_data(f"{path}:{photo_folder}/images", notify=reports.append)
    (found,) = reports
    assert "boxes without width or height: 1" in str(found)
    wishes = Wishes(f"{path}:{photo_folder}/images", [f"{val}:{photo_folder}/images"])
    read_training_data(wishes)
    assert capsys.readouterr().out.count("boxes without width or height: 1") == 1
