"""docs/adapt.html: each test is named after the claim that it would refute."""
import base64
import html.parser
import json
import re

import mujoco
import numpy as np
import pytest
from conftest import HERE, command_line, refused

import envs

CLOSED = {"meta", "input"}                      # tags that have no end


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps every attribute."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in CLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def embedded(text):
    return json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def numbers(text, *shape):
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(*shape) / 1000


@pytest.fixture(scope="module")
def shipped():
    return (HERE / "docs/adapt.html").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of two methods and two tasks, one held out."""
    out = tmp_path_factory.mktemp("page") / "a.html"
    checkpoints = [HERE / f"notebooks/checkpoints/{name}.pt" for name in ("macaw", "focal")]
    result = command_line(*checkpoints, "--tasks", "23,30", "--out", out,
                          program="notebooks/page.py")
    assert result.returncode == 0, result.stderr
    return out.read_text()


@pytest.mark.parametrize("name", ["shipped", "made"])
def test_the_page_is_whole_and_loads_nothing(name, request):
    text = request.getfixturevalue(name)
    page = Page(text)
    assert not page.open and "<noscript>" in text and len(text.encode()) < 1_000_000
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not [x for x in page.attributes if x[1] in ("src", "srcset", "data") or x[0] == "link"]
    for _, _, target in (x for x in page.attributes if x[1] == "href"):
        assert (HERE / "docs" / target).exists(), target


def test_the_page_shows_every_method_at_every_goal(shipped):
    data, family = embedded(shipped), envs.FAMILIES["cheetah_vel"]
    assert data["goals"] == [task["velocity"] for task in family.tasks] and len(data["goals"]) == 40
    assert data["test"] == sorted(family.test) == data["whose"]["strangers"]
    assert set(data["methods"]) >= {"macaw", "focal"}
    for method in data["methods"].values():
        for key, count in dict(before=40, aligned=40, strangers=5).items():
            assert np.isfinite(method[key]["returns"]).sum() == count
            numbers(method[key]["speed"], count, data["horizon"])
            numbers(method[key]["film"], count, data["frames"], 9)
    assert data["trained"] == 35 and numbers(data["batches"]["aligned"], 40, 256, 2).any()


def test_the_script_makes_what_is_shipped(made, shipped):
    small, all_of_them = embedded(made), embedded(shipped)
    assert small["tasks"] == [23, 30] and small["test"] == small["whose"]["strangers"] == [23]
    assert small["bodies"] == all_of_them["bodies"]
    assert small["agents"]["aligned"] == [all_of_them["agents"]["aligned"][i] for i in (23, 30)]
    assert re.sub(r"json\">.*?</script>", "", made, flags=re.DOTALL) == re.sub(
        r"json\">.*?</script>", "", shipped, flags=re.DOTALL)


def test_the_stick_figure_is_the_robot_of_the_simulation(made):
    """Turned body after body as the page does it, the capsules end where MuJoCo has them."""
    data = embedded(made)
    env = envs.make("cheetah_vel", dict(velocity=1.0))
    model, state = env.unwrapped.model, env.unwrapped.data
    q = numbers(data["methods"]["macaw"]["aligned"]["film"], 2, data["frames"], 9)[0, -1]
    state.qpos[:] = q
    mujoco.mj_kinematics(model, state)

    def turned(angle, v):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([v[0] * cos + v[1] * sin, v[1] * cos - v[0] * sin])
    bodies, geom = [], 1                        # geom 0 is the floor
    for k, body in enumerate(data["bodies"]):
        place, angle = bodies[body["parent"]] if k else (q[:2], 0.0)
        bodies.append((place + turned(angle, body["at"]), angle + q[2 + k]))
        for bone in body["bones"]:
            half = state.geom_xmat[geom].reshape(3, 3)[:, 2] * model.geom_size[geom, 1]
            for sign, end in ((-1, bone[:2]), (1, bone[2:])):
                here = bodies[-1][0] + turned(bodies[-1][1], end)
                assert np.allclose(here, (state.geom_xpos[geom] + sign * half)[[0, 2]], atol=1e-3)
            geom += 1
    assert geom == model.ngeom
    env.close()


def test_the_page_that_others_are_made_from_stays():
    before = (HERE / "notebooks/page.html").read_bytes()
    refused(command_line("--out", HERE / "notebooks/page.html", program="notebooks/page.py"),
            "page.html", "--out")
    assert (HERE / "notebooks/page.html").read_bytes() == before


def test_another_file_is_refused(tmp_path):
    refused(command_line(HERE / "README.md", "--out", tmp_path / "a.html",
                         program="notebooks/page.py"))
