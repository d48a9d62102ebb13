"""MACAW: Offline Meta-Reinforcement Learning with Advantage Weighting (Mitchell et al., ICML 2021).

From fixed data of many tasks, meta-learn a policy and a value function that adapt to a new task by
one or a few gradient steps on 256 of its transitions. Read this file beside the paper:

    Algorithm 1 (meta-training)                          Algorithm 2 (meta-testing)
    line 3   initialise theta, phi    Learner            line 3    initialise      Learner
    line 4   for n steps              train              line 4    for n steps     adapt
    line 6   sample D^tr, D^ts        Data.sample        line 5    adapt phi       adapt
    line 7   phi'   (Eq. 2)           adapt, value_loss  line 6    adapt theta     adapt
    line 8   theta' (Eq. 1, 3, 4)     adapt, policy_loss           act             rollout
    line 10  update phi   (Eq. 5)     meta_loss, train
    line 11  update theta (Eq. 6)     meta_loss, train   Appendix B (weight transform)  WeightTransform

    python macaw.py --env cheetah_vel                         # meta-train, then meta-test
    python macaw.py --evaluate runs/.../checkpoint.pt         # meta-test only

Where we leave the paper; [code]: as the authors' released program does; the README gives evidence.
 1. Returns end in gamma^k V(s_end) at the time limit, but in the inner value loss [code].
 2. Advantages are standardised in the batch, their exponent is clipped at log 20 [code].
 3. Inner step sizes, one a tensor, and lambda are meta-learned [code].
 4. z, M and m of a weight transform adapt, not z alone [code], but M is never copied: see there.
 5. The two batches of line 6 are disjoint (not in the code), one draw from each part of a life.
 6. Negative actions reach the advantage head (the code clips them at 0).
 7. Observations are standardised, returns divided by their deviation, over the training tasks.
 8. Meta-losses are means over tasks, not sums (Adam does not care); outer step sizes decay to 0.
"""
import argparse
import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import time
import zipfile
import zlib
from typing import NamedTuple

import higher
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import envs

# Shapes: T tasks, B transitions of each, c latent size, n numbers in a layer's weights and bias.
# Every layer has a leading task axis: T tasks at once by batched matrix products, no loop anywhere.

DATA_FORMAT = 1
CHECKPOINT_FORMAT = 1


class BadInput(Exception):
    """What the user gave cannot be used; the message says in one sentence what to do."""


class Diverged(Exception):
    """A loss or a gradient is not finite."""


def flag(default, meaning, low=None, high=1e9):
    """A field of a Config that is also a flag of the command line; numbers lie in [low, high]."""
    return dataclasses.field(default=default, metadata=dict(help=meaning, low=low, high=high))


