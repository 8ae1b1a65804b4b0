"""The notebook of the docs, executed with few images."""

import os

import pytest
from conftest import NO_NETWORK, ROOT, SMALL, needs_graphs

nbformat = pytest.importorskip("nbformat", reason="an extra")
nbclient = pytest.importorskip("nbclient", reason="an extra")
# A network of one level, whose norms can be folded: exporting takes time by level, layer and norm.
FEW = [
    *(*SMALL, "MODEL.RESNETS.NORM", "BN", "MODEL.TOOD.NUM_CONVS", "1"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.STEM_OUT_CHANNELS", "64"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.TOOD.IN_FEATURES", "['p4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[64]]"),
]
SMALLER = {  # a training of two steps of it
    "num_train=80, num_val=20": "num_train=8, num_val=4",
    "epochs=5": f"epochs=1, model='R18', options={FEW}",
}


@needs_graphs
@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, warm_python):
    pytest.importorskip("onnxruntime", reason="an extra")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # they would grow old
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for before, after in SMALLER.items():
        assert sum(before in cell.source for cell in code) == 1, before
        for cell in code:
            cell.source = cell.source.replace(before, after)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    monkeypatch.setattr("sys.executable", warm_python)  # of the kernel
    paths = os.pathsep.join([NO_NETWORK, str(ROOT / "projects" / "TOOD")])
    client.execute(env={**os.environ, "PYTHONPATH": paths})
    assert (tmp_path / "detector" / "report" / "report.html").is_file()
    assert (tmp_path / "detector.onnx").is_file()
    images = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(images) == 1  # of a result
