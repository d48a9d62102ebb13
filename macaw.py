"""MACAW: Offline Meta-Reinforcement Learning with Advantage Weighting (Mitchell et al., ICML 2021).

From fixed data of many tasks, meta-learn a policy and a value function that adapt to a new task by
one or a few gradient steps on 256 of its transitions. Read this file beside the paper:

    Algorithm 1, meta-training                     Algorithm 2, meta-testing   meta_test
    line 3     initialise theta, phi  MetaLearner  line 3     theta, phi       InnerLoop.start
    lines 4-5  n steps, over tasks    meta_train   lines 4-7  adapt            MetaLearner.adapt
    line 6     D^tr, D^ts             run.sample   Equations
    line 7     adapt phi              adapt        Eq. 1      L^AWR            policy_loss
    line 8     adapt theta            adapt        Eq. 2      R_D, L_V         returns, value_loss
    line 10    update phi             meta_train   Eq. 3, 4   L^ADV, L_pi      policy_loss
    line 11    update theta           meta_train   Eq. 5, 6   meta-objectives  meta_losses
    Figure 2   advantage head         Policy       App. B     weight transform WeightTransform

    python macaw.py --env cheetah_vel                         # meta-train, then meta-test
    python macaw.py --evaluate runs/.../checkpoint.pt         # meta-test only

What no paper mentions (data files, checkpoints, the command line) is in helpers/. Where a setting
comes from: [paper], its text; [code], the authors' released program; [us], chosen here on training
tasks. Where we leave the paper (the reasons, under the same numbers: docs/deviations.md):

Changes to Algorithm 1
 1. At the time limit returns bootstrap with gamma^k V(s_end), not in the inner value loss [code].
 2. Weights use advantages standardised in the batch, the exponent clipped at log 20 [code].
 3. Inner step sizes, one for each tensor, and lambda are meta-learned [code].
 4. z, M and m of a weight transform adapt, not z alone [code].
 5. A step takes some tasks [code]; weights decay, and outer step sizes fall linearly to 0 [us].
 6. Some families: three inner steps, SiLU, own sigma, clipped gradients, noise at rest [us].
Changes to the data
 7. Agents share their random numbers (ants: are one agent): this moves the numbers most [us].
 8. Batches are spread evenly over a lifetime, D^ts over its later part in some families [us].
 9. D^tr may come from other agents than D^ts (adapt_data): then it cannot copy a gait [us].
10. The observation is Gymnasium's own; the code adds the torso's position.
Implementation
11. M is never copied for a task (see WeightTransform) [us].
12. Negative actions reach the advantage head; the authors' code clips them at 0, an oversight.
13. Observations are standardised, returns divided by their standard deviation [us].
14. Smaller nets and batches, larger outer step sizes, milder fine-tuning of MT+FT [us].
"""
import contextlib
import dataclasses
import math
from typing import NamedTuple

import higher
import torch
from torch import nn
from torch.nn import functional as F

import envs
from helpers.command import flag
from helpers.data import OTHER_AGENTS
from helpers.run import Method, RunConfig, main

MAX_WEIGHT = 20.0       # an advantage weight exp(A / T) is at most this [code]
STEP_LR = 1e-3          # Adam, of inner step sizes and lambda [code]

# Shapes: N tasks, B transitions of each, c latent size, n numbers in a layer's weights and bias.
# Every layer has a leading task axis: N tasks at once by batched matrix products, without a loop.

