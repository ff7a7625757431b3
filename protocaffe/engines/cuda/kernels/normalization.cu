// -- LRN across channels ------------------------------------------------------------------------

// s = k + alpha * mean of x^2 over `size` channels; y = x s^-beta. `alpha` comes divided by size.
// x may be y only if the caller keeps x elsewhere.
extern "C" __global__ void lrn_scale(const float* x, float* s, float k, float alpha, int size,
                                     int channels, int area, int count) {
  int i = place();
  if (i >= count) return;
  int c = i / area % channels;
  int first = max(c - size / 2, 0), last = min(c + size / 2, channels - 1);
  float sum = 0;
  for (int other = first; other <= last; ++other) {
    float value = x[i + (other - c) * area];
    sum += value * value;
  }
  s[i] = k + alpha * sum;
}

extern "C" __global__ void lrn_output(const float* x, const float* s, float* y, float beta,
                                      int count) {
  int i = place();
  if (i < count) y[i] = x[i] * powf(s[i], -beta);
}

// What every neighbour adds to the gradient: dy y / s.
extern "C" __global__ void lrn_ratio(const float* x, const float* s, const float* dy, float* ratio,
                                     float beta, int count) {
  int i = place();
  if (i < count) ratio[i] = dy[i] * x[i] * powf(s[i], -beta) / s[i];
}

// dx = dy s^-beta - factor x * (sum of ratios over the channels), factor = 2 alpha beta / size.
extern "C" __global__ void lrn_backward(const float* x, const float* s, const float* ratio,
                                        const float* dy, float* dx, float beta, float factor,
                                        int size, int channels, int area, int count) {
  int i = place();
  if (i >= count) return;
  int c = i / area % channels;
  int first = max(c - size / 2, 0), last = min(c + size / 2, channels - 1);
  float sum = 0;
  for (int other = first; other <= last; ++other) sum += ratio[i + (other - c) * area];
  dx[i] = dy[i] * powf(s[i], -beta) - factor * x[i] * sum;
}
