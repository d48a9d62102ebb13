"""MACAW: Offline Meta-Reinforcement Learning with Advantage Weighting (Mitchell et al., ICML 2021).

From fixed data of many tasks, meta-learn a policy and a value function that adapt to a new task by
one or a few gradient steps on 256 of its transitions. Read this file beside the paper:

    Algorithm 1 (meta-training)                          Algorithm 2 (meta-testing)
    line 3   initialise theta, phi    Learner            line 3    initialise      Learner
    line 4   for n steps              train              line 4    for n steps     adapt
    line 6   sample D^tr, D^ts        Buffers.sample     line 5    adapt phi       adapt
    line 7   phi'   (Eq. 2)           adapt, value_loss  line 6    adapt theta     adapt
    line 8   theta' (Eq. 1, 3, 4)     adapt, policy_loss           act             rollout
    line 10  update phi   (Eq. 5)     meta_loss          Appendix B
    line 11  update theta (Eq. 6)     meta_loss          weight transform  WeightTransform

    python macaw.py --env cheetah_vel                         # meta-train, then meta-test
    python macaw.py --evaluate runs/.../checkpoint.pt         # meta-test only

Where we leave the paper; [code]: as the authors' released program does; the README gives reasons.
 1. Returns end in gamma^k V(s_end) at the time limit, but in the inner value loss [code].
 2. Advantages are standardised in the batch, their exponent is clipped at log 20 [code].
 3. Inner step sizes, one a tensor, and lambda are meta-learned [code].
 4. z, M and m of a weight transform adapt, not z alone [code], but M is never copied: see there.
 5. The two batches of line 6 are disjoint (not in the code) and spread evenly over lives.
 6. Negative actions reach the advantage head (the code clips them at 0).
 7. Observations are standardised, returns divided by their deviation, over the training tasks.
 8. Meta-losses are means over tasks, not sums; weights decay; outer step sizes fall to 0.
 9. cheetah_vel adapts by three steps, not one; ants and walkers take D^ts late in life (PRESETS).
"""
import contextlib
import dataclasses
import math
import pathlib
import time

import higher
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import command
import envs
import factored
import plot
import render
from buffers import Buffers
from command import BadInput, Diverged, flag

# Shapes: T tasks, B transitions of each, c latent size, n numbers in a layer's weights and bias.
# Every layer has a leading task axis: T tasks at once by batched matrix products, no loop anywhere.

@dataclasses.dataclass(frozen=True)
class Config:
    """[code]: the value of the authors' released configuration; [us]: chosen on training tasks."""
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    variant: str = flag("macaw", "macaw, or what the paper compares it with; see VARIANTS")
    steps: int = flag(4000, "n of Algorithm 1, meta-steps [us]", 1)
    seed: int = flag(0, "of nets and batches", 0)
    data: str = flag("", "behaviour data; data/ENV.npz when empty")
    out: str = flag("", "run folder; a fresh one under runs/ when empty")
    resume: bool = flag(False, "go on from the checkpoint in --out")
    evaluate: str = flag("", "a checkpoint to meta-test, without training")
    render: str = flag("", "a .gif to draw of a held-out task before and after adaptation")
    device: str = flag("cpu", "cpu or cuda")
    holdout: str = flag("", "training tasks, as in 4,12, to test on instead of the test tasks")
    width: int = flag(100, "units in each of the three hidden layers [code]", 1, 4096)
    latent: int = flag(32, "c, size of z; 0: layers are no transforms [us; code: 100]", 0, 4096)
    head_width: int = flag(32, "hidden units of the advantage head; 0: none [code]", 0, 4096)
    multi_task: bool = flag(False, "one net told tasks apart, Adam steps in testing (MT+FT)")
    sigma: float = flag(0.2, "standard deviation of the policy [code]", 1e-3, 10)
    gamma: float = flag(0.99, "discount [code]", 0, 1)
    temperature: float = flag(1.0, "T of Eq. 1 [code]", 1e-3)
    max_weight: float = flag(20.0, "largest advantage weight exp(A / T) [code]", 1)
    bootstrap: bool = flag(True, "returns go on with V at the time limit [code]")
    advantage_coef: float = flag(0.01, "lambda of Eq. 3, to begin with [code]", 1e-6)
    inner_lr: float = flag(1e-3, "alpha_1, eta_1, to begin with [code]", 1e-9, 10)
    policy_lr: float = flag(1e-3, "alpha_2, Adam [us; code: 1e-4]", 0, 10)
    value_lr: float = flag(1e-3, "eta_2, Adam [us; code: 1e-5]", 0, 10)
    step_lr: float = flag(1e-3, "Adam, of inner step sizes and lambda [code]", 0, 10)
    weight_decay: float = flag(1.0, "of theta and phi, times their step size [us; code: 0]", 0, 100)
    tasks_per_step: int = flag(5, "tasks in a meta-batch [code]", 1, 1000)
    inner_batch: int = flag(256, "transitions in D^tr, also in testing [code]", 2, 100_000)
    outer_batch: int = flag(256, "transitions in D^ts [code]", 2, 100_000)
    late: float = flag(0.0, "D^ts comes from this share of a life on [paper]", 0, 0.99)
    inner_steps: int = flag(1, "gradient steps of an adaptation in training [code]", 1, 100)
    test_steps: int = flag(1, "gradient steps of an adaptation in testing [code]", 1, 1000)
    eval_every: int = flag(500, "meta-steps between two evaluations", 1)
    eval_draws: int = flag(2, "adaptation batches and episodes of a task in an evaluation", 1, 1000)
    final_draws: int = flag(20, "the same at the end", 1, 1000)


