"""Do a data file's transitions belong to its tasks? Sets the simulator to recorded states, takes
one step with the recorded actions, and compares what follows.

    python -m helpers.check --env cheetah_vel --data mine.npz

It needs a MuJoCo environment whose observation is positions, then velocities, or any environment
with a method set_observation(observation). Of others it says that it cannot tell. It does not see
the order of episodes; and of what is wrong in few of a task's steps only the table tells.
"""
import contextlib
import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

import envs
from helpers import command, data
from helpers.command import BadInput, flag

NEAR_STATE, NEAR_REWARD = 0.05, 0.02    # standard deviations; float16 and contacts bring less
MOST = 0.75                             # of the steps must be as near
STEPS = 40                              # of each task, and as many last steps of episodes


class Steps(NamedTuple):
    """Some of a task's steps, one a row."""
    state: np.ndarray
    action: np.ndarray
    following: np.ndarray
    reward: np.ndarray
    failed: np.ndarray


class Simulator:
    """A task's environment, set to a state before each step."""

    def __init__(self, env, task):
        self.env = envs.make(env, envs.FAMILIES[env].tasks[task])
        self.env.reset(seed=0)
        self.own = self.env.unwrapped

    def set(self, observation):
        """To the state that an observation tells."""
        own = self.own
        if hasattr(own, "set_observation"):
            return own.set_observation(observation)
        hidden = own.model.nq + own.model.nv - len(observation)     # how far it has run
        full = np.r_[np.zeros(hidden), observation]
        own.set_state(full[:own.model.nq], full[own.model.nq:])

    def can_tell(self, observation):
        """Whether an observation tells the state."""
        own = self.own
        if hasattr(own, "set_observation"):
            return True
        if not isinstance(own, MujocoEnv) or len(observation) > own.model.nq + own.model.nv:
            return False
        self.set(observation)
        return np.allclose(own._get_obs(), observation)

    def step(self, states, actions, of=None):
        """What follows: states, rewards, whether failed. `of`: a parent class of the environment,
        whose step it takes."""
        found = []
        for state, action in zip(states, actions):
            self.set(state)
            found.append((of or type(self.own)).step(self.own, action)[:3])
        return [np.array(column) for column in zip(*found)]


