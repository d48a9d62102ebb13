"""A small copy of a checkpoint, to ship: it can be evaluated and adapted, but not gone on with.

    python notebooks/slim.py runs/cheetah_vel-focal-s0/checkpoint.pt small.pt
    python notebooks/slim.py runs/cheetah_vel-macaw-s0/checkpoint.pt small.pt --latent 7
"""
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from helpers import command
from helpers.command import BadInput, Parser, one_sentence


def slim(state):
    """A checkpoint's state without the optimizer's, without the paths of the machine that it was
    made on, its numbers in half precision. A target critic becomes the critic that it follows, and
    SMAC's replay buffer, which testing does not read, zeros."""
    small = {}
    for name, x in state["learner"].items():
        if name.startswith("lived."):                                   # the replay buffer
            small[name] = torch.zeros((), dtype=x.dtype).expand(x.shape)    # one stored number
        elif name.startswith("targets."):
            small[name] = small[name.replace("targets.", "critics.", 1)]    # the same storage
        else:
            small[name] = x.half() if x.is_floating_point() else x
    config = dict(state["config"], data="", adapt_data="")
    return dict(state, config=config, learner=small, optimizer=dict(state["optimizer"], state={}))


def fewer_directions(learner, latent):
    """MACAW's transforms w = M z + m with `latent` numbers in z. z's own direction is kept, so that
    w stays what it is, and those in which M is largest. A step moves w by M M^T, |z|^2 and 1, so
    to turn z and M together changes nothing, and to leave out where M is small changes little:
    training makes a few directions large and leaves the others as small as they began."""
    small, parts = dict(learner), [name for name in learner if name.endswith(".M")]
    if not parts or not 1 <= latent <= learner[parts[0]].shape[1]:
        raise BadInput("--latent must be from 1 to the length of the transforms' z; leave it out "
                       "where a checkpoint has none")
    for name in parts:
        M, z = learner[name].float(), learner[name[:-1] + "z"].float()      # (n, c), (1, c)
        own = z.T / z.norm()                                                # (c, 1)
        *_, others = torch.linalg.svd(M - M @ own @ own.T, full_matrices=False)
        kept = torch.cat([own, others[:latent - 1].T], 1)                   # (c, latent)
        small[name], small[name[:-1] + "z"] = M @ kept, z @ kept
    return small


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--latent", type=int, help="of MACAW: so many numbers in each z")
    arguments = parser.parse_args()
    with one_sentence(parser.leave):
        command.new_file(arguments.out)
        state = command.load_tensors(arguments.checkpoint)
        if not isinstance(state, dict) or not {"config", "learner", "optimizer"} <= state.keys():
            raise BadInput(f"{arguments.checkpoint} is no checkpoint of a run; name one")
        if arguments.latent is not None:
            state["config"]["latent"] = arguments.latent
            state["learner"] = fewer_directions(state["learner"], arguments.latent)
        command.save_tensors(arguments.out, slim(state))


if __name__ == "__main__":
    main()
