"""What the docs quote: tables and figures over many runs.

    python -m experiments.tables                # all of them: results/NAME.md and results/NAME.png
    python -m experiments.tables leads runs/class --out x.png           # one, of other runs

A difference is paired: the same tasks and seeds. It is called significant if its 95% t-interval
over tasks, each with its mean over seeds, leaves out zero, and so does that over the means of the
sets of five tasks, for these share their runs. On cheetah_dir, which has no task to hold out, the
interval is over seeds. Where but five tasks were tested there are means alone.
"""
import contextlib
import io
import os
import pathlib
import re

import numpy as np

import envs
from experiments.poses import GROUPS
from experiments.runs import MAIN, SUFFIXES
from helpers import data, evidence
from helpers.command import BadInput, Parser, one_sentence
from helpers.evidence import as_text, folders_of, interval, numbers, paired, runs_of, units_of
from helpers.plot import COLORS, LABELS, band, check_picture, finish, panels, save

NAMES = {name + suffix: label + words for suffix, words in SUFFIXES.items()
         for name, label in LABELS.items()}     # of run folders
FINAL = "agents' final return"
RIVALS = [name for name in MAIN.split() if name != "macaw"]


# ------------------------------------------------------------------------------ tables and pictures
def families(folder, name="macaw"):
    """A folder's families that have runs of this name, a pattern; raises BadInput without any."""
    found = [folder / env for env in sorted(envs.FAMILIES) if folders_of(folder / env, name)]
    if not found:
        raise BadInput(f"{folder} holds no FAMILY/{name}-sSEED/summary.json; give one that does")
    return found


