"""A GIF of a held-out task before and after adaptation, side by side.

Gymnasium draws with MuJoCo's renderer, which on a machine without a display needs EGL or OSMesa
(on Debian and Ubuntu: apt install libegl1, or libosmesa6) and MUJOCO_GL=egl or =osmesa.
"""
import pathlib

import numpy as np
import torch
from gymnasium.wrappers import RenderCollection
from PIL import Image, ImageDraw

import envs
from helpers.command import BadInput, check_writable, replacing

VIEW = dict(width=320, height=240, camera_name="track")        # it follows the robot


def camera(env, task):
    """The environment of a task, its pictures kept; raises BadInput where none can be drawn."""
    try:
        environment = envs.make(env, task, render_mode="rgb_array", **VIEW)
        environment.reset(seed=0)
        environment.render()
    except Exception as problem:            # each backend, and a family without pictures, its own
        raise BadInput(f"--render cannot draw {env} here ({type(problem).__name__}); take a MuJoCo "
                       "family, install EGL or OSMesa, and set MUJOCO_GL=egl or osmesa") from None
    return RenderCollection(environment)


def check(env, path):
    """Raises BadInput where the GIF could not be drawn or written."""
    check_writable(path)
    if pathlib.Path(path).suffix != ".gif":
        raise BadInput(f"--render {path} is no film; end it with .gif")
    camera(env, envs.FAMILIES[env].tasks[0]).close()


def side_by_side(run, rollout, path):
    """Writes the GIF of the last held-out task; every second step, at the task's own pace."""
    config, buffers, task = run.config, run.buffers, run.buffers.test[-1]
    batch, = buffers.sample([task], [config.test_batch], torch.Generator().manual_seed(0))
    films, env = [], camera(config.env, envs.FAMILIES[config.env].tasks[task])
    for adapted, name in ((False, "before"), (True, "after")):
        total, = rollout(run.learner.policies(batch, adapted), [env], [0], buffers)
        films.append([Image.fromarray(frame) for frame in env.render()[::2]])
        for frame in films[-1]:
            ImageDraw.Draw(frame).text((8, 8), f"{name} adaptation: return {total:.0f}", "black")
    length = max(map(len, films))
    films = [film + film[-1:] * (length - len(film)) for film in films]     # who fell lies there
    frames = [Image.fromarray(np.hstack(pair)).quantize(64) for pair in zip(*films)]
    with replacing(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0,
                       duration=2000 * env.unwrapped.dt)
    env.close()
