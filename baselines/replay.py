"""A replay buffer: the episodes that policies collect online, beside the offline data."""
import numpy as np
import torch
from torch import nn

import envs
from helpers.data import Batch

# Shapes: N tasks, E episodes of H steps each at most, B transitions in a batch, P in all.


class ReplayBuffer(nn.Module):
    """Up to `episodes` episodes of each of N tasks, padded to H steps; empty at first. Its tensors
    are buffers of the module, so a checkpoint holds them. A transition's number is e H + t."""

    def __init__(self, tasks, episodes, horizon, obs_dim, act_dim):
        super().__init__()
        self.horizon = horizon
        for name, shape in dict(obs=(horizon + 1, obs_dim),             # with the last state
                                action=(horizon, act_dim), reward_seen=(horizon,),
                                terminated=(horizon,)).items():
            self.register_buffer(name, torch.zeros(tasks, episodes, *shape))
        self.register_buffer("length", torch.zeros(tasks, episodes, dtype=torch.long))

    @property
    def episodes(self):
        """How many episodes there are so far."""
        return int(self.length.any(0).sum())

    def collect(self, policy, environments, seeds, buffers, tasks=None, noise=None):
        """Add an episode of each of these tasks (all when None), with noise (N, H, act) on its
        actions."""
        e, recorded = self.episodes, [[] for _ in environments]
        noises = iter(() if noise is None else noise.transpose(0, 1))

        def act(obs):
            action = policy(obs)
            return action if noise is None else (action + next(noises)[:, None]).clamp(-1, 1)
        envs.rollout(act, environments, seeds, buffers.observe,
                     record=lambda k, *transition: recorded[k].append(transition))
        for i, steps in zip(range(len(recorded)) if tasks is None else tasks, recorded):
            obs, action, reward, next_obs, terminated = (
                torch.as_tensor(np.array(x), dtype=torch.float32, device=self.obs.device)
                for x in zip(*steps))
            T = self.length[i, e] = len(steps)
            self.obs[i, e, :T + 1] = buffers.standardise(torch.cat([obs, next_obs[-1:]]))
            self.reward_seen[i, e, :T] = buffers.standardise_reward(reward)
            self.action[i, e, :T], self.terminated[i, e, :T] = action, terminated

    def mask(self):
        """Which of the steps so far are real (N, P); the others are padding."""
        step = torch.arange(self.horizon, device=self.length.device)
        return (step < self.length[:, :self.episodes, None]).flatten(1)

    def transitions(self, tasks, i, buffers):
        """The transitions with numbers i (N, B) of these tasks; what only offline transitions have
        is NaN."""
        tasks = torch.as_tensor(tasks, device=i.device)[:, None]
        e, t = i // self.horizon, i % self.horizon
        obs, next_obs = self.obs[tasks, e, t], self.obs[tasks, e, t + 1]
        seen = self.reward_seen[tasks, e, t]
        unused = torch.full_like(seen, torch.nan)
        return Batch(obs, self.action[tasks, e, t], buffers.scale_reward(seen), seen, next_obs,
                     self.terminated[tasks, e, t], unused, unused, torch.full_like(obs, torch.nan))

    def sample(self, tasks, size, buffers, generator):
        """A batch (N, size) of these tasks, drawn with replacement."""
        mask = self.mask()[torch.as_tensor(tasks)].cpu()
        k = (torch.rand(len(mask), size, generator=generator) * mask.sum(1, keepdim=True)).long()
        i = torch.searchsorted(mask.cumsum(1), k + 1)           # the k-th real step, from 0
        return self.transitions(tasks, i.to(self.obs.device), buffers)

    def after(self, D, buffers):
        """The offline batches D of all tasks, followed by all that is here, (N, P), and which of
        these transitions are real."""
        tasks, mask = range(len(self.obs)), self.mask()
        i = torch.arange(mask.shape[1], device=mask.device).expand(len(tasks), -1)
        online = self.transitions(tasks, i, buffers)
        return (Batch(*(torch.cat(parts, 1) for parts in zip(D, online))),
                torch.cat([torch.ones_like(D.reward, dtype=torch.bool), mask], 1))

    @torch.no_grad()
    def td_lambda(self, V, buffers, gamma, td_lambda):
        """TD(lambda) returns (N, E H) of all steps, which end in V(s) at the time limit."""
        e = self.episodes
        values = V(self.obs[:, :e].flatten(1, 2)).view(len(self.obs), e, -1)        # (N, E, H + 1)
        reward, going = buffers.scale_reward(self.reward_seen[:, :e]), 1 - self.terminated
        target = torch.zeros_like(reward)
        for t in reversed(range(self.horizon)):
            following = values[..., t + 1]
            if t + 1 < self.horizon:
                mixed = (1 - td_lambda) * following + td_lambda * target[..., t + 1]
                following = torch.where(t + 1 < self.length[:, :e], mixed, following)
            target[..., t] = reward[..., t] + gamma * going[:, :e, t] * following
        return target.flatten(1)
