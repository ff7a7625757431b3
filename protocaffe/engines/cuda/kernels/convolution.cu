// -- Bias and ReLU ------------------------------------------------------------------------------

// y = ReLU(y + bias of the channel), with slope 1 only the sum. `inner` is how far the numbers of
// neighbouring channels lie apart: the area, or 1 with channels last.
extern "C" __global__ void add_bias_relu(real* y, const float* bias, float slope,
                                         int channels, int inner, int count) {
  int first = wide_place();
  Wide values = load(y, first, count);
  // Divided once, not for every number.
  int c = first / inner % channels, along = first % inner;
  for (int k = 0; k < WIDE; ++k) {
    values.at[k] = bend(values.at[k] + bias[c], slope);
    if (++along == inner) {
      along = 0;
      c = c + 1 < channels ? c + 1 : 0;
    }
  }
  store(values, y, first, count);
}
