import json

import pytest
import torch
from presets import PRESETS
from train_step import main


@pytest.mark.slow
def test_the_script_runs_on_a_cpu(tmp_path, capsys):
    threads = torch.get_num_threads()
    main(["--device", "cpu", "--quick", "--out", str(tmp_path / "out.json")])
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(PRESETS) < set(result["training"])
    assert all(case["losses_finite"] for case in result["training"].values())
    assert all(case["frames_per_s"] > 0 for case in result["inference"].values())
    assert "inference bfloat16" in capsys.readouterr().out
