from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm

from ubmd.data.elements import species_numbers
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.models.readout import EARLIER_SILU_SCALE, SILU_SCALE, Readout


def random_readout(n_inputs: int, hidden: tuple[int, ...], seed: int = 1) -> Readout:
    generator = torch.Generator().manual_seed(seed)
    readout = Readout(n_inputs, hidden, generator=generator).double()
    for bias in readout.biases:
        torch.nn.init.normal_(bias, generator=generator)
    return readout


def inputs(n: int, width: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def silu(z: np.ndarray | float) -> np.ndarray | float:
    return SILU_SCALE * z / (1 + np.exp(-z))


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4), (5, 4, 3)])
def test_equals_the_formula(hidden: tuple[int, ...]) -> None:
    """Eq. 9, atom by atom in numpy."""
    readout = random_readout(7, hidden)
    x = inputs(5, 7)
    found = readout(x).output.detach().numpy()
    for atom, row in enumerate(x.numpy()):
        values = row
        for layer, (weight, bias) in enumerate(zip(readout.weights, readout.biases, strict=True)):
            if layer:
                values = silu(values)
            w, b = weight.detach().numpy(), bias.detach().numpy()
            values = 0.1 * b + w @ values / np.sqrt(w.shape[1])
        assert values.shape == (1,)
        assert found[atom] == pytest.approx(values[0], rel=1e-12)


def test_trace_says_what_happened() -> None:
    """z of a layer is 0.1 b + W x with the x of the trace, and x of the next is the activation of z."""
    readout = random_readout(7, (6, 4))
    trace = readout(inputs(5, 7))
    assert readout.layer_sizes == [(7, 6), (6, 4), (4, 1)]
    for layer, (weight, bias) in enumerate(zip(readout.weights, readout.biases, strict=True)):
        z = trace.inputs[layer] @ weight.T + 0.1 * bias
        torch.testing.assert_close(trace.preactivations[layer], z)
        if layer + 1 < len(readout.weights):
            x = torch.from_numpy(silu(z.detach().numpy())) / z.shape[1] ** 0.5
            torch.testing.assert_close(trace.inputs[layer + 1], x)


@pytest.mark.parametrize("hidden", [(6,), (6, 4), (5, 4, 3)])
def test_output_gradients(hidden: tuple[int, ...]) -> None:
    readout = random_readout(7, hidden)
    trace = readout(inputs(5, 7))
    expected = torch.autograd.grad(trace.output.sum(), trace.preactivations, retain_graph=True)
    found = trace.output_gradients()
    assert len(found) == len(hidden) + 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("explicit", [False, True])
def test_output_gradients_are_differentiable(explicit: bool) -> None:
    readout = random_readout(4, (3, 3))

    def flat(x: torch.Tensor) -> torch.Tensor:
        trace = readout(x, explicit=explicit)
        return torch.cat([*trace.output_gradients(), trace.input_gradients(), trace.output[:, None]], dim=1)

    assert torch.autograd.gradcheck(flat, inputs(2, 4).requires_grad_())


def test_numbers_of_parameters() -> None:
    """The paper's sizes for four species."""
    model = GMNN(["H", "C", "N", "O"])
    count = {name: sum(p.numel() for p in group) for name, group in model.parameter_groups().items()}
    assert count == {
        "readout": 910 * 512 + 512 + 512 * 512 + 512 + 512 + 1,
        "representation": 4**2 * 7 * 9,
        "shift": 4,
        "scale": 4,
    }
    assert sum(count.values()) == sum(p.numel() for p in model.parameters())


def test_initial_values() -> None:
    model = GMNN(["H", "O"], seed=2)
    for weight in model.readout.weights:
        sample = weight.detach().numpy().ravel()[:20000]
        assert kstest(sample, "norm").pvalue > 1e-3
    for bias in model.readout.biases:
        assert torch.count_nonzero(bias) == 0
    assert model.scale.tolist() == [1.0, 1.0]
    assert model.shift.tolist() == [0.0, 0.0]
    assert model.energy_unit == 1.0


