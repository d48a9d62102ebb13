"""The four task families of the paper (Section 5) on Gymnasium's MuJoCo v5 classes, and a toy one.

A family is a list of tasks; a task is a plain dict of JSON values, the keyword arguments of its
environment. Episodes are truncated at the family's horizon; only ants and walkers can fail sooner:

    envs.make("cheetah_vel", envs.FAMILIES["cheetah_vel"].tasks[7])
    gymnasium.make("macaw/cheetah_vel-v0", velocity=0.6)                        # the same

| family        | tasks                          | what differs | obs | act |
|---------------|--------------------------------|--------------|-----|-----|
| cheetah_dir   | run forward or backward        | reward       | 17  | 6   |
| cheetah_vel   | run at one of 40 speeds        | reward       | 17  | 6   |
| ant_dir       | run at one of 50 angles        | reward       | 27  | 8   |
| walker_params | run with one of 50 bodies      | dynamics     | 17  | 6   |
| point_goal    | reach one of 20 hidden goals   | reward       | 2   | 2   |

The observation is Gymnasium's own and never tells the task; the authors' cheetah adds the torso's
position, which grows without bound. `info` has the reward's terms, named "reward_...".
"""
import contextlib
from typing import NamedTuple

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from gymnasium.spaces import Box


def _settle(env, task, kwargs):
    """Let an environment be pickled with its task, and bound its observations as MuJoCo does."""
    gymnasium.utils.EzPickle.__init__(env, **task, **kwargs)
    shape = env.observation_space.shape
    env.observation_space = Box(-mujoco.mjMAXVAL, mujoco.mjMAXVAL, shape, np.float64)


def _retold(transition, **terms):
    """A Gymnasium transition with some reward terms replaced, and the reward their sum again."""
    observation, _, terminated, truncated, info = transition
    info |= terms
    reward = sum(value for name, value in info.items() if name.startswith("reward_"))
    return observation, float(reward), terminated, truncated, info


class CheetahDir(HalfCheetahEnv):
    """Run forward (direction 1) or backward (-1): r = direction * v_x - 0.05 |a|^2."""

    def __init__(self, direction: int, **kwargs):
        super().__init__(ctrl_cost_weight=0.05, **kwargs)
        _settle(self, dict(direction=direction), kwargs)
        self.direction = direction

    def step(self, action):
        transition = super().step(action)
        return _retold(transition, reward_forward=self.direction * transition[-1]["x_velocity"])


class CheetahVel(HalfCheetahEnv):
    """Run at a given speed in m/s: r = -|v_x - velocity| - 0.05 |a|^2."""

    def __init__(self, velocity: float, **kwargs):
        super().__init__(ctrl_cost_weight=0.05, **kwargs)
        _settle(self, dict(velocity=velocity), kwargs)
        self.velocity = velocity

    def step(self, action):
        transition = super().step(action)
        return _retold(transition, reward_forward=-abs(transition[-1]["x_velocity"]
                                                       - self.velocity))


class AntDir(AntEnv):
    """Run at an angle in radians: r = v . (cos, sin) - 0.5 |a|^2 - contact cost + 1 alive.

    Without contact forces in the observation. An episode ends when the torso leaves [0.2, 1] m."""

    def __init__(self, angle: float, **kwargs):
        super().__init__(include_cfrc_ext_in_observation=False, **kwargs)
        _settle(self, dict(angle=angle), kwargs)
        self.direction = np.array([np.cos(angle), np.sin(angle)])

    def step(self, action):
        transition = super().step(action)
        velocity = np.array([transition[-1]["x_velocity"], transition[-1]["y_velocity"]])
        return _retold(transition, reward_forward=float(velocity @ self.direction))


class WalkerParams(Walker2dEnv):
    """Run forward in a body whose physics is scaled, element by element, by the given factors.

    r = v_x - 1e-3 |a|^2 + 1 alive; an episode ends when the walker falls."""

    def __init__(self, body_mass, body_inertia, geom_friction, dof_damping, **kwargs):
        super().__init__(**kwargs)
        factors = dict(body_mass=body_mass, body_inertia=body_inertia, geom_friction=geom_friction,
                       dof_damping=dof_damping)
        _settle(self, factors, kwargs)
        for name, factor in factors.items():
            getattr(self.model, name)[:] *= np.asarray(factor)
        mujoco.mj_setConst(self.model, self.data)   # what MuJoCo derives from masses and inertias


class PointGoal(gymnasium.Env):
    """A point walks the plane to a goal it cannot see: r = -|position - goal| - 0.01 |a|^2."""

    observation_space = Box(-3.0, 3.0, (2,), np.float64)
    action_space = Box(-1.0, 1.0, (2,), np.float32)
    step_length = 0.1

    def __init__(self, goal: list, render_mode: None = None):
        self.goal, self.position, self.render_mode = np.array(goal), np.zeros(2), render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.2, 0.2, 2)
        return self.position.copy(), {}

    def set_observation(self, observation):             # for helpers/check.py
        self.position = np.array(observation, np.float64)

    def step(self, action):
        self.position = np.clip(self.position + self.step_length * action, -3.0, 3.0)
        transition = self.position.copy(), 0.0, False, False, {}
        return _retold(transition, reward_ctrl=-0.01 * float(np.sum(np.square(action))),
                       reward_goal=-float(np.linalg.norm(self.position - self.goal)))


