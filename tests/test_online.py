"""Online fine-tuning, the files of the other experiments, and the benchmark."""
import json

import numpy as np
import pytest
import torch
from conftest import POINT, command_line, config_of, refused, run_of

import envs
import macaw
from baselines import focal
from baselines.replay import ReplayBuffer
from experiments import bench, online
from helpers import data
from helpers.run import Run

PROGRAM = "experiments/online.py"


def two_tasks(run, episodes, horizon, batch=16):
    """An empty replay buffer of two tasks of point_goal, and an offline batch of each."""
    D, = run.buffers.sample([2, 7], [batch], torch.Generator().manual_seed(0))
    return ReplayBuffer(2, episodes, horizon, run.buffers.obs_dim, run.buffers.act_dim), D


@pytest.mark.parametrize("td_lambda", [0.0, 0.95])
def test_targets_equal_a_loop_over_each_episode(td_lambda):
    """Episodes of several lengths; one terminates, the others end by time."""
    run, gamma, horizon, lengths = run_of(), 0.9, 6, [[6, 3], [2, 6]]
    replay, _ = two_tasks(run, episodes=3, horizon=horizon)
    replay.obs.normal_()
    replay.reward_seen.normal_()
    replay.length[:, :2] = torch.tensor(lengths)
    replay.terminated[0, 1, 2] = 1

    def V(obs):
        return obs.sum(-1)
    target = replay.td_lambda(V, run.buffers, gamma, td_lambda).view(2, 2, horizon)
    for i, e in ((0, 0), (0, 1), (1, 0), (1, 1)):
        T, values = lengths[i][e], V(replay.obs[i, e])
        reward = run.buffers.scale_reward(replay.reward_seen[i, e])
        R = following = values[T] * (1 - replay.terminated[i, e, T - 1])
        for t in reversed(range(T)):
            R = reward[t] + gamma * following
            assert torch.isclose(target[i, e, t], R, atol=1e-5)
            following = (1 - td_lambda) * values[t] + td_lambda * R


def test_only_real_transitions_are_learned_from():
    """Padding is NaN here, and so are the Monte Carlo returns of online transitions."""
    run = run_of()
    replay, D = two_tasks(run, episodes=2, horizon=4)
    replay.obs.fill_(torch.nan)
    replay.obs[:, 0, :4] = 0.0
    replay.length[:, 0] = torch.tensor([3, 2])
    everything, mask = replay.after(D, run.buffers)
    assert mask[:, :16].all() and mask[:, 16:].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    batch = online.draw(everything, mask, 1000)
    assert batch.next_obs.isfinite().all() and batch.mc_return.isnan().any()
    tuner = online.FineTuneMacaw(run, D, "adapted")
    tuner.update(replay)
    assert all(p.isfinite().all() for p in tuner.policy.parameters())


def test_starts_are_what_they_say():
    run = run_of(inner_lr=0.1)
    _, D = two_tasks(run, 1, 1)
    obs, start = D.obs[:, :5], {}
    for name in online.STARTS:
        start[name] = online.starting_nets(run.learner, D, name)[0](obs)
    assert torch.equal(start["adapted"], run.learner.policies(D)(obs))
    assert torch.equal(start["unadapted"], run.learner.policies(D, adapted=False)(obs))
    assert torch.equal(start["adapted"], start["authors"])
    assert not torch.allclose(start["random"], start["unadapted"], atol=1e-1)


def test_an_episode_is_kept_as_it_was_collected():
    run = run_of()
    replay, D = two_tasks(run, episodes=1, horizon=50)                  # of which 40 are used
    policy, noise = run.learner.policies(D), 0.5 * torch.randn(2, 50, 2)
    with envs.environments_of("point_goal", [2, 7]) as environments:
        replay.collect(policy, environments, [5, 5], run.buffers, noise=noise)
        obs, _ = environments[1].reset(seed=5)
        for t in range(40):
            assert torch.allclose(replay.obs[1, 0, t], run.buffers.standardise(obs))
            mean = policy(replay.obs[:, :1, t])[1, 0].detach()
            assert torch.allclose(replay.action[1, 0, t], (mean + noise[1, t]).clamp(-1, 1),
                                  atol=1e-6)
            obs, reward, *_ = environments[1].step(replay.action[1, 0, t].numpy())
            assert torch.isclose(replay.reward_seen[1, 0, t],
                                 run.buffers.standardise_reward(torch.tensor(reward)).float())
    assert replay.length.tolist() == [[40], [40]]


def test_pearl_goes_on_with_new_transitions():
    """Its nets change, and its code: it reads the new transitions, too."""
    run = Run(focal.FOCAL, focal.Config(env="point_goal", variant="pearl", width=16,
                                        **focal.VARIANTS["pearl"]))
    replay, D = two_tasks(run, episodes=1, horizon=40)
    tuner = online.FineTuneContext(run, D, "adapted")
    assert torch.equal(tuner.z, run.learner.encode(D))
    before = [p.clone() for p in run.learner.actor.parameters()]
    with envs.environments_of("point_goal", [2, 7]) as environments:
        replay.collect(tuner.policy, environments, [5, 5], run.buffers)
    tuner.update(replay)
    assert all(not torch.equal(a, b) for a, b in zip(before, run.learner.actor.parameters()))
    assert not torch.allclose(tuner.z, run.learner.encode(D), atol=1e-4)


