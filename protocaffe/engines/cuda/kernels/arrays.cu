// -- Sums of arrays, and their gradients --------------------------------------------------------

// y = the sum of a0 x0, a1 x1..., of as many as `number` says, then ReLU; a slope of 1 is none. y
// may be one of them.
extern "C" __global__ void add_arrays(const real* x0, const real* x1, const real* x2,
                                      const real* x3, real* y, float a0, float a1, float a2,
                                      float a3, int number, float slope, int count) {
  int first = wide_place();
  const real* arrays[4] = {x0, x1, x2, x3};
  float factors[4] = {a0, a1, a2, a3}, sums[WIDE] = {};
  Wide values[4];
  for (int j = 0; j < 4; ++j)
    if (j < number) values[j] = load(arrays[j], first, count);
  for (int j = 0; j < 4; ++j)
    if (j < number)
      for (int k = 0; k < WIDE; ++k) sums[k] += factors[j] * values[j].at[k];
  for (int k = 0; k < WIDE; ++k) values[0].at[k] = bend(sums[k], slope);
  store(values[0], y, first, count);
}

// dx0 = a0 dy, dx1 = a1 dy..., times slope where y is not positive. Any of them may be dy.
extern "C" __global__ void spread_gradient(const real* y, const real* dy, real* dx0, real* dx1,
                                           real* dx2, real* dx3, float a0, float a1, float a2,
                                           float a3, int number, float slope, int count) {
  int first = wide_place();
  real* arrays[4] = {dx0, dx1, dx2, dx3};
  float factors[4] = {a0, a1, a2, a3};
  Wide gradients = load(dy, first, count), product;
  if (slope != 1) {
    Wide values = load(y, first, count);
    for (int k = 0; k < WIDE; ++k)
      gradients.at[k] = gradients.at[k] * (values.at[k] > 0 ? 1.0f : slope);
  }
  for (int j = 0; j < 4; ++j)
    if (j < number) {
      for (int k = 0; k < WIDE; ++k) product.at[k] = factors[j] * gradients.at[k];
      store(product, arrays[j], first, count);
    }
}

// -- Parts of arrays ----------------------------------------------------------------------------

// Rows of `width` numbers from x to y, in which they begin that many numbers apart.
template <int COUNT>
__device__ inline void move_rows(const real* x, real* y, int width, int x_pitch, int y_pitch,
                                 int count) {
  int i = COUNT * place();
  if (i >= count) return;
  long long row = (u32)i / (u32)width;
  int column = (u32)i % (u32)width;
  typedef Numbers<real, COUNT> Reals;
  *(Reals*)(y + row * y_pitch + column) = *(const Reals*)(x + row * x_pitch + column);
}

extern "C" __global__ void copy_rows(const real* x, real* y, int width, int x_pitch, int y_pitch,
                                     int count) {
  move_rows<1>(x, y, width, x_pitch, y_pitch, count);
}

// Where all lengths are multiples of WIDE, and both begin there.
extern "C" __global__ void copy_wide_rows(const real* x, real* y, int width, int x_pitch,
                                          int y_pitch, int count) {
  move_rows<WIDE>(x, y, width, x_pitch, y_pitch, count);
}