@dataclasses.dataclass(frozen=True)
class Config:
    """[code]: the value of the authors' released configuration; [us]: chosen on training tasks."""
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    variant: str = flag("macaw", "macaw, or what the paper compares it with; see VARIANTS")
    steps: int = flag(8000, "n of Algorithm 1, meta-steps [us]", 1)
    seed: int = flag(0, "of nets and batches", 0)
    data: str = flag("", "behaviour data; data/ENV.npz when empty")
    out: str = flag("", "run folder; a fresh one under runs/ when empty")
    resume: bool = flag(False, "go on from the checkpoint in --out")
    evaluate: str = flag("", "a checkpoint to meta-test, without training")
    device: str = flag("cpu", "cpu or cuda")
    holdout: str = flag("", "training tasks, as in 4,12, to test on instead of the test tasks")
    width: int = flag(100, "units in each of the three hidden layers [code]", 1, 4096)
    latent: int = flag(32, "c, size of a weight transform's latent z [code: 100]", 1, 4096)
    head_width: int = flag(32, "hidden units of the advantage head [code]", 1, 4096)
    weight_transform: bool = flag(True, "layers are weight transforms (Appendix B)")
    advantage_head: bool = flag(True, "the inner policy loss has L^ADV (Eq. 3)")
    behavior_cloning: bool = flag(False, "all advantage weights are 1, inside and out")
    sigma: float = flag(0.2, "standard deviation of the policy [code]", 1e-3, 10)
    gamma: float = flag(0.99, "discount [code]", 0, 1)
    temperature: float = flag(1.0, "T of Eq. 1 [code]", 1e-3)
    max_weight: float = flag(20.0, "largest advantage weight exp(A / T) [code]", 1)
    bootstrap: bool = flag(True, "returns go on with V at the time limit [code]")
    advantage_coef: float = flag(0.01, "lambda of Eq. 3, to begin with [code]", 1e-6)
    inner_lr: float = flag(1e-3, "alpha_1 and eta_1, to begin with [code]", 1e-9, 10)
    policy_lr: float = flag(1e-3, "alpha_2, Adam [code: 1e-4]", 0, 10)
    value_lr: float = flag(1e-3, "eta_2, Adam [code: 1e-5]", 0, 10)
    step_lr: float = flag(1e-3, "Adam step size of the inner step sizes and lambda [code]", 0, 10)
    tasks_per_step: int = flag(5, "tasks in a meta-batch [code]", 1, 1000)
    inner_batch: int = flag(256, "transitions in D^tr, in training and in testing [code]", 2, 100_000)
    outer_batch: int = flag(256, "transitions in D^ts [code]", 2, 100_000)
    inner_steps: int = flag(1, "gradient steps of an adaptation in training [code]", 1, 100)
    test_steps: int = flag(1, "gradient steps of an adaptation in testing [code]", 1, 1000)
    eval_every: int = flag(500, "meta-steps between two evaluations", 1)
    eval_draws: int = flag(2, "adaptation batches, with an episode each, of a task and evaluation", 1, 1000)
    final_draws: int = flag(20, "the same at the end", 1, 1000)


PRESETS = {                                     # what a family needs differently from the defaults
    "cheetah_vel": dict(),
    "point_goal": dict(steps=400, gamma=0.9, width=32, latent=16, eval_every=100),
}

VARIANTS = {                                    # the paper's ablations (Section 5) and Meta-BC
    "macaw": dict(),
    "no_advantage": dict(advantage_head=False),
    "no_wt": dict(weight_transform=False),                          # at equal width
    "no_wt_wide": dict(weight_transform=False),                     # at equal parameter count
    "maml_awr": dict(weight_transform=False, advantage_head=False),
    "meta_bc": dict(behavior_cloning=True, advantage_head=False),
}


# ----------------------------------------------------------------------------- layers and networks

class Linear(nn.Module):
    """y = x W + b for T tasks at once; theta (T, n) holds W (in x out), then b (out)."""

    def __init__(self, inputs, outputs, tasks=1):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        bound = inputs ** -0.5
        theta = torch.empty(tasks, (inputs + 1) * outputs).uniform_(-bound, bound)
        self.theta = nn.Parameter(theta)

    def forward(self, x):                                               # (T, B, in)
        W, b = self.theta.split([self.inputs * self.outputs, self.outputs], -1)
        return torch.baddbmm(b[:, None], x, W.view(-1, self.inputs, self.outputs))


class Policy(nn.Module):
    """The mean action pi(s) and, from a second head, the advantage A(s, a) (Figure 2)."""

    def __init__(self, obs_dim, act_dim, width, head_width):
        super().__init__()
        self.hidden = nn.ModuleList([Linear(obs_dim, width), Linear(width, width),
                                     Linear(width, width)])
        self.mean = Linear(width, act_dim)
        self.head = nn.ModuleList([Linear(width + act_dim, head_width), Linear(head_width, 1)]
                                  if head_width else [])

    def forward(self, obs, action=None):
        """Means (T, B, act) in [-1, 1]; with actions given, advantages (T, B) too."""
        h = obs                                                         # (T, B, obs)
        for layer in self.hidden:
            h = layer(h).relu()                                         # (T, B, width)
        mean = self.mean(h).tanh()
        if action is None:
            return mean
        return mean, self.head[1](self.head[0](torch.cat([h, action], -1)).relu()).squeeze(-1)


