"""The demo, and the tools that draw the predictions of a checkpoint."""

import json

import analyze_alignment
import numpy as np
import pytest
import torch
import visualize_assignment
from PIL import Image

import demo
from tood.modeling.assigners import ASSIGNER_REGISTRY, Assigner, Assignment
from tood.utils.errors import UserError


@pytest.mark.slow
def test_analyze_alignment_of_two_models(trained, tmp_path, capsys):
    config, weights = str(trained / "config.yaml"), str(trained / "model_final.pth")
    content = torch.load(weights, weights_only=False)
    content["model"]["head.reg_pred.bias"] += 1.0  # larger boxes
    torch.save(content, tmp_path / "other.pth")
    models = ["--model", "one", config, weights]
    models += ["--model", "other", config, f"{tmp_path}/other.pth"]
    out = tmp_path / "alignment"
    argv = [*models, "--output", str(out), "--num-images", "2"]
    analyze_alignment.main(analyze_alignment.parse_args(argv))
    rows = json.loads((out / "alignment.json").read_text())
    one, other = (rows[name]["all"] for name in ("one", "other"))
    assert one["objects"] == other["objects"] == 21 and one["IoU"] != other["IoU"]
    printed = capsys.readouterr().out
    assert all(f"{found['IoU']:.3f}" in printed for found in (one, other))
    with pytest.raises(UserError, match="table.md already exists"):
        analyze_alignment.main(analyze_alignment.parse_args(argv))
    twice = analyze_alignment.parse_args([*models[:4], *models[:4], "--output", str(out)])
    with pytest.raises(UserError, match="Two models have one name"):
        analyze_alignment.main(twice)
    assert "## other" in (out / "table.md").read_text()
    for name in ("maps_0.png", "maps_1.png", "scatter.png", "histograms.png"):
        assert np.asarray(Image.open(out / name)).std() > 10
    assert not (out / "maps_2.png").exists()


@pytest.mark.slow
def test_visualize_assignment(trained, tmp_path, capsys):
    drawing, weights = tmp_path / "a.png", str(trained / "model_final.pth")
    argv = ["--overwrite", "--config-file", str(trained / "config.yaml"), "--output", str(drawing)]
    main, parse = visualize_assignment.main, visualize_assignment.parse_args
    main(parse([*argv, "--num-images", "2", "--weights", weights]))
    printed = capsys.readouterr().out
    assert "00000.jpg" in printed and "TAL: largest t" in printed
    width, height = Image.open(drawing).size
    assert width == 2 * 360 + 4 and height == 2 * (360 + 22) + 4
    main(parse([*argv, "--image", "00003.jpg", "--weights", weights, weights]))
    assert capsys.readouterr().out.count("model_final.pth: 00003.jpg") == 2
    with pytest.raises(UserError, match="There is no image 7.jpg"):
        main(parse([*argv, "--image", "7.jpg", "--weights", weights]))
    main(parse([*argv, "--weights", weights, "MODEL.TOOD.ASSIGNER", "NoneAtAll"]))
    printed = capsys.readouterr().out
    assert "NoneAtAll: largest t" in printed and "ATSS (left) and NoneAtAll (right)" in printed
    assert "| none" in printed


@ASSIGNER_REGISTRY.register()
class NoneAtAll(Assigner):
    """An assigner of a user's, without positives."""

    def __init__(self, cfg):
        pass

    def __call__(self, predictions, gt):
        return Assignment.background(predictions.anchors)


@pytest.mark.slow
def test_the_demo_is_a_door_to_predict(trained, photos, tmp_path, capsys):
    out, weights = tmp_path / "out", ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    flags = ["--score-thresh", "0.5", "--output", str(out), "--json", str(out / "a.json")]
    demo.main([*flags, "--input", str(photos / "00001.jpg"), *weights])
    printed = capsys.readouterr().out
    assert "1 images, " in printed and "of at least 0.5, " in printed
    assert printed.endswith(f"They are in {out}\n") and (out / "a.json").exists()
    config = ["--config-file", str(trained / "config.yaml")]
    demo.main([*config, "--overwrite", *flags, "--input", str(photos), *weights])
    assert "3 images, " in capsys.readouterr().out
    with pytest.raises(UserError, match="No checkpoint given"):
        demo.main([*config, "--input", str(photos)])
    with pytest.raises(UserError, match="flags go before KEY VALUE"):
        demo.main([*weights, "--output", str(out)])
