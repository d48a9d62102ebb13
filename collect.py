"""Behaviour data: one SAC agent per task, its lifetime replay kept (Section 5).

    python collect.py --env cheetah_vel                       # writes data/cheetah_vel.npz
    python collect.py --env walker_params --tasks 0,6 --steps 20000 --out two_walkers.npz
    python collect.py --env walker_params --join a.npz,b.npz --out c.npz  # each task's best agent

The agents never meet, but they run in lock-step: every weight has a leading task axis, so one
batched matrix product serves all of them (agents: N, batch: B). First weights, resets, exploration
noise and choice of batches are the same for all, so agents differ only as far as their tasks make
them. Their gaits are then alike, and what is learned from some tasks' data helps in others. With
--independent, agents share nothing, as we understand the paper.

The ants are one agent that acts in all N tasks (--shared). It gets the task as a one-hot vector,
which is not in the data. An ant on its own learns to stand long before it learns to run.

A killed collection goes on when the same command is given again.
"""
import copy
import dataclasses
import math
import pathlib

import gymnasium
import mujoco
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import envs
from helpers import command, data
from helpers.command import BadInput, Diverged, flag
from helpers.data import parse_files, parse_ids
from macaw import Linear

SAVE_EVERY = 5000       # steps; a killed collection loses no more
ADVICE = f"the same command goes on from the last whole {SAVE_EVERY} steps"


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults are cheetah_vel's; what another family needs differently stands in PRESETS."""
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    tasks: str = flag("", "task ids, as in 0,6; all of the family when empty")
    steps: int = flag(60_000, "environment steps of each agent", 1)
    out: str = flag("", "file to write; data/ENV.npz when empty")
    join: str = flag("", "data files, as in a.npz,b.npz, to write the best agent of each task from")
    keep: int = flag(13_000, "transitions of a task to keep, evenly over its agent's lifetime", 1)
    seed: int = flag(0, "of environments and exploration", 0)
    device: str = flag("cpu", "cpu or cuda")
    width: int = flag(128, "units in each of the two hidden layers", 1, 4096)
    batch: int = flag(128, "transitions of each task an update", 1, 100_000)
    updates: float = flag(1.0, "updates an environment step", 1e-3, 1000)
    shared: bool = flag(False, "one agent for all tasks, which gets the task as a one-hot")
    independent: bool = flag(False, "agents share no random number")
    random_steps: int = flag(1000, "steps of uniform actions before learning begins", 1)
    lr: float = flag(1e-3, "Adam step size of policy, critics and temperature", 0, 1)
    gamma: float = flag(0.99, "the collecting agents' discount", 0, 1)
    tau: float = flag(0.005, "how far a target critic moves to its critic an update", 0, 1)
    alpha: float = flag(0.2, "entropy temperature to begin with", 1e-9)


PRESETS = {
    **dict.fromkeys(envs.FAMILIES, {}),
    "cheetah_dir": dict(steps=130_000, keep=30_000),
    "walker_params": dict(updates=0.5, keep=10_000),
    "ant_dir": dict(shared=True, width=256, batch=5, updates=20.0, steps=20_000, keep=6500,
                    random_steps=200, lr=3e-4, gamma=0.95, alpha=0.05),
    "point_goal": dict(steps=4000, keep=1600, gamma=0.9, width=32, batch=64, random_steps=200,
                       alpha=0.05),
}


def settings(**changes):
    """The config of a collection; see command.settings. Raises BadInput."""
    return command.settings(Config, PRESETS, **changes)


