"""The agents of each data file, drawn side by side: some slide on their nose (lesson 4)."""
import mujoco
import numpy as np

from helpers import data

GROUPS = dict(aligned="aligned agents", others="independent agents", strangers="unseen agents")
FILES = {GROUPS["aligned"]: "", GROUPS["others"]: "_others", "agents that begin alike": "_others2",
         GROUPS["strangers"]: "_strangers"}                                     # of behaviour data


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
