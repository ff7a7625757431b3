// -- BatchNorm, Scale and ReLU, as one ----------------------------------------------------------
//
// y = bend((x - middle) factor + shift), per channel. BatchNorm's factor is gamma / deviation,
// where gamma and the shift are those of the Scale behind it; without a Scale they are 1 and 0. For
// a Scale alone middle is 0. A `slope` of 1 is no ReLU.

// The same number in both passes, so that backward need not read y.
__device__ inline float bent(float x, float middle, float factor, float shift, float slope) {
  float value = fmaf(x - middle, factor, shift);
  return (float)(real)(slope == 1 ? value : bend(value, slope));
}

struct Affine {
  const real* x;
  real *y, *kept;
  int keeps;
  const float *middle, *factor, *shift;
  float slope;
  int channels, inner;

  template <int COUNT>
  __device__ void run(int first) const {
    Group<COUNT> values = read<COUNT>(x + first);
    Channels<COUNT> of(first, channels, inner);
    float middles[COUNT], factors[COUNT], shifts[COUNT];
    of.read(middle, middles);
    of.read(factor, factors);
    of.read(shift, shifts);
    if (keeps) *(Group<COUNT>*)(kept + first) = values;
    Numbers<real, COUNT> results;
    for (int k = 0; k < COUNT; ++k)
      results.at[k] = bent(values[k], middles[k], factors[k], shifts[k], slope);
    *(Numbers<real, COUNT>*)(y + first) = results;
  }
};

// x may be y, unless it is wanted again: then it is copied to `kept`.
extern "C" __global__ void channel_affine(const real* x, real* y, real* kept, int keeps,
                                          const float* middle, const float* factor,
                                          const float* shift, float slope, int channels, int inner,
                                          int count) {
  each_wide(count, Affine{x, y, kept, keeps, middle, factor, shift, slope, channels, inner});
}

// Mean and sum of squared distances from it, by Chan, Golub and LeVeque ("Algorithms for computing
// the sample variance", 1983): nothing is lost where the mean is far greater than the deviation.
struct Moments {
  float count, mean, squares;
  __device__ void clear() { count = mean = squares = 0; }
  __device__ void merge(Moments other) {
    float both = count + other.count, part = other.count / fmaxf(both, 1);
    float distance = other.mean - mean;
    mean += distance * part;
    squares += other.squares + distance * distance * count * part;
    count = both;
  }
};

// A thread merges one number at a time with what its channel has, or a group of one channel.
template <int WIDTH, bool LAST>
struct Measuring {
  enum { COUNT = WIDTH, TOTALS = LAST ? WIDTH : 1, EACH = COUNT / TOTALS };
  typedef Moments Total;
  typedef Group<COUNT> Loaded;
  const real* x;
  float *mean, *squares, seen;

  __device__ Measuring(const real* x, float* mean, float* squares)
      : x(x), mean(mean), squares(squares), seen(0) {}
  __device__ void prepare(int) {}
  __device__ void load(int at, Loaded& numbers) { numbers = read<COUNT>(x + at); }
  __device__ void take(const Loaded& numbers, Moments* totals) {
    float part = EACH / (seen + EACH);
    for (int t = 0; t < TOTALS; ++t) {
      float middle = 0, squares = 0;
      for (int k = 0; k < EACH; ++k) middle += numbers[t + k] - totals[t].mean;
      middle /= EACH;
      for (int k = 0; k < EACH; ++k) {
        float distance = numbers[t + k] - totals[t].mean - middle;
        squares += distance * distance;
      }
      totals[t].mean += middle * part;
      totals[t].squares += squares + middle * middle * seen * part;
    }
    seen += EACH;
  }
  __device__ void close(Moments* totals) {
    for (int t = 0; t < TOTALS; ++t) totals[t].count = seen;
  }
  __device__ void store(Moments total, int c, int slice, Slicing s) {
    mean[c * s.slices + slice] = total.mean;
    squares[c * s.slices + slice] = total.squares;
  }
};

