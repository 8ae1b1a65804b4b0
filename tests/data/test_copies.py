"""Copies of images, by their content or their names."""

from tood.data.copies import find_copies, trained_on


def test_files_that_differ_at_their_end_are_not_copies(tmp_path):
    for name, data in (("a", b"x" * 2**21), ("b", b"x" * 2**21), ("c", b"x" * (2**21 - 1) + b"y")):
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in ("a", "b", "c", "gone", "also gone")]
    assert find_copies(paths) == [0, 0, 2, 3, 4]


def test_images_on_both_sides(tmp_path):
    files = {
        "train/a.jpg": b"one",
        "train/b.jpg": b"two",
        "train/cat_jpg.rf.0a1b.jpg": b"three",
        "val/c.jpg": b"one",  # as train/a.jpg
        "val/d.jpg": b"new",
        "val/cat_jpg.rf.2c3d.jpg": b"turned",
        "val/dog_jpg.rf.4e5f.jpg": b"five",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    train, val = ([str(tmp_path / n) for n in files if n.startswith(x)] for x in ("train", "val"))
    assert trained_on(train, val) == [str(tmp_path / "val" / "c.jpg"), val[2]]
    assert trained_on(train, train) == train
    assert trained_on(train[:2], [str(tmp_path / "val" / ".." / "train" / "b.jpg"), *val[1:]]) == [
        str(tmp_path / "val" / ".." / "train" / "b.jpg")
    ]
    assert trained_on([], val) == [] == trained_on(train, [])
