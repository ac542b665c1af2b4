"""Compare PaDiM and PatchCore with anomalib's, from the image to the map, on one data folder.

anomalib's own models take the images, with the weights of our backbone.  They are fitted to the same images: PaDiM to
the same channels, PatchCore with the same memory bank.  A line that says "required" must agree, or the exit status
is 1.  What differs by design is printed to be looked at:

- anomalib's PatchCore repeats patch distances (nearest) before it blurs them, where the authors' code and ours
  interpolate bilinearly.  With that put in its place, the maps are required to agree.
- anomalib's image score of PatchCore is the largest patch distance, re-weighted as in the paper; the authors' code
  leaves the weight out.  Ours is the maximum of the map, for every method here, as anomalib's is of PaDiM.
- anomalib adds 1e-5 to the diagonal of PaDiM's covariances, beside the 0.01 of both; for this comparison ours does too.

Not compared, for anomalib does none of it: PatchCore's authors pool every patch's channels to 1024 values, which
mixes neighbouring channels and would stretch those of small networks; they rank by squared distances, and so blur
squares; and they mirror maps at the border with the edge repeated.

anomalib is no dependency.  Install it, without its own choice of torch, into an environment of its own:

    python -m venv --system-site-packages anomalib-venv
    anomalib-venv/bin/pip install --no-deps anomalib==2.7.0 lightning lightning-utilities pytorch-lightning \
        torchmetrics jsonargparse kornia kornia-rs omegaconf "antlr4-python3-runtime==4.9.3" einops rich-argparse \
        python-dotenv freia docstring-parser typeshed-client importlib_resources opencv-python-headless imagecodecs \
        tifffile scikit-image lazy-loader
    anomalib-venv/bin/python tests/benchmarks/check_anomalib.py DATA

The environment must see the one that mlffn_lite is in; where that is a virtual environment itself, name its
site-packages in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlffn_lite.backbones import STRIDES, Backbone
from mlffn_lite.config import Config
from mlffn_lite.datasets.folder import AnomalyFolder, Split
from mlffn_lite.detector import Prediction, batches, measure
from mlffn_lite.features import FeatureDetector
from mlffn_lite.neighbours import greedy_k_center
from mlffn_lite.peers.padim import PaDiM, PaDiMParameters
from mlffn_lite.peers.patchcore import PatchCore, PatchCoreParameters

warnings.simplefilter("ignore")
try:
    from anomalib.models.components import KCenterGreedy  # type: ignore[import-not-found,unused-ignore]
    from anomalib.models.image.padim.torch_model import PadimModel  # type: ignore[import-not-found,unused-ignore]
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel  # type: ignore[import-not-found,unused-ignore]
except ImportError as error:
    sys.exit(f"anomalib cannot be imported ({error}); see the head of this file for how to install it")

SIZE = 256  # anomalib smooths by 4 pixels, which are ours at this size only
NETWORK = "tf_efficientnet_lite0"
JITTER = 1e-5
TOLERANCE = 1e-3  # relative to the largest value
FAILED: list[str] = []


def layers(levels: tuple[int, ...]) -> list[str]:
    """Name timm's modules that our levels come from."""
    info: Any = timm.create_model(NETWORK, features_only=True, pretrained=False).feature_info
    names = dict(zip(info.reduction(), info.module_name(), strict=True))
    return [names[STRIDES[level - 1]] for level in levels]


def give_weights(model: Any, backbone: Backbone) -> Any:
    """Put our weights into anomalib's network; returns the model, in evaluation."""
    # Not strict: ours ends with the last level.  That nothing else is missing, equal embeddings show.
    model.feature_extractor.feature_extractor.load_state_dict(backbone.body.state_dict(), strict=False)
    return model.eval()


def normalised(split: Split, backbone: Backbone) -> Iterator[Tensor]:
    """Yield images as anomalib's models take them."""
    for images in batches(split):
        yield (images.float() / 255 - backbone.mean) / backbone.std


def features(detector: FeatureDetector, split: Split) -> Tensor:
    """Our features of a split, (M, C, h, w)."""
    return torch.cat([detector._run(i, lambda x: detector._features(detector.backbone(x))) for i in batches(split)])


def predict(model: Any, split: Split, backbone: Backbone) -> Prediction:
    """Predict with anomalib's model."""
    parts = [model(x) for x in normalised(split, backbone)]
    return Prediction(
        torch.cat([p.anomaly_map[:, 0] for p in parts]), torch.cat([p.pred_score.flatten() for p in parts])
    )


def compare(name: str, ours: Tensor, theirs: Tensor, *, required: bool = True) -> None:
    """Print the largest difference relative to the largest value, and remember it where it fails."""
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    verdict = ("FAILED" if gap > TOLERANCE else "agrees") + ", required" if required else "for information"
    print(f"{name:62} {gap:.1e}  {verdict}")
    if required and not gap <= TOLERANCE:
        FAILED.append(name)