@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """The settings that are MACAW's own, with the paper's symbols."""
    width: int = flag(64, "units in each of the 3 hidden layers [us; code: 100]", 1, 4096)
    latent: int = flag(32, "c, size of z; 0: layers are no transforms [us; code: 100]", 0, 4096)
    head_width: int = flag(32, "hidden units of the advantage head; 0: none [code]", 0, 4096)
    smooth: bool = flag(False, "the policy has SiLU, not ReLU [us]")
    sigma: float = flag(0.2, "standard deviation of the policy [code]", 1e-3, 10)
    relative_sigma: bool = flag(False, "instead of sigma, a third of the standard deviation of the "
                                       "task's own actions [us]")
    temperature: float = flag(1.0, "T of Eq. 1 [code]", 1e-3)
    bootstrap: bool = flag(True, "at the time limit returns bootstrap with V [code]")
    advantage_coef: float = flag(0.01, "lambda of Eq. 3, to begin with [code]", 1e-6, 100)
    inner_lr: float = flag(1e-3, "alpha_1, eta_1, to begin with [code]", 1e-9, 10)
    policy_lr: float = flag(2e-3, "alpha_2, Adam [us; code: 1e-4]", 0, 10)
    value_lr: float = flag(2e-3, "eta_2, Adam [us; code: 1e-5]", 0, 10)
    weight_decay: float = flag(1.0, "AdamW's, of theta and phi: each step shrinks them by the step "
                                    "size times this [us; code: 0]", 0, 100)
    multi_task: bool = flag(False, "MT+FT: one net, given a one-hot task id; Adam steps in testing")
    inner_batch: int = flag(128, "transitions in D^tr [us; code: 256]", 2, 100_000)
    outer_batch: int = flag(256, "transitions in D^ts [code]", 2, 100_000)
    late: float = flag(0.0, "D^ts skips this first share of a lifetime [paper: none]", 0, 0.99)
    max_gradient: float = flag(0.0, "clip an inner step's gradient to this norm; 0: never [us]", 0)
    inner_steps: int = flag(1, "gradient steps of an adaptation in training [paper]", 0, 100)
    test_steps: int = flag(1, "n of Algorithm 2, the same in testing [code]", 1, 1000,
                           free=("evaluate",))
    batch_sizes = property(lambda self: (self.inner_batch, self.outer_batch))       # D^tr, D^ts
    task_ids = property(lambda self: self.multi_task)


# Gaits run better with a smooth policy, and errors that count alike in slow gaits and in fast ones
SMOOTH = dict(inner_steps=3, test_steps=3, relative_sigma=True, smooth=True)
PRESETS = {**dict.fromkeys(envs.FAMILIES, {}),  # what a family needs differently from the defaults
    "cheetah_vel": dict(SMOOTH, steps=1000, late=0.5, nudge=True),
    "cheetah_dir": dict(tasks_per_step=2, weight_decay=0.0),
    "ant_dir": dict(late=0.5),
    "walker_params": dict(SMOOTH, late=0.8, weight_decay=0.1, max_gradient=1000.0),
    "point_goal": dict(SMOOTH, inner_steps=2, test_steps=2, steps=300, gamma=0.9, width=32,
                       latent=16, inner_batch=64, outer_batch=64, late=0.5, eval_every=100,
                       policy_lr=5e-3, value_lr=5e-3, weight_decay=0.0),
}

# Algorithm 1 and Section 5 as printed, on independent agents' data where we have them; but returns
# bootstrap [code], and no flag gives raw advantages or observations, or lets z alone adapt
PAPER = dict(inner_steps=1, test_steps=1, smooth=False, relative_sigma=False, late=0.0, nudge=False,
             weight_decay=0.0, lr_decay=False, max_gradient=0.0, policy_lr=1e-3, value_lr=1e-3,
             cheetah_vel=dict(data="cheetah_vel_others", steps=6000))
# Ordinary layers have their own best settings; a smooth policy does them no good [us]
PLAIN = dict(latent=0, relative_sigma=False, smooth=False, max_gradient=0.0)
ORDINARY = dict(PLAIN, inner_lr=0.01, weight_decay=0.1)
MILD = dict(inner_lr=1e-4, test_steps=5, weight_decay=1.0)
VARIANTS = {    # these win over PRESETS, flags over these; a family's own stand under its name
    "macaw": dict(),
    "robust": dict(                 # for adaptation to data of agents that nobody saw in training
        cheetah_vel=dict(steps=1500, tasks_per_step=16, max_gradient=300.0, nudge=False,
                         adapt_data=OTHER_AGENTS["cheetah_vel"]),
        ant_dir=dict(adapt_data=OTHER_AGENTS["ant_dir"]),
        walker_params=dict(adapt_data=OTHER_AGENTS["walker_params"])),
    "paper": PAPER,
    "released": dict(PAPER, width=100, latent=100, inner_batch=256, policy_lr=1e-4, value_lr=1e-5),
    "no_advantage": dict(head_width=0),                             # the paper's ablations:
    "no_wt": dict(ORDINARY, walker_params=dict(inner_lr=0.003, inner_steps=1, test_steps=1)),
    "no_wt_wide": dict(ORDINARY, width=415),                        # at equal parameters
    "maml_awr": dict(ORDINARY, head_width=0),
    "meta_bc": dict(head_width=0, temperature=1e9),                 # all advantage weights are 1
    "mt_awr": dict(PLAIN, multi_task=True, head_width=0, inner_steps=0, test_steps=20,    # MT+FT
                   ant_dir=MILD, walker_params=MILD),
}


