"""What the docs quote: tables and figures over many runs, with 95% bootstrap intervals.

    python -m experiments.tables results results --out results.png        # every method and setting
    python -m experiments.tables early results --out early.png            # leads while training
    python -m experiments.tables scores results --out scores.png          # families put together
    python -m experiments.tables rotation results --out rotation.png      # other held-out tasks
    python -m experiments.tables few results/cheetah_vel --out few.png    # few training tasks
    python -m experiments.tables whose results/cheetah_vel --out whose.png   # adapted to whose data
    python -m experiments.tables context results/cheetah_vel --out context.png    # and to how many
    python -m experiments.tables poses results/cheetah_vel --out poses.png   # how these move
    python -m experiments.tables own results --out own.png                # to their own exploration
    python -m experiments.tables online results --out online.png          # fine-tuning online

Each prints its table. An interval is over seeds and tasks; over seeds alone where the tasks tested
are all that there are (cheetah_dir). Differences are paired: the same task and the same seed.
"""
import os
import pathlib
import re

import mujoco
import numpy as np
from matplotlib.figure import Figure

import envs
from helpers import data
from helpers.command import BadInput, Parser, one_sentence
from helpers.plot import COLORS, METHODS, check_picture, numbers, read, save, vary

SETTINGS = {"": "",
            "_lives": "; both batches from aligned agents, D^ts from whole lives",
            "_short": "; 600 meta-steps",
            "_untuned": "; first settings",
            "_two": "; D^tr from two groups of agents",
            "_before": "; previous settings",
            "_large": "; previous settings, 16 tasks a meta-step",
            "_uncut": "; gradients not cut",
            "_aligned": "; both batches from aligned agents",
            "_independent": "; both batches from independent agents",
            "_first": "; adapted to the first third of lives",
            "_middle": "; adapted to the middle third of lives",
            "_last": "; adapted to the last third of lives",
            "_random": "; adapted to a random policy's transitions"}
FAMILIES = "cheetah_vel", "cheetah_dir", "ant_dir", "walker_params"
GROUPS = dict(aligned="aligned agents", others="independent agents", strangers="strangers")
FILES = {GROUPS["aligned"]: "", GROUPS["others"]: "_others", "agents that begin alike": "_others2",
         GROUPS["strangers"]: "_strangers"}                                     # of behaviour data
CHOSEN_ON = dict(                               # training tasks that settings were chosen on
    cheetah_vel=(3, 5, 9, 12, 13, 20, 22, 28, 31, 33, 35),
    walker_params=(1, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, 48),
    ant_dir=(1, 9, 18, 27, 36, 45))
NAMES = {name + setting: label + words for setting, words in SETTINGS.items()
         for name, label in METHODS.items()}    # of run folders


# ---------------------------------------------------------------------------------------- intervals
def resampled(x, tasks, random):
    """x (seeds, tasks, ...) with seeds, and `tasks` too, drawn anew with replacement."""
    seeds = random.integers(len(x), size=(len(x), 1))
    return x[seeds, random.integers(x.shape[1], size=(1, x.shape[1])) if tasks else
             np.arange(x.shape[1])[None]]


def interval(x, tasks=True):
    """Mean of x (seeds, tasks), and its 95% bootstrap interval over seeds and, if so, tasks; nan
    over a single seed, which tells nothing of others."""
    if len(x) == 1 and not tasks:
        return x.mean(), np.nan, np.nan
    random = np.random.default_rng(0)
    means = [resampled(x, tasks, random).mean() for _ in range(2000)]
    return x.mean(), *np.quantile(means, (0.025, 0.975))


def as_text(mean, low, high, sign="", digits=1):
    """What `interval` gives, for a table; sign="+" for differences."""
    return f"{mean:{sign}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def signed(difference, tasks=True):
    """A difference's mean and interval, as text."""
    return as_text(*interval(difference, tasks), sign="+")


# --------------------------------------------------------------------------------------------- runs
def family_at(folder):
    """A family's folder by its whole path, as . has no name; raises BadInput for another folder."""
    folder = pathlib.Path(os.path.abspath(folder))
    if folder.name not in envs.FAMILIES:
        raise BadInput(f"{folder} is not named after a family ({', '.join(envs.FAMILIES)}); give "
                       "one that is, or move it elsewhere")
    return folder


