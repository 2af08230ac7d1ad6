"""Optimisers over one flat buffer: LaProp with adaptive gradient clipping, Adam with a bound on the whole gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from worldmodel import ranks
from worldmodel.kernels import dispatch, laprop_agc

M = TypeVar("M", bound=nn.Module)


class Flat:
    """Parameters and their gradients as views of two flat buffers, so that every step is a handful of operations
    whatever the number of tensors."""

    def __init__(self, parameters: Iterable[nn.Parameter], name: str) -> None:
        """Args: name of the optimiser, for an error."""
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError(f"{name} got no parameters that require gradients")
        total = sum(p.numel() for p in self.parameters)
        # where another optimiser has put them side by side they stay: others may hold on to that memory
        held = _side_by_side(self.parameters, total)
        self.flat = torch.empty(total, device=self.parameters[0].device) if held is None else held
        self.grad = torch.zeros_like(self.flat)
        self._grads: list[Tensor] = []
        at = 0
        with torch.no_grad():
            for p in self.parameters:
                view = self.flat[at : at + p.numel()].view_as(p)
                if held is None:
                    view.copy_(p)
                    p.data = view
                p.grad = self.grad[at : at + p.numel()].view_as(p)
                self._grads.append(p.grad)
                at += p.numel()

    def zero_grad(self) -> None:
        """Clear the flat gradient; the views stay."""
        self.grad.zero_()

    def backward(self, loss: Tensor) -> None:
        """Write the gradient of ``loss`` over the flat one; zero where the loss does not reach. Unlike
        ``loss.backward()`` it adds to nothing, so there is nothing to clear before, and it goes no further than these
        parameters. Where processes share a batch, it is the mean of theirs."""
        grads = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        torch.cat([g.reshape(-1) for g in grads], out=self.grad)
        ranks.average_(self.grad)


class LaProp(Flat):
    """AGC -> RMS scaling -> momentum -> learning rate (Ziyin et al. 2020; Brock et al. 2021; DreamerV3, "Optimizer").

    A non-finite gradient changes nothing: not the parameters, not the moments, not the step count.

    Per tensor:  g <- g / max(1, |g| / (clip max(1e-3, |p|)))
    nu <- b2 nu + (1 - b2) g^2;  g <- g / (sqrt(nu / (1 - b2^t)) + eps)
    mu <- b1 mu + (1 - b1) g;    p <- p - lr min(1, (t - 1) / warmup) mu / (1 - b1^t)
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        warmup: int = 1000,
    ) -> None:
        """Args: lr; betas; eps; clip (AGC, 0 for none); warmup in steps: linear, 0 in the first step."""
        super().__init__(parameters, "LaProp")
        self.lr, self.betas, self.eps, self.clip, self.warmup = lr, betas, eps, clip, warmup
        self.nu = torch.zeros_like(self.flat)
        self.mu = torch.zeros_like(self.flat)
        self.count = torch.zeros((), device=self.flat.device)
        self._layout = laprop_agc.make_layout([p.numel() for p in self.parameters], self.flat.device)
        # (total,) which tensor a number belongs to
        sizes = torch.tensor([p.numel() for p in self.parameters], device=self.flat.device)
        self._owner = torch.repeat_interleave(sizes, output_size=self.flat.numel())

    @torch.no_grad()
    def step(
        self, healthy: Tensor | None = None, *, apply: Callable[[Tensor, Tensor], None] | None = None
    ) -> dict[str, Tensor]:
        """Apply the gradients.

        Args:
            healthy: () bool, a further condition (a finite loss).
            apply: a compiled :meth:`apply`.
        Returns: {"grad_norm": before clipping, "healthy": () bool}.
        """
        if dispatch.backend("laprop_agc", self.flat) != "reference":
            return self._step_by_kernel(healthy)
        norms = _norms(self._grads)
        total = norms.square().sum().sqrt()
        finite = torch.isfinite(total)
        healthy = finite if healthy is None else finite & ranks.all_true(healthy)
        factor = torch.ones_like(norms)
        if self.clip:
            bound = self.clip * _norms([p.data for p in self.parameters]).clamp(min=1e-3)
            factor = 1.0 / (norms / bound).clamp(min=1.0)
        (apply or self.apply)(factor, healthy)
        return {"grad_norm": total, "healthy": healthy}

    def _step_by_kernel(self, healthy: Tensor | None) -> dict[str, Tensor]:
        """The same by ``kernels.laprop_agc``; slow copies are their owners'."""
        b1, b2 = self.betas
        rule = laprop_agc.Rule(lr=self.lr, beta1=b1, beta2=b2, eps=self.eps, clip=self.clip, warmup=self.warmup)
        asked = torch.ones_like(self.count, dtype=torch.bool) if healthy is None else ranks.all_true(healthy)
        norm, did = laprop_agc.step(
            self.flat, self.grad, self.nu, self.mu, self.count, self.flat.new_empty(0), asked, self._layout, rule
        )
        return {"grad_norm": norm, "healthy": did}

    @torch.no_grad()
    def apply(self, factor: Tensor, healthy: Tensor) -> None:
        """The update given each tensor's clipping factor (tensors,), unless () ``healthy`` is False: element by element
        over the flat buffers, which a compiler makes one pass of."""
        ok = healthy.float()
        grad = torch.where(healthy, self.grad * factor[self._owner], 0.0)
        self.count.add_(ok)
        b1, b2 = self.betas
        count = self.count.clamp(min=1.0)
        self.nu.lerp_(grad.square(), (1 - b2) * ok)
        scaled = grad / ((self.nu / (1 - b2**count)).sqrt() + self.eps)
        self.mu.lerp_(scaled, (1 - b1) * ok)
        warm = ((count - 1) / self.warmup).clamp(max=1.0) if self.warmup else 1.0
        self.flat.addcmul_(self.mu, -self.lr * warm * ok / (1 - b1**count))

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step count."""
        return {"nu": self.nu, "mu": self.mu, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy into the existing buffers; shapes must match."""
        for name, mine in self.state_dict().items():
            mine.copy_(state[name])


