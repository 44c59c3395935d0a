"""SAC: its update against Stable-Baselines3's own, gradients, regularisers, save and load."""

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from torch import Tensor

from lipctrl.agents.regularisation import Smoothness, largest_singular_values, perturb, power_iteration
from lipctrl.agents.sac import SAC
from lipctrl.agents.sac_learner import Learner, train_together
from lipctrl.agents.stacked import Stacked, gradients
from lipctrl.agents.update import smallest
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


def same_stream(reference: Any_SAC, seed: int) -> None:
    """Make SB3's agent draw its batches and its actions' noise from torch's global generator in our order."""
    memory = reference.replay_buffer
    assert isinstance(memory, ReplayBuffer)

    def sample(size: int, env: Any = None) -> Any:
        return memory._get_samples(torch.randint(memory.size(), (size,)).numpy())

    memory.sample = sample  # type: ignore[method-assign, assignment]
    torch.manual_seed(seed)


BOUNDED = {"lip": 5.0, "hidden": (8, 8), "net_arch": [16, 16]}
CERTIFIED = {**BOUNDED, "critic_lip": 20.0}


@pytest.mark.parametrize(
    ("policy", "shape"),
    [
        ("MlpPolicy", SHAPE),
        ("MlpPolicy", {**SHAPE, "activation_fn": torch.nn.Tanh}),
        ("LipschitzMlpPolicy", BOUNDED),
        ("LipschitzMlpPolicy", CERTIFIED),
    ],
)
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_200_updates_are_those_of_stable_baselines3(policy: str, shape: dict[str, Any], ent_coef: Any) -> None:
    both = [agent(kind, policy, policy_kwargs=dict(shape), ent_coef=ent_coef) for kind in (SAC, Any_SAC)]
    both[1].policy.load_state_dict(both[0].policy.state_dict())
    start = parameters(both[0])
    both[0].draws.manual_seed(1)
    same_stream(both[1], 1)
    for model in both:
        for _ in range(200):
            model.train(gradient_steps=1, batch_size=32)
    ours, theirs = (parameters(model) for model in both)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5)
    assert max(float((ours[n] - start[n]).abs().max()) for n in ours) > 1e-2
    if ent_coef == "auto":
        assert both[0].log_ent_coef is not None and both[1].log_ent_coef is not None
        torch.testing.assert_close(both[0].log_ent_coef, both[1].log_ent_coef, rtol=1e-5, atol=1e-6)


SMOOTH: list[dict[str, Any]] = [
    {},
    {"perturbation": "fgsm"},
    {"perturbation": "pgd", "on": "next_state", "layer_norm": True},
    {"perturbation": "uniform", "spectral": "hard", "beta": 0.7},
    {"spectral": "soft", "beta": 0.7},
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs g++")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, inside its compiler
@pytest.mark.parametrize("settings", SMOOTH)
def test_200_compiled_updates_are_the_plain_ones(settings: dict[str, Any]) -> None:
    """20 with pgd, whose choice between two equally bad points rounding decides sooner or later."""
    both = [agent(smoothness=Smoothness(**settings), compiled=compiled) for compiled in (False, True)]
    for model in both:
        model.train(gradient_steps=20 if settings.get("perturbation") == "pgd" else 200, batch_size=32)
    plain, compiled = (parameters(model) for model in both)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs g++")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_agents_that_take_turns_keep_to_their_own_update() -> None:
    """The compiled functions of all agents are in one store; shapes, widths or settings tell them apart."""
    kinds: list[dict[str, Any]] = [{}, {"smoothness": Smoothness(perturbation="fgsm", weight=50.0)}, {"gamma": 0.5}]
    kinds += [{"policy_kwargs": {"net_arch": [20, 40], "activation_fn": torch.nn.Tanh}}]
    pairs = [[agent(compiled=compiled, **kind) for compiled in (False, True)] for kind in kinds]
    for size in (32, 32, 16):
        for pair in pairs:
            for model in pair:
                model.train(gradient_steps=3, batch_size=size)
    for plain, compiled in pairs:
        found = parameters(compiled)
        for name, value in parameters(plain).items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", SMOOTH)
def test_agents_trained_together_are_those_trained_alone(settings: dict[str, Any]) -> None:
    def agents() -> list[SAC]:
        kinds = [filled(smooth_sac(settings, seed), rows=300 + 50 * seed) for seed in range(3)]
        return [model for model in kinds if isinstance(model, SAC)]

    alone, together = agents(), agents()
    Learner(together)
    train_together(together, 50, 32)
    for one, other in zip(alone, together, strict=True):
        one.train(50, 32)
        first, second = parameters(one), parameters(other)
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)
        assert one._n_updates == other._n_updates == 50
    assert not torch.equal(*(next(model.actor.parameters()) for model in together[:2]))


