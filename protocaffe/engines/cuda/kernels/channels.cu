// -- Sums over channels -------------------------------------------------------------------------
//
// Every channel's numbers are divided among `slices` blocks. Each makes a total of its share; the
// totals are then merged by one block per channel. So there are enough blocks for all of the
// device, and all is added up in the same order in every run.
//
// In Caffe's order (`lanes` is 0) a block has one channel, and its threads take neighbouring
// numbers of the planes. With channels last a row of `lanes` threads takes neighbouring channels
// of one pixel, the next row those of the next. A thread reads a group of `width` numbers at once
// where the shape lets it, and several groups before it looks at the first.

// Neighbouring numbers, as they lie in memory.
template <int COUNT, class Number = real>
struct alignas(COUNT * sizeof(Number)) Group {
  Number numbers[COUNT];
  __device__ float operator[](int k) const { return numbers[k]; }
};

#if defined(REAL_IS_FP16) || defined(REAL_IS_BF16)
// Words are taken apart when a number is asked for: to do so at once would wait for them.
template <int COUNT>
struct alignas(COUNT * sizeof(real)) Group<COUNT, real> {
  u32 words[COUNT / 2];
  __device__ float operator[](int k) const {
    real number;
    number.bits = words[k / 2] >> k % 2 * 16;
    return number;
  }
};

template <>
struct Group<1, real> {
  real number;
  __device__ float operator[](int) const { return number; }
};
#endif

template <int COUNT, class Number>
__device__ inline Group<COUNT, Number> read(const Number* from) {
  return *(const Group<COUNT, Number>*)from;
}

// What sums.py has worked out. `share`: how many groups (channels last: pixels) a slice has.
struct Slicing {
  int images, channels, area, lanes, width, slices, share;
};

constexpr int AHEAD = 4;

// Every row of `lanes` threads holds totals for the same channels, COUNT per thread: bring all
// together in the first row.
template <int COUNT, class Total>
__device__ inline void block_merge(Total* totals, Total* shared, int lanes) {
  int row = threadIdx.x / lanes;
  for (int k = 0; k < COUNT; ++k) shared[k * BLOCK + threadIdx.x] = totals[k];
  __syncthreads();
  for (int left = BLOCK / lanes; left > 1;) {
    int half = (left + 1) / 2;
    if (row + half < left)
      for (int k = 0; k < COUNT; ++k)
        shared[k * BLOCK + threadIdx.x].merge(shared[k * BLOCK + threadIdx.x + half * lanes]);
    left = half;
    __syncthreads();
  }
  for (int k = 0; k < COUNT; ++k) totals[k] = shared[k * BLOCK + threadIdx.x];
}

// A Job<COUNT, LAST> is what to do with the numbers: `prepare` for the channels from c on, `load`
// the group at a place, `take` it into totals (one, or with LAST one for each number), `close` the
// totals when all is taken, `store` a channel's total of a slice.
template <class Job>
__device__ inline void block_planes(Job job, Slicing s) {
  __shared__ typename Job::Total shared[BLOCK];
  typename Job::Total total;
  typename Job::Loaded groups[AHEAD];
  int c = blockIdx.x % s.channels, slice = blockIdx.x / s.channels;
  int plane = s.area / Job::COUNT, images_on = BLOCK / plane, groups_on = BLOCK % plane;
  int at = slice * s.share + threadIdx.x, end = min((slice + 1) * s.share, s.images * plane);
  int image = at / plane, group = at % plane;
  job.prepare(c);
  total.clear();
  while (at < end) {
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      if (at + k * BLOCK < end)
        job.load((image * s.channels + c) * s.area + group * Job::COUNT, groups[k]);
      image += images_on;
      group += groups_on;
      if (group >= plane) {
        group -= plane;
        ++image;
      }
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      if (at + k * BLOCK < end) job.take(groups[k], &total);
    at += AHEAD * BLOCK;
  }
  job.close(&total);
  block_merge<1>(&total, shared, 1);
  if (threadIdx.x == 0) job.store(total, c, slice, s);
}

