"""Data files, returns, batches, whose data: each test is named after the claim it would refute."""
import copy
import dataclasses
import json
import os
import re

import numpy as np
import pytest
import torch
from conftest import HERE, POINT, command_line, config_of, data_file, refused, run_of, step

import envs
import macaw
from helpers import data
from helpers.command import BadInput
from helpers.data import Buffers
from helpers.run import load, summary

SIZES = dict(inner_batch=4, outer_batch=4, test_batch=4, tasks_per_step=1)
LENGTHS, TASKS = [4, 5, 6, 7, 8], [0, 0, 1, 1, 2]           # of the episodes of a small file


# ------------------------------------------------------------------------------------------- files
def small_file(path, **changes):
    """A small data file with some of its arrays and metadata replaced; its arrays."""
    x = data_file(path, LENGTHS, [False, True, False, False, True], TASKS)
    meta = data.read(path, "point_goal")[1]
    arrays = {name: value for name, value in changes.items() if name in data.COLUMNS}
    meta |= {name: value for name, value in changes.items() if name not in data.COLUMNS}
    data.write(path, x | arrays, meta)
    return x


@pytest.mark.parametrize("path", sorted((HERE / "data").glob("*.npz")), ids=lambda p: p.stem)
def test_shipped_episodes_replay_from_their_seed_and_actions(path):
    family = re.sub("_(others.*|strangers)", "", path.stem)
    x, meta = data.read(path, family)
    assert path.stat().st_size <= 25e6
    assert len(meta["tasks"]) == len(envs.FAMILIES[family].tasks) or path.stem != family
    test = set(map(str, envs.FAMILIES[family].test))
    assert test <= set(meta["tasks"]) or test.isdisjoint(meta["tasks"])     # all, or for training
    ends = np.cumsum(x["episode_length"])
    for episode in np.random.default_rng(0).choice(len(ends), 3, replace=False):
        env = envs.make(family, meta["tasks"][str(x["episode_task"][episode])])
        states = [env.reset(seed=int(x["episode_seed"][episode]))[0]]
        for t in range(ends[episode] - x["episode_length"][episode], ends[episode]):
            state, *outcome, _ = env.step(x["actions"][t].astype(np.float32))
            states.append(state)
            assert [np.float32(outcome[0]), *outcome[1:]] == [
                x[name][t] for name in ("rewards", "terminations", "truncations")]
        assert any(outcome[1:])
        stored = x["observations"][:ends[episode] + episode + 1][-len(states):]
        np.testing.assert_array_equal(np.float16(np.float32(states)), stored)


def test_a_name_without_an_ending_is_a_file_that_we_ship():
    assert data.path_of("cheetah_vel_others") == HERE / "data/cheetah_vel_others.npz"
    assert data.path_of("x/mine.npz").as_posix() == "x/mine.npz"
    for name in ("mine.hdf5", "mine.pkl", "docs"):              # what is brought in first
        with pytest.raises(BadInput, match="helpers.bring"):
            data.path_of(HERE / name)


def cell(name, place, value):
    """A change of one number."""
    def change(x):
        x[name][place] = value
    return change


def column(name, function):
    """A change of an array."""
    return lambda x: x.update({name: function(x[name])})


def metadata(**changes):
    return column("metadata", lambda x: np.array(json.dumps(json.loads(str(x)) | changes)))