def smooth_sac(settings: dict[str, Any], seed: int) -> SAC:
    shape: dict[str, Any] = dict(SHAPE)
    return SAC(
        "MlpPolicy", "Pendulum-v1", seed=seed, device="cpu", policy_kwargs=shape, smoothness=Smoothness(**settings)
    )


def test_reduced_products_are_off_by_their_rounding_and_bounded_networks_have_none() -> None:
    """bfloat16 keeps 8 bits, a relative error of 2^-8 per rounding; a smooth network, so that no kink amplifies it."""
    nets = [torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)) for _ in range(2)]
    exact, rough = Stacked(nets), Stacked(nets, reduced=True)
    x, weight = torch.randn(2, 50, 4), torch.randn(2, 50, 3)
    found = [
        gradients(lambda leaves, s=s: ((s(leaves, x) * weight).sum(), s(leaves, x)), s.leaves) for s in (exact, rough)
    ]
    for values in zip((found[0][1], *found[0][0]), (found[1][1], *found[1][0]), strict=True):
        error = float((values[0] - values[1]).norm() / values[0].norm())
        assert error < 0.01 and values[1].dtype == torch.float32
    assert not torch.equal(found[0][1], found[1][1])
    bounded = list(agent(policy="LipschitzMlpPolicy", policy_kwargs=dict(CERTIFIED)).critic.q_networks)
    first, second = Stacked(bounded), Stacked(bounded, reduced=True)
    assert torch.equal(first(first.leaves, x), second(second.leaves, x))


def test_an_agent_with_reduced_products_learns_almost_the_same() -> None:
    both = [agent(products=products) for products in ("float32", "bfloat16")]
    start = parameters(both[0])
    for model in both:
        model.train(gradient_steps=50, batch_size=32)
    exact, rough = (parameters(model) for model in both)
    moved, apart = (torch.cat([(exact[n] - p[n]).flatten() for n in exact]).norm() for p in (start, rough))
    assert 0 < apart < 0.2 * moved


def test_agents_of_other_settings_are_not_trained_together() -> None:
    with pytest.raises(UserError, match="same networks and settings"):
        Learner([agent(), agent(gamma=0.9)])  # type: ignore[list-item]


def linear_values(slope: Tensor) -> Any:
    return lambda x: (x * slope).sum(-1)


def uniform(shape: Any) -> Tensor:
    return 2 * torch.rand(shape) - 1


def test_fgsm_maximises_a_linear_function_and_does_not_start_at_zero() -> None:
    slope = torch.tensor([1.0, -2.0, 0.5])
    states, radius = torch.randn(2, 7, 3), torch.tensor([0.1, 0.2, 0.3])
    moved = perturb(linear_values(slope), states, radius, torch.zeros(2, 7, 3), kind="fgsm", steps=1)
    torch.testing.assert_close(moved - states, (radius * slope.sign()).expand(2, 7, 3))
    change = (linear_values(slope)(moved) - linear_values(slope)(states)).abs()
    torch.testing.assert_close(change, torch.full((2, 7), float((radius * slope.abs()).sum())))


