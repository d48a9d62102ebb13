"""A run: what every method needs around its training loop and no paper mentions.

Run folder, checkpoint and exact resume, an evaluation now and then, metrics, summary, several
processes. A method hands in a learner, a torch module with

    policies(batch, adapted)   a function of observations (N, B, obs) that gives each task's actions
                               (N, B, act), after adaptation to its batch or before
    optimizer()                the optimizer of all its parameters, whose groups name an initial_lr

a config class, a RunConfig with the `batch_sizes` that a step draws, and a function train(run,
until), its paper's training loop, of this form:

    for _ in run.steps(until):                  # evaluates and saves on the way
        tasks = run.choose(5)
        D_tr, D_ts = run.sample(tasks, (256, 256))
        run.descend(some_loss=..., other_loss=...)
"""
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import envs
from helpers import command, plot, render
from helpers.command import BadInput, Diverged, flag
from helpers.data import Buffers, default_path, parse_files, shipped_lenders

CHECKPOINT_FORMAT = 2
EARLY = 0, 10, 30, 100          # steps at which a run is evaluated too, for its first moments
EVAL_DRAWS = 2                  # batches of each task in an evaluation on the way, not at the end


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings that every method has."""
    env: str = flag("cheetah_vel", "task family, each with settings of its own (PRESETS): "
                     + ", ".join(envs.FAMILIES))
    variant: str = flag("macaw", "the method, or what its paper compares it with; see VARIANTS")
    steps: int = flag(1500, "n of Algorithm 1, meta-steps [us]", 1)
    seed: int = flag(0, "of nets and batches", 0)
    data: str = flag("", "behaviour data; data/ENV.npz when empty")
    adapt_data: str = flag("", "files, as in a.npz,b.npz, whose agents lend what is adapted to in "
                               "training; when empty --data or, without that, all that we ship")
    out: str = flag("", "run folder; a fresh one under runs/ when empty")
    resume: bool = flag(False, "go on from the checkpoint in --out")
    evaluate: str = flag("", "a checkpoint to meta-test, without training; --out keeps its summary")
    render: str = flag("", "a .gif to draw of a held-out task before and after adaptation")
    device: str = flag("cpu", "cpu or cuda")
    holdout: str = flag("", "training tasks, as in 4,12, to test on instead of the test tasks")
    tasks_per_step: int = flag(5, "tasks in a meta-batch [code]", 1, 1000)
    gamma: float = flag(0.99, "discount [code]", 0, 1)
    test_batch: int = flag(256, "transitions that a held-out task is adapted to [code]", 2, 100_000)
    eval_every: int = flag(250, "meta-steps between two evaluations", 1)
    final_draws: int = flag(20, "batches of each held-out task to adapt to at the end, with an "
                                "episode after each", 1, 1000)
    multi_task = False      # a flag only of a method whose learner may be told the task's id
    monte_carlo = False     # likewise of one whose critics may learn from returns


# What may differ from the settings in a checkpoint: always, when it is only evaluated, and when its
# run goes on
FREE = {"evaluate", "resume", "out", "data", "device", "render"}
FREE_IN_TESTING = {"test_steps", "test_batch", "final_draws"}
FREE_IN_RESUMING = {"adapt_data"}       # files may have moved; their content is checked

STEP_SIZES = "lr", "policy_lr", "value_lr", "inner_lr"      # of one method or another

STATE = dict(format=int, config=dict, data=str, train=list, stats=dict, learner=dict, step=int,
             optimizer=dict, generator=torch.Tensor, seconds=float, rows=list,
             notes=dict)                                                    # a checkpoint


class Method(NamedTuple):
    """What a paper's file hands in."""
    learner: Callable           # (obs_dim, act_dim, config) -> a learner
    config: type                # a RunConfig with the method's own settings
    train: Callable             # (run, until)
    test: Callable              # (run, draws): returns before and after adaptation (tasks,)
    presets: dict               # of each family, what it needs differently from the defaults
    variants: dict              # of each ablation and baseline, what makes it one
    parallel: bool = False      # whether several processes can share a step, each some tasks of it