# ----------------------------------------------------------------------------- layers and networks
class Linear(nn.Module):
    """y = x W + b for N tasks at once; w (N, n) holds W (in x out), then b (out)."""

    def __init__(self, inputs, outputs, tasks=1):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        bound = inputs ** -0.5
        w = torch.empty(tasks, (inputs + 1) * outputs).uniform_(-bound, bound)
        self.w = nn.Parameter(w)

    def forward(self, x):                                               # (N, B, in)
        W, b = self.w.split([self.inputs * self.outputs, self.outputs], -1)
        return torch.baddbmm(b[:, None], x, W.view(-1, self.inputs, self.outputs))


class Policy(nn.Module):
    """The mean action pi(s) and, from a second head, the advantage A_theta(s, a) (Figure 2)."""

    def __init__(self, obs_dim, act_dim, width, head_width, smooth):
        super().__init__()
        self.activation = nn.SiLU() if smooth else nn.ReLU()
        self.hidden = nn.ModuleList(Linear(inputs, width) for inputs in (obs_dim, width, width))
        self.mean = Linear(width, act_dim)
        self.head = nn.ModuleList([Linear(width + act_dim, head_width), Linear(head_width, 1)]
                                  if head_width else [])

    def forward(self, obs, action=None):
        """Means (N, B, act) in [-1, 1]; with actions given, advantages (N, B) too."""
        h = obs                                                         # (N, B, obs)
        for layer in self.hidden:
            h = self.activation(layer(h))                               # (N, B, width)
        mean = self.mean(h).tanh()
        if action is None:
            return mean
        return mean, self.head[1](self.head[0](torch.cat([h, action], -1)).relu()).squeeze(-1)


class Value(nn.Module):
    """V(s), a net of its own."""

    def __init__(self, obs_dim, width):
        super().__init__()
        self.hidden = nn.ModuleList(Linear(inputs, width) for inputs in (obs_dim, width, width))
        self.value = Linear(width, 1)

    def forward(self, obs):
        """Values (N, B) of observations (N, B, obs)."""
        h = obs
        for layer in self.hidden:
            h = layer(h).relu()                                         # (N, B, width)
        return self.value(h).squeeze(-1)


def inverse_softplus(x):
    """Step sizes and lambda are stored before the softplus that keeps them positive ("raw")."""
    return math.log(math.expm1(x))


def clip_per_task(gradients, longest):
    """Gradients (N, n) of a net's layers, clipped to norm `longest` over all layers, task by task:
    unfamiliar data can make one step too long, and the next one still longer. The factor is a
    constant to the meta-gradient."""
    if not longest:
        return gradients
    length = torch.cat([d.detach() for d in gradients], -1).norm(dim=-1, keepdim=True)     # (N, 1)
    return [d * (longest / length).clamp_max(1.0) for d in gradients]


class Memory(NamedTuple):
    """What a weight transform remembers of the k steps of an adaptation so far."""
    d: list                 # d_0 ... d_{k-1}, the gradients with respect to w (N, n)
    z: list                 # z_0 ... z_k (N, c)


def dot(x, y):
    """Inner products (N, 1) of vectors (N, n), task by task."""
    return (x * y).sum(-1, keepdim=True)


