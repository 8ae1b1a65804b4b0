"""The program ``tood`` and the functions of the package: one is argparse around the others."""

import ast
import atexit
import gc
import importlib.metadata
import inspect
import json
import os
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import app_error

import tood
from tood.app import cli
from tood.utils import errors
from tood.utils.errors import UserError

# What needs seconds to import.
HEAVY = ("torch", "detectron2", "cv2", "matplotlib", "pycocotools")


def test_help_and_unknown_commands(capsys):
    assert cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"tood {name} " in usage for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    assert "trian is not a command of tood; did you mean train?" in capsys.readouterr().err
    assert cli.main(["quux"]) == 2
    assert "; the commands are check, train," in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    version = importlib.metadata.version("tood-detectron2")
    assert capsys.readouterr().out == f"tood {tood.__version__}\n" == f"tood {version}\n"


@pytest.mark.parametrize("argv", [["--help"], ["check", "--help"], ["check", "photos"]])
@pytest.mark.parametrize("is_module", [False, True])
def test_what_is_quick_imports_nothing_slow(argv, is_module, photo_folder):
    """Run in a separate process, since this one has imported everything."""
    call = "from tood.app import cli; sys.exit(cli.main(sys.argv[1:]))"
    if is_module:
        call = "import runpy; sys.argv[0] = '-m'; runpy.run_module('tood')"
    code = f"import sys\ntry: {call}\nfinally: print('LOADED', *sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    loaded = run.stderr.partition("LOADED")[2].split()
    assert "tood.app.cli" in loaded and not set(HEAVY) & set(loaded)
    assert run.returncode == 0 and run.stdout
    assert "Warning" not in run.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_flags_are_the_parameters_of_the_function(name):
    parameters = inspect.signature(cli.get_function(name)).parameters
    parser = cli.make_parser(name)
    flags = {a.dest: a for a in parser._actions if a.dest != "help"}
    overrides = {"options"} if parser.epilog else set()
    assert {*flags, *overrides} == set(parameters)
    for dest, action in flags.items():
        parameter = parameters[dest]
        is_positional = not action.option_strings
        assert is_positional == (parameter.kind is parameter.POSITIONAL_OR_KEYWORD)
        if not is_positional:
            assert action.required == (parameter.default is parameter.empty)
        if action.const is not None:  # a switch changes the default
            assert action.const is not parameter.default
    order = [dest for dest, action in flags.items() if not action.option_strings]
    assert order == list(parameters)[: len(order)]


@pytest.mark.parametrize("name", [x for x in tood.__all__ if x in tood._APP and x.islower()])
def test_public_functions_are_documented(name):
    function = getattr(tood, name)
    assert "Raises:" in function.__doc__ and f"tood.{name}(" in function.__doc__
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter
        assert f"{parameter.name}" in function.__doc__


def test_type_checkers_see_the_same_names():
    stub = ast.parse(Path(tood.__file__).with_suffix(".pyi").read_text())
    imports = [x for x in stub.body if isinstance(x, ast.ImportFrom)]
    found = {y.asname: f"{x.module}.{y.name}" for x in imports for y in x.names}
    assert sorted(found) == sorted(tood.__all__)
    for name, path in found.items():
        assert path.endswith(f".{name}") and pkgutil.resolve_name(path) is getattr(tood, name)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["-m", "-c"])
def test_all_names_are_there_in_a_fresh_interpreter(how, tmp_path):
    """Also in a package that is started with python -m."""
    code = "import json, tood\nprint(json.dumps({x: str(getattr(tood, x)) for x in tood.__all__}))"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import tood\n")
    (tmp_path / "mine" / "__main__.py").write_text(code)
    argv = ["-m", "mine"] if how == "-m" else ["-c", code]
    run = subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert set(found) == set(tood.__all__) and "Predictor" in found["Predictor"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tood.nothing  # noqa: B018


def test_no_garbage_is_searched_for_while_modules_are_imported(monkeypatch):
    """Nor at the end of a program, however many run in one process."""
    states = []
    monkeypatch.setattr(importlib, "import_module", lambda name: states.append(gc.isenabled()))
    with pytest.raises(AttributeError):  # nothing is imported
        tood.__getattr__("TOOD")
    assert states == [False, False] and gc.isenabled()
    gc.disable()
    with tood.importing():
        pass
    assert not gc.isenabled()
    gc.enable()
    errors.omit_last_search.cache_clear()
    monkeypatch.setattr(atexit, "register", states.append)
    for _ in range(2):
        errors.run_main(lambda: None)
    assert states[2:] == [gc.freeze]


def test_mistakes_of_a_command_line(photo_folder, capsys):
    message = app_error("train", "photos", "MODEL.DEVICE", "cpu", "--epochs", "2")
    assert "--epochs stands among the KEY VALUE options" in message
    assert "tood convert takes no option MODEL.DEVICE" in app_error(
        "convert", "photos", "--output", "x", "MODEL.DEVICE", "cpu"
    )
    assert "write x,y,width,height" in app_error("explain", "m", "a.jpg", "1,2,a,b")
    with pytest.raises(SystemExit):
        cli.main(["train", "photos", "--epochs"])
    error = capsys.readouterr().err
    assert error.startswith("error: tood train: argument --epochs: expected one argument;")
    assert error.endswith("tood train --help lists what it takes.\n")


def test_functions_take_paths(photo_folder, monkeypatch, tmp_path):
    """Paths may be Path objects, in lists, and relative to the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = tmp_path / "photos"
    text = str(tood.check(str(photos)))
    for data in (photos, [photos], "~/photos"):
        assert str(tood.check(data)) == text
    monkeypatch.setattr("tood.app.plan.memory.time_step", lambda *_: 0.5)  # it varies
    wishes = {"dry_run": True, "epochs": 1, "images_per_step": 4}
    plans = {str(tood.train(x, **wishes)) for x in (photos, str(photos), "~/photos")}
    assert len(plans) == 1
    converted = tood.convert(photos, output="~/converted")
    assert Path(converted.folder) == tmp_path / "converted"
    assert (tmp_path / "converted" / "ledger.json").is_file() and not os.path.exists("~")
    for wrong in (5, None, [photos, None]):
        with pytest.raises(UserError, match="it must be a path"):
            tood.check(wrong)


def test_a_threshold_that_is_none():
    for wrong in ("high", "30", "-0.1", "nan"):
        message = app_error("predict", "nothing", "a.jpg", "--score-threshold", wrong)
        assert f'is {wrong}; it must be a number from 0 to 1, "from-report", "guaran' in message
    with pytest.raises(UserError, match="--score-threshold is 30"):
        tood.explain("nothing", "a.jpg", (1, 2, 3, 4), score_threshold=30)


@pytest.mark.parametrize("name", cli.EXAMPLES)
def test_a_command_without_arguments_shows_an_example(name, capsys):
    """The example is a command line that the parser takes."""
    parser = cli.make_parser(name)
    example = shlex.split(cli.EXAMPLES[name])
    parser.parse_intermixed_args(example)
    required = [a for a in parser._actions if a.required and a.nargs not in ("*", "?")]
    if not required:
        return  # a model or detections: the function says what is missing
    with pytest.raises(SystemExit) as error:
        cli.main([name])
    message = capsys.readouterr().err
    assert error.value.code == 2 and f"tood {name} needs " in message
    assert f"for example: tood {name} {cli.EXAMPLES[name]};" in message
    for action in required:
        assert str(action.option_strings[0] if action.option_strings else action.metavar) in message


def test_the_overview_fits_a_terminal(capsys):
    assert cli.main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
