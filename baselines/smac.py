"""SMAC: Offline Meta-RL with Online Self-Supervision (Pong et al., ICML 2022), on the same data.

As in PEARL a context gives a Gaussian code z of the task, and one actor and one critic serve all
tasks, given z. SMAC's encoder learns by predicting rewards. Its question: a policy that adapts to
the behaviour agents' data may fail on the data that it collects itself, for it has never seen a
context like that. SMAC repairs this without a single reward: the policy explores, its rewards are
thrown away, and the learned reward decoder labels its steps.

    the paper                                            here
    encoder q(z | h), reward decoder r_d(s, a, z)        focal.Encoder, SmacLearner.decoder
    offline meta-training: reward prediction and KL      SmacLearner.losses
    actor-critic by advantage weights (AWAC)             ContextLearner.critic_loss, actor_loss
    exploration with codes from the prior, its labels:
      z of an offline context, r_d(s, a, z)              self_supervise
    self-supervised meta-training on both                train, mixed
    meta-testing on the policy's own exploration         own_return

    python -m baselines.smac --env cheetah_vel                                # both phases
    python -m baselines.smac --env cheetah_vel --variant frozen               # or no_data: controls

`before` and `after` in the summary are what they are for the other methods: without a context, and
with one from the task's buffer. `own_before` and `own_after` are the returns after adaptation to
two exploration episodes of the policy's own, before and after the online phase.

Where we leave the paper:
 1. Encoder and decoder go on learning online, also from the decoder's own labels; the released
    program keeps both as they are (--variant frozen).
 2. The paper adds the critic's gradient to the actor online; we keep to advantage weights.
 3. Small nets, large steps, quick targets, as in focal.py.
 4. Labels use the mean of the posterior, not a sample.
 5. Online, all exploration takes codes from the prior; the released program adds episodes with the
    posterior's. In testing, the second of two episodes takes its code from the posterior given the
    first.
"""
import dataclasses

import torch

import envs
import macaw
from baselines import focal
from baselines.replay import ReplayBuffer
from helpers.command import BadInput, flag
from helpers.data import Batch
from helpers.run import Method, main

# Shapes: N tasks, B transitions of each, z numbers in a code.


@dataclasses.dataclass(frozen=True)
class Config(focal.ContextConfig):
    """The settings that are SMAC's own."""
    steps: int = flag(5000, "updates in both phases [us]", 1)
    offline_steps: int = flag(2000, "updates before the policy begins to explore [us]", 1)
    context: int = flag(128, "transitions in a context [us]", 1, 100_000)
    code: int = flag(5, "numbers in a task's code z [code]", 1, 1000)
    kl: float = flag(1e-3, "weight of the KL divergence, against the reward's error [us]", 0, 100)
    rounds: int = flag(11, "explorations of the training tasks in the online phase", 0, 1000)
    episodes: int = flag(2, "episodes of each task in an exploration", 1, 100)
    frozen: bool = flag(False, "encoder and decoder stay as they are in the online phase [code]")
    probabilistic = regularise = True       # its code is a Gaussian, its actor stays near the data
    smooth = monte_carlo = False

    @property
    def batch_sizes(self):
        """Of a context and the transitions that actor, critics and decoder learn from."""
        return self.context, self.batch


PRESETS = {**dict.fromkeys(envs.FAMILIES, {}),
    "cheetah_dir": dict(tasks_per_step=2, batch=256),
    "walker_params": dict(next_obs=True),
    "point_goal": dict(steps=900, offline_steps=500, rounds=4, gamma=0.9, width=64, eval_every=200),
}

# no_data: as many updates, on the offline data alone
VARIANTS = dict(smac={}, frozen=dict(frozen=True), no_data=dict(rounds=0))


class SmacLearner(focal.ContextLearner):
    """Encoder, reward decoder, actor, critics, and the episodes collected online."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__(obs_dim, act_dim, config)
        if not config.rounds <= config.steps - config.offline_steps > 0:
            raise BadInput("--steps counts both phases; give more than --offline-steps, by at "
                           "least --rounds")
        self.decoder = focal.mlp(obs_dim + act_dim + config.code, [config.width] * 2, 1)
        family = envs.FAMILIES[config.env]
        self.lived = ReplayBuffer(len(family.tasks), config.rounds * config.episodes,
                                  family.horizon, obs_dim, act_dim)     # its name in checkpoints

    def reward(self, obs, action, z):
        """r_d(s, a, z): standardised rewards (N, B). It does not see s': where dynamics differ, the
        reward follows from s and s' in every task alike, and the code would be left empty."""
        return self.decoder(torch.cat([obs, action, focal.beside(z, obs)], -1)).squeeze(-1)

    def losses(self, context, batch, noise, encoder=True):
        """All losses of an update; noise (N, z) samples the posterior. The critics' gradient does
        not reach the encoder."""
        mean, variance = self.encoder(context)
        z = mean + variance.sqrt() * noise
        losses = dict(critic_loss=self.critic_loss(batch, z.detach()),
                      actor_loss=self.actor_loss(batch, z.detach()))
        if encoder:
            error = self.reward(batch.obs, batch.action, z) - batch.reward_seen
            kl = self.config.kl * focal.kl_loss(mean, variance)
            losses = dict(reward_loss=error.square().mean(), kl_loss=kl, **losses)
        return losses


