"""Frames of videos and webcams, read and written by OpenCV."""

import contextlib
import os
from typing import Iterator

import cv2
import numpy as np

from tood.utils.errors import UserError
from tood.utils.files import name_part
from tood.utils.folders import VIDEO_MARK
from tood.utils.reading import open_at_once


def read_frames(reader: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield frames (H, W, 3), BGR, until one cannot be read."""
    ok, frame = reader.read()
    while ok:
        yield frame
        ok, frame = reader.read()


def is_video_file(path: str) -> bool:
    """Return whether OpenCV may open a file: others would be waited for, and lists of videos may
    name such files.
    """
    try:
        with open_at_once(path) as f:
            return not f.read(64).lstrip().startswith((b"ffconcat", b"#EXTM3U"))
    except OSError:
        return False


def read_property(reader: cv2.VideoCapture, key: int, high: float) -> float:
    """Return a number that a video states, or 0 if it cannot be right."""
    value = reader.get(key)
    return value if 0 < value <= high else 0.0


@contextlib.contextmanager
def written_video(
    reader: cv2.VideoCapture, frame: np.ndarray, target: str
) -> Iterator[cv2.VideoWriter]:
    """Yield a writer of a video, which has another name until it is complete."""
    stem, suffix = os.path.splitext(os.path.basename(target))
    # OpenCV knows the format by the ending; hidden files are not inputs.
    part = name_part(os.path.join(os.path.dirname(target), f".{stem}"), suffix)
    writer = _open_writer(part, reader, frame, target)
    try:
        yield writer
        writer.release()
        with open(part, "ab") as f:
            f.write(VIDEO_MARK)
        os.replace(part, target)
    finally:
        reader.release()
        writer.release()
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def _open_writer(
    path: str, reader: cv2.VideoCapture, frame: np.ndarray, target: str
) -> cv2.VideoWriter:
    fps = read_property(reader, cv2.CAP_PROP_FPS, 1000) or 25.0
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), fps, frame.shape[1::-1])
    if not writer.isOpened():
        raise UserError(f"The video {target} cannot be written; OpenCV lacks its format.")
    return writer


def show_and_ask_to_stop(frame: np.ndarray) -> bool:
    """Show a frame in a window, if there is a screen; return whether the key q was pressed."""
    try:
        cv2.imshow("TOOD: q ends", frame)
        return cv2.waitKey(1) & 0xFF == ord("q")
    except cv2.error:  # no screen: the video is written all the same
        return False