# -------------------------------------------------------------------------------- soft actor-critic
def mlp(nets, agents, inputs, outputs, config):
    """`nets` nets (actor: 1, twin critics: 2) for each agent, with two hidden layers. All agents
    begin with the same weights; independent ones with their own; shared ones keep the same."""
    width, inputs = config.width, inputs + agents * config.shared
    copies = nets * agents if config.independent else nets
    net = nn.Sequential(Linear(inputs, width, copies), nn.ReLU(), Linear(width, width, copies),
                        nn.ReLU(), Linear(width, outputs, copies))
    if config.shared:
        return Shared(net, nets, agents)
    for p in net.parameters():
        p.data = p.data.repeat_interleave(nets * agents // copies, 0)       # (nets * N, n)
    return net


class Shared(nn.Module):
    """One net in the place of N nets; a one-hot vector in its input is the task."""

    def __init__(self, net, nets, tasks):
        super().__init__()
        self.net, self.nets = net, nets
        self.register_buffer("one_hot", torch.eye(tasks).repeat(nets, 1)[:, None])

    def forward(self, x):                                                   # (nets * N, B, n)
        x = torch.cat([x, self.one_hot.expand(-1, x.shape[1], -1)], -1)     # (nets * N, B, n + N)
        y = self.net(x.view(self.nets, -1, x.shape[-1]))                    # (nets, N * B, out)
        return y.view(*x.shape[:2], -1)


class Agents(nn.Module):
    """The SAC agents of N tasks. A loss is the sum of the agents' batch means, so that each agent
    receives its own gradient alone, and a shared one the sum."""

    def __init__(self, agents, obs_dim, act_dim, config):
        super().__init__()
        self.config, self.act_dim = config, act_dim
        self.actor = mlp(1, agents, obs_dim, 2 * act_dim, config)
        self.critics = mlp(2, agents, obs_dim + act_dim, 1, config)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.full((agents,), math.log(config.alpha)))
        trained = [self.actor.parameters(), self.critics.parameters(), [self.log_alpha]]
        self.optimizers = [torch.optim.Adam(p, lr=config.lr, fused=True) for p in trained]

    def act(self, obs, noise):
        """Actions (N, B, act) in [-1, 1] and their log-probabilities (N, B)."""
        mean, log_std = self.actor(obs).chunk(2, -1)
        log_std = log_std.clamp(-5, 2)
        u = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))   # change by tanh
        return u.tanh(), log_prob.sum(-1)

    @staticmethod
    def q(critics, obs, action):
        """Both critics' values, (2, N, B)."""
        x = torch.cat([obs, action], -1).repeat(2, 1, 1)                  # (2N, B, obs + act)
        return critics(x).view(2, *obs.shape[:2])

    def update(self, obs, action, reward, next_obs, terminated, noise):
        """One gradient step of every net of every agent; noise is (2, N, B, act)."""
        config, alpha = self.config, self.log_alpha.detach().exp()[:, None]
        with torch.no_grad():
            next_action, next_log_prob = self.act(next_obs, noise[0])
            next_q = self.q(self.targets, next_obs, next_action).amin(0) - alpha * next_log_prob
            target = reward + config.gamma * (1 - terminated) * next_q    # (N, B)
        self.step(1, (self.q(self.critics, obs, action) - target).square().mean(-1).sum())

        self.critics.requires_grad_(False)
        new_action, log_prob = self.act(obs, noise[1])
        new_q = self.q(self.critics, obs, new_action).amin(0)
        self.step(0, (alpha * log_prob - new_q).mean(-1).sum())
        self.critics.requires_grad_(True)

        entropy_gap = (log_prob.detach() - self.act_dim).mean(-1)         # target: -act_dim
        self.step(2, -(self.log_alpha * entropy_gap).sum())
        torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()),
                             config.tau)

    def step(self, which, loss):
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()


