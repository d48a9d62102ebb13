"""Behaviour data: files, the offline buffers D_i made of them, and batches."""
import functools
import hashlib
import json
import math
import os
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box

import envs
from helpers.command import BadInput, replacing

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
OTHER_AGENTS = {        # families with replay buffers of several groups of agents, and their names
    "cheetah_vel": "cheetah_vel,cheetah_vel_others,cheetah_vel_others2",
    "ant_dir": "ant_dir,ant_dir_others",
}


def path_of(name):
    """The file NAME.npz in data/, wherever the program was started; what ends with .npz is a path
    already."""
    return pathlib.Path(name) if str(name).endswith(".npz") else DATA / f"{name}.npz"


def default_path(env):
    return path_of(env)


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
    check(pathlib.Path(path).is_file(), "is not there; make it with `python collect.py --env "
                                       f"{env}` or name another file with --data")
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





def part(x, chosen):
    """A file's arrays with the chosen ones (bool each) of its episodes."""
    length = x["episode_length"]
    transitions, states = np.repeat(chosen, length), np.repeat(chosen, length + 1)
    return {name: array[chosen if name.startswith("episode_") else
                        states if name == "observations" else transitions]
            for name, array in x.items()}


# ------------------------------------------------------------------------------ buffers and batches
class Batch(NamedTuple):
    """B transitions of each of N tasks. MACAW learns from whole returns, methods with a critic from
    single transitions. Gathering what one of them leaves aside costs under 1% of a step."""
    obs: torch.Tensor           # (N, B, obs) standardised
    action: torch.Tensor        # (N, B, act)
    reward: torch.Tensor        # (N, B) in units of the returns' deviation
    reward_seen: torch.Tensor   # (N, B) the reward standardised, as an encoder sees it
    next_obs: torch.Tensor      # (N, B, obs)
    terminated: torch.Tensor    # (N, B) 1 where the episode truly ended here, not by time
    mc_return: torch.Tensor     # (N, B) discounted rewards from here to the end of the episode
    discount: torch.Tensor      # (N, B) gamma^k, k steps before the time limit; 0 if terminated
    last_obs: torch.Tensor      # (N, B, obs) the state after the episode's last step

    def part(self, rank, world):
        """Every world-th task from the rank-th on: what falls to one of several processes, or one
        task of N for part(i, N)."""
        return Batch(*(x[rank::world] for x in self))


def mc_returns(rewards, length, gamma):
    """Discounted sums of rewards (N,) from each step to the end of its episode."""
    episode = np.repeat(np.arange(len(length)), length)
    step = np.arange(len(episode)) - np.repeat(np.cumsum(length) - length, length)
    table = np.zeros((len(length), length.max()))                   # an episode a row, then zeros
    table[episode, step] = rewards
    for t in range(table.shape[1] - 2, -1, -1):
        table[:, t] += gamma * table[:, t + 1]
    return table[episode, step]


def split(path, config, counts, trained):
    """Ids of test and training tasks, from the number of each task's transitions. Only a family
    whose tasks are all test tasks (cheetah_dir) trains on them. Raises BadInput."""
    family, ids = envs.FAMILIES[config.env], list(counts)
    held_out = parse_ids(config.holdout, ids)
    test = held_out or [i for i in family.test if i in ids]
    train = [i for i in ids if i not in test and i not in family.test]
    if len(family.test) == len(family.tasks) and not held_out:
        train = ids
    if trained:
        train = trained["train"]
    if wrong := [i for i in family.test if i in held_out]:
        raise BadInput(f"task {wrong[0]} is a test task; name training tasks as --holdout")
    if not train:
        raise BadInput(f"{path} leaves no task to train on; hold out fewer")
    if not test:
        raise BadInput(f"{path} has none of the test tasks {family.test}; collect them too")
    if config.tasks_per_step > len(train):
        raise BadInput(f"--tasks-per-step {config.tasks_per_step} is more than the {len(train)} "
                       "training tasks; give that or less")
    return test, train


def check_counts(path, counts, tasks, need):
    """Raises BadInput where a file has fewer transitions of a task than its batches need."""
    for i in tasks:
        if counts[i] < need:
            raise BadInput(f"{path} has {counts[i]} transitions of task {i}, where the batches of "
                           f"a step need {need}: make them smaller or collect more")