def test_adversaries_of_a_trained_critic_are_ordered_and_stay_in_the_box() -> None:
    model = smooth_agent()
    model.train(gradient_steps=300, batch_size=64)
    update = model.learner.update
    states, actions = 3 * torch.randn(1, 512, 3), torch.rand(1, 512, 1)
    x, radius = states[:, None].expand(1, 2, 512, 3), 0.05 * model.deviation()

    def values(points: Tensor) -> Tensor:
        return update.values(update.critics, update.critics.leaves, points, actions)

    sizes, start = {}, uniform(x.shape)
    for kind in ("uniform", "fgsm", "pgd"):
        moved = perturb(values, x, radius, start, kind=kind, steps=20)
        assert ((moved - x).abs() <= radius * (1 + 1e-5)).all()
        sizes[kind] = float((values(moved) - values(x)).square().mean())
    assert sizes["uniform"] < sizes["fgsm"] <= sizes["pgd"] * (1 + 1e-6)


def test_noise_on_the_input_is_a_penalty_on_the_slope_until_the_critic_fits() -> None:
    """E (Q(s + e) - y)^2 = (Q - y)^2 + tr(S gg') + (Q - y) tr(S H) + o(S), e ~ N(0, S), on a random smooth network."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).double()
    s, y, sigma = torch.randn(3, dtype=torch.float64), 0.7, 0.02 * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def q(x: Tensor) -> Tensor:
        return net(x).squeeze(-1)  # type: ignore[no-any-return]

    slope, curvature = torch.func.jacrev(q)(s), torch.func.jacrev(torch.func.jacrev(q))(s)
    residual, variance = q(s) - y, sigma.square()
    expected = residual**2 + (variance * slope.square()).sum() + residual * (variance * curvature.diagonal()).sum()
    noise = sigma * torch.randn(200_000, 3, dtype=torch.float64)
    pairs = 0.5 * ((q(s + noise) - y).square() + (q(s - noise) - y).square())  # antithetic: odd orders cancel
    error = pairs.std() / len(pairs) ** 0.5
    assert abs(pairs.mean() - expected) < 3 * error
    assert abs(pairs.mean() - residual**2) > 30 * error  # what the two terms explain is no noise


def test_penalties_equal_their_first_order_formulae() -> None:
    """fgsm: epsilon^2 |sigma * grad Q|_1^2; uniform: epsilon^2 / 3 |sigma * grad Q|_2^2."""
    update = smooth_agent().learner.update
    states, actions, scale = torch.randn(1, 256, 3), torch.rand(1, 256, 1), torch.tensor([1.0, 2.0, 5.0])
    epsilon, x = 1e-3, states[:, None].expand(1, 2, 256, 3)

    def values(points: Tensor) -> Tensor:
        return update.values(update.critics, update.critics.leaves, points, actions)

    point = x.clone().requires_grad_()
    gradient = scale * torch.autograd.grad(values(point).sum(), point)[0]
    found = {}
    for kind, draws in (("fgsm", 1), ("uniform", 400)):
        moved = [
            perturb(values, x, epsilon * scale, uniform(x.shape), kind=kind, steps=1)  # type: ignore[arg-type]
            for _ in range(draws)
        ]
        found[kind] = float(torch.stack([(values(at) - values(x)).square().mean() for at in moved]).mean())
    assert found["fgsm"] == pytest.approx(epsilon**2 * float(gradient.abs().sum(-1).square().mean()), rel=0.02)
    assert found["uniform"] == pytest.approx(epsilon**2 / 3 * float(gradient.square().sum(-1).mean()), rel=0.03)


def matrices(model: SAC) -> list[Tensor]:
    critics = model.learner.update.critics
    return [critics.leaves[k] for k in critics.matrices()]


def values_of(model: SAC, points: Tensor) -> Tensor:
    """(critics, batch) of inputs (batch, n + m), by SB3's modules."""
    return torch.stack([net(points).squeeze(-1) for net in model.critic.q_networks])