class Value(nn.Module):
    """V(s)."""

    def __init__(self, obs_dim, width):
        super().__init__()
        self.hidden = nn.ModuleList([Linear(obs_dim, width), Linear(width, width),
                                     Linear(width, width)])
        self.value = Linear(width, 1)

    def forward(self, obs):
        """Values (T, B) of observations (T, B, obs)."""
        h = obs
        for layer in self.hidden:
            h = layer(h).relu()                                         # (T, B, width)
        return self.value(h).squeeze(-1)


def inverse_softplus(x):
    return math.log(math.expm1(x))


class WeightTransform(nn.Module):
    """A layer's weights as theta = M z + m (Appendix B), and what a gradient step makes of them.

    The authors' inner step moves all three by their step sizes a_z, a_M, a_m. With d = dL/dtheta,

        z' = z - a_z M^T d        M' = M - a_M d z^T        m' = m - a_m d

    so theta' = M' z' + m' = theta - [a_z M M^T + (a_m + a_M z.z') I] d: a gradient step under a
    learned metric, low rank plus diagonal. We take that step without forming M', which is n x c
    for every task. After k steps M_k = M - a_M sum_j d_j z_j^T, so the pairs (d_j, z_j) suffice.
    """

    def __init__(self, inputs, outputs, latent, inner_lr):
        super().__init__()
        n, bound = (inputs + 1) * outputs, latent ** -0.5
        self.z = nn.Parameter(torch.randn(1, latent) * outputs ** -0.5)             # (1, c)
        self.M = nn.Parameter(torch.empty(n, latent).uniform_(-bound, bound))       # (n, c)
        self.m = nn.Parameter(torch.empty(1, n).uniform_(-bound, bound))            # (1, n)
        self.log_lr = nn.Parameter(torch.full((3,), inverse_softplus(inner_lr)))

    def initial(self):
        """theta_0 (1, n), and the memory of an adaptation, d_j (T, n) and z_j (T, c)."""
        return self.z @ self.M.T + self.m, ([], [self.z])

    def step(self, d, memory):
        """theta_k - theta_{k+1} (T, n) for d = dL/dtheta_k (T, n)."""
        a_z, a_M, a_m = F.softplus(self.log_lr)
        ds, zs = memory
        g = d @ self.M                                      # M_k^T d, the gradient of z: (T, c)
        for d_j, z_j in zip(ds, zs):
            g = g - a_M * (d_j * d).sum(-1, keepdim=True) * z_j
        dz = a_z * g                                        # z_k - z_{k+1}
        dtheta = dz @ self.M.T                              # M_k (z_k - z_{k+1}): (T, n)
        for d_j, z_j in zip(ds, zs):
            dtheta = dtheta - a_M * (z_j * dz).sum(-1, keepdim=True) * d_j
        z, z_next = zs[-1], zs[-1] - dz
        ds.append(d)
        zs.append(z_next)
        return dtheta + (a_m + a_M * (z * z_next).sum(-1, keepdim=True)) * d


class FullyConnected(Linear):
    """An ordinary layer, for the ablation: W and b adapt, each with a step size of its own."""

    def __init__(self, inputs, outputs, inner_lr):
        super().__init__(inputs, outputs)
        self.log_lr = nn.Parameter(torch.full((2,), inverse_softplus(inner_lr)))

    def initial(self):
        return self.theta, None

    def step(self, d, memory):
        a_W, a_b = F.softplus(self.log_lr)
        lr = torch.cat([a_W.expand(self.inputs * self.outputs), a_b.expand(self.outputs)])
        return lr * d


class Learner(nn.Module):
    """The meta-parameters of a network, one transform a layer, and its inner loop."""

    def __init__(self, make_net, config):
        super().__init__()
        with torch.device("meta"):                          # shapes without numbers, which come
            self.net = [make_net()]                         # from the transforms; hidden in a list,
        layers = [m for m in self.net[0].modules() if isinstance(m, Linear)]    # nothing to train
        self.transforms = nn.ModuleList(
            WeightTransform(layer.inputs, layer.outputs, config.latent, config.inner_lr)
            if config.weight_transform else
            FullyConnected(layer.inputs, layer.outputs, config.inner_lr) for layer in layers)

    @contextlib.contextmanager
    def inner_loop(self, tasks, train):
        """A functional net of `tasks` copies of the initial weights, and a step that adapts them.

        `train` keeps the graph through the steps, for meta-gradients.
        """
        net = self.net[0]
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=1.0),
                                  copy_initial_weights=False,
                                  track_higher_grads=train) as (fast, optimizer):
            thetas, memories = zip(*(t.initial() for t in self.transforms))
            fast.update_params([theta.expand(tasks, -1) for theta in thetas])

            def transform(gradients):
                return [t.step(d, memory)
                        for t, d, memory in zip(self.transforms, gradients, memories)]
            yield fast, lambda loss: optimizer.step(loss, grad_callback=transform)


