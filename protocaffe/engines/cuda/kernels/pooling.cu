// -- Pooling ----------------------------------------------------------------------------------

// Along one axis of the image: pixels and windows, which are as far apart as `stride` says.
struct Axis {
  Divisor pixels, windows, stride;
  int kernel, pad;
};

// Channels lie last; an array in Caffe's order is one of many images with one channel each. A
// thread works on `numbers` channels of one pixel or window, of which there are `groups`.
struct Windows {
  Axis rows, columns;
  Divisor groups;
  int channels, numbers;
};

struct Range {
  int begin, end;
};

// Where a window begins; maybe in the padding.
__device__ inline int window_start(const Axis& axis, int window) {
  return window * (int)axis.stride.by - axis.pad;
}

__device__ inline Range pixels_of_window(const Axis& axis, int window) {
  int begin = window_start(axis, window);
  return {max(begin, 0), min(begin + axis.kernel, (int)axis.pixels.by)};
}

__device__ inline Range windows_of_pixel(const Axis& axis, int pixel) {
  int padded = pixel + axis.pad, before = padded - axis.kernel;
  return {before < 0 ? 0 : (int)divide(before, axis.stride) + 1,
          min((int)divide(padded, axis.stride) + 1, (int)axis.windows.by)};
}

// What a thread works on, among images of rows x columns.
struct Spot {
  int image, row, column, channel;
};

__device__ inline Spot spot(int thread, const Windows& w, const Divisor& rows,
                            const Divisor& columns) {
  u32 at = divide(thread, w.groups), line = divide(at, columns), image = divide(line, rows);
  int channel = (thread - at * w.groups.by) * w.numbers;
  return {(int)image, (int)(line - image * rows.by), (int)(at - line * columns.by), channel};
}

// The number of the first channel of a spot's image at another place.
__device__ inline int spot_offset(const Spot& spot, const Windows& w, const Divisor& rows,
                                  const Divisor& columns, int row, int column) {
  int line = spot.image * rows.by + row;
  return (line * columns.by + column) * w.channels + spot.channel;
}

// The first maximum in row order wins, NaN never. Codes are places in the window, -1 for none.
template <int COUNT>
__device__ inline void pick_maximum(const real* x, real* y, short* codes, const Windows& w) {
  typedef Numbers<real, COUNT> Reals;
  Spot own = spot(place(), w, w.rows.windows, w.columns.windows);
  Range rows = pixels_of_window(w.rows, own.row), columns = pixels_of_window(w.columns, own.column);
  int top = window_start(w.rows, own.row), left = window_start(w.columns, own.column);
  float best[COUNT];
  Numbers<short, COUNT> found;
  for (int k = 0; k < COUNT; ++k) {
    best[k] = -3.402823466e+38f;
    found.at[k] = -1;
  }
  const int AT_ONCE = 3;  // loads that do not wait for each other
#pragma unroll 1
  for (int h = rows.begin; h < rows.end; ++h) {
    const real* line = x + spot_offset(own, w, w.rows.pixels, w.columns.pixels, h, 0);
#pragma unroll 1
    for (int next = columns.begin; next < columns.end; next += AT_ONCE) {
      Reals values[AT_ONCE];
      for (int j = 0; j < AT_ONCE; ++j)
        if (next + j < columns.end) values[j] = *(const Reals*)(line + (next + j) * w.channels);
      for (int j = 0; j < AT_ONCE; ++j)
        for (int k = 0; k < COUNT; ++k)
          if (next + j < columns.end && values[j].at[k] > best[k]) {
            best[k] = values[j].at[k];
            found.at[k] = (h - top) * w.columns.kernel + next + j - left;
          }
    }
  }
  Reals result;
  for (int k = 0; k < COUNT; ++k) result.at[k] = best[k];
  int at = spot_offset(own, w, w.rows.windows, w.columns.windows, own.row, own.column);
  *(Reals*)(y + at) = result;
  *(Numbers<short, COUNT>*)(codes + at) = found;
}

extern "C" __global__ void max_pool_forward(const real* x, real* y, short* codes, Windows w,
                                            int threads) {
  if (place() < threads) pick_maximum<1>(x, y, codes, w);
}

extern "C" __global__ void max_pool_wide_forward(const real* x, real* y, short* codes, Windows w,
                                                 int threads) {
  if (place() < threads) pick_maximum<WIDE>(x, y, codes, w);
}

