"""A run: what every method needs around its training loop and no paper mentions.

Settings, run folder, checkpoint and exact resume, evaluation, metrics, summary, several processes.
A method hands in a `Method`: a config class, a RunConfig with the `batch_sizes` of a step; a
learner, a torch module with

    policies(batch, adapted)   a function of observations (N, B, obs) that gives each task's actions
                               (N, B, act), after adaptation to its batch or before
    optimizer()                the optimizer of all its parameters, whose groups name an initial_lr

and its paper's training loop, train(run, until), of this form:

    for _ in run.steps(until):                  # evaluates and saves on the way
        tasks = run.choose(5)
        D_tr, D_ts = run.sample(tasks, (256, 256))
        losses = dict(some_loss=..., other_loss=...)
        run.optimizer.zero_grad()
        sum(losses.values()).backward()
        run.check(losses)
        run.lower_step_sizes()
        run.optimizer.step()
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
from helpers import bring, command, plot, render
from helpers.command import BadInput, Diverged, flag
from helpers.data import Buffers, parse_files, path_of

CHECKPOINT_FORMAT = 3
EARLY = 0, 10, 30, 100          # steps at which a run is evaluated too, for its first moments
EVAL_DRAWS = 2                  # batches of each task in an evaluation on the way, not at the end


# ---------------------------------------------------------------------------------------- settings
@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings that every method has; those marked with `free` may differ from a checkpoint's
    when it is evaluated or resumed."""
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    variant: str = flag("", "the method, or what its paper compares it with: see VARIANTS")
    steps: int = flag(1500, "n of Algorithm 1, meta-steps [us]", 1)
    seed: int = flag(0, "of weights and batches", 0)
    data: str = flag("", "replay buffers, a file or the name of one in data/; of the family when "
                         "empty", free=("evaluate", "resume"))
    adapt_data: str = flag("", "files or names, as in a.npz,b.npz: whose agents' transitions "
                               "training adapts to; those of --data when empty", free=("resume",))
    holdout: str = flag("", "training tasks, as in 4,12, to test on instead of the test tasks")
    tasks_per_step: int = flag(5, "tasks in a meta-batch [code]", 1, 1000)
    lr_decay: bool = flag(True, "outer step sizes fall linearly to 0 over the run [us]")
    gamma: float = flag(0.99, "discount [code]", 0, 1)
    test_batch: int = flag(256, "transitions that a held-out task is adapted to [code]", 2, 100_000,
                           free=("evaluate",))
    eval_every: int = flag(250, "meta-steps between two evaluations", 1)
    final_draws: int = flag(20, "batches of each held-out task to adapt to at the end, with an "
                                "episode after each", 1, 1000, free=("evaluate",))
    nudge: bool = flag(False, "in testing, a robot that has come to rest acts with noise until it "
                              "moves [us]", free=("evaluate",))
    task_ids = False        # whether the learner is told training tasks by a one-hot vector


@dataclasses.dataclass(frozen=True)
class Options:
    """What a command does with a run."""
    out: str = flag("", "run folder; a new one under runs/ when empty")
    resume: bool = flag(False, "continue from the checkpoint in --out")
    evaluate: str = flag("", "a checkpoint to meta-test without training; --out keeps its summary")
    task: str = flag("", "with --evaluate, a task in no list, as in '{\"velocity\": 1.23}'; "
                         "--data is then any source of it that helpers/bring.py reads")
    render: str = flag("", "a .gif to draw of a held-out task before and after adaptation")
    device: str = flag("cpu", "cpu or cuda")


class Method(NamedTuple):
    """What a paper's file hands in."""
    learner: Callable           # (obs_dim, act_dim, config) -> a learner
    config: type                # a RunConfig with the method's own settings
    train: Callable             # (run, until)
    test: Callable              # (run, draws): returns before and after adaptation (tasks,)
    presets: dict               # of each family, what it needs differently from the defaults
    variants: dict              # of each ablation and baseline, what makes it one
    parallel: bool = False      # whether several processes can share a step, each some tasks of it

    def settings(self, **changes):
        """The config of a run; see command.settings. Raises BadInput."""
        return command.settings(self.config, self.presets, self.variants, **changes)