class Run:
    """A learner in training, and all that training changes: hence all that a checkpoint holds."""

    def __init__(self, method, config, state=None, folder=None):
        self.method, self.config, self.folder = method, config, folder
        if not (method.parallel or config.evaluate):
            command.alone()
        self.rank, self.world = processes(config)
        lent = config.adapt_data and (not state or config.resume)
        self.buffers = Buffers(config.data or default_path(config.env), config, state,
                               parse_files(config.adapt_data) if lent else ())
        sizes = self.buffers.obs_dim, self.buffers.act_dim
        if state:
            check_shapes(state["learner"], method, sizes, config)
        torch.manual_seed(config.seed)                              # for the first weights
        self.learner = method.learner(*sizes, config).to(config.device)
        self.optimizer = self.learner.optimizer()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.seconds, self.rows, self.losses = 0, 0.0, [], []
        self.returns = None                     # those of the last step, once it is evaluated
        self.notes = {}                         # more for the summary, by name
        if state:
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]
            self.notes = state["notes"]

    def save(self):
        command.save_tensors(self.folder / "checkpoint.pt", dict(
            format=CHECKPOINT_FORMAT, config=dataclasses.asdict(self.config),
            data=self.buffers.fingerprint, train=self.buffers.train, stats=self.buffers.stats,
            learner=self.learner.state_dict(), step=self.step,
            optimizer=self.optimizer.state_dict(), generator=self.generator.get_state(),
            seconds=self.seconds, rows=self.rows, notes=self.notes))
        command.save_csv(self.folder / "metrics.csv", self.rows)

    # ------------------------------------------------------------- what a training loop is made of
    def steps(self, until):
        """One training step each, up to `until`; with an evaluation and a checkpoint now and then
        where the run has a folder."""
        start = time.time() - self.seconds
        bar = tqdm(total=until, initial=self.step, unit="step",
                   disable=None if self.folder else True)
        if self.step == 0:
            self.look(start, bar)
        while self.step < until:
            yield
            self.step += 1
            bar.update()
            self.look(start, bar)
        bar.close()

    def look(self, start, bar):
        """Evaluate and save, where this is due."""
        config, step = self.config, self.step
        due = step % config.eval_every == 0 or step in EARLY or step == config.steps
        done = self.rows and self.rows[-1]["step"] == step      # a run that was killed just after
        if not self.folder or not due or done:
            return
        self.seconds = time.time() - start
        if step == config.steps:
            returns = self.returns = self.method.test(self, config.final_draws)
        else:
            returns = self.method.test(self, EVAL_DRAWS)
        before, after = (x.mean() for x in returns)
        self.check_finite(before, "return before adaptation")
        self.check_finite(after, "return after adaptation")
        names = dict.fromkeys(name for x in self.losses for name in x)      # not all in every step
        losses = {name: float(np.mean([x[name] for x in self.losses if name in x]))
                  for name in names}
        self.losses = []
        self.rows.append(dict(step=step, seconds=round(self.seconds, 1), **losses,
                              before=float(before), after=float(after)))
        self.save()
        losses = "".join(f"{name} {x:.4f}  " for name, x in losses.items())
        bar.write(f"step {step:6d}  {self.seconds:5.0f} s  {losses}"
                  f"return before {before:7.1f}  after {after:7.1f}")

    def choose(self, count):
        """Ids of so many training tasks, drawn at random."""
        train = self.buffers.train
        return [train[i] for i in torch.randperm(len(train), generator=self.generator)[:count]]

    def sample(self, tasks, sizes, begin=None):
        """Disjoint batches of these sizes of the tasks, all but the last to adapt to (see
        Buffers.sample); under torchrun, this process's share of the tasks."""
        batches = self.buffers.sample(tasks, sizes, self.generator, begin, known=True)
        return [batch.part(self.rank, self.world) for batch in batches]

    def descend(self, **losses):
        """A step of the optimizer down the sum of the losses. Under torchrun losses and gradients
        are added up over the processes. Raises Diverged before what is not finite does harm."""
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        values = torch.stack([loss.detach() for loss in losses.values()])
        sum_over_processes([values, *gradients])
        losses = dict(zip(losses, values.tolist()))
        norm = torch.nn.utils.get_total_norm(gradients).item()
        for term, x in {**losses, "norm of the gradient": norm}.items():
            self.check_finite(x, f"{term.replace('_', ' ')} of step {self.step + 1}")
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - self.step / self.config.steps)
        self.optimizer.step()
        self.losses.append(losses)

    def check_finite(self, x, name):
        """Raises Diverged, before an update or a checkpoint is made of it."""
        if not math.isfinite(x):
            sizes = ", ".join(f"--{name.replace('_', '-')}" for name in STEP_SIZES
                              if hasattr(self.config, name))
            adapts = getattr(self.config, "inner_steps", 0)
            cut = ", or with a cut, --max-gradient" if adapts else ""
            raise Diverged(f"the {name} is {x}; the last checkpoint is good, but start a new run "
                           f"with smaller step sizes ({sizes}){cut}")


