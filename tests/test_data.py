"""Data files, returns, batches, collection: each test is named after the claim it would refute."""
import contextlib
import copy
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from conftest import HERE, command_line, config_of, data_file, refused, run_of, step

import collect
import envs
import helpers.run
import macaw
from helpers import command, data
from helpers.data import Buffers
from helpers.run import load, summary

SIZES = dict(inner_batch=4, outer_batch=4, test_batch=4, tasks_per_step=1)

# ------------------------------------------------------------------------------------ data, returns

@pytest.mark.parametrize("path", sorted((HERE / "data").glob("*.npz")), ids=lambda p: p.stem)
def test_shipped_episodes_replay_from_their_seed_and_actions(path):
    family = re.sub("_(others.*|strangers)", "", path.stem)
    x, meta = data.read(path, family)
    assert path.stat().st_size <= 25e6
    tasks = envs.FAMILIES[family].tasks
    assert meta["tasks"] == {i: tasks[int(i)] for i in meta["tasks"]}
    assert len(meta["tasks"]) == len(tasks) or path.stem != family
    test = set(map(str, envs.FAMILIES[family].test))
    assert test <= set(meta["tasks"]) or test.isdisjoint(meta["tasks"])     # all, or for training
    length = x["episode_length"]
    ends = np.cumsum(length)
    random = np.random.default_rng(0)
    for episode in random.choice(len(length), 12, replace=False):
        env = envs.make(family, meta["tasks"][str(x["episode_task"][episode])])
        observed = [env.reset(seed=int(x["episode_seed"][episode]))[0]]
        span = slice(ends[episode] - length[episode], ends[episode])
        for t, action in enumerate(x["actions"][span].astype(np.float32)):
            obs, reward, terminated, truncated, _ = env.step(action)
            observed.append(obs)
            assert np.float32(reward) == x["rewards"][span][t]
            assert terminated == x["terminations"][span][t]
            assert truncated == x["truncations"][span][t]
        assert terminated or truncated
        first = ends[episode] - length[episode] + episode
        stored = x["observations"][first:first + length[episode] + 1]
        rounded = np.array(observed).astype(np.float32).astype(np.float16)
        np.testing.assert_array_equal(rounded, stored)


def test_returns_equal_the_brute_force_sum(tmp_path):
    """Truncation keeps its tail gamma^k V(s_end), termination does not."""
    lengths, terminated = [5, 1, 7, 3, 40, 4], [False, True, True, False, False, True]
    x = data_file(tmp_path / "x.npz", lengths, terminated, task=[1, 1, 1, 1, 1, 2])
    config = config_of(inner_batch=2, outer_batch=2, test_batch=2, gamma=0.9, tasks_per_step=1)
    held = Buffers(tmp_path / "x.npz", config)

    def V(obs):
        return obs.sum(-1) + 3.0
    everything = torch.arange(sum(lengths))[None]
    batch = held.transitions(everything)
    with_tail, without = macaw.returns(V, batch, True)[0], macaw.returns(V, batch, False)[0]
    std = {k: v.numpy().astype(np.float64) for k, v in held.stats.items()}
    k = 0
    for episode, (length, ended) in enumerate(zip(lengths, terminated)):
        last_obs = x["observations"][k + length + episode]
        tail = 0 if ended else ((last_obs - std["obs_mean"]) / std["obs_std"]).sum() + 3
        for t in range(length):
            rewards = x["rewards"][k + t:k + length] / std["return_scale"]
            total = sum(0.9 ** j * r for j, r in enumerate(rewards))
            assert without[k + t].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
            total += 0.9 ** (length - t) * tail
            assert with_tail[k + t].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
        k += length


def test_batches_are_disjoint_cover_the_life_and_are_of_the_right_task(point):
    point_rewards = point.action[:, 0] * 1e3                        # tells transitions apart
    generator = torch.Generator().manual_seed(0)
    inner, outer = point.sample([3, 11], [256, 200], generator)
    for k, task in enumerate((3, 11)):
        first, count = int(point.first[0, task]), int(point.count[0, task])
        mine = point_rewards[first:first + count]
        seen = []
        for batch in (inner, outer):
            for a, obs in zip(batch.action[k, :, 0] * 1e3, batch.obs[k]):
                places = (mine == a).nonzero().flatten().tolist()
                seen.append([p for p in places
                             if torch.equal(point.obs[point.here[first + p]], obs)])
        assert all(seen)                                            # all from this task's buffer
        places = [p[0] for p in seen]
        assert len(set(places)) == 456                              # none twice
        for half in (places[:256], places[256:]):                   # over the whole life
            assert np.histogram(half, bins=4, range=(0, count))[0].min() > 30


