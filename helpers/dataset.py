"""Behaviour data files: their format, reading with every check, writing, joining."""
import hashlib
import json
import math
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
from gymnasium.spaces import Box

import envs
from helpers import command
from helpers.command import BadInput, Diverged, replacing

FORMAT = 1
LARGEST = 8e9               # bytes that a file may unpack to
FARTHEST = 1e6              # that a number may lie from 0: float32 holds the square of its sums
ROUNDING = 1e-3             # more than the share of a number by which float16 changes it
BY_TASK = "tasks", "behavior_final", "collector"            # what metadata tell of each task


class Column(NamedTuple):
    """What an array of a file must be."""
    kinds: str              # of its dtype: f float, b bool, i and u integers, U text
    dims: int
    rows: str               # of what it has one each
    low: float = -math.inf
    high: float = math.inf


COLUMNS = dict(
    observations=Column("f", 2, "state", -FARTHEST, FARTHEST),
    actions=Column("f", 2, "transition", -1, 1),
    rewards=Column("f", 1, "transition", -FARTHEST, FARTHEST),
    terminations=Column("b", 1, "transition"),
    truncations=Column("b", 1, "transition"),
    episode_task=Column("iu", 1, "episode", 0, 1e6),
    episode_number=Column("iu", 1, "episode", 0, 1e12),
    episode_seed=Column("iu", 1, "episode", 0, 2 ** 63),
    episode_length=Column("iu", 1, "episode", 1, 1e6),
    metadata=Column("U", 0, ""),
)


DATA = pathlib.Path(__file__).parent.parent / "data"


def default_path(env):
    """Where the behaviour data of a family lies, wherever the program was started."""
    return DATA / f"{env}.npz"


def shipped_lenders(env):
    """The files, as in a.npz,b.npz, of all agents that we ship for training, where a family has
    several groups of them; else nothing."""
    others = sorted(DATA.glob(f"{env}_others*.npz"))
    if others and "," in str(DATA):
        raise BadInput(f"{DATA} has a comma in its name, which parts the names of files; move the "
                       "project, or give --adapt-data or --data with names relative to here")
    return ",".join(map(str, [default_path(env), *others])) if others else ""


def read(path, env):
    """The arrays and the metadata of a behaviour data file, written by `collect.py`.

    The .npz holds, task by task and episode by episode in the order in which the agent lived
    them: `observations` (T + 1 an episode), `actions`, `rewards`, `terminations`, `truncations`
    (T each); for each episode `episode_task`, `episode_number` in the agent's life,
    `episode_seed` of its reset, `episode_length`; and `metadata`, a JSON string of a dict with
    `format` (1), `family`, `tasks` (of each id, as text, what envs.py has), `behavior_final` (of
    each id, the agent's return at its end) and what else there is, such as `collector` (its
    settings). The last step of an episode, and no other, is a termination or a truncation. Of a
    task without an episode the metadata tell nothing. Raises BadInput.
    """
    def check(good, problem):
        if not good:
            raise BadInput(f"{path} {problem}")
    check(pathlib.Path(path).exists(), "is not there; make it with `python collect.py --env "
                                       f"{env}` or name another file with --data")
    command.check_readable(path)
    try:
        check_headers(path, check)
        with np.load(path, allow_pickle=False) as file:
            x = {name: file[name] for name in COLUMNS}
        meta = json.loads(str(x.pop("metadata")))
    except BadInput:
        raise
    except Exception:                                           # many kinds on a damaged file
        check(False, "cannot be read: it is cut off or not a file of collect.py; make it anew")
    check_metadata(meta, env, check)
    check_arrays(x, env, check)
    for i in np.unique(x["episode_task"]).tolist():
        check(meta["tasks"].get(str(i)) == envs.FAMILIES[env].tasks[i],
              f"has another task {i} than {env} has; collect it anew with this version")
        check(is_number(meta["behavior_final"].get(str(i))),
              f"has no behavior_final of task {i}, what its agent reached at the end; add it")
    return {name: array.astype(np.int64) if name.startswith("episode_") else array
            for name, array in x.items()}, own(meta, x["episode_task"])


def own(meta, tasks):
    """A file's metadata of these tasks alone, which it has episodes of."""
    ids = set(map(str, np.unique(tasks)))
    return {name: {i: value for i, value in told.items() if str(i) in ids}
            if name in BY_TASK and isinstance(told, dict) else told for name, told in meta.items()}


