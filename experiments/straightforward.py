"""MACAW's meta-step one task at a time, without shortcuts: every tensor of a layer is copied.

The same result as macaw.py's, slower; for reading beside it, for the tests, and for the benchmark
to measure against. No task axis, no `higher`: z, M and m of each layer move by gradient descent, so
each task has an M' of its own (n x c numbers). (MT+FT, which adapts by Adam, is not in here.)
"""
import torch
from torch.nn import functional as F

import macaw


class TransformLayer:
    """A layer with the weights M z + m, each of the three with a step size."""
    weights_gradient = slice(2, None)           # among those of z, M and m: m's is the weights' own

    def __init__(self, transform):
        self.z, self.M, self.m = transform.z, transform.M, transform.m
        self.step_sizes = F.softplus(transform.raw_lr)

    def tensors(self):
        return [self.z, self.M, self.m]

    def weights(self):
        return self.z @ self.M.T + self.m                                           # (1, n)

    def descend(self, d_z, d_M, d_m):
        a_z, a_M, a_m = self.step_sizes
        self.z, self.M, self.m = self.z - a_z * d_z, self.M - a_M * d_M, self.m - a_m * d_m


class OrdinaryLayer:
    """A layer with the weights (W, b), both with a step size."""
    weights_gradient = slice(None)

    def __init__(self, layer):
        split = layer.inputs * layer.outputs
        self.W, self.b = layer.w[:, :split], layer.w[:, split:]
        self.step_sizes = F.softplus(layer.raw_lr)

    def tensors(self):
        return [self.W, self.b]

    def weights(self):
        return torch.cat([self.W, self.b], -1)                                      # (1, n)

    def descend(self, d_W, d_b):
        a_W, a_b = self.step_sizes
        self.W, self.b = self.W - a_W * d_W, self.b - a_b * d_b


class TaskNet:
    """One task's policy or value function: the meta-learned one at first, then adapted."""

    def __init__(self, inner_loop):
        self.net, self.longest = inner_loop.net, inner_loop.config.max_gradient
        self.names = [name for name, _ in self.net.named_parameters()]
        layer = TransformLayer if inner_loop.config.latent else OrdinaryLayer
        self.layers = [layer(transform) for transform in inner_loop.transforms]

    def __call__(self, *inputs):
        weights = {name: layer.weights() for name, layer in zip(self.names, self.layers)}
        return torch.func.functional_call(self.net, weights, inputs)

    def descend(self, loss):
        """A gradient step that can itself be differentiated."""
        tensors = [x for layer in self.layers for x in layer.tensors()]
        gradients = iter(torch.autograd.grad(loss, tensors, create_graph=True))
        steps = [[next(gradients) for _ in layer.tensors()] for layer in self.layers]
        if self.longest:
            length = torch.cat([d.detach().flatten() for layer, step in zip(self.layers, steps)
                                for d in step[layer.weights_gradient]]).norm()
            steps = [[(self.longest / length).clamp_max(1.0) * d for d in step] for step in steps]
        for layer, step in zip(self.layers, steps):
            layer.descend(*step)


def adapt(model, D_tr):
    """Lines 7 and 8 of Algorithm 1 for one task: theta', phi'."""
    config, pi, V = model.config, TaskNet(model.policy), TaskNet(model.value)
    coef = F.softplus(model.raw_coef) if config.head_width else None
    for _ in range(config.inner_steps):
        V.descend(macaw.value_loss(macaw.advantages(V, D_tr, bootstrap=False)))
        advantage = macaw.advantages(V, D_tr, config.bootstrap)
        pi.descend(macaw.policy_loss(pi, D_tr, advantage, config, coef))
    return pi, V


def backward(model, inner, outer):
    """Adds the meta-gradient of Eq. 5 and 6 to the model's parameters, task by task."""
    tasks = len(inner.obs)
    for i in range(tasks):
        D_tr, D_ts = inner.part(i, tasks), outer.part(i, tasks)
        pi, V = adapt(model, D_tr)
        (sum(model.meta_losses(pi, V, D_ts)) / tasks).backward()