// The second top, in Caffe's order: h W + w of each maximum.
extern "C" __global__ void max_pool_places(const short* codes, float* places, Windows w,
                                           int threads) {
  if (place() >= threads) return;
  Spot own = spot(place(), w, w.rows.windows, w.columns.windows);
  int at = spot_offset(own, w, w.rows.windows, w.columns.windows, own.row, own.column);
  int window = own.row * w.columns.windows.by + own.column;
  int area = w.rows.windows.by * w.columns.windows.by;
  for (int k = 0; k < w.numbers; ++k) {
    int code = codes[at + k], h = window_start(w.rows, own.row) + code / w.columns.kernel;
    int column = window_start(w.columns, own.column) + code % w.columns.kernel;
    long long plane = (long long)own.image * w.channels + own.channel + k;
    places[plane * area + window] = code < 0 ? -1 : h * (int)w.columns.pixels.by + column;
  }
}

// Rounds sums and writes them from a place on.
template <int COUNT>
__device__ inline void put(real* array, int at, const float* sums) {
  Numbers<real, COUNT> result;
  for (int k = 0; k < COUNT; ++k) result.at[k] = sums[k];
  *(Numbers<real, COUNT>*)(array + at) = result;
}

// Every pixel asks all windows that hold it whether it was their maximum.
template <int COUNT>
__device__ inline void give_to_maximum(const real* dy, const short* codes, real* dx,
                                       const Windows& w) {
  typedef Numbers<real, COUNT> Reals;
  typedef Numbers<short, COUNT> Codes;
  Spot own = spot(place(), w, w.rows.pixels, w.columns.pixels);
  Range rows = windows_of_pixel(w.rows, own.row), columns = windows_of_pixel(w.columns, own.column);
  float sums[COUNT] = {};
  const int AT_ONCE = 2;  // loads that do not wait for each other
#pragma unroll 1
  for (int row = rows.begin; row < rows.end; ++row)
#pragma unroll 1
    for (int next = columns.begin; next < columns.end; next += AT_ONCE) {
      int at = spot_offset(own, w, w.rows.windows, w.columns.windows, row, next);
      Reals gradients[AT_ONCE];
      Codes found[AT_ONCE];
      for (int j = 0; j < AT_ONCE; ++j)
        if (next + j < columns.end) {
          gradients[j] = *(const Reals*)(dy + at + j * w.channels);
          found[j] = *(const Codes*)(codes + at + j * w.channels);
        }
      int code = (own.row - window_start(w.rows, row)) * w.columns.kernel + own.column -
                 window_start(w.columns, next);
      for (int j = 0; j < AT_ONCE; ++j)
        for (int k = 0; k < COUNT; ++k)
          if (next + j < columns.end && found[j].at[k] == code - j * (int)w.columns.stride.by)
            sums[k] += gradients[j].at[k];
    }
  put<COUNT>(dx, spot_offset(own, w, w.rows.pixels, w.columns.pixels, own.row, own.column), sums);
}

extern "C" __global__ void max_pool_backward(const real* dy, const short* codes, real* dx,
                                             Windows w, int threads) {
  if (place() < threads) give_to_maximum<1>(dy, codes, dx, w);
}

extern "C" __global__ void max_pool_wide_backward(const real* dy, const short* codes, real* dx,
                                                  Windows w, int threads) {
  if (place() < threads) give_to_maximum<WIDE>(dy, codes, dx, w);
}

// `shares` has per window 1 / Caffe's divisor, which is the window's area in the padded image.
template <int COUNT>
__device__ inline void average_windows(const real* x, const float* shares, real* y,
                                       const Windows& w) {
  typedef Numbers<real, COUNT> Reals;
  Spot own = spot(place(), w, w.rows.windows, w.columns.windows);
  Range rows = pixels_of_window(w.rows, own.row), columns = pixels_of_window(w.columns, own.column);
  float sums[COUNT] = {};
  for (int h = rows.begin; h < rows.end; ++h) {
    const real* line = x + spot_offset(own, w, w.rows.pixels, w.columns.pixels, h, 0);
    for (int column = columns.begin; column < columns.end; ++column) {
      Reals values = *(const Reals*)(line + column * w.channels);
      for (int k = 0; k < COUNT; ++k) sums[k] += values.at[k];
    }
  }
  float share = shares[own.row * w.columns.windows.by + own.column];
  for (int k = 0; k < COUNT; ++k) sums[k] *= share;
  put<COUNT>(y, spot_offset(own, w, w.rows.windows, w.columns.windows, own.row, own.column), sums);
}

