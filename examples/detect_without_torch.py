"""Detect objects with an exported ONNX file; needs numpy, Pillow and onnxruntime alone.

    locdistill export runs/student --out student.onnx
    python examples/detect_without_torch.py student.onnx image.jpg ...

The rule of resizing, which the file names in its metadata ("resize"):

* ``{"fit": [H, W]}``: the file takes images of one size. scale = min(H / height, W / width).
* ``{"short": S, "long": L, "pad_to": P}``: it takes any size. scale = min(L / longer side, S / shorter side), and
  height and width are padded to multiples of P.

Both sides become floor(side * scale + 0.5), bilinear, with the filter widened when shrinking (as Pillow does). The
image is padded at the right and the bottom; the file normalises it and ignores the padding.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")  # of its other formats, Pillow lets some start programs


def load(path):
    """Return the image as 8-bit RGB, upright."""
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def prepare(image, rule):
    """Resize and pad; return the array (1, 3, h, w) and the size (1, 2) without padding."""
    width, height = image.size
    if "fit" in rule:
        padded = rule["fit"]
        scale = min(padded[0] / height, padded[1] / width)
    else:
        scale = min(rule["long"] / max(height, width), rule["short"] / min(height, width))
    inner = [max(int(side * scale + 0.5), 1) for side in (height, width)]
    if "fit" not in rule:
        padded = [-(-side // rule["pad_to"]) * rule["pad_to"] for side in inner]
    array = np.zeros((*padded, 3), np.uint8)
    array[: inner[0], : inner[1]] = np.asarray(image.resize((inner[1], inner[0]), Image.Resampling.BILINEAR))
    return array.transpose(2, 0, 1)[None], np.array([inner], np.int64)


def main(file, *paths):
    """Print the detections in each image as a line of JSON, from the scores that `locdistill predict` shows."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    names, shown = ["boxes", "scores", "labels"], facts["thresholds"]["show"]
    for path in paths:
        image = load(path)
        images, sizes = prepare(image, facts["resize"])
        boxes, scores, labels = session.run(names, {"images": images, "sizes": sizes})
        boxes = boxes * np.tile(np.array(image.size) / sizes[0, ::-1], 2)  # to pixels of the image
        found = zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
        detections = [{"class": facts["classes"][label], "score": s, "box": box} for box, s, label in found]
        detections = [each for each in detections if each["score"] >= shown.get(each["class"], 0.3)]
        print(json.dumps({"image": path, "detections": detections}))


if __name__ == "__main__":
    main(*sys.argv[1:])