BAD = {             # changes of a good file, one or two for each rule
    "no array": lambda x: x.pop("rewards"), "no metadata": lambda x: x.pop("metadata"),
    "metadata no JSON": column("metadata", lambda x: np.array("{")),
    "other format": metadata(format=99), "no family": metadata(family=None),
    "other family": metadata(family="cheetah_vel"),
    "tasks a list": metadata(tasks=[]),
    "fractional lengths": column("episode_length", lambda x: x.astype(float)),
    "no episode": lambda x: x.update({name: x[name][:0] for name in data.COLUMNS}),
    "text": column("rewards", lambda x: x.astype(str)),
    "short": column("rewards", lambda x: x[:-1]),
    "wide": column("observations", lambda x: np.c_[x, x]),
    "nan": cell("observations", (7, 0), np.nan), "infinite": cell("rewards", 7, np.inf),
    "other units": column("observations", lambda x: 100 * x),
    "far action": cell("actions", (7, 1), 5.0), "far reward": cell("rewards", 7, -1e9),
    "unknown task": cell("episode_task", -1, 99),
    "no step": cell("episode_length", slice(0, 2), [9, 0]),
    "ends early": cell("terminations", 2, True), "does not end": cell("truncations", 3, False),
    "interleaved": cell("episode_task", slice(None), [0, 1, 0, 1, 2]),
    "twice": cell("episode_number", slice(0, 2), 0), "constant": column("rewards", np.zeros_like),
    "other tasks": metadata(tasks={str(i): dict(goal=[9, 9]) for i in range(3)}),
    "final not finite": metadata(behavior_final={str(i): float("nan") for i in range(3)}),
}


def refused_by_all(folder):
    """Whoever reads x.npz there refuses it, and nothing in the folder changes."""
    path = folder / "x.npz"
    before = path.read_bytes()
    for program, line in (("macaw", []), ("collect", ["--out", folder / "y.npz"])):
        flag = "--data" if program == "macaw" else "--join"
        refused(command_line("--env", "point_goal", flag, path, *line, program=f"{program}.py"),
                "x.npz")
    assert path.read_bytes() == before and list(folder.iterdir()) == [path]