def folders_of(family, name):
    """Folders of a family's finished runs NAME-sSEED, the name a pattern, sorted by seed; not a
    copy's, NAME-sSEED-2."""
    found = [f.parent for f in pathlib.Path(family).glob(f"{name}-s*/summary.json")
             if re.fullmatch(r"[^-]+-s\d+", f.parent.name)]
    return sorted(found, key=lambda f: int(f.name.split("-s")[1]))


def families_of(folder, name):
    """Folders of the families that have runs of this name, a pattern; raises BadInput."""
    found = [f for f in sorted(pathlib.Path(folder).glob("*")) if folders_of(f, name)]
    if not found:
        raise BadInput(f"{folder} holds no FAMILY/{name}-sSEED/summary.json; name such a folder")
    return [family_at(f) for f in found]


def summary_of(folder, column="", needed=("tasks",)):
    """Summary of the run in FAMILY/VARIANT[_SETTING]-sSEED, or of its evaluation in a subfolder;
    raises BadInput where it is of another family, method or seed, or lacks what is needed."""
    place = folder / column
    run = read(place, "summary.json", needed)
    if run["env"] != folder.parent.name:
        raise BadInput(f"{place} is a run of {run['env']}; move it to a folder of that name")
    if not re.fullmatch(rf"{run['variant']}(_.+)?-s{run['seed']}", folder.name):
        raise BadInput(f"{place} holds a run of {run['variant']}, seed {run['seed']}, which its "
                       "name does not tell; move it to a folder that does")
    return run


def runs_of(family, name, needed=("tasks",)):
    """Summaries of a family's runs of this name, sorted by seed; raises BadInput."""
    return [summary_of(folder, needed=needed) for folder in folders_of(family_at(family), name)]


def shared(cells):
    """These lists of runs, each with only the seeds that all of them have."""
    seeds = set.intersection(*({run["seed"] for run in runs} for runs in cells))
    return [[run for run in runs if run["seed"] in seeds] for runs in cells]


def shared_of(family, names):
    """Runs of each of these names, at the seeds that all have; raises BadInput without any."""
    cells = [runs_of(family, name) for name in names]
    for name, runs in zip(names, cells):
        if not runs:
            raise BadInput(f"{family} holds no {name}-sSEED; make that run first")
    cells = shared(cells)
    if not cells[0]:
        raise BadInput(f"{family} holds no seed of each of {', '.join(names)}; make the missing "
                       "runs")
    return cells


def paired(cells):
    """Returns of lists of runs of the same seeds, (lists, seeds, tasks)."""
    together = numbers([run for runs in cells for run in runs], "after")
    return together.reshape(len(cells), len(cells[0]), -1)


# -------------------------------------------------------------------------------------- all results
def results(folder, path):
    """A panel a family with the mean over seeds and the range of MACAW and the baselines; prints
    the table of docs/results.md, with the ablations too."""
    families = families_of(folder, "*")
    count = (len(families) + 1) // 2                                            # of rows
    figure = Figure(figsize=(9, 3.2 * count + 0.6), layout="constrained")
    panels = figure.subplots(count, 2, squeeze=False).ravel()
    for axes in panels[len(families):]:
        axes.set_axis_off()
    print("| family | method | seeds | before | after | after - before | MACAW's lead | data mean |"
          " data end |\n|---|---|---|---|---|---|---|---|---|")
    for axes, family in zip(panels, families):
        for name, label in NAMES.items():
            runs = runs_of(family, name, ("tasks", "behavior_mean", "behavior_final"))
            if not runs:
                continue
            variant, tasks = runs[0]["variant"], vary(family.name)
            rivals = runs_of(family, f"macaw{name.removeprefix(variant)}")  # in the same setting
            pair = shared([rivals, runs])
            after, lead = numbers(runs, "after"), ""
            gain = after - numbers(runs, "before")
            if variant != "macaw" and pair[0]:              # the cell stays empty without a pair
                lead = signed(np.subtract(*paired(pair)), tasks)
            print(f"| {family.name} | {label} | {len(runs)} | {numbers(runs, 'before').mean():.1f} "
                  f"| {as_text(*interval(after, tasks))} | {signed(gain, tasks)} | {lead} | "
                  f"{runs[0]['behavior_mean']:.1f} | {runs[0]['behavior_final']:.1f} |")
            if name in COLORS:
                axes.axhline(runs[0]["behavior_final"], color="black", ls=":", lw=1)
                tables = [read(f, "metrics.csv") for f in folders_of(family, name)]
                band(axes, tables, COLORS[name], label)
        over_training(axes, family.name)
    figure.supylabel("return on held-out tasks, adapted (dotted: agents at their end)",
                     fontsize="medium")
    legend(figure, panels[:len(families)], ncols=6)
    save(figure, path)


