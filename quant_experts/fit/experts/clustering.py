"""Token-dependent channels, clustered by how often they matter for the same token (method.md, section 4, step 5)."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import SpectralClustering
from torch import Tensor

CONNECTING_AFFINITY = 1e-6
"""Between all pairs, so that the graph is connected (scikit-learn warns otherwise) while clusters stay what they
are."""


def npmi(occurrence: Tensor) -> Tensor:
    """Normalised pointwise mutual information of channels, clipped to [0, 1].

    occurrence: (tokens, n) bool or float, O[t, i] = channel i is important for token t; returns (n, n) float64,
    symmetric. Pairs that never meet get 0; pairs that meet in every token get 1, the limit of the formula.
    """
    important = occurrence.to(torch.float32)
    tokens = max(important.shape[0], 1)
    # Sums of at most 2^24 ones are exact in float32.
    joint = (important.T @ important).double() / tokens
    single = important.sum(0).double() / tokens
    expected = single.unsqueeze(0) * single.unsqueeze(1)
    meets = joint > 0
    always = joint >= 1
    safe_joint = torch.where(meets & ~always, joint, torch.full_like(joint, 0.5))
    safe_expected = torch.where(meets, expected, torch.ones_like(expected))
    value = (safe_joint / safe_expected).log() / -safe_joint.log()
    value = torch.where(always, torch.ones_like(value), torch.where(meets, value, torch.zeros_like(value)))
    return value.clamp(0, 1)


def cluster_by_co_occurrence(occurrence: Tensor, clusters: int) -> Tensor:
    """Spectral clustering of the columns of ``occurrence`` (tokens, n) under ``npmi``.

    Returns (n,) int64 labels in [0, c) with c = min(clusters, n), every label in use. Channels that share no token
    with any other carry no information about their cluster and go to the smallest ones. Deterministic.
    """
    n = occurrence.shape[1]
    clusters = min(clusters, n)
    if clusters <= 1 or n == clusters:
        return torch.arange(n) % max(clusters, 1)
    affinity = npmi(occurrence).cpu().numpy()
    np.fill_diagonal(affinity, 0.0)
    has_neighbours = affinity.sum(0) > 0
    labels = np.full(n, -1, dtype=np.int64)
    if has_neighbours.sum() > clusters:
        labels[has_neighbours] = _spectral(affinity[np.ix_(has_neighbours, has_neighbours)], clusters)
    return torch.from_numpy(_spread_the_rest(labels, clusters))


def _spectral(affinity: np.ndarray, clusters: int) -> np.ndarray:
    connected = affinity + CONNECTING_AFFINITY
    np.fill_diagonal(connected, 1.0)
    # cluster_qr (Damle, Minden, Ying 2019) has no random start and no thread-dependent sums, unlike k-means, so that a
    # resumed run ends bit-identical; ARPACK's start vector is fixed by random_state.
    model = SpectralClustering(clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=0)
    return np.asarray(model.fit_predict(connected), dtype=np.int64)


def _spread_the_rest(labels: np.ndarray, clusters: int) -> np.ndarray:
    """Give unlabelled channels (-1) to the smallest clusters, and a channel to any cluster that is empty."""
    labels = labels.copy()
    for i in np.flatnonzero(labels < 0):
        labels[i] = np.bincount(labels[labels >= 0], minlength=clusters).argmin()
    sizes = np.bincount(labels, minlength=clusters)
    for empty in np.flatnonzero(sizes == 0):
        donor = int(np.bincount(labels, minlength=clusters).argmax())
        labels[np.flatnonzero(labels == donor)[-1]] = empty
    return labels


def cluster_at_random(n: int, clusters: int, source: torch.Generator) -> Tensor:
    """Equal random clusters, the ablation. Returns (n,) int64 labels in [0, min(clusters, n))."""
    return torch.randperm(n, generator=source) % max(min(clusters, n), 1)