# ------------------------------------------------------------------------------ losses, adaptation

class Batch(NamedTuple):
    """B transitions of each of T tasks."""
    obs: torch.Tensor           # (T, B, obs) standardised
    action: torch.Tensor        # (T, B, act)
    mc_return: torch.Tensor     # (T, B) discounted rewards from here to the end of the episode
    discount: torch.Tensor      # (T, B) gamma^k, k steps before the time limit; 0 if terminated
    last_obs: torch.Tensor      # (T, B, obs) the state after the episode's last step


def returns(V, batch, bootstrap):
    """R_D(s, a) (T, B): the Monte Carlo return, going on with V where time alone ended it.

    Without the tail late steps look too good (rewards are negative here), for V(s) sees no clock.
    """
    if not bootstrap:
        return batch.mc_return
    with torch.no_grad():
        return batch.mc_return + batch.discount * V(batch.last_obs)


def value_loss(V, batch, bootstrap):
    """L_V (Eq. 2), summed over tasks so that each task's weights get just their own gradient, and
    the advantages R - V(s) (T, B) under the same V, without gradient."""
    advantage = returns(V, batch, bootstrap) - V(batch.obs)
    return advantage.square().mean(-1).sum(), advantage.detach()


def advantage_weights(advantage, config):
    """exp(A / T) of Eq. 1 for A (T, B) standardised in each task's batch, at most max_weight."""
    centred = advantage - advantage.mean(-1, keepdim=True)
    deviation = advantage.std(-1, keepdim=True)
    scaled = centred / deviation.clamp_min(1e-6)
    return (scaled / config.temperature).clamp_max(math.log(config.max_weight)).exp()


def policy_loss(pi, batch, advantage, config, coef=None):
    """L^AWR (Eq. 1), with a coef lambda L_pi = L^AWR + lambda L^ADV (Eq. 3, 4); summed over tasks."""
    mean, predicted = (pi(batch.obs), None) if coef is None else pi(batch.obs, batch.action)
    log_prob = (-0.5 * ((batch.action - mean) / config.sigma).square()
                - math.log(config.sigma * math.sqrt(2 * math.pi))).sum(-1)          # (T, B)
    weight = 1.0 if config.behavior_cloning else advantage_weights(advantage, config)
    loss = -log_prob * weight
    if coef is not None:
        loss = loss + coef * (predicted - advantage).square()
    return loss.mean(-1).sum()


