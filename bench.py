"""How fast a meta-step is, beside the straightforward way and the machine's floor.

    python bench.py [--json FILE] [--figure FILE] [--device cuda]

Each time is the median of many runs; what is compared is run in turns, for machines are noisy.
"""
import argparse
import multiprocessing
import pathlib
import re
import statistics
import time
from dataclasses import replace

import higher
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import collect
import command
import envs
import macaw
import plot
import sac
from buffers import Batch

RELEASED = macaw.Config(latent=100)     # 5 tasks, 256 + 256 transitions, 3 x 100, c = 100
OBS, ACT = 17, 6


class Copied(nn.Module):
    """A weight-transform layer as it stands in the paper: z, M and m are its parameters."""

    def __init__(self, t, layer):
        super().__init__()
        self.z, self.M, self.m, self.shape = t.z, t.M, t.m, (layer.inputs, layer.outputs)

    def forward(self, x):
        n = self.shape[0] * self.shape[1]
        W, b = (self.z @ self.M.T + self.m).split([n, self.shape[1]], -1)
        return x @ W.view(1, *self.shape) + b


def straightforward(model, inner, outer):
    """The meta-gradient task by task, by `higher`, every tensor of every layer copied for each."""
    config, nets, losses = model.config, {}, []
    for kind in ("value", "policy"):
        learner = getattr(model, kind)
        net = (macaw.Value(OBS, config.width) if kind == "value"
               else macaw.Policy(OBS, ACT, config.width, config.head_width))
        layers = [x for x in net.named_modules() if isinstance(x[1], macaw.Linear)]
        for (name, layer), t in zip(layers, learner.transforms):
            net.set_submodule(name, Copied(t, layer))
        nets[kind] = net
    for i in range(len(inner.obs)):
        mine, test = (Batch(*(x[i:i + 1] for x in batch)) for batch in (inner, outer))
        adapting = {}
        for kind, net in nets.items():
            lrs = [lr for t in getattr(model, kind).transforms for lr in F.softplus(t.log_lr)]
            optimizer = torch.optim.SGD([dict(params=[p]) for p in net.parameters()], lr=1.0)
            adapting[kind] = higher.innerloop_ctx(net, optimizer, copy_initial_weights=False,
                                                  override=dict(lr=lrs))
        with adapting["value"] as (V, step_V), adapting["policy"] as (pi, step_pi):
            for _ in range(config.inner_steps):
                step_V.step(macaw.value_loss(V, mine, bootstrap=False)[0])
                with torch.no_grad():
                    advantage = macaw.value_loss(V, mine, config.bootstrap)[1]
                step_pi.step(macaw.policy_loss(pi, mine, advantage, config,
                                               F.softplus(model.log_coef)))
            loss_V, advantage = macaw.value_loss(V, test, config.bootstrap)
            loss = (loss_V + macaw.policy_loss(pi, test, advantage, config)) / len(inner.obs)
            loss.backward()
            losses.append(loss.item())
    return sum(losses)


def setting(config, tasks, device, obs_dim=OBS, act_dim=ACT):
    """A model, its optimizer, and an inner and an outer batch of random numbers."""
    torch.manual_seed(0)
    model = macaw.Macaw(obs_dim, act_dim, config).to(device)

    def batch(size):
        return Batch(*(x.to(device) for x in (
            torch.randn(tasks, size, obs_dim), torch.rand(tasks, size, act_dim) * 2 - 1,
            torch.randn(tasks, size), torch.rand(tasks, size), torch.randn(tasks, size, obs_dim))))
    return model, model.optimizer(), batch(config.inner_batch), batch(config.outer_batch)


def meta_step(model, optimizer, inner, outer):
    optimizer.zero_grad()
    sum(model.meta_loss(inner, outer)).backward()
    optimizer.step()


def slow_step(model, optimizer, inner, outer):
    optimizer.zero_grad()
    straightforward(model, inner, outer)
    optimizer.step()