# ------------------------------------------------------------------------------------- summary
def summary(run):
    """What `summary.json` holds: returns on the held-out tasks at the last checkpoint."""
    config, buffers = run.config, run.buffers
    before, after = run.returns or run.method.test(run, config.final_draws)
    run.check_finite(before.mean() + after.mean(), "return")
    notes = {} if config.evaluate else run.notes        # they were taken in training
    tasks = [dict(id=i, before=float(b), after=float(a), behavior_final=buffers.behavior_final[i],
                  behavior_mean=buffers.behavior_mean[i])
             for i, b, a in zip(buffers.test, before, after)]
    means = {name: float(np.mean([task[name] for task in tasks])) for name in tasks[0]
             if name != "id"}
    return dict(env=config.env, variant=config.variant, seed=config.seed, steps=run.step,
                seconds=round(run.seconds, 1),
                steps_per_second=round(run.step / max(run.seconds, 1e-9), 2), **means, **notes,
                tasks=tasks)


def report(result):
    """Print a summary."""
    print("task   before    after   behaviour: mean   at its end")
    for row in [*result["tasks"], dict(result, id="mean")]:
        print(f"{row['id']:>4} {row['before']:8.1f} {row['after']:8.1f} "
              f"{row['behavior_mean']:17.1f} {row['behavior_final']:12.1f}")


# ------------------------------------------------------------------------------ several processes
def processes(config):
    """Rank of this process and number of processes, (0, 1) but for training under torchrun; raises
    BadInput."""
    if not command.several() or config.evaluate:
        return 0, 1
    if not dist.is_initialized():
        if config.device != "cpu":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo" if config.device == "cpu" else "nccl")
    if dist.get_world_size() > config.tasks_per_step:
        raise BadInput(f"{dist.get_world_size()} processes are more than the tasks in a meta-"
                       "batch; start fewer, or give a larger --tasks-per-step")
    return dist.get_rank(), dist.get_world_size()


def leave_processes():
    """When all are done: torchrun treats an early exit as a failure and ends the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def sum_over_processes(tensors):
    """In place, as one message."""
    if dist.is_initialized():
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(part.view_as(x))


# ------------------------------------------------------------------- checkpoints and run folders
def load_checkpoint(path, method, given):
    """The state that `Run.save` wrote, checked; raises BadInput for any other file, and for flags
    that differ from the run's, but the free ones."""
    def check(good, problem):
        if not good:
            raise BadInput(f"{path} {problem}")
    check(pathlib.Path(path).exists(), "is not there; name a checkpoint that is")
    state = command.load_tensors(path)
    ours = isinstance(state, dict) and state.get("format") == CHECKPOINT_FORMAT
    check(ours, "is damaged or of another version of this program; train anew")
    for name, kind in STATE.items():
        check(isinstance(state.get(name), kind), f"holds no '{name}'; train anew")
    config = state["config"]
    variant = config.get("variant")
    check(variant in method.variants, f"is of another program (variant {variant}); give it to that "
                                      "one")
    fields = {field.name for field in dataclasses.fields(method.config)}
    check(set(config) == fields, "was made with other settings than this version has; train anew")
    try:
        presets = dict(env=method.presets, variant=method.variants)
        command.check_settings(method.config, config, presets)
    except BadInput as problem:
        raise BadInput(f"{path} was made with a bad setting: {problem}") from None
    ids = range(len(envs.FAMILIES[config["env"]].tasks))
    check(all(i in ids for i in state["train"]), "was trained on tasks that are not there; train "
                                                 "anew")
    check(0 <= state["step"] <= config["steps"], "has a step that its run never makes; train anew")
    check(all(isinstance(row, dict) and "step" in row for row in state["rows"]),
          "has rows of metrics that are none; train anew")
    tensors = [*state["stats"].values(), *state["learner"].values()]
    finite = all(isinstance(x, torch.Tensor) and x.isfinite().all() for x in tensors)
    check(finite, "has numbers that are not finite; train anew with smaller step sizes")
    free = FREE | (FREE_IN_RESUMING if given.get("resume") else FREE_IN_TESTING)
    for name, value in given.items():
        check(name in free or value == config[name], f"was made with --{name.replace('_', '-')} "
              f"{config[name]}; omit the flag or start a new run")
    return state


def check_shapes(parameters, method, sizes, config):
    """Raises BadInput where a checkpoint's parameters are not those of its learner, before any
    memory is taken for it."""
    with torch.device("meta"):
        expected = method.learner(*sizes, config).state_dict()
    if {k: x.shape for k, x in parameters.items()} != {k: x.shape for k, x in expected.items()}:
        raise BadInput("the checkpoint's parameters do not fit its settings and the data; train "
                       "anew or give other --data")


