"""What many runs show together: their summaries, paired by task and seed, and 95% t-intervals."""
import csv
import json
import pathlib
import re

import numpy as np

import envs
from helpers.command import BadInput


# ----------------------------------------------------------------------------------- a run's files
def read(folder, name, needed=("tasks",)):
    """One of a run's files: config.json or summary.json as a dict, metrics.csv as columns of
    numbers. Raises BadInput where it lacks what each such file has, or a summary what is needed."""
    try:
        with open(pathlib.Path(folder) / name) as file:
            if name == "metrics.csv":
                rows = list(csv.DictReader(file))
                content = {column: np.array([float(row[column] or "nan") for row in rows])
                           for first in rows[:1] for column in first}
                needed = "step", "before", "after"
            else:
                content = json.load(file)
                needed = "env", "variant", "seed", *(needed if name == "summary.json" else ())
        missing = [key for key in needed if key not in content]
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{folder} holds no {name}; give the folder of a finished run") from None
    except (ValueError, TypeError, csv.Error) as problem:
        raise BadInput(f"{folder}/{name} cannot be read ({problem}); make that run again") from None
    if missing:
        raise BadInput(f"{folder}/{name} lacks {', '.join(missing)}; finish that run or make it "
                       "again")
    return content


def check_alike(runs, what):
    """Raises BadInput where what(run), of configs or summaries, is not the same for all of them."""
    for run in runs[1:]:
        if what(run) != what(runs[0]):
            one, other = (f"{x['variant']}, seed {x['seed']} on {x['env']}" for x in (runs[0], run))
            raise BadInput(f"{one}, and {other}, differ in family, held-out tasks, size of D^tr or "
                           "steps evaluated; leave one of them out")


def numbers(runs, name):
    """A number of each task of each run, (seeds, tasks); raises BadInput where tasks differ."""
    check_alike(runs, lambda run: (run["env"], [task["id"] for task in run["tasks"]]))
    return np.array([[task[name] for task in run["tasks"]] for run in runs])


def vary(env):
    """Whether a family's test tasks stand for others: not where they are all that there are."""
    family = envs.FAMILIES[env]
    return len(family.test) < len(family.tasks)


# -------------------------------------------------------------------------------------- many runs
def folders_of(family, name):
    """A family's folders of finished runs NAME-sSEED, the name a pattern, sorted by seed; not a
    copy's, NAME-sSEED-2. Raises BadInput where the folder is not named after a family."""
    if pathlib.Path(family).name not in envs.FAMILIES:
        raise BadInput(f"{family} is not named after a family ({', '.join(envs.FAMILIES)}); give "
                       "a folder that is")
    found = [f.parent for f in pathlib.Path(family).glob(f"{name}-s*/summary.json")
             if re.fullmatch(r"[^-]+-s\d+", f.parent.name)]
    return sorted(found, key=lambda f: int(f.name.split("-s")[1]))


def summary_of(folder, column="", needed=("tasks",)):
    """Summary of the run in FAMILY/VARIANT[_SETTING]-sSEED, or of its evaluation in a subfolder;
    raises BadInput where it is of another family, method or seed, or lacks what is needed."""
    run = read(folder / column, "summary.json", needed)
    name = rf"{run['variant']}(_.+)?-s{run['seed']}"
    if run["env"] != folder.parent.name or not re.fullmatch(name, folder.name):
        raise BadInput(f"{folder / column} holds a run of {run['variant']}, seed {run['seed']}, on "
                       f"{run['env']}; move it to a folder of that name")
    return run


def evaluations(family, name, columns, needed=("tasks",)):
    """Summaries (columns, seeds) of the runs that have one in each of these subfolders."""
    folders = [folder for folder in folders_of(family, name)
               if all((folder / column / "summary.json").exists() for column in columns)]
    return [[summary_of(folder, column, needed) for folder in folders] for column in columns]


def runs_of(family, name, needed=("tasks",)):
    """Summaries of a family's runs of this name, sorted by seed; raises BadInput."""
    return evaluations(family, name, [""], needed)[0]