# ------------------------------------------------------------------------------------------- a run
class Run:
    """A learner in training, and all that training changes: hence all that a checkpoint holds."""

    def __init__(self, method, config, device="cpu", folder=None, state=None, resume=False):
        """`state`: a checkpoint's content, to evaluate or (resume) to go on with."""
        training = resume or not state
        if not (method.parallel and training):
            command.alone()
        self.method, self.config, self.device, self.folder = method, config, device, folder
        self.training = training
        self.rank, self.world = processes(config, device)
        others = parse_files(config.adapt_data) if config.adapt_data and training else []
        self.buffers = Buffers(path_of(config.data or config.env), config, state,
                               [path_of(name) for name in others], device)
        sizes = self.buffers.obs_dim, self.buffers.act_dim
        if state:
            check_shapes(state["learner"], method, sizes, config)
        torch.manual_seed(config.seed)                              # for the first weights
        self.learner = method.learner(*sizes, config).to(device)
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

    def policies(self, D, adapted=True):
        """What acts: a function of states (N, 1, obs) that gives each task's actions (N, 1, act),
        after adaptation to its batch D or before."""
        policies = self.learner.policies(D, adapted)
        return envs.nudged(policies, D) if self.config.nudge else policies

    # ------------------------------------------------------------- what a training loop is made of
    def steps(self, until):
        """One training step each, up to `until`; with an evaluation and a checkpoint now and then
        where the run has a folder."""
        start = time.time() - self.seconds
        bar = tqdm(total=until, initial=self.step, unit="step",
                   disable=None if self.folder else True)
        if self.step == 0:
            self.evaluate_and_save(start, bar)
        while self.step < until:
            yield
            self.step += 1
            bar.update()
            self.evaluate_and_save(start, bar)
        bar.close()

    def evaluate_and_save(self, start, bar):
        """Where this is due."""
        config, step = self.config, self.step
        due = step % config.eval_every == 0 or step in EARLY or step == config.steps
        done = self.rows and self.rows[-1]["step"] == step      # a run that was killed just after
        if not self.folder or not due or done:
            return
        self.seconds = time.time() - start
        last = step == config.steps
        returns = self.method.test(self, config.final_draws if last else EVAL_DRAWS)
        if last:
            self.returns = returns
        before, after = (float(x.mean()) for x in returns)
        self.check_finite(before=before, after=after)
        names = dict.fromkeys(name for x in self.losses for name in x)      # not all in every step
        losses = {name: float(np.mean([x[name] for x in self.losses if name in x]))
                  for name in names}
        self.losses = []
        self.rows.append(dict(step=step, seconds=round(self.seconds, 1), **losses, before=before,
                              after=after))
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

    def check(self, losses):
        """Between the backward pass and the update: notes the losses, raises Diverged where a loss
        or the gradient is not finite. Under torchrun both are added up over the processes."""
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        values = torch.stack([loss.detach() for loss in losses.values()])
        sum_over_processes([values, *gradients])
        losses = dict(zip(losses, values.tolist()))
        norm = torch.nn.utils.get_total_norm(gradients).item()
        self.check_finite(**losses, norm_of_the_gradient=norm)
        self.losses.append(losses)

    def check_finite(self, **numbers):
        """Raises Diverged before an update or a checkpoint is made of what is not finite."""
        for name, x in numbers.items():
            if not math.isfinite(x):
                sizes = [f"--{command.dashed(field.name)}" for field in
                         dataclasses.fields(self.config) if field.name.endswith("lr")]
                raise Diverged(f"{name.replace('_', ' ')} is {x} at step {self.step + 1}; the last "
                               "checkpoint is good, but start a new run with smaller step sizes "
                               f"({', '.join(sizes)})")

    def lower_step_sizes(self):
        """Outer step sizes fall linearly to 0 over the run, unless config says otherwise."""
        for group in self.optimizer.param_groups:
            left = 1 - self.step / self.config.steps if self.config.lr_decay else 1.0
            group["lr"] = group["initial_lr"] * left


