"""Behaviour data: files, the offline buffers D_i made of them, and batches."""
import copy
import functools
import hashlib
import json
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

import envs
from helpers.command import BadInput, replacing

DATA = pathlib.Path(__file__).parent.parent / "data"
FORMAT = 1
LARGEST = 8e9               # bytes that a file may unpack to
FARTHEST = 1e6              # that a number may lie from 0: float32 holds the square of its sums
ROUNDING = 1e-3             # more than the share of a number by which float16 changes it
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations", "episode_task",
           "episode_number", "episode_seed", "episode_length")
OTHER_AGENTS = {        # files of a family's agents and of others, to adapt to in training
    "cheetah_vel": "cheetah_vel,cheetah_vel_others,cheetah_vel_others2",
    "ant_dir": "ant_dir,ant_dir_others",
    "walker_params": "walker_params,walker_params_others",
}
KINDS = {"f": "floats", "b": "bools", "iu": "whole numbers"}
BY_TASK = "tasks", "behavior_final", "collector"        # the metadata that are dicts by task id


# ------------------------------------------------------------------------------------------- files
def path_of(name):
    """A data file from its name: data/NAME.npz, which we ship, or a path if it ends with .npz.
    Raises BadInput for what is neither."""
    path = pathlib.Path(name)
    if path.suffix == ".npz":
        return path
    ours = DATA / f"{name}.npz"
    if name not in envs.FAMILIES and not ours.exists() and (path.exists() or path.suffix):
        raise BadInput(f"{name} is no .npz file of ours; make one of it with `python -m "
                       "helpers.bring` (docs/your_own.md) and name that")
    return ours


default_path = path_of      # of a family


def read(path, env):
    """The arrays and the metadata of a behaviour data file; raises BadInput.

    The .npz file holds the arrays of `rules`, the episodes of each task in one piece and in the
    order in which they were played, and `metadata`, a JSON string of a dict: `format` (1),
    `family`; of each task id `tasks` (as in envs.py) and `behavior_final` (its agent's return at
    the end); and anything else, such as `collector` (the agent's settings, also by task id).
    """
    if not os.path.isfile(path):
        raise BadInput(f"{path} is not there, or not a file; make it with `python collect.py --env "
                       f"{env}` or name another file with --data")
    with open(path, "rb"):                              # where this fails, the system says why
        pass
    try:
        with np.load(path, allow_pickle=False) as file:             # executes nothing
            if sum(array.file_size for array in file.zip.infolist()) > LARGEST:
                raise MemoryError
            x = dict(file)
        meta = dict(format=None, family=None) | {name: {} for name in BY_TASK}
        meta |= json.loads(str(x.get("metadata", "{}")))
    except Exception:                                   # of many kinds where a file is damaged
        raise BadInput(f"{path} is cut off, damaged, of another layout or over {LARGEST / 1e9:.0f} "
                       "GB; make it again, or bring it in as docs/your_own.md says") from None
    check_rules(path, x, meta, env)
    x = {name: x[name].astype(np.int64) if name.startswith("episode_") else x[name]
         for name in COLUMNS}
    return dict(x, actions=x["actions"].clip(-1, 1)), meta      # beyond by rounding at most


def check_rules(path, x, meta, env):
    """Raises BadInput where the arrays and metadata of a file break a rule."""
    for good, problem in rules(x, meta, env):
        if not good:
            raise BadInput(f"{path} {problem}")


