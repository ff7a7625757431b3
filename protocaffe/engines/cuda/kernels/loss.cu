// -- SoftmaxWithLoss ----------------------------------------------------------------------------

// Where a position's scores begin; its classes lie `inner` apart.
__device__ inline long long first_score(int position, int classes, int inner) {
  return (long long)(position / inner) * classes * inner + position % inner;
}

// The loss of a position with probabilities p, and whether it counts. A label that is no class
// makes the loss NaN and is noted in `wrong`.
__device__ inline void note_loss(int position, const float* p, const float* labels, float* losses,
                                 float* counted, float* wrong, int classes, int inner,
                                 int has_ignored, int ignored) {
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

// One block per position: its probabilities, its loss, and whether it counts.
extern "C" __global__ void softmax_loss_forward(const float* scores, const float* labels,
                                                float* probability, float* losses, float* counted,
                                                float* wrong, int classes, int inner,
                                                int has_ignored, int ignored) {
  __shared__ float shared[BLOCK];
  int position = blockIdx.x;
  const float* x = scores + first_score(position, classes, inner);
  float* p = probability + first_score(position, classes, inner);
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
  if (threadIdx.x == 0)
    note_loss(position, p, labels, losses, counted, wrong, classes, inner, has_ignored, ignored);
}

// The same with one thread per position, for many positions and few classes: neighbouring threads
// have neighbouring numbers, which are read thrice, but only once from afar.
extern "C" __global__ void softmax_loss_forward_many(const float* __restrict__ scores,
                                                     const float* labels,
                                                     float* __restrict__ probability,
                                                     float* losses, float* counted, float* wrong,
                                                     int classes, int inner, int has_ignored,
                                                     int ignored, int positions) {
  int position = place();
  if (position >= positions) return;
  const float* x = scores + first_score(position, classes, inner);
  float* p = probability + first_score(position, classes, inner);
  float greatest = -3.402823466e+38f, sum = 0;
#pragma unroll 8
  for (int k = 0; k < classes; ++k) greatest = fmaxf(greatest, x[k * inner]);
#pragma unroll 8
  for (int k = 0; k < classes; ++k) sum += expf(x[k * inner] - greatest);
#pragma unroll 8
  for (int k = 0; k < classes; ++k) p[k * inner] = expf(x[k * inner] - greatest) / sum;
  note_loss(position, p, labels, losses, counted, wrong, classes, inner, has_ignored, ignored);
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

// The same with one thread per position, as forward.
extern "C" __global__ void softmax_loss_backward_many(const float* __restrict__ probability,
                                                      const float* labels, const float* counted,
                                                      const float* weight, const float* divisor,
                                                      float* __restrict__ dx, int classes,
                                                      int inner, int positions) {
  int position = place();
  if (position >= positions) return;
  long long first = first_score(position, classes, inner);
  int label = (int)labels[position];
  float factor = counted[position] * (weight[0] / divisor[0]);
#pragma unroll 8
  for (int k = 0; k < classes; ++k)
    dx[first + k * inner] = (probability[first + k * inner] - (float)(k == label)) * factor;
}