class Recorded(gymnasium.Env):
    """Stands for a robot without a simulator, of which there are recordings: returns are 0."""

    def __init__(self, obs_dim: int, act_dim: int, render_mode: None = None, **task):
        self.observation_space = Box(-mujoco.mjMAXVAL, mujoco.mjMAXVAL, (obs_dim,), np.float64)
        self.action_space = Box(-1.0, 1.0, (act_dim,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape), {}

    def step(self, action):
        return np.zeros(self.observation_space.shape), 0.0, False, True, {}


class Family(NamedTuple):
    env: type
    tasks: list             # frozen
    test: tuple             # ids held out from meta-training
    horizon: int            # steps to truncation


def _ant_tasks(n=50):       # RandomState: the one stream that NumPy promises never to change
    return [{"angle": round(angle, 4)}
            for angle in np.random.RandomState(0).uniform(0, 2 * np.pi, n).tolist()]


def _walker_tasks(n=50):
    random = np.random.RandomState(0)
    shapes = dict(body_mass=((8,), 1.5), body_inertia=((8, 3), 1.5),
                  geom_friction=((8, 3), 1.5), dof_damping=((9,), 1.3))
    return [{name: np.round(base ** random.uniform(-3, 3, shape), 4).tolist()
             for name, (shape, base) in shapes.items()} for _ in range(n)]


def _point_tasks(n=20):
    angles = 2 * np.pi * np.arange(n) / n
    return [{"goal": np.round([np.cos(a), np.sin(a)], 4).tolist()} for a in angles]


FAMILIES = {}


def add(name, env, tasks, test, horizon=200):
    """Makes a family known to Gymnasium and to every program here."""
    FAMILIES[name] = Family(env, tasks, test, horizon)
    entry = f"{env.__module__}:{env.__name__}"          # text, so that Minari can note it down
    gymnasium.register(f"macaw/{name}-v0", entry, max_episode_steps=horizon)


add("cheetah_dir", CheetahDir, [dict(direction=1), dict(direction=-1)], test=(0, 1))
add("cheetah_vel", CheetahVel, [dict(velocity=round(0.075 * k, 3)) for k in range(1, 41)],
    test=(2, 7, 15, 23, 26))
add("ant_dir", AntDir, _ant_tasks(), test=(6, 17, 23, 30, 41))
add("walker_params", WalkerParams, _walker_tasks(), test=(43, 15, 12, 39, 2))
add("point_goal", PointGoal, _point_tasks(), test=(2, 7, 12, 17), horizon=40)


def make(family: str, task: dict, **kwargs) -> gymnasium.Env:
    """The environment of one task; kwargs go to it too (render_mode="rgb_array", say)."""
    return gymnasium.make(f"macaw/{family}-v0", disable_env_checker=True, **task, **kwargs)


@contextlib.contextmanager
def environments_of(env, tasks):
    """The environments of a family's tasks with these ids, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(make(env, FAMILIES[env].tasks[i])))
               for i in tasks]


def nudged(policies, D):
    """These policies, but a robot that has come to rest acts with noise until it moves.

    An action depends on the state alone, so that a robot at rest would stay there for ever, in a
    state that no data show. It rests if its state has changed by less than a third of what is
    usual in its batch D; the noise has the standard deviation of D's actions. The policies are to
    be called in turn with the states of one episode, (N, 1, obs).
    """
    usual = (D.next_obs - D.obs).norm(dim=-1).median(-1).values[:, None, None]          # (N, 1, 1)
    sigma, generator = D.action.std(1, keepdim=True), torch.Generator().manual_seed(0)
    last = None

    def act(obs):
        nonlocal last
        action = policies(obs)                                                      # (N, 1, act)
        if last is not None:
            rests = (obs - last).norm(dim=-1, keepdim=True) < usual / 3          # (N, 1, 1)
            noise = torch.randn(action.shape, generator=generator).to(action.device)
            action = (action + rests * sigma * noise).clamp(-1, 1)
        last = obs
        return action
    return act


@torch.no_grad()
def rollout(policies, environments, seeds, observe, record=None):
    """Undiscounted returns (N,) of an episode of each of N policies, in lock-step.

    `observe` turns the environments' states (N, obs) into what the policies see, (N, 1, obs).
    `record` is told each transition: k of N, then state, action, reward, next state, and whether
    the episode terminated.
    """
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(environments, seeds)],
                   dtype=np.float64)                        # a reset may give whole numbers
    total, alive = np.zeros(len(obs)), np.ones(len(obs), bool)
    while alive.any():
        action = policies(observe(obs))[:, 0].cpu().numpy()             # of (N, 1, act)
        for i in np.flatnonzero(alive):
            following, reward, terminated, truncated, _ = environments[i].step(action[i])
            if record:
                record(i, obs[i].copy(), action[i], reward, following, terminated)
            obs[i], total[i] = following, total[i] + reward
            alive[i] = not (terminated or truncated)
    return total
