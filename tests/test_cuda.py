"""All programs on a GPU, where there is one."""
import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import HERE, command_line

import macaw
from baselines import focal, smac
from helpers.run import Run, evaluate, load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
METHODS = {"macaw": macaw.MACAW, "focal": focal.FOCAL, "pearl": focal.FOCAL, "smac": smac.SMAC}


@pytest.mark.parametrize("variant", METHODS)
def test_a_run_goes_on_from_its_checkpoint_and_is_evaluated_anywhere(variant, tmp_path):
    """SMAC is stopped in its online phase."""
    method = METHODS[variant]
    settings = {**method.presets["point_goal"], **method.variants[variant], "steps": 120}
    if variant == "smac":
        settings |= dict(offline_steps=60, rounds=2)
    whole = Run(method, method.config(env="point_goal", variant=variant, device="cuda",
                                      **settings), folder=tmp_path)
    method.train(whole, 80)
    whole.save()
    part = load(method, tmp_path / "checkpoint.pt", resume=True)
    for run in whole, part:
        method.train(run, 120)
        assert all(p.is_cuda and p.isfinite().all() for p in run.learner.parameters())
    for a, b in zip(whole.learner.parameters(), part.learner.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3)                  # sums on a GPU have no order
    whole.save()
    there = load(method, tmp_path / "checkpoint.pt", device="cpu")
    assert np.allclose(evaluate(there, 2), evaluate(whole, 2), atol=0.5)


def test_a_checkpoint_of_a_cpu_acts_alike_on_a_gpu():
    actions = []
    for device in ("cpu", "cuda"):
        run = load(macaw.MACAW, HERE / "notebooks/checkpoints/macaw.pt", device=device)
        D, = run.buffers.sample([23], [256], torch.Generator().manual_seed(0))
        actions.append(run.learner.policies(D, True)(D.obs).cpu())
    assert torch.allclose(*actions, atol=1e-3)


def test_programs_run(tmp_path):
    """The command lines of training, testing, fine-tuning, collecting and measuring."""
    run, cuda = tmp_path / "run", ["--device", "cuda"]
    for program, *line in (
            ("macaw.py", "--env", "point_goal", "--steps", 100, "--out", run),
            ("macaw.py", "--evaluate", run / "checkpoint.pt"),
            ("experiments.py", "online", "--checkpoint", run / "checkpoint.pt", "--steps", 1000,
             "--out", tmp_path / "online"),
            ("collect.py", "--env", "point_goal", "--steps", 2000, "--keep", 1000, "--out",
             tmp_path / "x.npz"),
            ("bench.py", "--seconds", 0.1, "--json", tmp_path / "bench.json")):
        result = command_line(*line, *cuda, program=program)
        assert result.returncode == 0, result.stderr
    online = json.loads((tmp_path / "online/summary.json").read_text())["online_returns"]
    assert np.isfinite(online).all()
    config = dataclasses.asdict(load(macaw.MACAW, run / "checkpoint.pt").config)
    assert config["device"] == "cuda"