def early(folder, path):
    """MACAW's lead after so many training steps, paired by seed (paper, Figure 3). metrics.csv has
    means over the tasks, so intervals are over seeds alone."""
    families = families_of(folder, "macaw")
    figure = Figure(figsize=(3.5 * len(families), 3.6), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False).ravel()
    shown = 100, 250, 500, 1000                     # steps of the table
    print("| family | MACAW's lead over | seeds |" + "".join(f" {k} steps |" for k in shown)
          + "\n|---|---|---|" + "---|" * len(shown))
    for axes, family in zip(panels, families):
        for name in ("meta_bc", "mt_awr", "pearl", "focal"):
            pair = shared([runs_of(family, "macaw"), runs_of(family, name)])
            if not pair[0]:
                continue
            folders = [family / f"{run['variant']}-s{run['seed']}" for runs in pair for run in runs]
            steps, after = while_training([read(f, "metrics.csv") for f in folders])
            mine, theirs = np.split(after, 2)                               # (seeds, steps)
            lead = {k: interval(x[:, None], tasks=False)
                    for k, x in zip(steps, (mine - theirs).T)}
            print(f"| {family.name} | {METHODS[name]} | {len(mine)} | " + " | ".join(
                as_text(*lead[k], sign="+") if k in lead else "" for k in shown) + " |")
            mean, low, high = np.array(list(lead.values())).T
            axes.plot(steps, mean, color=COLORS[name], lw=2, label=METHODS[name])
            axes.fill_between(steps, low, high, color=COLORS[name], alpha=0.2)
        axes.axhline(0, color=COLORS["macaw"], lw=1)
        over_training(axes, family.name)
    panels[0].set_ylabel("MACAW's lead in return")
    legend(figure, panels, ncols=4)
    save(figure, path)


# -------------------------------------------------------------------------------- families together
def returns_of(x):
    """Of each episode of a data file."""
    return np.add.reduceat(x["rewards"], np.cumsum(x["episode_length"]) - x["episode_length"])


def random_returns(env, tasks, episodes=10):
    """Mean return of uniform actions on each of these tasks (tasks,), played here: the ants' first
    stored episode is of a net already, which stands."""
    returns = np.zeros(len(tasks))
    with envs.environments_of(env, tasks) as environments:
        for k, world in enumerate(environments):
            world.action_space.seed(0)
            for episode in range(episodes):
                world.reset(seed=episode)
                over = False
                while not over:
                    _, reward, *ends, _ = world.step(world.action_space.sample())
                    returns[k] += reward / episodes
                    over = any(ends)
    return returns


