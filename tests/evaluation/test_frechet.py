"""Frechet and kernel distance: properties, closed forms, and what few pictures do to either."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel, VegaError
from vega_diffusion.evaluation.frechet import (
    FACTS_FILE,
    FEATURES_FILE,
    Embedding,
    FrechetStatistics,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    square_root_factor,
)


def drawn(count: int, dimensions: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> FrechetStatistics:
    """Statistics of features that are drawn, not embedded."""
    rng = torch.Generator().manual_seed(seed)
    return FrechetStatistics(torch.randn(count, dimensions, generator=rng) * scale + shift, "drawn", "0")


def covariance(dimensions: int, seed: int, rank: int | None = None) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    factor = torch.randn(rank or dimensions, dimensions, generator=rng, dtype=torch.float64)
    return factor.T @ factor


def formula(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The published formula, word for word: eigenvalues of the unsymmetric product C_a C_b."""
    product = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0)
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * product.sqrt().sum())


def test_identical_sets_give_zero_and_different_ones_do_not() -> None:
    for count in (5, 40, 200):
        a = drawn(count, 30, seed=count)
        assert frechet_distance(a, drawn(count, 30, seed=count)) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(a, drawn(count, 30, seed=count + 1)) > 0.5


def test_gaussians_on_one_axis_give_the_closed_form() -> None:
    # In one dimension: (m1 - m2)^2 + (s1 - s2)^2.
    one = torch.tensor([1.0], dtype=torch.float64)
    four, quarter = torch.tensor([[4.0]], dtype=torch.float64), torch.tensor([[0.25]], dtype=torch.float64)
    assert gaussian_distance(one, four, -2 * one, quarter) == pytest.approx(9 + (2 - 0.5) ** 2, rel=1e-12)


def test_commuting_covariances_give_the_closed_form() -> None:
    rotation = torch.linalg.qr(covariance(6, seed=1))[0]
    first = torch.tensor([1.0, 4.0, 9.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    second = torch.tensor([4.0, 1.0, 9.0, 3.0, 0.0, 0.5], dtype=torch.float64)
    mean = torch.arange(6, dtype=torch.float64)
    found = gaussian_distance(
        mean, rotation @ first.diag() @ rotation.T, mean + 0.5, rotation @ second.diag() @ rotation.T
    )
    expected = 6 * 0.25 + float((first.sqrt() - second.sqrt()).square().sum())
    assert found == pytest.approx(expected, rel=1e-12)


def test_any_covariances_give_the_published_formula() -> None:
    for seed in range(5):
        cov_a, cov_b = covariance(12, seed), covariance(12, seed + 100)
        mean_a, mean_b = cov_a[0], cov_b[1]
        assert gaussian_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(
            formula(mean_a, cov_a, mean_b, cov_b), rel=1e-9
        )


def test_singular_covariances_give_no_noise() -> None:
    """Two Gaussians on planes that meet in nothing: the product vanishes, and only the traces remain."""
    first = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    second = torch.diag(torch.tensor([0.0, 0.0, 1.0, 5.0], dtype=torch.float64))
    zero = torch.zeros(4, dtype=torch.float64)
    assert gaussian_distance(zero, first, zero, second) == pytest.approx(11, rel=1e-14)
    assert gaussian_distance(zero, 0 * first, zero, second) == pytest.approx(6, rel=1e-14)
    assert gaussian_distance(zero, first, zero, first) == pytest.approx(0, abs=1e-14)


def test_the_factor_is_a_square_root_of_the_right_rank() -> None:
    cov = covariance(20, seed=3, rank=7)
    factor = square_root_factor(cov)
    assert factor.shape == (7, 20)
    torch.testing.assert_close(factor.T @ factor, cov)


def test_fewer_pictures_than_dimensions_are_stable() -> None:
    """20 in 400 dimensions: centred features and the eigendecomposition agree, and nothing is NaN."""
    a, b = drawn(20, 400, seed=1), drawn(30, 400, seed=2, shift=0.1)
    assert a.factor.shape == (20, 400)
    short = frechet_distance(a, b)
    assert short == pytest.approx(gaussian_distance(a.mean, a.covariance, b.mean, b.covariance), rel=1e-10)
    torch.testing.assert_close(a.factor.T @ a.factor, a.covariance)
    constant = FrechetStatistics(torch.ones(3, 400), "drawn", "0")
    assert frechet_distance(constant, constant) == 0
    assert math.isfinite(frechet_distance(constant, a))


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 24), st.integers(0, 2**31))
def test_symmetric_and_never_negative(count_a: int, count_b: int, dimensions: int, seed: int) -> None:
    a, b = drawn(count_a, dimensions, seed), drawn(count_b, dimensions, seed + 1, scale=2.0, shift=0.3)
    there, back = frechet_distance(a, b), frechet_distance(b, a)
    assert there == pytest.approx(back, rel=1e-10, abs=1e-9)
    assert there >= 0
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a), rel=1e-10, abs=1e-12)


def test_the_order_of_pictures_does_not_matter() -> None:
    a, b = drawn(50, 16, seed=1), drawn(40, 16, seed=2)
    turned = FrechetStatistics(a.features.flip(0), "drawn", "0")
    assert frechet_distance(turned, b) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert kernel_distance(turned, b) == pytest.approx(kernel_distance(a, b), rel=1e-9)


