"""Behaviour data as in the paper (Section 5): one SAC agent per task, its lifetime replay kept.

    python collect.py --env cheetah_vel                       # writes data/cheetah_vel.npz
    python collect.py --env ant_dir --tasks 0,6 --steps 20000 --out two_ants.npz

The agents never meet, but they live in lock-step: every weight has a leading task axis, so one
batched matrix product serves all of them (agents: N, batch: B). A killed collection goes on when
the same command is given again. Soft actor-critic is Haarnoja et al. (2018), with twin critics
and automatic entropy: alpha is tuned so that the policy keeps an entropy of -act_dim.
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

import buffers
import command
import envs
from command import BadInput, flag, replacing
from macaw import Linear

SAVE_EVERY = 5000       # steps; a killed collection loses no more


@dataclasses.dataclass(frozen=True)
class Config:
    """Defaults are cheetah_vel's; what another family needs differently stands in PRESETS."""
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    tasks: str = flag("", "task ids, as in 0,6; all of the family when empty")
    steps: int = flag(150_000, "environment steps in the life of each agent", 1)
    out: str = flag("", "file to write; data/ENV.npz when empty")
    join: str = flag("", "data files, as in a.npz,b.npz, to write the best agent of each task from")
    keep: int = flag(13_000, "transitions a task to store, evenly spaced over the life", 1)
    seed: int = flag(0, "of nets, environments and exploration", 0)
    device: str = flag("cpu", "cpu or cuda")
    width: int = flag(128, "units in each of the two hidden layers", 1, 4096)
    batch: int = flag(128, "transitions of each agent an update", 1, 100_000)
    update_every: int = flag(3, "environment steps between two updates", 1)
    random_steps: int = flag(1000, "steps of uniform actions before learning begins", 1)
    lr: float = flag(1e-3, "Adam step size of policy, critics and temperature", 0, 1)
    gamma: float = flag(0.99, "the collecting agents' discount", 0, 1)
    tau: float = flag(0.005, "how far a target critic moves to its critic an update", 0, 1)
    alpha: float = flag(0.2, "entropy temperature to begin with", 1e-9)


PRESETS = {
    "cheetah_dir": dict(), "cheetah_vel": dict(), "ant_dir": dict(), "walker_params": dict(),
    "point_goal": dict(steps=4000, keep=1600, gamma=0.9, width=32, batch=64, update_every=1,
                       random_steps=200, alpha=0.05),
}


def mlp(agents, inputs, width, outputs):
    """Two hidden layers, normalised: with it fast goals are learned in half the updates."""
    norm = nn.LayerNorm(width, elementwise_affine=False)
    return nn.Sequential(Linear(inputs, width, agents), norm, nn.ReLU(),
                         Linear(width, width, agents), norm, nn.ReLU(),
                         Linear(width, outputs, agents))


class Agents(nn.Module):
    """The SAC agents of N tasks. Losses are sums over agents of batch means, so that each agent
    receives just its own gradient."""

    def __init__(self, agents, obs_dim, act_dim, config):
        super().__init__()
        self.config, self.act_dim = config, act_dim
        self.actor = mlp(agents, obs_dim, config.width, 2 * act_dim)
        self.critics = mlp(2 * agents, obs_dim + act_dim, config.width, 1)     # twins: 2N nets
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
        critic_loss = (self.q(self.critics, obs, action) - target).square().mean(-1).sum()
        self.step(1, critic_loss)

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


class Replay:
    """Every transition of every agent's life, in order; float16 but for rewards."""

    def __init__(self, agents, steps, obs_dim, act_dim, device):
        def zeros(*shape, dtype=torch.float16):
            return torch.zeros(agents, steps, *shape, dtype=dtype, device=device)
        self.obs, self.next_obs, self.action = zeros(obs_dim), zeros(obs_dim), zeros(act_dim)
        self.reward, self.terminated, self.truncated = (zeros(dtype=torch.float32)
                                                        for _ in range(3))
        self.agents = torch.arange(agents, device=device)[:, None]

    def sample(self, size, steps, generator):
        """A batch (N, size) for each agent of its first `steps` transitions, as `update` takes."""
        index = torch.randint(steps, (len(self.agents), size), generator=generator,
                              device=self.obs.device)
        return [x[self.agents, index].float() for x in
                (self.obs, self.action, self.reward, self.next_obs, self.terminated)]


