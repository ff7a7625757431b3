// Runs CUDA kernels on the host, one thread after the other; compiled in front of their source.
//
// A kernel that waits for its block's other threads is run as one fiber per thread.

#include <ucontext.h>

#include <algorithm>
#include <cmath>

using std::max;
using std::min;

#define __device__
#define __global__
#define __shared__ static
#define __syncthreads() swapcontext(&fibers[threadIdx.x], &scheduler)

struct Dim {
  unsigned x;
};

static Dim threadIdx, blockIdx, blockDim;
static const unsigned THREADS = 256;
static ucontext_t scheduler, fibers[THREADS];
static char stacks[THREADS][1 << 14];
static bool finished[THREADS];
static void (*body)(void**);
static void** body_arguments;

static void fiber() {
  body(body_arguments);
  finished[threadIdx.x] = true;
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
    for (unsigned t = 0; t < THREADS; ++t) {
      finished[t] = false;
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t];
      fibers[t].uc_stack.ss_size = sizeof(stacks[t]);
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], fiber, 0);
    }
    for (unsigned left = THREADS; left > 0;)
      for (unsigned t = 0; t < THREADS; ++t)
        if (!finished[t]) {
          threadIdx.x = t;
          swapcontext(&scheduler, &fibers[t]);
          left -= finished[t];
        }
  }
}
