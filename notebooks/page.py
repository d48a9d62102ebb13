"""docs/adapt.html: how each method adapts to each of the 40 goal speeds of cheetah_vel.

    python macaw.py --env cheetah_vel --out runs/one            # trained on one group of agents
    python notebooks/page.py notebooks/checkpoints/*.pt runs/one/checkpoint.pt --out docs/adapt.html

It is page.html with one JSON object put in. Before adaptation a method runs one episode, the same
for every goal; then one for each goal, adapted to 256 transitions of agents like those of the
training data, and one for each test goal, adapted to those of unseen agents ("strangers"). Films
and transitions are 16-bit thousandths (of m, rad, m/s or reward) in base64.
"""
import base64
import json
import pathlib
import sys

import mujoco
import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import envs
import macaw
from baselines import focal, smac
from helpers import command, data, plot
from helpers.command import BadInput
from helpers.run import load

HERE = pathlib.Path(__file__).resolve().parent
ENV, PLACE = "cheetah_vel", "/*DATA*/"          # the family, and the data's place in the template
WHOSE = {"aligned": ENV, "strangers": f"{ENV}_strangers"}
FILM = slice(99, 140)                           # steps of an episode that the page plays
SPEED = 8                                       # place of the torso's speed in an observation


def open_run(path, **given):
    """The run of a checkpoint, whichever program made it."""
    state = command.load_tensors(path)
    config = state.get("config", {}) if isinstance(state, dict) else {}
    for method in macaw.MACAW, focal.FOCAL, smac.SMAC:
        if config.get("variant") in method.variants and config["env"] == ENV:
            return load(method, path, **given)
    raise BadInput(f"{path} is no checkpoint of a method on {ENV}; name one")


def packed(x):
    """An array as base64 of little-endian 16-bit thousandths, each below 32.768 in size."""
    return base64.b64encode(np.round(1000 * np.asarray(x)).astype("<i2").tobytes()).decode()


def episodes(run, D, tasks, adapted):
    """Returns, speeds in the second half (N,) and films (N, frames, 9) of an episode of each task;
    a frame is MuJoCo's qpos: x since the film's begin, height, pitch and six joints' angles."""
    poses = [[] for _ in tasks]
    with envs.environments_of(ENV, tasks) as environments:
        worlds, dt = [env.unwrapped.data for env in environments], environments[0].unwrapped.dt
        total = envs.rollout(run.policies(D, adapted), environments, [0] * len(tasks),
                             run.buffers.observe,
                             record=lambda k, *_: poses[k].append(worlds[k].qpos.copy()))
    poses = np.array(poses)                                             # (N, steps, 9)
    half = poses.shape[1] // 2
    speed = (poses[:, -1, 0] - poses[:, -half - 1, 0]) / (half * dt)
    film = poses[:, FILM].copy()
    film[..., 0] -= film[:, :1, 0]
    film[..., 2] -= 2 * np.pi * np.round(film[:, :1, 2] / (2 * np.pi))
    return dict(returns=np.round(total, 1).tolist(), speed=np.round(speed, 3).tolist(), film=film)


def transitions(run, D):
    """Speed and reward (N, B, 2) of a batch. The speed is the mean of that before a step and after
    it, for the reward pays for the way made in between."""
    stats = run.buffers.stats
    speed = (D.obs[..., SPEED] + D.next_obs[..., SPEED]) / 2
    speed = speed * stats["obs_std"][SPEED] + stats["obs_mean"][SPEED]
    reward = D.reward_seen * stats["reward_std"] + stats["reward_mean"]
    return torch.stack([speed, reward], -1).numpy()


def skeleton(model):
    """The robot's bodies, torso first: parent, place in it (x, z), and the axes of its capsules as
    x, z, x, z of their ends. Body k turns by qpos[2 + k] about y."""
    bodies = []
    for body in range(1, model.nbody):
        bones = []
        for geom in np.flatnonzero(model.geom_bodyid == body):
            turn = np.zeros(9)
            mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
            half = turn.reshape(3, 3)[:, 2] * model.geom_size[geom, 1]
            ends = model.geom_pos[geom] - half, model.geom_pos[geom] + half
            bones.append(np.round([ends[0][[0, 2]], ends[1][[0, 2]]], 4).ravel().tolist())
        bodies.append(dict(parent=int(model.body_parentid[body]) - 1,
                           at=model.body_pos[body][[0, 2]].tolist(), bones=bones))
    return bodies


def content(paths, tasks):
    """All that the page shows."""
    family = envs.FAMILIES[ENV]
    whose = dict(aligned=tasks, strangers=[i for i in tasks if i in family.test])
    whose = {group: ids for group, ids in whose.items() if ids}
    methods, agents, recorded = {}, {}, None
    for path in paths:
        for group, ids in whose.items():
            run = open_run(path, data=WHOSE[group])
            name = run.config.variant
            D, = run.buffers.sample(ids, [256], torch.Generator().manual_seed(0))
            if group == "aligned":
                if name in methods:
                    raise BadInput(f"{path} is a second checkpoint of {name}; give one of each")
                recorded = packed(transitions(run, D))          # every method has the same
                same = type(D)(*(x[:1].expand_as(x) for x in D))    # it reads no batch
                before = episodes(run, same, ids, adapted=False)
                before |= dict(speed=before["speed"][:1], film=packed(before["film"][:1]))
                methods[name] = dict(label=plot.LABELS[name], before=before,
                                     color=plot.COLORS.get(name, "gray"))
            after = episodes(run, D, ids, adapted=True)
            methods[name][group] = after | dict(film=packed(after["film"]))
            agents[group] = [round(run.buffers.behavior_final[i], 1) for i in ids]
            print(f"{name} adapted to {group}: mean return "
                  f"{np.mean(methods[name][group]['returns']):.1f}", flush=True)
    with envs.environments_of(ENV, [0]) as (env,):
        world, dt = env.unwrapped.model, env.unwrapped.dt
    methods = {name: methods[name] for name in plot.LABELS if name in methods}
    return dict(goals=[family.tasks[i]["velocity"] for i in tasks], tasks=tasks,
                test=[i for i in tasks if i in family.test], trained=len(run.buffers.train),
                dt=dt, horizon=family.horizon, film=FILM.start + 1, frames=FILM.stop - FILM.start,
                batch=256, radius=float(world.geom_size[1, 0]), bodies=skeleton(world),
                whose=whose, agents=agents, recorded=recorded, methods=methods)


def main():
    parser = command.Parser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="one of each method")
    parser.add_argument("--tasks", default="", help="ids, as in 7,23; all 40 when empty")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with command.one_sentence(parser.leave):
        command.check_writable(arguments.out, ".html")
        template = HERE / "page.html"
        if pathlib.Path(arguments.out).resolve() == template:
            raise BadInput(f"{template} is what pages are made from; give another --out")
        known = range(len(envs.FAMILIES[ENV].tasks))
        tasks = sorted(data.parse_ids(arguments.tasks, known)) or list(known)
        shown = json.dumps(content(arguments.checkpoints, tasks), separators=(",", ":"))
        with command.replacing(arguments.out) as file:
            file.write(template.read_text().replace(PLACE, shown).encode())


if __name__ == "__main__":
    main()
