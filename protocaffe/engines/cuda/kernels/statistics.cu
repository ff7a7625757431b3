// -- BatchNorm ----------------------------------------------------------------------------------

// One block per channel: mean and biased variance over a batch of images, in two passes.
extern "C" __global__ void channel_statistics(const float* x, float* mean, float* variance,
                                              int images, int channels, int area) {
  __shared__ float shared[BLOCK];
  int c = blockIdx.x;
  float count = (float)images * area, sum = 0;
  for (int n = 0; n < images; ++n) {
    const float* plane = x + ((long long)n * channels + c) * area;
    for (int i = threadIdx.x; i < area; i += BLOCK) sum += plane[i];
  }
  float middle = block_sum(sum, shared) / count;
  sum = 0;
  for (int n = 0; n < images; ++n) {
    const float* plane = x + ((long long)n * channels + c) * area;
    for (int i = threadIdx.x; i < area; i += BLOCK) {
      float distance = plane[i] - middle;
      sum += distance * distance;
    }
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    mean[c] = middle;
    variance[c] = sum / count;
  }
}

// One thread per channel: sums = fraction * sums + new, with the unbiased variance; and the weight.
extern "C" __global__ void running_statistics(const float* mean, const float* variance, float* means,
                                              float* variances, float* weight, float fraction,
                                              float unbiased, int channels) {
  int c = place();
  if (c < channels) {
    means[c] = fraction * means[c] + mean[c];
    variances[c] = fraction * variances[c] + unbiased * variance[c];
  }
  if (c == 0) weight[0] = fraction * weight[0] + 1;
}

// y = kept = (x - mean) / sqrt(variance + eps); x may be y.
extern "C" __global__ void normalize(const float* x, const float* mean, const float* variance,
                                     float* y, float* kept, float eps, int channels, int area,
                                     int count) {
  int i = place();
  if (i >= count) return;
  int c = i / area % channels;
  float value = (x[i] - mean[c]) / sqrtf(variance[c] + eps);
  y[i] = value;
  kept[i] = value;
}

// One block per channel: the means of dy and of dy y over a batch of images.
extern "C" __global__ void gradient_means(const float* dy, const float* y, float* plain,
                                          float* product, int images, int channels, int area) {
  __shared__ float shared[BLOCK];
  int c = blockIdx.x;
  float count = (float)images * area, sum = 0, products = 0;
  for (int n = 0; n < images; ++n) {
    long long start = ((long long)n * channels + c) * area;
    for (int i = threadIdx.x; i < area; i += BLOCK) {
      sum += dy[start + i];
      products += dy[start + i] * y[start + i];
    }
  }
  sum = block_sum(sum, shared);
  products = block_sum(products, shared);
  if (threadIdx.x == 0) {
    plain[c] = sum / count;
    product[c] = products / count;
  }
}

// dx = (dy - mean(dy) - mean(dy y) y) / sqrt(variance + eps); dx may be dy.
extern "C" __global__ void normalize_backward(const float* dy, const float* y, const float* plain,
                                              const float* product, const float* variance,
                                              float* dx, float eps, int channels, int area,
                                              int count) {
  int i = place();
  if (i >= count) return;
  int c = i / area % channels;
  dx[i] = (dy[i] - plain[c] - product[c] * y[i]) / sqrtf(variance[c] + eps);
}
