// -- ReLU -------------------------------------------------------------------------------------

extern "C" __global__ void relu_forward(const real* x, real* y, float slope, int count) {
  int first = wide_place();
  Wide values = load(x, first, count);
  for (int k = 0; k < WIDE; ++k) values.at[k] = bend(values.at[k], slope);
  store(values, y, first, count);
}

extern "C" __global__ void relu_backward(const real* x, const real* dy, real* dx, float slope,
                                         int count) {
  int first = wide_place();
  Wide values = load(x, first, count), gradients = load(dy, first, count);
  for (int k = 0; k < WIDE; ++k)
    gradients.at[k] = gradients.at[k] * (values.at[k] > 0 ? 1.0f : slope);
  store(gradients, dx, first, count);
}

// -- ReLU6 --------------------------------------------------------------------------------------

extern "C" __global__ void relu6_forward(const real* x, real* y, int count) {
  int first = wide_place();
  Wide values = load(x, first, count);
  for (int k = 0; k < WIDE; ++k) {
    float value = bend(values.at[k], 0);
    values.at[k] = value > 6 ? 6.0f : value;
  }
  store(values, y, first, count);
}

// y tells where x was between the limits, in place too.
extern "C" __global__ void relu6_backward(const real* y, const real* dy, real* dx, int count) {
  int first = wide_place();
  Wide values = load(y, first, count), gradients = load(dy, first, count);
  for (int k = 0; k < WIDE; ++k) {
    float value = values.at[k];
    gradients.at[k] = gradients.at[k] * (value > 0 && value < 6 ? 1.0f : 0.0f);
  }
  store(gradients, dx, first, count);
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

// Each number is kept with probability 1 - ratio and multiplied by scale. Four numbers are drawn at
// once. Forward and backward draw the same from one seed; there is no mask in memory.
extern "C" __global__ void dropout(const real* x, real* y, const u32* seed, float ratio,
                                   float scale, int count) {
  int first = wide_place();
  Wide values = load(x, first, count);
  u32 random[4];
  for (int k = 0; k < WIDE; ++k) {
    if (k % 4 == 0) philox((u32)(first + k) / 4, seed, random);
    float uniform = (random[k % 4] >> 8) * (1.0f / 16777216.0f);
    values.at[k] = uniform >= ratio ? values.at[k] * scale : 0.0f;
  }
  store(values, y, first, count);
}
