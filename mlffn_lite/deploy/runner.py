"""Judge images with a model of `mlffn export`: `python run.py model.onnx IMAGE…` prints CSV: image, verdict, score."""

import csv
import io
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Model:
    """An exported model; ``meta`` says how images are prepared and when one is anomalous."""

    def __init__(self, path: str, options: onnxruntime.SessionOptions | None = None) -> None:
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.meta = json.loads(self.session.get_modelmeta().custom_metadata_map["mlffn"])

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Bring what is looked at of an image, upright, to the model's size, (1, H, W, 3) uint8, as in training."""
        image, (left, top, right, bottom) = ImageOps.exif_transpose(image), self.meta["box"] or [0] * 4
        if image.mode[0] in "IF":  # 16 bits and float are scaled; convert() would clip them
            values = np.asarray(image) * (255 if image.mode == "F" else 255 / 65535)
            image = Image.fromarray(values.round().astype(np.uint8))
        image = image.convert("RGB")
        if hidden := bytes.fromhex(self.meta["ignore"]):  # a PNG of the photograph's size, white where it is
            image.paste((116, 116, 116), mask=Image.open(io.BytesIO(hidden)).convert("L"))
        if right > image.width or bottom > image.height or self.meta["size"] not in (None, [*image.size]):
            raise ValueError("the image has not the size that the model's crop and ignore mask are for")
        image = image.crop((left, top, right or image.width, bottom or image.height))
        return np.asarray(image.resize(self.meta["shape"][::-1], Image.Resampling.BILINEAR))[None]

    def judge(self, image: Image.Image) -> tuple[str, float]:
        """Return NOK if a region of the score map above the threshold is large and strong enough, or OK; and score."""
        heat = self.session.run(["map"], {"image": self.pixels(image)})[0][0].astype(np.float64)
        left, rule = set(zip(*np.nonzero(np.asarray_chkfinite(heat) > self.meta["threshold"]), strict=True)), self.meta
        while left:
            region = new = {left.pop()}
            while new:  # 8 neighbours of each
                new = {(y + i, x + j) for y, x in new for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= new
                region |= new
            if len(region) >= rule["min_area"] and max(heat[at] for at in region) >= rule["min_peak"]:
                return "NOK", heat.max()
        return "OK", heat.max()


if __name__ == "__main__":
    model, table, code = Model(sys.argv[1] if sys.argv[2:] else sys.exit(__doc__)), csv.writer(sys.stdout), 0
    Image.init()
    table.writerow(["image", "verdict", "score"])
    for name in sys.argv[2:]:
        try:
            image = Image.open(name, formats=["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
            table.writerow([name, *model.judge(image)])
        except Exception as error:  # on damaged files Pillow's decoders raise anything
            table.writerow([name, "ERROR", error])
            code = 2
    sys.exit(code)
