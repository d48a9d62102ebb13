"""All runs that the docs quote: one table, from which the missing ones are made.

    python -m experiments.runs --list       # the commands that are missing in results/
    python -m experiments.runs              # run them, two at a time, one thread each

A run is results/FAMILY/NAME-sSEED, its NAME a variant and, where settings differ from what
`--env FAMILY --variant VARIANT` gives, a suffix. A killed run continues from its checkpoint. What
is done with a trained learner afterwards (evaluations on other data, fine-tuning online) is done
while the checkpoint is there; then it is deleted.
"""
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import threading
from typing import NamedTuple

import macaw
from baselines import focal, smac
from helpers.command import BadInput, Parser, dashed, one_sentence

METHODS = {"macaw.py": macaw.MACAW, "baselines.focal": focal.FOCAL, "baselines.smac": smac.SMAC}
FAMILIES = "cheetah_vel", "cheetah_dir", "ant_dir", "walker_params"

# Other training tasks held out instead of the test tasks: disjoint sets, suffixes _set1, ...
HELD_OUT = {
    "cheetah_vel": ("1,10,18,27,34", "3,11,19,28,35", "4,12,20,29,36", "5,13,21,30,37"),
    "ant_dir": ("1,11,21,32,42", "2,12,22,33,43", "3,13,24,34,44", "4,14,25,35,45"),
    "walker_params": ("1,11,22,31,41", "3,13,23,32,42", "4,14,24,33,44", "5,16,25,34,45")}
CHOSEN_ON = dict(                               # training tasks that settings were chosen on
    cheetah_vel=(3, 5, 9, 12, 13, 20, 22, 28, 31, 33, 35),
    walker_params=(1, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, 48),
    ant_dir=(1, 9, 18, 27, 36, 45))

# Data files that some runs need, and the commands that make them
THIRDS = ["-m", "experiments.online", "thirds", "--out", "runs/"]
MADE = {**{f"runs/{third}.npz": THIRDS for third in ("first", "middle", "last")},
        **{f"runs/few{k}.npz": ["-m", "experiments.online", "few", "--tasks", str(k),
                                "--out", "runs/"] for k in (3, 5, 10, 20)},
        "runs/uniform.npz": ["collect.py", "--env", "cheetah_vel", "--steps", "6000", "--keep",
                             "6000", "--random-steps", "6000", "--out", "runs/uniform.npz"]}

# cheetah_vel's default before clipped gradients, 16 tasks, SiLU and relative sigma
BEFORE = dict(tasks_per_step=5, relative_sigma=False, smooth=False, max_gradient=0.0)
ALIGNED = dict(adapt_data="")                       # both batches from the data's own agents
LIVES = dict(BEFORE, late=0.0, steps=1000, **ALIGNED)       # D^ts from whole lifetimes
INDEPENDENT = dict(BEFORE, data="cheetah_vel_others", steps=1000, **ALIGNED)
RANDOM = dict(BEFORE, adapt_data="runs/uniform.npz", inner_batch=512, test_batch=512, steps=2000,
              advantage_coef=1.0, policy_lr=1e-3, value_lr=1e-3)
FIRST_SETTINGS = dict(late=0.0, lr=1e-3, temperature=0.5, encoder_steps=0, relative_sigma=False,
                      smooth=False, monte_carlo=False)

