"""Make CIFAR10-quick's databases and mean from images: train/<class>/*.png, test/<class>/*.png."""

from class_folders import run

from protocaffe.data.convert import ImageOptions

if __name__ == "__main__":
    run(__doc__, "models/cifar10_quick", ImageOptions(), mean=True)