def test_a_batch_is_never_filled_up_with_other_tasks(tmp_path):
    data_file(tmp_path / "x.npz", [20, 20, 20], [False] * 3, task=[1, 2, 2])
    config = config_of(inner_batch=4, outer_batch=4, test_batch=4, tasks_per_step=1)
    held = Buffers(tmp_path / "x.npz", config)
    generator = torch.Generator().manual_seed(0)
    held.sample([2], [20, 20], generator)
    for task, sizes in ((2, [41]), (1, [11, 10]), (0, [1])):            # of task 0 there is none
        with pytest.raises(command.BadInput, match=f"task {task} .*batch of {sizes[0]}"):
            held.sample([task], sizes, generator)


def test_each_batch_comes_from_its_part_of_a_life(point):
    places = copy.copy(point)
    places.mc_return = torch.arange(len(point.action)).float()      # tells where a draw is from
    tasks, generator = [4, 5, 9], torch.Generator().manual_seed(0)
    for start in (0.0, 0.6, 0.99):                  # of the last hundredth there is not enough
        batches = places.sample(tasks, [64, 32], generator, (0.0, start))
        D_tr, D_ts = ((batch.mc_return - point.first[0, tasks, None]) / point.count[0, tasks, None]
                      for batch in batches)
        assert (D_tr.amin(1) < 0.03).all() and (D_tr.amax(1) > 0.97).all()
        begin = torch.minimum(torch.tensor(start), 1 - 64 / point.count[0, tasks])
        assert ((D_ts.amin(1) - begin).abs() < 0.03).all() and (D_ts.amax(1) > 0.95).all()
        assert not set(batches[0].mc_return.flatten().tolist()) & set(
            batches[1].mc_return.flatten().tolist())


def test_meta_steps_judge_on_late_data():
    """D^ts, and it alone, comes from lives after their share `late`."""
    run, taken = run_of(late=0.5), []
    run.buffers.mc_return = torch.arange(len(run.buffers.action)).float() * 1e-6    # marks places
    sample = run.sample
    run.sample = lambda *args, **kwargs: taken.append(sample(*args, **kwargs)) or taken[-1]
    step(run)
    count = run.buffers.count.max()                                 # the same for all its tasks
    assert (run.buffers.first.flatten() % count == 0).all()
    D_tr, D_ts = (batch.mc_return * 1e6 % count / count for batch in taken[0])
    assert D_tr.min() < 0.05 and 0.49 < D_ts.min() < 0.55 and D_ts.max() > 0.95


def test_statistics_come_from_training_tasks_alone(tmp_path):
    lengths, task = [20] * 40, np.repeat([0, 1, 2, 7], 10)
    states = np.random.default_rng(0).uniform(-1, 1, (21 * 40, 2))
    config = config_of(**SIZES)
    data_file(tmp_path / "a.npz", lengths, [False] * 40, task, observations=states)
    changed = np.where(np.repeat(np.isin(task, [2, 7]), 21)[:, None], 3.0, states)
    data_file(tmp_path / "b.npz", lengths, [False] * 40, task, observations=changed)
    a, b = (Buffers(tmp_path / name, config) for name in ("a.npz", "b.npz"))
    assert a.train == [0, 1] and a.test == [2, 7]
    for name in a.stats:
        assert torch.equal(a.stats[name], b.stats[name])
    held = Buffers(tmp_path / "b.npz", dataclasses.replace(config, holdout="1"))
    assert held.train == [0] and held.test == [1]                   # test tasks stay out


# ------------------------------------------------------------------------------- whose transitions

def groups_of_agents(tmp_path, lenders, **changes):
    """Buffers of a data file whose actions are 0.1, with lenders by name: the second group of
    agents acts 0.2, the third one 0.3 and knows no task 1; a training batch's actions tell."""
    for name, action, ids in (("own", 0.1, [0, 1, 2]), ("second", 0.2, [0, 1, 2]),
                              ("third", 0.3, [0])):
        n = 5 if name == "third" else 10                                    # episodes a task
        x = data_file(tmp_path / "x.npz", [20] * n * len(ids), [False] * n * len(ids),
                      np.repeat(ids, n))
        _, meta = data.read(tmp_path / "x.npz", "point_goal")
        data.write(tmp_path / f"{name}.npz",
                      dict(x, actions=np.full_like(x["actions"], action)), meta)
    return Buffers(tmp_path / "own.npz", config_of(**{**SIZES, **changes}),
                   lenders=[tmp_path / f"{name}.npz" for name in lenders])


