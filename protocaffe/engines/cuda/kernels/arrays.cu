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

// A row of the whole has `pitch` numbers; from `start` on it has one of each part, with `columns`
// numbers in all. They end at `ends`, counted from `start`.
struct Parts {
  Divisor columns;
  int ends[4], start, pitch, wide;
};

// Calls work(part, place in the part, place in the whole) for the COUNT numbers of a thread.
template <int COUNT, class Part, class Work>
__device__ inline void in_part(const Parts& parts, Part* const* arrays, int count, Work work) {
  int i = COUNT * place();
  if (i >= count) return;
  int row = divide(i, parts.columns), column = i - row * (int)parts.columns.by;
  int begin = 0, end = parts.ends[0];
  Part* part = arrays[0];
  for (int k = 0; k < 3; ++k)
    if (column >= parts.ends[k]) {
      begin = parts.ends[k];
      end = parts.ends[k + 1];
      part = arrays[k + 1];
    }
  work(part, row * (end - begin) + column - begin, row * parts.pitch + parts.start + column);
}

template <int COUNT>
__device__ inline void move_numbers(const real* from, real* to) {
  typedef Numbers<real, COUNT> Reals;
  *(Reals*)to = *(const Reals*)from;
}

// Wide if all lengths are multiples of WIDE.
extern "C" __global__ void join_parts(const real* x0, const real* x1, const real* x2,
                                      const real* x3, real* y, Parts parts, int count) {
  const real* arrays[4] = {x0, x1, x2, x3};
  if (parts.wide)
    in_part<WIDE>(parts, arrays, count, [&](const real* x, int from, int to) {
      move_numbers<WIDE>(x + from, y + to);
    });
  else
    in_part<1>(parts, arrays, count, [&](const real* x, int from, int to) {
      move_numbers<1>(x + from, y + to);
    });
}

extern "C" __global__ void cut_parts(const real* x, real* y0, real* y1, real* y2, real* y3,
                                     Parts parts, int count) {
  real* arrays[4] = {y0, y1, y2, y3};
  if (parts.wide)
    in_part<WIDE>(parts, arrays, count, [&](real* y, int to, int from) {
      move_numbers<WIDE>(x + from, y + to);
    });
  else
    in_part<1>(parts, arrays, count, [&](real* y, int to, int from) {
      move_numbers<1>(x + from, y + to);
    });
}
