"""Online fine-tuning, and the files of the other experiments."""
import json

import numpy as np
import pytest
import torch
from conftest import POINT, command_line, refused, run_of

import macaw
from baselines import focal
from baselines.lived import Lived, draw, take
from experiments import online as experiments
from helpers import data
from helpers.run import Run, environments_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint that adapts a little."""
    out = tmp_path_factory.mktemp("trained") / "run"
    result = command_line("--env", "point_goal", "--steps", 60, "--eval-every", 60,
                          "--final-draws", 2, "--out", out)
    assert result.returncode == 0, result.stderr
    return out / "checkpoint.pt"


def lived_of(episodes, horizon, batch=4):
    """What two tasks of point_goal lived, nothing yet; an offline batch of each; and the run."""
    run = run_of()
    D, = run.buffers.sample([2, 7], [batch], torch.Generator().manual_seed(0))
    return Lived(2, episodes, horizon, *run_sizes(run)), D, run


def run_sizes(run):
    return run.buffers.obs_dim, run.buffers.act_dim


@pytest.mark.parametrize("td_lambda", [0.0, 0.95, 1.0])
def test_targets_equal_a_loop_over_each_episode(td_lambda):
    """Episodes of several lengths; one terminates, the others end by time."""
    torch.manual_seed(0)
    gamma, horizon, lengths = 0.9, 6, [[6, 3], [2, 6]]
    lived, _, run = lived_of(episodes=3, horizon=horizon)
    lived.obs.normal_()
    lived.reward_seen.normal_()
    lived.length[:, :2] = torch.tensor(lengths)
    lived.terminated[0, 1, 2] = 1

    def V(obs):
        return obs.sum(-1)
    target = lived.td_lambda(V, run.buffers, gamma, td_lambda).view(2, 2, horizon)
    for i in range(2):
        for e in range(2):
            obs, reward = lived.obs[i, e], run.buffers.scale_reward(lived.reward_seen[i, e])
            R = V(obs)[lengths[i][e]] * (1 - lived.terminated[i, e, lengths[i][e] - 1])
            for t in reversed(range(lengths[i][e])):
                last = t == lengths[i][e] - 1
                R = reward[t] + gamma * (R if last else (1 - td_lambda) * V(obs)[t + 1]
                                         + td_lambda * R)
                assert torch.isclose(target[i, e, t], R, atol=1e-5)


def test_only_what_was_lived_is_learned_from():
    lived, D, run = lived_of(episodes=2, horizon=4, batch=16)
    lived.obs.fill_(torch.nan)
    lived.obs[:, 0, :4] = 0.0
    lived.length[:, 0] = torch.tensor([3, 2])
    everything, there = lived.after(D, run.buffers)
    assert there[:, :16].all() and there[:, 16:].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert torch.equal(everything.obs[:, :16], D.obs)
    batch = take(everything, draw(there, 1000))
    assert batch.obs.isfinite().all() and batch.next_obs.isfinite().all()
    assert batch.mc_return.isnan().any()                # online steps have none: nobody may read it
    fresh = experiments.Macaw(run, D, "adapted")
    fresh.update(lived)
    assert all(p.isfinite().all() for p in fresh.policy.parameters())


def test_starts_are_what_they_say():
    run = run_of(inner_lr=0.1)
    D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))
    obs = D.obs[:, :5]
    start = {name: experiments.nets(run.learner, D, name)[0](obs) for name in experiments.STARTS}
    assert torch.equal(start["adapted"], run.learner.policies(D)(obs))
    assert torch.equal(start["unadapted"], run.learner.policies(D, adapted=False)(obs))
    assert torch.equal(start["adapted"], start["authors"])
    assert not torch.allclose(start["adapted"], start["unadapted"], atol=1e-3)
    assert not torch.allclose(start["random"], start["unadapted"], atol=1e-1)


def test_each_start_goes_on_by_its_recipe():
    """The authors' start by theirs, the others by ours, whose steps are larger on cheetah_vel."""
    for env, lr in (("point_goal", 3e-4), ("cheetah_vel", 6e-4)):
        run = run_of(env=env, width=8, latent=4)
        D, = run.buffers.sample([2, 7], [64], torch.Generator().manual_seed(0))
        for start in experiments.STARTS:
            learner = experiments.Macaw(run, D, start)
            expected = (1e-5, 1.0) if start == "authors" else (lr, 0.3)
            for adam in (learner.policy_adam, learner.value_adam):
                assert adam.param_groups[0]["lr"] == expected[0]
            assert learner.settings.temperature == expected[1]


