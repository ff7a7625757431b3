// -- Weight updates -----------------------------------------------------------------------------

// All parameters of a net lie one after the other, each from a multiple of BLOCK on, so that a
// block works on one of them: owner[block] says on which, ends[owner] where it ends.
#define UPDATE_ARGUMENTS                                                                         \
  float *w, float *g, const int *owner, const int *ends, const float *rates, const float *decays, \
      float factor, float rate, float decay, int by_sign, int keeps_update

#define UPDATE_BEGIN                                                            \
  int i = place(), mine = owner[blockIdx.x];                                    \
  if (i >= ends[mine]) return;                                                  \
  float own_rate = rate * rates[mine], pull = decay * decays[mine], value = w[i]; \
  float t = factor * g[i];                                                      \
  t += pull * (by_sign ? (float)((value > 0) - (value < 0)) : value);           \
  float u;

#define UPDATE_END            \
  w[i] = value - u;           \
  if (keeps_update) g[i] = u;

extern "C" __global__ void update_SGD(UPDATE_ARGUMENTS, float* h, float momentum) {
  UPDATE_BEGIN
  h[i] = u = momentum * h[i] + own_rate * t;
  UPDATE_END
}

extern "C" __global__ void update_Nesterov(UPDATE_ARGUMENTS, float* h, float momentum) {
  UPDATE_BEGIN
  float before = h[i];
  h[i] = momentum * before + own_rate * t;
  u = (1 + momentum) * h[i] - momentum * before;
  UPDATE_END
}

extern "C" __global__ void update_AdaGrad(UPDATE_ARGUMENTS, float* h, float delta) {
  UPDATE_BEGIN
  h[i] += t * t;
  u = own_rate * t / (sqrtf(h[i]) + delta);
  UPDATE_END
}

extern "C" __global__ void update_RMSProp(UPDATE_ARGUMENTS, float* h, float rms_decay,
                                          float delta) {
  UPDATE_BEGIN
  h[i] = rms_decay * h[i] + (1 - rms_decay) * t * t;
  u = own_rate * t / (sqrtf(h[i]) + delta);
  UPDATE_END
}

extern "C" __global__ void update_AdaDelta(UPDATE_ARGUMENTS, float* h, float* v, float momentum,
                                           float delta) {
  UPDATE_BEGIN
  h[i] = momentum * h[i] + (1 - momentum) * t * t;
  u = t * sqrtf((v[i] + delta) / (h[i] + delta));
  v[i] = momentum * v[i] + (1 - momentum) * u * u;
  u *= own_rate;
  UPDATE_END
}

extern "C" __global__ void update_Adam(UPDATE_ARGUMENTS, float* m, float* v, float first,
                                       float second, float delta) {
  UPDATE_BEGIN
  m[i] = first * m[i] + (1 - first) * t;
  v[i] = second * v[i] + (1 - second) * t * t;
  u = own_rate * m[i] / (sqrtf(v[i]) + delta);
  UPDATE_END
}

#undef UPDATE_ARGUMENTS
#undef UPDATE_BEGIN
#undef UPDATE_END