def rules(x, meta, env):
    """Of each rule for a data file, whether it is kept, and what to say if not. A rule may rely on
    those before it."""
    for name in (*COLUMNS, "metadata"):
        yield (name in x, f"has no array {name}, only {', '.join(sorted(x))[:200]}; if these have "
               "other names, `python -m helpers.bring` takes them (docs/your_own.md)")
    for name in ("format", "family"):
        yield (meta[name] is not None, f"has no {name} in its metadata; add it, as helpers/data.py "
               "describes")
    yield ((meta["format"], meta["family"]) == (FORMAT, env),
           f"holds {meta['family']} in format {meta['format']}, not {env} in format {FORMAT}; give "
           "another --data or --env")
    yield (all(isinstance(meta[name], dict) for name in BY_TASK),
           f"has metadata of another kind; make {', '.join(BY_TASK)} dicts by task id")
    length = x["episode_length"]
    yield (length.dtype.kind in "iu" and length.ndim == 1 and length.size > 0,
           "has no episode, or an episode_length that is no list of whole numbers; make it again")
    family, example, n, steps = envs.FAMILIES[env], check_family(env), len(length), length.sum()
    space, actions = example.observation_space, example.action_space
    slack = ROUNDING * np.abs([space.low, space.high])
    lowest = np.maximum(space.low - slack[0], -FARTHEST)
    highest = np.minimum(space.high + slack[1], FARTHEST)
    for name, (kinds, shape, low, high) in dict(        # kinds of dtype; bounds
            observations=("f", (steps + n, *space.shape), lowest, highest),     # T + 1 an episode
            actions=("f", (steps, *actions.shape), -1 - ROUNDING, 1 + ROUNDING),
            rewards=("f", (steps,), -FARTHEST, FARTHEST),
            terminations=("b", (steps,), 0, 1),                             # whether it failed
            truncations=("b", (steps,), 0, 1),                              # whether time was up
            episode_task=("iu", (n,), 0, len(family.tasks) - 1),
            episode_number=("iu", (n,), 0, np.inf),             # among all that its agent played
            episode_seed=("iu", (n,), -1, np.inf),              # of its reset; -1: not known
            episode_length=("iu", (n,), 1, family.horizon)).items():
        yield (x[name].dtype.kind in kinds and x[name].shape == shape,
               f"has {name} of type {x[name].dtype} and shape {x[name].shape}, where {env} and the "
               f"lengths of its episodes ask for {KINDS[kinds]} of shape {shape}; convert them, or "
               "let `python -m helpers.bring` do it")
        low, high = np.float64(low), np.float64(high)   # float16 would hold no FARTHEST
        bad = (f"has a number in {name} that is not finite or that {env} cannot have; leave its "
               "episode out")
        if name == "actions" and np.isfinite(x[name]).all():
            bad = "has actions beyond [-1, 1]; clip them if your simulator does, else rescale them"
        yield (low <= x[name].min(0)).all() and (x[name].max(0) <= high).all(), bad
    ends = np.flatnonzero(x["terminations"] | x["truncations"])
    yield (np.array_equal(ends, np.cumsum(length) - 1), "has an episode that does not end with its "
           "last step; mark this step, and no other, as a termination or a truncation")
    task, number = (x[f"episode_{name}"].astype(np.int64) for name in ("task", "number"))
    next_task, later = np.diff(task) != 0, np.diff(number) > 0
    yield (next_task.sum() == len(set(task)) - 1 and (next_task | later).all(),
           "has episodes twice or out of order; keep each once, by task and by episode_number")
    for name in ("observations", "rewards"):
        yield (np.ptp(x[name]) > 0,
               f"has one number everywhere in {name}, which teaches nothing; make it again")
    for i in set(task.tolist()):
        yield (same_task(meta["tasks"].get(str(i)), family.tasks[i]),
               f"has another task {i} than {env} ({str(family.tasks[i])[:60]}); give each task the "
               "id that it has in envs.py, or add a family of your own (docs/your_own.md)")
        yield (is_number(meta["behavior_final"].get(str(i))),
               f"has no behavior_final of task {i}; add the return that its agent had at the end")