def test_an_episode_is_kept_as_it_was_lived():
    lived, D, run = lived_of(episodes=1, horizon=40)
    policy = experiments.Macaw(run, D, "adapted").policy
    with environments_of("point_goal", [2, 7]) as environments:
        noise = 0.5 * torch.randn(2, 40, 2)
        lived.play(policy, environments, [5, 5], run.buffers, noise=noise)
        obs, _ = environments[1].reset(seed=5)
        for t in range(40):
            assert torch.allclose(lived.obs[1, 0, t], run.buffers.standardise(obs))
            with torch.no_grad():
                mean = policy(lived.obs[:, :1, t])[1, 0]
            assert torch.allclose(lived.action[1, 0, t], (mean + noise[1, t]).clamp(-1, 1),
                                  atol=1e-6)
            obs, reward, *_ = environments[1].step(lived.action[1, 0, t].numpy())
            assert torch.isclose(lived.reward_seen[1, 0, t],
                                 run.buffers.standardise_reward(torch.tensor(reward)).float())
    assert lived.length.tolist() == [[40], [40]]


def test_pearl_goes_on_with_all_that_was_lived():
    """Its nets change, and its code: it reads the new transitions, too."""
    torch.manual_seed(0)
    config = focal.Config(env="point_goal", **{**focal.PRESETS["point_goal"],
                                               **focal.VARIANTS["pearl"], "variant": "pearl"})
    run = Run(focal.FOCAL, config)
    D, = run.buffers.sample([2, 7], [16], torch.Generator().manual_seed(0))
    lived, learner = Lived(2, 1, 40, *run_sizes(run)), experiments.Context(run, D, "adapted")
    assert torch.equal(learner.z, run.learner.encode(D))
    before = [p.clone() for p in run.learner.actor.parameters()]
    with environments_of("point_goal", [2, 7]) as environments:
        lived.play(learner.policy, environments, [5, 5], run.buffers, noise=torch.randn(2, 40, 2))
    learner.update(lived)
    assert all(not torch.equal(a, b) for a, b in zip(before, run.learner.actor.parameters()))
    assert not torch.allclose(learner.z, run.learner.encode(D), atol=1e-4)


def test_fine_tuning_learns_and_is_not_done_twice(trained, tmp_path):
    line = ["online", "--checkpoint", trained, "--steps", 1000, "--out", tmp_path / "online"]
    result = command_line(*line, program="experiments.py")
    assert result.returncode == 0, result.stderr
    file = tmp_path / "online" / "summary.json"
    summary = json.loads(file.read_text())
    assert summary["online_steps"] == [0, 1000]
    for name in ("online", "unadapted", "random", "authors"):
        assert len(summary[f"{name}_returns"]) == 2
    assert np.shape(summary["random_tasks"]) == (4, 2)
    assert summary["random_returns"][1] > summary["random_returns"][0] + 5      # it learns
    before = file.read_bytes()
    again = command_line(*line, program="experiments.py")                       # all is there
    assert again.returncode == 0 and file.read_bytes() == before
    refused(command_line(*line[:4], 2000, *line[5:], program="experiments.py"), "give another")
    for steps in (-1, 1500):
        refused(command_line(*line[:4], steps, *line[5:], program="experiments.py"), "choose from")
    other = tmp_path / "other.pt"                               # another checkpoint, the same seed
    state = torch.load(trained, weights_only=True)
    torch.save(dict(state, seconds=0.0), other)
    refused(command_line("online", "--checkpoint", other, *line[3:], program="experiments.py"),
            "another checkpoint")
    file.write_text(file.read_text()[:50])
    refused(command_line(*line, program="experiments.py"), "cannot be read")


