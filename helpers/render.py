"""A GIF of a held-out task before and after adaptation, side by side.

Gymnasium draws with MuJoCo's renderer, which on a machine without a display needs EGL or OSMesa
(on Debian and Ubuntu: apt install libegl1, or libosmesa6) and MUJOCO_GL=egl or =osmesa.
"""
import numpy as np
import torch
from gymnasium.wrappers import RenderCollection
from PIL import Image, ImageDraw

import envs
from helpers.command import BadInput, check_writable, replacing
from helpers.plot import name_of

VIEW = dict(width=256, height=192, camera_name="track")        # it follows the robot


def camera(env, task):
    """The environment of a task, its pictures kept; raises BadInput where none can be drawn."""
    try:
        environment = envs.make(env, task, render_mode="rgb_array", **VIEW)
        environment.reset(seed=0)
        environment.render()
        speed(environment.unwrapped)
    except Exception as problem:            # each backend, and a family without pictures, its own
        raise BadInput(f"--render cannot draw {env} here ({type(problem).__name__}); take a MuJoCo "
                       "family, install EGL or OSMesa, and set MUJOCO_GL=egl or osmesa") from None
    return RenderCollection(environment)


def check(env, path):
    """Raises BadInput where the GIF could not be drawn or written."""
    check_writable(path, ".gif")
    camera(env, envs.FAMILIES[env].tasks[0]).close()


def speed(environment):
    """Of the robot in m/s: along x or, where the goal is a direction, along that."""
    direction = getattr(environment, "direction", 1)                # a number, or the ant's (2,)
    velocity = environment.data.qvel[:2]
    return float(velocity @ direction if np.ndim(direction) else velocity[0] * direction)


def captioned(picture, text):
    """An image (height, width, 3) with two lines of large type above it."""
    frame = Image.new("RGB", (picture.shape[1], picture.shape[0] + 48), "white")
    frame.paste(Image.fromarray(picture), (0, 48))
    ImageDraw.Draw(frame).text((6, 3), text, "black", font_size=16, spacing=7)
    return frame


def side_by_side(run, path):
    """Write the GIF of the last held-out task: every second step, at the task's own pace."""
    config, buffers, i = run.config, run.buffers, run.buffers.test[-1]
    task, films = envs.FAMILIES[config.env].tasks[i], []
    batch, = buffers.sample([i], [config.test_batch], torch.Generator().manual_seed(0))
    env = camera(config.env, task)
    for adapted, name in ((False, "before"), (True, "after")):
        speeds = [0.0]                                              # at rest, then after each step
        total, = envs.rollout(run.policies(batch, adapted), [env], [0], buffers.observe,
                              record=lambda *_: speeds.append(speed(env.unwrapped)))
        films.append([captioned(picture, f"{name} adaptation: return {total:.0f}\n"
                                         f"{name_of(task, i)}; runs at {v:.2f} m/s")
                      for picture, v in list(zip(env.render(), speeds))[::2]])
    length = max(map(len, films))
    films = [film + film[-1:] * (length - len(film)) for film in films]     # who fell stays there
    frames = [Image.fromarray(np.hstack(pair)).quantize(12, dither=Image.Dither.NONE)
              for pair in zip(*films)]                          # few colors: under a megabyte
    with replacing(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0,
                       duration=2000 * env.unwrapped.dt)
    env.close()