def same_task(one, other):
    """Whether two tasks are the same, but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_task(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_task, one, other))
    if is_number(one) and is_number(other):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return one == other


def is_number(x):
    return isinstance(x, int | float) and abs(x) <= FARTHEST ** 2         # which NaN is not


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
          "no test tasks, or some that are not there; name ids of tasks, which begin at 0")
    example = envs.make(env, family.tasks[0])
    space, actions = example.observation_space, example.action_space
    check(not isinstance(actions, Discrete | MultiDiscrete | MultiBinary),
          "discrete actions; give an environment with continuous ones")
    check(all(isinstance(x, Box) and len(x.shape) == 1 for x in (space, actions)),
          "observations or actions that are no flat Box; flatten them")
    check((actions.low == -1).all() and (actions.high == 1).all(),
          "actions that do not lie in [-1, 1]; rescale them in its step")
    return example


def write(path, x, meta):
    """A file that `read` reads, whole or not at all."""
    with replacing(path) as file:
        np.savez_compressed(file, metadata=np.array(json.dumps(meta)), **x)


def part(x, chosen):
    """A file's arrays with the chosen ones (bool each) of its episodes."""
    length = x["episode_length"]
    steps, states = np.repeat(chosen, length), np.repeat(chosen, length + 1)
    return {name: array[chosen if name.startswith("episode_") else
                        states if name == "observations" else steps] for name, array in x.items()}


def fingerprint(paths):
    """Tells files apart, so that a run goes on with the data that it began with."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(pathlib.Path(path).read_bytes()).digest())
    return whole.hexdigest()


def parse_files(text):
    """Names of files from "a.npz,b.npz"; raises BadInput for an empty one."""
    files = [name.strip() for name in text.split(",")]
    if not all(files):
        raise BadInput(f"'{text}' has an empty name in it; write files as in a.npz,b.npz")
    return files


def parse_ids(text, known):
    """Task ids from "4,12"; raises BadInput for others than the known ones."""
    ids = [int(i) if i.strip().isdecimal() else i for i in text.split(",")] if text else []
    if not set(ids) <= set(known) or len(set(ids)) < len(ids):
        raise BadInput(f"'{text}' does not list tasks from {known[0]} to {known[-1]}, each once; "
                       "write ids as in 0,6")
    return ids


# ------------------------------------------------------------------------------ buffers and batches
class Batch(NamedTuple):
    """B transitions of each of N tasks. Some methods learn from whole returns, others from single
    transitions; to gather both costs under 1% of a step."""
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
        """Every world-th task from the rank-th on; with part(i, N), task i of N."""
        return Batch(*(x[rank::world] for x in self))


def mc_returns(rewards, length, gamma):
    """Discounted sums of rewards (N,) from each step to the end of its episode."""
    played = np.arange(length.max()) < length[:, None]
    table = np.zeros(played.shape)                                  # an episode a row, then zeros
    table[played] = rewards
    for t in range(table.shape[1] - 2, -1, -1):
        table[:, t] += gamma * table[:, t + 1]
    return table[played]


def unfold(x, gamma):
    """Of each transition: place of its state among the observations, place of its episode's last
    state, gamma^k at the time limit k steps later or 0, discounted rewards to the episode's end."""
    length = x["episode_length"]
    episode = np.repeat(np.arange(len(length)), length)
    here, last = np.arange(len(episode)) + episode, np.cumsum(length + 1)[episode] - 1
    terminated = np.isin(episode, episode[x["terminations"]])
    discount = np.where(terminated, 0.0, gamma ** (last - here))
    return here, last, discount, mc_returns(x["rewards"], length, gamma)


def statistics(obs, rewards, returns):
    """What standardises observations and rewards, and what returns are divided by."""
    obs, rewards = obs.astype(np.float64), rewards.astype(np.float64)
    mean, std = obs.mean(0), obs.std(0)
    std[std < ROUNDING * np.abs(mean)] = 1.0        # a constant whose rounding is no signal
    return dict(obs_mean=mean, obs_std=std + 1e-6, return_scale=returns.std() + 1e-6,
                reward_mean=rewards.mean(), reward_std=rewards.std() + 1e-6)


def split(path, config, ids, trained):
    """Test and training tasks among the ids of a data file. Only a family whose tasks are all test
    tasks (cheetah_dir) trains on them. Raises BadInput."""
    family, held_out = envs.FAMILIES[config.env], parse_ids(config.holdout, ids)
    if set(held_out) & set(family.test):
        raise BadInput(f"--holdout {config.holdout} has a test task; name training tasks")
    test = held_out or [i for i in family.test if i in ids]
    train = [i for i in ids if i not in [*held_out, *family.test]]
    if trained:
        train = trained["train"]
    elif len(family.test) == len(family.tasks):
        train = ids
    if not test:
        raise BadInput(f"{path} has none of the test tasks {family.test}; collect them too")
    if len(train) < config.tasks_per_step:
        raise BadInput(f"{path} leaves {len(train)} tasks to train on; hold out fewer or give at "
                       f"most that as --tasks-per-step, not {config.tasks_per_step}")
    return test, train


