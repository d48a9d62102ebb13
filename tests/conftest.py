"""What several test files share."""
import contextlib
import io
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import envs
import macaw
from helpers import data
from helpers.run import Run

HERE = pathlib.Path(__file__).parent.parent
POINT = data.default_path("point_goal")
torch.set_num_threads(2)


def config_of(env="point_goal", **changes):
    return macaw.Config(**{**dict(env=env), **macaw.PRESETS[env], **changes})


def run_of(env="point_goal", **changes):
    return Run(macaw.MACAW, config_of(env, **changes))


@pytest.fixture(scope="session")
def point():
    return data.Buffers(POINT, config_of())


def step(run):
    """One more meta-step; its losses."""
    macaw.meta_train(run, until=run.step + 1)
    return run.losses[-1]


def meta_loss(model, inner, outer):
    """What a meta-step descends: lines 7 to 11 of Algorithm 1."""
    pi, V = model.adapt(inner, model.config.inner_steps, train=True)
    return sum(model.meta_losses(pi, V, outer)) / len(inner.obs)


def batch_of(obs, action, mc_return, discount, last_obs):
    """A Batch of what MACAW reads; what it does not is NaN, so nobody reads it unnoticed."""
    unused = torch.full_like(mc_return, torch.nan)
    return data.Batch(obs, action, unused, unused, torch.full_like(obs, torch.nan), unused,
                         mc_return, discount, last_obs)


def command_line(*arguments, program="macaw.py", cwd=HERE):
    """What a program answers to a command line: its exit code, stdout and stderr.

    It runs as __main__, but in this process: a new one needs seconds to import torch. What only
    real processes show is tested with some (test_robustness.py, test_house.py).
    """
    line, out, errors, code = [program, *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = line
    try:
        with (contextlib.chdir(cwd), contextlib.redirect_stdout(out),
              contextlib.redirect_stderr(errors)):
            runpy.run_path(str(HERE / program), run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(line, code, out.getvalue(), errors.getvalue())


def refused(result, *words):
    """One sentence on stderr that says these words, and exit code 2."""
    assert result.returncode == 2, result.stderr
    said = result.stderr
    assert said.count("\n") == 1 and not re.search(r"\S\. ", said), said       # no second sentence
    for word in words:
        assert word in said, said


def data_file(path, lengths, terminated, task=None, seed=0, observations=None, **meta):
    """Write a made-up point_goal data file with episodes of these lengths; its arrays."""
    random, n = np.random.default_rng(seed), sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminations, truncations = np.zeros((2, n), bool)
    terminations[ends], truncations[ends] = terminated, ~np.array(terminated)
    task = np.zeros(len(lengths), int) if task is None else np.array(task)
    x = dict(observations=random.normal(size=(n + len(lengths), 2)).clip(-3, 3)
             if observations is None else observations, actions=random.uniform(-1, 1, (n, 2)),
             rewards=random.normal(size=n), terminations=terminations, truncations=truncations,
             episode_task=task, episode_number=np.arange(len(lengths)),
             episode_seed=np.arange(len(lengths)), episode_length=np.array(lengths))
    tasks = {i: envs.FAMILIES["point_goal"].tasks[i] for i in sorted(set(task.tolist()))}
    data.write(path, x, {**dict(
        format=data.FORMAT, family="point_goal", tasks=tasks, collector={}, versions={},
        behavior_final=dict.fromkeys(tasks, 0.0)), **meta})
    return x