# Families, variants, suffix, seeds, what differs, its label, what is done with the learner
TABLE = [
    (FAMILIES, "macaw meta_bc mt_awr", "", 10, {}, "", "groups"),
    (FAMILIES, "no_wt focal", "", 5, {}, "", "groups"),
    (FAMILIES, "pearl pearl_regularised", "", 5, {}, "", ""),
    (FAMILIES, "focal", "_untuned", 5, FIRST_SETTINGS, "; first settings", ""),
    ("cheetah_vel", "no_advantage maml_awr no_wt", "", 10, {}, "", "groups"),
    ("cheetah_vel", "smac frozen no_data", "", 5, {}, "", "groups"),
    ("walker_params", "smac", "", 5, {}, "", "groups"),
    ("cheetah_vel", "smac", "_untuned", 5, dict(steps=3500), "; first settings", ""),
    ("cheetah_vel", "macaw", "_aligned", 5, dict(BEFORE, steps=1000, **ALIGNED),
     "; both batches from aligned agents", "groups"),
    ("cheetah_vel", "mt_awr", "_aligned", 5, BEFORE | ALIGNED, "", ""),
    ("cheetah_vel", "focal pearl smac", "_aligned", 5, ALIGNED, "", "groups"),
    ("ant_dir", "macaw focal", "_aligned", 5, ALIGNED, "", "groups"),
    ("cheetah_vel", "macaw meta_bc mt_awr no_advantage no_wt maml_awr", "_independent", 5,
     INDEPENDENT, "; both batches from independent agents", "groups"),
    ("cheetah_vel", "macaw meta_bc no_advantage", "_lives", 5, LIVES,
     "; both batches from aligned agents, D^ts from whole lives", ""),
    ("cheetah_vel", "no_wt maml_awr", "_lives", 5, dict(LIVES, inner_lr=0.001, weight_decay=1.0),
     "", ""),
    ("ant_dir", "macaw meta_bc", "_lives", 5, dict(late=0.0, **ALIGNED), "", ""),
    ("cheetah_vel", "macaw no_wt", "_short", 2, dict(BEFORE, steps=600), "; 600 meta-steps", ""),
    ("cheetah_vel", "no_wt_wide", "_short", 1, dict(BEFORE, steps=600), "", ""),
    ("cheetah_vel", "macaw", "_two", 5,
     dict(BEFORE, adapt_data="cheetah_vel,cheetah_vel_others"), "; D^tr from two groups of agents",
     "groups"),
    ("cheetah_vel", "macaw", "_before", 10, BEFORE, "; previous settings", "groups"),
    ("cheetah_vel", "macaw", "_large", 5, dict(BEFORE, tasks_per_step=16),
     "; previous settings, 16 tasks a meta-step", "groups"),
    ("cheetah_vel", "macaw", "_uncut", 10, dict(max_gradient=0.0), "; gradients not cut", "groups"),
    *(("cheetah_vel", "macaw no_advantage", f"_{third}", 5,
       dict(BEFORE, adapt_data=f"runs/{third}.npz", late=0.67, steps=1000),
       f"; adapted to the {third} third of lives", f"runs/{third}.npz")
      for third in ("first", "middle", "last")),
    ("cheetah_vel", "macaw no_advantage", "_random", 4, dict(RANDOM, inner_lr=0.01),
     "; adapted to a random policy's transitions", "runs/uniform.npz"),   # MACAW's seed 4 diverges
    ("cheetah_vel", "no_wt", "_random", 4, RANDOM, "", "runs/uniform.npz"),
    *(("cheetah_vel", variants, f"_few{k}", 5,
       dict(more, data=f"runs/few{k}.npz", tasks_per_step=min(k, most), **ALIGNED), "", "")
      for k in (3, 5, 10, 20) for variants, most, more in (
          ("macaw", 5, dict(BEFORE, steps=1000)), ("mt_awr", 5, BEFORE), ("focal pearl", 16, {}))),
    *((family, "macaw meta_bc mt_awr", f"_set{k + 1}", 1, dict(holdout=tasks), "", "")
      for family, sets in HELD_OUT.items() for k, tasks in enumerate(sets)),
]
SUFFIXES = {suffix: label for _, _, suffix, _, _, label, _ in TABLE if label or not suffix}