PRESETS = {**dict.fromkeys(envs.FAMILIES, {}),  # what a family needs differently from the defaults
    "cheetah_vel": dict(steps=2500, inner_steps=3, test_steps=3),
    "cheetah_dir": dict(tasks_per_step=2, steps=2000, weight_decay=0.0),
    "ant_dir": dict(late=0.5),
    "walker_params": dict(late=0.8),
    "point_goal": dict(steps=400, gamma=0.9, width=32, latent=16, eval_every=100,
                       weight_decay=0.0),
}

VARIANTS = {                                    # the paper's ablations and baselines (Section 5)
    "macaw": dict(),
    "no_advantage": dict(head_width=0),
    "no_wt": dict(latent=0),                                        # at equal width
    "no_wt_wide": dict(latent=0, width=621),                        # at equal parameter count
    "maml_awr": dict(latent=0, head_width=0),
    "meta_bc": dict(head_width=0, temperature=1e9),                 # all advantage weights are 1
    "mt_awr": dict(multi_task=True, latent=0, head_width=0, inner_lr=1e-3, test_steps=20),
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
        self.hidden = nn.ModuleList(Linear(inputs, width) for inputs in (obs_dim, width, width))
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
    def __init__(self, obs_dim, width):
        super().__init__()
        self.hidden = nn.ModuleList(Linear(inputs, width) for inputs in (obs_dim, width, width))
        self.value = Linear(width, 1)

    def forward(self, obs):
        """V(s) (T, B) of observations (T, B, obs)."""
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
        self.m = nn.Parameter(torch.empty(1, n).uniform_(-1, 1) * inputs ** -0.5)   # (1, n)
        self.log_lr = nn.Parameter(torch.full((3,), inverse_softplus(inner_lr)))

    def initial(self):
        """theta_0 (1, n), and the memory of an adaptation: M's product, all d_j (T, n), z_j."""
        times_M = factored.times(self.M)
        return times_M(self.z, transposed=True) + self.m, (times_M, [], [self.z])

    def step(self, d, memory):
        """theta_k - theta_{k+1} (T, n) for d = dL/dtheta_k (T, n)."""
        a_z, a_M, a_m = F.softplus(self.log_lr)
        times_M, ds, zs = memory
        g = times_M(d)                                      # M_k^T d, the gradient of z: (T, c)
        for d_j, z_j in zip(ds, zs):
            g = g - a_M * (d_j * d).sum(-1, keepdim=True) * z_j
        dz = a_z * g                                        # z_k - z_{k+1}
        dtheta = times_M(dz, transposed=True)               # M_k (z_k - z_{k+1}): (T, n)
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
        self.config, self.make_net = config, make_net
        with torch.device("meta"):                          # shapes without numbers, which come
            self.net = [make_net()]                         # from the transforms; hidden in a list,
        layers = [m for m in self.net[0].modules() if isinstance(m, Linear)]    # nothing to train
        self.transforms = nn.ModuleList(
            WeightTransform(layer.inputs, layer.outputs, config.latent, config.inner_lr)
            if config.latent else FullyConnected(layer.inputs, layer.outputs, config.inner_lr)
            for layer in layers)

    @contextlib.contextmanager
    def inner_loop(self, tasks, train):
        """A net of `tasks` copies of the initial weights, and a step that adapts them; `train`
        keeps the graph through the steps, for meta-gradients."""
        net, fine_tune = self.net[0], self.config.multi_task
        sgd = (torch.optim.Adam(net.parameters(), self.config.inner_lr) if fine_tune else
               torch.optim.SGD(net.parameters(), lr=1.0))
        with higher.innerloop_ctx(net, sgd, copy_initial_weights=False,
                                  track_higher_grads=train) as (fast, optimizer):
            thetas, memories = zip(*(t.initial() for t in self.transforms))
            fast.update_params([theta.expand(tasks, -1) for theta in thetas])

            def transform(gradients):
                return [t.step(d, memory)
                        for t, d, memory in zip(self.transforms, gradients, memories)]
            yield fast, lambda loss: optimizer.step(
                loss, grad_callback=None if fine_tune else transform)


# ------------------------------------------------------------------------------ losses, adaptation
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
    scaled = centred / advantage.std(-1, keepdim=True).clamp_min(1e-4)
    return (scaled / config.temperature).clamp_max(math.log(config.max_weight)).exp()


def policy_loss(pi, batch, advantage, config, coef=None):
    """L^AWR (Eq. 1), given lambda L_pi = L^AWR + lambda L^ADV (Eq. 3, 4); summed over tasks."""
    mean, predicted = (pi(batch.obs), None) if coef is None else pi(batch.obs, batch.action)
    log_prob = (-0.5 * ((batch.action - mean) / config.sigma).square()
                - math.log(config.sigma * math.sqrt(2 * math.pi))).sum(-1)          # (T, B)
    loss = -log_prob * advantage_weights(advantage, config)
    if coef is not None:
        loss = loss + coef * (predicted - advantage).square()
    return loss.mean(-1).sum()


class Macaw(nn.Module):
    """All that meta-training learns: theta, phi, their step sizes and lambda."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.config = config
        self.policy = Learner(lambda: Policy(obs_dim, act_dim, config.width, config.head_width),
                              config)
        self.value = Learner(lambda: Value(obs_dim, config.width), config)
        if config.head_width:
            self.log_coef = nn.Parameter(torch.tensor(inverse_softplus(config.advantage_coef)))

    def adapt(self, batch, steps, train):
        """theta', phi': nets adapted to each task of the batch (lines 7-8; Alg. 2, lines 4-7)."""
        config = self.config
        coef = F.softplus(self.log_coef) if config.head_width else None
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
        pi, V = self.adapt(inner, 0 if config.multi_task else config.inner_steps, train=True)
        loss_V, advantage = value_loss(V, outer, config.bootstrap)
        loss_pi = policy_loss(pi, outer, advantage, config)
        return loss_V / tasks, loss_pi / tasks

    def optimizer(self):
        """AdamW over everything, in three groups: theta, phi, and the inner steps."""
        def group(module, inner_steps, lr, decay):
            return dict(params=[p for name, p in module.named_parameters()
                                if ("log_" in name) == inner_steps],
                        lr=lr, initial_lr=lr, weight_decay=decay)
        config = self.config
        return torch.optim.AdamW([group(self.policy, False, config.policy_lr, config.weight_decay),
                                  group(self.value, False, config.value_lr, config.weight_decay),
                                  group(self, True, config.step_lr, 0.0)], fused=True)


# --------------------------------------------------------------------------- rollout, evaluation
@torch.no_grad()
def rollout(pi, environments, seeds, buffers):
    """Undiscounted returns (T,) of an episode of the T policies' mean actions, in lock-step."""
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(environments, seeds)])
    total, alive = np.zeros(len(obs)), np.ones(len(obs), bool)
    while alive.any():
        x = buffers.with_id(buffers.standardise(obs)[:, None])             # (T, 1, obs)
        action = pi(x)[:, 0].cpu().numpy()
        for i in np.flatnonzero(alive):
            obs[i], reward, terminated, truncated, _ = environments[i].step(action[i])
            total[i] += reward
            alive[i] = not (terminated or truncated)
    return total


