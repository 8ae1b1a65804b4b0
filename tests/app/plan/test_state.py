"""The output folder of ``tood train``: unused, half prepared, prepared, trained in."""

import os
import shutil

import pytest
import torch
import yaml
from conftest import SMALL, app_error, complaint

import tood
from tood.app import train as command
from tood.app.plan.state import Wishes, complete_wishes, is_ready, locked_output, read_begun
from tood.utils import files
from tood.utils.errors import UserError
from tood.utils.lock import locked

FILES = ("data/ledger.json", "data/train.json", "data/val.json", "plan.yaml")  # as written
RUN = [*SMALL, "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture
def prepare(photo_folder, tmp_path, monkeypatch, without_steps):
    """A function that prepares a training, but does not train."""
    monkeypatch.setattr(command, "_run", lambda run, output: command.Trained("", "", output))

    def run(**options):
        tood.train("photos", output="out", **{"options": RUN, **options})
        return tmp_path / "out"

    return run


def read_all(folder):
    """Return the content of files by their names, without the mark and the lock."""
    paths = [x for x in folder.rglob("*") if x.is_file() and x.name[0] != "."]
    return {x.relative_to(folder).as_posix(): x.read_bytes() for x in paths}


def kill_at(number, is_written, prepare):
    """Prepare in a process that ends, as by SIGKILL, right before or after a file gets its name."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)
    replace, calls = os.replace, []

    def replace_or_end(*paths):
        calls.append(paths)
        if len(calls) == number and not is_written:
            os._exit(1)
        replace(*paths)
        if len(calls) == number:
            os._exit(1)

    files.os.replace = replace_or_end
    try:
        prepare(epochs=2)
    finally:
        os._exit(0)


@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize("number", range(1, len(FILES) + 1))
def test_a_preparation_that_was_killed_has_a_way_on(prepare, tmp_path, number, is_written):
    """A new start and --resume, which knows the arguments, write the same files."""
    out, killed = tmp_path / "out", tmp_path / "killed"
    expected = read_all(prepare(epochs=2))
    assert sorted(expected) == sorted(FILES)
    shutil.rmtree(out)
    kill_at(number, is_written, prepare)
    shutil.copytree(out, killed)
    left = read_all(killed)
    assert [x for x in FILES if x in left] == [*FILES[: number - (not is_written)]]
    assert any(x.endswith(".part") for x in left) != is_written
    for options in ({"epochs": 2}, {"resume": True, "options": ()}):
        prepare(**options) if number > 1 or is_written else prepare(epochs=2)
        assert read_all(out) == expected
        shutil.rmtree(out)
        shutil.copytree(killed, out)


def test_a_folder_in_use_is_refused_before_anything_is_written(prepare, tmp_path):
    """Neither a new start, nor one whose data are wrong, nor --resume touches it."""
    out = prepare(epochs=2)
    says = f"Another training writes to out (process {os.getpid()}); wait"
    with locked(str(out)):
        (out / "half.pth.0123abcd.part").write_text("the other training writes this")
        before = read_all(out)
        for data, flags in (("photos", {}), ("nothing", {}), ("photos", {"resume": True})):
            for dry_run in (False, True):
                found = complaint(tood.train, data, output="out", dry_run=dry_run, **flags)
                assert found.startswith(says)
        assert read_all(out) == before and (out / ".lock").read_text() == str(os.getpid())
    assert "There is no folder nothing" in complaint(tood.train, "nothing", output="out")
    assert read_all(out) == {k: v for k, v in before.items() if not k.endswith(".part")}


def test_a_refused_start_removes_what_it_wrote(prepare, tmp_path, monkeypatch):
    """Not the folder that was there, nor what is in it of a user."""

    def refuse(*_):
        raise UserError("refused.")

    monkeypatch.setattr(command, "_run", refuse)
    for folder in ("out", "mine/deep"):
        complaint(tood.train, "photos", output=folder, options=RUN)
    assert not (tmp_path / "out").exists() and not (tmp_path / "mine").exists()
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "notes.txt").write_text("of a user")
    complaint(tood.train, "photos", output="out", options=RUN)
    assert read_all(tmp_path / "out") == {"data/notes.txt": b"of a user"}


def test_a_start_without_a_checkpoint_is_replaced(prepare, tmp_path, capsys):
    out = prepare(epochs=2)
    (out / "config.yaml").write_text("of the first start")
    (out / "metrics.json").write_text("{}")
    prepare(epochs=3)
    assert (
        "Replacing the files of a training without a checkpoint in out" in capsys.readouterr().out
    )
    assert sorted(read_all(out)) == sorted(FILES) and read_begun(str(out)).epochs == 3
    (out / "model_best.pth").write_text("weights")
    before = read_all(out)
    assert "it contains model_best.pth" in complaint(tood.train, "photos", output="out")
    (out / "plan.yaml").unlink()
    message = complaint(tood.train, "photos", output="out", resume=True)
    assert "contains model_best.pth, but not plan.yaml; continue with train_net.py" in message
    (out / "plan.yaml").write_bytes(before["plan.yaml"])
    (out / "data" / "ledger.json").write_text('{"data": "photos"}')
    message = complaint(tood.train, "photos", output="out", resume=True)
    assert "but not what was typed in data/ledger.json" in message


@pytest.mark.parametrize(
    "flags, says",
    [
        (["/nonexistent"], "begun with {photos}, not with /nonexistent; name the same data"),
        (["photos", "--epochs", "900"], "with --epochs 2, not with --epochs 900; omit the flag, "),
        (["photos", "--images-per-step", "1"], "without --images-per-step, not with --images"),
        (["photos", "--val-share", "0.5"], "without --val-share, not with --val-share 0.5;"),
        (["photos", "--val-data", "photos"], "without --val-data, not with --val-data photos;"),
        (["photos", "--group", "(.)"], "begun without --group, not with --group (.);"),
        (["photos", "--config-file", "demo_shapes"], "without --config-file, not with --config-"),
        (["photos", "INPUT.MIN_SIZE_TRAIN", "(96,)"], "INPUT.MIN_SIZE_TRAIN (64,), not with (96,)"),
        (["photos", "MODEL.TOOD.NUM_CONVS", "3"], "begun with MODEL.TOOD.NUM_CONVS 2, not with 3"),
        (["photos", "SOLVER.MAX_ITERS", "3"], "did you mean SOLVER.MAX_ITER?"),
    ],
)
def test_resume_refuses_what_differs(prepare, tmp_path, flags, says):
    """Refused with and without --dry-run, and nothing is changed."""
    out = prepare(epochs=2)
    before = read_all(out)
    for more in ([], ["--dry-run"]):
        message = app_error("train", flags[0], "--output", "out", "--resume", *more, *flags[1:])
        assert says.format(photos=tmp_path / "photos") in message
    assert read_all(out) == before


def test_resume_accepts_what_is_the_same(prepare, tmp_path):
    out = prepare(epochs=2, val_data=["photos"], group="", config="")
    before = read_all(out)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for data in ("photos", "./photos/", str(tmp_path / "photos"), "link"):
        tood.train(data, output="out", resume=True)
        tood.train(data, output=str(out), resume=True, epochs=2.0, val_data=data, options=RUN)
    assert read_all(out) == before
    begun = Wishes(data="photos:train", config="demo_shapes", options=["SEED", "1"])
    completed = complete_wishes(Wishes("link:train", options=["SEED", "2"]), begun, "out")
    assert completed == begun._replace(data="link:train", options=["SEED", "2"])
    assert "not with photos:val" in complaint(complete_wishes, Wishes("photos:val"), begun, "out")


def test_options_that_may_change_are_in_the_plan(prepare, tmp_path, monkeypatch):
    """The next --resume, without them, continues with them; not if they are refused."""
    out = prepare(epochs=2)
    seen = []
    monkeypatch.setattr(command, "_run", lambda run, output: seen.append(read_plan(out)))
    options = ["SOLVER.MAX_ITER", "8", "SOLVER.BASE_LR", "0.5", "INPUT.MIN_SIZE_TEST", "64"]
    tood.train("photos", output="out", resume=True, options=options)
    tood.train("photos", output="out", resume=True)
    assert seen[0] == seen[1] and (out / "plan.yaml").read_text().startswith("# What tood train")
    assert (seen[0]["MAX_ITER"], seen[0]["BASE_LR"]) == (8, 0.5)

    def refuse(*_):
        seen.append(read_plan(out))
        raise UserError("refused.")

    monkeypatch.setattr(command, "_run", refuse)
    options = ["SOLVER.MAX_ITER", "9"]
    assert complaint(tood.train, "photos", output="out", resume=True, options=options) == "refused."
    assert seen[2]["MAX_ITER"] == 9 and read_plan(out) == seen[0]


def read_plan(out):
    return yaml.safe_load((out / "plan.yaml").read_text())["SOLVER"]


def test_a_dry_run_says_what_is_continued(prepare, tmp_path):
    out = prepare(epochs=2)
    resume = {"output": "out", "resume": True, "dry_run": True}
    text = str(tood.train("photos", **resume))
    assert "begins the training in out, which has no checkpoint yet: 6 iterations" in text
    torch.save({"model": {}, "iteration": 2}, out / "model_0000002.pth")
    (out / "last_checkpoint").write_text("model_0000002.pth")
    before = read_all(out)
    text = str(tood.train("photos", **resume, options=["SOLVER.MAX_ITER", "9"]))
    assert "continues the training in out from model_0000002.pth, after 3 of 9 iterations" in text
    assert "Other options than before: SOLVER.MAX_ITER 6 -> 9." in text
    assert "Nothing was written" in text and read_all(out) == before


def test_labels_that_were_changed_are_named(prepare, tmp_path):
    out = prepare(epochs=2)
    labels, resume = tmp_path / "photos" / "annotations.json", dict(resume=True, dry_run=True)
    assert "was changed" not in str(tood.train("photos", output="out", **resume))
    later = (out / "data" / "ledger.json").stat().st_mtime + 1
    os.utime(labels, (later, later))
    text = " ".join(str(tood.train("photos", output="out", **resume)).split())
    assert "annotations.json was changed after the training began, which goes on with" in text


@pytest.fixture
def prepare_default(prepare, tmp_path):
    """A function that prepares a training in the default folder, as if it had a checkpoint then."""

    def run(**options):
        folder = tood.train("photos", **{"options": RUN, "epochs": 2, **options}).folder
        (tmp_path / folder / "model_best.pth").write_text("weights")
        return folder

    return run


def test_the_default_folder_counts_up(prepare_default, tmp_path, capsys):
    names = ["output/photos", "output/photos-2", "output/photos-3"]
    for name in names:
        assert prepare_default() == name
        assert capsys.readouterr().out.splitlines()[0] == f"Output: {name}"
    before = read_all(tmp_path / "output")
    # A folder that is typed is refused, by its flag and by its key.
    says = f"{names[1]} has been used already (it contains model_best.pth); continue its training"
    assert complaint(prepare_default, output=names[1]).startswith(says)
    options = [*RUN, "OUTPUT_DIR", names[1]]
    assert complaint(prepare_default, options=options).startswith(says)
    # A number between them that is free.
    shutil.rmtree(names[1])
    assert prepare_default() == names[1]
    assert read_all(tmp_path / "output").keys() == before.keys()


def test_resume_continues_in_the_highest_number(prepare_default, tmp_path, capsys):
    for number in (2, 10, 9):
        prepare_default(output=f"output/photos-{number}")
    # Trainings on other data, and folders of a user, do not count.
    shutil.copytree("photos", "photos-11")
    assert tood.train("photos-11", options=RUN, epochs=2).folder == "output/photos-11"
    (tmp_path / "output" / "photos-12").mkdir()
    (tmp_path / "output" / "photos-old").mkdir()
    capsys.readouterr()
    resumed = tood.train("photos", resume=True)
    assert resumed.folder == "output/photos-10"
    line = "Continuing the training in output/photos-10"
    assert capsys.readouterr().out.splitlines()[0] == line
    # One that has not begun.
    shutil.copytree("photos", "cells")
    assert tood.train("cells", resume=True, options=RUN).folder == "output/cells"


def test_two_trainings_at_once_do_not_share_a_folder(prepare, monkeypatch):
    """Also if the second one takes the lock between the choice of a folder and its lock."""
    lock = dict(data="photos", is_typed=False, resume=False)
    with locked_output("output/photos", **lock) as first:
        with locked_output("output/photos", **lock) as second:
            assert (first, second) == ("output/photos", "output/photos-2")
        with monkeypatch.context() as patch:
            answers = iter([False, False])  # not locked when it was asked for
            patch.setattr("tood.app.plan.state.is_locked", lambda x: next(answers, x == first))
            with locked_output("output/photos", **lock) as third:
                assert third == "output/photos-2"
        assert tood.train("photos", options=RUN, dry_run=True).folder == "output/photos-2"
        for flags in ({"output": first}, {"resume": True}):
            found = complaint(tood.train, "photos", options=RUN, **flags)
            assert found.startswith("Another training writes to output/photos (")
    assert not os.path.exists("output/photos/plan.yaml")


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--epochs", "0"], "--epochs is 0.0; it must be more than 0"),
        (["--val-data", "nowhere"], "There is no folder nowhere"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "The weights nowhere.pth (MODEL.WEIGHTS) are not"),
        (["SOLVER.BASE_LR", "-1"], "SOLVER.BASE_LR is -1.0"),
    ],
)
@pytest.mark.parametrize("config", [[], ["--config-file", "demo_shapes"]])
def test_a_dry_run_refuses_what_a_training_refuses(photo_folder, flags, says, config):
    before = sorted(photo_folder.parent.rglob("*"))
    assert says in app_error("train", "photos", "--dry-run", *config, *flags)
    assert sorted(photo_folder.parent.rglob("*")) == before


def test_a_dry_run_does_not_mind_a_used_folder(prepare_default, tmp_path):
    prepare_default()
    before = read_all(tmp_path)
    flags = dict(options=RUN, epochs=2, dry_run=True)
    planned = tood.train("photos", **flags)
    assert planned.folder == "output/photos-2" and "output/photos-2, config" in planned.plan
    planned = tood.train("photos", output="output/photos", **flags)
    assert "output/photos, config plan.yaml" in planned.plan
    assert "output/photos has been used already" in planned.plan
    assert read_all(tmp_path) == before and not is_ready("output/photos-2")
