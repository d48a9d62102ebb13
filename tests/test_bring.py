"""Other people's data, and its replay: each test is named after the claim that it would refute."""
import os

import numpy as np
import pytest
import torch
from conftest import HERE, command_line, refused, run_of, step

import envs
import macaw
from helpers import bring, check, data
from helpers.command import BadInput
from helpers.run import load

CHECKPOINT = HERE / "notebooks/checkpoints/macaw.pt"


def last_episodes(name, env, tasks, count):
    x, _ = data.read(data.path_of(name), env)
    chosen = [np.flatnonzero(x["episode_task"] == i)[-count:] for i in tasks]
    x = data.part(x, np.isin(np.arange(len(x["episode_task"])), chosen))
    return x | {name: x[name].astype(np.float32) for name in ("observations", "actions")}


@pytest.fixture(scope="module")
def ours():
    return last_episodes("cheetah_vel_strangers", "cheetah_vel", [2, 26], 3)


def flat(x, task):
    """All steps of a task, three episodes of 200, and the states that follow them."""
    mine = {name: x[name].reshape(6, -1, *x[name].shape[1:])[3 * (task > 2):][:3]
            for name in data.COLUMNS[:5]}
    states = mine.pop("observations")
    steps = dict(observations=states[:, :-1], **mine, next_observations=states[:, 1:])
    return {name: array.reshape(600, *array.shape[2:]) for name, array in steps.items()}


# ----------------------------------------------------------------------------------------- layouts
def minari_dataset(folder, x, task):
    bring.bring(folder / f"{task}.npz", "cheetah_vel", {task: flat(x, task)})
    return bring.to_minari(folder / f"{task}.npz", "cheetah_vel", "mine")[0]


def hdf5(path, **arrays):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def d4rl(folder, x, task):
    s, a, r, failed, timed, _ = flat(x, task).values()
    return hdf5(folder / f"{task}.hdf5", observations=s, actions=a, rewards=r, terminals=failed,
                timeouts=timed)


def authors(folder, x, task):
    """Episodes from their end, three observations more, failures at the time limit."""
    s, a, r, _, timed, following = (array.reshape(3, 200, -1)[:, ::-1].reshape(600, -1)
                                    for array in flat(x, task).values())
    return hdf5(folder / f"{task}.hdf5", obs=np.c_[s, s[:, :3]], actions=a, rewards=r,
                terminals=timed, next_obs=np.c_[following, s[:, :3]], discount_factor=0.99)


def focal(folder, x, task):
    (folder / str(task)).mkdir()
    s, a, r, _, _, following = flat(x, task).values()
    for k, rows in enumerate(np.split(np.c_[s, a, r, following], 3)):
        np.save(folder / f"{task}/trj_evalsample0_step{9 + k}.npy", rows)
    return folder / str(task)


def npz(folder, x, task):
    """Flags as numbers, rewards as a column, no time limits."""
    s, a, r, failed, _, following = flat(x, task).values()
    np.savez(folder / f"{task}.npz", states=s, acts=a, reward=r[:, None].astype(float),
             dones=failed.astype(float), next_states=following)
    return folder / f"{task}.npz"


@pytest.mark.parametrize("layout", [minari_dataset, d4rl, authors, focal, npz])
def test_each_layout_comes_in_as_it_was_and_adapts_alike(layout, ours, tmp_path, monkeypatch):
    if layout is minari_dataset:
        pytest.importorskip("minari")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    sources, out = [str(layout(tmp_path, ours, i)) for i in (2, 26)], tmp_path / "out.npz"
    result = command_line("--tasks", "2,26", "--data", ",".join(sources), "--columns", "0:17",
                          "--out", out, program="helpers/bring.py")
    assert result.returncode == 0 and result.stdout.count("fits") == 2, result.stderr
    x, _ = data.read(out, "cheetah_vel")
    if layout is d4rl:                              # drops each last step, so it is the same as ...
        keep = ~ours["truncations"]
        np.testing.assert_array_equal(x["actions"], ours["actions"][keep])
    else:
        for name in set(data.COLUMNS) - {"episode_number", "episode_seed"}:
            np.testing.assert_allclose(x[name], ours[name], rtol=1e-6)
    before, after = macaw.meta_test(load(macaw.MACAW, CHECKPOINT, data=str(out)), 1)
    assert after.mean() > before.mean()


def test_minari_notes_our_environments_down(tmp_path, monkeypatch, ours):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    name = minari_dataset(tmp_path, ours, 26)
    assert minari.load_dataset(name).recover_environment().unwrapped.velocity == 2.025
    with pytest.raises(BadInput, match=name):                       # is there already
        bring.to_minari(tmp_path / "26.npz", "cheetah_vel", "mine")


def test_episodes_end_where_states_do_not_join_and_at_the_horizon():
    states = np.delete(np.arange(101.0)[:, None].repeat(2, 1), 50, 0)
    x = bring.episodes(dict(obs=states[:-1], acts=np.full((99, 2), 1.5), reward=np.ones(99),
                            next_obs=np.where(states[:-1] == 49, 50, states[1:])), 40)
    assert x["episode_length"].tolist() == [40, 10, 40, 9] and not x["terminations"].any()
    assert x["observations"][[40, 41, 51, 52], 0].tolist() == [40, 40, 50, 51]
    assert (x["actions"] == 1).all()