class Macaw(nn.Module):
    """All that meta-training learns: theta, phi, their step sizes and lambda."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.config = config
        head_width = config.head_width if config.advantage_head else 0
        self.policy = Learner(lambda: Policy(obs_dim, act_dim, config.width, head_width), config)
        self.value = Learner(lambda: Value(obs_dim, config.width), config)
        if config.advantage_head:
            self.log_coef = nn.Parameter(torch.tensor(inverse_softplus(config.advantage_coef)))

    def adapt(self, batch, steps, train):
        """phi', theta': nets adapted to each task of the batch (lines 7-8; Alg. 2, lines 4-7)."""
        config = self.config
        coef = F.softplus(self.log_coef) if config.advantage_head else None
        with (self.value.inner_loop(len(batch.obs), train) as (V, step_value),
              self.policy.inner_loop(len(batch.obs), train) as (pi, step_policy)):
            for _ in range(steps):
                step_value(value_loss(V, batch, bootstrap=False)[0])
                with torch.no_grad():
                    advantage = value_loss(V, batch, config.bootstrap)[1]
                step_policy(policy_loss(pi, batch, advantage, config, coef))
            return pi, V

    def meta_loss(self, inner, outer):
        """The losses of the adapted nets on D^ts, means over tasks (Eq. 5 and 6; lines 10-11)."""
        config, tasks = self.config, len(outer.obs)
        pi, V = self.adapt(inner, config.inner_steps, train=True)
        loss_V, advantage = value_loss(V, outer, config.bootstrap)
        loss_pi = policy_loss(pi, outer, advantage, config)
        return loss_V / tasks, loss_pi / tasks

    def optimizer(self):
        """Adam over everything, in three groups: theta, phi, and the inner steps."""
        config = self.config
        steps = [p for name, p in self.named_parameters() if "log_" in name]
        nets = [[p for name, p in net.named_parameters() if "log_" not in name]
                for net in (self.policy, self.value)]
        groups = zip((*nets, steps), (config.policy_lr, config.value_lr, config.step_lr))
        return torch.optim.Adam([dict(params=p, lr=lr) for p, lr in groups], fused=True)


# --------------------------------------------------------------------------------- behaviour data

class Data:
    """The transitions of a data file, ready to sample; written by `collect.py`.

    The .npz holds, task by task and episode by episode in the order in which the agent lived
    them: `observations` (T + 1 an episode), `actions`, `rewards`, `terminations`, `truncations`
    (T each); for each episode `episode_task`, `episode_number` in the agent's life,
    `episode_seed` of its reset, `episode_length`; and `metadata`, a JSON string.
    """

    def __init__(self, path, config, stats=None):
        """Raises BadInput. `stats` are those of a checkpoint; else they come from training tasks."""
        try:
            with np.load(path, allow_pickle=False) as file:
                x = {name: file[name] for name in file.files}
                meta = json.loads(str(x["metadata"]))
        except FileNotFoundError:
            raise BadInput(f"{path} is not there; make it with `python collect.py --env "
                           f"{config.env}` or name another file with --data") from None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
            raise BadInput(f"{path} cannot be read: it is cut off or not a file of collect.py; "
                           "make it anew") from None
        if (meta["format"], meta["family"]) != (DATA_FORMAT, config.env):
            raise BadInput(f"{path} holds {meta['family']} in format {meta['format']}, not "
                           f"{config.env} in format {DATA_FORMAT}; give another --data or --env")
        family = envs.FAMILIES[config.env]
        env = envs.make(config.env, family.tasks[0])
        dims = env.observation_space.shape + env.action_space.shape
        if dims != x["observations"].shape[1:] + x["actions"].shape[1:]:
            raise BadInput(f"{path} has other observation or action sizes than {config.env}; "
                           "collect it anew")
        self.obs_dim, self.act_dim = dims
        self.behavior_final = {int(k): v for k, v in meta["behavior_final"].items()}

        # each transition's place among the observations, and that of its episode's last state
        length = x["episode_length"]
        episode = np.repeat(np.arange(len(length)), length)                     # of transitions
        step = np.arange(len(episode)) - np.repeat(np.cumsum(length) - length, length)
        last = np.cumsum(length + 1) - 1
        rewards = np.zeros((len(length), length.max()), np.float64)             # padded by zeros
        rewards[episode, step] = x["rewards"]
        for t in range(rewards.shape[1] - 2, -1, -1):
            rewards[:, t] += config.gamma * rewards[:, t + 1]                   # now returns
        ended = np.zeros(len(length))
        np.logical_or.at(ended, episode, x["terminations"])
        discount = config.gamma ** (length[episode] - step) * (1 - ended[episode])

        task = x["episode_task"][episode]
        ids, first, count = np.unique(task, return_index=True, return_counts=True)
        ids = ids.tolist()
        self.test = parse_ids(config.holdout, ids) or [i for i in family.test if i in ids]
        self.train = [i for i in ids if i not in self.test and i not in family.test] or ids
        if not self.test:
            raise BadInput(f"{path} has none of the held-out tasks {family.test}; collect them too")
        need = config.inner_batch + config.outer_batch
        if count.min() < need:
            raise BadInput(f"{path} has {count.min()} transitions of a task; the two batches of a "
                           f"meta-step need {need}: make them smaller or collect more")
        mc_return = rewards[episode, step]
        if stats is None:
            mine = np.isin(task, self.train)
            obs = x["observations"][np.isin(np.repeat(x["episode_task"], length + 1), self.train)]
            stats = dict(obs_mean=obs.mean(0, np.float64), obs_std=obs.std(0, np.float64) + 1e-6,
                         return_scale=mc_return[mine].std())
            stats = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in stats.items()}
        self.stats = stats = {k: v.to(config.device) for k, v in stats.items()}

        def tensor(array, dtype=torch.float32):
            return torch.as_tensor(array, dtype=dtype, device=config.device)
        self.obs = (tensor(x["observations"]) - stats["obs_mean"]) / stats["obs_std"]
        self.action, self.discount = tensor(x["actions"]), tensor(discount)
        self.mc_return = tensor(mc_return) / stats["return_scale"]
        self.here = tensor(np.arange(len(episode)) + episode, torch.long)
        self.last = tensor(last[episode], torch.long)
        self.first, self.count = torch.zeros(2, max(ids) + 1, 1, dtype=torch.long)
        self.first[ids, 0], self.count[ids, 0] = torch.as_tensor(first), torch.as_tensor(count)

    def sample(self, tasks, sizes, generator):
        """Disjoint batches of these sizes for each task (line 6 of Algorithm 1).

        The buffer is cut into sum(sizes) equal parts; one transition of each is dealt at random.
        """
        shape = len(tasks), sum(sizes)
        part = torch.rand(shape, generator=generator).argsort(-1)
        place = (part + torch.rand(shape, generator=generator, dtype=torch.float64)) / shape[1]
        index = self.first[tasks] + (place * self.count[tasks]).long()
        return [Batch(self.obs[self.here[i]], self.action[i], self.mc_return[i], self.discount[i],
                      self.obs[self.last[i]])
                for i in index.to(self.obs.device).split(sizes, -1)]


def parse_ids(text, known):
    """Task ids from "4,12"; raises BadInput for others than the known ones."""
    try:
        ids = [int(i) for i in text.split(",")] if text else []
    except ValueError:
        raise BadInput(f"'{text}' is no list of task ids; write them as in 0,6") from None
    if wrong := [i for i in ids if i not in known]:
        raise BadInput(f"there is no task {wrong[0]}; choose among {known[0]} to {known[-1]}")
    return ids


# --------------------------------------------------------------------------- rollout, evaluation

@torch.no_grad()
def rollout(pi, environments, seeds, stats):
    """Undiscounted returns (T,) of an episode of the T policies' mean actions, in lock-step."""
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(environments, seeds)])
    total, alive = np.zeros(len(obs)), np.ones(len(obs), bool)
    while alive.any():
        x = torch.as_tensor(obs, dtype=torch.float32, device=stats["obs_mean"].device)
        action = pi(((x - stats["obs_mean"]) / stats["obs_std"])[:, None])[:, 0].cpu().numpy()
        for i in np.flatnonzero(alive):
            obs[i], reward, terminated, truncated, _ = environments[i].step(action[i])
            total[i] += reward
            alive[i] = not (terminated or truncated)
    return total


