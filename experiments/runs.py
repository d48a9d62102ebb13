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

# Data files that some runs need, and the commands that make them
THIRDS = ["-m", "experiments.online", "thirds", "--out", "runs/"]
MADE = {**{f"runs/{third}.npz": THIRDS for third in ("first", "middle", "last")},
        **{f"runs/few{k}.npz": ["-m", "experiments.online", "few", "--tasks", str(k),
                                "--out", "runs/"] for k in (3, 5, 10, 20)},
        "runs/uniform.npz": ["collect.py", "--env", "cheetah_vel", "--steps", "6000", "--keep",
                             "6000", "--random-steps", "6000", "--out", "runs/uniform.npz"]}

# Training tasks to hold out beside the test tasks, so that 25 are tested; few settings were chosen
# on any of them
SETS = {"cheetah_vel": ("1,10,17,25,34", "4,11,18,27,36", "6,14,21,29,37", "8,16,24,30,32"),
        "ant_dir": ("2,11,20,31,40", "3,12,22,32,43", "4,13,24,33,44", "5,15,25,34,46"),
        "walker_params": ("3,11,20,29,38", "5,14,23,32,41", "6,16,24,33,42", "8,17,26,35,44")}
MAIN = "macaw meta_bc mt_awr no_advantage no_wt focal"

# What runs have whose settings were chosen before today's defaults; D^tr from the data's own agents
STILL = dict(nudge=False)
RELU = dict(STILL, relative_sigma=False, smooth=False)
LIVES = dict(RELU, late=0.0)                                # D^ts from whole lifetimes
INDEPENDENT = dict(RELU, data="cheetah_vel_others")
RANDOM = dict(RELU, adapt_data="runs/uniform.npz", inner_batch=512, test_batch=512, steps=2000,
              advantage_coef=1.0, policy_lr=1e-3, value_lr=1e-3)
FIRST_SETTINGS = dict(late=0.0, lr=1e-3, temperature=0.5, encoder_steps=0, relative_sigma=False,
                      smooth=False, monte_carlo=False)
ROBUST = {family: macaw.VARIANTS["robust"][family] for family in ("cheetah_vel", "ant_dir")}
OTHERS = {family: dict(STILL, adapt_data=changes["adapt_data"])
          for family, changes in ROBUST.items()}

