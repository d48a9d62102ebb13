"""Other people's data: makes a data file of it, after a replay of single steps (helpers/check.py).

    python -m helpers.bring --env cheetah_vel --tasks 2,7 --data slow.hdf5,fast.hdf5 --out mine.npz
    python -m helpers.bring --env cheetah_vel --to-minari mine/cheetah --data cheetah_vel

One source a task: an .hdf5 or .npz file of arrays; a .npy file or a folder of them, an episode each
with rows [s, a, r, s']; or the name of a Minari dataset. docs/your_own.md has the layouts.
"""
import dataclasses
import importlib
import pathlib
import re
import warnings
import zipfile

import numpy as np

import envs
from helpers import check, command, data
from helpers.command import BadInput, flag

NAMES = {               # what others call the arrays of a task
    "observations": ("obs", "observation", "states", "state"),
    "actions": ("action", "acts", "acs"),
    "rewards": ("reward", "rews"),
    "terminations": ("terminals", "terminal", "terminated", "dones", "done"),
    "truncations": ("timeouts", "timeout", "truncated"),
    "next_observations": ("next_obs", "next_observation", "next_states", "next_state"),
}
PAGE = "see docs/your_own.md"


# ---------------------------------------------------------------------------- arrays to our layout
def named(arrays):
    """The arrays under the names that we give them; raises BadInput."""
    x = {}
    for name, others in NAMES.items():
        found = [key for key in (name, *others) if key in arrays]
        if found:
            x[name] = np.asarray(arrays[found[0]])
            if x[name].dtype.kind not in "fiub":
                raise BadInput(f"{found[0]} holds {x[name].dtype}, not numbers; {PAGE}")
        elif name in ("observations", "actions", "rewards"):
            raise BadInput(f"there is no array {name} (nor {', '.join(others)}); rename yours")
    action = x["actions"] = x["actions"].reshape(len(x["actions"]), -1)
    if action.dtype.kind != "f":
        raise BadInput("actions are whole numbers; only continuous actions will do, as floats")
    for name in ("rewards", "terminations", "truncations"):
        x[name] = x.get(name, np.zeros(len(action))).reshape(-1)        # (T, 1) will do
        if len(x[name]) != len(action):
            raise BadInput(f"there are {len(x[name])} {name} for {len(action)} actions; give one "
                           "for each step")
    return x


def same(a, b):
    """Which rows of two arrays of states are the same, but for rounding."""
    return np.isclose(a, b, rtol=1e-4, atol=1e-5).all(-1)


def transitions(arrays, columns, whole):
    """Steps as they were played, a dict of arrays: state, action, reward, following state, whether
    the agent failed, whether the episode ends. `whole`: all are one episode. Also of each step that
    is dropped, because the state after it is not stored, whether it failed. Raises BadInput."""
    x = named(arrays)
    states, n = x["observations"].reshape(len(x["observations"]), -1)[:, columns], len(x["actions"])
    failed, timed = x["terminations"] != 0, x["truncations"] != 0
    steps = dict(state=states[:n], following=states[1:], action=x["actions"], reward=x["rewards"],
                 failed=failed, end=failed | timed)
    steps["end"][-1:] = True
    if "next_observations" in x:
        following = x["next_observations"]
        steps["following"] = following.reshape(len(following), -1)[:, columns]
    elif len(states) == n:                                  # no state after an episode's last step
        if not whole and not timed.any():
            raise BadInput("no step is marked as the last one of its episode; add truncations, "
                           "timeouts or next_observations")
        steps["following"] = np.r_[states[1:], states[-1:]]
    if not (0 < n == len(steps["state"]) and steps["state"].shape == steps["following"].shape):
        raise BadInput(f"there are {len(states)} observations for {n} actions, or other next_"
                       "observations; give one of both for each action, or T + 1 observations")
    if "next_observations" in x:
        steps = in_order(steps)
        steps["end"][:-1] |= ~same(steps["following"][:-1], steps["state"][1:])
    elif len(states) == n:
        keep = ~steps["end"]
        steps["end"], steps["failed"] = np.r_[steps["end"][1:], True], np.zeros(n, bool)
        return {name: array[keep] for name, array in steps.items()}, failed[~keep]
    return steps, np.zeros(0, bool)


def in_order(steps):
    """Turns episodes round that are stored from their end (as the MACAW authors' are)."""
    forward = same(steps["following"][:-1], steps["state"][1:])
    backward = same(steps["following"][1:], steps["state"][:-1])
    if backward.sum() <= forward.sum():
        return steps
    pieces = np.split(np.arange(len(steps["state"])), np.flatnonzero(~backward) + 1)
    steps = {name: x[np.concatenate([i[::-1] for i in pieces])] for name, x in steps.items()}
    steps["end"] = np.concatenate([np.arange(len(i)) == len(i) - 1 for i in pieces])
    return steps


