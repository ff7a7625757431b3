// The CUDA engine's own kernels: what Caffe's rules ask for and no library has.
//
// All arrays are float32 in Caffe's order. One-dimensional grids; a thread whose number is beyond
// `count` does nothing. Kernels that add numbers up use one block per sum and always the same
// order, so that results are the same in every run.

typedef unsigned int u32;

__device__ inline int place() { return blockIdx.x * blockDim.x + threadIdx.x; }

// The sum of one number per thread, in every thread. Blocks have BLOCK threads.
#define BLOCK 256

__device__ inline float block_sum(float value, float* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  float sum = shared[0];
  __syncthreads();
  return sum;
}

__device__ inline float block_max(float value, float* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half)
      shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  float greatest = shared[0];
  __syncthreads();
  return greatest;
}

// -- ReLU -------------------------------------------------------------------------------------

extern "C" __global__ void relu_forward(const float* x, float* y, float slope, int count) {
  int i = place();
  if (i >= count) return;
  float value = x[i];
  y[i] = value > 0 || value != value ? value : (slope == 0 ? 0 : slope * value);
}

extern "C" __global__ void relu_backward(const float* x, const float* dy, float* dx, float slope,
                                         int count) {
  int i = place();
  if (i < count) dx[i] = x[i] > 0 ? dy[i] : dy[i] * slope;
}

// -- Pooling ----------------------------------------------------------------------------------

// One thread per output. The first maximum in row order wins, NaN never; -1 for an empty window.
extern "C" __global__ void max_pool_forward(const float* x, float* y, int* index, int height,
                                            int width, int out_height, int out_width, int kernel_h,
                                            int kernel_w, int stride_h, int stride_w, int pad_h,
                                            int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int column = i % out_width, row = i / out_width % out_height;
  const float* plane = x + (long long)(i / out_width / out_height) * height * width;
  int top = row * stride_h - pad_h, left = column * stride_w - pad_w;
  int bottom = min(top + kernel_h, height), right = min(left + kernel_w, width);
  float best = -3.402823466e+38f;
  int found = -1;
  for (int h = max(top, 0); h < bottom; ++h)
    for (int w = max(left, 0); w < right; ++w)
      if (plane[h * width + w] > best) {
        best = plane[h * width + w];
        found = h * width + w;
      }
  y[i] = best;
  index[i] = found;
}

// One thread per input: it asks all windows that hold it whether it was their maximum.
extern "C" __global__ void max_pool_backward(const float* dy, const int* index, float* dx,
                                             int height, int width, int out_height, int out_width,
                                             int kernel_h, int kernel_w, int stride_h, int stride_w,
                                             int pad_h, int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int w = i % width + pad_w, h = i / width % height + pad_h, own = i % (height * width);
  int first_row = h < kernel_h ? 0 : (h - kernel_h) / stride_h + 1;
  int first_column = w < kernel_w ? 0 : (w - kernel_w) / stride_w + 1;
  int rows = min(h / stride_h + 1, out_height), columns = min(w / stride_w + 1, out_width);
  long long plane = (long long)(i / (height * width)) * out_height * out_width;
  float sum = 0;
  for (int row = first_row; row < rows; ++row)
    for (int column = first_column; column < columns; ++column) {
      long long at = plane + row * out_width + column;
      if (index[at] == own) sum += dy[at];
    }
  dx[i] = sum;
}

// Caffe's divisor: the window's area within the padded image, at least 1.
__device__ inline float window_area(int row, int column, int height, int width, int kernel_h,
                                    int kernel_w, int stride_h, int stride_w, int pad_h,
                                    int pad_w) {
  int top = row * stride_h - pad_h, left = column * stride_w - pad_w;
  int high = min(top + kernel_h, height + pad_h) - top;
  int wide = min(left + kernel_w, width + pad_w) - left;
  return (float)max(high * wide, 1);
}

extern "C" __global__ void ave_pool_forward(const float* x, float* y, int height, int width,
                                            int out_height, int out_width, int kernel_h,
                                            int kernel_w, int stride_h, int stride_w, int pad_h,
                                            int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int column = i % out_width, row = i / out_width % out_height;
  const float* plane = x + (long long)(i / out_width / out_height) * height * width;
  int top = row * stride_h - pad_h, left = column * stride_w - pad_w;
  int bottom = min(top + kernel_h, height), right = min(left + kernel_w, width);
  float sum = 0;
  for (int h = max(top, 0); h < bottom; ++h)
    for (int w = max(left, 0); w < right; ++w) sum += plane[h * width + w];
  y[i] = sum / window_area(row, column, height, width, kernel_h, kernel_w, stride_h, stride_w,
                           pad_h, pad_w);
}

