"""All programs on a GPU, where there is one."""
import numpy as np
import pytest
import torch
from conftest import command_line
from test_baselines import METHOD_OF, small

import macaw
from helpers.run import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("variant", ["focal", "pearl", "smac"])
def test_a_run_goes_on_from_its_checkpoint_and_acts_alike_on_a_cpu(variant, tmp_path):
    whole, method = small(variant, device="cuda"), METHOD_OF[variant]
    whole.folder = tmp_path
    method.train(whole, until=3)
    whole.save()
    part = load(method, tmp_path / "checkpoint.pt", "cuda", resume=True)
    there = load(method, tmp_path / "checkpoint.pt", device="cpu")
    for a, b in zip(macaw.meta_test(there, 1), macaw.meta_test(whole, 1)):
        assert np.allclose(a, b, atol=0.5)
    for run in whole, part:
        method.train(run, until=4)
    for a, b in zip(whole.learner.parameters(), part.learner.parameters(), strict=True):
        assert a.is_cuda and torch.allclose(a, b, atol=1e-3)    # sums on a GPU have no order


def test_programs_run(tmp_path):
    run = tmp_path / "run"
    for line in (
            ("macaw.py", "--env", "point_goal", "--steps", 20, "--out", run),
            ("macaw.py", "--evaluate", run / "checkpoint.pt"),
            ("experiments/online.py", "online", "--checkpoint", run / "checkpoint.pt", "--steps",
             1000, "--out", tmp_path / "online"),
            ("collect.py", "--env", "point_goal", "--steps", 2000, "--keep", 1000, "--out",
             tmp_path / "x.npz"),
            ("experiments/bench.py", "--seconds", 0.1, "--json", tmp_path / "bench.json")):
        result = command_line(*line[1:], "--device", "cuda", program=line[0])
        assert result.returncode == 0, result.stderr