def summary(run):
    """What `summary.json` holds: returns on the held-out tasks at the last checkpoint."""
    config, buffers = run.config, run.buffers
    before, after = run.returns or run.method.test(run, config.final_draws)
    run.check_finite(before=before.mean(), after=after.mean())
    notes = run.notes if run.training else {}           # they were taken in training
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
def processes(config, device):
    """Rank of this process and number of processes, (0, 1) but under torchrun; raises BadInput."""
    if not command.several():
        return 0, 1
    if not dist.is_initialized():
        if device != "cpu":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo" if device == "cpu" else "nccl")
    if dist.get_world_size() > config.tasks_per_step:
        raise BadInput(f"{dist.get_world_size()} processes are more than the tasks in a meta-"
                       "batch; start fewer, or give a larger --tasks-per-step")
    return dist.get_rank(), dist.get_world_size()


def sum_over_processes(tensors):
    """In place, as one message."""
    if dist.is_initialized():
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(part.view_as(x))


# ------------------------------------------------------------------- checkpoints and run folders
def load(method, path, device="cpu", resume=False, **changes):
    """The run of a checkpoint: a learner and its buffers, ready to adapt or (resume) to train on.

    `changes`: settings that differ from the checkpoint's, among those that are free to. Raises
    BadInput.
    """
    def check(good, problem):
        if not good:
            raise BadInput(f"{path} {problem}")
    check(pathlib.Path(path).exists(), "is not there; name a checkpoint that is")
    state = command.load_tensors(path)
    check(isinstance(state, dict) and state.get("format") == CHECKPOINT_FORMAT,
          "is damaged or of another version of this program; train again")
    try:
        defaults = {field.name: field.default for field in dataclasses.fields(method.config)}
        config = defaults | state["config"]             # of settings that are newer than it
        check(config["variant"] in method.variants,
              f"is of another program (variant {config['variant']}); give it to that one")
        for field in dataclasses.fields(method.config):
            name = field.name
            free = ("resume" if resume else "evaluate") in field.metadata["free"]
            why = ", where its step sizes reach 0" if name == "steps" else ""
            check(free or name not in changes or changes[name] == config[name],
                  f"was made with --{command.dashed(name)} {config[name]}{why}; omit the "
                  "flag or start a new run")
        check(set(config) == set(defaults),
              "was made with other settings than this version has; train again")
        config = command.checked(method.config, {**config, **changes})
        tensors = [*state["stats"].values(), *state["learner"].values()]
        check(all(x.isfinite().all() for x in tensors),
              "has numbers that are not finite; train again with smaller step sizes")
        check(set(state["train"]) <= set(range(len(envs.FAMILIES[config.env].tasks)))
              and 0 <= state["step"] <= config.steps and all("step" in x for x in state["rows"]),
              "does not fit together; train again")
        run = Run(method, config, device, state=state, resume=resume)
        if resume:
            check_resumable(run, state, check)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        check(False, "does not fit together; train again")
    return run


def check_shapes(parameters, method, sizes, config):
    """Raises BadInput where a checkpoint's parameters are not those of its learner, before any
    memory is taken for it."""
    with torch.device("meta"):
        expected = method.learner(*sizes, config).state_dict()
    if {k: x.shape for k, x in parameters.items()} != {k: x.shape for k, x in expected.items()}:
        raise BadInput("the checkpoint's parameters do not fit its settings and the data; train "
                       "again or give other --data")


def check_resumable(run, state, check):
    """What a checkpoint needs beyond what its evaluation does."""
    check(run.buffers.fingerprint == state["data"],
          "was trained on other data; give the files that it began with as --data and --adapt-data")
    check(run.optimizer.state or not run.step,
          "has no optimizer state, so it can be evaluated but not resumed")
    check(all(x.shape == p.shape and x.isfinite().all()
              for p, moments in run.optimizer.state.items()
              for name, x in moments.items() if name != "step"),
          "has an optimizer state that does not fit; train again")


