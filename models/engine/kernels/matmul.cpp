// Products with a layer's weights, and GEGLU's gate on them, in bfloat16.
//
// oneDNN's are hardly slower on the largest matrices, but up to a third on small ones, and it needs two products
// for a gate, with the first one's result written out and read again. Here half of each panel of weights is columns of
// the values, and half the same columns of the gates, so that both are in registers: nothing is rounded in between.
// Weights are packed as BF16's instruction needs them (VNNI): two neighbours of a column in one 32-bit lane. Without it
// this is a product in float32, of weights that are widened in registers: as fast as oneDNN's with half the memory.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "vectors.h"

namespace {

constexpr int PANEL = VECTORS_AT_ONCE * LANES;  // columns at once
constexpr int ROWS = ROWS_AT_ONCE;
constexpr int WIDE = 64;                  // columns whose products with the same rows are a thread's task
constexpr int64_t CACHED = 256 * 1024;    // bytes of rows that are reused panel after panel, half of an L2 cache
constexpr int64_t AHEAD = 16 * PANEL;     // how many pairs of weights ahead are prefetched

// x times the normal distribution function of x; Abramowitz and Stegun 7.1.26, within 2e-7, with an
// exponential within 3e-6.
inline Floats gelu(Floats x) {
  const Floats z = 0.70710678f * (Floats)((Words)x & 0x7FFFFFFF);
  const Floats t = 1.0f / fused(z, all(0.3275911f), all(1));
  Floats y = all(1.061405429f);
  y = fused(y, t, all(-1.453152027f));
  y = fused(y, t, all(1.421413741f));
  y = fused(y, t, all(-0.284496736f));
  y = fused(y, t, all(0.254829592f));
  const Floats tail = (y * t) * (exp2_of(z * z * -1.44269504f) * 0.5f);
  return x * (x > 0.0f ? 1.0f - tail : tail);
}

struct Columns {
  const uint16_t *weights, *bias, *gate_bias;
  int64_t depth, stride;  // of a row that is read, and of one that is written
};

// Some rows times some columns of a panel; if GATED, the first half of these times the GELU of the second.
template <int COUNT, int VECTORS, bool GATED>
void product(const Factor* x, const Columns& p, uint16_t* out) {
  constexpr int VALUES = GATED ? VECTORS / 2 : VECTORS;
  Floats sum[COUNT][VECTORS];
#pragma GCC unroll 4
  for (int c = 0; c < VECTORS; ++c) {
    const uint16_t* bias = c < VALUES ? p.bias : p.gate_bias;
    const Floats first = bias == nullptr ? Floats{} : widened(bias + c % VALUES * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) sum[r][c] = first;
  }
  for (int64_t k = 0; k < p.depth; k += 2)
#pragma GCC unroll 2
    for (int half = 0; half < HALVES; ++half) {
      decltype(pairs<Floats>(p.weights, 0)) weight[VECTORS];
#pragma GCC unroll 4
      for (int c = 0; c < VECTORS; ++c) {
        const uint16_t* at = p.weights + k * PANEL + 2 * (c / VALUES * (PANEL / 2) + c % VALUES * LANES);
        weight[c] = pairs<Floats>(at, half);
        if (half == 0) __builtin_prefetch(at + 2 * AHEAD);
      }
#pragma GCC unroll 6
      for (int r = 0; r < COUNT; ++r) {
        const auto factor = for_all<Floats>(x + r * p.depth + k, half);
#pragma GCC unroll 4
        for (int c = 0; c < VECTORS; ++c) add_products(sum[r][c], factor, weight[c]);
      }
    }
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < VALUES; ++c) {
      const Floats value = sum[r][c];
      store(out + r * p.stride + c * LANES, narrowed(GATED ? value * gelu(sum[r][c + VECTORS - VALUES]) : value));
    }
}

using Product = void (*)(const Factor*, const Columns&, uint16_t*);
template <int COUNT>
constexpr Product BY_WIDTH[2][4] = {
    {product<COUNT, 1, false>, product<COUNT, 2, false>, product<COUNT, 3, false>, product<COUNT, 4, false>},
    {product<COUNT, 2, true>, product<COUNT, 4, true>}};
constexpr const Product (*PRODUCTS[])[4] = {BY_WIDTH<1>, BY_WIDTH<2>, BY_WIDTH<3>,
                                            BY_WIDTH<4>, BY_WIDTH<5>, BY_WIDTH<6>};

}  // namespace

// Columns must be multiples of the first; weights are laid out in panels of the second.
extern "C" int lanes() { return LANES; }
extern "C" int panel() { return PANEL; }

// x (rows, depth) and result (rows, columns), dense; weights (panels, depth / 2, PANEL, 2) with anything after the
// last column; bias (columns, then the gates' where `gated`) or null. All bfloat16; depth is even, columns a multiple
// of LANES. Returns 0, or 1 if memory runs out.
extern "C" int multiply(const uint16_t* x, const uint16_t* weights, const uint16_t* bias, uint16_t* out, int64_t rows,
                        int64_t depth, int columns, int gated, int threads) {
  const int width = gated ? PANEL / 2 : PANEL, wide = WIDE / PANEL * width, tasks = (columns + wide - 1) / wide;
  const int64_t parts = (4 * threads + tasks - 1) / tasks;  // of the rows: four per thread
  const int64_t some = std::min(CACHED / (2 * depth), (rows + parts - 1) / parts);
  const int64_t each = std::max<int64_t>(1, (some + ROWS - 1) / ROWS) * ROWS, groups = (rows + each - 1) / each;
  const int64_t own = HALVES == 1 ? 0 : ROWS * depth;  // of a thread, for rows in float32
  const std::unique_ptr<Factor[]> room(new (std::nothrow) Factor[own * threads]);
  if (room == nullptr) return 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t work = 0; work < groups * tasks; ++work) {
    const int64_t first = work / tasks * each, last = std::min(rows, first + each);
    const int64_t from_column = work % tasks * wide, to_column = std::min<int64_t>(columns, from_column + wide);
    for (int64_t row = first; row < last; row += ROWS) {
      const int64_t count = std::min<int64_t>(ROWS, last - row);
      const Factor* some_rows = factors(x + row * depth, count * depth, room.get() + own * omp_get_thread_num());
      for (int64_t column = from_column; column < to_column; column += width) {
        const int vectors = int(std::min<int64_t>(width, to_column - column)) / LANES;
        const uint16_t* own_bias = bias == nullptr ? bias : bias + column;
        const uint16_t* gate = bias == nullptr ? bias : own_bias + columns;
        const Columns from{weights + column / width * depth * PANEL, own_bias, gate, depth, columns};
        PRODUCTS[count - 1][gated][vectors - 1](some_rows, from, out + row * columns + column);
      }
    }
  }
  return 0;
}