def evaluate(macaw, data, draws):
    """Algorithm 2 on the held-out tasks: mean returns before and after adaptation, (tasks,) each.

    Each task is adapted to `draws` batches of its buffer, each followed by an episode. Batches and
    episodes are the same at every evaluation, and no random stream of the training is touched.
    """
    config, tasks = macaw.config, [i for i in data.test for _ in range(draws)]
    environments = [envs.make(config.env, envs.FAMILIES[config.env].tasks[i]) for i in tasks]
    batch, = data.sample(tasks, [config.inner_batch], torch.Generator().manual_seed(0))
    seeds = range(len(tasks))
    results = []
    for steps in (0, config.test_steps):
        pi, _ = macaw.adapt(batch, steps, train=False)
        results.append(rollout(pi, environments, seeds, data.stats).reshape(-1, draws).mean(-1))
    for env in environments:
        env.close()
    return results


# ---------------------------------------------------------------------------------- save and load

@contextlib.contextmanager
def replacing(path, mode="wb"):
    """A file to write in, moved to `path` when all is written: a crash leaves the old one."""
    part = pathlib.Path(f"{path}.part")
    with open(part, mode, newline="" if "b" not in mode else None) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save_json(path, content):
    with replacing(path, "w") as file:
        json.dump(content, file, indent=1)


