// Products with a layer's weights, and GEGLU's gate on them, in bfloat16.
//
// oneDNN's are hardly slower on the largest matrices, but up to a third on small ones, and it needs two products
// for a gate, with the first one's result written out and read again. Here half of each panel of weights is columns of
// the values, and half the same columns of the gates, so that both are in registers: nothing is rounded in between.
// Weights are packed as BF16's instruction needs them (VNNI): two neighbours of a column in one 32-bit lane. Without it
// rows and weights become 16-bit integers times factors, as in winograd.cpp, at each use: that is up to twice as fast
// as float32, and adds a hundredth to the rounding error of the result. Light weights are 8-bit integers in the same
// order, with a scale for each column and block of DEPTH: half the memory. A panel of them becomes what BF16 needs at
// each use, which takes as long as the products of five rows; elsewhere they are integers already.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "integers.h"

namespace {

constexpr int TASKS = 4;  // of a thread, so that a late one is not waited for

struct Matrices {
  const uint16_t* x;
  const void* weights;  // bfloat16, or light
  const float* scales;  // of light weights (panels, blocks, PANEL), or null
  const uint16_t* bias;
  uint16_t* out;
  int64_t rows, depth;
  int columns;
  bool gated;

  int width() const { return gated ? PANEL / 2 : PANEL; }  // of a panel's results
  int64_t panels() const { return (columns + width() - 1) / width(); }
  int64_t parts(int threads) const { return (TASKS * threads + panels() - 1) / panels(); }  // of the rows, at least
  int64_t blocks() const { return (depth + DEPTH - 1) / DEPTH; }
  // Of a panel, from a number of its depth on.
  const uint16_t* plain(int64_t panel, int64_t from) const {
    return static_cast<const uint16_t*>(weights) + (panel * depth + from) * PANEL;
  }
  const int8_t* light(int64_t panel, int64_t from) const {
    return static_cast<const int8_t*>(weights) + (panel * depth + from) * PANEL;
  }
  // Of the values, and of the gates, of a vector of columns.
  Floats start(int64_t column) const { return bias == nullptr ? Floats{} : widened(bias + column); }
  Floats gate_start(int64_t column) const { return start(columns + column); }
};

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

#ifdef __AVX512BF16__

constexpr int64_t CACHED = 256 * 1024;    // bytes of rows that are reused panel after panel, half of an L2 cache
constexpr int64_t AHEAD = 16 * PANEL;     // how many pairs of weights ahead are prefetched

// A panel of light weights -> bfloat16, in the same order.
void read_light(const Matrices& m, int64_t panel, uint16_t* to) {
  for (int64_t block = 0; block < m.blocks(); ++block) {
    const float* scales = m.scales + (panel * m.blocks() + block) * PANEL;
    float both[2 * PANEL];  // a column's two neighbours have one
    for (int c = 0; c < 2 * PANEL; ++c) both[c] = scales[c / 2];
    const int64_t last = std::min(m.depth, (block + 1) * DEPTH);
    for (int64_t k = block * DEPTH; k < last; k += 2)
      for (int c = 0; c < 2 * PANEL; c += LANES)
        store(to + k * PANEL + c, narrowed(load(both + c) * widened(m.light(panel, k) + c)));
  }
}

// Some rows times some columns of a panel; if GATED, the first half of these times the GELU of the second.
template <int COUNT, int VECTORS, bool GATED>
void panel_product(const Matrices& m, const uint16_t* weights, int64_t row, int64_t column) {
  constexpr int VALUES = GATED ? VECTORS / 2 : VECTORS;
  const uint16_t* x = m.x + row * m.depth;
  Floats sum[COUNT][VECTORS];
#pragma GCC unroll 4
  for (int c = 0; c < VECTORS; ++c) {
    const int64_t at = column + c % VALUES * LANES;
    const Floats first = c < VALUES ? m.start(at) : m.gate_start(at);
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) sum[r][c] = first;
  }
  for (int64_t k = 0; k < m.depth; k += 2) {
    __m512bh weight[VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < VECTORS; ++c) {
      const uint16_t* at = weights + k * PANEL + 2 * (c / VALUES * (PANEL / 2) + c % VALUES * LANES);
      weight[c] = pairs<Floats>(at, 0);
      __builtin_prefetch(at + 2 * AHEAD);
    }
#pragma GCC unroll 6
    for (int r = 0; r < COUNT; ++r) {
      const __m512bh both = for_all<Floats>(x + r * m.depth + k, 0);
#pragma GCC unroll 4
      for (int c = 0; c < VECTORS; ++c) add_products(sum[r][c], both, weight[c]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < COUNT; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < VALUES; ++c) {
      const Floats value = sum[r][c], found = GATED ? value * gelu(sum[r][c + VECTORS - VALUES]) : value;
      store(m.out + (row + r) * m.columns + column + c * LANES, narrowed(found));
    }
}

using PanelProduct = void (*)(const Matrices&, const uint16_t*, int64_t, int64_t);
template <int COUNT>
constexpr PanelProduct BY_COLUMNS[2][4] = {{panel_product<COUNT, 1, false>, panel_product<COUNT, 2, false>,
                                            panel_product<COUNT, 3, false>, panel_product<COUNT, 4, false>},
                                           {panel_product<COUNT, 2, true>, panel_product<COUNT, 4, true>}};
constexpr const PanelProduct (*PANEL_PRODUCTS[])[4] = {BY_COLUMNS<1>, BY_COLUMNS<2>, BY_COLUMNS<3>,
                                                       BY_COLUMNS<4>, BY_COLUMNS<5>, BY_COLUMNS<6>};

bool multiply_all(const Matrices& m, int threads) {
  const int64_t panels = m.panels(), parts = m.parts(threads);
  const int64_t some = std::min(CACHED / (2 * m.depth), (m.rows + parts - 1) / parts);
  const int64_t each = std::max<int64_t>(1, (some + ROWS - 1) / ROWS) * ROWS, groups = (m.rows + each - 1) / each;
  const int64_t own = m.scales ? m.depth * PANEL : 0;  // of each thread: a panel in bfloat16
  auto* room = own ? static_cast<uint16_t*>(std::aligned_alloc(64, own * threads * sizeof(uint16_t))) : nullptr;
  if (own && room == nullptr) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t work = 0; work < groups * panels; ++work) {
    const int64_t panel = work % panels, column = panel * m.width(), first = work / panels * each;
    const int64_t last = std::min(m.rows, first + each);
    const int vectors = int(std::min<int64_t>(m.width(), m.columns - column)) / LANES;
    const uint16_t* weights = m.plain(panel, 0);
    if (own) {
      uint16_t* to = room + own * omp_get_thread_num();
      read_light(m, panel, to);
      weights = to;
    }
    for (int64_t row = first; row < last; row += ROWS)
      PANEL_PRODUCTS[std::min<int64_t>(ROWS, last - row) - 1][m.gated][vectors - 1](m, weights, row, column);
  }
  std::free(room);
  return true;
}

#else

constexpr int64_t MOST_ROWS = 240;  // of a task: their sums, and a block of weights, fit an L2 cache

// Some numbers of a row -> DEPTH integers, zeros at the end, and their factor.
void read_row(const uint16_t* x, int count, int16_t* to, float* factor) {
  alignas(64) uint16_t padded[DEPTH] = {};
  if (count < DEPTH) {
    std::memcpy(padded, x, sizeof(uint16_t) * count);
    x = padded;
  }
  Floats squares{};
  for (int k = 0; k < DEPTH; k += LANES) squares = fused(widened(x + k), widened(x + k), squares);
  const float norm = std::sqrt(sum_of(squares)), up = norm == 0 ? 0 : ROWS_NORM / norm;
  *factor = norm / ROWS_NORM;
  for (int k = 0; k < DEPTH; k += LANES) store(to + k, halves((Words)nearest(widened(x + k) * up)));
}

// A block of a panel's weights -> integers, in the same order, and the columns' norms, or twice their largest number.
void read_weights(const uint16_t* weights, int depth, int32_t* to, float* norms) {
  for (int c = 0; c < PANEL; c += LANES) {
    Floats squares{}, most{};
    for (int k = 0; k < depth; k += 2)
      for (int half = 0; half < 2; ++half) {
        const Floats x = pairs<Floats>(weights + k * PANEL + 2 * c, half);
        squares = fused(x, x, squares);
        most = larger(most, x * x);
      }
    const Floats norm = root(larger(4.0f * most, squares));  // in this order NaN stays NaN
    const Floats up = norm != 0.0f ? WEIGHTS_NORM / norm : Floats{};
    store(norms + c, norm);
    for (int k = 0; k < depth; k += 2) {
      const uint16_t* at = weights + k * PANEL + 2 * c;
      const Ints first = nearest(pairs<Floats>(at, 0) * up), second = nearest(pairs<Floats>(at, 1) * up);
      store(to + k / 2 * PANEL + c, (first & 0xFFFF) | (second << 16));
    }
  }
}

// A block of a panel's light weights, and their scales, as above.
void read_light(const int8_t* weights, const float* scales, int depth, int32_t* to, float* norms) {
  for (int c = 0; c < PANEL; c += LANES) store(norms + c, WEIGHTS_NORM * load(scales + c));
  for (int at = 0; at < depth / 2 * PANEL; at += LANES) store(to + at, widened_pairs(weights + 2 * at));
}

// Sums (count, PANEL) -> results; GATED, the first half of a panel's columns times the GELU of the second.
void write_rows(const Matrices& m, const float* sums, int64_t first, int64_t count, int64_t column) {
  const int width = int(std::min<int64_t>(m.width(), m.columns - column));
  for (int64_t r = 0; r < count; ++r)
    for (int c = 0; c < width; c += LANES) {
      const float* from = sums + r * PANEL + c;
      Floats found = load(from) + m.start(column + c);
      if (m.gated) found *= gelu(load(from + PANEL / 2) + m.gate_start(column + c));
      store(m.out + (first + r) * m.columns + column + c, narrowed(found));
    }
}

bool multiply_all(const Matrices& m, int threads) {
  const int64_t panels = m.panels(), parts = m.parts(threads), blocks = m.blocks();
  const int64_t each = std::min(MOST_ROWS, (m.rows + parts - 1) / parts), groups = each ? (m.rows + each - 1) / each : 0;
  // Sizes in float32: all rows as integers, with their factors, and of each thread sums, and weights with their norms.
  const int64_t rows_size = (blocks * m.rows * DEPTH + 1) / 2, factors_size = (blocks * m.rows + LANES) / LANES * LANES;
  const int64_t sums_size = each * PANEL, own = sums_size + DEPTH / 2 * PANEL + PANEL;
  const int64_t all = rows_size + factors_size + own * threads;
  auto* room = static_cast<float*>(std::aligned_alloc(64, (all + 15) / 16 * 64));
  if (room == nullptr) return false;
  auto* integers = reinterpret_cast<int16_t*>(room);
  float* factors = room + rows_size;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t row = 0; row < m.rows; ++row)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t at = block * m.rows + row, first = block * DEPTH;
        read_row(m.x + row * m.depth + first, int(std::min<int64_t>(DEPTH, m.depth - first)), integers + at * DEPTH,
                 factors + at);
      }
