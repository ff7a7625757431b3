"""Write the prototxts in models/ whose nets are functions in protocaffe/zoo: train_val and deploy.

python scripts/make_models.py
"""

from pathlib import Path

from protocaffe.proto.files import write_atomic
from protocaffe.zoo.published import PUBLISHED

MODELS = Path(__file__).resolve().parents[1] / "models"


def main() -> None:
    """Write all files."""
    for folder, net in PUBLISHED.items():
        (MODELS / folder).mkdir(exist_ok=True)
        for name, text in net.texts().items():
            write_atomic(MODELS / folder / name, text.encode())


if __name__ == "__main__":
    main()