def load(method, path, **given):
    """The run of a checkpoint: a learner and its buffers, ready to adapt or (resume=True) to go on.
    `given`: settings that differ, among the free ones. Raises BadInput."""
    state = load_checkpoint(path, method, given)
    once = dict(resume=False, evaluate="", render="", out="")   # of the command that made it
    config = method.config(**{**state["config"], **once, **given})
    command.check_device(config.device)
    try:
        run = Run(method, config, state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise BadInput(f"{path} does not fit together; train anew") from None
    if config.resume:
        check_resumable(run, state, path)
    return run


def check_resumable(run, state, path):
    """Raises BadInput where a run that can be evaluated cannot be gone on with."""
    if run.buffers.fingerprint != state["data"]:
        raise BadInput(f"{path} was trained on other data; give the files that it began with as "
                       "--data and --adapt-data")
    if run.step and not run.optimizer.state:
        raise BadInput(f"{path} has no optimizer state, so it can be evaluated but not resumed")
    for p, state_of_p in run.optimizer.state.items():
        moments = [x for name, x in state_of_p.items() if name != "step"]
        if not all(x.shape == p.shape and x.isfinite().all() for x in moments):
            raise BadInput(f"{path} has an optimizer state that does not fit; train anew")


def begun(file, config):
    """Whether a file is all that a run leaves which is killed before its first checkpoint."""
    try:
        return file.suffix == ".part" or (
            file.name == "config.json"
            and json.loads(file.read_text()).keys() == dataclasses.asdict(config).keys())
    except (ValueError, AttributeError, OSError):
        return False


def run_folder(config):
    """A new folder, runs/ENV-VARIANT-sSEED or the one named, which holds something only where its
    run goes on, or was killed before its first checkpoint."""
    if config.out:
        folder = pathlib.Path(config.out)
        if config.resume:
            return folder
        if folder.exists() and not (folder.is_dir() and all(
                begun(file, config) for file in folder.iterdir())):
            raise BadInput(f"{folder} is taken; give another --out, or --resume to go on with it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name, number = f"{config.env}-{config.variant}-s{config.seed}", 1
    runs = pathlib.Path("runs")
    runs.mkdir(exist_ok=True)
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        number += 1


# ---------------------------------------------------------------------------------- command line
def go(method, config, given):
    """Train or evaluate as the command line says."""
    command.check_device(config.device)
    if config.resume and not config.out:
        raise BadInput("--resume needs --out, the folder of the run to go on with")
    if config.resume and config.evaluate:
        raise BadInput("--resume trains and --evaluate does not; give one of them")
    if given.get("evaluate") == "":
        raise BadInput("--evaluate names no checkpoint; name one")
    if config.evaluate and command.rank():
        return
    if config.evaluate:
        run = load(method, config.evaluate, **given)
    elif config.resume:
        run = load(method, f"{config.out}/checkpoint.pt", **given)
    else:
        if not (config.data or config.adapt_data):
            config = dataclasses.replace(config, adapt_data=shipped_lenders(config.env))
        run = Run(method, config)
    if config.render:                               # all that can fail, before the work
        render.check(run.config.env, config.render)
    if config.evaluate:
        judge(run)
        return
    if run.rank:                                    # the first process evaluates and saves
        method.train(run, run.config.steps)
        return
    run.folder = run_folder(run.config)
    with command.lock(run.folder):
        result = train(run)
    finish(run, result)


def judge(run):
    """Evaluate a checkpoint, and keep the result where a folder is named."""
    config = run.config
    folder = run_folder(config) if config.out else None
    with command.lock(folder) if folder else contextlib.nullcontext():
        result = summary(run)
        if folder:
            command.save_json(folder / "config.json", dataclasses.asdict(config))
            command.save_json(folder / "summary.json", result)
    finish(run, result)


def train(run):
    """Train to the end in the run's folder; the summary."""
    config, folder = run.config, run.folder
    print(f"{config.variant} on {config.env}: {len(run.buffers.train)} training tasks, "
          f"tested on tasks {run.buffers.test}; writes {folder}", flush=True)
    if config.adapt_data:
        print("what is adapted to in training comes from", config.adapt_data, flush=True)
    with command.stopping(f"go on with --resume --out {folder}"):
        command.save_json(folder / "config.json", dataclasses.asdict(config))
        run.save()                                  # so that a kill at any moment resumes
        run.method.train(run, config.steps)
        result = summary(run)
    command.save_json(folder / "summary.json", result)
    plot.curve([folder], folder / "curve.png")
    return result


def finish(run, result):
    report(result)
    if run.config.render:
        render.side_by_side(run, run.config.render)


def main(method, doc):
    """The command line of a method."""
    def do(config, given):
        go(method, config, given)
        leave_processes()
    command.command_line(do, method.config, dict(env=method.presets, variant=method.variants), doc)
