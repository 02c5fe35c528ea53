"""The structured rivals: what each presses on, whom it kills, and that sizes are physical."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pared
from helpers import branched, images, network, task
from pared.errors import ConfigError, SurgeryError
from pared.methods import L0, GroupLasso, Prune, Slimming, UnitSession
from pared.methods.cuts import cut_to
from pared.methods.units import find_units
from pared.models import vgg
from pared.nn import HardConcrete
from pared.ops import group_soft_threshold
from pared.penalties import group_lasso


def small_vgg(seed: int = 0) -> nn.Sequential:
    return vgg([6, 0, 8, 0], outputs=2, channels=2, size=6, generator=torch.Generator().manual_seed(seed))


def bound(method: Any, model: nn.Module, x: Tensor, lr: float = 0.1, **steps: int) -> UnitSession:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    return method.bind(
        model, optimizer, x[:2], **{"total_steps": 10, "steps_per_epoch": 5, **steps}, generator=generator
    )


def train(session: UnitSession, steps: int, x: Tensor, y: Tensor) -> None:
    for _ in range(steps):
        (F.cross_entropy(session.model(x), y) + session.penalty()).backward()
        session.step()
        session.optimizer.zero_grad()


class TestUnits:
    def test_the_network_is_left_as_it_is(self) -> None:
        net, (x, _) = branched(), images(2)
        before, names = copy.deepcopy(net.state_dict()), [name for name, _ in net.named_modules()]
        found = find_units(net, x)
        assert names == [name for name, _ in net.named_modules()]
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
        assert list(found.selectors) == ["inner", "last", "hidden"]
        assert "tied" in found.skipped["stem"]
        assert "output" in found.skipped["head"]

    def test_units_behind_a_norm_leave_by_it(self) -> None:
        net, (x, _) = small_vgg(), images(2)
        found = find_units(net, x, normed=True)
        for name, units in found.selectors.items():
            norm = net[int(name) + 1]
            assert isinstance(norm, nn.BatchNorm2d)
            units.alive[1] = False
            units.silence()
            assert norm.weight[1] == norm.bias[1] == 0.0
            assert net.get_parameter(f"{name}.weight")[1].abs().sum() > 0

    def test_frozen_weights_are_left_alone_and_a_network_without_norms_cannot_slim(self) -> None:
        net, x = network(), task()[0]
        net.get_parameter("0.weight").requires_grad_(False)
        assert find_units(net, x[:2]).skipped["0"] == "its weights are frozen"
        with pytest.raises(SurgeryError, match="no norm with a weight of its own"):
            find_units(network(), x[:2], normed=True)

    def test_a_norm_without_weight_leaves_the_layer_to_be_silenced(self) -> None:
        net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 2))
        x, y = task()
        session = bound(Prune(params=40, at=(0.2,)), net, x)
        train(session, 6, x, y)
        assert session.events
        net.eval()
        torch.testing.assert_close(session.realize()(x), net(x))


class TestGroupLasso:
    def test_rows_are_those_of_the_penalty_and_of_its_proximal_step(self) -> None:
        net, x = network(), task()[0]
        session = bound(GroupLasso(0.5, proximal=False, threshold=1e-3), net, x)
        weights = [net.get_parameter("0.weight"), net.get_parameter("2.weight")]
        torch.testing.assert_close(session.penalty(), 0.5 * group_lasso(weights, dim=1))
        net = network()
        before = [net.get_parameter("0.weight").detach().clone(), net.get_parameter("2.weight").detach().clone()]
        session = bound(GroupLasso(0.5), net, x, lr=0.2)
        session.step()  # without gradients only the proximal step moves anything
        for weight, old in zip((net.get_parameter("0.weight"), net.get_parameter("2.weight")), before, strict=True):
            torch.testing.assert_close(weight.detach(), group_soft_threshold(old, 0.1, dim=1))

    def test_columns_reach_through_a_flatten(self) -> None:
        net, (x, _) = branched(), images(2)
        session = bound(GroupLasso(0.5, groups="columns", proximal=False, threshold=1e-3), net, x)
        blocks = net.get_parameter("hidden.weight").view(7, 4, 4)  # four channels of 2 x 2 places each
        kernels = net.get_parameter("outer.weight")
        expected = (
            group_lasso([blocks], dim=(0, 2))
            + group_lasso([kernels], dim=(0, 2, 3))
            + group_lasso([net.get_parameter("head.weight")], dim=0)
        )
        torch.testing.assert_close(session.penalty(), 0.5 * expected)

    def test_a_group_of_zeros_has_no_gradient(self) -> None:
        net, x = network(), task()[0]
        with torch.no_grad():
            net.get_parameter("0.weight")[3] = 0.0
        session = bound(GroupLasso(1.0, proximal=False, threshold=1e-3), net, x)
        session.penalty().backward()
        grad = net.get_parameter("0.weight").grad
        assert isinstance(grad, Tensor)
        assert torch.isfinite(grad).all()
        assert (grad[3] == 0).all()

    def test_weights_that_the_optimizer_does_not_have_stay(self) -> None:
        net, x = network(), task()[0]
        before = net.get_parameter("0.weight").detach().clone()
        optimizer = torch.optim.SGD([*net[2].parameters(), *net[4].parameters()], 0.2)
        session = GroupLasso(0.5, every=1).bind(net, optimizer, x[:2])
        session.step()
        assert torch.equal(net.get_parameter("0.weight"), before)
        with pytest.raises(ConfigError, match="holds none of the network's parameters"):
            GroupLasso(0.5, every=1).bind(copy.deepcopy(net), optimizer, x[:2])

    def test_the_last_unit_stays(self) -> None:
        x, y = task()
        session = bound(GroupLasso(100.0, every=1), network(), x)
        train(session, 3, x, y)
        assert [event.left for event in session.events] == [1, 1]
        assert session.params == session.least_params

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": "both"}, "groups must be one of rows, columns"),
            ({"threshold": -1.0}, "threshold must be at least 0"),
            ({"proximal": False}, "give a threshold"),
            ({"strength": -1.0}, "strength must be at least 0"),
        ],
    )
    def test_mistakes_are_told(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            GroupLasso(**options)


class TestCuts:
    @given(st.integers(0, 10_000), st.floats(0.05, 1.0))
    def test_the_fewest_of_the_worst_leave(self, seed: int, share: float) -> None:
        net, x = network(hidden=(6, 5)), task()[0]
        session = bound(Prune(params=1, at=(1.0,)), net, x)
        generator = torch.Generator().manual_seed(seed)
        worth = {name: torch.rand(units.channels, generator=generator) for name, units in session.units.items()}
        goal = max(session.least_params, share * session.params)
        cut_to(session, goal, lambda _, name: worth[name].clone())
        killed = [
            (worth[n][i].item(), n, i) for n, u in session.units.items() for i in range(len(u.alive)) if not u.alive[i]
        ]
        spared = [
            worth[n][i].item()
            for n, u in session.units.items()
            for i in u.live_channels()
            if worth[n][i] < worth[n].max()
        ]
        assert max((value for value, *_ in killed), default=0.0) <= min(spared, default=1.0)
        if killed:  # one less would not do
            _, name, unit = max(killed)
            keep = {n: u.live_channels().tolist() for n, u in session.units.items()}
            keep[name] = sorted([*keep[name], unit])
            assert session.params_with(keep) > goal
        session.remove()
        assert session.params <= goal
        assert session.params == sum(p.numel() for p in net.parameters())

    def test_sizes_fall_by_equal_factors_at_the_moments(self) -> None:
        x, y = task()
        session = bound(Prune(params=30, at=(0.2, 0.5, 1.0)), network(hidden=(40, 40)), x)
        sizes = []
        for _ in range(10):
            train(session, 1, x, y)
            sizes.append(session.params)
        assert sizes[0] == session.start_params == sizes[0]
        first, second, last = (session.start_params * (30 / session.start_params) ** (i / 3) for i in (1, 2, 3))
        assert sizes[1] == sizes[3] <= first < 1.3 * sizes[1]
        assert sizes[4] == sizes[8] <= second < 1.3 * sizes[4]
        assert sizes[9] <= last < 2 * sizes[9]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Prune(params=0), "params must be at least 1"),
            (lambda: Prune(params=5, at=()), "at must be rising fractions"),
            (lambda: Prune(params=5, at=(0.5, 0.2)), "at must be rising fractions"),
            (lambda: Slimming(params=5, at=(1.5,)), "at must be rising fractions"),
            (lambda: Prune(params=5, score="luck"), "score must be one of magnitude, taylor"),  # pyright: ignore[reportArgumentType]
            (lambda: Prune(params=5, rewind=0.5), "before the first cut"),
            (lambda: L0(open=1.0), "open must be above 0 and below 1"),
            (lambda: L0(lr_scale=0.0), "lr_scale must be above 0"),
        ],
    )
    def test_mistakes_are_told(self, make: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make()

    def test_the_length_of_the_run_has_to_be_known(self) -> None:
        for method in (Prune(params=5), Slimming(params=5)):
            net = small_vgg()
            with pytest.raises(ConfigError, match="needs total_steps in bind"):
                method.bind(net, torch.optim.SGD(net.parameters(), 0.1), images(2)[0])


class TestPrune:
    @pytest.mark.parametrize("make", [branched, small_vgg])
    def test_taylor_is_the_gradient_of_a_gate(self, make: Any) -> None:
        x, y = images(16)
        net = make()
        gated = copy.deepcopy(net)
        session = bound(Prune(params=10, score="taylor", at=(1.0,)), net, x)
        gates = pared.add_switches(gated, x[:2])
        F.cross_entropy(session.model(x), y).backward()
        session.step()
        F.cross_entropy(gated(x), y).backward()
        by_layer = {layer: gates.switches[name].theta.grad for name, layer in gates.layers.items()}
        assert by_layer.keys() == session.units.keys()
        for layer, units in session.units.items():
            grad = by_layer[layer]
            assert grad is not None
            torch.testing.assert_close(units.state["importance"], grad.square(), rtol=1e-3, atol=1e-9)

    def test_magnitude_is_relative_to_the_layer(self) -> None:
        x, y = task()
        net = network(hidden=(8, 8))
        with torch.no_grad():
            net.get_parameter("2.weight").mul_(1e-3)  # small everywhere: none of its units is worth less for it
        session = bound(Prune(params=120, at=(0.1,)), net, x, lr=1e-6)
        train(session, 1, x, y)
        assert {event.layer for event in session.events} == {"0", "2"}

    @pytest.mark.parametrize("rewind", [0.0, 0.2])
    def test_the_survivors_get_their_early_weights_back(self, rewind: float) -> None:
        x, y = task()
        net = network()
        session = bound(Prune(params=150, at=(0.6,), rewind=rewind), net, x)
        train(session, round(10 * rewind), x, y)
        early = copy.deepcopy(net.state_dict())
        train(session, 6 - round(10 * rewind), x, y)
        first, second = session.kept["0"], session.kept["2"]
        assert len(first) < 16
        assert torch.equal(net.get_parameter("0.weight"), early["0.weight"][first])
        assert torch.equal(net.get_parameter("2.weight"), early["2.weight"][second][:, first])
        assert not session.optimizer.state

    def test_a_whole_run_through_the_one_call_form(self) -> None:
        x, y = images()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 32)
        result = pared.shrink(
            small_vgg(),
            loader,
            lambda net: (net(x).argmax(1) == y).double().mean().item(),
            max_params=250,
            epochs=4,
            fine_tune=1,
            method=Prune(params=250, at=(0.25, 0.5, 0.75)),
        )
        assert result.chosen.params <= 250 == 250
        assert len(result.front) >= 1
        assert all(not type(m).__module__.startswith("pared") for m in result.model.modules())


class TestSlimming:
    def test_the_penalty_is_that_of_the_scales_until_the_last_cut(self) -> None:
        net, (x, y) = small_vgg(), images()
        session = bound(Slimming(params=250, strength=0.5, at=(0.3,)), net, x)
        scales = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        torch.testing.assert_close(session.penalty(), 0.5 * torch.cat([scale.abs() for scale in scales]).abs().sum())
        with torch.no_grad():
            scales[0][2] = -1e-4
            scales[1][:3] = torch.tensor([0.2, 1e-5, 0.3])
        session.strength = 0.0
        train(session, 3, x, y)
        gone = {event.layer: event.index for event in session.events}
        assert 2 in gone["0"]
        assert 1 in gone["4"]
        session.strength = 0.5
        assert session.penalty().item() == 0.0
        assert session.params <= 250


class TestL0:
    def test_gates_are_open_as_often_as_they_say(self) -> None:
        gate = HardConcrete(5, open=0.5)
        with torch.no_grad():
            gate.theta.copy_(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]))
        generator = torch.Generator().manual_seed(0)
        draws = []
        for _ in range(20_000):
            gate.refresh(generator)
            draws.append(gate.sampled().detach())
        gates = torch.stack(draws)
        assert gates.min() == 0.0
        assert gates.max() == 1.0
        torch.testing.assert_close((gates > 0).double().mean(0), gate.expected().detach().double(), atol=0.012, rtol=0)

    def test_binding_changes_no_answer_and_training_is_random_by_step_only(self) -> None:
        net, (x, y) = branched(), images()
        plain = copy.deepcopy(net).eval()
        session = bound(L0(0.1), net, x)
        torch.testing.assert_close(net.eval()(x), plain(x))
        net.train()
        first, again = net(x), net(x)
        assert torch.equal(first, again)
        assert not torch.allclose(first, plain.train()(x))
        noise = [gate.noise.clone() for gate in net.modules() if isinstance(gate, HardConcrete)]
        train(session, 1, x, y)
        assert not any(
            torch.equal(a, gate.noise)
            for a, gate in zip(noise, (m for m in net.modules() if isinstance(m, HardConcrete)), strict=True)
        )

    def test_closed_gates_leave_and_the_rest_is_folded(self) -> None:
        net, (x, _) = branched(), images()
        session = bound(L0(0.1, every=1), net, x)
        with torch.no_grad():
            for gate in session.switches.values():
                gate.theta[1] = -2.5  # just closed in evaluation
                gate.theta[0] = 0.3
        session.step()
        assert [event.index for event in session.events] == [(1,)] * 3
        small = session.realize().eval()
        torch.testing.assert_close(small(x), net.eval()(x), rtol=1e-4, atol=1e-5)
        assert not any(isinstance(module, HardConcrete) for module in small.modules())

    def test_switches_of_another_kind_are_refused_and_nothing_is_changed(self) -> None:
        net, x = network(), task()[0]
        pared.add_switches(net, x[:2])
        names = [name for name, _ in net.named_modules()]
        with pytest.raises(ConfigError, match="switches of another kind"):
            bound(L0(), net, x)
        assert names == [name for name, _ in net.named_modules()]
        with pytest.raises(ConfigError, match="open must be between 0 and 1"):
            HardConcrete(3, open=0.0)

    def test_a_gate_that_is_dead_stays_dead(self) -> None:
        gate = HardConcrete(3)
        gate.alive[1] = False
        gate.silence()
        loss = gate(torch.ones(2, 3)).sum() + gate.expected().sum()
        loss.backward()
        assert gate.theta.grad is not None
        assert torch.isfinite(gate.theta.grad).all()
        assert gate(torch.ones(2, 3))[:, 1].eq(0).all()


@pytest.mark.parametrize("by_name", [False, True])
def test_taylor_sees_the_gradients_that_a_closure_makes(by_name: bool) -> None:
    x, y = task()
    sessions = [bound(Prune(params=40, score="taylor"), network(), x, total_steps=20) for _ in range(2)]
    first, second = sessions
    train(first, 9, x, y)
    for _ in range(9):

        def closure() -> Tensor:
            second.optimizer.zero_grad()
            loss = F.cross_entropy(second.model(x), y)
            loss.backward()
            return loss

        told = second.optimizer.step(closure=closure) if by_name else second.optimizer.step(closure)  # type: ignore[arg-type]
        assert told is not None
    for name, units in first.units.items():
        assert units.state["importance"].any()
        assert torch.equal(units.state["importance"], second.units[name].state["importance"])


def test_a_short_run_rewinds_to_before_its_first_cut() -> None:
    x, y = task()
    session = bound(Prune(params=60, at=(0.5,), rewind=0.48), network(), x, total_steps=10)
    train(session, 4, x, y)
    before = copy.deepcopy(session.model.state_dict())
    train(session, 1, x, y)
    assert session.events[0].step == 5
    assert "rewind" in session.copies
    kept = session.kept["0"]
    assert torch.equal(session.model.state_dict()["0.weight"], before["0.weight"][kept])