def run_folder(config, out):
    """A new folder: the one named, or runs/ENV-VARIANT-sSEED, numbered where that is there. Raises
    BadInput where it holds more than an unfinished .part of a run that was killed at once."""
    if out:
        folder = pathlib.Path(out)
        if folder.exists() and not (folder.is_dir() and all(
                file.suffix == ".part" for file in folder.iterdir())):
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
def execute(method, options, given):
    """Train, resume or evaluate, as the command line says."""
    command.check_device(options.device)
    if options.resume and (options.evaluate or not options.out):
        raise BadInput("--resume trains on with the run in --out; name that folder, and give no "
                       "--evaluate")
    if options.task:
        return adapt_to(method, options, given)
    if options.evaluate:
        run = load(method, options.evaluate, options.device, **given)
    elif options.resume:
        run = load(method, f"{options.out}/checkpoint.pt", options.device, resume=True, **given)
    else:
        run = Run(method, method.settings(**given), options.device)
    if options.render:                              # all that can fail, before the work
        render.check(run.config.env, options.render)
    if run.rank:                                    # the first process evaluates and saves
        method.train(run, run.config.steps)
    elif options.evaluate and not options.out:
        finish(run, options)
    else:
        run.folder = (pathlib.Path(options.out) if options.resume
                      else run_folder(run.config, options.out))
        with command.lock(run.folder):
            if not options.evaluate:
                train(run)
            finish(run, options)
    if dist.is_initialized():           # torchrun treats an early exit as a failure of all
        dist.barrier()
        dist.destroy_process_group()


def adapt_to(method, options, given):
    """Print returns on a task that is in no list, before and after adaptation to its data."""
    source = given.pop("data", "")
    if not (options.evaluate and source):
        raise BadInput("--task needs --evaluate with a checkpoint, and --data of the task")
    run = load(method, options.evaluate, options.device, **given)
    D = bring.batch(run, bring.read(source, run.buffers.act_dim))
    try:
        env = envs.make(run.config.env, json.loads(options.task))
    except (ValueError, TypeError) as problem:
        raise BadInput(f"--task {options.task} is no task of {run.config.env}: {problem}; write it "
                       f"as {json.dumps(envs.FAMILIES[run.config.env].tasks[0])}") from None
    for adapted, name in ((False, "before"), (True, "after")):
        total, = envs.rollout(run.policies(D, adapted), [env], [0], run.buffers.observe)
        print(f"{name} adaptation {total:.1f}")


def train(run):
    """Train to the end in the run's folder."""
    config, folder, method = run.config, run.folder, run.method
    print(f"{config.variant} on {config.env}: {len(run.buffers.train)} training tasks, "
          f"tested on tasks {run.buffers.test}; writes {folder}")
    print("settings that are not the general defaults:",
          command.differences(config, method.config(env=config.env, variant=config.variant)),
          flush=True)
    with command.stopping(f"go on with --resume --out {folder}"):
        run.save()                                  # so that a kill at any moment resumes
        command.save_json(folder / "config.json", dataclasses.asdict(config))
        method.train(run, config.steps)


def finish(run, options):
    """Print and keep the results."""
    result, folder = summary(run), run.folder
    if folder:
        if options.evaluate:                        # else `train` has written them
            command.save_json(folder / "config.json", dataclasses.asdict(run.config))
        command.save_json(folder / "summary.json", result)
        if not options.evaluate:
            plot.curve([folder], folder / "curve.png")
    report(result)
    if options.render:
        render.side_by_side(run, options.render)


def main(method, doc):
    """The command line of a method."""
    def do(given):
        options = Options(**{field.name: given.pop(field.name)
                             for field in dataclasses.fields(Options) if field.name in given})
        execute(method, options, given)
    command.command_line(do, [method.settings(), Options()], doc)
