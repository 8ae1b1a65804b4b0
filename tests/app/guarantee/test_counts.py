"""Totals by an audit, and ``tood count``."""

import itertools
import json
import shutil

import numpy as np
import pytest
from conftest import app_error, complaint
from PIL import Image

import tood
from tood.app import cli
from tood.app.convert.door import read_data
from tood.app.guarantee.counts import ALL, read_audit
from tood.app.guarantee.totals import (
    bootstrap_t,
    bound_mean,
    choose_sample,
    estimate_total,
)

LOW: dict = {}  # arguments by which a model that has learned nothing finds something


def test_a_sample_is_drawn_without_replacement():
    assert choose_sample(10, 4, seed=0) == [2, 4, 8, 9]  # of NumPy's frozen generator
    assert choose_sample(3, 3, seed=7) == [0, 1, 2]
    counts = np.bincount(np.concatenate([choose_sample(5, 2, seed) for seed in range(2000)]))
    assert (abs(counts - 800) < 5 * np.sqrt(2000 * 0.4 * 0.6)).all()


def test_a_total_is_the_sum_plus_the_correction():
    # Of 10 images with 2 each, 4 are audited; the detector missed 0, 1, 0 and 3 objects.
    total = estimate_total("cell", [2] * 10, [0, 3, 5, 9], [2, 3, 2, 5])
    assert total[:3] == ("cell", 20, 20 + 10 * 1.0)
    assert total.most == 5 and total.num_differing == 2
    # The audited 12 are certain, and the other 6 images have at most 5 each.
    for low, high in (total.bootstrap, total.bernstein):
        assert 12 <= low < 30 < high <= 12 + 6 * 5
    wide = estimate_total("cell", [2] * 10, [0, 3, 5, 9], [2, 3, 2, 5], most=50)
    assert wide.most == 50 and wide.bernstein[1] == 12 + 6 * 50
    # The estimate cannot be below what was seen.
    low = estimate_total("cell", [9, 9, 1, 0], [0, 1], [1, 1])
    assert low.estimate == 2


def test_all_images_audited_leave_no_doubt():
    total = estimate_total("cell", [1, 2, 3], [0, 1, 2], [1, 1, 1])
    assert total.estimate == 3 and total.bootstrap == total.bernstein == (3, 3)


def test_the_average_estimate_is_the_truth():
    """Over all samples of 3 of 6 images."""
    detected, true = np.array([0, 1, 2, 3, 4, 9]), np.array([1, 1, 5, 2, 4, 8])
    estimates = [
        detected.sum() + 6 * np.mean([true[i] - detected[i] for i in chosen])
        for chosen in itertools.combinations(range(6), 3)
    ]
    found = [
        estimate_total("a", detected, chosen, true[list(chosen)]).estimate
        for chosen in itertools.combinations(range(6), 3)
    ]
    assert found == pytest.approx(estimates) and np.mean(found) == pytest.approx(true.sum())


def test_the_bootstrap_is_that_of_a_loop():
    x, n, size = np.array([0.0, 1, 0, 2, -1, 0, 4, 0]), 8, 40
    draws = np.random.default_rng(3).choice(x, (2000, n))
    t = sorted(
        0.0 if (d == d[0]).all() and d[0] == x.mean()
        else np.inf * np.sign(d.mean() - x.mean()) if (d == d[0]).all()
        else (d.mean() - x.mean()) / (np.std(d, ddof=1) / n**0.5)
        for d in draws
    )  # fmt: skip
    error = np.std(x, ddof=1) * ((1 - n / size) / n) ** 0.5
    low, high = bootstrap_t(x, size, seed=3)
    assert low == pytest.approx(x.mean() - t[1949] * error)
    assert high == pytest.approx(x.mean() - t[49] * error)
    assert np.isnan(bootstrap_t(np.ones(5), 10)).all()