def whose(batch):
    return {round(float(a), 1) for a in batch.action.flatten()}


def test_what_never_varies_is_no_signal(tmp_path):
    """float16 rounds 2.71 in the file; divided by no deviation that would be far from the world."""
    states = np.random.default_rng(0).uniform(-1, 1, (41, 2))
    states[:, 1] = 2.71
    data_file(tmp_path / "x.npz", [20, 20], [False] * 2, task=[1, 2],
              observations=np.r_[states, states[:1]].astype(np.float16))
    held = Buffers(tmp_path / "x.npz", config_of(**SIZES))
    assert held.observe(np.array([[0.0, 2.71]]))[0, 0, 1].abs() < 0.01
    assert held.stats["obs_std"][0] < 0.7


def test_lenders_have_no_comma_in_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DATA", tmp_path / "my, thesis")
    assert data.shipped_lenders("point_goal") == ""
    (tmp_path / "my, thesis").mkdir()
    (tmp_path / "my, thesis/point_goal_others.npz").write_bytes(b"")
    with pytest.raises(command.BadInput, match="comma"):
        data.shipped_lenders("point_goal")


def test_what_is_adapted_to_comes_from_lenders_and_the_rest_from_the_data_file(tmp_path):
    held, generator = groups_of_agents(tmp_path, ["own", "second", "third"]), torch.Generator()
    assert held.train == [0, 1] and held.test == [2]
    seen = {task: [held.sample([task], [4, 4], generator) for _ in range(60)] for task in (0, 1)}
    assert set().union(*(whose(D_tr) for D_tr, _ in seen[0])) == {0.1, 0.2, 0.3}
    assert set().union(*(whose(D_tr) for D_tr, _ in seen[1])) == {0.1, 0.2}     # no third agent
    for D_tr, D_ts in seen[0] + seen[1]:
        assert len(whose(D_tr)) == 1 and whose(D_ts) == {0.1}                   # one agent a batch
    both = [held.sample([0, 1], [4, 4], generator)[0] for _ in range(40)]       # each task its own
    assert any(whose(D.part(0, 2)) != whose(D.part(1, 2)) for D in both)
    assert whose(held.sample([0, 1, 2], [4], generator)[0]) == {0.1}            # in testing, too
    alone = groups_of_agents(tmp_path, ["second"])
    assert whose(alone.sample([0, 1], [4, 4], generator)[0]) == {0.2}


def test_lenders_change_no_statistic_and_no_other_number(tmp_path):
    crossed, plain = (groups_of_agents(tmp_path, lenders) for lenders in (["third", "second"], []))
    assert all(torch.equal(crossed.stats[name], plain.stats[name]) for name in plain.stats)
    assert crossed.behavior_mean == plain.behavior_mean
    same = groups_of_agents(tmp_path, ["../" + tmp_path.name + "/own"])     # by another name
    assert len(same.paths) == 1
    for a, b in zip(*(x.sample([0, 1], [4, 4], torch.Generator().manual_seed(1))
                      for x in (same, plain))):
        assert all(map(torch.equal, a, b))


def test_integers_of_any_kind_will_do(tmp_path):
    x = data_file(tmp_path / "a.npz", [40, 3] * 20, [False] * 40, np.repeat([0, 2], 20))
    _, meta = data.read(tmp_path / "a.npz", "point_goal")
    data.write(tmp_path / "b.npz", dict(x, episode_length=x["episode_length"].astype(np.uint8),
                                           episode_task=x["episode_task"].astype(np.uint64)), meta)
    a, b = (Buffers(tmp_path / name, config_of(**SIZES)) for name in ("a.npz", "b.npz"))
    assert torch.equal(a.last, b.last) and torch.equal(a.first, b.first)


def test_a_file_tells_of_its_own_tasks_alone(tmp_path):
    """So a file that was cut with `part` hides no task of the others that it is joined with."""
    told = dict(behavior_final={1: 1.0, 2: 2.0, 3: 3.0}, collector={1: "a", 2: "a", 3: "a"})
    x = data_file(tmp_path / "full.npz", [4, 5, 6], [False] * 3, [1, 2, 3], **told)
    _, meta = data.read(tmp_path / "full.npz", "point_goal")
    few = data.part(x, np.array([True, False, True]))
    data.write(tmp_path / "few.npz", few, meta)
    with np.load(tmp_path / "few.npz") as file:
        written = json.loads(str(file["metadata"]))
    assert written == data.read(tmp_path / "few.npz", "point_goal")[1]
    assert all(set(written[name]) == {"1", "3"} for name in data.BY_TASK)
    assert set(meta["tasks"]) == {"1", "2", "3"}                            # whose caller has it
    np.savez(tmp_path / "untrue.npz", metadata=np.array(json.dumps(meta)), **few)
    for first in ("few.npz", "untrue.npz"):
        x, joined = data.join([tmp_path / first, tmp_path / "full.npz"], "point_goal", keep=100)
        assert x["episode_task"].tolist() == [1, 2, 3]
        assert all(set(joined[name]) == {"1", "2", "3"} for name in data.BY_TASK)