extern "C" __global__ void channel_moments(const real* x, float* mean, float* squares, int images,
                                           int channels, int area, int lanes, int width, int slices,
                                           int share) {
  Slicing slicing = {images, channels, area, lanes, width, slices, share};
  block_reduce<Measuring>(slicing, x, mean, squares);
}

// One block per channel: the batch's statistics from those of the slices, which have `share`
// numbers each but for the last; and running sums = fraction * sums + new, with the unbiased
// variance.
extern "C" __global__ void batch_statistics(const float* means, const float* squares, int slices,
                                            int share, int total, float eps, float fraction,
                                            float* mean_sums, float* variance_sums, float* weight,
                                            const float* gamma, float* middle, float* inverse,
                                            float* factor) {
  __shared__ Moments shared[BLOCK];
  int c = blockIdx.x;
  Moments moments;
  moments.clear();
  for (int slice = threadIdx.x; slice < slices; slice += BLOCK) {
    float count = min(share, total - slice * share);
    moments.merge({count, means[c * slices + slice], squares[c * slices + slice]});
  }
  block_merge<1>(&moments, shared, 1);
  if (threadIdx.x > 0) return;
  middle[c] = moments.mean;
  inverse[c] = 1 / sqrtf(moments.squares / total + eps);
  factor[c] = gamma[c] * inverse[c];
  mean_sums[c] = fraction * mean_sums[c] + moments.mean;
  variance_sums[c] = fraction * variance_sums[c] + moments.squares / max(total - 1, 1);
  if (c == 0) weight[0] = fraction * weight[0] + 1;
}

// One thread per channel: the same from the running sums.
extern "C" __global__ void global_statistics(const float* mean_sums, const float* variance_sums,
                                             const float* weight, float eps, const float* gamma,
                                             float* middle, float* inverse, float* factor,
                                             int channels) {
  int c = place();
  if (c >= channels) return;
  float share = weight[0] == 0 ? 0 : 1 / weight[0];
  middle[c] = share * mean_sums[c];
  inverse[c] = 1 / sqrtf(share * variance_sums[c] + eps);
  factor[c] = gamma[c] * inverse[c];
}

// -- Backward -----------------------------------------------------------------------------------

struct TwoSums {
  float plain, product;
  __device__ void clear() { plain = product = 0; }
  __device__ void merge(TwoSums other) {
    plain += other.plain;
    product += other.product;
  }
};

// The sums of g and of g (x - middle), where g is dy behind the ReLU. Where dx is factor g and
// nothing more it is set on the way: dx may be dy.
template <int WIDTH, bool LAST>
struct Correlating {
  enum { COUNT = WIDTH, TOTALS = LAST ? WIDTH : 1 };
  typedef TwoSums Total;
  struct Loaded {
    Group<COUNT> dy, x;
    int at;
  };
  const real *dy, *x;
  real* dx;
  int wanted;
  const float *middle, *factor, *shift;
  float slope, *plain, *product;
  Group<TOTALS, float> middles, factors, shifts;

  __device__ Correlating(const real* dy, const real* x, real* dx, int wanted, const float* middle,
                         const float* factor, const float* shift, float slope, float* plain,
                         float* product)
      : dy(dy), x(x), dx(dx), wanted(wanted), middle(middle), factor(factor), shift(shift),
        slope(slope), plain(plain), product(product) {}
  __device__ void prepare(int c) {
    middles = read<TOTALS>(middle + c);
    factors = read<TOTALS>(factor + c);
    shifts = read<TOTALS>(shift + c);
  }
  __device__ void load(int at, Loaded& loaded) {
    loaded = {read<COUNT>(dy + at), read<COUNT>(x + at), at};
  }
  __device__ void take(const Loaded& loaded, TwoSums* sums) {
    Numbers<real, COUNT> passed;
    for (int k = 0; k < COUNT; ++k) {
      int own = LAST ? k : 0;
      float x = loaded.x[k], gradient = loaded.dy[k];
      if (slope != 1 && !(bent(x, middles[own], factors[own], shifts[own], slope) > 0))
        gradient *= slope;
      sums[own].plain += gradient;
      sums[own].product += gradient * (x - middles[own]);
      passed.at[k] = factors[own] * gradient;
    }
    if (wanted) *(Numbers<real, COUNT>*)(dx + loaded.at) = passed;
  }
  __device__ void close(TwoSums*) {}
  __device__ void store(TwoSums total, int c, int slice, Slicing s) {
    plain[c * s.slices + slice] = total.plain;
    product[c * s.slices + slice] = total.product;
  }
};

