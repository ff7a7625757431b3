// -- Weight updates -----------------------------------------------------------------------------

// All parameters of a net lie one after the other, each from a multiple of BLOCK on:
// owner[i / BLOCK] says whose the number i is, ends[owner] where it ends. What lies between them
// stays as it is. The arrays are long enough for blocks whose threads have four numbers each.
// What may be other numbers in every iteration is in memory, for captured launches are frozen.
#define UPDATE_ARGUMENTS                                                                           \
  float *w, float *g, const int *owner, const int *ends, const float *rates, const float *decays, \
      const float *numbers
#define UPDATE_NAMES w, g, owner, ends, rates, decays, numbers

typedef Numbers<float, 4> Four;

// w -= rule(gradient, rate, history), for four numbers; the rule changes the history.
template <bool HAS_SECOND, class Rule>
__device__ inline void update(UPDATE_ARGUMENTS, float* first, float* second, Rule rule) {
  int i = 4 * place(), mine = owner[i / BLOCK];
  Four values = *(Four*)(w + i), gradients = *(Four*)(g + i);
  Four h = *(Four*)(first + i), v = *(Four*)(second + i);
  int left = ends[mine] - i;
  if (left <= 0) return;
  float rate = numbers[0] * rates[mine], factor = numbers[1], pull = numbers[2] * decays[mine];
  bool by_sign = numbers[3] != 0, keeps_update = numbers[4] != 0;
  for (int k = 0; k < 4; ++k) {
    if (k >= left) break;
    float value = values.at[k], t = factor * gradients.at[k];
    t += pull * (by_sign ? (float)((value > 0) - (value < 0)) : value);
    gradients.at[k] = rule(t, rate, h.at[k], v.at[k]);
    values.at[k] = value - gradients.at[k];
  }
  *(Four*)(w + i) = values;
  *(Four*)(first + i) = h;
  if (HAS_SECOND) *(Four*)(second + i) = v;
  if (keeps_update) *(Four*)(g + i) = gradients;
}

extern "C" __global__ void update_SGD(UPDATE_ARGUMENTS, float* h, float momentum) {
  update<false>(UPDATE_NAMES, h, h, [=](float t, float rate, float& h, float&) {
    return h = momentum * h + rate * t;
  });
}

extern "C" __global__ void update_Nesterov(UPDATE_ARGUMENTS, float* h, float momentum) {
  update<false>(UPDATE_NAMES, h, h, [=](float t, float rate, float& h, float&) {
    float before = h;
    h = momentum * before + rate * t;
    return (1 + momentum) * h - momentum * before;
  });
}

extern "C" __global__ void update_AdaGrad(UPDATE_ARGUMENTS, float* h, float delta) {
  update<false>(UPDATE_NAMES, h, h, [=](float t, float rate, float& h, float&) {
    h += t * t;
    return rate * t / (sqrtf(h) + delta);
  });
}

extern "C" __global__ void update_RMSProp(UPDATE_ARGUMENTS, float* h, float rms_decay,
                                          float delta) {
  update<false>(UPDATE_NAMES, h, h, [=](float t, float rate, float& h, float&) {
    h = rms_decay * h + (1 - rms_decay) * t * t;
    return rate * t / (sqrtf(h) + delta);
  });
}

extern "C" __global__ void update_AdaDelta(UPDATE_ARGUMENTS, float* h, float* v, float momentum,
                                           float delta) {
  update<true>(UPDATE_NAMES, h, v, [=](float t, float rate, float& h, float& v) {
    h = momentum * h + (1 - momentum) * t * t;
    float u = t * sqrtf((v + delta) / (h + delta));
    v = momentum * v + (1 - momentum) * u * u;
    return rate * u;
  });
}

extern "C" __global__ void update_Adam(UPDATE_ARGUMENTS, float* m, float* v, float first,
                                       float second, float delta) {
  update<true>(UPDATE_NAMES, m, v, [=](float t, float rate, float& m, float& v) {
    m = first * m + (1 - first) * t;
    v = second * v + (1 - second) * t * t;
    return rate * m / (sqrtf(v) + delta);
  });
}

#undef UPDATE_ARGUMENTS
#undef UPDATE_NAMES