# --------------------------------------------------------------------------------------- collection
class Collection:
    """N agents, their environments and all their transitions, in the order in which they came."""

    def __init__(self, config):
        self.config, self.family = config, envs.FAMILIES[config.env]
        data.check_family(config.env)
        everyone = list(range(len(self.family.tasks)))
        self.ids = parse_ids(config.tasks, everyone) or everyone
        self.envs = [envs.make(config.env, self.family.tasks[i]) for i in self.ids]
        n, obs_dim, act_dim = len(self.ids), *(space.shape[0] for space in (
            self.envs[0].observation_space, self.envs[0].action_space))
        torch.manual_seed(config.seed)
        self.generator = torch.Generator(config.device).manual_seed(config.seed)
        self.agents = Agents(n, obs_dim, act_dim, config).to(config.device)
        columns = dict(obs=((obs_dim,), torch.float16), action=((act_dim,), torch.float16),
                       reward=((), torch.float32), next_obs=((obs_dim,), torch.float16),
                       terminated=((), torch.bool), truncated=((), torch.bool))
        self.replay = {name: torch.zeros(n, config.steps, *shape, dtype=kind, device=config.device)
                       for name, (shape, kind) in columns.items()}
        self.steps = 0
        self.episodes = [[] for _ in self.ids]     # per task: [first step, length, seed, return]
        self.obs = torch.zeros(n, obs_dim, dtype=torch.float16)
        for i in range(n):
            self.begin_episode(i)

    def begin_episode(self, i):
        """Each episode has its own seed, so that it replays without those before it."""
        key = self.config.seed, len(self.episodes[i]), *[self.ids[i]] * self.config.independent
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        self.episodes[i].append([self.steps, 0, seed, 0.0])
        self.obs[i] = torch.as_tensor(self.envs[i].reset(seed=seed)[0])

    def draw(self, function, *shape, **kwargs):
        """Random numbers (N, *shape): the same for all agents unless independent or shared."""
        n = len(self.ids) if self.config.shared or self.config.independent else 1
        return function(size=(n, *shape), generator=self.generator, device=self.config.device,
                        **kwargs).expand(len(self.ids), *shape)

    @torch.no_grad()
    def actions(self):
        """What each agent does now, (N, act): noise at first, then its policy's sample."""
        act_dim = self.agents.act_dim
        if self.steps < self.config.random_steps:
            return self.draw(torch.rand, act_dim) * 2 - 1
        obs = self.obs.to(self.config.device, torch.float32)[:, None]
        return self.agents.act(obs, self.draw(torch.randn, 1, act_dim))[0][:, 0]

    def step(self):
        """One step of every environment, then the updates that are due."""
        config, replay, t = self.config, self.replay, self.steps
        replay["obs"][:, t] = self.obs
        replay["action"][:, t] = self.actions()     # rounded to float16 before it is executed, so
        actions = replay["action"][:, t].float().cpu().numpy()      # that stored episodes replay
        self.check(action=replay["action"][:, t])
        outcomes = [env.step(action) for env, action in zip(self.envs, actions)]
        for k, name in enumerate(("next_obs", "reward", "terminated", "truncated")):
            replay[name][:, t] = torch.as_tensor(np.array([outcome[k] for outcome in outcomes]))
        self.check(observation=replay["next_obs"][:, t], reward=replay["reward"][:, t])
        self.obs[:] = replay["next_obs"][:, t]
        self.steps += 1
        for i, (_, reward, terminated, truncated, _) in enumerate(outcomes):
            self.episodes[i][-1][1] += 1
            self.episodes[i][-1][3] += float(reward)
            if terminated or truncated:
                self.begin_episode(i)
        if t >= config.random_steps:
            for _ in range(math.ceil((t + 1) * config.updates) - math.ceil(t * config.updates)):
                self.learn()

    def check(self, **numbers):
        """Raises Diverged for what no data file may hold; what overflows float16 is infinite."""
        for name, x in numbers.items():
            if not (largest := x.abs().max().item()) <= data.FARTHEST:
                raise Diverged(f"step {self.steps} brought an agent's {name} to {largest:g}; begin "
                               "again with a smaller --lr, --tau, --gamma or --updates")

    def learn(self):
        """One update of every agent from all its transitions."""
        index = self.draw(torch.randint, self.config.batch, high=self.steps)            # (N, B)
        task = torch.arange(len(self.ids), device=index.device)[:, None]
        noise = self.draw(torch.randn, 2, self.config.batch, self.agents.act_dim)
        self.agents.update(*(self.replay[name][task, index].float() for name in (
            "obs", "action", "reward", "next_obs", "terminated")), noise.transpose(0, 1))

    def returns(self):
        """Each agent's mean return over its last ten whole episodes (N,)."""
        whole = [[e[3] for e in episodes[:-1]] for episodes in self.episodes]
        return [float(np.mean(r[-10:])) if r else math.nan for r in whole]

    def save(self, path):
        command.save_tensors(path, dict(
            config=dataclasses.asdict(self.config), steps=self.steps, episodes=self.episodes,
            replay={name: x[:, :self.steps].clone() for name, x in self.replay.items()},
            agents=self.agents.state_dict(), generator=self.generator.get_state(),
            optimizers=[o.state_dict() for o in self.agents.optimizers]))

    def load(self, path):
        """Go on from a checkpoint, exactly: unfinished episodes are played again up to there."""
        state = command.load_tensors(path, self.config.device)
        may_differ = dict(steps=0, keep=0, device="")
        try:
            self.steps, self.episodes = state["steps"], state["episodes"]
            if state["config"] | may_differ != dataclasses.asdict(self.config) | may_differ:
                raise ValueError
            for name, x in self.replay.items():
                x[:, :self.steps] = state["replay"][name]           # more steps do not fit
            self.agents.load_state_dict(state["agents"])
            for optimizer, saved in zip(self.agents.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.generator.set_state(state["generator"].cpu())
            for i, env in enumerate(self.envs):
                first, length, seed, _ = self.episodes[i][-1]
                self.obs[i] = torch.as_tensor(env.reset(seed=seed)[0])
                for action in self.replay["action"][i, first:first + length].float().cpu().numpy():
                    self.obs[i] = torch.as_tensor(env.step(action)[0])
        except Exception:                                   # of many kinds where it is not ours
            raise BadInput(f"{path} is damaged, or a collection with other settings or more steps; "
                           "finish it with those, give another --out, or delete it") from None


# -------------------------------------------------------------------------------------------- files
def export(collection, path):
    """Write the data file that `helpers.data.read` describes."""
    ids, config = collection.ids, collection.config
    data.write(path, arrays(collection), dict(
        format=data.FORMAT, family=config.env,
        tasks={i: collection.family.tasks[i] for i in ids},
        behavior_final=dict(zip(ids, collection.returns())),
        collector=dict.fromkeys(ids, dataclasses.asdict(config)),
        versions=dict(gymnasium=gymnasium.__version__, mujoco=mujoco.__version__)))


def arrays(collection):
    """A file's arrays: of each agent whole episodes, evenly spaced, of about `keep` transitions."""
    replay = {name: x.cpu().numpy() for name, x in collection.replay.items()}
    kept = []
    for row, task in enumerate(collection.ids):
        whole = collection.episodes[row][:-1]
        chosen = evenly([length for _, length, _, _ in whole], collection.config.keep)
        for number in np.flatnonzero(chosen).tolist():
            first, length, seed, _ = whole[number]
            x = {name: column[row, first:first + length] for name, column in replay.items()}
            kept.append(dict(
                observations=np.r_[x["obs"], x["next_obs"][-1:]], actions=x["action"],
                rewards=x["reward"], terminations=x["terminated"], truncations=x["truncated"],
                episode_task=[task], episode_number=[number], episode_seed=[seed],
                episode_length=[length]))
    return {name: np.concatenate([episode[name] for episode in kept]) for name in kept[0]}


def evenly(lengths, keep):
    """Which of an agent's episodes to keep (bool each), evenly spaced, for about `keep` steps."""
    chosen, kept, played, total = [], 0, 0, sum(lengths)
    for length in lengths:
        played += length
        chosen.append(bool(kept + length / 2 <= played / total * keep))     # not ahead of the pace
        kept += length * chosen[-1]
    return chosen


def join(paths, env, keep):
    """One file's arrays and metadata from several: of each task the agent that ended best, about
    `keep` of its transitions."""
    files = [data.read(path, env) for path in paths]
    parts, joined = [], files[0][1] | {name: {} for name in data.BY_TASK}
    for i in sorted(set(np.concatenate([x["episode_task"] for x, _ in files]).tolist())):
        x, meta = max((file for file in files if i in file[0]["episode_task"]),
                      key=lambda file: file[1]["behavior_final"][str(i)])
        for name in data.BY_TASK:
            joined[name] |= {k: value for k, value in meta[name].items() if k == str(i)}
        length, mine = x["episode_length"], x["episode_task"] == i
        mine[mine] = evenly(length[mine], keep)
        parts.append(data.part(x, mine))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, joined


# ------------------------------------------------------------------------------------- command line
def main(given):
    config = settings(**given)
    command.alone()
    command.check_device(config.device)
    out = command.new_file(config.out or data.default_path(config.env))
    if config.shared and config.independent:
        raise BadInput("--shared and --independent contradict each other; give --no-shared or none")
    if min(config.steps, config.keep) < (episode := envs.FAMILIES[config.env].horizon):
        raise BadInput(f"--steps and --keep must hold an episode; give {episode} or more for both")
    if "join" in given:
        if unused := sorted(given.keys() - {"env", "out", "join", "keep"}):
            raise BadInput(f"--join makes no use of --{command.dashed(unused[0])}; leave it out")
        return data.write(out, *join(parse_files(config.join), config.env, config.keep))
    with command.lock(f"{out}.lock"), command.stopping(ADVICE):
        collect(Collection(config), out)


def collect(collection, out):
    """Play all steps, saving a checkpoint now and then, and write the file."""
    config, unfinished = collection.config, pathlib.Path(f"{out}.unfinished")
    if unfinished.exists():
        collection.load(unfinished)
        print(f"goes on from step {collection.steps} of {unfinished}")
    bar = tqdm(total=config.steps, initial=collection.steps, unit="step", disable=None)
    while collection.steps < config.steps:
        collection.step()
        bar.update()
        if collection.steps % SAVE_EVERY == 0:
            collection.save(unfinished)
            bar.write(f"step {collection.steps}: returns " + " ".join(
                f"{i}:{r:.0f}" for i, r in zip(collection.ids, collection.returns())))
    export(collection, out)
    unfinished.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, final {np.mean(collection.returns()):.1f}")


if __name__ == "__main__":
    command.command_line(main, [settings()], __doc__)