def test_fine_tuning_learns_and_writes_over_nothing(tmp_path):
    run = Run(macaw.MACAW, config_of(width=16, latent=4), folder=tmp_path)
    run.save()
    line = ["online", "--checkpoint", tmp_path / "checkpoint.pt", "--steps", 1000, "--out",
            tmp_path / "online"]
    result = command_line(*line, program=PROGRAM)
    assert result.returncode == 0, result.stderr
    file = tmp_path / "online/summary.json"
    summary, before = json.loads(file.read_text()), file.read_bytes()
    for name in ("online", "unadapted", "random", "authors"):
        assert len(summary[f"{name}_returns"]) == len(summary["online_steps"]) == 2
    assert np.shape(summary["random_tasks"]) == (4, 2)
    assert summary["random_returns"][1] > summary["random_returns"][0] + 5      # it learns
    refused(command_line(*line, program=PROGRAM))
    assert file.read_bytes() == before


def test_episodes_that_do_not_divide_the_marks_are_whole(monkeypatch):
    """Of 40 steps each: after 50 and 60 steps two are over, after 100 three."""
    run, updates = run_of(), []
    D, = run.buffers.sample(run.buffers.test, [16], torch.Generator().manual_seed(0))
    tuner = online.FineTuneMacaw(run, D, "adapted")
    monkeypatch.setattr(online, "EVAL_EPISODES", 2)
    monkeypatch.setattr(tuner, "recipe", online.Recipe(burn_in=0))
    monkeypatch.setattr(tuner, "update", lambda replay: updates.append(replay.episodes))
    curve = online.fine_tune(run, tuner, D, (0, 50, 60, 100))
    assert updates == [1, 2, 3] and np.array_equal(curve[1], curve[2])


def test_thirds_divide_each_agents_training(tmp_path):
    line = "thirds", "--env", "point_goal", "--out", tmp_path
    assert command_line(*line, program=PROGRAM).returncode == 0
    whole, _ = data.read(POINT, "point_goal")
    parts = [data.read(tmp_path / f"{name}.npz", "point_goal")[0]
             for name in ("first", "middle", "last")]
    for i in range(20):
        number = [part["episode_number"][part["episode_task"] == i] for part in parts]
        assert np.array_equal(np.concatenate(number),
                              whole["episode_number"][whole["episode_task"] == i])
        steps = [part["episode_length"][part["episode_task"] == i].sum() for part in parts]
        assert max(steps) - min(steps) <= 40
    refused(command_line(*line, program=PROGRAM))                       # they exist already


def test_few_keeps_the_test_tasks(tmp_path):
    result = command_line("few", "--env", "point_goal", "--tasks", 3, "--out", tmp_path,
                          program=PROGRAM)
    assert result.returncode == 0, result.stderr
    x, _ = data.read(tmp_path / "few3.npz", "point_goal")
    ids = set(x["episode_task"].tolist())
    assert ids >= {2, 7, 12, 17} and len(ids) == 7


@pytest.mark.parametrize("line", [
    "online --checkpoint no.pt --out x", "online --checkpoint README.md --out x",
    "few --tasks 99 --out x", "thirds --out nowhere"])
def test_bad_input_is_refused(line):
    refused(command_line(*line.split(), program=PROGRAM))


@pytest.mark.parametrize("method, config", [
    (macaw.MACAW, config_of(variant="mt_awr")),
    (focal.FOCAL, config_of(method=focal.FOCAL, monte_carlo=True))])
def test_what_cannot_go_on_online_is_refused(method, config, tmp_path):
    Run(method, config, folder=tmp_path).save()
    refused(command_line("online", "--method", "macaw" if method is macaw.MACAW else "focal",
                         "--checkpoint", tmp_path / "checkpoint.pt", "--out", tmp_path / "x",
                         program=PROGRAM))


def test_the_benchmark_measures_what_the_docs_quote(tmp_path, monkeypatch):
    def once(seconds, *functions):
        for function in functions:
            function()
        return [1.0] * len(functions)
    monkeypatch.setattr(bench, "milliseconds", once)
    monkeypatch.setattr(bench, "RELEASED", macaw.Config(width=8, latent=2))
    bench.main(dict(json=f"{tmp_path}/x.json"))
    found = json.loads((tmp_path / "x.json").read_text())
    assert found.keys() >= {"ratio", "ratio_all_tasks", "walker_params_meta_step_ms",
                            "macaw_adaptation_ms", "agent_updates_per_second"}
    assert np.isfinite(list(found.values())).all()
