"""Lessons with gaps, and their versions for students: each test is named after the claim that it
would refute."""
import ast
import json
import re
import subprocess
import sys

import matplotlib
import pytest
import torch
from conftest import HERE, command_line, refused
from matplotlib import pyplot as plt

NOTEBOOKS, STUDENT = HERE / "notebooks", HERE / "notebooks/student"
PROGRAM, LESSONS = "notebooks/students.py", sorted(x.name for x in NOTEBOOKS.glob("[0-9]_*.ipynb"))
GAP = re.compile(r"( +)# --- solution\n(.*?)\n\1# --- end of solution", re.DOTALL)


def cells(path, kind="code"):
    """Texts of a notebook's cells of a kind."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == kind]


def gaps(sources):
    """Of each gap: the place of its cell, its function's name and the solution's text."""
    return [(k, re.findall(r"def (\w+)", source[:gap.start()])[-1], gap[2])
            for k, source in enumerate(sources) for gap in GAP.finditer(source)]


@pytest.fixture
def run(monkeypatch):
    """A function that runs cells one after another in the students' folder and gives what they
    made, by name."""
    def execute(sources):
        made = {}
        exec("\n".join(sources), made)
        return made
    monkeypatch.chdir(STUDENT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plt, "show", plt.close)
    with matplotlib.rc_context({"backend": "Agg"}):
        yield execute
    torch.set_default_dtype(torch.float32)


def test_student_versions_are_in_step_with_the_lessons(tmp_path):
    assert command_line("--out", tmp_path, program=PROGRAM).returncode == 0
    assert sorted(path.name for path in STUDENT.iterdir()) == LESSONS
    for name in LESSONS:
        assert (tmp_path / name).read_bytes() == (STUDENT / name).read_bytes(), name


def test_outside_the_project_the_first_cell_fetches_it(tmp_path, monkeypatch):
    assert command_line("--project", HERE.as_uri(), "--out", tmp_path / "x",
                        program=PROGRAM).returncode == 0
    cell, calls = cells(tmp_path / "x" / LESSONS[0])[0], []
    monkeypatch.setattr(subprocess, "run", lambda line, check: calls.append(line))
    monkeypatch.chdir(STUDENT)
    exec(cell, {})
    assert not calls                                            # it is there
    (tmp_path / "macaw").mkdir()
    (tmp_path / "macaw/requirements.txt").write_text((HERE / "requirements.txt").read_text())
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert len(calls) == 1 and {"torch", "gymnasium[mujoco]"} < set(calls[0])   # no version


def test_slides_show_the_figures_with_a_sentence_each(tmp_path):
    result = command_line("--out", tmp_path / "a.html", program="notebooks/slides.py")
    assert result.returncode == 0, result.stderr
    made = (tmp_path / "a.html").read_text()
    slides = re.findall("<section>.*?</section>", made, re.DOTALL)
    assert len(slides) >= len(LESSONS) and "http" not in made
    assert all(re.search(r"<p>[^<>]{10,}</p>", slide) for slide in slides)


def test_asserts_follow_every_gap():
    for name in LESSONS:
        sources = cells(NOTEBOOKS / name)
        assert gaps(sources), name
        for k, function, _ in gaps(sources):
            nodes = [node for source in sources[k:k + 2] for node in ast.parse(source).body]
            place, = (i for i, node in enumerate(nodes) if getattr(node, "name", "") == function)
            after = ast.Module(nodes[place + 1:], [])
            assert re.search(rf"\b{function}\(", ast.unparse(after)), function
            asserts = [x for x in ast.walk(after) if isinstance(x, ast.Assert)]
            assert asserts and all(x.msg for x in asserts), function


def test_no_solution_and_no_output_is_left_for_students():
    for name in LESSONS:
        text = (STUDENT / name).read_text()
        for _, _, solution in gaps(cells(NOTEBOOKS / name)):
            assert json.dumps(solution.splitlines()[0])[1:-1] not in text, name
        assert "# --- " not in text and "<details>" not in text and "seen -->" not in text
        assert not any(cell.get("outputs") for cell in json.loads(text)["cells"])


@pytest.mark.parametrize("name", LESSONS)
def test_an_empty_gap_stops_a_student_and_nothing_before_it_does(name, run):
    """Up to the first gap a lesson runs from the students' folder too, one deeper."""
    k, function, _ = gaps(cells(NOTEBOOKS / name))[0]
    with pytest.raises(NotImplementedError, match=function):
        run(cells(STUDENT / name)[:k + 2])