extern "C" __global__ void ave_pool_backward(const float* dy, float* dx, int height, int width,
                                             int out_height, int out_width, int kernel_h,
                                             int kernel_w, int stride_h, int stride_w, int pad_h,
                                             int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int w = i % width + pad_w, h = i / width % height + pad_h;
  int first_row = h < kernel_h ? 0 : (h - kernel_h) / stride_h + 1;
  int first_column = w < kernel_w ? 0 : (w - kernel_w) / stride_w + 1;
  int rows = min(h / stride_h + 1, out_height), columns = min(w / stride_w + 1, out_width);
  const float* plane = dy + (long long)(i / (height * width)) * out_height * out_width;
  float sum = 0;
  for (int row = first_row; row < rows; ++row)
    for (int column = first_column; column < columns; ++column)
      sum += plane[row * out_width + column] / window_area(row, column, height, width, kernel_h,
                                                           kernel_w, stride_h, stride_w, pad_h,
                                                           pad_w);
  dx[i] = sum;
}

// -- LRN across channels ------------------------------------------------------------------------

// s = k + alpha * mean of x^2 over `size` channels; y = x s^-beta. `alpha` comes divided by size.
// x may be y only if the caller keeps x elsewhere.
extern "C" __global__ void lrn_scale(const float* x, float* s, float k, float alpha, int size,
                                     int channels, int area, int count) {
  int i = place();
  if (i >= count) return;
  int c = i / area % channels;
  int first = max(c - size / 2, 0), last = min(c + size / 2, channels - 1);
  float sum = 0;
  for (int other = first; other <= last; ++other) {
    float value = x[i + (other - c) * area];
    sum += value * value;
  }
  s[i] = k + alpha * sum;
}

extern "C" __global__ void lrn_output(const float* x, const float* s, float* y, float beta,
                                      int count) {
  int i = place();
  if (i < count) y[i] = x[i] * powf(s[i], -beta);
}

// What every neighbour adds to the gradient: dy y / s.
extern "C" __global__ void lrn_ratio(const float* x, const float* s, const float* dy, float* ratio,
                                     float beta, int count) {
  int i = place();
  if (i < count) ratio[i] = dy[i] * x[i] * powf(s[i], -beta) / s[i];
}

// dx = dy s^-beta - factor x * (sum of ratios over the channels), factor = 2 alpha beta / size.
extern "C" __global__ void lrn_backward(const float* x, const float* s, const float* ratio,
                                        const float* dy, float* dx, float beta, float factor,
                                        int size, int channels, int area, int count) {
  int i = place();
  if (i >= count) return;
  int c = i / area % channels;
  int first = max(c - size / 2, 0), last = min(c + size / 2, channels - 1);
  float sum = 0;
  for (int other = first; other <= last; ++other) sum += ratio[i + (other - c) * area];
  dx[i] = dy[i] * powf(s[i], -beta) - factor * x[i] * sum;
}

// -- Dropout ------------------------------------------------------------------------------------

// Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
__device__ inline void philox(u32 counter, const u32* key, u32* out) {
  u32 a = counter, b = 0, c = 0, d = 0, k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    unsigned long long p = 0xD2511F53ull * a, q = 0xCD9E8D57ull * c;
    u32 next_a = (u32)(q >> 32) ^ b ^ k0, next_c = (u32)(p >> 32) ^ d ^ k1;
    b = (u32)q;
    d = (u32)p;
    a = next_a;
    c = next_c;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = a;
  out[1] = b;
  out[2] = c;
  out[3] = d;
}

// One thread per four numbers: each is kept with probability 1 - ratio and multiplied by scale.
// Forward and backward draw the same from one seed; there is no mask in memory.
extern "C" __global__ void dropout(const float* x, float* y, const u32* seed, float ratio,
                                   float scale, int count) {
  int first = 4 * place();
  if (first >= count) return;
  u32 random[4];
  philox((u32)first / 4, seed, random);
  for (int k = 0; k < 4; ++k)
    if (first + k < count) {
      float uniform = (random[k] >> 8) * (1.0f / 16777216.0f);
      y[first + k] = uniform >= ratio ? x[first + k] * scale : 0.0f;
    }
}

// -- SoftmaxWithLoss ----------------------------------------------------------------------------

// One block per position: its probabilities, its loss, and whether it counts. A label that is no
// class makes the loss NaN and is noted in `wrong`.
extern "C" __global__ void softmax_loss_forward(const float* scores, const float* labels,
                                                float* probability, float* losses, float* counted,
                                                float* wrong, int classes, int inner,
                                                int has_ignored, int ignored) {
  __shared__ float shared[BLOCK];
  int position = blockIdx.x;
  long long start = (long long)(position / inner) * classes * inner + position % inner;
  const float* x = scores + start;
  float* p = probability + start;
  float greatest = -3.402823466e+38f;
  for (int k = threadIdx.x; k < classes; k += BLOCK) greatest = fmaxf(greatest, x[k * inner]);
  greatest = block_max(greatest, shared);
  float sum = 0;
  for (int k = threadIdx.x; k < classes; k += BLOCK) {
    p[k * inner] = expf(x[k * inner] - greatest);
    sum += p[k * inner];
  }
  sum = block_sum(sum, shared);
  for (int k = threadIdx.x; k < classes; k += BLOCK) p[k * inner] /= sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float label = truncf(labels[position]);
    int counts = !(has_ignored && label == (float)ignored);
    int legal = label >= 0 && label < (float)classes;
    float loss = legal ? -logf(fmaxf(p[(int)label * inner], 1.17549435e-38f)) : nanf("");
    losses[position] = counts ? loss : 0;
    counted[position] = (float)counts;
    if (counts && !legal) {
      wrong[0] = 1;
      wrong[1] = labels[position];
    }
  }
}