def check_headers(path, check):
    """What the arrays' headers declare, before any of them is read."""
    with zipfile.ZipFile(path) as archive:
        members, total = {info.filename: info for info in archive.infolist()}, 0
        for name, column in COLUMNS.items():
            check(f"{name}.npy" in members, f"has no array '{name}'; make it anew")
            with archive.open(members[f"{name}.npy"]) as file:
                version = np.lib.format.read_magic(file)
                shape, _, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else
                                   np.lib.format.read_array_header_2_0)(file)
                declared = file.tell() + math.prod(shape) * dtype.itemsize
            odd = dtype.kind == "f" and dtype not in (np.float16, np.float32, np.float64)
            check(dtype.kind in column.kinds and len(shape) == column.dims and not odd,
                  f"has {dtype} numbers in {len(shape)} dimensions as '{name}', not what belongs "
                  "there; make it anew")
            if declared != members[f"{name}.npy"].file_size:
                raise zipfile.BadZipFile
            total += declared
        check(total <= LARGEST, f"unpacks to {total / 1e9:.0f} GB, more than {LARGEST / 1e9:.0f}; "
                                "keep fewer transitions")


def check_metadata(meta, env, check):
    known = isinstance(meta, dict) and {"format", "family", "tasks", "behavior_final"} <= set(meta)
    check(known, "has no metadata of collect.py; make it anew")
    check((meta["format"], meta["family"]) == (FORMAT, env),
          f"holds {meta['family']} in format {meta['format']}, not {env} in format {FORMAT}; give "
          "another --data or --env")
    check(isinstance(meta["tasks"], dict) and isinstance(meta["behavior_final"], dict),
          "has no metadata of collect.py; make it anew")


def check_family(env):
    """The environment of a family's first task; raises BadInput where the family is not what the
    programs need (docs/your_own.md)."""
    def check(good, problem):
        if not good:
            raise BadInput(f"the family {env} has {problem}")
    family = envs.FAMILIES[env]
    try:
        plain = json.loads(json.dumps(family.tasks)) == family.tasks
    except (TypeError, ValueError):
        plain = False
    check(plain, "tasks that JSON changes or cannot hold; give plain numbers, texts and lists")
    check(family.test and set(family.test) <= set(range(len(family.tasks))),
          "none of its tasks, or others, to test on; name some of its ids, which begin at 0")
    example = envs.make(env, family.tasks[0])
    flat = all(isinstance(space, Box) and len(space.shape) == 1
               for space in (example.observation_space, example.action_space))
    check(flat, "observations or actions that are no flat Box; flatten them")
    check((example.action_space.low == -1).all() and (example.action_space.high == 1).all(),
          "actions that do not lie in [-1, 1]; rescale them in its step")
    return example


def check_arrays(x, env, check):
    family, example = envs.FAMILIES[env], check_family(env)
    length, task = x["episode_length"], x["episode_task"]
    check(len(length) > 0, "holds no episode; collect more")
    bounds = {}                                         # the least and the most of each column
    for name, array in x.items():
        check(np.isfinite(array).all(),
              f"has numbers in '{name}' that are not finite; leave out those episodes")
        if array.size:
            least, most = bounds[name] = array.min(0), array.max(0)
            low, high = COLUMNS[name].low, COLUMNS[name].high
            check(low <= least.min().item() <= most.max().item() <= high,
                  f"has numbers in '{name}' outside {low:g} to {high:g}; leave out those episodes")
    check(length.max() <= family.horizon, f"has an episode of {length.max()} steps, where {env} "
                                          f"ends one after {family.horizon}; cut it")
    steps = int(length.sum(dtype=np.int64))
    rows = dict(episode=len(length), transition=steps, state=steps + len(length))
    for name, array in x.items():
        expected = rows[COLUMNS[name].rows]
        check(len(array) == expected, f"has {len(array)} rows in '{name}', where the lengths of "
                                      f"its episodes ask for {expected}; make it anew")
    ends = np.flatnonzero(x["terminations"] | x["truncations"])
    check(np.array_equal(ends, np.cumsum(length, dtype=np.int64) - 1),
          "has an episode that ends before its last step, or does not end there; mark the last "
          "step, and no other, as a termination or a truncation")
    begins, number = np.r_[True, task[1:] != task[:-1]], x["episode_number"]
    ids = task[begins]
    check(len(set(ids)) == len(ids), "has episodes of one task in several places; sort them")
    check((begins[1:] | (number[1:] > number[:-1])).all(), "has episodes of a task twice or out of "
          "order; keep each once, sorted by episode_number")
    check(max(ids) < len(family.tasks), f"has a task {max(ids)}, where the last one of {env} is "
                                        f"{len(family.tasks) - 1}; leave it out")
    sizes = example.observation_space.shape + example.action_space.shape
    check(sizes == x["observations"].shape[1:] + x["actions"].shape[1:],
          f"has other observation or action sizes than {env}; make it anew")
    for name in ("observations", "rewards"):
        least, most = bounds[name]
        check(steps == 1 or least.min() < most.max(),
              f"has one number everywhere in '{name}', which teaches nothing; make it anew")
    least, most = (bound.astype(np.float64) for bound in bounds["observations"])
    space = example.observation_space
    check((least + ROUNDING * np.abs(least) >= space.low).all()
          and (most - ROUNDING * np.abs(most) <= space.high).all(),
          f"has observations that {env} cannot have; give them in its own units")