def test_episodes_that_do_not_divide_the_marks_are_lived_whole(monkeypatch):
    """Of 40 steps each: after 50 and 60 steps two are over, after 100 three."""
    run, lived = run_of(), []
    D, = run.buffers.sample(run.buffers.test, [16], torch.Generator().manual_seed(0))
    learner = experiments.Macaw(run, D, "adapted")
    monkeypatch.setattr(learner, "recipe", experiments.Recipe(burn_in=0))
    monkeypatch.setattr(learner, "update", lambda so_far: lived.append(so_far.episodes))
    curve = experiments.fine_tune(run, learner, D, (0, 50, 60, 100))
    assert lived == [1, 2, 3] and curve.shape == (4, 4)
    assert np.array_equal(curve[1], curve[2])


def test_thirds_divide_lives(tmp_path):
    result = command_line("thirds", "--env", "point_goal", "--out", f"{tmp_path}/",
                          program="experiments.py")
    assert result.returncode == 0, result.stderr
    whole, _ = data.read(POINT, "point_goal")
    refused(command_line("thirds", "--env", "point_goal", "--out", tmp_path,
                         program="experiments.py"), "exists already")
    parts = [data.read(tmp_path / f"{name}.npz", "point_goal")[0]
             for name in ("first", "middle", "last")]
    for i in range(20):
        number = [part["episode_number"][part["episode_task"] == i] for part in parts]
        assert np.array_equal(np.concatenate(number),
                              whole["episode_number"][whole["episode_task"] == i])
        lived = [part["episode_length"][part["episode_task"] == i].sum() for part in parts]
        assert max(lived) - min(lived) <= 40
    assert sum(len(part["rewards"]) for part in parts) == len(whole["rewards"])


def test_few_keeps_the_test_tasks(tmp_path):
    result = command_line("few", "--env", "point_goal", "--tasks", 3, "--out", f"{tmp_path}/",
                          program="experiments.py")
    assert result.returncode == 0, result.stderr
    x, _ = data.read(tmp_path / "few3.npz", "point_goal")
    ids = set(x["episode_task"].tolist())
    assert ids >= {2, 7, 12, 17} and len(ids) == 7
    run = run_of(data=str(tmp_path / "few3.npz"), tasks_per_step=3)
    assert len(run.buffers.train) == 3 and run.buffers.test == [2, 7, 12, 17]


@pytest.mark.parametrize("line, word", [
    (["online", "--checkpoint", "no.pt", "--out", "x"], "not there"),
    (["online", "--out", "x"], "--checkpoint"),
    (["online", "--checkpoint", "README.md", "--out", "x"], "damaged"),
    (["few", "--tasks", "0", "--out", "x"], "from 1"),
    (["few", "--tasks", "99", "--out", "x"], "from 1"),
    (["few", "--env", "cheetah", "--out", "x"], "invalid choice"),
    (["thirds", "--out", "nowhere/"], "cannot be written"),
    (["dance"], "invalid choice"),
    ([], "required"),
])
def test_bad_input_is_one_sentence(line, word):
    refused(command_line(*line, program="experiments.py"), word)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(command_line("thirds", "--out", "nowhere", program="experiments.py"), "torchrun")


@pytest.mark.parametrize("method, settings", [
    ("macaw", macaw.VARIANTS["mt_awr"]), ("focal", dict(monte_carlo=True))])
def test_what_cannot_go_on_online_is_refused(method, settings, tmp_path):
    """Monte Carlo critics learn from returns, which what was lived online does not have: NaN."""
    of, *_ = experiments.METHODS[method]
    config = of.config(**{**dict(env="point_goal"), **of.presets["point_goal"], **settings})
    Run(of, config, folder=tmp_path).save()
    refused(command_line("online", "--method", method, "--checkpoint", tmp_path / "checkpoint.pt",
                         "--out", tmp_path / "x", program="experiments.py"), "Monte Carlo")
