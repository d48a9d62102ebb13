"""FOCAL: Efficient Fully-Offline Meta-RL via Distance Metric Learning and Behavior Regularization
(Li, Yang and Luo, ICLR 2021), and Offline PEARL beside it, on the data that MACAW learns from.

MACAW adapts by changing weights; these methods infer the task instead. A context encoder reads
transitions of the task and gives a short code z; one actor and one critic serve all tasks, given z.

    the paper                                            here
    context encoder q(z | c), deterministic              Encoder, ContextLearner.encode
    its loss: codes of one task close, of two apart      distance_loss
    detached from the Bellman backup                     z.detach() in ContextLearner.losses
    actor-critic on (s, z)                               critic_loss, actor_loss
    behavior regularization                              advantage-weighted actions in actor_loss
    meta-testing: encode the context, act                ContextLearner.policies

Offline PEARL (Rakelly et al., 2019, on fixed data, as in MACAW's paper): the encoder gives a
Gaussian for each transition, q(z | c) is their product, it is trained through the critics and by
the KL divergence to the prior N(0, I), and nothing keeps the actor near the data.

    python -m baselines.focal --env cheetah_vel --variant pearl    # or focal, pearl_regularised

Where we leave the papers:
 1. The actor is regularised by advantage weights (AWAC, Nair et al., 2020), not by a dual KL
    divergence with a critic of its own (BRAC), which did not learn within minutes of training.
 2. The actor is a Gaussian without an entropy bonus, its deviation fixed, as MACAW's policy.
    PEARL's is deterministic, and testing acts by the posterior's mean, not by a sample.
 3. Small nets, large steps (Adam, 3e-3 or 1e-3 falling to 0), quick targets: minutes on a laptop.
 4. Each task gives two contexts to the distance loss: its positive pair. Distances are means over
    dimensions; attraction and repulsion are averaged apart. Codes are not bounded.
 5. The encoder sees next observations only where the dynamics differ (walker_params).
 6. Contexts have 64 transitions in training (cheetah_dir 128) and 256 in testing.
 7. FOCAL's encoder learns in the first 600 updates only. Its loss needs no critic, and actor and
    critics fit fixed codes better than moving ones: slow gaits above all.
 8. FOCAL's actor and critics learn from the later half of each agent's training (PEARL and the toy
    family: from all of it).
 9. On cheetahs and ants FOCAL's actor is smooth (SiLU), and its deviation is that of each task's
    actions. Otherwise slow gaits, whose actions are small, count for little, and their copies are
    too weak to keep going: the robots come to rest.
10. On walkers FOCAL's critics learn Monte Carlo returns, as MACAW's V does. Bellman backups give
    wrong values far from an episode's end, so walkers fall in their first steps.
"""
import copy
import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

import envs
import macaw
from helpers.command import BadInput, flag
from helpers.run import Method, RunConfig, main

# Shapes: N tasks, B transitions of each, z numbers in a task's code (not MACAW's z, a layer's).


@dataclasses.dataclass(frozen=True)
class ContextConfig(RunConfig):
    """The settings of a method that infers a context; [code]: of the authors' released programs."""
    steps: int = flag(2500, "updates of all nets [us]", 1)
    tasks_per_step: int = flag(16, "tasks in an update [code]", 1, 1000)
    batch: int = flag(64, "transitions of a task for actor and critics [us; code: 256]", 2, 100_000)
    context: int = flag(64, "transitions in a context [us]", 1, 100_000)
    late: float = flag(0.0, "skip this first share of the data when drawing transitions for actor "
                            "and critics [us]", 0, 0.99)
    next_obs: bool = flag(False, "the encoder sees next observations, too")
    code: int = flag(8, "numbers in a task's code z [code: 5 to 20]", 1, 1000)
    width: int = flag(128, "units in each hidden layer [us; code: 200 to 300]", 1, 4096)
    sigma: float = flag(0.2, "standard deviation of the actor [us]", 1e-3, 10)
    relative_sigma: bool = flag(False, "instead of sigma, that of the task's own actions [us]")
    temperature: float = flag(0.5, "of the advantage weights, in deviations of A [us]", 1e-3)
    kl: float = flag(1e-5, "weight of PEARL's KL divergence [us; code: 0.1 on rewards x 5]", 0, 100)
    lr: float = flag(1e-3, "Adam step size of all nets [us; code: 3e-4]", 0, 1)
    tau: float = flag(0.02, "how far targets move to the critics an update [us; code: 0.005]", 0, 1)


