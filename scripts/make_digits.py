"""Write scikit-learn's handwritten digits as PNG files, one folder per digit.

usage: python scripts/make_digits.py [FOLDER]     (default: build/digits)

Makes FOLDER/train/<digit>/*.png (1,437 images of 8x8 grey pixels), FOLDER/test/<digit>/*.png
(360) and the lists train.txt and test.txt for convert_imageset. The split is always the same,
with the same share of every digit in both parts. Needs scikit-learn: pip install protocaffe[demo].
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TEST_IMAGES = 360


def main(folder: Path) -> None:
    """Write both parts below the folder."""
    digits = load_digits()
    rows = np.arange(len(digits.target))
    parts = train_test_split(
        rows, test_size=TEST_IMAGES, stratify=digits.target, random_state=0, shuffle=True
    )
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for part, chosen in zip(("train", "test"), parts, strict=True):
        write(folder, part, chosen, pixels, digits.target)
        print(f"{folder / part}: {len(chosen)} images")


def write(
    folder: Path, part: str, rows: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> None:
    """Write the images of one part and its list."""
    lines = []
    for row in rows:
        name = f"{labels[row]}/{row:04}.png"
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), pixels[row]):
            sys.exit(f"{path} cannot be written")
        lines.append(f"{name} {labels[row]}\n")
    (folder / f"{part}.txt").write_text("".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/digits"))
