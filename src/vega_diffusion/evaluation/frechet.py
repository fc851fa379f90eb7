"""How far two sets of pictures are from each other: Frechet and kernel distance between their embeddings.

What lives here: the mathematics, and `FrechetStatistics`, a set of embedded pictures that can be kept on disk. What
does not: the network that embeds (`models/efficientnet_lite.py`), reading folders and drawing references
(`frechet_folder.py`). With EfficientNet-Lite0 the number is called FD-EffNet: FID is the name of the same formula with
Inception-v3, and the two are not comparable.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vega_diffusion.errors import InvalidValue, MissingFile, UnreadableModel, VegaError

FEATURES_FILE = "features.safetensors"
FACTS_FILE = "statistics.json"


@dataclass(frozen=True)
class Embedding:
    """The network behind a distance, by name and hash: distances of different embeddings are different quantities.

    Args:
        name: As `efficientnet-lite0`.
        sha256: Hash of its weights file.
        function: Maps pixels [B, 3, H, W] in [-1, 1] to features [B, D].
    """

    name: str
    sha256: str
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FrechetStatistics:
    """A set of pictures as an embedding sees it: features, and the Gaussian fitted to them.

    The features stay, since the kernel distance compares pictures pair by pair.

    Args:
        features: float32 [N, D], N >= 2.
        embedding: Name of the embedding.
        embedding_sha256: Hash of its weights.
    """

    features: Tensor
    embedding: str
    embedding_sha256: str

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) < 2:
            raise InvalidValue("pictures", len(self.features), "2 or more", "give more pictures")
        if not bool(self.features.isfinite().all()):
            raise VegaError("pictures: an embedding is not a finite number; look for damaged pictures")

    @classmethod
    def from_pictures(cls, batches: Iterable[Tensor], embedding: Embedding) -> FrechetStatistics:
        """Embed pictures, batch by batch.

        Args:
            batches: Pixels [B, 3, H, W] in [-1, 1].
            embedding: What looks at them.

        Raises:
            InvalidValue: Fewer than two pictures.
        """
        with torch.no_grad():
            parts = [embedding.function(batch).float().cpu() for batch in batches]
        features = torch.cat(parts) if parts else torch.empty(0, 0)
        return cls(features, embedding.name, embedding.sha256)

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.features)

    @cached_property
    def mean(self) -> Tensor:
        """float64 [D]."""
        return self.features.double().mean(dim=0)

    @cached_property
    def covariance(self) -> Tensor:
        """float64 [D, D], with N - 1 in the denominator."""
        return self._centred.T @ self._centred

    @property
    def _centred(self) -> Tensor:
        return (self.features.double() - self.mean) / (self.count - 1) ** 0.5

    @cached_property
    def factor(self) -> Tensor:
        """float64 F [R, D] with F^T F = covariance: of few pictures these are the centred features themselves."""
        return self._centred if self.count <= self.features.shape[1] else square_root_factor(self.covariance)

    def save(self, folder: Path) -> None:
        """Write the features and a JSON file with count, embedding and hashes; a set already there is replaced.

        Raises:
            MissingFile: The folder cannot be written.
        """
        content = save_tensors({"features": self.features.contiguous()})
        facts = {
            "count": self.count,
            "dimensions": self.features.shape[1],
            "embedding": self.embedding,
            "embedding_sha256": self.embedding_sha256,
            "features_sha256": hashlib.sha256(content).hexdigest(),
        }
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder.parent, prefix=".frechet-") as temporary:
                whole = Path(temporary) / "whole"
                whole.mkdir()
                (whole / FEATURES_FILE).write_bytes(content)
                (whole / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
                if folder.exists():
                    shutil.move(folder, Path(temporary) / "old")
                whole.rename(folder)
        except OSError as error:
            raise MissingFile(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error

    @classmethod
    def load(cls, folder: Path) -> FrechetStatistics:
        """Read what `save` wrote.

        Raises:
            MissingFile: Nothing is there.
            UnreadableModel: The two files do not belong together or are damaged.
        """
        try:
            facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
            content = (folder / FEATURES_FILE).read_bytes()
        except OSError as error:
            raise MissingFile(f"{folder}: cannot be read ({error.strerror}); measure that set again") from error
        except ValueError as error:
            raise UnreadableModel(f"{folder / FACTS_FILE}: not JSON ({error}); remove {folder}") from error
        if not isinstance(facts, dict) or hashlib.sha256(content).hexdigest() != facts.get("features_sha256"):
            raise UnreadableModel(f"{folder}: {FEATURES_FILE} is not what {FACTS_FILE} describes; remove {folder}")
        return cls(load_tensors(content)["features"], str(facts.get("embedding")), str(facts.get("embedding_sha256")))


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Return the Frechet distance (squared 2-Wasserstein) of the Gaussians fitted to two sets, >= 0.

    It is biased upwards for few pictures, the more so the fewer: compare only numbers of equal counts, or see
    `kernel_distance`.

    Raises:
        VegaError: The sets were embedded differently.

    Source:
        Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    _same_embedding(a, b)
    return _distance(a.mean, a.factor, b.mean, b.factor)


def gaussian_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) of two Gaussians, >= 0.

    Args:
        mean_a: float64 [D].
        covariance_a: float64 [D, D], symmetric and positive semidefinite; singular ones are allowed.
        mean_b: As `mean_a`.
        covariance_b: As `covariance_a`.

    Source:
        Dowson & Landau 1982, equation 4.
    """
    return _distance(mean_a, square_root_factor(covariance_a), mean_b, square_root_factor(covariance_b))


def square_root_factor(covariance: Tensor) -> Tensor:
    """Return F [R, D] with F^T F = C for a symmetric positive semidefinite C of rank R.

    Eigenvalues that are rounding errors of zero are left out, negative ones among them: of a covariance of N < D
    pictures at most N - 1 directions remain, and the square root of noise never enters a sum.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    smallest = values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > smallest
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def _distance(mean_a: Tensor, factor_a: Tensor, mean_b: Tensor, factor_b: Tensor) -> float:
    """With C = F^T F, tr (C_a^1/2 C_b C_a^1/2)^1/2 is the sum of the singular values of F_a F_b^T.

    Both products have the same eigenvalues; singular values need no square root of a product that rounding has made
    indefinite, and swapping a and b only transposes the matrix.
    """
    product = factor_a @ factor_b.T
    overlap = torch.linalg.svdvals(product).sum() if product.numel() else product.new_zeros(())
    traces = factor_a.square().sum() + factor_b.square().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + traces - 2 * overlap))


def kernel_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3.

    Its expectation is 0 for sets of one distribution whatever their counts, so it may come out slightly negative; all
    pairs are used, without subsets, hence without chance. A picture is never compared with itself, so a set against
    itself gives a negative number, not 0.

    Raises:
        VegaError: The sets were embedded differently.

    Source:
        Binkowski et al. 2018 (arXiv 1801.01401), section 4 (KID); Gretton et al. 2012, equation 3.
    """
    _same_embedding(a, b)
    x, y = a.features.double(), b.features.double()
    return _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow(3)


def _mean_off_diagonal(square: Tensor) -> float:
    count = len(square)
    return float((square.sum() - square.diagonal().sum()) / (count * (count - 1)))


def _same_embedding(a: FrechetStatistics, b: FrechetStatistics) -> None:
    if (a.embedding, a.embedding_sha256) != (b.embedding, b.embedding_sha256):
        raise VegaError(
            f"embedding: {a.embedding} ({a.embedding_sha256[:12]}) and {b.embedding} ({b.embedding_sha256[:12]}) "
            "differ; embed both sets with one of them"
        )
