"""The paper's other experiments: what happens after adaptation, and with other data to adapt to.

    python experiments.py online --checkpoint runs/.../checkpoint.pt --out runs/online      # Table 1

After adaptation to 256 offline transitions (Algorithm 2), the policy goes on learning in its test
task's own environment. Three others get the same 256 transitions: the same nets not adapted, new
nets with random weights, and the adapted nets under the authors' recipe. Ours:

 1. AWR as in macaw.py, with temperature 0.3, by Adam on the layers' weights w themselves. No meta-
    learned step size, no advantage head: those are made for the adaptation.
 2. Targets are TD(lambda) returns, computed anew each round with the present V, which end in V at
    the time limit. For the 256 offline transitions, whose episodes are not there, they are R_D.
 3. A round is an episode of each task with noise, then some updates from all that was lived so far.

The other experiments are macaw.py and focal.py on other data to adapt to, or on fewer tasks. Two
commands make such files, and `results/regenerate.sh` shows what is done with them:

    python experiments.py thirds --env cheetah_vel --out runs/          # Figure 5, left
    python experiments.py few --env cheetah_vel --tasks 5 --out runs/   # Figure 5, right
"""
import argparse
import copy
import dataclasses
import json
import pathlib

import numpy as np
import torch
from tqdm import tqdm

import envs
import macaw
from helpers import command, dataset
from helpers.command import BadInput
from helpers.run import environments_of, load, rollout

# Shapes: N tasks, E episodes, H steps each at most, B transitions in a batch.

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


OURS = Recipe()
AUTHORS = Recipe(lr=1e-5, burn_in=25, value_updates=100, policy_updates=200, temperature=1.0,
                 td_lambda=1.0)
STARTS = {"adapted": OURS, "unadapted": OURS, "random": OURS, "authors": AUTHORS}


# ------------------------------------------------------------------------------ online fine-tuning
def with_weights(net, adapted):
    """A plain net with the weights of an adapted one, each a parameter (N, n)."""
    net = copy.deepcopy(net)
    for layer, w in zip([m for m in net.modules() if isinstance(m, macaw.Linear)],
                        adapted.parameters(), strict=True):
        layer.w = torch.nn.Parameter(w.detach().clone())
    return net


def nets(learner, D, start):
    """Policy and value function of N tasks, in their starting state."""
    tasks = len(D.obs)
    pi, V = learner.adapt(D, learner.config.test_steps if start in ("adapted", "authors") else 0)
    pi, V = with_weights(learner.policy.net, pi), with_weights(learner.value.net, V)
    if start == "random":
        for layer in [m for net in (pi, V) for m in net.modules() if isinstance(m, macaw.Linear)]:
            fresh = macaw.Linear(layer.inputs, layer.outputs, tasks)
            layer.w = fresh.w
    return pi, V