@pytest.mark.parametrize("layers", ["all", "hidden", "penultimate"])
def test_hard_spectral_normalisation_holds_after_training(layers: str) -> None:
    model = smooth_agent(spectral="hard", beta=0.7, layers=layers)
    model.train(gradient_steps=100, batch_size=32)
    norms = [torch.linalg.matrix_norm(weight, 2) for weight in matrices(model)]
    chosen = {"all": {0, 1, 2}, "hidden": {0, 1}, "penultimate": {1}}[layers]
    for k in chosen:
        assert (norms[k] <= 0.7 * (1 + 1e-3)).all()
    assert layers != "penultimate" or (norms[0] > 0.8).all()
    slopes = model.gradient_norms(torch.randn(200, 3), torch.rand(200, 1))
    assert slopes.max() <= torch.stack(norms).prod(0).max()


def test_certified_bound_secant_and_slope_of_a_constrained_critic_are_ordered() -> None:
    """The product of exact norms is at least the steepest secant found, which is at least the mean slope nearby."""
    model = smooth_agent(spectral="hard", beta=0.9)
    model.train(gradient_steps=200, batch_size=32)
    bound = max(float(p) for p in torch.stack([torch.linalg.matrix_norm(w, 2) for w in matrices(model)]).prod(0))
    states, actions = torch.randn(1, 256, 3), 2 * torch.rand(1, 256, 1) - 1
    update, x = model.learner.update, states[:, None].expand(1, 2, 256, 3)

    def values(points: Tensor) -> Tensor:
        return update.values(update.critics, update.critics.leaves, points, actions)

    moved = perturb(values, x, 0.3 * torch.ones(3), uniform(x.shape), kind="pgd", steps=20)
    secants = (values(moved) - values(x)).abs() / (moved - x).norm(dim=-1)
    assert bound >= secants.max() > 0.2 * bound
    assert secants.max() >= model.gradient_norms(states[0], actions[0]).mean()


def test_projection_leaves_small_matrices_alone_and_power_iteration_converges_from_below() -> None:
    model = smooth_agent(spectral="hard", beta=0.5)
    with torch.no_grad():
        matrices(model)[0].mul_(1e-3)
    small, rest = matrices(model)[0].clone(), matrices(model)[1].clone()
    model.lr_schedule = lambda _: 0.0
    model.train(gradient_steps=1, batch_size=16)
    assert torch.equal(matrices(model)[0], small) and not torch.equal(matrices(model)[1], rest)
    exact, right = torch.linalg.matrix_norm(rest, 2), torch.nn.functional.normalize(torch.randn(2, 32), dim=-1)
    found = []
    for _ in range(300):
        left = power_iteration([rest], [right])
        found.append(largest_singular_values([rest], left, [right])[0])
    assert all((norm <= exact * (1 + 1e-5)).all() for norm in found)
    torch.testing.assert_close(found[-1], exact, rtol=1e-3, atol=0)


def test_the_spectral_bound_is_calibrated_from_measured_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipctrl.agents.sac.CALIBRATION", 1000)
    model = smooth_agent(spectral="hard", beta=None)
    model.train(gradient_steps=1000, batch_size=16)
    assert torch.isinf(model.memory.beta)
    before = max(float(torch.linalg.matrix_norm(weight, 2).max()) for weight in matrices(model))
    model.train(gradient_steps=1, batch_size=16)
    beta = float(model.memory.beta)
    states, actions, *_ = model.replay(slice(0, 500))
    steep = float(model.gradient_norms(states, actions).quantile(0.95))
    assert beta < before and steep <= beta**3 * (1 + 1e-3)
    assert max(float(torch.linalg.matrix_norm(weight, 2).max()) for weight in matrices(model)) <= beta * 1.01