def iqm(x):
    """Interquartile mean: of the middle half of all numbers."""
    x = np.sort(x, axis=None)
    return x[len(x) // 4:len(x) - len(x) // 4].mean()


def aggregate(parts, statistic):
    """A statistic of several families' x (seeds, tasks, ...), and its 95% bootstrap interval."""
    random = np.random.default_rng(0)

    def pooled(arrays):
        return statistic(np.concatenate([x.reshape(-1, *x.shape[2:]) for x in arrays]))
    means = [pooled([resampled(x, vary(env), random) for env, x in parts.items()])
             for _ in range(2000)]
    return pooled(parts.values()), *np.quantile(means, (0.025, 0.975))


def scores(folder, path):
    """Every family's returns on one scale, 0 uniform actions, 1 the agents' end, put together
    by the interquartile mean (Agarwal et al., 2021); each dot a task, its mean over seeds."""
    folder = pathlib.Path(folder)
    names = [name for name in NAMES if all(folders_of(folder / env, name) for env in FAMILIES)]
    if "macaw" not in names:
        raise BadInput(f"{folder} holds no runs of MACAW on {', '.join(FAMILIES)}")
    figure = Figure(figsize=(9, 1.4 + 0.7 * len(names)), layout="constrained")
    axes = figure.subplots()
    print("| method | seeds | interquartile mean | MACAW's lead | " + " | ".join(FAMILIES)
          + " |\n|---|---|---|---|" + "---|" * len(FAMILIES))
    rivals = {env: runs_of(folder / env, "macaw") for env in FAMILIES}
    zero = {env: random_returns(env, [task["id"] for task in runs[0]["tasks"]])
            for env, runs in rivals.items()}
    for y, name in enumerate(names):
        parts, both, lead = {}, {}, ""
        for env in FAMILIES:
            runs = runs_of(folder / env, name)
            end = numbers([*runs, *rivals[env]], "behavior_final")[0]     # one list of tasks
            parts[env] = (numbers(runs, "after") - zero[env]) / (end - zero[env])
            pair = shared([rivals[env], runs])
            if pair[0]:
                x = (paired(pair) - zero[env]) / (end - zero[env])
                both[env] = np.moveaxis(x, 0, -1)                       # (seeds, tasks, 2)
        if name != "macaw" and len(both) == len(FAMILIES):
            lead = as_text(*aggregate(both, lambda x: iqm(x[:, 0]) - iqm(x[:, 1])), sign="+",
                           digits=2)
        mean, low, high = aggregate(parts, iqm)
        seeds = sorted({len(x) for x in parts.values()})
        print(f"| {NAMES[name]} | {' to '.join(map(str, seeds))} | "
              f"{as_text(mean, low, high, digits=2)} | {lead} | "
              + " | ".join(f"{x.mean():.2f}" for x in parts.values()) + " |")
        for k, (env, x) in enumerate(parts.items()):
            axes.plot(x.mean(0), np.full(x.shape[1], y + 0.12 * (k - 1.5)), "o", color=f"C{k}",
                      alpha=0.6, label=None if y else env)
        axes.plot([low, high], [y] * 2, color="black", lw=2)
        axes.plot(mean, y, "|", color="black", ms=24, mew=3)
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="score: 0 uniform actions, 1 the agents at their end (bar: interquartile mean)")
    axes.grid(axis="x", alpha=0.4)
    figure.legend(loc="outside lower center", ncols=len(FAMILIES))
    save(figure, path)


# ---------------------------------------------------------------------------- other held-out tasks
def rotation(folder, path):
    """Returns on the test tasks and on the sets held out instead in runs NAME_setK; every task a
    dot, its mean over seeds. Prints means over all of them and leads, paired."""
    names = "macaw", "meta_bc", "mt_awr"
    families = families_of(folder, "macaw_set*")
    figure = Figure(figsize=(9, 2.6 * len(families) + 0.5), layout="constrained")
    panels = figure.subplots(len(families), 1, squeeze=False)[:, 0]
    print("| family | tasks | MACAW | after - before | "
          + " | ".join(f"{METHODS[n]} | lead" for n in names[1:])
          + " | agents at their end |\n|---|---|" + "---|" * 7)
    for axes, family in zip(panels, families):
        sets = ["", *sorted({f.name.split("-s")[0].removeprefix("macaw")
                             for f in folders_of(family, "macaw_set*")})]
        cells = shared_of(family, [name + suffix for suffix in sets for name in names])
        parts = [cells[k:k + len(names)] for k in range(0, len(cells), len(names))]    # a set each
        returns = dict(zip(names, np.concatenate([paired(part) for part in parts], -1)))
        before = np.concatenate([numbers(macaws, "before") for macaws, *_ in parts], -1)
        tasks = [task for macaws, *_ in parts for task in macaws[0]["tasks"]]
        ids, end = (np.array([task[key] for task in tasks]) for key in ("id", "behavior_final"))
        unchosen = ~np.isin(ids, CHOSEN_ON.get(family.name, ()))
        for words, kept in (("all", unchosen | True), ("without those chosen on", unchosen)):
            cells = [as_text(*interval(returns["macaw"][:, kept])),
                     signed((returns["macaw"] - before)[:, kept])]
            for name in names[1:]:
                x = returns[name][:, kept]
                cells += [as_text(*interval(x)), signed(returns["macaw"][:, kept] - x)]
            print(f"| {family.name} | {kept.sum()}, {words} | {' | '.join(cells)} | "
                  f"{end[kept].mean():.1f} |")
        order = np.argsort(ids)
        axes.plot(end[order], "_", color="black", ms=14, mew=2, label="agents at their end")
        for name in names:
            axes.plot(returns[name].mean(0)[order], "o", color=COLORS[name], label=METHODS[name])
        axes.set_xticks(range(len(ids)), ids[order])
        axes.set(title=family.name, ylabel="return")
        axes.grid(axis="y", alpha=0.4)
    panels[-1].set(xlabel="held-out task")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, path)


