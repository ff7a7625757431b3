"""The CUDA engine: CuPy arrays, cuDNN convolutions, own kernels, passes as CUDA graphs."""
