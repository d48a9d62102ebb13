"""How the agents of each data file move: `python -m experiments.tables poses FAMILY'S FOLDER`."""
import mujoco
import numpy as np
from matplotlib.figure import Figure

import envs
from helpers import data, evidence
from helpers.command import BadInput
from helpers.plot import finish

GROUPS = dict(aligned="aligned agents", others="independent agents", strangers="strangers")
FILES = {GROUPS["aligned"]: "", GROUPS["others"]: "_others", "agents that begin alike": "_others2",
         GROUPS["strangers"]: "_strangers"}                                     # of behaviour data


def poses(folder, path):
    """The pitch of a family's agents, in each of its data files, at their end: nose down is
    positive, pi on the back (rad). Prints the test tasks', with what MACAW and FOCAL reach once
    adapted to that agent's transitions, over their seeds; draws all tasks', and the agents
    themselves in the two test tasks where they differ most."""
    evidence.folders_of(folder, "*")                    # raises BadInput if it is not a family's
    family, robots, rows = envs.FAMILIES[folder.name], {}, []
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
    for group, label in GROUPS.items():
        reached = [runs and evidence.numbers(runs, "after").mean(0) for name in ("macaw", "focal")
                   for runs in evidence.evaluations(folder, name, [group])]
        rows += [[label, i, f"{pitch[label][i]:.2f}",
                  *(f"{x[k]:.1f}" if len(x) else "" for x in reached)]
                 for k, i in enumerate(family.test) if i in pitch.get(label, ())]
    evidence.table(["agents", "task", "pitch", "MACAW", "FOCAL"], rows)

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplot_mosaic([["all", "first"], ["all", "second"]], width_ratios=(1, 1.7))
    for label, leans in pitch.items():
        panels["all"].plot(*zip(*leans.items()), "o", alpha=0.7, label=label)
    panels["all"].set(xlabel="task", ylabel="pitch at their end (rad)")
    apart = sorted(family.test, key=lambda i: np.ptp([x[i] for x in pitch.values() if i in x]))
    for place, i in zip(("first", "second"), sorted(apart[-2:])):
        draw_robots(panels[place], robot, robots, i)
        panels[place].set_title(f"task {i}")
    finish(figure, path)
    robot.close()


def last_episodes(file, env):
    """States (T + 1, obs) of the last ten episodes of each task's agent, by task."""
    x, _ = data.read(file, env)
    states = np.split(x["observations"], np.cumsum(x["episode_length"] + 1)[:-1])
    return {i: [states[e].astype(float) for e in np.flatnonzero(x["episode_task"] == i)[-10:]]
            for i in np.unique(x["episode_task"]).tolist()}


def draw_robots(axes, robot, robots, task):
    """The agents of a task side by side, in their last episodes; `robots` has of each data file's
    label what `last_episodes` gives."""
    for k, (label, tasks) in enumerate(robots.items()):
        if task in tasks:
            draw_robot(axes, robot, tasks[task][-1], 2.2 * k, f"C{k}")
            axes.text(2.2 * k, -0.15, label, ha="center", va="top")
    axes.axhline(0, color="gray", lw=1)
    axes.set(aspect="equal", ylim=(-0.5, None))
    axes.axis("off")


def draw_robot(axes, robot, states, x, color):
    """A planar robot in the middle of an episode, at x (m): a thick line for each capsule."""
    model, data, state = robot.model, robot.data, states[len(states) // 2]
    robot.set_state(np.r_[0.0, state[:model.nq - 1]], state[model.nq - 1:])
    for shape in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE):
        along = model.geom_size[shape, 1] * data.geom_xmat[shape].reshape(3, 3)[:, 2]
        ends = data.geom_xpos[shape] + np.outer([-1, 1], along)                 # (2, xyz)
        axes.plot(x + ends[:, 0], ends[:, 2], color=color, lw=6, solid_capstyle="round")