@dataclasses.dataclass(frozen=True)
class Config(ContextConfig):
    """The settings that are FOCAL's and PEARL's own."""
    probabilistic: bool = flag(False, "PEARL's encoder: a Gaussian, trained through the critics")
    regularise: bool = flag(True, "keep the actor near the data by advantage weights")
    smooth: bool = flag(False, "the actor has SiLU, not ReLU [us]")
    monte_carlo: bool = flag(False, "critics learn Monte Carlo returns, not Bellman backups [us]")
    encoder_steps: int = flag(600, "updates in which the encoder learns, 0: in all [us]", 0)
    power: float = flag(2.0, "n of the distance loss [paper]", 0.1, 10)
    beta: float = flag(1.0, "weight of the distance loss's repulsion [paper]", 0, 1000)
    epsilon: float = flag(0.1, "bounds the repulsion by beta / epsilon [paper]", 1e-6, 10)

    @property
    def batch_sizes(self):
        """Of two contexts and the transitions that actor and critics learn from."""
        return self.context, self.context, self.batch


FAST = dict(late=0.5, temperature=3.0, lr=3e-3, relative_sigma=True, smooth=True)
PRESETS = {**dict.fromkeys(envs.FAMILIES, FAST),
    "cheetah_vel": dict(FAST, nudge=True),
    "cheetah_dir": dict(FAST, tasks_per_step=2, batch=256, context=128),
    "walker_params": dict(next_obs=True, late=0.5, monte_carlo=True),
    "point_goal": dict(steps=600, gamma=0.9, width=64, eval_every=200),
}

PEARL = dict(probabilistic=True, encoder_steps=0, late=0.0, temperature=0.5, lr=1e-3,
             relative_sigma=False, smooth=False, monte_carlo=False)
VARIANTS = {
    "focal": dict(),
    "pearl": dict(PEARL, regularise=False),
    "pearl_regularised": PEARL,
}


def mlp(inputs, hidden, outputs, activation=nn.ReLU):
    """A net with these hidden layers; it maps the last axis."""
    sizes, layers = [inputs, *hidden], []
    for before, after in zip(sizes, sizes[1:]):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class Encoder(nn.Module):
    """q(z | c): the task's code from a context c of its transitions, in whatever order."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.config = config
        inputs = obs_dim * (1 + config.next_obs) + act_dim + 1
        self.net = mlp(inputs, [config.width] * 2, config.code * (1 + config.probabilistic))

    def forward(self, batch):
        """FOCAL: codes (N, z), means over the transitions (N, B). PEARL: mean and variance of the
        codes, both (N, z)."""
        parts = [batch.obs, batch.action, batch.reward_seen[..., None]]
        outputs = self.net(torch.cat(parts + [batch.next_obs] * self.config.next_obs, -1))
        if not self.config.probabilistic:
            return outputs.mean(1)
        mean, spread = outputs.chunk(2, -1)                             # (N, B, z)
        return product_of_gaussians(mean, F.softplus(spread).clamp_min(1e-7))


def product_of_gaussians(mean, variance):
    """Mean and variance (N, z) of the product of B Gaussians (N, B, z): precisions add up."""
    total = 1 / (1 / variance).sum(1)
    return total * (mean / variance).sum(1), total


class Critics(nn.Module):
    """Two estimates of Q(s, a, z), (2, N, B)."""

    def __init__(self, inputs, config):
        super().__init__()
        self.nets = nn.ModuleList(mlp(inputs, [config.width] * 3, 1) for _ in range(2))

    def forward(self, obs, action, z):
        x = torch.cat([obs, action, beside(z, obs)], -1)
        return torch.stack([net(x).squeeze(-1) for net in self.nets])


def beside(z, obs):
    """Codes (N, z) beside each of their tasks' observations: (N, B, z)."""
    return z[:, None].expand(-1, obs.shape[1], -1)


# -------------------------------------------------------------------------------------- the losses
def distance_loss(z, other, config):
    """FOCAL's metric loss on two codes (N, z) of each task: the squared distance where the task is
    the same, beta / (distance^n + epsilon) where it is another. Means over the pairs."""
    square = (z[:, None] - other[None]).square().mean(-1)               # (N, N), over dimensions
    same = torch.eye(len(z), dtype=torch.bool, device=z.device)
    apart = config.beta / (square[~same].add(1e-12) ** (config.power / 2) + config.epsilon)
    return square[same].mean() + apart.mean()


def kl_loss(mean, variance):
    """KL divergence of N(mean, variance) (N, z) from the prior N(0, I), mean over tasks."""
    return 0.5 * (variance + mean.square() - 1 - variance.log()).sum(-1).mean()


