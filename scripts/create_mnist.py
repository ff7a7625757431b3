"""Make LeNet's databases from MNIST as images: train/<digit>/*.png and test/<digit>/*.png."""

from class_folders import run

from protocaffe.data.convert import ImageOptions

if __name__ == "__main__":
    run(__doc__, "models/lenet", ImageOptions(gray=True))
