"""Write scikit-learn's handwritten digits as PNG files, one folder per digit.

usage: python scripts/make_digits.py [FOLDER]     (default: build/digits)

Makes FOLDER/train/<digit>/*.png (1,437 grey images), FOLDER/test/<digit>/*.png
(360), which convert_imageset takes. The split is always the same, with the same share of every
digit in both parts. Needs scikit-learn: pip install protocaffe[demo].
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_IMAGES = 360
BORDER = 1
"""Dark pixels around the 8x8 of each digit: room to crop 8x8 at random places in training."""


def main(folder: Path) -> None:
    """Write both parts below the folder."""
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.pad(pixels, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=TEST_IMAGES, stratify=digits.target, random_state=0
    )
    for part, rows in (("train", train), ("test", test)):
        for row in rows:
            path = folder / part / str(digits.target[row]) / f"{row:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), pixels[row]):
                sys.exit(f"{path} cannot be written")
        print(f"{folder / part}: {len(rows)} images")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/digits"))
