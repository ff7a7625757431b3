// -- Pooling ----------------------------------------------------------------------------------

// One thread per output. The first maximum in row order wins, NaN never; -1 for an empty window.
extern "C" __global__ void max_pool_forward(const float* x, float* y, int* index, int height,
                                            int width, int out_height, int out_width, int kernel_h,
                                            int kernel_w, int stride_h, int stride_w, int pad_h,
                                            int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int column = i % out_width, row = i / out_width % out_height;
  const float* plane = x + (long long)(i / out_width / out_height) * height * width;
  int top = row * stride_h - pad_h, left = column * stride_w - pad_w;
  int bottom = min(top + kernel_h, height), right = min(left + kernel_w, width);
  float best = -3.402823466e+38f;
  int found = -1;
  for (int h = max(top, 0); h < bottom; ++h)
    for (int w = max(left, 0); w < right; ++w)
      if (plane[h * width + w] > best) {
        best = plane[h * width + w];
        found = h * width + w;
      }
  y[i] = best;
  index[i] = found;
}

// One thread per input: it asks all windows that hold it whether it was their maximum.
extern "C" __global__ void max_pool_backward(const float* dy, const int* index, float* dx,
                                             int height, int width, int out_height, int out_width,
                                             int kernel_h, int kernel_w, int stride_h, int stride_w,
                                             int pad_h, int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int w = i % width + pad_w, h = i / width % height + pad_h, own = i % (height * width);
  int first_row = h < kernel_h ? 0 : (h - kernel_h) / stride_h + 1;
  int first_column = w < kernel_w ? 0 : (w - kernel_w) / stride_w + 1;
  int rows = min(h / stride_h + 1, out_height), columns = min(w / stride_w + 1, out_width);
  long long plane = (long long)(i / (height * width)) * out_height * out_width;
  float sum = 0;
  for (int row = first_row; row < rows; ++row)
    for (int column = first_column; column < columns; ++column) {
      long long at = plane + row * out_width + column;
      if (index[at] == own) sum += dy[at];
    }
  dx[i] = sum;
}

// Caffe's divisor: the window's area within the padded image, at least 1.
__device__ inline float window_area(int row, int column, int height, int width, int kernel_h,
                                    int kernel_w, int stride_h, int stride_w, int pad_h,
                                    int pad_w) {
  int top = row * stride_h - pad_h, left = column * stride_w - pad_w;
  int high = min(top + kernel_h, height + pad_h) - top;
  int wide = min(left + kernel_w, width + pad_w) - left;
  return (float)max(high * wide, 1);
}

extern "C" __global__ void ave_pool_forward(const float* x, float* y, int height, int width,
                                            int out_height, int out_width, int kernel_h,
                                            int kernel_w, int stride_h, int stride_w, int pad_h,
                                            int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int column = i % out_width, row = i / out_width % out_height;
  const float* plane = x + (long long)(i / out_width / out_height) * height * width;
  int top = row * stride_h - pad_h, left = column * stride_w - pad_w;
  int bottom = min(top + kernel_h, height), right = min(left + kernel_w, width);
  float sum = 0;
  for (int h = max(top, 0); h < bottom; ++h)
    for (int w = max(left, 0); w < right; ++w) sum += plane[h * width + w];
  y[i] = sum / window_area(row, column, height, width, kernel_h, kernel_w, stride_h, stride_w,
                           pad_h, pad_w);
}

extern "C" __global__ void ave_pool_backward(const float* dy, float* dx, int height, int width,
                                             int out_height, int out_width, int kernel_h,
                                             int kernel_w, int stride_h, int stride_w, int pad_h,
                                             int pad_w, int count) {
  int i = place();
  if (i >= count) return;
  int w = i % width + pad_w, h = i / width % height + pad_h;
  int first_row = h < kernel_h ? 0 : (h - kernel_h) / stride_h + 1;
  int first_column = w < kernel_w ? 0 : (w - kernel_w) / stride_w + 1;
  int rows = min(h / stride_h + 1, out_height), columns = min(w / stride_w + 1, out_width);
  const float* plane = dy + (long long)(i / (height * width)) * out_height * out_width;
  float sum = 0;
  for (int row = first_row; row < rows; ++row)
    for (int column = first_column; column < columns; ++column)
      sum += plane[row * out_width + column] / window_area(row, column, height, width, kernel_h,
                                                           kernel_w, stride_h, stride_w, pad_h,
                                                           pad_w);
  dx[i] = sum;
}