@pytest.mark.parametrize("collector", [None, "me", {"0": "me"}])
def test_a_file_of_ones_own_need_not_tell_of_collectors_and_may_tell_more(collector, tmp_path):
    x = data_file(tmp_path / "a.npz", [40, 3] * 20, [False] * 40, np.repeat([0, 2], 20))
    _, meta = data.read(tmp_path / "a.npz", "point_goal")
    for name, thing in (("tasks", {}), ("behavior_final", "good")):
        meta[name] |= {"banana": thing, "77": thing}
    meta["collector"] = collector
    if not collector:
        del meta["collector"]
    np.savez(tmp_path / "b.npz", metadata=np.array(json.dumps(meta)), **x)
    assert set(Buffers(tmp_path / "b.npz", config_of(**SIZES)).behavior_final) == {0, 2}
    joined, told = data.join([tmp_path / "b.npz"], "point_goal", keep=10_000)
    assert len(joined["rewards"]) == 20 * 43 and set(told["tasks"]) == {"0", "2"}
    assert told["collector"] == ({"0": "me"} if collector == {"0": "me"} else {})


@pytest.mark.parametrize("name, change, words", [
    ("episode_number", lambda x: np.r_[1, 0, x[2:]], "sorted by episode_number"),
    ("episode_number", lambda x: np.r_[0, 0, x[2:]], "twice"),
    ("rewards", lambda x: x.astype(np.longdouble), "'rewards'"),
    ("observations", lambda x: x.astype(">f4"), "'observations'"),
    ("rewards", lambda x: x * 1e9, "'rewards' outside -1e[+]06 to 1e[+]06; leave out"),
    ("rewards", lambda x: -np.abs(x) * 1e300, "'rewards' outside"),
    ("observations", lambda x: x * np.float32(1e9), "'observations' outside"),
    ("episode_seed", lambda x: x.astype(np.uint64) + np.uint64(2 ** 63), "'episode_seed' outside")])
def test_numbers_that_would_do_harm_are_refused(name, change, words, tmp_path):
    x = data_file(tmp_path / "x.npz", [4, 5, 6, 7], [False] * 4, [1, 1, 1, 2])
    _, meta = data.read(tmp_path / "x.npz", "point_goal")
    data.write(tmp_path / "x.npz", dict(x, **{name: change(x[name])}), meta)
    with pytest.raises(command.BadInput, match=words) as problem:
        data.read(tmp_path / "x.npz", "point_goal")
    assert ". " not in str(problem.value) and "\n" not in str(problem.value)


def test_half_precision_and_lives_that_begin_anew_are_no_harm(tmp_path):
    x = data_file(tmp_path / "x.npz", [4, 5, 6, 7], [False] * 4, [1, 1, 2, 2])
    _, meta = data.read(tmp_path / "x.npz", "point_goal")
    half = {name: x[name].astype(np.float16) for name in ("observations", "actions", "rewards")}
    number = np.array([3, 7, 0, 1], np.uint8)
    data.write(tmp_path / "x.npz", dict(x, **half, episode_number=number), meta)
    assert data.read(tmp_path / "x.npz", "point_goal")[0]["episode_number"].tolist() == [
        3, 7, 0, 1]


def test_lenders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(command.BadInput, match="no file of --adapt-data has task 1"):
        groups_of_agents(tmp_path, ["third"])
    with pytest.raises(command.BadInput, match="third.npz has 100 transitions of task 0"):
        groups_of_agents(tmp_path, ["second", "third"], inner_batch=60)
    groups_of_agents(tmp_path, ["second", "third"], outer_batch=60)     # which they do not lend
    with pytest.raises(command.BadInput, match="third.npz has none of the training tasks"):
        groups_of_agents(tmp_path, ["own", "third"], holdout="0")
    with pytest.raises(command.BadInput, match="task 2 is a test task"):
        groups_of_agents(tmp_path, [], holdout="2")


