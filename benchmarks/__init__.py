"""What protocaffe is measured with; see README.md."""
