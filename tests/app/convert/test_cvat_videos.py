"""CVAT's XML files of videos: which images are frames, and of which video."""

import math

import pytest
from layouts import found_in, make_boxes, put, put_image, refused, voc

from tood.app.convert.door import read_data

BOX = 'outside="0" keyframe="1" xtl="5" ytl="5" xbr="25" ybr="30"'
DISC = ["disc", 5, 5, 25, 30]


def make_track(frames, label="disc", **attributes):
    boxes = "".join(f'<box frame="{n}" {BOX}/>' for n in frames)
    more = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<track id="0" label="{label}"{more}>{boxes}</track>'


def put_xml(root, name, *tracks, size=""):
    meta = f"<meta><task><size>{size}</size></task></meta>" if size else "<meta/>"
    put(root, name, f"<annotations>{meta}{''.join(tracks)}</annotations>")


def put_frames(root, frames, home="video"):
    for n in frames:
        put_image(root, f"{home}/frame_{n:06}.png")
    return [f"{home}/frame_{n:06}.png" for n in frames]


@pytest.mark.parametrize("size", ["", 4])
def test_photographs_elsewhere_are_no_frames(tmp_path, size):
    frames = put_frames(tmp_path, range(4))
    photos = [f"holiday/IMG_{n}.jpg" for n in (2, 3, *range(2034, 2044))]
    for name in photos:
        put_image(tmp_path, name)
    put_xml(tmp_path, "video/annotations.xml", make_track([0, 1]), size=size)
    expected = {frames[0]: [DISC], frames[1]: [DISC], frames[2]: [], frames[3]: []}
    assert found_in(tmp_path) == {"all": expected}
    ignored = dict(read_data(str(tmp_path)).ledger.rows())["ignored files"]
    assert ignored.startswith("12: not named by CVAT's file")


def test_jobs_that_begin_later(tmp_path):
    frames = put_frames(tmp_path, range(5, 15))
    put_xml(tmp_path, "video/annotations.xml", make_track([5]), size=10)
    assert sorted(found_in(tmp_path)["all"]) == frames


@pytest.mark.parametrize("outside", [0, 1])
def test_frames_without_objects_in_other_folders(tmp_path, outside):
    frames = [*put_frames(tmp_path, range(2), "a"), *put_frames(tmp_path, range(2, 4), "b")]
    track = make_track([0]).replace('outside="0"', f'outside="{outside}"')
    put_xml(tmp_path, "annotations.xml", track, size=4)
    assert found_in(tmp_path) == {
        "all": {x: [] if outside or i else [DISC] for i, x in enumerate(frames)}
    }


def test_frames_beyond_the_video(tmp_path):
    frames = put_frames(tmp_path, range(8))
    put_xml(tmp_path, "video/annotations.xml", make_track([0, 2]), size=4)
    found = found_in(tmp_path)["all"]
    assert sorted(found) == frames[:4] and found[frames[1]] == []
    ignored = dict(read_data(str(tmp_path)).ledger.rows())["ignored files"]
    assert ignored.startswith("4: not named by CVAT's file")


def test_two_jobs_of_a_video(tmp_path):
    frames = put_frames(tmp_path, range(9))
    put_xml(tmp_path, "video/job_1.xml", make_track(range(4)), size=4)
    put_xml(tmp_path, "video/job_2.xml", make_track(range(4, 8)), size=4)
    found = found_in(tmp_path)["all"]
    assert found == {**dict.fromkeys(frames[:8], [DISC]), frames[8]: []}


def test_tracks_of_two_videos_in_a_file(tmp_path):
    put_frames(tmp_path, range(4))
    tracks = (
        make_track(range(4), task_id=5, subset="Train"),
        make_track(range(4), "ring", task_id=6, subset="Validation"),
    )
    put_xml(tmp_path, "video/annotations.xml", *tracks)
    assert "tracks of several videos (task 5 Train, task 6 Validation)" in refused(tmp_path)
    put_xml(tmp_path, "video/annotations.xml", tracks[1])
    assert list(found_in(tmp_path)) == ["val"]


def test_subsets_in_one_of_two_files(tmp_path):
    put_frames(tmp_path, range(2), "a")
    put_xml(tmp_path, "a/a.xml", make_track(range(2), subset="Train"))
    put_image(tmp_path, "b/x.jpg")
    put(tmp_path, "b/b.xml", '<annotations><image name="x.jpg"></image></annotations>')
    assert "has nothing as its split, and others have 'Train'" in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["<meta/>", "", '<image name="gone.jpg"/>', voc("0.jpg", make_boxes("0.jpg"))]
)
def test_files_without_images_or_tracks(tmp_path, text):
    put_image(tmp_path, "0.jpg")
    put(tmp_path, "all.xml", f"<annotations>{text}</annotations>")
    message = refused(tmp_path)
    assert (
        "names no image that is there, in its images or tracks" in message or "gone.jpg" in message
    )


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 200])
def test_boxes_of_turned_ellipses(tmp_path, degrees):
    """Against a thousand points of the outline."""
    put_image(tmp_path, "0.jpg", (160, 120))
    shape = f'<ellipse label="disc" cx="60" cy="50" rx="40" ry="10" rotation="{degrees}"/>'
    put(tmp_path, "a.xml", f'<annotations><image name="0.jpg">{shape}</image></annotations>')
    turn, xs, ys = math.radians(degrees), [], []
    for i in range(1000):
        x, y = 40 * math.cos(i * math.tau / 1000), 10 * math.sin(i * math.tau / 1000)
        xs.append(60 + x * math.cos(turn) - y * math.sin(turn))
        ys.append(50 + x * math.sin(turn) + y * math.cos(turn))
    ((_, *box),) = found_in(tmp_path)["all"]["0.jpg"]
    assert box == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=0.6)
