"""Flags of other programs, and misspelt words."""

import pytest
from conftest import app_error

from tood.app import cli
from tood.app.habits import FOREIGN, KEYS
from tood.config.check import known_keys
from tood.config.read import get_config


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (
            ["predict", "m", "i", "--conf", "0.5"],
            "has no flag --conf; write --score-threshold",
        ),
        (["predict", "m", "--source", "i"], "--source; write the IMAGES without a flag."),
        (["predict", "--weights=m", "i"], "no flag --weights; write the MODEL without a flag."),
        (["predict", "m", "i", "--exist_ok"], "no flag --exist_ok; write --overwrite."),
        (["train", "--data", "x.yaml"], "tood train has no flag --data; write the DATA without"),
        (["train", "x", "--weights", "y"], "--weights; write MODEL.WEIGHTS VALUE at the end."),
        (["train", "x", "--epoch", "3"], "tood train has no flag --epoch; did you mean --epochs?"),
        (
            ["train", "x", "--zzz"],
            "has no flag --zzz; tood train --help lists its flags.",
        ),
        (
            ["train", "data=x.yaml"],
            "does not take data=x.yaml; write tood train x.yaml",
        ),
        (["train", "x", "epochs=3"], "tood train does not take epochs=3; write tood train x --ep"),
        (
            ["train", "imgsz=640", "data=my cells", "--lr", "0.1", "batch=2"],
            "imgsz=640, data=my cells, batch=2; "
            "write tood train 'my cells' --lr 0.1 --image-size 640 --batch 2",
        ),
        (["predict", "model=m", "source=a.jpg"], "write tood predict m a.jpg"),
        (
            ["train", "workers=2", "x", "epochs=3"],
            "write tood train x --epochs 3 DATALOADER.NUM_WORKERS 2",
        ),
        (["train", "x", "zzz=3"], "tood train does not take zzz=3; write flags as --epochs 20."),
        (["train", "x", "--device", "0"], "--device is 0; write cpu, cuda, or cuda:1 for the"),
        (["convert", "x", "--workers", "2"], "tood convert has no flag --workers; tood convert"),
    ],
)
def test_words_of_other_programs_get_ours(argv, hint):
    assert hint in app_error(*argv)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_flags_are_not_abbreviated(name):
    flags = [x for a in cli.make_parser(name)._actions for x in a.option_strings if x[:2] == "--"]
    for flag in flags:
        for end in range(3, len(flag)):
            if flag[:end] not in flags:
                assert f"tood {name} has no flag {flag[:end]}" in app_error(name, flag[:end])


def test_translations_are_words_of_this_program():
    parsers = [cli.make_parser(name) for name in cli.COMMANDS]
    words = {x for p in parsers for a in p._actions for x in (*a.option_strings, a.metavar)}
    assert {*FOREIGN.values()} <= words
    assert {*KEYS.values()} <= {*known_keys(get_config("tood_R50_FPN_1x"))}


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["check", "{}/phots"], "There is no folder {}/phots; did you mean {}/photos?"),
        (
            ["check", "{}/photos:trian"],
            "is not the name of a part of {}/photos; did you mean tra",
        ),
        (["check", "{}/photo/list.jsn"], "did you mean {}/photos/list.json?"),
        (["predict", "{}/photoes", "a.jpg"], "folder at {}/photoes; did you mean {}/photos?"),
        (["predict", "tood_R50_FPN_1", "a"], "did you mean tood_R50_FPN_1x?"),
        (["predict", "x", "a", "--config-file", "tood_R50_FPN"], "named 'tood_R50_FPN'; did you"),
    ],
)
def test_similar_paths_and_names_are_suggested(argv, hint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "list.json").write_text("{}")
    message = app_error(*(x.format(tmp_path) for x in argv))
    assert hint.replace("{}", str(tmp_path)) in message


def test_flags_stand_before_or_behind(photo_folder, capsys):
    for argv in (["--to", "voc", photo_folder], [photo_folder, "--to", "voc"]):
        args = cli.make_parser("convert").parse_intermixed_args([*map(str, argv), "--output", "o"])
        assert (args.data, args.to, args.output) == (str(photo_folder), "voc", "o")