def shared(cells):
    """These lists of runs, each with only the seeds that all of them have."""
    seeds = set.intersection(*({run["seed"] for run in runs} for runs in cells))
    return [[run for run in runs if run["seed"] in seeds] for runs in cells]


def shared_of(family, names):
    """Runs of each of these names, at the seeds that all have; raises BadInput without any."""
    cells = shared([runs_of(family, name) for name in names])
    if not cells[0]:
        raise BadInput(f"{family} holds no seed of each of {', '.join(names)}; make these runs")
    return cells


def paired(cells, what="after"):
    """A number of each task of lists of runs at the seeds that all have, (lists, seeds, tasks);
    empty without."""
    cells = shared(cells)
    together = numbers([run for runs in cells for run in runs], what)
    return together.reshape(len(cells), len(cells[0]), -1 if cells[0] else 1)


def while_training(folders):
    """The steps at which all of these runs were evaluated, and `after` at them (runs, steps)."""
    tables = [read(folder, "metrics.csv") for folder in folders]
    steps = sorted(set.intersection(*(set(table["step"]) for table in tables)))
    return steps, np.array([table["after"][np.isin(table["step"], steps)] for table in tables])


# ------------------------------------------------------------------------------- units of evidence
def of_sets(family, names, what="after"):
    """A number of these sorts of runs, (names, seeds, tasks), for each set of held-out tasks (runs
    NAME and NAME_setK) that all of them have, at the seeds that all have."""
    sets = sorted({folder.name.split("-s")[0].removeprefix(names[0])
                   for folder in folders_of(family, f"{names[0]}_set*")})
    found = (paired([runs_of(family, name + suffix) for name in names], what)
             for suffix in ["", *sets])
    return [x for x in found if x.size]


def units_of(family, names, what="after"):
    """What each of these sorts of runs earns, (names, units): for each task of all sets the mean
    over seeds; for each seed the mean over tasks where these are all that there are (cheetah_dir).
    """
    found = [x.mean(1 if vary(family.name) else 2) for x in of_sets(family, names, what)]
    return np.concatenate(found, 1) if found else np.empty((len(names), 0))


def trivial(results, env):
    """What standing still and the nearest agent earn on each task, {id: {"standing", "nearest"}},
    from a folder of results; empty where experiments/trivial.py has left nothing."""
    file = pathlib.Path(results, "trivial.json")
    return json.loads(file.read_text()).get(env, {}) if file.exists() else {}


# 97.5% quantiles of Student's t with 1, 2, 3, ... degrees of freedom
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13,
     2.12, 2.11, 2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06)


def interval(x):
    """Mean of x (units,) and its 95% t-interval: of 2 to 25 units, else nan. Units are tasks, each
    with its mean over seeds; a task's seeds are no further evidence on other tasks."""
    half = T[len(x) - 2] * x.std(ddof=1) / len(x) ** 0.5 if 2 <= len(x) <= len(T) + 1 else np.nan
    return x.mean(), x.mean() - half, x.mean() + half


def as_text(mean, low, high, sign="", digits=1):
    """What `interval` gives, for a table; sign="+" for differences."""
    return f"{mean:{sign}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def by_set(x, env):
    """Means of leads x (units,) over each set of held-out tasks, whose tasks share their runs."""
    return x.reshape(-1, len(envs.FAMILIES[env].test)).mean(1) if vary(env) else x


def verdict(x, env):
    """Whether leads x (units,) of a family's runs are significant: the 95% interval over units
    leaves out zero, and so does that over sets."""
    if len(x) <= 5:
        return "too few to tell"
    ends = [interval(y)[1:] for y in (x, by_set(x, env))]
    return "significant" if all(low > 0 or high < 0 for low, high in ends) else "not significant"


def table(header, rows):
    """Prints a table in Markdown; a row may lack its last cells."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |" + " |" * (len(header) - len(row)))