class Collection:
    """N agents, their environments and their replay: all that a checkpoint has to hold."""

    def __init__(self, config):
        self.config, self.family = config, envs.FAMILIES[config.env]
        everyone = list(range(len(self.family.tasks)))
        self.ids = buffers.parse_ids(config.tasks, everyone) or everyone
        self.envs = [envs.make(config.env, self.family.tasks[i]) for i in self.ids]
        obs_dim, act_dim = (s.shape[0] for s in (self.envs[0].observation_space,
                                                 self.envs[0].action_space))
        torch.manual_seed(config.seed)                              # for the nets' first weights
        self.generator = torch.Generator(config.device).manual_seed(config.seed)
        self.agents = Agents(len(self.ids), obs_dim, act_dim, config).to(config.device)
        self.replay = Replay(len(self.ids), config.steps, obs_dim, act_dim, config.device)
        self.steps = 0
        self.episodes = [[] for _ in self.ids]     # per task: [first step, length, seed, return]
        self.obs = torch.zeros(len(self.ids), obs_dim, dtype=torch.float16)
        for i in range(len(self.ids)):
            self.begin_episode(i)

    def begin_episode(self, i):
        """Every episode has a seed of its own, so that it replays without those before it."""
        key = (self.config.seed, self.ids[i], len(self.episodes[i]))
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        self.episodes[i].append([self.steps, 0, seed, 0.0])
        self.obs[i] = torch.as_tensor(self.envs[i].reset(seed=seed)[0])

    def noise(self, *shape):
        return torch.randn(shape, generator=self.generator, device=self.config.device)

    def step(self):
        """One step of every environment, then now and then one of every agent."""
        config, replay, t = self.config, self.replay, self.steps
        act_dim = self.agents.act_dim
        if t < config.random_steps:
            action = torch.rand(len(self.ids), act_dim, generator=self.generator,
                                device=config.device) * 2 - 1
        else:
            with torch.no_grad():
                obs = self.obs.to(config.device, torch.float32)[:, None]
                action = self.agents.act(obs, self.noise(len(self.ids), 1, act_dim))[0][:, 0]
        replay.action[:, t] = action         # rounded to float16 before it is executed, so that
        actions = replay.action[:, t].float().cpu().numpy()     # the stored episode replays
        replay.obs[:, t] = self.obs
        self.steps += 1
        outcomes = []
        for i, env in enumerate(self.envs):
            next_obs, reward, terminated, truncated, _ = env.step(actions[i])
            outcomes.append((reward, terminated, truncated))
            self.obs[i] = torch.as_tensor(next_obs)
            self.episodes[i][-1][1] += 1
            self.episodes[i][-1][3] += reward
        replay.next_obs[:, t] = self.obs
        outcomes = torch.tensor(outcomes, dtype=torch.float32, device=config.device)
        replay.reward[:, t], replay.terminated[:, t], replay.truncated[:, t] = outcomes.T
        for i in outcomes[:, 1:].any(-1).nonzero().flatten().tolist():
            self.begin_episode(i)
        if t >= config.random_steps and t % config.update_every == 0:
            batch = replay.sample(config.batch, self.steps, self.generator)
            self.agents.update(*batch, self.noise(2, len(self.ids), config.batch, act_dim))

    def returns(self):
        """Mean return of each agent's last ten whole episodes (N,)."""
        whole = [[e[3] for e in episodes[:-1]] for episodes in self.episodes]
        return [float(np.mean(r[-10:])) if r else math.nan for r in whole]

    def save(self, path):
        replay = {name: x[:, :self.steps].clone()       # a view would take the whole with it
                  for name, x in vars(self.replay).items() if name != "agents"}
        state = dict(config=dataclasses.asdict(self.config), steps=self.steps, replay=replay,
                     episodes=self.episodes, agents=self.agents.state_dict(),
                     optimizers=[o.state_dict() for o in self.agents.optimizers],
                     generator=self.generator.get_state())
        with replacing(path) as file:
            torch.save(state, file)

    def load(self, path):
        """Go on from a checkpoint, exactly: unfinished episodes are played again up to there."""
        state = torch.load(path, weights_only=True, map_location=self.config.device)
        free = dict(steps=0, keep=0, device="")             # these may change on the way
        if {**state["config"], **free} != {**dataclasses.asdict(self.config), **free}:
            raise BadInput(f"{path} is an unfinished collection with other settings; finish it "
                           "with those, give another --out, or delete it")
        self.steps, self.episodes = state["steps"], state["episodes"]
        for name, array in state["replay"].items():
            getattr(self.replay, name)[:, :self.steps] = array
        self.agents.load_state_dict(state["agents"])
        for optimizer, saved in zip(self.agents.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        for i, env in enumerate(self.envs):
            first, length, seed, _ = self.episodes[i][-1]
            obs = env.reset(seed=seed)[0]
            for action in self.replay.action[i, first:first + length].float().cpu().numpy():
                obs = env.step(action)[0]
            self.obs[i] = torch.as_tensor(obs)

    def export(self, path):
        """Write the data file that `buffers.read` describes: whole episodes, evenly spaced."""
        replay = {name: x.cpu().numpy() for name, x in vars(self.replay).items()}
        states, index = [], []
        pieces = {name: [] for name in ("action", "reward", "terminated", "truncated")}
        for i, task in enumerate(self.ids):
            kept = 0
            for number, (first, length, seed, _) in enumerate(self.episodes[i][:-1]):
                share = (first + length) / self.steps        # of the life has gone by
                if kept + length / 2 > share * self.config.keep:
                    continue                                 # ahead of an even pace: leave it out
                kept += length
                span = slice(first, first + length)
                states += [replay["obs"][i, span], replay["next_obs"][i, [span.stop - 1]]]
                for name, piece in pieces.items():
                    piece.append(replay[name][i, span])
                index.append((task, number, seed, length))
        task, number, seed, length = np.array(index, np.int64).T
        action, reward, terminated, truncated = map(np.concatenate, pieces.values())
        settings = dataclasses.asdict(self.config)
        buffers.write(path, dict(
            observations=np.concatenate(states), actions=action, rewards=reward,
            terminations=terminated.astype(bool), truncations=truncated.astype(bool),
            episode_task=task, episode_number=number, episode_seed=seed, episode_length=length),
            dict(format=buffers.DATA_FORMAT, family=self.config.env,
                 tasks={i: self.family.tasks[i] for i in self.ids},
                 behavior_final=dict(zip(self.ids, self.returns())),
                 collector={i: settings for i in self.ids},
                 versions=dict(gymnasium=gymnasium.__version__, mujoco=mujoco.__version__)))


def main(config, _):
    command.check_device(config.device)
    out = pathlib.Path(config.out or f"data/{config.env}.npz")
    unfinished = out.with_suffix(".unfinished")
    if out.exists():
        raise BadInput(f"{out} exists already; give another --out or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if config.join:
        buffers.write(out, *buffers.join(config.join.split(","), config.env))
        return
    collection = Collection(config)
    if unfinished.exists():
        collection.load(unfinished)
        print(f"goes on from step {collection.steps} of {unfinished}")
    bar = tqdm(total=config.steps, initial=collection.steps, unit="step", disable=None)
    while collection.steps < config.steps:
        collection.step()
        bar.update()
        if collection.steps % SAVE_EVERY == 0:
            collection.save(unfinished)
            returns = collection.returns()
            bar.set_postfix(mean=f"{np.mean(returns):.1f}", worst=f"{min(returns):.1f}")
            bar.write(f"step {collection.steps}: mean return {np.mean(returns):.1f}, of tasks "
                      + " ".join(f"{i}:{r:.0f}" for i, r in zip(collection.ids, returns)))
    collection.export(out)
    unfinished.unlink(missing_ok=True)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, mean final return "
          f"{np.mean(collection.returns()):.1f}")


if __name__ == "__main__":
    command.command_line(main, Config, dict(env=PRESETS), __doc__)