def test_initial_values_follow_the_seed_alone() -> None:
    first = GMNN(["H", "O"], seed=2, hidden=(8,)).state_dict()
    torch.manual_seed(123)
    again = GMNN(["H", "O"], seed=2, hidden=(8,)).state_dict()
    other = GMNN(["H", "O"], seed=3, hidden=(8,)).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    for name in ("beta", "readout.weights.0", "readout.weights.1"):
        assert not torch.equal(first[name], other[name])


def test_activation_has_unit_second_moment() -> None:
    moment, _ = quad(lambda z: float(silu(z)) ** 2 * norm.pdf(z), -12, 12)
    assert moment == pytest.approx(1.0, abs=1e-12)


def test_weights_keep_the_scale_that_they_were_fitted_with() -> None:
    """A state without one is of an earlier version, whatever the network that takes it was; an ensemble's too."""
    x = inputs(5, 7)
    readout = random_readout(7, (6, 4))
    state = readout.state_dict()
    del state["_extra_state"]
    other = random_readout(7, (6, 4), seed=2)
    other.load_state_dict(state)
    assert other.silu_scale == EARLIER_SILU_SCALE == 1.6765
    values = x.numpy()
    for layer, (weight, bias) in enumerate(zip(readout.weights, readout.biases, strict=True)):
        values = values if not layer else 1.6765 * values / (1 + np.exp(-values))
        w = weight.detach().numpy()
        values = 0.1 * bias.detach().numpy() + values @ w.T / np.sqrt(w.shape[1])
    x.requires_grad_()
    for explicit in (False, True):
        trace = other(x, explicit=explicit)
        np.testing.assert_allclose(trace.output.detach(), values[:, 0], rtol=1e-12)
        (slopes,) = torch.autograd.grad(trace.output.sum(), x)
        torch.testing.assert_close(trace.input_gradients(), slopes)
    readout.load_state_dict(other.state_dict())
    assert readout.float().silu_scale == 1.6765

    members = [GMNN(["H"], hidden=(4, 4), seed=seed) for seed in (0, 1)]
    for member in members:
        member.readout.silu_scale = 1.6765
    stack = GMNN.stack(members)
    representation = torch.randn(2, 3, members[0].contractions.n_features)
    outputs = [m.readout(x).output for m, x in zip(members, representation, strict=True)]
    torch.testing.assert_close(stack.readout(representation), torch.stack(outputs))
    assert stack.state_dict()["readout._extra_state"] == 1.6765
    with pytest.raises(InputError, match="scale of SiLU"):
        stack.load_state_dict(stack.state_dict() | {"readout._extra_state": torch.tensor(0.0)})


def test_signal_keeps_its_size() -> None:
    """With those factors every layer of a wide network has preactivations of unit variance."""
    readout = Readout(400, (400, 400, 400), generator=torch.Generator().manual_seed(0)).double()
    trace = readout(inputs(500, 400))
    for z in trace.preactivations[:-1]:
        assert z.square().mean().item() == pytest.approx(1.0, abs=0.1)


def test_species_are_sorted_and_checked() -> None:
    assert species_numbers(["O", "H", "C"]) == [1, 6, 8]
    with pytest.raises(InputError, match=r"'Xx'.*not a chemical symbol"):
        species_numbers(["H", "Xx"])
    for wrong in (["H", "H"], []):
        with pytest.raises(InputError, match="each element once"):
            species_numbers(wrong)


def test_cutoff_must_leave_room() -> None:
    with pytest.raises(InputError, match=r"model\.cutoff=0\.5.*model\.r_min"):
        GMNN(["H"], cutoff=0.5)


def test_the_order_of_species_does_not_matter() -> None:
    one, other = GMNN(["O", "H"], hidden=(4,)), GMNN(["H", "O"], hidden=(4,))
    assert all(torch.equal(one.state_dict()[k], v) for k, v in other.state_dict().items())