class Lived:
    """What N policies lived online: up to E episodes each, padded to H steps."""

    def __init__(self, tasks, episodes, horizon, obs_dim, act_dim):
        self.episodes = 0
        self.obs = torch.zeros(tasks, episodes, horizon + 1, obs_dim)   # with the last state
        self.action = torch.zeros(tasks, episodes, horizon, act_dim)
        self.reward, self.terminated = torch.zeros(2, tasks, episodes, horizon)
        self.length = torch.zeros(tasks, episodes, dtype=torch.long)

    def play(self, run, pi, environments, seeds, noise):
        """One more episode of each task, with noise (N, H, act) on its actions."""
        e, buffers = self.episodes, run.buffers
        step = iter(noise.transpose(0, 1))

        def act(obs):
            return (pi(obs) + next(step)[:, None]).clamp(-1, 1)

        def record(i, obs, action, reward, following, terminated):
            t = self.length[i, e]
            self.obs[i, e, t:t + 2] = buffers.standardise(np.stack([obs, following]))
            self.action[i, e, t] = torch.as_tensor(action)
            self.reward[i, e, t] = reward / buffers.stats["return_scale"]
            self.terminated[i, e, t] = float(terminated)
            self.length[i, e] += 1
        rollout(act, environments, seeds, buffers, record)
        self.episodes += 1

    @torch.no_grad()
    def targets(self, V, gamma, td_lambda):
        """TD(lambda) returns of all steps lived (N, e, H), which end in V(s) at the time limit."""
        e = self.episodes
        values = V(self.obs[:, :e].flatten(1, 2)).view(len(self.obs), e, -1)        # (N, e, H + 1)
        target = torch.zeros_like(self.reward[:, :e])
        for t in reversed(range(target.shape[2])):
            following = values[..., t + 1]
            if t + 1 < target.shape[2]:
                goes_on = t + 1 < self.length[:, :e]
                mixed = (1 - td_lambda) * following + td_lambda * target[..., t + 1]
                following = torch.where(goes_on, mixed, following)
            target[..., t] = (self.reward[:, :e, t]
                              + gamma * (1 - self.terminated[:, :e, t]) * following)
        return target

    def pool(self, D, V, config, td_lambda):
        """All that there is to learn from, offline and online: states, actions and targets
        (N, P, ...), and which of them were lived (N, P)."""
        target = self.targets(V, config.gamma, td_lambda)                           # (N, e, H)
        e, horizon = target.shape[1:]
        there = (torch.arange(horizon) < self.length[:, :e, None]).flatten(1)
        R = torch.cat([macaw.returns(V, D, config.bootstrap), target.flatten(1)], 1)
        return ([torch.cat([D.obs, self.obs[:, :e, :-1].flatten(1, 2)], 1),
                 torch.cat([D.action, self.action[:, :e].flatten(1, 2)], 1), R[..., None]],
                torch.cat([torch.ones_like(D.discount), there.float()], 1))


