"""The paper's other experiments: what happens after adaptation, and with other data to adapt to.

    python -m experiments.online online --checkpoint runs/a/checkpoint.pt --out runs/b    # Table 1
    python -m experiments.online thirds --env cheetah_vel --out runs/       # Figure 5, left: data
    python -m experiments.online few --env cheetah_vel --tasks 5 --out runs/    # right: data

Online, a policy goes on learning in its test task's own environment. MACAW starts from the nets
adapted to 256 offline transitions (Algorithm 2) and, to compare, from the same nets not adapted,
from random weights, and from the adapted nets with the authors' step sizes, temperature and numbers
of updates; each has the same 256 transitions. Our recipe:

 1. AWR as in macaw.py, with temperature 0.3, by Adam on the layers' weights w themselves (larger
    steps on cheetah_vel). No meta-learned step size, no advantage head: those are for adapting.
 2. Targets are TD(lambda) returns by the present V, which end in V at the time limit. For the 256
    offline transitions, which come without their episodes, they are R_D.
 3. A round is an episode of each task with noise, then some updates from all transitions so far.

Offline PEARL (--method focal) goes on as it was trained, on all the test tasks' transitions.
"""
import copy
import dataclasses
import pathlib

import numpy as np
import torch
from tqdm import tqdm

import envs
import macaw
from baselines import focal
from baselines.replay import ReplayBuffer
from helpers import command, data
from helpers.command import BadInput
from helpers.run import load

# Shapes: N tasks, B transitions in a batch, P in all, H steps of an episode.