def by_family(folder, name, width, height, columns=9):
    """A figure, and a panel and a folder for each family that has runs of this name."""
    found = families(folder, name)
    columns = min(columns, len(found))
    figure, every = panels(width, height, -(-len(found) // columns), columns)
    for axes, family in zip(every, found):
        axes.set_title(family.name)
    for axes in every[len(found):]:
        axes.set_axis_off()
    return figure, list(zip(every, found))


def dots(axes, rows, columns=("",)):
    """A row for each label, a color for each column: small dots are tasks, rows[label] has their
    numbers for each column; the tick is their mean."""
    for y, parts in enumerate(rows.values()):
        for k, (x, column) in enumerate(zip(parts, columns)):
            height = y + 0.18 * (k - (len(columns) - 1) / 2)
            axes.plot(x, [height] * len(x), "o", ms=6, mew=0, color=f"C{k}", alpha=0.5,
                      label=column)
            axes.plot(np.mean(x), height, "|", color=f"C{k}", ms=14, mew=3)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)


# --------------------------------------------------------------------------------- of many families
def beside(family):
    """What each tested task has beside learned policies, by name (units,); what stands still and
    what the nearest agent earns only where results/trivial.json tells it."""
    trivial = evidence.trivial(family.parent, family.name)
    ids = [str(int(i)) for i in units_of(family, ["macaw"], "id")[0]]
    found = {label: np.array([trivial[i][key] for i in ids]) for label, key in (
        ("standing still", "standing"), ("nearest agent", "nearest")) if set(ids) <= set(trivial)}
    return found | {label: units_of(family, ["macaw"], key)[0] for label, key in (
        ("data's mean", "behavior_mean"), ("not adapted", "before"),
        (FINAL, "behavior_final"))}


def overview(folder, path):
    """Mean returns of the main methods, as in the README; no figure."""
    rows, columns = [], ("standing still", "data's mean", "nearest agent", "not adapted")
    for family in families(folder):
        names = [name for name in MAIN.split() if runs_of(family, name)]
        units = [*zip(names, units_of(family, names)), *beside(family).items()]
        mean = {name: f"{x.mean():.0f}" for name, x in units}
        kind = "tasks" if evidence.vary(family.name) else "seeds"
        rows.append([f"`{family.name}`", f"{len(units[0][1])} {kind}", *(
            mean.get(name, "") for name in (*columns, *RIVALS)), mean["macaw"],
            mean[FINAL]])
    evidence.table(["family", "", *columns, *(LABELS[name] for name in RIVALS), "MACAW",
                    FINAL], rows)


def leads(folder, path):
    """MACAW's lead on each unit of evidence: a dot; the mean and its 95% interval in black."""
    figure, every = by_family(folder, "macaw", 6, 4, columns=2)
    rows = []
    for axes, family in every:
        mine, leads = units_of(family, ["macaw"])[0], {}
        for name in RIVALS:
            pair = units_of(family, ["macaw", name])
            if pair.size:
                leads[LABELS[name]] = pair[0] - pair[1]
        leads |= {label: mine - x for label, x in beside(family).items()}
        drawn = {label: [x] for label, x in leads.items() if label not in
                 ("standing still", "data's mean")}
        dots(axes, drawn)
        for label, x in leads.items():
            mean, low, high = interval(x)
            sets = evidence.by_set(x, family.name)
            rows.append([family.name, label, len(x), as_text(mean, low, high, sign="+"),
                         "[{:.1f}, {:.1f}]".format(*interval(sets)[1:])
                         if 1 < len(sets) < len(x) else "", evidence.verdict(x, family.name),
                         f"{(x > 0).mean():.0%}"])
            if label in drawn:
                axes.plot([low, high], [list(drawn).index(label)] * 2, color="black", lw=2)
        axes.axvline(0, color="black", lw=1)
        axes.set(xlabel="MACAW's lead (dots: tasks; cheetah_dir: seeds)")
    evidence.table(["family", "MACAW's lead over", "n", "mean", "over sets", "verdict",
                    "ahead on"], rows)
    save(figure, path)


def coverage(folder, path):
    """How often our t-interval over tasks holds the truth, by simulation with the variances of our
    own leads: between tasks, between runs (a run is tested on five of the tasks), and the rest. No
    figure."""
    rows, random = [], np.random.default_rng(0)
    for family in families(folder):
        for name in RIVALS:
            pairs = evidence.of_sets(family, ["macaw", name])
            leads = [mine - theirs for mine, theirs in pairs]           # of each set (seeds, tasks)
            if len(leads) < 2:
                continue
            many = [x for x in leads if len(x) > 1]
            runs = np.mean([x.mean(1).var(ddof=1) for x in many])
            rest = [(x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()) for x in many]
            rest = sum((x ** 2).sum() for x in rest) / sum(
                (len(x) - 1) * (x.shape[1] - 1) for x in rest)
            runs = max(0.0, runs - rest / leads[0].shape[1])
            noise = np.mean([(runs + rest) / len(x) for x in leads])
            tasks = max(0.0, np.concatenate([x.mean(0) for x in leads]).var(ddof=1) - noise)
            drawn = np.concatenate([sum(
                random.normal(0, variance ** 0.5, (4000, *shape)) for variance, shape in (
                    (tasks, (1, x.shape[1])), (runs, (len(x), 1)), (rest, x.shape))).mean(1)
                for x in leads], 1)                                     # (4000, tasks)
            low, high = np.transpose([interval(y)[1:] for y in drawn])
            rows.append([family.name, LABELS[name], drawn.shape[1], *(
                f"{variance ** 0.5:.1f}" for variance in (tasks, runs, rest)),
                f"{((low <= 0) & (high >= 0)).mean():.1%}"])
    evidence.table(["family", "MACAW's lead over", "tasks", "deviation between tasks",
                    "between runs", "the rest", "coverage"], rows)


def rival(name, variant):
    """The runs of MACAW in the same setting as a variant's runs."""
    return "robust" if name.endswith("_robust") else name.replace(variant, "macaw", 1)


def results(folder, path):
    """Means of every method and setting on the test tasks; no figure."""
    rows = []
    for family in families(folder, "*"):
        for name, label in NAMES.items():
            runs = runs_of(family, name, ("tasks", "behavior_mean", "behavior_final"))
            if not runs:
                continue
            before, after = numbers(runs, "before"), numbers(runs, "after")
            pair = paired([runs_of(family, rival(name, runs[0]["variant"])), runs])
            lead = pair[0] - pair[1] if pair.size else np.zeros(1)
            rows.append([family.name, label, len(runs), f"{before.mean():.1f}",
                         f"{after.mean():.1f}", " ".join(f"{x:.0f}" for x in after.mean(0)),
                         f"{lead.mean():+.1f}" if lead.any() else ""])
    evidence.table(["family", "method", "seeds", "before", "after", "on each task",
                    "MACAW's lead"], rows)


def early(folder, path):
    """Return while training, the mean over seeds and their range, and MACAW's mean lead after so
    many steps, at the same seeds (paper, Figure 3)."""
    figure, every = by_family(folder, "macaw", 4.5, 3.4, columns=2)
    rows, shown = [], (100, 250, 500, 1000)
    for axes, family in every:
        for name in COLORS:
            folders = folders_of(family, name)
            if not folders:
                continue
            steps, y = evidence.while_training(folders)
            band(axes, steps, y.mean(0), y.min(0), y.max(0), COLORS[name], LABELS[name])
            pair = evidence.shared([runs_of(family, "macaw"), runs_of(family, name)])
            if name in ("meta_bc", "mt_awr", "pearl", "focal") and pair[0]:
                steps, after = evidence.while_training([
                    family / f"{run['variant']}-s{run['seed']}" for runs in pair for run in runs])
                mine, theirs = np.split(after, 2)                           # (seeds, steps)
                lead = dict(zip(steps, (mine - theirs).mean(0)))
                rows.append([family.name, LABELS[name], len(mine), *(
                    f"{lead[k]:+.1f}" if k in lead else "" for k in shown)])
        axes.axhline(runs_of(family, "macaw", ["behavior_final"])[0]["behavior_final"],
                     color="black", ls=":", lw=1)
        axes.set_xscale("symlog", linthresh=10)
        axes.set(xlabel="training steps", xlim=(0, None))
    evidence.table(["family", "MACAW's lead over", "seeds", *(f"{k} steps" for k in shown)], rows)
    figure.supylabel("return on held-out tasks, adapted (dotted: agents at their end)",
                     fontsize="medium")
    finish(figure, path, ncols=6)


def own(folder, path):
    """SMAC and its controls, adapted to two exploration episodes of their own, before and after
    the online phase; no figure."""
    rows = []
    for family in families(folder, "smac"):
        suffix = "_robust" if folders_of(family, "frozen_robust") else ""
        for name in ("smac", "frozen", "no_data"):
            runs = runs_of(family, name + suffix, ("tasks", "own_before", "own_after"))
            if runs:
                x = np.array([numbers(runs, "after").mean(1), *(
                    [run[key] for run in runs] for key in ("own_before", "own_after"))]).mean(1)
                rows.append([family.name, LABELS[name], len(runs), *(f"{mean:.1f}" for mean in x),
                             f"{x[2] - x[1]:+.1f}"])
    evidence.table(["family", "variant", "seeds", "buffer's context", "own, before", "own, after",
                    "change"], rows)


# Of each curve: the runs' name, and the returns (tasks, marks) in their summaries
CURVES = {"adapted (MACAW)": ("online", "adapted_tasks"),
          "not adapted": ("online", "unadapted_tasks"),
          "random weights": ("online", "random_tasks"),
          "adapted, authors' recipe": ("online", "authors_tasks"),
          "Offline PEARL": ("online_pearl", "adapted_tasks")}


def online_runs(family):
    """Summaries of a family's runs of fine-tuning by their name; raises BadInput where one is not
    finished, of another method than its name says, or of another length than the others."""
    found = {}
    for name, methods in (("online", ("macaw", "robust")), ("online_pearl", ("pearl",))):
        needed = [returns for other, returns in CURVES.values() if other == name]
        found[name] = runs_of(family, name, ("of", "online_steps", *needed))
        for run in found[name]:
            if run["of"] not in methods:
                raise BadInput(f"{family}/{name}-s{run['seed']} fine-tunes {run['of']}, not "
                               f"{methods[0]}; move it elsewhere")
    evidence.check_alike(sum(found.values(), []), lambda run: (
        run["online_steps"], len(run["adapted_tasks"])))
    return found


def online(folder, path):
    """Return over environment steps of fine-tuning from each start, beside the agents that made the
    data."""
    figure, every = by_family(folder, "online", 4.2, 4)
    for axes, family in every:
        found, rows = online_runs(family), []
        steps = found["online"][0]["online_steps"]
        for k, (label, (name, returns)) in enumerate(CURVES.items()):
            if found[name]:
                y = np.mean([run[returns] for run in found[name]], 1)       # (seeds, marks)
                rows.append([label, len(y), *(f"{mean:.1f}" for mean in y.mean(0)),
                             f"{(y[:, -1] - y[:, 0]).mean():+.1f}"])
                band(axes, steps, y.mean(0), y.min(0), y.max(0), f"C{k}", label)
        axes.plot(*life(family.name), ":", color="black", label="the data's agents, from birth")
        axes.set(xlabel="environment steps of a task")
        evidence.table([family.name, "seeds", *map(str, steps), f"{steps[-1]} - 0"], rows)
    every[0][0].set_ylabel("return on held-out tasks")
    finish(figure, path, ncols=3)


def life(env, pieces=20):
    """Environment steps and mean return of the test tasks' agents from birth to end, of which the
    data file holds an evenly spaced part."""
    x, meta = data.read(data.default_path(env), env)
    length, curves = x["episode_length"], []
    returns = np.add.reduceat(x["rewards"], np.cumsum(length) - length)         # of each episode
    for i in envs.FAMILIES[env].test:
        mine = x["episode_task"] == i
        age = np.cumsum(length[mine])
        piece = np.ceil(pieces * age / age[-1]).astype(int) - 1
        curves.append([returns[mine][piece == k].mean() for k in range(pieces)])
        steps = meta["collector"][str(i)]["steps"]
    return (np.arange(pieces) + 0.5) / pieces * steps, np.mean(curves, 0)


# ------------------------------------------------------------------------------------ of one family
def few(folder, path):
    """Return over the number of training tasks, runs NAME_fewN and, of all tasks, NAME_aligned
    where a method has that, else NAME; no figure."""
    found = {f.name.split("-s")[0] for f in folders_of(folder, "macaw_few*")}
    columns = {int(name.removeprefix("macaw_few")): name.removeprefix("macaw") for name in found}
    if not columns:
        raise BadInput(f"{folder} holds no macaw_fewN-sSEED; give a family's folder of results")
    family = envs.FAMILIES[folder.name]
    every = len(family.tasks) - len(family.test)
    sizes, rows = sorted([*columns, every]), []
    for name in ("macaw", "mt_awr", "focal", "pearl"):
        whole = name + "_aligned" * bool(folders_of(folder, f"{name}_aligned"))     # its settings
        x = paired(evidence.shared_of(folder, [
            whole if size == every else name + columns[size] for size in sizes]))
        rows.append([LABELS[name], x.shape[1], *(f"{mean:.1f}" for mean in x.mean((1, 2)))])
    evidence.table(["method", "seeds", *(f"{size} tasks" for size in sizes)], rows)


def whose(folder, path):
    adapted(folder, path, GROUPS, "adapted to the transitions of")


def context(folder, path):
    adapted(folder, path, {"batch8": "8", "batch16": "16", "batch64": "64", "": "256"},
            "adapted to so many transitions")


def adapted(folder, path, groups, title):
    """Return after adaptation of a family's runs by what they adapted to: a run's own summary and
    those in its subfolders. A family may lack a column: there are no independent ants."""
    columns = {group: label for group, label in groups.items() if any(
        (f / group / "summary.json").exists() for f in folders_of(folder, "*"))}
    rows, drawn = [], {}
    for name, label in NAMES.items():
        x = paired(evidence.evaluations(folder, name, columns))         # (columns, seeds, tasks)
        if len(columns) > 1 and x.size:
            rows.append([label, x.shape[1], *(f"{mean:.1f}" for mean in x.mean((1, 2))),
                         f"{(x[-1] - x[0]).mean():+.1f}"])
            drawn[label] = x.mean(1)
    if not rows:
        raise BadInput(f"{folder} holds no run with summaries in {', '.join(filter(None, groups))}"
                       "; make them with --evaluate CHECKPOINT --out RUN/FOLDER")
    first, *_, last = columns.values()
    evidence.table(["method", "seeds", *columns.values(), f"{last} - {first}"], rows)
    figure, (axes,) = panels(9, 1.3 + 0.85 * len(rows))
    dots(axes, drawn, columns.values())
    axes.set(title=title, xlabel="return after adaptation (small dots: tasks)")
    finish(figure, path)


# ----------------------------------------------------------------------------------- command line
ROOT = pathlib.Path(__file__).parent.parent
KINDS = {f.__name__: f for f in (overview, leads, coverage, results, early, few, whose, context,
                                 own, online)}
FOLDERS = {             # what the docs quote, under results/
    "": ("overview", "leads", "coverage", "results", "early", "own", "online"),
    "cheetah_vel": ("whose", "few", "context"), "ant_dir": ("whose",),
    "walker_params": ("whose",)}


def filled(text):
    """A page's text with each table between <!-- results/NAME.md --> and <!-- end --> made new."""
    return re.sub(r"<!-- (results/\S+) -->\n.*?<!-- end -->", lambda block: (
        f"<!-- {block[1]} -->\n{(ROOT / block[1]).read_text()}<!-- end -->"), text, flags=re.DOTALL)


def write_all():
    """Each table as results/NAME.md, each figure as results/NAME.png; then the pages' tables."""
    root = ROOT / "results"
    for folder, kinds in FOLDERS.items():
        for kind in kinds:
            name = kind if folder in ("", "cheetah_vel") else f"{kind}_{folder}"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                KINDS[kind](root / folder, root / f"{name}.png")
            (root / f"{name}.md").write_text(printed.getvalue())
            print(f"results/{name}.md", flush=True)
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        page.write_text(filled(page.read_text()))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("kind", choices=KINDS, nargs="?")
    parser.add_argument("folder", nargs="?", default="results")
    parser.add_argument("--out", default="x.png", help="the figure's file")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        if not arguments.kind:
            return write_all()
        check_picture(arguments.out)
        KINDS[arguments.kind](pathlib.Path(os.path.abspath(arguments.folder)), arguments.out)


if __name__ == "__main__":
    main()
