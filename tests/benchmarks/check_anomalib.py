"""Compare PaDiM and PatchCore with anomalib's, on the same features of one data folder.

anomalib is no dependency.  Install it, without its own choice of torch, into an environment of its own:

    python -m venv --system-site-packages anomalib-venv
    anomalib-venv/bin/pip install --no-deps anomalib lightning lightning-utilities pytorch-lightning torchmetrics \
        jsonargparse kornia kornia-rs omegaconf "antlr4-python3-runtime==4.9.3" einops rich-argparse python-dotenv \
        freia docstring-parser typeshed-client importlib_resources opencv-python-headless imagecodecs tifffile \
        scikit-image lazy-loader
    anomalib-venv/bin/python tests/benchmarks/check_anomalib.py DATA [SIZE]

The environment must see the one that mlffn_lite is in; where that is a virtual environment itself, name its
site-packages in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder, Split
from mlffn_lite.detector import Prediction, batches, measure
from mlffn_lite.features import FeatureDetector
from mlffn_lite.peers.padim import PaDiM, PaDiMParameters
from mlffn_lite.peers.patchcore import PatchCore, PatchCoreParameters, greedy_k_center

warnings.simplefilter("ignore")
try:
    from anomalib.models.components import KCenterGreedy  # type: ignore[import-not-found,unused-ignore]
    from anomalib.models.components.stats import MultiVariateGaussian  # type: ignore[import-not-found,unused-ignore]
    from anomalib.models.image.padim.anomaly_map import AnomalyMapGenerator  # type: ignore[import-not-found,unused-ignore]
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel  # type: ignore[import-not-found,unused-ignore]
except ImportError as error:
    sys.exit(f"anomalib cannot be imported ({error}); see the head of this file for how to install it")

JITTER = 1e-5
"""anomalib adds this to the diagonal, beside PaDiM's 0.01."""


def features(detector: FeatureDetector, split: Split) -> Tensor:
    """Our features of a split, (M, C, h, w)."""
    return torch.cat([detector._run(i, lambda x: detector._features(detector.backbone(x))) for i in batches(split)])


def compare(name: str, ours: Tensor, theirs: Tensor, scores: Tensor, split: Split) -> None:
    """Print both sets of metrics and the largest difference; ``scores`` are anomalib's image scores."""
    for label, maps, s in (("ours", ours, ours.flatten(1).amax(1)), ("anomalib", theirs, scores)):
        values = measure(Prediction(maps, s), split).values()
        print(f"{name:10} {label:9}" + "".join(f"{100 * v:9.3f}" for v in values))
    gap = (ours - theirs).abs()
    print(f"{name:10} largest difference of maps {float(gap.max()):.2e}, relative to the largest value "
          f"{float(gap.max() / theirs.abs().max()):.1e}\n")  # fmt: skip


@torch.inference_mode()
def padim(config: Config, folder: AnomalyFolder) -> None:
    """Fit both to the same channels of the same features."""
    detector = PaDiM(config, PaDiMParameters(epsilon=0.01 + JITTER)).fit(folder, progress=False)
    good, test = (features(detector, s)[:, detector.channels] for s in (folder.train, folder.test))
    gaussian = MultiVariateGaussian()
    gaussian.fit(good.contiguous())
    maps = AnomalyMapGenerator(sigma=4)(
        embedding=test, mean=gaussian.mean, inv_covariance=gaussian.inv_covariance, image_size=(folder.shape[0],) * 2
    )[:, 0]
    ours = detector.predict_split(folder.test).maps
    compare("padim", ours, maps, maps.flatten(1).amax(1), folder.test)


@torch.inference_mode()
def patchcore(config: Config, folder: AnomalyFolder, average: int) -> None:
    """Give both the same memory bank; anomalib's image score is the re-weighted largest patch distance."""
    detector = PatchCore(config, PatchCoreParameters(average=average)).fit(folder, progress=False)
    test = features(detector, folder.test)
    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False).eval()
    model.memory_bank = detector.bank
    maps, smooth, scores, distances = [], [], [], []
    for x in test:
        embedding = model.reshape_embedding(x[None])
        distance, location = model.nearest_neighbors(embedding, n_neighbors=1)
        scores.append(model.compute_anomaly_score(distance[None], location[None], embedding))
        grid, size = distance.view(1, 1, *x.shape[-2:]), (folder.shape[0],) * 2
        maps.append(model.anomaly_map_generator(grid, size)[:, 0])
        smooth.append(model.anomaly_map_generator.blur(F.interpolate(grid, size, mode="bilinear"))[:, 0])
        distances.append(grid[0])
    ours, name = detector.predict_split(folder.test).maps, f"patchcore{average}"
    print(f"{name}: anomalib repeats patches (nearest), the paper's authors and we upsample bilinearly")
    compare(name, ours, torch.cat(maps), torch.cat(scores), folder.test)
    print(f"{name}: anomalib's distances and blur, upsampled bilinearly")
    compare(name, ours, torch.cat(smooth), torch.cat(scores), folder.test)
    gap = (detector._distances(test) - torch.cat(distances)).abs()
    print(f"{name}: largest difference of patch distances {float(gap.max()):.2e}\n")


@torch.inference_mode()
def coreset(config: Config, folder: AnomalyFolder) -> None:
    """Choose from the same points, projected by anomalib, from the same first one."""
    detector = PatchCore(config)
    points = features(detector, folder.train).permute(0, 2, 3, 1).flatten(0, 2)
    points = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:5000]]
    sampler = KCenterGreedy(embedding=points, sampling_ratio=0.1)
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = [int(i) for i in sampler.select_coreset_idxs()]
    ours = greedy_k_center(sampler.features, len(theirs), theirs[0]).tolist()
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"coreset    {same} of {len(theirs)} choices among {len(points)} patches in the same order")


def main() -> None:
    """Compare on one folder."""
    parser = argparse.ArgumentParser(description="Compare PaDiM and PatchCore with anomalib's.")
    parser.add_argument("data")
    parser.add_argument("size", nargs="?", type=int, default=256, help="256 only gives anomalib's smoothing")
    arguments = parser.parse_args()
    folder = AnomalyFolder(arguments.data, size=arguments.size)
    config = Config.preset(
        "small", data={"size": arguments.size, "aspect": "square"}, train={"device": "cpu", "precision": "fp32"}
    )
    print(f"{arguments.data}, {arguments.size} px, float32, {torch.get_num_threads()} threads")
    print(f"{'':20}{'image':>9}{'pixel':>9}{'PRO':>9}  percent")
    padim(config, folder)
    for average in (1, 3):
        patchcore(config, folder, average)
    coreset(config, folder)


if __name__ == "__main__":
    main()