# ---------------------------------------------------------------------- exploration and its labels
@torch.no_grad()
def self_supervise(run):
    """Explore the training tasks with codes from the prior, throw the rewards away, and let the
    decoder label each episode by a code of its task, from an offline context."""
    config, learner, buffers = run.config, run.learner, run.buffers
    replay, tasks = learner.lived, buffers.train
    with envs.environments_of(config.env, tasks) as environments:
        for _ in range(config.episodes):
            z = torch.randn(len(tasks), config.code, generator=run.generator).to(run.device)
            seeds = torch.randint(2 ** 31, (len(tasks),), generator=run.generator).tolist()
            replay.collect(lambda obs: learner.act(obs, z), environments, seeds, buffers, tasks)
            e = replay.episodes - 1
            context, = buffers.sample(tasks, [config.context], run.generator)
            labels = learner.reward(replay.obs[tasks, e, :-1], replay.action[tasks, e],
                                    learner.encode(context))
            replay.reward_seen[tasks, e] = labels       # the rewards, never read, are overwritten


@torch.no_grad()
def own_context(run, tasks):
    """A context (N, B) of each of these tasks, from two exploration episodes of the policy's own,
    whose rewards it sees."""
    config, learner, buffers = run.config, run.learner, run.buffers
    generator = torch.Generator().manual_seed(0)
    replay = ReplayBuffer(len(tasks), 2, envs.FAMILIES[config.env].horizon, buffers.obs_dim,
                          buffers.act_dim).to(run.device)
    z = torch.randn(len(tasks), config.code, generator=generator).to(run.device)
    with envs.environments_of(config.env, tasks) as environments:
        for episode in range(2):
            seeds = [10_000 * (1 + episode) + k for k in range(len(tasks))]     # not the test's
            replay.collect(lambda obs: learner.act(obs, z), environments, seeds, buffers)
            context = replay.sample(range(len(tasks)), config.test_batch, buffers, generator)
            z = learner.encode(context)
    return context


def own_return(run, draws):
    """Meta-testing on the policy's own exploration: the mean return on the held-out tasks after
    adaptation to it."""
    tasks = [i for i in run.buffers.test for _ in range(draws)]
    policies = run.policies(own_context(run, tasks))
    with envs.environments_of(run.config.env, tasks) as environments:
        returns = envs.rollout(policies, environments, range(len(tasks)), run.buffers.observe)
    return float(returns.mean())


# ---------------------------------------------------------------------------------------- training
def train(run, until):
    """Both phases, up to update `until`: offline meta-training, then self-supervision."""
    config, learner = run.config, run.learner
    online = config.steps - config.offline_steps
    starts = {config.offline_steps + k * online // config.rounds for k in range(config.rounds)}
    for _ in run.steps(until):
        if run.step == config.offline_steps:
            run.notes["own_before"] = own_return(run, config.final_draws)
        if run.step in starts:
            self_supervise(run)
        tasks = run.choose(config.tasks_per_step)
        context, batch = run.sample(tasks, config.batch_sizes, begin=(0.0, config.late))
        if learner.lived.episodes:
            context, batch = mixed(run, tasks, context, batch)
        noise = torch.randn(len(tasks), config.code, generator=run.generator).to(run.device)
        learns = not config.frozen or run.step < config.offline_steps
        focal.descend(run, learner.losses(context, batch, noise, encoder=learns))
    if run.step == config.steps:
        run.notes["own_after"] = own_return(run, config.final_draws)
        if run.folder:
            run.save()


def mixed(run, tasks, context, batch):
    """Half of the tasks take their context from the collected episodes, as in testing, and so do
    half of each task's other transitions."""
    own, more = (run.learner.lived.sample(tasks, size, run.buffers, run.generator)
                 for size in (context.obs.shape[1], batch.obs.shape[1] // 2))
    half = len(tasks) // 2
    return (Batch(*(torch.cat([a[:half], b[half:]]) for a, b in zip(own, context))),
            Batch(*(torch.cat([a[:, ::2], b], 1) for a, b in zip(batch, more))))


SMAC = Method(SmacLearner, Config, train, macaw.meta_test, PRESETS, VARIANTS)

if __name__ == "__main__":
    main(SMAC, __doc__)
