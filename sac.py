"""Soft actor-critic (Haarnoja et al., 2018) for the agents of many tasks at once.

Twin critics, and automatic entropy: alpha is tuned so that the policy keeps an entropy of
-act_dim. Every weight has a leading agent axis (agents: N, batch: B). N lives can also share one
agent, if their tasks are directions of running: it is told its direction, and learns from every
life about every direction (Andrychowicz et al., 2017), for only v . direction differs in reward.
"""
import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from command import BadInput
from macaw import Linear


def replay(agents, steps, obs_dim, act_dim, config):
    """Room for the transitions of N lives, columns (N, steps, ...)."""
    columns = dict(obs=((obs_dim,), torch.float16), action=((act_dim,), torch.float16),
                   reward=((), torch.float32), next_obs=((obs_dim,), torch.float16),
                   terminated=((), torch.bool), truncated=((), torch.bool),
                   **dict(velocity=((2,), torch.float32)) if config.shared else {})
    return {name: torch.zeros(agents, steps, *shape, dtype=kind, device=config.device)
            for name, (shape, kind) in columns.items()}


def transitions(replay, whose, index, told=None):
    """Transitions `index` (N, B) of the lives `whose` (N, B): obs, action, reward, next_obs and
    terminated. Told directions (N, 2), rewards are what each row's own direction would pay."""
    obs, action, reward, next_obs, terminated = (replay[name][whose, index].float() for name in (
        "obs", "action", "reward", "next_obs", "terminated"))
    if told is not None:
        reward = reward + ((told[:, None] - told[whose])
                           * replay["velocity"][whose, index]).sum(-1)
    return obs, action, reward, next_obs, terminated


def directions(environments):
    """The directions in which these environments reward running, (N, 2); raises BadInput."""
    try:
        pairs = [np.append(env.unwrapped.direction, 0.0)[:2] for env in environments]
    except AttributeError:
        raise BadInput("only tasks that are directions can share an agent: ant_dir, cheetah_dir; "
                       "leave --shared away") from None
    return torch.tensor(np.array(pairs), dtype=torch.float32)


def velocity(info):
    """The velocity (x, y) that an environment's info tells; a cheetah has no y."""
    return torch.tensor([info["x_velocity"], info.get("y_velocity", 0.0)])


def mlp(nets, agents, inputs, outputs, width, told):
    """`nets` nets (actor: 1, twin critics: 2) of each agent, with two hidden layers; all agents
    begin with the same weights. Told directions (N, 2), the nets of one agent that all share."""
    inputs += 0 if told is None else 2
    net = nn.Sequential(Linear(inputs, width, nets), nn.ReLU(), Linear(width, width, nets),
                        nn.ReLU(), Linear(width, outputs, nets))
    if told is not None:
        return Shared(net, told.repeat(nets, 1)[:, None])
    for p in net.parameters():
        p.data = p.data.repeat_interleave(agents, 0)                        # (nets * N, n)
    return net


class Shared(nn.Module):
    """One net for N tasks in the place of N nets; `told` (nets * N, 1, 2) goes into it too."""

    def __init__(self, net, told):
        super().__init__()
        self.net = net
        self.register_buffer("told", told)

    def forward(self, x):                                                   # (nets * N, B, n)
        x = torch.cat([x, self.told.expand(-1, x.shape[1], -1)], -1)        # (nets * N, B, n + 2)
        nets = len(self.net[0].theta)
        y = self.net(x.view(nets, -1, x.shape[-1]))                         # (nets, N * B, out)
        return y.view(*x.shape[:2], -1)


class Agents(nn.Module):
    """The SAC agents of N tasks. Losses are sums over agents of batch means, so that each agent
    receives just its own gradient."""

    def __init__(self, agents, obs_dim, act_dim, config, told=None):
        super().__init__()
        self.config, self.act_dim = config, act_dim
        self.actor = mlp(1, agents, obs_dim, 2 * act_dim, config.width, told)
        self.critics = mlp(2, agents, obs_dim + act_dim, 1, config.width, told)
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
