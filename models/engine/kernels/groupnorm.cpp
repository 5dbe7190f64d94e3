// Group normalisation, optionally with SiLU, in bfloat16.
//
// torch's own is slow twice: its group normalisation of channels-last pictures does not vectorize groups as
// narrow as these (4 to 80 channels), and SiLU reads and writes everything again. Here the first pass sums each
// channel, whatever its group, and the second does all the rest. Everything between reading and writing is
// float32, sums over many pixels are float64. They are always taken in the same parts, so that a picture's
// result does not depend on its batch or on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "vectors.h"

namespace {

constexpr int VECTORS = 4;      // of channels summed at once
constexpr int64_t RUN = 256;    // pixels whose sums stay float32
constexpr int64_t PART = 512;   // pixels that one thread sums at a time
constexpr int64_t STRIP = 64;   // pixels that one thread writes at a time

// Adds the sums and the sums of squares of some channels over pixels [first, last).
template <int COUNT>
void add_sums(const uint16_t* x, int64_t first, int64_t last, int channels, double* sums, double* squares) {
  for (int64_t run = first; run < last; run += RUN) {
    Floats sum[COUNT], square[COUNT];
    for (int v = 0; v < COUNT; ++v) sum[v] = square[v] = Floats{};
    for (int64_t p = run; p < std::min(run + RUN, last); ++p)
      for (int v = 0; v < COUNT; ++v) {
        const Floats value = widened(x + p * channels + v * LANES);
        sum[v] += value;
        square[v] = fused(value, value, square[v]);
      }
    alignas(64) float part[LANES];
    for (int v = 0; v < COUNT; ++v) {
      store(part, sum[v]);
      for (int k = 0; k < LANES; ++k) sums[v * LANES + k] += part[k];
      store(part, square[v]);
      for (int k = 0; k < LANES; ++k) squares[v * LANES + k] += part[k];
    }
  }
}

void all_sums(const uint16_t* x, int64_t first, int64_t last, int channels, double* sums, double* squares) {
  int c = 0;
  for (; c + VECTORS * LANES <= channels; c += VECTORS * LANES)
    add_sums<VECTORS>(x + c, first, last, channels, sums + c, squares + c);
  for (; c < channels; c += LANES) add_sums<1>(x + c, first, last, channels, sums + c, squares + c);
}

}  // namespace

// Channels must be multiples of it.
extern "C" int lanes() { return LANES; }

// x and result (batch, pixels, channels), weight and bias (channels), all bfloat16 and dense; channels is a
// multiple of LANES and of groups. Returns 0, or 1 if memory runs out.
extern "C" int normalize(const uint16_t* x, uint16_t* out, const uint16_t* weight, const uint16_t* bias,
                         int batch, int64_t pixels, int channels, int groups, int silu, float eps,
                         int threads) {
  const int width = channels / groups;
  const int64_t parts = (pixels + PART - 1) / PART;
  const int64_t sums_size = batch * parts * 2 * channels, factors_size = int64_t(batch) * channels;
  auto* sums = static_cast<double*>(std::calloc(sums_size + factors_size, sizeof(double)));
  if (sums == nullptr) return 1;
  auto* scales = reinterpret_cast<float*>(sums + sums_size);
  float* shifts = scales + factors_size;
  const int64_t strips = (pixels + STRIP - 1) / STRIP;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t part = 0; part < batch * parts; ++part) {
      const int64_t b = part / parts, first = part % parts * PART;
      double* here = sums + part * 2 * channels;
      all_sums(x + b * pixels * channels, first, std::min(first + PART, pixels), channels, here, here + channels);
    }
#pragma omp for
    for (int one = 0; one < batch * groups; ++one) {
      const int64_t b = one / groups;
      const int from = one % groups * width;
      double sum = 0, square = 0;
      for (int64_t part = b * parts; part < (b + 1) * parts; ++part)
        for (int c = from; c < from + width; ++c) {
          sum += sums[part * 2 * channels + c];
          square += sums[(part * 2 + 1) * channels + c];
        }
      const double count = double(width) * pixels, mean = sum / count;
      const double inverse = 1 / std::sqrt(std::max(square / count - mean * mean, 0.0) + eps);
      for (int c = from; c < from + width; ++c) {
        const double scale = widened(weight[c]) * inverse;
        scales[b * channels + c] = float(scale);
        shifts[b * channels + c] = float(widened(bias[c]) - mean * scale);
      }
    }
#pragma omp for
    for (int64_t work = 0; work < batch * strips; ++work) {
      const int64_t b = work / strips, first = work % strips * STRIP;
      const float *scale = scales + b * channels, *shift = shifts + b * channels;
      for (int64_t p = first; p < std::min(first + STRIP, pixels); ++p) {
        const int64_t at = (b * pixels + p) * channels;
        for (int c = 0; c < channels; c += LANES) {
          Floats y = fused(widened(x + at + c), load(scale + c), load(shift + c));
          if (silu) y = y / (1.0f + exp2_of(-1.44269504f * y));
          store(out + at + c, narrowed(y));
        }
      }
    }
  }
  std::free(sums);
  return 0;
}