def is_number(x):
    return isinstance(x, int | float) and abs(x) <= FARTHEST ** 2         # which NaN is not


def fingerprint(paths):
    """Tells files apart, so that a run goes on with the data that it began with."""
    whole = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def write(path, x, meta):
    """A file that `read` reads, whole or not at all; `meta` may tell of more tasks than `x` has."""
    meta = own(meta, x.get("episode_task", ()))
    with replacing(path) as file:
        np.savez_compressed(file, metadata=np.array(json.dumps(meta)), **x)


def evenly(lengths, keep):
    """Which episodes of a life to keep (bool each), evenly spaced, for about `keep` transitions."""
    chosen, kept, lived, life = [], 0, 0, sum(lengths)
    for length in lengths:
        lived += length
        chosen.append(bool(kept + length / 2 <= lived / life * keep))   # not ahead of the pace
        kept += length * chosen[-1]
    return chosen


def check_lived(step, **lived):
    """Raises Diverged where the agents' numbers of a step (tensors) are such as no file may hold:
    an overflow of float16 is among them."""
    for name, x in lived.items():
        if not (far := x.abs().max().item()) <= FARTHEST:
            raise Diverged(f"step {step} brought an agent's {name} to {far:g}; begin anew with a "
                           "smaller --lr, --tau, --gamma or --updates")


def lives(replay, episodes, ids, keep):
    """A file's arrays from what was lived: of each task the whole episodes, evenly spaced, for
    about `keep` transitions. `replay` has columns (N, steps, ...) in the order of `ids`; of each
    task `episodes` lists [first step, length, seed, return], the last one unfinished."""
    replay = {name: x.cpu().numpy() for name, x in replay.items()}
    chosen = []                             # (row, task, number, seed, first, length)
    for row, task in enumerate(ids):
        whole = episodes[row][:-1]
        kept = evenly([length for _, length, _, _ in whole], keep)
        chosen += [(row, task, number, seed, first, length)
                   for number, (first, length, seed, _) in enumerate(whole) if kept[number]]

    def lived(name):
        return np.concatenate([replay[name][row, a:a + n] for row, _, _, _, a, n in chosen])
    states = [np.r_[replay["obs"][row, a:a + n], replay["next_obs"][row, [a + n - 1]]]
              for row, _, _, _, a, n in chosen]
    _, task, number, seed, _, length = np.array(chosen, np.int64).T
    return dict(observations=np.concatenate(states), actions=lived("action"),
                rewards=lived("reward"), terminations=lived("terminated"),
                truncations=lived("truncated"), episode_task=task, episode_number=number,
                episode_seed=seed, episode_length=length)


def part(x, chosen):
    """A file's arrays with the chosen ones (bool each) of its episodes."""
    length = x["episode_length"]
    transitions, states = np.repeat(chosen, length), np.repeat(chosen, length + 1)
    return {name: array[chosen if name.startswith("episode_") else
                        states if name == "observations" else transitions]
            for name, array in x.items()}


def join(paths, env, keep):
    """One file's arrays and metadata from several: of each task the agent that ended best, about
    `keep` transitions of its life."""
    files = [read(path, env) for path in paths]
    ids = sorted({int(i) for _, meta in files for i in meta["tasks"]})
    parts, joined = [], files[0][1] | {name: {} for name in BY_TASK}
    for i in map(str, ids):
        x, meta = max((f for f in files if i in f[1]["tasks"]),
                      key=lambda f: f[1]["behavior_final"][i])
        for name in BY_TASK:
            told = meta.get(name)           # a user's own file may have no collector
            if isinstance(told, dict) and i in told:
                joined[name][i] = told[i]
        length, mine = x["episode_length"], x["episode_task"] == int(i)
        mine[mine] = evenly(length[mine], keep)
        parts.append(part(x, mine))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, joined
