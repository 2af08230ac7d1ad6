"""LaProp with adaptive gradient clipping over one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LaProp:
    """AGC -> RMS scaling -> momentum -> learning rate (Ziyin et al. 2020; Brock et al. 2021; DreamerV3, "Optimizer").

    Parameters and gradients become views of two flat buffers, so every step is a handful of operations whatever the
    number of tensors. A non-finite gradient changes nothing: not the parameters, not the moments, not the step count.

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
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("LaProp got no parameters that require gradients")
        first = self.parameters[0]
        self.lr, self.betas, self.eps, self.clip, self.warmup = lr, betas, eps, clip, warmup
        total = sum(p.numel() for p in self.parameters)
        self.flat = torch.empty(total, device=first.device, dtype=torch.float32)
        self.grad = torch.zeros_like(self.flat)
        self.nu = torch.zeros_like(self.flat)
        self.mu = torch.zeros_like(self.flat)
        self.count = torch.zeros((), device=first.device)
        self._grads: list[Tensor] = []
        at = 0
        with torch.no_grad():
            for p in self.parameters:
                view = self.flat[at : at + p.numel()].view_as(p)
                view.copy_(p)
                p.data = view
                p.grad = self.grad[at : at + p.numel()].view_as(p)
                self._grads.append(p.grad)
                at += p.numel()

    def zero_grad(self) -> None:
        """Clear the flat gradient; the views stay."""
        self.grad.zero_()

    @torch.no_grad()
    def step(self, healthy: Tensor | None = None) -> dict[str, Tensor]:
        """Apply the gradients. ``healthy``: () bool, a further condition (a finite loss).

        Returns {"grad_norm": before clipping, "healthy": () bool}.
        """
        norms = _norms(self._grads)
        total = norms.square().sum().sqrt()
        finite = torch.isfinite(total)
        healthy = finite if healthy is None else finite & healthy
        ok = healthy.float()
        if self.clip:
            bound = self.clip * _norms([p.data for p in self.parameters]).clamp(min=1e-3)
            factor = 1.0 / (norms / bound).clamp(min=1.0)
            torch._foreach_mul_(self._grads, list(factor.unbind()))  # pyright: ignore[reportPrivateImportUsage]
        self.grad.copy_(torch.where(healthy, self.grad, 0.0))
        self.count += ok
        b1, b2 = self.betas
        count = self.count.clamp(min=1.0)
        self.nu.lerp_(self.grad.square(), (1 - b2) * ok)
        scaled = self.grad.div_((self.nu / (1 - b2**count)).sqrt_().add_(self.eps))
        self.mu.lerp_(scaled, (1 - b1) * ok)
        warm = ((count - 1) / self.warmup).clamp(max=1.0) if self.warmup else 1.0
        self.flat.addcmul_(self.mu, -self.lr * warm * ok / (1 - b1**count))
        return {"grad_norm": total, "healthy": healthy}

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step count."""
        return {"nu": self.nu, "mu": self.mu, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy into the existing buffers; shapes must match."""
        for name, mine in self.state_dict().items():
            mine.copy_(state[name])


def _norms(tensors: list[Tensor]) -> Tensor:
    """(len(tensors),) the norm of each."""
    return torch.stack(torch._foreach_norm(tensors))  # pyright: ignore[reportPrivateImportUsage]