# ------------------------------------------------------------------------------------------ replay
def reverse(x):
    for name in ("observations", "actions", "rewards"):
        rows = x[name].reshape(6, 200 + (name == "observations"), -1)
        x[name] = rows[:, ::-1].reshape(x[name].shape)


def next_first_state(x):
    x["observations"][200:-1:201] = x["observations"][201::201]


def stock_reward(x):
    simulator, last = check.Simulator("cheetah_vel", 2), np.arange(200, 1206, 201)
    x["rewards"] = simulator.step(np.delete(x["observations"], last, 0), x["actions"],
                                  type(simulator.own).__base__)[1]


def changed(name, function):
    return lambda x: x.update({name: function(x[name])})


WRONG = {       # what the check says of each
    "backwards in time": reverse, "next episode's first": next_first_state,
    "rewards are shifted": changed("rewards", lambda r: np.roll(r, 1)),
    "actions are shifted": changed("actions", lambda a: np.roll(a, 1, 0)),
    "CheetahVel -0.050": lambda x: x.update(rewards=x["rewards"] - np.square(x["actions"]).sum(1)
                                            * 0.05),
    "HalfCheetahEnv": stock_reward,
    "those of task 26": changed("episode_task", lambda i: 28 - i),
    "marked as failures": lambda x: x.update(terminations=x["truncations"]),
}


@pytest.mark.parametrize("said", WRONG)
def test_the_replay_names_what_is_wrong(said, ours):
    x = {name: array.copy() for name, array in ours.items()}
    WRONG[said](x)
    with pytest.raises(BadInput, match=said):
        check.report(x, "cheetah_vel")


def test_what_does_not_fit_is_written_only_on_demand(ours, tmp_path):
    with pytest.raises(BadInput, match="of task 26"):
        bring.bring(tmp_path / "x.npz", "cheetah_vel", {2: flat(ours, 26)})
    assert not list(tmp_path.iterdir())
    bring.bring(tmp_path / "x.npz", "cheetah_vel", {2: flat(ours, 26)}, replay=False)
    refused(command_line("--data", tmp_path / "x.npz", program="helpers/check.py"), "of task 26")


@pytest.mark.parametrize("env", envs.FAMILIES)
def test_shipped_data_fit(env):
    check.report(last_episodes(env, env, envs.FAMILIES[env].test[:2], 20), env)


def test_a_robot_without_a_simulator_trains_on_its_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(envs, "FAMILIES", dict(envs.FAMILIES))
    monkeypatch.setitem(macaw.PRESETS, "robot", {})
    envs.add("robot", envs.Recorded, [dict(obs_dim=3, act_dim=2, kg=k) for k in range(3)], (2,))
    draw = np.random.default_rng(0).uniform
    logs = {i: [dict(observations=draw(size=(51, 3)), actions=draw(size=(50, 2)),
                     rewards=draw(size=50)) for _ in range(3)] for i in range(3)}
    bring.bring(tmp_path / "x.npz", "robot", logs)
    assert capsys.readouterr().out.count("cannot tell") == 3
    run = run_of("robot", data=str(tmp_path / "x.npz"), tasks_per_step=2, inner_batch=32,
                 outer_batch=32, test_batch=64)
    assert np.isfinite(list(step(run).values())).all() and not np.any(macaw.meta_test(run, 1))


# ------------------------------------------------------------------------- adaptation and refusals
def test_arrays_that_are_in_no_file_adapt_as_from_one(ours, tmp_path):
    for i in (2, 26):
        bring.bring(tmp_path / f"{i}.npz", "cheetah_vel", {i: flat(ours, i)}, replay=False)
    run, other = (load(macaw.MACAW, CHECKPOINT, data=str(tmp_path / f"{i}.npz")) for i in (2, 26))
    D, = other.buffers.sample([26], [256], torch.Generator().manual_seed(0))
    assert all(map(torch.equal, D, bring.batch(run, flat(ours, 26))))
    few = {name: array[:200] for name, array in flat(ours, 26).items()}
    assert bring.batch(run, few).obs.shape == (1, 200, 17)


class Program:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("source", ["objects.npy", "x.pkl", "rows.npy", "x.hdf5", "empty",
                                    "no/data-v0"])
def test_sources_that_will_not_do_are_refused_and_never_executed(source, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([Program()]), allow_pickle=True)
    np.save(tmp_path / "rows.npy", np.ones((9, 40)))
    (tmp_path / "x.hdf5").write_bytes(b"hello")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    refused(command_line("--tasks", "2", "--data", source, "--out", "x.npz", cwd=tmp_path,
                         program="helpers/bring.py"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("change", [
    dict(actions=np.ones((600, 6), int)), dict(rewards=np.ones(599)), dict(rewards=None),
    dict(rewards=np.array([None] * 600)), dict(observations=np.ones((600, 5))),
    dict(next_observations=None, truncations=None), dict(rewards=np.full(600, np.nan))])
def test_arrays_that_will_not_do_are_refused(change, ours, tmp_path):
    arrays = {name: x for name, x in {**flat(ours, 2), **change}.items() if x is not None}
    with pytest.raises(BadInput):
        bring.bring(tmp_path / "out.npz", "cheetah_vel", {2: arrays}, replay=False)
    assert not list(tmp_path.iterdir())
