"""Optional gradient refinement of the experts and their router, one group at a time (method.md, section 4, step 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from quant_experts.fit.experts.router import route
from quant_experts.fit.problem import GroupProblem
from quant_experts.fit.reconstruction import Adapters
from quant_experts.seeding import generator

LEARNING_RATE = 1e-4
EPOCHS = 16
STEPS_PER_EPOCH = 100
BATCH = 256
VALIDATION_SHARE = 0.1
CHUNK = 1024


@dataclass(frozen=True)
class _Target:
    """What the adapters must produce: ``gap`` is W x - W_q Q(x), computed batch by batch."""

    problem: GroupProblem
    base: Tensor

    def gap(self, x: Tensor) -> Tensor:
        return x @ self.problem.weight.T - self.problem.rounded(x) @ self.base.T


def refine(problem: GroupProblem, base: Tensor, adapters: Adapters) -> Adapters:
    """Train routed up/down and the router (``refine: routed``), the shared expert too (``all``), on the reservoir.

    Loss: relative squared error of the compensated output + KL(softmax of minus the true residual norms ‖ softmax of
    minus the router's scores), both in units of the norms' spread within a token. A tenth of the reservoir is held
    back. When its error does not fall, the closed-form adapters stay and a warning says so. Deterministic for (seed,
    group name) on one device.
    """
    assert adapters.routed_up is not None
    assert adapters.router is not None
    fit_tokens, validation = _split(problem)
    target = _Target(problem, base)
    start = _balanced(adapters)
    tensors = _named(start)
    shared = ("shared_up", "shared_down") if problem.spec.refine == "all" and adapters.shared_up is not None else ()
    names = ("routed_up", "routed_down", "router", *shared)
    temperature = _spread(target, tensors, fit_tokens)
    tensors["router"] = _calibrated(tensors["router"], tensors, target, fit_tokens)
    parameters = {name: tensors[name].clone().requires_grad_(True) for name in names}
    with torch.enable_grad():
        _train(problem, target, {**tensors, **parameters}, list(parameters.values()), fit_tokens, temperature)
    refined = {**tensors, **{name: value.detach() for name, value in parameters.items()}}
    before, after = (_routed_error(target, candidate, validation) for candidate in (_named(start), refined))
    if not after < before:
        warning = (
            f"{problem.name}: refinement did not lower the error on held-back tokens; the closed-form experts stay"
        )
        return replace(adapters, warnings=(*adapters.warnings, warning))
    return replace(
        adapters,
        shared_up=refined.get("shared_up"),
        shared_down=refined.get("shared_down"),
        routed_up=refined["routed_up"],
        routed_down=refined["routed_down"],
        router=refined["router"],
    )


def _split(problem: GroupProblem) -> tuple[Tensor, Tensor]:
    count = problem.samples.shape[0]
    order = torch.randperm(count, generator=generator(problem.spec.seed, problem.name, "refine split"))
    order = order.to(problem.samples.device)
    held_back = max(1, int(count * VALIDATION_SHARE))
    return problem.samples[order[held_back:] if count > 1 else order], problem.samples[order[:held_back]]


def _named(adapters: Adapters) -> dict[str, Tensor]:
    values = {
        name: getattr(adapters, name) for name in ("shared_up", "shared_down", "routed_up", "routed_down", "router")
    }
    return {name: value for name, value in values.items() if value is not None}


def _balanced(adapters: Adapters) -> Adapters:
    """The same products with up and down of equal size: AdamW's step is the same for every parameter."""
    assert adapters.routed_up is not None
    assert adapters.routed_down is not None
    ratio = (adapters.routed_down.norm() / adapters.routed_up.norm().clamp_min(1e-12)).clamp_min(1e-12).sqrt()
    balanced = replace(adapters, routed_up=adapters.routed_up * ratio, routed_down=adapters.routed_down / ratio)
    if adapters.shared_up is None or adapters.shared_down is None:
        return balanced
    ratio = (adapters.shared_down.norm() / adapters.shared_up.norm().clamp_min(1e-12)).clamp_min(1e-12).sqrt()
    return replace(balanced, shared_up=adapters.shared_up * ratio, shared_down=adapters.shared_down / ratio)


def _residuals(target: _Target, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
    """Squared residual that every expert would leave, (T, N).

    With p = up_i z_i: ||gap - p||² = ||gap||² - 2 z_i·(up_iᵀ gap) + z_iᵀ (up_iᵀ up_i) z_i, so that no (T, N, out)
    exists.
    """
    gap = target.gap(x)
    if "shared_up" in tensors:
        gap = gap - (x @ tensors["shared_down"].T) @ tensors["shared_up"].T
    z = torch.einsum("td,nrd->tnr", x, tensors["routed_down"])
    onto = torch.einsum("to,nor->tnr", gap, tensors["routed_up"])
    gram = torch.einsum("nor,nos->nrs", tensors["routed_up"], tensors["routed_up"])
    residual = gap.square().sum(-1, keepdim=True) - 2 * (z * onto).sum(-1) + torch.einsum("tnr,nrs,tns->tn", z, gram, z)
    return residual.clamp_min(1e-20)


def _spread(target: _Target, tensors: dict[str, Tensor], x: Tensor) -> float:
    """Mean standard deviation over experts of a token's residual norms: the softmax temperature."""
    norms = _residuals(target, tensors, x[:CHUNK]).sqrt()
    return max(float(norms.std(-1, unbiased=False).mean()), 1e-12)


def _calibrated(router: Tensor, tensors: dict[str, Tensor], target: _Target, x: Tensor) -> Tensor:
    """The router scaled so that its scores spread as the residual norms do; its decisions stay."""
    scores = x[:CHUNK].abs() @ router.T
    spread = float(scores.std(-1, unbiased=False).mean())
    return router * (_spread(target, tensors, x) / spread) if spread > 0 else router


def _train(
    problem: GroupProblem,
    target: _Target,
    tensors: dict[str, Tensor],
    parameters: list[Tensor],
    x: Tensor,
    temperature: float,
) -> None:
    total = EPOCHS * STEPS_PER_EPOCH
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    source = generator(problem.spec.seed, problem.name, "refine batches")
    for _ in range(total):
        batch = x[torch.randint(x.shape[0], (min(BATCH, x.shape[0]),), generator=source).to(x.device)]
        squared = _residuals(target, tensors, batch)
        norms, scores = squared.sqrt(), batch.abs() @ tensors["router"].T
        expert = scores.argmin(-1, keepdim=True)
        # Relative to what is left, not to the whole output: otherwise the routing term drowns the regression.
        regression_loss = squared.gather(-1, expert).sum() / squared.detach().mean(-1).sum().clamp_min(1e-20)
        probabilities = F.softmax(-norms.detach() / temperature, dim=-1)
        routing_loss = F.kl_div(F.log_softmax(-scores / temperature, dim=-1), probabilities, reduction="batchmean")
        optimiser.zero_grad()
        torch.autograd.backward(regression_loss + routing_loss)
        optimiser.step()
        schedule.step()


def _routed_error(target: _Target, tensors: dict[str, Tensor], x: Tensor) -> float:
    total = 0.0
    for rows in torch.split(x, CHUNK):
        squared = _residuals(target, tensors, rows)
        total += float(squared.gather(-1, route(tensors["router"], rows).unsqueeze(-1)).sum())
    return total