def test_without_flags_all_agents_that_we_ship_lend_and_with_data_its_own(tmp_path, monkeypatch):
    for env, groups in (("cheetah_vel", ["", "_others", "_others2"]), ("ant_dir", ["", "_others"])):
        files = data.shipped_lenders(env).split(",")
        assert [file.rpartition("/")[2] for file in files] == [     # no strangers
            f"{env}{group}.npz" for group in groups]
    assert data.shipped_lenders("walker_params") == ""
    files = data.shipped_lenders("cheetah_vel").split(",")
    used = []
    monkeypatch.setattr(helpers.run, "Run", lambda method, config: used.append(config) or 1 / 0)
    for given, lenders in ((dict(), ",".join(files)), (dict(data="mine.npz"), ""),
                           (dict(adapt_data="a.npz"), "a.npz")):
        with pytest.raises(ZeroDivisionError):
            helpers.run.go(macaw.MACAW, config_of("cheetah_vel", **given), given)
        assert used.pop().adapt_data == lenders


def test_testing_adapts_to_the_data_file_and_needs_no_lender(tmp_path):
    """A run goes on only with the lenders that it began with; their absence hinders no test."""
    groups_of_agents(tmp_path, [])
    sizes = [x for name, n in SIZES.items() for x in ("--" + name.replace("_", "-"), n)]
    out, lender = tmp_path / "run", tmp_path / "second.npz"
    line = ["--env", "point_goal", "--data", tmp_path / "own.npz", "--steps", 2, *sizes,
            "--final-draws", 1, "--adapt-data", lender, "--out", out]
    assert command_line(*line).returncode == 0
    lender.rename(tmp_path / "moved.npz")
    run = load(macaw.MACAW, out / "checkpoint.pt")
    assert whose(run.buffers.sample([2], [4], torch.Generator())[0]) == {0.1}
    judge = ["--evaluate", out / "checkpoint.pt", "--data", tmp_path / "moved.npz", "--out",
             tmp_path / "judged"]                                       # whose summary is kept
    assert command_line(*judge).returncode == 0
    kept = json.loads((tmp_path / "judged/summary.json").read_text())
    other = load(macaw.MACAW, out / "checkpoint.pt", data=str(tmp_path / "moved.npz"))
    assert whose(other.buffers.sample([2], [4], torch.Generator())[0]) == {0.2}
    assert kept == json.loads(json.dumps(summary(other)))
    refused(command_line(*judge), "taken")
    refused(command_line("--resume", "--out", out), "second.npz")
    moved = command_line("--resume", "--out", out, "--adapt-data", tmp_path / "moved.npz")
    assert moved.returncode == 0
    for others in (tmp_path / "own.npz", f"{tmp_path}/moved.npz,{tmp_path}/moved.npz"):
        refused(command_line("--resume", "--out", out, "--adapt-data", others), "other data")
    refused(command_line("--evaluate", out / "checkpoint.pt", "--adapt-data", lender),
            "--adapt-data")                                             # testing has no lenders


# ------------------------------------------------------------------------------------- collection

def collection(tmp_path, *flags, out="a.npz"):
    return command_line("--env", "point_goal", "--tasks", "2,3", "--steps", 500, "--keep", 400,
                        "--out", tmp_path / out, *flags, program="collect.py")