def evaluate(macaw, buffers, draws):
    """Algorithm 2 on the held-out tasks: mean returns before and after adaptation, (tasks,) each.

    Each task is adapted to `draws` batches of its buffer, each followed by an episode. Batches and
    episodes are the same at every evaluation, and no random stream of the training is touched.
    """
    config, tasks = macaw.config, [i for i in buffers.test for _ in range(draws)]
    environments = [envs.make(config.env, envs.FAMILIES[config.env].tasks[i]) for i in tasks]
    batch, = buffers.sample(tasks, [config.inner_batch], torch.Generator().manual_seed(0))
    results = []
    for steps in (0, config.test_steps):
        pi, _ = macaw.adapt(batch, steps, train=False)
        returns = rollout(pi, environments, range(len(tasks)), buffers)
        results.append(returns.reshape(-1, draws).mean(-1))
    for env in environments:
        env.close()
    return results


# --------------------------------------------------------------------------------------- training
class Run:
    """Everything that training changes, hence everything that a checkpoint holds."""

    def __init__(self, config, state=None):
        self.config = config
        self.rank, self.world = command.processes(config)
        path = config.data or pathlib.Path(__file__).parent / f"data/{config.env}.npz"
        self.buffers = Buffers(path, config, state and state["stats"])
        torch.manual_seed(config.seed)                              # for the first weights
        self.macaw = Macaw(self.buffers.obs_dim, self.buffers.act_dim, config).to(config.device)
        self.optimizer = self.macaw.optimizer()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.seconds, self.rows = 0, 0.0, []
        if state:
            self.macaw.load_state_dict(state["macaw"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]

    def save(self, folder):
        with command.replacing(folder / "checkpoint.pt") as file:
            torch.save(dict(
                format=command.CHECKPOINT_FORMAT, config=dataclasses.asdict(self.config),
                stats=self.buffers.stats, macaw=self.macaw.state_dict(), step=self.step,
                optimizer=self.optimizer.state_dict(), generator=self.generator.get_state(),
                seconds=self.seconds, rows=self.rows), file)
        command.save_csv(folder / "metrics.csv", self.rows)

    def meta_step(self):
        """Lines 5-11 of Algorithm 1 on a meta-batch of tasks; the losses (L_V, L_pi).

        Under torchrun each process takes some of the tasks, and gradients are added up.
        """
        config, train = self.config, self.buffers.train
        chosen = torch.randperm(len(train), generator=self.generator)[:config.tasks_per_step]
        batches = self.buffers.sample([train[i] for i in chosen],
                                      [config.inner_batch, config.outer_batch],
                                      self.generator, (0.0, config.late), known=True)
        inner, outer = (batch.part(self.rank, self.world) for batch in batches)
        losses = torch.stack(self.macaw.meta_loss(inner, outer)) * len(inner.obs) / len(chosen)
        self.optimizer.zero_grad()
        losses.sum().backward()
        gradients = [p.grad for p in self.macaw.parameters() if p.grad is not None]
        command.sum_over_processes([losses.detach(), *gradients])
        numbers = [*losses.tolist(), torch.nn.utils.get_total_norm(gradients).item()]
        for term, x in zip(("value loss", "policy loss", "norm of the meta-gradient"), numbers):
            if not math.isfinite(x):
                raise Diverged(f"the {term} is {x} at step {self.step + 1}, before the update; "
                               "the last checkpoint is good: try smaller step sizes")
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - self.step / config.steps)
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
            before, after = (x.mean() for x in evaluate(run.macaw, run.buffers, config.eval_draws))
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
    config, buffers = run.config, run.buffers
    before, after = evaluate(run.macaw, buffers, config.final_draws)
    tasks = [dict(id=i, before=float(b), after=float(a), behavior_final=buffers.behavior_final[i],
                  behavior_mean=buffers.behavior_mean[i])
             for i, b, a in zip(buffers.test, before, after)]
    means = {name: float(np.mean([task[name] for task in tasks])) for name in tasks[0]
             if name != "id"}
    return dict(env=config.env, variant=config.variant, seed=config.seed, steps=run.step,
                seconds=round(run.seconds, 1),
                steps_per_second=round(run.step / max(run.seconds, 1e-9), 2), **means, tasks=tasks)