def load_checkpoint(path):
    """The state that `Run.save` wrote; raises BadInput."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["format"] == CHECKPOINT_FORMAT:
            return state
    except FileNotFoundError:
        raise BadInput(f"there is no checkpoint {path}; start a run without --resume") from None
    except Exception:                       # torch.load raises many kinds on a damaged file
        pass
    raise BadInput(f"{path} is no checkpoint of this version of macaw.py, or damaged; train anew")


# --------------------------------------------------------------------------------------- training

class Run:
    """Everything that training changes, hence everything that a checkpoint holds."""

    def __init__(self, config, state=None):
        self.config = config
        path = config.data or pathlib.Path(__file__).parent / f"data/{config.env}.npz"
        self.data = Data(path, config, state and state["stats"])
        torch.manual_seed(config.seed)                              # for the first weights
        self.macaw = Macaw(self.data.obs_dim, self.data.act_dim, config).to(config.device)
        self.optimizer = self.macaw.optimizer()
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.seconds, self.rows = 0, 0.0, []
        if state:
            self.macaw.load_state_dict(state["macaw"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]

    def save(self, folder):
        with replacing(folder / "checkpoint.pt") as file:
            torch.save(dict(
                format=CHECKPOINT_FORMAT, config=dataclasses.asdict(self.config),
                stats=self.data.stats, macaw=self.macaw.state_dict(), step=self.step,
                optimizer=self.optimizer.state_dict(), generator=self.generator.get_state(),
                seconds=self.seconds, rows=self.rows), file)
        with replacing(folder / "metrics.csv", "w") as file:
            writer = csv.DictWriter(file, ["step", "seconds", "value_loss", "policy_loss",
                                           "before", "after"])
            writer.writeheader()
            writer.writerows(self.rows)

    def meta_step(self):
        """Lines 5-11 of Algorithm 1 on a meta-batch of tasks; the losses (L_V, L_pi)."""
        config, data = self.config, self.data
        chosen = torch.randperm(len(data.train), generator=self.generator)[:config.tasks_per_step]
        inner, outer = data.sample([data.train[i] for i in chosen],
                                   [config.inner_batch, config.outer_batch], self.generator)
        losses = self.macaw.meta_loss(inner, outer)
        self.optimizer.zero_grad()
        sum(losses).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.macaw.parameters()
                                              if p.grad is not None])
        numbers = torch.stack([*losses, norm]).tolist()
        for term, x in zip(("value loss", "policy loss", "norm of the meta-gradient"), numbers):
            if not math.isfinite(x):
                raise Diverged(f"the {term} is {x} at step {self.step + 1}, before the update; "
                               "the last checkpoint is good: try smaller step sizes")
        for group, lr in zip(self.optimizer.param_groups, self.lrs):
            group["lr"] = lr * (1 - self.step / config.steps)
        self.optimizer.step()
        self.step += 1
        return numbers[:2]


def train(run, folder):
    """Algorithm 1, with an evaluation and a checkpoint now and then; returns the summary."""
    config, start, losses = run.config, time.time() - run.seconds, []
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=None)
    while run.step < config.steps:
        losses.append(run.meta_step())
        bar.update()
        if run.step % config.eval_every == 0 or run.step == config.steps:
            before, after = (x.mean() for x in evaluate(run.macaw, run.data, config.eval_draws))
            loss_V, loss_pi = np.mean(losses, 0)
            losses, run.seconds = [], time.time() - start
            run.rows.append(dict(step=run.step, seconds=round(run.seconds, 1),
                                 value_loss=float(loss_V), policy_loss=float(loss_pi),
                                 before=float(before), after=float(after)))
            run.save(folder)
            bar.write(f"step {run.step:6d}  {run.seconds:5.0f} s  loss V {loss_V:.4f}  "
                      f"pi {loss_pi:.4f}  return before {before:7.1f}  after {after:7.1f}")
    bar.close()
    return summary(run)


def summary(run):
    """What `summary.json` holds: returns on the held-out tasks at the last checkpoint."""
    config, data = run.config, run.data
    before, after = evaluate(run.macaw, data, config.final_draws)
    tasks = [dict(id=i, before=float(b), after=float(a), behavior_final=data.behavior_final[i])
             for i, b, a in zip(data.test, before, after)]
    means = {k: float(np.mean([task[k] for task in tasks]))
             for k in ("before", "after", "behavior_final")}
    return dict(env=config.env, variant=config.variant, seed=config.seed, steps=run.step,
                seconds=round(run.seconds, 1),
                steps_per_second=round(run.step / max(run.seconds, 1e-9), 2), **means, tasks=tasks)


# ---------------------------------------------------------------------------------- command line

def command_line(main, config_class, presets, doc):
    """Run main(config, given). Precedence: default, preset of the family, variant, command line."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name, field in fields.items():
        kind = (dict(action=argparse.BooleanOptionalAction) if field.type is bool
                else dict(type=field.type, metavar=field.type.__name__.upper()))
        parser.add_argument("--" + name.replace("_", "-"), default=None,
                            help=f"{field.metadata['help']} ({field.default})", **kind)
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    try:
        for name, value in given.items():
            low, high = fields[name].metadata["low"], fields[name].metadata["high"]
            if fields[name].type in (int, float) and not low <= value <= high:
                raise BadInput(f"--{name.replace('_', '-')} {value} is out of range: give a "
                               f"number from {low:g} to {high:g}")
        settings = {}
        for name, table in presets.items():
            choice = given.get(name, fields[name].default)
            if choice not in table:
                raise BadInput(f"--{name} {choice} is unknown; choose one of {', '.join(table)}")
            settings.update(table[choice])
        main(config_class(**{**settings, **given}), given)
    except BadInput as problem:
        parser.error(problem)
    except Diverged as problem:
        parser.exit(1, f"{parser.prog}: {problem}\n")