# Families, variants, suffix, seeds, what differs, its label, what is done with the learner
TABLE = [
    (FAMILIES, "macaw", "", 10, {}, "", "groups"),
    (("cheetah_vel", "ant_dir"), "robust", "", 10, {}, "", "groups"),
    ("walker_params", "robust", "", 5, {}, "", "groups"),
    ("cheetah_vel", "paper", "", 5, {}, "", ""),
    ("cheetah_vel", "released", "", 1, {}, "", ""),
    (FAMILIES, MAIN, "", 5, {}, "", "groups"),
    ("cheetah_dir", MAIN, "", 10, {}, "", ""),
    *((family, MAIN, f"_set{k}", 5, dict(holdout=tasks), "", "")
      for family in SETS for k, tasks in enumerate(SETS[family], 2)),
    (FAMILIES, "pearl pearl_regularised", "", 5, {}, "", ""),
    ("cheetah_vel", "maml_awr", "", 5, {}, "", ""),
    (("cheetah_vel", "walker_params"), "smac", "", 5, {}, "", "groups"),
    *((family, "meta_bc", "_robust", 10, ROBUST[family], "; robust recipe", "groups")
      for family in ROBUST),
    ("cheetah_vel", "no_advantage", "_robust", 10, ROBUST["cheetah_vel"], "", "groups"),
    *(("cheetah_vel", variants, "_robust", 10,
       dict(ROBUST["cheetah_vel"], max_gradient=0.0, inner_lr=lr), "", "groups")
      for variants, lr in (("mt_awr", 0.001), ("no_wt maml_awr", 0.03))),
    ("ant_dir", "mt_awr", "_robust", 10, ROBUST["ant_dir"], "", "groups"),
    *((family, "focal pearl", "_robust", 5, OTHERS[family], "", "groups") for family in ROBUST),
    ("cheetah_vel", "pearl_regularised smac frozen no_data", "_robust", 5, OTHERS["cheetah_vel"],
     "", "groups"),
    ("cheetah_vel", "focal", "_untuned", 5, FIRST_SETTINGS | OTHERS["cheetah_vel"],
     "; first settings", ""),
    ("ant_dir", "focal", "_untuned", 5, FIRST_SETTINGS | OTHERS["ant_dir"], "", ""),
    (("cheetah_dir", "walker_params"), "focal", "_untuned", 5, FIRST_SETTINGS, "", ""),
    ("cheetah_vel", "smac", "_untuned", 5, dict(OTHERS["cheetah_vel"], steps=3500), "", ""),
    ("cheetah_vel", "macaw", "_aligned", 5, RELU, "; ReLU and one sigma", "groups"),
    ("cheetah_vel", "mt_awr", "_aligned", 5, dict(STILL, steps=1500), "", ""),
    ("cheetah_vel", "macaw meta_bc mt_awr no_advantage", "_independent", 5, INDEPENDENT,
     "; independent agents' data", "groups"),
    ("cheetah_vel", "no_wt maml_awr", "_independent", 5, dict(INDEPENDENT, inner_lr=0.03), "",
     "groups"),
    ("cheetah_vel", "macaw meta_bc no_advantage", "_lives", 5, LIVES,
     "; D^ts from whole lifetimes", ""),
    ("cheetah_vel", "no_wt maml_awr", "_lives", 5, dict(LIVES, inner_lr=0.001, weight_decay=1.0),
     "", ""),
    ("ant_dir", "macaw meta_bc", "_lives", 5, dict(late=0.0), "", ""),
    *(("cheetah_vel", "macaw no_advantage", f"_{third}", 5,
       dict(RELU, adapt_data=f"runs/{third}.npz", late=0.67),
       f"; adapted to the {third} third of lifetimes", f"runs/{third}.npz")
      for third in ("first", "middle", "last")),
    ("cheetah_vel", "macaw no_advantage", "_random", 4, dict(RANDOM, inner_lr=0.01),
     "; adapted to a random policy's transitions", "runs/uniform.npz"),   # MACAW's seed 4 diverges
    ("cheetah_vel", "no_wt", "_random", 4, dict(RANDOM, inner_lr=0.03), "", "runs/uniform.npz"),
    *(("cheetah_vel", variants, f"_few{k}", 5,
       dict(more, data=f"runs/few{k}.npz", tasks_per_step=min(k, most)), "", "")
      for k in (3, 5, 10, 20) for variants, most, more in (
          ("macaw", 5, RELU), ("mt_awr", 5, dict(STILL, steps=1500)),
          ("focal pearl", 16, STILL))),
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
    def method(self):
        """The name of its method in METHODS."""
        return next(name for name, method in METHODS.items() if self.variant in method.variants)

    @property
    def program(self):
        name = self.method
        return [name] if name.endswith(".py") else ["-m", name]

    def settings(self):
        """The config that this run is made with."""
        return METHODS[self.method].settings(env=self.family, variant=self.variant,
                                             seed=self.seed, **self.changes)

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
    if row.then == "groups" and row.seed < 5:
        for group, data in groups.items():
            evaluate(f"{row.folder}/{group}", "--data", data)
    name = row.variant + row.suffix
    if row.family == "cheetah_vel" and name in ("macaw", "robust", "focal", "focal_robust"):
        for size in (8, 16, 64):
            evaluate(f"{row.folder}/batch{size}", "--test-batch", str(size))
    if row.then in MADE:
        evaluate(row.folder, "--data", row.then)
    names = ("robust", "pearl_robust") if row.family in ROBUST else ("macaw", "pearl")
    method = dict(zip(names, (("macaw", "online"), ("focal", "online_pearl")))).get(name)
    if method and row.seed < 5 and row.family != "cheetah_dir":
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
    parser.add_argument("names", nargs="*", help="as in ant_dir/focal: these alone")
    parser.add_argument("--list", action="store_true", help="print the missing runs' commands")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        os.chdir(pathlib.Path(__file__).parent.parent)
        missing = [row for row in rows() if not done(row.folder) and (
            not arguments.names or row.folder[len("results/"):].split("-s")[0] in arguments.names)]
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