extern "C" __global__ void affine_sums(const real* dy, const real* x, real* dx, int wanted,
                                       const float* middle, const float* factor,
                                       const float* shift, float slope, float* plain,
                                       float* product, int images, int channels, int area,
                                       int lanes, int width, int slices, int share) {
  Slicing slicing = {images, channels, area, lanes, width, slices, share};
  block_reduce<Correlating>(slicing, dy, x, dx, wanted, middle, factor, shift, slope, plain,
                            product);
}

// One block per channel: the sums from those of the slices. They are what gamma and shift get,
// times `unscale`, and divided by `total` what the batch's mean and variance take from dx.
extern "C" __global__ void affine_gradients(const float* plains, const float* products, int slices,
                                            int total, const float* inverse, float* plain,
                                            float* product, float unscale, int wants_gamma,
                                            float* gamma_diff, int wants_shift,
                                            float* shift_diff) {
  __shared__ TwoSums shared[BLOCK];
  int c = blockIdx.x;
  TwoSums sums;
  sums.clear();
  for (int slice = threadIdx.x; slice < slices; slice += BLOCK)
    sums.merge({plains[c * slices + slice], products[c * slices + slice]});
  block_merge<1>(&sums, shared, 1);
  if (threadIdx.x > 0) return;
  float correlation = sums.product * inverse[c];
  plain[c] = sums.plain / total;
  product[c] = correlation * inverse[c] / total;
  if (wants_gamma) gamma_diff[c] += unscale * correlation;
  if (wants_shift) shift_diff[c] += unscale * sums.plain;
}

struct AffineBackward {
  const real *dy, *x;
  real *dx, *left;
  int leaves;
  const float *middle, *factor, *shift, *left_factor, *plain, *product;
  float slope;
  int channels, inner;

  template <int COUNT>
  __device__ void run(int first) const {
    Group<COUNT> gradients = read<COUNT>(dy + first), values = read<COUNT>(x + first);
    Channels<COUNT> of(first, channels, inner);
    float middles[COUNT], factors[COUNT], numbers[COUNT], more[COUNT], passed[COUNT];
    of.read(middle, middles);
    of.read(factor, factors);
    for (int k = 0; k < COUNT; ++k) passed[k] = gradients[k];
    if (slope != 1) {
      of.read(shift, numbers);
      for (int k = 0; k < COUNT; ++k)
        if (!(bent(values[k], middles[k], factors[k], numbers[k], slope) > 0)) passed[k] *= slope;
    }
    of.read(plain, numbers);
    of.read(product, more);
    Numbers<real, COUNT> results;
    for (int k = 0; k < COUNT; ++k) {
      float correlated = (values[k] - middles[k]) * more[k];
      results.at[k] = factors[k] * (passed[k] - numbers[k] - correlated);
    }
    *(Numbers<real, COUNT>*)(dx + first) = results;
    if (!leaves) return;
    of.read(left_factor, numbers);
    for (int k = 0; k < COUNT; ++k) results.at[k] = numbers[k] * passed[k];
    *(Numbers<real, COUNT>*)(left + first) = results;
  }
};

// dx = factor (g - plain - (x - middle) product), g as in affine_sums; dx may be dy. Then `left`,
// which may be dy or both, gets what Scale and ReLU would leave in the diff that they work in.
extern "C" __global__ void affine_backward(const real* dy, const real* x, real* dx, real* left,
                                           int leaves, const float* middle, const float* factor,
                                           const float* shift, const float* left_factor,
                                           const float* plain, const float* product, float slope,
                                           int channels, int inner, int count) {
  each_wide(count, AffineBackward{dy, x, dx, left, leaves, middle, factor, shift, left_factor,
                                  plain, product, slope, channels, inner});
}
