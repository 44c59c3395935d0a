"""Channels: what each needs, what it changes in a model, and that masses come with recomputed constants."""

from pathlib import Path

import gymnasium
import gymnasium.envs.mujoco
import mujoco
import numpy as np
import pytest

from lipctrl.disturb.channel import (
    ActuatorGain,
    Damping,
    Friction,
    GeneralisedForce,
    Mass,
    SensorDelay,
    SensorNoise,
    Wrench,
    disturbed_model,
)
from lipctrl.files import UserError

HOPPER = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "hopper.xml"
DERIVED = ("body_invweight0", "dof_invweight0", "body_subtreemass", "dof_M0", "actuator_acc0")


@pytest.fixture
def hopper() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(HOPPER))


def recompiled(body: str, factor: float) -> mujoco.MjModel:
    """Hopper compiled from its description with the density of one body changed."""
    spec = mujoco.MjSpec.from_file(str(HOPPER))
    for geom in spec.body(body).geoms:
        geom.density *= factor
    return spec.compile()


def after(model: mujoco.MjModel, steps: int = 400) -> np.ndarray:
    """Position and velocity after some steps of falling onto the floor under a constant control."""
    data = mujoco.MjData(model)
    data.ctrl[:] = 0.1
    mujoco.mj_step(model, data, steps)
    return np.concatenate([data.qpos, data.qvel])


@pytest.mark.parametrize("body", ["torso", "foot"])
def test_doubled_mass_equals_the_recompiled_model(hopper: mujoco.MjModel, body: str) -> None:
    ours, theirs = disturbed_model(hopper, [(Mass(body=body), np.array([2.0]))]), recompiled(body, 2.0)
    for field in ("body_mass", "body_inertia", *DERIVED):
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=1e-12, atol=1e-14)
    assert ours.stat.meaninertia == pytest.approx(theirs.stat.meaninertia, rel=1e-12)
    np.testing.assert_allclose(after(ours), after(theirs), rtol=0, atol=1e-9)
    assert np.abs(after(ours) - after(hopper)).max() > 1e-3


def test_skipping_the_recomputation_is_a_trap(hopper: mujoco.MjModel) -> None:
    careless = mujoco.MjModel.from_xml_path(str(HOPPER))
    Mass(body="torso").scale(careless, np.array([2.0]))
    right = disturbed_model(hopper, [(Mass(body="torso"), np.array([2.0]))])
    assert not np.allclose(careless.dof_invweight0, right.dof_invweight0, rtol=0.1)
    assert np.abs(after(careless) - after(right)).max() > 1e-6


def test_masses_of_several_bodies_multiply_and_the_nominal_model_stays(hopper: mujoco.MjModel) -> None:
    nominal = hopper.body_mass.copy()
    both = [(Mass(), np.array([2.0])), (Mass(body="torso"), np.array([3.0]))]
    model = disturbed_model(hopper, both)
    factor = np.full(hopper.nbody, 2.0)
    factor[hopper.body("torso").id] = 6.0
    np.testing.assert_allclose(model.body_mass, nominal * factor, rtol=1e-15)
    np.testing.assert_array_equal(hopper.body_mass, nominal)


def test_friction_changes_what_contacts_use_although_the_foot_dominates(hopper: mujoco.MjModel) -> None:
    def sliding(model: mujoco.MjModel) -> float:
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, 400)
        assert data.ncon > 0
        return float(data.contact.friction[0, 0])

    halved = disturbed_model(hopper, [(Friction(), np.array([0.5]))])
    assert sliding(hopper) == 2.0  # the foot's, larger than the floor's 1.0
    assert sliding(halved) == 1.0
    np.testing.assert_array_equal(halved.geom_friction, 0.5 * hopper.geom_friction)
    floor_only = disturbed_model(hopper, [])
    floor_only.geom_friction[hopper.geom("floor").id] *= 0.5
    assert sliding(floor_only) == 2.0  # the trap: no effect


def test_gain_scales_the_force_and_damping_the_resistance(hopper: mujoco.MjModel) -> None:
    model = disturbed_model(hopper, [(ActuatorGain(), np.array([0.5, 1.0, 0.0])), (Damping(), np.full(6, 3.0))])
    data = mujoco.MjData(model)
    data.ctrl[:], data.qvel[:] = 1.0, 1.0
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force, [0.5, 1.0, 0.0])
    np.testing.assert_allclose(data.qfrc_passive, [0, 0, 0, -3, -3, -3])


def test_unknown_names_are_refused_with_the_nearest(hopper: mujoco.MjModel) -> None:
    with pytest.raises(UserError, match="unknown body 'torsso'; did you mean 'torso'"):
        Wrench(body="torsso").size(hopper)
    with pytest.raises(UserError, match="unknown joint 'foot_jont'; did you mean 'foot_joint'"):
        GeneralisedForce(joint="foot_jont").size(hopper)
    with pytest.raises(UserError, match="unknown body 'world'"):
        Mass(body="world").size(hopper)
    assert GeneralisedForce(joint="rootx").size(hopper) == 1
    assert GeneralisedForce().size(hopper) == 6


def test_values_are_checked() -> None:
    with pytest.raises(UserError, match="'wrench' needs 6 numbers"):
        Wrench(body="torso").checked(1.0, 6)
    with pytest.raises(UserError, match="needs finite numbers"):
        Friction().checked(np.nan, 1)
    with pytest.raises(UserError, match="'friction' needs values >= 0"):
        Friction().checked(-0.1, 1)
    with pytest.raises(UserError, match="counts control steps"):
        SensorDelay().checked(1.5, 1)
    np.testing.assert_array_equal(ActuatorGain().checked(0.7, 3), [0.7, 0.7, 0.7])
    with pytest.raises(UserError, match="'sensor_noise' needs 4 numbers"):
        SensorNoise().checked(0.1, 4)  # observations have different units: one number cannot stand for all
    np.testing.assert_array_equal(Mass().checked(None, 1), [1.0])


def test_muscles_are_refused_by_the_gain_channel(hopper: mujoco.MjModel) -> None:
    hopper.actuator_gaintype[0] = mujoco.mjtGain.mjGAIN_MUSCLE
    with pytest.raises(UserError, match="fixed or affine"):
        ActuatorGain().size(hopper)