def slope_after(**settings: Any) -> float:
    model = smooth_agent(**settings)
    model.train(gradient_steps=300, batch_size=64)
    states, *_ = model.replay(slice(0, 256))
    point = states.clone().requires_grad_()
    values = values_of(model, torch.cat([point, torch.zeros(256, 1)], -1))
    return float((model.deviation() * torch.autograd.grad(values.sum(), point)[0]).norm(dim=-1).mean())


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
    x, update = torch.randn(16, 4), model.learner.update
    before = values_of(model, x).detach()
    stacked = update.values(update.critics, update.critics.leaves, x[None, :, :3], x[None, :, 3:])[0]
    torch.testing.assert_close(before, stacked, rtol=1e-5, atol=1e-6)
    first = dict(zip(update.critics.names, update.critics.leaves, strict=True))
    for name in ("0.weight", "0.bias"):
        first[name].mul_(100)
    torch.testing.assert_close(values_of(model, x).detach(), before, rtol=1e-2, atol=1e-3)


def test_certified_critics_keep_their_bound_while_training() -> None:
    model = agent(policy="LipschitzMlpPolicy", policy_kwargs=dict(CERTIFIED, critic_lip=3.0))
    assert isinstance(model, SAC)
    assert model.replay_buffer is not None
    model.replay_buffer.rewards *= 1000
    model.train(gradient_steps=300, batch_size=32)
    slopes = model.gradient_norms(100 * torch.randn(2000, 3), 2 * torch.rand(2000, 1) - 1)
    assert 1.0 < slopes.max() <= 3.0 * (1 + 1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_loaded_agent_goes_on_as_the_saved_one(tmp_path: Path, layer_norm: bool) -> None:
    first = smooth_agent(layer_norm=layer_norm, perturbation="fgsm", spectral="hard")
    first.train(gradient_steps=20, batch_size=32)
    first.save(tmp_path / "model.zip")
    second = filled(SAC.load(tmp_path / "model.zip", device="cpu"))
    for model in (first, second):
        model.draws.manual_seed(5)
        model.train(gradient_steps=20, batch_size=32)
    ours, theirs = parameters(first), parameters(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.log_ent_coef is not None and torch.equal(first.log_ent_coef, second.log_ent_coef)


def test_learns_through_the_interface_of_stable_baselines3() -> None:
    env = gymnasium.make("Pendulum-v1")
    model = SAC("MlpPolicy", env, seed=0, learning_starts=50, policy_kwargs={"net_arch": [16]}, device="cpu")
    before = parameters(model)
    model.learn(120)
    assert model._n_updates == 70 and model.num_timesteps == 120
    assert not torch.equal(before["actor.mu.weight"], parameters(model)["actor.mu.weight"])
    assert model.predict(np.zeros(3, np.float32))[0].shape == (1,)


def test_bad_inputs() -> None:
    with pytest.raises(UserError, match="Adam"):
        agent(policy_kwargs={"optimizer_class": torch.optim.SGD})
    with pytest.raises(UserError, match="dynamics model"):
        smooth_agent(perturbation="fgsm", unit="model").train(1, 8)
    with pytest.raises(UserError, match="linear layers"):
        agent(policy="LipschitzMlpPolicy", policy_kwargs=CERTIFIED, smoothness=Smoothness(spectral="hard"))
    with pytest.raises(UserError, match="use_sde"):
        agent(use_sde=True)
    with pytest.raises(ValueError, match="epsilon"):
        Smoothness(epsilon=float("nan"))
    model = smooth_agent()
    assert model.replay_buffer is not None
    model.replay_buffer.rewards[:] = np.nan
    with pytest.raises(UserError, match="diverged"):
        model.train(gradient_steps=2, batch_size=16)


@pytest.mark.parametrize("critics", [1, 2, 3])
def test_the_least_value_and_its_gradient_are_those_of_amin(critics: int) -> None:
    values = torch.randn(2, critics, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = [torch.autograd.grad(least.square().sum(), values)[0] for least in (smallest(values), values.amin(1))]
    assert torch.equal(smallest(values), values.amin(1)) and torch.equal(*found)