MARKS = 0, 1000, 2000, 5000, 10_000, 20_000     # environment steps of a task, to evaluate after
EVAL_EPISODES = 20                              # of each task


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to go on learning online; a round is an episode of each task, then updates."""
    lr: float = 3e-4            # of Adam, both nets
    burn_in: int = 5            # rounds before the first update
    value_updates: int = 25     # a round
    policy_updates: int = 25
    batch: int = 256
    temperature: float = 0.3    # T of Eq. 1
    td_lambda: float = 0.95     # 1: Monte Carlo
    noise: float = 0.2          # on actions, in exploring


OURS = {**dict.fromkeys(envs.FAMILIES, Recipe()), "cheetah_vel": Recipe(lr=6e-4)}       # MACAW's
AUTHORS = Recipe(lr=1e-5, burn_in=25, value_updates=100, policy_updates=200, temperature=1.0,
                 td_lambda=1.0)
STARTS = "adapted", "unadapted", "random", "authors"


# ------------------------------------------------------------------------------ online fine-tuning
def starting_nets(learner, D, start):
    """Policy and value function of N tasks as they start: plain nets, each weight a parameter."""
    adapts = start in ("adapted", "authors")
    plain = [copy.deepcopy(net) for net in (learner.policy.net, learner.value.net)]
    for net, adapted in zip(plain, learner.adapt(D, adapts * learner.config.test_steps)):
        layers = [layer for layer in net.modules() if isinstance(layer, macaw.Linear)]
        for layer, w in zip(layers, adapted.parameters(), strict=True):                 # (N, n)
            if start == "random":
                w = macaw.Linear(layer.inputs, layer.outputs, tasks=len(w)).w.to(w.device)
            layer.w = torch.nn.Parameter(w.detach().clone())
    return plain


class FineTuneMacaw:
    """MACAW after adaptation: AWR on what N policies collect."""

    def __init__(self, run, D, start):
        self.recipe = recipe = AUTHORS if start == "authors" else OURS[run.config.env]
        self.config = dataclasses.replace(run.config, temperature=recipe.temperature)
        self.buffers, self.D = run.buffers, D
        self.policy, self.V = starting_nets(run.learner, D, start)
        self.policy_adam = torch.optim.Adam(self.policy.parameters(), recipe.lr)
        self.value_adam = torch.optim.Adam(self.V.parameters(), recipe.lr)

    def update(self, replay):
        V, recipe, config = self.V, self.recipe, self.config
        everything, mask = replay.after(self.D, self.buffers)
        R = torch.cat([macaw.returns(V, self.D, config.bootstrap),
                       replay.td_lambda(V, self.buffers, config.gamma, recipe.td_lambda)], 1)
        everything = everything._replace(mc_return=R)                               # (N, P)
        for _ in range(recipe.value_updates):
            B = draw(everything, mask, recipe.batch)
            descend(self.value_adam, macaw.value_loss(macaw.advantages(V, B, bootstrap=False)))
        for _ in range(recipe.policy_updates):
            B = draw(everything, mask, recipe.batch)
            with torch.no_grad():
                advantage = macaw.advantages(V, B, bootstrap=False)
            descend(self.policy_adam, macaw.policy_loss(self.policy, B, advantage, config))


class FineTuneContext:
    """FOCAL or PEARL after adaptation: its own updates on what its policies collect."""

    def __init__(self, run, D, start):
        self.config, self.buffers, self.D, self.recipe = run.config, run.buffers, D, Recipe()
        self.learner, self.z = run.learner, run.learner.encode(D).detach()
        self.learns = not run.config.encoder_steps              # the encoder; FOCAL's has stopped
        self.adam = torch.optim.Adam(run.learner.parameters(), self.recipe.lr)

    def policy(self, obs):
        return self.learner.act(obs, self.z)

    def update(self, replay):
        everything, mask = replay.after(self.D, self.buffers)
        for _ in range(self.recipe.value_updates + self.recipe.policy_updates):
            first, second, B = (draw(everything, mask, size) for size in self.config.batch_sizes)
            losses = self.learner.losses(first, second, B, torch.randn_like(self.z), self.learns)
            descend(self.adam, sum(losses.values()))
            self.learner.follow()
        self.z = self.learner.encode(draw(everything, mask, self.config.test_batch)).detach()


FINE_TUNERS = {"macaw": (macaw.MACAW, FineTuneMacaw, STARTS),
               "focal": (focal.FOCAL, FineTuneContext, STARTS[:1])}


def draw(batch, mask, size):
    """A batch (N, size) of each task's real transitions (N, P), with replacement."""
    i = torch.multinomial(mask.float(), size, replacement=True)
    return data.Batch(*(x[torch.arange(len(i))[:, None], i] for x in batch))


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def fine_tune(run, tuner, D, marks):
    """Returns (marks, N): mean of EVAL_EPISODES deterministic episodes of each task after so many
    environment steps, in whole episodes. One that ends early counts as a whole one."""
    config, buffers, horizon = run.config, run.buffers, envs.FAMILIES[run.config.env].horizon
    rounds = [-(-mark // horizon) for mark in marks]                        # rounded up
    sizes, curve = (len(D.obs), rounds[-1], horizon, buffers.obs_dim, buffers.act_dim), {}
    replay = ReplayBuffer(*sizes).to(run.device)
    each = [i for i in buffers.test for _ in range(EVAL_EPISODES)]
    with (envs.environments_of(config.env, buffers.test) as environments,
          envs.environments_of(config.env, each) as many):
        for episode in tqdm(range(rounds[-1] + 1), unit="round", disable=None):
            if episode in rounds:
                curve[episode] = evaluate(tuner.policy, many, buffers)
                run.check_finite(return_online=curve[episode].mean())
            if episode < rounds[-1]:
                noise = tuner.recipe.noise * torch.randn(len(D.obs), horizon, buffers.act_dim)
                seeds = [10_000 * (1 + config.seed) + episode] * len(D.obs)
                replay.collect(tuner.policy, environments, seeds, buffers, noise=noise.to(D.obs))
                if episode >= tuner.recipe.burn_in:
                    tuner.update(replay)
    return np.array([curve[episode] for episode in rounds])


def evaluate(pi, environments, buffers):
    """Mean returns (N,) of the policies' mean actions, in each task's environments."""
    def act(obs):                                                       # (N x episodes, 1, obs)
        return pi(obs.view(len(buffers.test), EVAL_EPISODES, -1)).view(len(obs), 1, -1)
    returns = envs.rollout(act, environments, range(len(environments)), buffers.observe)
    return returns.reshape(-1, EVAL_EPISODES).mean(-1)


def online(arguments):
    """Fine-tune from each start; `summary.json` has the returns."""
    method, fine_tuner, starts = FINE_TUNERS[arguments.method]
    run = load(method, arguments.checkpoint, device=arguments.device)
    config, file = run.config, pathlib.Path(arguments.out) / "summary.json"
    if config.task_ids or getattr(config, "monte_carlo", False):
        raise BadInput("a multi-task net or Monte Carlo critics do not go on online; give another")
    marks = [mark for mark in MARKS if mark <= arguments.steps]
    result = dict(env=config.env, variant="online", seed=config.seed, of=config.variant,
                  online_steps=marks)
    file.parent.mkdir(parents=True, exist_ok=True)
    command.new_file(file)
    D, = run.buffers.sample(run.buffers.test, [config.test_batch],
                            torch.Generator().manual_seed(config.seed))
    for start in starts:
        torch.manual_seed(config.seed)
        curve = fine_tune(run, fine_tuner(run, D, start), D, marks)                 # (marks, N)
        name = "online_returns" if start == "adapted" else f"{start}_returns"
        result |= {name: curve.mean(1).tolist(), f"{start}_tasks": curve.T.tolist()}
        print(f"{start:10}", *(f"{x:8.1f}" for x in result[name]), flush=True)
    command.save_json(file, result)


# -------------------------------------------------------------------------- other data to adapt to
def thirds(arguments):
    """Files with the first, the middle and the last third of each agent's training."""
    x, meta = data.read(data.default_path(arguments.env), arguments.env)
    third = np.zeros(len(x["episode_task"]), int)                   # of each episode
    for i in np.unique(x["episode_task"]):
        mine = x["episode_task"] == i
        steps = np.cumsum(x["episode_length"][mine])
        third[mine] = np.ceil(3 * steps / steps[-1]) - 1
    for k, name in enumerate(("first", "middle", "last")):
        data.write(command.new_file(f"{arguments.out}/{name}.npz"), data.part(x, third == k), meta)


def few(arguments):
    """A file with so many of the training tasks, evenly spaced, and the test tasks."""
    x, meta = data.read(data.default_path(arguments.env), arguments.env)
    test = envs.FAMILIES[arguments.env].test
    train = [int(i) for i in meta["tasks"] if int(i) not in test]
    if not 1 <= arguments.tasks <= len(train):
        raise BadInput(f"{len(train)} tasks are no test tasks; give --tasks from 1 to that")
    kept = [train[i] for i in np.linspace(0, len(train) - 1, arguments.tasks).round().astype(int)]
    data.write(command.new_file(f"{arguments.out}/few{arguments.tasks}.npz"),
               data.part(x, np.isin(x["episode_task"], [*kept, *test])), meta)


def main():
    parser = command.Parser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, dest="command")
    parsers = {f: commands.add_parser(f.__name__, help=f.__doc__) for f in (online, thirds, few)}
    parsers[online].add_argument("--checkpoint", required=True)
    parsers[online].add_argument("--method", choices=FINE_TUNERS, default="macaw")
    parsers[online].add_argument("--steps", type=int, choices=MARKS[1:], default=MARKS[-1])
    parsers[online].add_argument("--device", default="cpu")
    for function in (thirds, few):
        parsers[function].add_argument("--env", choices=envs.FAMILIES, default="cheetah_vel")
    parsers[few].add_argument("--tasks", type=int, required=True)
    for function, one in parsers.items():
        one.add_argument("--out", required=True)
        one.set_defaults(function=function)
    arguments = parser.parse_args()
    with command.one_sentence(parser.leave):
        arguments.function(arguments)


if __name__ == "__main__":
    main()