class Row(NamedTuple):
    """One run of the table."""
    family: str
    variant: str
    suffix: str
    seed: int
    changes: dict           # of settings, but env, variant and seed
    then: str               # what is done with the learner; see `follow_up`

    @property
    def folder(self):
        return f"results/{self.family}/{self.variant}{self.suffix}-s{self.seed}"

    @property
    def training(self):
        """Its run folder; another one where only an evaluation on other data is kept."""
        return self.folder.replace(f"results/{self.family}", "runs") if self.then in MADE else (
            self.folder)

    @property
    def program(self):
        name = next(name for name, method in METHODS.items() if self.variant in method.variants)
        return [name] if name.endswith(".py") else ["-m", name]

    def settings(self):
        """The config that this run is made with."""
        method = next(m for m in METHODS.values() if self.variant in m.variants)
        return method.settings(env=self.family, variant=self.variant, seed=self.seed,
                               **self.changes)

    def command(self):
        """What trains it, as arguments of Python."""
        if pathlib.Path(self.training, "checkpoint.pt").exists():
            return [*self.program, "--resume", "--out", self.training]
        flags = []
        for name, value in self.changes.items():
            off = value is False
            flags += [f"--{'no-' * off}{dashed(name)}"] + [f"{value}"] * (type(value) is not bool)
        return [*self.program, "--env", self.family, "--variant", self.variant,
                "--seed", str(self.seed), *flags, "--out", self.training]


def rows():
    """Every run of the table; a later line adds seeds to an earlier one."""
    found = {}
    for families, variants, suffix, seeds, changes, _, then in TABLE:
        for family in [families] if isinstance(families, str) else families:
            for variant in variants.split():
                for seed in range(seeds):
                    row = Row(family, variant, suffix, seed, changes, then)
                    found.setdefault(row.folder, row)
    return list(found.values())


def done(folder):
    return pathlib.Path(folder, "summary.json").exists()


def follow_up(row):
    """The commands that use the trained learner."""
    checkpoint, commands = f"{row.training}/checkpoint.pt", []

    def evaluate(out, *flags):
        if not done(out):
            commands.append([*row.program, "--evaluate", checkpoint, *flags, "--out", out])
    groups = {} if row.family == "cheetah_dir" else {
        "aligned": row.family, "strangers": f"{row.family}_strangers"}
    if row.family == "cheetah_vel":
        groups["others"] = "cheetah_vel_others"
    if row.then == "groups" and (row.seed < 5 or row.variant in ("macaw", "no_advantage")):
        for group, data in groups.items():
            evaluate(f"{row.folder}/{group}", "--data", data)
    if row.family == "cheetah_vel" and row.variant in ("macaw", "focal") and not row.suffix:
        for size in (8, 16, 64):
            evaluate(f"{row.folder}/batch{size}", "--test-batch", str(size))
    if row.then in MADE:
        evaluate(row.folder, "--data", row.then)
    method = {"macaw": ("macaw", "online"), "pearl": ("focal", "online_pearl")}.get(row.variant)
    if method and not row.suffix and row.seed < 5 and row.family != "cheetah_dir":
        out = f"results/{row.family}/{method[1]}-s{row.seed}"
        if not done(out):
            commands.append(["-m", "experiments.online", "online", "--checkpoint", checkpoint,
                             "--method", method[0], "--out", out])
    return commands


def make(row, lock=threading.Lock()):           # noqa: B008 (one lock for all)
    """Make what is missing of a run."""
    def run(command):
        subprocess.run([sys.executable, *command], check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
    with lock:
        for path in (row.changes.get("data", ""), row.changes.get("adapt_data", "")):
            if path in MADE and not pathlib.Path(path).exists():
                pathlib.Path("runs").mkdir(exist_ok=True)
                run(MADE[path])
    run(row.command())
    for command in follow_up(row):
        run(command)
    for name in ("checkpoint.pt", "curve.png"):
        pathlib.Path(row.training, name).unlink(missing_ok=True)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the missing runs' commands")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        os.chdir(pathlib.Path(__file__).parent.parent)
        missing = [row for row in rows() if not done(row.folder)]
        if arguments.list:
            for row in missing:
                print("python", *row.command())
            return
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for row, future in [(row, pool.submit(make, row)) for row in missing]:
                try:
                    future.result()
                except subprocess.CalledProcessError:
                    pool.shutdown(cancel_futures=True)
                    raise BadInput(f"{row.folder} failed, see above; fix it and run this "
                                   "again") from None


if __name__ == "__main__":
    main()
