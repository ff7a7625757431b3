// The CUDA engine's own kernels: what Caffe's rules ask for and no library has.
//
// The files beside this one are compiled as one source, this one first, and undefine what they have
// defined. Activations and their gradients are `real`, everything else is float32; `float` arrays
// are in Caffe's order. A `real` array is, too, or its channels lie last. One-dimensional grids; a
// thread whose number is beyond `count` does nothing. Sums are always added up in the same order,
// so that results are the same in every run.

typedef unsigned int u32;

#ifdef __CUDACC__
__device__ inline unsigned short fp16_from_float(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ inline float float_from_fp16(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
#endif

// 16 bits are only stored: kernels read floats, compute with them and round the results.
#if defined(REAL_IS_FP16)
struct real {
  unsigned short bits;
  real() = default;
  __device__ real(float value) { bits = fp16_from_float(value); }
  __device__ operator float() const { return float_from_fp16(bits); }
};
#elif defined(REAL_IS_BF16)
// The upper half of a float, rounded to the nearest (of two, to the even one); NaN stays NaN.
struct real {
  unsigned short bits;
  real() = default;
  __device__ real(float value) {
    u32 whole = __float_as_uint(value);
    bits = value != value ? 0x7FC0 : (whole + 0x7FFF + (whole >> 16 & 1)) >> 16;
  }
  __device__ operator float() const { return __uint_as_float((u32)bits << 16); }
};
#else
typedef float real;
#endif

__device__ inline int place() { return blockIdx.x * blockDim.x + threadIdx.x; }

// A divisor that the host knows, and what makes a product of a division (Granlund & Montgomery,
// "Division by invariant integers using multiplication", 1994); for dividends below 2^31.
struct Divisor {
  u32 by, factor, shift;
};

__device__ inline u32 divide(u32 number, const Divisor& divisor) {
  return (__umulhi(number, divisor.factor) + number) >> divisor.shift;
}

// -- Several numbers per thread -----------------------------------------------------------------

// Neighbouring numbers, moved at once. 16 bytes are the most that one instruction moves (larger
// ones are two); arrays begin at multiples of that.
template <class Type, int COUNT>
struct alignas(COUNT * sizeof(Type) < 16 ? COUNT * sizeof(Type) : 16) Numbers {
  Type at[COUNT];
};

constexpr int WIDE = 16 / sizeof(real);
typedef Numbers<real, WIDE> Wide;

// The first of the WIDE numbers that are this thread's, in kernels run by Device.run_wide.
__device__ inline int wide_place() { return WIDE * place(); }

// Numbers from x[first] on; 0 where there are none any more.
template <int COUNT = WIDE, class Type>
__device__ inline Numbers<Type, COUNT> load(const Type* x, int first, int count) {
  // As words: whoever takes them apart waits for them, which is not to be before the next load.
  constexpr int WORDS = COUNT * sizeof(Type) / sizeof(u32);
  Numbers<u32, WORDS> words;
  Numbers<Type, COUNT> numbers;
  if (first + COUNT <= count) {
    words = *(const Numbers<u32, WORDS>*)(x + first);
  } else {
    for (int k = 0; k < COUNT; ++k) numbers.at[k] = first + k < count ? x[first + k] : Type(0.0f);
    memcpy(&words, &numbers, sizeof(words));
  }
  memcpy(&numbers, &words, sizeof(words));
  return numbers;
}

template <class Type, int COUNT>
__device__ inline void store(const Numbers<Type, COUNT>& numbers, Type* y, int first, int count) {
  if (first + COUNT <= count)
    *(Numbers<Type, COUNT>*)(y + first) = numbers;
  else
    for (int k = 0; k < COUNT; ++k)
      if (first + k < count) y[first + k] = numbers.at[k];
}

// ReLU. Infinity times a slope of 0 would be NaN.
__device__ inline float bend(float value, float slope) {
  return value > 0 || value != value ? value : (slope == 0 ? 0.0f : slope * value);
}

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
