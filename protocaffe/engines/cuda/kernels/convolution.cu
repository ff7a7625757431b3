// -- Bias and ReLU ------------------------------------------------------------------------------

// y = ReLU(y + bias of the channel), with slope 1 only the sum. `inner` is how far the numbers of
// neighbouring channels lie apart: the area, or 1 with channels last.
extern "C" __global__ void add_bias_relu(real* y, const float* bias, float slope,
                                         int channels, int inner, int count) {
  int first = wide_place();
  Wide values = load(y, first, count);
  // Divided once, not for every number.
  int c = first / inner % channels, along = first % inner;
  for (int k = 0; k < WIDE; ++k) {
    values.at[k] = bend(values.at[k] + bias[c], slope);
    if (++along == inner) {
      along = 0;
      c = c + 1 < channels ? c + 1 : 0;
    }
  }
  store(values, y, first, count);
}

// What Summing does with dy after a ReLU has passed it back; y tells where x was above 0.
template <int WIDTH, bool LAST>
struct Rectifying {
  enum { COUNT = WIDTH };
  typedef Sum Total;
  struct Loaded {
    Group<COUNT> y, dy;
    int at;
  };
  const real* y;
  real* dy;
  float slope;
  Summing<WIDTH, LAST> sums;

  __device__ Rectifying(const real* y, real* dy, float slope, float* out, float factor, int adds)
      : y(y), dy(dy), slope(slope), sums(dy, out, factor, adds) {}
  __device__ void prepare(int c) {}
  __device__ void load(int at, Loaded& loaded) {
    loaded = {read<COUNT>(y + at), read<COUNT>(dy + at), at};
  }
  __device__ void take(const Loaded& loaded, Sum* totals) {
    Numbers<real, COUNT> passed;
    for (int k = 0; k < COUNT; ++k) {
      float value = loaded.dy[k] * (loaded.y[k] > 0 ? 1.0f : slope);
      passed.at[k] = value;
      totals[LAST ? k : 0].sum += value;
    }
    *(Numbers<real, COUNT>*)(dy + loaded.at) = passed;
  }
  __device__ void close(Sum*) {}
  __device__ void store(Sum total, int c, int slice, Slicing s) {
    sums.store(total, c, slice, s);
  }
};

// dy becomes the gradient of a ReLU's input; out[channel, slice] = factor * its sum, or += it.
extern "C" __global__ void rectified_sums(const real* y, real* dy, float slope, float* out,
                                          float factor, int adds, int images, int channels,
                                          int area, int lanes, int width, int slices, int share) {
  Slicing slicing = {images, channels, area, lanes, width, slices, share};
  block_reduce<Rectifying>(slicing, y, dy, slope, out, factor, adds);
}