class Buffers:
    """The offline buffers D_i of a data file, standardised over its training tasks.

    `adapt_paths`: files of agents for the same tasks, from which in training comes what is adapted
    to. `trained`: a checkpoint with the training tasks and statistics to use instead. Where
    config.task_ids says so, observations get the one-hot id of their task. Raises BadInput.
    """

    def __init__(self, path, config, trained=None, adapt_paths=(), device="cpu"):
        real = [os.path.realpath(p) for p in [path, *adapt_paths]]
        self.paths = list(dict.fromkeys(real))                      # each file once, `path` first
        self.adapt_groups = torch.tensor([self.paths.index(p) for p in real[1:] or real])
        files, metas = zip(*(read(p, config.env) for p in self.paths))
        x = {name: np.concatenate([file[name] for file in files]) for name in COLUMNS}
        length, task = x["episode_length"], x["episode_task"]
        group = np.repeat(range(len(files)), [len(file["episode_task"]) for file in files])
        episode = np.repeat(np.arange(len(length)), length)                 # of each transition

        # The transitions of a group's agent for a task: the number of the first one, and how many
        shape = len(files), task.max() + 1
        first, count = np.full(shape, len(episode)), np.zeros(shape, int)
        np.minimum.at(first, (group, task), length.cumsum() - length)
        np.add.at(count, (group, task), length)
        self.first, self.count = torch.as_tensor(first), torch.as_tensor(count)
        ids = np.flatnonzero(count[0]).tolist()
        self.test, self.train = split(path, config, ids, trained)
        self.check(0, self.test, config.test_batch, "--test-batch")
        if not trained or adapt_paths:
            self.check_sizes(config)
        self.id_dim = len(self.train) if config.task_ids else 0
        self.obs_dim, self.act_dim = x["observations"].shape[1] + self.id_dim, x["actions"].shape[1]

        total = np.bincount(episode, x["rewards"])                          # of each episode
        self.behavior_mean = {i: float(total[(group == 0) & (task == i)].mean()) for i in ids}
        self.behavior_final = {i: metas[0]["behavior_final"][str(i)] for i in ids}
        self.gamma = config.gamma
        here, *_, returns = unfolded = unfold(x, config.gamma)
        known = ((group == 0) & np.isin(task, self.train))[episode]
        stats = trained["stats"] if trained else statistics(
            x["observations"][here[known]], x["rewards"][known], returns[known])
        self.stats = {name: torch.as_tensor(value, dtype=torch.float32, device=device)
                      for name, value in stats.items()}
        self.hold(x, unfolded)

    def hold(self, x, unfolded):
        """Keep the transitions of a file's arrays, and what `unfold` makes of them, as tensors,
        standardised."""
        device = self.stats["obs_mean"].device

        def tensor(array, dtype=torch.float32):
            return torch.as_tensor(array, dtype=dtype, device=device)
        here, last, discount, returns = unfolded
        self.obs = self.standardise(x["observations"])
        self.action, self.discount = tensor(x["actions"]), tensor(discount)
        self.mc_return = tensor(returns) / self.stats["return_scale"]
        self.reward_seen = self.standardise_reward(tensor(x["rewards"]))
        self.reward = self.scale_reward(self.reward_seen)
        self.terminated = tensor(x["terminations"])
        self.here, self.last = tensor(here, torch.long), tensor(last, torch.long)

    def batch(self, x, size, seed=0):
        """A batch (1, size) to adapt to, spread evenly over one task's transitions that are in no
        file: arrays as `bring.episodes` makes them. Raises BadInput."""
        some = copy.copy(self)
        some.hold(x, unfold(x, self.gamma))
        some.paths, some.adapt_groups = ["what is given"], torch.tensor([0])
        some.first, some.count = torch.tensor([[0]]), torch.tensor([[len(x["actions"])]])
        return some.sample([0], [size], torch.Generator().manual_seed(seed))[0]

    def check_sizes(self, config):
        """Raises BadInput where a file has too little for the batches of a step."""
        *adapt, last = config.batch_sizes                           # as in `sample`
        batches = len(adapt) + 1
        self.check(0, self.train, max(batches * last, *adapt))
        for group in self.adapt_groups.tolist():                 # each has some training task,
            tasks = [i for i in self.train if self.count[group, i]]
            self.check(group, tasks or self.train, batches * max(adapt))
        for i in self.train:                                        # each task is in one of them
            self.check(self.adapt_groups[self.count[self.adapt_groups, i].argmax()], [i], 1)

    def check(self, group, tasks, need, batches="batches"):
        """Raises BadInput where a group has fewer transitions of one of the tasks than needed."""
        group = torch.as_tensor(group).expand(len(tasks))
        count = self.count[group, tasks]
        if (count < need).any():
            k = int(count.argmin())
            raise BadInput(f"{self.paths[group[k]]} has {count[k]} transitions of task {tasks[k]}, "
                           f"and {need} are needed; collect more or make {batches} smaller")

    @functools.cached_property
    def fingerprint(self):
        """Of the data file and of those to adapt to, in their order."""
        return fingerprint([self.paths[0], *(self.paths[k] for k in self.adapt_groups)])

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
        """Observations (N, B, obs); with task ids also the one-hot id of each training task, or
        zeros if no tasks are given."""
        if not self.id_dim:
            return obs
        ids = obs.new_zeros(len(obs), 1, self.id_dim)
        for t, task in enumerate(tasks):
            ids[t, 0, self.train.index(task)] = 1
        return torch.cat([obs, ids.expand(-1, obs.shape[1], -1)], -1)

    def sample(self, tasks, sizes, generator, begin=None, known=False):
        """Disjoint batches of these sizes for each task.

        The last batch comes from the data file; those before it are to adapt to and come, for each
        task, from one of the files for that, drawn at random. Of an agent's transitions each of n
        batches may take every n-th, so that they share none. A batch covers them evenly, from its
        share in `begin` on: one is drawn from each of as many equal stretches as it has places.
        Tasks that are not `known` get no id. Raises BadInput where a task has too few transitions.
        """
        n, batches = len(sizes), []
        turn = torch.randint(n, (), generator=generator)
        for k, (size, share) in enumerate(zip(sizes, begin or [0.0] * n)):
            group = self.choose_groups(tasks, generator) if k < n - 1 else [0] * len(tasks)
            self.check(group, tasks, n * size)
            first, end = (x[group, tasks][:, None] for x in (self.first, self.count // n))
            start = (share * end).long().minimum(end - size)
            cuts = start + torch.arange(size + 1) * (end - start) // size       # (N, size + 1)
            place = cuts[:, :-1] + (torch.rand(len(tasks), size, generator=generator)
                                    * cuts.diff()).long()
            i = (first + place * n + (k + turn) % n).to(self.obs.device)
            batches.append(self.transitions(i, tasks if known else ()))
        return batches

    def choose_groups(self, tasks, generator):
        """For each task a group that has it, drawn at random among those to adapt to (N,)."""
        if len(self.adapt_groups) == 1:
            return self.adapt_groups.expand(len(tasks))
        has = self.count[self.adapt_groups][:, tasks].T > 0                          # (N, groups)
        return self.adapt_groups[torch.multinomial(has.float(), 1, generator=generator)[:, 0]]

    def transitions(self, i, tasks=()):
        """The batch of the transitions with these numbers (N, B), counted through all files."""
        here, last = self.here[i], self.last[i]
        obs, next_obs, last_obs = (self.with_id(self.obs[place], tasks)
                                   for place in (here, here + 1, last))
        return Batch(obs, self.action[i], self.reward[i], self.reward_seen[i], next_obs,
                     self.terminated[i], self.mc_return[i], self.discount[i], last_obs)
