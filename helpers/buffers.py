"""The offline buffers D_i of the training and test tasks: reading a data file, sampling batches."""
import json
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import torch

import envs
from helpers.command import BadInput, replacing

DATA_FORMAT = 1


class Batch(NamedTuple):
    """B transitions of each of N tasks. MACAW learns from whole returns, methods with a critic from
    single transitions; to gather what one of them leaves aside costs a thousandth of a step."""
    obs: torch.Tensor           # (N, B, obs) standardised
    action: torch.Tensor        # (N, B, act)
    reward: torch.Tensor        # (N, B) in units of the returns' deviation
    next_obs: torch.Tensor      # (N, B, obs)
    terminated: torch.Tensor    # (N, B) 1 where the episode truly ended here, not by time
    mc_return: torch.Tensor     # (N, B) discounted rewards from here to the end of the episode
    discount: torch.Tensor      # (N, B) gamma^k, k steps before the time limit; 0 if terminated
    last_obs: torch.Tensor      # (N, B, obs) the state after the episode's last step

    def part(self, rank, world):
        """Every world-th task from the rank-th on: what falls to one of several processes, or one
        task of N for part(i, N)."""
        return Batch(*(x[rank::world] for x in self))


def default_path(env):
    """Where the behaviour data of a family lies, wherever the program was started."""
    return pathlib.Path(__file__).parent.parent / f"data/{env}.npz"


