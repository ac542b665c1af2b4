"""PaDiM (Defard et al., 2021): a Gaussian of features at every position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..devices import generator_for
from ..errors import ConfigError
from ..features import FeatureDetector, FeatureParameters, Moments
from ..layers import resize


@dataclass(frozen=True)
class PaDiMParameters(FeatureParameters):
    """Parameters of PaDiM, beside those of :class:`FeatureParameters`; the defaults are the paper's.

    Attributes
    ----------
    channels : int
        Channels drawn at random, at most; the paper takes 100 of ResNet-18's 448.
    epsilon : float
        Added to the diagonal of every covariance.
    """

    channels: int = 100
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1 or self.epsilon <= 0:
            raise ConfigError(f"channels = {self.channels} and epsilon = {self.epsilon} must be above 0")


class PaDiM(FeatureDetector):
    """Mahalanobis distance from the Gaussian that good images have at the same position.

    Parameters
    ----------
    config : Config
        See :class:`~mlffn_lite.features.FeatureDetector`; the seed draws the channels.
    parameters : PaDiMParameters, optional
        The paper's by default.

    Notes
    -----
    As in the paper the grid is that of the first level, stride 4, and every position of it takes the coarser levels'
    vectors at the pixels that cover it: upsampled to the nearest, not interpolated.  At 256 px that makes 4096
    positions, whose factors for 100 channels take 164 MB.  Gaussians belong to positions, so features of images of
    another size are first brought to the fitted grid.

    Attributes
    ----------
    channels, mean, factor : Tensor
        Channels in use (D,); mean (P, D) and factor L⁻¹ (P, D, D) of Σ = LLᵀ at every position, row by row.
    grid : Tensor
        Height and width of the grid, P = h·w.
    """

    memory = ("channels", "mean", "factor", "grid")
    upsampling = "nearest"
    channels: Tensor
    mean: Tensor
    factor: Tensor
    grid: Tensor

    def __init__(self, config: Config, parameters: PaDiMParameters | None = None) -> None:
        super().__init__(config, parameters or PaDiMParameters())

    def _learn(self, features: Iterator[Tensor], images: int) -> None:
        moments = Moments()
        for batch in features:
            if not moments.count:
                order = torch.randperm(batch.shape[1], generator=generator_for(self.config.train.seed, "padim", 0))
                self.channels = order[: self.parameters.channels].sort().values.to(self.device)
                self.grid = torch.tensor(batch.shape[-2:])
            moments.add(batch[:, self.channels].flatten(2).permute(2, 0, 1))
        self.mean = moments.mean.contiguous()  # as it is stored
        self.factor = whitening(moments.covariance(), self.parameters.epsilon)

    def _distances(self, features: Tensor) -> Tensor:
        height, width = self.grid.tolist()
        features = resize(features, (height, width))
        x = features[:, self.channels].flatten(2).permute(2, 0, 1).contiguous()  # (P, B, D)
        return mahalanobis(x, self.mean, self.factor).T.reshape(-1, height, width)


def whitening(covariance: Tensor, epsilon: float, *, chunk: int = 256) -> Tensor:
    """Return L⁻¹ of Σ + εI = LLᵀ for every Σ (P, D, D), lower triangular, float32.

    The factors are computed in float64, on the CPU, a few positions at a time: Σ has far fewer images than it needs
    to be regular, and ε alone keeps it from being singular.
    """
    eye = torch.eye(covariance.shape[-1], dtype=torch.float64)
    factor = covariance.new_empty(covariance.shape, dtype=torch.float32)
    for part, out in zip(covariance.split(chunk), factor.split(chunk), strict=True):
        lower = torch.linalg.cholesky(part.cpu().double() + epsilon * eye)
        out.copy_(torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False))
    return factor


def mahalanobis(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return √((x − μ)ᵀ Σ⁻¹ (x − μ)) = ‖L⁻¹(x − μ)‖ of x (P, B, D) under P Gaussians, (P, B)."""
    return ((x - mean[:, None]) @ factor.mT).norm(dim=2)