def episodes(arrays, horizon, columns=slice(None), note=print):
    """One task's episodes, cut to the horizon: observations (T + 1 each), actions, rewards,
    terminations, truncations and episode_length, as in a data file. `arrays`: a dict by name, of
    all steps in the order in which they were played; or a list of such dicts, an episode each.
    `note` is told what changes. Raises BadInput."""
    whole = not hasattr(arrays, "keys")
    parts, dropped = zip(*(transitions(one, columns, whole)
                           for one in (arrays if whole else [arrays])))
    dropped = np.concatenate(dropped)
    steps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    steps = {name: x if x.dtype == bool else x.astype(np.float32) for name, x in steps.items()}
    n = np.diff(np.r_[-1, np.flatnonzero(steps["end"])])                # lengths before the cut
    if not n.size:
        raise BadInput("there is no step whose following state is known; give longer episodes")
    within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)        # place in its episode
    end = steps["end"] | (within % horizon == horizon - 1)
    failed = end & steps["failed"] & (within % horizon < horizon - 1)       # else time was up
    length = np.diff(np.r_[-1, np.flatnonzero(end)])
    beyond = (np.abs(steps["action"]) > 1 + data.ROUNDING).any(-1).sum()
    note(f"{len(end)} steps in {len(length)} episodes ({len(n)} before the cut at the horizon), "
         f"{failed.sum()} failed; clipped {beyond} actions; dropped {len(dropped)} last steps "
         f"({dropped.sum()} of failures)")
    return dict(observations=np.insert(steps["state"], length.cumsum(), steps["following"][end], 0),
                actions=steps["action"].clip(-1, 1), rewards=steps["reward"], terminations=failed,
                truncations=end & ~failed, episode_length=length)


def bring(out, env, tasks, columns=slice(None), replay=True):
    """Write a data file of a family from {task id: arrays or episodes (see `episodes`)}, in which
    no episode's seed is known (-1). Raises BadInput where it breaks a rule, or where a replay of
    single steps does not find what is stored."""
    parts, final, family = [], {}, envs.FAMILIES[env]
    for i in sorted(tasks):
        x = episodes(tasks[i], family.horizon, columns, lambda said: print(f"task {i}: {said}"))
        n = len(x["episode_length"])
        whose = np.repeat(np.arange(n), x["episode_length"])
        final[str(i)] = float(np.bincount(whose, x["rewards"])[-10:].mean())
        parts.append(x | dict(episode_task=np.full(n, i), episode_number=np.arange(n),
                              episode_seed=np.full(n, -1)))
    widths = {part["observations"].shape[1] for part in parts}
    wanted, = data.check_family(env).observation_space.shape
    if widths != {wanted}:
        raise BadInput(f"the observations have {', '.join(map(str, widths))} numbers and {env}'s "
                       f"have {wanted}; name the columns that are ours, as in --columns 0:{wanted}")
    x = {name: np.concatenate([part[name] for part in parts]) for name in data.COLUMNS}
    meta = dict(format=data.FORMAT, family=env, behavior_final=final,
                tasks={str(i): family.tasks[i] for i in tasks})
    data.check_rules(out, x | {"metadata": meta}, dict.fromkeys(data.BY_TASK, {}) | meta, env)
    if replay:
        try:
            check.report(x, env)
        except BadInput as problem:
            raise BadInput(f"{problem}, or give --no-check to write it as it is") from None
    data.write(out, x, meta)


def batch(run, arrays, columns=slice(None)):
    """A batch to adapt a run's learner to, from arrays (see `episodes`) of one task, which need be
    in no list: `run.policies(batch(run, arrays))`. Raises BadInput."""
    config = run.config
    x = episodes(arrays, envs.FAMILIES[config.env].horizon, columns)
    return run.buffers.batch(x, min(config.test_batch, len(x["actions"])))


