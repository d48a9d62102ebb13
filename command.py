"""What a program needs and a reader of the paper does not: flags, safe files, bad input.

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
import torch.distributed as dist

CHECKPOINT_FORMAT = 1


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
        leave_processes()
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


def processes(config):
    """Rank of this process and number of processes, (0, 1) but under torchrun; raises BadInput."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        if config.device != "cpu":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo" if config.device == "cpu" else "nccl")
    if dist.get_world_size() > config.tasks_per_step:
        raise BadInput(f"{dist.get_world_size()} processes are more than the tasks in a meta-"
                       "batch; start fewer, or give a larger --tasks-per-step")
    return dist.get_rank(), dist.get_world_size()


def leave_processes():
    """When all are done: who left earlier would be taken for failed, and torchrun end the rest."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def sum_over_processes(tensors):
    """In place, as one message."""
    if dist.is_initialized():
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, part in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(part.view_as(x))


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


FREE = {"evaluate", "resume", "out", "data", "device", "render", "test_steps", "final_draws"}


def load_checkpoint(path, given):
    """The state that `Run.save` wrote; raises BadInput, also if flags but the free ones differ."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        ours = state["format"] == CHECKPOINT_FORMAT
    except FileNotFoundError:
        raise BadInput(f"there is no checkpoint {path}; name one that is there") from None
    except Exception:                       # torch.load raises many kinds on a damaged file
        ours = False
    if not ours:
        raise BadInput(f"{path} is damaged or of another version of macaw.py; train anew")
    for name, value in given.items():
        if name not in FREE and value != state["config"][name]:
            raise BadInput(f"{path} was made with --{name.replace('_', '-')} "
                           f"{state['config'][name]}; leave the flag away or start a new run")
    return state


def report(result):
    """Print a summary."""
    print("task   before    after   behaviour: mean   at its end")
    for row in [*result["tasks"], dict(result, id="mean")]:
        print(f"{row['id']:>4} {row['before']:8.1f} {row['after']:8.1f} "
              f"{row['behavior_mean']:17.1f} {row['behavior_final']:12.1f}")


def run_folder(config):
    """A new folder, runs/ENV-VARIANT-sSEED or the one named, which holds something only where its
    run goes on."""
    if config.out:
        folder = pathlib.Path(config.out)
        if config.resume:
            return folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} is taken; give another --out, or --resume to go on with it")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name, number = f"{config.env}-{config.variant}-s{config.seed}", 1
    while True:
        folder = pathlib.Path("runs") / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        number += 1
