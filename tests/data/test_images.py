"""Images of every kind that cameras and programs write."""

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image

from tood.data.check import check_images
from tood.data.images import IMAGE_ERRORS, probe_image, read_image
from tood.data.mapper import CheckedMapper

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path, array, **kwargs):
    Image.fromarray(array).save(path, **kwargs)
    return str(path)


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_eight_bits_are_read_as_by_detectron2(tmp_path, format):
    path = save(tmp_path / "a.png", RGB)
    image = read_image(path, format)
    assert np.array_equal(image, RGB if format == "RGB" else RGB[:, :, ::-1])
    assert np.array_equal(image, detection_utils.read_image(path, format))


ALPHA = np.concatenate([RGB, np.zeros_like(RGB[:, :, :1])], axis=2)
MAGENTA = np.zeros((4, 5, 4), dtype=np.uint8) + np.array([0, 255, 0, 0], dtype=np.uint8)


@pytest.mark.parametrize(
    "name, mode, array, expected",
    [
        ("a.png", "L", RGB[:, :, 0], np.repeat(RGB[:, :, :1], 3, axis=2)),
        ("a.png", "RGBA", ALPHA, RGB),  # alpha is dropped
        ("a.tiff", "CMYK", MAGENTA, np.full((4, 5, 3), (255, 0, 255))),
    ],
)
def test_other_modes(tmp_path, name, mode, array, expected):
    Image.fromarray(array, mode=mode).save(tmp_path / name)
    assert np.array_equal(read_image(str(tmp_path / name)), expected)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_upper_byte_of_sixteen_bits(tmp_path, suffix):
    deep = np.array([[0, 255, 256], [4095, 40000, 65535]], dtype=np.uint16)
    path = save(tmp_path / f"a.{suffix}", deep)
    image = read_image(path, "BGR")
    assert image.dtype == np.uint8 and image.shape == (2, 3, 3)
    assert image[:, :, 1].tolist() == [[0, 0, 1], [15, 156, 255]]
    assert probe_image(path) == (3, 2)


@pytest.mark.parametrize("dtype, reason", [(np.float32, "floating point"), (np.int32, "16 bits")])
def test_deeper_images_are_refused(tmp_path, dtype, reason):
    path = save(tmp_path / "a.tiff", np.full((2, 2), 10**6, dtype=dtype))
    with pytest.raises(ValueError, match=reason):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation(tmp_path, suffix):
    for orientation in range(1, 9):
        path = turned(tmp_path / f"{orientation}.{suffix}", orientation)
        height, width, _ = read_image(path).shape
        assert (width, height) == ((6, 9) if orientation > 4 else (9, 6))
        assert probe_image(path) == (width, height)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "gif", "webp", "bmp"])
@pytest.mark.parametrize("kept", ["nothing", "some bytes", "half", "all but one"])
def test_files_that_are_cut_off(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    assert probe_image(path) == (70, 60)
    content = (tmp_path / f"a.{suffix}").read_bytes()
    sizes = {"nothing": 0, "some bytes": 10, "half": len(content) // 2, "all but one": -1}
    (tmp_path / f"a.{suffix}").write_bytes(content[: sizes[kept]])
    try:
        whole = read_image(path)
    except IMAGE_ERRORS:
        with pytest.raises(IMAGE_ERRORS):
            probe_image(path)
    else:  # the last byte does not matter to all formats
        assert kept == "all but one" and whole.shape == (60, 70, 3)


def test_something_after_the_image(tmp_path):
    path = save(tmp_path / "a.jpg", RGB)
    with open(path, "ab") as f:
        f.write(b"what some cameras add" * 10)
    assert probe_image(path) == (9, 6)
    assert read_image(path).shape == (6, 9, 3)


@pytest.mark.parametrize("bits", [12, 16])
def test_images_of_fewer_bits(tmp_path, tiny_cfg, bits):
    """16-bit files that use 12 bits are dark unless a key says so, which the check reports."""
    deep = np.full((16, 24), 2**bits - 1, np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    path, records = str(tmp_path / "a.png"), [{"file_name": "a.png", "width": 24, "height": 16}]
    assert read_image(path).max() == (255 if bits == 16 else 15)
    assert read_image(path, bit_depth=bits).min() == 255
    findings = check_images(records, str(tmp_path))
    assert ["set INPUT.BIT_DEPTH 12" in x.consequence for x in findings] == [True] * (bits == 12)
    tiny_cfg.INPUT.BIT_DEPTH = bits
    mapped = CheckedMapper(tiny_cfg, is_train=False)({**records[0], "file_name": path})
    assert mapped["image"].min() == 255
