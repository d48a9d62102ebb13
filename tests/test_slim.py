"""Small copies of checkpoints, as in notebooks/checkpoints."""
import pytest
import torch
from conftest import command_line, refused, run_of

import macaw
from baselines import smac
from helpers.run import load


def slim(*arguments):
    return command_line(*arguments, program="notebooks/slim.py")


def acts(run, D, adapted=True):
    return run.learner.policies(D, adapted)(D.obs[:, :5]).detach()


def test_a_small_copy_acts_alike(tmp_path):
    run = run_of(method=smac.SMAC, folder=tmp_path)
    run.save()
    original, small = tmp_path / "checkpoint.pt", tmp_path / "small.pt"
    assert slim(original, small).returncode == 0
    assert small.stat().st_size < 0.6 * original.stat().st_size
    D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))
    assert torch.allclose(acts(run, D), acts(load(smac.SMAC, small), D), atol=1e-2)


@pytest.mark.parametrize("latent, adapts", [(8, True), (3, True), (1, False)])
def test_the_largest_directions_of_transforms_are_kept(latent, adapts, tmp_path):
    """Without adaptation nothing changes; with it nothing does while they suffice."""
    run = run_of(latent=8, folder=tmp_path)
    for transform in (*run.learner.policy.transforms, *run.learner.value.transforms):
        transform.M.data *= torch.tensor([4.0, 3.0] + 6 * [1e-3])           # two large directions
    run.save()
    small = tmp_path / "small.pt"
    assert slim(tmp_path / "checkpoint.pt", small, "--latent", latent).returncode == 0
    D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))
    copy = load(macaw.MACAW, small)
    for adapted, alike in ((False, True), (True, adapts)):
        gap = (acts(copy, D, adapted) - acts(run, D, adapted)).abs().max()
        assert gap < 0.01 if alike else gap > 0.05


def test_bad_input_is_refused_and_nothing_written_over(tmp_path):
    run_of(method=smac.SMAC, folder=tmp_path).save()
    file = tmp_path / "checkpoint.pt"
    before = file.read_bytes()
    for line in ((file, file), ("README.md", tmp_path / "x.pt"),
                 (file, tmp_path / "x.pt", "--latent", 4)):             # SMAC has no transforms
        refused(slim(*line))
    assert file.read_bytes() == before and not (tmp_path / "x.pt").exists()
