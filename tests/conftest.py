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
torch.set_num_threads(1)                # the toy family's nets lose more with two than they win


def config_of(env="point_goal", method=macaw.MACAW, **changes):
    return method.settings(env=env, **changes)


def run_of(env="point_goal", method=macaw.MACAW, folder=None, **changes):
    return Run(method, config_of(env, method, **changes), folder=folder)


@pytest.fixture(scope="session")
def point():
    return data.Buffers(POINT, config_of())


def step(run):
    """One more training step; its losses."""
    run.method.train(run, until=run.step + 1)
    return run.losses[-1]


def command_line(*arguments, program="macaw.py", cwd=HERE):
    """What a program answers to a command line: its exit code, stdout and stderr.

    It runs as __main__, but in this process: a new one needs seconds to import torch. What only
    real processes show is tested with a few.
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
    """One sentence on stderr, with these words, and exit code 2."""
    said = result.stderr
    assert result.returncode == 2, said
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
    data.write(path, x, {**dict(format=data.FORMAT, family="point_goal", tasks=tasks,
                                behavior_final=dict.fromkeys(tasks, 0.0)), **meta})
    return x
