"""Pages, notebooks, layout: each test is named after the claim that it would refute."""
import ast
import dataclasses
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import HERE

import collect
import macaw
from baselines import focal, smac
from helpers import command

PAGES = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]
PROGRAMS = sorted(set(HERE.glob("*.py")) - set(HERE.glob("test_*.py")) - {HERE / "conftest.py"})
HELPERS = sorted((HERE / "helpers").glob("*.py"))
LESSONS = sorted((HERE / "notebooks").glob("*.ipynb"))

METHODS = {"macaw": macaw.MACAW, "focal": focal.FOCAL, "smac": smac.SMAC}


def commands():
    """Every command of the pages and docstrings, but those of the family that a reader adds."""
    texts = [path.read_text() for path in PAGES + PROGRAMS]
    return sorted({line.strip() for text in texts for line in re.findall(
        r"python ((?:macaw|focal|smac|collect)\.py (?!--help)[^#`\n]*)", text)
        if "swimmer_dir" not in line and "[" not in line and "..." not in line})


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_pages_are_understood(line, monkeypatch):
    seen, program = [], line.split(".py")[0]
    monkeypatch.setattr(sys, "argv", line.split())
    config, presets = collect.Config, dict(env=collect.PRESETS)
    if program in METHODS:
        method = METHODS[program]
        config, presets = method.config, dict(env=method.presets, variant=method.variants)
    command.command_line(lambda config, given: seen.append(given), config, presets, "")
    assert len(seen) == 1 and len(seen[0]) == line.count(" --")


def test_a_reader_can_add_a_family(tmp_path):
    """The worked example of docs/your_own.md, appended to envs.py as it says."""
    for path in PROGRAMS:
        shutil.copy(path, tmp_path)
    shutil.copytree(HERE / "helpers", tmp_path / "helpers")
    (tmp_path / "data").mkdir()
    page = (HERE / "docs/your_own.md").read_text()
    example, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert example.count("\n") <= 30
    with open(tmp_path / "envs.py", "a") as file:
        file.write("\n\n" + example)
    for line in (["collect.py", "--steps", "800", "--keep", "800", "--width", "8", "--batch", "8",
                  "--random-steps", "700"], ["macaw.py", "--steps", "2", "--final-draws", "1"]):
        result = subprocess.run([sys.executable, *line, "--env", "swimmer_dir"], cwd=tmp_path,
                                text=True, capture_output=True)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/swimmer_dir-macaw-s0/summary.json").exists()
    check = ("import envs; from gymnasium.utils.env_checker import check_env; check_env(envs.make("
             "'swimmer_dir', dict(angle=1.0)).unwrapped, skip_render_check=True)")
    assert subprocess.run([sys.executable, "-c", check], cwd=tmp_path).returncode == 0


def test_files_that_the_pages_name_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
        for name in re.findall(r"`((?:helpers|docs|data|golden|results|notebooks)/[\w./]+\w)`",
                               page.read_text()):
            assert (HERE / name).exists(), (page.name, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_python_examples_of_the_pages_run(page, tmp_path):
    for example in re.findall(r"```python\n(import .*?)```", page.read_text(), re.DOTALL):
        result = subprocess.run([sys.executable, "-c", example], cwd=HERE, text=True,
                                capture_output=True)
        assert result.returncode == 0, result.stderr
        printed = re.search(r"# prints (.*)", example)
        assert printed is None or printed[1].strip() == result.stdout.strip()


def imported(path):
    """Names of modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", HELPERS, ids=lambda path: path.stem)
def test_helpers_import_no_method(path):
    ours = {program.stem for program in PROGRAMS}
    assert imported(path) & ours <= {"envs"}


def test_programs_start_from_any_folder(tmp_path):
    for program in PROGRAMS:
        result = subprocess.run([sys.executable, program, "--help"], cwd=tmp_path, text=True,
                                capture_output=True)
        assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


def code(notebook):
    """The cells of a notebook that hold code, and their source in one piece."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    return cells, "\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_notebooks_call_what_is_there_with_arguments_that_it_takes(path):
    """CI would find it too, but only after the minutes that the lessons take to run."""
    modules, checked = {program.stem for program in PROGRAMS}, 0
    for node in ast.walk(ast.parse(code(path)[1])):
        match node:
            case ast.Call(ast.Attribute(ast.Name(module), name), args, keywords) \
                    if module in modules and all(x.arg for x in keywords) \
                    and not any(isinstance(x, ast.Starred) for x in args):
                called = getattr(importlib.import_module(module), name)
                inspect.signature(called).bind(*args, **{x.arg: x.value for x in keywords})
                checked += 1
    assert checked


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_notebooks_use_the_project_and_define_no_second_version_of_it(path):
    def defined(source):
        return {x.name for x in ast.parse(source).body
                if isinstance(x, ast.FunctionDef | ast.ClassDef)}
    cells, source = code(path)
    ours = set().union(*(defined(p.read_text()) for p in PROGRAMS + HELPERS))
    assert "import macaw" in source and len(ours) > 50
    assert not defined(source) & ours
    assert all(cell["execution_count"] for cell in cells)               # stored as it ran
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])


def test_budgets_hold():
    budgets = dict(macaw=450, envs=170, collect=230, bench=165, focal=300, smac=250,
                   experiments=250)
    for name, lines in budgets.items():
        assert len((HERE / f"{name}.py").read_text().splitlines()) <= lines, name
    assert len((HERE / "README.md").read_text().splitlines()) <= 130
    for path in PROGRAMS + HELPERS:
        assert max(map(len, path.read_text().splitlines())) <= 100, path.name
    assert len(dataclasses.fields(macaw.Config)) <= 36