class WeightTransform(nn.Module):
    """A layer's weights as w = M z + m (Section 4.3, Appendix B), and what a gradient step makes of
    them. M is the paper's W^wt; the offset m is in the authors' code.

    The authors' inner step moves all three by their step sizes a_z, a_M, a_m. With d = dL/dw,

        z' = z - a_z M^T d        M' = M - a_M d z^T        m' = m - a_m d

    so w' = M' z' + m' = w - [a_z M M^T + (a_m + a_M z.z') I] d, a gradient step under a learned
    metric. We take that step without forming M', n x c numbers for every task: after k steps
    M_k = M - a_M sum_j d_j z_j^T, so the pairs (d_j, z_j) suffice.
    """

    def __init__(self, inputs, outputs, latent, inner_lr):
        super().__init__()
        n, bound = (inputs + 1) * outputs, latent ** -0.5
        self.z = nn.Parameter(torch.randn(1, latent) * outputs ** -0.5)             # (1, c)
        self.M = nn.Parameter(torch.empty(n, latent).uniform_(-bound, bound))       # (n, c)
        self.m = nn.Parameter(torch.empty(1, n).uniform_(-1, 1) * inputs ** -0.5)   # (1, n)
        self.raw_lr = nn.Parameter(torch.full((3,), inverse_softplus(inner_lr)))    # alpha_1, eta_1

    def initial(self):
        """The weights w_0 (1, n) before adaptation, and a fresh memory."""
        return self.z @ self.M.T + self.m, Memory(d=[], z=[self.z])

    def step(self, d, memory):
        """What is subtracted, w_k - w_{k+1} (N, n), for d = dL/dw_k; memory gains d and z_{k+1}."""
        a_z, a_M, a_m = F.softplus(self.raw_lr)
        pairs = list(zip(memory.d, memory.z))                                   # (d_j, z_j), j < k

        def M_k(y):                             # M_k y = M y - a_M sum_j d_j (z_j . y), (N, n)
            return y @ self.M.T - a_M * sum(dot(z_j, y) * d_j for d_j, z_j in pairs)

        def M_k_T(x):                           # M_k^T x = M^T x - a_M sum_j z_j (d_j . x), (N, c)
            return x @ self.M - a_M * sum(dot(d_j, x) * z_j for d_j, z_j in pairs)
        z = memory.z[-1]
        dz = a_z * M_k_T(d)
        z_next = z - dz
        memory.d.append(d)
        memory.z.append(z_next)
        return M_k(dz) + (a_m + a_M * dot(z, z_next)) * d


class OrdinaryLayer(Linear):
    """An ordinary layer, for the ablation: W and b adapt, each with a step size of its own."""

    def __init__(self, inputs, outputs, inner_lr):
        super().__init__(inputs, outputs)
        self.raw_lr = nn.Parameter(torch.full((2,), inverse_softplus(inner_lr)))

    def initial(self):
        return self.w, None

    def step(self, d, memory):
        a_W, a_b = F.softplus(self.raw_lr)
        lr = torch.cat([a_W.expand(self.inputs * self.outputs), a_b.expand(self.outputs)])
        return lr * d


class InnerLoop(nn.Module):
    """The meta-parameters of one net, a transform for each of its layers, and its inner steps."""

    def __init__(self, net, config):
        super().__init__()
        self.config = config
        object.__setattr__(self, "net", net)    # no submodule: the net holds shapes, no numbers
        self.transforms = nn.ModuleList(
            WeightTransform(layer.inputs, layer.outputs, config.latent, config.inner_lr)
            if config.latent else OrdinaryLayer(layer.inputs, layer.outputs, config.inner_lr)
            for layer in net.modules() if isinstance(layer, Linear))

    @contextlib.contextmanager
    def start(self, tasks, train):
        """A net with `tasks` copies of the initial weights, and a function that adapts it by a step
        down a loss; `train` keeps the graph through the steps, for the meta-gradient."""
        config = self.config
        # `higher` wants an optimizer that it knows. It gets a dummy, SGD with step size 1: this
        # subtracts what the callback returns in place of the gradients, which is our whole update.
        # (copy_initial_weights plays no part: the net has no weights of its own.)
        optimizer = torch.optim.SGD(self.net.parameters(), lr=1.0)
        if config.multi_task:                           # MT+FT adapts by plain Adam instead
            optimizer = torch.optim.Adam(self.net.parameters(), config.inner_lr)
        with higher.innerloop_ctx(self.net, optimizer, copy_initial_weights=False,
                                  track_higher_grads=train) as (net, optimizer):
            weights, memories = zip(*(t.initial() for t in self.transforms))
            net.update_params([w.expand(tasks, -1) for w in weights])

            def updates(gradients):
                clipped = clip_per_task(gradients, config.max_gradient)
                return [t.step(d, memory)
                        for t, d, memory in zip(self.transforms, clipped, memories)]
            yield net, lambda loss: optimizer.step(
                loss, grad_callback=None if config.multi_task else updates)


