"""Flags, bad input and safe files: what every program here needs.

Bad input of any kind is one sentence on stderr and exit code 2, with nothing lost.
"""
import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import signal
import zipfile

import torch


class BadInput(Exception):
    """What the user gave cannot be used; the message says in one sentence what to do."""


class Diverged(Exception):
    """A loss, a gradient or a return is not finite."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is handled as Ctrl-C is."""


def flag(default, meaning, low=None, high=1e9, free=()):
    """A field of a config that is also a flag of the command line; numbers lie in [low, high].
    `free`: what a setting may differ in from a checkpoint's, see run.RunConfig."""
    return dataclasses.field(default=default,
                             metadata=dict(help=meaning, low=low, high=high, free=free))


def settings(config_class, families=None, variants=None, **changes):
    """A config: the one place where settings are put together.

    Later wins: default, family, variant, the variant's entry for the family (a dict under the
    family's name), changes. Without a variant the first one is meant. Raises BadInput.
    """
    families, variants = families or {}, variants or {}
    if variants:
        changes = {"variant": next(iter(variants)), **changes}
    env, variant = changes.get("env", getattr(config_class, "env", None)), changes.get("variant")
    for name, value, known in (("env", env, families), ("variant", variant, variants)):
        if known and value not in known:
            raise BadInput(f"--{name} {value} is unknown; choose one of {', '.join(known)}")
    family, own = families.get(env, {}), variants.get(variant, {})
    shared = {name: value for name, value in own.items() if name not in families}
    return checked(config_class, {**family, **shared, **own.get(env, {}), **changes})


def checked(config_class, values):
    """A config of these values; raises BadInput for an unknown name, another type, or a number out
    of range."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name, value in values.items():
        if name not in fields:
            raise BadInput(f"there is no setting {name}; choose among {', '.join(fields)}")
        kind, low, high = fields[name].type, *map(fields[name].metadata.get, ("low", "high"))
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise BadInput(f"--{dashed(name)} {value!r} is no {kind.__name__}; give one")
        if kind in (int, float) and not low <= value <= high:
            raise BadInput(f"--{dashed(name)} {value} is out of range: give a number from {low:g} "
                           f"to {high:g}")
    return config_class(**values)


def differences(config, other):
    """What one config has and another one has not, in words."""
    theirs = dataclasses.asdict(other)
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(config).items()
                     if value != theirs[name]) or "none"


def dashed(name):
    """A setting's name as a flag."""
    return name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """Shows a docstring as it is written; says what is wrong in one sentence, with exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def leave(self, code, sentence):
        line = " ".join(str(sentence).split())[:1000]       # a name in it may hold anything
        self.exit(code, f"{self.prog}: {line}\n" if rank() == 0 else None)

    def error(self, message):
        self.leave(2, message)


def command_line(main, defaults, doc):
    """Run main(given), where `given` has the flags that the command line gives, as checked types.
    `defaults`: configs, whose fields are the flags.

    Exit codes: 0; 1 diverged; 2 bad input, or what the system refuses; 130 Ctrl-C; 143 SIGTERM.
    """
    parser = Parser(description=doc, allow_abbrev=False,
                    epilog="In brackets: what is used when no flag is given.")
    for config in defaults:
        for field in dataclasses.fields(config):
            kind = (dict(action=argparse.BooleanOptionalAction) if field.type is bool
                    else dict(type=field.type, metavar=field.type.__name__.upper()))
            default = getattr(config, field.name)
            shown = "" if default == "" else f" ({default})"
            parser.add_argument(f"--{dashed(field.name)}", default=None,
                                help=field.metadata["help"].replace("%", "%%") + shown, **kind)
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    with one_sentence(parser.leave):
        main(given)


def rank():
    """Of this process under torchrun: the first one, 0, speaks for all."""
    return int(os.environ.get("RANK", 0)) if several() else 0


def several():
    """Whether torchrun has started this process and others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextlib.contextmanager
def one_sentence(leave):
    """Turns whatever can go wrong without a mistake of ours into leave(code, sentence)."""
    def terminate(*_):
        raise Terminated
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except BadInput as problem:
        leave(2, problem)
    except Diverged as problem:
        leave(1, problem)
    except Terminated as stop:
        leave(143, stop.args[0] if stop.args else "stopped")
    except KeyboardInterrupt as stop:
        leave(130, stop.args[0] if stop.args else "stopped")
    except OSError as problem:
        leave(2, f"the system refuses{f' {problem.filename}' if problem.filename else ''}: "
                 f"{problem.strerror or problem}; fix this and run again")
    except (MemoryError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and "memory" not in str(problem):
            raise
        leave(2, "there is not enough memory for these sizes; give smaller ones")


@contextlib.contextmanager
def stopping(advice):
    """What Ctrl-C or SIGTERM says to whoever gave it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise type(stop)(f"stopped; {advice}") from None


def alone():
    """Raises BadInput where a program that is one process is started as several."""
    if several():
        raise BadInput("this runs in one process; start it without torchrun")


def check_device(name):
    """Raises BadInput where there is no such device."""
    try:
        if torch.zeros(1, device=name).device.type not in ("cpu", "cuda"):
            raise RuntimeError
    except (RuntimeError, AssertionError):
        raise BadInput(f"there is no device {name} here, or it is neither cpu nor cuda; use "
                       "--device cpu") from None


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """A file to write in, moved to `path` when all is written: a crash leaves the old one."""
    part = pathlib.Path(f"{path}.part")
    try:
        with open(part, mode, newline="" if "b" not in mode else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def lock(path):
    """Holds a folder, or a file made for it, while this process lives. Raises BadInput where
    another process does."""
    try:
        import fcntl
    except ImportError:                         # Windows has none
        yield
        return
    folder = os.path.isdir(path)
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDONLY | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BadInput(f"{path} is in use by another process; wait for it or give another "
                       "--out") from None
    try:
        yield
    finally:
        if not folder:
            os.unlink(path)
        os.close(handle)


def save_tensors(path, state):
    """Written to memory first: on a full disk torch.save says something else than the system."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def load_tensors(path, device="cpu"):
    """What save_tensors wrote, never executed; None if the file is damaged or something else."""
    if not pathlib.Path(path).is_file():
        raise BadInput(f"{path} is not a file; name one")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():               # torch.load ignores the checksums
                return None
        return torch.load(path, weights_only=True, map_location=device)
    except Exception:                           # many kinds on a damaged file
        return None


def check_writable(path, *endings):
    """Raises BadInput where a file with one of these endings, if there are any, could not be
    written, before the work whose result it holds. (To replace a device would destroy it.)"""
    path = pathlib.Path(path)
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK) or path.exists() and not path.is_file():
        raise BadInput(f"{path} cannot be written; name a file in a folder that is there")
    if endings and path.suffix not in endings:
        raise BadInput(f"{path} has another ending than what is written; end it with "
                       f"{' or '.join(endings)}")


def new_file(path):
    """The path of a file to write; raises BadInput where it cannot be written or is there."""
    path = pathlib.Path(path)
    check_writable(path)
    if path.exists():
        raise BadInput(f"{path} exists already; give another --out or delete it")
    return path


def save_json(path, content):
    with replacing(path, "w") as file:
        json.dump(content, file, indent=1)


def save_csv(path, rows):
    """Rows are dicts; a key that a row lacks leaves its field empty."""
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, max(rows, key=len, default=()))
        writer.writeheader()
        writer.writerows(rows)
