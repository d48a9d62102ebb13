"""A small copy of a checkpoint, to ship: it can be evaluated and adapted, but not gone on with.

    python -m helpers.slim runs/cheetah_vel-focal-s0/checkpoint.pt notebooks/focal.pt
"""
import torch

from helpers.command import BadInput, Parser, check_writable, load_tensors, one_sentence, replacing

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
        check_writable(arguments.out)
        state = load_tensors(arguments.checkpoint)
        if not isinstance(state, dict) or not {"learner", "optimizer"} <= set(state):
            raise BadInput(f"{arguments.checkpoint} is no checkpoint of a run; name one")
        with replacing(arguments.out) as file:
            torch.save(slim(state), file)


if __name__ == "__main__":
    main()
