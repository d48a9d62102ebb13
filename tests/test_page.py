"""docs/adapt.html: each test is named after the claim that it would refute."""
import base64
import json
import re

import mujoco
import numpy as np
import pytest
from conftest import HERE, command_line, refused

import envs

PROGRAM, SHIPPED = "notebooks/page.py", (HERE / "docs/adapt.html").read_text()
MACAW = HERE / "notebooks/checkpoints/macaw.pt"
JSON = re.compile(r'(?<=type="application/json">)(.*?)(?=</script>)', re.DOTALL)


def embedded(text):
    return json.loads(JSON.search(text)[1])


def numbers(text, *shape):
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(*shape) / 1000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of one method and two tasks, one held out."""
    out = tmp_path_factory.mktemp("page") / "a.html"
    result = command_line(MACAW, "--tasks", "23,30", "--out", out, program=PROGRAM)
    assert result.returncode == 0, result.stderr
    return out.read_text()


def test_the_page_loads_nothing_and_links_to_what_is_there():
    assert not re.search(r"https?://|@import|url\((?!#)|<link|\ssrc(set)?=", SHIPPED)
    for target in re.findall(r'href="([^"]*)"', SHIPPED):
        assert (HERE / "docs" / target).exists(), target


def test_the_page_shows_every_method_at_every_goal():
    data, family = embedded(SHIPPED), envs.FAMILIES["cheetah_vel"]
    assert data["goals"] == [task["velocity"] for task in family.tasks]
    assert data["test"] == sorted(family.test) == data["whose"]["strangers"]
    assert data["methods"].keys() == {"robust", "focal", "pearl", "smac"}
    for method in data["methods"].values():
        for key, count in dict(before=40, aligned=40, strangers=5).items():
            assert np.isfinite(method[key]["returns"]).sum() == count
            numbers(method[key]["speed"], count, data["horizon"])
            numbers(method[key]["film"], count, data["frames"], 9)


def test_the_script_makes_what_is_shipped(made):
    small, whole = embedded(made), embedded(SHIPPED)
    assert small["tasks"] == [23, 30] and small["test"] == small["whose"]["strangers"] == [23]
    assert small["bodies"] == whole["bodies"]
    assert small["agents"]["aligned"] == [whole["agents"]["aligned"][i] for i in (23, 30)]
    assert JSON.sub("", made) == JSON.sub("", SHIPPED)


def test_the_stick_figure_is_the_robot_of_the_simulation(made):
    """Turned body after body as the page does it, the capsules end where MuJoCo has them."""
    data, places, geom = embedded(made), [], 1          # geom 0 is the floor
    with envs.environments_of("cheetah_vel", [0]) as (env,):
        model, state = env.unwrapped.model, env.unwrapped.data
        q = numbers(data["methods"]["robust"]["aligned"]["film"], 2, data["frames"], 9)[0, -1]
        state.qpos[:] = q
        mujoco.mj_kinematics(model, state)

    def turned(angle, v):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([v[0] * cos + v[1] * sin, v[1] * cos - v[0] * sin])
    for k, body in enumerate(data["bodies"]):
        place, angle = places[body["parent"]] if k else (q[:2], 0.0)
        places.append((place + turned(angle, body["at"]), angle + q[2 + k]))
        for bone in body["bones"]:
            half = state.geom_xmat[geom].reshape(3, 3)[:, 2] * model.geom_size[geom, 1]
            for sign, end in ((-1, bone[:2]), (1, bone[2:])):
                here = places[-1][0] + turned(places[-1][1], end)
                assert np.allclose(here, (state.geom_xpos[geom] + sign * half)[[0, 2]], atol=1e-3)
            geom += 1
    assert geom == model.ngeom


@pytest.mark.parametrize("line", [["README.md", "--out", "x.html"],
                                  [MACAW, "--out", "notebooks/page.html"],
                                  [MACAW, "--tasks", "77", "--out", "x.html"]])
def test_bad_input_is_refused(line):
    refused(command_line(*line, program=PROGRAM))
