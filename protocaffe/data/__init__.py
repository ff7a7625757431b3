"""Where batches come from: databases, images, the transformer, and threads that run ahead."""