def main(config, given):
    command.check_device(config.device)
    state = None
    if config.evaluate or config.resume:
        if not config.evaluate and not config.out:
            raise BadInput("--resume needs --out, the folder of the run to go on with")
        state = command.load_checkpoint(config.evaluate or f"{config.out}/checkpoint.pt", given)
        config = Config(**{**state["config"], "render": "", **given})
    run = Run(config, state)
    if config.render:                                       # what cannot be drawn, fails now
        render.camera(config.env, envs.FAMILIES[config.env].tasks[0]).close()
    if config.evaluate:
        result = summary(run)
    elif run.rank:                                          # the first process does the rest
        while run.step < config.steps:
            run.meta_step()
        return
    else:
        folder = command.run_folder(config)
        command.save_json(folder / "config.json", dataclasses.asdict(config))
        print(f"{config.variant} on {config.env}: {len(run.buffers.train)} training tasks, "
              f"tested on tasks {run.buffers.test}; writes {folder}", flush=True)
        run.save(folder)                                    # so that a kill at any moment resumes
        result = train(run, folder)
        command.save_json(folder / "summary.json", result)
        plot.curve([folder], folder / "curve.png")
    command.report(result)
    if config.render:
        render.side_by_side(run, rollout, config.render)


if __name__ == "__main__":
    command.command_line(main, Config, dict(env=PRESETS, variant=VARIANTS), __doc__)
