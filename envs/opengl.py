"""Can this process draw with OpenGL?

MuJoCo reads ``MUJOCO_GL`` once, while it is imported, so `choose_platform` runs in
``worldmodel/envs/__init__.py``: before any module here imports mujoco. An EGL library that loads
may still lack a driver, so `why_unusable` draws one small picture in another process, where a
driver that crashes does no harm.
"""

import ctypes
import functools
import logging
import os
import subprocess
import sys

logger = logging.getLogger(__name__)

INSTALL_HINT = "install the system packages libegl1 and libgl1-mesa-dri (Debian, Ubuntu)"

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
image = renderer.render()
renderer.close()
raise SystemExit(0 if image.any() else "OpenGL draws only black pixels")
"""


def choose_platform() -> None:
    """Set ``MUJOCO_GL`` for a machine without a screen, unless the user has set it.

    Linux only: elsewhere MuJoCo's own default works. ``egl`` if libEGL loads, else ``disable``.
    With ``MUJOCO_GL=egl`` and no libEGL, importing mujoco would raise, so the value is replaced,
    with a warning.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if sys.platform != "linux" or "mujoco" in sys.modules or wanted not in ("", "egl"):
        return
    if _egl_loads():
        os.environ["MUJOCO_GL"] = "egl"
        return
    if wanted:
        logger.warning("MUJOCO_GL=egl, but libEGL does not load: OpenGL is off; %s", INSTALL_HINT)
    os.environ["MUJOCO_GL"] = "disable"


@functools.cache
def why_unusable() -> str | None:
    """Return None if OpenGL draws, else one sentence saying why not.

    The first call starts a process (about a second); the answer is kept for this process.
    """
    platform = os.environ.get("MUJOCO_GL", "").strip().lower()
    if platform in ("disable", "disabled", "off", "false", "0"):
        return f"MUJOCO_GL={platform} (no libEGL was found, or OpenGL was switched off)"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return "a test picture was not drawn within 60 s"
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"]
    reason = (
        f"a test picture could not be drawn with MUJOCO_GL={platform or '(unset)'}: {lines[-1]}"
    )
    if not platform:
        reason += "; import worldmodel.envs before mujoco, or set MUJOCO_GL=egl"
    return reason


def _egl_loads() -> bool:
    """Return whether the system's EGL library can be loaded."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return True