class ContextLearner(nn.Module):
    """Encoder, actor, twin critics and their targets; FOCAL's or PEARL's as config says."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        if config.tasks_per_step < 2 and not config.probabilistic:
            raise BadInput("the distance loss compares tasks; give --tasks-per-step 2 or more")
        self.config = config
        self.encoder = Encoder(obs_dim, act_dim, config)
        self.actor = mlp(obs_dim + config.code, [config.width] * 3, act_dim,
                         nn.SiLU if config.smooth else nn.ReLU)
        self.critics = Critics(obs_dim + act_dim + config.code, config)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)

    def optimizer(self):
        lr = self.config.lr
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam([dict(params=trained, lr=lr, initial_lr=lr)], fused=True)

    def encode(self, batch):
        """The codes (N, z) to act by: FOCAL's, or the mean of PEARL's posterior."""
        code = self.encoder(batch)
        return code[0] if self.config.probabilistic else code

    def act(self, obs, z):
        """Mean actions (N, B, act)."""
        return self.actor(torch.cat([obs, beside(z, obs)], -1)).tanh()

    def policies(self, D, adapted=True):
        """A function of observations (N, B, obs) that gives the actions of each task's policy: by
        the code of its context D or, not adapted, by the code 0."""
        z = self.encode(D).detach() * adapted
        return lambda obs: self.act(obs, z)

    def losses(self, first, second, batch, noise, encoder=True):
        """All losses of an update, on two contexts and other transitions of the same tasks; noise
        (N, z) samples PEARL's posterior. `encoder`: whether the encoder still learns."""
        config, losses = self.config, {}
        if config.probabilistic:
            mean, variance = self.encoder(first)
            z = mean + variance.sqrt() * noise
            if encoder:
                losses["kl_loss"] = config.kl * kl_loss(mean, variance)
        else:
            z = self.encoder(first)
            if encoder:
                losses["distance_loss"] = distance_loss(z, self.encoder(second), config)
        # PEARL's encoder is trained by the critics, too; FOCAL's by the distance alone
        critic_z = z if config.probabilistic and encoder else z.detach()
        return dict(**losses, critic_loss=self.critic_loss(batch, critic_z),
                    actor_loss=self.actor_loss(batch, z.detach()))

    def critic_loss(self, batch, z):
        """Squared Bellman error, or that of the Monte Carlo return. Truncated episodes still
        bootstrap; terminated ones do not."""
        if self.config.monte_carlo:
            reward, discount, following = batch.mc_return, batch.discount, batch.last_obs
        else:
            discount = self.config.gamma * (1 - batch.terminated)
            reward, following = batch.reward, batch.next_obs
        with torch.no_grad():
            value = self.targets(following, self.act(following, z), z).amin(0)      # (N, B)
            target = reward + discount * value
        return (self.critics(batch.obs, batch.action, z) - target).square().mean()

    def actor_loss(self, batch, z):
        """The data's actions, weighted by how much better they are than the actor's own; PEARL's
        actor without regularisation climbs the critics instead."""
        mean = self.act(batch.obs, z)
        if self.config.regularise:
            with torch.no_grad():
                advantage = (self.critics(batch.obs, batch.action, z).amin(0)
                             - self.critics(batch.obs, mean, z).amin(0))            # (N, B)
            sigma = (macaw.deviation(batch.action) if self.config.relative_sigma
                     else self.config.sigma)
            error = (0.5 * ((batch.action - mean) / sigma).square()).sum(-1)
            return (macaw.advantage_weights(advantage, self.config) * error).mean()
        self.critics.requires_grad_(False)              # the actor climbs, the critics stay
        value = self.critics(batch.obs, mean, z).amin(0)
        self.critics.requires_grad_(True)
        return -value.mean()

    @torch.no_grad()
    def follow(self):
        """Targets move a little towards the critics."""
        torch._foreach_lerp_(list(self.targets.parameters()), list(self.critics.parameters()),
                             self.config.tau)


def descend(run, losses):
    """An update of all nets, down the sum of their losses, and of the targets."""
    run.optimizer.zero_grad()
    sum(losses.values()).backward()
    run.check(losses)                               # raises Diverged where one is not finite
    run.lower_step_sizes()
    run.optimizer.step()
    run.learner.follow()


def train(run, until):
    """Offline meta-training, up to update `until`."""
    config, learner = run.config, run.learner
    for _ in run.steps(until):
        learns = run.step < (config.encoder_steps or config.steps)
        first, second, batch = run.sample(run.choose(config.tasks_per_step), config.batch_sizes,
                                          begin=(0.0, 0.0, config.late))
        noise = torch.randn(len(batch.obs), config.code, generator=run.generator).to(run.device)
        descend(run, learner.losses(first, second, batch, noise, encoder=learns))


FOCAL = Method(ContextLearner, Config, train, macaw.meta_test, PRESETS, VARIANTS)

if __name__ == "__main__":
    main(FOCAL, __doc__)