def test_mean_and_covariance_are_those_of_the_features() -> None:
    a = drawn(9, 5, seed=4)
    assert a.count == 9
    assert (a.mean.dtype, a.covariance.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(a.mean, a.features.double().mean(0))
    torch.testing.assert_close(a.covariance, torch.cov(a.features.double().T))


def test_kernel_distance_is_the_formula_pair_by_pair() -> None:
    a, b = drawn(4, 3, seed=1), drawn(5, 3, seed=2)

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / 3 + 1) ** 3

    x, y = a.features, b.features
    own_a = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    own_b = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    cross = sum(kernel(p, q) for p in x for q in y) / 20
    assert kernel_distance(a, b) == pytest.approx(own_a + own_b - 2 * cross, rel=1e-10)


def test_kernel_distance_of_points_is_the_closed_form() -> None:
    # All pictures of a set alike: k(a,a) + k(b,b) - 2 k(a,b) with D = 1, a = 1, b = 0 gives 8 + 1 - 2.
    a, b = (FrechetStatistics(torch.full((3, 1), value), "drawn", "0") for value in (1.0, 0.0))
    assert kernel_distance(a, b) == pytest.approx(7, rel=1e-14)
    assert kernel_distance(a, a) == pytest.approx(0, abs=1e-14)


def test_few_pictures_bias_the_frechet_distance_and_not_the_kernel_distance() -> None:
    """Sets of one distribution: the first is far from 0 and falls with the count, the second scatters around 0."""
    mean_frechet = {}
    for count in (10, 40, 160):
        pairs = [(drawn(count, 8, seed), drawn(count, 8, seed + 1000)) for seed in range(30)]
        mean_frechet[count] = sum(frechet_distance(a, b) for a, b in pairs) / 30
        kernels = torch.tensor([kernel_distance(a, b) for a, b in pairs])
        error = float(kernels.std()) / 30**0.5
        assert abs(float(kernels.mean())) < 3 * error
        assert bool((kernels < 0).any())
    assert mean_frechet[10] > 2 * mean_frechet[40] > 4 * mean_frechet[160] > 0.1


def test_statistics_come_from_batches_whatever_their_size() -> None:
    embedding = Embedding("channel means", "1", lambda pixels: pixels.mean(dim=(2, 3)))
    pixels = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one = FrechetStatistics.from_pictures([pixels], embedding)
    many = FrechetStatistics.from_pictures(pixels.split(3), embedding)
    assert one.count == many.count == 7
    assert (one.embedding, one.embedding_sha256) == ("channel means", "1")
    torch.testing.assert_close(one.features, many.features)
    with pytest.raises(InvalidValue, match="pictures: 0 is not allowed; allowed: 2 or more"):
        FrechetStatistics.from_pictures([], embedding)
    with pytest.raises(InvalidValue, match="pictures: 1 is not allowed"):
        FrechetStatistics.from_pictures([pixels[:1]], embedding)
    with pytest.raises(VegaError, match="not a finite number"):
        FrechetStatistics.from_pictures([pixels * torch.nan], embedding)


def test_saved_statistics_come_back_bit_for_bit_and_replace_older_ones(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "set"
    drawn(5, 4, seed=8).save(folder)
    a = drawn(12, 6, seed=1)
    a.save(folder)
    b = FrechetStatistics.load(folder)
    assert torch.equal(a.features, b.features)
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.covariance, b.covariance)
    assert (b.count, b.embedding, b.embedding_sha256) == (12, "drawn", "0")
    facts = json.loads((folder / FACTS_FILE).read_text())
    assert facts.pop("features_sha256")
    assert facts == {"count": 12, "dimensions": 6, "embedding": "drawn", "embedding_sha256": "0"}
    assert [path.name for path in folder.parent.iterdir()] == ["set"], "nothing temporary is left"


def test_damaged_or_missing_statistics_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="cannot be read"):
        FrechetStatistics.load(tmp_path / "nothing")
    folder = tmp_path / "set"
    drawn(5, 4, seed=1).save(folder)
    whole = (folder / FEATURES_FILE).read_bytes()
    (folder / FEATURES_FILE).write_bytes(whole[:-4])
    with pytest.raises(UnreadableModel, match="is not what statistics.json describes; remove"):
        FrechetStatistics.load(folder)
    (folder / FEATURES_FILE).write_bytes(whole)
    (folder / FACTS_FILE).write_text("{")
    with pytest.raises(UnreadableModel, match="not JSON"):
        FrechetStatistics.load(folder)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MissingFile, match="cannot be written"):
        drawn(5, 4, seed=1).save(file / "set")


def test_sets_of_different_embeddings_are_never_compared() -> None:
    a = drawn(5, 4, seed=1)
    for name, digest in (("other", "0"), ("drawn", "1")):
        b = FrechetStatistics(a.features, name, digest)
        for distance in (frechet_distance, kernel_distance):
            with pytest.raises(VegaError, match="embedding: drawn .* differ; embed both sets with one of them"):
                distance(a, b)
