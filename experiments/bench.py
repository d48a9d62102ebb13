"""How fast a meta-step is, beside the straightforward way.

    python -m experiments.bench [--json FILE] [--device cuda]

Each time is the median of many runs; what is compared is run in turns, for machines are noisy.
"""
import statistics
import time
from dataclasses import dataclass, replace

import torch

import collect
import envs
import macaw
from baselines import focal, smac
from experiments import straightforward
from helpers import command
from helpers.data import Batch
from helpers.run import Run

RELEASED = macaw.Config(latent=100, width=100, inner_batch=256)     # 5 tasks, 256 + 256
CHEETAH = 17, 6                         # numbers in an observation and in an action


@dataclass(frozen=True)
class Config:
    json: str = command.flag("", "a file to write the figures to")
    device: str = command.flag("cpu", "cpu or cuda")
    seconds: float = command.flag(10.0, "for each comparison", 0.1, 600)


def steps(config, device="cpu", obs_dim=CHEETAH[0], act_dim=CHEETAH[1]):
    """A meta-step here, and the same step in the straightforward way, on random numbers."""
    torch.manual_seed(0)
    model, tasks = macaw.MetaLearner(obs_dim, act_dim, config).to(device), config.tasks_per_step
    optimizer = model.optimizer()
    wide = dict(obs=(obs_dim,), next_obs=(obs_dim,), last_obs=(obs_dim,), action=(act_dim,))
    inner, outer = (Batch(*(torch.rand(tasks, size, *wide.get(name, ()), device=device)
                            for name in Batch._fields)) for size in config.batch_sizes)

    def ours(model, inner, outer):
        pi, V = model.adapt(inner, config.inner_steps, train=True)
        (sum(model.meta_losses(pi, V, outer)) / tasks).backward()

    def step(backward):
        optimizer.zero_grad()
        backward(model, inner, outer)
        optimizer.step()
    return lambda: step(ours), lambda: step(straightforward.backward)


def sac_update(device):
    """An update of the SAC agents of all cheetah_vel tasks, and the number of agents."""
    config, n, (obs, act) = collect.Config(), len(envs.FAMILIES["cheetah_vel"].tasks), CHEETAH
    agents = collect.Agents(n, obs, act, config).to(device)
    batch = [torch.rand(*shape, device=device) for shape in (
        (n, config.batch, obs), (n, config.batch, act), (n, config.batch), (n, config.batch, obs),
        (n, config.batch), (2, n, config.batch, act))]
    return (lambda: agents.update(*batch)), n


def milliseconds(seconds, *functions):
    """Median time of each function, run in turns for about so many seconds in all."""
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, mine in zip(functions, times):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            mine.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def main(given):
    config = command.checked(Config, given)
    device, seconds, result = config.device, config.seconds, {}
    command.check_device(device)
    if config.json:
        command.check_writable(config.json, ".json")

    def show(name, value):
        result[name] = value
        print(f"{name:36s} {value:12.2f}", flush=True)
    show("threads", torch.get_num_threads())
    for tasks, suffix in ((5, ""), (35, "_all_tasks")):
        sized = replace(RELEASED, tasks_per_step=tasks)
        ours, theirs = milliseconds(seconds * tasks / 5, *steps(sized, device))
        show("meta_step_ms" + suffix, ours)
        show("straightforward_ms" + suffix, theirs)
        show("ratio" + suffix, theirs / ours)
    for name in envs.FAMILIES:
        with envs.environments_of(name, [0]) as (env,):
            sizes = env.observation_space.shape + env.action_space.shape
        step, _ = steps(macaw.MACAW.settings(env=name), device, *sizes)
        show(f"{name}_meta_step_ms", milliseconds(seconds / 10, step)[0])
    for method in smac.SMAC, focal.FOCAL, macaw.MACAW:
        run = Run(method, method.settings(), device)
        D, = run.buffers.sample(run.buffers.test[:1], [256], torch.Generator())
        adaptation, = milliseconds(seconds / 10, lambda: run.learner.policies(D, True))
        show(f"{run.config.variant}_adaptation_ms", adaptation)
    update, agents = sac_update(device)
    show("agent_updates_per_second", 1e3 * agents / milliseconds(seconds, update)[0])
    if config.json:
        command.save_json(config.json, result)


if __name__ == "__main__":
    command.command_line(main, [Config()], __doc__)