def names(source, context):
    """Names that a cell reads (ast.Load) or makes (ast.Store)."""
    nodes = list(ast.walk(ast.parse(source)))
    found = {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, context)}
    return found | {x.name for x in nodes if isinstance(x, ast.FunctionDef | ast.ClassDef)
                    and context is ast.Store}


def needed_by(sources, k):
    """The cells before cell k that it needs: the first two, which import, and makers of names."""
    kept, needed = [], names(sources[k], ast.Load) - names(sources[k], ast.Store)
    for source in reversed(sources[2:k]):
        if names(source, ast.Store) & needed:
            kept.insert(0, source)
            needed |= names(source, ast.Load)
    return [*sources[:2], *kept]


@pytest.mark.parametrize("name, function", [(name, gap[1]) for name in LESSONS
                                            for gap in gaps(cells(NOTEBOOKS / name))])
def test_asserts_tell_right_answers_from_wrong_ones_in_words(name, function, run):
    sources = cells(NOTEBOOKS / name)
    (k, solution), = ((k, text) for k, gap, text in gaps(sources) if gap == function)
    answers = re.findall(rf"== {function} (\w+)\n(.*?)(?=\n+==|\n*$(?!.))", (
        HERE / "tests/answers.txt").read_text(), re.DOTALL)
    kinds = [kind for kind, _ in answers]
    assert kinds.count("right") == 2 and kinds.count("wrong") == len(kinds) - 2 >= 3
    made = run(needed_by(sources, k))
    for kind, body in answers:
        cell = sources[k].replace(solution, body)
        if kind == "right":
            exec(cell, dict(made))
        else:
            with pytest.raises(AssertionError) as error:
                exec(cell, dict(made))
            assert str(error.value), body


def points(path):
    """What check.py gives: points, of how many."""
    said = command_line(path, program="notebooks/check.py").stdout
    return *map(int, re.search(r": (\d+) of (\d+) points$", said).groups()), said


@pytest.mark.parametrize("name", LESSONS)
def test_hidden_cases_give_all_points_to_solutions_and_none_to_gaps(name):
    right, of, _ = points(NOTEBOOKS / name)
    assert right == of == 3 * len(gaps(cells(NOTEBOOKS / name)))
    assert points(STUDENT / name)[:2] == (0, of)


@pytest.mark.parametrize("name, right, wrong", [
    (LESSONS[0], "gamma * tail", "tail"), (LESSONS[1], "(action).sum", "(action).mean"),
    (LESSONS[2], "z1 @ M1.T", "z @ M1.T"), (LESSONS[3], "total, 1 / total", "total, 2 / total"),
    (LESSONS[4], "values[t + 1])", "0.0)")])
def test_hidden_cases_take_points_from_wrong_answers(name, right, wrong, tmp_path):
    text = (NOTEBOOKS / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong))
    good, of, said = points(tmp_path / name)
    assert 0 < good < of and "off by" in said


def test_the_table_of_symbols_names_what_is_in_the_code():
    table, = (text for text in cells(NOTEBOOKS / "2_macaw_step_by_step.ipynb", "markdown")
              if text.startswith("## Symbols"))
    code, rows = (HERE / "macaw.py").read_text(), re.findall(r"^\| \$.*", table, re.MULTILINE)
    assert rows
    for row in rows:
        for word in re.findall(r"\w+", " ".join(re.findall("`(.*?)`", row.split(" | ")[2]))):
            assert re.search(rf"\b{word}\b", code), word


def test_a_gap_outside_a_function_is_refused(tmp_path, monkeypatch):
    """The script works on the lessons beside it."""
    for file in (NOTEBOOKS / "students.py", NOTEBOOKS / LESSONS[0]):
        (tmp_path / file.name).write_text(
            file.read_text().replace("    # --- solution", "    # --- lost"))
    refused(command_line("--out", tmp_path / "x", program=tmp_path / "students.py"))


def test_the_full_lessons_are_not_written_over():
    refused(command_line("--out", "notebooks", program=PROGRAM))