# ------------------------------------------------------------------------------- few training tasks
def few(folder, path):
    """Return over the number of training tasks, aligned agents; runs NAME_fewN and NAME_aligned."""
    folder = family_at(folder)
    sizes = sorted({int(size) for f in folders_of(folder, "macaw_few*")
                    for size in re.findall(r"_few(\d+)-", f.name)})
    if not sizes:
        raise BadInput(f"{folder} holds no macaw_fewN-sSEED; name a family's folder of results")
    everything = len(envs.FAMILIES[folder.name].tasks) - len(envs.FAMILIES[folder.name].test)
    columns = {**{size: f"_few{size}" for size in sizes}, everything: "_aligned"}
    returns = {name: paired(shared_of(folder, [name + suffix for suffix in columns.values()]))
               for name in ("macaw", "mt_awr", "focal", "pearl")}       # (sizes, seeds, tasks)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    print(f"| method | seeds | {' | '.join(f'{size} tasks' for size in columns)} |\n|---|---|"
          + "---|" * len(columns))
    for k, (name, x) in enumerate(returns.items()):
        print(f"| {METHODS[name]} | {x.shape[1]} | "
              f"{' | '.join(as_text(*interval(y, vary(folder.name))) for y in x)} |")
        place = np.array(list(columns)) * 1.03 ** (k - 1.5)
        axes.plot(place, x.mean((1, 2)), "o-", color=COLORS[name], lw=2, label=METHODS[name])
        axes.plot(place, x.mean(1), ".", color=COLORS[name], alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks(list(columns), list(columns))
    axes.minorticks_off()
    axes.set(xlabel="training tasks", ylabel="return on held-out tasks, adapted (dots: tasks)",
             title=folder.name)
    axes.grid(axis="y", alpha=0.4)
    axes.legend()
    save(figure, path)


# ---------------------------------------------------------------------------------- adapted to what
def whose(folder, path):
    judged(folder, path, GROUPS, "adapted to the transitions of")


def context(folder, path):
    judged(folder, path, {"batch8": "8", "batch16": "16", "batch64": "64", "": "256"},
           "adapted to so many transitions")


def judged(folder, path, groups, title):
    """Return after adaptation of a family's runs by what they adapted to: a run's own summary and
    those in its subfolders; every task a dot, its mean over seeds. Prints the table. A family may
    lack a column: there are no independent ants."""
    folder = family_at(folder)
    rows, everyone, tasks = {}, folders_of(folder, "*"), vary(folder.name)
    columns = {group: label for group, label in groups.items()
               if any((f / group / "summary.json").exists() for f in everyone)}
    for name, label in NAMES.items():
        runs = [f for f in folders_of(folder, name)
                if all((f / column / "summary.json").exists() for column in columns)]
        if runs:
            rows[label] = [[summary_of(f, column) for f in runs] for column in columns]
    if not rows or len(columns) < 2:
        raise BadInput(f"{folder} holds no run with summaries in {', '.join(filter(None, groups))}"
                       "; make them with --evaluate CHECKPOINT --out RUN/FOLDER")
    figure = Figure(figsize=(9, 1.2 + 0.9 * len(rows)), layout="constrained")
    axes = figure.subplots()
    first, *_, last = columns.values()
    print(f"| method | seeds | {' | '.join(columns.values())} | {last} - {first} |")
    print("|---|---|---|" + "---|" * len(columns))
    for y, (label, runs) in enumerate(rows.items()):
        x = paired(runs)                                                # (columns, seeds, tasks)
        cells = [interval(column, tasks) for column in x]
        print(f"| {label} | {len(x[0])} |", *(f"{as_text(*cell)} |" for cell in cells),
              f"{signed(x[-1] - x[0], tasks)} |")                 # paired
        for k, ((mean, low, high), column) in enumerate(zip(cells, columns.values())):
            color, height = f"C{k}", y + 0.18 * (k - (len(columns) - 1) / 2)
            axes.plot(x[k].mean(0), np.full(x.shape[2], height), ".", color=color, alpha=0.5)
            axes.plot([low, high], [height] * 2, color=color, lw=2)
            axes.plot(mean, height, "o", color=color, label=None if y else column)
    for setting in SETTINGS:                            # paired by seeds, in the same setting
        macaw = NAMES[f"macaw{setting}"]
        for method in METHODS:
            both = shared(rows.get(NAMES[method + setting], [[]]) + rows.get(macaw, [[]]))
            if both[0] and method != "macaw":
                lead = np.subtract(*np.split(paired(both), 2))          # (columns, seeds, tasks)
                print(f"| {METHODS[method]} - {macaw} | {len(lead[0])} |",
                      *(f"{signed(column, tasks)} |" for column in lead), "|")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set(xlabel="return after adaptation (small dots: tasks)", title=title)
    figure.legend(loc="outside lower center", ncols=len(columns))
    save(figure, path)


# ------------------------------------------------------------------------- how the agents move
def poses(folder, path):
    """The pitch of a family's agents, in each of its data files, at the end of their lives: nose
    down is positive, pi on the back (rad). Prints the test tasks', with what MACAW and FOCAL reach
    once they are adapted to that agent's transitions, over their seeds; draws all tasks', and the
    agents themselves in the two test tasks where they differ most."""
    folder = family_at(folder)
    family, robots = envs.FAMILIES[folder.name], {}
    try:
        robot = envs.make(folder.name, family.tasks[0]).unwrapped
        at = robot.model.joint("rooty").qposadr[0] - 1              # observations leave out x
    except (AttributeError, KeyError):
        raise BadInput(f"the robots of {folder.name} do not pitch; give the folder of a family of "
                       "cheetahs or walkers") from None
    for label, suffix in FILES.items():
        file = data.default_path(folder.name + suffix)
        if not suffix or file.exists():
            robots[label] = last_episodes(file, folder.name)
    pitch = {label: {i: np.concatenate(episodes)[:, at].mean() for i, episodes in tasks.items()}
             for label, tasks in robots.items()}
    print("| agents | task | pitch | MACAW | FOCAL |\n|---|---|---|---|---|")
    for group, label in GROUPS.items():
        if label in robots:
            after = [adapted_to(group, folders_of(folder, name)) for name in ("macaw", "focal")]
            for k, i in enumerate(family.test):
                if i in pitch[label]:
                    print(f"| {label} | {i} | {pitch[label][i]:.2f} |",
                          *("|" if x is None else f"{x[k]:.1f} |" for x in after))

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplot_mosaic([["all", "first"], ["all", "second"]], width_ratios=(1, 1.7))
    for label, leans in pitch.items():
        panels["all"].plot(*zip(*leans.items()), "o", alpha=0.7, label=label)
    panels["all"].set(xlabel="task", ylabel="pitch at the end of life (rad)")
    panels["all"].legend()
    apart = sorted(family.test, key=lambda i: np.ptp([x[i] for x in pitch.values() if i in x]))
    for place, i in zip(("first", "second"), sorted(apart[-2:])):
        draw_robots(panels[place], robot, robots, i)
        panels[place].set_title(f"task {i}")
    save(figure, path)
    robot.close()


def last_episodes(file, env):
    """States (T + 1, obs) of the last ten episodes of each task's agent, by task."""
    x, _ = data.read(file, env)
    states = np.split(x["observations"], np.cumsum(x["episode_length"] + 1)[:-1])
    return {i: [states[e].astype(float) for e in np.flatnonzero(x["episode_task"] == i)[-10:]]
            for i in np.unique(x["episode_task"]).tolist()}


def adapted_to(group, runs):
    """Return on each task after adaptation to a group's transitions, mean over the runs that were;
    None without any."""
    there = [summary_of(run, group) for run in runs if (run / group / "summary.json").exists()]
    return numbers(there, "after").mean(0) if there else None


def draw_robots(axes, robot, robots, task):
    """The agents of a task side by side, in their last episodes; `robots` has of each data file's
    label what `last_episodes` gives."""
    for k, (label, tasks) in enumerate(robots.items()):
        if task in tasks:
            draw_robot(axes, robot, tasks[task][-1], 2.2 * k, f"C{k}")
            axes.text(2.2 * k, -0.15, label, ha="center", va="top")
    axes.plot([-0.8, 2.2 * len(robots) - 1.2], [0, 0], color="gray", lw=1)
    axes.set(aspect="equal")
    axes.set_ylim(bottom=-0.5)
    axes.axis("off")


def draw_robot(axes, robot, states, x, color):
    """A planar robot in the middle of an episode, at x (m): a thick line for each capsule."""
    model, data, state = robot.model, robot.data, states[len(states) // 2]
    robot.set_state(np.r_[0.0, state[:model.nq - 1]], state[model.nq - 1:])
    for shape in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE):
        along = model.geom_size[shape, 1] * data.geom_xmat[shape].reshape(3, 3)[:, 2]
        ends = data.geom_xpos[shape] + np.outer([-1, 1], along)                 # (2, xyz)
        axes.plot(x + ends[:, 0], ends[:, 2], color=color, lw=6, solid_capstyle="round")


# -------------------------------------------------------------------- their own exploration, online
def own(folder, path):
    """SMAC and its controls, adapted to two exploration episodes of their own, before and after
    the online phase; a dot a run. Prints means and intervals over seeds."""
    variants = "smac", "frozen", "no_data"
    families = families_of(folder, "smac")
    figure = Figure(figsize=(4.5 * len(families), 3.5), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    print("| family | variant | seeds | buffer's context | own, before | own, after | change |\n"
          "|---|---|---|---|---|---|---|")
    for axes, family in zip(panels, families):
        for k, name in enumerate(variants):
            runs = runs_of(family, name, ("tasks", "own_before", "own_after"))
            if not runs:
                continue
            x = np.array([[run["own_before"], run["own_after"]] for run in runs])   # (seeds, 2)
            buffer, before, after = (as_text(*interval(column[:, None], tasks=False)) for column in
                                     (numbers(runs, "after").mean(1), x[:, 0], x[:, 1]))
            change = signed(x[:, 1:] - x[:, :1], tasks=False)
            print(f"| {family.name} | {METHODS[name]} | {len(runs)} | {buffer} | {before} | "
                  f"{after} | {change} |")
            place = k + np.array([-0.15, 0.15])
            axes.plot(place, x.T, "-o", color=f"C{k}", alpha=0.5)
            axes.plot(place, x.mean(0), "_", color="black", ms=22, mew=3)
        axes.set_xticks(range(len(variants)), [METHODS[name].replace(", ", ",\n")
                                               for name in variants])
        axes.set(title=family.name, xlim=(-0.5, len(variants) - 0.5))
        axes.grid(axis="y", alpha=0.4)
    panels[0].set(ylabel="return on held-out tasks\n(left before, right after the phase)")
    save(figure, path)


# Of each curve: the runs' name, and the returns (tasks, marks) in their summaries
CURVES = {"adapted (MACAW)": ("online", "adapted_tasks"),
          "not adapted": ("online", "unadapted_tasks"),
          "random weights": ("online", "random_tasks"),
          "adapted, authors' recipe": ("online", "authors_tasks"),
          "Offline PEARL": ("online_pearl", "adapted_tasks")}
TUNED = dict(online=("macaw", "no_advantage", "no_wt", "no_wt_wide", "maml_awr", "meta_bc"),
             online_pearl=("focal", "pearl", "pearl_regularised"))      # what such a run may be of


def online_runs(family):
    """Summaries of a family's runs of fine-tuning by their name; raises BadInput where one is not
    finished, of another method than its name tells, or of another length than the others."""
    curves = {name: [returns for other, returns in CURVES.values() if other == name]
              for name in TUNED}
    found = {name: runs_of(family, name, ("of", "online_steps", *curves[name])) for name in TUNED}
    first = found["online"][0]
    for name, runs in found.items():
        for run in runs:
            where = f"{family}/{name}-s{run['seed']}"
            if run["of"] not in TUNED[name] or run["of"] != runs[0]["of"]:
                raise BadInput(f"{where} fine-tunes {run['of']!r}, unlike what its name or its "
                               "neighbours tell; move it elsewhere")
            if run["online_steps"] != first["online_steps"] or any(
                    len(run[returns]) != len(first["adapted_tasks"]) for returns in curves[name]):
                raise BadInput(f"{where} was judged at other steps or on other tasks than its "
                               "neighbours; make it anew as these were, or move it elsewhere")
    return found


def online(folder, path):
    """Return over environment steps of fine-tuning, a panel a family, from each start, beside the
    agents that made the data. Prints the table, with each point's change since step 0, paired."""
    families = {family: online_runs(family) for family in families_of(folder, "online")}
    figure = Figure(figsize=(4.2 * len(families), 4), layout="constrained")
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for axes, (family, found) in zip(panels, families.items()):
        steps, tasks = found["online"][0]["online_steps"], vary(family.name)
        print(f"| {family.name} | seeds | {' | '.join(map(str, steps))} | "
              f"{steps[-1]} - 0 |\n|{'---|' * (len(steps) + 3)}")
        for k, (label, (name, returns)) in enumerate(CURVES.items()):
            runs = found[name]
            if not runs:
                continue
            x = np.array([run[returns] for run in runs])                # (seeds, tasks, marks)
            cells = [interval(x[..., m], tasks) for m in range(len(steps))]
            print(f"| {label} | {len(runs)} | {' | '.join(as_text(*cell) for cell in cells)} | "
                  f"{signed(x[..., -1] - x[..., 0], tasks)} |")
            axes.plot(steps, x.mean((0, 1)), "o-", color=f"C{k}", label=label)
            seeds = x.mean(1)                                           # (seeds, marks)
            axes.fill_between(steps, seeds.min(0), seeds.max(0), color=f"C{k}", alpha=0.2)
        axes.plot(*life(family.name), ":", color="black", label="the data's agents, from birth")
        axes.set(title=family.name, xlabel="environment steps of a task")
    panels[0].set(ylabel="return on held-out tasks")
    legend(figure, panels, ncols=3)
    save(figure, path)


def life(env, pieces=20):
    """Environment steps and mean return of the test tasks' agents over their lives, which the data
    file holds an evenly spaced part of."""
    x, meta = data.read(data.default_path(env), env)
    family, returns, curves = envs.FAMILIES[env], returns_of(x), []
    for i in family.test:
        mine = x["episode_task"] == i
        lived = np.cumsum(x["episode_length"][mine])
        piece = np.ceil(pieces * lived / lived[-1]).astype(int) - 1
        curves.append([returns[mine][piece == k].mean() for k in range(pieces)])
        steps = meta["collector"][str(i)]["steps"]
    return (np.arange(pieces) + 0.5) / pieces * steps, np.mean(curves, 0)


def legend(figure, panels, ncols):
    """Below the panels, with each label of any of them once."""
    named = {label: line for axes in panels
             for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(named.values(), named, loc="outside lower center", ncols=ncols)


def over_training(axes, title):
    """An axis of training steps, on which the first ten show as well as the last thousand."""
    axes.set(title=title, xlabel="training steps")
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()


def while_training(tables):
    """The steps at which all of these runs were evaluated, and `after` at them (runs, steps)."""
    steps = sorted(set.intersection(*(set(table["step"]) for table in tables)))
    return steps, np.array([table["after"][np.isin(table["step"], steps)] for table in tables])


def band(axes, tables, color, label):
    """Mean and range of `after` over runs."""
    x, y = while_training(tables)
    axes.plot(x, y.mean(0), color=color, lw=2, label=label)
    axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.2)


# ------------------------------------------------------------------------------------- command line
KINDS = {f.__name__: f
         for f in (results, early, scores, rotation, few, whose, context, poses, own, online)}


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        check_picture(arguments.out)
        KINDS[arguments.kind](arguments.folder, arguments.out)


if __name__ == "__main__":
    main()