class Buffers:
    """The offline buffers D_i of a data file, standardised and ready to sample; beside them those
    of other agents for the same tasks (`lenders`), whose transitions serve to adapt to in training.
    A group is the agents of one file; the data file's are group 0.

    Observations are standardised and returns divided by their deviation, both over the training
    tasks of the data file alone. `trained`: the training tasks and the statistics (`stats`) that a
    checkpoint holds, when they come from there. Raises BadInput.
    """

    def __init__(self, path, config, trained=None, lenders=(), device="cpu"):
        groups = {os.path.realpath(p): p for p in [path, *lenders]}         # each file once
        self.paths, real = list(groups.values()), list(groups)
        self.lenders = torch.tensor([real.index(os.path.realpath(p)) for p in lenders or [path]])
        files, metas = zip(*(read(p, config.env) for p in self.paths))
        x = {name: np.concatenate([file[name] for file in files])
             for name in COLUMNS if name != "metadata"}
        self.behavior_final = {int(k): v for k, v in metas[0]["behavior_final"].items()}
        length = x["episode_length"]
        group = np.repeat(np.arange(len(files)), [len(f["episode_length"]) for f in files])
        episode = np.repeat(np.arange(len(length)), length)                 # of each transition
        owners, begin, owner = np.unique(np.stack([group, x["episode_task"]]), axis=1,
                                         return_index=True, return_inverse=True)
        self.first, self.count = torch.zeros(2, len(files), owners[1].max() + 1, dtype=torch.long)
        self.first[*owners] = torch.as_tensor((np.cumsum(length) - length)[begin])
        self.count[*owners] = torch.as_tensor(np.bincount(owner, length)).long()
        counts = [{i: n for i, n in enumerate(row) if n} for row in self.count.tolist()]
        self.test, self.train = split(path, config, counts[0], trained)
        self.check(config, counts, learns=not trained or len(lenders))
        self.id_dim = len(self.train) if config.task_ids else 0
        self.obs_dim, self.act_dim = x["observations"].shape[1] + self.id_dim, x["actions"].shape[1]

        total = np.bincount(episode, x["rewards"])                          # of each episode
        self.behavior_mean = {i: float(total[(group == 0) & (x["episode_task"] == i)].mean())
                              for i in counts[0]}
        returns = mc_returns(x["rewards"], length, config.gamma)
        here = np.arange(len(episode)) + episode            # place of s among the observations,
        last = np.cumsum(length + 1)[episode] - 1           # and of the episode's last state
        terminated = np.isin(episode, episode[x["terminations"]])
        discount = np.where(terminated, 0.0, config.gamma ** (last - here))
        if trained:
            stats = trained["stats"]
        else:
            train = ((group == 0) & np.isin(x["episode_task"], self.train))[episode]
            obs = x["observations"][here[train]].astype(np.float64)
            rewards = x["rewards"][train].astype(np.float64)
            mean, spread = obs.mean(0), obs.std(0)
            # What varies by less than float16 resolves is a constant, and its rounding no signal
            spread[spread < ROUNDING * np.abs(mean)] = 1.0
            stats = dict(obs_mean=mean, obs_std=spread + 1e-6,
                         return_scale=returns[train].std() + 1e-6, reward_mean=rewards.mean(),
                         reward_std=rewards.std() + 1e-6)

        def tensor(array, dtype=torch.float32):
            return torch.as_tensor(array, dtype=dtype, device=device)
        self.stats = stats = {name: tensor(x) for name, x in stats.items()}
        self.obs = self.standardise(x["observations"])
        self.action, self.discount = tensor(x["actions"]), tensor(discount)
        self.mc_return = tensor(returns) / stats["return_scale"]
        self.reward_seen = self.standardise_reward(tensor(x["rewards"]))
        self.reward = self.scale_reward(self.reward_seen)
        self.terminated = tensor(x["terminations"])
        self.here, self.last = tensor(here, torch.long), tensor(last, torch.long)

    def check(self, config, counts, learns):
        """Raises BadInput where a file has too little for the batches, or no file lends a task."""
        check_counts(self.paths[0], counts[0], self.test, config.test_batch)
        if not learns:
            return
        *adapt, last = config.batch_sizes                   # as in `sample`
        check_counts(self.paths[0], counts[0], self.train,     # SMAC's labels take a context, too
                     max((len(adapt) + 1) * last, *adapt))
        for group in self.lenders.tolist():
            path, tasks = self.paths[group], [i for i in self.train if i in counts[group]]
            if not tasks:
                raise BadInput(f"{path} has none of the training tasks; leave it out of "
                               "--adapt-data")
            check_counts(path, counts[group], tasks, (len(adapt) + 1) * max(adapt))
        lent = self.count[self.lenders].sum(0)
        for i in self.train:
            if not lent[i]:
                raise BadInput(f"no file of --adapt-data has task {i}; add one that has")

    @functools.cached_property
    def fingerprint(self):
        """Of the data file and of its lenders, in their order."""
        return fingerprint([self.paths[0], *(self.paths[k] for k in self.lenders)])

    def standardise(self, obs):
        """Observations (N, obs) as the nets see them."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.stats["obs_mean"].device)
        return (obs - self.stats["obs_mean"]) / self.stats["obs_std"]

    def standardise_reward(self, reward):
        """An environment's rewards as an encoder sees them."""
        return (reward - self.stats["reward_mean"]) / self.stats["reward_std"]

    def scale_reward(self, seen):
        """Such rewards as critics see them, in units of the returns' deviation."""
        reward = seen * self.stats["reward_std"] + self.stats["reward_mean"]
        return reward / self.stats["return_scale"]

    def observe(self, obs):
        """What the policies of N tasks see (N, 1, obs) of their environments' states (N, obs)."""
        return self.with_id(self.standardise(obs)[:, None])

    def with_id(self, obs, tasks=()):
        """Of a multi-task learner: obs (N, B, obs) and the one-hot id of each training task, zeros
        where no tasks are given; of others just obs."""
        if not self.id_dim:
            return obs
        ids = obs.new_zeros(len(obs), 1, self.id_dim)
        for t, task in enumerate(tasks):
            ids[t, 0, self.train.index(task)] = 1
        return torch.cat([obs, ids.expand(-1, obs.shape[1], -1)], -1)

    def sample(self, tasks, sizes, generator, begin=None, known=False):
        """Disjoint batches of these sizes for each task (line 6 of Algorithm 1).

        The last batch comes from the data file's agents; those before it are to adapt to, and each
        of their tasks comes from the agents of one lender, drawn at random. Of a life every n-th
        transition may go to a batch, where n is the number of batches: so batches share no
        transition. A batch comes from the life after its share of it in `begin`, or from all of
        it: this is cut into as many equal stretches as the batch has transitions, one from each.
        Multi-task learners are told the tasks where these are `known`. Raises BadInput where a task
        has too few transitions.
        """
        piles, batches = len(sizes), []
        turn = torch.randint(piles, (), generator=generator)
        for k, (size, share) in enumerate(zip(sizes, begin or [0.0] * piles)):
            group = self.lender(tasks, generator) if k < piles - 1 else [0] * len(tasks)
            birth, last = (x[group, tasks][:, None] for x in (self.first, self.count // piles))
            if (last < size).any():             # or the batch would be of the tasks before it
                raise BadInput(f"task {tasks[int((last < size).nonzero()[0, 0])]} has too few "
                               f"transitions for a batch of {size}; make it smaller")
            first = (share * last).long().minimum(last - size)
            cut = first + torch.arange(size + 1) * (last - first) // size       # (N, size + 1)
            place = cut[:, :-1] + (torch.rand(len(tasks), size, generator=generator)
                                   * cut.diff()).long()
            i = (birth + place * piles + (k + turn) % piles).to(self.obs.device)
            batches.append(self.transitions(i, tasks if known else ()))
        return batches

    def lender(self, tasks, generator):
        """For each task one of the groups that lend its transitions, drawn at random (N,)."""
        if len(self.lenders) == 1:
            return self.lenders.expand(len(tasks))
        lends = self.count[self.lenders][:, tasks].T > 0                        # (N, lenders)
        return self.lenders[torch.multinomial(lends.float(), 1, generator=generator)[:, 0]]

    def transitions(self, i, tasks=()):
        """The batch of the transitions with these numbers (N, B), counted through all files."""
        here, last = self.here[i], self.last[i]
        obs, next_obs, last_obs = (self.with_id(self.obs[place], tasks)
                                   for place in (here, here + 1, last))
        return Batch(obs, self.action[i], self.reward[i], self.reward_seen[i], next_obs,
                     self.terminated[i], self.mc_return[i], self.discount[i], last_obs)


def parse_files(text):
    """Names of files from "a.npz,b.npz"; raises BadInput for an empty one."""
    files = [name.strip() for name in text.split(",")]
    if "" in files:
        raise BadInput(f"'{text}' has an empty name in it; write files as in a.npz,b.npz")
    return files


def parse_ids(text, known):
    """Task ids from "4,12"; raises BadInput for others than the known ones."""
    try:
        ids = [int(i) for i in text.split(",")] if text else []
    except ValueError:
        raise BadInput(f"'{text}' is no list of task ids; write them as in 0,6") from None
    if wrong := [i for i in ids if i not in known]:
        raise BadInput(f"there is no task {wrong[0]}; choose among {known[0]} to {known[-1]}")
    if len(set(ids)) < len(ids):
        raise BadInput(f"'{text}' names a task twice; name each once")
    return ids
