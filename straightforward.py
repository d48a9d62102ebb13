"""The meta-step in the straightforward way: task by task, every tensor of a layer copied for each.

Equal to macaw.py's in all numbers, and what that is measured against (bench.py). Here z, M and m
are ordinary parameters to `higher`, so each task has its own M' (n x c), as in the paper's text.
"""
import higher
import torch
from torch import nn
from torch.nn import functional as F

import macaw


class CopiedLayer(nn.Module):
    """y = x W + b with (W, b) = M z + m, all three adapted by plain gradient descent."""

    def __init__(self, layer, transform):
        super().__init__()
        self.z, self.M, self.m = transform.z, transform.M, transform.m
        self.inputs, self.outputs = layer.inputs, layer.outputs

    def forward(self, x):                                               # (1, B, in)
        theta = self.z @ self.M.T + self.m
        W, b = theta.split([self.inputs * self.outputs, self.outputs], -1)
        return x @ W.view(1, self.inputs, self.outputs) + b


class Straightforward:
    """Takes meta-steps for a Macaw with weight transforms, whose parameters it shares."""

    def __init__(self, model):
        self.model, self.nets, self.optimizers = model, [], []
        for learner in (model.value, model.policy):
            net = learner.make_net()
            layers = [x for x in net.named_modules() if isinstance(x[1], macaw.Linear)]
            for (name, layer), transform in zip(layers, learner.transforms):
                net.set_submodule(name, CopiedLayer(layer, transform))
            self.nets.append(net)
            self.optimizers.append(torch.optim.SGD([dict(params=[p]) for p in net.parameters()],
                                                   lr=1.0))

    def backward(self, inner, outer):
        """Adds the meta-gradient of sum(model.meta_loss(inner, outer)) to the parameters."""
        config, learners = self.model.config, (self.model.value, self.model.policy)
        tasks = len(inner.obs)
        for i in range(tasks):
            coef = F.softplus(self.model.log_coef) if config.head_width else None
            D_tr, D_ts = (batch.part(i, tasks) for batch in (inner, outer))
            rates = [[lr for t in learner.transforms for lr in F.softplus(t.log_lr)]
                     for learner in learners]
            value, policy = (higher.innerloop_ctx(net, optimizer, copy_initial_weights=False,
                                                  override=dict(lr=lr))
                             for net, optimizer, lr in zip(self.nets, self.optimizers, rates))
            with value as (V, value_step), policy as (pi, policy_step):
                for _ in range(config.inner_steps):
                    value_step.step(macaw.value_loss(V, D_tr, bootstrap=False)[0])
                    with torch.no_grad():
                        advantage = macaw.value_loss(V, D_tr, config.bootstrap)[1]
                    policy_step.step(macaw.policy_loss(pi, D_tr, advantage, config, coef))
                loss_V, advantage = macaw.value_loss(V, D_ts, config.bootstrap)
                loss_pi = macaw.policy_loss(pi, D_ts, advantage, config)
                ((loss_V + loss_pi) / tasks).backward()