def milliseconds(device, seconds, *functions):
    """Median time of each function, run in turns for about so many seconds in all."""
    times = [[] for _ in functions]
    for function in functions:
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for function, mine in zip(functions, times):
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            mine.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def floor(config, tasks, device):
    """The least time (ms) that this machine needs: our matrix products at the measured rate of
    batched products of a hidden layer's shape, and M's bytes at the measured bandwidth of a copy.
    M is read by three products and the gradients of each, its gradient is written, and Adam reads
    four arrays of its size and writes three."""
    model, _, inner, outer = setting(config, tasks, device)
    with FlopCounterMode(display=False) as counter:
        sum(model.meta_loss(inner, outer)).backward()
    x = torch.randn(tasks, config.outer_batch, config.width, device=device)
    W, out = torch.randn(tasks, config.width, config.width, device=device), torch.empty_like(x)
    array = torch.randn(20_000_000, device=device)
    copy = torch.empty_like(array)
    product, move = milliseconds(device, 4, lambda: torch.bmm(x, W, out=out),
                                 lambda: copy.copy_(array))
    operations_per_ms = 2 * x.numel() * config.width / product
    numbers = (6 + 1 + 7) * sum(p.numel() for p in model.parameters())
    return counter.get_total_flops() / operations_per_ms + numbers / (2 * array.numel() / move)


def updates_per_second(device, seconds):
    """Of the SAC agents of all cheetah_vel tasks together."""
    config, n = collect.Config(device=device), len(envs.FAMILIES["cheetah_vel"].tasks)
    agents = sac.Agents(n, OBS, ACT, config).to(device)
    shapes = [(n, config.batch, OBS), (n, config.batch, ACT), (n, config.batch),
              (n, config.batch, OBS), (n, config.batch), (2, n, config.batch, ACT)]
    batch = [torch.rand(shape, device=device) for shape in shapes]
    return 1e3 * n / milliseconds(device, seconds, lambda: agents.update(*batch))[0]


def peak_memory(step, tasks):
    """Peak resident memory (MB) of a fresh process that takes such steps, or None collects."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident, (step, tasks))


def resident(step, tasks):
    if step is None:
        updates_per_second("cpu", 2)
    else:
        things = setting(RELEASED, tasks, "cpu")
        for _ in range(5):
            step(*things)
    status = pathlib.Path("/proc/self/status").read_text()     # getrusage's peak outlives exec
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3


GROWTH = {"tasks_per_step": (1, 2, 5, 10, 20, 35, 40), "inner_steps": (1, 2, 3, 4, 5),
          "latent": (8, 32, 100, 200), "width": (50, 100, 200, 400)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--figure", help="draw the growth of a step with its sizes to this file")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10, help="for each comparison")
    options = parser.parse_args()
    device, seconds, result = options.device, options.seconds, {}

    def show(name, value):
        result[name] = value
        print(f"{name:36s} {value:12.2f}", flush=True)

    def step_ms(config, obs_dim=OBS, act_dim=ACT):
        things = setting(config, config.tasks_per_step, device, obs_dim, act_dim)
        return milliseconds(device, seconds / 10, lambda: meta_step(*things))[0]
    show("threads", torch.get_num_threads())
    for tasks, suffix in ((5, ""), (35, "_all_tasks")):
        things = setting(RELEASED, tasks, device)
        ours, theirs = milliseconds(device, seconds * tasks / 5, lambda things=things:
                                    meta_step(*things), lambda things=things: slow_step(*things))
        least = floor(RELEASED, tasks, device)
        for name, value in (("meta_step_ms", ours), ("straightforward_ms", theirs),
                            ("ratio", theirs / ours), ("floor_ms", least),
                            ("over_floor", ours / least)):
            show(name + suffix, value)
    for name, preset in macaw.PRESETS.items():
        task = envs.make(name, envs.FAMILIES[name].tasks[0])
        show(f"{name}_meta_step_ms", step_ms(macaw.Config(**{"env": name, **preset}), *(
            space.shape[0] for space in (task.observation_space, task.action_space))))
    run = macaw.Run(macaw.Config(device=device))
    show("evaluation_ms", milliseconds(device, seconds, lambda: macaw.evaluate(
        run.macaw, run.buffers, draws=1))[0])
    show("agent_updates_per_second", updates_per_second(device, seconds))
    for step, tasks in ((meta_step, 5), (meta_step, 35), (slow_step, 5), (None, 40)):
        name = step.__name__ if step else "collection"
        show(f"peak_memory_{name}_{tasks}_mb", peak_memory(step, tasks))
    for name, values in GROWTH.items():
        for value in values:
            show(f"{name}_{value}_ms", step_ms(replace(RELEASED, **{name: value})))
    if options.figure:
        plot.growth(GROWTH, result, options.figure)
    if options.json:
        command.save_json(options.json, result)


if __name__ == "__main__":
    main()
