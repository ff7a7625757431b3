// -- PReLU --------------------------------------------------------------------------------------

struct Bending {
  const real* x;
  real *y, *kept;
  int keeps;
  const float* slope;
  int channels, inner;

  template <int COUNT>
  __device__ void run(int first) const {
    Group<COUNT> values = read<COUNT>(x + first);
    float slopes[COUNT];
    Channels<COUNT>(first, channels, inner).read(slope, slopes);
    if (keeps) *(Group<COUNT>*)(kept + first) = values;
    Numbers<real, COUNT> results;
    for (int k = 0; k < COUNT; ++k)
      results.at[k] = values[k] > 0 ? values[k] : slopes[k] * values[k];
    *(Numbers<real, COUNT>*)(y + first) = results;
  }
};

// y = x > 0 ? x : slope x, a slope for each channel. x may be y, unless it is wanted again: then it
// is copied to `kept`. `inner` is how far the numbers of neighbouring channels lie apart.
extern "C" __global__ void prelu_forward(const real* x, real* y, real* kept, int keeps,
                                         const float* slope, int channels, int inner, int count) {
  each_wide(count, Bending{x, y, kept, keeps, slope, channels, inner});
}

// What Summing does with dy x where x is not above 0; on the way dx is set, if it is wanted.
template <int WIDTH, bool LAST>
struct Sloping {
  enum { COUNT = WIDTH, SLOPES = LAST ? WIDTH : 1 };
  typedef Sum Total;
  struct Loaded {
    Group<COUNT> dy, x;
    int at;
  };
  const real *dy, *x;
  real* dx;
  int wanted;
  const float* slope;
  Group<SLOPES, float> slopes;
  Summing<WIDTH, LAST> sums;

  __device__ Sloping(const real* dy, const real* x, real* dx, int wanted, const float* slope,
                     float* out, float factor, int adds)
      : dy(dy), x(x), dx(dx), wanted(wanted), slope(slope), sums(dy, out, factor, adds) {}
  __device__ void prepare(int c) { slopes = read<SLOPES>(slope + c); }
  __device__ void load(int at, Loaded& loaded) {
    loaded = {read<COUNT>(dy + at), read<COUNT>(x + at), at};
  }
  __device__ void take(const Loaded& loaded, Sum* totals) {
    Numbers<real, COUNT> passed;
    for (int k = 0; k < COUNT; ++k) {
      float x = loaded.x[k], gradient = loaded.dy[k];
      totals[LAST ? k : 0].sum += x > 0 ? 0.0f : gradient * x;
      passed.at[k] = x > 0 ? gradient : slopes[LAST ? k : 0] * gradient;
    }
    if (wanted) *(Numbers<real, COUNT>*)(dx + loaded.at) = passed;
  }
  __device__ void close(Sum*) {}
  __device__ void store(Sum total, int c, int slice, Slicing s) {
    sums.store(total, c, slice, s);
  }
};

// out[channel, slice] = factor * the sum for the slope, or += it; dx may be dy.
extern "C" __global__ void prelu_backward(const real* dy, const real* x, real* dx, int wanted,
                                          const float* slope, float* out, float factor, int adds,
                                          int images, int channels, int area, int lanes, int width,
                                          int slices, int share) {
  Slicing slicing = {images, channels, area, lanes, width, slices, share};
  block_reduce<Sloping>(slicing, dy, x, dx, wanted, slope, out, factor, adds);
}