template <class Job>
__device__ inline void block_pixels(Job job, Slicing s) {
  __shared__ typename Job::Total shared[Job::COUNT * BLOCK];
  typename Job::Total totals[Job::COUNT];
  typename Job::Loaded groups[AHEAD];
  int across = s.channels / Job::COUNT, tiles = (across + s.lanes - 1) / s.lanes;
  int slice = blockIdx.x / tiles, lane = blockIdx.x % tiles * s.lanes + threadIdx.x % s.lanes;
  int rows = BLOCK / s.lanes, row = threadIdx.x / s.lanes, c = lane * Job::COUNT;
  int at = slice * s.share + row, end = min((slice + 1) * s.share, s.images * s.area);
  if (row >= rows || lane >= across) end = at;
  if (lane < across) job.prepare(c);
  for (int k = 0; k < Job::COUNT; ++k) totals[k].clear();
  while (at < end) {
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      if (at + k * rows < end) job.load((at + k * rows) * s.channels + c, groups[k]);
#pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      if (at + k * rows < end) job.take(groups[k], totals);
    at += AHEAD * rows;
  }
  job.close(totals);
  block_merge<Job::COUNT>(totals, shared, s.lanes);
  if (row == 0 && lane < across)
    for (int k = 0; k < Job::COUNT; ++k) job.store(totals[k], c + k, slice, s);
}

template <template <int, bool> class Job, class... Arguments>
__device__ inline void block_reduce(Slicing s, Arguments... arguments) {
  if (s.lanes && s.width > 1) block_pixels(Job<WIDE, true>(arguments...), s);
  if (s.lanes && s.width == 1) block_pixels(Job<1, true>(arguments...), s);
  if (!s.lanes && s.width > 1) block_planes(Job<WIDE, false>(arguments...), s);
  if (!s.lanes && s.width == 1) block_planes(Job<1, false>(arguments...), s);
}

struct Sum {
  float sum;
  __device__ void clear() { sum = 0; }
  __device__ void merge(Sum other) { sum += other.sum; }
};

// The sums of one array.
template <int WIDTH, bool LAST>
struct Summing {
  enum { COUNT = WIDTH };
  typedef Sum Total;
  typedef Group<COUNT> Loaded;
  const real* x;
  float* out;
  float factor;
  int adds;

  __device__ Summing(const real* x, float* out, float factor, int adds)
      : x(x), out(out), factor(factor), adds(adds) {}
  __device__ void prepare(int) {}
  __device__ void load(int at, Loaded& numbers) { numbers = read<COUNT>(x + at); }
  __device__ void take(const Loaded& numbers, Sum* sums) {
    for (int k = 0; k < COUNT; ++k) sums[LAST ? k : 0].sum += numbers[k];
  }
  __device__ void close(Sum*) {}
  __device__ void store(Sum total, int c, int slice, Slicing s) {
    float* place = out + c * s.slices + slice;
    *place = adds ? *place + factor * total.sum : factor * total.sum;
  }
};

// out[channel, slice] = factor * sum, or += it.
extern "C" __global__ void channel_sums(const real* x, float* out, float factor, int adds,
                                        int images, int channels, int area, int lanes, int width,
                                        int slices, int share) {
  Slicing slicing = {images, channels, area, lanes, width, slices, share};
  block_reduce<Summing>(slicing, x, out, factor, adds);
}

// -- A number per channel -----------------------------------------------------------------------

// The channels of the COUNT numbers from `first` on. `inner` is how far the numbers of neighbouring
// channels lie apart.
template <int COUNT>
struct Channels {
  int c[COUNT];
  bool along;  // they are neighbours, and begin at a multiple of COUNT

  __device__ Channels(int first, int channels, int inner) {
    along = inner == 1 && channels % COUNT == 0;
    c[0] = first / inner % channels;
    int place = first % inner;
    for (int k = 1; k < COUNT; ++k) {
      bool next = ++place == inner;
      place = next ? 0 : place;
      c[k] = c[k - 1] + next == channels ? 0 : c[k - 1] + next;
    }
  }

  // What each of the numbers has of a per-channel array.
  __device__ void read(const float* values, float* to) const {
    if (along) {
      Group<COUNT, float> group = ::read<COUNT>(values + c[0]);
      for (int k = 0; k < COUNT; ++k) to[k] = group[k];
    } else {
      for (int k = 0; k < COUNT; ++k) to[k] = values[c[k]];
    }
  }
};

// Run work on a thread's WIDE numbers at once; at the end of an array, on what is left one by one.
template <class Work>
__device__ inline void each_wide(int count, Work work) {
  int first = wide_place();
  if (first + WIDE <= count)
    work.template run<WIDE>(first);
  else
    for (; first < count; ++first) work.template run<1>(first);
}