#pragma omp for schedule(dynamic)
    for (int64_t work = 0; work < groups * panels; ++work) {
      const int64_t panel = work % panels, first = work / panels * each, count = std::min(each, m.rows - first);
      float* sums = factors + factors_size + own * omp_get_thread_num();
      float* norms = sums + sums_size;
      auto* weights = reinterpret_cast<int32_t*>(norms + PANEL);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * DEPTH, at = block * m.rows + first;
        const int depth = int(std::min<int64_t>(DEPTH, m.depth - begin));
        if (m.scales)
          read_light(m.light(panel, begin), m.scales + (panel * blocks + block) * PANEL, depth, weights, norms);
        else
          read_weights(m.plain(panel, begin), depth, weights, norms);
        all_products(integers + at * DEPTH, weights, int(count), depth, PANEL, block == 0, {factors + at, norms}, sums);
      }
      write_rows(m, sums, first, count, panel * m.width());
    }
  }
  std::free(room);
  return true;
}

#endif

}  // namespace

// Columns must be multiples of the first; weights are laid out in panels of the second, and light ones have a scale for
// each block of the third.
extern "C" int lanes() { return LANES; }
extern "C" int panel() { return PANEL; }
extern "C" int depth() { return DEPTH; }

// x (rows, depth) and result (rows, columns), dense; weights (panels, depth / 2, PANEL, 2) with anything after the
// last column; bias (columns, then the gates' where `gated`) or null. All bfloat16; depth is even, columns a multiple
// of LANES. With scales (panels, blocks, PANEL), in float32, weights are 8-bit integers, -127 to 127. Returns 0, or 1 if
// memory runs out.
extern "C" int multiply(const uint16_t* x, const void* weights, const float* scales, const uint16_t* bias,
                        uint16_t* out, int64_t rows, int64_t depth, int columns, int gated, int threads) {
  return !multiply_all({x, weights, scales, bias, out, rows, depth, columns, gated != 0}, threads);
}
