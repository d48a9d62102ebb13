"""Lessons with gaps, and their versions for students: each test is named after the claim that it
would refute."""
import ast
import importlib.util
import json
import re
import sys

import matplotlib
import pytest
import torch
from conftest import HERE, command_line, refused

from helpers.command import BadInput

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NOTEBOOKS, STUDENT = HERE / "notebooks", HERE / "notebooks/student"
LESSONS = sorted(path.name for path in NOTEBOOKS.glob("[0-9]_*.ipynb"))
REGION = re.compile(r"( +)# --- solution\n(.*?)\n\1# --- end of solution", re.DOTALL)
every_lesson = pytest.mark.parametrize("name", LESSONS)


def cells(path, kind="code"):
    """Texts of a notebook's cells of a kind."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == kind]


def gaps(sources):
    """Of each gap: the place of its cell, its function's name and the solution's text."""
    return [(k, re.findall(r"def (\w+)", source[:region.start()])[-1], region[2])
            for k, source in enumerate(sources) for region in REGION.finditer(source)]


@pytest.fixture
def run(monkeypatch):
    """A function that runs cells one after another in the students' folder, without a trace."""
    monkeypatch.chdir(STUDENT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plt, "show", plt.close)
    with matplotlib.rc_context():
        yield lambda sources: exec("\n".join(sources), {})
    torch.set_default_dtype(torch.float32)


def test_student_versions_are_in_step_with_the_lessons(tmp_path):
    result = command_line("--out", tmp_path, program="notebooks/students.py")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in sorted(STUDENT.iterdir())] == LESSONS
    for name in LESSONS:
        assert (tmp_path / name).read_bytes() == (STUDENT / name).read_bytes(), name


@every_lesson
def test_a_lesson_has_two_gaps_that_asserts_follow(name):
    sources = cells(NOTEBOOKS / name)
    found = gaps(sources)
    assert len({function for _, function, _ in found}) == len(found) == 2
    for k, function, solution in found:
        assert 1 <= len(solution.splitlines()) <= 8
        after = [node for source in sources[k:k + 2] for node in ast.parse(source).body]
        place, = (i for i, node in enumerate(after) if getattr(node, "name", "") == function)
        used = [ast.unparse(node) for node in after[place + 1:]]
        assert any(re.search(rf"\b{function}\(", text) for text in used), function
        assert any(isinstance(x, ast.Assert) for node in after[place + 1:] for x in ast.walk(node))


@every_lesson
def test_no_solution_is_left_for_students(name):
    version = json.loads((STUDENT / name).read_text())
    text = "\n".join("".join(cell["source"]) for cell in version["cells"])
    for _, _, solution in gaps(cells(NOTEBOOKS / name)):
        assert solution not in text
    assert "# --- " not in text and "<details>" not in text and "Solution" not in text
    assert text.count("raise NotImplementedError") == 2
    assert f"notebooks/{name}` by `python notebooks/students.py`" in cells(
        STUDENT / name, "markdown")[0]
    for cell in version["cells"]:
        assert not cell["metadata"] and not cell.get("outputs") and not cell.get("execution_count")


@every_lesson
def test_an_empty_gap_stops_a_student_and_nothing_before_it_does(name, run):
    """Up to the first gap a lesson runs from the students' folder too, one deeper."""
    k, function, _ = gaps(cells(NOTEBOOKS / name))[0]
    with pytest.raises(NotImplementedError, match=f"your turn: write {function} "):
        run(cells(STUDENT / name)[:k + 2])


def test_asserts_tell_a_right_gap_from_a_wrong_one(run):
    sources = cells(NOTEBOOKS / "3_expressiveness.ipynb")
    k, function, solution = gaps(sources)[0]
    upto = sources[:k + 1]
    assert function == "mirrored"
    run(upto)
    upto[k] = upto[k].replace(solution, "    return distance")
    with pytest.raises(AssertionError):
        run(upto)


@every_lesson
def test_a_lesson_finds_the_project_as_all_do_and_says_what_it_is_for(name):
    assert cells(NOTEBOOKS / name)[0] == cells(NOTEBOOKS / LESSONS[0])[0]
    code = "\n".join(cells(NOTEBOOKS / name))
    assert '".."' not in code and "../" not in code
    head = cells(NOTEBOOKS / name, "markdown")[0]
    goals = re.search(r"\*\*After this lesson you can\*\*\n\n((?:- .*\n)+)", head)
    assert 3 <= goals[1].count("\n") <= 4 and "**Before:**" in head
    assert re.search(r"\*\*In class:\*\* \d+ minutes", head)


def test_the_table_of_symbols_names_what_is_in_the_code():
    table, = (text for text in cells(NOTEBOOKS / "2_macaw_step_by_step.ipynb", "markdown")
              if text.startswith("## Symbols"))
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| $")]
    code = (HERE / "macaw.py").read_text()
    named = {word for row in rows for name in re.findall(r"`(.*?)`", row[2])
             for word in re.findall(r"\w+", name)}
    assert len(named) > 20
    assert not [word for word in named if not re.search(rf"\b{word}\b", code)]


@pytest.mark.parametrize("source", ["x = 1\n# --- solution\nx = 2\n# --- end of solution",
                                    "def f():\n    # --- solution\n    return 1"])
def test_a_broken_gap_is_refused(source):
    spec = importlib.util.spec_from_file_location("students", NOTEBOOKS / "students.py")
    students = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(students)
    lesson = dict(cells=[dict(cell_type="code", id="a", source=[source])])
    with pytest.raises(BadInput, match="without its partner"):
        students.student_version(lesson, "a.ipynb")


def test_the_full_lessons_are_not_written_over():
    refused(command_line("--out", "notebooks", program="notebooks/students.py"), "another --out")
