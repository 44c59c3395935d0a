"""SAC: its update against Stable-Baselines3's own, gradients, regularisers, save and load."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from lipctrl.agents.regularisation import Smoothness, SpectralNorms, perturb, robust_penalty
from lipctrl.agents.sac import SAC
from lipctrl.files import UserError

Any_SAC = stable_baselines3.SAC
SHAPE = {"net_arch": [32, 32]}


def filled(agent: Any_SAC, rows: int = 500) -> Any_SAC:
    """An agent whose replay buffer holds random transitions, some truncated, some terminal."""
    rng = np.random.default_rng(0)
    memory = agent.replay_buffer
    assert memory is not None
    for k in range(rows):
        x, y = rng.normal(size=(2, 1, 3)).astype(np.float32) * [1.0, 2.0, 5.0]
        info: list[dict[str, Any]] = [{"TimeLimit.truncated": k % 5 == 0}]
        memory.add(x, y, rng.uniform(-1, 1, (1, 1)), rng.normal(size=1), np.array([k % 3 == 0 or k % 5 == 0]), info)
    agent.set_logger(Logger(None, []))
    return agent


def agent(kind: type[Any_SAC] = SAC, policy: str = "MlpPolicy", **others: Any) -> Any_SAC:
    others.setdefault("policy_kwargs", SHAPE)
    return filled(kind(policy, "Pendulum-v1", seed=3, device="cpu", buffer_size=1000, **others))


def smooth_agent(**settings: Any) -> SAC:
    made = agent(smoothness=Smoothness(**settings))
    assert isinstance(made, SAC)
    return made


def parameters(model: Any_SAC) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize(
    ("policy", "shape"),
    [("MlpPolicy", SHAPE), ("LipschitzMlpPolicy", {"lip": 5.0, "hidden": (8, 8), "net_arch": [16, 16]})],
)
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_200_updates_are_those_of_stable_baselines3(policy: str, shape: dict[str, Any], ent_coef: Any) -> None:
    both = [agent(kind, policy, policy_kwargs=dict(shape), ent_coef=ent_coef) for kind in (SAC, Any_SAC)]
    both[1].policy.load_state_dict(both[0].policy.state_dict())
    start = parameters(both[0])
    for model in both:
        np.random.seed(1)
        torch.manual_seed(1)
        model.train(gradient_steps=200, batch_size=32)
    ours, theirs = (parameters(model) for model in both)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)
    assert max(float((ours[n] - start[n]).abs().max()) for n in ours) > 1e-2
    if ent_coef == "auto":
        assert both[0].log_ent_coef is not None and both[1].log_ent_coef is not None
        torch.testing.assert_close(both[0].log_ent_coef, both[1].log_ent_coef, rtol=1e-5, atol=1e-6)


def linear_values(slope: Tensor) -> Any:
    return lambda x: (x * slope).sum(-1)


def test_fgsm_maximises_a_linear_function_and_does_not_start_at_zero() -> None:
    slope = torch.tensor([1.0, -2.0, 0.5])
    states, radius = torch.randn(2, 7, 3), torch.tensor([0.1, 0.2, 0.3])
    moved = perturb(linear_values(slope), states, radius, kind="fgsm", steps=1)
    torch.testing.assert_close(moved - states, (radius * slope.sign()).expand(2, 7, 3))
    change = (linear_values(slope)(moved) - linear_values(slope)(states)).abs()
    torch.testing.assert_close(change, torch.full((2, 7), float((radius * slope.abs()).sum())))


def test_adversaries_are_ordered_and_stay_in_the_box() -> None:
    model = smooth_agent()
    critics, states, actions = model._critics, 3 * torch.randn(512, 3), torch.rand(512, 1)
    radius = torch.tensor([0.1, 0.5, 1.0])
    torch.manual_seed(0)
    x, a = states.expand(2, 512, 3), actions.expand(2, 512, 1)

    def values(points: Tensor) -> Tensor:
        return critics(torch.cat([points, a], -1), frozen=True)

    sizes = {}
    for kind in ("uniform", "fgsm", "pgd"):
        moved = perturb(values, x, radius, kind=kind, steps=20)
        assert ((moved - x).abs() <= radius * (1 + 1e-5)).all()
        sizes[kind] = float((values(moved) - values(x)).detach().square().mean())
    assert sizes["uniform"] < sizes["fgsm"] <= sizes["pgd"] * 1.01


def test_penalties_equal_their_first_order_formulae() -> None:
    model = smooth_agent()
    states, actions, scale = torch.randn(256, 3), torch.rand(256, 1), torch.tensor([1.0, 2.0, 5.0])
    point = states.expand(2, 256, 3).clone().requires_grad_()
    values = model._critics(torch.cat([point, actions.expand(2, 256, 1)], -1))
    gradient = scale * torch.autograd.grad(values.sum(), point)[0]
    epsilon, weight = 1e-3, 7.0
    found = {}
    for kind, draws in (("fgsm", 1), ("uniform", 400)):
        smooth = Smoothness(perturbation=kind, epsilon=epsilon, weight=weight)  # type: ignore[arg-type]
        with torch.no_grad():
            torch.manual_seed(0)
        penalties = [robust_penalty(model._critics, states, actions, scale, smooth).detach() for _ in range(draws)]
        found[kind] = float(torch.stack(penalties).mean())
    linear = weight * epsilon**2
    assert found["fgsm"] == pytest.approx(linear * float(gradient.abs().sum(-1).square().mean(1).sum()), rel=0.02)
    assert found["uniform"] == pytest.approx(linear / 3 * float(gradient.square().sum(-1).mean(1).sum()), rel=0.03)


@pytest.mark.parametrize("layers", ["all", "hidden", "penultimate"])
def test_hard_spectral_normalisation_holds_after_training(layers: str) -> None:
    model = smooth_agent(spectral="hard", beta=0.7, layers=layers)
    model.train(gradient_steps=100, batch_size=32)
    norms = [torch.linalg.matrix_norm(weight.detach(), 2) for weight, _ in model._critics.layers]
    chosen = {"all": {0, 1, 2}, "hidden": {0, 1}, "penultimate": {1}}[layers]
    for k in chosen:
        assert (norms[k] <= 0.7 * (1 + 1e-3)).all()
    assert layers != "penultimate" or (norms[0] > 0.8).all()
    points = torch.randn(200, 4, requires_grad=True)
    slopes = torch.autograd.grad(model._critics(points)[0].sum(), points)[0].norm(dim=1)
    assert slopes.max() <= torch.stack([norm[0] for norm in norms]).prod()


def test_projection_leaves_small_matrices_alone_and_soft_term_is_the_squared_excess() -> None:
    model = smooth_agent(beta=0.5)
    critics = model._critics
    with torch.no_grad():
        critics.layers[0][0].mul_(1e-3)
    before = [weight.detach().clone() for weight, _ in critics.layers]
    exact = sum(
        (torch.linalg.matrix_norm(weight.detach(), 2) - 0.5).clamp(min=0).square().sum() for weight, _ in critics.layers
    )
    norms = SpectralNorms(critics, Smoothness(beta=0.5))
    torch.testing.assert_close(norms.excess().detach(), torch.as_tensor(exact))
    norms.project_()
    assert torch.equal(critics.layers[0][0], before[0])
    assert not torch.equal(critics.layers[1][0], before[1])


def slope_after(**settings: Any) -> float:
    model = smooth_agent(**settings)
    torch.manual_seed(1)
    np.random.seed(1)
    model.train(gradient_steps=300, batch_size=64)
    states, *_ = model._sample(256)
    point = states.clone().requires_grad_()
    values = model._critics(torch.cat([point, torch.zeros(256, 1)], -1))
    scale = model._observation_scale()
    return float((scale * torch.autograd.grad(values.sum(), point)[0]).norm(dim=-1).mean())


def test_every_regulariser_flattens_the_critics() -> None:
    plain = slope_after()
    for settings in (
        {"perturbation": "fgsm", "weight": 100.0},
        {"perturbation": "uniform", "weight": 1000.0},
        {"perturbation": "pgd", "weight": 100.0},
        {"perturbation": "fgsm", "weight": 100.0, "on": "next_state"},
        {"spectral": "soft", "spectral_weight": 10.0, "beta": 0.5},
        {"spectral": "hard", "beta": 0.5},
    ):
        assert slope_after(**settings) < 0.9 * plain, settings


def test_layer_norm_makes_the_values_independent_of_the_scale_of_the_first_layer() -> None:
    model = smooth_agent(layer_norm=True)
    x = torch.randn(16, 4)
    before = model._critics(x).detach()
    model_of_modules = torch.cat([net(x) for net in model.critic.q_networks], 1).T  # type: ignore[operator]
    torch.testing.assert_close(before, model_of_modules.detach(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model._critics.layers[0][0].mul_(100)
        model._critics.layers[0][1].mul_(100)
    torch.testing.assert_close(model._critics(x).detach(), before, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_loaded_agent_goes_on_as_the_saved_one(tmp_path: Path, layer_norm: bool) -> None:
    first = smooth_agent(layer_norm=layer_norm, perturbation="fgsm")
    first.train(gradient_steps=20, batch_size=32)
    first.save(tmp_path / "model.zip")
    second = filled(SAC.load(tmp_path / "model.zip", device="cpu"))
    for model in (first, second):
        np.random.seed(5)
        torch.manual_seed(5)
        model.train(gradient_steps=20, batch_size=32)
    ours, theirs = parameters(first), parameters(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_learns_through_the_interface_of_stable_baselines3() -> None:
    env = gymnasium.make("Pendulum-v1")
    model = SAC("MlpPolicy", env, seed=0, learning_starts=50, policy_kwargs={"net_arch": [16]}, device="cpu")
    before = parameters(model)
    model.learn(120)
    assert model._n_updates == 70 and model.num_timesteps == 120
    assert not torch.equal(before["actor.mu.weight"], parameters(model)["actor.mu.weight"])
    assert model.predict(np.zeros(3, np.float32))[0].shape == (1,)


def test_bad_inputs() -> None:
    with pytest.raises(UserError, match="ReLU"):
        agent(policy_kwargs={"activation_fn": torch.nn.Tanh})
    with pytest.raises(UserError, match="use_sde"):
        agent(use_sde=True)
    with pytest.raises(ValueError, match="epsilon"):
        Smoothness(epsilon=float("nan"))
    model = smooth_agent()
    assert model.replay_buffer is not None
    model.replay_buffer.rewards[:] = np.nan
    with pytest.raises(UserError, match="diverged"):
        model.train(gradient_steps=2, batch_size=16)
