"""Flags, bad input and safe files: what every program here needs.

Bad input of any kind is one sentence on stderr and exit code 2, with nothing lost.
"""
import argparse
import contextlib
import csv
import dataclasses
import json
import os
import pathlib

import torch


class BadInput(Exception):
    """What the user gave cannot be used; the message says in one sentence what to do."""


class Diverged(Exception):
    """A loss or a gradient is not finite."""


def flag(default, meaning, low=None, high=1e9):
    """A field of a Config that is also a flag of the command line; numbers lie in [low, high]."""
    return dataclasses.field(default=default, metadata=dict(help=meaning, low=low, high=high))


def command_line(main, config_class, presets, doc):
    """Run main(config, given). Precedence: default, preset of the family, variant, command line."""
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name, field in fields.items():
        kind = (dict(action=argparse.BooleanOptionalAction) if field.type is bool
                else dict(type=field.type, metavar=field.type.__name__.upper()))
        parser.add_argument("--" + name.replace("_", "-"), default=None,
                            help=f"{field.metadata['help']} ({field.default})", **kind)
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    try:
        for name, value in given.items():
            low, high = fields[name].metadata["low"], fields[name].metadata["high"]
            if fields[name].type in (int, float) and not low <= value <= high:
                raise BadInput(f"--{name.replace('_', '-')} {value} is out of range: give a "
                               f"number from {low:g} to {high:g}")
        settings = {}
        for name, table in presets.items():
            choice = given.get(name, fields[name].default)
            if choice not in table:
                raise BadInput(f"--{name} {choice} is unknown; choose one of {', '.join(table)}")
            settings.update(table[choice])
        main(config_class(**{**settings, **given}), given)
    except BadInput as problem:
        parser.error(problem)
    except Diverged as problem:
        parser.exit(1, f"{parser.prog}: {problem}\n")


def check_device(name):
    """Raises BadInput where there is no such device."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise BadInput(f"there is no device {name} here; use --device cpu") from None


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """A file to write in, moved to `path` when all is written: a crash leaves the old one."""
    part = pathlib.Path(f"{path}.part")
    with open(part, mode, newline="" if "b" not in mode else None) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save_json(path, content):
    with replacing(path, "w") as file:
        json.dump(content, file, indent=1)


def save_csv(path, rows):
    """Rows are dicts with the same keys; without rows the file is empty."""
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, rows[0] if rows else [])
        writer.writeheader()
        writer.writerows(rows)
