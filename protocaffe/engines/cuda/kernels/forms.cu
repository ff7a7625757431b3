// -- Forms --------------------------------------------------------------------------------------

// y = factor x, from Caffe's order to channels-last.
extern "C" __global__ void pack(const float* x, real* y, float factor, int channels, int area,
                                int count) {
  int i = place();
  if (i >= count) return;
  int c = i % channels, p = i / channels % area;
  long long image = i / channels / area;
  y[i] = factor * x[(image * channels + c) * area + p];
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
extern "C" __global__ void unpack(const real* x, float* y, float factor, int add, int channels,
                                  int area, int count) {
  int i = place();
  if (i >= count) return;
  int p = i % area, c = i / area % channels;
  long long image = i / area / channels;
  float value = factor * (float)x[(image * area + p) * channels + c];
  y[i] = add ? y[i] + value : value;
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
