"""Replay of a recorded episode of a MuJoCo task as frames."""

import numpy as np

from lipctrl.cli.experts import make_env
from lipctrl.evaluation.plots import gif
from lipctrl.evaluation.rollout import Trace

FRAMES, WIDTH, HEIGHT = 60, 320, 200


def animation(env_id: str, trace: Trace) -> str | None:
    """The recorded states drawn by MuJoCo, as a base64 GIF; None where the task or the machine cannot render.

    States are taken from the observations, so the task's observation must be (qpos, qvel).
    """
    import mujoco

    env = make_env(env_id)
    model = getattr(env.unwrapped, "model", None)
    states = np.vstack([trace.observations, trace.last])
    if not isinstance(model, mujoco.MjModel) or states.shape[1] != model.nq + model.nv:
        return None
    try:
        renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    except Exception:  # no display and no EGL: MuJoCo raises whatever its backend raised
        return None
    # Shadows, reflections and multisampling cost a factor of fifteen under software rendering.
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.5, 0.8
    data, frames = mujoco.MjData(model), []
    with renderer:
        for state in states[np.linspace(0, len(states) - 1, min(FRAMES, len(states))).astype(int)]:
            data.qpos[:], data.qvel[:] = state[: model.nq], state[model.nq :]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=-1)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            frames.append(renderer.render().copy())
    return gif(frames, 20.0)
