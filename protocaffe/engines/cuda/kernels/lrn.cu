// -- LRN across channels ------------------------------------------------------------------------

// s = k + alpha * sum of x^2 over the channels up to `half` away; y = x s^-beta. A thread works on
// RUN channels of a pixel, of which there are `runs`. Nothing is kept for backward: to compute s
// again takes less time than to read it.
struct Norm {
  Divisor runs, area;
  int channels, half, last;
  float k, alpha, beta;
};

const int RUN = 8;

// Where the pixel's first channel is, how far neighbouring ones are apart, which the thread's are.
struct Run {
  long long start;
  int step, first;
};

__device__ inline Run own_run(const Norm& n) {
  u32 thread = place();
  if (n.last) {
    u32 pixel = divide(thread, n.runs);
    return {(long long)pixel * n.channels, 1, RUN * (int)(thread - pixel * n.runs.by)};
  }
  u32 line = divide(thread, n.area), image = divide(line, n.runs);
  long long start = (long long)image * n.channels * n.area.by + thread - line * n.area.by;
  return {start, (int)n.area.by, RUN * (int)(line - image * n.runs.by)};
}

typedef Numbers<real, 4> Quad;

// Channels from `first` on, which is a multiple of 4; 0 for those that do not exist.
template <int COUNT>
__device__ inline void load_channels(const real* x, const Run& run, int first, int channels,
                                     float* values) {
  const real* start = x + run.start + (long long)first * run.step;
  if (run.step == 1 && channels % 4 == 0) {
    for (int k = 0; k < COUNT; k += 4) {
      bool exists = first + k >= 0 && first + k < channels;
      Quad quad = exists ? *(const Quad*)(start + k) : Quad{};
      for (int j = 0; j < 4; ++j) values[k + j] = quad.at[j];
    }
    return;
  }
  for (int k = 0; k < COUNT; ++k) {
    bool exists = first + k >= 0 && first + k < channels;
    values[k] = exists ? (float)start[(long long)k * run.step] : 0.0f;
  }
}

__device__ inline void store_run(const float* values, real* y, const Run& run, int channels) {
  real* start = y + run.start + (long long)run.first * run.step;
  if (run.step == 1 && channels % 4 == 0) {
    for (int k = 0; k < RUN && run.first + k < channels; k += 4) {
      Quad quad;
      for (int j = 0; j < 4; ++j) quad.at[j] = values[k + j];
      *(Quad*)(start + k) = quad;
    }
    return;
  }
  for (int k = 0; k < RUN; ++k)
    if (run.first + k < channels) start[(long long)k * run.step] = values[k];
}

template <int HALF>
__device__ inline float lrn_scale(const float* x, const Norm& n) {
  float sum = 0;
  for (int j = -HALF; j <= HALF; ++j)
    if (j <= n.half && -j <= n.half) sum += x[j] * x[j];
  return n.k + n.alpha * sum;
}

__device__ inline float lrn_power(float s, const Norm& n) {
  if (n.beta != 0.75f) return powf(s, -n.beta);
  float root = rsqrtf(s);
  return root * sqrtf(root);
}

template <int HALF>
__device__ inline void normalize_run(const real* x, real* y, const Norm& n) {
  Run run = own_run(n);
  float values[RUN + 4 * HALF], results[RUN];
  load_channels<RUN + 4 * HALF>(x, run, run.first - 2 * HALF, n.channels, values);
  for (int c = 0; c < RUN; ++c) {
    const float* own = values + c + 2 * HALF;
    results[c] = *own * lrn_power(lrn_scale<HALF>(own, n), n);
  }
  store_run(results, y, run, n.channels);
}

// dx = dy s^-beta - 2 alpha beta x * (sum of dy y / s over the same channels).
template <int HALF>
__device__ inline void normalize_run_backward(const real* x, const real* dy, real* dx,
                                              const Norm& n) {
  Run run = own_run(n);
  float values[RUN + 4 * HALF], gradients[RUN + 4 * HALF], direct[RUN + 2 * HALF];
  float ratios[RUN + 2 * HALF], results[RUN];
  load_channels<RUN + 4 * HALF>(x, run, run.first - 2 * HALF, n.channels, values);
  load_channels<RUN + 4 * HALF>(dy, run, run.first - 2 * HALF, n.channels, gradients);
  for (int c = 0; c < RUN + 2 * HALF; ++c) {
    const float* own = values + c + HALF;
    float s = lrn_scale<HALF>(own, n);
    direct[c] = gradients[c + HALF] * lrn_power(s, n);
    int channel = run.first + c - HALF;
    ratios[c] = channel >= 0 && channel < n.channels ? __fdividef(direct[c] * *own, s) : 0.0f;
  }
  for (int c = 0; c < RUN; ++c) {
    float sum = 0;
    for (int j = -HALF; j <= HALF; ++j)
      if (j <= n.half && -j <= n.half) sum += ratios[c + HALF + j];
    results[c] = direct[c + HALF] - 2 * n.alpha * n.beta * values[c + 2 * HALF] * sum;
  }
  store_run(results, dx, run, n.channels);
}

// Of up to 5 channels, as nearly all nets have it.
extern "C" __global__ void lrn_forward(const real* x, real* y, Norm n, int threads) {
  if (place() < threads) normalize_run<2>(x, y, n);
}

extern "C" __global__ void lrn_backward(const real* x, const real* dy, real* dx, Norm n,
                                        int threads) {
  if (place() < threads) normalize_run_backward<2>(x, dy, dx, n);
}

// Of up to 17.
extern "C" __global__ void lrn_far_forward(const real* x, real* y, Norm n, int threads) {
  if (place() < threads) normalize_run<8>(x, y, n);
}

extern "C" __global__ void lrn_far_backward(const real* x, const real* dy, real* dx, Norm n,
                                            int threads) {
  if (place() < threads) normalize_run_backward<8>(x, dy, dx, n);
}