def metrics(name: str, prediction: Prediction, split: Split) -> None:
    """Print the three metrics."""
    print(f"{name:42}" + "".join(f"{100 * v:9.3f}" for v in measure(prediction, split).values()))


@torch.inference_mode()
def padim(config: Config, folder: AnomalyFolder) -> None:
    """Fit both to the same channels."""
    detector = PaDiM(config, PaDiMParameters(epsilon=0.01 + JITTER)).fit(folder, progress=False)
    ours, backbone = detector.predict_split(folder.test), detector.backbone
    model = PadimModel(
        NETWORK, layers(detector.parameters.levels), pre_trained=False, n_features=len(detector.channels)
    )
    give_weights(model, backbone).idx = detector.channels
    model.train()  # gathers embeddings; its network stays in evaluation
    embeddings = torch.cat([model(x) for x in normalised(folder.train, backbone)])
    model.fit()
    theirs = predict(model.eval(), folder.test, backbone)
    metrics("padim, ours", ours, folder.test)
    metrics("padim, anomalib", theirs, folder.test)
    compare("padim: embeddings", features(detector, folder.train)[:, detector.channels], embeddings)
    compare("padim: maps", ours.maps, theirs.maps)
    compare("padim: image scores", ours.scores, theirs.scores)


class Bilinear(nn.Module):
    """anomalib's maps of PatchCore, with its own blur, upsampled as in the authors' code."""

    def __init__(self, blur: nn.Module) -> None:
        super().__init__()
        self.blur = blur

    def forward(self, distances: Tensor, size: torch.Size) -> Tensor:
        """Upsample patch distances (B, 1, h, w), then blur them."""
        return self.blur(F.interpolate(distances, size, mode="bilinear", align_corners=False))


@torch.inference_mode()
def patchcore(config: Config, folder: AnomalyFolder, average: int) -> None:
    """Give both the same memory bank, which anomalib could have chosen: the embeddings are the same."""
    detector = PatchCore(config, PatchCoreParameters(average=average)).fit(folder, progress=False)
    ours, backbone, name = detector.predict_split(folder.test), detector.backbone, f"patchcore, average {average}"
    model = PatchcoreModel(layers(detector.parameters.levels), NETWORK, pre_trained=False)
    give_weights(model, backbone)
    if average == 1:
        model.feature_pooler = nn.Identity()
    model.train()
    embeddings = torch.cat([model(x) for x in normalised(folder.train, backbone)])
    model.eval().memory_bank = detector.bank
    plain = predict(model, folder.test, backbone)
    model.anomaly_map_generator = Bilinear(model.anomaly_map_generator.blur)
    bilinear = predict(model, folder.test, backbone)
    metrics(f"{name}, ours", ours, folder.test)
    metrics(f"{name}, anomalib bilinear", bilinear, folder.test)
    metrics(f"{name}, anomalib as it is", plain, folder.test)
    compare(f"{name}: embeddings", model.reshape_embedding(features(detector, folder.train)), embeddings)
    compare(f"{name}: maps, anomalib's upsampled bilinearly", ours.maps, bilinear.maps)
    compare(f"{name}: maps, anomalib as it is (nearest)", ours.maps, plain.maps, required=False)
    compare(f"{name}: image scores (re-weighted)", ours.scores, plain.scores, required=False)


@torch.inference_mode()
def coreset(config: Config, folder: AnomalyFolder) -> None:
    """Choose from the same points, projected by anomalib, from the same first one."""
    torch.manual_seed(0)
    points = features(PatchCore(config), folder.train).permute(0, 2, 3, 1).flatten(0, 2)
    points = points[torch.randperm(len(points))[:5000]]
    sampler = KCenterGreedy(embedding=points, sampling_ratio=0.1)
    with contextlib.redirect_stderr(io.StringIO()):
        theirs = [int(i) for i in sampler.select_coreset_idxs()]
    ours = greedy_k_center(sampler.features, len(theirs), theirs[0]).tolist()
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"coreset: {same} of {len(theirs)} choices among {len(points)} patches in the same order")
    if same < len(theirs):
        FAILED.append("coreset")


def main() -> None:
    """Compare on one folder."""
    parser = argparse.ArgumentParser(description="Compare PaDiM and PatchCore with anomalib's.")
    parser.add_argument("data")
    folder = AnomalyFolder(parser.parse_args().data, size=SIZE)
    config = Config.preset(
        "small", data={"size": SIZE, "aspect": "square"}, train={"device": "cpu", "precision": "fp32"}
    )
    print(f"{len(folder.train)} training and {len(folder.test)} test images of {SIZE} px, float32")
    print(f"{'percent':42}{'image':>9}{'pixel':>9}{'PRO':>9}; differences relative to the largest value")
    padim(config, folder)
    for average in (1, 3):
        patchcore(config, folder, average)
    coreset(config, folder)
    sys.exit(f"these differ: {', '.join(FAILED)}" if FAILED else 0)


if __name__ == "__main__":
    main()
