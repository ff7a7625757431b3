// -- Forms --------------------------------------------------------------------------------------

// Every image is a matrix that is transposed. A block does a tile of it, by way of shared memory,
// so that it reads and writes rows. Tiles are as wide as the matrix if it is narrow.
struct Tiles {
  Divisor across, down, pixels, channels;
  int all_pixels, all_channels;
};

// Numbers of a tile, and room for those that keep its columns in different banks of memory.
const int TILE = 1024, TILE_ROOM = TILE + TILE / 2;

struct Tile {
  int image, channel, pixel;
};

__device__ inline Tile own_tile(const Tiles& t) {
  u32 line = divide(blockIdx.x, t.across), image = divide(line, t.down);
  return {(int)image, (int)((line - image * t.down.by) * t.channels.by),
          (int)((blockIdx.x - line * t.across.by) * t.pixels.by)};
}

// Calls work(place in shared memory, channel, pixel) for the thread's numbers of the tile, which
// follow each other by pixels, or by channels.
template <class Work>
__device__ inline void each_of_tile(const Tiles& t, const Tile& tile, bool by_pixels, Work work) {
  const Divisor& fast = by_pixels ? t.pixels : t.channels;
  int pitch = t.pixels.by | 1;
  for (int k = 0; k < TILE / BLOCK; ++k) {
    u32 i = k * BLOCK + threadIdx.x, slow = divide(i, fast), rest = i - slow * fast.by;
    int c = by_pixels ? slow : rest, p = by_pixels ? rest : slow;
    bool inside = c < (int)t.channels.by && p < (int)t.pixels.by;
    if (inside && tile.channel + c < t.all_channels && tile.pixel + p < t.all_pixels)
      work(c * pitch + p, tile.channel + c, tile.pixel + p);
  }
}

// y = factor x, from Caffe's order to channels-last.
extern "C" __global__ void pack(const float* x, real* y, float factor, Tiles t) {
  __shared__ float numbers[TILE_ROOM];
  Tile tile = own_tile(t);
  const float* from = x + (long long)tile.image * t.all_channels * t.all_pixels;
  real* to = y + (long long)tile.image * t.all_channels * t.all_pixels;
  each_of_tile(t, tile, true, [&](int at, int channel, int pixel) {
    numbers[at] = from[(long long)channel * t.all_pixels + pixel];
  });
  __syncthreads();
  each_of_tile(t, tile, false, [&](int at, int channel, int pixel) {
    to[(long long)pixel * t.all_channels + channel] = factor * numbers[at];
  });
}

// The same where both orders are one.
extern "C" __global__ void pack_in_order(const float* x, real* y, float factor, int count) {
  int first = wide_place();
  Numbers<float, WIDE> values = load(x, first, count);
  Wide packed;
  for (int k = 0; k < WIDE; ++k) packed.at[k] = factor * values.at[k];
  store(packed, y, first, count);
}

// y = factor x, or y += factor x, from channels-last to Caffe's order.
extern "C" __global__ void unpack(const real* x, float* y, float factor, int adds, Tiles t) {
  __shared__ float numbers[TILE_ROOM];
  Tile tile = own_tile(t);
  const real* from = x + (long long)tile.image * t.all_channels * t.all_pixels;
  float* to = y + (long long)tile.image * t.all_channels * t.all_pixels;
  each_of_tile(t, tile, false, [&](int at, int channel, int pixel) {
    numbers[at] = factor * (float)from[(long long)pixel * t.all_channels + channel];
  });
  __syncthreads();
  each_of_tile(t, tile, true, [&](int at, int channel, int pixel) {
    long long i = (long long)channel * t.all_pixels + pixel;
    to[i] = adds ? to[i] + numbers[at] : numbers[at];
  });
}

extern "C" __global__ void unpack_in_order(const real* x, float* y, float factor, int add,
                                           int count) {
  int first = wide_place();
  Wide packed = load(x, first, count);
  Numbers<float, WIDE> values;
  if (add) values = load(y, first, count);
  for (int k = 0; k < WIDE; ++k)
    values.at[k] = (add ? values.at[k] : 0.0f) + factor * (float)packed.at[k];
  store(values, y, first, count);
}