@pytest.mark.parametrize("name", BAD)
def test_bad_data_files_are_refused(name, tmp_path):
    small_file(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        x = dict(file)
    BAD[name](x)
    np.savez(tmp_path / "x.npz", **x)
    refused_by_all(tmp_path)


def test_an_episode_longer_than_the_horizon_is_refused(tmp_path):
    data_file(tmp_path / "good.npz", [40, 5], [False] * 2)
    data.read(tmp_path / "good.npz", "point_goal")
    data_file(tmp_path / "bad.npz", [41, 5], [False] * 2)
    with pytest.raises(BadInput):
        data.read(tmp_path / "bad.npz", "point_goal")


@pytest.mark.parametrize("content", [b"", b"hello", POINT.read_bytes()[:100_000],
                                     POINT.read_bytes()[1000:]])
def test_what_is_no_data_file_is_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    refused_by_all(tmp_path)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    small_file(tmp_path / "x.npz")
    monkeypatch.setattr(data, "LARGEST", 1000)
    refused_by_all(tmp_path)


class Program:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_from_a_data_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_file("x.npz", rewards=np.array([Program()] * 30))
    with pytest.raises(BadInput):
        data.read("x.npz", "point_goal")
    assert os.listdir() == ["x.npz"]


def test_damaged_files_are_refused_or_read_as_they_were(tmp_path):
    small_file(tmp_path / "x.npz")
    good, random, refusals = (tmp_path / "x.npz").read_bytes(), np.random.default_rng(0), 0
    x, _ = data.read(tmp_path / "x.npz", "point_goal")
    for _ in range(30):
        content = bytearray(good)
        for place in random.integers(len(content), size=random.integers(1, 9)):
            content[place] ^= 1 << random.integers(8)
        (tmp_path / "x.npz").write_bytes(content)
        try:
            found, _ = data.read(tmp_path / "x.npz", "point_goal")
        except BadInput:
            refusals += 1
        else:
            assert all(np.array_equal(found[name], x[name]) for name in x)
    assert refusals > 20


def test_numbers_of_any_precision_and_numberings_with_gaps_will_do(tmp_path):
    x = small_file(tmp_path / "a.npz")
    small_file(tmp_path / "b.npz", **{
        name: x[name].astype(np.float16) for name in ("observations", "actions", "rewards")},
        episode_number=np.array([3, 7, 0, 1, 0], np.uint8),
        episode_length=x["episode_length"].astype(np.uint8),
        episode_task=x["episode_task"].astype(np.uint64))
    assert data.read(tmp_path / "b.npz", "point_goal")[0]["episode_number"].tolist() == [
        3, 7, 0, 1, 0]
    a, b = (Buffers(tmp_path / name, config_of(**SIZES | dict(holdout="1")))
            for name in ("a.npz", "b.npz"))
    assert torch.equal(a.last, b.last) and torch.equal(a.first, b.first)


def test_what_differs_by_rounding_is_the_same(tmp_path):
    """Tasks, and actions beyond 1."""
    x = small_file(tmp_path / "x.npz")
    tasks = [dict(goal=[value * (1 + 1e-9) for value in task["goal"]])
             for task in envs.FAMILIES["point_goal"].tasks[:3]]
    x["actions"][3] = 1 + 1e-6
    small_file(tmp_path / "x.npz", tasks=dict(enumerate(tasks)), actions=x["actions"])
    assert data.read(tmp_path / "x.npz", "point_goal")[0]["actions"][3].tolist() == [1, 1]


def test_a_file_of_ones_own_may_describe_more_tasks_and_no_collectors(tmp_path):
    small_file(tmp_path / "x.npz")
    meta = data.read(tmp_path / "x.npz", "point_goal")[1]
    del meta["collector"]
    small_file(tmp_path / "x.npz", tasks=meta["tasks"] | {"banana": {}, "77": {}},
               behavior_final=meta["behavior_final"] | {"banana": "good"})
    buffers = Buffers(tmp_path / "x.npz", config_of(**SIZES))
    assert set(buffers.behavior_final) == {0, 1, 2}


# -------------------------------------------------------------------------------- returns, batches
def test_returns_equal_the_brute_force_sum(tmp_path):
    """Truncation keeps its tail gamma^k V(s_end), termination does not."""
    lengths, terminated = [5, 1, 7, 3, 40, 4], [False, True, True, False, False, True]
    x = data_file(tmp_path / "x.npz", lengths, terminated, task=[1, 1, 1, 1, 1, 2])
    held = Buffers(tmp_path / "x.npz", config_of(**SIZES, gamma=0.9))

    def V(obs):
        return obs.sum(-1) + 3.0
    batch = held.transitions(torch.arange(sum(lengths))[None])
    with_tail, without = macaw.returns(V, batch, True)[0], macaw.returns(V, batch, False)[0]
    k = 0
    for episode, (length, ended) in enumerate(zip(lengths, terminated)):
        last_obs = held.standardise(x["observations"][[k + length + episode]])
        tail = 0.0 if ended else V(last_obs).item()
        rewards = x["rewards"][k:k + length] / held.stats["return_scale"].item()
        for t in range(length):
            total = sum(0.9 ** j * reward for j, reward in enumerate(rewards[t:]))
            assert without[k + t].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
            total += 0.9 ** (length - t) * tail
            assert with_tail[k + t].item() == pytest.approx(total, rel=1e-4, abs=1e-4)
        k += length


@pytest.mark.parametrize("begin", [0.0, 0.6, 0.99])             # after 0.99 there is not enough
def test_batches_are_disjoint_and_cover_their_part_of_the_right_tasks_data(begin, point):
    marked = copy.copy(point)
    marked.mc_return = torch.arange(len(point.action))              # tells where a draw is from
    tasks, random = [3, 11], torch.Generator().manual_seed(0)
    first, count = (x[0, tasks, None] for x in (point.first, point.count))
    batches = marked.sample(tasks, [256, 200], random, (0.0, begin))
    D_tr, D_ts = ((batch.mc_return - first) / count for batch in batches)
    begin = torch.tensor(begin).minimum(1 - 400 / count)
    for share, start in ((D_tr, torch.zeros(2, 1)), (D_ts, begin)):
        assert (start <= share).all() and (share < 1).all()
        quarter = ((share - start) / (1 - start) * 4).long()
        assert all((quarter == k).sum(1).min() > 45 for k in range(4))      # evenly
    assert len(torch.cat([batch.mc_return for batch in batches], 1).unique()) == 2 * 456
    for batch in batches:
        assert torch.equal(batch.obs, point.obs[point.here[batch.mc_return]])


def test_a_batch_is_never_filled_up_with_other_tasks(tmp_path):
    data_file(tmp_path / "x.npz", [20, 20, 20], [False] * 3, task=[1, 2, 2])
    held = Buffers(tmp_path / "x.npz", config_of(**SIZES))
    generator = torch.Generator().manual_seed(0)
    held.sample([2], [20, 20], generator)
    for task, sizes in ((2, [41]), (1, [11, 10]), (0, [1])):        # there is none of task 0
        with pytest.raises(BadInput, match=f"task {task}, "):
            held.sample([task], sizes, generator)


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


def test_what_never_varies_is_no_signal(tmp_path):
    """float16 rounds 2.71 in the file; divided by no deviation that would be far from the world."""
    states = np.random.default_rng(0).uniform(-1, 1, (41, 2))
    states[:, 1] = 2.71
    data_file(tmp_path / "x.npz", [20, 20], [False] * 2, task=[1, 2],
              observations=np.r_[states, states[:1]].astype(np.float16))
    held = Buffers(tmp_path / "x.npz", config_of(**SIZES))
    assert held.observe(np.array([[0.0, 2.71]]))[0, 0, 1].abs() < 0.01
    assert held.stats["obs_std"][0] < 0.7


# ---------------------------------------------------------------------------------- whose data
def groups_of_agents(tmp_path, others, **changes):
    """Buffers of a data file whose actions are 0.1, with other agents by file: the second group of
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
                   adapt_paths=[tmp_path / f"{name}.npz" for name in others])


def whose(batch):
    return {round(float(a), 1) for a in batch.action.flatten()}


def test_what_is_adapted_to_comes_from_other_agents_and_the_rest_from_the_data_file(tmp_path):
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


def test_other_agents_change_no_statistic_and_no_other_number(tmp_path):
    crossed, plain = (groups_of_agents(tmp_path, others) for others in (["third", "second"], []))
    assert all(torch.equal(crossed.stats[name], plain.stats[name]) for name in plain.stats)
    assert crossed.behavior_mean == plain.behavior_mean
    same = groups_of_agents(tmp_path, ["../" + tmp_path.name + "/own"])     # by another name
    assert len(same.paths) == 1
    for a, b in zip(*(x.sample([0, 1], [4, 4], torch.Generator().manual_seed(1))
                      for x in (same, plain))):
        assert all(map(torch.equal, a, b))


def test_other_agents_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(BadInput, match="0 transitions of task 1"):
        groups_of_agents(tmp_path, ["third"])
    with pytest.raises(BadInput, match="third.npz has 100 transitions of task 0"):
        groups_of_agents(tmp_path, ["second", "third"], inner_batch=60)
    groups_of_agents(tmp_path, ["second", "third"], outer_batch=60)     # which they do not lend
    with pytest.raises(BadInput, match="third.npz has 0 transitions of task 1"):
        groups_of_agents(tmp_path, ["own", "third"], holdout="0")
    with pytest.raises(BadInput, match="test task"):
        groups_of_agents(tmp_path, [], holdout="2")


def test_testing_adapts_to_the_data_file_and_needs_no_other_agents(tmp_path):
    """A run goes on only with the files that it began with; their absence hinders no test."""
    groups_of_agents(tmp_path, [])
    sizes = [x for name, n in SIZES.items() for x in ("--" + name.replace("_", "-"), n)]
    out, second = tmp_path / "run", tmp_path / "second.npz"
    line = ["--env", "point_goal", "--data", tmp_path / "own.npz", "--steps", 2, *sizes,
            "--final-draws", 1, "--adapt-data", second, "--out", out]
    assert command_line(*line).returncode == 0
    second.rename(tmp_path / "moved.npz")
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
    refused(command_line("--resume", "--out", out, "--adapt-data", tmp_path / "own.npz"),
            "other data")
    refused(command_line("--evaluate", out / "checkpoint.pt", "--adapt-data", second),
            "--adapt-data")                                             # testing takes nones