class Judge:
    """Replays the steps of a file's arrays; `see` judges a task."""

    def __init__(self, x, env):
        self.x, self.env = x, env
        self.simulator = functools.cache(functools.partial(Simulator, env))
        scale = data.statistics(x["observations"], x["rewards"], x["rewards"])
        self.obs_std, self.reward_std = scale["obs_std"], scale["reward_std"]
        length, obs = x["episode_length"], x["observations"]
        self.episode, t = np.repeat(np.arange(len(length)), length), np.arange(length.sum())
        end = np.cumsum(length)[self.episode] - 1
        self.last, self.inner = t == end, (end - length[self.episode] + 1 < t) & (t < end)
        extreme = ((obs == obs.max(0)) | (obs == obs.min(0))) & (np.ptp(obs, 0) > 0)
        self.known = ~extreme.any(1)[t + self.episode]      # an observation may be clipped there

    def choose(self, task, where, shift=0):
        """Steps of a task among those that `where` marks; `shift`: with the actions and rewards so
        many steps later."""
        x, theirs = self.x, self.x["episode_task"][self.episode] == task
        t = np.flatnonzero(where & theirs & self.known)
        t = np.random.default_rng(0).permutation(t)[:STEPS]
        here = t + self.episode[t]
        return Steps(x["observations"][here].astype(float),
                     x["actions"][t + shift].astype(np.float32),
                     x["observations"][here + 1].astype(float),
                     x["rewards"][t + shift].astype(float), x["terminations"][t])

    def share(self, found, stored):
        """Of how many steps the state, or the reward, is near to what is stored."""
        if found.ndim == 1:
            return np.mean(np.abs(found - stored) / self.reward_std < NEAR_REWARD)
        return np.mean((np.abs(found - stored) / self.obs_std).mean(1) < NEAR_STATE)

    def near(self, found, stored):
        return self.share(found, stored) >= MOST

    def see(self, task):
        """Shares of steps that the simulator confirms: state, reward, last state, last reward, end;
        and what is wrong in words ("" if nothing). None where it cannot tell."""
        inner, last = (self.choose(task, where) for where in (self.inner, self.last))
        simulator = self.simulator(task)
        if not len(last.state) or not len(inner.state) or not simulator.can_tell(inner.state[0]):
            return None
        found, found_last = (simulator.step(steps.state, steps.action) for steps in (inner, last))
        shares = [self.share(found[0], inner.following), self.share(found[1], inner.reward),
                  self.share(found_last[0], last.following), self.share(found_last[1], last.reward),
                  np.mean(found_last[2] == last.failed)]
        said = ""
        if shares[0] < MOST:
            said = self.why_states(task, inner)
        elif shares[1] < MOST:
            said = self.why_rewards(task, inner, found[1])
        elif shares[2] < MOST:
            said = ("the last state of an episode does not follow from its last step (is it the "
                    "next episode's first one?); leave out that step")
        elif shares[3] < MOST:
            said = "the reward of an episode's last step is another one; leave out that step"
        elif shares[4] < MOST:
            said = ("the ends of episodes are marked as failures where it was only time, or the "
                    "reverse; mark failures alone as terminations")
        return shares, said

    def why_states(self, task, steps):
        def leads(state, action, following):
            return self.near(self.simulator(task).step(state, action)[0], following)
        if leads(steps.following, steps.action, steps.state):
            return "episodes run backwards in time; turn them round"
        for shift in (-1, 1):
            if leads(steps.state, self.choose(task, self.inner, shift).action, steps.following):
                return "actions are shifted by a step; pair each with the state it was taken in"
        if (other := self.another(task, steps, 0)) is not None:
            return f"the states are those of task {other}; correct the task's id"
        return ("states do not follow from the actions; bring unscaled observations and actions of "
                "the same simulator, in order")

    def why_rewards(self, task, steps, reward):
        for shift in (-1, 1):
            if self.near(reward, self.choose(task, self.inner, shift).reward):
                return "rewards are shifted by a step; pair each with the action that earned it"
        if (other := self.another(task, steps, 1)) is not None:
            return f"the rewards are those of task {other}; correct the task's id"
        cost = np.square(steps.action.astype(float)).sum(1)         # |a|^2
        own = self.simulator(task).own
        for kind in (type(own), type(own).__base__):        # the parent's reward knows no task
            with contextlib.suppress(NotImplementedError):
                found = self.simulator(task).step(steps.state, steps.action, kind)[1]
                off = steps.reward - found
                weight = off @ cost / (cost @ cost)
                if self.near(weight * cost, off):
                    return (f"the rewards are those of {kind.__name__} {weight:+.3f} |a|^2, not "
                            "this family's; compute them again")
        return "the rewards are of another function than this family's; compute them again"

    def another(self, task, steps, what):
        """The task that explains the states (what 0) or rewards (1) best; None where none does."""
        stored = steps.following if what == 0 else steps.reward
        shares = {i: self.share(self.simulator(i).step(steps.state, steps.action)[what], stored)
                  for i in range(len(envs.FAMILIES[self.env].tasks)) if i != task}
        best = max(shares, key=shares.get, default=None)
        return best if shares.get(best, 0) >= MOST else None


def report(x, env):
    """Prints task by task which share of the steps the simulator confirms. Raises BadInput where
    one does not fit."""
    judge, wrong = Judge(x, env), {}
    print("steps confirmed  state reward | last: state reward   end")
    for task in sorted(set(x["episode_task"].tolist())):
        seen = judge.see(task)
        if seen is None:
            print(f"task {task:3d}  cannot tell: its environment has no set_observation, or its "
                  "episodes are too short")
            continue
        state, reward, *last = (f"{share:6.0%}" for share in seen[0])
        print(f"task {task:3d}         {state} {reward} |      {' '.join(last)}  "
              f"{seen[1] or 'fits'}")
        if seen[1]:
            wrong[task] = seen[1]
    if wrong:
        task, said = next(iter(wrong.items()))
        raise BadInput(f"{len(wrong)} tasks of the file do not fit; of task {task} {said}")


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = flag("cheetah_vel", "task family: " + ", ".join(envs.FAMILIES))
    data: str = flag("", "a data file, or the name of one in data/; of the family when empty")


def main(given):
    config = command.settings(Config, dict.fromkeys(envs.FAMILIES, {}), **given)
    x, _ = data.read(data.path_of(config.data or config.env), config.env)
    report(x, config.env)


if __name__ == "__main__":
    command.command_line(main, [Config()], __doc__)
