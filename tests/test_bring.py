"""Other people's data, and its replay: each test is named after the claim that it would refute."""
import json

import gymnasium
import numpy as np
import pytest
import torch
from conftest import HERE, command_line, config_of, refused, run_of, step

import envs
import macaw
from helpers import bring, check, data
from helpers.command import BadInput
from helpers.run import load

CHECKPOINT = HERE / "notebooks/checkpoints/macaw.pt"
TASKS = [2, 7]
FLAGS = ("terminations", "truncations")


def part_of(name="cheetah_vel_strangers", env="cheetah_vel", tasks=TASKS, episodes=3):
    """Arrays of a shipped file with the last few episodes of some tasks."""
    x, _ = data.read(data.path_of(name), env)
    chosen = [np.flatnonzero(x["episode_task"] == i)[-episodes:] for i in tasks]
    x = data.part(x, np.isin(np.arange(len(x["episode_task"])), chosen))
    return x | {name: x[name].astype(np.float32) for name in ("observations", "actions")}


@pytest.fixture(scope="module")
def ours():
    return part_of()


def episodes(x, task):
    """A task's episodes under our names, with T + 1 observations each."""
    x = data.part(x, x["episode_task"] == task)
    cuts = np.cumsum(x["episode_length"])[:-1]
    columns = [np.split(x["observations"], cuts + 1 + np.arange(len(cuts))),
               *(np.split(x[name], cuts) for name in data.COLUMNS[1:5])]
    return [dict(zip(data.COLUMNS, one)) for one in zip(*columns)]


def flat(x, task):
    """All steps of a task with their next states."""
    parts = [dict(one, observations=one["observations"][:-1],
                  next_observations=one["observations"][1:]) for one in episodes(x, task)]
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}