extern "C" __global__ void ave_pool_forward(const real* x, const float* shares, real* y, Windows w,
                                            int threads) {
  if (place() < threads) average_windows<1>(x, shares, y, w);
}

extern "C" __global__ void ave_pool_wide_forward(const real* x, const float* shares, real* y,
                                                 Windows w, int threads) {
  if (place() < threads) average_windows<WIDE>(x, shares, y, w);
}

template <int COUNT>
__device__ inline void give_shares(const real* dy, const float* shares, real* dx,
                                   const Windows& w) {
  typedef Numbers<real, COUNT> Reals;
  Spot own = spot(place(), w, w.rows.pixels, w.columns.pixels);
  Range rows = windows_of_pixel(w.rows, own.row), columns = windows_of_pixel(w.columns, own.column);
  float sums[COUNT] = {};
  for (int row = rows.begin; row < rows.end; ++row)
    for (int column = columns.begin; column < columns.end; ++column) {
      int at = spot_offset(own, w, w.rows.windows, w.columns.windows, row, column);
      Reals gradients = *(const Reals*)(dy + at);
      float share = shares[row * w.columns.windows.by + column];
      for (int k = 0; k < COUNT; ++k) sums[k] += share * gradients.at[k];
    }
  put<COUNT>(dx, spot_offset(own, w, w.rows.pixels, w.columns.pixels, own.row, own.column), sums);
}

extern "C" __global__ void ave_pool_backward(const real* dy, const float* shares, real* dx,
                                             Windows w, int threads) {
  if (place() < threads) give_shares<1>(dy, shares, dx, w);
}

extern "C" __global__ void ave_pool_wide_backward(const real* dy, const float* shares, real* dx,
                                                  Windows w, int threads) {
  if (place() < threads) give_shares<WIDE>(dy, shares, dx, w);
}

// -- Averages of whole planes -------------------------------------------------------------------

#define LANES 32
#define TEAMS (BLOCK / LANES)

// Caffe's order. One team of threads per plane.
extern "C" __global__ void average_planes(const real* x, real* y, int planes, int area) {
  __shared__ float sums[BLOCK];
  int lane = threadIdx.x % LANES, plane = blockIdx.x * TEAMS + threadIdx.x / LANES;
  float sum = 0;
  if (plane < planes)
    for (int i = lane; i < area; i += LANES) sum += x[(long long)plane * area + i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int half = LANES / 2; half > 0; half /= 2) {
    if (lane < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (lane == 0 && plane < planes) y[plane] = sums[threadIdx.x] / area;
}

// Channels last. One block per image and LANES times COUNT channels, one team per so many pixels.
template <int COUNT>
__device__ inline void block_average(const real* x, real* y, int channels, int area) {
  __shared__ float sums[TEAMS][LANES * COUNT];
  typedef Numbers<real, COUNT> Reals;
  int blocks = (channels - 1) / (LANES * COUNT) + 1, image = blockIdx.x / blocks;
  int first = blockIdx.x % blocks * LANES * COUNT, own = threadIdx.x % LANES * COUNT;
  int team = threadIdx.x / LANES;
  float sum[COUNT] = {};
  if (first + own < channels)
#pragma unroll 4
    for (int i = team; i < area; i += TEAMS) {
      Reals values = *(const Reals*)(x + ((long long)image * area + i) * channels + first + own);
      for (int k = 0; k < COUNT; ++k) sum[k] += values.at[k];
    }
  for (int k = 0; k < COUNT; ++k) sums[team][own + k] = sum[k];
  __syncthreads();
  int channel = threadIdx.x;
  if (channel >= LANES * COUNT || first + channel >= channels) return;
  float whole = 0;
  for (int each = 0; each < TEAMS; ++each) whole += sums[each][channel];
  y[image * channels + first + channel] = whole / area;
}

extern "C" __global__ void average_pixels(const real* x, real* y, int channels, int area) {
  block_average<1>(x, y, channels, area);
}

// Where the number of channels is a multiple of WIDE.
extern "C" __global__ void average_wide_pixels(const real* x, real* y, int channels, int area) {
  block_average<WIDE>(x, y, channels, area);
}

#undef LANES
#undef TEAMS