# ------------------------------------------------------------------------------ losses, adaptation
# Losses are sums over tasks of each task's mean: a task's weights get just their own gradient.

def returns(V, batch, bootstrap):
    """R_D(s, a) of Eq. 2 (N, B): the Monte Carlo return, with V's estimate of the rest where time
    alone ended the episode.

    V(s) does not know how much time is left. Without the rest, late steps look too good where
    rewards are negative, and too bad where they are positive.
    """
    if not bootstrap:
        return batch.mc_return
    with torch.no_grad():                                       # a target, nothing to train
        return batch.mc_return + batch.discount * V(batch.last_obs)


def advantages(V, batch, bootstrap):
    """A(s, a) = R_D(s, a) - V(s), (N, B)."""
    return returns(V, batch, bootstrap) - V(batch.obs)


def value_loss(advantage):
    """L_V (Eq. 2): the mean square of R_D(s, a) - V(s), hence of the advantage (N, B)."""
    return advantage.square().mean(-1).sum()


def advantage_weights(advantage, config):
    """exp(A / T) of Eq. 1 for A (N, B) standardised in each task's batch, at most MAX_WEIGHT."""
    centred = advantage - advantage.mean(-1, keepdim=True)
    scaled = centred / advantage.std(-1, keepdim=True).clamp_min(1e-4)      # A may be constant
    return (scaled / config.temperature).clamp_max(math.log(MAX_WEIGHT)).exp()


def deviation(action):
    """Standard deviation (N, 1, 1) of each task's actions (N, B, act); they may be constant."""
    return action.var(1).mean(-1).sqrt().clamp_min(0.01)[:, None, None]


def policy_loss(pi, batch, advantage, config, coef=None):
    """L^AWR (Eq. 1) or, given lambda, L_pi = L^AWR + lambda L^ADV (Eq. 3, 4)."""
    advantage = advantage.detach()                  # a weight and a target: V has its own loss
    mean, predicted = (pi(batch.obs), None) if coef is None else pi(batch.obs, batch.action)
    # A slow gait's actions are small: with one sigma for all tasks it would hardly count
    sigma = (deviation(batch.action) / 3 if config.relative_sigma
             else batch.action.new_full((), config.sigma))
    log_prob = (-0.5 * ((batch.action - mean) / sigma).square()
                - (sigma * math.sqrt(2 * math.pi)).log()).sum(-1)                   # (N, B)
    loss = -log_prob * advantage_weights(advantage, config)
    if coef is not None:
        loss = loss + coef * (predicted - advantage).square()       # L^ADV: A_theta to A as it is
    return loss.mean(-1).sum()


