"""The runner of experiments, on runs of four iterations."""

import json
from pathlib import Path

import pytest
import run_experiments
import yaml
from conftest import ROOT
from experiment_table import Experiment, markdown_table

import train_net
from tood import model_zoo
from tood.utils.errors import UserError


def args_for(command, output, *flags):
    argv = command()
    start = argv.index("OUTPUT_DIR")
    opts = [*argv[6:start], *argv[start + 2 :]]
    flags = ["--config-file", argv[1], "--output", str(output), *flags]
    return run_experiments.parse_args([*flags, *argv[2:6], *opts])


@pytest.fixture
def calls(monkeypatch, fresh_loggers):
    """Commands, run here instead of in separate processes."""
    done = []

    def call(command, folder, jobs):
        done.append(command)
        train_net.cli(command[2:])

    monkeypatch.setattr(run_experiments, "call", call)
    return done


@pytest.mark.slow
def test_runs_are_done_once_and_go_on(command, tmp_path, capsys, calls):
    options = {"MODEL.TOOD.ASSIGNER": "atss"}
    few = [{"name": "T-head + ATSS", "options": options, "paper": {"AP": 41.1}}]
    others = [{"name": "not this", "options": {"NO.SUCH": 1}, "paper": {}}]
    experiments = {"groups": {"few": few, "others": others}}
    listed = tmp_path / "experiments.yaml"
    listed.write_text(yaml.safe_dump(experiments))
    flags = ("--experiments", str(listed), "--groups", "few", "--seeds", "3", "--jobs", "2")
    args = args_for(command, tmp_path / "runs", *flags)
    run_experiments.main(args)
    table = (tmp_path / "runs" / "table.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| T-head + ATSS"]
    assert "| 41.1 |" in rows[2] and table in capsys.readouterr().out
    assert (tmp_path / "runs" / "table.png").stat().st_size > 1000
    folder = tmp_path / "runs" / "T_head_ATSS" / "seed3"
    result = json.loads((folder / "result.json").read_text())
    assert result["objects"] == 21 and result["minutes"] > 0
    config = (folder / "config.yaml").read_text()
    assert "SEED: 3" in config and "ASSIGNER: atss" in config

    # A second call reads what is there; without the result, it measures and does not train.
    assert ["--eval-only" in words for words in calls] == [False, True]
    run_experiments.main(args)
    assert len(calls) == 2
    (folder / "result.json").unlink()
    run_experiments.main(args)
    assert json.loads((folder / "result.json").read_text()) == result
    assert ["--eval-only" in words for words in calls] == [False, True, True]
    # Other options are another experiment.
    other = args_for(command, tmp_path / "runs", *flags)
    other.opts += ["SOLVER.BASE_LR", "0.1"]
    with pytest.raises(UserError, match="1 of 1 runs failed.*is of other options or data"):
        run_experiments.main(other)
    assert json.loads((folder / "result.json").read_text()) == result


def test_what_was_killed_behind_its_last_checkpoint_goes_on(command, tmp_path, monkeypatch):
    experiment = Experiment("a", {}, {})
    args = args_for(command, tmp_path / "runs", "--seeds", "1", "--groups", "table6")
    calls = []

    def stopped(words, folder, jobs):
        calls.append(words)
        raise UserError("killed")

    monkeypatch.setattr(run_experiments, "call", stopped)
    folder = f"{args.output}/a/seed1"
    for _ in range(2):
        with pytest.raises(UserError, match="killed"):
            run_experiments.run(experiment, 1, args)
        (Path(folder) / "model_final.pth").touch()  # written before the last evaluation
    assert all("--resume" in words for words in calls) and len(calls) == 2
    progress = run_experiments.read_json(f"{folder}/training.json")
    assert progress["seconds"] > 0 and not progress["finished"]


@pytest.mark.slow
def test_a_run_that_fails_is_named(command, tmp_path, monkeypatch, warm_python):
    monkeypatch.setattr("sys.executable", warm_python)
    listed = tmp_path / "experiments.yaml"
    listed.write_text("groups: {a: [{name: wrong, options: {NO.SUCH: 1}, paper: {}}]}")
    args = args_for(command, tmp_path / "runs", "--experiments", str(listed), "--seeds", "1")
    with pytest.raises(UserError, match=r"1 of 1 runs failed.*see .*wrong/seed1/commands.txt"):
        run_experiments.main(args)


TWICE = "{name: a, options: {}, paper: {}}, {name: a!, options: {}, paper: {}}"


@pytest.mark.parametrize(
    "text, says",
    [
        ("groups: [", "e.yaml needs 'groups'"),
        ("[]", "e.yaml needs 'groups'"),
        ("groups: {a: [{name: b}]}", "e.yaml needs 'groups'"),
        ("groups: {}", "has no experiments"),
        (f"groups: {{a: [{TWICE}]}}", "two experiments named 'a!'"),  # of one folder
        (None, "cannot be read"),
    ],
)
def test_files_that_list_no_experiments(tmp_path, text, says):
    if text is not None:
        (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        run_experiments.load_experiments(str(tmp_path / "e.yaml"))


def test_table_of_means_and_spreads():
    experiments = [Experiment("a", {}, {"AP": 40.0}), Experiment("b", {}, {})]
    results = {"a": [{"AP": 10.0, "PCC": None}, {"AP": 12.0, "PCC": 0.5}], "b": []}
    lines = markdown_table(experiments, results).splitlines()
    assert lines[2].startswith("| a | 2 | 11.0 ± 1.4 |  |  | 0.500 |")
    assert lines[2].endswith("| 40.0 |  |  |  |  |  |")
    assert lines[3].startswith("| b | 0 |  |  |")


CONFIGS = {
    "parallel + ATSS": "parallel_ATSS_R50_FPN_1x",
    "T-head + ATSS": "thead_ATSS_R50_FPN_1x",
    "parallel + TAL": "parallel_TAL_R50_FPN_1x",
    "T-head + TAL": None,
    "parallel + TAL + TAP (paper 18 epochs)": "parallel_TAL_TAP_R50_FPN_18e",
}


@pytest.mark.parametrize(
    "experiment", run_experiments.load_experiments(run_experiments.EXPERIMENTS)
)
def test_experiments_are_the_configs_of_the_paper(experiment):
    base = model_zoo.get_config("tood_R50_FPN_1x")
    base.merge_from_list([x for item in experiment.options.items() for x in item])
    parts = experiment.name.split()
    name = CONFIGS.get(experiment.name, f"tood_m{parts[-1]}_R50_FPN_1x")
    if parts[0] == "alpha":
        name = f"tood_alpha{float(parts[1])}_beta{parts[3]}_R50_FPN_1x"
    config = model_zoo.get_config(f"paper/{name}" if name else "tood_R50_FPN_1x")
    assert base.MODEL.TOOD == config.MODEL.TOOD
    comment = "" if name is None else (ROOT / "configs/paper" / f"{name}.yaml").read_text()
    if name and "AP" in experiment.paper:
        assert f"AP {experiment.paper['AP']} in the paper" in comment
