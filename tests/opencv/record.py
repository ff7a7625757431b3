"""Record what the layers of the nets hold with OpenCV 4: ``python -m tests.opencv.record``."""

import tempfile
from pathlib import Path

import cv2
import numpy as np

from tests.opencv.nets import FOLDER, NAMES, WRONG, load, save_weights

if __name__ == "__main__":
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.caffemodel"
            save_weights(name, path)
            net = load(cv2.dnn, name, path)
        layers = net.getLayerNames()
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            version=cv2.__version__,
            layers=layers,
            ends=net.getUnconnectedOutLayersNames(),
            last=net.forward(),
            **{f"forward/{layer}": net.forward(layer) for layer in layers if layer not in WRONG},
        )
