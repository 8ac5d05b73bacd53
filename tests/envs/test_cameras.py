import logging
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from worldmodel.envs import cameras, franka, opengl
from worldmodel.envs.control import Arm

needs_gl = pytest.mark.skipif(opengl.why_unusable() is not None, reason="no OpenGL here")


@pytest.fixture
def fresh_probe():
    """Forget what is known about OpenGL, before the test and after it."""
    opengl.why_unusable.cache_clear()
    cameras._announced.clear()
    yield
    opengl.why_unusable.cache_clear()


@pytest.fixture(scope="module")
def arm():
    return Arm(franka.build_model())


@needs_gl
@pytest.mark.parametrize("camera", franka.CAMERAS)
def test_both_renderers_draw_nearly_the_same_picture(arm, camera):
    images = []
    for backend in ("gl", "ray"):
        renderer = cameras.make_renderer(arm.model, 128, 128, backend=backend)
        images.append(renderer.render(arm.data, camera).astype(float))
        renderer.close()
    assert np.abs(images[0] - images[1]).mean() < 1.0  # of 255


def test_a_picture_has_the_asked_size_and_is_the_callers_to_keep(arm, backend):
    renderer = cameras.make_renderer(arm.model, 40, 60, backend=backend)
    first = renderer.render(arm.data, "exterior")
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(renderer.render(arm.data, "exterior"), kept)
    assert kept.shape == (40, 60, 3) and kept.dtype == np.uint8
    renderer.close()


def test_the_picture_follows_the_state(backend):
    arm = Arm(franka.build_model())
    renderer = cameras.make_renderer(arm.model, 64, 64, backend=backend)
    before = renderer.render(arm.data, "exterior")
    arm.teleport(np.array([0.4, 0.2, 0.2]))
    moved = renderer.render(arm.data, "exterior")
    arm.reset()
    np.testing.assert_array_equal(renderer.render(arm.data, "exterior"), before)
    assert np.abs(moved.astype(int) - before).mean() > 3
    renderer.close()


def test_the_ray_renderer_shows_known_colours(arm):
    renderer = cameras.make_renderer(arm.model, 64, 64, backend="ray")
    image = renderer.render(arm.data, "exterior")
    sky = np.round(np.array([0.55, 0.61, 0.68]) * 255)
    np.testing.assert_allclose(image[0, 0], sky, atol=1)
    # The table faces up: ambient + headlight at the camera's pitch + the lamp at its own.
    camera = arm.model.camera("exterior").id
    lamp = arm.data.light_xdir[0]
    light = 0.36 + 0.26 * arm.data.cam_xmat[camera][8] + 0.48 * -lamp[2] / np.linalg.norm(lamp)
    np.testing.assert_allclose(image[-1, 32], 255 * light * np.array([0.74, 0.63, 0.49]), atol=1.5)


def test_the_ray_renderer_shows_the_mean_colour_of_a_texture():
    model = mujoco.MjModel.from_xml_string("""
      <mujoco>
        <visual><headlight ambient="1 1 1" diffuse="0 0 0"/></visual>
        <asset>
          <texture name="t" type="2d" builtin="checker" width="64" height="64" rgb1="1 1 1"
                   rgb2="0 0 1"/>
          <material name="own" texture="t" rgba="0.4 0.8 1 1"/>
        </asset>
        <worldbody>
          <camera name="above" pos="0 0 1"/>
          <geom type="plane" size="5 5 1" material="own"/>
        </worldbody>
      </mujoco>
    """)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = cameras.make_renderer(model, 8, 8, backend="ray")
    np.testing.assert_allclose(renderer.render(data, "above")[4, 4], [51, 102, 255], atol=1)
    model.geom_rgba[0] = [1, 0.5, 0.5, 1]  # a geom's own colour replaces its material's
    np.testing.assert_allclose(renderer.render(data, "above")[4, 4], [128, 64, 128], atol=1)


def test_the_whole_workspace_is_in_the_exterior_picture(arm):
    from worldmodel.envs.tasks.reach import WORKSPACE_HIGH, WORKSPACE_LOW

    corners = np.array(np.meshgrid(*zip(WORKSPACE_LOW, WORKSPACE_HIGH, strict=True))).reshape(3, -1)
    for name in ("exterior", "exterior_right"):
        camera = arm.model.camera(name).id
        offsets = corners.T - arm.data.cam_xpos[camera]
        x, y, depth = (offsets @ arm.data.cam_xmat[camera].reshape(3, 3)).T
        half = np.tan(np.deg2rad(arm.model.cam_fovy[camera]) / 2)
        assert (np.abs([x, y]) < 0.95 * half * -depth).all()


def test_without_opengl_gl_is_refused_with_the_way_out(monkeypatch, fresh_probe):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(RuntimeError, match="(?s)MUJOCO_GL=disable.*libegl1.*backend='ray' works"):
        cameras.choose_backend("gl")


def test_without_opengl_auto_takes_ray_and_says_so_once(monkeypatch, fresh_probe, caplog):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with caplog.at_level(logging.INFO):
        assert [cameras.choose_backend("auto") for _ in range(3)] == ["ray"] * 3
    assert len(caplog.records) == 1 and "ray" in caplog.text


def test_a_platform_that_cannot_draw_is_found_out_by_trying(monkeypatch, fresh_probe):
    monkeypatch.setenv("MUJOCO_GL", "no_such_platform")
    assert "MUJOCO_GL=no_such_platform" in str(opengl.why_unusable())


@pytest.mark.parametrize(
    ("wanted", "loads", "expected"),
    [
        (None, True, "egl"),
        (None, False, "disable"),
        ("egl", True, "egl"),
        ("egl", False, "disable"),  # importing mujoco would raise
        ("osmesa", False, "osmesa"),
        ("disable", True, "disable"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mujoco chooses")
def test_the_platform_is_chosen_before_mujoco_is_imported(monkeypatch, wanted, loads, expected):
    monkeypatch.delitem(sys.modules, "mujoco")
    monkeypatch.setenv("MUJOCO_GL", wanted or "")
    monkeypatch.setattr(opengl, "_egl_loads", lambda: loads)
    opengl.choose_platform()
    assert os.environ["MUJOCO_GL"] == expected


def test_the_environment_works_where_opengl_is_switched_off():
    code = (
        "import logging; logging.basicConfig(level='INFO');"
        "import worldmodel.envs as e; env = e.make('reach', image_size=32); env.reset(seed=0);"
        "assert env.unwrapped.renderer_name == 'ray'; print(env.render().shape); env.close()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUJOCO_GL": "disable"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "(256, 256, 3)", result.stderr
    assert "drawing with the ray renderer" in result.stderr


def test_a_program_that_forgets_to_close_ends_quietly(backend):
    code = (
        "import worldmodel.envs as e;"
        f"env = e.make('reach', image_size=32, backend='{backend}'); env.reset(seed=0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
