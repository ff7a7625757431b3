// -- InnerProduct -------------------------------------------------------------------------------

#define ROWS (BLOCK / 32)
#define AHEAD 4

// What the gradient of an inner product goes through before it is multiplied: where a ReLU has
// `rectified` y, dy becomes that of its input; `packed` = scale dy, if it `packs`; and all rows are
// added up. A block has 32 columns of `span` rows, and its sums go to `sums`, which has a row for
// each span, or is added to.
extern "C" __global__ void inner_product_gradient(const float* __restrict__ y,
                                                  float* __restrict__ dy,
                                                  real* __restrict__ packed,
                                                  float* __restrict__ sums, float slope,
                                                  float scale, int rectified, int packs, int adds,
                                                  int rows, int span, int columns) {
  __shared__ float shared[BLOCK];
  int tiles = (columns + 31) / 32, part = blockIdx.x / tiles;
  int column = blockIdx.x % tiles * 32 + threadIdx.x % 32;
  int last = column < columns ? min((part + 1) * span, rows) : 0;
  float sum = 0;
  for (int row = part * span + threadIdx.x / 32; row < last; row += AHEAD * ROWS) {
    float values[AHEAD], outputs[AHEAD];
    for (int k = 0; k < AHEAD; ++k) {
      long long i = (long long)min(row + k * ROWS, last - 1) * columns + column;
      values[k] = dy[i];
      outputs[k] = rectified ? y[i] : 1.0f;
    }
    for (int k = 0; k < AHEAD && row + k * ROWS < last; ++k) {
      long long i = (long long)(row + k * ROWS) * columns + column;
      float value = outputs[k] > 0 ? values[k] : slope * values[k];
      if (rectified) dy[i] = value;
      if (packs) packed[i] = scale * value;
      sum += value;
    }
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = BLOCK / 2; half >= 32; half /= 2) {
    if ((int)threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x < 32 && column < columns) {
    long long i = (long long)part * columns + column;
    sums[i] = (adds ? sums[i] : 0.0f) + shared[threadIdx.x];
  }
}

#undef ROWS
#undef AHEAD