def fine_tune(run, D, start, steps, seed):
    """Returns (marks, N): mean of EVAL_EPISODES deterministic episodes of each task after so many
    environment steps. An episode that ends early counts as a whole one."""
    config, buffers, recipe = run.config, run.buffers, STARTS[start]
    tasks, horizon = buffers.test, envs.FAMILIES[config.env].horizon
    torch.manual_seed(seed)
    pi, V = nets(run.learner, D, start)
    policy_adam, value_adam = (torch.optim.Adam(net.parameters(), recipe.lr) for net in (pi, V))
    settings = dataclasses.replace(config, temperature=recipe.temperature)
    marks = [mark for mark in MARKS if mark <= steps]
    lived = Lived(len(tasks), marks[-1] // horizon, horizon, buffers.obs_dim, buffers.act_dim)
    curve = []
    with (environments_of(config.env, tasks) as own,
          environments_of(config.env, [i for i in tasks for _ in range(EVAL_EPISODES)]) as many):
        for episode in tqdm(range(marks[-1] // horizon + 1), start, unit="round", disable=None):
            if episode * horizon in marks:
                curve.append(evaluate(pi, many, buffers))
            if episode * horizon == marks[-1]:
                return np.array(curve)
            noise = config.sigma * torch.randn(len(tasks), horizon, buffers.act_dim)
            lived.play(run, pi, own, [10_000 * (1 + seed) + episode] * len(tasks), noise)
            if episode < recipe.burn_in:
                continue
            pool, there = lived.pool(D, V, config, recipe.td_lambda)

            def batch():
                i = torch.multinomial(there, recipe.batch, replacement=True)[..., None]     # (N, B)
                obs, action, R = (x.take_along_dim(i, 1) for x in pool)
                return D._replace(obs=obs, action=action), R.squeeze(-1)
            for _ in range(recipe.value_updates):
                B, R = batch()
                descend(value_adam, macaw.value_loss(R - V(B.obs)))
            for _ in range(recipe.policy_updates):
                B, R = batch()
                descend(policy_adam, macaw.policy_loss(pi, B, R - V(B.obs), settings))


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def evaluate(pi, environments, buffers):
    """Mean returns (N,) of the policies' mean actions, in each task's environments."""
    def act(obs):                                                       # (N x episodes, 1, obs)
        return pi(obs.view(len(buffers.test), EVAL_EPISODES, -1)).view(len(obs), 1, -1)
    returns = rollout(act, environments, range(len(environments)), buffers)
    return returns.reshape(-1, EVAL_EPISODES).mean(-1)


def online(arguments):
    """Fine-tune from each start, and write the returns to `summary.json` after each: what is there
    already is not computed again."""
    run = load(macaw.MACAW, arguments.checkpoint)
    config, tasks, file = run.config, run.buffers.test, pathlib.Path(arguments.out) / "summary.json"
    if config.multi_task:
        raise BadInput(f"{arguments.checkpoint} is a multi-task net's; give one of MACAW's")
    settings = dict(env=config.env, variant="online", seed=config.seed, of=config.variant,
                    online_steps=[mark for mark in MARKS if mark <= arguments.steps])
    file.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(file.read_text()) if file.exists() else {}
    if any(result.get(name, x) != x for name, x in settings.items()):
        raise BadInput(f"{file} is of another checkpoint or length; give another --out")
    result |= settings
    D, = run.buffers.sample(tasks, [config.test_batch], torch.Generator().manual_seed(config.seed))
    with command.lock(file.parent), command.stopping("the same command goes on with it"):
        for start in STARTS:
            name = "online_returns" if start == "adapted" else f"{start}_returns"
            if name not in result:
                curve = fine_tune(run, D, start, arguments.steps, config.seed)      # (marks, N)
                result |= {name: curve.mean(1).tolist(), f"{start}_tasks": curve.T.tolist()}
                command.save_json(file, result)
            print(f"{start:10}", *(f"{x:8.1f}" for x in result[name]))


# -------------------------------------------------------------------------- other data to adapt to
def thirds(arguments):
    """Files with the first, the middle and the last third of each life."""
    x, meta = dataset.read(dataset.default_path(arguments.env), arguments.env)
    third = np.zeros(len(x["episode_task"]), int)                   # of each episode
    for i in np.unique(x["episode_task"]):
        mine = x["episode_task"] == i
        lived = np.cumsum(x["episode_length"][mine])
        third[mine] = np.ceil(3 * lived / lived[-1]) - 1
    for k, name in enumerate(("first", "middle", "last")):
        dataset.write(f"{arguments.out}{name}.npz", dataset.part(x, third == k), meta)


def few(arguments):
    """A file with so many of the training tasks, evenly spaced, and the test tasks."""
    x, meta = dataset.read(dataset.default_path(arguments.env), arguments.env)
    test = envs.FAMILIES[arguments.env].test
    train = [int(i) for i in meta["tasks"] if int(i) not in test]
    if not 1 <= arguments.tasks <= len(train):
        raise BadInput(f"there are {len(train)} training tasks; give --tasks from 1 to that")
    kept = [train[i] for i in np.linspace(0, len(train) - 1, arguments.tasks).round().astype(int)]
    dataset.write(f"{arguments.out}few{arguments.tasks}.npz",
                  dataset.part(x, np.isin(x["episode_task"], [*kept, *test])), meta)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    def leave(code, sentence):
        parser.exit(code, f"{parser.prog}: {sentence}\n")
    commands = parser.add_subparsers(required=True)
    for function in (online, thirds, few):
        command_parser = commands.add_parser(function.__name__, help=function.__doc__)
        command_parser.set_defaults(function=function)
        if function is online:
            command_parser.add_argument("--checkpoint", required=True)
            command_parser.add_argument("--steps", type=int, default=20_000)
        else:
            command_parser.add_argument("--env", choices=envs.FAMILIES, default="cheetah_vel")
        if function is few:
            command_parser.add_argument("--tasks", type=int, default=5)
        command_parser.add_argument("--out", required=True)
    for p in (parser, *commands.choices.values()):
        p.error = lambda message: leave(2, message)
    arguments = parser.parse_args()
    with command.one_sentence(leave):
        arguments.function(arguments)


if __name__ == "__main__":
    main()