def read(path, env):
    """The arrays and the metadata of a behaviour data file, written by `collect.py`.

    The .npz holds, task by task and episode by episode in the order in which the agent lived
    them: `observations` (T + 1 an episode), `actions`, `rewards`, `terminations`, `truncations`
    (T each); for each episode `episode_task`, `episode_number` in the agent's life,
    `episode_seed` of its reset, `episode_length`; and `metadata`, a JSON string. Raises BadInput.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            x = {name: file[name] for name in file.files}
            meta = json.loads(str(x["metadata"]))
    except FileNotFoundError:
        raise BadInput(f"{path} is not there; make it with `python collect.py --env {env}` or "
                       "name another file with --data") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise BadInput(f"{path} cannot be read: it is cut off or not a file of collect.py; "
                       "make it anew") from None
    if (meta["format"], meta["family"]) != (DATA_FORMAT, env):
        raise BadInput(f"{path} holds {meta['family']} in format {meta['format']}, not {env} in "
                       f"format {DATA_FORMAT}; give another --data or --env")
    example = envs.make(env, envs.FAMILIES[env].tasks[0])
    sizes = example.observation_space.shape + example.action_space.shape
    if sizes != x["observations"].shape[1:] + x["actions"].shape[1:]:
        raise BadInput(f"{path} has other observation or action sizes than {env}; make it anew")
    return x, meta


def write(path, x, meta):
    """A file that `read` reads, whole or not at all."""
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


def join(paths, env, keep):
    """One file's arrays and metadata from several: of each task the agent that ended best, about
    `keep` transitions of its life."""
    files = [read(path, env) for path in paths]
    ids = sorted({int(i) for _, meta in files for i in meta["tasks"]})
    parts, joined = [], {**files[0][1], "tasks": {}, "behavior_final": {}, "collector": {}}
    for i in map(str, ids):
        x, meta = max((f for f in files if i in f[1]["tasks"]),
                      key=lambda f: f[1]["behavior_final"][i])
        for name in ("tasks", "behavior_final", "collector"):
            joined[name][i] = meta[name][i]
        length, mine = x["episode_length"], x["episode_task"] == int(i)
        mine[mine] = evenly(length[mine], keep)
        transitions, states = np.repeat(mine, length), np.repeat(mine, length + 1)
        parts.append({name: array[mine if name.startswith("episode_") else
                                  states if name == "observations" else transitions]
                      for name, array in x.items() if name != "metadata"})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, joined


def mc_returns(rewards, length, gamma):
    """Discounted sums of rewards (N,) from each step to the end of its episode."""
    episode = np.repeat(np.arange(len(length)), length)
    step = np.arange(len(episode)) - np.repeat(np.cumsum(length) - length, length)
    table = np.zeros((len(length), length.max()))                   # an episode a row, then zeros
    table[episode, step] = rewards
    for t in range(table.shape[1] - 2, -1, -1):
        table[:, t] += gamma * table[:, t + 1]
    return table[episode, step]


class Buffers:
    """The offline buffers D_i of a data file, standardised and ready to sample.

    Observations are standardised and returns divided by their deviation, both over the training
    tasks alone; `stats` are given when they come from a checkpoint. Raises BadInput.
    """

    def __init__(self, path, config, stats=None):
        x, meta = read(path, config.env)
        self.behavior_final = {int(k): v for k, v in meta["behavior_final"].items()}
        length = x["episode_length"]
        episode = np.repeat(np.arange(len(length)), length)                 # of each transition
        task = x["episode_task"][episode]
        ids, first, count = np.unique(task, return_index=True, return_counts=True)
        self.split(path, config, ids.tolist(), count)
        self.id_dim = len(self.train) if config.multi_task else 0
        self.obs_dim, self.act_dim = x["observations"].shape[1] + self.id_dim, x["actions"].shape[1]

        total = np.bincount(episode, x["rewards"])                          # of each episode
        self.behavior_mean = {i: float(total[x["episode_task"] == i].mean()) for i in ids.tolist()}
        returns = mc_returns(x["rewards"], length, config.gamma)
        here = np.arange(len(episode)) + episode            # place of s among the observations,
        last = np.cumsum(length + 1)[episode] - 1           # and of the episode's last state
        terminated = np.isin(episode, episode[x["terminations"]])
        discount = np.where(terminated, 0.0, config.gamma ** (last - here))
        if stats is None:
            train = np.isin(task, self.train)
            obs = x["observations"][here[train]].astype(np.float64)
            stats = dict(obs_mean=obs.mean(0), obs_std=obs.std(0) + 1e-6,
                         return_scale=returns[train].std() + 1e-6)

        def tensor(array, dtype=torch.float32):
            return torch.as_tensor(array, dtype=dtype, device=config.device)
        self.stats = stats = {name: tensor(x) for name, x in stats.items()}
        self.obs = self.standardise(x["observations"])
        self.action, self.discount = tensor(x["actions"]), tensor(discount)
        self.mc_return = tensor(returns) / stats["return_scale"]
        self.reward = tensor(x["rewards"]) / stats["return_scale"]
        self.terminated = tensor(x["terminations"])
        self.here, self.last = tensor(here, torch.long), tensor(last, torch.long)
        self.first, self.count = torch.zeros(2, ids.max() + 1, 1, dtype=torch.long)
        self.first[ids, 0], self.count[ids, 0] = torch.as_tensor(first), torch.as_tensor(count)

    def split(self, path, config, ids, count):
        """Training and test tasks; the same where a family has no others (cheetah_dir)."""
        held_out = envs.FAMILIES[config.env].test
        self.test = parse_ids(config.holdout, ids) or [i for i in held_out if i in ids]
        self.train = [i for i in ids if i not in self.test and i not in held_out] or ids
        if not self.test:
            raise BadInput(f"{path} has none of the test tasks {held_out}; collect them too")
        if config.tasks_per_step > len(self.train):
            raise BadInput(f"--tasks-per-step {config.tasks_per_step} is more than the "
                           f"{len(self.train)} training tasks; give that or less")
        sizes = config.batch_sizes
        need = len(sizes) * max(sizes)
        if count.min() < need:
            raise BadInput(f"{path} has {count.min()} transitions of a task; the batches of a "
                           f"meta-step need {need}: make them smaller or collect more")

    def standardise(self, obs):
        """Observations (N, obs) as the nets see them."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.stats["obs_mean"].device)
        return (obs - self.stats["obs_mean"]) / self.stats["obs_std"]

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

        The transitions of a life are dealt to as many piles as there are batches, so two batches
        share episodes but no transition. Each batch comes from the life after its share of it in
        `begin`, or from all of it: this is cut into as many equal stretches as the batch has
        transitions, and gives one of each. Multi-task learners are told the tasks where these are
        `known`.
        """
        count, piles, batches = self.count[tasks], len(sizes), []               # count: (N, 1)
        turn = torch.randint(piles, (), generator=generator)
        for k, (size, share) in enumerate(zip(sizes, begin or [0.0] * piles)):
            last = count // piles
            first = (share * last).long().minimum(last - size)
            cut = first + torch.arange(size + 1) * (last - first) // size       # (N, size + 1)
            place = cut[:, :-1] + (torch.rand(len(tasks), size, generator=generator)
                                   * cut.diff()).long()
            i = (self.first[tasks] + place * piles + (k + turn) % piles).to(self.obs.device)
            batches.append(self.transitions(i, tasks if known else ()))
        return batches

    def transitions(self, i, tasks=()):
        """The batch of the transitions with these numbers (N, B) in the file."""
        here, last = self.here[i], self.last[i]
        obs, next_obs, last_obs = (self.with_id(self.obs[place], tasks)
                                   for place in (here, here + 1, last))
        return Batch(obs, self.action[i], self.reward[i], next_obs, self.terminated[i],
                     self.mc_return[i], self.discount[i], last_obs)


def parse_ids(text, known):
    """Task ids from "4,12"; raises BadInput for others than the known ones."""
    try:
        ids = [int(i) for i in text.split(",")] if text else []
    except ValueError:
        raise BadInput(f"'{text}' is no list of task ids; write them as in 0,6") from None
    if wrong := [i for i in ids if i not in known]:
        raise BadInput(f"there is no task {wrong[0]}; choose among {known[0]} to {known[-1]}")
    return ids
