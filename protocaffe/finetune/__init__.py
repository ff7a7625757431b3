"""Fine-tuning: a trained net learns to tell other classes apart, from folders of images."""