class Adam(Flat):
    """Adam (Kingma and Ba 2015), with a bound on the norm of the whole gradient and a learning rate for each group.

    g <- g min(1, clip / (|g| + 1e-6)), then torch's own fused Adam, one pass for each group, which leaves a compiler
    nothing to gain. A non-finite gradient changes nothing.
    """

    def __init__(
        self, groups: Sequence[tuple[Iterable[nn.Parameter], float]], *, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, clip: float = 0.0, decay: float = 0.0,
    ) -> None:
        """Args: groups: parameters and their learning rate. clip: 0 for none. decay: of weights, added to gradients."""
        taken = [([p for p in parameters if p.requires_grad], lr) for parameters, lr in groups]
        super().__init__([p for parameters, _ in taken for p in parameters], "Adam")
        self.betas, self.eps, self.clip, self.decay = betas, eps, clip, decay
        self.nu = torch.zeros_like(self.flat)
        self.mu = torch.zeros_like(self.flat)
        self._cuts: list[tuple[slice, float]] = []
        """Stretches of the flat buffers and their learning rates, one for each group."""
        at = 0
        for parameters, lr in taken:
            to = at + sum(p.numel() for p in parameters)
            self._cuts.append((slice(at, to), lr))
            at = to
        self.count = torch.zeros(len(self._cuts), device=self.flat.device)

    @torch.no_grad()
    def step(
        self, healthy: Tensor | None = None, *, turns: Sequence[Tensor] | None = None,
        paces: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Apply the gradients, unless () ``healthy`` is False; result as :meth:`LaProp.step`.

        Args:
            turns: for each group () bool, whether it is its turn; the others stay as they are, moments and count too.
            paces: for each group (), what its learning rate is multiplied by.
        """
        norm = self.grad.norm()
        finite = torch.isfinite(norm)
        healthy = finite if healthy is None else finite & ranks.all_true(healthy)
        if self.clip:
            self.grad.mul_((self.clip / (norm + 1e-6)).clamp(max=1.0))
        moved = healthy.expand(len(self._cuts)) if turns is None else healthy & torch.stack([*turns])
        self.count.add_(moved.float())
        count = self.count.clamp(min=1.0)
        for at, (cut, lr) in enumerate(self._cuts):
            if cut.start == cut.stop:
                continue
            torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
                [self.flat[cut]], [self.grad[cut]], [self.mu[cut]], [self.nu[cut]], [], [count[at]],
                lr=lr if paces is None else lr * paces[at], beta1=self.betas[0], beta2=self.betas[1],
                weight_decay=self.decay, eps=self.eps, amsgrad=False, maximize=False, found_inf=(~moved[at]).float(),
            )
        return {"grad_norm": norm, "healthy": healthy}

    def forget(self) -> None:
        """As if no step had been made: what was learned stays, moments and counts do not."""
        for x in self.state_dict().values():
            x.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step count."""
        return {"nu": self.nu, "mu": self.mu, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy into the existing buffers; shapes must match."""
        for name, mine in self.state_dict().items():
            mine.copy_(state[name])


def without_gradient(module: M) -> M:
    """A copy of ``module`` on the same memory: it follows every update in place, and gradients flow through it but not
    into it. Make it once the parameters have their final place."""
    twin = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip([*twin.parameters(), *twin.buffers()], [*module.parameters(), *module.buffers()]):
        mine.data = theirs.data
    return twin


def _side_by_side(parameters: Sequence[nn.Parameter], total: int) -> Tensor | None:
    """The (total,) float32 that these parameters are, in order; None where they are not."""
    at, storage = parameters[0].storage_offset(), parameters[0].untyped_storage()
    start = at
    for p in parameters:
        same = p.dtype == torch.float32 and p.is_contiguous() and p.storage_offset() == at
        if not same or p.untyped_storage().data_ptr() != storage.data_ptr():
            return None
        at += p.numel()
    return parameters[0].detach().as_strided((total,), (1,), start)


def _norms(tensors: list[Tensor]) -> Tensor:
    """(len(tensors),) the norm of each."""
    return torch.stack(torch._foreach_norm(tensors))  # pyright: ignore[reportPrivateImportUsage]
