"""Soft actor-critic (Haarnoja et al., 2018) for the agents of many tasks at once.

Twin critics, and automatic entropy: alpha is tuned so that the policy keeps an entropy of
-act_dim. Every weight has a leading agent axis (agents: N, batch: B). With --shared a single agent
stands behind the N, and all above its nets stays the same.
"""
import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from macaw import Linear


def mlp(nets, agents, inputs, outputs, config):
    """`nets` nets (actor: 1, twin critics: 2) of each agent, with two hidden layers; all agents
    begin with the same weights or, independent ones, their own; or share one agent's for good."""
    width, inputs = config.width, inputs + agents * config.shared
    copies = nets * agents if config.independent and not config.shared else nets
    net = nn.Sequential(Linear(inputs, width, copies), nn.ReLU(), Linear(width, width, copies),
                        nn.ReLU(), Linear(width, outputs, copies))
    if config.shared:
        return Shared(net, nets, agents)
    for p in net.parameters():
        p.data = p.data.repeat_interleave(nets * agents // copies, 0)       # (nets * N, n)
    return net


class Shared(nn.Module):
    """One net for N tasks in the place of N nets; it is told the task by a one-hot vector."""

    def __init__(self, net, nets, tasks):
        super().__init__()
        self.net, self.nets = net, nets
        self.register_buffer("told", torch.eye(tasks).repeat(nets, 1)[:, None])

    def forward(self, x):                                                   # (nets * N, B, n)
        x = torch.cat([x, self.told.expand(-1, x.shape[1], -1)], -1)        # (nets * N, B, n + N)
        y = self.net(x.view(self.nets, -1, x.shape[-1]))                    # (nets, N * B, out)
        return y.view(*x.shape[:2], -1)


class Agents(nn.Module):
    """The SAC agents of N tasks. Losses are sums over agents of batch means, so that each agent
    receives just its own gradient, and one that is shared everyone's."""

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