@pytest.mark.parametrize("kind", [{}, dict(shared=True, updates=1.5), dict(independent=True)])
def test_a_killed_collection_resumes_exactly(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SAVE_EVERY", 130)                 # in the midst of an episode
    config = collect.Config(**{**collect.PRESETS["point_goal"], **kind, **dict(
        env="point_goal", tasks="2,3", steps=500, keep=400, out=str(tmp_path / "a.npz"))})
    whole = collect.Collection(config)
    for _ in range(500):
        whole.step()
    whole.export(tmp_path / "whole.npz")

    def die(self):
        if self.steps == 300:
            raise KeyboardInterrupt
        step(self)
    step = collect.Collection.step
    monkeypatch.setattr(collect.Collection, "step", die)
    with pytest.raises(KeyboardInterrupt):
        collect.main(config, {})
    monkeypatch.setattr(collect.Collection, "step", step)
    collect.main(config, {})
    a, b = (data.read(tmp_path / name, "point_goal") for name in ("a.npz", "whole.npz"))
    for name in a[0]:
        np.testing.assert_array_equal(a[0][name], b[0][name])
    assert a[1] == b[1] and not (tmp_path / "a.unfinished").exists()


@pytest.mark.parametrize("family", envs.FAMILIES)
def test_a_collection_goes_on_in_the_midst_of_an_episode(family, tmp_path):
    config = collect.Config(env=family, tasks="0,1", steps=40, random_steps=40)
    lived, again = collect.Collection(config), collect.Collection(config)
    for _ in range(25):
        lived.step()
    lived.save(tmp_path / "lives")
    again.load(tmp_path / "lives")
    assert torch.equal(again.obs, lived.obs) and again.episodes == lived.episodes
    for lives in (lived, again):
        lives.step()
    assert torch.equal(again.obs, lived.obs) and again.episodes == lived.episodes


def test_agents_part_only_as_far_as_their_tasks_make_them():
    config = collect.Config(**{**collect.PRESETS["point_goal"], **dict(
        env="point_goal", tasks="2,3,4", steps=500)})
    lives = collect.Collection(config)
    tasks = envs.FAMILIES["point_goal"].tasks
    lives.envs[1] = envs.make("point_goal", tasks[2])                   # the first one's task
    lives.envs[1].reset(seed=lives.episodes[1][0][2])
    for _ in range(500):
        lives.step()
    first, twin, other = lives.replay["obs"]
    torch.testing.assert_close(first, twin)
    noise = config.random_steps + 1                             # until then nobody has learned
    assert torch.equal(first[:noise], other[:noise]) and not torch.equal(first, other)
    rewards = lives.replay["reward"]
    assert not torch.isclose(rewards[0, :noise], rewards[2, :noise]).any()


def test_independent_agents_share_no_random_number():
    def agent(tasks, seed):
        config = collect.Config(**{**collect.PRESETS["point_goal"], **dict(
            env="point_goal", tasks=tasks, steps=60, random_steps=40, independent=True,
            seed=seed)})
        lives = collect.Collection(config)
        first_weights = [p.clone() for p in lives.agents.parameters() if p.dim() == 2]
        for _ in range(60):
            lives.step()
        assert all(not torch.isclose(p[0], p[i]).any() for p in first_weights
                   for i in range(1, len(p)))                       # critics' twins differ, too
        seeds = [episode[2] for episodes in lives.episodes for episode in episodes]
        assert len(set(seeds)) == len(seeds)
        a, b = lives.replay["action"]
        assert not torch.isclose(a, b).any()
        return seeds, a
    (seeds, a), (others, b) = agent("2,3", 0), agent("2,3", 1)
    assert not set(seeds) & set(others) and not torch.isclose(a, b).any()


@pytest.mark.parametrize("updates, expected", [(1.0, 100), (0.5, 50), (2.5, 250), (0.3, 30)])
def test_updates_an_environment_step(updates, expected):
    lives = collect.Collection(collect.Config(
        env="point_goal", tasks="2", steps=110, random_steps=10, updates=updates))
    done = []
    lives.agents.update = lambda *batch: done.append(lives.steps)
    for _ in range(110):
        lives.step()
    assert len(done) == expected and min(done) > 10
    assert max(np.bincount(done)) == np.ceil(updates)                 # spread over the steps


def test_a_shared_agent_is_told_its_task_and_lives_its_own_lives():
    lives = collect.Collection(collect.Config(**{**collect.PRESETS["point_goal"], **dict(
        env="point_goal", tasks="2,3,4", steps=300, shared=True, batch=8)}))
    seen = []
    lives.agents.actor.net.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    for _ in range(300):
        lives.step()
    act, update = seen[-3], seen[-1]
    assert act.shape == (1, 3, 2 + 3) and update.shape == (1, 3 * 8, 2 + 3)
    assert torch.equal(act[0, :, 2:], torch.eye(3))
    assert torch.equal(update[0, :, 2:], torch.eye(3).repeat_interleave(8, 0))
    torch.testing.assert_close(act[0, :, :2], lives.replay["obs"][:, 299].float())
    x = torch.randn(3, 8, 2 + 2)
    q = lives.agents.critics(x.repeat(2, 1, 1)).view(2, 3, 8)
    for task, one_hot in enumerate(torch.eye(3)):
        told = torch.cat([x[task], one_hot.expand(8, 3)], -1).expand(2, -1, -1)
        torch.testing.assert_close(q[:, task], lives.agents.critics.net(told)[..., 0])
    first, other, _ = lives.replay["action"]
    assert not torch.isclose(first[:200], other[:200]).all(-1).any()    # noise of its own
    assert lives.replay["obs"].shape[-1] == 2                           # the data do not tell


def test_agents_do_not_touch_each_other():
    """Another agent's data change nothing in this one's update."""
    def weights(others):
        torch.manual_seed(0)
        config = collect.Config(width=8)
        agents = collect.Agents(3, 4, 2, config)
        random = torch.Generator().manual_seed(1)

        def draw(*shape):
            return torch.randn(shape, generator=random)
        obs, action, reward, next_obs = draw(3, 16, 4), draw(3, 16, 2), draw(3, 16), draw(3, 16, 4)
        reward[[0, 2]] *= others
        for _ in range(3):
            agents.update(obs, action, reward, next_obs, torch.zeros(3, 16), draw(2, 3, 16, 2))
        return agents
    one, other = weights(1.0), weights(50.0)
    for net, rows in (("actor", [1]), ("critics", [1, 4]), ("targets", [1, 4])):
        for a, b in zip(getattr(one, net).parameters(), getattr(other, net).parameters()):
            assert torch.equal(a[rows], b[rows]) and not torch.equal(a[0], b[0])


def test_sac_update_equals_the_formulas_for_one_agent():
    torch.manual_seed(0)
    config = collect.Config(width=8, lr=0.0, alpha=0.3, gamma=0.9, tau=0.5)
    agents = collect.Agents(2, 4, 2, config)
    with torch.no_grad():                                           # targets that differ
        for p in agents.targets.parameters():
            p.add_(0.1)
    obs, next_obs, noise = torch.randn(2, 16, 4), torch.randn(2, 16, 4), torch.randn(2, 2, 16, 2)
    action, reward = torch.rand(2, 16, 2), torch.randn(2, 16)
    terminated = (torch.rand(2, 16) < 0.3).float()
    losses = []
    agents.step = lambda which, loss: losses.append(loss)
    before = [p.clone() for p in agents.targets.parameters()]
    agents.update(obs, action, reward, next_obs, terminated, noise)

    def act(obs, noise):
        mean, log_std = agents.actor(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        policy = torch.distributions.TransformedDistribution(
            normal, torch.distributions.TanhTransform(cache_size=1))
        a = torch.tanh(mean + normal.stddev * noise)
        return a, policy.log_prob(a).sum(-1)

    def q(critics, obs, action, twin):
        net = torch.nn.Sequential(*critics)
        x = torch.cat([obs, action], -1)
        return net(torch.cat([x, x]))[2 * twin:2 * twin + 2, :, 0]
    with torch.no_grad():
        for p, value in zip(agents.targets.parameters(), before):   # as they were in the update
            p.copy_(value)
        next_action, log_prob = act(next_obs, noise[0])
        lowest = torch.minimum(q(agents.targets, next_obs, next_action, 0),
                               q(agents.targets, next_obs, next_action, 1))
        target = reward + 0.9 * (1 - terminated) * (lowest - 0.3 * log_prob)
    critic = sum((q(agents.critics, obs, action, twin) - target).square().mean(-1).sum()
                 for twin in (0, 1))
    new_action, log_prob = act(obs, noise[1])
    lowest = torch.minimum(q(agents.critics, obs, new_action, 0),
                           q(agents.critics, obs, new_action, 1))
    actor = (0.3 * log_prob - lowest).mean(-1).sum()
    temperature = -(agents.log_alpha * (log_prob.detach() - 2).mean(-1)).sum()
    for ours, formula in zip(losses, (critic, actor, temperature)):
        torch.testing.assert_close(ours, formula, rtol=1e-4, atol=1e-4)


def test_collection_refuses_what_it_would_overwrite(tmp_path):
    assert collection(tmp_path).returncode == 0
    held = (tmp_path / "a.npz").read_bytes()
    refused(collection(tmp_path), "exists")
    refused(collection(tmp_path, "--tasks", "2,99", out="b.npz"), "99")
    assert (tmp_path / "a.npz").read_bytes() == held
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]


@pytest.mark.parametrize("given, words", [
    (dict(join="x.npz"), "x.npz"), (dict(join="x.npz", tasks="0,1"), "no use of --tasks"),
    (dict(join="x.npz", steps=4000), "no use of --steps"),
    (dict(join="x.npz", seed=0), "no use of --seed"),
    (dict(join="x.npz", random_steps=9), "no use of --random-steps"),
    (dict(join="x.npz", keep=39), "40 or more"), (dict(keep=39), "40 or more"),
    (dict(shared=True, independent=True), "contradict"),
    (dict(env="ant_dir", independent=True), "--no-shared")])
def test_collection_refuses_flags_that_contradict_each_other(given, words, tmp_path):
    given = {"env": "point_goal", "out": str(tmp_path / "a.npz"), **given}
    with pytest.raises(command.BadInput, match=words) as problem:
        collect.main(collect.Config(**{**collect.PRESETS[given["env"]], **given}), given)
    assert ". " not in str(problem.value) and not list(tmp_path.iterdir())


def test_collection_is_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(command.BadInput, match="without torchrun"):
        collect.main(collect.Config(env="point_goal", out=str(tmp_path / "a.npz")), {})


def test_a_collection_that_diverges_writes_no_file(tmp_path, monkeypatch):
    config = collect.Config(env="point_goal", tasks="0,1", steps=60, keep=60, random_steps=20,
                            out=str(tmp_path / "a.npz"))

    def diverges(words):
        with pytest.raises(command.Diverged, match=words):
            collect.main(config, {})
        assert not list(tmp_path.iterdir())
    with monkeypatch.context() as changed:
        changed.setattr(collect.Collection, "learn", lambda self: next(
            self.agents.actor.parameters()).data.fill_(np.nan))
        diverges("step 21 brought an agent's action to nan; .* smaller --lr")
    for words, outcome in (("observation to inf", (np.full(2, 1e5), 0.0, False, False, {})),
                           ("reward to 1e", (np.zeros(2), 1e7, False, False, {}))):
        monkeypatch.setattr(envs.PointGoal, "step", lambda *_, outcome=outcome: outcome)
        diverges(words)


def test_what_is_no_unfinished_collection_is_refused(tmp_path):
    path = tmp_path / "x.npz.unfinished"
    config = collect.Config(env="point_goal", tasks="2,3", steps=60, random_steps=60, width=8)
    lives = collect.Collection(config)
    for _ in range(50):
        lives.step()
    lives.save(path)
    state = command.load_tensors(path)
    bad = [[1, 2], {}, 3.0, {**state, "config": []}, {**state, "episodes": []},
           {**state, "replay": {}}, {**state, "agents": {}}, {**state, "optimizers": []},
           {**state, "steps": "50"}, {**state, "generator": None},
           *({k: x for k, x in state.items() if k != name} for name in state)]
    for content in bad:
        torch.save(content, path)
        with pytest.raises(command.BadInput, match="unfinished is damaged") as problem:
            collect.Collection(config).load(path)
        assert ". " not in str(problem.value).replace(str(path), "")
    torch.save(state, path)
    again = collect.Collection(config)
    again.load(path)
    assert torch.equal(again.obs, lives.obs)


def test_a_full_disk_is_said_as_the_system_says_it(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            if self.tell() + len(content) > 10_000:
                raise OSError(28, "No space left on device")
            return super().write(content)
    lives = collect.Collection(collect.Config(env="point_goal", tasks="2", steps=60))
    monkeypatch.setattr(command, "replacing", lambda path: contextlib.nullcontext(Full()))
    with pytest.raises(OSError, match="No space left"):
        lives.save(tmp_path / "x")


def test_episodes_are_kept_evenly_over_a_life():
    assert np.flatnonzero(data.evenly([2] * 12, keep=6)).tolist() == [1, 5, 9]
    assert data.evenly([3, 1, 4, 1, 5], keep=14) == [True] * 5
    random = np.random.default_rng(0)
    lengths = random.integers(1, 200, 300)
    lives = np.cumsum(lengths)[data.evenly(lengths, keep=3000)] / lengths.sum()
    np.testing.assert_allclose(lives, np.linspace(0, 1, len(lives)), atol=0.1)
    assert lengths[data.evenly(lengths, keep=3000)].sum() == pytest.approx(3000, abs=200)


def test_joined_files_keep_the_best_agent_of_each_task(tmp_path):
    data_file(tmp_path / "a.npz", [4, 5, 6], [False] * 3, [1, 2, 2], seed=1,
              behavior_final={1: -5.0, 2: -9.0}, collector={1: "a", 2: "a"})
    data_file(tmp_path / "b.npz", [7, 8], [False] * 2, [2, 3], seed=2,
              behavior_final={2: -3.0, 3: -1.0}, collector={2: "b", 3: "b"})
    x, meta = data.join([tmp_path / "a.npz", tmp_path / "b.npz"], "point_goal", keep=100)
    assert x["episode_task"].tolist() == [1, 2, 3]
    assert x["episode_length"].tolist() == [4, 7, 8]
    assert meta["collector"] == {"1": "a", "2": "b", "3": "b"}
    a, b = (data.read(tmp_path / name, "point_goal")[0] for name in ("a.npz", "b.npz"))
    np.testing.assert_array_equal(x["rewards"], np.r_[a["rewards"][:4], b["rewards"]])
    np.testing.assert_array_equal(x["observations"],
                                  np.r_[a["observations"][:5], b["observations"]])
