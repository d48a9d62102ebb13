"""Small copies of checkpoints, as in notebooks/checkpoints."""
import functools

import pytest
import torch
from conftest import command_line, refused

import macaw
from baselines import focal, smac
from helpers.run import Run, load

slim = functools.partial(command_line, program="helpers/slim.py")


@pytest.mark.parametrize("method, module", [(focal.FOCAL, focal), (smac.SMAC, smac)])
def test_a_small_copy_acts_alike(method, module, tmp_path):
    config = module.Config(env="point_goal", **module.PRESETS["point_goal"])
    run = Run(method, config, folder=tmp_path)
    run.save()
    small = tmp_path / "small.pt"
    result = slim(tmp_path / "checkpoint.pt", small)
    assert result.returncode == 0, result.stderr
    assert small.stat().st_size < 0.6 * (tmp_path / "checkpoint.pt").stat().st_size
    copy = load(method, small)
    D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (x.learner.policies(D)(D.obs[:, :5]) for x in (run, copy))
    assert torch.allclose(ours, theirs, atol=1e-2)


def test_of_transforms_a_few_directions_are_kept(tmp_path):
    """All of them in another basis: nothing changes. The largest: what the net is before adaptation
    stays, and what it is adapted to nearly."""
    config = macaw.Config(env="point_goal", **{**macaw.PRESETS["point_goal"], "latent": 8})
    run = Run(macaw.MACAW, config, folder=tmp_path)
    for transform in (*run.learner.policy.transforms, *run.learner.value.transforms):
        transform.M.data *= torch.tensor([4.0, 3.0] + 6 * [1e-3])           # two large directions
    run.save()
    D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))

    def actions(learner):
        return torch.stack([learner.policies(D, adapted)(D.obs[:, :5]).detach()
                            for adapted in (False, True)])
    expected, gaps = actions(run.learner), {}
    assert (expected[0] - expected[1]).abs().max() > 0.05                   # adaptation does a lot
    for latent in (8, 3, 1):
        small = tmp_path / f"{latent}.pt"
        result = slim(tmp_path / "checkpoint.pt", small, "--latent", latent)
        assert result.returncode == 0, result.stderr
        copy = load(macaw.MACAW, small)
        assert copy.config.latent == latent
        gaps[latent] = (actions(copy.learner) - expected).abs().amax((1, 2, 3))
    assert gaps[8].max() < 0.01 and gaps[3].max() < 0.01 and gaps[1][0] < 0.01 < 0.05 < gaps[1][1]


def test_what_has_no_transforms_keeps_no_directions(tmp_path):
    Run(focal.FOCAL, focal.Config(env="point_goal"), folder=tmp_path).save()
    refused(slim(tmp_path / "checkpoint.pt", tmp_path / "x.pt", "--latent", 4), "--latent")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    torch.save(dict(config={}, learner=dict(w="x"), optimizer={}), tmp_path / "text.pt")
    for file in ("README.md", tmp_path / "text.pt"):
        refused(slim(file, tmp_path / "x.pt"), "no checkpoint")


def test_a_checkpoint_is_not_written_over_and_its_weights_fit(tmp_path):
    run = Run(focal.FOCAL, focal.Config(env="point_goal"), folder=tmp_path)
    run.save()
    file = tmp_path / "checkpoint.pt"
    before = file.read_bytes()
    refused(slim(file, file), "exists already")
    assert file.read_bytes() == before
    run.learner.actor[0].weight.data[0, 0] = 1e6            # beyond half precision
    run.save()
    refused(slim(file, tmp_path / "x.pt"), "half precision")
