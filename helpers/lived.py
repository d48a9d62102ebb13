"""What the policies of some tasks live online, beside the offline batch that each began with."""
import numpy as np
import torch

from helpers.buffers import Batch
from helpers.run import rollout

# Shapes: N tasks, E episodes so far of H steps each at most, P transitions in all.


class Lived:
    """N offline batches D, then up to `episodes` episodes of each task, padded to H steps."""

    def __init__(self, D, buffers, episodes, horizon):
        self.D, self.buffers, self.episodes = D, buffers, 0
        (tasks, _, obs_dim), act_dim = D.obs.shape, D.action.shape[-1]
        zeros = D.obs.new_zeros
        self.obs = zeros(tasks, episodes, horizon + 1, obs_dim)         # with the last state
        self.action = zeros(tasks, episodes, horizon, act_dim)
        self.reward_seen, self.terminated = zeros(2, tasks, episodes, horizon)
        self.length = zeros(tasks, episodes, dtype=torch.long)

    def play(self, policy, environments, seeds, noise):
        """One more episode of each task, with noise (N, H, act) on its actions."""
        e, noises = self.episodes, iter(noise.transpose(0, 1))

        def act(obs):
            return (policy(obs) + next(noises)[:, None]).clamp(-1, 1)

        def record(i, obs, action, reward, following, terminated):
            t = self.length[i, e]
            self.obs[i, e, t:t + 2] = self.buffers.standardise(np.stack([obs, following]))
            self.action[i, e, t] = torch.as_tensor(action)
            self.reward_seen[i, e, t] = self.buffers.standardise_reward(reward)
            self.terminated[i, e, t] = float(terminated)
            self.length[i, e] += 1
        rollout(act, environments, seeds, self.buffers, record)
        self.episodes += 1

    def everything(self):
        """All transitions (N, P, ...), offline then online, and which of them are there (N, P):
        the others are padding. What only offline transitions have is NaN."""
        e = self.episodes
        obs, next_obs = self.obs[:, :e, :-1].flatten(1, 2), self.obs[:, :e, 1:].flatten(1, 2)
        seen = self.reward_seen[:, :e].flatten(1)
        unused = torch.full_like(seen, torch.nan)
        online = Batch(obs, self.action[:, :e].flatten(1, 2), self.buffers.scale_reward(seen), seen,
                       next_obs, self.terminated[:, :e].flatten(1), unused, unused,
                       torch.full_like(obs, torch.nan))
        step = torch.arange(self.obs.shape[2] - 1, device=self.length.device)
        there = step < self.length[:, :e, None]                                     # (N, e, H)
        return (Batch(*(torch.cat(parts, 1) for parts in zip(self.D, online))),
                torch.cat([torch.ones_like(self.D.reward), there.flatten(1).float()], 1))

    @torch.no_grad()
    def td_lambda(self, V, gamma, td_lambda):
        """TD(lambda) returns (N, e H) of all steps lived, which end in V(s) at the time limit."""
        e = self.episodes
        values = V(self.obs[:, :e].flatten(1, 2)).view(len(self.obs), e, -1)        # (N, e, H + 1)
        reward, going = self.buffers.scale_reward(self.reward_seen[:, :e]), 1 - self.terminated
        target = torch.zeros_like(reward)
        for t in reversed(range(target.shape[2])):
            following = values[..., t + 1]
            if t + 1 < target.shape[2]:
                mixed = (1 - td_lambda) * following + td_lambda * target[..., t + 1]
                following = torch.where(t + 1 < self.length[:, :e], mixed, following)
            target[..., t] = reward[..., t] + gamma * going[:, :e, t] * following
        return target.flatten(1)


def draw(there, size):
    """Numbers (N, size) of transitions that are there (N, P), with replacement."""
    return torch.multinomial(there, size, replacement=True)


def rows(x, i):
    """Of a column (N, P, ...), what has these numbers (N, B)."""
    return x[torch.arange(len(i))[:, None], i]


def take(batch, i):
    """The transitions with these numbers (N, B) of a batch (N, P, ...)."""
    return Batch(*(rows(x, i) for x in batch))