class MetaLearner(nn.Module):
    """All that meta-training learns: theta, phi, their inner step sizes and lambda (line 3)."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.config = config
        with torch.device("meta"):              # shapes without numbers, which come from transforms
            policy = Policy(obs_dim, act_dim, config.width, config.head_width, config.smooth)
            value = Value(obs_dim, config.width)
        self.policy, self.value = InnerLoop(policy, config), InnerLoop(value, config)
        if config.head_width:
            self.raw_coef = nn.Parameter(torch.tensor(inverse_softplus(config.advantage_coef)))

    def adapt(self, D, steps, train=False):
        """theta', phi': policies and value functions of N tasks, adapted to their batches D by
        Algorithm 2. Lines 7 and 8 of Algorithm 1 run the same loop."""
        config, tasks = self.config, len(D.obs)
        coef = F.softplus(self.raw_coef) if config.head_width else None
        # A target that moves with V is no good for few large steps; MT+FT goes on as it was trained
        bootstrap_target = config.bootstrap and config.multi_task
        with (self.value.start(tasks, train) as (V, step_value),
              self.policy.start(tasks, train) as (pi, step_policy)):
            for _ in range(steps):                                          # Algorithm 2, line 4
                step_value(value_loss(advantages(V, D, bootstrap_target)))          # line 5
                with torch.no_grad():
                    advantage = advantages(V, D, config.bootstrap)          # by phi'_i
                step_policy(policy_loss(pi, D, advantage, config, coef))            # line 6
            return pi, V

    def policies(self, D, adapted=True):
        """A function of observations (N, B, obs) that gives the mean actions (N, B, act) of each
        task's policy, adapted to its batch D or as meta-training left it."""
        pi, _ = self.adapt(D, self.config.test_steps if adapted else 0)
        return pi

    def meta_losses(self, pi, V, D):
        """L_V and L^AWR of the adapted nets on other data D of their tasks (Eq. 5 and 6)."""
        advantage = advantages(V, D, self.config.bootstrap)
        return value_loss(advantage), policy_loss(pi, D, advantage, self.config)

    def optimizer(self):
        """AdamW over everything; step sizes of inner steps and lambda do not decay."""
        config, loops = self.config, (self.policy, self.value)
        steps = [t.raw_lr for loop in loops for t in loop.transforms]
        coef = [self.raw_coef] if config.head_width else []
        theta, phi = ([p for t in loop.transforms for p in t.parameters() if p is not t.raw_lr]
                      for loop in loops)
        groups = ((theta, config.policy_lr, config.weight_decay),
                  (phi, config.value_lr, config.weight_decay), (steps + coef, STEP_LR, 0.0))
        return torch.optim.AdamW([dict(params=params, lr=lr, initial_lr=lr, weight_decay=decay)
                                  for params, lr, decay in groups], fused=True)


def meta_train(run, until):
    """Algorithm 1, up to meta-step `until`."""
    config, learner, optimizer = run.config, run.learner, run.optimizer
    for _ in run.steps(until):                                                      # line 4
        tasks = run.choose(config.tasks_per_step)                           # line 5, some of them
        D_tr, D_ts = run.sample(tasks, config.batch_sizes, begin=(0.0, config.late))    # line 6
        pi, V = learner.adapt(D_tr, config.inner_steps, train=True)                 # lines 7, 8
        loss_V, loss_pi = learner.meta_losses(pi, V, D_ts)
        # One backward pass serves both updates: L_V does not depend on theta, and L^AWR sends no
        # gradient to phi, for its advantages are detached
        losses = dict(value_loss=loss_V / len(tasks), policy_loss=loss_pi / len(tasks))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        run.check(losses)                           # raises Diverged where one is not finite
        run.lower_step_sizes()
        optimizer.step()                                                            # lines 10, 11


def meta_test(run, draws):
    """Algorithm 2 on the held-out tasks: returns before and after adaptation, (tasks,) each, means
    over `draws` batches of the task, each with an episode of mean actions after it. Batches and
    episodes are always the same, and training's random numbers are left alone."""
    config, buffers, results = run.config, run.buffers, []
    tasks = [i for i in buffers.test for _ in range(draws)]                         # line 1
    D, = buffers.sample(tasks, [config.test_batch], torch.Generator().manual_seed(0))
    with envs.environments_of(config.env, tasks) as environments:
        for adapted in (False, True):
            policies = run.policies(D, adapted)                                     # lines 3 to 7
            returns = envs.rollout(policies, environments, range(len(tasks)), buffers.observe)
            results.append(returns.reshape(-1, draws).mean(-1))
    return results


MACAW = Method(MetaLearner, Config, meta_train, meta_test, PRESETS, VARIANTS, parallel=True)

if __name__ == "__main__":
    main(MACAW, __doc__)
