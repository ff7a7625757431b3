// Runs CUDA kernels on the host, one thread after the other; compiled in front of their source.
//
// A kernel that waits for its block's other threads is run as one fiber per thread.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>

using std::max;
using std::min;

#define __device__
#define __global__
#define __shared__ static
#define __syncthreads() leave_fiber()

static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }

static float rsqrtf(float value) { return 1 / std::sqrt(value); }

static float __fdividef(float a, float b) { return a / b; }

static unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// By arithmetic in double, which holds every fp16 number and every halfway one: 11 bits of
// mantissa, exponents from -14 to 15, below that steps of 2^-24.
static unsigned short fp16_from_float(float value) {
  unsigned short sign = __float_as_uint(value) >> 16 & 0x8000;
  double size = std::fabs((double)value);
  if (value != value) return sign | 0x7FFF;
  if (size >= 65520) return sign | 0x7C00;
  int exponent = size < std::ldexp(1.0, -14) ? -14 : std::ilogb(size);
  long steps = std::lrint(std::ldexp(size, 10 - exponent));  // to the nearest, of two to the even
  return sign | (unsigned short)(steps + (size < std::ldexp(1.0, -14) ? 0 : (exponent + 14) * 1024L));
}

static float float_from_fp16(unsigned short bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double size = exponent ? std::ldexp(1024.0 + mantissa, exponent - 25) : std::ldexp(1.0 * mantissa, -24);
  if (exponent == 31) size = mantissa ? NAN : INFINITY;
  return (float)(bits & 0x8000 ? -size : size);
}

struct Dim {
  unsigned x;
};

static Dim threadIdx, blockIdx, blockDim;
static const unsigned THREADS = 256;
static ucontext_t starter, contexts[THREADS];
static char stacks[THREADS][1 << 14];
static jmp_buf scheduler, places[THREADS];
static bool started[THREADS], finished[THREADS];
static void (*body)(void**);
static void** body_arguments;

// Fibers are made once and then change by jumps: contexts ask the system each time.
static void leave_fiber() {
  if (!_setjmp(places[threadIdx.x])) _longjmp(scheduler, 1);
}

static void fiber() {
  for (;;) {
    body(body_arguments);
    finished[threadIdx.x] = true;
    leave_fiber();
  }
}

static void enter_fiber(unsigned t) {
  threadIdx.x = t;
  if (_setjmp(scheduler)) return;
  if (started[t]) _longjmp(places[t], 1);
  started[t] = true;
  getcontext(&contexts[t]);
  contexts[t].uc_stack.ss_sp = stacks[t];
  contexts[t].uc_stack.ss_size = sizeof(stacks[t]);
  makecontext(&contexts[t], fiber, 0);
  swapcontext(&starter, &contexts[t]);
}

static void run(void (*kernel)(void**), bool waits, unsigned blocks, void** arguments) {
  blockDim.x = THREADS;
  body = kernel;
  body_arguments = arguments;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    if (!waits) {
      for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x) kernel(arguments);
      continue;
    }
    std::fill(finished, finished + THREADS, false);
    for (unsigned left = THREADS; left > 0;)
      for (unsigned t = 0; t < THREADS; ++t)
        if (!finished[t]) {
          enter_fiber(t);
          left -= finished[t];
        }
  }
}