def run_folder(config):
    """A new folder, runs/ENV-VARIANT-sSEED or the one named; never one that holds something."""
    if config.out:
        folder = pathlib.Path(config.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} is taken; give another --out, or --resume to go on with it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name, number = f"{config.env}-{config.variant}-s{config.seed}", 1
    while True:
        folder = pathlib.Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        number += 1


def main(config, given):
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; use --device cpu")
    if config.evaluate or config.resume:
        if config.resume and not config.out:
            raise BadInput("--resume needs --out, the folder of the run to go on with")
        path = config.evaluate or pathlib.Path(config.out) / "checkpoint.pt"
        state = load_checkpoint(path)
        free = ({"data", "device", "evaluate", "test_steps", "final_draws"} if config.evaluate
                else {"data", "device", "out", "resume"})
        for name, value in given.items():
            if name not in free and value != state["config"][name]:
                raise BadInput(f"{path} was made with --{name} {state['config'][name]}; leave "
                               f"--{name} away or start a new run")
        config = Config(**{**state["config"], **given})
        run = Run(config, state)
        if config.evaluate:
            report(summary(run))
            return
        folder = pathlib.Path(config.out)
    else:
        run = Run(config)
        folder = run_folder(config)
    save_json(folder / "config.json", dataclasses.asdict(config))
    print(f"{config.variant} on {config.env}: {len(run.data.train)} training tasks, tested on "
          f"{run.data.test}; writes {folder}", flush=True)
    result = train(run, folder)
    save_json(folder / "summary.json", result)
    report(result)


def report(result):
    print("task   before    after   behaviour at its end")
    for row in [*result["tasks"], dict(result, id="mean")]:
        print(f"{row['id']:>4} {row['before']:8.1f} {row['after']:8.1f} "
              f"{row['behavior_final']:8.1f}")


if __name__ == "__main__":
    command_line(main, Config, dict(env=PRESETS, variant=VARIANTS), __doc__)