def bound_slowly(x, size, seed):
    """The bound of values in [0, 1] by a loop over them, in the paper's notation."""
    x = np.random.RandomState(seed).permutation(x)
    log, n = np.log(2 / 0.05), len(x)
    mean, variance, squares = 0.5, 0.25, 0.25
    scale = center = margin = 0.0
    for i in range(1, n + 1):
        weight = min((2 * log / (n * variance)) ** 0.5, 0.8)
        center += weight * (x[i - 1] + sum(x[: i - 1]) / (size - i + 1))
        scale += weight * (1 + (i - 1) / (size - i + 1))
        margin += (x[i - 1] - mean) ** 2 * (-np.log(1 - weight) - weight)
        mean = (0.5 + sum(x[:i])) / (i + 1)
        squares += (x[i - 1] - mean) ** 2
        variance = squares / (i + 1)
    return (center - log - margin) / scale, (center + log + margin) / scale


def test_the_bernstein_bound_is_that_of_a_loop():
    x = np.random.default_rng(0).beta(2, 5, 30)
    low, high = bound_mean(10 * x - 4, 80, (-4, 6), seed=5)
    assert ((low + 4) / 10, (high + 4) / 10) == pytest.approx(bound_slowly(x, 80, 5))
    assert high - low < 10 * 0.5 and low < 10 * x.mean() - 4 < high
    assert bound_mean(np.zeros(3), 9, (0, 0)) == (0, 0)


@pytest.mark.parametrize("missed", [0.07, 0.3])
def test_intervals_cover_the_truth(missed):
    """Both intervals, in 300 audits of 30 of 400 images: 95 % is 285, and fewer than 270 have a
    probability of 0.0001. docs/guarantee_scores.md has more.
    """
    rng = np.random.default_rng(0)
    true = rng.poisson(14, 400)
    detected = rng.binomial(true, 1 - missed) + rng.poisson(0.8, 400)
    covered = np.zeros(2, dtype=int)
    for seed in range(300):
        chosen = choose_sample(400, 30, seed)
        total = estimate_total("cell", detected, chosen, true[chosen], seed=seed)
        ends = np.array([total.bootstrap, total.bernstein])
        covered += (ends[:, 0] <= true.sum()) & (true.sum() <= ends[:, 1])
    assert 270 < covered[0] < 298 and covered[1] >= 285


@pytest.fixture(scope="module")
def folder(shapes, tmp_path_factory):
    """Eight images, one of them in a sub-folder."""
    folder = tmp_path_factory.mktemp("count") / "photos"
    shutil.copytree(shapes / "images", folder)
    (folder / "more").mkdir()
    shutil.move(folder / "00003.jpg", folder / "more" / "3.jpg")
    return folder


@pytest.fixture(scope="module", autouse=True)
def low(trained, folder):
    """Five detections of an image, on average."""
    found = tood.load(trained).predict(f"{folder}/**", score_threshold=0.001)
    scores = sorted((x for result in found for x in result.scores), reverse=True)
    LOW["score_threshold"] = round(scores[40], 4)
    yield
    LOW.clear()


@pytest.fixture(scope="module")
def audit(trained, folder):
    """An audit of four of them, as YOLO."""
    output = folder.parent / "audit"
    found = tood.count(trained, f"{folder}/**", audit=4, save_as="yolo", output=output, **LOW)
    return found, output


@pytest.fixture
def corrected(audit, tmp_path):
    """A copy of the audit, to be corrected."""
    return shutil.copytree(audit[1], tmp_path / "audit")


def list_labels(folder):
    return sorted((folder / "labels").iterdir())


def test_count(trained, folder, audit, capsys):
    found, output = audit
    plain = tood.count(trained, f"{folder}/**", **LOW)
    results = tood.predict(trained, f"{folder}/**", output=folder.parent / "drawn", **LOW).results
    for name, number in plain.detected.items():
        assert number == sum(x.labels.count(name) for x in results)
    assert plain.num_images == 8 and plain.detected == found.detected and plain.totals == {}
    assert sum(plain.detected.values()) > 8
    assert "--audit 30 draws images" in str(plain) and "audit" not in plain.output
    content = json.loads((output / "audit.json").read_text())
    assert [x["file"] for x in content["images"]][-1] == "more/3.jpg"
    assert content["chosen"] == choose_sample(8, 4, 0) and content["seed"] == 0
    part = read_data(str(output)).parts["all"]
    by_name = {x.path.rpartition("/")[2]: len(x) for x in results}
    objects = [a["image_id"] for a in part.content["annotations"]]
    for image in part.content["images"]:
        assert objects.count(image["id"]) == by_name[image["file_name"].rpartition("/")[2]]
    assert found.output == str(
        output
    ) and f"4 images that were drawn at random are in {output}" in str(found)
    assert (
        cli.main(
            [
                "count",
                str(trained),
                f"{folder}/**",
                "--score-threshold",
                str(LOW["score_threshold"]),
            ]
        )
        == 0
    )
    assert str(plain) in capsys.readouterr().out


