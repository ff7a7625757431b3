// -- ReLU -------------------------------------------------------------------------------------

extern "C" __global__ void relu_forward(const real* x, real* y, float slope, int count) {
  int i = place();
  if (i >= count) return;
  float value = x[i];
  y[i] = value > 0 || value != value ? value : (slope == 0 ? 0.0f : slope * value);
}

extern "C" __global__ void relu_backward(const real* x, const real* dy, real* dx, float slope,
                                         int count) {
  int i = place();
  if (i >= count) return;
  float value = x[i], gradient = dy[i];
  dx[i] = value > 0 ? gradient : gradient * slope;
}

// -- Dropout ------------------------------------------------------------------------------------

// Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
__device__ inline void philox(u32 counter, const u32* key, u32* out) {
  u32 a = counter, b = 0, c = 0, d = 0, k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    unsigned long long p = 0xD2511F53ull * a, q = 0xCD9E8D57ull * c;
    u32 next_a = (u32)(q >> 32) ^ b ^ k0, next_c = (u32)(p >> 32) ^ d ^ k1;
    b = (u32)q;
    d = (u32)p;
    a = next_a;
    c = next_c;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = a;
  out[1] = b;
  out[2] = c;
  out[3] = d;
}

// One thread per four numbers: each is kept with probability 1 - ratio and multiplied by scale.
// Forward and backward draw the same from one seed; there is no mask in memory.
extern "C" __global__ void dropout(const float* x, float* y, const u32* seed, float ratio,
                                   float scale, int count) {
  int first = 4 * place();
  if (first >= count) return;
  u32 random[4];
  philox((u32)first / 4, seed, random);
  for (int k = 0; k < 4; ++k)
    if (first + k < count) {
      float uniform = (random[k] >> 8) * (1.0f / 16777216.0f);
      y[first + k] = uniform >= ratio ? x[first + k] * scale : 0.0f;
    }
}
