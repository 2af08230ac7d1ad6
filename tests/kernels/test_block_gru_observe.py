"""The fused observe loop: equal to the loop that autograd follows, outputs and every gradient, across resets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldmodel.kernels.block_gru_observe import Weights, fused, reference
from worldmodel.models.cores.rssm import RSSM, RSSMConfig, RSSMState

INPUTS = ("deter", "stoch", "action", "token")


def make(
    rows: int = 3, time: int = 6, *, size: int = 32, hidden: int = 16, blocks: int = 4, groups: int = 4,
    classes: int = 5, resets: tuple[tuple[int, int], ...] = (), seed: int = 0,
) -> tuple[dict[str, Tensor], Weights]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    own, flat = size // blocks, groups * classes
    weights = Weights(
        deter=normal(hidden, size, scale=size**-0.5), deter_bias=normal(hidden, scale=0.1),
        deter_scale=1 + normal(hidden, scale=0.1),
        stoch=normal(hidden, flat, scale=groups**-0.5), stoch_bias=normal(hidden, scale=0.1),
        stoch_scale=1 + normal(hidden, scale=0.1),
        mix=normal(blocks, own + 3 * hidden, own, scale=(own + 3 * hidden) ** -0.5), mix_bias=normal(size, scale=0.1),
        mix_scale=1 + normal(size, scale=0.1),
        gates=normal(blocks, own, 3 * own, scale=own**-0.5), gates_bias=normal(3 * size, scale=0.1),
        posterior=normal(hidden, size, scale=size**-0.5), posterior_scale=1 + normal(hidden, scale=0.1),
        logits=normal(flat, hidden, scale=hidden**-0.5), logits_bias=normal(flat, scale=0.1),
    )
    keep = torch.ones(time, rows)
    for t, row in resets:
        keep[t, row] = 0
    inputs = {
        "deter": normal(rows, size),
        "stoch": torch.softmax(normal(rows, groups, classes), -1),
        "keep": keep,
        "action": normal(time, rows, hidden),
        "token": normal(time, rows, hidden),
        "noise": torch.rand(time, rows, groups, generator=generator),
    }
    return inputs, weights


def run(
    observe: Callable[..., tuple[Tensor, ...]], inputs: dict[str, Tensor], weights: Weights, unimix: float = 0.01
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of a random projection of all of them."""
    inputs = {name: x.clone().requires_grad_(name in INPUTS) for name, x in inputs.items()}
    weights = Weights(*(w.clone().requires_grad_() for w in weights))
    out = observe(*inputs.values(), weights, unimix=unimix)
    generator = torch.Generator().manual_seed(1)
    total = sum(((x * torch.randn(x.shape, generator=generator)).sum() for x in out), torch.zeros(()))
    leaves = {**{name: inputs[name] for name in INPUTS}, **{f"weights.{n}": w for n, w in weights._asdict().items()}}
    grads = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(("deters", "stochs", "logits"), out)), dict(zip(leaves, grads))


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float = 1e-5) -> None:
    assert ours.keys() == expected.keys()
    for name, x in expected.items():
        assert ours[name].shape == x.shape, name
        error = (ours[name] - x).abs().max() / x.abs().max().clamp(min=1.0)
        assert error.item() <= tolerance, f"{name}: {error.item():.1e}"


@pytest.mark.parametrize(
    "resets", [(), ((0, 0),), ((3, 1),), ((5, 2),), ((0, 0), (3, 0), (3, 1), (5, 2), (0, 1), (0, 2))],
    ids=["none", "first", "middle", "last", "many"],
)
def test_outputs_and_every_gradient_equal_the_loop(resets: tuple[tuple[int, int], ...]) -> None:
    inputs, weights = make(resets=resets)
    ours, gradients = run(fused.observe, inputs, weights)
    expected, slow = run(reference.observe, inputs, weights)
    assert_same(ours, expected)
    assert_same(gradients, slow)
    assert all(g.abs().sum() > 0 for name, g in slow.items() if name not in ("deter", "stoch")), "a test of nothing"


@pytest.mark.parametrize(("rows", "time"), [(1, 1), (1, 2), (5, 1), (2, 33)])
@pytest.mark.parametrize("unimix", [0.0, 0.2])
def test_any_number_of_rows_and_steps(rows: int, time: int, unimix: float) -> None:
    inputs, weights = make(rows, time, size=24, hidden=8, blocks=3, groups=3, classes=2, resets=((time - 1, 0),))
    ours, gradients = run(fused.observe, inputs, weights, unimix)
    expected, slow = run(reference.observe, inputs, weights, unimix)
    assert_same(ours, expected)
    assert_same(gradients, slow)


def test_nothing_flows_back_through_a_reset() -> None:
    inputs, weights = make(resets=((0, 0), (0, 1)))
    _, gradients = run(fused.observe, inputs, weights)
    assert gradients["deter"][:2].abs().max() == gradients["stoch"][:2].abs().max() == 0
    assert gradients["deter"][2].abs().max() > 0 and gradients["stoch"][2].abs().max() > 0


