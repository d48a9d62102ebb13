"""A small copy of a checkpoint, to ship: it can be evaluated and adapted, but not gone on with.

    python -m helpers.slim runs/cheetah_vel-focal-s0/checkpoint.pt notebooks/focal.pt
"""
import os

import torch

from helpers import command
from helpers.command import BadInput, Parser, one_sentence

NEVER_READ = "lived."       # in testing: what SMAC's policies lived in training


def slim(state):
    """The state of a checkpoint (see run.STATE) without the optimizer's, its numbers in half
    precision; a target critic is stored as the critic that it follows, which acts alike."""
    small = {}
    for name, x in state["learner"].items():
        if name.startswith(NEVER_READ):
            small[name] = torch.zeros((), dtype=x.dtype).expand(x.shape)    # one stored number
        elif name.startswith("targets."):
            small[name] = small[name.replace("targets.", "critics.", 1)]    # the same storage
        else:
            small[name] = x.half() if x.is_floating_point() else x
    return dict(state, learner=small, optimizer=dict(state["optimizer"], state={}))


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        command.check_writable(arguments.out)
        if os.path.realpath(arguments.out) == os.path.realpath(arguments.checkpoint):
            raise BadInput("the small copy cannot be gone on with, so give it another name")
        state = command.load_tensors(arguments.checkpoint)
        if not isinstance(state, dict) or not all(
                isinstance(state.get(part), dict) for part in ("learner", "optimizer")):
            raise BadInput(f"{arguments.checkpoint} is no checkpoint of a run; name one")
        small = slim(state)
        if not all(x.isfinite().all() for x in small["learner"].values()):
            raise BadInput(f"{arguments.checkpoint} has weights beyond half precision; ship it as "
                           "it is")
        command.save_tensors(arguments.out, small)


if __name__ == "__main__":
    main()