@pytest.mark.parametrize("save_as", ["coco", "voc", "labelme"])
def test_labels_are_read_back_from_all_formats(save_as, trained, folder, tmp_path):
    output = tmp_path / "audit"
    tood.count(trained, f"{folder}/**", audit=4, save_as=save_as, output=output, **LOW)
    found = tood.count(trained, f"{folder}/**", audited=output)
    assert found.totals[ALL].estimate == sum(found.detected.values())
    assert "were the labels corrected?" in str(found)


def test_an_audit_is_not_replaced_without_a_word(trained, folder, corrected):
    again = dict(audit=2, save_as="yolo", output=corrected)
    assert "already contains files" in complaint(tood.count, trained, f"{folder}/**", **again)
    tood.count(trained, f"{folder}/**", overwrite=True, **again)
    assert len(read_audit(str(corrected)).chosen) == 2


def test_an_audit_corrects_the_total(trained, folder, corrected):
    star = tood.load(trained).predictor().class_names.index("star")
    # One star more in the first image, two more in the second, in the others as many.
    for path, places in zip(list_labels(corrected), ((0.5,), (0.3, 0.7))):
        more = "".join(f"{star} {x} 0.5 0.011 0.012\n" for x in places)
        path.write_text(path.read_text() + more)
    found = tood.count(trained, f"{folder}/**", audited=corrected, most=99)
    total = found.totals["star"]
    assert total.most == 99 and found.totals[ALL].most == 4 * 99  # of each of four classes
    assert "has no object in" not in str(found)
    assert total.detected == found.detected["star"]
    assert total.estimate == total.detected + 8 * 3 / 4
    assert total.num_differing == 2 and total.bootstrap[0] < total.estimate < total.bootstrap[1]
    assert found.totals["disc"].estimate == found.detected["disc"]
    assert found.totals[ALL].estimate == sum(found.detected.values()) + 6
    assert "8 images, of which 4 were audited (seed 0):" in str(found)
    assert "only a few audited images (" in str(found) and "2 star" in str(found)


def test_images_that_an_audit_has_emptied_are_named(trained, folder, corrected):
    """YOLO's labels of an image may have been removed one by one, or with their file."""
    found = [path for path in list_labels(corrected) if path.read_text()]
    found[0].unlink()
    found[1].write_text("")
    text = str(tood.count(trained, f"{folder}/**", audited=corrected))
    assert "The audit has no object in 2 of the images that the detector finds some in: " in text
    for path in found[:2]:
        assert f"{path.stem}.jpg" in text.rpartition("finds some in: ")[2]