def test_gradients_equal_finite_differences_in_double_precision_of_the_loop() -> None:
    """Where no sample changes, deter and logits are smooth in the inputs: the reference is right, not just equal."""
    inputs, weights = make(2, 3, size=8, hidden=4, blocks=2, groups=2, classes=3)
    double = {name: x.double() for name, x in inputs.items()}
    exact = Weights(*(w.double() for w in weights))

    def project(token: Tensor) -> Tensor:
        deters, _, logits = reference.observe(**{**double, "token": token}, weights=exact, unimix=0.01)
        return deters[-1].sum() + logits[-1].square().sum()

    # only the last step's token: earlier ones act through straight-through samples, which no difference can see
    token = double["token"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(project(token), [token])
    for column in range(4):
        bump = torch.zeros_like(token)
        bump[-1, 0, column] = 1e-6
        with torch.no_grad():
            slope = (project(token + bump) - project(token - bump)) / 2e-6
        assert slope.item() == pytest.approx(gradient[-1, 0, column].item(), rel=1e-5, abs=1e-8)


def test_an_unused_output_counts_as_zero_gradient() -> None:
    inputs, weights = make()
    results = []
    for observe in (fused.observe, reference.observe):
        token = inputs["token"].clone().requires_grad_()
        deters, _, _ = observe(**{**inputs, "token": token}, weights=weights, unimix=0.01)
        results.append(torch.autograd.grad(deters[2].sum(), token)[0])
    torch.testing.assert_close(*results)
    assert results[0][2:].abs().max() == 0 and results[0][:2].abs().max() > 0


def test_the_class_is_the_one_whose_share_of_the_cumulative_holds_the_noise() -> None:
    # softmax (0.25, 0.75) mixed with 0.2 of the uniform: (0.3, 0.7)
    logits = torch.tensor([[0.0, 1.0986123]]).expand(4, 1, 2)
    noise = torch.tensor([0.0, 0.299, 0.301, 0.999]).view(4, 1)
    assert reference.sample(logits, noise, 0.2)[:, 0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    threshold = (noise.unsqueeze(-1) - 0.2 * 0.5) / 0.8
    assert fused.draw(logits, threshold).flatten().tolist() == [0, 0, 1, 1]


def test_bfloat16_products_stay_close_and_results_are_float32() -> None:
    inputs, weights = make(resets=((3, 1),))
    expected, slow = run(reference.observe, inputs, weights)
    matrices = {"deter", "stoch", "mix", "gates", "posterior", "logits"}

    def low(*args: Tensor, unimix: float) -> tuple[Tensor, ...]:
        *tensors, own = args
        cast = {n: w.bfloat16() if n in matrices else w for n, w in own._asdict().items()}  # type: ignore[attr-defined]
        return fused.observe(*tensors, Weights(**cast), unimix=unimix)

    ours, gradients = run(low, inputs, weights)
    assert {x.dtype for x in ours.values()} == {x.dtype for x in gradients.values()} == {torch.float32}
    assert torch.equal(ours["stochs"], expected["stochs"].detach().round()), "choose a seed whose samples agree"
    for name, x in (expected | slow).items():
        ratio = (((ours | gradients)[name] - x).square().mean() / x.square().mean()).sqrt()
        assert ratio.item() < 0.02, name


def test_a_compiler_traces_it_whole() -> None:
    inputs, weights = make(2, 3, resets=((1, 0),))
    compiled = torch.compile(fused.observe, fullgraph=True, backend="aot_eager")
    assert_same(*(run(f, inputs, weights)[1] for f in (compiled, fused.observe)))  # type: ignore[arg-type]


def test_the_operation_keeps_the_rules_of_custom_operations() -> None:
    inputs, weights = make(2, 3, resets=((1, 0),))
    leaves = [x.requires_grad_(name in INPUTS) for name, x in inputs.items()]
    op = torch.ops.worldmodel.block_gru_observe.default
    torch.library.opcheck(op, (*leaves, *(w.requires_grad_() for w in weights), 0.01))


def core(**changes: object) -> RSSM:
    torch.manual_seed(0)
    made = RSSMConfig(**({"deter": 32, "hidden": 16, "stoch": 4, "classes": 5, "blocks": 4} | changes)).build(3, 7)  # type: ignore[arg-type]
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


def test_the_core_filters_the_same_either_way() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, action = (torch.randn(3, 8, n, generator=generator) for n in (7, 3))
    is_first = torch.zeros(3, 8, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 4] = is_first[2, 7] = True
    results = []
    for observe in ("fused", "loop"):
        made = core(observe=observe)
        deter, stoch = torch.randn(3, 32, generator=generator.manual_seed(1)), torch.eye(5)[torch.zeros(3, 4).long()]
        leaves = [x.clone().requires_grad_() for x in (deter, stoch, tokens, action)]
        torch.manual_seed(2)
        out = made.observe(RSSMState(deter=leaves[0], stoch=leaves[1]), *leaves[2:], is_first)
        outputs = {"deter": out.states.deter, "stoch": out.states.stoch, "post": out.posterior, "prior": out.prior}
        projected = ((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs.values())
        total = sum(projected, torch.zeros(()))
        names, parameters = zip(*made.named_parameters())
        grads = torch.autograd.grad(total, [*leaves, *parameters])
        results.append((outputs, dict(zip(("deter", "stoch", "tokens", "action", *names), grads))))
    for ours, expected in zip(*results):
        assert_same(ours, expected)


@pytest.mark.parametrize("changes", [{"dyn_layers": 2}, {"obs_layers": 2}, {"posterior": "frame"}])
def test_what_the_operation_does_not_serve_takes_the_loop(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the fused operation ran")

    monkeypatch.setattr("worldmodel.kernels.block_gru_observe.observe", refuse)
    made, first = core(**changes), torch.zeros(2, 4, dtype=torch.bool)
    out = made.observe(made.initial(2), torch.randn(2, 4, 7), torch.randn(2, 4, 3), first)
    assert out.states.deter.shape == (2, 4, 32)
    with pytest.raises(AssertionError, match="fused operation ran"):
        core().observe(made.initial(2), torch.randn(2, 4, 7), torch.randn(2, 4, 3), first)