// One block: loss = sum / divisor. `divisor` is what the rule says, or 0 for the counted positions.
extern "C" __global__ void softmax_loss_total(const float* losses, const float* counted, float* loss,
                                              float* divisor, float fixed, int positions) {
  __shared__ float shared[BLOCK];
  float sum = 0, number = 0;
  for (int i = threadIdx.x; i < positions; i += BLOCK) {
    sum += losses[i];
    number += counted[i];
  }
  sum = block_sum(sum, shared);
  number = block_sum(number, shared);
  if (threadIdx.x == 0) {
    divisor[0] = fmaxf(fixed > 0 ? fixed : number, 1.0f);
    loss[0] = sum / divisor[0];
  }
}

extern "C" __global__ void softmax_loss_backward(const float* probability, const float* labels,
                                                 const float* counted, const float* weight,
                                                 const float* divisor, float* dx, int classes,
                                                 int inner, int count) {
  int i = place();
  if (i >= count) return;
  int position = i / (classes * inner) * inner + i % inner, k = i / inner % classes;
  float mine = (float)((int)labels[position] == k);
  dx[i] = (probability[i] - mine) * counted[position] * (weight[0] / divisor[0]);
}

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

// -- Weight updates -----------------------------------------------------------------------------

// All parameters of a net lie one after the other, each from a multiple of BLOCK on, so that a
// block works on one of them: owner[block] says on which, ends[owner] where it ends.
#define UPDATE_ARGUMENTS                                                                         \
  float *w, float *g, const int *owner, const int *ends, const float *rates, const float *decays, \
      float factor, float rate, float decay, int by_sign, int keeps_update

#define UPDATE_BEGIN                                                            \
  int i = place(), mine = owner[blockIdx.x];                                    \
  if (i >= ends[mine]) return;                                                  \
  float own_rate = rate * rates[mine], pull = decay * decays[mine], value = w[i]; \
  float t = factor * g[i];                                                      \
  t += pull * (by_sign ? (float)((value > 0) - (value < 0)) : value);           \
  float u;

#define UPDATE_END            \
  w[i] = value - u;           \
  if (keeps_update) g[i] = u;

extern "C" __global__ void update_SGD(UPDATE_ARGUMENTS, float* h, float momentum) {
  UPDATE_BEGIN
  h[i] = u = momentum * h[i] + own_rate * t;
  UPDATE_END
}

extern "C" __global__ void update_Nesterov(UPDATE_ARGUMENTS, float* h, float momentum) {
  UPDATE_BEGIN
  float before = h[i];
  h[i] = momentum * before + own_rate * t;
  u = (1 + momentum) * h[i] - momentum * before;
  UPDATE_END
}

extern "C" __global__ void update_AdaGrad(UPDATE_ARGUMENTS, float* h, float delta) {
  UPDATE_BEGIN
  h[i] += t * t;
  u = own_rate * t / (sqrtf(h[i]) + delta);
  UPDATE_END
}

extern "C" __global__ void update_RMSProp(UPDATE_ARGUMENTS, float* h, float rms_decay,
                                          float delta) {
  UPDATE_BEGIN
  h[i] = rms_decay * h[i] + (1 - rms_decay) * t * t;
  u = own_rate * t / (sqrtf(h[i]) + delta);
  UPDATE_END
}

extern "C" __global__ void update_AdaDelta(UPDATE_ARGUMENTS, float* h, float* v, float momentum,
                                           float delta) {
  UPDATE_BEGIN
  h[i] = momentum * h[i] + (1 - momentum) * t * t;
  u = t * sqrtf((v[i] + delta) / (h[i] + delta));
  v[i] = momentum * v[i] + (1 - momentum) * u * u;
  u *= own_rate;
  UPDATE_END
}

extern "C" __global__ void update_Adam(UPDATE_ARGUMENTS, float* m, float* v, float first,
                                       float second, float delta) {
  UPDATE_BEGIN
  m[i] = first * m[i] + (1 - first) * t;
  v[i] = second * v[i] + (1 - second) * t * t;
  u = own_rate * m[i] / (sqrtf(v[i]) + delta);
  UPDATE_END
}