def test_audits_that_are_refused(trained, folder, corrected, tmp_path):
    def refuse(photos=folder, audited=corrected, **more):
        return complaint(tood.count, trained, f"{photos}/**", audited=audited, **more)

    path = corrected / "audit.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "identity": {"weights": "0"}}))
    assert "has counts of other weights than" in refuse()
    path.write_text(json.dumps(content))
    message = refuse(options=["MODEL.TOOD.SCORE_THRESH_TEST", "0.9"])
    assert "SCORE_THRESH_TEST is typed with --audited" in message
    message = refuse(options=["MODEL.TOOD.NMS_THRESH_TEST", "0.3"])
    assert "has counts with MODEL.TOOD.NMS_THRESH_TEST 0.6, and it is 0.3 here" in message
    image = next((corrected / "images").iterdir())
    label = corrected / "labels" / f"{image.stem}.txt"
    text, pixels = label.read_text(), image.read_bytes()
    label.write_text("9 0.5 0.5 0.1 0.1\n")
    assert "class" in refuse()
    (corrected / "classes.txt").write_text("disc\nsquare\ntriangle\nstart\n")
    label.write_text("3 0.5 0.5 0.1 0.1\n")
    assert "has objects of 'start', not a class of the model; did you mean star?" in refuse()
    (corrected / "classes.txt").write_text("disc\nsquare\ntriangle\nstar\n")
    label.write_text(text)
    # An image that was changed, one that is missing, one that was not drawn.
    Image.new("RGB", (64, 64)).save(image)
    assert f"{image} is not one of the images that were drawn, or its file has changed" in refuse()
    image.unlink()
    label.unlink()
    assert "1 of the 4 drawn images are missing in" in refuse()
    image.write_bytes(pixels)
    label.write_text(text)
    drawn = {
        x.file for x in map(read_audit(str(corrected)).images.__getitem__, choose_sample(8, 4, 0))
    }
    other = next(x for x in sorted(folder.glob("*.jpg")) if x.name not in drawn)
    shutil.copy(other, corrected / "images")
    (corrected / "labels" / f"{other.stem}.txt").write_text("")
    assert f"{other.name} is not one of the images that were drawn" in refuse()
    for x in list_labels(corrected):
        x.write_text("")
    assert "draw them with --save-as coco" in refuse()
    # Chosen by hand.
    changed = {**content, "chosen": [0, 1, 2, 3]}
    path.write_text(json.dumps(changed))
    assert "are not those that its seed 0 draws" in refuse()
    broken_lists = {**content, "images": 3}, {**content, "class_names": ["a"]}
    for broken in (*broken_lists, {}, {**content, "settings": []}):
        path.write_text(json.dumps(broken))
        assert f"{path} cannot be read: " in refuse()
    path.unlink()
    assert "audit.json does not exist; tood count --audit writes it" in refuse()


def test_images_that_are_not_those_of_the_audit(trained, folder, audit, tmp_path):
    photos = shutil.copytree(folder, tmp_path / "photos")

    def refuse():
        return complaint(tood.count, trained, f"{photos}/**", audited=audit[1])

    shutil.copy(photos / "00000.jpg", photos / "new.jpg")
    assert "1 images are new since" in refuse() and ", as new.jpg; name the images" in refuse()
    (photos / "new.jpg").unlink()
    Image.new("RGB", (64, 64)).save(photos / "00000.jpg")
    assert "1 images have changed since" in refuse() and ", as 00000.jpg" in refuse()
    (photos / "00000.jpg").unlink()
    assert "1 images are missing since" in refuse()


def test_values_that_cannot_be_used(trained, folder, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "a.mp4").write_bytes(b"")
    for images, more, says in (
        (folder, {"audit": 1}, "--audit is 1; an interval needs at least 2 images."),
        (folder, {"audit": 99}, "--audit is 99, but there are 7 images; name fewer."),
        (folder, {"audit": 3, "audited": "a"}, "omit one of them"),
        (folder, {"most": -1}, "--most is -1"),
        (folder, {"audit": 3, "seed": -1}, "--seed is -1"),
        (folder, {"audited": "a", "seed": 4}, "--seed is typed with --audited, but audit.json in"),
        (folder, {"audited": "a", "score_threshold": 0.5}, "--score-threshold is typed with"),
        (folder, {"output": "a"}, "--output is of the images that --audit draws"),
        (folder, {"save_as": "yolo"}, "--save-as is of the images that --audit draws"),
        (folder, {"audit": 3, "most": 9}, "--most is of the interval by --audited"),
        (photos, {}, "1 of the images cannot be read, as warned above"),
        (tmp_path / "a.mp4", {}, "a.mp4 is a video; name images"),
        (folder, {"audit": 2, "save_as": "csv", "output": tmp_path / "b"}, "--save-as is 'csv'"),
    ):
        assert says in complaint(tood.count, trained, images, **more)
    assert "--audit is 1" in app_error("count", trained, folder, "--audit", "1")
