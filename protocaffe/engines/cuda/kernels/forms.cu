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
