import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys

import torch
from torch import nn

DATA_FORMAT = 1


class BadInput(Exception):
    """What the user gave cannot be used; the message says in one sentence what to do."""


def flag(default, meaning):
    """A field of a Config that is also a flag of the command line."""
    return dataclasses.field(default=default, metadata={"help": meaning})


def command_line(main, config_class, presets, doc):
    """Run main(config): default, then preset of the family, then the command line."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)

    def fail(message):
        parser.exit(2, f"{parser.prog}: {message}\n")
    parser.error = fail
    for field in dataclasses.fields(config_class):
        kind = dict(action="store_true") if field.type is bool else dict(type=field.type)
        parser.add_argument("--" + field.name, default=None, help=field.metadata["help"], **kind)
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    try:
        preset = presets.get(given.get("env", config_class.env), {})
        main(config_class(**{**preset, **given}))
    except BadInput as problem:
        fail(problem)


@contextlib.contextmanager
def replacing(path):
    """A file to write in, moved to `path` when all is written: a crash leaves the old one."""
    part = pathlib.Path(f"{path}.part")
    with open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


class Linear(nn.Module):
    """y = x W + b for T tasks at once; theta (T, n) holds W (in x out), then b (out)."""

    def __init__(self, inputs, outputs, tasks=1):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        bound = inputs ** -0.5
        theta = torch.empty(tasks, (inputs + 1) * outputs).uniform_(-bound, bound)
        self.theta = nn.Parameter(theta)

    def forward(self, x):                                               # (T, B, in)
        W, b = self.theta.split([self.inputs * self.outputs, self.outputs], -1)
        return torch.baddbmm(b[:, None], x, W.view(-1, self.inputs, self.outputs))
