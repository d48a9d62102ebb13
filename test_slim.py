"""Small copies of checkpoints, as in notebooks/checkpoints."""
import subprocess
import sys

import pytest
import torch

import focal
import smac
from conftest import HERE, refused
from helpers.run import Run, load


@pytest.mark.parametrize("method, module", [(focal.FOCAL, focal), (smac.SMAC, smac)])
def test_a_small_copy_acts_alike(method, module, tmp_path):
    config = module.Config(env="point_goal", **module.PRESETS["point_goal"])
    run = Run(method, config, folder=tmp_path)
    run.save()
    small = tmp_path / "small.pt"
    line = [sys.executable, "-m", "helpers.slim", tmp_path / "checkpoint.pt", small]
    result = subprocess.run(line, cwd=HERE, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert small.stat().st_size < 0.6 * (tmp_path / "checkpoint.pt").stat().st_size
    copy = load(method, small)
    D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (x.learner.policies(D)(D.obs[:, :5]) for x in (run, copy))
    assert torch.allclose(ours, theirs, atol=1e-2)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    result = subprocess.run([sys.executable, "-m", "helpers.slim", "README.md", tmp_path / "x.pt"],
                            cwd=HERE, text=True, capture_output=True)
    refused(result, "no checkpoint")


def test_a_checkpoint_is_not_written_over_and_its_weights_fit(tmp_path):
    run = Run(focal.FOCAL, focal.Config(env="point_goal"), folder=tmp_path)
    run.save()
    file = tmp_path / "checkpoint.pt"
    before, line = file.read_bytes(), [sys.executable, "-m", "helpers.slim", file]
    refused(subprocess.run([*line, file], cwd=HERE, text=True, capture_output=True), "another name")
    assert file.read_bytes() == before
    run.learner.actor[0].weight.data[0, 0] = 1e6            # beyond half precision
    run.save()
    result = subprocess.run([*line, tmp_path / "x.pt"], cwd=HERE, text=True, capture_output=True)
    refused(result, "half precision")