# ----------------------------------------------------------------------------------------- layouts
def minari_dataset(folder, x, task):
    minari = pytest.importorskip("minari")
    buffers = [minari.data_collector.EpisodeBuffer(id=k, **one)
               for k, one in enumerate(episodes(x, task))]
    env = envs.make("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[task])
    minari.create_dataset_from_buffers(f"mine/task{task}-v0", buffers, env)
    return f"mine/task{task}-v0"


def hdf5(path, arrays):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def d4rl(folder, x, task):
    steps = flat(x, task)
    return hdf5(folder / f"{task}.hdf5", dict(
        observations=steps["observations"], actions=steps["actions"], rewards=steps["rewards"],
        terminals=steps["terminations"], timeouts=steps["truncations"]))


def authors(folder, x, task):
    """Episodes from their end, three observations more, failures at the time limit."""
    steps, length = flat(x, task), x["episode_length"][x["episode_task"] == task]
    order = np.concatenate([np.arange(end)[::-1][:n] for n, end in zip(length, length.cumsum())])
    steps = {name: array[order] for name, array in steps.items()}
    obs, following = (np.c_[steps[name], np.ones((len(order), 3))]
                      for name in ("observations", "next_observations"))
    return hdf5(folder / f"{task}.hdf5", dict(
        obs=obs, next_obs=following, actions=steps["actions"], rewards=steps["rewards"][:, None],
        terminals=steps["truncations"][:, None], discount_factor=0.99))


def focal(folder, x, task):
    (folder / str(task)).mkdir()
    for k, one in enumerate(episodes(x, task)):
        np.save(folder / f"{task}/trj_evalsample0_step{9 + k}.npy", np.c_[
            one["observations"][:-1], one["actions"], one["rewards"], one["observations"][1:]])
    return folder / str(task)


def npz(folder, x, task):
    """Episodes of 600 steps with numbers as flags and a column of rewards."""
    steps = flat(x, task)
    names = dict(observations="states", next_observations="next_states", terminations="dones")
    np.savez(folder / f"{task}.npz", **{names.get(name, name): array.astype(float).reshape(
        len(array), -1) for name, array in steps.items() if name != "truncations"})
    return folder / f"{task}.npz"


@pytest.mark.parametrize("layout", [minari_dataset, d4rl, authors, focal, npz])
def test_each_layout_comes_in_as_it_was_and_adapts_alike(layout, ours, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    sources = ",".join(str(layout(tmp_path, ours, task)) for task in TASKS)
    out = tmp_path / "out.npz"
    result = command_line("--tasks", "2,7", "--data", sources, "--out", out, "--columns", "0:17",
                          program="helpers/bring.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("fits") == 2
    x, _ = data.read(out, "cheetah_vel")
    if layout is d4rl:                                          # without each episode's last step
        assert (x["episode_length"] == 199).all()
        return
    for name in set(data.COLUMNS) - {"episode_number", "episode_seed"}:
        np.testing.assert_allclose(x[name], ours[name], rtol=1e-6)
    bring.bring(tmp_path / "same.npz", "cheetah_vel", {i: flat(ours, i) for i in TASKS})
    before, after = np.array([macaw.meta_test(load(
        macaw.MACAW, CHECKPOINT, data=str(path)), 1)[1] for path in (out, tmp_path / "same.npz")])
    np.testing.assert_array_equal(before, after)


def test_our_data_go_to_minari_and_come_back(tmp_path, monkeypatch, ours):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari.DataCollector(gymnasium.make("macaw/cheetah_vel-v0", velocity=1.0)).close()
    bring.bring(tmp_path / "a.npz", "cheetah_vel", {7: flat(ours, 7)})
    name, = bring.to_minari(tmp_path / "a.npz", "cheetah_vel", "back")
    assert minari.load_dataset(name).recover_environment().unwrapped.velocity == 0.6
    bring.bring(tmp_path / "b.npz", "cheetah_vel", {7: bring.read(name, 6)})
    a, b = (data.read(tmp_path / f"{x}.npz", "cheetah_vel")[0] for x in "ab")
    assert all(np.array_equal(a[column], b[column]) for column in a)
    with pytest.raises(BadInput, match="back/task7-v0"):
        bring.to_minari(tmp_path / "a.npz", "cheetah_vel", "back")


def test_episodes_end_where_states_do_not_join_and_at_the_horizon():
    states = np.arange(101.0)[:, None].repeat(2, 1)
    x = bring.episodes(dict(obs=np.delete(states[:-1], 50, 0), acts=np.full((99, 2), 1.5),
                            reward=np.ones((99, 1)), next_obs=np.delete(states[1:], 50, 0)), 40)
    assert x["episode_length"].tolist() == [40, 10, 40, 9] and not x["terminations"].any()
    assert x["observations"][[40, 51, 52], 0].tolist() == [40, 50, 51]
    assert (x["actions"] == 1).all()


# ------------------------------------------------------------------------------------------ replay
def per_episode(*names):
    """A change that turns these arrays round in each episode."""
    def change(x):
        length = x["episode_length"]
        for name in names:
            cuts = np.cumsum(length + (name == "observations"))[:-1]
            x[name] = np.concatenate([one[::-1] for one in np.split(x[name], cuts)])
    return change


def next_first_state(x):
    last = np.cumsum(x["episode_length"] + 1)[:-1] - 1
    x["observations"][last] = x["observations"][last + 1]


def stock_reward(x):
    simulator = check.Simulator("cheetah_vel", 2)
    here = np.delete(np.arange(len(x["observations"])), np.cumsum(x["episode_length"] + 1) - 1)
    x["rewards"] = simulator.step(x["observations"][here], x["actions"],
                                  type(simulator.own).__base__)[1]


def change(name, function):
    return lambda x: x.update({name: function(x[name])})


WRONG = {
    "backwards in time": per_episode("observations", "actions", "rewards"),
    "next episode's first": next_first_state,
    "rewards are shifted": change("rewards", lambda r: np.roll(r, 1)),
    "actions are shifted": change("actions", lambda a: np.roll(a, 1, 0)),
    "of CheetahVel -0.050": lambda x: x.update(
        rewards=x["rewards"] - 0.05 * np.square(x["actions"]).sum(1)),
    "of HalfCheetahEnv": stock_reward,
    "those of task": change("episode_task", lambda i: np.where(i == 2, 7, 2)),
    "marked as failures": lambda x: x.update({FLAGS[0]: x[FLAGS[1]], FLAGS[1]: x[FLAGS[0]]}),
}


@pytest.mark.parametrize("said", WRONG)
def test_the_replay_names_what_is_wrong_and_nothing_is_written(said, ours):
    x = {name: array.copy() for name, array in ours.items()}
    WRONG[said](x)
    with pytest.raises(BadInput, match=said):
        check.report(x, "cheetah_vel")


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_shipped_data_fit(env, capsys):
    tasks = envs.FAMILIES[env].test[:2]
    check.report(part_of(env, env, tasks, episodes=20), env)
    assert capsys.readouterr().out.count("fits") == 2


def test_a_robot_without_a_simulator_trains_from_its_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(envs, "FAMILIES", dict(envs.FAMILIES))
    envs.add("robot", envs.Recorded, [dict(obs_dim=3, act_dim=2, kg=k) for k in range(3)], (2,))
    monkeypatch.setitem(macaw.PRESETS, "robot", {})
    random = np.random.default_rng(0)
    logs = {i: [dict(observations=random.normal(size=(51, 3)), rewards=random.normal(size=50),
                     actions=random.uniform(-1, 1, (50, 2))) for _ in range(3)] for i in range(3)}
    bring.bring(tmp_path / "x.npz", "robot", logs)
    assert capsys.readouterr().out.count("cannot tell") == 3
    run = run_of("robot", data=str(tmp_path / "x.npz"), tasks_per_step=2, inner_batch=32,
                 outer_batch=32, test_batch=64)
    assert np.isfinite(list(step(run).values())).all()
    assert not np.any(macaw.meta_test(run, 1))


# -------------------------------------------------------------------------------------- adaptation
def test_arrays_that_are_in_no_file_adapt_as_from_one(ours, tmp_path):
    bring.bring(tmp_path / "x.npz", "cheetah_vel", {7: flat(ours, 7)}, replay=False)
    run = load(macaw.MACAW, CHECKPOINT, data=str(tmp_path / "x.npz"))
    D, = run.buffers.sample([7], [256], torch.Generator().manual_seed(0))
    assert all(map(torch.equal, D, bring.batch(run, flat(ours, 7))))
    few = bring.batch(run, episodes(ours, 7)[0])
    assert few.obs.shape == (1, 200, 17)
    assert run.learner.policies(few)(D.obs).isfinite().all()


# ---------------------------------------------------------------------------------------- refusals
class Program:
    def __reduce__(self):
        return print, ("executed",)


def save(name, content):
    def source(folder):
        path = folder / name
        np.save(path, content, allow_pickle=True) if name.endswith("y") else path.write_bytes(b"\x80")
        return path
    return source


REFUSED = {
    "objects": save("x.npy", np.array([Program()])), "pickle": save("x.pkl", b""),
    "odd rows": save("x.npy", np.ones((9, 40))), "no HDF5": save("x.hdf5", b""),
    "empty folder": lambda folder: folder, "missing": lambda folder: "nothing/here-v0",
}


@pytest.mark.parametrize("case", REFUSED)
def test_sources_that_will_not_do_are_refused_and_never_executed(case, tmp_path, capfd):
    source = REFUSED[case](tmp_path)
    refused(command_line("--tasks", "2", "--data", source, "--out", tmp_path / "out.npz",
                         program="helpers/bring.py"))
    assert not (tmp_path / "out.npz").exists() and "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("change", [
    dict(actions=np.ones((600, 6), int)), dict(rewards=np.ones(599)), dict(rewards=None),
    dict(rewards=np.array([None] * 600)), dict(observations=np.ones((600, 5))),
    dict(observations=np.ones((300, 17))), dict(rewards=np.full(600, np.nan))])
def test_arrays_that_will_not_do_are_refused(change, ours, tmp_path):
    arrays = {name: x for name, x in {**flat(ours, 2), **change}.items() if x is not None}
    if "observations" in change:
        arrays.pop("next_observations")
    with pytest.raises(BadInput):
        bring.bring(tmp_path / "out.npz", "cheetah_vel", {2: arrays}, replay=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [
    "--tasks 2 --data a.npz,b.npz --out x.npz", "--tasks 2 --data a.npz --out x.txt",
    "--tasks 2 --data a.npz --out x.npz --columns few", "--tasks 2 --data a.npz"])
def test_flags_that_do_not_fit_are_refused(line, tmp_path):
    refused(command_line(*line.split(), program="helpers/bring.py", cwd=tmp_path))


def test_foreign_files_as_data_are_told_how_to_come_in(tmp_path):
    for name in ("x.hdf5", "x.pkl", "."):
        refused(command_line("--env", "point_goal", "--data", tmp_path / name), "helpers.bring")
