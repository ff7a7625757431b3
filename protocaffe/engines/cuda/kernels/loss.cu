// -- SoftmaxWithLoss ----------------------------------------------------------------------------

// One block per position: its probabilities, its loss, and whether it counts. A label that is no
// class makes the loss NaN and is noted in `wrong`.
extern "C" __global__ void softmax_loss_forward(const float* scores, const float* labels,
                                                float* probability, float* losses, float* counted,
                                                float* wrong, int classes, int inner,
                                                int has_ignored, int ignored) {
  __shared__ float shared[BLOCK];
  int position = blockIdx.x;
  long long start = (long long)(position / inner) * classes * inner + position % inner;
  const float* x = scores + start;
  float* p = probability + start;
  float greatest = -3.402823466e+38f;
  for (int k = threadIdx.x; k < classes; k += BLOCK) greatest = fmaxf(greatest, x[k * inner]);
  greatest = block_max(greatest, shared);
  float sum = 0;
  for (int k = threadIdx.x; k < classes; k += BLOCK) {
    p[k * inner] = expf(x[k * inner] - greatest);
    sum += p[k * inner];
  }
  sum = block_sum(sum, shared);
  for (int k = threadIdx.x; k < classes; k += BLOCK) p[k * inner] /= sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float label = truncf(labels[position]);
    int counts = !(has_ignored && label == (float)ignored);
    int legal = label >= 0 && label < (float)classes;
    float loss = legal ? -logf(fmaxf(p[(int)label * inner], 1.17549435e-38f)) : nanf("");
    losses[position] = counts ? loss : 0;
    counted[position] = (float)counts;
    if (counts && !legal) {
      wrong[0] = 1;
      wrong[1] = labels[position];
    }
  }
}

// One block: loss = sum / divisor. `divisor` is what the rule says, or 0 for the counted positions.
extern "C" __global__ void softmax_loss_total(const float* losses, const float* counted, float* loss,
                                              float* divisor, float fixed, int positions) {
  __shared__ float shared[BLOCK];
  float sum = 0, number = 0;
  for (int i = threadIdx.x; i < positions; i += BLOCK) {
    sum += losses[i];
    number += counted[i];
  }
  sum = block_sum(sum, shared);
  number = block_sum(number, shared);
  if (threadIdx.x == 0) {
    divisor[0] = fmaxf(fixed > 0 ? fixed : number, 1.0f);
    loss[0] = sum / divisor[0];
  }
}

extern "C" __global__ void softmax_loss_backward(const float* probability, const float* labels,
                                                 const float* counted, const float* weight,
                                                 const float* divisor, float* dx, int classes,
                                                 int inner, int count) {
  int i = place();
  if (i >= count) return;
  int position = i / (classes * inner) * inner + i % inner, k = i / inner % classes;
  float mine = (float)((int)labels[position] == k);
  dx[i] = (probability[i] - mine) * counted[position] * (weight[0] / divisor[0]);
}
