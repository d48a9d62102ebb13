"""Collection and its agents: each test is named after the claim that it would refute."""
import copy

import numpy as np
import pytest
import torch
from conftest import command_line, data_file, refused

import collect
import envs
from helpers import command, data

TINY = dict(env="point_goal", tasks="2,3", steps=120, keep=80, random_steps=50, width=8, batch=8)


def config_of(**changes):
    return collect.settings(**{**TINY, **changes})


def collected(steps, **changes):
    """A collection of toy agents after so many steps."""
    collection = collect.Collection(config_of(**changes))
    for _ in range(steps):
        collection.step()
    return collection


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Nets as small as here lose more time with two than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------- kills and checkpoints
@pytest.mark.parametrize("kind", [{}, dict(shared=True, updates=1.5), dict(independent=True)])
def test_a_killed_collection_resumes_exactly(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SAVE_EVERY", 50)                  # in the midst of an episode
    given = dict(TINY, out=str(tmp_path / "a.npz"), **kind)
    whole = collected(120, out=given["out"], **kind)
    collect.export(whole, tmp_path / "whole.npz")
    step = collect.Collection.step

    def die(self):
        if self.steps == 110:
            raise KeyboardInterrupt
        step(self)
    with monkeypatch.context() as killing:
        killing.setattr(collect.Collection, "step", die)
        with pytest.raises(KeyboardInterrupt):
            collect.main(given)
    collect.main(given)
    a, b = (data.read(tmp_path / name, "point_goal") for name in ("a.npz", "whole.npz"))
    for name in a[0]:
        np.testing.assert_array_equal(a[0][name], b[0][name])
    assert a[1] == b[1] and sorted(path.name for path in tmp_path.iterdir()) == [
        "a.npz", "whole.npz"]


@pytest.mark.parametrize("family", envs.FAMILIES)
def test_a_collection_goes_on_in_the_midst_of_an_episode(family, tmp_path):
    config = collect.Config(env=family, tasks="0,1", steps=40, random_steps=40, width=8)
    whole, again = collect.Collection(config), collect.Collection(config)
    for _ in range(25):
        whole.step()
    whole.save(tmp_path / "unfinished")
    again.load(tmp_path / "unfinished")
    for _ in range(2):
        assert torch.equal(again.obs, whole.obs) and again.episodes == whole.episodes
        again.step()
        whole.step()


def test_a_collection_goes_on_only_as_what_it_is(tmp_path):
    out, unfinished = tmp_path / "x.npz", tmp_path / "x.npz.unfinished"
    collected(50, out=str(out)).save(unfinished)
    good, state = unfinished.read_bytes(), command.load_tensors(unfinished)
    line = ["--env", "point_goal", "--tasks", "2,3", "--width", 8, "--batch", 8, "--random-steps",
            50, "--out", out, "--keep", 40]

    def refuses(*more):
        before = unfinished.read_bytes()
        refused(command_line(*line, *more, program="collect.py"), "unfinished")
        assert list(tmp_path.iterdir()) == [unfinished] and unfinished.read_bytes() == before
    refuses("--steps", 40)
    refuses("--steps", 120, "--lr", 0.1)
    for content in (b"hello", good[:3000]):
        unfinished.write_bytes(content)
        refuses("--steps", 120)
    for name in state:
        torch.save({**state, name: None}, unfinished)
        refuses("--steps", 120)
    unfinished.write_bytes(good)
    assert command_line(*line, "--steps", 120, program="collect.py").returncode == 0
    assert list(tmp_path.iterdir()) == [out]


# ------------------------------------------------------------------------------------------ agents
def test_agents_part_only_as_far_as_their_tasks_make_them():
    agents = collect.Collection(config_of(tasks="2,3,4"))
    tasks = envs.FAMILIES["point_goal"].tasks
    agents.envs[1] = envs.make("point_goal", tasks[2])                  # the first one's task
    agents.envs[1].reset(seed=agents.episodes[1][0][2])
    for _ in range(120):
        agents.step()
    first, twin, other = agents.replay["obs"]
    torch.testing.assert_close(first, twin)
    noise = agents.config.random_steps + 1                      # until then nobody has learned
    assert torch.equal(first[:noise], other[:noise]) and not torch.equal(first, other)
    rewards = agents.replay["reward"]
    assert not torch.isclose(rewards[0, :noise], rewards[2, :noise]).any()


def test_independent_agents_share_no_random_number():
    def agent(seed):
        start = collect.Collection(config_of(independent=True, seed=seed)).agents.parameters()
        assert all(not torch.isclose(p[0], p[i]).any() for p in start if p.dim() == 2
                   for i in range(1, len(p)))                       # critics' twins differ, too
        agents = collected(60, independent=True, seed=seed)
        seeds = [episode[2] for episodes in agents.episodes for episode in episodes]
        assert len(set(seeds)) == len(seeds)
        a, b = agents.replay["action"][:, :60]
        assert not torch.isclose(a, b).any()
        return seeds, a
    (seeds, a), (others, b) = agent(0), agent(1)
    assert not set(seeds) & set(others) and not torch.isclose(a, b).any()


@pytest.mark.parametrize("updates, expected", [(1.0, 100), (2.5, 250), (0.3, 30)])
def test_updates_an_environment_step(updates, expected):
    collection, done = collect.Collection(config_of(random_steps=10, updates=updates)), []
    collection.agents.update = lambda *batch: done.append(collection.steps)
    for _ in range(110):
        collection.step()
    assert len(done) == expected and min(done) > 10
    assert max(np.bincount(done)) == np.ceil(updates)                   # spread over the steps


def test_a_shared_agent_gets_its_task_and_acts_in_each_on_its_own():
    agents, seen = collect.Collection(config_of(tasks="2,3,4", shared=True)), []
    agents.agents.actor.net.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for _ in range(100):
        agents.step()
    act, update = seen[-3], seen[-1]
    assert act.shape == (1, 3, 2 + 3) and update.shape == (1, 3 * 8, 2 + 3)
    assert torch.equal(act[0, :, 2:], torch.eye(3))
    assert torch.equal(update[0, :, 2:], torch.eye(3).repeat_interleave(8, 0))
    torch.testing.assert_close(act[0, :, :2], agents.replay["obs"][:, 99].float())
    x = torch.randn(3, 8, 2 + 2)
    q = agents.agents.critics(x.repeat(2, 1, 1)).view(2, 3, 8)
    for task, one_hot in enumerate(torch.eye(3)):
        inputs = torch.cat([x[task], one_hot.expand(8, 3)], -1).expand(2, -1, -1)
        torch.testing.assert_close(q[:, task], agents.agents.critics.net(inputs)[..., 0])
    first, other, _ = agents.replay["action"]
    assert not torch.isclose(first[:50], other[:50]).all(-1).any()      # noise of its own
    assert agents.replay["obs"].shape[-1] == 2                          # the data have no task


def test_agents_do_not_touch_each_other():
    """Another agent's data change nothing in this one's update."""
    def weights(scale):
        torch.manual_seed(0)
        agents, draw = collect.Agents(2, 4, 2, config_of()), torch.randn
        obs, action, reward, next_obs = draw(2, 16, 4), draw(2, 16, 2), draw(2, 16), draw(2, 16, 4)
        reward[0] *= scale
        for _ in range(3):
            agents.update(obs, action, reward, next_obs, torch.zeros(2, 16), draw(2, 2, 16, 2))
        return [p.unflatten(0, (-1, 2)) for net in (agents.actor, agents.critics, agents.targets)
                for p in net.parameters()]                              # (nets, N, ...)
    for a, b in zip(weights(1.0), weights(50.0)):
        assert torch.equal(a[:, 1], b[:, 1]) and not torch.equal(a[:, 0], b[:, 0])


def test_sac_update_equals_the_formulas_for_one_agent():
    torch.manual_seed(0)
    agents, losses = collect.Agents(2, 4, 2, config_of(lr=0.0, alpha=0.3)), []
    for p in agents.targets.parameters():
        p.data += 0.1                                               # targets that differ
    targets = copy.deepcopy(agents.targets)
    obs, next_obs, noise = torch.randn(2, 16, 4), torch.randn(2, 16, 4), torch.randn(2, 2, 16, 2)
    action, reward = torch.rand(2, 16, 2), torch.randn(2, 16)
    terminated = (torch.rand(2, 16) < 0.3).float()
    agents.step = lambda which, loss: losses.append(loss)
    agents.update(obs, action, reward, next_obs, terminated, noise)

    def act(obs, noise):
        mean, log_std = agents.actor(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        policy = torch.distributions.TransformedDistribution(
            normal, torch.distributions.TanhTransform(cache_size=1))
        a = torch.tanh(mean + normal.stddev * noise)
        return a, policy.log_prob(a).sum(-1)

    def twins(critics, obs, action):
        x = torch.cat([obs, action], -1)
        y = critics(torch.cat([x, x]))[..., 0]
        return y[:2], y[2:]
    next_action, log_prob = act(next_obs, noise[0])
    value = torch.minimum(*twins(targets, next_obs, next_action)) - 0.3 * log_prob
    target = (reward + 0.9 * (1 - terminated) * value).detach()
    critic = sum((q - target).square().mean(-1).sum() for q in twins(agents.critics, obs, action))
    new_action, log_prob = act(obs, noise[1])
    actor = 0.3 * log_prob - torch.minimum(*twins(agents.critics, obs, new_action))
    temperature = -(agents.log_alpha * (log_prob.detach() - 2).mean(-1)).sum()
    for ours, formula in zip(losses, (critic, actor.mean(-1).sum(), temperature), strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- files
def test_collection_overwrites_nothing_and_names_that_begin_alike_do_not_meet(tmp_path):
    """Once `x.unfinished` was deleted as its own checkpoint, and run.1 and run.2 shared one."""
    names = ["run.1", "run.2", "x.unfinished"]
    for name in names:
        line = ["--env", "point_goal", "--tasks", "0,2", "--steps", 60, "--keep", 40, "--width", 8,
                "--random-steps", 60, "--out", tmp_path / name]
        assert command_line(*line, program="collect.py").returncode == 0
    before = (tmp_path / name).read_bytes()
    refused(command_line(*line, program="collect.py"), "exists")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / name).read_bytes() == before
    data.read(tmp_path / name, "point_goal")


@pytest.mark.parametrize("given, words", [
    (dict(join="x.npz", seed=0), "no use of"),
    (dict(keep=39), "40 or more"), (dict(steps=39), "40 or more"),
    (dict(shared=True, independent=True), "contradict"), (dict(tasks="2,99"), "99")])
def test_settings_that_contradict_each_other_are_refused(given, words, tmp_path):
    with pytest.raises(command.BadInput, match=words):
        collect.main({**TINY, "out": str(tmp_path / "a.npz"), **given})
    assert not list(tmp_path.iterdir())


def test_a_collection_that_diverges_writes_no_file(tmp_path, monkeypatch):
    def diverges(word):
        with pytest.raises(command.Diverged, match=word):
            collect.main(dict(TINY, out=str(tmp_path / "a.npz")))
        assert not list(tmp_path.iterdir())
    with monkeypatch.context() as changed:
        changed.setattr(collect.Collection, "learn", lambda self: next(
            self.agents.actor.parameters()).data.fill_(np.nan))
        diverges("action")
    for word, outcome in (("observation", (np.full(2, 1e5), 0.0, False, False, {})),
                          ("reward", (np.zeros(2), 1e7, False, False, {}))):
        monkeypatch.setattr(envs.PointGoal, "step", lambda *_, outcome=outcome: outcome)
        diverges(word)


def test_episodes_are_kept_evenly_over_a_life():
    assert np.flatnonzero(collect.evenly([2] * 12, keep=6)).tolist() == [1, 5, 9]
    assert collect.evenly([3, 1, 4, 1, 5], keep=14) == [True] * 5
    random = np.random.default_rng(0)
    lengths = random.integers(1, 200, 300)
    lives = np.cumsum(lengths)[collect.evenly(lengths, keep=3000)] / lengths.sum()
    np.testing.assert_allclose(lives, np.linspace(0, 1, len(lives)), atol=0.1)
    assert lengths[collect.evenly(lengths, keep=3000)].sum() == pytest.approx(3000, abs=200)


def test_joined_files_keep_the_best_agent_of_each_task(tmp_path):
    data_file(tmp_path / "a.npz", [4, 5, 6], [False] * 3, [1, 2, 2], seed=1,
              behavior_final={1: -5.0, 2: -9.0, 3: 9.0}, collector={1: "a", 2: "a", 3: "a"})
    data_file(tmp_path / "b.npz", [7, 8], [False] * 2, [2, 3], seed=2,
              behavior_final={2: -3.0, 3: -1.0}, collector={2: "b"})
    x, meta = collect.join([tmp_path / "a.npz", tmp_path / "b.npz"], "point_goal", keep=100)
    assert x["episode_task"].tolist() == [1, 2, 3]          # of the third a.npz has no episode
    assert x["episode_length"].tolist() == [4, 7, 8]
    assert meta["collector"] == {"1": "a", "2": "b"}        # need not name all
    assert meta["behavior_final"] == {"1": -5.0, "2": -3.0, "3": -1.0}
    a, b = (data.read(tmp_path / name, "point_goal")[0] for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(x["rewards"], np.r_[a["rewards"][:4], b["rewards"]])
    np.testing.assert_array_equal(x["observations"],
                                  np.r_[a["observations"][:5], b["observations"]])