# ----------------------------------------------------------------------------------------- readers
def extra(module):
    """An optional module; raises BadInput where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInput(f"{module} is not installed; pip install -r requirements-data.txt") from None


def load_numpy(path):
    """What a .npz or .npy file holds, but no Python objects, which could run a program."""
    try:
        x = np.load(path, allow_pickle=False)
        return x if isinstance(x, np.ndarray) else dict(x)
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise BadInput(f"{path} is damaged or holds Python objects, which are never loaded here; "
                       f"if you trust it, load it yourself and hand arrays over: {PAGE}") from None


def by_number(name):
    """Sorts names by their last number, then the one before: trj_evalsample0_step40000.npy."""
    return [int(number) for number in re.findall(r"\d+", str(name))][::-1], str(name)


def read_rows(path, act_dim):
    """An episode from a .npy file with rows [s, a, r, s'], as FOCAL writes them."""
    rows = load_numpy(path)
    obs_dim = (rows.shape[-1] - act_dim - 1) // 2
    if rows.ndim != 2 or 2 * obs_dim + act_dim + 1 != rows.shape[-1]:
        raise BadInput(f"{path} has shape {rows.shape}; give rows [s, a, r, s']: {PAGE}")
    s, a, r, following = np.split(rows, np.cumsum([obs_dim, act_dim, 1]), axis=1)
    return dict(observations=s, actions=a, rewards=r, next_observations=following)


def read_hdf5(path):
    """The arrays of an HDF5 file that have a name we know."""
    try:
        with extra("h5py").File(path) as file:
            return {name: file[name][()] for name in [*NAMES, *sum(NAMES.values(), ())]
                    if hasattr(file.get(name), "dtype")}
    except OSError:
        raise BadInput(f"{path} is not there, or no whole HDF5 file; name one that is") from None


def read_minari(name):
    """Episodes of a Minari dataset that is on this machine."""
    try:
        dataset = extra("minari").load_dataset(name)
    except (FileNotFoundError, ValueError):
        raise BadInput(f"there is no {name} here, neither a file (.hdf5, .npz, .npy), nor a folder "
                       f"of .npy files, nor a Minari dataset; `minari download {name}` gets one"
                       ) from None
    return [{key: getattr(one, key) for key in data.COLUMNS[:5]}
            for one in dataset.iterate_episodes()]


def read(source, act_dim):
    """One task's arrays or episodes from a source of a layout that its ending tells."""
    path = pathlib.Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.npy"), key=by_number)
        if not found:
            raise BadInput(f"{path} holds no .npy file; name a folder with one for each episode")
        return [read_rows(one, act_dim) for one in found]
    if path.suffix in (".pkl", ".pickle", ".pt", ".p"):
        raise BadInput(f"{path} may hold a program and is never loaded here; if you trust it, load "
                       f"it yourself and hand arrays over: {PAGE}")
    if path.suffix == ".npy":
        return read_rows(path, act_dim)
    if path.suffix == ".npz":
        return load_numpy(path)
    return read_hdf5(path) if path.suffix in (".hdf5", ".h5") else read_minari(source)


def to_minari(path, env, prefix):
    """A Minari dataset PREFIX/taskI-v0 of each task I of a data file; their names."""
    minari, (x, meta), names = extra("minari"), data.read(path, env), []
    for i in sorted(set(x["episode_task"].tolist())):
        part, buffers = data.part(x, x["episode_task"] == i), []
        for k, last in enumerate(np.cumsum(part["episode_length"]).tolist()):
            first = last - int(part["episode_length"][k])
            buffers.append(minari.data_collector.EpisodeBuffer(
                id=k, observations=part["observations"][first + k:last + k + 1].astype(np.float64),
                **{name: part[name][first:last] for name in data.COLUMNS[1:5]}))
        names.append(f"{prefix}/task{i}-v0")
        with warnings.catch_warnings(action="ignore"):          # of authors, links and the like
            try:
                minari.create_dataset_from_buffers(names[-1], buffers,
                                                   envs.make(env, meta["tasks"][str(i)]))
            except ValueError as problem:
                raise BadInput(f"{names[-1]}: {problem}; give another --to-minari") from None
    return names


# ------------------------------------------------------------------------------------ command line
@dataclasses.dataclass(frozen=True)
class Config:
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    tasks: str = flag("", "id of each source's task in envs.py, as in 2,7")
    data: str = flag("", "the sources, as in slow.hdf5,fast.hdf5, one for each task")
    out: str = flag("", "the .npz file to write")
    columns: str = flag("", "which of a source's observations are the family's, as in 0:17")
    check: bool = flag(True, "replay single steps in the simulator, and write only what fits")
    to_minari: str = flag("", "write --data, a file of ours, as Minari datasets NAME/taskI-v0")


def main(given):
    config = command.settings(Config, dict.fromkeys(envs.FAMILIES, {}), **given)
    if config.to_minari:
        path = data.path_of(config.data or config.env)
        return print(*to_minari(path, config.env, config.to_minari), sep="\n")
    sources = [name.strip() for name in config.data.split(",") if name.strip()]
    ids = data.parse_ids(config.tasks, range(len(envs.FAMILIES[config.env].tasks)))
    if not ids or len(ids) != len(sources) or not config.out.endswith(".npz"):
        raise BadInput("give --tasks and --data of equal length, as in --tasks 2,7 --data "
                       "slow.hdf5,fast.hdf5, and an --out that ends with .npz")
    if not re.fullmatch(r"(\d+:\d+)?", config.columns):
        raise BadInput(f"--columns {config.columns} is no range; write the first column and the "
                       "one after the last, as in 0:17")
    out = command.new_file(config.out)
    columns = slice(*map(int, config.columns.split(":"))) if config.columns else slice(None)
    act_dim, = data.check_family(config.env).action_space.shape
    bring(out, config.env, {i: read(source, act_dim) for i, source in zip(ids, sources)}, columns,
          config.check)
    print(f"wrote {out}; adapt a trained learner to it with --evaluate CHECKPOINT --data {out}")


if __name__ == "__main__":
    command.command_line(main, [Config()], __doc__)
